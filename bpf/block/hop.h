/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Pages of a driver's own: from them to the pages that they were made from.
 *
 * dm-crypt, RAID 5, compression and the like write pages that no cgroup is charged for,
 * from kernel threads. The gate is that such a page has neither a mapping nor an owner
 * word: no page of a user or of the page cache is like that. What is behind the gate is
 * followed from bio to bio. The function that a bio ends in says what it is, and the map
 * says where it leads. User space fills the map (tracer/hop.go) once something on this
 * host may need it.
 */
#ifndef IOTRACE_BLOCK_HOP_H
#define IOTRACE_BLOCK_HOP_H

#include "core/owner.h"
#include "walk_state.h"

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u64); /* a bio's bi_end_io */
	__type(value, struct hop);
} hops SEC(".maps");

#define IOT_MAX_HOPS 6
#define IOT_BIO_VECS 256U /* BIO_MAX_VECS, since 5.12; before, BIO_MAX_PAGES had the same value */

/* A partition's first sector; the field came with 5.12 or 5.13, hops that need it with 7.x. */
struct block_device___part {
	__u64 bd_start_sect;
} __attribute__((preserve_access_index));

struct bio___part {
	struct block_device___part *bi_bdev;
} __attribute__((preserve_access_index));

static __always_inline bool iot_is_kernel_address(__u64 addr)
{
	return addr >> 63;
}

/* The gate. */
static __always_inline bool iot_is_drivers(const struct page_words *words)
{
	return !iot_words_mapping(words) && !iot_words_owner(words);
}

/* Where a hop leads to; 0 if a check fails. */
__noinline __u64 iot_hop(__u64 bio, __u64 end)
{
	struct hop *hop = bpf_map_lookup_elem(&hops, &end);
	__u64 at = bio;
	int i;

	if (!hop)
		return 0;
	if (hop->from_private)
		at = (__u64)FIELD((struct bio *)bio, bi_private);
	for (i = 0; i < IOT_HOP_LOADS && i < hop->loads; i++) {
		if (hop->load[i].check && iot_word_at(at + hop->load[i].check_at) != hop->load[i].check)
			return 0;
		at = iot_word_at(at + hop->load[i].at);
	}
	return iot_is_kernel_address(at) ? at + hop->base : 0;
}

#define IOT_NOWHERE (~0ULL)

/* Bytes of the first n of up to IOT_VECS vectors; IOT_NOWHERE where they cannot be read. */
__noinline __u64 iot_vec_sum(__u32 which, __u64 vec, __u64 n)
{
	struct walk *w = bpf_map_lookup_elem(&walks, &which);
	__u64 sum = 0;
	__u32 i;

	if (!w || bpf_probe_read_kernel(w->vecs, sizeof(w->vecs), (void *)vec))
		return IOT_NOWHERE;
	for (i = 0; i < IOT_VECS && i < n; i++)
		sum += w->vecs[i].bv_len;
	return sum;
}

/* Bytes of the first n vectors of an array; IOT_NOWHERE where they cannot be read. */
__noinline __u64 iot_vec_bytes(__u32 which, __u64 array, __u64 n)
{
	__u64 sum = 0, some;
	__u32 i;

	if (n > IOT_BIO_VECS)
		return IOT_NOWHERE;
	for (i = 0; i < IOT_BIO_VECS / IOT_VECS && i * IOT_VECS < n; i++) {
		some = iot_vec_sum(which, array + i * IOT_VECS * sizeof(struct bio_vec), n - i * IOT_VECS);
		if (some == IOT_NOWHERE)
			return some;
		sum += some;
	}
	return sum;
}

/* Bytes of a bio's vectors that are before the walk's place; IOT_NOWHERE if it is in other vectors. */
static __always_inline __u64 iot_bytes_before(__u32 which, const struct walk *w, __u64 bio)
{
	__u64 array = (__u64)FIELD((struct bio *)bio, bi_io_vec), before = 0;

	if (w->vec < array || (w->vec - array) % sizeof(struct bio_vec))
		return IOT_NOWHERE;
	if (w->vec > array)
		before = iot_vec_bytes(which, array, (w->vec - array) / sizeof(struct bio_vec));
	return before == IOT_NOWHERE ? before : before + w->in_vec;
}

