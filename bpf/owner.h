/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The owner rule: a write belongs to the cgroup that dirtied the page, a read to the
 * cgroup that asked for it. Writeback runs in kernel threads, and on cgroup v1 the
 * bio's own cgroup is the root, so the owner is found through the pages.
 *
 * In order of trust:
 *  dirtier  the note that core.bpf.c leaves when a cgroup dirties a page that is
 *           charged to another one
 *  page     the memory cgroup that the page is charged to
 *  bio      the bio's block cgroup, where it lives in the same hierarchy
 *  task     the current task, unless it is a kernel thread
 * Else the request is unattributed, or the kernel's own if it is metadata.
 *
 * A page of shared memory, or the zero page, does not tell who wrote or read it with
 * O_DIRECT: there the submitter comes first (bio, then task). Anonymous pages are the
 * submitter's own and stay with `page`: any task that happens to run the hardware
 * queue may issue the request.
 */
#ifndef IOTRACE_OWNER_H
#define IOTRACE_OWNER_H

#include "compat.h"
#include "maps.h"

#define IOT_ROOT_CGROUP 1ULL /* kernfs id of the root directory of every hierarchy */
#define S_IFMT 00170000
#define S_IFBLK 0060000

struct owner {
	__u64 cgroup; /* IOT_CGROUP_NONE until found */
	__u32 pid;
	__u32 fsdev;
	__u8 basis;
};

/*
 * An owner in one word: with it the functions that find owners can be global. The
 * verifier looks at a global function once instead of once for each caller, and
 * loading takes a tenth of the time. The basis takes three bits from the upper half of
 * a kernfs id, a generation that never grows so large.
 */
#define IOT_BASIS_SHIFT 61
#define IOT_PACKED_CGROUP ((1ULL << IOT_BASIS_SHIFT) - 1)

static __always_inline __u64 iot_pack(__u64 cgroup, __u64 basis)
{
	return (cgroup & IOT_PACKED_CGROUP) | basis << IOT_BASIS_SHIFT;
}

static __always_inline __u64 iot_packed_cgroup(__u64 packed)
{
	__u64 cgroup = packed & IOT_PACKED_CGROUP;

	return cgroup == (IOT_CGROUP_KERNEL & IOT_PACKED_CGROUP) ? IOT_CGROUP_KERNEL : cgroup;
}

static __always_inline __u8 iot_packed_basis(__u64 packed)
{
	return packed >> IOT_BASIS_SHIFT;
}

enum pageflags {
	PG_head = 16,
	PG_swapbacked = 18,
};

/*
 * Whether there may be notes of a kind; before that, no program looks for one.
 * 0 is for notes, set with the first one; 1 for loop_notes, set by user space.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u32);
} notes_live SEC(".maps");

#define IOT_FOLIO_NOTES 0
#define IOT_LOOP_NOTES 1

static __always_inline bool iot_have_notes(__u32 kind)
{
	__u32 *live = bpf_map_lookup_elem(&notes_live, &kind);

	return live && *live;
}

static __always_inline bool iot_notes_live(void)
{
	return iot_have_notes(IOT_FOLIO_NOTES);
}

/*
 * Owners of pages of a loop device's backing file: those whose requests made its
 * kernel thread touch the page. On cgroup v1, and on v2 without the io controller,
 * the kernel charges these pages to the root.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 131072);
	__type(key, struct file_page);
	__type(value, struct page_note);
} loop_notes SEC(".maps");

static __always_inline struct cgroup *iot_task_cgroup(struct task_struct *task)
{
	struct css_set *set = FIELD(task, cgroups);
	struct cgroup_subsys_state *css = NULL;

	if (!hierarchy_id)
		return FIELD(set, dfl_cgrp);
	bpf_probe_read_kernel(&css, sizeof(css),
			      (void *)set + bpf_core_field_offset(struct css_set, subsys) +
			      bpf_core_enum_value(enum cgroup_subsys_id, memory_cgrp_id) * sizeof(css));
	return FIELD(css, cgroup);
}

static __always_inline __u64 iot_cgroup_id(struct cgroup *cgroup)
{
	return BPF_CORE_READ(cgroup, kn, id);
}

/* The memory cgroup behind an owner word; NULL for slabs and uncharged pages. */
static __always_inline struct mem_cgroup *iot_word_memcg(unsigned long word)
{
	unsigned long ptr = word & ~IOT_OWNER_FLAGS;

	if (!ptr || (word & IOT_OWNER_SLAB))
		return NULL;
	if (iot_owner_is_objcg(word))
		return FIELD((struct obj_cgroup *)ptr, memcg);
	return (struct mem_cgroup *)ptr;
}

