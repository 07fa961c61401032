/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef IOTRACE_HASH_H
#define IOTRACE_HASH_H

#include <linux/types.h>

#define IOT_GOLDEN 0x9E3779B97F4A7C15ULL /* 2^64 divided by the golden ratio */

/* A hash of `bits` bits of an address or another word (Knuth's multiplicative hash). */
static __always_inline __u32 iot_hash(__u64 word, __u32 bits)
{
	return word * IOT_GOLDEN >> (64 - bits);
}

#endif
