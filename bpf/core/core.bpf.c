// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//go:build ignore
/*
 * What every source needs: who makes which pages dirty, and which cgroups and modules come and go.
 *
 * writeback_dirty_folio (writeback_dirty_page until 5.15) runs in the context of
 * the writer, for every file system. Nearly always the file has a note of the same
 * writer, and nothing is done.
 */
#include "arch.h"
#include "dirty.h"
#include "owner.h"

/* Whether a page is charged to a cgroup: then its owner is known without a note. */
static __always_inline bool iot_page_tells(const struct folio *folio, __u64 cgroup)
{
	struct mem_cgroup *memcg;

	if (by_process)
		return false;
	memcg = iot_word_memcg(iot_folio_owner_word(folio));
	return memcg && BPF_CORE_READ(memcg, css.cgroup, kn, id) == cgroup;
}

/*
 * A folio becomes dirty, and its file has no note that says so already. This runs under
 * the lock of the file's page cache, so never twice at once for a file, and before the
 * folio is marked as dirty: if the file is clean, this is its only one to be written.
 */
__noinline int iot_dirty_other(__u64 page, __u64 mapping, __u64 cgroup, __u32 pid)
{
	struct folio *folio = iot_folio((void *)page);
	struct inode_note *note = iot_inode_note(mapping);

	if (cgroup && pid)
		iot_pid_of((void *)bpf_get_current_task());
	if (iot_mapping_is_clean((void *)mapping)) {
		if ((note || cgroup) && !iot_note_inode(mapping, cgroup, pid, 0) && !iot_page_tells(folio, cgroup))
			iot_lose_inode(mapping);
		return 0;
	}
	if (!note || note->ino != iot_mapping_ino(mapping)) {
		/* Who made it dirty is not known: those that its pages are charged to. */
		if (!cgroup || iot_page_tells(folio, cgroup))
			return 0;
		if (!iot_note_inode(mapping, 0, 0, 1)) {
			iot_lose_inode(mapping);
			return 0;
		}
		note = iot_inode_note(mapping);
		if (!note)
			return 0;
	}
	if (!note->cgroup && cgroup && iot_page_tells(folio, cgroup))
		cgroup = 0;
	return iot_note_pages_dirty(mapping, iot_folio_index(folio), iot_folio_size(folio), cgroup, pid);
}

static __always_inline int iot_dirty(__u64 page, __u64 mapping)
{
	__u64 cgroup = iot_packed_cgroup(iot_owner_from_task());
	__u32 pid = by_process && cgroup && !iot_is_client(cgroup) ? bpf_get_current_pid_tgid() >> 32 : 0;
	struct inode_note *note = iot_inode_note(mapping);
	__u32 guess = 0;

	if (iot_notes_are(IOT_FAULTS_UNSEEN) && iot_is_guess(page, mapping))
		guess = IOT_NOTE_GUESS;
	/* Nearly always: the next folio of a file with one writer. */
	if (note && iot_is_dirtier(note, cgroup, pid) && (note->state & ~IOT_NOTE_GUESS) == 0 &&
	    note->ino == iot_mapping_ino(mapping)) {
		note->state |= guess;
		return 0;
	}
	iot_dirty_other(page, mapping, cgroup, pid);
	if (guess) {
		note = iot_inode_note(mapping);
		if (note)
			note->state |= guess;
	}
	return 0;
}

SEC("raw_tp/writeback_dirty_folio")
int iot_dirty_folio(__u64 *ctx)
{
	return iot_dirty(ctx[0], ctx[1]);
}

SEC("raw_tp/writeback_dirty_page")
int iot_dirty_page(__u64 *ctx)
{
	return iot_dirty(ctx[0], ctx[1]);
}

/*
 * A call writes into a file that has no note that says so already. A folio of many
 * pages becomes dirty once, with the first write into it: those of others into the
 * same folio show here only. What is clean will become dirty, and then iot_dirty runs.
 */
