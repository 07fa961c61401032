// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//go:build ignore
/*
 * Source nfs: what the NFS client sends to servers.
 *
 * Writes are counted when they are sent (nfs_initiate_write), reads when they come
 * back (nfs_readpage_done). COMMITs count as flushes, all other procedures as metadata
 * operations without bytes. These raw tracepoints pass the same pointers on every
 * kernel since 5.10, so only struct nfs_page is needed from the module's own type
 * information.
 *
 * Writeback runs in kernel threads, but every nfs_page carries its lock owner: the
 * files_struct of the task that made it dirty. A note taken where programs write says
 * which cgroup each files_struct belongs to. Together they are exact where the memory
 * cgroup of the page is not: pages that one cgroup cached and another one rewrote,
 * removed cgroups, kernels without a memory controller. Reads are sent by the reader.
 */
#include "arch.h"
#include "account.h"
#include "owner.h"

const volatile bool from_functions = false; /* the functions are probed as well: see iot_from_function */
const volatile bool fixed_nfs_page = false; /* struct nfs_page is in no type information (5.10): see iot_read_page */

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct nfs_lock_context {
	void *lockowner; /* struct files_struct * */
};

struct nfs_page {
	struct list_head wb_list;
	struct page *wb_page;
	struct nfs_lock_context *wb_lock_context;
	unsigned int wb_bytes;
};

struct nfs_pgio_args {
	struct nfs_lock_context *lock_context;
	__u32 count;
};

struct nfs_pgio_res {
	__u64 count;
};

struct nfs_pgio_header {
	struct inode *inode;
	struct list_head pages;
	long long io_start;
	void *dreq;
	struct nfs_pgio_args args;
	struct nfs_pgio_res res;
};

struct nfs_commit_data {
	struct inode *inode;
	struct list_head pages;
};

struct nfs_server {
	struct rpc_clnt *client;
};

struct rpc_procinfo {
	const char *p_name;
};

struct rpc_message {
	const struct rpc_procinfo *rpc_proc;
};

struct rpc_clnt {
	__u32 cl_prog;
};

struct xdr_buf {
	unsigned int len;
};

struct rpc_rqst {
	struct xdr_buf rq_snd_buf;
	int rq_ntrans;
};

struct rpc_task {
	int tk_status;
	struct rpc_message tk_msg;
	void *tk_calldata;
	struct rpc_clnt *tk_client;
	struct rpc_rqst *tk_rqstp;
	unsigned short tk_flags;
};

#pragma clang attribute pop

#define IOT_NFS_PROGRAM 100003 /* ONC RPC program number of NFS, all versions (RFC 1813, 7530) */
#define IOT_RPC_ASYNC 1 /* RPC_TASK_ASYNC */

#define IOT_PAGES 520 /* most nfs_pages of an RPC: the largest has 1 MiB, in halves of pages */

/* The users of files_structs: noted where programs write or make mapped pages dirty. */
struct writer {
	__u64 cgroup;
	__u32 pid;
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64); /* struct files_struct * */
	__type(value, struct writer);
} writers SEC(".maps");

/*
 * From initiation to completion, direct-mapped by the address of the nfs_pgio_header
 * or nfs_commit_data, two ways. An RPC that another one displaces loses its latency
 * (counted); a read finds its owner once more.
 */
struct inflight {
	__u64 id;
	__u64 issued;
	struct usage_key usage;
	__u64 offset;
	__u32 recorded; /* --events has it already */
	__u16 done; /* may be reused; until then a restarted RPC finds it */
	__u16 booked; /* by the function; its tracepoint, which follows, must not book it again */
};

#define IOT_SLOTS 8192

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, IOT_SLOTS);
	__type(key, __u32);
	__type(value, struct inflight);
} inflight SEC(".maps");

/* The starters of asynchronous RPCs, which end in kernel threads. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64); /* struct rpc_task * */
	__type(value, struct writer);
} starters SEC(".maps");

/* The file system's device of each RPC client, learned from replies that name an inode. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64); /* struct rpc_clnt * */
	__type(value, __u32);
} clients SEC(".maps");

static __always_inline __u64 iot_current_cgroup(void)
{
	if (!hierarchy_id)
		return bpf_get_current_cgroup_id();
	return iot_cgroup_id(iot_task_cgroup((void *)bpf_get_current_task()));
}

