/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Journals (jbd2: ext4, ocfs2) and the metadata that they hold. A block of metadata is
 * in the page cache of the device, charged to the cgroup that read it first or to who
 * mounted the file system, and it is written by the journal's thread. Neither is the
 * one who caused the write.
 *
 * So shares are kept: jbd2_handle_stats says, in the context of the task that changed
 * something, how many blocks it made dirty in the running transaction. The blocks of
 * a commit are dealt out accordingly. Who got a block is noted, so that its owner is
 * the same when it is written to its own place, often much later.
 *
 * The structs of jbd2 may be those of a module: user space reads where their fields
 * are (struct journal_fields).
 */
#ifndef IOTRACE_BLOCK_JOURNAL_H
#define IOTRACE_BLOCK_JOURNAL_H

#include "core/cache.h"
#include "core/file.h"
#include "core/owner.h"
#include "types.h"

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct block_device {
	__u32 bd_dev;
	void *bd_holder; /* a mounted file system, or another one who opened it exclusively */
};

struct bdev_inode {
	struct block_device bdev;
	struct inode vfs_inode;
};

struct buffer_head {
	unsigned long b_state;
	struct buffer_head *b_this_page;
	struct page *b_page;
	__u64 b_blocknr;
	size_t b_size;
	void *b_private;
};

struct inode___device {
	__u32 i_rdev;
};

struct inode___blocks {
	__u8 i_blkbits;
};

struct folio___buffers {
	void *private;
};

struct page___buffers {
	unsigned long private;
};

#pragma clang attribute pop

/* Where fields of jbd2 are, in bytes. */
struct journal_fields {
	__u32 live; /* 0 until there was a journal on this host */
	__u32 shadow; /* the bit of buffer_head.b_state: the block's copy is on its way to the journal (BH_Shadow) */
	__u32 buffer; /* in struct journal_head: b_bh */
	__u32 transaction; /* b_transaction */
	__u32 checkpoint; /* b_cp_transaction */
	__u32 tid; /* in struct transaction_s: t_tid */
	__u32 began; /* t_start_time, ns of CLOCK_MONOTONIC */
	__u32 dev; /* in struct journal_s: j_dev, the device that the journal is on */
	__u32 fsdev; /* j_fs_dev */
	__u32 full; /* a journal had no room in journals */
	__u64 since; /* when the programs were there, ns of CLOCK_MONOTONIC */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct journal_fields);
} journal_layout SEC(".maps");

#define IOT_JOURNAL_OWNERS 128 /* cgroups, or processes with --by process, of a transaction */

struct journal_owner {
	__u64 cgroup;
	__u32 pid;
	__u32 blocks; /* of jbd2, or bytes logged by XFS; 0: free */
};

/* Who made how many blocks of a transaction dirty. */
struct journal_shares {
	__u32 tid;
	__u32 total; /* as in journal_owner */
	__u32 dealt; /* likewise; it begins at random */
	__u32 pad;
	struct journal_owner owners[IOT_JOURNAL_OWNERS];
};

#define IOT_FAST_COMMITS 4 /* callers at once that are remembered */
#define IOT_FAST_NS 10000000000ULL /* and for how long, if the end is not seen */

/* A fast commit of ext4: its caller writes it, one after the other. */
struct fast_commit {
	__u64 since; /* ns; 0: free */
	__u64 cgroup;
	__u32 pid;
	__u32 thread;
};

struct journal {
	__u32 fsdev;
	__u32 committing; /* tid; 0: none */
	__u32 complete; /* the first transaction that was seen from its beginning; 0: none yet */
	__u32 pad;
	__u64 holder; /* of the file system's device; 0: not known yet */
	struct fast_commit fast[IOT_FAST_COMMITS];
	struct journal_shares shares[2]; /* one transaction runs, one commits: by the lowest bit of the tid */
};

/* User space adds those that are there before the programs, and removes those that are gone. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, __u32); /* device of the file system */
	__type(value, struct journal);
} journals SEC(".maps");

/* Journals on a device of their own. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 64);
	__type(key, __u32); /* device of the journal */
	__type(value, __u32); /* device of the file system */
} journal_devices SEC(".maps");

/* A block of metadata by its own place. */
struct journal_block {
	__u64 kib; /* KiB from the start of the device: no block of ext4 is smaller */
	__u32 dev;
	__u32 pad;
};

struct journal_note {
	__u64 cgroup;
	__u32 pid;
	__u32 tid;
};

