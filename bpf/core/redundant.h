/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Redundant programs. The kernel skips a program while another run of it is in
 * progress on the same CPU. Where programs are preempted, on tracepoints since 7.0,
 * that happens. So a second program is attached behind the first one: it finds that
 * the work was not done, and does it. User space attaches redundant programs only
 * where the kernel can skip one.
 *
 * For a request, its flight shows whether the first program ran. What leaves no flight
 * leaves its address here.
 */
#ifndef IOTRACE_REDUNDANT_H
#define IOTRACE_REDUNDANT_H

#include "hash.h"
#include "maps.h"

/* A run that the kernel skipped was made up for. */
static __always_inline void iot_covered(void)
{
	iot_lost(IOT_COVERED, 1);
}

#ifdef IOT_TOLD
/*
 * What a program has seen and the last one has not seen yet, by address, for each of
 * IOT_TOLD hooks. Two in one slot would make one count twice: there are far more slots
 * than CPUs.
 */
#define IOT_TOLD_BITS 12

__u64 told[IOT_TOLD << IOT_TOLD_BITS];

static __always_inline __u64 *iot_told(__u64 id, __u32 hook)
{
	__u32 slot = hook << IOT_TOLD_BITS | iot_hash(id, IOT_TOLD_BITS);

	return &told[slot & ((IOT_TOLD << IOT_TOLD_BITS) - 1)];
}

static __always_inline void iot_tell(__u64 id, __u32 hook)
{
	*iot_told(id, hook) = id;
}

/* For a program between the first and the last one. */
static __always_inline bool iot_is_told(__u64 id, __u32 hook)
{
	return *iot_told(id, hook) == id;
}

/* For the last program. */
static __always_inline bool iot_was_told(__u64 id, __u32 hook)
{
	__u64 *seen = iot_told(id, hook);

	if (*seen != id)
		return false;
	*seen = 0;
	return true;
}
#endif

#endif
