/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What libceph.ko keeps of a request to an OSD, and ceph.ko of a mount. */
#ifndef IOTRACE_CEPH_TYPES_H
#define IOTRACE_CEPH_TYPES_H

#include "core/page.h"
#include "core/types.h"

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

struct ceph_osd_data {
	__u32 type;
	void *pages; /* where type is IOT_CEPH_PAGES: pointers to pages */
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

/* include/linux/ceph/rados.h, osd_client.h: numbers of the protocol, and what data are */
enum {
	IOT_CEPH_READ = 0x1201,
	IOT_CEPH_SPARSE_READ = 0x1205, /* since 6.6 */
	IOT_CEPH_WRITE = 0x2201,
	IOT_CEPH_WRITEFULL = 0x2202,
	IOT_CEPH_PAGES = 1,
};

#define IOT_CEPH_OPS 16 /* CEPH_OSD_MAX_OPS: most operations of a request */
#define IOT_ENOENT (-2) /* of a read: the object is a hole of the file */

#define IOT_REQ(field) bpf_core_field_offset(struct ceph_osd_request, field)
#define IOT_OP(field) bpf_core_field_offset(struct ceph_osd_req_op, field)

/* The superblock of a mount; 0 before it has one. */
static __always_inline __u64 iot_ceph_super(__u64 fsc)
{
	return fsc ? iot_word_at(fsc + bpf_core_field_offset(struct ceph_fs_client, sb)) : 0;
}

/* The device of a file system. */
static __always_inline __u32 iot_ceph_dev(__u64 super)
{
	return super ? FIELD((struct super_block *)super, s_dev) : 0;
}

/* The mount for which a request is sent; 0 for images of RBD. */
static __always_inline __u64 iot_ceph_mount(__u64 req)
{
	__u64 osdc = iot_word_at(req + IOT_REQ(r_osdc));
	__u64 client = iot_word_at(osdc + bpf_core_field_offset(struct ceph_osd_client, client));

	if (!iot_word_at(client + bpf_core_field_offset(struct ceph_client, extra_mon_dispatch)))
		return 0;
	return iot_word_at(client + bpf_core_field_offset(struct ceph_client, private));
}

/* The i'th operation of a request. */
static __always_inline __u64 iot_ceph_op(__u64 req, __u32 i)
{
	return req + IOT_REQ(r_ops) + i * bpf_core_type_size(struct ceph_osd_req_op);
}

#endif