/* Describes the current task; false in a kernel thread. */
static __always_inline bool iot_current_writer(struct writer *w, struct task_struct *task)
{
	if (FIELD(task, flags) & PF_KTHREAD)
		return false;
	w->cgroup = iot_current_cgroup();
	if (by_process) {
		w->pid = bpf_get_current_pid_tgid() >> 32;
		iot_name_process(task, w->pid);
	}
	return true;
}

/* Notes that the current task's files_struct belongs to its cgroup. */
static __always_inline int iot_meet(void)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct writer now = {}, *known;
	__u64 files;

	if (!iot_current_writer(&now, task))
		return 0;
	files = (__u64)FIELD(task, files);
	known = bpf_map_lookup_elem(&writers, &files);
	if (!known || known->cgroup != now.cgroup || known->pid != now.pid)
		bpf_map_update_elem(&writers, &files, &now, BPF_ANY);
	return 0;
}

/*
 * The owner by a lock owner: the current task when the lock owner is its own (reads,
 * direct I/O, flushes at close), else the note. In this order, because the memory of
 * a files_struct is soon reused: a note is stale until the new user first writes.
 */
static __always_inline bool iot_owner_from_lock(struct owner *o, struct nfs_lock_context *lock)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	__u64 files = (__u64)FIELD(lock, lockowner);
	struct writer now = {}, *w = &now;

	if (!files)
		return false;
	if ((__u64)FIELD(task, files) != files || !iot_current_writer(&now, task)) {
		w = bpf_map_lookup_elem(&writers, &files);
		if (!w)
			return false;
	}
	o->cgroup = w->cgroup;
	o->pid = w->pid;
	o->basis = IOT_DIRTIER;
	return true;
}

/* One copy a program: iot_account is long. */
static __noinline int iot_book(const struct usage_key *usage, __u64 bytes, __u64 ops)
{
	if (usage)
		iot_account(usage, bytes, ops);
	return 0;
}

static __always_inline void iot_own_usage(struct usage_key *usage, const struct owner *o)
{
	usage->cgroup = o->cgroup;
	usage->basis = o->basis;
	usage->pid = o->pid;
}

/* The fields of struct nfs_page that we read. */
struct nfs_req {
	__u64 next;
	struct page *page;
	struct nfs_lock_context *lock;
	__u32 bytes;
};

/*
 * 5.10 has no type information for modules. The first fields of struct nfs_page are
 * the same there as in all later kernels (read from the module's code), and do not
 * depend on the kernel's configuration.
 */
struct nfs_page_5_10 {
	__u64 next, prev;
	struct page *page;
	struct nfs_lock_context *lock;
	__u64 index;
	__u32 offset, pgbase, bytes, refs;
};

static __always_inline void iot_read_page(struct nfs_req *r, __u64 req)
{
	struct nfs_page *page = (void *)req;
	struct nfs_page_5_10 fixed = {};

	if (fixed_nfs_page) {
		bpf_probe_read_kernel(&fixed, sizeof(fixed), page);
		r->next = fixed.next;
		r->page = fixed.page;
		r->lock = fixed.lock;
		r->bytes = fixed.bytes;
		return;
	}
	r->next = (__u64)FIELD(page, wb_list.next);
	r->page = FIELD(page, wb_page);
	r->lock = FIELD(page, wb_lock_context);
	r->bytes = FIELD(page, wb_bytes);
}

/* The owner where the lock owner is not known: the submitter of direct I/O, else that of the page. */
static __always_inline void iot_owner_from_page(struct owner *o, struct page *page, bool direct, bool write)
{
	__u64 owner = direct ? iot_owner_from_task() : 0;

	if (owner)
		iot_unpack(o, owner);
	else
		iot_owner_of_folio(o, iot_folio(page), NULL, write, false);
}

static __always_inline struct inflight *iot_slot(__u64 id, bool make)
{
	__u32 slot = ((id >> 6) * 0x9E3779B97F4A7C15ULL) >> 51; /* 13 bits: IOT_SLOTS */
	struct inflight *f = bpf_map_lookup_elem(&inflight, &slot), *other;

	if (!f || f->id == id || (make && (f->done || !f->id)))
		return f;
	slot ^= 1;
	other = bpf_map_lookup_elem(&inflight, &slot);
	if (make)
		return other ? other : f;
	return other && other->id == id ? other : NULL;
}

