/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The block layer's structs, as far as they are read, and the maps of the block source.
 */
#ifndef IOTRACE_BLOCK_TYPES_H
#define IOTRACE_BLOCK_TYPES_H

#include "core/kernel.h"
#include "core/page.h"
#include "core/types.h"

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct request_queue {
	struct gendisk *disk;
};

enum mq_rq_state {
	MQ_RQ_IDLE = 0, /* not (or no longer) with the driver */
};

struct request {
	struct request_queue *q;
	unsigned int cmd_flags;
	unsigned int __data_len;
	__u64 __sector;
	struct bio *bio;
	__u64 start_time_ns;
	enum mq_rq_state state;
};

/* The disk moved from the request to its queue in 5.17 (f3fa33acca9f, "block: remove the ->rq_disk field in struct request"). */
struct request___5_16 {
	struct gendisk *rq_disk;
};

/* A bio pointed to its disk until 5.11, then to a block_device (309dca309fc3, "block: store a block_device pointer in struct bio"). */
struct bio___5_11 {
	struct gendisk *bi_disk;
};

struct block_device___5_12 {
	struct gendisk *bd_disk;
};

struct bio___5_12 {
	struct block_device___5_12 *bi_bdev;
};

/* waiting */

struct swait_queue {
	struct task_struct *task;
	struct list_head task_list;
};

struct swait_queue_head {
	struct list_head task_list;
};

struct completion {
	struct swait_queue_head wait;
};

#pragma clang attribute pop

#define IOT_REQ_OP_MASK 0xff
#define IOT_REQ_META (1U << 12) /* __REQ_META has been bit 12 since 4.10 (ef295ecf090d) */
enum req_flag_bits {
	__REQ_SWAP = 24,
};

#define IOT_REQ_DRIVER 32 /* driver-private (passthrough) operations from here on: not in diskstats */

enum {
	IOT_OP_READ = 0,
	IOT_OP_FLUSH = 2,
	IOT_OP_DISCARD = 3,
	IOT_OP_SECURE_ERASE = 5,
	IOT_OP_WRITE_ZEROES = 9,
};

/* struct bvec_iter; from 7.1 on the last member is called bi_offset. */
struct iter {
	__u64 sector;
	__u32 size;
	__u32 idx;
	__u32 done; /* bytes of the vector that are behind it */
} __attribute__((packed));

static __always_inline void iot_read_iter(struct iter *iter, struct bio *bio)
{
	bpf_probe_read_kernel(iter, sizeof(*iter), &bio->bi_iter);
}

/* A plain load where the verifier knows the pointer's type: it is cheaper than a helper call. */
#define LOAD(typed, ptr, field) ((typed) ? (ptr)->field : FIELD(ptr, field))

static __always_inline struct gendisk *iot_bio_disk(const struct bio *bio)
{
	const struct bio___5_11 *old = (const void *)bio;
	const struct bio___5_12 *new = (const void *)bio;

	if (bpf_core_field_exists(old->bi_disk))
		return FIELD(old, bi_disk);
	return BPF_CORE_READ(new, bi_bdev, bd_disk);
}

static __always_inline __u32 iot_disk_dev(struct gendisk *disk)
{
	return FIELD(disk, major) << 20 | FIELD(disk, first_minor);
}

static __always_inline struct gendisk *iot_request_disk(struct request *rq, bool typed)
{
	struct request___5_16 *old = (void *)rq;
	struct request_queue *q;

	if (bpf_core_field_exists(old->rq_disk))
		return LOAD(typed, old, rq_disk);
	q = LOAD(typed, rq, q);
	return LOAD(typed, q, disk);
}

static __always_inline __u8 iot_block_op(__u32 op)
{
	if (op == IOT_OP_FLUSH)
		return IOT_FLUSH;
	if (op == IOT_OP_DISCARD)
		return IOT_DISCARD;
	return op & 1 ? IOT_WRITE : IOT_READ; /* as op_is_write() and diskstats have it */
}

static __always_inline bool iot_op_has_pages(__u32 op)
{
	return op != IOT_OP_FLUSH && op != IOT_OP_DISCARD && op != IOT_OP_SECURE_ERASE &&
	       op != IOT_OP_WRITE_ZEROES;
}

#endif
