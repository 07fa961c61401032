// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Source block: requests that the block layer hands to a driver.
 *
 * block_rq_issue counts bytes and operations under their owners; block_rq_requeue
 * notes what the driver did not accept, so that it is not counted again and totals
 * equal /proc/diskstats; block_rq_complete adds device latency and errors. All of them
 * pass a request pointer, on every kernel since 5.10. Until 5.11 (a54895fa057c)
 * block_rq_issue has a queue before it: user space sets rq_is_second_arg then.
 *
 * Each hook exists as raw tracepoint and as BTF-typed tracepoint, whose loads are
 * cheaper. User space keeps the one that the kernel allows.
 */
#include "request.h"

#define RQ_ARG ((struct request *)(rq_is_second_arg ? ctx[1] : ctx[0]))
#define TYPED(rq) (CAN_CAST ? CAST(struct request, rq) : (rq))

/*
 * These are loaded without the parts that a host does not need (tracer/part.go). When one
 * is needed later, user space puts the program with it into one of these maps, and it runs
 * instead from then on: no request is missed or counted twice meanwhile.
 */
const volatile bool may_grow = false;

struct iot_successors {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u32);
};

struct iot_successors successors SEC(".maps");
struct iot_successors successors_btf SEC(".maps"); /* all programs of such a map are of one type */

#define IOT_MAY_GROW(map, slot)                           \
	do {                                              \
		if (may_grow)                             \
			bpf_tail_call(ctx, &(map), slot); \
	} while (0)

SEC("raw_tp/block_rq_issue")
int iot_rq_issue(__u64 *ctx)
{
	IOT_MAY_GROW(successors, 0);
	return iot_issue(RQ_ARG, false, IOT_WALK_ISSUE);
}

SEC("tp_btf/block_rq_issue")
int iot_rq_issue_btf(__u64 *ctx)
{
	IOT_MAY_GROW(successors_btf, 0);
	return iot_issue(TYPED(RQ_ARG), true, IOT_WALK_ISSUE);
}

SEC("raw_tp/block_rq_issue")
int iot_rq_issue_redundant(__u64 *ctx)
{
	IOT_MAY_GROW(successors, 1);
	return iot_issue_redundant(RQ_ARG, false);
}

SEC("tp_btf/block_rq_issue")
int iot_rq_issue_redundant_btf(__u64 *ctx)
{
	IOT_MAY_GROW(successors_btf, 1);
	return iot_issue_redundant(TYPED(RQ_ARG), true);
}

SEC("raw_tp/block_rq_requeue")
int iot_rq_requeue(__u64 *ctx)
{
	return iot_requeue(RQ_ARG);
}

SEC("raw_tp/block_rq_complete")
int iot_rq_complete(__u64 *ctx)
{
	return iot_complete((struct request *)ctx[0], ctx[1], ctx[2], false);
}

SEC("tp_btf/block_rq_complete")
int iot_rq_complete_btf(__u64 *ctx)
{
	return iot_complete(TYPED((struct request *)ctx[0]), ctx[1], ctx[2], true);
}

SEC("raw_tp/block_bio_queue")
int iot_bio_queue(__u64 *ctx)
{
	__u64 bio;

	/*
	 * Two loads that clang must not merge: it would add to ctx and load once, which
	 * the verifier of 5.10 refuses. Only one of them may run: a program that loads a
	 * second argument is refused by a tracepoint with one.
	 */
	if (bio_is_second_arg) {
		bio = ctx[1];
		asm volatile("/* second */" : "+r"(bio));
	} else {
		bio = ctx[0];
		asm volatile("/* first */" : "+r"(bio));
	}
	return iot_bio((struct bio *)bio);
}

/* Journals: journal.h. */

SEC("raw_tp/jbd2_handle_stats")
int iot_handle_stats(__u64 *ctx)
{
	return iot_journal_handle(ctx[0], ctx[1], ctx[7]);
}

SEC("raw_tp/jbd2_start_commit")
int iot_start_commit(__u64 *ctx)
{
	return iot_journal_commit(ctx[0], ctx[1]);
}

SEC("raw_tp/jbd2_end_commit")
int iot_end_commit(__u64 *ctx)
{
	return iot_journal_committed(ctx[0]);
}

SEC("raw_tp/ext4_ext_map_blocks_enter")
int iot_map_blocks(__u64 *ctx)
{
	return iot_journal_map((struct inode *)ctx[0], ctx[1]);
}

SEC("raw_tp/ext4_fc_commit_start")
int iot_fc_commit_start(__u64 *ctx)
{
	return iot_fast_commit((struct super_block *)ctx[0]);
}

SEC("raw_tp/ext4_fc_commit_stop")
int iot_fc_commit_stop(__u64 *ctx)
{
	return iot_fast_committed((struct super_block *)ctx[0]);
}

/* XFS: xfs.h. */

SEC("raw_tp/xfs_log_ticket_ungrant")
int iot_xfs_ungrant(__u64 *ctx)
{
	return iot_xfs_logged(ctx[0], ctx[1], true);
}

SEC("raw_tp/xfs_log_ticket_regrant")
int iot_xfs_regrant(__u64 *ctx)
{
	return iot_xfs_logged(ctx[0], ctx[1], false);
}

SEC("raw_tp/xfs_setfilesize")
int iot_xfs_written(__u64 *ctx)
{
	return iot_xfs_range(ctx[0], ctx[1]);
}

SEC("raw_tp/writeback_single_inode_start")
int iot_xfs_flush(__u64 *ctx)
{
	return iot_xfs_writeback((struct inode *)ctx[0]);
}

SEC("raw_tp/xfs_inode_set_need_inactive")
int iot_xfs_removed(__u64 *ctx)
{
	return iot_xfs_leave(ctx[0]);
}

SEC("raw_tp/xfs_inode_inactivating")
int iot_xfs_inactivate(__u64 *ctx)
{
	return iot_xfs_free(ctx[0]);
}

SEC("raw_tp/writeback_single_inode")
int iot_xfs_done(__u64 *ctx)
{
	return iot_xfs_thread_done();
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
