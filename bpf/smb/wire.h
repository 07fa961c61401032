/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* READ and WRITE: requests with data. */
#ifndef IOTRACE_SMB_WIRE_H
#define IOTRACE_SMB_WIRE_H

#define IOT_FLIGHT_BITS 13
#define IOT_SPILLS
#include "core/file.h"
#include "core/range.h"
#include "core/redundant.h"
#include "types.h"

/* What the hooks on functions have noted about a call between its entry and its return. */
struct smb_call {
	__u64 cfile;
	__u64 offset;
	__u64 done; /* where the call leaves the number of bytes */
	__u64 begun;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64); /* pid and tid */
	__type(value, struct smb_call);
} calls SEC(".maps");

#define IOT_ENODATA 61 /* asm-generic/errno.h */
#define IOT_FROM_CACHE 1U /* the data of a write are the page cache's */

/* A request is about to be sent. A delayed write is its dirtiers', everything else the current task's. */
__noinline int iot_smb_begin(__u64 id, __u64 inode, __u64 range, __u32 bytes, __u32 how)
{
	struct usage_key usage = { .source = IOT_SMB, .op = how >> 8, .dev = iot_inode_dev((struct inode *)inode) };
	__u64 owner = how & IOT_FROM_CACHE ? 0 : iot_owner_from_task();
	struct flight *f;

	if (owner)
		iot_own(&usage, owner, iot_pid_of((void *)bpf_get_current_task()));
	if (iot_files_on())
		usage.fsdev = iot_file_of(inode, 0, 0, 0);
	f = io_begin(id, &usage, bpf_ktime_get_ns(), range);
	if (!f)
		return 0;
	f->bytes = bytes;
	if (!owner && usage.op == IOT_WRITE)
		iot_range_owner(id, inode + bpf_core_field_offset(struct inode, i_data));
	return 0;
}

/* A request ended: books its bytes. Returns 1 when its begin was not seen. */
__noinline int iot_smb_finish(__u64 id, __u64 bytes, __u32 failed)
{
	struct flight *f = io_flight(id);
	struct usage_key usage;
	__u64 latency;

	if (!f || f->state & IOT_OVER)
		return 1;
	usage = f->usage;
	latency = bpf_ktime_get_ns() - f->issued;
	if (f->state & IOT_SEVERAL)
		iot_range_book(f, id, bytes, latency);
	else
		iot_account(&usage, bytes, 1);
	io_end(f, &usage, latency, bytes, failed);
	io_over(f, 0);
	return 0;
}

/* A request ended whose begin was not seen: nobody knows whose it is. */
static __always_inline void iot_smb_book_late(__u8 op, struct inode *inode, __u64 bytes)
{
	struct usage_key usage = { .source = IOT_SMB, .op = op, .dev = iot_inode_dev(inode) };

	if (iot_files_on())
		usage.fsdev = iot_file_of((__u64)inode, 0, 0, 0);
	iot_account(&usage, bytes, 1);
	iot_lost(IOT_LOST_LATENCIES, 1);
}

/*
 * netfs_sreq, since 6.10. A subrequest is prepared (reads only), submitted and
 * terminated; what came short is submitted once more. Who prepares or submits a read
 * asked for it; it terminates in a thread of the kernel. transferred is the sum of all
 * tries, and 6.12 rounds that of a read at the end of the file up to what was asked for.
 */
enum {
	IOT_SUBMIT = IOT_BACK, /* in the state of a flight: sent, and no answer yet */
};

static __always_inline int iot_sreq_begin(__u64 sreq, struct inode *inode, struct netfs_io_request *request, __u8 op,
					  bool submit)
{
	struct netfs_io_subrequest *s = (void *)sreq;
	struct flight *f = io_flight(sreq);
	__u64 done = FIELD(s, transferred), start = FIELD(s, start), len = FIELD(s, len);
	__u32 how = op << 8, origin = 0;
	struct usage_key again;

	if (!submit && (f || op == IOT_WRITE)) /* a write that is prepared has no length yet */
		return 0;
	if (f && f->state & IOT_SUBMIT)
		return 0;
	if (f && op == IOT_READ) { /* it has its owner, the reader, already */
		if (f->state & IOT_OVER) {
			again = f->usage;
			again.op = IOT_RETRANSMIT;
			iot_account(&again, 0, 1);
		}
	} else {
		bpf_probe_read_kernel(&origin, 1, (void *)request + bpf_core_field_offset(request->origin));
		if (op == IOT_WRITE && origin == bpf_core_enum_value(enum netfs_io_origin, NETFS_WRITEBACK))
			how |= IOT_FROM_CACHE;
		iot_smb_begin(sreq, (__u64)inode, start + done, len - done, how);
		f = io_flight(sreq);
		if (!f)
			return 0;
	}
	f->issued = bpf_ktime_get_ns();
	f->offset = start + done;
	f->bytes = len - done;
	f->word = done;
	f->state &= ~(__u32)IOT_OVER;
	if (submit)
		f->state |= IOT_SUBMIT;
	return 0;
}

static __always_inline int iot_sreq_end(__u64 sreq, struct inode *inode, __u8 op, bool second)
{
	struct netfs_io_subrequest *s = (void *)sreq;
	struct flight *f = io_flight(sreq);
	__u64 done = FIELD(s, transferred), len = FIELD(s, len), before = 0;
	short error = FIELD(s, error);

	if (f ? f->state & IOT_OVER : second)
		return 0;
	if (second)
		iot_covered();
	if (f) {
		before = f->word;
		len = before + f->bytes; /* by now it may be rounded up as well */
	}
	if (done > len)
		done = len;
	done = done > before ? done - before : 0;
	if (iot_smb_finish(sreq, done, error < 0))
		iot_smb_book_late(op, inode, done);
	return 0;
}

