/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Requests between the kernel and a FUSE daemon: who asks, and what was done. */
#ifndef IOTRACE_FUSE_WIRE_H
#define IOTRACE_FUSE_WIRE_H

#define IOT_FLIGHT_BITS 14
#include "core/file.h"
#include "core/range.h"
#include "core/redundant.h"
#include "types.h"

/* A request's opcode is in the upper half of its flight's state; its word is where in_args[0] are. */
#define IOT_OPCODE_SHIFT 16

/*
 * When the first request was seen sent, jiffies; 1 where requests do not say when they
 * were made. The hooks of ends are attached a while before those that see requests sent.
 * What ends before the first request was seen sent is neither counted nor lost: it was
 * sent before we attached.
 */
__u64 first_sent = 0;

static __always_inline void iot_fuse_see_send(void)
{
	if (!first_sent)
		first_sent = layout.req_created ? bpf_jiffies64() : 1;
}

/* The daemons of each file system: how many requests each process ended. */
struct daemon {
	__u32 dev;
	__u32 pid;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct daemon);
	__type(value, __u64);
} daemons SEC(".maps");

static __always_inline bool iot_is_daemon(__u32 dev)
{
	struct daemon d = { .dev = dev, .pid = bpf_get_current_pid_tgid() >> 32 };

	return bpf_map_lookup_elem(&daemons, &d);
}

static __always_inline void iot_fuse_meet_daemon(__u32 dev)
{
	struct daemon d = { .dev = dev, .pid = bpf_get_current_pid_tgid() >> 32 };
	__u64 *count = bpf_map_lookup_elem(&daemons, &d), one = 1;

	if (count)
		__sync_fetch_and_add(count, 1);
	else if (iot_is_user_task((void *)bpf_get_current_task())) /* virtiofs answers from a kernel thread */
		bpf_map_update_elem(&daemons, &d, &one, BPF_ANY);
}

/* For tracepoints: no task waits for a background request, so its fuse_args live until its end. */
static __always_inline bool iot_fuse_in_background(__u64 req)
{
	return IOT_FUSE_FLAGS(req) & layout.background;
}

static __always_inline __u64 iot_fuse_id(__u64 req)
{
	return iot_fuse_in_background(req) ? IOT_FUSE_ARGS(req) : req;
}

enum {
	IOT_FUSE_CALLER = 1, /* the current task asks */
	IOT_FUSE_SUBMIT = 2, /* not sent yet */
};

/* The owner of a request that is no writeback, packed. */
static __always_inline __u64 iot_fuse_owner(const struct usage_key *usage, __u64 args, bool caller)
{
	bool data = usage->op == IOT_READ || usage->op == IOT_WRITE;
	__u64 owner = caller ? iot_owner_from_task() : 0, folio;

	if (owner)
		return owner;
	folio = data ? iot_fuse_first_folio(args) : 0;
	if (folio) {
		owner = iot_folio_owner(folio, 0, usage->op == IOT_WRITE ? IOT_FOR_WRITE : 0);
		if (!caller && iot_packed_basis(owner) != IOT_PAGE && iot_packed_basis(owner) != IOT_DIRTIER)
			owner = 0; /* the current task is not the owner */
	}
	if (!owner && caller)
		owner = iot_pack(IOT_CGROUP_KERNEL, IOT_NONE);
	return owner;
}

/*
 * The file of a request with data; 0 if it is not known. The daemon's number of the file
 * must be the request's: the pages of direct I/O may be another file's. It follows the
 * inode in struct fuse_inode.
 */
__noinline __u32 iot_fuse_file(__u64 args)
{
	__u64 inode = (__u64)iot_fuse_inode(args), at, io;
	struct kiocb *iocb;

	at = inode + bpf_core_type_size(struct inode);
	if (!inode || iot_hot_word(at) != iot_fuse_node(args)) {
		io = layout.io ? iot_hot_word(args + layout.io) : 0;
		iocb = io ? (void *)iot_hot_word(io + layout.io_iocb) : NULL;
		inode = iocb ? (__u64)BPF_CORE_READ(iocb, ki_filp, f_inode) : 0;
		at = inode + bpf_core_type_size(struct inode);
		if (!inode || iot_hot_word(at) != iot_fuse_node(args))
			return 0;
	}
	return iot_file_of(inode, at, 1, iot_file_more(at, 1));
}

