// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//go:build ignore
/*
 * Source block: requests that the block layer hands to a driver.
 *
 * block_rq_issue counts bytes and operations under their owners;
 * block_rq_requeue takes back what the driver did not accept, so that totals
 * equal /proc/diskstats; block_rq_complete adds device latency and errors. The
 * tracepoints' request pointer is what makes all this possible and is the same
 * on every kernel since 5.10; block_rq_issue had a queue before it until 5.11
 * (a54895fa057c), which user space tells us.
 *
 * These hooks exist as raw tracepoint and as BTF-typed tracepoint, whose loads
 * are cheaper; user space keeps the one that the kernel allows.
 */
#include "account.h"
#include "owner.h"

const volatile bool rq_is_second_arg = false;
const volatile bool bio_is_second_arg = false; /* block_bio_queue: until 5.11 (e8a676d61c07) */

#define IOT_REQ_OP_MASK 0xff
#define IOT_REQ_META (1U << 12) /* __REQ_META has been bit 12 since 4.10 (ef295ecf090d) */
#define IOT_REQ_DRIVER 32 /* from here on driver-private (passthrough) operations, not in diskstats */

enum {
	IOT_OP_READ = 0,
	IOT_OP_FLUSH = 2,
	IOT_OP_DISCARD = 3,
	IOT_OP_SECURE_ERASE = 5,
	IOT_OP_WRITE_ZEROES = 9,
};

#define IOT_BIOS 16 /* of a request with more bios than that every page is looked at */
#define IOT_STEPS 512 /* pages looked at in such a request or one with several owners */
#define IOT_ROUND 16 /* steps in a round: see iot_scan_some */

/*
 * From issue to completion: request -> its owner. Direct
 * mapped by the request's address, two ways: an array costs a fraction of a hash
 * and requests are reused. A request pushed out loses its latency (counted).
 */
struct inflight {
	__u64 rq; /* struct request * */
	struct usage_key usage;
};

#define IOT_SLOTS 32768

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, IOT_SLOTS);
	__type(key, __u32);
	__type(value, struct inflight);
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

/* A field by plain load where the verifier knows the pointer's type, which costs less than a helper call. */
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
 * dm-crypt writes pages of its own, charged to nobody, from a kernel thread: the
 * address of crypt_endio tells its bios, once user space has found a crypt
 * device and set it. Their bi_private is a struct dm_crypt_io, whose second
 * member is the bio that came in, since the driver exists (drivers/md/dm-crypt.c).
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} crypt_end SEC(".maps");

static __always_inline struct bio *iot_original(struct bio *bio)
{
	__u32 zero = 0;
	__u64 *end = bpf_map_lookup_elem(&crypt_end, &zero);
	struct bio *base = NULL;
	void *io;

	if (!end || !*end || (__u64)FIELD(bio, bi_end_io) != *end)
		return bio;
	io = FIELD(bio, bi_private);
	bpf_probe_read_kernel(&base, sizeof(base), io + sizeof(void *));
	return base ? base : bio;
}

/* Leaf devices that know no requests, only bios (zram, pmem, brd): user space fills it. */
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
};

/*
 * Which of the per-CPU elements is ours. Requests that go out, those that come
 * back and bios have one each: their hooks may interrupt each other.
 */