/*
 * Whose the blocks were when they were written to a journal. What does not fit is
 * unattributed when it is written to its own place. The map takes 6 MiB: user space
 * makes it when there is a journal.
 */
struct journal_note_map {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__uint(key_size, sizeof(struct journal_block));
	__uint(value_size, sizeof(struct journal_note));
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct journal_note_map);
} journal_notes SEC(".maps");

/* What is known about the block that a walk is at, beside its owner. */
struct journal_turn {
	__u32 pid;
	__u32 fsdev;
	__u32 copied; /* it is written to the journal, not to its own place; with --by file */
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 4); /* walks: walk.h */
	__type(key, __u32);
	__type(value, struct journal_turn);
} journal_turns SEC(".maps");

static __always_inline struct journal_fields *iot_journal_layout(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&journal_layout, &zero);
}

static __always_inline void *iot_journal_notes(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&journal_notes, &zero);
}

static __always_inline bool iot_have_journals(void)
{
	struct journal_fields *layout = iot_journal_layout();

	return layout && layout->live;
}

/* Whether a mapping holds the blocks of a device. */
static __always_inline bool iot_is_device(struct address_space *mapping)
{
	return iot_mapping_is_file(mapping) && (BPF_CORE_READ(mapping, host, i_mode) & S_IFMT) == S_IFBLK;
}

static __always_inline __u32 iot_journal_flags(const struct owner *o)
{
	return o->basis == IOT_JOURNAL ? IOT_META : 0;
}

/* The journal of a file system, or the one on a device. */
static __always_inline struct journal *iot_journal(__u32 dev)
{
	struct journal *j = bpf_map_lookup_elem(&journals, &dev);
	__u32 *fsdev;

	if (j)
		return j;
	fsdev = bpf_map_lookup_elem(&journal_devices, &dev);
	return fsdev ? bpf_map_lookup_elem(&journals, fsdev) : NULL;
}

/* What iot_journal_owner found, as an owner. */
static __always_inline void iot_journal_own(struct owner *o, __u64 packed, __u32 which)
{
	struct journal_turn *turn = bpf_map_lookup_elem(&journal_turns, &which);

	iot_unpack(o, packed);
	if (o->cgroup == IOT_CGROUP_NONE)
		o->basis = IOT_NONE;
	if (by_process && turn)
		o->pid = turn->pid;
	if (by_mount && turn) {
		o->fsdev = turn->fsdev;
		if (iot_files_on())
			o->fsdev = turn->copied ? IOT_FILE_JOURNAL : IOT_FILE_METADATA;
	}
}

#define IOT_JOURNAL_KERNEL iot_pack(IOT_CGROUP_KERNEL, IOT_JOURNAL)
#define IOT_JOURNAL_NONE iot_pack(IOT_CGROUP_NONE, IOT_JOURNAL)

/*
 * Whose the next block of a transaction is: each owner in turn gets as many as it made
 * dirty. 0 where the shares are not known, because the transaction began before the
 * programs did.
 */
__noinline __u64 iot_journal_deal(__u32 which, __u32 fsdev, __u32 tid)
{
	struct journal_turn *turn = bpf_map_lookup_elem(&journal_turns, &which);
	struct journal *j = bpf_map_lookup_elem(&journals, &fsdev);
	struct journal_shares *s;
	__u32 at, i;

	if (!j || !turn || !tid || !j->complete || (__s32)(tid - j->complete) < 0)
		return 0;
	s = &j->shares[tid & 1];
	if (s->tid != tid || !s->total)
		return 0;
	at = s->dealt++ % s->total;
	for (i = 0; i < IOT_JOURNAL_OWNERS; i++) {
		if (at < s->owners[i].blocks) {
			turn->pid = s->owners[i].pid;
			return iot_pack(s->owners[i].cgroup, IOT_JOURNAL);
		}
		at -= s->owners[i].blocks;
	}
	return IOT_JOURNAL_NONE; /* one of those that had no room */
}

