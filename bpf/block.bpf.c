// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//go:build ignore
/*
 * Source block: requests that the block layer hands to a driver.
 *
 * block_rq_issue counts bytes and operations under their owners;
 * block_rq_requeue subtracts what the driver did not accept, so that totals equal
 * /proc/diskstats; block_rq_complete adds device latency and errors. All of them
 * pass a request pointer, on every kernel since 5.10. Until 5.11 (a54895fa057c)
 * block_rq_issue has a queue before it: user space sets rq_is_second_arg then.
 *
 * Each hook exists as raw tracepoint and as BTF-typed tracepoint, whose loads are
 * cheaper. User space keeps the one that the kernel allows.
 */
#include "account.h"
#include "owner.h"

const volatile bool rq_is_second_arg = false;
const volatile bool has_redundant = false; /* iot_rq_issue_redundant is attached */
const volatile bool bio_is_second_arg = false; /* block_bio_queue: until 5.11 (e8a676d61c07) */

#define IOT_REQ_OP_MASK 0xff
#define IOT_REQ_META (1U << 12) /* __REQ_META has been bit 12 since 4.10 (ef295ecf090d) */
#define IOT_REQ_DRIVER 32 /* driver-private (passthrough) operations from here on: not in diskstats */

enum {
	IOT_OP_READ = 0,
	IOT_OP_FLUSH = 2,
	IOT_OP_DISCARD = 3,
	IOT_OP_SECURE_ERASE = 5,
	IOT_OP_WRITE_ZEROES = 9,
};

#define IOT_STEPS 2048 /* most pages of a request whose owner is looked up */
#define IOT_NOTES 512 /* most notes on pages of a loop device's file for one request */
#define IOT_ROUND 32 /* steps in a round: see iot_walk_some */

/*
 * From issue to completion: request -> its owner. Direct-mapped by the request's
 * address, two ways: requests are reused, and an array takes a fraction of the time
 * of a hash. A request that another one displaces loses its latency (counted).
 */
struct issued {
	__u64 rq; /* struct request * */
	struct usage_key usage;
};

#define IOT_SLOTS 32768
/* in flags of usage, here only */
#define IOT_SEVERAL 0x80 /* the request has several owners */
#define IOT_LATE 0x40 /* its owner is not known yet, not booked: see iot_late */
#define IOT_BACK 0x20 /* requeued, and not issued again yet */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, IOT_SLOTS);
	__type(key, __u32);
	__type(value, struct issued);
} inflight SEC(".maps");

static __always_inline __u32 iot_slot(struct request *rq)
{
	return (((unsigned long)rq >> 6) * 0x9E3779B97F4A7C15ULL) >> 49; /* 15 bits: IOT_SLOTS */
}

static __always_inline __u8 iot_op(__u32 op)
{
	if (op == IOT_OP_FLUSH)
		return IOT_FLUSH;
	if (op == IOT_OP_DISCARD)
		return IOT_DISCARD;
	return op & 1 ? IOT_WRITE : IOT_READ; /* as op_is_write() and diskstats have it */
}

static __always_inline bool iot_op_has_pages(__u32 op)
{
	return op != IOT_OP_FLUSH && op != IOT_OP_DISCARD && op != IOT_OP_SECURE_ERASE &&
	       op != IOT_OP_WRITE_ZEROES;
}

/* A plain load where the verifier knows the pointer's type: it is cheaper than a helper call. */
#define LOAD(typed, ptr, field) ((typed) ? (ptr)->field : FIELD(ptr, field))

static __always_inline __u32 iot_request_dev(struct request *rq, bool typed)
{
	struct request___5_16 *old = (void *)rq;
	struct request_queue *q;
	struct gendisk *disk;

	if (bpf_core_field_exists(old->rq_disk)) {
		disk = LOAD(typed, old, rq_disk);
	} else {
		q = LOAD(typed, rq, q);
		disk = LOAD(typed, q, disk);
	}
	return LOAD(typed, disk, major) << 20 | LOAD(typed, disk, first_minor);
}