__noinline int iot_write_other(__u64 mapping, __u64 pos, __u64 len, __u64 cgroup, __u32 pid)
{
	__u64 index = pos >> IOT_PAGE_SHIFT;
	struct inode_note *note;

	if (!len || iot_mapping_is_clean((void *)mapping))
		return 0;
	note = iot_inode_note(mapping);
	if (cgroup && pid)
		iot_pid_of((void *)bpf_get_current_task());
	if (!note || note->ino != iot_mapping_ino(mapping)) {
		if (!cgroup)
			return 0;
		if (!iot_note_inode(mapping, 0, 0, 1)) {
			iot_lose_inode(mapping);
			return 0;
		}
	}
	return iot_note_pages_dirty(mapping, index, ((pos + len - 1) >> IOT_PAGE_SHIFT) + 1 - index, cgroup, pid);
}

static __always_inline int iot_write(__u64 mapping, __u64 pos, __u64 len)
{
	__u64 cgroup = iot_packed_cgroup(iot_owner_from_task());
	__u32 pid = by_process && cgroup && !iot_is_client(cgroup) ? bpf_get_current_pid_tgid() >> 32 : 0;
	struct inode_note *note = iot_inode_note(mapping);

	if (note && iot_is_dirtier(note, cgroup, pid) && !note->state)
		return 0;
	return iot_write_other(mapping, pos, len, cgroup, pid);
}

static __always_inline __u64 iot_inode_mapping(__u64 inode)
{
	return inode + bpf_core_field_offset(struct inode, i_data);
}

/* XFS and others that use iomap; since 5.15 (f4b896c213f0, "iomap: add the new iomap_iter model"). */
struct iomap_iter {
	struct inode *inode;
	__s64 pos;
	__u64 len;
	unsigned int flags;
} __attribute__((preserve_access_index));

/* include/linux/iomap.h, since 4.8 */
#define IOT_IOMAP_WRITE 1U
#define IOT_IOMAP_FAULT 8U /* a whole folio becomes writable in a mapping */
#define IOT_IOMAP_DIRECT 16U

static __always_inline int iot_iomap_write(struct iomap_iter *iter)
{
	if ((FIELD(iter, flags) & (IOT_IOMAP_WRITE | IOT_IOMAP_FAULT | IOT_IOMAP_DIRECT)) != IOT_IOMAP_WRITE)
		return 0;
	return iot_write(iot_inode_mapping((__u64)FIELD(iter, inode)), FIELD(iter, pos), FIELD(iter, len));
}

/*
 * At three tracepoints, because the verifier looks at each program by itself: iomap_iter
 * passes its iterator and the address of the file system's functions. ext4_da_write_begin
 * and ext4_write_begin (without delayed allocation, and with data=journal) pass inode,
 * position and length; until 5.18 flags as well. No position is as large as an address.
 */
SEC("raw_tp/iomap_iter")
int iot_write_call(__u64 *ctx)
{
	if ((__s64)ctx[1] < 0)
		return iot_iomap_write((struct iomap_iter *)ctx[0]);
	return iot_write(iot_inode_mapping(ctx[0]), ctx[1], (__u32)ctx[2]);
}

struct file___mapped {
	struct address_space *f_mapping;
} __attribute__((preserve_access_index));

struct vm_area_struct {
	struct file___mapped *vm_file;
} __attribute__((preserve_access_index));

struct vm_fault {
	struct vm_area_struct *vma;
	unsigned long pgoff;
} __attribute__((preserve_access_index));

/* A store into a page of a mapped file, the first one since the page was written back. */
static __always_inline int iot_fault(__u64 vmf)
{
	struct vm_fault *fault = (struct vm_fault *)vmf;
	struct address_space *mapping = BPF_CORE_READ(fault, vma, vm_file, f_mapping);

	return iot_write((__u64)mapping, FIELD(fault, pgoff) << IOT_PAGE_SHIFT, 1);
}

SEC("fentry/do_page_mkwrite")
int iot_fault_fentry(__u64 *ctx)
{
	return iot_fault(iot_arg(ctx, 0));
}

SEC("kprobe/do_page_mkwrite")
int iot_fault_kprobe(__u64 *ctx)
{
	return iot_fault(IOT_PARM1(ctx));
}