static __always_inline void iot_remember(__u64 id, const struct usage_key *usage, __u64 offset, bool recorded)
{
	struct inflight *f = iot_slot(id, true);

	if (!f)
		return;
	f->issued = bpf_ktime_get_ns();
	f->usage = *usage;
	f->offset = offset;
	f->recorded = recorded;
	f->done = 0;
	f->booked = 0;
	f->id = id;
}

static __always_inline void iot_nfs_record(const struct usage_key *usage, __u64 issued, __u64 latency,
					   __u64 offset, __u64 bytes)
{
	struct io_record record = {
		.usage = *usage,
		.time = issued,
		.latency = latency,
		.offset = offset,
		.bytes = bytes,
	};

	iot_record(&record);
}

static __always_inline __u32 iot_inode_dev(struct inode *inode)
{
	return BPF_CORE_READ(inode, i_sb, s_dev);
}

/* One WRITE while its pages are walked: runs of pages of one owner are booked at once. */
struct nfs_walk {
	struct usage_key usage; /* of the run */
	struct usage_key first; /* of the RPC's first run */
	__u64 end; /* the list's head */
	__u64 lock; /* of the page before */
	__u64 offset; /* of the run */
	__u32 run; /* bytes not booked yet */
	__u32 booked;
	__u32 ops; /* the RPC itself is booked once, with its first run */
	__u8 known; /* lock named an owner */
	__u8 direct;
	__u8 pad[2];
};

/* One for each program that walks: the kernel never runs a program twice at once on a CPU. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 3);
	__type(key, __u32);
	__type(value, struct nfs_walk);
} walk SEC(".maps");

static __always_inline void iot_book_run(struct nfs_walk *w, bool last)
{
	if (!w->run)
		return;
	iot_book(&w->usage, w->run, w->ops);
	/* An RPC with a single owner is recorded at its end, with its latency. */
	if (with_records && !(with_latency && last && w->ops))
		iot_nfs_record(&w->usage, bpf_ktime_get_ns(), 0, w->offset, w->run);
	w->ops = 0;
	w->booked += w->run;
	w->offset += w->run;
	w->run = 0;
}

/*
 * Looks at one nfs_page; returns the next one, 0 after the last. It is global and has
 * plain numbers as arguments: so the verifier looks at it once instead of once for
 * each round of a loop.
 */
__noinline __u64 iot_walk_page(__u64 req, __u32 walker)
{
	struct nfs_req r = {};
	struct owner o = {};
	struct nfs_walk *w;

	w = bpf_map_lookup_elem(&walk, &walker);
	if (!w)
		return 0;
	iot_read_page(&r, req);
	if (!w->known || (__u64)r.lock != w->lock) {
		w->lock = (__u64)r.lock;
		w->known = iot_owner_from_lock(&o, r.lock);
		if (!w->known)
			iot_owner_from_page(&o, r.page, w->direct, true);
		if (o.cgroup != w->usage.cgroup || o.basis != w->usage.basis || o.pid != w->usage.pid) {
			iot_book_run(w, false);
			iot_own_usage(&w->usage, &o);
			if (w->ops)
				w->first = w->usage;
		}
	}
	w->run += r.bytes;
	return r.next == w->end ? 0 : r.next;
}

static __always_inline void iot_walk_write(struct nfs_pgio_header *hdr, const struct usage_key *usage, __u32 bytes,
					   __u32 walker)
{
	__u64 req = (__u64)FIELD(hdr, pages.next);
	struct nfs_walk *w;
	bool alone;
	int i;

	w = bpf_map_lookup_elem(&walk, &walker);
	if (!w)
		return;
	__builtin_memset(w, 0, sizeof(*w));
	w->usage = *usage;
	w->first = *usage;
	w->end = (__u64)hdr + bpf_core_field_offset(struct nfs_pgio_header, pages);
	w->offset = FIELD(hdr, io_start);
	w->direct = FIELD(hdr, dreq) != NULL;
	w->ops = 1;
	if (req == w->end)
		req = 0;
	for (i = 0; i < IOT_PAGES && req; i++)
		req = iot_walk_page(req, walker);
	if (w->booked + w->run < bytes) { /* the last owner seen gets the rest */
		iot_lost(IOT_LOST_WALKS, 1);
		w->run = bytes - w->booked;
	}
	alone = w->ops;
	iot_book_run(w, true);
	iot_remember((__u64)hdr, &w->first, FIELD(hdr, io_start), !alone);
}

