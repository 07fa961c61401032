// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Source nfs: what the NFS client sends to servers.
 *
 * Writes are counted when they are sent (nfs_initiate_write), reads when they come
 * back (nfs_readpage_done). COMMITs count as flushes, all other procedures as metadata
 * operations without bytes. These raw tracepoints pass the same pointers on every
 * kernel since 5.10, so only struct nfs_page is needed from the module's own type
 * information.
 *
 * Writeback runs in kernel threads, but every nfs_page carries its lock owner: the
 * files_struct of the task that made it dirty. A note taken where programs write says
 * which cgroup each files_struct belongs to. Together they are exact where the memory
 * cgroup of the page is not: pages that one cgroup cached and another one rewrote,
 * removed cgroups, kernels without a memory controller. Reads are sent by the reader.
 */
#define IOT_APP_SOURCE IOT_NFS
#include "core/app.h"
#include "core/arch.h"

enum {
	IOT_TOLD_BEGIN,
	IOT_TOLD_END,
};
#define IOT_TOLD 2 /* hooks that leave no flight: of rpc_task_begin and rpc_stats_latency */
#include "core/redundant.h"
#include "rpc.h"
#include "wire.h"

SEC("kprobe/nfs_initiate_write")
int iot_function_write(__u64 *ctx)
{
	iot_walk_write(IOT_PARM1(ctx), IOT_WALK_FUNCTION);
	return iot_from_function(IOT_PARM1(ctx));
}

SEC("kprobe/nfs_initiate_read")
int iot_function_read(__u64 *ctx)
{
	iot_begin_read(IOT_PARM1(ctx));
	return iot_from_function(IOT_PARM1(ctx));
}

SEC("kprobe/nfs_initiate_commit")
int iot_function_commit(__u64 *ctx)
{
	iot_commit(IOT_PARM2(ctx));
	return iot_from_function(IOT_PARM2(ctx));
}

/* Called for reads that succeeded, right after the tracepoint. */
SEC("kprobe/nfs_readpage_result")
int iot_function_read_done(__u64 *ctx)
{
	if (!iot_was_begun(IOT_PARM2(ctx), IOT_READ))
		return 0;
	return iot_read_done((struct rpc_task *)IOT_PARM1(ctx), (struct nfs_pgio_header *)IOT_PARM2(ctx));
}

SEC("raw_tp/nfs_initiate_write")
int iot_initiate_write(__u64 *ctx)
{
	return iot_function_did(ctx[0]) ? 0 : iot_walk_write(ctx[0], IOT_WALK_TRACEPOINT);
}

SEC("raw_tp/nfs_initiate_write")
int iot_initiate_write_redundant(__u64 *ctx)
{
	if (!iot_was_begun(ctx[0], IOT_WRITE))
		iot_walk_write(ctx[0], IOT_WALK_REDUNDANT);
	iot_forget(ctx[0]);
	return 0;
}

SEC("raw_tp/nfs_initiate_read")
int iot_initiate_read(__u64 *ctx)
{
	return iot_function_did(ctx[0]) ? 0 : iot_begin_read(ctx[0]);
}

SEC("raw_tp/nfs_initiate_read")
int iot_initiate_read_redundant(__u64 *ctx)
{
	return iot_was_begun(ctx[0], IOT_READ) ? 0 : iot_begin_read(ctx[0]);
}

SEC("raw_tp/nfs_initiate_commit")
int iot_initiate_commit(__u64 *ctx)
{
	return iot_function_did(ctx[0]) ? 0 : iot_commit(ctx[0]);
}

SEC("raw_tp/nfs_initiate_commit")
int iot_initiate_commit_redundant(__u64 *ctx)
{
	if (!iot_was_begun(ctx[0], IOT_FLUSH))
		iot_commit(ctx[0]);
	iot_forget(ctx[0]);
	return 0;
}

SEC("raw_tp/nfs_readpage_done")
int iot_readpage_done(__u64 *ctx)
{
	return iot_read_done((struct rpc_task *)ctx[0], (struct nfs_pgio_header *)ctx[1]);
}

SEC("raw_tp/nfs_readpage_done")
int iot_readpage_done_redundant(__u64 *ctx)
{
	if (!iot_was_begun(ctx[1], IOT_READ))
		return 0;
	return iot_read_done((struct rpc_task *)ctx[0], (struct nfs_pgio_header *)ctx[1]);
}

SEC("raw_tp/nfs_writeback_done")
int iot_writeback_done(__u64 *ctx)
{
	return iot_write_done((struct rpc_task *)ctx[0], (struct nfs_pgio_header *)ctx[1]);
}

