/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Who made the pages of an inode dirty, for file systems whose writeback requests do
 * not lead to their pages. core.bpf.c writes these notes, FUSE reads them.
 */
#ifndef IOTRACE_INODE_H
#define IOTRACE_INODE_H

#include "compat.h"
#include "maps.h"

#define IOT_FUSE_SUPER_MAGIC 0x65735546 /* include/uapi/linux/magic.h */

struct inode_note {
	__u64 cgroup; /* who made a page dirty last */
	__u32 pid; /* 0 without --by process */
	__u32 shared; /* others have, or may have, pages in flight: look at the pages */
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64); /* struct inode * */
	__type(value, struct inode_note);
} inode_notes SEC(".maps");

/*
 * The inode that contains an address_space, without a read. For block devices and a
 * few other oddities it is not the mapping's host, but never for FUSE.
 */
static __always_inline struct inode *iot_mapping_inode(const struct address_space *mapping)
{
	return (void *)mapping - bpf_core_field_offset(struct inode, i_data);
}

static __always_inline bool iot_inode_is_fuse(const struct inode *inode)
{
	return BPF_CORE_READ(inode, i_sb, s_magic) == IOT_FUSE_SUPER_MAGIC;
}

/*
 * Whether no page of the file is dirty or being written. The page cache's xarray has
 * its marks in xa_flags, above the six real flags (include/linux/xarray.h, since
 * 4.20).
 */
static __always_inline bool iot_mapping_is_clean(const struct address_space *mapping)
{
	return !(FIELD(mapping, i_pages.xa_flags) >> 6);
}

#endif
