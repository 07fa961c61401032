/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Making notes about who makes pages dirty: see note.h. */
#ifndef IOTRACE_DIRTY_H
#define IOTRACE_DIRTY_H

#include "note.h"

/*
 * Whether stores of others into a folio stay unseen: nothing tells which of its pages a
 * store through a mapping changed, because do_page_mkwrite could not be hooked. The folio
 * goes to the first one who made it dirty, and its basis is not IOT_DIRTIER.
 */
__noinline int iot_is_guess(__u64 page, __u64 mapping)
{
	return FIELD((struct address_space *)mapping, i_mmap_writable.counter) > 0 &&
	       iot_folio_size(iot_folio((void *)page)) > 1;
}

/* The dirtier in words, for global functions; cgroup is 0 for a kernel thread: whom the page is charged to. */
static __always_inline bool iot_is_dirtier(const struct inode_note *note, __u64 cgroup, __u32 pid)
{
	return note->cgroup == cgroup && note->pid == pid;
}

/*
 * A place for the note of a file that has none: a free one, else that of a file that is
 * clean by now. An inode that was freed reads as whatever is there now, so the inode's
 * number must still be the one of the note.
 */
__noinline int iot_inode_place(__u64 mapping)
{
	struct inode_set *set = iot_inode_set(mapping);
	__u64 other;
	__u32 i;

	if (!set)
		return IOT_PLACES;
	for (i = 0; i < IOT_PLACES; i++) {
		other = set->mapping[i];
		if (!other || set->note[i].ino != iot_mapping_ino(other) || iot_mapping_is_clean((void *)other))
			return i;
	}
	return IOT_PLACES;
}

/*
 * Makes the note of a file, or makes it again: what it said before is over. Returns
 * whether there was room. dirty: it has dirty pages already.
 */
__noinline int iot_note_inode(__u64 mapping, __u64 cgroup, __u32 pid, __u32 dirty)
{
	struct inode_set *set = iot_inode_set(mapping);
	__u32 i = iot_inode_way(mapping), state = 0;
	__u64 now = bpf_ktime_get_ns();
	struct inode_note *note;

	if (!set)
		return 0;
	if (i >= IOT_PLACES)
		i = iot_inode_place(mapping);
	if (i >= IOT_PLACES)
		return 0;
	/* There was no room for its first note: so nobody knows whose its dirty pages are. */
	if (iot_notes_are(IOT_NOTES_LOST) && !bpf_map_delete_elem(&lost_inodes, &mapping) && dirty)
		state = IOT_SHARED | IOT_NOTE_LOST;
	barrier_var(i);
	i &= IOT_PLACES - 1;
	note = &set->note[i];
	note->ino = iot_mapping_ino(mapping);
	note->epoch = now;
	note->cgroup = cgroup;
	note->pid = pid;
	note->state = state;
	set->mapping[i] = mapping;
	iot_notes_become(IOT_NOTES_LIVE);
	return 1;
}

/* There was no room for the note of a file: from now on nobody knows whose its dirty pages are. */
static __always_inline void iot_lose_inode(__u64 mapping)
{
	__u64 now = bpf_ktime_get_ns();

	if (!bpf_map_update_elem(&lost_inodes, &mapping, &now, BPF_NOEXIST))
		iot_lost(IOT_LOST_NOTES, 1);
	iot_notes_become(IOT_NOTES_LOST);
}

#define IOT_SHARER_TRIES 4

/* The number of a dirtier of a shared file; IOT_WHO_LOST where there is none. */
__noinline int iot_sharer(__u64 mapping, __u64 epoch, __u64 cgroup, __u32 pid)
{
	struct sharer who = { .epoch = epoch, .cgroup = cgroup, .pid = pid }, *old;
	__u32 first = iot_hash(cgroup ^ (__u64)pid << 32, 32);
	__u64 key;
	__u8 number;
	int i;

	for (i = 0; i < IOT_SHARER_TRIES; i++) {
		number = (first + i) % IOT_SHARERS + 1;
		key = iot_sharer_key(mapping, number);
		old = bpf_map_lookup_elem(&sharers, &key);
		if (!old || old->epoch != epoch) {
			bpf_map_update_elem(&sharers, &key, &who, old ? BPF_ANY : BPF_NOEXIST);
			old = bpf_map_lookup_elem(&sharers, &key); /* another CPU may have been first */
		}
		if (old && old->epoch == epoch && old->cgroup == cgroup && old->pid == pid)
			return number;
	}
	return IOT_WHO_LOST;
}

/* PAGECACHE_TAG_DIRTY and PAGECACHE_TAG_WRITEBACK (include/linux/fs.h) */
enum {
	IOT_TAG_DIRTY,
	IOT_TAG_WRITEBACK,
};

/*
 * Whether no page of a block is dirty or being written any more. This walks down the
 * xarray as iot_cached_folio does; a node is marked where one of its children is. A
 * lowest node has 64 pages, two blocks; no folio in it is larger than a block.
 */
