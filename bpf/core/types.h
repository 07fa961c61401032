/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the programs share with user space: each such struct is defined here, once,
 * and bpf2go makes the Go types from it.
 *
 * Terms are those of user space: pid is what the kernel calls tgid. Sizes are in
 * bytes, times in nanoseconds of CLOCK_MONOTONIC. A device is the kernel's dev_t:
 * major << 20 | minor.
 */
#ifndef IOTRACE_H
#define IOTRACE_H

#include <linux/types.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

enum iot_source {
	IOT_BLOCK = 1,
	IOT_NFS = 2,
	IOT_FUSE = 3,
	IOT_SMB = 4,
	IOT_P9 = 5,
	IOT_NFSD = 6,
	IOT_CEPH = 7,
};

enum iot_op {
	IOT_READ = 1,
	IOT_WRITE = 2,
	IOT_DISCARD = 3,
	IOT_FLUSH = 4, /* block flush, NFS COMMIT, FUSE FSYNC */
	IOT_META_OP = 5, /* lookups, opens, getattrs: operations without data */
	IOT_RETRANSMIT = 6, /* what was sent once more; not in the other operations */
};

/* How the owner was found. */
enum iot_basis {
	IOT_NONE = 0,
	IOT_DIRTIER = 1,
	IOT_PAGE = 2,
	IOT_BIO = 3,
	IOT_TASK = 4,
	IOT_JOURNAL = 5, /* a share of the transaction: less sure than a page, surer than the bio */
};

enum iot_flag {
	IOT_META = 1, /* file-system metadata or journal (REQ_META) */
	IOT_APP = 4, /* application level: system calls, not the wire */
	IOT_ERROR = 8, /* the request failed */
};

/* Owners that are no cgroup: these and clients (client.h). Kernel ids of cgroups start at 1 and never reach them. */
#define IOT_CGROUP_NONE 0ULL /* unattributed */
#define IOT_CGROUP_KERNEL (~0ULL) /* metadata and journals without an owner */

struct usage_key {
	__u64 cgroup;
	__u32 dev;
	__u32 fsdev; /* device of the file system's superblock, or a file (IOT_FILE); 0 when not asked for */
	__u32 pid; /* 0 when not asked for */
	__u8 source;
	__u8 op;
	__u8 basis;
	__u8 flags;
};

struct usage {
	__u64 bytes;
	__u64 ops;
};

/*
 * Latencies are counted in buckets, four for each power of two: a quantile from them
 * is at most 25 % above the true value.
 */
struct latency_key {
	struct usage_key usage; /* basis is always 0 here */
	__u32 bucket;
	__u32 pad;
};

struct latency {
	__u64 count;
	__u64 sum;
	__u64 max;
};

/*
 * A cache of rows in front of the maps: an array takes a third of the time of a hash.
 * Each CPU has its own. A row that another one displaces goes to the map. Each program
 * has a seat, which is 1 while the program may change the cache: see iot_sit.
 */
#define IOT_CACHE_ROWS 256
#define IOT_SEATS 64 /* one cache line; a program without a seat books on the maps */

struct cached_usage {
	struct usage_key key; /* source is 0 while unused */
	struct usage value;
};

struct cached_latency {
	struct latency_key key;
	struct latency value;
};

struct row_cache {
	__u8 seats[IOT_SEATS];
	struct cached_usage usage[IOT_CACHE_ROWS];
	struct cached_latency latency[IOT_CACHE_ROWS];
};

/*
 * A request between its begin and its end: flight.h. It has the size of a cache line.
 */
struct flight {
	__u64 id; /* the request's address in the kernel; 0: free */
	__u64 issued; /* 0: not known */
	struct usage_key usage; /* its row, or the first of its rows */
	__u64 offset; /* bytes from the start of the device or file */
	__u64 word; /* the source's own */
	__u32 bytes; /* as asked for */
	__u32 state; /* of enum iot_flight_state */
};

