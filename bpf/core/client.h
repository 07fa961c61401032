/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Clients of this host's NFS server as owners, beside cgroups.
 *
 * A thread of the server is a kernel thread whose data is the request that it works on
 * (svc_prepare_thread in net/sunrpc/svc.c), and the request has the client's address. So
 * every program that runs in such a thread can name the client. Only programs that run in a
 * kernel thread look.
 *
 * A client is a number like a cgroup's, with a bit that no kernfs id reaches: it has a
 * generation in its upper half, which grows by one with each 2^31 cgroups. An IPv4 address is
 * in the number itself. Of an IPv6 address the number has a hash, and a map has the address.
 */
#ifndef IOTRACE_CLIENT_H
#define IOTRACE_CLIENT_H

#include "field.h"
#include "maps.h"

#define IOT_CLIENT_SHIFT 60
#define IOT_CLIENT (1ULL << IOT_CLIENT_SHIFT)
#define IOT_CLIENT_INET6 (1ULL << 59)

/* Filled by programs and never emptied. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64); /* the client's number */
	__type(value, struct client_address);
} nfs_clients SEC(".maps");

/*
 * A COPY of NFSv4.2 may be done by a thread of its own, whose data is the copy (struct
 * nfsd4_copy). That leads to the client (struct nfs4_client). These are types of the module
 * nfsd, which may be loaded later than programs are: user space says where the fields are.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct copy_fields);
} nfs_copies SEC(".maps");

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct kthread {
	void *data;
};

/* Since 5.17 (e32cf5dfbe22); before, the kernel kept it in set_child_tid. */
struct task_struct___5_17 {
	void *worker_private;
};

struct task_struct___5_10 {
	void *set_child_tid;
};

struct __kernel_sockaddr_storage {
	unsigned short ss_family;
};

struct svc_rqst {
	struct __kernel_sockaddr_storage rq_addr;
};

#pragma clang attribute pop

/* Of struct sockaddr_in and struct sockaddr_in6: numbers of the user ABI. */
#define IOT_AF_INET 2
#define IOT_AF_INET6 10

struct client_sockaddr {
	union {
		struct {
			__u16 family;
			__u16 port;
			__u32 inet; /* IPv6: flow */
		};
		__u64 id; /* later, the client's number: our callers have little stack left */
	};
	struct client_address inet6;
};

/* Whether an owner is a client. */
static __always_inline bool iot_is_client(__u64 cgroup)
{
	return cgroup >> IOT_CLIENT_SHIFT == 1;
}

/* The number of the client at a socket address; 0 where that is no address, or the map is full. */
static __always_inline __u64 iot_client(const void *sockaddr)
{
	struct client_sockaddr from = {};
	struct client_address *known;
	__u64 id;

	bpf_probe_read_kernel(&from, sizeof(from), sockaddr);
	if (from.family == IOT_AF_INET)
		return IOT_CLIENT | from.inet;
	if (from.family != IOT_AF_INET6)
		return 0;
	id = (from.inet6.word[0] ^ from.inet6.word[1] * 0xD6E8FEB86659FD93ULL) * 0x9E3779B97F4A7C15ULL;
	id = (id ^ id >> 32) * 0xD6E8FEB86659FD93ULL;
	from.id = IOT_CLIENT | IOT_CLIENT_INET6 | id >> 5;
	known = bpf_map_lookup_elem(&nfs_clients, &from.id);
	if (!known) {
		bpf_map_update_elem(&nfs_clients, &from.id, &from.inet6, BPF_NOEXIST);
		known = bpf_map_lookup_elem(&nfs_clients, &from.id);
	}
	if (known && known->word[0] == from.inet6.word[0] && known->word[1] == from.inet6.word[1])
		return from.id;
	iot_lost(IOT_LOST_NOTES, 1);
	return 0;
}

#define IOT_COMM_NFSD 0x6473666eU /* "nfsd" */
#define IOT_COMM_COPY 0x7268742079706f63ULL /* "copy thr", of "copy thread" */

/* The address of the client whose COPY a thread does; 0 where the fields are not known. */
static __always_inline __u64 iot_copier(__u64 copy)
{
	__u32 zero = 0;
	struct copy_fields *fields = bpf_map_lookup_elem(&nfs_copies, &zero);
	__u64 client;

	if (!fields || !fields->address)
		return 0;
	client = iot_word_at(copy + fields->client);
	return client ? client + fields->address : 0;
}

/* The client that a kernel thread works for; 0 for all others. */
__noinline __u64 iot_client_of_task(__u64 task_addr)
{
	struct task_struct *task = (void *)task_addr;
	struct task_struct___5_17 *now = (void *)task;
	struct task_struct___5_10 *old = (void *)task;
	__u64 comm = iot_word_at((__u64)&task->comm), data, address = 0;
	bool copies = comm == IOT_COMM_COPY;
	struct svc_rqst *rqst = NULL;
	struct kthread *thread;

	if (!copies && (comm & 0xffffffffffULL) != IOT_COMM_NFSD) /* with the final NUL */
		return 0;
	if (!(FIELD(task, flags) & PF_KTHREAD))
		return 0;
	if (bpf_core_field_exists(now->worker_private))
		thread = FIELD(now, worker_private);
	else
		thread = FIELD(old, set_child_tid);
	data = (__u64)FIELD(thread, data);
	if (!data)
		return 0;
	if (copies)
		address = iot_copier(data);
	else if (bpf_core_field_exists(rqst->rq_addr))
		address = data + bpf_core_field_offset(rqst->rq_addr);
	return address ? iot_client((const void *)address) : 0;
}

#endif
