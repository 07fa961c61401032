/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What fs/fuse keeps of a request. fuse is a module on many kernels, on some without
 * type information (5.10). So user space finds the layout of its structs and passes it
 * on.
 */
#ifndef IOTRACE_FUSE_TYPES_H
#define IOTRACE_FUSE_TYPES_H

#include "core/page.h"
#include "core/types.h"

/* Offsets in structs of fs/fuse, in bytes. fuse_args is the first member of fuse_args_pages: one address. */
struct offsets {
	__u16 req_args; /* in fuse_req */
	__u16 req_flags;
	__u16 req_error;
	__u16 req_link; /* from fuse_req over two pointers to the device number */
	__u16 link_conn;
	__u16 conn_dev;
	__u16 mount_conn; /* the same from fuse_mount */
	__u16 mount_dev;
	__u16 opcode; /* in fuse_args */
	__u16 in_value; /* in_args[0].value */
	__u16 out_size; /* out_args[0].size */
	__u16 out_value;
	__u16 pages; /* pages or folios of fuse_args_pages */
	__u16 io; /* fuse_io_args.io, from fuse_args */
	__u16 inode; /* fuse_writepage_args.inode, from fuse_args */
	__u16 io_async; /* in fuse_io_priv */
	__u16 io_iocb;
	__u16 io_blocking;
	__u16 background; /* bits of req_flags */
	__u16 finished;
	__u16 req_created; /* jiffies, in fuse_req; 0 before 6.14 */
};

const volatile struct offsets layout = {};
const volatile bool layout_assumed = false; /* taken from the kernel's release instead of its types */

/* include/uapi/linux/fuse.h: the protocol, which does not change. */
enum {
	IOT_FUSE_READ = 15,
	IOT_FUSE_WRITE = 16,
	IOT_FUSE_FSYNC = 20,
	IOT_FUSE_FLUSH = 25,
	IOT_FUSE_FSYNCDIR = 30,
	IOT_FUSE_COPY_FILE_RANGE = 47,
	IOT_FUSE_SYNCFS = 50,
	IOT_FUSE_COPY_FILE_RANGE_64 = 53,
};

#define IOT_FUSE_WRITE_CACHE 1 /* delayed write from the page cache */

/* The first bytes of fuse_read_in and of fuse_write_in. */
struct fuse_io_in {
	__u64 fh;
	__u64 offset;
	__u32 size;
	__u32 flags; /* of a write */
};

static __always_inline __u8 iot_fuse_op(__u32 opcode)
{
	switch (opcode) {
	case IOT_FUSE_READ:
		return IOT_READ;
	case IOT_FUSE_WRITE:
	case IOT_FUSE_COPY_FILE_RANGE: /* the daemon copies: counted as what it wrote */
	case IOT_FUSE_COPY_FILE_RANGE_64:
		return IOT_WRITE;
	case IOT_FUSE_FSYNC:
	case IOT_FUSE_FLUSH:
	case IOT_FUSE_FSYNCDIR:
	case IOT_FUSE_SYNCFS:
		return IOT_FLUSH;
	}
	return IOT_META_OP;
}

/* ENOSYS or EOPNOTSUPP: the daemon does not know the operation. */
static __always_inline bool iot_fuse_unknown(__s32 error)
{
	return error == -38 || error == -95;
}

/* Whether an error means a fault and not just an answer ("no such file"). */
static __always_inline bool iot_fuse_failed(__u8 op, __s32 error)
{
	if (!error)
		return false;
	if (op == IOT_READ || op == IOT_WRITE)
		return true;
	if (op == IOT_FLUSH)
		return true;
	switch (-error) {
	case 4: /* EINTR */
	case 5: /* EIO */
	case 103: /* ECONNABORTED */
	case 107: /* ENOTCONN */
	case 110: /* ETIMEDOUT */
	case 121: /* EREMOTEIO */
		return true;
	}
	return false;
}

#define IOT_FUSE_FLAGS(req) iot_hot_word((req) + layout.req_flags)
#define IOT_FUSE_ARGS(req) iot_hot_word((req) + layout.req_args)

static __always_inline __u32 iot_fuse_dev(__u64 req)
{
	return iot_hot_u32(iot_hot_word(iot_hot_word(req + layout.req_link) + layout.link_conn) + layout.conn_dev);
}

static __always_inline __u32 iot_fuse_mount_dev(__u64 mount)
{
	return iot_hot_u32(iot_hot_word(mount + layout.mount_conn) + layout.mount_dev);
}

/* An assumed layout leads from the mount to a superblock: a wrong one does not find FUSE's. */
static __always_inline bool iot_fuse_layout_holds(__u64 mount)
{
	struct super_block *sb;

	if (!layout_assumed)
		return true;
	sb = (void *)iot_hot_word(mount + layout.mount_conn);
	return FIELD(sb, s_magic) == IOT_FUSE_SUPER_MAGIC;
}

/* The kernel shrank out_args[0].size of a read to what came; a write's answer says what was taken. */
static __always_inline __u64 iot_fuse_done(__u64 args, __u32 opcode)
{
	switch (opcode) {
	case IOT_FUSE_READ:
		return iot_hot_u32(args + layout.out_size);
	case IOT_FUSE_WRITE:
	case IOT_FUSE_COPY_FILE_RANGE:
		return iot_hot_u32(iot_hot_word(args + layout.out_value));
	case IOT_FUSE_COPY_FILE_RANGE_64:
		return iot_hot_word(iot_hot_word(args + layout.out_value));
	}
	return 0;
}

static __always_inline __u64 iot_fuse_first_folio(__u64 args)
{
	__u64 pages = layout.pages ? iot_hot_word(args + layout.pages) : 0;
	__u64 page = pages ? iot_hot_word(pages) : 0;

	return page ? (__u64)iot_folio((void *)page) : 0;
}

/*
 * The inode of a writeback request. Since 6.16 its pages name it. Before, they are
 * copies that belong to no file, but the request names the inode.
 */
static __always_inline struct inode *iot_fuse_inode(__u64 args)
{
	__u64 folio = iot_fuse_first_folio(args);
	struct address_space *mapping = NULL;

	if (folio)
		mapping = iot_folio_mapping((void *)folio);
	if (iot_mapping_is_file(mapping))
		return iot_mapping_inode(mapping);
	return layout.inode ? (void *)iot_hot_word(args + layout.inode) : NULL;
}

/* The first field of fuse_args, before the opcode: the daemon's number of the file. */
static __always_inline __u64 iot_fuse_node(__u64 args)
{
	return iot_hot_word(args + layout.opcode - sizeof(__u64));
}

#endif