enum iot_flight_state {
	IOT_RECORDED = 1, /* --events has it already */
	IOT_SEVERAL = 2, /* it has several owners */
	IOT_LATE = 4, /* block: its owner is looked for at its end, it is not booked yet */
	IOT_BACK = 8, /* block: requeued, and not issued again yet */
	IOT_SUBMITTED = 16, /* fuse: submitted, and not sent yet */
	IOT_OVER = 32, /* nfs: ended, but the kernel may send it once more */
	IOT_BY_FUNCTION = 64, /* nfs: booked by the function; its tracepoint must not book it again */
};

/* The backing file of a loop device. */
struct loop_file {
	__u64 file; /* struct file, and its inode: another attachment has others */
	__u64 inode;
	__u64 offset; /* of the device's first byte in the file */
	__u64 mapping; /* of the inode that has the data: below overlayfs another one */
	__u64 magic; /* of that inode's file system */
	__u32 fsdev;
	__u32 ino; /* its lower half */
	__u32 notes; /* whether requests leave notes: not where the file is in memory */
	__u32 pad;
};

/* Where struct loop_device has what is needed; user space reads it from the kernel's types. */
struct loop_fields {
	__u32 known;
	__u32 file;
	__u32 offset;
	__u32 pad;
};

/*
 * One hop from the bio of a stacked driver or file system towards the pages that it was
 * made from; tracer/hop.go has the table. A hop begins at the bio, or at what its bi_private
 * points to, and follows pointers. A check is a function that must be at check_at before the
 * pointer at `at` is followed; 0 checks nothing. base is added at the end.
 */
enum iot_hop_kind {
	IOT_HOP_CLONE = 1, /* to a bio with the same vectors */
	IOT_HOP_COPY = 2, /* to the bio whose data were copied */
	IOT_HOP_FALLBACK = 3, /* likewise, a bio of which several were made (blk-crypto) */
	IOT_HOP_STRIPE = 4, /* to a stripe of RAID 4, 5 or 6 */
	IOT_HOP_EXTENT = 5, /* to a range of a file that was compressed into the bio */
	IOT_HOP_SUBMITTER = 6, /* nowhere: the pages belong to the task that submitted the bio */
	IOT_HOP_METADATA = 7, /* nowhere: the driver's own records */
};

#define IOT_HOP_LOADS 3

struct hop_load {
	__u64 check;
	__s32 check_at;
	__s32 at;
};

struct hop {
	__u32 kind;
	__u32 from_private;
	__u32 loads;
	__s32 base;
	struct hop_load load[IOT_HOP_LOADS];
	/* IOT_HOP_EXTENT: offsets from where the hop leads; 0 where there is no such field */
	__s32 inode;
	__s32 vfs_inode; /* from the inode found there */
	__s32 start; /* of the range in the file */
	__s32 start_again; /* equal to the field at start where length and packed are valid */
	__s32 length; /* bytes of the range */
	__s32 packed; /* bytes after compression */
	/* IOT_HOP_STRIPE: offsets in struct stripe_head, then in each of its struct r5dev */
	__u32 disks;
	__u32 devs;
	__u32 dev_size; /* of struct r5dev */
	__u32 own; /* the bios that the device itself is written or read for */
	__u32 others; /* the bios that parity is written, or old data are read, for */
	__u32 sector;
};

/*
 * With --by file the word fsdev of a row has one of these instead of a device. The number
 * of a file is a hash of what identifies it, so it is the same when the file is seen again.
 */
#define IOT_FILE 0x80000000U /* no device number has this bit: a major has 12 bits, and none is above 511 */
#define IOT_FILE_SWAP (IOT_FILE | 1)
#define IOT_FILE_METADATA (IOT_FILE | 2) /* of a file system, in no page of a file or device */
#define IOT_FILE_JOURNAL (IOT_FILE | 3)
#define IOT_FILE_DEVICE (IOT_FILE | 4) /* direct I/O of a block device */
#define IOT_FILE_OTHER (IOT_FILE | 5) /* there was no room for one more file */
#define IOT_FILE_FIRST (IOT_FILE | 16)

