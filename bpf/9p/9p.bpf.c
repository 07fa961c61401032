// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//go:build ignore
/*
 * Source 9p: what the 9p client sends to servers, over virtio, TCP or file descriptors.
 *
 * All data go through two functions of 9pnet, which have been the same since 5.10: they
 * send, wait and return the number of bytes. Reads run in the task that asked for them.
 * The pages of a write tell its owner, except for data from user memory, which are the
 * task's. The tracepoint netfs_sreq would miss the beginnings of all reads.
 */
#define IOT_APP_SOURCE IOT_P9
#include "core/app.h"
#include "core/arch.h"
#include "meta.h"
#include "wire.h"

/* fid, offset, memory, where the call leaves an error */
SEC("kprobe/p9_client_write")
int iot_p9_write(__u64 *ctx)
{
	return iot_p9_begin(IOT_PARM1(ctx), IOT_PARM2(ctx), IOT_PARM3(ctx), IOT_PARM4(ctx), IOT_WRITE);
}

SEC("kretprobe/p9_client_write")
int iot_p9_write_done(__u64 *ctx)
{
	return iot_p9_end(IOT_RESULT(ctx), IOT_WRITE);
}

SEC("kprobe/p9_client_read_once")
int iot_p9_read(__u64 *ctx)
{
	return iot_p9_begin(IOT_PARM1(ctx), IOT_PARM2(ctx), IOT_PARM3(ctx), IOT_PARM4(ctx), IOT_READ);
}

SEC("kretprobe/p9_client_read_once")
int iot_p9_read_done(__u64 *ctx)
{
	return iot_p9_end(IOT_RESULT(ctx), IOT_READ);
}

/* client, type of the message */
SEC("kprobe/p9_client_prepare_req")
int iot_p9_prepare(__u64 *ctx)
{
	return iot_p9_message(IOT_PARM1(ctx), IOT_PARM2(ctx));
}

/* Where the compiler has divided that function (5.10): client, type, tag. */
SEC("raw_tp/9p_client_req")
int iot_p9_request(__u64 *ctx)
{
	return iot_p9_message(ctx[0], ctx[1]);
}

SEC("kprobe/v9fs_fid_lookup")
int iot_p9_lookup(__u64 *ctx)
{
	return iot_p9_learn(FIELD((struct dentry___super *)IOT_PARM1(ctx), d_sb));
}

/* Before 6.8: v9fs_file_read_iter and those that are called with the same arguments. */
SEC("kprobe/v9fs_file_read_iter")
int iot_p9_caller(__u64 *ctx)
{
	return iot_p9_enter((struct kiocb *)IOT_PARM1(ctx));
}

SEC("kprobe/v9fs_file_read_iter")
int iot_p9_app_enter(__u64 *ctx)
{
	return iot_app_enter_iter((struct kiocb *)IOT_PARM1(ctx));
}

SEC("kretprobe/v9fs_file_read_iter")
int iot_p9_app_read(__u64 *ctx)
{
	return iot_app_leave(IOT_READ, IOT_RESULT(ctx));
}

SEC("kretprobe/v9fs_file_write_iter")
int iot_p9_app_write(__u64 *ctx)
{
	return iot_app_leave(IOT_WRITE, IOT_RESULT(ctx));
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
