/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Requests in flight: from the hook that sees a request begin to the one that sees its
 * end. The table is direct-mapped by the request's address, in sets of four: requests
 * are reused, and an array takes a fraction of the time of a hash. Where more than four
 * that are in flight share a set, one is displaced: its end loses its latency (counted).
 * Sources that book at the end would lose its owner, and a file system may send ten
 * thousand small files at once: they say IOT_SPILLS, and have the others in a hash.
 *
 * A source includes this after it said how many there may be: IOT_FLIGHT_BITS.
 */
#ifndef IOTRACE_FLIGHT_H
#define IOTRACE_FLIGHT_H

#include "hash.h"
#include "record.h"

#define IOT_WAY_BITS 2
#define IOT_WAYS (1 << IOT_WAY_BITS)

struct flight_set {
	struct flight way[IOT_WAYS];
};

/* The kernel aligns maps that user space may map into memory with pages: so a flight is one cache line. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1 << (IOT_FLIGHT_BITS - IOT_WAY_BITS));
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct flight_set);
} flights SEC(".maps");

static __always_inline struct flight_set *iot_flight_set(__u64 id)
{
	__u32 slot = iot_hash(id, IOT_FLIGHT_BITS - IOT_WAY_BITS);

	return bpf_map_lookup_elem(&flights, &slot);
}

#define IOT_FULL (2 * IOT_WAYS)

/*
 * Where in its set the flight of a request is. If it is not there, IOT_WAYS plus a free
 * place, or IOT_FULL. A global function: its callers would be looked at once for each
 * place otherwise.
 */
__noinline int iot_flight_way(__u64 id)
{
	struct flight_set *set = iot_flight_set(id);
	int i;

	if (!set || !id) /* a free place has the id 0 */
		return IOT_FULL;
#pragma unroll
	for (i = 0; i < IOT_WAYS; i++)
		if (set->way[i].id == id)
			return i;
#pragma unroll
	for (i = 0; i < IOT_WAYS; i++)
		if (!set->way[i].id || set->way[i].state & IOT_OVER)
			return IOT_WAYS + i;
	return IOT_FULL;
}

static __always_inline struct flight *iot_flight_at(__u64 id, __u32 way)
{
	struct flight_set *set = iot_flight_set(id);

	if (!set)
		return NULL;
	barrier_var(way); /* else clang leaves out the mask, which the verifier needs */
	return &set->way[way & (IOT_WAYS - 1)];
}

#ifdef IOT_SPILLS
/* Where the kernel can allocate elements anywhere, user space has it do so. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64); /* the request's address */
	__type(value, struct flight);
} spilled SEC(".maps");

__u64 spills = 0; /* elements of it: while there are none, nobody looks */

static const struct flight no_flight;

static __always_inline struct flight *iot_spilled(__u64 id)
{
	return spills ? bpf_map_lookup_elem(&spilled, &id) : NULL;
}

/* A place in it for the flight of a request; NULL where it is full. */
static __always_inline struct flight *iot_spill(__u64 id)
{
	if (bpf_map_update_elem(&spilled, &id, &no_flight, BPF_NOEXIST))
		return NULL;
	__sync_fetch_and_add(&spills, 1);
	return bpf_map_lookup_elem(&spilled, &id);
}

__noinline int iot_unspill(__u64 id)
{
	if (spills && !bpf_map_delete_elem(&spilled, &id))
		__sync_fetch_and_add(&spills, -1);
	return 0;
}
#else
static __always_inline struct flight *iot_spilled(__u64 id) { return NULL; }
static __always_inline struct flight *iot_spill(__u64 id) { return NULL; }
static __always_inline int iot_unspill(__u64 id) { return 0; }
#endif

/* The flight of a request; NULL where there is none. */
static __always_inline struct flight *io_flight(__u64 id)
{
	__u32 way = iot_flight_way(id);

	return way < IOT_WAYS ? iot_flight_at(id, way) : iot_spilled(id);
}

/* A request begins whose iot_flight_way is known: see io_begin. */
static __always_inline struct flight *io_begin_at(__u64 id, __u32 way, const struct usage_key *usage, __u64 issued,
						  __u64 offset)
{
	struct flight *f = way < IOT_WAYS ? NULL : iot_spilled(id);

	if (!f && way == IOT_FULL)
		f = iot_spill(id);
	if (!f)
		f = iot_flight_at(id, way);
	if (!f)
		return NULL;
	f->usage = *usage;
	f->issued = issued;
	f->offset = offset;
	f->bytes = 0;
	f->state = 0;
	f->word = 0;
	f->id = id;
	return f;
}

/* A request begins. usage is its row, or the first of its rows. NULL is for the verifier: it never happens. */
static __always_inline struct flight *io_begin(__u64 id, const struct usage_key *usage, __u64 issued, __u64 offset)
{
	return io_begin_at(id, iot_flight_way(id), usage, issued, offset);
}

static __always_inline void io_forget(struct flight *f)
{
	__u64 id = f->id;

	f->id = 0;
	iot_unspill(id);
}

/* A request has ended, but the kernel may send it once more. */
static __always_inline void io_over(struct flight *f, __u32 state)
{
	f->state = state | IOT_OVER;
	iot_unspill(f->id);
}

/*
 * A request ends: its latency, its error, and its record unless its parts have records
 * already (IOT_RECORDED). Bytes and the operation itself are booked by the source: when
 * the request begins or when it ends, as the kernel's own counters do.
 */
static __always_inline void io_end(struct flight *f, const struct usage_key *usage, __u64 latency, __u64 bytes,
				   bool failed)
{
	struct usage_key row = *usage;

	if (f->issued)
		iot_latency(&row, latency);
	if (failed) {
		row.flags |= IOT_ERROR;
		iot_account(&row, 0, 1);
	}
	if (with_records && !(f->state & IOT_RECORDED))
		iot_record(&row, f->issued, latency, f->offset, bytes);
}

#endif
