/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Records of single I/Os, for --events. */
#ifndef IOTRACE_RECORD_H
#define IOTRACE_RECORD_H

#include "account.h"

/*
 * Records one I/O. It never wakes the reader: that would take longer than everything
 * else. The reader polls, the faster the more records come in.
 */
static __always_inline void iot_record(const struct usage_key *usage, __u64 issued, __u64 latency, __u64 offset,
				       __u64 bytes)
{
	struct io_record record = {
		.usage = *usage,
		.time = issued,
		.latency = latency,
		.offset = offset,
		.bytes = bytes,
	};
	__u32 zero = 0, *current = bpf_map_lookup_elem(&generation, &zero);
	struct record_batch *b = current ? bpf_map_lookup_elem(&batches, current) : NULL;

	if (!b || !iot_sit(b->seats)) {
		if (bpf_ringbuf_output(&records, &record, sizeof(record), BPF_RB_NO_WAKEUP))
			iot_lost(IOT_LOST_RECORDS, 1);
		return;
	}
	b->records[b->n & (IOT_BATCH - 1)] = record;
	if (++b->n >= IOT_BATCH) {
		if (bpf_ringbuf_output(&records, b->records, sizeof(b->records), BPF_RB_NO_WAKEUP))
			iot_lost(IOT_LOST_RECORDS, IOT_BATCH);
		b->n = 0;
	}
	iot_rise(b->seats);
}

#endif