static __always_inline __u64 iot_word_owner(unsigned long word)
{
	__u64 ptr = word & ~IOT_OWNER_FLAGS, *dead;
	struct mem_cgroup *memcg;

	if (!ptr || (word & IOT_OWNER_SLAB))
		return IOT_CGROUP_NONE;
	if (iot_owner_is_objcg(word)) {
		dead = bpf_map_lookup_elem(&dead_owners, &ptr);
		if (dead)
			return *dead;
	}
	memcg = iot_word_memcg(word);
	return memcg ? BPF_CORE_READ(memcg, css.cgroup, kn, id) : IOT_CGROUP_NONE;
}

static __always_inline bool iot_is_user_task(struct task_struct *task)
{
	return FIELD(task, tgid) && !(FIELD(task, flags) & PF_KTHREAD);
}

static __always_inline void iot_name_process(struct task_struct *task, __u32 pid)
{
	struct comm comm = {}, *old;

	bpf_probe_read_kernel(&comm, sizeof(comm), &task->comm);
	old = bpf_map_lookup_elem(&comms, &pid);
	/* It may have executed something else since. */
	if (!old || __builtin_memcmp(old, &comm, sizeof(comm)))
		bpf_map_update_elem(&comms, &pid, &comm, BPF_ANY);
}

/* A task as owner; 0 for a kernel thread. */
static __always_inline __u64 iot_owner_of_task(struct task_struct *task)
{
	if (!iot_is_user_task(task))
		return 0;
	return iot_pack(iot_cgroup_id(iot_task_cgroup(task)), IOT_TASK);
}

static __always_inline __u64 iot_owner_from_task(void)
{
	return iot_owner_of_task((void *)bpf_get_current_task());
}

static __always_inline __u64 iot_owner_from_bio(struct bio *bio)
{
	__u64 id;

	if (!blkcg_usable || !bio)
		return 0;
	id = BPF_CORE_READ(bio, bi_blkg, blkcg, css.cgroup, kn, id);
	return id > IOT_ROOT_CGROUP ? iot_pack(id, IOT_BIO) : 0;
}

/* The note on a folio, if it is about this very page of this very file. */
static __always_inline struct note *iot_note_of(struct folio *folio, struct address_space *mapping)
{
	__u64 key = (__u64)folio;
	struct note *note = bpf_map_lookup_elem(&notes, &key);

	if (!note || note->mapping != (__u64)mapping || note->index != iot_folio_index(folio))
		return NULL;
	return note;
}

static __always_inline bool iot_is_shmem(struct folio *folio)
{
	unsigned long flags = 0;

	/* flags is the first word of struct page and struct folio, whatever its type is called */
	bpf_probe_read_kernel(&flags, sizeof(flags), folio);
	return flags & (1UL << bpf_core_enum_value(enum pageflags, PG_swapbacked));
}

#define IOT_FOR_WRITE 1U
#define IOT_FOR_META 2U /* the request is marked as file-system metadata */

static __always_inline struct page_note *iot_loop_note(struct folio *folio, struct address_space *mapping,
						       bool any)
{
	struct inode *inode = FIELD(mapping, host);
	struct file_page page = {
		.ino = iot_inode_number(inode),
		.index = any ? IOT_ANY_PAGE : iot_folio_index(folio),
		.fsdev = BPF_CORE_READ(inode, i_sb, s_dev),
	};

	return bpf_map_lookup_elem(&loop_notes, &page);
}