static __always_inline __u32 iot_which(const struct block_request *r)
{
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

/* Leaves a note for one page of a backing file. */
__noinline int iot_note_page(__u64 ino, __u64 index, __u32 fsdev, __u64 owner, __u32 pid)
{
	struct file_page page = { .ino = ino, .index = index, .fsdev = fsdev };
	struct page_note note = { .owner = owner, .pid = pid }, *old;

	/* An update of an LRU hash costs several times a look. */
	old = bpf_map_lookup_elem(&loop_notes, &page);
	if (!old || old->owner != owner || old->pid != pid)
		bpf_map_update_elem(&loop_notes, &page, &note, BPF_ANY);
	return 0;
}

/* Leaves notes for the pages of the backing file that a request to a loop device is about. */
__noinline int iot_note_loop(__u32 dev, __u64 owner, __u32 pid, __u64 start, __u32 bytes)
{
	struct loop_file *file = bpf_map_lookup_elem(&loop_files, &dev);
	__u64 ino, index, end;
	__u32 fsdev;
	int i;

	if (!file || !bytes)
		return 0;
	ino = file->ino;
	fsdev = file->fsdev;
	start += file->offset;
	index = start >> IOT_PAGE_SHIFT;
	end = (start + bytes - 1) >> IOT_PAGE_SHIFT;
	iot_note_page(ino, IOT_ANY_PAGE, fsdev, owner, pid);
	for (i = 0; i < IOT_STEPS && index <= end; i++)
		iot_note_page(ino, index++, fsdev, owner, pid);
	return 0;
}

/*
 * Walk over a request page by page. Only requests whose ends (or whose bios)
 * have different owners come here.
 */
struct walk {
	struct usage_key usage;
	struct bio *bio;
	struct bio_vec *vec;
	__u64 start; /* of the run on the device, bytes */
	__u32 in_bio; /* bytes of this bio still to come */
	__u32 in_vec; /* offset in this vector */
	__u32 left; /* bytes of the request still to come */
	__u32 run; /* bytes seen for usage's owner and not booked yet */
	__u32 ops; /* the operation itself is booked once, with the first run */
	__u32 cmd_flags;
	__u32 is_loop;
};

static __always_inline void iot_walk_book(struct walk *w)
{
	if (w->run) {
		iot_account(&w->usage, w->run, w->ops);
		if (w->is_loop)
			iot_note_loop(w->usage.dev, iot_pack(w->usage.cgroup, w->usage.basis), w->usage.pid, w->start,
				      w->run);
	}
	w->start += w->run;
	w->ops = w->run ? 0 : w->ops;
	w->run = 0;
}

static __always_inline void iot_walk_bio(struct walk *w)
{
	struct bio *bio = iot_original(w->bio);

	w->vec = FIELD(bio, bi_io_vec) + FIELD(bio, bi_iter.bi_idx);
	w->in_vec = 0;
}

/* The walks under way on this CPU: see iot_which. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 3);
	__type(key, __u32);
	__type(value, struct walk);
} walks SEC(".maps");

/*
 * One step; returns whether there is another. A function of its own and a plain
 * loop around it verify quickly on every kernel: bpf_loop is not there before
 * 5.17, and 5.10 refuses a program that mentions it even where it never runs.
 */
__noinline int iot_walk_step(__u32 which)
{
	struct walk *w = bpf_map_lookup_elem(&walks, &which);
	struct owner o = {};
	struct bio_vec vec = {};
	__u32 start, n;

	if (!w || !w->left || !w->bio)
		return 0;
	if (!w->in_bio) {
		w->bio = FIELD(w->bio, bi_next);
		if (!w->bio)
			return 0;
		w->in_bio = FIELD(w->bio, bi_iter.bi_size);
		iot_walk_bio(w);
	}
	bpf_probe_read_kernel(&vec, sizeof(vec), w->vec);
	if (w->in_vec >= vec.bv_len) {
		w->vec++;
		w->in_vec = 0;
		bpf_probe_read_kernel(&vec, sizeof(vec), w->vec);
	}
	start = vec.bv_offset + w->in_vec;
	n = (1U << IOT_PAGE_SHIFT) - (start & ((1U << IOT_PAGE_SHIFT) - 1));
	if (n > vec.bv_len - w->in_vec)
		n = vec.bv_len - w->in_vec;
	if (n > w->in_bio)
		n = w->in_bio;
	if (n > w->left)
		n = w->left;
	if (!n)
		return 0;
	iot_owner_of_folio(&o, iot_folio(iot_page_add(vec.bv_page, start >> IOT_PAGE_SHIFT)), w->bio,
			   w->cmd_flags & 1, w->cmd_flags & IOT_REQ_META);
	if (o.cgroup != w->usage.cgroup || o.basis != w->usage.basis || o.pid != w->usage.pid ||
	    o.fsdev != w->usage.fsdev) {
		iot_walk_book(w);
		iot_own(&w->usage, &o);
	}
	w->run += n;
	w->in_vec += n;
	w->in_bio -= n;
	w->left -= n;
	return w->left != 0;
}

__noinline int iot_walk_some(__u32 which)
{
	int i;

	for (i = 0; i < IOT_ROUND; i++)
		if (!iot_walk_step(which))
			return 0;
	return 1;
}

static __noinline int iot_walk_request(struct block_request *r)
{
	__u32 which = iot_which(r), i;
	struct walk *w = bpf_map_lookup_elem(&walks, &which);

	if (!w)
		return 0;
	__builtin_memset(w, 0, sizeof(*w));
	w->usage = r->usage;
	w->bio = r->bio;
	w->left = r->bytes;
	w->ops = 1;
	w->cmd_flags = r->flags;
	w->start = r->start;
	w->is_loop = r->is_loop;
	w->in_bio = FIELD(w->bio, bi_iter.bi_size);
	iot_walk_bio(w);
	for (i = 0; i < IOT_STEPS / IOT_ROUND; i++)
		if (!iot_walk_some(which))
			break;
	if (w->left) { /* the rest goes to the last owner seen */
		iot_lost(IOT_LOST_WALKS, 1);
		w->run += w->left;
	}
	iot_walk_book(w);
	return 0;
}

/*
 * Scan of a bio that writes more than a page: do all its pages have the owner of
 * its first? Nearly always yes, found out by one look at each vector's owner word.
 */
struct scan {
	struct bio *bio;
	struct bio_vec *vec;
	__u64 owner; /* of the first page, packed */
	unsigned long word; /* its owner word */
	__u32 pid;
	__u32 fsdev;
	__u32 left; /* bytes to look at */
	__u32 flags;
	__u32 differ;
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 3);
	__type(key, __u32);
	__type(value, struct scan);
} scans SEC(".maps");

