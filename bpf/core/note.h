/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Notes about who made pages dirty, taken when it happens and read when the pages are
 * written, often seconds later and by a kernel thread: of files, of pages of files
 * that several made dirty, and of pages of a loop device's backing file.
 *
 * A file that one dirtier wrote since it was clean has one note, however large it is.
 * When another one comes, the file is shared: what it dirties from then on is noted by
 * page, in blocks of 32 pages; pages without such a note stay with the first one.
 *
 * Notes are kept in arrays, in sets of eight: a lookup takes a third of the time of a
 * hash. Nobody deletes a note: mirrors write a page twice, and drivers give requests
 * back. It is over when the kernel has no dirty page left that it is about, which is
 * looked up when its place is wanted. A note that finds no place is counted as lost,
 * and the pages are unattributed.
 */
#ifndef IOTRACE_NOTE_H
#define IOTRACE_NOTE_H

#include "cgroup.h"
#include "hash.h"

#define IOT_PLACES 8

/* Tunables, for tests of what happens when there is no room. */
const volatile __u32 inode_note_bits = 14; /* of the number of sets */
const volatile __u32 page_note_bits = 14;

/* Who made the pages of a file dirty. */
struct inode_note {
	__u64 ino; /* a reused inode does not inherit the note */
	__u64 epoch; /* when the file was clean last (ns): what was noted about its pages before is over */
	__u64 cgroup; /* the dirtier; 0: for each page the one that it is charged to */
	__u32 pid; /* 0 without --by process */
	__u32 state;
};

enum {
	IOT_SHARED = 1, /* others made pages dirty as well: look at the notes on pages */
	IOT_NOTE_LOST = 2, /* a note on a page found no room: pages without one are anyone's */
	IOT_NOTE_GUESS = 4, /* others may have written large folios unseen: see iot_dirty */
};

/* The basis of what a note says. */
static __always_inline __u64 iot_note_basis(const struct inode_note *note)
{
	return note->state & IOT_NOTE_GUESS ? IOT_PAGE : IOT_DIRTIER;
}

/* The files are known by the addresses of their struct address_space; 0: free. */
struct inode_set {
	__u64 mapping[IOT_PLACES];
	struct inode_note note[IOT_PLACES];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1 << 14);
	__type(key, __u32);
	__type(value, struct inode_set);
} inode_notes SEC(".maps");

/* 32 pages of a shared file, and for each who made it dirty: 0 is the dirtier in the file's note. */
#define IOT_BLOCK_BITS 5
#define IOT_BLOCK_PAGES (1 << IOT_BLOCK_BITS)

struct page_block {
	__u64 mapping;
	__u64 epoch; /* of the file's note */
	__u64 number; /* index of its first page divided by IOT_BLOCK_PAGES */
	__u8 who[IOT_BLOCK_PAGES];
};

struct page_set {
	__u64 key[IOT_PLACES]; /* iot_block_key; 0: free */
	struct page_block block[IOT_PLACES];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1 << 14);
	__type(key, __u32);
	__type(value, struct page_set);
} page_notes SEC(".maps");

/* Numbers of dirtiers are 1 to 253; the others have a meaning. */
#define IOT_SHARERS 253
#define IOT_WHO_PAGE 254 /* the one that the page is charged to */
#define IOT_WHO_LOST 255

struct sharer {
	__u64 epoch;
	__u64 cgroup;
	__u32 pid;
	__u32 pad;
};

/* Dirtiers of shared files. That one was pushed out is noticed when it is looked for. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64); /* iot_sharer_key */
	__type(value, struct sharer);
} sharers SEC(".maps");

/* The upper byte of an address says nothing: the number of the dirtier takes its room. */
static __always_inline __u64 iot_sharer_key(__u64 mapping, __u8 who)
{
	return mapping << 8 | who;
}

/* Files whose own note found no room. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, __u64);
} lost_inodes SEC(".maps");

/*
 * Whether there may be notes, and lost ones: until then no program looks for them. User
 * space sets the third where stores through mappings are not seen page by page.
 */
enum {
	IOT_NOTES_LIVE,
	IOT_NOTES_LOST,
	IOT_FAULTS_UNSEEN,
	IOT_NOTE_SWITCHES,
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, IOT_NOTE_SWITCHES);
	__type(key, __u32);
	__type(value, __u32);
} notes_live SEC(".maps");

static __always_inline bool iot_notes_are(__u32 which)
{
	__u32 *live = bpf_map_lookup_elem(&notes_live, &which);

	return live && *live;
}

static __always_inline void iot_notes_become(__u32 which)
{
	__u32 *live = bpf_map_lookup_elem(&notes_live, &which);

	if (live && !*live)
		*live = 1;
}

/*
 * Inodes that are made one after the other lie one after the other, 0.7 to 1.2 KiB each,
 * and so do their sets within a MiB: writing many files touches few cache lines and pages.
 */
static __always_inline struct inode_set *iot_inode_set(__u64 mapping)
{
	__u32 slot = ((mapping >> 10) + iot_hash(mapping >> 20, inode_note_bits)) & ((1U << inode_note_bits) - 1);

	return bpf_map_lookup_elem(&inode_notes, &slot);
}

/*
 * Where in its set the note of a file is; IOT_PLACES where there is none. A global
 * function: its callers would be looked at once for each place otherwise.
 */
