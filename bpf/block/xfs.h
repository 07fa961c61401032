/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The log and the metadata of XFS. Its log is written from buffers of its own, metadata by
 * xfsaild up to a minute after the change, and neither has a page that tells an owner.
 *
 * So shares are kept here as well. A transaction's ticket says at its end how many bytes it
 * put into the checkpoint that is open (t_unit_res less t_curr_res; the checkpoint cannot
 * close meanwhile, fs/xfs/xfs_log_cil.c, xlog_cil_commit). Bytes of the log are dealt out
 * by the checkpoint that is written, those of metadata by what was logged lately.
 *
 * XFS may be a module: user space reads where the fields of its structs are.
 */
#ifndef IOTRACE_BLOCK_XFS_H
#define IOTRACE_BLOCK_XFS_H

#include "hop.h"
#include "journal.h"

#define IOT_XFS_MAGIC 0x58465342 /* include/uapi/linux/magic.h */
#define IOT_REQ_SYNC (1U << 11) /* __REQ_SYNC, as IOT_REQ_META; XFS sets it for its log and not for metadata */

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct bio___device {
	struct block_device *bi_bdev;
};

#pragma clang attribute pop

/* Where fields of XFS are, in bytes. */
struct xfs_fields {
	__u32 live; /* 0 until there was an XFS on this host */
	__u32 mount; /* in struct xlog: l_mp */
	__u32 targ; /* l_targ, the device that the log is on */
	__u32 cil; /* l_cilp */
	__u32 sequence; /* in struct xfs_cil: xc_current_sequence, of the checkpoint that is open */
	__u32 data; /* in struct xfs_mount: m_ddev_targp */
	__u32 dev; /* in struct xfs_buftarg: bt_dev */
	__u32 reserved; /* in struct xlog_ticket: t_unit_res */
	__u32 left; /* t_curr_res */
	__u32 inode; /* in struct xfs_inode: i_vnode */
	__u64 since; /* when the programs were there, ns of CLOCK_MONOTONIC; 0: not yet */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct xfs_fields);
} xfs_layout SEC(".maps");

struct xfs_log {
	__u32 fsdev;
	__u32 complete; /* sequence of the first checkpoint that was seen from its beginning */
	__u64 cil; /* address */
	__u32 period; /* of lately[now] */
	__u32 now;
	__u32 dealt; /* pages of metadata */
	__u32 pad;
	struct journal_shares checkpoints[2]; /* one is open, one is written: by the lowest bit of the sequence */
	struct journal_shares lately[2]; /* what was logged in this period and in the one before */
};

/*
 * XFS writes metadata when the log wants room, or after its worker looked twice, at most 30 s
 * apart (fs.xfs.xfssyncd_centisecs). A period is 34 s.
 */
#define IOT_XFS_PERIOD_BITS 35 /* of ns */

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u32); /* device of the file system */
	__type(value, struct xfs_log);
} xfs_logs SEC(".maps");

/* Too large for the stack. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct xfs_log);
} no_xfs_log SEC(".maps");

/* Whose inodes wait for a kernel thread that frees them. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64); /* address of the struct xfs_inode */
	__type(value, struct journal_client);
} xfs_inactive SEC(".maps");

static __always_inline struct xfs_fields *iot_xfs_layout(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&xfs_layout, &zero);
}

/* The partition of a bio; up to 5.11 its disk, because the partition is lost when it is submitted. */
static __always_inline __u32 iot_bio_dev(struct bio *bio)
{
	if (bpf_core_field_exists(((struct bio___5_11 *)0)->bi_disk))
		return iot_disk_dev(iot_bio_disk(bio));
	return BPF_CORE_READ((struct bio___device *)bio, bi_bdev, bd_dev);
}

/* The log of a file system, or the one on a device. */
static __always_inline struct xfs_log *iot_xfs_log(__u32 dev)
{
	struct xfs_log *log = bpf_map_lookup_elem(&xfs_logs, &dev);
	__u32 *fsdev;

	if (log)
		return log;
	fsdev = bpf_map_lookup_elem(&journal_devices, &dev);
	return fsdev ? bpf_map_lookup_elem(&xfs_logs, fsdev) : NULL;
}

/* The owner at a place in shares, in bytes, packed. */
static __always_inline __u64 iot_xfs_share(struct journal_shares *s, __u32 at, struct journal_turn *turn)
{
	__u32 i;

	for (i = 0; i < IOT_JOURNAL_OWNERS; i++) {
		if (at < s->owners[i].blocks) {
			turn->pid = s->owners[i].pid;
			return iot_pack(s->owners[i].cgroup, IOT_JOURNAL);
		}
		at -= s->owners[i].blocks;
	}
	return IOT_JOURNAL_NONE; /* one of those that had no room */
}

