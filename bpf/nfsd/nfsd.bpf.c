// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//go:build ignore
/*
 * Source nfsd: what the clients of this host's NFS server read and write.
 *
 * nfsd_read_io_done and nfsd_write_io_done run in the server's thread when an operation
 * succeeded, with the bytes that it moved, where the server adds them up for the line "io"
 * of /proc/net/rpc/nfsd: totals equal that line. Server-side copies are in neither.
 *
 * svc_stats_latency runs when the reply to a request is complete. What moved no data is a
 * metadata operation, or a flush if it is a COMMIT. A compound of NFSv4 counts once, as at
 * the client.
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

/* What the requests that are worked on did so far. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64); /* struct svc_rqst * */
	__type(value, struct usage_key);
} requests SEC(".maps");

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
	bpf_map_update_elem(&requests, &rqst, &usage, BPF_ANY);
	return 0;
}

/* A request has its reply. */
__noinline int iot_replied(__u64 rqst)
{
	struct svc_rqst___more *request = (void *)rqst;
	struct svc_rqst *from = (void *)rqst;
	struct usage_key usage = { .source = IOT_NFSD, .op = IOT_META_OP }, *did;
	__u64 now = bpf_ktime_get_ns(), ns = 0;
	__u32 version, procedure;

	did = bpf_map_lookup_elem(&requests, &rqst);
	if (did) {
		usage = *did;
		bpf_map_delete_elem(&requests, &rqst);
	}
	if (!bpf_core_field_exists(request->rq_proc) || FIELD(request, rq_prog) != IOT_NFSD_PROGRAM)
		return 0;
	version = FIELD(request, rq_vers);
	procedure = FIELD(request, rq_proc);
	if (bpf_core_field_exists(request->rq_stime)) {
		ns = FIELD(request, rq_stime);
		ns = ns && ns < now ? now - ns : 0;
	}
	if (!did || usage.op == IOT_FLUSH) {
		if (procedure == IOT_NFSD_NULL)
			return 0;
		if (version < 4 && (procedure == IOT_NFSD_READ || procedure == (version == 2 ? IOT_NFSD_WRITE_2 : IOT_NFSD_WRITE)))
			return 0; /* it failed: nothing was read or written */
		if (version == 3 && procedure == IOT_NFSD_COMMIT_3)
			usage.op = IOT_FLUSH;
		if (bpf_core_field_exists(from->rq_addr))
			usage.cgroup = iot_client(&from->rq_addr);
		usage.basis = usage.cgroup ? IOT_TASK : IOT_NONE;
		iot_account(&usage, 0, 1);
		if (with_records)
			iot_record(&usage, now - ns, ns, 0, 0);
	}
	if (with_latency && ns)
		iot_latency(&usage, ns);
	return 0;
}

SEC("raw_tp/svc_stats_latency")
int iot_nfsd_replied(__u64 *ctx)
{
	return iot_replied(ctx[0]);
}

/* After each operation of a compound: its name is the fourth argument. */
SEC("raw_tp/nfsd_compound_status")
int iot_nfsd_compound(__u64 *ctx)
{
	struct usage_key usage = { .source = IOT_NFSD, .op = IOT_FLUSH };
	__u64 rqst;

	if (iot_word_at(ctx[3]) != IOT_OP_COMMIT)
		return 0;
	rqst = iot_current_rqst();
	if (rqst)
		bpf_map_update_elem(&requests, &rqst, &usage, BPF_NOEXIST); /* data that were moved win */
	return 0;
}

/*
 * Three programs: the server has many threads, and two of them may be preempted on one CPU,
 * each in another program, while a third one works.
 */
SEC("raw_tp/nfsd_read_io_done")
int iot_nfsd_read(__u64 *ctx)
{
	iot_tell(ctx[0], IOT_TOLD_READ);
	return iot_served(ctx[0], ctx[1], ctx[2], ctx[3], IOT_READ);
}

SEC("raw_tp/nfsd_read_io_done")
int iot_nfsd_read_redundant(__u64 *ctx)
{
	if (iot_is_told(ctx[0], IOT_TOLD_READ))
		return 0;
	iot_tell(ctx[0], IOT_TOLD_READ);
	iot_covered();
	return iot_served(ctx[0], ctx[1], ctx[2], ctx[3], IOT_READ);
}

SEC("raw_tp/nfsd_read_io_done")
int iot_nfsd_read_last(__u64 *ctx)
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
	if (iot_is_told(ctx[0], IOT_TOLD_WRITE))
		return 0;
	iot_tell(ctx[0], IOT_TOLD_WRITE);
	iot_covered();
	return iot_served(ctx[0], ctx[1], ctx[2], ctx[3], IOT_WRITE);
}

SEC("raw_tp/nfsd_write_io_done")
int iot_nfsd_write_last(__u64 *ctx)
{
	if (iot_was_told(ctx[0], IOT_TOLD_WRITE))
		return 0;
	iot_covered();
	return iot_served(ctx[0], ctx[1], ctx[2], ctx[3], IOT_WRITE);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
