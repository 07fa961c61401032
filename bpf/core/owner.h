/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The owner rule: a write belongs to the cgroup that dirtied the page, a read to the
 * cgroup that asked for it. Writeback runs in kernel threads, and on cgroup v1 the
 * bio's own cgroup is the root, so the owner is found through the pages.
 *
 * In order of trust:
 *  dirtier  the note that core.bpf.c leaves when a cgroup dirties a page
 *  page     the memory cgroup that the page is charged to
 *  journal  the block source only: metadata and journals go by shares of the
 *           transaction, and never by page (block/journal.h)
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

#include "note.h"

#define S_IFMT 00170000
#define S_IFBLK 0060000

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
	if (!memcg)
		return IOT_CGROUP_NONE;
	if (CAN_CAST)
		return CAST(struct mem_cgroup, memcg)->css.cgroup->kn->id;
	return BPF_CORE_READ(memcg, css.cgroup, kn, id);
}

static __always_inline __u64 iot_owner_from_bio(struct bio *bio)
{
	__u64 id;

	if (!blkcg_usable || !bio)
		return 0;
	id = BPF_CORE_READ(bio, bi_blkg, blkcg, css.cgroup, kn, id);
	return id > IOT_ROOT_CGROUP ? iot_pack(id, IOT_BIO) : 0;
}

#define IOT_CGROUP_LEVELS 32

static __always_inline bool iot_is_ancestor(struct cgroup *above, struct cgroup *cgroup)
{
	int i, up = FIELD(cgroup, level) - FIELD(above, level);

	if (up <= 0)
		return false;
	for (i = 0; i < IOT_CGROUP_LEVELS && i < up; i++)
		cgroup = BPF_CORE_READ(cgroup, self.parent, cgroup);
	return cgroup == above;
}

/*
 * Who submitted a bio, packed: its block cgroup, unless that is only above the cgroup of
 * the task (the io controller ends at a slice, say), else the task; 0 if neither tells.
 */
__noinline __u64 iot_submitter(__u64 bio, __u64 task)
{
	__u64 owner = iot_owner_from_bio((struct bio *)bio), of_task = iot_owner_of_task((struct task_struct *)task);
	struct cgroup *cgroup;

	if (!owner || !of_task)
		return owner ? owner : of_task;
	cgroup = BPF_CORE_READ((struct bio *)bio, bi_blkg, blkcg, css.cgroup);
	return iot_is_ancestor(cgroup, iot_task_cgroup((struct task_struct *)task)) ? of_task : owner;
}