/* Too large for the stack. One for each kind: programs may be preempted. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, IOT_MODULE_FREED + 1);
	__type(key, __u32);
	__type(value, struct notice);
} draft SEC(".maps");

static __always_inline void iot_notify(__u32 kind, __u64 cgroup, const char *text)
{
	struct notice *n = bpf_map_lookup_elem(&draft, &kind);
	long len;

	if (!n)
		return;
	n->kind = kind;
	n->cgroup = cgroup;
	len = bpf_probe_read_kernel_str(n->text, sizeof(n->text), text);
	n->len = len > 0 ? len : 0;
	if (n->len > sizeof(n->text))
		return;
	if (bpf_ringbuf_output(&notices, n, offsetof(struct notice, text) + n->len, 0))
		iot_lost(IOT_LOST_NOTICES, 1);
}

static __always_inline int iot_cgroup_event(struct cgroup *cgroup, const char *path, __u32 kind)
{
	if (BPF_CORE_READ(cgroup, root, hierarchy_id) == (int)hierarchy_id)
		iot_notify(kind, iot_cgroup_id(cgroup), path);
	return 0;
}

SEC("raw_tp/cgroup_mkdir")
int iot_cgroup_mkdir(__u64 *ctx)
{
	return iot_cgroup_event((struct cgroup *)ctx[0], (const char *)ctx[1], IOT_CGROUP_CREATED);
}

SEC("raw_tp/cgroup_rmdir")
int iot_cgroup_rmdir(__u64 *ctx)
{
	return iot_cgroup_event((struct cgroup *)ctx[0], (const char *)ctx[1], IOT_CGROUP_REMOVED);
}

SEC("raw_tp/module_load")
int iot_module_load(__u64 *ctx)
{
	struct module *module = (struct module *)ctx[0];

	iot_notify(IOT_MODULE_LOADED, 0, (const char *)&module->name);
	return 0;
}

SEC("raw_tp/module_free")
int iot_module_free(__u64 *ctx)
{
	struct module *module = (struct module *)ctx[0];

	iot_notify(IOT_MODULE_FREED, 0, (const char *)&module->name);
	return 0;
}

/*
 * Since 7.1 a memory cgroup that goes offline gives its pages to its parent: its
 * obj_cgroups point there. Late writeback of a removed container would count for its
 * pod or for the root, so remember the cgroup of each obj_cgroup.
 */
struct mem_cgroup_per_node___7_1 {
	struct obj_cgroup *objcg;
	struct obj_cgroup *orig_objcg;
} __attribute__((preserve_access_index));

struct mem_cgroup___7_1 {
	struct cgroup_subsys_state css;
	struct mem_cgroup_per_node___7_1 *nodeinfo[1];
} __attribute__((preserve_access_index));

#define IOT_NODES 64

const volatile __u32 nodes = 1;

static __always_inline void iot_expire(__u64 objcg, __u64 cgroup)
{
	if (objcg)
		bpf_map_update_elem(&dead_owners, &objcg, &cgroup, BPF_ANY);
}

static __always_inline int iot_offline(struct cgroup_subsys_state *css)
{
	struct mem_cgroup___7_1 *memcg = (void *)css; /* css is its first member */
	struct mem_cgroup_per_node___7_1 *node = NULL;
	__u64 cgroup = BPF_CORE_READ(css, cgroup, kn, id);
	__u32 i;

	if (!bpf_core_field_exists(node->orig_objcg))
		return 0;
	for (i = 0; i < IOT_NODES && i < nodes; i++) {
		node = NULL;
		bpf_probe_read_kernel(&node, sizeof(node),
				      (void *)memcg + bpf_core_field_offset(memcg->nodeinfo) + i * sizeof(node));
		if (!node)
			continue;
		iot_expire((__u64)FIELD(node, objcg), cgroup);
		iot_expire((__u64)FIELD(node, orig_objcg), cgroup);
	}
	return 0;
}

SEC("fentry/mem_cgroup_css_offline")
int iot_memcg_offline(__u64 *ctx)
{
	return iot_offline((struct cgroup_subsys_state *)ctx[0]);
}

SEC("kprobe/mem_cgroup_css_offline")
int iot_memcg_offline_kprobe(__u64 *ctx)
{
	return iot_offline((struct cgroup_subsys_state *)IOT_PARM1(ctx));
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
