/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Requests and bios: who owns them, and how they are booked. */
#ifndef IOTRACE_BLOCK_REQUEST_H
#define IOTRACE_BLOCK_REQUEST_H

#define IOT_FLIGHT_BITS 15
#include "core/flight.h"
#include "core/redundant.h"
#include "waiter.h"
#include "walk.h"

const volatile bool rq_is_second_arg = false; /* block_rq_issue: until 5.11 (a54895fa057c) */
const volatile bool bio_is_second_arg = false; /* block_bio_queue: until 5.11 (e8a676d61c07) */
const volatile bool has_redundant = false; /* iot_rq_issue_redundant is attached */

/* Requests that were requeued and not issued again yet; until the first one, nobody looks for them. */
__u64 requeued = 0;

/* One request or bio while its owners are found. */
struct block_request {
	struct usage_key usage;
	struct bio *bio;
	__u64 start; /* of a loop device whose requests leave notes: where on it, bytes; else IOT_NO_LOOP */
	__u32 flags; /* cmd_flags */
	__u32 bytes;
};

#define IOT_NO_LOOP (~0ULL)

/*
 * Finds the owner of the pages of a request. If it has several, books the request on
 * them, sets o to the one with the longest run and returns false. walk is one of IOT_WALKS.
 */
static __always_inline bool iot_request_owner(struct block_request *r, __u32 walk, struct owner *o)
{
	struct walk *w = bpf_map_lookup_elem(&walks, &walk);
	struct usage_key *longest;

	if (!w)
		return true;
	iot_run_begin(&w->run, &r->usage, r->start);
	w->bio = (__u64)r->bio;
	w->vec = 0;
	w->in_bio = 0;
	w->left = r->bytes;
	w->journal_mapping = 0;
	w->cmd_flags = r->flags;
	w->is_loop = r->start != IOT_NO_LOOP;
	iot_walk_all(walk);
	longest = &w->run.longest;
	o->cgroup = longest->cgroup;
	o->basis = longest->basis;
	o->pid = longest->pid;
	o->fsdev = longest->fsdev;
	return !w->run.several;
}

static __always_inline bool iot_has_no_owner(const struct usage_key *usage)
{
	return usage->cgroup == IOT_CGROUP_KERNEL && usage->basis == IOT_NONE && !(usage->flags & IOT_META);
}

/*
 * Finds the owner of a request, as iot_request_owner does. If the request has no
 * pages (a discard, say), or pages without an owner (zeroes), its owner is the task
 * that waits for it: often a kernel thread issues it.
 */
static __always_inline bool iot_find_owner(struct block_request *r, __u32 walk, struct owner *o)
{
	__u64 task = 0;
	bool single;

	if (r->bio && r->bytes && iot_op_has_pages(r->flags & IOT_REQ_OP_MASK)) {
		single = iot_request_owner(r, walk, o);
		if (!single || o->cgroup != IOT_CGROUP_KERNEL || o->basis != IOT_NONE || r->flags & IOT_REQ_META)
			return single;
	}
	if (r->bio)
		task = iot_waiter((__u64)r->bio);
	iot_owner_without_pages(o, r->bio, task ? (void *)task : (void *)bpf_get_current_task());
	return true;
}

static __always_inline void iot_own_request(struct usage_key *usage, const struct owner *o)
{
	usage->cgroup = o->cgroup;
	usage->basis = o->basis;
	usage->pid = o->pid;
	usage->fsdev = o->fsdev;
	usage->flags |= iot_journal_flags(o);
}

static __always_inline bool iot_read_request(struct block_request *r, struct request *rq, bool typed)
{
	struct gendisk *disk;
	__u32 op;

	r->flags = LOAD(typed, rq, cmd_flags);
	op = r->flags & IOT_REQ_OP_MASK;
	if (op >= IOT_REQ_DRIVER)
		return false;
	r->bytes = op == IOT_OP_FLUSH ? 0 : LOAD(typed, rq, __data_len);
	r->usage.source = IOT_BLOCK;
	r->usage.op = iot_block_op(op);
	r->usage.flags = r->flags & IOT_REQ_META ? IOT_META : 0;
	disk = iot_request_disk(rq, typed);
	r->usage.dev = LOAD(typed, disk, major) << 20 | LOAD(typed, disk, first_minor);
	return true;
}

/*
 * The most common request at high rates: O_DIRECT of one anonymous page charged to
 * a cgroup. All steps but the last are plain loads. 0 means: not such a request.
 */