static __always_inline int iot_write(struct nfs_pgio_header *hdr, __u32 walker)
{
	struct usage_key usage = { .source = IOT_NFS, .op = IOT_WRITE };

	usage.dev = iot_inode_dev(FIELD(hdr, inode));
	iot_walk_write(hdr, &usage, FIELD(hdr, args.count), walker);
	return 0;
}

/* The row of a READ: all of its pages have one lock owner, the reader. */
static __always_inline void iot_read_usage(struct usage_key *usage, struct nfs_pgio_header *hdr)
{
	struct owner o = {};
	struct nfs_req r = {};

	usage->source = IOT_NFS;
	usage->op = IOT_READ;
	usage->dev = iot_inode_dev(FIELD(hdr, inode));
	if (!iot_owner_from_lock(&o, FIELD(hdr, args.lock_context))) {
		iot_read_page(&r, (__u64)FIELD(hdr, pages.next));
		iot_owner_from_page(&o, r.page, FIELD(hdr, dreq) != NULL, false);
	}
	iot_own_usage(usage, &o);
}

static __always_inline int iot_read(struct nfs_pgio_header *hdr)
{
	struct usage_key usage = {};

	iot_read_usage(&usage, hdr);
	iot_remember((__u64)hdr, &usage, FIELD(hdr, io_start), false);
	return 0;
}

/* Latency, error and record of an RPC that came back with bytes. */
static __always_inline void iot_done(struct inflight *f, struct usage_key *usage, bool failed, __u64 bytes)
{
	__u64 now = bpf_ktime_get_ns();

	if (with_latency)
		iot_latency(usage, now - f->issued);
	if (failed) {
		usage->flags |= IOT_ERROR;
		iot_book(usage, 0, 1);
	}
	if (with_records && !f->recorded)
		iot_nfs_record(usage, f->issued, now - f->issued, f->offset, bytes);
	/* After a short answer or a lost session the same RPC is sent once more, for the rest or for all. */
	f->issued = now;
	f->offset += bytes;
	f->done = 1;
}

static __always_inline int iot_read_done(struct rpc_task *task, struct nfs_pgio_header *hdr)
{
	struct inflight *f = iot_slot((__u64)hdr, false);
	__u64 bytes = FIELD(hdr, res.count);
	bool failed = FIELD(task, tk_status) < 0;
	struct usage_key usage = {};

	if (f)
		usage = f->usage;
	else
		iot_read_usage(&usage, hdr);
	iot_book(&usage, bytes, 1);
	if (!f) {
		iot_lost(IOT_LOST_LATENCIES, 1);
		return 0;
	}
	iot_done(f, &usage, failed, bytes);
	return 0;
}

static __always_inline int iot_write_done(struct rpc_task *task, struct nfs_pgio_header *hdr)
{
	struct inflight *f = iot_slot((__u64)hdr, false);
	__u64 bytes = FIELD(hdr, res.count);
	bool failed = FIELD(task, tk_status) < 0;
	struct usage_key usage;

	if (!f) {
		iot_lost(IOT_LOST_LATENCIES, 1);
		return 0;
	}
	usage = f->usage;
	iot_done(f, &usage, failed, bytes);
	return 0;
}

/* A COMMIT belongs to the writer of the first page that it makes stable. */
static __always_inline int iot_commit(struct nfs_commit_data *data)
{
	struct usage_key usage = { .source = IOT_NFS, .op = IOT_FLUSH };
	struct nfs_req r = {};
	struct owner o = {};

	usage.dev = iot_inode_dev(FIELD(data, inode));
	iot_read_page(&r, (__u64)FIELD(data, pages.next));
	if (!iot_owner_from_lock(&o, r.lock))
		iot_owner_from_page(&o, r.page, false, true);
	iot_own_usage(&usage, &o);
	iot_book(&usage, 0, 1);
	iot_remember((__u64)data, &usage, 0, false);
	if (!with_latency && with_records)
		iot_nfs_record(&usage, bpf_ktime_get_ns(), 0, 0, 0);
	return 0;
}

static __always_inline int iot_commit_finished(struct rpc_task *task, struct nfs_commit_data *data)
{
	struct inflight *f = iot_slot((__u64)data, false);
	struct usage_key usage;

	if (!f) {
		iot_lost(IOT_LOST_LATENCIES, 1);
		return 0;
	}
	usage = f->usage;
	iot_done(f, &usage, FIELD(task, tk_status) < 0, 0);
	return 0;
}

