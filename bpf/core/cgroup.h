/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Owners, and how tasks and cgroups lead to them. */
#ifndef IOTRACE_CGROUP_H
#define IOTRACE_CGROUP_H

#include "client.h"
#include "maps.h"
#include "page.h"

#define IOT_ROOT_CGROUP 1ULL /* kernfs id of the root directory of every hierarchy */

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

static __always_inline void iot_unpack(struct owner *o, __u64 packed)
{
	o->cgroup = iot_packed_cgroup(packed);
	o->basis = iot_packed_basis(packed);
}

/* Puts an owner into the key of its row. */
static __always_inline void iot_own(struct usage_key *usage, __u64 packed, __u32 pid)
{
	usage->cgroup = iot_packed_cgroup(packed);
	usage->basis = iot_packed_basis(packed);
	usage->pid = pid;
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

static __always_inline bool iot_is_user_task(struct task_struct *task)
{
	return FIELD(task, tgid) && !(FIELD(task, flags) & PF_KTHREAD);
}

/* A global function: names are rare, and the way to them is long. */
__noinline int iot_name_process(__u64 task_addr, __u32 pid)
{
	struct task_struct *task = (void *)task_addr;
	struct comm comm = {}, *old;

	bpf_probe_read_kernel(&comm, sizeof(comm), &task->comm);
	old = bpf_map_lookup_elem(&comms, &pid);
	/* It may have executed something else since. */
	if (!old || __builtin_memcmp(old, &comm, sizeof(comm)))
		bpf_map_update_elem(&comms, &pid, &comm, BPF_ANY);
	return 0;
}

/* The process of a task for the key of a row: 0 unless rows are kept by process. */
static __always_inline __u32 iot_pid_of(struct task_struct *task)
{
	__u32 pid;

	if (!by_process || FIELD(task, flags) & PF_KTHREAD)
		return 0;
	pid = FIELD(task, tgid);
	iot_name_process((__u64)task, pid);
	return pid;
}

/* A kernel thread as owner: the client that it works for, 0 for most. */
static __always_inline __u64 iot_owner_of_thread(struct task_struct *task)
{
	__u64 client = iot_client_of_task((__u64)task);

	return client ? iot_pack(client, IOT_TASK) : 0;
}

/* A task as owner; 0 for a kernel thread that works for no client. */
static __always_inline __u64 iot_owner_of_task(struct task_struct *task)
{
	if (!iot_is_user_task(task))
		return iot_owner_of_thread(task);
	return iot_pack(iot_cgroup_id(iot_task_cgroup(task)), IOT_TASK);
}

/* The current task as owner; 0 for a kernel thread. Plain loads take a third of the time. */
static __always_inline __u64 iot_owner_from_user(void)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct cgroup_subsys_state *css;
	struct cgroup *cgroup;
	struct css_set *set;

	if (!CAN_CAST)
		return iot_is_user_task(task) ? iot_pack(iot_cgroup_id(iot_task_cgroup(task)), IOT_TASK) : 0;
	task = CAST(struct task_struct, task);
	if (!task->tgid || task->flags & PF_KTHREAD)
		return 0;
	set = task->cgroups;
	if (hierarchy_id) {
		css = set->subsys[bpf_core_enum_value(enum cgroup_subsys_id, memory_cgrp_id)];
		cgroup = css->cgroup;
	} else {
		cgroup = set->dfl_cgrp;
	}
	return iot_pack(cgroup->kn->id, IOT_TASK);
}

/* The current task as owner; 0 for a kernel thread that works for no client. */
static __always_inline __u64 iot_owner_from_task(void)
{
	__u64 owner = iot_owner_from_user();

	return owner ? owner : iot_owner_of_thread((void *)bpf_get_current_task());
}

#endif
