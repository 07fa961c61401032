/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* READ, WRITE and COMMIT: requests with pages. */
#ifndef IOTRACE_NFS_WIRE_H
#define IOTRACE_NFS_WIRE_H

#define IOT_FLIGHT_BITS 13
#define IOT_SPILLS
#include "core/file.h"
#include "core/flight.h"
#include "core/owner.h"
#include "core/run.h"
#include "types.h"

const volatile bool from_functions = false; /* the functions are probed as well: see iot_from_function */

#define IOT_PAGES 520 /* most nfs_pages of an RPC: the largest has 1 MiB, in halves of pages */

/* The users of files_structs: noted where programs write or make mapped pages dirty. */
struct writer {
	__u64 owner; /* packed */
	__u32 pid;
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64); /* struct files_struct * */
	__type(value, struct writer);
} writers SEC(".maps");

/* Describes the current task; false in a kernel thread. */
static __always_inline bool iot_current_writer(struct writer *w)
{
	w->owner = iot_owner_from_task();
	if (!w->owner)
		return false;
	w->pid = iot_pid_of((void *)bpf_get_current_task());
	return true;
}

/* Notes that the current task's files_struct belongs to its cgroup. */
static __always_inline int iot_meet(void)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct writer now = {}, *known;
	__u64 files;

	if (!iot_current_writer(&now))
		return 0;
	files = (__u64)HOT(task, files);
	known = bpf_map_lookup_elem(&writers, &files);
	if (!known || known->owner != now.owner || known->pid != now.pid)
		bpf_map_update_elem(&writers, &files, &now, BPF_ANY);
	return 0;
}

/*
 * The owner by a lock owner: the current task when the lock owner is its own (reads,
 * direct I/O, flushes at close), else the note. In this order, because the memory of
 * a files_struct is soon reused: a note is stale until the new user first writes.
 */
static __always_inline bool iot_owner_from_lock(struct owner *o, struct nfs_lock_context *lock)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	__u64 files = (__u64)HOT(lock, lockowner);
	struct writer now = {}, *w = &now;

	if (!files)
		return false;
	if ((__u64)HOT(task, files) != files || !iot_current_writer(&now)) {
		w = bpf_map_lookup_elem(&writers, &files);
		if (!w)
			return false;
	}
	o->cgroup = iot_packed_cgroup(w->owner);
	o->pid = w->pid;
	o->basis = IOT_DIRTIER;
	return true;
}

/* The owner where the lock owner is not known: the submitter of direct I/O, else that of the page. */
static __always_inline void iot_owner_from_page(struct owner *o, struct page *page, bool direct, bool write)
{
	__u64 owner = direct ? iot_owner_from_task() : 0;

	if (owner)
		iot_unpack(o, owner);
	else
		iot_owner_of_folio(o, iot_folio(page), NULL, write ? IOT_FOR_WRITE : 0);
}

#define IOT_NFS_INODE_BYTES 4096 /* no struct nfs_inode is larger */

/*
 * The file of a request. A server soon gives the number of a removed file to another one:
 * the file handle tells them apart. It is a part of the inode; one from elsewhere (pNFS) is
 * not used, because it does not live as long.
 */
__noinline __u32 iot_nfs_file(__u64 inode, __u64 fh)
{
	__u32 words = 0;

	if (fh && inode - fh < IOT_NFS_INODE_BYTES) {
		words = (HOT((struct nfs_fh *)fh, size) + sizeof(__u16) + sizeof(__u64) - 1) / sizeof(__u64);
		if (words > IOT_FILE_WORDS)
			words = IOT_FILE_WORDS;
	}
	return iot_file_of(inode, words ? fh : 0, words, iot_file_more(fh, words));
}

/* The handle is not to be had where there are no types of modules: then 0. */
#define IOT_NFS_FH(addr) (bpf_core_field_exists((addr)->args.fh) ? (__u64)HOT(addr, args.fh) : 0)

/* One WRITE while its pages are walked. */
struct nfs_walk {
	struct run run;
	__u64 end; /* the list's head */
	__u64 lock; /* of the page before */
	__u8 known; /* lock named an owner */
	__u8 direct;
	__u8 pad[6];
};

/* One for each program that walks: the kernel never runs a program twice at once on a CPU. */
enum {
	IOT_WALK_TRACEPOINT,
	IOT_WALK_REDUNDANT,
	IOT_WALK_FUNCTION,
	IOT_WALKS,
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, IOT_WALKS);
	__type(key, __u32);
	__type(value, struct nfs_walk);
} walks SEC(".maps");

/* An RPC with a single owner is recorded at its end, with its latency. */
static __always_inline void iot_walk_book(struct nfs_walk *w, bool last)
{
	if (with_records && (!with_latency || w->run.several))
		iot_record(&w->run.usage, bpf_ktime_get_ns(), 0, w->run.offset, w->run.bytes);
	iot_run_book(&w->run, last);
}

