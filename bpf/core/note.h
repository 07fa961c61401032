/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Notes about who made pages dirty, taken when it happens and read when the pages are
 * written, often seconds later and by a kernel thread. There are three kinds: of a
 * folio, of an inode, and of a page of a loop device's backing file.
 */
#ifndef IOTRACE_NOTE_H
#define IOTRACE_NOTE_H

#include "cgroup.h"

/* The last cgroup that made a folio dirty, where that is not the folio's own owner. */
struct note {
	__u64 cgroup;
	__u64 mapping; /* struct address_space *; mapping and index keep a reused folio from inheriting the note */
	__u64 index;
	__u32 pid;
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 131072);
	__type(key, __u64); /* struct folio * */
	__type(value, struct note);
} notes SEC(".maps");

/*
 * Owners of pages of a loop device's backing file: those whose requests made its
 * kernel thread touch the page. On cgroup v1, and on v2 without the io controller,
 * the kernel charges these pages to the root. The map of notes takes 13 MiB: user space
 * makes it when there is a loop device over a file on a disk.
 */
struct loop_note_map {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 131072);
	__uint(key_size, sizeof(struct file_page)); /* by size: an object that has no note has no such type */
	__uint(value_size, sizeof(struct page_note));
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct loop_note_map);
} loop_notes SEC(".maps");

/* The map of loop devices' notes; NULL where there is none. */
static __always_inline void *iot_loop_notes(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&loop_notes, &zero);
}

/* Who made the pages of an inode dirty, for file systems whose requests do not lead to their pages. */
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

/* Whether there may be notes of folios: set with the first one. Before that, no program looks for one. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} notes_live SEC(".maps");

static __always_inline bool iot_have_notes(void)
{
	__u32 zero = 0, *live = bpf_map_lookup_elem(&notes_live, &zero);

	return live && *live;
}

/* The note on a folio, if it is about this very page of this very file. */
static __always_inline struct note *iot_note_of(struct folio *folio, struct address_space *mapping)
{
	__u64 key = (__u64)folio;
	struct note *note = bpf_map_lookup_elem(&notes, &key);

	if (!note || note->mapping != (__u64)mapping || note->index != iot_folio_index(folio))
		return NULL;
	return note;
}

static __always_inline struct page_note *iot_loop_note(void *map, struct folio *folio, struct address_space *mapping,
						       bool any)
{
	struct inode *inode = FIELD(mapping, host);
	struct file_page page = {
		.ino = iot_inode_number(inode),
		.index = any ? IOT_ANY_PAGE : iot_folio_index(folio),
		.fsdev = BPF_CORE_READ(inode, i_sb, s_dev),
	};

	return bpf_map_lookup_elem(map, &page);
}

static __always_inline bool iot_inode_is_fuse(const struct inode *inode)
{
	return BPF_CORE_READ(inode, i_sb, s_magic) == IOT_FUSE_SUPER_MAGIC;
}

#endif
