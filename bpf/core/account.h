/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Booking: every source counts with these functions only.
 *
 * Functions that are not inlined are global and have numbers as arguments: the
 * verifier looks at such a function once for each program instead of once for each
 * call, and a start is mostly spent in the verifier. Pointers to structs as arguments
 * came in 5.12 only. So a key travels as its three words.
 */
#ifndef IOTRACE_ACCOUNT_H
#define IOTRACE_ACCOUNT_H

#include "hash.h"
#include "maps.h"

/* In a section of its own: user space gives each program another value. */
const volatile __u32 seat SEC(".rodata.seat") = IOT_SEATS;

/* A usage_key in words. */
union key_words {
	struct usage_key key;
	__u64 word[3];
};

_Static_assert(sizeof(struct usage_key) == sizeof(((union key_words *)0)->word), "usage_key is three words");

/*
 * An interrupt on this CPU, or another CPU, may run a program that books on the same
 * row between our load and our store. So additions to maps are atomic.
 */
static __always_inline void iot_add(struct usage *u, __u64 bytes, __u64 ops)
{
	__sync_fetch_and_add(&u->bytes, bytes);
	__sync_fetch_and_add(&u->ops, ops);
}

/* Adds to a row, which is made if it is not there; false if there is no room. */
static __always_inline bool iot_add_to(void *map, const struct usage_key *key, __u64 bytes, __u64 ops)
{
	struct usage fresh = { .bytes = bytes, .ops = ops };
	struct usage *u = bpf_map_lookup_elem(map, key);

	if (!u) {
		if (!bpf_map_update_elem(map, key, &fresh, BPF_NOEXIST))
			return true;
		u = bpf_map_lookup_elem(map, key); /* another CPU was first, or the map is full */
		if (!u)
			return false;
	}
	iot_add(u, bytes, ops);
	return true;
}

/*
 * Books on the map itself. Where it is full, books on the rows of (other), by source,
 * device and operation only; bytes that not even those can take are counted as lost.
 */
__noinline int iot_book_map(__u64 cgroup, __u64 devs, __u64 rest, __u64 bytes, __u64 ops)
{
	union key_words w = { .word = { cgroup, devs, rest } };
	__u32 current = 0;
	void *map = bpf_map_lookup_elem(&usages, &current);

	if (map && iot_add_to(map, &w.key, bytes, ops))
		return 0;
	iot_lost(IOT_LOST_GROUPS, ops);
	w.key.cgroup = 0;
	w.key.fsdev = 0;
	w.key.pid = 0;
	w.key.basis = 0;
	if (!iot_add_to(&overflow, &w.key, bytes, ops))
		iot_lost(IOT_LOST_BYTES, bytes);
	return 0;
}