/*
 * Looks at one nfs_page; returns the next one, 0 after the last. It is global and has
 * plain numbers as arguments: so the verifier looks at it once instead of once for
 * each round of a loop.
 */
__noinline __u64 iot_walk_page(__u64 req, __u32 walker)
{
	struct nfs_walk *w = bpf_map_lookup_elem(&walks, &walker);
	struct nfs_req r = {};
	struct owner o = {};

	if (!w)
		return 0;
	iot_read_page(&r, req);
	if (!w->known || (__u64)r.lock != w->lock) {
		w->lock = (__u64)r.lock;
		w->known = iot_owner_from_lock(&o, r.lock);
		if (!w->known)
			iot_owner_from_page(&o, r.page, w->direct, true);
		o.fsdev = w->run.usage.fsdev;
		if (iot_run_differs(&w->run, &o)) {
			if (w->run.bytes) {
				w->run.several = 1;
				iot_walk_book(w, false);
			}
			iot_run_own(&w->run, &o);
		}
	}
	w->run.bytes += r.bytes;
	return r.next == w->end ? 0 : r.next;
}

/* Nested loops: the verifier adds up their rounds instead of multiplying them. */
#define IOT_PAGES_ROUND 24
#define IOT_PAGES_ROUNDS 22

__noinline __u64 iot_walk_pages(__u64 req, __u32 walker)
{
	int i;

	for (i = 0; i < IOT_PAGES_ROUND && req; i++)
		req = iot_walk_page(req, walker);
	return req;
}

_Static_assert(IOT_PAGES_ROUND * IOT_PAGES_ROUNDS >= IOT_PAGES, "all pages of an RPC are looked at");

/* Books a WRITE on its owners when it is sent. */
__noinline int iot_walk_write(__u64 hdr_addr, __u32 walker)
{
	struct nfs_walk *w = bpf_map_lookup_elem(&walks, &walker);
	struct nfs_pgio_header *hdr = (void *)hdr_addr;
	struct usage_key usage = { .source = IOT_NFS, .op = IOT_WRITE };
	__u32 bytes = HOT(hdr, args.count);
	__u64 req = (__u64)HOT(hdr, pages.next), start = HOT(hdr, io_start);
	struct flight *f;
	int i;

	if (!w)
		return 0;
	usage.dev = iot_inode_dev(HOT(hdr, inode));
	if (iot_files_on())
		usage.fsdev = iot_nfs_file((__u64)HOT(hdr, inode), IOT_NFS_FH(hdr));
	iot_run_begin(&w->run, &usage, start);
	w->end = hdr_addr + bpf_core_field_offset(struct nfs_pgio_header, pages);
	w->lock = 0;
	w->known = 0;
	w->direct = HOT(hdr, dreq) != NULL;
	if (req == w->end)
		req = 0;
	for (i = 0; i < IOT_PAGES_ROUNDS && req; i++)
		req = iot_walk_pages(req, walker);
	if (w->run.before + w->run.bytes < bytes) { /* the last owner seen gets the rest */
		iot_lost(IOT_LOST_WALKS, 1);
		w->run.bytes = bytes - w->run.before;
	}
	if (w->run.bytes)
		iot_walk_book(w, true);
	f = io_begin(hdr_addr, &w->run.longest, bpf_ktime_get_ns(), start);
	if (f && w->run.several)
		f->state = IOT_RECORDED;
	return 0;
}

/* The row of a READ: all of its pages have one lock owner, the reader. */
static __always_inline void iot_read_usage(struct usage_key *usage, struct nfs_pgio_header *hdr)
{
	struct owner o = {};
	struct nfs_req r = {};

	usage->source = IOT_NFS;
	usage->op = IOT_READ;
	usage->dev = iot_inode_dev(HOT(hdr, inode));
	if (iot_files_on())
		usage->fsdev = iot_nfs_file((__u64)HOT(hdr, inode), IOT_NFS_FH(hdr));
	if (!iot_owner_from_lock(&o, HOT(hdr, args.lock_context))) {
		iot_read_page(&r, (__u64)HOT(hdr, pages.next));
		iot_owner_from_page(&o, r.page, HOT(hdr, dreq) != NULL, false);
	}
	iot_own(usage, iot_pack(o.cgroup, o.basis), o.pid);
}

/* Stores a READ and its owner; it is booked when it comes back. */
__noinline int iot_begin_read(__u64 hdr_addr)
{
	struct nfs_pgio_header *hdr = (void *)hdr_addr;
	struct usage_key usage = {};

	iot_read_usage(&usage, hdr);
	io_begin(hdr_addr, &usage, bpf_ktime_get_ns(), HOT(hdr, io_start));
	return 0;
}