/* Stores a request and its owner. */
__noinline int iot_fuse_begin(__u64 id, __u64 args, __u32 dev, __u32 how)
{
	__u32 opcode = iot_hot_u32(args + layout.opcode);
	__u64 in_value = iot_hot_word(args + layout.in_value), owner = 0, inode;
	struct usage_key usage = { .source = IOT_FUSE, .op = iot_fuse_op(opcode), .dev = dev };
	bool data = opcode == IOT_FUSE_READ || opcode == IOT_FUSE_WRITE, writeback;
	struct fuse_io_in in = {};
	struct flight *f;

	if (data)
		bpf_probe_read_kernel(&in, sizeof(in), (void *)in_value);
	if (data && iot_files_on())
		usage.fsdev = iot_fuse_file(args);
	writeback = opcode == IOT_FUSE_WRITE && in.flags & IOT_FUSE_WRITE_CACHE;
	if (!writeback) {
		owner = iot_fuse_owner(&usage, args, how & IOT_FUSE_CALLER);
		iot_own(&usage, owner, iot_packed_basis(owner) == IOT_TASK ?
			iot_pid_of((void *)bpf_get_current_task()) : 0);
	}
	f = io_begin(id, &usage, bpf_ktime_get_ns(), in.offset);
	if (!f)
		return 0;
	f->bytes = in.size;
	f->word = in_value;
	f->state = opcode << IOT_OPCODE_SHIFT | (how & IOT_FUSE_SUBMIT ? IOT_SUBMITTED : 0);
	if (writeback) {
		inode = (__u64)iot_fuse_inode(args);
		iot_range_owner(id, inode ? inode + bpf_core_field_offset(struct inode, i_data) : 0);
	}
	return 0;
}

/* fuse_request_send: the request goes to the daemon. */
static __always_inline int iot_fuse_send(__u64 req)
{
	__u64 args = IOT_FUSE_ARGS(req), id = req;
	__u32 how = IOT_FUSE_CALLER, dev = iot_fuse_dev(req);
	struct flight *f;

	iot_fuse_see_send();
	if (iot_fuse_in_background(req)) {
		id = args;
		f = io_flight(id);
		if (f && f->state & IOT_SUBMITTED) {
			f->state &= ~IOT_SUBMITTED;
			f->issued = bpf_ktime_get_ns();
			return 0;
		}
		if (iot_is_daemon(dev))
			how = 0;
	}
	return iot_fuse_begin(id, args, dev, how);
}

/* A function that sends or submits a request was called. */
static __always_inline int iot_fuse_call(__u64 mount, __u64 args, __u32 how)
{
	iot_fuse_see_send();
	if (!iot_fuse_layout_holds(mount)) {
		iot_lost(IOT_LOST_LATENCIES, 1);
		return 0;
	}
	return iot_fuse_begin(args, args, iot_fuse_mount_dev(mount), IOT_FUSE_CALLER | how);
}

/* Whether fuse_args are still those of a request with data. */
static __always_inline bool iot_fuse_still(const struct flight *f, __u64 args, __u32 opcode)
{
	__u64 in = iot_hot_word(args + layout.in_value);

	return in == f->word && iot_hot_u32(args + layout.opcode) == opcode &&
	       iot_hot_word(in + offsetof(struct fuse_io_in, offset)) == f->offset;
}

/*
 * What was done of a request that was stored when it was sent. Where its fuse_args are
 * empty or belong to another request by now, all that was asked for counts as done. By
 * those that identify a request it is known that they are its own.
 */
static __always_inline __u64 iot_fuse_done_of(const struct flight *f, __u64 id, __u64 args, __u32 opcode)
{
	bool data = opcode == IOT_FUSE_READ || opcode == IOT_FUSE_WRITE;
	__u64 bytes;

	if (!data)
		return iot_fuse_done(args, opcode);
	if (id != args && !iot_fuse_still(f, args, opcode))
		return f->bytes;
	bytes = iot_fuse_done(args, opcode);
	if (opcode == IOT_FUSE_WRITE && !bytes)
		return f->bytes; /* the answer does not say it */
	return bytes < f->bytes ? bytes : f->bytes;
}

/*
 * Asynchronous direct I/O: the system call returned without a count, so its
 * application level is booked here.
 */
static __always_inline void iot_fuse_book_async(struct usage_key usage, __u64 args, __u64 bytes)
{
	__u64 io = layout.io ? iot_hot_word(args + layout.io) : 0;

	if (!io || !(iot_hot_u32(io + layout.io_async) & 0xff) || (iot_hot_u32(io + layout.io_blocking) & 0xff))
		return;
	usage.flags = IOT_APP;
	iot_account(&usage, bytes, 0);
}