static __always_inline bool iot_scan_differs(struct scan *s, struct folio *folio)
{
	bool notes = iot_notes_live() || iot_have_notes(IOT_LOOP_NOTES);

	if (!notes && iot_folio_owner_word(folio) == s->word)
		return false;
	return iot_folio_owner((__u64)folio, (__u64)s->bio, s->flags) != s->owner;
}

/* Looks at one vector; returns whether to go on. */
__noinline int iot_scan_step(__u32 which)
{
	struct scan *s = bpf_map_lookup_elem(&scans, &which);
	struct bio_vec vec = {};
	struct folio *first, *last;

	if (!s || !s->left)
		return 0;
	bpf_probe_read_kernel(&vec, sizeof(vec), s->vec);
	if (!vec.bv_len)
		return 0;
	first = iot_folio(iot_page_add(vec.bv_page, vec.bv_offset >> IOT_PAGE_SHIFT));
	last = iot_folio(iot_page_add(vec.bv_page, (vec.bv_offset + vec.bv_len - 1) >> IOT_PAGE_SHIFT));
	if (iot_scan_differs(s, first) || (last != first && iot_scan_differs(s, last))) {
		s->differ = 1;
		return 0;
	}
	s->vec++;
	s->left -= vec.bv_len < s->left ? vec.bv_len : s->left;
	return s->left != 0;
}

/* A loop in a loop, each a function: the verifier looks at the rounds of both, not at their product. */
__noinline int iot_scan_some(__u32 which)
{
	int i;

	for (i = 0; i < IOT_ROUND; i++)
		if (!iot_scan_step(which))
			return 0;
	return 1;
}

__noinline int iot_scan_same(__u32 which)
{
	struct scan *s;
	int i;

	for (i = 0; i < IOT_STEPS / IOT_ROUND; i++)
		if (!iot_scan_some(which))
			break;
	s = bpf_map_lookup_elem(&scans, &which);
	return !s || !s->differ;
}

/*
 * Finds the owner of a bio's first page and whether it has all of them: owner,
 * pid, fsdev and differ of the scan. Returns 1 where one owner has the bio.
 */
