/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Who waits for a bio that tells nothing about its owner. */
#ifndef IOTRACE_BLOCK_WAITER_H
#define IOTRACE_BLOCK_WAITER_H

#include "types.h"

/* Kernel stacks of x86-64 and arm64. */
#define IOT_STACK_SIZE 16384

/*
 * The task that waits for a completion on its own stack, as submit_bio_wait() does;
 * 0 if there is none. The completion's list of waiters leads to a task, whose stack
 * must hold both.
 */
__noinline __u64 iot_waiting(__u64 completion)
{
	struct completion *done = (void *)completion;
	struct list_head *head, *first;
	struct swait_queue *waiter;
	struct task_struct *task;
	__u64 stack;

	head = (void *)done + bpf_core_field_offset(struct completion, wait) +
	       bpf_core_field_offset(struct swait_queue_head, task_list);
	first = FIELD(head, next);
	if (!first || first == head || FIELD(first, prev) != head)
		return 0;
	waiter = (void *)first - bpf_core_field_offset(struct swait_queue, task_list);
	task = FIELD(waiter, task);
	stack = (__u64)FIELD(task, stack);
	if (!stack || completion - stack >= IOT_STACK_SIZE || (__u64)first - stack >= IOT_STACK_SIZE)
		return 0;
	return (__u64)task;
}

#define IOT_FOUND 1ULL

/*
 * The task that waits for a bio, with IOT_FOUND set, else the next bio of the chain; 0
 * where there is none: where bi_private holds something else, no disk is found in it.
 */
__noinline __u64 iot_chain_step(__u64 bio)
{
	__u64 next = (__u64)FIELD((struct bio *)bio, bi_private), task;

	if (!next)
		return 0;
	task = iot_waiting(next);
	if (task)
		return task | IOT_FOUND;
	return iot_bio_disk((struct bio *)next) == iot_bio_disk((struct bio *)bio) ? next : 0;
}

/* Two nested loops of this many rounds: a chain of 64 bios. */
#define IOT_CHAIN_ROUNDS 8

__noinline __u64 iot_chain_steps(__u64 bio)
{
	int i;

	for (i = 0; i < IOT_CHAIN_ROUNDS && bio && !(bio & IOT_FOUND); i++)
		bio = iot_chain_step(bio);
	return bio;
}

/*
 * The task that waits for a bio; 0 if there is none. A range that needs several bios
 * is a chain of them, and the task waits for the last one.
 */
__noinline __u64 iot_waiter(__u64 bio)
{
	int i;

	for (i = 0; i < IOT_CHAIN_ROUNDS && bio && !(bio & IOT_FOUND); i++)
		bio = iot_chain_steps(bio);
	return bio & IOT_FOUND ? bio & ~IOT_FOUND : 0;
}

#endif