/* Moves the walk over up to IOT_VECS vectors that are behind it; returns whether there may be more. */
__noinline int iot_walk_skip(__u32 which)
{
	struct walk *w = bpf_map_lookup_elem(&walks, &which);
	__u32 i, at, len;

	if (!w || bpf_probe_read_kernel(w->vecs, sizeof(w->vecs), (void *)w->vec))
		return 0; /* iot_walk_vec goes on one by one */
	at = w->in_vec;
	for (i = 0; i < IOT_VECS; i++) {
		len = w->vecs[i].bv_len;
		if (at < len)
			break;
		at -= len;
	}
	w->vec += i * sizeof(struct bio_vec);
	w->in_vec = at;
	return i == IOT_VECS;
}

/*
 * Moves the walk to a byte of another bio, counted from its vector idx on. Vectors are
 * read many at once: a stripe of RAID 5 has 4 KiB of a bio that may have 256 vectors.
 */
__noinline int iot_walk_move(__u32 which, __u64 bio, __u32 idx, __u32 at, __u32 size)
{
	struct walk *w = bpf_map_lookup_elem(&walks, &which);
	__u32 i;

	if (!w)
		return 0;
	w->origin = bio;
	w->vec = (__u64)(FIELD((struct bio *)bio, bi_io_vec) + idx);
	w->vec_len = 0;
	w->in_vec = at;
	w->in_origin = size;
	w->word = 0;
	w->sight = IOT_SIGHT_ORIGINAL;
	for (i = 0; i < IOT_BIO_VECS / IOT_VECS; i++)
		if (!iot_walk_skip(which))
			break;
	return 1;
}

/* dm-crypt: a bio with copies of all bytes of another one, which stays as it was. */
__noinline int iot_follow_copy(__u32 which, __u64 bio, __u64 to)
{
	struct walk *w = bpf_map_lookup_elem(&walks, &which);
	struct iter iter = {};
	__u64 before;

	if (!w)
		return 0;
	before = iot_bytes_before(which, w, bio);
	iot_read_iter(&iter, (struct bio *)to);
	if (before >= iter.size)
		return 0;
	return iot_walk_move(which, to, iter.idx, iter.done + before, iter.size - before);
}

/*
 * blk-crypto in software makes a bio for each 256 pages of a bio. It moves the latter's
 * iterator on meanwhile; its end stays where it was. A bio for a partition is moved by
 * the partition's first sector when it is submitted.
 */
__noinline int iot_follow_fallback(__u32 which, __u64 bio_addr, __u64 to)
{
	struct walk *w = bpf_map_lookup_elem(&walks, &which);
	struct bio *bio = (void *)bio_addr, *source = (void *)to;
	__u64 total, start, end, before, advanced, partition = 0;
	struct iter iter = {};

	if (!w)
		return 0;
	before = iot_bytes_before(which, w, bio_addr);
	iot_read_iter(&iter, bio);
	advanced = iot_vec_bytes(which, (__u64)FIELD(bio, bi_io_vec), iter.idx);
	if (before == IOT_NOWHERE || advanced == IOT_NOWHERE)
		return 0;
	if (bpf_core_field_exists(((struct block_device___part *)0)->bd_start_sect))
		partition = BPF_CORE_READ((struct bio___part *)source, bi_bdev, bd_start_sect);
	start = ((iter.sector - partition) << 9) - advanced - iter.done;
	iot_read_iter(&iter, source);
	end = (iter.sector << 9) + iter.size;
	total = iot_vec_bytes(which, (__u64)FIELD(source, bi_io_vec), FIELD(source, bi_vcnt));
	if (total == IOT_NOWHERE || end < start || end - start > total || before >= end - start)
		return 0;
	return iot_walk_move(which, to, 0, total - (end - start) + before, end - start - before);
}

/* A list of bios at one device of a stripe; 0 if it is empty. */
static __always_inline __u64 iot_stripe_bios(const struct hop *hop, __u64 stripe, __u32 n, __u32 list)
{
	return iot_word_at(stripe + hop->devs + (__u64)n * hop->dev_size + list);
}

/* A function of its own: the verifier would look at each combination of answers. */
__noinline int iot_stripe_is_written(__u64 end, __u64 stripe, __u32 n)
{
	struct hop *hop = bpf_map_lookup_elem(&hops, &end);

	return hop && iot_stripe_bios(hop, stripe, n, hop->others);
}

#define IOT_STRIPE_DISKS 32U
#define IOT_STRIPE_BIOS 8 /* looked at for one page of a stripe */