SEC("raw_tp/nfs_writeback_done")
int iot_writeback_done_redundant(__u64 *ctx)
{
	if (!iot_was_begun(ctx[1], IOT_WRITE))
		return 0;
	return iot_write_done((struct rpc_task *)ctx[0], (struct nfs_pgio_header *)ctx[1]);
}

SEC("raw_tp/nfs_commit_done")
int iot_commit_done(__u64 *ctx)
{
	return iot_commit_ended((struct rpc_task *)ctx[0], (struct nfs_commit_data *)ctx[1]);
}

SEC("raw_tp/nfs_commit_done")
int iot_commit_done_redundant(__u64 *ctx)
{
	if (!iot_was_begun(ctx[1], IOT_FLUSH))
		return 0;
	return iot_commit_ended((struct rpc_task *)ctx[0], (struct nfs_commit_data *)ctx[1]);
}

SEC("raw_tp/rpc_task_begin")
int iot_rpc_task_begin(__u64 *ctx)
{
	iot_tell(ctx[0], IOT_TOLD_BEGIN);
	return iot_rpc_begin((struct rpc_task *)ctx[0]);
}

SEC("raw_tp/rpc_task_begin")
int iot_rpc_task_begin_redundant(__u64 *ctx)
{
	return iot_was_told(ctx[0], IOT_TOLD_BEGIN) ? 0 : iot_rpc_begin((struct rpc_task *)ctx[0]);
}

SEC("raw_tp/rpc_stats_latency")
int iot_rpc_stats(__u64 *ctx)
{
	iot_tell(ctx[0], IOT_TOLD_END);
	return iot_rpc_done(ctx[0], ctx[3]);
}

SEC("raw_tp/rpc_stats_latency")
int iot_rpc_stats_redundant(__u64 *ctx)
{
	return iot_was_told(ctx[0], IOT_TOLD_END) ? 0 : iot_rpc_done(ctx[0], ctx[3]);
}

SEC("raw_tp/nfs_refresh_inode_enter")
int iot_refresh_inode(__u64 *ctx)
{
	return iot_learn((struct inode *)ctx[0]);
}

SEC("raw_tp/nfs_file_write")
int iot_writer_raw(__u64 *ctx)
{
	return iot_meet();
}

SEC("kprobe/nfs_file_write")
int iot_writer_kprobe(__u64 *ctx)
{
	return iot_meet();
}

SEC("fentry/nfs_file_write")
int iot_writer_fentry(__u64 *ctx)
{
	return iot_meet();
}

/* Notifies user space of a mount: see tracer/module.go. */
SEC("kprobe/nfs_get_tree_common")
int iot_get_tree(__u64 *ctx)
{
	struct {
		__u64 cgroup;
		__u32 kind, len;
		char text[8];
	} n = { .kind = IOT_MOUNTING, .len = 4, .text = "nfs" };

	if (bpf_ringbuf_output(&notices, &n, sizeof(n), BPF_RB_FORCE_WAKEUP))
		iot_lost(IOT_LOST_NOTICES, 1);
	return 0;
}

SEC("fexit/nfs_file_read")
int iot_app_read(__u64 *ctx)
{
	return iot_app_iter((struct kiocb *)ctx[0], IOT_READ, ctx[2]);
}

SEC("fexit/nfs_file_write")
int iot_app_write(__u64 *ctx)
{
	return iot_app_iter((struct kiocb *)ctx[0], IOT_WRITE, ctx[2]);
}

SEC("fexit/nfs_file_splice_read")
int iot_app_splice(__u64 *ctx)
{
	return iot_app(iot_app_place((struct file *)ctx[0]), IOT_READ, ctx[5]);
}

SEC("kprobe/nfs_file_read")
int iot_app_enter_iocb(__u64 *ctx)
{
	return iot_app_enter_iter((struct kiocb *)IOT_PARM1(ctx));
}

SEC("kprobe/nfs_file_splice_read")
int iot_app_enter_file(__u64 *ctx)
{
	return iot_app_enter(iot_app_place((struct file *)IOT_PARM1(ctx)));
}

SEC("kretprobe/nfs_file_read")
int iot_app_read_return(__u64 *ctx)
{
	return iot_app_leave(IOT_READ, IOT_RESULT(ctx));
}

SEC("kretprobe/nfs_file_write")
int iot_app_write_return(__u64 *ctx)
{
	return iot_app_leave(IOT_WRITE, IOT_RESULT(ctx));
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
