/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The walk over the pages of a request or bio. A folio is one step; so is a bio of a
 * read, and one whose memory belongs to no file.
 *
 * A global function in plain nested loops verifies quickly on every kernel. bpf_loop
 * exists since 5.17 only, and 5.10 refuses a program that contains it even where it
 * never runs.
 */
#ifndef IOTRACE_BLOCK_WALK_H
#define IOTRACE_BLOCK_WALK_H

#include "core/owner.h"
#include "core/run.h"
#include "journal.h"
#include "stack.h"

/* Two nested loops of this many rounds: at most 2,116 steps. Functions call each other eight deep at most. */
#define IOT_ROUNDS 46

struct walk {
	struct run run;
	__u64 bio;
	__u64 vec; /* 0: at the beginning */
	__u64 pages; /* of this vector */
	unsigned long word; /* owner word of the folios of the run; 0: ask for each folio */
	__u32 vec_len; /* 0: this vector must be read first */
	__u32 vec_offset;
	__u32 in_vec; /* bytes of this vector that are behind us */
	__u32 in_bio; /* bytes of this bio still to come */
	__u32 left; /* bytes of the request still to come */
	__u32 cmd_flags;
	__u32 is_loop;
	__u32 in_journal; /* pages of this mapping may be a journal's */
	__u64 journal_mapping; /* of the folio before: in_journal is about this one */
	__u64 journal; /* the folio's owner, where a journal has to do with it; else 0 */
	struct page_words words; /* of the folio; too much for the stack */
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

/* Bytes from the beginning of a folio to the place at of one of its pages. */
static __always_inline __u32 iot_folio_offset(struct folio *folio, struct page *page, __u32 at)
{
	__u32 pages = ((__u64)page - (__u64)folio) / bpf_core_type_size(struct page___5_15);

	return (pages << IOT_PAGE_SHIFT) + (at & ((1U << IOT_PAGE_SHIFT) - 1));
}

static __always_inline void iot_walk_book(struct walk *w, bool last)
{
	struct usage_key *usage = &w->run.usage;

	if (w->is_loop)
		iot_note_loop(usage->dev, iot_pack(usage->cgroup, usage->basis), usage->pid, w->run.offset,
			      w->run.bytes);
	iot_run_book(&w->run, last);
}

/* Goes to the next bio, or to the first one; returns whether there is one. */
__noinline int iot_walk_bio(__u32 which)
{
	struct walk *w = bpf_map_lookup_elem(&walks, &which);
	struct iter iter = {};
	struct bio *bio;

	if (!w)
		return 0;
	bio = (void *)w->bio;
	if (w->vec) {
		bio = FIELD(bio, bi_next);
		if (!bio)
			return 0;
		w->bio = (__u64)bio;
	}
	iot_read_iter(&iter, bio);
	w->in_bio = iter.size;
	bio = iot_original(bio, &iter);
	w->vec = (__u64)(FIELD(bio, bi_io_vec) + iter.idx);
	w->vec_len = 0;
	w->in_vec = iter.done;
	w->word = 0;
	return 1;
}

/* Reads the current vector; false if all of it was looked at already. */
static __always_inline bool iot_walk_vec(struct walk *w)
{
	struct bio_vec vec = {};

	if (w->vec_len)
		return true;
	bpf_probe_read_kernel(&vec, sizeof(vec), (void *)w->vec);
	if (w->in_vec < vec.bv_len) {
		w->pages = (__u64)vec.bv_page;
		w->vec_offset = vec.bv_offset;
		w->vec_len = vec.bv_len;
		return true;
	}
	if (!vec.bv_len) /* unreadable */
		w->in_bio = 0;
	w->in_vec -= vec.bv_len;
	w->vec += sizeof(vec);
	return false;
}

/* Whether a folio surely belongs to the owner of the run: charged to the same, and without a note. */
static __always_inline bool iot_walk_same(const struct walk *w, __u64 folio, unsigned long word)
{
	if (by_process || !word || word != w->word || iot_loop_notes())
		return false;
	return !iot_have_notes() || !bpf_map_lookup_elem(&notes, &folio);
}

/* The owner of a block that a journal has to do with; 0: look at the folio. at is the block's place in its page. */
__noinline __u64 iot_walk_journal(__u32 which, __u64 folio, __u64 page, __u32 at)
{
	struct walk *w = bpf_map_lookup_elem(&walks, &which);
	__u64 mapping;

	if (!w || !(w->cmd_flags & 1) || !iot_have_journals())
		return 0;
	mapping = (__u64)iot_words_mapping(&w->words);
	if (!mapping)
		return iot_journal_copy(which, folio, w->bio);
	if (mapping != w->journal_mapping) {
		w->journal_mapping = mapping;
		w->in_journal = iot_is_device((void *)mapping);
	}
	if (!w->in_journal)
		return 0;
	return iot_journal_owner(which, folio, iot_folio_offset((struct folio *)folio, (struct page *)page, at));
}

/* Finds the owner of the next folio, and begins a run if it is another one. */
__noinline int iot_walk_owner(__u32 which, __u64 folio, __u64 word)
{
	struct walk *w = bpf_map_lookup_elem(&walks, &which);
	struct owner o = {};

	if (!w)
		return 0;
	if (w->journal)
		iot_journal_own(&o, w->journal, which);
	else
		iot_owner_of_folio(&o, (struct folio *)folio, (struct bio *)w->bio, w->cmd_flags & 1,
				   w->cmd_flags & IOT_REQ_META);
	w->word = w->journal || o.basis == IOT_DIRTIER ? 0 : word;
	if (!iot_run_differs(&w->run, &o))
		return 0;
	if (w->run.bytes) {
		w->run.several = 1;
		iot_walk_book(w, false);
	}
	w->run.usage.flags = (w->cmd_flags & IOT_REQ_META ? IOT_META : 0) | iot_journal_flags(&o);
	iot_run_own(&w->run, &o);
	return 0;
}

/* One step; returns whether there is another. */
__noinline int iot_walk_step(__u32 which)
{
	struct walk *w = bpf_map_lookup_elem(&walks, &which);
	__u32 at, n, rest, pages, index;
	struct folio *folio;
	unsigned long word;
	struct page *page;

	if (!w || !w->left)
		return 0;
	if (!w->in_bio && !iot_walk_bio(which))
		return 0;
	if (!iot_walk_vec(w))
		return 1;
	at = w->vec_offset + w->in_vec;
	rest = w->vec_len - w->in_vec;
	page = iot_page_add((void *)w->pages, at >> IOT_PAGE_SHIFT);
	bpf_probe_read_kernel(&w->words, sizeof(w->words), page);
	folio = iot_words_folio(&w->words, page);
	if ((struct page *)folio != page)
		bpf_probe_read_kernel(&w->words, sizeof(w->words), folio);
	n = (1U << IOT_PAGE_SHIFT) - (at & ((1U << IOT_PAGE_SHIFT) - 1));
	if (n > rest)
		n = rest;
	if (!(w->cmd_flags & 1) || !iot_mapping_is_file(iot_words_mapping(&w->words))) {
		/* Pages to be read were allocated for the reader; memory of no file belongs to the submitter. */
		n = w->in_bio;
	} else if (n < rest && (w->words.word[0] & (1UL << bpf_core_enum_value(enum pageflags, PG_head)))) {
		pages = iot_folio_pages(folio);
		index = ((__u64)page - (__u64)folio) / bpf_core_type_size(struct page___5_15);
		if (index < pages)
			n += (pages - index - 1) << IOT_PAGE_SHIFT;
		if (n > rest)
			n = rest;
	}
	if (n > w->in_bio)
		n = w->in_bio;
	if (n > w->left)
		n = w->left;
	word = iot_words_owner(&w->words);
	w->journal = iot_walk_journal(which, (__u64)folio, (__u64)page, at);
	if (w->journal || !iot_walk_same(w, (__u64)folio, word))
		iot_walk_owner(which, (__u64)folio, word);
	w->run.bytes += n;
	w->in_vec += n;
	w->in_bio -= n;
	w->left -= n;
	if (w->in_vec >= w->vec_len) {
		w->in_vec -= w->vec_len;
		w->vec += sizeof(struct bio_vec);
		w->vec_len = 0;
	}
	return w->left != 0;
}

__noinline int iot_walk_some(__u32 which)
{
	int i;

	for (i = 0; i < IOT_ROUNDS; i++)
		if (!iot_walk_step(which))
			return 0;
	return 1;
}

/* All of a request. Runs but the last are booked; where there is only one, nothing is. */
__noinline int iot_walk_all(__u32 which)
{
	struct walk *w = bpf_map_lookup_elem(&walks, &which);
	int i;

	if (!w)
		return 0;
	for (i = 0; i < IOT_ROUNDS; i++)
		if (!iot_walk_some(which))
			break;
	if (w->left) { /* the rest goes to the last owner seen */
		iot_lost(IOT_LOST_WALKS, 1);
		w->run.bytes += w->left;
	}
	if (w->run.several)
		iot_walk_book(w, true);
	return 0;
}

#endif
