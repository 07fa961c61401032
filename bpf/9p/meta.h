/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Messages without data. */
#ifndef IOTRACE_9P_META_H
#define IOTRACE_9P_META_H

#include "core/cgroup.h"
#include "core/record.h"
#include "wire.h"

/* include/net/9p/9p.h */
enum {
	IOT_TFSYNC = 50,
	IOT_TVERSION = 100,
	IOT_TREAD = 116,
	IOT_TWRITE = 118,
};

__noinline int iot_p9_meta(__u64 client, __u32 type)
{
	struct usage_key usage = { .source = IOT_P9, .op = IOT_META_OP, .dev = iot_p9_dev(client) };
	__u64 owner = iot_owner_from_task();

	if (type == IOT_TFSYNC)
		usage.op = IOT_FLUSH;
	if (owner)
		iot_own(&usage, owner, iot_pid_of((void *)bpf_get_current_task()));
	else
		iot_own(&usage, iot_pack(IOT_CGROUP_KERNEL, IOT_NONE), 0);
	iot_account(&usage, 0, 1);
	if (with_records)
		iot_record(&usage, bpf_ktime_get_ns(), 0, 0, 0);
	return 0;
}

/* The current task makes a message. */
static __always_inline int iot_p9_message(__u64 client, __u8 type)
{
	if (type == IOT_TREAD)
		return iot_p9_sent(IOT_READ);
	if (type == IOT_TWRITE)
		return iot_p9_sent(IOT_WRITE);
	if (type == IOT_TVERSION) /* the first one of a client: another one was at its address */
		bpf_map_delete_elem(&mounts, &client);
	return iot_p9_meta(client, type);
}

#endif
