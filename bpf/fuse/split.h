/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Writeback requests with pages of several owners. What the daemon took is known at
 * the request's end only, so the parts are kept until then.
 *
 * The walk over the pages has its state here, so that a step needs only the request's
 * id as argument: the verifier looks at such functions once.
 */
#ifndef IOTRACE_FUSE_SPLIT_H
#define IOTRACE_FUSE_SPLIT_H

#include "core/cache.h"
#include "core/owner.h"
#include "types.h"

#define IOT_PAGE_SIZE (1U << IOT_PAGE_SHIFT)
/*
 * Three nested loops of this many rounds: at most 4,096 pages of a request are looked
 * at, 16 MiB. The kernel's limit is 1 MiB unless fs.fuse.max_pages_limit (6.13) was
 * raised. Plain loops over global functions are quick to verify and work without
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
		owner = folio ? iot_folio_owner(folio, 0, 0) : iot_pack(IOT_CGROUP_NONE, IOT_NONE);
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
 * Shares out size bytes of a file from offset on among those who made its pages dirty.
 * Returns whether there are several; else run has the only one.
 */
static __always_inline bool iot_split_file(struct split *split, __u64 id, __u64 mapping, __u64 offset, __u32 size)
{
	int i;

	split->mapping = mapping;
	split->offset = offset;
	split->left = size;
#pragma clang loop unroll(disable)
	for (i = 0; i < IOT_TURNS; i++)
		if (iot_split_more(id))
			break;
	if (split->left) { /* the last owner seen gets the rest */
		iot_lost(IOT_LOST_WALKS, 1);
		split->run.bytes += split->left;
	}
	if (!split->parts[0].bytes)
		return false;
	iot_split_close(id);
	return true;
}

#endif
