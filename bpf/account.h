/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Booking: every source counts with these functions only. */
#ifndef IOTRACE_ACCOUNT_H
#define IOTRACE_ACCOUNT_H

#include "maps.h"

/* In a section of its own: user space gives each program another value. */
const volatile __u32 seat SEC(".rodata.seat") = IOT_SEATS;

/*
 * Values are per CPU, but an interrupt on this CPU may run another program that
 * books on the same row between our load and our store. So additions are atomic.
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
	iot_lost(IOT_LOST_GROUPS, ops);
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

/* Books on the map itself, or on the overflow rows where it is full; lost bytes are counted. */
static __noinline int iot_account_map(const struct usage_key *key, __u64 bytes, __u64 ops)
{
	__u32 current = 0;
	struct usage *u;
	void *map;

	if (!key)
		return 0;
	map = bpf_map_lookup_elem(&usages, &current);
	if (map) {
		u = bpf_map_lookup_elem(map, key);
		if (u) {
			iot_add(u, bytes, ops);
			return 0;
		}
	}
	return iot_account_new(key, map, bytes, ops);
}

static __always_inline struct row_cache *iot_cache(void)
{
	__u32 zero = 0, *current = bpf_map_lookup_elem(&generation, &zero);

	return current ? bpf_map_lookup_elem(&row_caches, current) : NULL;
}

static __always_inline bool iot_same_words(const __u64 *a, const __u64 *b, int words)
{
	__u64 differ = 0;
	int i;

#pragma unroll
	for (i = 0; i < words; i++)
		differ |= a[i] ^ b[i];
	return !differ;
}

static __always_inline __u32 iot_cache_slot(const __u64 *key, int words)
{
	__u64 hash = 0;
	int i;

#pragma unroll
	for (i = 0; i < words; i++)
		hash = (hash ^ key[i]) * 0x9E3779B97F4A7C15ULL;
	return (hash >> 40) & (IOT_CACHE_ROWS - 1);
}

/*
 * Whether this program may change what the seats belong to; then it must call
 * iot_rise. Else another program of this CPU is about to change it, and this one
 * must do without: it books on the maps.
 *
 * All programs that share seats run on one CPU, so they see each other's loads and
 * stores in the order of the code; atomic instructions, which take as long as half of
 * a booking, are not needed. Two things put another program between any two of our
 * instructions:
 *
 * - An interrupt. What runs there is done before we go on: its seat is 0 again, or was
 *   1 because that program is below us as well. It may be the same program: then it
 *   finds its own seat taken and leaves it alone. If it came before we took the seat,
 *   it is done when we take it.
 * - Preemption: programs at fentry since 5.12, at tracepoints since 7.0. What runs then
 *   may stop anywhere too, and we go on in between. It is never the same program: such
 *   kernels skip a program while another run of it is in progress on the CPU.
 *
 * A program takes its seat first and looks at the others afterwards. Of two that are at
 * it at once, the one that took its seat last sees the other's: it cannot enter before
 * the other has risen. Both may see each other, and then both do without. So at most
 * one enters, and no seat stays taken. TestSeats in tracer tries all orders.
 */
static __always_inline bool iot_sit(volatile __u8 *seats)
{
	const volatile __u64 *words = (const volatile __u64 *)seats;
	__u32 mine = seat;
	__u64 taken = 0;
	int i;

	if (mine >= IOT_SEATS || seats[mine])
		return false;
	seats[mine] = 1;
	barrier();
	/* Each byte of the sum counts eight seats; so it never overflows. */
#pragma unroll
	for (i = 0; i < IOT_SEATS / 8; i++)
		taken += words[i];
	if (taken == 1ULL << (mine % 8 * 8)) {
		barrier();
		return true;
	}
	seats[mine] = 0;
	return false;
}

static __always_inline void iot_rise(volatile __u8 *seats)
{
	barrier();
	seats[seat & (IOT_SEATS - 1)] = 0;
}

#define IOT_USAGE_WORDS (sizeof(struct usage_key) / sizeof(__u64))
#define IOT_LATENCY_WORDS (sizeof(struct latency_key) / sizeof(__u64))