static __always_inline struct row_cache *iot_cache(void)
{
	__u32 zero = 0, *current = bpf_map_lookup_elem(&generation, &zero);

	return current ? bpf_map_lookup_elem(&row_caches, current) : NULL;
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

#define IOT_CACHE_BITS 8 /* of IOT_CACHE_ROWS */

static __always_inline bool iot_same_key(const struct usage_key *key, __u64 cgroup, __u64 devs, __u64 rest)
{
	const __u64 *word = (const __u64 *)key;

	return !((word[0] ^ cgroup) | (word[1] ^ devs) | (word[2] ^ rest));
}

static __always_inline __u32 iot_cache_slot(__u64 cgroup, __u64 devs, __u64 rest)
{
	return iot_hash((cgroup + devs * 3) * 0xD6E8FEB86659FD93ULL ^ rest, IOT_CACHE_BITS);
}

/* Books bytes and operations on a row. */
__noinline int iot_book(__u64 cgroup, __u64 devs, __u64 rest, __u64 bytes, __u64 ops)
{
	struct row_cache *cache = iot_cache();
	struct cached_usage *row;
	const __u64 *old;
	__u64 *word;

	if (!cache || !iot_sit(cache->seats))
		return iot_book_map(cgroup, devs, rest, bytes, ops);
	row = &cache->usage[iot_cache_slot(cgroup, devs, rest) & (IOT_CACHE_ROWS - 1)];
	if (iot_same_key(&row->key, cgroup, devs, rest)) {
		row->value.bytes += bytes;
		row->value.ops += ops;
	} else {
		old = (const __u64 *)&row->key;
		if (row->key.source)
			iot_book_map(old[0], old[1], old[2], row->value.bytes, row->value.ops);
		word = (__u64 *)&row->key;
		word[0] = cgroup;
		word[1] = devs;
		word[2] = rest;
		row->value.bytes = bytes;
		row->value.ops = ops;
	}
	iot_rise(cache->seats);
	return 0;
}

static __always_inline void iot_account(const struct usage_key *key, __u64 bytes, __u64 ops)
{
	const __u64 *word = (const __u64 *)key;

	iot_book(word[0], word[1], word[2], bytes, ops);
}

/*
 * 1 if v is above limit, else 0; v < 2^63. Without a branch, which clang would make of
 * it: each one doubles what the verifier looks at.
 */
static __always_inline __u64 iot_above(__u64 v, __u64 limit)
{
	limit -= v;
	barrier_var(limit);
	return limit >> 63;
}

/* Index of the bucket of ns: four buckets for each power of two, see struct latency_key. */
static __always_inline __u32 iot_bucket(__u64 ns)
{
	__u64 v = ns & ~(1ULL << 63), log, n;

	if (v < 4)
		return v;
	n = iot_above(v, 0xffffffffULL) << 5, log = n, v >>= n;
	n = iot_above(v, 0xffffULL) << 4, log += n, v >>= n;
	n = iot_above(v, 0xffULL) << 3, log += n, v >>= n;
	n = iot_above(v, 0xfULL) << 2, log += n, v >>= n;
	n = iot_above(v, 3ULL) << 1, log += n, v >>= n;
	log += v >> 1;
	return (log << 2) | ((ns >> (log - 2)) & 3);
}

/* A latency on its way to the map; too much for the arguments of a function. */
static __always_inline void iot_latency_map(const struct latency_key *key, const struct latency *value)
{
	__u32 current = 0;
	struct latency *l;
	void *map;

	map = bpf_map_lookup_elem(&latencies, &current);
	if (!map)
		return;
	l = bpf_map_lookup_elem(map, key);
	if (!l) {
		if (!bpf_map_update_elem(map, key, value, BPF_NOEXIST))
			return;
		l = bpf_map_lookup_elem(map, key);
		if (!l) {
			iot_lost(IOT_LOST_LATENCIES, value->count);
			return;
		}
	}
	__sync_fetch_and_add(&l->count, value->count);
	__sync_fetch_and_add(&l->sum, value->sum);
	if (value->max > l->max)
		l->max = value->max;
}

/* Counts one latency of ns under a row, whose basis does not matter. */
__noinline int iot_book_latency(__u64 cgroup, __u64 devs, __u64 rest, __u64 ns)
{
	struct latency_key k = {};
	struct latency one = { .count = 1, .sum = ns, .max = ns };
	union key_words w = { .word = { cgroup, devs, rest } };
	struct row_cache *cache = iot_cache();
	struct cached_latency *row;
	const __u64 *word = (const __u64 *)&k;

	w.key.basis = 0;
	k.usage = w.key;
	k.bucket = iot_bucket(ns);
	if (!cache || !iot_sit(cache->seats)) {
		iot_latency_map(&k, &one);
		return 0;
	}
	row = &cache->latency[(iot_cache_slot(word[0], word[1], word[2]) + k.bucket) & (IOT_CACHE_ROWS - 1)];
	if (row->key.bucket == k.bucket && iot_same_key(&row->key.usage, word[0], word[1], word[2])) {
		row->value.count++;
		row->value.sum += ns;
		if (ns > row->value.max)
			row->value.max = ns;
	} else {
		if (row->key.usage.source) {
			one = row->value;
			iot_latency_map(&row->key, &one);
		}
		row->key = k;
		row->value.count = 1;
		row->value.sum = ns;
		row->value.max = ns;
	}
	iot_rise(cache->seats);
	return 0;
}

static __always_inline void iot_latency(const struct usage_key *key, __u64 ns)
{
	const __u64 *word = (const __u64 *)key;

	if (count_latencies)
		iot_book_latency(word[0], word[1], word[2], ns);
}

#endif