/* The first seven characters of a procedure's name as a number. */
#define IOT_NAME(a, b, c, d, e, f, g)                                                                       \
	((__u64)(a) | (__u64)(b) << 8 | (__u64)(c) << 16 | (__u64)(d) << 24 | (__u64)(e) << 32 |            \
	 (__u64)(f) << 40 | (__u64)(g) << 48)

/* Whether the nfs_initiate_* tracepoints see an RPC. Names are the same in all versions of NFS. */
static __always_inline bool iot_is_data(struct rpc_task *task)
{
	__u64 name = 0;

	bpf_probe_read_kernel_str(&name, sizeof(name), BPF_CORE_READ(task, tk_msg.rpc_proc, p_name));
	return name == IOT_NAME('R', 'E', 'A', 'D', 0, 0, 0) || name == IOT_NAME('W', 'R', 'I', 'T', 'E', 0, 0) ||
	       name == IOT_NAME('C', 'O', 'M', 'M', 'I', 'T', 0) || name == IOT_NAME('R', 'E', 'A', 'D', '_', 'P', 'L');
}

static __always_inline int iot_rpc_begin(struct rpc_task *task)
{
	struct writer w = { .cgroup = IOT_CGROUP_KERNEL };
	__u64 key = (__u64)task;

	if (!(FIELD(task, tk_flags) & IOT_RPC_ASYNC) || BPF_CORE_READ(task, tk_client, cl_prog) != IOT_NFS_PROGRAM ||
	    iot_is_data(task))
		return 0;
	iot_current_writer(&w, (void *)bpf_get_current_task());
	bpf_map_update_elem(&starters, &key, &w, BPF_ANY);
	return 0;
}

/* Who asked for a metadata operation; a synchronous one ends in the task that began it. */
static __always_inline void iot_rpc_owner(struct usage_key *usage, struct rpc_task *task)
{
	struct writer now = { .cgroup = IOT_CGROUP_KERNEL }, *w = &now;
	__u64 key = (__u64)task;

	if (FIELD(task, tk_flags) & IOT_RPC_ASYNC) {
		w = bpf_map_lookup_elem(&starters, &key);
		if (!w)
			return;
	} else {
		iot_current_writer(&now, (void *)bpf_get_current_task());
	}
	usage->cgroup = w->cgroup;
	usage->pid = w->pid;
	usage->basis = w->cgroup == IOT_CGROUP_KERNEL ? IOT_NONE : IOT_TASK;
	if (w != &now)
		bpf_map_delete_elem(&starters, &key);
}

/*
 * rpc_stats_latency fires once for each RPC, where the kernel adds it to mountstats;
 * ns is its time from start to end.
 */
static __always_inline int iot_rpc_done(struct rpc_task *task, __u64 ns)
{
	struct usage_key usage = { .source = IOT_NFS, .op = IOT_META_OP };
	__u64 client = (__u64)FIELD(task, tk_client), start;
	int again = BPF_CORE_READ(task, tk_rqstp, rq_ntrans) - 1;
	struct inflight *f;
	__u32 *dev;
	bool data;

	if (FIELD((struct rpc_clnt *)client, cl_prog) != IOT_NFS_PROGRAM)
		return 0;
	data = iot_is_data(task);
	if (data && again <= 0)
		return 0;
	dev = bpf_map_lookup_elem(&clients, &client);
	if (dev)
		usage.dev = *dev;
	if (data) {
		f = iot_slot((__u64)FIELD(task, tk_calldata), false);
		if (f) {
			usage.cgroup = f->usage.cgroup;
			usage.pid = f->usage.pid;
			usage.basis = f->usage.basis;
			usage.dev = f->usage.dev;
		}
	} else {
		iot_rpc_owner(&usage, task);
		iot_book(&usage, 0, 1);
		if (with_latency)
			iot_latency(&usage, ns);
		if (with_records) {
			start = bpf_ktime_get_ns() - ns;
			iot_nfs_record(&usage, start, ns, 0, 0);
		}
		if (FIELD(task, tk_status) < 0) {
			usage.flags = IOT_ERROR;
			iot_book(&usage, 0, 1);
			usage.flags = 0;
		}
	}
	if (again > 0) {
		usage.op = IOT_RETRANSMIT;
		iot_book(&usage, (__u64)again * BPF_CORE_READ(task, tk_rqstp, rq_snd_buf.len), again);
	}
	return 0;
}