/* Books bytes and ops on the row of key. */
static __always_inline void iot_account(const struct usage_key *key, __u64 bytes, __u64 ops)
{
	struct row_cache *cache = iot_cache();
	struct cached_usage *row;

	if (!cache || !iot_sit(cache->seats)) {
		iot_account_map(key, bytes, ops);
		return;
	}
	row = &cache->usage[iot_cache_slot((const __u64 *)key, IOT_USAGE_WORDS)];
	if (iot_same_words((const __u64 *)&row->key, (const __u64 *)key, IOT_USAGE_WORDS)) {
		row->value.bytes += bytes;
		row->value.ops += ops;
	} else {
		if (row->key.source)
			iot_account_map(&row->key, row->value.bytes, row->value.ops);
		row->key = *key;
		row->value.bytes = bytes;
		row->value.ops = ops;
	}
	iot_rise(cache->seats);
}

/* Index of the bucket of ns: four buckets for each power of two, see struct latency_key. */
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

static __noinline int iot_latency_map(const struct latency_key *key, __u64 count, __u64 sum, __u64 max)
{
	struct latency fresh = { .count = count, .sum = sum, .max = max };
	__u32 current = 0;
	struct latency *l;
	void *map;

	if (!key)
		return 0;
	map = bpf_map_lookup_elem(&latencies, &current);
	if (!map)
		return 0;
	l = bpf_map_lookup_elem(map, key);
	if (!l) {
		if (!bpf_map_update_elem(map, key, &fresh, BPF_NOEXIST))
			return 0;
		l = bpf_map_lookup_elem(map, key);
		if (!l) {
			iot_lost(IOT_LOST_LATENCIES, count);
			return 0;
		}
	}
	__sync_fetch_and_add(&l->count, count);
	__sync_fetch_and_add(&l->sum, sum);
	if (max > l->max)
		l->max = max;
	return 0;
}

/* Counts one latency of ns under key. */
static __always_inline void iot_latency(const struct usage_key *key, __u64 ns)
{
	struct latency_key k = { .usage = *key };
	struct row_cache *cache = iot_cache();
	struct cached_latency *row;

	if (!count_latencies)
		return;
	k.usage.basis = 0;
	k.bucket = iot_bucket(ns);
	if (!cache || !iot_sit(cache->seats)) {
		iot_latency_map(&k, 1, ns, ns);
		return;
	}
	row = &cache->latency[iot_cache_slot((const __u64 *)&k, IOT_LATENCY_WORDS)];
	if (iot_same_words((const __u64 *)&row->key, (const __u64 *)&k, IOT_LATENCY_WORDS)) {
		row->value.count++;
		row->value.sum += ns;
		if (ns > row->value.max)
			row->value.max = ns;
	} else {
		if (row->key.usage.source)
			iot_latency_map(&row->key, row->value.count, row->value.sum, row->value.max);
		row->key = k;
		row->value.count = 1;
		row->value.sum = ns;
		row->value.max = ns;
	}
	iot_rise(cache->seats);
}

/*
 * Records one I/O for --events. It never wakes the reader: that would take longer
 * than everything else. The reader polls, the faster the more records come in.
 */
static __always_inline void iot_record(const struct io_record *record)
{
	__u32 zero = 0, *current = bpf_map_lookup_elem(&generation, &zero);
	struct record_batch *b = current ? bpf_map_lookup_elem(&batches, current) : NULL;

	if (!b || !iot_sit(b->seats)) {
		if (bpf_ringbuf_output(&records, (void *)record, sizeof(*record), BPF_RB_NO_WAKEUP))
			iot_lost(IOT_LOST_RECORDS, 1);
		return;
	}
	b->records[b->n & (IOT_BATCH - 1)] = *record;
	if (++b->n >= IOT_BATCH) {
		if (bpf_ringbuf_output(&records, b->records, sizeof(b->records), BPF_RB_NO_WAKEUP))
			iot_lost(IOT_LOST_RECORDS, IOT_BATCH);
		b->n = 0;
	}
	iot_rise(b->seats);
}

#endif