/* A block of metadata is copied to the journal: whose it is by its note, else by its turn, and then it gets a note. */
__noinline __u64 iot_journal_copied(__u32 which, __u32 fsdev, __u64 kib, __u32 tid)
{
	struct journal_turn *turn = bpf_map_lookup_elem(&journal_turns, &which);
	struct journal_block block = { .kib = kib, .dev = fsdev };
	struct journal_note *note, fresh = { .tid = tid };
	void *notes = iot_journal_notes();
	__u64 owner;

	if (!turn || !notes)
		return 0;
	if (iot_files_on())
		turn->copied = 1;
	note = bpf_map_lookup_elem(notes, &block);
	if (note && note->tid == tid) { /* asked again: on a mirror, say */
		turn->pid = note->pid;
		return iot_pack(note->cgroup, IOT_JOURNAL);
	}
	owner = iot_journal_deal(which, fsdev, tid);
	if (!owner)
		owner = IOT_JOURNAL_KERNEL;
	if (note) { /* of an older transaction: an update of an LRU hash takes several times as long */
		note->cgroup = iot_packed_cgroup(owner);
		note->pid = turn->pid;
		note->tid = tid;
		return owner;
	}
	fresh.cgroup = iot_packed_cgroup(owner);
	fresh.pid = turn->pid;
	bpf_map_update_elem(notes, &block, &fresh, BPF_ANY);
	return owner;
}

/* The caller of the fast commit that is being written: of several, the first waits for none. */
static __always_inline __u64 iot_journal_fast(struct journal *j, struct journal_turn *turn)
{
	__u64 since = ~0ULL, owner = 0, now = bpf_ktime_get_ns();
	struct fast_commit *f;
	int i;

	for (i = 0; i < IOT_FAST_COMMITS; i++) {
		f = &j->fast[i];
		if (!f->since || f->since >= since || now - f->since > IOT_FAST_NS)
			continue;
		since = f->since;
		owner = iot_pack(f->cgroup, IOT_JOURNAL);
		turn->pid = f->pid;
	}
	return owner;
}

/* Who has opened a device for itself alone: a file system, or mkfs; 0: nobody. */
static __always_inline __u64 iot_holder(__u64 mapping)
{
	struct inode *inode = FIELD((struct address_space *)mapping, host);
	struct bdev_inode *device = (void *)inode - bpf_core_field_offset(struct bdev_inode, vfs_inode);

	return (__u64)BPF_CORE_READ(device, bdev.bd_holder);
}

/* A block of a device whose copy is not on its way; 0: it has nothing to do with a journal. */
__noinline __u64 iot_journal_placed(__u32 which, __u32 dev, __u64 kib, __u64 head, __u64 mapping)
{
	struct journal_turn *turn = bpf_map_lookup_elem(&journal_turns, &which);
	struct journal_fields *layout = iot_journal_layout();
	struct journal_block block = { .kib = kib, .dev = dev };
	struct journal *j = iot_journal(dev);
	void *notes = iot_journal_notes();
	struct journal_note *note;
	__u64 owner, transaction, holder;
	__u32 tid;

	if (!turn || !layout || !notes)
		return 0;
	if (!head) {
		holder = iot_holder(mapping);
		/* Not mounted, or not any more: its pages are those of who writes to it. */
		if (!holder || (j && j->holder && j->fsdev == dev && j->holder != holder))
			return 0;
	}
	if (!j)
		return layout->full ? IOT_JOURNAL_NONE : 0;
	note = bpf_map_lookup_elem(notes, &block);
	if (note) {
		turn->pid = note->pid;
		return iot_pack(note->cgroup, IOT_JOURNAL);
	}
	if (head) {
		transaction = iot_word_at(head + layout->checkpoint);
		tid = transaction ? iot_u32_at(transaction + layout->tid) : 0;
		if (!tid || !j->complete || (__s32)(tid - j->complete) < 0)
			return IOT_JOURNAL_KERNEL; /* made dirty before the programs were there */
		owner = iot_journal_deal(which, j->fsdev, tid);
		return owner ? owner : IOT_JOURNAL_NONE;
	}
	/* A descriptor or commit block, or a superblock. */
	if (iot_files_on())
		turn->copied = 1;
	owner = iot_journal_deal(which, j->fsdev, j->committing);
	if (!owner)
		owner = iot_journal_fast(j, turn);
	return owner ? owner : IOT_JOURNAL_KERNEL;
}

/* The journal_head of a buffer; 0 if it is in no transaction. */
static __always_inline __u64 iot_journal_head(struct journal_fields *layout, struct buffer_head *bh)
{
	__u64 head = (__u64)FIELD(bh, b_private);

	return head && iot_word_at(head + layout->buffer) == (__u64)bh ? head : 0;
}

/* Blocks of a folio that are looked at: 256 KiB of 4 KiB each. */
#define IOT_BUFFERS 64

