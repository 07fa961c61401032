// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//go:build ignore
/*
 * Source smb: what the SMB client (cifs.ko) sends to servers.
 *
 * Since 6.10 netfs.ko does its I/O: one tracepoint shows each request from its
 * preparation to its end, for all file systems that use netfs; those of SMB are told by
 * the superblock's magic. Before, cifs.ko has functions for asynchronous requests, which
 * end in a work item, and for synchronous ones. Bytes are booked when the server has
 * taken or given them, as /proc/fs/cifs/Stats does.
 */
#define IOT_APP_SOURCE IOT_SMB
#include "core/app.h"
#include "core/arch.h"
#include "meta.h"
#include "wire.h"

SEC("raw_tp/netfs_sreq")
int iot_netfs_sreq(__u64 *ctx)
{
	return iot_sreq(ctx[0], ctx[1], false);
}

SEC("raw_tp/netfs_sreq")
int iot_netfs_sreq_redundant(__u64 *ctx)
{
	return iot_sreq(ctx[0], ctx[1], true);
}

SEC("kprobe/smb2_async_writev")
int iot_smb_async_write(__u64 *ctx)
{
	return iot_wdata_begin(IOT_PARM1(ctx));
}

SEC("kprobe/smb2_async_readv")
int iot_smb_async_read(__u64 *ctx)
{
	return iot_rdata_begin(IOT_PARM1(ctx));
}

SEC("kprobe/cifs_writev_complete")
int iot_smb_write_done(__u64 *ctx)
{
	return iot_wdata_end(iot_wdata_of_work(IOT_PARM1(ctx)));
}

SEC("kprobe/cifs_readv_complete")
int iot_smb_read_done(__u64 *ctx)
{
	return iot_rdata_end(iot_rdata_of_work(IOT_PARM1(ctx)));
}

/* xid, cifs_fid, cifs_io_parms, number of bytes done, vectors, their number */
SEC("kprobe/smb2_sync_write")
int iot_smb_sync_enter(__u64 *ctx)
{
	return iot_call_enter(IOT_PARM2(ctx), IOT_PARM3(ctx), IOT_PARM4(ctx));
}

SEC("kretprobe/smb2_sync_write")
int iot_smb_sync_write_leave(__u64 *ctx)
{
	return iot_call_leave(IOT_WRITE, IOT_RESULT(ctx));
}

SEC("kretprobe/smb2_sync_read")
int iot_smb_sync_read_leave(__u64 *ctx)
{
	return iot_call_leave(IOT_READ, IOT_RESULT(ctx));
}

/* xid, session, server, flags, number of requests, requests */
SEC("kprobe/compound_send_recv")
int iot_smb_send(__u64 *ctx)
{
	return iot_smb_message(IOT_PARM6(ctx), IOT_PARM5(ctx));
}

SEC("kprobe/cifs_strict_readv")
int iot_smb_app_enter(__u64 *ctx)
{
	return iot_app_enter_iter((struct kiocb *)IOT_PARM1(ctx));
}

SEC("kretprobe/cifs_strict_readv")
int iot_smb_app_read(__u64 *ctx)
{
	return iot_app_leave(IOT_READ, IOT_RESULT(ctx));
}

SEC("kretprobe/cifs_strict_writev")
int iot_smb_app_write(__u64 *ctx)
{
	return iot_app_leave(IOT_WRITE, IOT_RESULT(ctx));
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
