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

#include "core/cache.h"
#include "core/file.h"
#include "core/owner.h"
#include "direct.h"
#include "hop.h"
#include "journal.h"
#include "stack.h"
#include "xfs.h"

/* Two nested loops of this many rounds: at most 2,116 steps. Functions call each other eight deep at most. */
#define IOT_ROUNDS 46

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
	w->origin = (__u64)bio;
	w->sight = IOT_SIGHT_PAGES;
	w->hops = 0;
	w->vec = (__u64)(FIELD(bio, bi_io_vec) + iter.idx);
	w->vec_len = 0;
	w->in_vec = iter.done;
	w->word = 0;
	w->mapping = 0;
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

/* Whether a folio surely belongs to the owner of the run: of the same file, or charged to the same and without a note. */
static __always_inline bool iot_walk_same(const struct walk *w, unsigned long word)
{
	__u64 mapping = (__u64)iot_words_mapping(&w->words);

	if (iot_loop_notes())
		return false;
	if (w->mapping)
		return mapping == w->mapping;
	if (by_process || !word || word != w->word)
		return false;
	return !iot_notes_are(IOT_NOTES_LIVE) || !iot_inode_note(mapping);
}

/*
 * The owner of a block that a journal has to do with; 0: look at the folio. at is the
 * block's place in its page. Taken out where there is no journal: see tracer/part.go.
 */