/*
 * For parity, and for what is read to compute it, the device of the stripe whose writer it
 * is booked on: the devices that are written take turns from page to page.
 * IOT_STRIPE_DISKS if there is none.
 */
__noinline __u32 iot_stripe_turn(__u64 end, __u64 stripe, __u32 disks, __u64 turn)
{
	__u32 i, n = 0;

	for (i = 0; i < IOT_STRIPE_DISKS && i < disks; i++)
		n += iot_stripe_is_written(end, stripe, i);
	if (!n)
		return IOT_STRIPE_DISKS;
	turn %= n;
	for (i = 0; i < IOT_STRIPE_DISKS && i < disks; i++) {
		n = iot_stripe_is_written(end, stripe, i);
		if (n && !turn)
			return i;
		turn -= n;
	}
	return IOT_STRIPE_DISKS;
}

/* RAID 4, 5 and 6: a page of a stripe (drivers/md/raid5.h). */
__noinline int iot_follow_stripe(__u32 which, __u64 bio, __u64 stripe)
{
	__u64 end = (__u64)FIELD((struct bio *)bio, bi_end_io), before, dev, from, sector;
	struct walk *w = bpf_map_lookup_elem(&walks, &which);
	struct hop *hop = bpf_map_lookup_elem(&hops, &end);
	struct iter iter = {}, first = {};
	__u64 written, chosen;
	__u32 n, disks, i;

	if (!w || !hop || !hop->dev_size || bio < stripe + hop->devs)
		return 0;
	before = iot_bytes_before(which, w, bio);
	disks = iot_u32_at(stripe + hop->disks);
	n = (__u32)(bio - stripe - hop->devs) / hop->dev_size;
	if (before == IOT_NOWHERE || n >= disks)
		return 0;
	written = iot_stripe_bios(hop, stripe, n, hop->own);
	if (!written) {
		iot_read_iter(&iter, (struct bio *)bio);
		n = iot_stripe_turn(end, stripe, disks, (iter.sector >> 3) + n);
		if (n >= IOT_STRIPE_DISKS)
			return 0; /* resynchronization: the array writes by itself */
		written = iot_stripe_bios(hop, stripe, n, hop->others);
	}
	dev = stripe + hop->devs + (__u64)n * hop->dev_size;
	sector = iot_word_at(dev + hop->sector) + (before >> 9);
	chosen = written;
	iot_read_iter(&first, (struct bio *)written);
	iter = first;
	/* Several bios may write parts of the page. What none of them writes was read before. */
	for (i = 0; i < IOT_STRIPE_BIOS; i++) {
		if (sector >= iter.sector && sector < iter.sector + (iter.size >> 9)) {
			first = iter;
			chosen = written;
			break;
		}
		written = (__u64)FIELD((struct bio *)written, bi_next);
		if (!iot_is_kernel_address(written))
			break;
		iot_read_iter(&iter, (struct bio *)written);
	}
	from = sector > first.sector ? (sector - first.sector) << 9 : 0;
	if (from >= first.size)
		from = 0;
	return iot_walk_move(which, chosen, first.idx, first.done + from, first.size - from);
}

/* btrfs: data of a range of a file, compressed. */
#define IOT_EXTENT_PAGES 32U /* BTRFS_MAX_UNCOMPRESSED is 128 KiB */

__noinline int iot_follow_extent(__u32 which, __u64 bio, __u64 at)
{
	__u64 end = (__u64)FIELD((struct bio *)bio, bi_end_io), inode, start, before;
	struct walk *w = bpf_map_lookup_elem(&walks, &which);
	struct hop *hop = bpf_map_lookup_elem(&hops, &end);
	__u32 pages = 1, packed = 0, first;
	struct iter iter = {};

	if (!w || !hop)
		return 0;
	inode = iot_word_at(at + hop->inode);
	if (!iot_is_kernel_address(inode))
		return 0;
	inode += hop->vfs_inode;
	start = iot_word_at(at + hop->start);
	first = start & ((1U << IOT_PAGE_SHIFT) - 1);
	/* Where the range is not described, its first page stands for all of it. */
	if (hop->length && (!hop->start_again || iot_word_at(at + hop->start_again) == start))
		pages = (first + iot_u32_at(at + hop->length) + (1U << IOT_PAGE_SHIFT) - 1) >> IOT_PAGE_SHIFT;
	if (hop->packed) {
		packed = iot_u32_at(at + hop->packed);
	} else {
		iot_read_iter(&iter, (struct bio *)bio);
		packed = iter.size;
	}
	before = iot_bytes_before(which, w, bio);
	if (!pages || pages > IOT_EXTENT_PAGES || before >= packed) {
		pages = 1;
		packed = 0;
		before = 0;
	}
	w->extent.mapping = inode + bpf_core_field_offset(struct inode, i_data);
	w->extent.index = start >> IOT_PAGE_SHIFT;
	w->extent.pages = pages;
	w->extent.bytes = packed;
	w->extent.done = before;
	w->sight = IOT_SIGHT_EXTENT;
	return 1;
}

