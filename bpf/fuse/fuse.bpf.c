// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Source fuse: requests between the kernel and a FUSE daemon.
 *
 * The owner of a request is found when it is sent. The request is booked at its end,
 * with the bytes that the daemon really took or gave. Since 6.12 the tracepoints
 * fuse_request_send and fuse_request_end see both. Before, the functions that file
 * operations call (fuse_simple_request, fuse_simple_background) and fuse_request_end
 * do: there a request is identified by its fuse_args, which do not move while it is
 * in flight.
 *
 * At the tracepoint of the end that is over: FR_FINISHED is set before, and the task
 * that waits for the answer may already use its fuse_args, which are on its stack,
 * for the next request. So there a request with a waiting task is identified by its
 * fuse_req, and its fuse_args are used only if they are still its own.
 *
 * The task that runs when a request is sent is its owner, with two exceptions. Flusher
 * threads send writeback: it belongs to the cgroup that made the pages dirty, which
 * core.bpf.c noted. And background requests beyond max_background wait, until the
 * daemon sends them when it ends another one. fuse_simple_background still runs in
 * the caller; where it cannot be probed, the pages to be read or written tell the
 * owner.
 */
#define IOT_APP_SOURCE IOT_FUSE
#include "core/app.h"
#include "core/arch.h"
#include "wire.h"

SEC("raw_tp/fuse_request_send")
int iot_fuse_request_send(__u64 *ctx)
{
	return iot_fuse_send(ctx[0]);
}

SEC("raw_tp/fuse_request_end")
int iot_fuse_request_end(__u64 *ctx)
{
	iot_fuse_end(ctx[0], iot_fuse_id(ctx[0]));
	return 0;
}

/*
 * The second program can be skipped as well: it may be preempted itself, and while
 * user space reads our maps kprobes are skipped too. So there is a third.
 */
SEC("raw_tp/fuse_request_send")
int iot_fuse_request_send_second(__u64 *ctx)
{
	return iot_fuse_send_redundant(ctx[0]);
}

SEC("raw_tp/fuse_request_send")
int iot_fuse_request_send_third(__u64 *ctx)
{
	return iot_fuse_send_redundant(ctx[0]);
}

SEC("raw_tp/fuse_request_end")
int iot_fuse_request_end_second(__u64 *ctx)
{
	return iot_fuse_end_redundant(ctx[0]);
}

SEC("raw_tp/fuse_request_end")
int iot_fuse_request_end_third(__u64 *ctx)
{
	return iot_fuse_end_redundant(ctx[0]);
}

SEC("fentry/fuse_request_end")
int iot_fuse_end_fentry(__u64 *ctx)
{
	__u64 req = iot_arg(ctx, 0);

	return iot_fuse_end_call(req, IOT_FUSE_ARGS(req));
}

SEC("kprobe/fuse_request_end")
int iot_fuse_end_kprobe(__u64 *ctx)
{
	__u64 req = IOT_PARM1(ctx);

	return iot_fuse_end_call(req, IOT_FUSE_ARGS(req));
}

/* For requests that a tracepoint saw sent. Programs on functions are not preempted. */
SEC("kprobe/fuse_request_end")
int iot_fuse_request_end_kprobe(__u64 *ctx)
{
	__u64 req = IOT_PARM1(ctx);

	return iot_fuse_end_call(req, iot_fuse_id(req));
}

SEC("fentry/fuse_simple_request")
int iot_fuse_request_fentry(__u64 *ctx)
{
	return iot_fuse_call(iot_arg(ctx, 0), iot_arg(ctx, 1), 0);
}

SEC("kprobe/fuse_simple_request")
int iot_fuse_request_kprobe(__u64 *ctx)
{
	return iot_fuse_call(IOT_PARM1(ctx), IOT_PARM2(ctx), 0);
}

/* Since 6.12, with the idmap of the mount as first argument. */
SEC("fentry/__fuse_simple_request")
int iot_fuse_request_idmap_fentry(__u64 *ctx)
{
	return iot_fuse_call(iot_arg(ctx, 1), iot_arg(ctx, 2), 0);
}

SEC("kprobe/__fuse_simple_request")
int iot_fuse_request_idmap_kprobe(__u64 *ctx)
{
	return iot_fuse_call(IOT_PARM2(ctx), IOT_PARM3(ctx), 0);
}

SEC("fentry/fuse_simple_background")
int iot_fuse_background_fentry(__u64 *ctx)
{
	return iot_fuse_call(iot_arg(ctx, 0), iot_arg(ctx, 1), IOT_FUSE_SUBMIT);
}

SEC("kprobe/fuse_simple_background")
int iot_fuse_background_kprobe(__u64 *ctx)
{
	return iot_fuse_call(IOT_PARM1(ctx), IOT_PARM2(ctx), IOT_FUSE_SUBMIT);
}

SEC("fexit/fuse_file_read_iter")
int iot_fuse_app_read(__u64 *ctx)
{
	return iot_app_iter((struct kiocb *)ctx[0], IOT_READ, ctx[2]);
}

SEC("fexit/fuse_file_write_iter")
int iot_fuse_app_write(__u64 *ctx)
{
	return iot_app_iter((struct kiocb *)ctx[0], IOT_WRITE, ctx[2]);
}

SEC("fexit/fuse_splice_read")
int iot_fuse_app_splice(__u64 *ctx)
{
	return iot_app(iot_app_place((struct file *)ctx[0]), IOT_READ, ctx[5]);
}

SEC("kprobe/fuse_file_read_iter")
int iot_fuse_app_iter_enter(__u64 *ctx)
{
	return iot_app_enter_iter((struct kiocb *)IOT_PARM1(ctx));
}

SEC("kprobe/fuse_splice_read")
int iot_fuse_app_splice_enter(__u64 *ctx)
{
	return iot_app_enter(iot_app_place((struct file *)IOT_PARM1(ctx)));
}

SEC("kretprobe/fuse_file_read_iter")
int iot_fuse_app_read_leave(__u64 *ctx)
{
	return iot_app_leave(IOT_READ, IOT_RESULT(ctx));
}

SEC("kretprobe/fuse_file_write_iter")
int iot_fuse_app_write_leave(__u64 *ctx)
{
	return iot_app_leave(IOT_WRITE, IOT_RESULT(ctx));
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