/* A file: of two with the same device and number the other fields differ. */
struct file_record {
	__u64 ino;
	__u64 inode; /* its address when it was seen last */
	__u64 at; /* an address with more that identifies it; 0: nothing */
	__u32 words; /* so many words are there */
	__u32 more; /* their hash */
	__u32 generation;
	__u32 dev; /* of the superblock */
	__u32 rdev; /* of a block device */
	__u32 mode;
};

/* Names of a file, from the last one up: each ends with NUL. */
#define IOT_PATH_BYTES 4096
#define IOT_COMPONENT_MAX 256 /* NAME_MAX is 255 */
#define IOT_PATH_DEPTH 64

enum iot_name_state {
	IOT_NAME_GONE = 1, /* the inode has another file, or none: nothing else is valid */
	IOT_NAME_NONE = 2, /* the kernel remembers no name */
	IOT_NAME_REMOVED = 4, /* the name, or the file, was removed */
	IOT_NAME_PARTIAL = 8, /* the upper part of the path is missing */
};

struct file_name {
	__u32 state;
	__u32 links; /* names that the file has */
	__u32 bytes; /* of text */
	__u32 depth; /* names in text */
	char text[IOT_PATH_BYTES + IOT_COMPONENT_MAX];
};

/* A page of a file, whether it is cached or not. */
struct file_page {
	__u64 mapping;
	__u64 index; /* IOT_ANY_PAGE: the last request to any page */
};

#define IOT_ANY_PAGE (~0ULL)

struct page_note {
	__u64 owner; /* packed: cgroup.h */
	__u32 pid;
	__u32 ino; /* lower half: another inode at the same address does not inherit the note */
};

/* One request, for --events. */
struct io_record {
	struct usage_key usage;
	__u64 time; /* when it was issued */
	__u64 latency; /* 0 when not measured */
	__u64 offset; /* bytes from the start of the device or file */
	__u64 bytes;
};

/*
 * Records go to the ring in batches of so many: the ring has one lock for all CPUs,
 * which would take as long as everything else. User space reads unfinished batches
 * with the totals. seats is as in struct row_cache.
 */
#define IOT_BATCH 16

struct record_batch {
	__u8 seats[IOT_SEATS];
	__u64 n;
	struct io_record records[IOT_BATCH];
};

enum iot_notice_kind {
	IOT_CGROUP_CREATED = 1,
	IOT_CGROUP_REMOVED = 2,
	IOT_MODULE_LOADED = 3,
	IOT_MODULE_FREED = 4,
	IOT_MOUNTING = 5, /* text is the source's name */
};

#define IOT_TEXT_MAX 1024 /* the kernel's TRACE_CGROUP_PATH_LEN */

/* A rare event; text is a cgroup path or a module's name, cut to its length. */
struct notice {
	__u64 cgroup;
	__u32 kind;
	__u32 len; /* of text, the final NUL included */
	char text[IOT_TEXT_MAX];
};

enum iot_loss {
	IOT_LOST_RECORDS,
	IOT_LOST_NOTICES,
	IOT_LOST_LATENCIES,
	IOT_LOST_GROUPS, /* I/Os that were booked on the overflow rows */
	IOT_LOST_WALKS, /* requests with more pages or owners than were looked at */
	IOT_LOST_BYTES, /* bytes that not even an overflow row could take */
	IOT_NOTES_WRITTEN,
	IOT_COVERED, /* runs that the kernel skipped and a redundant program made up for */
	IOT_UNSEEN, /* requests whose end no program saw */
	IOT_LOST_NOTES, /* notes about who made a page or a file dirty: there was no room */
	IOT_LOST_FILES, /* requests of files that there was no room for */
	IOT_LOSSES,
};

struct comm {
	char name[16];
};

/* An IPv6 address in network byte order. */
struct client_address {
	__u64 word[2];
};

/* Where the client is in a COPY of NFSv4.2, and in the client its address; 0: not known. */
struct copy_fields {
	__u32 client;
	__u32 address;
};

/* From where a mounted file system's requests are sent. Of IPv4 the address is the lower half of the first word. */
struct source_address {
	__u32 family; /* AF_INET or AF_INET6 */
	__u32 pad;
	struct client_address address;
};

#endif