/* The buffer at a place in a folio, bytes from its beginning; 0 if there is none. */
__noinline __u64 iot_buffer_at(__u64 folio, __u32 at)
{
	struct buffer_head *bh;
	__u32 size;
	int i;

	if (bpf_core_type_exists(struct folio))
		bh = FIELD((struct folio___buffers *)folio, private);
	else
		bh = (void *)FIELD((struct page___buffers *)folio, private);
	for (i = 0; i < IOT_BUFFERS && bh; i++) {
		size = FIELD(bh, b_size);
		if (at < size)
			return (__u64)bh;
		at -= size;
		bh = FIELD(bh, b_this_page);
	}
	return 0;
}

static __always_inline void iot_journal_turn(__u32 which, __u32 fsdev)
{
	struct journal_turn *turn = bpf_map_lookup_elem(&journal_turns, &which);

	if (!turn)
		return;
	turn->pid = 0;
	turn->fsdev = fsdev;
	if (iot_files_on())
		turn->copied = 0;
}

/*
 * The owner of a block in the page cache of a device, packed; 0 if no journal has to do
 * with it. A commit writes the very page of a block to the journal: no copy is made,
 * and only a bit of its buffer tells that it is not written to its own place.
 */
__noinline __u64 iot_journal_owner(__u32 which, __u64 folio, __u32 offset)
{
	struct address_space *mapping = iot_folio_mapping((struct folio *)folio);
	struct journal_fields *layout = iot_journal_layout();
	__u32 dev = FIELD((struct inode___device *)FIELD(mapping, host), i_rdev);
	struct journal *j = iot_journal(dev);
	__u64 kib = ((__u64)iot_folio_index((struct folio *)folio) << (IOT_PAGE_SHIFT - 10)) + (offset >> 10);
	__u64 head = 0, transaction;
	struct buffer_head *bh;

	if (!layout || (!j && !layout->full))
		return 0;
	iot_journal_turn(which, j ? j->fsdev : 0);
	bh = (void *)iot_buffer_at(folio, offset);
	if (bh)
		head = iot_journal_head(layout, bh);
	if (!j || !head || !(FIELD(bh, b_state) >> (layout->shadow & 63) & 1))
		return iot_journal_placed(which, dev, kib, head, (__u64)mapping);
	transaction = iot_word_at(head + layout->transaction);
	return iot_journal_copied(which, j->fsdev, kib, transaction ? iot_u32_at(transaction + layout->tid) : 0);
}

/*
 * The owner of a block that had to be copied in memory before it was written to the
 * journal, because somebody is changing it: its page is nobody's, and its buffer leads
 * to the one of the block. 0: not such a page.
 */
__noinline __u64 iot_journal_copy(__u32 which, __u64 folio, __u64 bio)
{
	struct buffer_head *bh = FIELD((struct bio *)bio, bi_private), *original;
	struct journal_fields *layout = iot_journal_layout();
	struct address_space *mapping;
	__u64 head, transaction, at;
	struct journal *j;

	if (!bh || !layout || !iot_in_folio((__u64)FIELD(bh, b_page), folio))
		return 0;
	original = FIELD(bh, b_private);
	head = original ? iot_journal_head(layout, original) : 0;
	if (!head)
		return 0;
	mapping = iot_folio_mapping(iot_folio(FIELD(original, b_page)));
	if (!iot_is_device(mapping))
		return 0; /* data=journal: a page of a file */
	j = iot_journal(FIELD((struct inode___device *)FIELD(mapping, host), i_rdev));
	if (!j)
		return 0;
	iot_journal_turn(which, j->fsdev);
	at = FIELD(original, b_blocknr) * FIELD(original, b_size);
	transaction = iot_word_at(head + layout->transaction);
	return iot_journal_copied(which, j->fsdev, at >> 10, transaction ? iot_u32_at(transaction + layout->tid) : 0);
}

/* What follows is called by the programs that keep the shares. */

/* Too large for the stack. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct journal);
} no_journal SEC(".maps");

/* The journal of a file system that may have been mounted just now. */
static __always_inline struct journal *iot_journal_made(__u32 fsdev, __u32 tid)
{
	struct journal *j = bpf_map_lookup_elem(&journals, &fsdev), *none;
	struct journal_fields *layout;
	__u32 zero = 0;

	if (j)
		return j;
	none = bpf_map_lookup_elem(&no_journal, &zero);
	if (!none)
		return NULL;
	bpf_map_update_elem(&journals, &fsdev, none, BPF_NOEXIST);
	j = bpf_map_lookup_elem(&journals, &fsdev);
	if (!j) {
		layout = iot_journal_layout();
		if (layout)
			layout->full = 1;
		return NULL;
	}
	j->fsdev = fsdev;
	j->complete = tid;
	return j;
}

