/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Booking: every source counts through these and nothing else. */
#ifndef IOTRACE_ACCOUNT_H
#define IOTRACE_ACCOUNT_H

#include "maps.h"

/*
 * Values are per CPU, but an interrupt on this CPU may run another program that
 * books on the same row between our load and our store: so the additions are
 * atomic.
 */
static __always_inline void iot_add(struct usage *u, __u64 bytes, __u64 ops)
{
	__sync_fetch_and_add(&u->bytes, bytes);
	__sync_fetch_and_add(&u->ops, ops);
}

static __noinline int iot_account_new(const struct usage_key *key, void *map, __u64 bytes, __u64 ops)
{
	struct usage fresh = { .bytes = bytes, .ops = ops };
	struct usage_key rest = {};
	struct usage *u;
	long err;

	if (!key)
		return 0;
	if (map) {
		err = bpf_map_update_elem(map, key, &fresh, BPF_NOEXIST);
		if (!err)
			return 0;
		if (err == -EEXIST) { /* another CPU was first */
			u = bpf_map_lookup_elem(map, key);
			if (u) {
				iot_add(u, bytes, ops);
				return 0;
			}
		}
	}
	iot_lost(IOT_LOST_GROUPS, 1);
	rest.dev = key->dev;
	rest.source = key->source;
	rest.op = key->op;
	rest.flags = key->flags;
	u = bpf_map_lookup_elem(&overflow, &rest);
	if (u) {
		iot_add(u, bytes, ops);
		return 0;
	}
	if (bpf_map_update_elem(&overflow, &rest, &fresh, BPF_NOEXIST)) {
		u = bpf_map_lookup_elem(&overflow, &rest);
		if (u)
			iot_add(u, bytes, ops);
		else
			iot_lost(IOT_LOST_BYTES, bytes);
	}
	return 0;
}

/* Books bytes and ops on the row of key; falls back to the overflow rows, never loses them silently. */
static __always_inline void iot_account(const struct usage_key *key, __u64 bytes, __u64 ops)
{
	__u32 current = 0;
	struct usage *u;
	void *map;

	map = bpf_map_lookup_elem(&usages, &current);
	if (map) {
		u = bpf_map_lookup_elem(map, key);
		if (u) {
			iot_add(u, bytes, ops);
			return;
		}
	}
	iot_account_new(key, map, bytes, ops);
}

/* Index of the bucket of ns: four buckets to a power of two, see struct latency_key. */
static __always_inline __u32 iot_bucket(__u64 ns)
{
	__u32 log = 0;
	__u64 v = ns;

	if (ns < 4)
		return ns;
	if (v >> 32) { v >>= 32; log += 32; }
	if (v >> 16) { v >>= 16; log += 16; }
	if (v >> 8) { v >>= 8; log += 8; }
	if (v >> 4) { v >>= 4; log += 4; }
	if (v >> 2) { v >>= 2; log += 2; }
	if (v >> 1) log += 1;
	return (log << 2) | ((ns >> (log - 2)) & 3);
}

static __always_inline void iot_latency(const struct usage_key *key, __u64 ns)
{
	struct latency_key k = { .usage = *key };
	struct latency fresh = { .count = 1, .sum = ns, .max = ns };
	__u32 current = 0;
	struct latency *l;
	void *map;

	k.usage.basis = 0;
	k.usage.fsdev = key->fsdev;
	k.bucket = iot_bucket(ns);
	map = bpf_map_lookup_elem(&latencies, &current);
	if (!map)
		return;
	l = bpf_map_lookup_elem(map, &k);
	if (!l) {
		if (!bpf_map_update_elem(map, &k, &fresh, BPF_NOEXIST))
			return;
		l = bpf_map_lookup_elem(map, &k);
		if (!l) {
			iot_lost(IOT_LOST_LATENCIES, 1);
			return;
		}
	}
	__sync_fetch_and_add(&l->count, 1);
	__sync_fetch_and_add(&l->sum, ns);
	if (ns > l->max)
		l->max = ns;
}

/*
 * Hands one I/O to --events. Waking the reader costs more than all the rest, so
 * it is woken when a quarter of the ring is full; it looks by itself in between.
 */
static __always_inline void iot_record(const struct io_record *record)
{
	__u64 flags = BPF_RB_NO_WAKEUP;

	if (bpf_ringbuf_query(&records, BPF_RB_AVAIL_DATA) >= bpf_ringbuf_query(&records, BPF_RB_RING_SIZE) / 4)
		flags = BPF_RB_FORCE_WAKEUP;
	if (bpf_ringbuf_output(&records, (void *)record, sizeof(*record), flags))
		iot_lost(IOT_LOST_RECORDS, 1);
}

#endif