static __always_inline __u64 iot_small_owner(struct request *rq, __u32 bytes)
{
	struct bio *bio = rq->bio;
	struct page___7_0 *tail = NULL;
	struct page___5_15 *owned = NULL;
	__u64 words[8], id;
	struct bio_vec *vec;

	/* Such a page is of no file system; whose direct I/O it is, is asked for with files only. */
	if ((by_mount && iot_files_on()) || !bpf_core_field_exists(tail->compound_head) ||
	    !bpf_core_field_exists(owned->memcg_data) || !bpf_core_field_exists(owned->mapping))
		return 0;
	if (!bio || bio->bi_iter.bi_idx || bio->bi_iter.bi_size != bytes)
		return 0;
	vec = bio->bi_io_vec;
	if (!vec || vec->bv_len != bytes || vec->bv_offset >> IOT_PAGE_SHIFT)
		return 0;
	/* The verifier forbids arithmetic on pointers that carry flag bits: copy the page once. */
	if (bpf_probe_read_kernel(words, sizeof(words), vec->bv_page))
		return 0;
	if (words[bpf_core_field_offset(tail->compound_head) / sizeof(__u64)] & 1)
		return 0;
	if (!(words[bpf_core_field_offset(owned->mapping) / sizeof(__u64)] & IOT_MAPPING_ANON))
		return 0;
	id = iot_word_owner(words[bpf_core_field_offset(owned->memcg_data) / sizeof(__u64)]);
	return id > IOT_ROOT_CGROUP ? iot_pack(id, IOT_PAGE) : 0;
}

/* With --by process, the process of such a request: as iot_folio_pid. */
__noinline __u32 iot_small_pid(__u64 owner)
{
	if (!by_process || iot_packed_cgroup(iot_owner_from_user()) != iot_packed_cgroup(owner))
		return 0;
	return iot_pid_of((void *)bpf_get_current_task());
}

/*
 * A requeued request was issued again: it is booked already. Only what was merged into
 * it meanwhile is not, and nobody knows whose that is.
 */
static __always_inline void iot_reissued(struct flight *f, __u32 bytes)
{
	struct usage_key usage = f->usage;

	f->state &= ~IOT_BACK;
	__sync_fetch_and_add(&requeued, -1);
	if (bytes <= f->bytes)
		return;
	usage.cgroup = IOT_CGROUP_NONE;
	usage.basis = IOT_NONE;
	usage.pid = 0;
	usage.fsdev = 0;
	iot_account(&usage, bytes - f->bytes, 0);
	f->bytes = bytes;
}

/* Notes that a request was issued; its row comes in words. A function: its callers have no stack left. */
__noinline int iot_fly(__u64 id, __u64 cgroup, __u64 devs, __u64 rest, __u64 bytes_state)
{
	union key_words w = { .word = { cgroup, devs, rest } };
	__u32 way = iot_flight_way(id);
	struct flight *f;

	/*
	 * Issued again, so it ended unseen. On 6.18 the kernel skips some completions in
	 * a hundred thousand without counting them as misses (observed).
	 */
	if (with_latency && way < IOT_WAYS)
		iot_lost(IOT_UNSEEN, 1);
	f = io_begin_at(id, way, &w.key, 0, 0);
	if (f) {
		f->bytes = bytes_state >> 32;
		f->state = bytes_state;
	}
	return 0;
}

/* A request is issued: finds its owner or owners and books it. */
static __always_inline int iot_issue(struct request *rq, bool typed, __u32 walk)
{
	struct block_request r = { .start = IOT_NO_LOOP };
	struct usage_key *usage = &r.usage;
	struct flight *f = NULL;
	__u64 small = 0, id, back;
	const __u64 *word;
	__u32 state = 0;

	if (!iot_read_request(&r, rq, typed))
		return 0;
	if (typed && r.bytes <= 1U << IOT_PAGE_SHIFT && iot_op_has_pages(r.flags & IOT_REQ_OP_MASK))
		small = iot_small_owner(rq, r.bytes);
	/* No plain load of what becomes a number: the verifier would refuse it. */
	if (usage->dev >> 20 == IOT_LOOP_MAJOR &&
	    iot_loop_look((__u64)FIELD(iot_request_disk(rq, typed), private_data), usage->dev))
		r.start = LOAD(typed, rq, __sector) << 9;
	back = requeued; /* once: it may change between a decision and what follows from it */
	if (typed && (!small || with_latency || with_records || has_redundant || back))
		rq = (struct request *)iot_untyped(rq);
	id = (__u64)rq;
	if (back)
		f = io_flight(id);
	if (f && f->state & IOT_BACK) {
		iot_reissued(f, r.bytes);
		return 0;
	}
	if (small) {
		iot_own(usage, small, iot_small_pid(small));
	} else {
		struct owner o = {};

		r.bio = FIELD(rq, bio);
		if (!iot_find_owner(&r, walk, &o))
			state = IOT_SEVERAL;
		iot_own_request(usage, &o);
	}
	if (with_latency && !small && r.bio && r.bytes && iot_has_no_owner(usage))
		state = IOT_LATE;
	if (!state) {
		if (r.start != IOT_NO_LOOP)
			iot_note_loop(usage->dev, iot_pack(usage->cgroup, usage->basis), usage->pid, r.start, r.bytes);
		iot_account(usage, r.bytes, 1);
	}
	if (with_latency || (has_redundant && walk != IOT_WALK_REDUNDANT)) {
		word = (const __u64 *)usage;
		iot_fly(id, word[0], word[1], word[2], (__u64)r.bytes << 32 | state);
	}
	if (!with_latency && with_records)
		iot_record(usage, bpf_ktime_get_ns(), 0, FIELD(rq, __sector) << 9, r.bytes);
	return 0;
}