__noinline int iot_bio_owner(__u64 bio_addr, __u32 cmd_flags, __u32 which)
{
	struct bio *bio = (void *)bio_addr;
	__u32 size = FIELD(bio, bi_iter.bi_size), idx;
	struct bio_vec vec = {}, *vecs;
	struct folio *first;
	struct owner o = {};
	struct scan *s;

	bio = iot_original(bio);
	idx = FIELD(bio, bi_iter.bi_idx);
	vecs = FIELD(bio, bi_io_vec);
	bpf_probe_read_kernel(&vec, sizeof(vec), vecs + idx);
	first = iot_folio(iot_page_add(vec.bv_page, vec.bv_offset >> IOT_PAGE_SHIFT));
	iot_owner_of_folio(&o, first, bio, cmd_flags & 1, cmd_flags & IOT_REQ_META);
	s = bpf_map_lookup_elem(&scans, &which);
	if (!s)
		return 1;
	s->owner = iot_pack(o.cgroup, o.basis);
	s->pid = o.pid;
	s->fsdev = o.fsdev;
	s->differ = 0;
	/* What is read was allocated for who asked. */
	if (!(cmd_flags & 1) || (size <= (1U << IOT_PAGE_SHIFT) && size <= vec.bv_len))
		return 1;
	s->bio = bio;
	s->vec = vecs + idx;
	s->word = iot_folio_owner_word(first);
	s->left = size;
	s->flags = IOT_FOR_WRITE | (cmd_flags & IOT_REQ_META ? IOT_FOR_META : 0);
	return iot_scan_same(which);
}

static __always_inline void iot_owner_of_scan(struct owner *o, const struct scan *s)
{
	iot_unpack(o, s->owner);
	o->pid = s->pid;
	o->fsdev = s->fsdev;
}

/* Looks at every bio of a request; returns whether one owner has them all. */
static __noinline int iot_request_owner(struct block_request *r, struct owner *o)
{
	__u32 which = iot_which(r), flags = r->flags;
	__u64 bio = (__u64)r->bio, first;
	struct scan *s;
	__u32 pid;
	int i;

	if (!iot_bio_owner(bio, flags, which)) {
		s = bpf_map_lookup_elem(&scans, &which);
		if (s)
			iot_owner_of_scan(o, s);
		return false;
	}
	s = bpf_map_lookup_elem(&scans, &which);
	if (!s)
		return true;
	iot_owner_of_scan(o, s);
	first = s->owner;
	pid = s->pid;
	for (i = 0; i < IOT_BIOS; i++) {
		bio = (__u64)FIELD((struct bio *)bio, bi_next);
		if (!bio)
			return true;
		if (!iot_bio_owner(bio, flags, which) || s->owner != first || s->pid != pid)
			return false;
	}
	return false;
}

/* A pointer without its type, as functions of their own and plain arithmetic need it. */
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
	struct inflight *f = bpf_map_lookup_elem(&inflight, &slot), *other;

	if (f && f->rq && f->rq != (__u64)rq) {
		slot ^= 1;
		other = bpf_map_lookup_elem(&inflight, &slot);
		if (other)
			f = other;
	}
	if (!f)
		return;
	f->usage = *usage;
	f->rq = (__u64)rq;
}

static __always_inline struct inflight *iot_recall(struct request *rq)
{
	__u32 slot = iot_slot(rq);
	struct inflight *f = bpf_map_lookup_elem(&inflight, &slot);

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
 * The commonest request at high rates: O_DIRECT of one anonymous page charged to
 * a cgroup. All but the last steps are plain loads. 0 means: look closer.
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
	/* Pointers that carry flag bits cannot be taken apart as pointers: one copy of the page for all. */
	if (bpf_probe_read_kernel(words, sizeof(words), vec->bv_page))
		return 0;
	if (words[bpf_core_field_offset(tail->compound_head) / sizeof(__u64)] & 1)
		return 0;
	if (!(words[bpf_core_field_offset(owned->mapping) / sizeof(__u64)] & IOT_MAPPING_ANON))
		return 0;
	id = iot_word_owner(words[bpf_core_field_offset(owned->memcg_data) / sizeof(__u64)]);
	return id > IOT_ROOT_CGROUP ? iot_pack(id, IOT_PAGE) : 0;
}

