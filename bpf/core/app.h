/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The application level: calls of a file system's read and write functions, with their
 * results. A program at the function's exit sees both; where only return probes can be
 * had, the entry is noted by thread.
 *
 * A source includes this after it said which it is: IOT_APP_SOURCE.
 */
#ifndef IOTRACE_APP_H
#define IOTRACE_APP_H

#include "account.h"
#include "cgroup.h"
#include "file.h"

#define IOT_EAGAIN (-11) /* tried without blocking: the kernel tries once more */
#define IOT_EIOCBQUEUED (-529) /* completes later, its bytes are booked then */

/* The file system of a call between its entry and its return. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64); /* pid and tid */
	__type(value, __u64); /* iot_app_place */
} app_calls SEC(".maps");

/* The file system of a file and, in the upper half, with --by file the file. */
static __always_inline __u64 iot_app_place(struct file *file)
{
	__u64 place = iot_file_dev(file);

	if (iot_files_on())
		place |= (__u64)iot_file_of((__u64)FIELD(file, f_inode), 0, 0, 0) << 32;
	return place;
}

/* A call by the current task returned: a number of bytes, or an error. */
static __always_inline int iot_app(__u64 place, __u8 op, __s64 result)
{
	struct usage_key usage = { .source = IOT_APP_SOURCE, .op = op, .dev = place, .fsdev = place >> 32, .flags = IOT_APP };
	struct task_struct *task = (void *)bpf_get_current_task();
	__u64 owner = iot_owner_of_task(task);

	if (result == IOT_EAGAIN)
		return 0;
	if (owner)
		iot_own(&usage, owner, iot_pid_of(task));
	else
		iot_own(&usage, iot_pack(IOT_CGROUP_KERNEL, IOT_NONE), 0);
	iot_account(&usage, result > 0 ? result : 0, 1);
	if (result < 0 && result != IOT_EIOCBQUEUED) {
		usage.flags |= IOT_ERROR;
		iot_account(&usage, 0, 1);
	}
	return 0;
}

static __always_inline int iot_app_iter(struct kiocb *iocb, __u8 op, __s64 result)
{
	return iot_app(iot_app_place(FIELD(iocb, ki_filp)), op, result);
}

static __always_inline int iot_app_enter(__u64 place)
{
	__u64 thread = bpf_get_current_pid_tgid();

	bpf_map_update_elem(&app_calls, &thread, &place, BPF_ANY);
	return 0;
}

static __always_inline int iot_app_enter_iter(struct kiocb *iocb)
{
	return iot_app_enter(iot_app_place(FIELD(iocb, ki_filp)));
}

static __always_inline int iot_app_leave(__u8 op, __s64 result)
{
	__u64 thread = bpf_get_current_pid_tgid();
	__u64 *place = bpf_map_lookup_elem(&app_calls, &thread);

	if (!place)
		return 0;
	iot_app(*place, op, result);
	bpf_map_delete_elem(&app_calls, &thread);
	return 0;
}

#endif
