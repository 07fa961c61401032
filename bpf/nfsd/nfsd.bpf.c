// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//go:build ignore
/*
 * Source nfsd: what the clients of this host's NFS server read and write.
 *
 * nfsd_read_io_done and nfsd_write_io_done run in the server's thread when an operation
 * succeeded, with the bytes that it moved, where the server adds them up for the line "io"
 * of /proc/net/rpc/nfsd: totals equal that line. Server-side copies are in neither.
 *
 * The device of a row is that of the exported file system's superblock, and fsdev is a
 * number for the exported directory.
 */
#include "core/arch.h"

enum {
	IOT_TOLD_READ,
	IOT_TOLD_WRITE,
};
#define IOT_TOLD 2
#include "core/cgroup.h"
#include "core/record.h"
#include "core/redundant.h"
#include "types.h"

static __always_inline int iot_served(__u64 rqst, __u64 fh, __u64 offset, __u32 bytes, __u8 op)
{
	struct inode *inode = iot_exported((struct svc_fh *)fh);
	struct svc_rqst *request = (struct svc_rqst *)rqst;
	struct usage_key usage = { .source = IOT_NFSD, .op = op };

	if (bpf_core_field_exists(request->rq_addr))
		usage.cgroup = iot_client(&request->rq_addr);
	usage.basis = usage.cgroup ? IOT_TASK : IOT_NONE;
	if (inode) {
		usage.dev = BPF_CORE_READ(inode, i_sb, s_dev);
		usage.fsdev = iot_export(usage.dev, iot_inode_number(inode));
	}
	iot_account(&usage, bytes, 1);
	if (with_records)
		iot_record(&usage, bpf_ktime_get_ns(), 0, offset, bytes);
	return 0;
}

SEC("raw_tp/nfsd_read_io_done")
int iot_nfsd_read(__u64 *ctx)
{
	iot_tell(ctx[0], IOT_TOLD_READ);
	return iot_served(ctx[0], ctx[1], ctx[2], ctx[3], IOT_READ);
}

SEC("raw_tp/nfsd_read_io_done")
int iot_nfsd_read_redundant(__u64 *ctx)
{
	if (iot_was_told(ctx[0], IOT_TOLD_READ))
		return 0;
	iot_covered();
	return iot_served(ctx[0], ctx[1], ctx[2], ctx[3], IOT_READ);
}

SEC("raw_tp/nfsd_write_io_done")
int iot_nfsd_write(__u64 *ctx)
{
	iot_tell(ctx[0], IOT_TOLD_WRITE);
	return iot_served(ctx[0], ctx[1], ctx[2], ctx[3], IOT_WRITE);
}

SEC("raw_tp/nfsd_write_io_done")
int iot_nfsd_write_redundant(__u64 *ctx)
{
	if (iot_was_told(ctx[0], IOT_TOLD_WRITE))
		return 0;
	iot_covered();
	return iot_served(ctx[0], ctx[1], ctx[2], ctx[3], IOT_WRITE);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