/* Sets o to who submitted a bio; o stays without an owner if nothing tells. */
static __always_inline void iot_own_by_submitter(struct owner *o, struct bio *bio, struct task_struct *task)
{
	iot_unpack(o, iot_submitter((__u64)bio, (__u64)task));
	if (by_process && iot_is_user_task(task))
		o->pid = iot_pid_of(task);
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
#define IOT_NO_SUBMITTER 4U /* nothing tells who submitted the bio */

#define IOT_ASK_SUBMITTER (~1ULL) /* no packed owner: see IOT_NO_NOTE */

/* Whether iot_submitter may know a client for which the current kernel thread submits a bio. */
static __always_inline bool iot_may_be_client(struct bio *bio, __u32 flags)
{
	return bio && !(flags & IOT_NO_SUBMITTER) && !iot_is_user_task((void *)bpf_get_current_task());
}

/*
 * The owner of one folio of a request, packed, as far as no note names its dirtier. bio is
 * 0 where there is none. IOT_ASK_SUBMITTER stands for iot_submitter, which the caller
 * asks: one call below another they would need more stack than 5.10 has.
 */
__noinline __u64 iot_folio_owner(__u64 folio_addr, __u64 bio_addr, __u32 flags)
{
	struct folio *folio = (void *)folio_addr;
	struct bio *bio = (void *)bio_addr;
	struct address_space *mapping = iot_folio_mapping(folio);
	bool file = iot_mapping_is_file(mapping);
	bool meta = flags & IOT_FOR_META;
	unsigned short mode = 0;
	void *loops = file ? iot_loop_notes() : NULL;
	struct page_note *loop;
	__u64 owner, id;

	if (loops) {
		loop = iot_loop_note(loops, folio, mapping, false);
		if (loop)
			return loop->owner;
	}
	if (file) {
		if (iot_is_shmem(folio) && !(flags & IOT_NO_SUBMITTER)) {
			if (bio)
				return IOT_ASK_SUBMITTER;
			owner = iot_owner_from_user();
			if (owner)
				return owner;
		}
	}
	id = iot_word_owner(iot_folio_owner_word(folio));
	if (id > IOT_ROOT_CGROUP)
		return iot_pack(id, IOT_PAGE);
	owner = iot_owner_from_bio(bio);
	if (owner) /* writeback is not the current task's */
		return file && (flags & IOT_FOR_WRITE) ? owner : IOT_ASK_SUBMITTER;
	if (id == IOT_ROOT_CGROUP) {
		if (!(flags & IOT_FOR_WRITE) && iot_may_be_client(bio, flags))
			return IOT_ASK_SUBMITTER;
		if (meta)
			return iot_pack(IOT_CGROUP_KERNEL, IOT_PAGE);
		if (loops) { /* readahead: a page that was not asked for */
			loop = iot_loop_note(loops, folio, mapping, true);
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
	if (!meta && (!file || !(flags & IOT_FOR_WRITE))) {
		owner = iot_owner_from_user();
		if (owner)
			return owner;
		if (iot_may_be_client(bio, flags))
			return IOT_ASK_SUBMITTER;
	}
	return iot_pack(meta || !file ? IOT_CGROUP_KERNEL : IOT_CGROUP_NONE, IOT_NONE);
}

/*
 * With --by process, where no note names a dirtier: the current process if its cgroup
 * is the owner, else 0.
 */
__noinline __u32 iot_folio_pid(__u64 folio_addr, __u64 owner)
{
	struct folio *folio = (void *)folio_addr;
	struct address_space *mapping = iot_folio_mapping(folio);
	void *loops = iot_mapping_is_file(mapping) ? iot_loop_notes() : NULL;
	struct task_struct *task;
	struct page_note *loop;

	if (loops) {
		loop = iot_loop_note(loops, folio, mapping, false);
		if (loop)
			return loop->pid;
	}
	task = (void *)bpf_get_current_task();
	if (!iot_is_user_task(task) || iot_cgroup_id(iot_task_cgroup(task)) != iot_packed_cgroup(owner))
		return 0;
	return iot_pid_of(task);
}

/* Sets o to the dirtier of a page of a file, if a note names one. */
static __always_inline bool iot_own_by_note(struct owner *o, struct address_space *mapping, __u64 index)
{
	__u64 packed;

	if (!iot_mapping_is_file(mapping) || !iot_notes_are(IOT_NOTES_LIVE))
		return false;
	packed = iot_dirtier((__u64)mapping, index);
	if (packed == IOT_NO_NOTE)
		return false;
	if (by_process)
		o->pid = iot_dirtier_pid((__u64)mapping, index);
	iot_unpack(o, packed);
	return true;
}

/* Sets o to the owner of a folio without a note: see iot_owner_of_folio. */
static __always_inline void iot_own_by_folio(struct owner *o, struct folio *folio, struct bio *bio, __u32 flags)
{
	__u64 packed = iot_folio_owner((__u64)folio, (__u64)bio, flags);

	if (packed == IOT_ASK_SUBMITTER) {
		packed = iot_submitter((__u64)bio, bpf_get_current_task());
		if (!packed)
			packed = iot_folio_owner((__u64)folio, (__u64)bio, flags | IOT_NO_SUBMITTER);
	}
	if (by_process)
		o->pid = iot_folio_pid((__u64)folio, packed);
	iot_unpack(o, packed);
}

/*
 * The owner of one folio of a block or network file system request. bio may be NULL.
 * flags are IOT_FOR_WRITE and IOT_FOR_META.
 */
static __always_inline void iot_owner_of_folio(struct owner *o, struct folio *folio, struct bio *bio, __u32 flags)
{
	if (!(flags & IOT_FOR_WRITE) || !iot_own_by_note(o, iot_folio_mapping(folio), iot_folio_index(folio)))
		iot_own_by_folio(o, folio, bio, flags);
}

/* task is the one that is known to have asked, else the current one. */
static __always_inline void iot_owner_without_pages(struct owner *o, struct bio *bio, struct task_struct *task)
{
	iot_own_by_submitter(o, bio, task);
	if (o->cgroup == IOT_CGROUP_NONE)
		iot_unpack(o, iot_pack(IOT_CGROUP_KERNEL, IOT_NONE));
}

#endif