/* A reply had attributes of inode: its device is that of the RPC client. */
static __always_inline int iot_learn(struct inode *inode)
{
	struct super_block *sb = FIELD(inode, i_sb);
	struct nfs_server *server = FIELD(sb, s_fs_info);
	__u64 client = (__u64)FIELD(server, client);
	__u32 dev = FIELD(sb, s_dev), *known;

	known = bpf_map_lookup_elem(&clients, &client);
	if (!known || *known != dev)
		bpf_map_update_elem(&clients, &client, &dev, BPF_ANY);
	return 0;
}

/* Application level: the results of read(2), write(2) and the like. */
static __always_inline int iot_app(__u32 dev, __u8 op, long bytes)
{
	struct usage_key usage = { .source = IOT_NFS, .op = op, .flags = IOT_APP, .dev = dev };
	struct writer w = {};

	if (bytes <= 0 || !iot_current_writer(&w, (void *)bpf_get_current_task()))
		return 0;
	usage.cgroup = w.cgroup;
	usage.pid = w.pid;
	usage.basis = IOT_TASK;
	iot_book(&usage, bytes, 1);
	return 0;
}

/* The file system of a call between its entry and its return, where the return does not know it. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64); /* tid */
	__type(value, __u32);
} calls SEC(".maps");

static __always_inline int iot_app_enter(struct file *file)
{
	__u64 tid = bpf_get_current_pid_tgid();
	__u32 dev = iot_inode_dev(FIELD(file, f_inode));

	bpf_map_update_elem(&calls, &tid, &dev, BPF_ANY);
	return 0;
}

static __always_inline int iot_app_return(__u8 op, long bytes)
{
	__u64 tid = bpf_get_current_pid_tgid();
	__u32 *dev = bpf_map_lookup_elem(&calls, &tid);

	if (!dev)
		return 0;
	iot_app(*dev, op, bytes);
	bpf_map_delete_elem(&calls, &tid);
	return 0;
}

static __always_inline struct file *iot_iocb_file(struct kiocb *iocb)
{
	return FIELD(iocb, ki_filp);
}

/* Notifies user space of a mount: see tracer/module.go. */
static __always_inline int iot_mounting(void)
{
	struct {
		__u64 cgroup;
		__u32 kind, len;
		char text[8];
	} n = { .kind = IOT_MOUNTING, .len = 4, .text = "nfs" };

	if (bpf_ringbuf_output(&notices, &n, sizeof(n), BPF_RB_FORCE_WAKEUP))
		iot_lost(IOT_LOST_NOTICES, 1);
	return 0;
}

/*
 * A kprobe can be set before its module is loaded, and the module can still be
 * unloaded; neither is true of a tracepoint. So where NFS is a module, the functions
 * that contain the tracepoints are probed as well: they see what happens before the
 * tracepoints are attached, which needs a module that is loaded and in use. What a
 * function has booked, its tracepoint does not book again.
 */
static __always_inline int iot_from_function(__u64 id)
{
	struct inflight *f = iot_slot(id, false);

	if (f)
		f->booked = 1;
	return 0;
}

static __always_inline bool iot_function_did(__u64 id)
{
	struct inflight *f = from_functions ? iot_slot(id, false) : NULL;

	if (!f || !f->booked)
		return false;
	f->booked = 0;
	return true;
}

SEC("kprobe/nfs_initiate_write")
int iot_function_write(__u64 *ctx)
{
	iot_write((struct nfs_pgio_header *)IOT_PARM1(ctx), 2);
	return iot_from_function(IOT_PARM1(ctx));
}

SEC("kprobe/nfs_initiate_read")
int iot_function_read(__u64 *ctx)
{
	iot_read((struct nfs_pgio_header *)IOT_PARM1(ctx));
	return iot_from_function(IOT_PARM1(ctx));
}

SEC("kprobe/nfs_initiate_commit")
int iot_function_commit(__u64 *ctx)
{
	iot_commit((struct nfs_commit_data *)IOT_PARM2(ctx));
	return iot_from_function(IOT_PARM2(ctx));
}