/* Finds the owner or owners of a request and books it; flags says whether it goes out or comes back. */
static __always_inline int iot_count(struct request *rq, __u8 flags, bool typed)
{
	struct block_request r = {};
	struct owner o = {};
	struct inflight *f;
	bool single = true;
	__u64 small = 0;

	if (!iot_read_request(&r, rq, typed))
		return 0;
	if (typed && r.bytes <= 1U << IOT_PAGE_SHIFT && iot_op_has_pages(r.flags & IOT_REQ_OP_MASK))
		small = iot_small_owner(rq, r.bytes);
	if (typed)
		rq = (struct request *)iot_untyped(rq);
	r.usage.flags |= flags;
	f = with_latency && flags ? iot_recall(rq) : NULL;
	if (f) {
		o.cgroup = f->usage.cgroup;
		o.basis = f->usage.basis;
		o.pid = f->usage.pid;
		o.fsdev = f->usage.fsdev;
	} else if (small)
		iot_unpack(&o, small);
	else if (!r.bio || !iot_op_has_pages(r.flags & IOT_REQ_OP_MASK))
		iot_owner_without_pages(&o, r.bio);
	else
		single = iot_request_owner(&r, &o);
	iot_own(&r.usage, &o);
	if (!flags && iot_have_notes(IOT_LOOP_NOTES) && bpf_map_lookup_elem(&loop_files, &r.usage.dev)) {
		r.is_loop = true;
		r.start = FIELD(rq, __sector) << 9;
		if (single)
			iot_note_loop(r.usage.dev, iot_pack(o.cgroup, o.basis), o.pid, r.start, r.bytes);
	}
	if (single)
		iot_account(&r.usage, r.bytes, 1);
	else
		iot_walk_request(&r);
	if (flags)
		return 0;
	/* Only a request with one owner keeps it for its way back: see f above. */
	if (with_latency)
		iot_remember(rq, &r.usage);
	else if (with_records)
		iot_block_record(FIELD(rq, __sector), &r.usage, bpf_ktime_get_ns(), 0, r.bytes);
	return 0;
}

/* When everything was attached (CLOCK_MONOTONIC); 0 until then. User space sets it. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} attached_at SEC(".maps");

/* Whether a request was made since we are there to see it. */
static __always_inline bool iot_is_ours(__u64 start)
{
	__u32 zero = 0;
	__u64 *at = bpf_map_lookup_elem(&attached_at, &zero);

	return at && *at && start > *at;
}

static __always_inline int iot_complete(struct request *rq, __u32 error, __u32 bytes, bool typed)
{
	/*
	 * When the request was made. /proc/diskstats adds up the same, and the kernel
	 * keeps it for every request unless queue/iostats is switched off.
	 */
	__u64 start = LOAD(typed, rq, start_time_ns), ns;
	struct request *addr = typed ? (struct request *)iot_untyped(rq) : rq;
	struct inflight *f = iot_recall(addr);
	struct usage_key usage;

	if (!f) {
		/* A flush sequence completes its request once more, without bytes and without an issue. */
		if (bytes && (LOAD(typed, rq, cmd_flags) & IOT_REQ_OP_MASK) < IOT_REQ_DRIVER && iot_is_ours(start))
			iot_lost(IOT_LOST_LATENCIES, 1);
		return 0;
	}
	if (!error && bytes < LOAD(typed, rq, __data_len)) /* more of it is to come */
		return 0;
	usage = f->usage;
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

/* A bio for a leaf device that knows no requests. Its latency is not measured. */
static __always_inline int iot_bio(struct bio *bio)
{
	struct gendisk *disk = iot_bio_disk(bio);
	struct block_request r = {};
	struct owner o = {};
	bool single = true;
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
	if (!r.bytes || !iot_op_has_pages(op))
		iot_owner_without_pages(&o, bio);
	else
		single = iot_request_owner(&r, &o);
	iot_own(&r.usage, &o);
	if (single)
		iot_account(&r.usage, r.bytes, 1);
	else
		iot_walk_request(&r);
	return 0;
}

SEC("raw_tp/block_bio_queue")
int iot_bio_queue(__u64 *ctx)
{
	__u64 bio;

	/*
	 * Two loads, held apart: else clang adds to ctx and loads once, which
	 * verifiers of 5.10 refuse. And only one of them run: a second argument that
	 * the tracepoint does not have is refused when the program is attached.
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
 * The driver gave it back; it will be issued, and counted, again. A request that
 * the driver refused before it started it was never issued, and comes by here
 * all the same.
 */
static __always_inline int iot_requeue(struct request *rq, bool typed)
{
	if (FIELD(rq, state) == MQ_RQ_IDLE)
		return 0;
	return iot_count(rq, IOT_REQUEUED, typed);
}

SEC("raw_tp/block_rq_issue")
int iot_rq_issue(__u64 *ctx)
{
	return iot_count((struct request *)RQ_ARG, 0, false);
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
	return iot_count((struct request *)RQ_ARG, 0, true);
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