/*
 * Books a request that ended; returns 1 when it was not stored. Functions that call
 * each other share 512 bytes of stack, and before 6.8 each takes at least 32. So this
 * one, which needs much, is not called by those that find owners.
 */
__noinline int iot_fuse_finish(__u64 id, __u64 args, __s32 error)
{
	struct flight *f = io_flight(id);
	__u64 bytes = 0, latency = 0;
	struct usage_key usage;
	__u32 opcode;

	if (!f)
		return 1;
	usage = f->usage;
	opcode = f->state >> IOT_OPCODE_SHIFT;
	if (iot_fuse_unknown(error)) {
		usage.op = IOT_META_OP; /* nothing was done, and the kernel will not ask again */
	} else if (!error) {
		bytes = iot_fuse_done_of(f, id, args, opcode);
		iot_fuse_meet_daemon(usage.dev);
	}
	if (f->issued && (with_latency || with_records))
		latency = bpf_ktime_get_ns() - f->issued;
	if (f->state & IOT_SEVERAL && usage.op == IOT_WRITE) {
		iot_range_book(f, id, bytes, latency);
	} else {
		iot_account(&usage, bytes, 1);
	}
	io_end(f, &usage, latency, bytes, iot_fuse_failed(usage.op, error));
	io_forget(f);
	if (with_app && !error && id == args && bytes && (opcode == IOT_FUSE_READ || opcode == IOT_FUSE_WRITE))
		iot_fuse_book_async(usage, args, bytes);
	return 0;
}

/*
 * Whether a request was made before we saw the first one sent: it may have been sent
 * before we attached, so its end without its beginning is no loss.
 */
static __always_inline bool iot_fuse_is_old(__u64 req)
{
	return layout.req_created && iot_hot_word(req + layout.req_created) <= first_sent;
}

/*
 * Books a request that ended and was never seen before. Its pages may still tell the
 * owner of one piece of data; a delayed write, which may have several, has none.
 */
__noinline int iot_fuse_book_late(__u64 args, __u32 dev, __s32 error)
{
	__u32 opcode = iot_hot_u32(args + layout.opcode);
	struct usage_key usage = { .source = IOT_FUSE, .op = iot_fuse_op(opcode), .dev = dev };
	__u64 in = iot_hot_word(args + layout.in_value);

	if (opcode != IOT_FUSE_WRITE ||
	    !(iot_hot_u32(in + offsetof(struct fuse_io_in, flags)) & IOT_FUSE_WRITE_CACHE))
		iot_own(&usage, iot_fuse_owner(&usage, args, false), 0);
	iot_account(&usage, error ? 0 : iot_fuse_done(args, opcode), 1);
	if (iot_fuse_failed(usage.op, error)) {
		usage.flags |= IOT_ERROR;
		iot_account(&usage, 0, 1);
	}
	return 0;
}

/* The daemon answered, or the request was aborted. */
static __always_inline int iot_fuse_end(__u64 req, __u64 id)
{
	__u64 args = IOT_FUSE_ARGS(req);
	__s32 error = iot_hot_u32(req + layout.req_error);

	if (!iot_fuse_finish(id, args, error) || !first_sent)
		return 0;
	if (!iot_fuse_is_old(req))
		iot_lost(IOT_LOST_LATENCIES, 1);
	return iot_fuse_book_late(args, iot_fuse_dev(req), error);
}

/* The kernel may call the function once more for a request that has ended. */
static __always_inline int iot_fuse_end_call(__u64 req, __u64 id)
{
	if (IOT_FUSE_FLAGS(req) & layout.finished)
		return 0;
	if (!iot_fuse_layout_holds(iot_hot_word(req + layout.req_link)))
		return 0;
	iot_fuse_end(req, id);
	return 0;
}

/* See redundant.h. */
static __always_inline int iot_fuse_send_redundant(__u64 req)
{
	struct flight *f = io_flight(iot_fuse_id(req));

	/* One with other arguments never ended: its sender was killed before the daemon took it. */
	if (f && !(f->state & IOT_SUBMITTED) && f->word == iot_hot_word(IOT_FUSE_ARGS(req) + layout.in_value))
		return 0;
	iot_covered();
	return iot_fuse_send(req);
}

static __always_inline int iot_fuse_end_redundant(__u64 req)
{
	__u64 id = iot_fuse_id(req);

	if (io_flight(id)) {
		iot_covered();
		iot_fuse_finish(id, IOT_FUSE_ARGS(req), iot_hot_u32(req + layout.req_error));
	}
	return 0;
}

#endif
