/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* RPCs without pages, which count as metadata operations, and retransmissions of all. */
#ifndef IOTRACE_NFS_RPC_H
#define IOTRACE_NFS_RPC_H

#include "wire.h"

/* The starters of asynchronous RPCs, which end in kernel threads. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64); /* struct rpc_task * */
	__type(value, struct writer);
} starters SEC(".maps");

/* The file system's device of each RPC client, learned from replies that name an inode. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64); /* struct rpc_clnt * */
	__type(value, __u32);
} clients SEC(".maps");

/* The address from which each file system's requests are sent, as the socket has it. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32); /* device of the file system */
	__type(value, struct source_address);
} sources SEC(".maps");

/* The first seven characters of a procedure's name as a number. */
#define IOT_NAME(a, b, c, d, e, f, g)                                                                       \
	((__u64)(a) | (__u64)(b) << 8 | (__u64)(c) << 16 | (__u64)(d) << 24 | (__u64)(e) << 32 |            \
	 (__u64)(f) << 40 | (__u64)(g) << 48)

/* Whether an RPC has pages: by its procedure's name, which is the same in all versions of NFS. */
static __always_inline bool iot_is_data_by_name(struct rpc_task *task)
{
	__u64 name = 0;

	bpf_probe_read_kernel_str(&name, sizeof(name), HOT(HOT(task, tk_msg.rpc_proc), p_name));
	return name == IOT_NAME('R', 'E', 'A', 'D', 0, 0, 0) || name == IOT_NAME('W', 'R', 'I', 'T', 'E', 0, 0) ||
	       name == IOT_NAME('C', 'O', 'M', 'M', 'I', 'T', 0) || name == IOT_NAME('R', 'E', 'A', 'D', '_', 'P', 'L');
}

/*
 * The same, the quick way first: what has pages is in flight. That of an RPC that ended
 * may be in the table for a long time, and its memory another RPC's by then. Without
 * latencies nobody sees the ends of writes.
 */
static __always_inline bool iot_is_data(struct rpc_task *task, const struct flight *f)
{
	return (with_latency && f && !(f->state & IOT_OVER)) || iot_is_data_by_name(task);
}

static __always_inline struct flight *iot_rpc_flight(struct rpc_task *task)
{
	return io_flight((__u64)HOT(task, tk_calldata));
}

static __always_inline int iot_rpc_begin(struct rpc_task *task)
{
	struct writer w = {};
	__u64 key = (__u64)task;

	if (!(HOT(task, tk_flags) & IOT_RPC_ASYNC) || HOT(HOT(task, tk_client), cl_prog) != IOT_NFS_PROGRAM ||
	    iot_is_data(task, iot_rpc_flight(task)))
		return 0;
	if (!iot_current_writer(&w))
		w.owner = iot_pack(IOT_CGROUP_KERNEL, IOT_NONE);
	bpf_map_update_elem(&starters, &key, &w, BPF_ANY);
	return 0;
}

/* Who asked for a metadata operation; a synchronous one ends in the task that began it. */
static __always_inline void iot_rpc_owner(struct usage_key *usage, struct rpc_task *task)
{
	struct writer now = {}, *w = &now;
	__u64 key = (__u64)task;

	if (HOT(task, tk_flags) & IOT_RPC_ASYNC) {
		w = bpf_map_lookup_elem(&starters, &key);
		if (!w)
			return;
	} else if (!iot_current_writer(&now)) {
		now.owner = iot_pack(IOT_CGROUP_KERNEL, IOT_NONE);
	}
	iot_own(usage, w->owner, w->pid);
	if (w != &now)
		bpf_map_delete_elem(&starters, &key);
}

/*
 * rpc_stats_latency fires once for each RPC, where the kernel adds it to mountstats;
 * ns is its time from start to end.
 */
__noinline int iot_rpc_done(__u64 task_addr, __u64 ns)
{
	struct rpc_task *task = (void *)task_addr;
	struct usage_key usage = { .source = IOT_NFS, .op = IOT_META_OP };
	__u64 client = (__u64)HOT(task, tk_client);
	int again = HOT(HOT(task, tk_rqstp), rq_ntrans) - 1;
	struct flight *f;
	__u32 *dev;
	bool data;

	if (HOT((struct rpc_clnt *)client, cl_prog) != IOT_NFS_PROGRAM)
		return 0;
	f = iot_rpc_flight(task);
	if (f)
		f->state &= ~IOT_BY_FUNCTION; /* its tracepoint, which came too late, must not find another one's */
	data = iot_is_data(task, f);
	if (data && again <= 0)
		return 0;
	dev = bpf_map_lookup_elem(&clients, &client);
	if (dev)
		usage.dev = *dev;
	if (data) {
		if (f) {
			usage.cgroup = f->usage.cgroup;
			usage.pid = f->usage.pid;
			usage.basis = f->usage.basis;
			usage.dev = f->usage.dev;
		}
	} else {
		iot_rpc_owner(&usage, task);
		iot_account(&usage, 0, 1);
		iot_latency(&usage, ns);
		if (with_records)
			iot_record(&usage, bpf_ktime_get_ns() - ns, ns, 0, 0);
		if (HOT(task, tk_status) < 0) {
			usage.flags = IOT_ERROR;
			iot_account(&usage, 0, 1);
			usage.flags = 0;
		}
	}
	if (again > 0) {
		usage.op = IOT_RETRANSMIT;
		iot_account(&usage, (__u64)again * HOT(HOT(task, tk_rqstp), rq_snd_buf.len), again);
	}
	return 0;
}

/* Which address the server sees: that of the socket on which it answered. */
__noinline int iot_learn_source(__u64 client, __u32 dev)
{
	struct rpc_clnt *clnt = (void *)client;
	struct source_address now = {}, *known;
	struct sock *sk;

	if (!bpf_core_field_exists(clnt->cl_xprt))
		return 0;
	sk = (void *)iot_xprt_sock(HOT(clnt, cl_xprt));
	if (!sk)
		return 0;
	now.family = HOT(sk, __sk_common.skc_family);
	if (now.family == IOT_AF_INET)
		now.address.word[0] = HOT(sk, __sk_common.skc_rcv_saddr);
	else if (now.family == IOT_AF_INET6 && bpf_core_field_exists(sk->__sk_common.skc_v6_rcv_saddr))
		bpf_probe_read_kernel(&now.address, sizeof(now.address), &sk->__sk_common.skc_v6_rcv_saddr);
	if (!now.address.word[0] && !now.address.word[1])
		return 0; /* not connected */
	known = bpf_map_lookup_elem(&sources, &dev);
	if (!known || known->family != now.family || known->address.word[0] != now.address.word[0] ||
	    known->address.word[1] != now.address.word[1])
		bpf_map_update_elem(&sources, &dev, &now, BPF_ANY);
	return 0;
}

/* A reply had attributes of inode: its device is that of the RPC client. */
static __always_inline int iot_learn(struct inode *inode)
{
	struct super_block *sb = HOT(inode, i_sb);
	struct nfs_server *server = HOT(sb, s_fs_info);
	__u64 client = (__u64)HOT(server, client);
	__u32 dev = HOT(sb, s_dev), *known;

	known = bpf_map_lookup_elem(&clients, &client);
	if (!known || *known != dev)
		bpf_map_update_elem(&clients, &client, &dev, BPF_ANY);
	iot_learn_source(client, dev);
	return 0;
}

#endif