/* A COMMIT belongs to the writer of the first page that it makes stable. */
__noinline int iot_commit(__u64 data_addr)
{
	struct nfs_commit_data *data = (void *)data_addr;
	struct usage_key usage = { .source = IOT_NFS, .op = IOT_FLUSH };
	__u64 now = bpf_ktime_get_ns();
	struct nfs_req r = {};
	struct owner o = {};

	usage.dev = iot_inode_dev(HOT(data, inode));
	if (iot_files_on())
		usage.fsdev = iot_nfs_file((__u64)HOT(data, inode), IOT_NFS_FH(data));
	iot_read_page(&r, (__u64)HOT(data, pages.next));
	if (!iot_owner_from_lock(&o, r.lock))
		iot_owner_from_page(&o, r.page, false, true);
	iot_own(&usage, iot_pack(o.cgroup, o.basis), o.pid);
	iot_account(&usage, 0, 1);
	io_begin(data_addr, &usage, now, 0);
	if (!with_latency && with_records)
		iot_record(&usage, now, 0, 0, 0);
	return 0;
}

/*
 * The flight of a request with this operation. The kernel reuses the memory of requests:
 * where nobody saw the beginning of this one, its address may be that of an older one.
 */
static __always_inline struct flight *iot_flight_of(__u64 id, __u8 op)
{
	struct flight *f = io_flight(id);

	return f && f->usage.op == op ? f : NULL;
}

/*
 * An RPC came back with bytes. Its flight stays until its place is needed: after a
 * short answer or a lost session the same RPC is sent once more, for the rest or for
 * all.
 */
__noinline int iot_pgio_done(__u64 id, __u32 op, __u64 bytes, __u32 failed)
{
	struct flight *f = iot_flight_of(id, op);
	__u64 now = bpf_ktime_get_ns();

	if (!f) {
		iot_lost(IOT_LOST_LATENCIES, 1);
		return 0;
	}
	io_end(f, &f->usage, now - f->issued, bytes, failed);
	f->issued = now;
	f->offset += bytes;
	io_over(f, f->state & ~IOT_BY_FUNCTION);
	return 0;
}

static __always_inline int iot_read_done(struct rpc_task *task, struct nfs_pgio_header *hdr)
{
	struct flight *f = iot_flight_of((__u64)hdr, IOT_READ);
	__u64 bytes = HOT(hdr, res.count);
	struct usage_key usage = {};

	if (f)
		usage = f->usage;
	else
		iot_read_usage(&usage, hdr);
	iot_account(&usage, bytes, 1);
	return iot_pgio_done((__u64)hdr, IOT_READ, bytes, HOT(task, tk_status) < 0);
}

static __always_inline int iot_write_done(struct rpc_task *task, struct nfs_pgio_header *hdr)
{
	return iot_pgio_done((__u64)hdr, IOT_WRITE, HOT(hdr, res.count), HOT(task, tk_status) < 0);
}

static __always_inline int iot_commit_ended(struct rpc_task *task, struct nfs_commit_data *data)
{
	return iot_pgio_done((__u64)data, IOT_FLUSH, 0, HOT(task, tk_status) < 0);
}

/*
 * A kprobe can be set before its module is loaded, and the module can still be
 * unloaded; neither is true of a tracepoint. So where NFS is a module, the functions
 * that contain the tracepoints are probed as well: they see what happens before the
 * tracepoints are attached, which needs a module that is loaded and in use. What a
 * function has booked, its tracepoint does not book again.
 *
 * A function whose tracepoint was not attached leaves its mark behind, and the next
 * request may have the same address. So marks count only while the functions are
 * probed: then each request gets a new flight and a mark of its own.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32); /* 1: the functions are not probed */
} bridges_down SEC(".maps");

static __always_inline int iot_from_function(__u64 id)
{
	struct flight *f = io_flight(id);

	if (f)
		f->state |= IOT_BY_FUNCTION;
	return 0;
}

static __always_inline bool iot_function_did(__u64 id)
{
	struct flight *f = from_functions ? io_flight(id) : NULL;
	__u32 zero = 0, *down;

	if (!f || !(f->state & IOT_BY_FUNCTION))
		return false;
	f->state &= ~IOT_BY_FUNCTION;
	down = bpf_map_lookup_elem(&bridges_down, &zero);
	return down && !*down;
}

/* Whether a request with this operation is in flight: for redundant programs, see redundant.h. */
static __always_inline bool iot_was_begun(__u64 id, __u8 op)
{
	struct flight *f = iot_flight_of(id, op);

	return f && !(f->state & IOT_OVER);
}

/* For hooks without one for the end: forgets at once what was begun. */
static __always_inline void iot_forget(__u64 id)
{
	struct flight *f = with_latency ? NULL : io_flight(id);

	if (f)
		io_forget(f);
}

#endif