/* Loop devices over files on block devices of this host; user space fills it and sets notes_live. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32); /* device */
	__type(value, struct loop_file);
} loop_files SEC(".maps");

/*
 * dm-crypt writes pages of its own, without an owner, from a kernel thread. Its bios
 * are those that end in crypt_endio: user space sets the address once a crypt device
 * exists. Their bi_private is a struct dm_crypt_io, whose second member has always
 * been the original bio (drivers/md/dm-crypt.c).
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} crypt_end SEC(".maps");

/* struct bvec_iter; from 7.1 on the last member is called bi_offset. */
struct iter {
	__u64 sector;
	__u32 size;
	__u32 idx;
	__u32 done; /* bytes of the vector that are behind it */
} __attribute__((packed));

static __always_inline void iot_read_iter(struct iter *iter, struct bio *bio)
{
	bpf_probe_read_kernel(iter, sizeof(*iter), &bio->bi_iter);
}

/*
 * The bio whose vectors have the pages; iter is set to their place in it. The block
 * layer splits a bio that the device cannot take whole: the first part is a new bio
 * that points to the rest, and the end of the rest stays where it was.
 */
static __always_inline struct bio *iot_original(struct bio *bio, struct iter *iter)
{
	__u32 zero = 0, from_end;
	__u64 *end = bpf_map_lookup_elem(&crypt_end, &zero);
	struct bio *clone = bio, *base = NULL;
	struct iter whole = {};
	void *io;

	if (!end || !*end)
		return bio;
	if ((__u64)FIELD(clone, bi_end_io) != *end) {
		clone = FIELD(bio, bi_private);
		if (!clone || (__u64)FIELD(clone, bi_end_io) != *end)
			return bio;
	}
	io = FIELD(clone, bi_private);
	bpf_probe_read_kernel(&base, sizeof(base), io + sizeof(void *));
	if (!base)
		return bio;
	iot_read_iter(&whole, clone);
	from_end = whole.size + ((whole.sector - iter->sector) << 9);
	iot_read_iter(&whole, base);
	if (from_end > whole.size)
		return bio;
	iter->idx = whole.idx;
	iter->done = whole.done + whole.size - from_end;
	return base;
}

/* Leaf devices that take bios instead of requests (zram, pmem, brd): user space fills it. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32); /* device */
	__type(value, __u32);
} bio_leaves SEC(".maps");

/* One request while its owners are found. */
struct block_request {
	struct usage_key usage;
	__u32 flags; /* cmd_flags */
	__u32 bytes;
	__u64 start; /* on the device, bytes; only where is_loop */
	struct bio *bio;
	bool is_loop;
	bool is_bio; /* there is no request: iot_bio */
	bool redundant; /* iot_issue_redundant */
};

/*
 * The index of our per-CPU element. Issued requests, requeued requests and bios have
 * one each: their hooks may interrupt each other.
 */
#define IOT_WALKS 4

static __always_inline __u32 iot_which(const struct block_request *r)
{
	if (r->redundant)
		return 3;
	if (r->is_bio)
		return 2;
	return r->usage.flags & IOT_REQUEUED ? 1 : 0;
}

static __always_inline struct page *iot_page_add(struct page *page, __u32 n)
{
	return (void *)page + (unsigned long)n * bpf_core_type_size(struct page___5_15);
}

static __always_inline void iot_own(struct usage_key *usage, const struct owner *o)
{
	usage->cgroup = o->cgroup;
	usage->basis = o->basis;
	usage->pid = o->pid;
	usage->fsdev = o->fsdev;
}

/* Leaves notes for up to a round of pages of a backing file; fsdev and pid share a word. */
__noinline int iot_note_pages(__u64 ino, __u64 index, __u64 fsdev_pid, __u64 owner, __u64 pages)
{
	struct file_page page = { .ino = ino, .index = index, .fsdev = fsdev_pid >> 32 };
	struct page_note note = { .owner = owner, .pid = fsdev_pid }, *old;
	__u64 i;

	for (i = 0; i < IOT_ROUND && i < pages; i++) {
		/* An update of an LRU hash takes several times as long as a lookup. */
		old = bpf_map_lookup_elem(&loop_notes, &page);
		if (!old || old->owner != owner || old->pid != note.pid)
			bpf_map_update_elem(&loop_notes, &page, &note, BPF_ANY);
		page.index++;
	}
	return 0;
}