/* Whose the next page of a log is; sequence is that of the checkpoint. */
__noinline __u64 iot_xfs_deal_log(__u32 which, __u32 dev, __u32 sequence)
{
	struct journal_turn *turn = bpf_map_lookup_elem(&journal_turns, &which);
	struct xfs_log *log = iot_xfs_log(dev);
	struct journal_shares *s;
	__u32 at;

	if (!log || !turn)
		return 0;
	s = &log->checkpoints[sequence & 1];
	if (s->tid != sequence || !s->total || (__s32)(sequence - log->complete) < 0)
		return IOT_JOURNAL_KERNEL;
	at = s->dealt % s->total;
	s->dealt += 1U << IOT_PAGE_SHIFT;
	return iot_xfs_share(s, at, turn);
}

/*
 * Whose the next page of metadata is. Few pages are written for much that was logged: taken
 * in order they would all be the first owner's. Multiples of the golden ratio lie evenly
 * spread, however few there are.
 */
__noinline __u64 iot_xfs_deal_lately(__u32 which, __u32 dev)
{
	struct journal_turn *turn = bpf_map_lookup_elem(&journal_turns, &which);
	struct xfs_log *log = iot_xfs_log(dev);
	struct journal_shares *s;
	__u32 at, total;

	if (!log || !turn)
		return 0;
	s = &log->lately[log->now & 1];
	total = s->total + log->lately[(log->now + 1) & 1].total;
	if (!total)
		return IOT_JOURNAL_KERNEL;
	at = (__u64)(++log->dealt * 0x9E3779B9U) * total >> 32;
	if (at >= s->total) {
		at -= s->total;
		s = &log->lately[(log->now + 1) & 1];
	}
	return iot_xfs_share(s, at, turn);
}

/*
 * The owner of the page of a log or of metadata that a walk is at; 0 if it is neither. The
 * bio that XFS made says so, also where drivers write copies of its pages.
 */
__noinline __u64 iot_xfs_owner(__u32 which)
{
	struct walk *w = bpf_map_lookup_elem(&walks, &which);
	struct xfs_fields *layout = iot_xfs_layout();
	struct xfs_log *log;
	struct bio *bio;
	__u32 flags, dev;

	if (!w || !layout || !layout->live)
		return 0;
	if (!(w->cmd_flags & IOT_REQ_META) && w->origin == w->bio)
		return 0;
	bio = (struct bio *)iot_uppermost(w->origin);
	flags = FIELD(bio, bi_opf);
	if (!(flags & IOT_REQ_META))
		return 0;
	dev = iot_bio_dev(bio);
	log = iot_xfs_log(dev);
	if (!log)
		return 0;
	iot_journal_turn(which, log->fsdev);
	if (flags & IOT_REQ_SYNC) /* the checkpoint before the one that is open */
		return iot_xfs_deal_log(which, dev, iot_u32_at(log->cil + layout->sequence) - 1);
	return iot_xfs_deal_lately(which, dev);
}

/* What follows is called by the programs that keep the shares. */

/*
 * The log of a file system that may have been mounted just now. The open checkpoint was
 * seen from its beginning if it is the first one, or if XFS's worker has closed what was
 * logged before the programs were there.
 */
static __always_inline struct xfs_log *iot_xfs_made(__u32 fsdev, __u64 cil, __u32 sequence, __u64 since)
{
	struct xfs_log *log = bpf_map_lookup_elem(&xfs_logs, &fsdev), *none;
	__u32 zero = 0;
	bool seen;

	if (log && log->cil == cil)
		return log;
	none = bpf_map_lookup_elem(&no_xfs_log, &zero);
	if (!none)
		return NULL;
	bpf_map_update_elem(&xfs_logs, &fsdev, none, BPF_ANY);
	log = bpf_map_lookup_elem(&xfs_logs, &fsdev);
	if (!log) { /* more logs than the map has room for: their bytes stay with the kernel */
		iot_lost(IOT_LOST_NOTES, 1);
		return NULL;
	}
	log->fsdev = fsdev;
	seen = sequence == 1 || (since && (bpf_ktime_get_ns() - since) >> IOT_XFS_PERIOD_BITS);
	log->complete = sequence + !seen;
	log->cil = cil;
	return log;
}

