/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Who made a range of a file dirty: for sources whose requests name a range and no
 * pages, or pages that may be copies. What the server took is known at the request's end
 * only, so the parts of several owners are kept until then.
 *
 * The walk over the pages has its state here, so that a step needs only the request's
 * id as argument: the verifier looks at such functions once.
 */
#ifndef IOTRACE_RANGE_H
#define IOTRACE_RANGE_H

#include "cache.h"
#include "flight.h"
#include "owner.h"

#define IOT_PAGE_SIZE (1U << IOT_PAGE_SHIFT)
/*
 * Three nested loops of this many rounds: at most 4,096 pages of a request are looked
 * at, 16 MiB. FUSE's limit is 1 MiB unless fs.fuse.max_pages_limit (6.13) was raised, that
 * of SMB 4 MiB by default. Plain loops over global functions are quick to verify and work without
 * bpf_loop, which 5.10 refuses even where it does not run.
 */
#define IOT_TURNS 16
#define IOT_PARTS 16 /* most owners of a request that are booked separately */

struct part {
	__u64 owner; /* packed */
	__u32 pid;
	__u32 bytes;
};

struct split {
	struct part parts[IOT_PARTS]; /* those in use have bytes */
	struct part run; /* adjacent pages of one owner, not among the parts yet */
	__u64 mapping;
	__u64 offset; /* of the next byte */
	__u32 left; /* bytes still to come */
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64); /* as in flights */
	__type(value, struct split);
} splits SEC(".maps");

static const struct split no_split;

/* Adds the run to the parts. */
__noinline int iot_split_close(__u64 id)
{
	struct split *split = bpf_map_lookup_elem(&splits, &id);
	struct part *part;
	__u32 i;

	if (!split || !split->run.bytes)
		return 0;
	for (i = 0; i < IOT_PARTS; i++) {
		part = &split->parts[i];
		if (!part->bytes || (part->owner == split->run.owner && part->pid == split->run.pid))
			break;
	}
	if (i == IOT_PARTS) {
		iot_lost(IOT_LOST_WALKS, 1);
		i--;
	}
	part = &split->parts[i & (IOT_PARTS - 1)];
	if (!part->bytes) {
		part->owner = split->run.owner;
		part->pid = split->run.pid;
	}
	part->bytes += split->run.bytes;
	split->run.bytes = 0;
	return 0;
}

/* Looks at the next page; 1 when there is none. */
__noinline int iot_split_page(__u64 id)
{
	struct split *split = bpf_map_lookup_elem(&splits, &id);
	__u64 owner, folio, index;
	__u32 n, pid = 0;

	if (!split || !split->left)
		return 1;
	n = IOT_PAGE_SIZE - (split->offset & (IOT_PAGE_SIZE - 1));
	if (n > split->left)
		n = split->left;
	index = split->offset >> IOT_PAGE_SHIFT;
	/* The note on a page is there even where the page left the page cache. */
	owner = iot_dirtier(split->mapping, index);
	if (by_process)
		pid = iot_dirtier_pid(split->mapping, index);
	if (owner == IOT_NO_NOTE) {
		folio = iot_cached_folio(split->mapping, index);
		owner = folio ? iot_folio_owner(folio, 0, IOT_FOR_WRITE) : iot_pack(IOT_CGROUP_NONE, IOT_NONE);
		if (folio && by_process)
			pid = iot_folio_pid(folio, owner);
	}
	if (owner != split->run.owner || pid != split->run.pid) {
		iot_split_close(id);
		split->run.owner = owner;
		split->run.pid = pid;
	}
	split->run.bytes += n;
	split->left -= n;
	split->offset += n;
	return 0;
}

/*
 * The loops stay loops: the verifier follows every call of every
 * copy of a loop's body to add up the stack, 360 ways for these three.
 */
/* Look at the next pages; 1 when there are no more. */
__noinline int iot_split_some(__u64 id)
{
	int i;

#pragma clang loop unroll(disable)
	for (i = 0; i < IOT_TURNS; i++)
		if (iot_split_page(id))
			return 1;
	return 0;
}

__noinline int iot_split_more(__u64 id)
{
	int i;

#pragma clang loop unroll(disable)
	for (i = 0; i < IOT_TURNS; i++)
		if (iot_split_some(id))
			return 1;
	return 0;
}