__noinline int iot_inode_way(__u64 mapping)
{
	struct inode_set *set = iot_inode_set(mapping);
	int i;

	if (!set || !mapping) /* a free place has the address 0 */
		return IOT_PLACES;
#pragma unroll
	for (i = 0; i < IOT_PLACES; i++)
		if (set->mapping[i] == mapping)
			return i;
	return IOT_PLACES;
}

static __always_inline struct inode_note *iot_inode_note(__u64 mapping)
{
	__u32 way = iot_inode_way(mapping);
	struct inode_set *set = iot_inode_set(mapping);

	if (!set || way >= IOT_PLACES)
		return NULL;
	barrier_var(way); /* else clang leaves out the mask, which the verifier needs */
	return &set->note[way & (IOT_PLACES - 1)];
}

static __always_inline __u64 iot_mapping_ino(__u64 mapping)
{
	return iot_inode_number(iot_mapping_inode((void *)mapping));
}

static __always_inline __u64 iot_block_key(__u64 mapping, __u64 number)
{
	return (mapping ^ number * 0xD6E8FEB86659FD93ULL) | 1;
}

static __always_inline struct page_set *iot_page_set(__u64 key)
{
	__u32 slot = iot_hash(key, page_note_bits);

	return bpf_map_lookup_elem(&page_notes, &slot);
}

__noinline int iot_page_way(__u64 key)
{
	struct page_set *set = iot_page_set(key);
	int i;

	if (!set)
		return IOT_PLACES;
#pragma unroll
	for (i = 0; i < IOT_PLACES; i++)
		if (set->key[i] == key)
			return i;
	return IOT_PLACES;
}

/* The notes on the pages of a shared file; NULL where there are none. */
static __always_inline struct page_block *iot_page_block(__u64 mapping, __u64 epoch, __u64 number)
{
	__u64 key = iot_block_key(mapping, number);
	__u32 way = iot_page_way(key);
	struct page_set *set = iot_page_set(key);
	struct page_block *block;

	if (!set || way >= IOT_PLACES)
		return NULL;
	barrier_var(way);
	block = &set->block[way & (IOT_PLACES - 1)];
	return block->mapping == mapping && block->epoch == epoch && block->number == number ? block : NULL;
}

#define IOT_NO_NOTE (~0ULL) /* no packed owner is all ones: there are fewer than seven bases */

struct dirtier {
	__u64 owner; /* packed; IOT_NO_NOTE: the one that the page is charged to */
	__u32 pid; /* 0 where none is noted */
};

/* Who made a page of a file dirty. */
static __always_inline void iot_find_dirtier(struct dirtier *d, __u64 mapping, __u64 index)
{
	struct inode_note *note = iot_inode_note(mapping);
	struct page_block *block;
	struct sharer *sharer;
	__u64 key;
	__u8 who = 0;

	d->owner = IOT_NO_NOTE;
	d->pid = 0;
	if (!note || note->ino != iot_mapping_ino(mapping)) {
		if (iot_notes_are(IOT_NOTES_LOST) && bpf_map_lookup_elem(&lost_inodes, &mapping))
			d->owner = iot_pack(IOT_CGROUP_NONE, IOT_NONE);
		return;
	}
	if (note->state & IOT_SHARED) {
		block = iot_page_block(mapping, note->epoch, index >> IOT_BLOCK_BITS);
		if (block)
			who = block->who[index & (IOT_BLOCK_PAGES - 1)];
	}
	if (who == IOT_WHO_PAGE)
		return;
	if (!who && !(note->state & IOT_NOTE_LOST)) {
		if (note->cgroup) {
			d->owner = iot_pack(note->cgroup, iot_note_basis(note));
			d->pid = note->pid;
		}
		return;
	}
	d->owner = iot_pack(IOT_CGROUP_NONE, IOT_NONE);
	if (!who || who == IOT_WHO_LOST)
		return;
	key = iot_sharer_key(mapping, who);
	sharer = bpf_map_lookup_elem(&sharers, &key);
	if (!sharer || sharer->epoch != note->epoch) {
		iot_lost(IOT_LOST_NOTES, 1);
		return;
	}
	d->owner = iot_pack(sharer->cgroup, iot_note_basis(note));
	d->pid = sharer->pid;
}

/* Who made a page of a file dirty, packed; IOT_NO_NOTE: the one that it is charged to. */
__noinline __u64 iot_dirtier(__u64 mapping, __u64 index)
{
	struct dirtier d;

	iot_find_dirtier(&d, mapping, index);
	return d.owner;
}

/* The process that made a page of a file dirty; 0 where none is noted. */
__noinline __u32 iot_dirtier_pid(__u64 mapping, __u64 index)
{
	struct dirtier d;

	iot_find_dirtier(&d, mapping, index);
	return d.pid;
}

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

static __always_inline struct page_note *iot_loop_note(void *map, struct folio *folio, struct address_space *mapping,
						       bool any)
{
	struct file_page page = {
		.mapping = (__u64)mapping,
		.index = any ? IOT_ANY_PAGE : iot_folio_index(folio),
	};
	struct page_note *note = bpf_map_lookup_elem(map, &page);

	return note && note->ino == (__u32)iot_inode_number(FIELD(mapping, host)) ? note : NULL;
}

static __always_inline bool iot_inode_is_fuse(const struct inode *inode)
{
	return BPF_CORE_READ(inode, i_sb, s_magic) == IOT_FUSE_SUPER_MAGIC;
}

#endif
