// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//go:build ignore
/*
 * What every source needs: which cgroup makes pages dirty that belong to another
 * one, and which cgroups and modules come and go.
 *
 * writeback_dirty_folio (writeback_dirty_page until 5.15) runs in the context of
 * the writer, for every file system. Nearly always the folio is charged to the
 * writer's cgroup, and nothing is done; else a note is left.
 */
#include "arch.h"
#include "owner.h"

const volatile bool note_inodes = false; /* a source wants the last dirtier of each inode */

/*
 * Runs under the lock of the file's page cache, so never twice at once for a file,
 * and before the page is marked as dirty: if the file is clean, this is its only
 * page to be written.
 */
static __always_inline void iot_note_inode(struct task_struct *task, bool user, struct address_space *mapping)
{
	struct inode *inode = iot_mapping_inode(mapping);
	__u64 key = (__u64)inode;
	struct inode_note *note, fresh = {};
	bool clean;

	if (!iot_inode_is_fuse(inode))
		return;
	clean = iot_mapping_is_clean(mapping);
	note = bpf_map_lookup_elem(&inode_notes, &key);
	if (!user) { /* a loop device, say: its pages tell the owner */
		if (note)
			note->shared = 1;
		return;
	}
	fresh.cgroup = iot_cgroup_id(iot_task_cgroup(task));
	if (by_process)
		fresh.pid = FIELD(task, tgid);
	if (!note) {
		fresh.shared = !clean;
		bpf_map_update_elem(&inode_notes, &key, &fresh, BPF_ANY);
		return;
	}
	if (clean)
		note->shared = 0;
	if (note->cgroup == fresh.cgroup && note->pid == fresh.pid)
		return;
	if (!clean)
		note->shared = 1;
	note->cgroup = fresh.cgroup;
	note->pid = fresh.pid;
}

static __always_inline int iot_dirty(struct folio *folio, struct address_space *mapping)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	bool user = iot_is_user_task(task);
	struct mem_cgroup *memcg;
	struct cgroup *cgroup;
	struct note note = {};
	__u64 key;
	__u32 zero = 0, one = 1;

	if (note_inodes)
		iot_note_inode(task, user, mapping);
	if (!user)
		return 0;
	cgroup = iot_task_cgroup(task);
	folio = iot_folio((void *)folio);
	key = (__u64)folio;
	memcg = iot_word_memcg(iot_folio_owner_word(folio));
	if (!by_process && memcg && FIELD(memcg, css.cgroup) == cgroup) {
		if (iot_have_notes()) /* there may be a note of another writer */
			bpf_map_delete_elem(&notes, &key);
		return 0;
	}
	note.cgroup = iot_cgroup_id(cgroup);
	note.mapping = (__u64)mapping;
	note.index = iot_folio_index(folio);
	note.pid = iot_pid_of(task);
	bpf_map_update_elem(&notes, &key, &note, BPF_ANY);
	bpf_map_update_elem(&notes_live, &zero, &one, BPF_ANY);
	iot_lost(IOT_NOTES_WRITTEN, 1);
	return 0;
}

SEC("raw_tp/writeback_dirty_folio")
int iot_dirty_folio(__u64 *ctx)
{
	return iot_dirty((struct folio *)ctx[0], (struct address_space *)ctx[1]);
}

SEC("raw_tp/writeback_dirty_page")
int iot_dirty_page(__u64 *ctx)
{
	return iot_dirty((struct folio *)ctx[0], (struct address_space *)ctx[1]);
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
