/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Loop devices, whose requests are notes for the pages of their files, and devices without requests. */
#ifndef IOTRACE_BLOCK_STACK_H
#define IOTRACE_BLOCK_STACK_H

#include "core/note.h"
#include "types.h"

/*
 * The files of loop devices, as the last request to each found them. User space reads
 * them to tell which devices lie on a disk that is counted.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32); /* device */
	__type(value, struct loop_file);
} loop_files SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct loop_fields);
} loop_layout SEC(".maps");

/* Leaf devices that take bios instead of requests (zram, pmem, brd): user space fills it. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32); /* device */
	__type(value, __u32);
} bio_leaves SEC(".maps");

#define IOT_NOTE_ROUND 32
#define IOT_NOTE_ROUNDS 16 /* times IOT_NOTE_ROUND: most notes on pages of a loop device's file for one request */

/* include/uapi/linux/major.h and magic.h */
#define IOT_LOOP_MAJOR 7
#define IOT_OVERLAYFS_MAGIC 0x794c7630
#define IOT_TMPFS_MAGIC 0x01021994
#define IOT_RAMFS_MAGIC 0x858458f6
#define IOT_HUGETLBFS_MAGIC 0x958458f6

/*
 * The inode that has the data of a file: overlayfs has one of its own for each, in a
 * struct ovl_inode, where the dentry of the upper layer comes behind it (fs/overlayfs/
 * ovl_entry.h). A file of a lower layer stays overlayfs'.
 */
static __always_inline __u64 iot_real_inode(__u64 inode)
{
	__u64 upper;

	if (BPF_CORE_READ((struct inode *)inode, i_sb, s_magic) != IOT_OVERLAYFS_MAGIC)
		return inode;
	upper = iot_word_at(inode + bpf_core_type_size(struct inode));
	if (!(upper >> 63))
		return inode;
	upper = (__u64)FIELD((struct dentry *)upper, d_inode);
	return upper >> 63 ? upper : inode;
}

/*
 * Looks which file a loop device is over. Returns whether its requests leave notes: the
 * pages of a file in memory cause no I/O.
 */
__noinline int iot_loop_look(__u64 device, __u32 dev)
{
	struct loop_file now = {}, *old = bpf_map_lookup_elem(&loop_files, &dev);
	struct loop_fields *layout;
	struct inode *inode;
	__u32 zero = 0;

	layout = bpf_map_lookup_elem(&loop_layout, &zero);
	if (!layout || !layout->known || !(device >> 63))
		return 0;
	now.file = iot_word_at(device + layout->file);
	now.offset = iot_word_at(device + layout->offset);
	if (!(now.file >> 63))
		return 0;
	/* Of each request, so plain loads, and no arithmetic on what they load. */
	if (CAN_CAST && old && old->file == now.file && old->offset == now.offset &&
	    old->inode == (__u64)CAST(struct file, now.file)->f_inode)
		return old->notes;
	now.inode = (__u64)FIELD((struct file *)now.file, f_inode);
	if (!(now.inode >> 63))
		return 0;
	if (old && old->file == now.file && old->inode == now.inode && old->offset == now.offset)
		return old->notes;
	inode = (void *)iot_real_inode(now.inode);
	now.mapping = (__u64)inode + bpf_core_field_offset(struct inode, i_data);
	now.magic = BPF_CORE_READ(inode, i_sb, s_magic);
	now.fsdev = BPF_CORE_READ(inode, i_sb, s_dev);
	now.ino = iot_inode_number(inode);
	now.notes = now.magic != IOT_TMPFS_MAGIC && now.magic != IOT_RAMFS_MAGIC && now.magic != IOT_HUGETLBFS_MAGIC;
	bpf_map_update_elem(&loop_files, &dev, &now, BPF_ANY);
	return now.notes;
}

/* Leaves a note for one page of a backing file; ino and pid share a word. */
__noinline int iot_note_page(__u64 mapping, __u64 index, __u64 ino_pid, __u64 owner)
{
	struct file_page page = { .mapping = mapping, .index = index };
	struct page_note note = { .owner = owner, .pid = ino_pid, .ino = ino_pid >> 32 }, *old;
	void *map = iot_loop_notes();

	if (!map)
		return 0;
	/* An update of an LRU hash takes several times as long as a lookup. */
	old = bpf_map_lookup_elem(map, &page);
	if (!old || old->owner != owner || old->pid != note.pid || old->ino != note.ino)
		bpf_map_update_elem(map, &page, &note, BPF_ANY);
	return 0;
}

__noinline int iot_note_pages(__u64 mapping, __u64 index, __u64 ino_pid, __u64 owner, __u64 pages)
{
	__u32 i;

	for (i = 0; i < IOT_NOTE_ROUND && i < pages; i++)
		iot_note_page(mapping, index + i, ino_pid, owner);
	return 0;
}

/* Leaves notes for the pages of the backing file that a request to a loop device touches. */
__noinline int iot_note_loop(__u32 dev, __u64 owner, __u32 pid, __u64 start, __u32 bytes)
{
	struct loop_file *file = bpf_map_lookup_elem(&loop_files, &dev);
	__u64 mapping, index, end, ino_pid;
	int i;

	if (!file || !bytes)
		return 0;
	mapping = file->mapping;
	ino_pid = (__u64)file->ino << 32 | pid;
	start += file->offset;
	index = start >> IOT_PAGE_SHIFT;
	end = ((start + bytes - 1) >> IOT_PAGE_SHIFT) + 1;
	iot_note_page(mapping, IOT_ANY_PAGE, ino_pid, owner);
	for (i = 0; i < IOT_NOTE_ROUNDS && index < end; i++) {
		iot_note_pages(mapping, index, ino_pid, owner, end - index);
		index += IOT_NOTE_ROUND;
	}
	return 0;
}

#endif