SEC("raw_tp/nfs_initiate_write")
int iot_initiate_write(__u64 *ctx)
{
	return iot_function_did(ctx[0]) ? 0 : iot_write((struct nfs_pgio_header *)ctx[0], 0);
}

/*
 * The kernel skips a program while another run of it is in progress on the same CPU.
 * Since 7.0 programs on tracepoints are preempted, so it happens. A second program,
 * attached behind the first, finds by what is in flight that the first did not run,
 * and does its work. The second can be skipped at the same time as well: three nested
 * runs were never observed.
 */
static __always_inline bool iot_was_begun(__u64 id)
{
	struct inflight *f = iot_slot(id, false);

	return f && !f->done;
}

/* For hooks without one for the end: forgets at once what was begun. */
static __always_inline void iot_forget(__u64 id)
{
	struct inflight *f = with_latency ? NULL : iot_slot(id, false);

	if (f)
		f->id = 0;
}

SEC("raw_tp/nfs_initiate_write")
int iot_initiate_write_redundant(__u64 *ctx)
{
	if (!iot_was_begun(ctx[0]))
		iot_write((struct nfs_pgio_header *)ctx[0], 1);
	iot_forget(ctx[0]);
	return 0;
}

SEC("raw_tp/nfs_initiate_read")
int iot_initiate_read(__u64 *ctx)
{
	return iot_function_did(ctx[0]) ? 0 : iot_read((struct nfs_pgio_header *)ctx[0]);
}

SEC("raw_tp/nfs_initiate_read")
int iot_initiate_read_redundant(__u64 *ctx)
{
	return iot_was_begun(ctx[0]) ? 0 : iot_read((struct nfs_pgio_header *)ctx[0]);
}

SEC("raw_tp/nfs_readpage_done")
int iot_readpage_done(__u64 *ctx)
{
	return iot_read_done((struct rpc_task *)ctx[0], (struct nfs_pgio_header *)ctx[1]);
}

SEC("raw_tp/nfs_readpage_done")
int iot_readpage_done_redundant(__u64 *ctx)
{
	if (!iot_was_begun(ctx[1]))
		return 0;
	return iot_read_done((struct rpc_task *)ctx[0], (struct nfs_pgio_header *)ctx[1]);
}

/* Called for reads that succeeded, right after the tracepoint. */
SEC("kprobe/nfs_readpage_result")
int iot_function_read_done(__u64 *ctx)
{
	if (!iot_was_begun(IOT_PARM2(ctx)))
		return 0;
	return iot_read_done((struct rpc_task *)IOT_PARM1(ctx), (struct nfs_pgio_header *)IOT_PARM2(ctx));
}

SEC("raw_tp/nfs_writeback_done")
int iot_writeback_done(__u64 *ctx)
{
	return iot_write_done((struct rpc_task *)ctx[0], (struct nfs_pgio_header *)ctx[1]);
}

SEC("raw_tp/nfs_writeback_done")
int iot_writeback_done_redundant(__u64 *ctx)
{
	if (!iot_was_begun(ctx[1]))
		return 0;
	return iot_write_done((struct rpc_task *)ctx[0], (struct nfs_pgio_header *)ctx[1]);
}

SEC("raw_tp/nfs_initiate_commit")
int iot_initiate_commit(__u64 *ctx)
{
	return iot_function_did(ctx[0]) ? 0 : iot_commit((struct nfs_commit_data *)ctx[0]);
}

SEC("raw_tp/nfs_initiate_commit")
int iot_initiate_commit_redundant(__u64 *ctx)
{
	if (!iot_was_begun(ctx[0]))
		iot_commit((struct nfs_commit_data *)ctx[0]);
	iot_forget(ctx[0]);
	return 0;
}

SEC("raw_tp/nfs_commit_done")
int iot_commit_done(__u64 *ctx)
{
	return iot_commit_finished((struct rpc_task *)ctx[0], (struct nfs_commit_data *)ctx[1]);
}

SEC("raw_tp/nfs_commit_done")
int iot_commit_done_redundant(__u64 *ctx)
{
	if (!iot_was_begun(ctx[1]))
		return 0;
	return iot_commit_finished((struct rpc_task *)ctx[0], (struct nfs_commit_data *)ctx[1]);
}

/*
 * RPCs that the first program has seen and the second has not seen yet, by address.
 * Two of them in one slot would make one count twice: there are far more slots than
 * CPUs.
 */