/* Leaves notes for the pages of the backing file that a request to a loop device touches. */
__noinline int iot_note_loop(__u32 dev, __u64 owner, __u32 pid, __u64 start, __u32 bytes)
{
	struct loop_file *file = bpf_map_lookup_elem(&loop_files, &dev);
	__u64 ino, index, end, fsdev_pid;
	int i;

	if (!file || !bytes)
		return 0;
	ino = file->ino;
	fsdev_pid = (__u64)file->fsdev << 32 | pid;
	start += file->offset;
	index = start >> IOT_PAGE_SHIFT;
	end = ((start + bytes - 1) >> IOT_PAGE_SHIFT) + 1;
	iot_note_pages(ino, IOT_ANY_PAGE, fsdev_pid, owner, 1);
	for (i = 0; i < IOT_NOTES / IOT_ROUND && index < end; i++) {
		iot_note_pages(ino, index, fsdev_pid, owner, end - index);
		index += IOT_ROUND;
	}
	return 0;
}

/*
 * The walk over a request, page by page. A folio is one step; so is a bio of a read,
 * and one whose memory belongs to no file. Adjacent bytes of one owner are a run,
 * which is booked when a page of another owner follows.
 */
struct walk {
	struct usage_key usage; /* owner of the run */
	struct usage_key first; /* owner of the first run, once there are several */
	__u64 bio;
	__u64 vec; /* 0: at the beginning */
	__u64 pages; /* of this vector */
	unsigned long word; /* owner word of the folios of the run; 0: ask for each folio */
	__u64 start; /* of the run on the device, bytes */
	__u32 vec_len; /* 0: this vector must be read first */
	__u32 vec_offset;
	__u32 in_vec; /* bytes of this vector that are behind us */
	__u32 in_bio; /* bytes of this bio still to come */
	__u32 left; /* bytes of the request still to come */
	__u32 run; /* bytes seen for usage's owner and not booked yet */
	__u32 ops; /* the operation itself is booked once, with the first run */
	__u32 cmd_flags;
	__u32 several;
	__u32 is_loop;
	struct page_words words; /* of the folio; too much for the stack */
};

/* The walks in progress on this CPU: see iot_which. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, IOT_WALKS);
	__type(key, __u32);
	__type(value, struct walk);
} walks SEC(".maps");

static __always_inline void iot_walk_book(struct walk *w)
{
	iot_account(&w->usage, w->run, w->ops);
	if (w->is_loop)
		iot_note_loop(w->usage.dev, iot_pack(w->usage.cgroup, w->usage.basis), w->usage.pid, w->start, w->run);
	w->start += w->run;
	w->ops = 0;
	w->run = 0;
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
	if (by_process || !word || word != w->word || iot_have_notes(IOT_LOOP_NOTES))
		return false;
	return !iot_notes_live() || !bpf_map_lookup_elem(&notes, &folio);
}

/* Finds the owner of the next folio, and begins a run if it is another one. */
__noinline int iot_walk_owner(__u32 which, __u64 folio, __u64 word)
{
	struct walk *w = bpf_map_lookup_elem(&walks, &which);
	struct owner o = {};

	if (!w)
		return 0;
	iot_owner_of_folio(&o, (struct folio *)folio, (struct bio *)w->bio, w->cmd_flags & 1,
			   w->cmd_flags & IOT_REQ_META);
	w->word = o.basis == IOT_DIRTIER ? 0 : word;
	if (o.cgroup == w->usage.cgroup && o.basis == w->usage.basis && o.pid == w->usage.pid &&
	    o.fsdev == w->usage.fsdev)
		return 0;
	if (w->run) {
		if (!w->several)
			w->first = w->usage;
		w->several = 1;
		iot_walk_book(w);
	}
	iot_own(&w->usage, &o);
	return 0;
}

