/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* TREAD and TWRITE: messages with data. */
#ifndef IOTRACE_9P_WIRE_H
#define IOTRACE_9P_WIRE_H

#define IOT_FLIGHT_BITS 13
#define IOT_SPILLS
#include "core/file.h"
#include "core/range.h"
#include "types.h"

/* The mounts by their clients, which is all that a message names. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, __u32);
} mounts SEC(".maps");

static __always_inline void iot_p9_mount_has(__u64 client, __u32 dev)
{
	__u32 *known = bpf_map_lookup_elem(&mounts, &client);

	if (!known || *known != dev)
		bpf_map_update_elem(&mounts, &client, &dev, BPF_ANY);
}

/* Learns the client of a mount. */
static __always_inline int iot_p9_learn(struct super_block *sb)
{
	__u64 session = (__u64)FIELD(sb, s_fs_info);
	__u32 dev = FIELD(sb, s_dev);

	if (FIELD(sb, s_magic) != IOT_V9FS_MAGIC)
		return 0;
	if (fixed_9p) {
		iot_p9_mount_has(iot_word_at(session + IOT_FIXED_SESSION_CLIENT), dev);
		iot_p9_mount_has(iot_word_at(session + IOT_FIXED_SESSION_CLIENT_PLAIN), dev);
	} else {
		iot_p9_mount_has(iot_word_at(session + bpf_core_field_offset(struct v9fs_session_info, clnt)), dev);
	}
	return 0;
}

/* The mount of a client; 0 where it is not known yet. */
static __always_inline __u32 iot_p9_dev(__u64 client)
{
	__u32 *dev = bpf_map_lookup_elem(&mounts, &client);

	return dev ? *dev : 0;
}

/*
 * Files that threads read and write past the page cache, which is known at the file
 * system's functions alone before 6.8.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64); /* pid and tid */
	__type(value, __u64); /* struct inode */
} callers SEC(".maps");

static __always_inline int iot_p9_enter(struct kiocb *iocb)
{
	struct file *file = FIELD(iocb, ki_filp);
	struct inode *inode = FIELD(file, f_inode);
	__u64 thread = bpf_get_current_pid_tgid(), addr = (__u64)inode;

	if (iot_files_on())
		bpf_map_update_elem(&callers, &thread, &addr, BPF_ANY);
	return iot_p9_learn(FIELD(inode, i_sb));
}

/* The inode of a page-cache page of 9p that is read or written at this offset, by the first page of a bvec. */
static __always_inline __u64 iot_p9_of_bvec(__u64 iter, __u64 offset, bool write)
{
	const struct bio_vec *bvec = FIELD((struct iov_iter *)iter, bvec);
	struct folio *folio = iot_folio(FIELD(bvec, bv_page));
	struct address_space *mapping = iot_folio_mapping(folio);
	unsigned long flags = iot_word_at((__u64)folio); /* its first word */

	/* A page that is given to splice, or is mapped and given to O_DIRECT, is not being written back. */
	if (!iot_mapping_is_file(mapping) || iot_folio_index(folio) != offset >> IOT_PAGE_SHIFT ||
	    !IOT_HAS_FLAG(flags, PG_locked) || (write && !IOT_HAS_FLAG(flags, PG_writeback)))
		return 0;
	return (__u64)FIELD(mapping, host);
}

/* The file and what is known about a request. */
struct p9_target {
	__u64 inode; /* 0: not known */
	bool cache; /* the data of a write are the page cache's */
};

static __always_inline void iot_p9_find(struct p9_target *t, __u64 fid, __u64 offset, __u64 iter, bool write)
{
	__u64 thread = bpf_get_current_pid_tgid(), client = iot_p9_client(fid), *caller;
	__u32 kind = iot_iter_kind(iter), origin = 0;
	struct netfs_io_subrequest *s = NULL;
	struct netfs_io_request *request;
	struct super_block *sb;
	__u64 start;

	t->inode = 0;
	t->cache = false;
	if (bpf_core_field_exists(s->io_iter)) {
		/* Extended attributes and directories have kernel memory of another caller. */
		if (!IOT_KIND_IS(kind, ITER_FOLIOQ) && !IOT_KIND_IS(kind, ITER_XARRAY) && !IOT_KIND_IS(kind, ITER_BVEC))
			return;
		s = (void *)(iter - bpf_core_field_offset(struct netfs_io_subrequest, io_iter));
		start = FIELD(s, start);
		if (offset != start && offset != start + FIELD(s, transferred))
			return;
		request = FIELD(s, rreq);
		t->inode = (__u64)FIELD(request, inode);
		bpf_probe_read_kernel(&origin, 1, (void *)request + bpf_core_field_offset(request->origin));
		t->cache = IOT_IS(origin, netfs_io_origin, NETFS_WRITEBACK) ||
			   IOT_IS(origin, netfs_io_origin, NETFS_LAUNDER_WRITE);
	} else if (IOT_KIND_IS(kind, ITER_XARRAY)) {
		start = (__u64)FIELD((struct iov_iter *)iter, xarray) - bpf_core_field_offset(struct address_space, i_pages);
		t->inode = (__u64)FIELD((struct address_space *)start, host);
		t->cache = true;
	} else if (IOT_KIND_IS(kind, ITER_BVEC)) {
		t->inode = iot_p9_of_bvec(iter, offset, write);
		t->cache = t->inode;
	} else {
		caller = iot_files_on() ? bpf_map_lookup_elem(&callers, &thread) : NULL;
		if (caller && iot_p9_fid_is_of(fid, (void *)*caller))
			t->inode = *caller;
	}
	if (!t->inode)
		return;
	/* Whatever was read above: it is a file of 9p, on the mount that the message is for. */
	sb = FIELD((struct inode *)t->inode, i_sb);
	iot_p9_learn(sb);
	if (FIELD(sb, s_magic) != IOT_V9FS_MAGIC || iot_p9_dev(client) != FIELD(sb, s_dev)) {
		t->inode = 0;
		t->cache = false;
	}
}