#define IOT_TOLD 4096

enum {
	IOT_TOLD_BEGIN,
	IOT_TOLD_END,
	IOT_TELLINGS,
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, IOT_TELLINGS * IOT_TOLD);
	__type(key, __u32);
	__type(value, __u64);
} told SEC(".maps");

static __always_inline __u64 *iot_told(__u64 task, __u32 when)
{
	__u32 slot = when * IOT_TOLD + (((task >> 6) * 0x9E3779B97F4A7C15ULL) >> 52); /* 12 bits: IOT_TOLD */

	return bpf_map_lookup_elem(&told, &slot);
}

static __always_inline void iot_tell(__u64 task, __u32 when)
{
	__u64 *seen = iot_told(task, when);

	if (seen)
		*seen = task;
}

static __always_inline bool iot_was_told(__u64 task, __u32 when)
{
	__u64 *seen = iot_told(task, when);

	if (!seen || *seen != task)
		return false;
	*seen = 0;
	return true;
}

SEC("raw_tp/rpc_task_begin")
int iot_rpc_task_begin(__u64 *ctx)
{
	iot_tell(ctx[0], IOT_TOLD_BEGIN);
	return iot_rpc_begin((struct rpc_task *)ctx[0]);
}

SEC("raw_tp/rpc_task_begin")
int iot_rpc_task_begin_redundant(__u64 *ctx)
{
	return iot_was_told(ctx[0], IOT_TOLD_BEGIN) ? 0 : iot_rpc_begin((struct rpc_task *)ctx[0]);
}

SEC("raw_tp/rpc_stats_latency")
int iot_rpc_stats(__u64 *ctx)
{
	iot_tell(ctx[0], IOT_TOLD_END);
	return iot_rpc_done((struct rpc_task *)ctx[0], ctx[3]);
}

SEC("raw_tp/rpc_stats_latency")
int iot_rpc_stats_redundant(__u64 *ctx)
{
	return iot_was_told(ctx[0], IOT_TOLD_END) ? 0 : iot_rpc_done((struct rpc_task *)ctx[0], ctx[3]);
}

SEC("raw_tp/nfs_refresh_inode_enter")
int iot_refresh_inode(__u64 *ctx)
{
	return iot_learn((struct inode *)ctx[0]);
}

SEC("raw_tp/nfs_file_write")
int iot_writer_raw(__u64 *ctx)
{
	return iot_meet();
}

SEC("kprobe/nfs_file_write")
int iot_writer_kprobe(__u64 *ctx)
{
	return iot_meet();
}

SEC("fentry/nfs_file_write")
int iot_writer_fentry(__u64 *ctx)
{
	return iot_meet();
}

SEC("kprobe/nfs_get_tree_common")
int iot_get_tree(__u64 *ctx)
{
	return iot_mounting();
}

SEC("fexit/nfs_file_read")
int iot_app_read(__u64 *ctx)
{
	return iot_app(iot_inode_dev(FIELD(iot_iocb_file((struct kiocb *)ctx[0]), f_inode)), IOT_READ, ctx[2]);
}

SEC("fexit/nfs_file_write")
int iot_app_write(__u64 *ctx)
{
	return iot_app(iot_inode_dev(FIELD(iot_iocb_file((struct kiocb *)ctx[0]), f_inode)), IOT_WRITE, ctx[2]);
}

SEC("fexit/nfs_file_splice_read")
int iot_app_splice(__u64 *ctx)
{
	return iot_app(iot_inode_dev(FIELD((struct file *)ctx[0], f_inode)), IOT_READ, ctx[5]);
}

SEC("kprobe/nfs_file_read")
int iot_app_enter_iocb(__u64 *ctx)
{
	return iot_app_enter(iot_iocb_file((struct kiocb *)IOT_PARM1(ctx)));
}

SEC("kprobe/nfs_file_splice_read")
int iot_app_enter_file(__u64 *ctx)
{
	return iot_app_enter((struct file *)IOT_PARM1(ctx));
}

SEC("kretprobe/nfs_file_read")
int iot_app_read_return(__u64 *ctx)
{
	return iot_app_return(IOT_READ, IOT_RESULT(ctx));
}

SEC("kretprobe/nfs_file_write")
int iot_app_write_return(__u64 *ctx)
{
	return iot_app_return(IOT_WRITE, IOT_RESULT(ctx));
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