/*
 * One step; returns whether there is another. A global function in a plain loop
 * verifies quickly on every kernel. bpf_loop exists since 5.17 only, and 5.10 refuses
 * a program that contains it even where it never runs.
 */
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
	if (!iot_walk_same(w, (__u64)folio, word))
		iot_walk_owner(which, (__u64)folio, word);
	w->run += n;
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

/* Two nested loops, each a function: the verifier adds up their rounds instead of multiplying them. */
__noinline int iot_walk_some(__u32 which)
{
	int i;

	for (i = 0; i < IOT_ROUND; i++)
		if (!iot_walk_step(which))
			return 0;
	return 1;
}

__noinline int iot_walk_all(__u32 which)
{
	struct walk *w = bpf_map_lookup_elem(&walks, &which);
	int i;

	if (!w)
		return 0;
	for (i = 0; i < IOT_STEPS / IOT_ROUND; i++)
		if (!iot_walk_some(which))
			break;
	if (w->left) { /* the rest goes to the last owner seen */
		iot_lost(IOT_LOST_WALKS, 1);
		w->run += w->left;
	}
	if (w->several)
		iot_walk_book(w);
	return 0;
}

/*
 * Finds the owner of the pages of a request. If it has several, books the request on
 * them, sets o to the first of them and returns false.
 */
static __always_inline bool iot_request_owner(struct block_request *r, struct owner *o)
{
	__u32 which = iot_which(r);
	struct walk *w = bpf_map_lookup_elem(&walks, &which);
	struct usage_key *usage;

	if (!w)
		return true;
	w->usage = r->usage;
	w->bio = (__u64)r->bio;
	w->vec = 0;
	w->in_bio = 0;
	w->start = r->start;
	w->left = r->bytes;
	w->run = 0;
	w->ops = 1;
	w->cmd_flags = r->flags;
	w->several = 0;
	w->is_loop = r->is_loop;
	iot_walk_all(which);
	usage = w->several ? &w->first : &w->usage;
	o->cgroup = usage->cgroup;
	o->basis = usage->basis;
	o->pid = usage->pid;
	o->fsdev = usage->fsdev;
	return !w->several;
}

/* Kernel stacks of x86-64 and arm64. */
#define IOT_STACK_SIZE 16384
#define IOT_CHAIN 64

/*
 * The task that waits for a completion on its own stack, as submit_bio_wait() does;
 * 0 if there is none. The completion's list of waiters leads to a task, whose stack
 * must hold both.
 */
__noinline __u64 iot_waiting(__u64 completion)
{
	struct completion *done = (void *)completion;
	struct list_head *head, *first;
	struct swait_queue *waiter;
	struct task_struct *task;
	__u64 stack;

	head = (void *)done + bpf_core_field_offset(struct completion, wait) +
	       bpf_core_field_offset(struct swait_queue_head, task_list);
	first = FIELD(head, next);
	if (!first || first == head || FIELD(first, prev) != head)
		return 0;
	waiter = (void *)first - bpf_core_field_offset(struct swait_queue, task_list);
	task = FIELD(waiter, task);
	stack = (__u64)FIELD(task, stack);
	if (!stack || completion - stack >= IOT_STACK_SIZE || (__u64)first - stack >= IOT_STACK_SIZE)
		return 0;
	return (__u64)task;
}

/*
 * The task that waits for a bio; 0 if there is none. A range that needs several bios
 * is a chain of them, and the task waits for the last one. Where bi_private holds
 * something else than a bio, no disk is found in it.
 */