__noinline int iot_block_is_over(__u64 mapping, __u64 number)
{
	__u64 entry = iot_word_at(mapping + bpf_core_field_offset(struct address_space, i_pages.xa_head));
	__u64 index = number << IOT_BLOCK_BITS, node, marks, slot, at;
	__u32 shift;
	int i;

	for (i = 0; i < 11; i++) { /* 64 bits of index, six to a level */
		if ((entry & 3) != 2)
			return !i ? iot_mapping_is_clean((void *)mapping) : !entry;
		node = entry - 2;
		at = node + bpf_core_field_offset(struct xa_node, marks);
		marks = iot_word_at(at + IOT_TAG_DIRTY * 8) | iot_word_at(at + IOT_TAG_WRITEBACK * 8);
		if (!marks)
			return 1;
		shift = FIELD((struct xa_node *)node, shift) & 63;
		if (shift <= IOT_BLOCK_BITS)
			return !(__u32)(marks >> (index & 32));
		slot = index >> shift;
		if (!i && slot > 63)
			return 1; /* beyond the end */
		slot &= 63;
		entry = iot_word_at(node + bpf_core_field_offset(struct xa_node, slots) + slot * 8);
		if ((entry & 3) == 2 && entry < 64 * 4) /* the slot of a sibling */
			return 0;
	}
	return 0;
}

/* Whether a place of a set of pages may be taken: nothing that it says will be read. */
__noinline int iot_page_place_is_over(__u64 mapping, __u64 epoch, __u64 number)
{
	struct inode_note *note = iot_inode_note(mapping);

	if (!note || note->epoch != epoch || note->ino != iot_mapping_ino(mapping))
		return 1;
	return iot_block_is_over(mapping, number);
}

/* A place for the notes of a block that has none. */
__noinline int iot_page_place(__u64 key)
{
	struct page_set *set = iot_page_set(key);
	struct page_block *block;
	__u32 i;

	if (!set)
		return IOT_PLACES;
	for (i = 0; i < IOT_PLACES; i++)
		if (!set->key[i])
			return i;
	for (i = 0; i < IOT_PLACES; i++) {
		block = &set->block[i];
		if (iot_page_place_is_over(block->mapping, block->epoch, block->number))
			return i;
	}
	return IOT_PLACES;
}

/* Makes a block for notes on pages; returns whether there was room. */
static __always_inline int iot_make_block(__u64 mapping, __u64 epoch, __u64 number)
{
	__u64 key = iot_block_key(mapping, number), *who;
	struct page_set *set = iot_page_set(key);
	struct page_block *block;
	__u32 i;

	if (!set)
		return 0;
	i = iot_page_way(key);
	if (i >= IOT_PLACES)
		i = iot_page_place(key);
	if (i >= IOT_PLACES)
		return 0;
	barrier_var(i);
	i &= IOT_PLACES - 1;
	block = &set->block[i];
	who = (__u64 *)block->who;
	who[0] = who[1] = who[2] = who[3] = 0;
	block->mapping = mapping;
	block->epoch = epoch;
	block->number = number;
	set->key[i] = key;
	return 1;
}

/*
 * Notes who made the pages of a block dirty that are among n pages from index on, index
 * the first one; who 0 takes notes away. Returns how many pages those are.
 */
__noinline __u64 iot_note_block(__u64 mapping, __u64 epoch, __u64 index, __u64 n, __u32 who)
{
	struct page_block *block = iot_page_block(mapping, epoch, index >> IOT_BLOCK_BITS);
	__u64 part = IOT_BLOCK_PAGES - (index & (IOT_BLOCK_PAGES - 1)), left;
	struct inode_note *note;
	int i;

	if (part > n)
		part = n;
	if (!block) {
		if (!who)
			return part;
		if (iot_make_block(mapping, epoch, index >> IOT_BLOCK_BITS))
			block = iot_page_block(mapping, epoch, index >> IOT_BLOCK_BITS);
	}
	if (!block) {
		note = iot_inode_note(mapping);
		if (note)
			note->state |= IOT_NOTE_LOST;
		iot_lost(IOT_LOST_NOTES, part);
		return part;
	}
	left = part;
	for (i = 0; i < IOT_BLOCK_PAGES && left; i++, left--) {
		block->who[index & (IOT_BLOCK_PAGES - 1)] = who;
		index++;
	}
	return part;
}

#define IOT_BLOCK_ROUNDS 64 /* most blocks at once: 8 MiB */

/* Notes who made n pages of a shared file dirty, from index on. */
__noinline int iot_note_range(__u64 mapping, __u64 epoch, __u64 index, __u64 n, __u32 who)
{
	struct inode_note *note;
	__u64 part;
	int i;

	for (i = 0; i < IOT_BLOCK_ROUNDS && n; i++) {
		part = iot_note_block(mapping, epoch, index, n, who);
		index += part;
		n -= part;
	}
	if (n && who) {
		note = iot_inode_note(mapping);
		if (note)
			note->state |= IOT_NOTE_LOST;
		iot_lost(IOT_LOST_NOTES, n);
	}
	return 0;
}

/* Pages of a file that has a note, and is not clean, become dirty. */
static __always_inline int iot_note_pages_dirty(__u64 mapping, __u64 index, __u64 n, __u64 cgroup, __u32 pid)
{
	struct inode_note *note = iot_inode_note(mapping);
	__u32 who = 0;

	if (!note)
		return 0;
	if (!iot_is_dirtier(note, cgroup, pid) || (note->state & IOT_NOTE_LOST)) {
		who = cgroup ? iot_sharer(mapping, note->epoch, cgroup, pid) : IOT_WHO_PAGE;
		if (who == IOT_WHO_LOST)
			iot_lost(IOT_LOST_NOTES, n);
		note->state |= IOT_SHARED;
		iot_lost(IOT_NOTES_WRITTEN, n);
	}
	if (note->state & IOT_SHARED)
		iot_note_range(mapping, note->epoch, index, n, who);
	return 0;
}

#endif
