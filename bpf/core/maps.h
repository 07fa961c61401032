/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The maps that all programs share. Every object declares them; user space makes them
 * once and passes them to each object that it loads.
 */
#ifndef IOTRACE_MAPS_H
#define IOTRACE_MAPS_H

#include <stdbool.h>
#include "types.h"
#include "kernel.h"

/* Tunables; user space sets them before load. */
const volatile __u32 hierarchy_id = 0; /* the hierarchy that names cgroups: 0 is cgroup2 */
const volatile __u32 page_shift = 12; /* of a page of the running kernel: 14 or 16 on some arm64 */
const volatile bool by_process = false; /* key by pid */
const volatile bool by_mount = false; /* key by file system */
const volatile bool by_file = false; /* user space may ask for files (file_switch); then by_mount is set as well */
const volatile bool with_latency = false;
const volatile bool count_latencies = false; /* in buckets; off where only records have latencies */
const volatile bool with_records = false;
const volatile bool with_app = false; /* count system calls as well as requests (IOT_APP) */
const volatile bool blkcg_usable = false; /* memory and io controllers share one hierarchy */

#define IOT_PAGE_SHIFT page_shift

/*
 * There are two maps of totals: programs write to the one in slot 0; user space puts
 * the other one there and then reads the first. The kernel's update of a map in a map
 * waits for an RCU grace period, so no program writes to the map that is read: nothing
 * is lost, and nothing is counted twice.
 *
 * Not per CPU: most updates hit row_caches, and few arrive here. Preallocated, because
 * an allocation in an interrupt fails now and then.
 */
struct usage_map {
	__uint(type, BPF_MAP_TYPE_HASH);
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
 * Likewise, but where the kernel can allocate elements anywhere, user space has it
 * allocate those of latencies as they come: few hosts need many.
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

/* Two of these as well: generation says which one programs use; it changes before the maps do. */
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
 * I/O is booked here when the usage map is full, by source, device and operation only,
 * so that the totals of devices stay right. User space never empties it.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
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

/* When the first interval began (CLOCK_MONOTONIC, ns), set by user space; 0 until then. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} begun_at SEC(".maps");

/* Records on their way to the ring; by generation, as row_caches. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct record_batch);
} batches SEC(".maps");

/* One record per I/O (--events); without --events user space makes it tiny. */
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

/* Removed owners: since 7.1 their obj_cgroup gives its pages to the parent (core.bpf.c). */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64); /* struct obj_cgroup * */
	__type(value, __u64);
} dead_owners SEC(".maps");

/* Names of processes, for --by process: many end before user space can ask. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct comm);
} comms SEC(".maps");

/* Whether rows have files (1) or file systems: the screen asks for files when one wants to see them. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} file_switch SEC(".maps");

/* The files that rows name by number (IOT_FILE): user space forgets those that are idle. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct file_record);
} files SEC(".maps");

static __always_inline void iot_lost(__u32 which, __u64 n)
{
	__u64 *count = bpf_map_lookup_elem(&losses, &which);

	if (count)
		__sync_fetch_and_add(count, n); /* an interrupt may count here as well */
}

/*
 * Whether a request was made after the first interval began. If not, it may have been
 * sent before we attached: its end without its beginning is no loss.
 */
static __always_inline bool iot_is_ours(__u64 start)
{
	__u32 zero = 0;
	__u64 *at = bpf_map_lookup_elem(&begun_at, &zero);

	return at && *at && start > *at;
}

#endif
