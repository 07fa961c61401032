/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What libceph.ko keeps of a request to an OSD, and ceph.ko of a mount. */
#ifndef IOTRACE_CEPH_TYPES_H
#define IOTRACE_CEPH_TYPES_H

#include "core/page.h"
#include "core/types.h"

const volatile bool fixed_ceph = false; /* the structs of libceph.ko are in no type information (5.10) */

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct ceph_client {
	void *private; /* of a mount: its ceph_fs_client */
	void *extra_mon_dispatch; /* set by file systems, NULL for images of RBD */
};

struct ceph_osd_client {
	struct ceph_client *client;
};

struct ceph_fs_client {
	struct super_block *sb;
};

struct ceph_mds_client {
	struct ceph_fs_client *fsc;
};

enum ceph_osd_data_type {
	CEPH_OSD_DATA_TYPE_PAGES = 1, /* the same number on every kernel */
};

struct ceph_osd_data {
	enum ceph_osd_data_type type;
	void *pages; /* where they are the data: pointers to them */
};

/* One operation of a request on one object. */
struct ceph_osd_req_op {
	__u16 op;
	__u32 outdata_len; /* bytes that the OSD returned */
	struct {
		__u64 offset; /* bytes in the object */
		__u64 length;
		struct ceph_osd_data osd_data;
	} extent;
};

struct ceph_osd_request {
	struct ceph_osd_client *r_osdc;
	int r_result;
	unsigned int r_num_ops;
	struct inode *r_inode; /* NULL for synchronous calls */
	int r_attempts;
	struct ceph_osd_req_op r_ops[1]; /* of no fixed number in the kernel */
};

#pragma clang attribute pop

/* include/linux/ceph/rados.h: numbers of the protocol */
enum {
	IOT_CEPH_READ = 0x1201,
	IOT_CEPH_SPARSE_READ = 0x1205, /* since 6.6 */
	IOT_CEPH_WRITE = 0x2201,
	IOT_CEPH_WRITEFULL = 0x2202,
};

#define IOT_CEPH_OPS 16 /* CEPH_OSD_MAX_OPS: most operations of a request */
#define IOT_ENOENT (-2) /* of a read: the object is a hole of the file */

/*
 * 5.10 has no type information for modules. These places are from the compiler, with the
 * headers of Debian's kernel; they depend on no option of the kernel as long as locks are
 * not debugged. The mount is the first member of the client of the metadata server, and the
 * superblock that of the mount.
 */
struct osd_op_5_10 {
	__u16 op;
	__u8 head[10];
	__u32 outdata_len;
	__u8 pad[8];
	struct {
		__u64 offset;
		__u64 length;
		__u64 truncate[2];
		struct {
			__u64 type;
			void *pages;
		} osd_data;
	} extent;
	__u8 tail[120];
};

struct osd_request_5_10 {
	__u8 head[628];
	__u32 r_num_ops;
	__s32 r_result;
	__s32 r_flags;
	void *r_osdc;
	__u8 body[48];
	void *r_inode;
	__u8 more[104];
	__s32 r_attempts;
	__s32 pad;
	struct osd_op_5_10 r_ops[1];
};

struct client_5_10 {
	__u8 head[24];
	void *private;
	__u8 body[72];
	void *extra_mon_dispatch;
};

_Static_assert(sizeof(struct osd_op_5_10) == 192 && offsetof(struct osd_op_5_10, extent.osd_data.pages) == 64, "operation");
_Static_assert(offsetof(struct osd_request_5_10, r_inode) == 696 && offsetof(struct osd_request_5_10, r_ops) == 816, "request");
_Static_assert(offsetof(struct client_5_10, extra_mon_dispatch) == 104, "client");

/* Where a field is, in 5.10 where there is no type information. */
#define IOT_CEPH(type, fixed_type, field) \
	(fixed_ceph ? offsetof(fixed_type, field) : bpf_core_field_offset(type, field))
#define IOT_REQ(field) IOT_CEPH(struct ceph_osd_request, struct osd_request_5_10, field)
#define IOT_OP(field) IOT_CEPH(struct ceph_osd_req_op, struct osd_op_5_10, field)
#define IOT_CLIENT_OF(field) IOT_CEPH(struct ceph_client, struct client_5_10, field)

/* The superblock of a mount; 0 before it has one. */
static __always_inline __u64 iot_ceph_super(__u64 fsc)
{
	return fsc ? iot_word_at(fsc + (fixed_ceph ? 0 : bpf_core_field_offset(struct ceph_fs_client, sb))) : 0;
}

/* The device of a file system. */
static __always_inline __u32 iot_ceph_dev(__u64 super)
{
	return super ? FIELD((struct super_block *)super, s_dev) : 0;
}

/* The mount of a client of metadata servers. */
static __always_inline __u64 iot_ceph_mount_of(__u64 mdsc)
{
	return iot_word_at(mdsc + (fixed_ceph ? 0 : bpf_core_field_offset(struct ceph_mds_client, fsc)));
}

/* The mount for which a request is sent; 0 for images of RBD. */
static __always_inline __u64 iot_ceph_mount(__u64 req)
{
	__u64 osdc = iot_word_at(req + IOT_REQ(r_osdc));
	__u64 client = iot_word_at(osdc + (fixed_ceph ? 0 : bpf_core_field_offset(struct ceph_osd_client, client)));

	if (!iot_word_at(client + IOT_CLIENT_OF(extra_mon_dispatch)))
		return 0;
	return iot_word_at(client + IOT_CLIENT_OF(private));
}

/* The i'th operation of a request. */
static __always_inline __u64 iot_ceph_op(__u64 req, __u32 i)
{
	__u64 size = fixed_ceph ? sizeof(struct osd_op_5_10) : bpf_core_type_size(struct ceph_osd_req_op);

	return req + IOT_REQ(r_ops) + i * size;
}

#endif
