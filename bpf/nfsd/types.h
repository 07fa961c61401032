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

#pragma clang attribute pop

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
