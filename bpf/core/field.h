/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Reading the kernel's memory. */
#ifndef IOTRACE_FIELD_H
#define IOTRACE_FIELD_H

#include <linux/types.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

/*
 * Reads one field. The pointer is evaluated first: else CO-RE would also relocate the
 * access to the member of our own struct that holds the pointer.
 */
#define FIELD(ptr, field)                         \
	({                                        \
		typeof(ptr) __from = (ptr);       \
		BPF_CORE_READ(__from, field);     \
	})

extern void *bpf_rdonly_cast(const void *obj, __u32 btf_id) __ksym __weak; /* since 6.2 (a35b9af4ec2c) */

/*
 * A pointer of a type of vmlinux, through which plain loads are allowed, wherever the
 * kernel can make one. Where the kernel itself made the pointer it trusts it: since 6.3
 * (6fcd486b3a0a) the verifier then searches all of the kernel's types for each pointer
 * that is loaded through it, some milliseconds each. This one it does not trust.
 */
#define CAN_CAST (!!bpf_rdonly_cast)
#define CAST(type, ptr) ((type *)bpf_rdonly_cast((const void *)(ptr), bpf_core_type_id_kernel(type)))

static __always_inline __u64 iot_word_at(__u64 addr)
{
	__u64 word = 0;

	bpf_probe_read_kernel(&word, sizeof(word), (void *)addr);
	return word;
}

static __always_inline __u32 iot_u32_at(__u64 addr)
{
	__u32 word = 0;

	bpf_probe_read_kernel(&word, sizeof(word), (void *)addr);
	return word;
}

/* A pointer without its type, for global functions and plain arithmetic. */
static __always_inline __u64 iot_untyped(const void *ptr)
{
	__u64 word = 0;

	bpf_probe_read_kernel(&word, sizeof(word), &ptr);
	return word;
}

/*
 * An argument of a program at fentry or a typed tracepoint, without its type: the
 * verifier forbids arithmetic on the typed one.
 */
static __always_inline __u64 iot_arg(const __u64 *ctx, int n)
{
	return iot_word_at((__u64)&ctx[n]);
}

#endif