/*
 * The driver gave a request back: it will be issued once more. A request that the
 * driver refused before its start was never issued, but is requeued all the same.
 */
static __always_inline int iot_requeue(struct request *rq)
{
	struct block_request r = {};
	struct flight *f;

	if (FIELD(rq, state) == MQ_RQ_IDLE)
		return 0;
	f = io_flight((__u64)rq);
	if (!f) {
		if (with_latency || !iot_read_request(&r, rq, false)) /* displaced, or not ours */
			return 0;
		f = io_begin((__u64)rq, &r.usage, 0, 0);
		if (!f)
			return 0;
		f->bytes = r.bytes;
	}
	if (!(f->state & IOT_BACK))
		__sync_fetch_and_add(&requeued, 1);
	f->state |= IOT_BACK;
	return 0;
}

/*
 * Books a request at its end, because no task waited for it yet when it was issued:
 * a kernel thread may issue it while its submitter still makes the chain of bios.
 */
static __always_inline void iot_late(struct usage_key *usage, __u64 bio, __u64 bytes, __u64 ops)
{
	__u64 task = iot_waiter(bio);
	struct owner o = {};

	if (task) {
		iot_owner_without_pages(&o, NULL, (void *)task);
		iot_own_request(usage, &o);
	}
	iot_account(usage, bytes, ops);
}

static __always_inline int iot_complete(struct request *rq, __u32 error, __u32 bytes, bool typed)
{
	/*
	 * When the request was made, as in /proc/diskstats. The kernel keeps it for every
	 * request unless queue/iostats is off.
	 */
	__u64 start = LOAD(typed, rq, start_time_ns);
	struct request *addr = typed ? (struct request *)iot_untyped(rq) : rq;
	struct flight *f = io_flight((__u64)addr);
	struct usage_key usage;
	bool more;

	if (!f) {
		/* A flush sequence completes its request once more, without bytes and without an issue. */
		if (bytes && (LOAD(typed, rq, cmd_flags) & IOT_REQ_OP_MASK) < IOT_REQ_DRIVER && iot_is_ours(start))
			iot_lost(IOT_LOST_LATENCIES, 1);
		return 0;
	}
	more = !error && bytes < LOAD(typed, rq, __data_len);
	usage = f->usage;
	if (f->state & IOT_LATE)
		iot_late(&usage, (__u64)FIELD(addr, bio), bytes, !more);
	if (more) {
		f->bytes -= bytes; /* what is issued again after a requeue */
		return 0;
	}
	if (f->state & IOT_BACK)
		__sync_fetch_and_add(&requeued, -1);
	if (!start)
		iot_lost(IOT_LOST_LATENCIES, 1);
	f->issued = start;
	if (with_records)
		f->offset = LOAD(typed, rq, __sector) << 9;
	io_end(f, &usage, start ? bpf_ktime_get_ns() - start : 0, bytes, error);
	io_forget(f);
	return 0;
}

/* A bio for a leaf device without requests. Its latency is not measured. */
static __always_inline int iot_bio(struct bio *bio)
{
	struct block_request r = { .start = IOT_NO_LOOP };
	struct owner o = {};
	__u32 dev = iot_disk_dev(iot_bio_disk(bio)), op;

	if (!bpf_map_lookup_elem(&bio_leaves, &dev))
		return 0;
	r.flags = FIELD(bio, bi_opf);
	op = r.flags & IOT_REQ_OP_MASK;
	if (op >= IOT_REQ_DRIVER)
		return 0;
	r.bytes = FIELD(bio, bi_iter.bi_size);
	r.bio = bio;
	r.usage.source = IOT_BLOCK;
	r.usage.op = r.bytes ? iot_block_op(op) : IOT_FLUSH;
	r.usage.flags = r.flags & IOT_REQ_META ? IOT_META : 0;
	r.usage.dev = dev;
	if (iot_find_owner(&r, IOT_WALK_BIO, &o)) {
		iot_own_request(&r.usage, &o);
		iot_account(&r.usage, r.bytes, 1);
	}
	return 0;
}

/* See redundant.h. */
static __always_inline int iot_issue_redundant(struct request *rq, bool typed)
{
	struct flight *f = io_flight(typed ? iot_untyped(rq) : (__u64)rq);

	if (!f || f->state & IOT_BACK) {
		iot_covered();
		return iot_issue(rq, typed, IOT_WALK_REDUNDANT);
	}
	if (!with_latency)
		io_forget(f); /* only noted for this program */
	return 0;
}

#endif
