/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the NFS server keeps of a request and of an export. */
#ifndef IOTRACE_NFSD_TYPES_H
#define IOTRACE_NFSD_TYPES_H

#include "core/client.h"
#include "core/field.h"
#include "core/kernel.h"

const volatile bool fixed_svc_fh = false; /* struct svc_fh is in no type information (5.10) */

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct path {
	struct dentry *dentry;
};

struct svc_export {
	struct path ex_path;
};

struct svc_fh {
	struct svc_export *fh_export;
};

/* More of the request, whose client is in core/client.h. */
struct svc_rqst___more {
	__u32 rq_prog;
	__u32 rq_vers;
	__u32 rq_proc;
	long long rq_stime; /* when it was received, CLOCK_MONOTONIC */
};

#pragma clang attribute pop

/* Procedures (RFC 1094, 1813, 7530); program number and version are those of ONC RPC. */
#define IOT_NFSD_PROGRAM 100003
#define IOT_NFSD_NULL 0
#define IOT_NFSD_READ 6
#define IOT_NFSD_WRITE 7
#define IOT_NFSD_WRITE_2 8
#define IOT_NFSD_COMMIT_3 21
#define IOT_OP_COMMIT 0x494d4d4f435f504fULL /* "OP_COMMI", of NFSv4 */

/* The request that the current thread of the server works on; 0 in other threads. */
static __always_inline __u64 iot_current_rqst(void)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct task_struct___5_17 *now = (void *)task;
	struct task_struct___5_10 *old = (void *)task;
	struct kthread *thread;

	if (!(FIELD(task, flags) & PF_KTHREAD) || (iot_word_at((__u64)&task->comm) & 0xffffffffffULL) != IOT_COMM_NFSD)
		return 0;
	if (bpf_core_field_exists(now->worker_private))
		thread = FIELD(now, worker_private);
	else
		thread = FIELD(old, set_child_tid);
	return (__u64)FIELD(thread, data);
}

/*
 * 5.10 has no type information for modules. fh_export was read from the module's code. In
 * front of ex_path are the same fields as in later kernels (include/linux/sunrpc/cache.h,
 * fs/nfsd/export.h), where the offset is 64; the dentry is the second pointer of a path.
 */
#define IOT_FH_EXPORT_5_10 144
#define IOT_EX_DENTRY_5_10 72

/* The directory that is exported, of the file behind a handle. */
static __always_inline struct inode *iot_exported(struct svc_fh *fh)
{
	struct dentry *dentry;
	__u64 export;

	if (fixed_svc_fh) {
		export = iot_word_at((__u64)fh + IOT_FH_EXPORT_5_10);
		dentry = (void *)iot_word_at(export + IOT_EX_DENTRY_5_10);
		return FIELD(dentry, d_inode);
	}
	if (!bpf_core_field_exists(fh->fh_export))
		return NULL;
	return BPF_CORE_READ(fh, fh_export, ex_path.dentry, d_inode);
}

/* A number for an exported directory, never 0; tracer/nfsd.go computes the same. */
static __always_inline __u32 iot_export(__u32 dev, __u64 ino)
{
	__u64 hash = (ino ^ (__u64)dev << 32) * 0xD6E8FEB86659FD93ULL;

	return hash >> 32 | 1;
}

#endif