__noinline __u64 iot_walk_journal(__u32 which, __u64 folio, __u64 page, __u32 at)
{
	struct walk *w = bpf_map_lookup_elem(&walks, &which);
	__u64 mapping, owner;

	if (!w || !(w->cmd_flags & 1))
		return 0;
	owner = iot_xfs_owner(which);
	if (owner || !iot_have_journals())
		return owner;
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

/* Whether several may have written the pages of a large folio: then each page is a step. */
static __always_inline bool iot_walk_by_page(const struct walk *w)
{
	struct inode_note *note = NULL;

	if (iot_notes_are(IOT_NOTES_LIVE))
		note = iot_inode_note((__u64)iot_words_mapping(&w->words));
	return note && note->state & IOT_SHARED;
}

/* The file whose direct I/O a bio is, by the function in which it ends; 0: no direct I/O, or not known. */
static __always_inline __u32 iot_direct_file(__u64 origin)
{
	__u64 bio = iot_uppermost(origin), end = (__u64)FIELD((struct bio *)bio, bi_end_io);
	struct hop *hop = bpf_map_lookup_elem(&hops, &end);

	if (!hop || hop->kind != IOT_HOP_SUBMITTER)
		return 0;
	if (hop->base)
		return IOT_FILE_DEVICE;
	return hop->loads ? iot_file_of(iot_hop(bio, end), 0, 0, 0) : 0;
}

/*
 * The file system that a folio is of, or with --by file the file; folio is 0 where the
 * pages say nothing.
 */
__noinline __u32 iot_walk_place(__u32 which, __u64 folio)
{
	struct walk *w = bpf_map_lookup_elem(&walks, &which);
	struct address_space *mapping = folio ? iot_folio_mapping((struct folio *)folio) : NULL;
	bool file = iot_mapping_is_file(mapping);
	__u32 direct;

	if (!w)
		return 0;
	if (!iot_files_on())
		return file ? BPF_CORE_READ(mapping, host, i_sb, s_dev) : 0;
	w->word = 0; /* an owner may have several files */
	if (bpf_core_enum_value_exists(enum req_flag_bits, __REQ_SWAP) &&
	    w->cmd_flags >> (bpf_core_enum_value(enum req_flag_bits, __REQ_SWAP) & 31) & 1)
		return IOT_FILE_SWAP;
	direct = iot_direct_file(w->origin);
	if (direct)
		return direct;
	if (file)
		return iot_file_of((__u64)FIELD(mapping, host), 0, 0, 0);
	return w->cmd_flags & IOT_REQ_META ? IOT_FILE_METADATA : 0;
}

/*
 * Finds the owner of the next folio, or of a page of it. Returns whether it is another
 * one than that of the run.
 */
__noinline int iot_walk_owner(__u32 which, __u64 folio, __u64 word)
{
	struct walk *w = bpf_map_lookup_elem(&walks, &which);
	struct inode_note *note;
	struct owner *o;
	__u64 mapping;

	if (!w)
		return 0;
	o = &w->owner;
	*o = (struct owner){};
	if (w->journal) {
		iot_journal_own(o, w->journal, which);
		w->word = 0;
		w->mapping = 0;
	} else if (iot_block_owner(w, o, folio)) {
		w->word = 0;
		w->mapping = 0;
		if (by_mount)
			o->fsdev = iot_walk_place(which, 0);
	} else {
		mapping = (__u64)iot_words_mapping(&w->words);
		if (!(w->cmd_flags & 1) ||
		    !iot_own_by_note(o, (void *)mapping, iot_words_index(&w->words) + w->page))
			iot_own_by_folio(o, (struct folio *)folio, (struct bio *)w->bio,
					 (w->cmd_flags & 1 ? IOT_FOR_WRITE : 0) |
					 (w->cmd_flags & IOT_REQ_META ? IOT_FOR_META : 0));
		w->word = o->basis == IOT_PAGE ? word : 0;
		note = o->basis == IOT_DIRTIER ? iot_inode_note(mapping) : NULL;
		w->mapping = note && !note->state ? mapping : 0;
		if (by_mount)
			o->fsdev = iot_walk_place(which, folio);
	}
	return iot_run_differs(&w->run, o);
}

/*
 * Begins a run of the owner that iot_walk_owner found. Not called there: one call below
 * another they would need more stack than 5.10 has.
 */
__noinline int iot_walk_turn(__u32 which)
{
	struct walk *w = bpf_map_lookup_elem(&walks, &which);

	if (!w)
		return 0;
	if (w->run.bytes) {
		w->run.several = 1;
		iot_walk_book(w, false);
	}
	w->run.usage.flags = (w->cmd_flags & IOT_REQ_META ? IOT_META : 0) | iot_journal_flags(&w->owner);
	iot_run_own(&w->run, &w->owner);
	return 0;
}

/*
 * A step over a compressed range: the part of the bio that stands for one page. Taken out
 * together with iot_follow.
 */
__noinline int iot_walk_extent(__u32 which)
{
	struct walk *w = bpf_map_lookup_elem(&walks, &which);
	__u32 page = 0, n, end;
	__u64 folio, word = 0;

	if (!w || !w->left || !w->in_bio || w->sight != IOT_SIGHT_EXTENT)
		return 0;
	n = w->in_bio;
	if (w->extent.bytes && w->extent.done < w->extent.bytes) {
		page = (__u64)w->extent.done * w->extent.pages / w->extent.bytes;
		end = ((__u64)(page + 1) * w->extent.bytes + w->extent.pages - 1) / w->extent.pages;
		if (page + 1 < w->extent.pages && end - w->extent.done < n)
			n = end - w->extent.done;
	}
	if (n > w->left)
		n = w->left;
	folio = iot_cached_folio(w->extent.mapping, w->extent.index + page);
	w->page = 0;
	w->journal = 0;
	if (folio) {
		folio = (__u64)iot_folio((void *)folio);
		bpf_probe_read_kernel(&w->words, sizeof(w->words), (void *)folio);
		word = iot_words_owner(&w->words);
		w->page = w->extent.index + page - iot_folio_index((void *)folio);
	} else {
		w->words = (struct page_words){};
		w->sight = IOT_SIGHT_NONE;
	}
	if ((!folio || !iot_walk_same(w, word)) && iot_walk_owner(which, folio, word))
		iot_walk_turn(which);
	w->sight = IOT_SIGHT_EXTENT;
	w->extent.done += n;
	w->run.bytes += n;
	w->in_bio -= n;
	w->left -= n;
	return w->left != 0;
}

/* One step; returns whether there is another. In a compressed range iot_walk_extent makes it. */
__noinline int iot_walk_step(__u32 which)
{
	struct walk *w = bpf_map_lookup_elem(&walks, &which);
	__u32 at, n, rest, pages, index;
	struct folio *folio;
	unsigned long word;
	struct page *page;
	__u64 behind = 0;

	if (!w || !w->left)
		return 0;
	if (!w->in_bio && !iot_walk_bio(which))
		return 0;
	if (w->sight == IOT_SIGHT_EXTENT)
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
	/* What a user task reads into a driver's pages it reads for itself. */
	if (iot_is_drivers(&w->words) &&
	    ((w->cmd_flags & 1) || !iot_is_user_task((void *)bpf_get_current_task()))) {
		behind = iot_bounced(which);
		if (!behind && iot_follow(which) == IOT_MOVED)
			return 1;
	}
	if (behind) {
		folio = (void *)behind;
		bpf_probe_read_kernel(&w->words, sizeof(w->words), folio);
	}
	n = (1U << IOT_PAGE_SHIFT) - (at & ((1U << IOT_PAGE_SHIFT) - 1));
	if (n > rest)
		n = rest;
	w->page = 0;
	if (!(w->cmd_flags & 1) || !iot_mapping_is_file(iot_words_mapping(&w->words))) {
		/* Pages to be read were allocated for the reader; memory of no file belongs to the submitter. */
		n = w->in_bio;
	} else if (!behind && IOT_HAS_FLAG(w->words.word[0], PG_head)) {
		pages = iot_folio_pages(folio);
		index = ((__u64)page - (__u64)folio) / bpf_core_type_size(struct page___5_15);
		if (iot_walk_by_page(w))
			w->page = index;
		else if (index < pages)
			n += (pages - index - 1) << IOT_PAGE_SHIFT;
		if (n > rest)
			n = rest;
	}
	if (n > w->in_bio)
		n = w->in_bio;
	if (n > w->left)
		n = w->left;
	w->journal = iot_walk_journal(which, (__u64)folio, (__u64)page, at);
	if (w->journal && n > 1U << IOT_PAGE_SHIFT) /* a log is dealt out page by page */
		n = 1U << IOT_PAGE_SHIFT;
	if (w->sight == IOT_SIGHT_ORIGINAL) {
		if (n < w->in_origin)
			w->in_origin -= n;
		else /* the rest of the driver's page */
			n = w->in_bio < w->left ? w->in_bio : w->left;
	}
	word = iot_words_owner(&w->words);
	if ((w->journal || !iot_walk_same(w, word)) && iot_walk_owner(which, (__u64)folio, word))
		iot_walk_turn(which);
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
		if (!iot_walk_step(which) && !iot_walk_extent(which)) /* not in it: calls are at most eight deep */
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