/* A transaction ends, or rolls over into its next part. */
static __always_inline int iot_xfs_logged(__u64 xlog, __u64 ticket, bool end)
{
	__u32 thread = bpf_get_current_pid_tgid(), fsdev, dev, sequence, pid, period;
	struct xfs_fields *layout = iot_xfs_layout();
	struct journal_worker *worker;
	struct journal_shares *s;
	struct xfs_log *log;
	__u64 owner, cgroup, cil;
	__s32 bytes;

	if (!layout)
		return 0;
	bytes = iot_u32_at(ticket + layout->reserved) - iot_u32_at(ticket + layout->left);
	owner = iot_owner_from_task();
	if (owner) {
		cgroup = iot_packed_cgroup(owner);
		pid = iot_pid_of((void *)bpf_get_current_task());
	} else {
		worker = iot_worker(thread);
		if (!worker) /* not a transaction: a checkpoint has a ticket of its own */
			return 0;
		cgroup = worker->client.cgroup;
		pid = worker->client.pid;
		if (end && !worker->client.stays)
			worker->thread = 0;
	}
	if (bytes <= 0) /* nothing, or it was put there already by another transaction of the checkpoint */
		return 0;
	fsdev = iot_u32_at(iot_word_at(iot_word_at(xlog + layout->mount) + layout->data) + layout->dev);
	cil = iot_word_at(xlog + layout->cil);
	sequence = iot_u32_at(cil + layout->sequence);
	log = iot_xfs_made(fsdev, cil, sequence, layout->since);
	if (!log)
		return 0;
	dev = iot_u32_at(iot_word_at(xlog + layout->targ) + layout->dev);
	if (dev != fsdev)
		bpf_map_update_elem(&journal_devices, &dev, &fsdev, BPF_ANY);
	s = &log->checkpoints[sequence & 1];
	if (s->tid != sequence)
		iot_shares_begin(s, sequence);
	iot_shares_add(s, cgroup, pid, bytes);
	period = bpf_ktime_get_ns() >> IOT_XFS_PERIOD_BITS;
	if (log->period != period) {
		log->now ^= 1;
		iot_shares_begin(&log->lately[log->now & 1], 0);
		if (period != log->period + 1)
			iot_shares_begin(&log->lately[(log->now + 1) & 1], 0);
		log->period = period;
	}
	iot_shares_add(&log->lately[log->now & 1], cgroup, pid, bytes);
	return 0;
}

/* A kernel thread works for the owner of a file's page, until the end of a transaction or of what stays says. */
static __always_inline int iot_xfs_thread(struct inode *inode, __u64 index, __u32 stays)
{
	__u64 mapping = (__u64)inode + bpf_core_field_offset(struct inode, i_data);
	struct journal_client client = { .cgroup = IOT_CGROUP_KERNEL, .stays = stays };
	__u32 thread = bpf_get_current_pid_tgid();
	struct owner o = {};

	iot_owner_of_page(&o, mapping, index);
	if (o.cgroup) {
		client.cgroup = o.cgroup;
		client.pid = o.pid;
	}
	iot_works_for(thread, &client);
	return 0;
}

/* Data of a range are on the disk, and what the inode says about it changes. */
static __always_inline int iot_xfs_range(__u64 xfs_inode, __u64 offset)
{
	struct xfs_fields *layout = iot_xfs_layout();

	if (!layout || iot_owner_from_task())
		return 0;
	return iot_xfs_thread((struct inode *)(xfs_inode + layout->inode), offset >> IOT_PAGE_SHIFT, 0);
}

/* Writeback of a file begins: it may find blocks for it. */
static __always_inline int iot_xfs_writeback(struct inode *inode)
{
	if (iot_owner_from_task() || BPF_CORE_READ(inode, i_sb, s_magic) != IOT_XFS_MAGIC)
		return 0;
	return iot_xfs_thread(inode, 0, 1);
}

/* A task has removed a file, or closed one with blocks to spare; a kernel thread will free them. */
static __always_inline int iot_xfs_leave(__u64 xfs_inode)
{
	struct journal_client client = { .stays = 1 };
	__u64 owner = iot_owner_from_task();

	if (!owner)
		return 0;
	client.cgroup = iot_packed_cgroup(owner);
	client.pid = iot_pid_of((void *)bpf_get_current_task());
	bpf_map_update_elem(&xfs_inactive, &xfs_inode, &client, BPF_ANY);
	return 0;
}

static __always_inline int iot_xfs_free(__u64 xfs_inode)
{
	struct journal_client *client, kernel = { .cgroup = IOT_CGROUP_KERNEL, .stays = 1 };
	__u32 thread = bpf_get_current_pid_tgid();

	if (iot_owner_from_task())
		return 0;
	client = bpf_map_lookup_elem(&xfs_inactive, &xfs_inode);
	if (client) {
		kernel = *client;
		bpf_map_delete_elem(&xfs_inactive, &xfs_inode);
	}
	iot_works_for(thread, &kernel);
	return 0;
}

/* The kernel thread is done with an inode. */
static __always_inline int iot_xfs_thread_done(void)
{
	struct journal_worker *worker = iot_worker(bpf_get_current_pid_tgid());

	if (worker && !iot_owner_from_user())
		worker->thread = 0;
	return 0;
}

#endif
