/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The maps that all programs share. Every object declares them, user space
 * makes them once and hands them to each object when it is loaded.
 */
#ifndef IOTRACE_MAPS_H
#define IOTRACE_MAPS_H

#include "iotrace.h"
#include "kernel.h"

#define E2BIG 7
#define EEXIST 17

/* Tunables; user space sets them before load. */
const volatile __u32 hierarchy_id = 0; /* the hierarchy that names cgroups: 0 is cgroup2 */
const volatile bool by_process = false; /* key by pid */
const volatile bool by_mount = false; /* key by file system */
const volatile bool with_latency = false;
const volatile bool count_latencies = false; /* in buckets; off where records alone have them */
const volatile bool with_records = false;
const volatile bool with_app = false; /* count system calls beside requests (IOT_APP) */
const volatile bool have_bpf_loop = false;
const volatile bool blkcg_usable = false; /* memory and io controllers share one hierarchy */
const volatile __u32 self_pid = 0;

/*
 * Totals are kept twice: programs write to the map in slot 0, user space puts
 * the other map there and reads the first one at rest. The kernel's update of a
 * map in a map waits for an RCU grace period, so that no program still writes
 * to a map being read: nothing is lost and nothing counted twice.
 */
struct usage_map {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct usage_key);
	__type(value, struct usage);
} usage_a SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct usage_map);
} usages SEC(".maps");

/*
 * Not per CPU: rows in use are in row_caches, and few come by here. Allocated
 * ahead, because an allocation from interrupts fails now and then.
 */
struct latency_map {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 32768);
	__type(key, struct latency_key);
	__type(value, struct latency);
} latency_a SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct latency_map);
} latencies SEC(".maps");

/* Kept twice as well: which one programs use is in generation, changed before the maps are. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct row_cache);
} row_caches SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} generation SEC(".maps");

/*
 * Where I/O goes when the usage map is full: keyed by source, device and
 * operation alone, so that devices still add up. Never emptied while running.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct usage_key);
	__type(value, struct usage);
} overflow SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, IOT_LOSSES);
	__type(key, __u32);
	__type(value, __u64);
} losses SEC(".maps");

/* Records on their way to the ring; by generation, as row_caches. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct record_batch);
} batches SEC(".maps");

/* One record per I/O (--events); made tiny by user space when not asked for. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 8 << 20);
	__type(value, struct io_record);
} records SEC(".maps");

/* cgroups created and removed, modules loaded: always on. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
	__type(value, struct notice);
} notices SEC(".maps");

/* The last cgroup that made a folio dirty, where that is not the folio's own owner. */
struct note {
	__u64 cgroup;
	__u64 mapping; /* struct address_space *; with index: so that a reused folio inherits nothing */
	__u64 index;
	__u32 pid;
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 131072);
	__type(key, __u64); /* struct folio * */
	__type(value, struct note);
} notes SEC(".maps");

/* Owners that died: from 7.1 on their obj_cgroup hands its pages to the parent (core.bpf.c). */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64); /* struct obj_cgroup * */
	__type(value, __u64);
} dead_owners SEC(".maps");

/* Names of processes, for --by process: many are gone before user space could ask. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct comm);
} comms SEC(".maps");

static __always_inline void iot_lost(__u32 which, __u64 n)
{
	__u64 *count = bpf_map_lookup_elem(&losses, &which);

	if (count)
		__sync_fetch_and_add(count, n); /* an interrupt may count here as well */
}

#endif
