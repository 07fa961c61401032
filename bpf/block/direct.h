/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * O_DIRECT from memory that is a file's: a mapping of a file that others cached, or
 * shared huge pages. Its pages say who touched the memory first. The submitter owns the
 * bytes, else any container could book its writes on another.
 */
#ifndef IOTRACE_BLOCK_DIRECT_H
#define IOTRACE_BLOCK_DIRECT_H

#include "hop.h"

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct buffer_head___page {
	struct page *b_page;
};

/* Since 6.5 (f7e00c9a6d56) beside b_page, later in its place. */
struct buffer_head___folio {
	struct folio *b_folio;
};

#pragma clang attribute pop

/*
 * Whether a bio was made from a buffer head for this folio: bi_private is the buffer head
 * then (fs/buffer.c, submit_bh_wbc). A journal writes pages of files this way, without
 * the mark of writeback, and up to 6.6 or so without REQ_META.
 */
__noinline int iot_is_buffer(__u64 bio, __u64 folio)
{
	__u64 buffer = (__u64)FIELD((struct bio *)iot_uppermost(bio), bi_private);
	struct buffer_head___folio *new = (void *)buffer;
	struct buffer_head___page *old = (void *)buffer;

	if (!iot_is_kernel_address(buffer))
		return 0;
	if (bpf_core_field_exists(new->b_folio))
		return (__u64)FIELD(new, b_folio) == folio;
	return iot_in_folio((__u64)FIELD(old, b_page), folio);
}

/*
 * Whether a page of a file is memory of a direct request. Writeback marks the pages that
 * it writes, and the page cache locks those that it reads. Swap knows the pages of shared
 * memory (PG_swapbacked) by other marks: owner.h has a rule for these.
 */
static __always_inline bool iot_is_direct(const struct walk *w, __u64 folio)
{
	struct address_space *mapping = iot_words_mapping(&w->words);
	unsigned long flags = w->words.word[0];

	if (w->sight != IOT_SIGHT_PAGES || !iot_mapping_is_file(mapping) || w->cmd_flags & IOT_REQ_META)
		return false;
	if (IOT_HAS_FLAG(flags, PG_locked) || IOT_HAS_FLAG(flags, PG_swapbacked))
		return false;
	if (w->cmd_flags & 1 ? IOT_HAS_FLAG(flags, PG_writeback) : !IOT_HAS_FLAG(flags, PG_uptodate))
		return false;
	if ((BPF_CORE_READ(mapping, host, i_mode) & S_IFMT) == S_IFBLK)
		return false;
	return !iot_is_buffer(w->bio, folio);
}

/*
 * The owner of a folio of a bio that the folio itself does not tell; false where the
 * owner rule finds it.
 */
static __always_inline bool iot_block_owner(const struct walk *w, struct owner *o, __u64 folio)
{
	if (iot_is_direct(w, folio)) {
		iot_own_by_submitter(o, (struct bio *)w->bio, (void *)bpf_get_current_task());
		return true;
	}
	if (w->cmd_flags & IOT_REQ_META)
		return false;
	if (w->sight == IOT_SIGHT_METADATA) {
		iot_unpack(o, iot_pack(IOT_CGROUP_KERNEL, IOT_PAGE));
		return true;
	}
	return w->sight == IOT_SIGHT_NONE; /* data, and unattributed */
}

#endif
