/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Where a walk over the pages of a request is. */
#ifndef IOTRACE_BLOCK_WALK_STATE_H
#define IOTRACE_BLOCK_WALK_STATE_H

#include "core/run.h"
#include "types.h"

/* What is known of the pages of a bio. */
enum iot_sight {
	IOT_SIGHT_PAGES = 0, /* its own pages tell the owner */
	IOT_SIGHT_ORIGINAL, /* a driver's pages: the walk goes over the pages that they were made from */
	IOT_SIGHT_EXTENT, /* likewise, over a range of a file */
	IOT_SIGHT_NONE, /* a driver's pages, and nothing leads from them */
	IOT_SIGHT_METADATA, /* a driver's pages with records of its own */
};

#define IOT_VECS 16U /* vectors of a bio that are read at once */

struct walk {
	struct run run;
	__u64 bio;
	__u64 origin; /* the bio that vec belongs to: bio, or the one that it was made from */
	__u64 vec; /* 0: at the beginning */
	__u64 pages; /* of this vector */
	unsigned long word; /* owner word of the folios of the run; 0: ask for each folio */
	__u64 mapping; /* the file of the run where a note names one dirtier for all of it; else 0 */
	__u64 journal_mapping; /* of the folio before, for in_journal */
	__u64 journal; /* the folio's owner, where a journal has to do with it; else 0 */
	__u32 vec_len; /* 0: this vector must be read first */
	__u32 vec_offset;
	__u32 in_vec; /* bytes of this vector that are behind us */
	__u32 in_bio; /* bytes of this bio still to come */
	__u32 left; /* bytes of the request still to come */
	__u32 cmd_flags;
	__u32 is_loop;
	__u32 sight; /* of enum iot_sight */
	__u32 hops; /* that led to origin */
	__u32 in_journal; /* pages of the mapping before may be a journal's */
	__u32 page; /* of the folio that is looked at: see iot_walk_by_page */
	__u32 in_origin; /* IOT_SIGHT_ORIGINAL: bytes of origin still to come */
	struct {
		__u64 mapping;
		__u64 index; /* of the first page */
		__u32 pages;
		__u32 bytes; /* in the bio, for all of the pages */
		__u32 done;
		__u32 pad;
	} extent;
	struct owner owner; /* of the folio; here because 5.10 has too little stack */
	struct page_words words; /* of the folio; too much for the stack */
	struct bio_vec vecs[IOT_VECS];
};

/* The walks in progress on this CPU, one for each hook that walks: they may interrupt each other. */
enum {
	IOT_WALK_ISSUE,
	IOT_WALK_BIO,
	IOT_WALK_REDUNDANT,
	IOT_WALKS,
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, IOT_WALKS);
	__type(key, __u32);
	__type(value, struct walk);
} walks SEC(".maps");

static __always_inline struct page *iot_page_add(struct page *page, __u32 n)
{
	return (void *)page + (unsigned long)n * bpf_core_type_size(struct page___5_15);
}

#endif