static __always_inline void iot_shares_begin(struct journal_shares *s, __u32 tid)
{
	__u32 i;

	s->tid = tid;
	s->total = 0;
	s->dealt = iot_hash(tid, 32); /* anywhere, and for two tracers the same */
	for (i = 0; i < IOT_JOURNAL_OWNERS; i++)
		s->owners[i].blocks = 0;
}

/*
 * Adds blocks to a share. Owners begin their search at different places: two of them
 * that take a free one at once would share it.
 */
static __always_inline void iot_shares_add(struct journal_shares *s, __u64 cgroup, __u32 pid, __u32 blocks)
{
	__u32 begin = (cgroup ^ cgroup >> 7) + pid * 31, i;
	struct journal_owner *o;

	__sync_fetch_and_add(&s->total, blocks);
	for (i = 0; i < IOT_JOURNAL_OWNERS; i++) {
		o = &s->owners[(begin + i) & (IOT_JOURNAL_OWNERS - 1)];
		if (!o->blocks) {
			o->cgroup = cgroup;
			o->pid = pid;
		} else if (o->cgroup != cgroup || o->pid != pid) {
			continue;
		}
		__sync_fetch_and_add(&o->blocks, blocks);
		return;
	}
}

struct journal_client {
	__u64 cgroup;
	__u32 pid;
	__u32 stays; /* beyond the end of a transaction */
};

/*
 * For whom a kernel thread works: the owner of the pages for which it looks for blocks.
 * Each file that is written back changes this, so it is a table of the threads, in sets of
 * two, instead of a hash. What is pushed out of it is the kernel's.
 */
#define IOT_WORKER_BITS 10

struct journal_worker {
	__u32 thread; /* 0: free */
	__u32 pad;
	struct journal_client client;
};

struct journal_worker journal_workers[2 << IOT_WORKER_BITS];

static __always_inline struct journal_worker *iot_worker_at(__u32 thread, __u32 way)
{
	__u32 slot = iot_hash(thread, IOT_WORKER_BITS) << 1 | way;

	return &journal_workers[slot & ((2 << IOT_WORKER_BITS) - 1)];
}

/* The place of a kernel thread; NULL where it works for nobody that is known. */
static __always_inline struct journal_worker *iot_worker(__u32 thread)
{
	struct journal_worker *w = iot_worker_at(thread, 0);

	if (w->thread == thread)
		return w;
	w = iot_worker_at(thread, 1);
	return w->thread == thread ? w : NULL;
}

static __always_inline void iot_works_for(__u32 thread, const struct journal_client *client)
{
	struct journal_worker *w = iot_worker(thread);

	if (!w) {
		w = iot_worker_at(thread, 0);
		if (w->thread)
			w = iot_worker_at(thread, 1);
	}
	w->thread = 0; /* the one that is pushed out must not have what is written next */
	barrier();
	w->client = *client;
	barrier();
	w->thread = thread;
}

/* The owner of a page of a file that will be written; none if it has no note and is not cached. */
static __always_inline void iot_owner_of_page(struct owner *o, __u64 mapping, __u64 index)
{
	__u64 folio;

	if (iot_own_by_note(o, (void *)mapping, index))
		return;
	folio = iot_cached_folio(mapping, index);
	if (folio)
		iot_own_by_folio(o, (void *)folio, NULL, IOT_FOR_WRITE);
}

/*
 * Delayed allocation: the blocks of a file's pages are found by the kernel thread that
 * writes them. The metadata that this makes dirty is the pages' owner's.
 */
static __always_inline int iot_journal_map(struct inode *inode, __u32 block)
{
	struct journal_client client = {};
	struct owner o = {};
	__u64 index = block;
	__u32 thread;
	__u8 bits;

	if (iot_owner_from_task())
		return 0;
	bits = FIELD((struct inode___blocks *)inode, i_blkbits);
	index = bits < IOT_PAGE_SHIFT ? index >> ((IOT_PAGE_SHIFT - bits) & 31) : index << ((bits - IOT_PAGE_SHIFT) & 31);
	iot_owner_of_page(&o, (__u64)inode + bpf_core_field_offset(struct inode, i_data), index);
	if (!o.cgroup)
		return 0;
	client.cgroup = o.cgroup;
	client.pid = o.pid;
	thread = bpf_get_current_pid_tgid();
	iot_works_for(thread, &client);
	return 0;
}