/* Through the bios that were split off or cloned, to the uppermost one with the same vectors. */
__noinline __u64 iot_uppermost(__u64 bio)
{
	struct hop *hop;
	__u64 end, to;
	int i;

	for (i = 0; i < IOT_MAX_HOPS; i++) {
		end = (__u64)FIELD((struct bio *)bio, bi_end_io);
		hop = bpf_map_lookup_elem(&hops, &end);
		if (!hop || hop->kind != IOT_HOP_CLONE)
			break;
		to = iot_hop(bio, end);
		if (!to || FIELD((struct bio *)to, bi_io_vec) != FIELD((struct bio *)bio, bi_io_vec))
			break;
		bio = to;
	}
	return bio;
}

/* The folio of which a driver's page that the walk is at is a copy, as fscrypt makes them; else 0. */
__noinline __u64 iot_bounced(__u32 which)
{
	struct walk *w = bpf_map_lookup_elem(&walks, &which);
	struct address_space *mapping;
	struct folio *folio;
	unsigned long flags = 0;
	__u64 page;

	if (!w)
		return 0;
	if (!bpf_core_field_exists(((struct page___private *)0)->private) ||
	    !bpf_core_enum_value_exists(enum pageflags, PG_private) || !IOT_HAS_FLAG(w->words.word[0], PG_private))
		return 0;
	page = IOT_WORD(&w->words, struct page___private, private);
	if (!iot_is_kernel_address(page))
		return 0;
	folio = iot_folio((void *)page);
	mapping = iot_folio_mapping(folio);
	bpf_probe_read_kernel(&flags, sizeof(flags), folio);
	if (!iot_mapping_is_file(mapping) || !IOT_HAS_FLAG(flags, PG_writeback))
		return 0;
	return (__u64)folio;
}

#define IOT_MOVED 1ULL

/*
 * Goes from the driver's page that the walk is at along the hops. User space takes this
 * function out, and returns 0 instead, where the map of hops is empty: see
 * tracer/part.go. Returns IOT_MOVED when the walk is at other pages now, or 0: then w->sight says what is known.
 */
__noinline __u64 iot_follow(__u32 which)
{
	struct walk *w = bpf_map_lookup_elem(&walks, &which);
	__u64 bio, end, to, none = 0;
	struct hop *hop;
	int moved = 0;

	if (!w)
		return 0;
	w->sight = IOT_SIGHT_NONE;
	if (w->hops >= IOT_MAX_HOPS)
		return 0;
	w->hops++;
	bio = iot_uppermost(w->origin);
	end = (__u64)FIELD((struct bio *)bio, bi_end_io);
	hop = bpf_map_lookup_elem(&hops, &end);
	if (!hop) {
		/* On a host without stacks user space tells of none: the page is the submitter's. */
		if (!bpf_map_lookup_elem(&hops, &none))
			w->sight = IOT_SIGHT_PAGES;
		return 0;
	}
	if (hop->kind == IOT_HOP_SUBMITTER || (hop->kind == IOT_HOP_CLONE && !hop->loads)) {
		w->sight = IOT_SIGHT_PAGES; /* or one of a chain of bios, each with pages of its own */
		return 0;
	}
	if (hop->kind == IOT_HOP_METADATA)
		w->sight = IOT_SIGHT_METADATA;
	to = iot_hop(bio, end);
	if (!to)
		return 0;
	if (hop->kind == IOT_HOP_COPY)
		moved = iot_follow_copy(which, bio, to);
	else if (hop->kind == IOT_HOP_FALLBACK)
		moved = iot_follow_fallback(which, bio, to);
	else if (hop->kind == IOT_HOP_STRIPE)
		moved = iot_follow_stripe(which, bio, to);
	else if (hop->kind == IOT_HOP_EXTENT)
		moved = iot_follow_extent(which, bio, to);
	return moved ? IOT_MOVED : 0;
}

#endif
