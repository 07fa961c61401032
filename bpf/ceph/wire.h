/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Requests to OSDs and to the metadata server. */
#ifndef IOTRACE_CEPH_WIRE_H
#define IOTRACE_CEPH_WIRE_H

#define IOT_FLIGHT_BITS 13
#define IOT_SPILLS
#include "core/file.h"
#include "core/range.h"
#include "types.h"

#define IOT_KIND_SHIFT 32 /* iot_ceph_extent: bytes below, the kind of operation above */

/* What an operation does and with how many bytes, as asked for. */
static __always_inline __u64 iot_ceph_extent(__u64 op)
{
	__u16 code = iot_u32_at(op + IOT_OP(op));
	__u64 length = iot_word_at(op + IOT_OP(extent.length)) & 0xffffffff;

	if (code == IOT_CEPH_READ || code == IOT_CEPH_SPARSE_READ)
		return (__u64)IOT_READ << IOT_KIND_SHIFT | length;
	if (code == IOT_CEPH_WRITE || code == IOT_CEPH_WRITEFULL)
		return (__u64)IOT_WRITE << IOT_KIND_SHIFT | length;
	return (__u64)IOT_META_OP << IOT_KIND_SHIFT;
}

/*
 * The kind of a request, and the bytes that it asks for: a file system's request reads or
 * writes one object, writeback up to sixteen ranges of it.
 */
__noinline __u64 iot_ceph_asked(__u64 req)
{
	__u32 n = iot_u32_at(req + IOT_REQ(r_num_ops)), i;
	__u64 kind = (__u64)IOT_META_OP << IOT_KIND_SHIFT, extent, bytes = 0;

#pragma clang loop unroll(disable)
	for (i = 0; i < IOT_CEPH_OPS && i < n; i++) {
		extent = iot_ceph_extent(iot_ceph_op(req, i));
		if (extent >> IOT_KIND_SHIFT == IOT_META_OP)
			continue;
		kind = extent >> IOT_KIND_SHIFT << IOT_KIND_SHIFT;
		bytes += (__u32)extent;
	}
	return kind | (bytes & 0xffffffff);
}

/* The bytes that a read got. */
__noinline __u64 iot_ceph_got(__u64 req)
{
	__u32 n = iot_u32_at(req + IOT_REQ(r_num_ops)), i, got;
	__u64 op, extent, bytes = 0;

#pragma clang loop unroll(disable)
	for (i = 0; i < IOT_CEPH_OPS && i < n; i++) {
		op = iot_ceph_op(req, i);
		extent = iot_ceph_extent(op);
		if (extent >> IOT_KIND_SHIFT != IOT_READ)
			continue;
		got = iot_u32_at(op + IOT_OP(outdata_len));
		bytes += got < (__u32)extent ? got : (__u32)extent; /* a sparse read returns a map of its holes as well */
	}
	return bytes;
}

/* Where in the object the first data of a request are. */
__noinline __u64 iot_ceph_offset(__u64 req)
{
	__u32 n = iot_u32_at(req + IOT_REQ(r_num_ops)), i;
	__u64 op;

#pragma clang loop unroll(disable)
	for (i = 0; i < IOT_CEPH_OPS && i < n; i++) {
		op = iot_ceph_op(req, i);
		if (iot_ceph_extent(op) >> IOT_KIND_SHIFT != IOT_META_OP)
			return iot_word_at(op + IOT_OP(extent.offset));
	}
	return 0;
}

/* The first page of an operation's data; 0 where they are no list of pages. */
static __always_inline __u64 iot_ceph_page(__u64 op)
{
	if (iot_u32_at(op + IOT_OP(extent.osd_data.type)) != CEPH_OSD_DATA_TYPE_PAGES)
		return 0;
	return iot_word_at(iot_word_at(op + IOT_OP(extent.osd_data.pages)));
}

