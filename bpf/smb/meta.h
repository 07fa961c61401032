/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Operations without data. */
#ifndef IOTRACE_SMB_META_H
#define IOTRACE_SMB_META_H

#include "core/cgroup.h"
#include "core/record.h"
#include "types.h"

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

/* Its first member points to vectors, the first of which is at the header of the request. */
struct smb_rqst {
	unsigned int rq_nvec;
};

#pragma clang attribute pop

#define IOT_FIXED_RQST 40 /* size of struct smb_rqst in 5.10 */
#define IOT_COMPOUND 8 /* most requests in one message that are looked at; cifs.ko sends five */

/* [MS-SMB2] section 2.2.1: the command is behind 12 bytes of the header. */
#define IOT_SMB_COMMAND 12
enum {
	IOT_SMB_FLUSH = 7,
	IOT_SMB_READ = 8,
	IOT_SMB_WRITE = 9,
};

/* One request of a message that the current task sends and waits for. */
__noinline int iot_smb_request(__u64 rqst)
{
	struct usage_key usage = { .source = IOT_SMB, .op = IOT_META_OP };
	struct task_struct *task = (void *)bpf_get_current_task();
	__u64 owner = iot_owner_from_task();
	__u16 command = iot_u32_at(iot_word_at(iot_word_at(rqst)) + IOT_SMB_COMMAND);

	if (command == IOT_SMB_READ || command == IOT_SMB_WRITE)
		return 0; /* wire.h */
	if (command == IOT_SMB_FLUSH)
		usage.op = IOT_FLUSH;
	if (owner)
		iot_own(&usage, owner, iot_pid_of(task));
	else
		iot_own(&usage, iot_pack(IOT_CGROUP_KERNEL, IOT_NONE), 0);
	iot_account(&usage, 0, 1);
	if (with_records)
		iot_record(&usage, bpf_ktime_get_ns(), 0, 0, 0);
	return 0;
}

static __always_inline int iot_smb_message(__u64 rqst, __u32 n)
{
	__u64 size = fixed_cifs ? IOT_FIXED_RQST : bpf_core_type_size(struct smb_rqst);
	__u32 i;

	for (i = 0; i < IOT_COMPOUND && i < n; i++)
		iot_smb_request(rqst + i * size);
	return 0;
}

#endif
