/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The owner rule: a write belongs to the cgroup that dirtied the page, a read
 * to the cgroup that asked for it. Writeback runs in kernel threads and on
 * cgroup v1 the bio's own cgroup is the root, so the pages are asked.
 *
 * In order of trust:
 *  dirtier  a note that host.bpf.c left when a page charged to somebody else was
 *           made dirty
 *  page     the memory cgroup that the page is charged to
 *  bio      the bio's block cgroup, where it lives in the same hierarchy
 *  task     the current task, unless it is a kernel thread
 * and else unattributed, or the kernel's own for metadata.
 *
 * A page of shared memory or the zero page, written or read by O_DIRECT, says
 * nothing about who did it: there the submitter comes first (bio, then task).
 * Anonymous pages are the submitter's own and stay with `page`: the request may
 * be issued from whatever task happened to run the hardware queue.
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

enum pageflags {
	PG_swapbacked = 18,
};

/* Set once the first note is written: until then nobody needs to look for one. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} notes_live SEC(".maps");

static __always_inline bool iot_notes_live(void)
{
	__u32 zero = 0, *live = bpf_map_lookup_elem(&notes_live, &zero);

	return live && *live;
}

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
	struct comm comm = {};

	if (bpf_map_lookup_elem(&comms, &pid))
		return;
	bpf_probe_read_kernel(&comm, sizeof(comm), &task->comm);
	bpf_map_update_elem(&comms, &pid, &comm, BPF_ANY);
}

/* The current task as owner; false in a kernel thread. */
static __always_inline bool iot_owner_from_task(struct owner *o)
{
	struct task_struct *task = (void *)bpf_get_current_task();

	if (!iot_is_user_task(task))
		return false;
	o->cgroup = iot_cgroup_id(iot_task_cgroup(task));
	o->basis = IOT_TASK;
	if (by_process) {
		o->pid = FIELD(task, tgid);
		iot_name_process(task, o->pid);
	}
	return true;
}

static __always_inline bool iot_owner_from_bio(struct owner *o, struct bio *bio)
{
	__u64 id;

	if (!blkcg_usable || !bio)
		return false;
	id = BPF_CORE_READ(bio, bi_blkg, blkcg, css.cgroup, kn, id);
	if (id <= IOT_ROOT_CGROUP)
		return false;
	o->cgroup = id;
	o->basis = IOT_BIO;
	return true;
}

/* With --by process: the current task, if the owner that the page named is its cgroup. */
static __always_inline void iot_owner_add_process(struct owner *o)
{
	struct task_struct *task;

	if (!by_process || o->pid)
		return;
	task = (void *)bpf_get_current_task();
	if (!iot_is_user_task(task) || iot_cgroup_id(iot_task_cgroup(task)) != o->cgroup)
		return;
	o->pid = FIELD(task, tgid);
	iot_name_process(task, o->pid);
}

/* The note on a folio, if it is about this very page of this very file. */
static __always_inline bool iot_owner_from_note(struct owner *o, struct folio *folio,
						struct address_space *mapping)
{
	__u64 key = (__u64)folio;
	struct note *note = bpf_map_lookup_elem(&notes, &key);

	if (!note || note->mapping != (__u64)mapping || note->index != iot_folio_index(folio))
		return false;
	o->cgroup = note->cgroup;
	o->pid = note->pid;
	o->basis = IOT_DIRTIER;
	return true;
}

static __always_inline bool iot_is_shmem(struct folio *folio)
{
	unsigned long flags = 0;

	/* flags is the first word of struct page and struct folio, whatever its type is called */
	bpf_probe_read_kernel(&flags, sizeof(flags), folio);
	return flags & (1UL << bpf_core_enum_value(enum pageflags, PG_swapbacked));
}

/*
 * The owner of one page of a block or network file system request. bio may be
 * NULL. meta: the request is marked as file-system metadata.
 */
static __always_inline void iot_owner_of_folio(struct owner *o, struct folio *folio, struct bio *bio,
					       bool write, bool meta)
{
	struct address_space *mapping = iot_folio_mapping(folio);
	bool file = iot_mapping_is_file(mapping);
	unsigned short mode = 0;

	if (file) {
		if (by_mount)
			o->fsdev = BPF_CORE_READ(mapping, host, i_sb, s_dev);
		if (write && iot_notes_live() && iot_owner_from_note(o, folio, mapping))
			return;
		if (iot_is_shmem(folio) && (iot_owner_from_bio(o, bio) || iot_owner_from_task(o)))
			return;
	}
	o->cgroup = iot_word_owner(iot_folio_owner_word(folio));
	if (o->cgroup > IOT_ROOT_CGROUP) {
		o->basis = IOT_PAGE;
		iot_owner_add_process(o);
		return;
	}
	if (iot_owner_from_bio(o, bio))
		return;
	if (o->cgroup == IOT_ROOT_CGROUP) {
		if (file)
			mode = BPF_CORE_READ(mapping, host, i_mode);
		o->basis = IOT_PAGE;
		if (meta || ((!mapping || (mode & S_IFMT) == S_IFBLK) &&
			     !iot_is_user_task((void *)bpf_get_current_task())))
			o->cgroup = IOT_CGROUP_KERNEL;
		else
			iot_owner_add_process(o);
		return;
	}
	/* Charged to nobody: the zero page, slab and vmalloc buffers, or no memory controller at all. */
	if (!file && !meta && iot_owner_from_task(o))
		return;
	o->cgroup = (meta || !file) ? IOT_CGROUP_KERNEL : IOT_CGROUP_NONE;
	o->basis = IOT_NONE;
}

static __always_inline void iot_owner_without_pages(struct owner *o, struct bio *bio)
{
	if (iot_owner_from_bio(o, bio) || iot_owner_from_task(o))
		return;
	o->cgroup = IOT_CGROUP_KERNEL;
	o->basis = IOT_NONE;
}

#endif