/*
 * The page of a file that a page of a request is, or that it was encrypted from: fscrypt
 * keeps the original in the copy's private word. Other pages without a file are copies
 * that a synchronous call made. 0: it is no page of a file of this file system.
 */
__noinline __u64 iot_ceph_cached(__u64 page, __u64 super)
{
	struct address_space *mapping;
	unsigned long flags;

	if (!page)
		return 0;
	mapping = iot_folio_mapping(iot_folio((void *)page));
	if (!mapping && bpf_core_enum_value_exists(enum pageflags, PG_private)) {
		flags = iot_word_at(page); /* the first word of struct page, whatever its type is called */
		if (!IOT_HAS_FLAG(flags, PG_private))
			return 0;
		page = (__u64)FIELD((struct page___private *)page, private);
		if (!page)
			return 0;
		mapping = iot_folio_mapping(iot_folio((void *)page));
	}
	if (!iot_mapping_is_file(mapping) || (__u64)BPF_CORE_READ(mapping, host, i_sb) != super)
		return 0;
	return page;
}

/* The file of the first data of a request that are pages of a file; 0 where there are none. */
__noinline __u64 iot_ceph_mapping(__u64 req, __u64 super)
{
	__u32 n = iot_u32_at(req + IOT_REQ(r_num_ops)), i;
	__u64 page;

#pragma clang loop unroll(disable)
	for (i = 0; i < IOT_CEPH_OPS && i < n; i++) {
		page = iot_ceph_op(req, i);
		if (iot_ceph_extent(page) >> IOT_KIND_SHIFT != IOT_WRITE)
			continue;
		page = iot_ceph_cached(iot_ceph_page(page), super);
		return page ? (__u64)iot_folio_mapping(iot_folio((void *)page)) : 0;
	}
	return 0;
}

/* Adds the owners of one operation's pages: they are adjacent in the file. */
__noinline int iot_ceph_range(__u64 req, __u64 op, __u64 super)
{
	__u64 extent = iot_ceph_extent(op), page, folio, index;

	if (extent >> IOT_KIND_SHIFT != IOT_WRITE)
		return 0;
	page = iot_ceph_cached(iot_ceph_page(op), super);
	if (!page) {
		iot_range_unknown(req, extent);
		return 0;
	}
	folio = (__u64)iot_folio((void *)page);
	index = iot_folio_index((void *)folio) + (page - folio) / bpf_core_type_size(struct page___5_15);
	iot_range_more(req, (__u64)iot_folio_mapping((void *)folio),
		       (index << IOT_PAGE_SHIFT) + (iot_word_at(op + IOT_OP(extent.offset)) & (IOT_PAGE_SIZE - 1)), extent);
	return 0;
}

/* Finds the owners of a delayed write. */
static __always_inline void iot_ceph_owners(__u64 req, __u64 mapping, __u64 super)
{
	__u32 n = iot_u32_at(req + IOT_REQ(r_num_ops)), i;

	if (!iot_range_begin(req, mapping))
		return;
#pragma clang loop unroll(disable)
	for (i = 0; i < IOT_CEPH_OPS && i < n; i++)
		iot_ceph_range(req, iot_ceph_op(req, i), super);
	iot_range_end(req);
}

/* An operation without data, of the current task. */
__noinline int iot_ceph_meta(__u32 dev)
{
	struct usage_key usage = { .source = IOT_CEPH, .op = IOT_META_OP, .dev = dev };
	__u64 owner = iot_owner_from_task();

	if (owner)
		iot_own(&usage, owner, iot_pid_of((void *)bpf_get_current_task()));
	else
		iot_own(&usage, iot_pack(IOT_CGROUP_KERNEL, IOT_NONE), 0);
	iot_account(&usage, 0, 1);
	if (with_records)
		iot_record(&usage, bpf_ktime_get_ns(), 0, 0, 0);
	return 0;
}

