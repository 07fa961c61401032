/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What 9p, 9pnet and, since 6.8, netfs keep of mounts and requests. */
#ifndef IOTRACE_9P_TYPES_H
#define IOTRACE_9P_TYPES_H

#include "core/page.h"
#include "core/types.h"

const volatile bool fixed_9p = false; /* the structs of the modules are in no type information (5.10) */

#define IOT_V9FS_MAGIC 0x01021997 /* include/uapi/linux/magic.h */

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

/* One for each mount. */
struct p9_client;

struct p9_qid {
	__u64 path;
};

struct p9_fid {
	struct p9_client *clnt;
	struct p9_qid qid;
};

/* s_fs_info of the superblock */
struct v9fs_session_info {
	struct p9_client *clnt;
};

struct dentry___super {
	struct super_block *d_sb;
};

/* The memory that a request reads from or writes to. */
struct iov_iter {
	__u8 iter_type;
	unsigned long count;
	const struct bio_vec *bvec;
	struct xarray *xarray;
};

/* Until 5.14 (8cd54c1c8480, "iov_iter: separate direction from flavour") the type was a bit beside the direction. */
struct iov_iter___5_13 {
	unsigned int type;
};

enum iter_type {
	ITER_BVEC = 2,
	ITER_XARRAY = 4,
	ITER_FOLIOQ = 6,
};

enum netfs_io_origin {
	NETFS_WRITEBACK = 5,
	NETFS_LAUNDER_WRITE = 7, /* 6.8 and 6.9: a page that is about to be thrown away */
};

struct netfs_io_request {
	struct inode *inode;
	enum netfs_io_origin origin;
};

/* Since 6.8 (100ccd18bb41) 9p gives the memory of a netfs request to 9pnet as it is. */
struct netfs_io_subrequest {
	struct netfs_io_request *rreq;
	unsigned long long start; /* bytes in the file */
	unsigned long transferred; /* before this try */
	struct iov_iter io_iter;
};

#pragma clang attribute pop

/*
 * 5.10 has no type information for modules. The client is the first field of a fid
 * everywhere. In the session it is behind two pointers more where the kernel was built
 * with FS-Cache for 9p: both places are read there, because a wrong one holds numbers,
 * which are no client's address.
 */
#define IOT_FIXED_SESSION_CLIENT 64
#define IOT_FIXED_SESSION_CLIENT_PLAIN 48

static __always_inline __u64 iot_p9_client(__u64 fid)
{
	return iot_word_at(fid + (fixed_9p ? 0 : bpf_core_field_offset(struct p9_fid, clnt)));
}

/* Whether a fid may be that of an inode: v9fs_qid2ino adds 2. False where it cannot be told. */
static __always_inline bool iot_p9_fid_is_of(__u64 fid, struct inode *inode)
{
	if (fixed_9p)
		return false;
	return iot_word_at(fid + bpf_core_field_offset(struct p9_fid, qid.path)) + 2 == FIELD(inode, i_ino);
}

/* The kind of an iterator, as in enum iter_type. */
static __always_inline __u32 iot_iter_kind(__u64 iter)
{
	struct iov_iter___5_13 *old = (void *)iter;

	if (bpf_core_field_exists(old->type))
		return FIELD(old, type) & ~1U;
	return FIELD((struct iov_iter *)iter, iter_type);
}

/* Whether a number is a value of an enum. The barrier keeps clang from reading a value that the kernel does not have. */
#define IOT_IS(number, type, name)                                                     \
	({                                                                             \
		bool __is = false;                                                     \
		if (bpf_core_enum_value_exists(enum type, name)) {                     \
			barrier();                                                     \
			__is = (number) == bpf_core_enum_value(enum type, name);       \
		}                                                                      \
		__is;                                                                  \
	})
#define IOT_KIND_IS(kind, name) IOT_IS(kind, iter_type, name)

#endif