/* The owner of one folio of a request, packed. bio is 0 where there is none. */
__noinline __u64 iot_folio_owner(__u64 folio_addr, __u64 bio_addr, __u32 flags)
{
	struct folio *folio = (void *)folio_addr;
	struct bio *bio = (void *)bio_addr;
	struct address_space *mapping = iot_folio_mapping(folio);
	bool file = iot_mapping_is_file(mapping);
	bool meta = flags & IOT_FOR_META;
	unsigned short mode = 0;
	bool loops = file && iot_have_notes(IOT_LOOP_NOTES);
	struct page_note *loop;
	struct note *note;
	__u64 owner, id;

	if (loops) {
		loop = iot_loop_note(folio, mapping, false);
		if (loop)
			return loop->owner;
	}
	if (file) {
		if ((flags & IOT_FOR_WRITE) && iot_notes_live()) {
			note = iot_note_of(folio, mapping);
			if (note)
				return iot_pack(note->cgroup, IOT_DIRTIER);
		}
		if (iot_is_shmem(folio)) {
			owner = iot_owner_from_bio(bio);
			if (!owner)
				owner = iot_owner_from_task();
			if (owner)
				return owner;
		}
	}
	id = iot_word_owner(iot_folio_owner_word(folio));
	if (id > IOT_ROOT_CGROUP)
		return iot_pack(id, IOT_PAGE);
	owner = iot_owner_from_bio(bio);
	if (owner)
		return owner;
	if (id == IOT_ROOT_CGROUP) {
		if (meta)
			return iot_pack(IOT_CGROUP_KERNEL, IOT_PAGE);
		if (loops) { /* readahead: a page that was not asked for */
			loop = iot_loop_note(folio, mapping, true);
			if (loop)
				return loop->owner;
		}
		if (file)
			mode = BPF_CORE_READ(mapping, host, i_mode);
		if ((!mapping || (mode & S_IFMT) == S_IFBLK) &&
		    !iot_is_user_task((void *)bpf_get_current_task()))
			return iot_pack(IOT_CGROUP_KERNEL, IOT_PAGE);
		return iot_pack(id, IOT_PAGE);
	}
	/* Not charged: the zero page, slab and vmalloc buffers, or no memory controller at all. */
	if (!file && !meta) {
		owner = iot_owner_from_task();
		if (owner)
			return owner;
	}
	return iot_pack(meta || !file ? IOT_CGROUP_KERNEL : IOT_CGROUP_NONE, IOT_NONE);
}

/*
 * With --by process: the process that dirtied the folio, else the current one if its
 * cgroup is the owner, else 0.
 */
__noinline __u32 iot_folio_pid(__u64 folio_addr, __u64 owner, __u32 flags)
{
	struct folio *folio = (void *)folio_addr;
	struct address_space *mapping = iot_folio_mapping(folio);
	struct task_struct *task;
	struct page_note *loop;
	struct note *note;
	__u32 pid;

	if (iot_mapping_is_file(mapping) && iot_have_notes(IOT_LOOP_NOTES)) {
		loop = iot_loop_note(folio, mapping, false);
		if (loop)
			return loop->pid;
	}
	if ((flags & IOT_FOR_WRITE) && iot_mapping_is_file(mapping)) {
		note = iot_note_of(folio, mapping);
		if (note)
			return note->pid;
	}
	task = (void *)bpf_get_current_task();
	if (!iot_is_user_task(task) || iot_cgroup_id(iot_task_cgroup(task)) != iot_packed_cgroup(owner))
		return 0;
	pid = FIELD(task, tgid);
	iot_name_process(task, pid);
	return pid;
}

static __always_inline void iot_unpack(struct owner *o, __u64 packed)
{
	o->cgroup = iot_packed_cgroup(packed);
	o->basis = iot_packed_basis(packed);
}

/*
 * The owner of one folio of a block or network file system request. bio may be
 * NULL. meta: the request is marked as file-system metadata.
 */
static __always_inline void iot_owner_of_folio(struct owner *o, struct folio *folio, struct bio *bio,
					       bool write, bool meta)
{
	__u32 flags = (write ? IOT_FOR_WRITE : 0) | (meta ? IOT_FOR_META : 0);
	__u64 packed = iot_folio_owner((__u64)folio, (__u64)bio, flags);
	struct address_space *mapping;

	iot_unpack(o, packed);
	if (by_mount) {
		mapping = iot_folio_mapping(folio);
		if (iot_mapping_is_file(mapping))
			o->fsdev = BPF_CORE_READ(mapping, host, i_sb, s_dev);
	}
	if (by_process)
		o->pid = iot_folio_pid((__u64)folio, packed, flags);
}

/* task is the one that is known to have asked, else the current one. */
static __always_inline void iot_owner_without_pages(struct owner *o, struct bio *bio, struct task_struct *task)
{
	__u64 owner = iot_owner_from_bio(bio);

	if (!owner)
		owner = iot_owner_of_task(task);
	if (!owner)
		owner = iot_pack(IOT_CGROUP_KERNEL, IOT_NONE);
	iot_unpack(o, owner);
	if (by_process && iot_is_user_task(task)) {
		o->pid = FIELD(task, tgid);
		iot_name_process(task, o->pid);
	}
}

#endif