/*
 * Blocks of a transaction are an owner's. Global: the verifier would look at its loops once
 * for each kind of owner.
 */
__noinline int iot_journal_share(__u32 fsdev, __u32 tid, __u64 cgroup, __u32 pid, __u32 blocks)
{
	struct journal *j = iot_journal_made(fsdev, tid);
	struct journal_shares *s;

	if (!j)
		return 0;
	s = &j->shares[tid & 1];
	if (s->tid != tid) { /* no commit before it was seen: it is the first one */
		iot_shares_begin(s, tid);
		if (j->complete)
			j->complete = tid;
	}
	iot_shares_add(s, cgroup, pid, blocks);
	return 0;
}

/* A handle ends: it made so many blocks dirty that the transaction did not have yet; less than 1 happens. */
static __always_inline int iot_journal_handle(__u32 fsdev, __u32 tid, __s32 blocks)
{
	__u64 cgroup = IOT_CGROUP_KERNEL, owner;
	struct journal_worker *worker;
	__u32 pid = 0;

	if (blocks <= 0)
		return 0;
	owner = iot_owner_from_task();
	if (owner) {
		cgroup = iot_packed_cgroup(owner);
		pid = iot_pid_of((void *)bpf_get_current_task());
	} else {
		worker = iot_worker(bpf_get_current_pid_tgid());
		if (worker) {
			cgroup = worker->client.cgroup;
			pid = worker->client.pid;
			worker->thread = 0;
		}
	}
	return iot_journal_share(fsdev, tid, cgroup, pid, blocks);
}

/* A commit begins. The next transaction begins after this: its tid is the next one. */
static __always_inline int iot_journal_commit(__u64 journal, __u64 transaction)
{
	struct journal_fields *layout = iot_journal_layout();
	__u32 fsdev, dev, tid;
	struct journal *j;

	if (!layout)
		return 0;
	fsdev = FIELD((struct block_device *)iot_word_at(journal + layout->fsdev), bd_dev);
	dev = FIELD((struct block_device *)iot_word_at(journal + layout->dev), bd_dev);
	tid = iot_u32_at(transaction + layout->tid);
	if (dev != fsdev)
		bpf_map_update_elem(&journal_devices, &dev, &fsdev, BPF_ANY);
	j = iot_journal_made(fsdev, tid + 1);
	if (!j)
		return 0;
	j->holder = (__u64)FIELD((struct block_device *)iot_word_at(journal + layout->fsdev), bd_holder);
	iot_shares_begin(&j->shares[(tid + 1) & 1], tid + 1);
	if (!j->complete)
		j->complete = tid + (iot_word_at(transaction + layout->began) <= layout->since);
	j->committing = tid;
	return 0;
}

static __always_inline int iot_journal_committed(__u64 journal)
{
	struct journal_fields *layout = iot_journal_layout();
	struct journal *j;
	__u32 fsdev;

	if (!layout)
		return 0;
	fsdev = FIELD((struct block_device *)iot_word_at(journal + layout->fsdev), bd_dev);
	j = bpf_map_lookup_elem(&journals, &fsdev);
	if (j)
		j->committing = 0;
	return 0;
}

static __always_inline int iot_fast_commit(struct super_block *sb)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	__u32 fsdev = FIELD(sb, s_dev);
	struct journal *j = bpf_map_lookup_elem(&journals, &fsdev);
	__u64 now = bpf_ktime_get_ns(), owner;
	struct fast_commit *f;
	int i;

	if (!j)
		return 0;
	owner = iot_owner_from_task();
	if (!owner)
		return 0;
	for (i = 0; i < IOT_FAST_COMMITS; i++) {
		f = &j->fast[i];
		if (f->since && now - f->since <= IOT_FAST_NS)
			continue;
		f->thread = bpf_get_current_pid_tgid();
		f->cgroup = iot_packed_cgroup(owner);
		f->pid = iot_pid_of(task);
		f->since = now;
		return 0;
	}
	return 0;
}

static __always_inline int iot_fast_committed(struct super_block *sb)
{
	__u32 fsdev = FIELD(sb, s_dev), thread = bpf_get_current_pid_tgid();
	struct journal *j = bpf_map_lookup_elem(&journals, &fsdev);
	int i;

	if (!j)
		return 0;
	for (i = 0; i < IOT_FAST_COMMITS; i++)
		if (j->fast[i].since && j->fast[i].thread == thread)
			j->fast[i].since = 0;
	return 0;
}

#endif