__noinline __u64 iot_waiter(__u64 bio)
{
	struct gendisk *disk = iot_bio_disk((struct bio *)bio);
	__u64 task;
	int i;

	for (i = 0; i < IOT_CHAIN; i++) {
		bio = (__u64)FIELD((struct bio *)bio, bi_private);
		if (!bio)
			return 0;
		task = iot_waiting(bio);
		if (task)
			return task;
		if (iot_bio_disk((struct bio *)bio) != disk)
			return 0;
	}
	return 0;
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
static __always_inline bool iot_find_owner(struct block_request *r, struct owner *o)
{
	__u64 task = 0;
	bool single;

	if (r->bio && r->bytes && iot_op_has_pages(r->flags & IOT_REQ_OP_MASK)) {
		single = iot_request_owner(r, o);
		if (!single || o->cgroup != IOT_CGROUP_KERNEL || o->basis != IOT_NONE || r->flags & IOT_REQ_META)
			return single;
	}
	if (r->bio)
		task = iot_waiter((__u64)r->bio);
	iot_owner_without_pages(o, r->bio, task ? (void *)task : (void *)bpf_get_current_task());
	return true;
}

/* A pointer without its type, for global functions and plain arithmetic. */
static __always_inline __u64 iot_untyped(const void *ptr)
{
	__u64 word = 0;

	bpf_probe_read_kernel(&word, sizeof(word), &ptr);
	return word;
}

static __always_inline bool iot_read_request(struct block_request *r, struct request *rq, bool typed)
{
	struct bio *bio;
	__u32 op;

	r->flags = LOAD(typed, rq, cmd_flags);
	op = r->flags & IOT_REQ_OP_MASK;
	if (op >= IOT_REQ_DRIVER)
		return false;
	r->bytes = op == IOT_OP_FLUSH ? 0 : LOAD(typed, rq, __data_len);
	bio = LOAD(typed, rq, bio);
	r->bio = typed ? (struct bio *)iot_untyped(bio) : bio;
	r->usage.source = IOT_BLOCK;
	r->usage.op = iot_op(op);
	r->usage.flags = r->flags & IOT_REQ_META ? IOT_META : 0;
	r->usage.dev = iot_request_dev(rq, typed);
	return true;
}

static __always_inline void iot_remember(struct request *rq, const struct usage_key *usage)
{
	__u32 slot = iot_slot(rq);
	struct issued *f = bpf_map_lookup_elem(&inflight, &slot), *other;

	if (f && f->rq && f->rq != (__u64)rq) {
		slot ^= 1;
		other = bpf_map_lookup_elem(&inflight, &slot);
		if (other)
			f = other;
	}
	if (!f)
		return;
	/*
	 * Issued again, so it ended unseen. On 6.18 the kernel skips some completions in
	 * a hundred thousand without counting them as misses (observed).
	 */
	if (with_latency && f->rq == (__u64)rq && !(f->usage.flags & IOT_BACK))
		iot_lost(IOT_UNSEEN, 1);
	f->usage = *usage;
	f->rq = (__u64)rq;
}

static __always_inline struct issued *iot_recall(struct request *rq)
{
	__u32 slot = iot_slot(rq);
	struct issued *f = bpf_map_lookup_elem(&inflight, &slot);

	if (f && f->rq != (__u64)rq) {
		slot ^= 1;
		f = bpf_map_lookup_elem(&inflight, &slot);
	}
	return f && f->rq == (__u64)rq ? f : NULL;
}

static __always_inline void iot_block_record(__u64 sector, const struct usage_key *usage, __u64 issued,
					     __u64 latency, __u64 bytes)
{
	struct io_record record = {
		.usage = *usage,
		.time = issued,
		.latency = latency,
		.offset = sector << 9,
		.bytes = bytes,
	};

	iot_record(&record);
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

	if (by_process || by_mount || !bpf_core_field_exists(tail->compound_head) ||
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

/* Finds the owner or owners of a request and books it; flags says whether it is issued or requeued. */
static __always_inline int iot_count(struct request *rq, __u8 flags, bool typed, bool redundant)
{
	struct block_request r = { .redundant = redundant };
	struct owner o = {};
	struct issued *f;
	bool single = true;
	__u64 small = 0;

	if (!iot_read_request(&r, rq, typed))
		return 0;
	if (typed && r.bytes <= 1U << IOT_PAGE_SHIFT && iot_op_has_pages(r.flags & IOT_REQ_OP_MASK))
		small = iot_small_owner(rq, r.bytes);
	if (typed)
		rq = (struct request *)iot_untyped(rq);
	r.usage.flags |= flags;
	if (!flags && iot_have_notes(IOT_LOOP_NOTES) && bpf_map_lookup_elem(&loop_files, &r.usage.dev)) {
		r.is_loop = true;
		r.start = FIELD(rq, __sector) << 9;
	}
	f = with_latency && flags ? iot_recall(rq) : NULL;
	if (f && f->usage.flags & IOT_LATE) {
		f->rq = 0;
		return 0;
	}
	if (f)
		f->usage.flags |= IOT_BACK;
	if (f && !(f->usage.flags & IOT_SEVERAL)) {
		o.cgroup = f->usage.cgroup;
		o.basis = f->usage.basis;
		o.pid = f->usage.pid;
		o.fsdev = f->usage.fsdev;
	} else if (small)
		iot_unpack(&o, small);
	else
		single = iot_find_owner(&r, &o);
	iot_own(&r.usage, &o);
	if (with_latency && !flags && r.bio && r.bytes && iot_has_no_owner(&r.usage)) {
		r.usage.flags |= IOT_LATE;
		iot_remember(rq, &r.usage);
		return 0;
	}
	if (single) {
		if (r.is_loop)
			iot_note_loop(r.usage.dev, iot_pack(o.cgroup, o.basis), o.pid, r.start, r.bytes);
		iot_account(&r.usage, r.bytes, 1);
	}
	if (flags)
		return 0;
	if (with_latency && !single) /* a requeue must walk over it once more: see f above */
		r.usage.flags |= IOT_SEVERAL;
	if (with_latency || (has_redundant && !redundant))
		iot_remember(rq, &r.usage);
	if (!with_latency && with_records)
		iot_block_record(FIELD(rq, __sector), &r.usage, bpf_ktime_get_ns(), 0, r.bytes);
	return 0;
}

/*
 * Books a request at its end, because no task waited for it yet when it was issued:
 * a kernel thread may issue it while its submitter still makes the chain of bios.
 */
static __always_inline void iot_late(struct usage_key *usage, struct bio *bio, __u64 bytes, __u64 ops)
{
	__u64 task = iot_waiter((__u64)bio);
	struct owner o = {};

	usage->flags &= ~IOT_LATE;
	if (task) {
		iot_owner_without_pages(&o, NULL, (void *)task);
		iot_own(usage, &o);
	}
	iot_account(usage, bytes, ops);
}

static __always_inline int iot_complete(struct request *rq, __u32 error, __u32 bytes, bool typed)
{
	/*
	 * When the request was made, as in /proc/diskstats. The kernel keeps it for every
	 * request unless queue/iostats is off.
	 */
	__u64 start = LOAD(typed, rq, start_time_ns), ns;
	struct request *addr = typed ? (struct request *)iot_untyped(rq) : rq;
	struct issued *f = iot_recall(addr);
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
	usage.flags &= ~(IOT_SEVERAL | IOT_BACK);
	if (usage.flags & IOT_LATE)
		iot_late(&usage, FIELD(addr, bio), bytes, !more);
	if (more)
		return 0;
	f->rq = 0;
	ns = start ? bpf_ktime_get_ns() - start : 0;
	if (start)
		iot_latency(&usage, ns);
	else
		iot_lost(IOT_LOST_LATENCIES, 1);
	if (error) {
		usage.flags |= IOT_ERROR;
		iot_account(&usage, 0, 1);
	}
	if (with_records)
		iot_block_record(LOAD(typed, rq, __sector), &usage, start, ns, bytes);
	return 0;
}

/* A bio for a leaf device without requests. Its latency is not measured. */
static __always_inline int iot_bio(struct bio *bio)
{
	struct gendisk *disk = iot_bio_disk(bio);
	struct block_request r = {};
	struct owner o = {};
	bool single;
	__u32 dev, op;

	dev = FIELD(disk, major) << 20 | FIELD(disk, first_minor);
	if (!bpf_map_lookup_elem(&bio_leaves, &dev))
		return 0;
	r.flags = FIELD(bio, bi_opf);
	op = r.flags & IOT_REQ_OP_MASK;
	if (op >= IOT_REQ_DRIVER)
		return 0;
	r.bytes = FIELD(bio, bi_iter.bi_size);
	r.bio = bio;
	r.is_bio = true;
	r.usage.source = IOT_BLOCK;
	r.usage.op = r.bytes ? iot_op(op) : IOT_FLUSH;
	r.usage.flags = r.flags & IOT_REQ_META ? IOT_META : 0;
	r.usage.dev = dev;
	single = iot_find_owner(&r, &o);
	iot_own(&r.usage, &o);
	if (single)
		iot_account(&r.usage, r.bytes, 1);
	return 0;
}

SEC("raw_tp/block_bio_queue")
int iot_bio_queue(__u64 *ctx)
{
	__u64 bio;

	/*
	 * Two loads that clang must not merge: it would add to ctx and load once, which
	 * the verifier of 5.10 refuses. Only one of them may run: a program that loads a
	 * second argument is refused by a tracepoint with one.
	 */
	if (bio_is_second_arg) {
		bio = ctx[1];
		asm volatile("/* second */" : "+r"(bio));
	} else {
		bio = ctx[0];
		asm volatile("/* first */" : "+r"(bio));
	}
	return iot_bio((struct bio *)bio);
}

#define RQ_ARG (rq_is_second_arg ? ctx[1] : ctx[0])

/*
 * The driver gave the request back: it will be issued, and counted, once more. A
 * request that the driver refused before its start was never issued, but is requeued
 * all the same.
 */
static __always_inline int iot_requeue(struct request *rq, bool typed)
{
	if (FIELD(rq, state) == MQ_RQ_IDLE)
		return 0;
	return iot_count(rq, IOT_REQUEUED, typed, false);
}

/*
 * The kernel skips a program while another run of it is in progress on the same CPU.
 * Since 7.0 programs on tracepoints are preempted, so it happens. Then this second
 * program, attached behind the first, finds that the request was not noted, and does
 * the work.
 */
static __always_inline int iot_issue_redundant(struct request *rq, bool typed)
{
	struct issued *f = iot_recall(typed ? (struct request *)iot_untyped(rq) : rq);

	if (!f || f->usage.flags & IOT_BACK) {
		iot_lost(IOT_COVERED, 1);
		return iot_count(rq, 0, typed, true);
	}
	if (!with_latency)
		f->rq = 0; /* only noted for this program */
	return 0;
}

SEC("raw_tp/block_rq_issue")
int iot_rq_issue(__u64 *ctx)
{
	return iot_count((struct request *)RQ_ARG, 0, false, false);
}

SEC("raw_tp/block_rq_issue")
int iot_rq_issue_redundant(__u64 *ctx)
{
	return iot_issue_redundant((struct request *)RQ_ARG, false);
}

SEC("raw_tp/block_rq_requeue")
int iot_rq_requeue(__u64 *ctx)
{
	return iot_requeue((struct request *)RQ_ARG, false);
}

SEC("raw_tp/block_rq_complete")
int iot_rq_complete(__u64 *ctx)
{
	return iot_complete((struct request *)ctx[0], ctx[1], ctx[2], false);
}

SEC("tp_btf/block_rq_issue")
int iot_rq_issue_btf(__u64 *ctx)
{
	return iot_count((struct request *)RQ_ARG, 0, true, false);
}

SEC("tp_btf/block_rq_issue")
int iot_rq_issue_redundant_btf(__u64 *ctx)
{
	return iot_issue_redundant((struct request *)RQ_ARG, true);
}

SEC("tp_btf/block_rq_requeue")
int iot_rq_requeue_btf(__u64 *ctx)
{
	return iot_requeue((struct request *)RQ_ARG, true);
}

SEC("tp_btf/block_rq_complete")
int iot_rq_complete_btf(__u64 *ctx)
{
	return iot_complete((struct request *)ctx[0], ctx[1], ctx[2], true);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
