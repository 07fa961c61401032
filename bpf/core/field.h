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

/*
 * Plain loads of what has an address and no type, for what every request needs: the helper
 * that reads memory takes ten times as long. To the verifier each is of the first field of
 * a struct of vmlinux, any whose first field is a number of 64 bits, so it takes what was
 * loaded for a number. It takes longer to verify than the helper: a start with all fields
 * read like this took half as much system time again. What cannot be read is 0 either way.
 */
struct timespec64 {
	__s64 tv_sec;
};

#define HOT_AT(type, addr)                                                                      \
	({                                                                                      \
		__u64 __at = (__u64)(addr);                                                     \
		type __value = {};                                                              \
		if (CAN_CAST) {                                                                 \
			__value = *(type *)CAST(struct timespec64, __at);                       \
			barrier_var(__value); /* else clang merges it with a load from a map */ \
		} else {                                                                        \
			bpf_probe_read_kernel(&__value, sizeof(__value), (void *)__at);         \
		}                                                                               \
		__value;                                                                        \
	})

/* One field of at most 64 bits: as FIELD. */
#define HOT(ptr, field)                                                                                \
	({                                                                                             \
		typeof(ptr) __from = (ptr);                                                            \
		HOT_AT(__typeof_unqual__(__from->field), (__u64)__from + bpf_core_field_offset(__from->field)); \
	})

static __always_inline __u64 iot_hot_word(__u64 addr)
{
	return HOT_AT(__u64, addr);
}

static __always_inline __u32 iot_hot_u32(__u64 addr)
{
	return HOT_AT(__u32, addr);
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