/* The row of a request, as far as it is known without its owner. */
static __always_inline void iot_ceph_row(struct usage_key *usage, __u64 req, __u64 super, __u64 mapping)
{
	__u64 inode = iot_word_at(req + IOT_REQ(r_inode));

	usage->dev = iot_ceph_dev(super);
	if (!iot_files_on())
		return;
	if (mapping)
		inode = (__u64)FIELD((struct address_space *)mapping, host);
	usage->fsdev = iot_file_of(inode, 0, 0, 0);
}

/* A request is about to be sent. A delayed write is its dirtiers', everything else the current task's. */
__noinline int iot_ceph_begin(__u64 req)
{
	__u64 mount = iot_ceph_mount(req), super = iot_ceph_super(mount), asked, mapping = 0, owner = 0;
	struct usage_key usage = { .source = IOT_CEPH };
	struct flight *f;

	if (!mount)
		return 0;
	asked = iot_ceph_asked(req);
	usage.op = asked >> IOT_KIND_SHIFT;
	if (usage.op == IOT_META_OP)
		return iot_ceph_meta(iot_ceph_dev(super));
	if (usage.op == IOT_WRITE)
		mapping = iot_ceph_mapping(req, super);
	iot_ceph_row(&usage, req, super, mapping);
	if (!mapping) /* a kernel thread does not know for whom: it is nobody's */
		owner = iot_owner_from_task();
	if (owner)
		iot_own(&usage, owner, iot_pid_of((void *)bpf_get_current_task()));
	f = io_begin(req, &usage, bpf_ktime_get_ns(), iot_ceph_offset(req));
	if (!f)
		return 0;
	f->bytes = asked;
	if (mapping)
		iot_ceph_owners(req, mapping, super);
	return 0;
}

/* A request ended whose begin was not seen: nobody knows whose it is. */
__noinline int iot_ceph_late(__u64 req, __u32 failed)
{
	__u64 mount = iot_ceph_mount(req), super = iot_ceph_super(mount), asked = iot_ceph_asked(req), bytes = 0;
	struct usage_key usage = { .source = IOT_CEPH, .op = asked >> IOT_KIND_SHIFT };

	if (!mount || usage.op == IOT_META_OP)
		return 0;
	iot_ceph_row(&usage, req, super, 0);
	if (!failed)
		bytes = usage.op == IOT_READ ? iot_ceph_got(req) : (__u32)asked;
	iot_account(&usage, bytes, 1);
	iot_lost(IOT_LOST_LATENCIES, 1);
	return 0;
}

/* A request ended: books its bytes. A write has all of them or none. */
static __always_inline int iot_ceph_end(__u64 req)
{
	__s32 result = iot_u32_at(req + IOT_REQ(r_result)), attempts;
	struct flight *f = io_flight(req);
	struct usage_key usage, again;
	__u64 bytes = 0, latency;
	bool failed = result < 0;

	if (!f || f->state & IOT_OVER)
		return iot_ceph_late(req, failed);
	usage = f->usage;
	if (usage.op == IOT_READ && result == IOT_ENOENT)
		failed = false;
	if (result >= 0)
		bytes = usage.op == IOT_READ ? iot_ceph_got(req) : f->bytes;
	latency = bpf_ktime_get_ns() - f->issued;
	if (f->state & IOT_SEVERAL)
		iot_range_book(f, req, bytes, latency);
	else
		iot_account(&usage, bytes, 1);
	io_end(f, &usage, latency, bytes, failed);
	io_over(f, 0);
	attempts = iot_u32_at(req + IOT_REQ(r_attempts));
	if (attempts > 1) {
		again = usage;
		again.op = IOT_RETRANSMIT;
		iot_account(&again, 0, attempts - 1);
	}
	return 0;
}

/* The current task, or a kernel thread, asks the metadata server. */
static __always_inline int iot_ceph_mds(__u64 mdsc)
{
	return iot_ceph_meta(iot_ceph_dev(iot_ceph_super(iot_ceph_mount_of(mdsc))));
}

#endif