/*
 * Begins to look for the owners of a write from the page cache, which has a flight. 0:
 * there is nothing more to look for, the file has one dirtier, who is in the flight's row.
 */
static __always_inline int iot_range_begin(__u64 id, __u64 mapping)
{
	struct inode_note *note = iot_inode_note(mapping);
	struct flight *f = io_flight(id);

	if (!f)
		return 0;
	if (note && note->cgroup && !note->state && note->ino == iot_mapping_ino(mapping)) {
		iot_own(&f->usage, iot_pack(note->cgroup, IOT_DIRTIER), note->pid);
		return 0;
	}
	bpf_map_update_elem(&splits, &id, &no_split, BPF_ANY);
	return 1;
}

/* Looks at the pages of one range of a file. A request may have several. */
static __always_inline void iot_range_more(__u64 id, __u64 mapping, __u64 offset, __u32 bytes)
{
	struct split *split = bpf_map_lookup_elem(&splits, &id);
	int i;

	if (!mapping || !split)
		return;
	split->mapping = mapping;
	split->offset = offset;
	split->left = bytes;
#pragma clang loop unroll(disable)
	for (i = 0; i < IOT_TURNS; i++)
		if (iot_split_more(id))
			break;
	if (split->left) { /* the last owner seen gets the rest */
		iot_lost(IOT_LOST_WALKS, 1);
		split->run.bytes += split->left;
	}
}

/* Bytes of a request that belong to no page of a file: nobody knows whose they are. */
static __always_inline void iot_range_unknown(__u64 id, __u32 bytes)
{
	struct split *split = bpf_map_lookup_elem(&splits, &id);

	if (!split)
		return;
	if (split->run.owner != iot_pack(IOT_CGROUP_NONE, IOT_NONE)) {
		iot_split_close(id);
		split->run.owner = iot_pack(IOT_CGROUP_NONE, IOT_NONE);
		split->run.pid = 0;
	}
	split->run.bytes += bytes;
}

/* All ranges were looked at. One owner goes into the flight's row; several stay parts (IOT_SEVERAL). */
static __always_inline void iot_range_end(__u64 id)
{
	struct split *split = bpf_map_lookup_elem(&splits, &id);
	struct flight *f = io_flight(id);

	if (!split || !f)
		return;
	if (split->parts[0].bytes) {
		iot_split_close(id);
		f->state |= IOT_SEVERAL;
		return;
	}
	iot_own(&f->usage, split->run.owner, split->run.pid);
	bpf_map_delete_elem(&splits, &id);
}

/*
 * Finds the owners of a write from the page cache, whose flight has the offset and the
 * bytes. One owner goes into the flight's row; several are kept as parts (IOT_SEVERAL),
 * which iot_range_book books.
 */
__noinline int iot_range_owner(__u64 id, __u64 mapping)
{
	struct flight *f = io_flight(id);

	if (!f || !iot_range_begin(id, mapping))
		return 0;
	iot_range_more(id, mapping, f->offset, f->bytes);
	iot_range_end(id);
	return 0;
}

/* Books a part of a request; taken: bytes that the server took from here on. Returns the bytes booked. */
__noinline __u64 iot_range_book_part(__u64 id, __u32 i, __u64 taken, __u64 latency)
{
	struct split *split = bpf_map_lookup_elem(&splits, &id);
	struct flight *f = io_flight(id);
	struct usage_key usage;
	struct part *part;
	__u64 n;

	if (!split || !f)
		return 0;
	part = &split->parts[i & (IOT_PARTS - 1)];
	n = part->bytes < taken ? part->bytes : taken;
	usage = f->usage;
	iot_own(&usage, part->owner, part->pid);
	if (!n && i)
		return 0;
	iot_account(&usage, n, !i); /* the first part has the operation itself */
	if (with_records)
		iot_record(&usage, f->issued, latency, f->offset, n);
	f->offset += n;
	return n;
}

/* Books what the server took of a request with several owners, and their records. */
static __always_inline void iot_range_book(struct flight *f, __u64 id, __u64 bytes, __u64 latency)
{
	__u32 i;

	for (i = 0; i < IOT_PARTS; i++) {
		bytes -= iot_range_book_part(id, i, bytes, latency);
		if (!bytes)
			break;
	}
	bpf_map_delete_elem(&splits, &id);
	f->state |= IOT_RECORDED;
}

#endif