static __always_inline int iot_sreq(__u64 sreq, __u32 what, bool second)
{
	struct netfs_io_subrequest *s = (void *)sreq;
	struct netfs_io_request *request = FIELD(s, rreq);
	struct inode *inode = FIELD(request, inode);
	__u8 source = 0, op;
	struct flight *f;

	bpf_probe_read_kernel(&source, sizeof(source), (void *)s + bpf_core_field_offset(s->source));
	if (source == bpf_core_enum_value(enum netfs_io_source, NETFS_DOWNLOAD_FROM_SERVER))
		op = IOT_READ;
	else if (source == bpf_core_enum_value(enum netfs_io_source, NETFS_UPLOAD_TO_SERVER))
		op = IOT_WRITE;
	else
		return 0;
	if (!iot_inode_is_smb(inode))
		return 0;
	if (what == bpf_core_enum_value(enum netfs_sreq_trace, netfs_sreq_trace_submit))
		return iot_sreq_begin(sreq, inode, request, op, true);
	if (what == bpf_core_enum_value(enum netfs_sreq_trace, netfs_sreq_trace_prepare))
		return iot_sreq_begin(sreq, inode, request, op, false);
	if (what == bpf_core_enum_value(enum netfs_sreq_trace, netfs_sreq_trace_terminated))
		return iot_sreq_end(sreq, inode, op, second);
	if (what == bpf_core_enum_value(enum netfs_sreq_trace, netfs_sreq_trace_free)) {
		f = io_flight(sreq);
		if (f)
			io_forget(f);
	}
	return 0;
}

/* Up to 6.9. */

static __always_inline int iot_wdata_begin(__u64 wdata)
{
	struct inode *inode = iot_cifs_inode((__u64)IOT_WDATA(wdata, cfile));

	return iot_smb_begin(wdata, (__u64)inode, IOT_WDATA(wdata, offset), IOT_WDATA(wdata, bytes),
			     IOT_WRITE << 8 | (IOT_WDATA(wdata, ctx) ? 0 : IOT_FROM_CACHE));
}

static __always_inline int iot_rdata_begin(__u64 rdata)
{
	struct inode *inode = iot_cifs_inode((__u64)IOT_RDATA(rdata, cfile));

	return iot_smb_begin(rdata, (__u64)inode, IOT_RDATA(rdata, offset), IOT_RDATA(rdata, bytes), IOT_READ << 8);
}

static __always_inline int iot_wdata_end(__u64 wdata)
{
	__u64 bytes = IOT_WDATA(wdata, result) ? 0 : IOT_WDATA(wdata, bytes);

	if (iot_smb_finish(wdata, bytes, IOT_WDATA(wdata, result) < 0))
		iot_smb_book_late(IOT_WRITE, iot_cifs_inode((__u64)IOT_WDATA(wdata, cfile)), bytes);
	return 0;
}

static __always_inline int iot_rdata_end(__u64 rdata)
{
	__u64 bytes = IOT_RDATA(rdata, got_bytes);
	int result = IOT_RDATA(rdata, result);

	/* smb2_readv_callback takes the answer "end of file" for no failure either. */
	if (iot_smb_finish(rdata, bytes, result < 0 && result != -IOT_ENODATA && !bytes))
		iot_smb_book_late(IOT_READ, iot_cifs_inode((__u64)IOT_RDATA(rdata, cfile)), bytes);
	return 0;
}

/* The synchronous calls: of pages that are not complete in the cache. */
static __always_inline int iot_call_enter(__u64 fid, __u64 parms, __u64 done)
{
	struct smb_call call = {
		.cfile = iot_cifs_file_of(fid),
		.offset = iot_parms_offset(parms),
		.done = done,
		.begun = bpf_ktime_get_ns(),
	};
	__u64 thread = bpf_get_current_pid_tgid();

	bpf_map_update_elem(&calls, &thread, &call, BPF_ANY);
	return 0;
}

static __always_inline int iot_call_leave(__u8 op, __s32 result)
{
	__u64 thread = bpf_get_current_pid_tgid(), owner = iot_owner_from_task(), latency, bytes = 0;
	struct smb_call *call = bpf_map_lookup_elem(&calls, &thread);
	struct usage_key usage = { .source = IOT_SMB, .op = op };

	if (!call)
		return 0;
	usage.dev = iot_inode_dev(iot_cifs_inode(call->cfile));
	if (iot_files_on())
		usage.fsdev = iot_file_of((__u64)iot_cifs_inode(call->cfile), 0, 0, 0);
	if (owner)
		iot_own(&usage, owner, iot_pid_of((void *)bpf_get_current_task()));
	if (!result)
		bytes = iot_u32_at(call->done);
	latency = bpf_ktime_get_ns() - call->begun;
	iot_account(&usage, bytes, 1);
	iot_latency(&usage, latency);
	if (result) {
		usage.flags |= IOT_ERROR;
		iot_account(&usage, 0, 1);
	}
	if (with_records)
		iot_record(&usage, call->begun, latency, call->offset, bytes);
	bpf_map_delete_elem(&calls, &thread);
	return 0;
}

#endif