/*
 * A call is synchronous, so its thread identifies it. A page fault on the memory that is
 * read or written may make another one meanwhile.
 */
#define IOT_INNER (1ULL << 63)

static __always_inline __u64 iot_p9_id(__u8 op)
{
	return bpf_get_current_pid_tgid() | (__u64)op << 60; /* no pid has more than 22 bits */
}

/* A call begins: TREAD once, TWRITE as often as it takes. */
__noinline int iot_p9_begin(__u64 fid, __u64 offset, __u64 iter, __u64 error, __u32 op)
{
	struct usage_key usage = { .source = IOT_P9, .op = op };
	__u64 id = iot_p9_id(op), owner = 0;
	struct p9_target t;
	struct flight *f;

	iot_p9_find(&t, fid, offset, iter, op == IOT_WRITE);
	if (op == IOT_READ || !t.cache)
		owner = iot_owner_from_task();
	usage.dev = t.inode ? iot_inode_dev((struct inode *)t.inode) : iot_p9_dev(iot_p9_client(fid));
	if (owner)
		iot_own(&usage, owner, iot_pid_of((void *)bpf_get_current_task()));
	if (iot_files_on())
		usage.fsdev = iot_file_of(t.inode, 0, 0, 0);
	if (io_flight(id))
		id |= IOT_INNER;
	f = io_begin(id, &usage, bpf_ktime_get_ns(), offset);
	if (!f)
		return 0;
	f->bytes = FIELD((struct iov_iter *)iter, count);
	f->word = error;
	if (op == IOT_WRITE && t.cache)
		iot_range_owner(id, t.inode + bpf_core_field_offset(struct inode, i_data));
	return 0;
}

/* The call that the current thread is in. */
static __always_inline struct flight *iot_p9_flight(__u8 op)
{
	struct flight *f = io_flight(iot_p9_id(op) | IOT_INNER);

	return f ? f : io_flight(iot_p9_id(op));
}

/* A message of a call is sent. The parts of one with several owners have the operation themselves. */
static __always_inline int iot_p9_sent(__u8 op)
{
	struct flight *f = iot_p9_flight(op);
	struct usage_key usage;

	if (!f || f->state & IOT_SEVERAL)
		return 0;
	usage = f->usage;
	iot_account(&usage, 0, 1);
	return 0;
}

/* A call that began before we looked, or whose flight was displaced. */
static __always_inline int iot_p9_late(__u8 op, __u64 bytes)
{
	struct usage_key usage = { .source = IOT_P9, .op = op };
	__u64 owner = op == IOT_READ ? iot_owner_from_task() : 0;

	if (owner)
		iot_own(&usage, owner, iot_pid_of((void *)bpf_get_current_task()));
	iot_account(&usage, bytes, 1);
	iot_lost(IOT_LOST_LATENCIES, 1);
	return 0;
}

/* A call returns the bytes that the server took or gave. */
__noinline int iot_p9_end(__s32 result, __u32 op)
{
	struct flight *f = iot_p9_flight(op);
	__u64 bytes = result > 0 ? result : 0, latency;
	struct usage_key usage;

	if (!f)
		return iot_p9_late(op, bytes);
	usage = f->usage;
	latency = bpf_ktime_get_ns() - f->issued;
	if (f->state & IOT_SEVERAL)
		iot_range_book(f, f->id, bytes, latency);
	else
		iot_account(&usage, bytes, 0);
	io_end(f, &usage, latency, bytes, iot_u32_at(f->word));
	io_forget(f);
	return 0;
}

#endif
