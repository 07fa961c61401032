/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What cifs.ko, and since 6.10 netfs.ko, keep of a request. */
#ifndef IOTRACE_SMB_TYPES_H
#define IOTRACE_SMB_TYPES_H

#include "core/page.h"
#include "core/types.h"

const volatile bool fixed_cifs = false; /* the structs of cifs.ko are in no type information (5.10) */

/* include/uapi/linux/magic.h: the dialects before and since SMB 2 */
#define IOT_CIFS_SUPER_MAGIC 0xFF534D42
#define IOT_SMB2_SUPER_MAGIC 0xFE534D42

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

enum netfs_io_source {
	NETFS_DOWNLOAD_FROM_SERVER = 2,
	NETFS_UPLOAD_TO_SERVER = 5,
};

enum netfs_io_origin {
	NETFS_WRITEBACK = 5,
};

enum netfs_sreq_trace {
	netfs_sreq_trace_free = 8,
	netfs_sreq_trace_prepare = 12,
	netfs_sreq_trace_submit = 19,
	netfs_sreq_trace_terminated = 20,
};

struct netfs_io_request {
	struct inode *inode;
	enum netfs_io_origin origin;
};

/* A request to a server: one of those that make up a netfs_io_request. */
struct netfs_io_subrequest {
	struct netfs_io_request *rreq;
	unsigned long long start; /* bytes in the file */
	unsigned long len; /* as asked for */
	unsigned long transferred; /* in all tries together */
	short error;
	enum netfs_io_source source;
};

/* Up to 6.9: replaced by cifs_io_subrequest (69c3c023af25, "cifs: Implement netfslib hooks"). */

/* Of these only the place counts, in the structs below. */
struct cifs_fid {};
struct work_struct {};

struct cifsFileInfo {
	struct cifs_fid fid;
	struct dentry *dentry;
};

struct cifs_writedata {
	struct work_struct work;
	struct cifsFileInfo *cfile;
	void *ctx;
	__u64 offset;
	unsigned int bytes;
	int result;
};

struct cifs_readdata {
	struct work_struct work;
	struct cifsFileInfo *cfile;
	__u64 offset;
	unsigned int bytes;
	unsigned int got_bytes;
	int result;
};

struct cifs_io_parms {
	__u64 offset;
};

#pragma clang attribute pop

/*
 * 5.10 has no type information for modules. These fields have the same places there as
 * in 6.1 (read from the module's code), and do not depend on the kernel's configuration
 * as long as locks are not debugged.
 */
#define IOT_FIXED_FID 48
#define IOT_FIXED_DENTRY 144
#define IOT_FIXED_PARMS_OFFSET 32

struct writedata_5_10 {
	__u8 head[64];
	__u8 work[32];
	struct cifsFileInfo *cfile;
	void *ctx;
	__u64 offset;
	__u32 pid;
	__u32 bytes;
	__s32 result;
};

struct readdata_5_10 {
	__u8 head[56];
	struct cifsFileInfo *cfile;
	void *mapping;
	void *ctx;
	__u64 offset;
	__u32 bytes;
	__u32 got_bytes;
	__u32 pid;
	__s32 result;
	__u8 work[32];
};

/* A field of a struct of cifs.ko, at its place in 5.10 where there is no type information. */
#define IOT_CIFS(type, fixed_type, addr, field)                                                       \
	({                                                                                            \
		typeof(((type *)0)->field) __value = 0;                                               \
		__u64 __at = fixed_cifs ? offsetof(fixed_type, field) : bpf_core_field_offset(type, field); \
		bpf_probe_read_kernel(&__value, sizeof(__value), (void *)((addr) + __at));            \
		__value;                                                                              \
	})
#define IOT_WDATA(addr, field) IOT_CIFS(struct cifs_writedata, struct writedata_5_10, addr, field)
#define IOT_RDATA(addr, field) IOT_CIFS(struct cifs_readdata, struct readdata_5_10, addr, field)

/* The requests from the work items with which they end. */
static __always_inline __u64 iot_wdata_of_work(__u64 work)
{
	return work - (fixed_cifs ? offsetof(struct writedata_5_10, work) :
				    bpf_core_field_offset(struct cifs_writedata, work));
}

static __always_inline __u64 iot_rdata_of_work(__u64 work)
{
	return work - (fixed_cifs ? offsetof(struct readdata_5_10, work) :
				    bpf_core_field_offset(struct cifs_readdata, work));
}

static __always_inline struct inode *iot_cifs_inode(__u64 cfile)
{
	__u64 at = fixed_cifs ? IOT_FIXED_DENTRY : bpf_core_field_offset(struct cifsFileInfo, dentry);

	return FIELD((struct dentry *)iot_word_at(cfile + at), d_inode);
}

/* The open file that has this identifier. */
static __always_inline __u64 iot_cifs_file_of(__u64 fid)
{
	return fid - (fixed_cifs ? IOT_FIXED_FID : bpf_core_field_offset(struct cifsFileInfo, fid));
}

static __always_inline __u64 iot_parms_offset(__u64 parms)
{
	return iot_word_at(parms + (fixed_cifs ? IOT_FIXED_PARMS_OFFSET :
						 bpf_core_field_offset(struct cifs_io_parms, offset)));
}

static __always_inline bool iot_inode_is_smb(struct inode *inode)
{
	__u64 magic = BPF_CORE_READ(inode, i_sb, s_magic);

	return magic == IOT_SMB2_SUPER_MAGIC || magic == IOT_CIFS_SUPER_MAGIC;
}

#endif
