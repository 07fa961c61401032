/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Loop devices, whose requests are notes for the pages of their files, and devices without requests. */
#ifndef IOTRACE_BLOCK_STACK_H
#define IOTRACE_BLOCK_STACK_H

#include "core/note.h"
#include "types.h"

/* Loop devices over files on block devices of this host; user space fills it. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32); /* device */
	__type(value, struct loop_file);
} loop_files SEC(".maps");

/* Leaf devices that take bios instead of requests (zram, pmem, brd): user space fills it. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32); /* device */
	__type(value, __u32);
} bio_leaves SEC(".maps");

#define IOT_NOTE_ROUND 32
#define IOT_NOTE_ROUNDS 16 /* times IOT_NOTE_ROUND: most notes on pages of a loop device's file for one request */

/* Leaves a note for one page of a backing file; fsdev and pid share a word. */
__noinline int iot_note_page(__u64 ino, __u64 index, __u64 fsdev_pid, __u64 owner)
{
	struct file_page page = { .ino = ino, .index = index, .fsdev = fsdev_pid >> 32 };
	struct page_note note = { .owner = owner, .pid = fsdev_pid }, *old;
	void *map = iot_loop_notes();

	if (!map)
		return 0;
	/* An update of an LRU hash takes several times as long as a lookup. */
	old = bpf_map_lookup_elem(map, &page);
	if (!old || old->owner != owner || old->pid != note.pid)
		bpf_map_update_elem(map, &page, &note, BPF_ANY);
	return 0;
}

__noinline int iot_note_pages(__u64 ino, __u64 index, __u64 fsdev_pid, __u64 owner, __u64 pages)
{
	__u32 i;

	for (i = 0; i < IOT_NOTE_ROUND && i < pages; i++)
		iot_note_page(ino, index + i, fsdev_pid, owner);
	return 0;
}

/* Leaves notes for the pages of the backing file that a request to a loop device touches. */
__noinline int iot_note_loop(__u32 dev, __u64 owner, __u32 pid, __u64 start, __u32 bytes)
{
	struct loop_file *file = bpf_map_lookup_elem(&loop_files, &dev);
	__u64 ino, index, end, fsdev_pid;
	int i;

	if (!file || !bytes)
		return 0;
	ino = file->ino;
	fsdev_pid = (__u64)file->fsdev << 32 | pid;
	start += file->offset;
	index = start >> IOT_PAGE_SHIFT;
	end = ((start + bytes - 1) >> IOT_PAGE_SHIFT) + 1;
	iot_note_page(ino, IOT_ANY_PAGE, fsdev_pid, owner);
	for (i = 0; i < IOT_NOTE_ROUNDS && index < end; i++) {
		iot_note_pages(ino, index, fsdev_pid, owner, end - index);
		index += IOT_NOTE_ROUND;
	}
	return 0;
}

#endif
