// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//go:build ignore
/*
 * Source ceph: what the CephFS client (ceph.ko) sends to OSDs and to the metadata server.
 *
 * All requests to OSDs go through one function of libceph.ko on every kernel, in the
 * context of who asks, or of a kernel thread that writes back; what is sent once more goes
 * not. They end in another. Images of RBD use the same functions: they are block devices
 * and counted as such. All hooks are kprobes: those leave the modules free to be unloaded.
 */
#define IOT_APP_SOURCE IOT_CEPH
#include "core/app.h"
#include "core/arch.h"
#include "wire.h"

/* OSD client, request */
SEC("kprobe/ceph_osdc_start_request")
int iot_ceph_start(__u64 *ctx)
{
	return iot_ceph_begin(IOT_PARM2(ctx));
}

SEC("kprobe/__complete_request")
int iot_ceph_done(__u64 *ctx)
{
	return iot_ceph_end(IOT_PARM1(ctx));
}

/* client of the metadata server, directory, request */
SEC("kprobe/ceph_mdsc_submit_request")
int iot_ceph_submit(__u64 *ctx)
{
	return iot_ceph_mds(IOT_PARM1(ctx));
}

SEC("kprobe/ceph_read_iter")
int iot_ceph_app_enter(__u64 *ctx)
{
	return iot_app_enter_iter((struct kiocb *)IOT_PARM1(ctx));
}

SEC("kretprobe/ceph_read_iter")
int iot_ceph_app_read(__u64 *ctx)
{
	return iot_app_leave(IOT_READ, IOT_RESULT(ctx));
}

SEC("kretprobe/ceph_write_iter")
int iot_ceph_app_write(__u64 *ctx)
{
	return iot_app_leave(IOT_WRITE, IOT_RESULT(ctx));
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
