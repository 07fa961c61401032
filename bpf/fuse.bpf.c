// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//go:build ignore
/*
 * Source fuse: requests between the kernel and a FUSE daemon.
 *
 * The owner of a request is found when it is sent. The request is booked at its end,
 * with the bytes that the daemon really took or gave. Since 6.12 the tracepoints
 * fuse_request_send and fuse_request_end see both. Before, the functions that file
 * operations call (fuse_simple_request, fuse_simple_background) and fuse_request_end
 * do: there a request is identified by its fuse_args, which do not move while it is
 * in flight.
 *
 * At the tracepoint of the end that is over: FR_FINISHED is set before, and the task
 * that waits for the answer may already use its fuse_args, which are on its stack,
 * for the next request. So there a request with a waiting task is identified by its
 * fuse_req, and its fuse_args are used only if they are still its own.
 *
 * The task that runs when a request is sent is its owner, with two exceptions. Flusher
 * threads send writeback: it belongs to the cgroup that made the pages dirty, which
 * core.bpf.c noted. And background requests beyond max_background wait, until the
 * daemon sends them when it ends another one. fuse_simple_background still runs in
 * the caller; where it cannot be probed, the pages to be read or written tell the
 * owner.
 *
 * fuse is a module on many kernels, on some without type information (5.10). So user
 * space finds the layout of its structs and passes it on.
 */
#include "arch.h"
#include "account.h"
#include "inode.h"
#include "owner.h"

/* Offsets in structs of fs/fuse, in bytes. fuse_args is the first member of fuse_args_pages: one address. */
struct offsets {
	__u16 req_args; /* in fuse_req */
	__u16 req_flags;
	__u16 req_error;
	__u16 req_link; /* from fuse_req over two pointers to the device number */
	__u16 link_conn;
	__u16 conn_dev;
	__u16 mount_conn; /* the same from fuse_mount */
	__u16 mount_dev;
	__u16 opcode; /* in fuse_args */
	__u16 in_value; /* in_args[0].value */
	__u16 out_size; /* out_args[0].size */
	__u16 out_value;
	__u16 pages; /* pages or folios of fuse_args_pages */
	__u16 io; /* fuse_io_args.io, from fuse_args */
	__u16 inode; /* fuse_writepage_args.inode, from fuse_args */
	__u16 io_async; /* in fuse_io_priv */
	__u16 io_blocking;
	__u16 background; /* bits of req_flags */
	__u16 finished;
	__u16 req_created; /* jiffies, in fuse_req; 0 before 6.14 */
};

const volatile struct offsets layout = {};
const volatile bool layout_assumed = false; /* taken from the kernel's release instead of its types */

/*
 * When the first request was seen sent, jiffies; 1 where requests do not say when they
 * were made. The hooks of ends are attached a while before those that see requests sent.
 * What ends before the first request was seen sent is neither counted nor lost: it was
 * sent before we attached.
 */
__u64 first_sent = 0;

static __always_inline void iot_fuse_see_send(void)
{
	if (!first_sent)
		first_sent = layout.req_created ? bpf_jiffies64() : 1;
}

/* include/uapi/linux/fuse.h: the protocol, which does not change. */
enum {
	IOT_FUSE_READ = 15,
	IOT_FUSE_WRITE = 16,
	IOT_FUSE_FSYNC = 20,
	IOT_FUSE_FLUSH = 25,
	IOT_FUSE_FSYNCDIR = 30,
	IOT_FUSE_COPY_FILE_RANGE = 47,
	IOT_FUSE_SYNCFS = 50,
	IOT_FUSE_COPY_FILE_RANGE_64 = 53,
};

#define IOT_FUSE_IN_OFFSET 8 /* of fuse_read_in and fuse_write_in */
#define IOT_FUSE_IN_SIZE 16
#define IOT_FUSE_IN_WRITE_FLAGS 20
#define IOT_FUSE_WRITE_CACHE 1 /* delayed write from the page cache */

#define IOT_PAGE_SIZE (1U << IOT_PAGE_SHIFT)
/*
 * The most pages of a request that are looked at, in rounds: 16 MiB. The kernel's
 * limit is 1 MiB unless fs.fuse.max_pages_limit (6.13) was raised. Two plain loops over
 * global functions are quick to verify and work without bpf_loop, which 5.10 refuses
 * even where it does not run.
 */
#define IOT_TURNS 64
#define IOT_TURN 64
#define IOT_PARTS 16 /* most owners of a request that are booked separately */

/* From send to end: where the request will be booked. */
struct flight {
	__u64 issued; /* 0: not seen */
	__u64 offset;
	__u64 in; /* where in_args[0] are */
	__u32 size; /* of a read or write, as asked for */
	__u32 opcode;
	struct usage_key usage;
	__u8 submitted; /* seen by fuse_simple_background, not sent yet */
	__u8 split; /* has several owners: see splits */
	__u8 pad[6];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64); /* struct fuse_args * or fuse_req *: see iot_fuse_id */
	__type(value, struct flight);
} flights SEC(".maps");

struct part {
	__u64 owner; /* packed */
	__u32 pid;
	__u32 bytes;
};

/*
 * A writeback request with pages of several owners. The walk over its pages has its
 * state here, so that a step needs only the request's id as argument: the verifier
 * looks at such functions once.
 */
struct split {
	struct part parts[IOT_PARTS]; /* those in use have bytes */
	struct part run; /* adjacent pages of one owner, not among the parts yet */
	struct part unknown; /* owner of the pages that left the page cache */
	__u64 mapping;
	__u64 offset; /* of the next byte */
	__u64 folio; /* of the page before */
	__u32 left; /* bytes still to come */
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64); /* as in flights */
	__type(value, struct split);
} splits SEC(".maps");

/* The daemons of each file system: how many requests each process ended. */
struct daemon {
	__u32 dev;
	__u32 pid;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct daemon);
	__type(value, __u64);
} daemons SEC(".maps");

/* Calls of file operations in progress, where only kretprobes see the returns of functions. */
struct app_call {
	__u32 dev;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, __u64); /* pid and tid */
	__type(value, struct app_call);
} app_calls SEC(".maps");

static __always_inline __u64 iot_word_at(__u64 addr)
{
	__u64 word = 0;

	bpf_probe_read_kernel(&word, sizeof(word), (void *)addr);
	return word;
}

static __always_inline __u32 iot_u32_at(__u64 addr)
{
	__u32 word = 0;

	bpf_probe_read_kernel(&word, sizeof(word), (void *)addr);
	return word;
}

/*
 * An argument of a function at fentry without its type: the verifier forbids
 * arithmetic on the typed one.
 */
static __always_inline __u64 iot_arg(const __u64 *ctx, int n)
{
	return iot_word_at((__u64)&ctx[n]);
}

static __always_inline __u8 iot_fuse_op(__u32 opcode)
{
	switch (opcode) {
	case IOT_FUSE_READ:
		return IOT_READ;
	case IOT_FUSE_WRITE:
	case IOT_FUSE_COPY_FILE_RANGE: /* the daemon copies: counted as what it wrote */
	case IOT_FUSE_COPY_FILE_RANGE_64:
		return IOT_WRITE;
	case IOT_FUSE_FSYNC:
	case IOT_FUSE_FLUSH:
	case IOT_FUSE_FSYNCDIR:
	case IOT_FUSE_SYNCFS:
		return IOT_FLUSH;
	}
	return IOT_META_OP;
}

/*
 * The folio of a file's page in the page cache; 0 when there is none. This walks down
 * the xarray (include/linux/xarray.h, 4.20): an entry with the low bits 10 is a node,
 * a small one of that kind a sibling's slot; an odd entry stands for an evicted page.
 */
__noinline __u64 iot_cached_folio(__u64 mapping_addr, __u64 index)
{
	struct address_space *mapping = (void *)mapping_addr;
	__u64 entry = (__u64)FIELD(mapping, i_pages.xa_head), slots, slot;
	struct xa_node *node;
	__u8 shift = 0;
	int i;

	if ((entry & 3) != 2)
		return index || (entry & 3) ? 0 : entry;
	for (i = 0; i < 11; i++) { /* 64 bits of index, six to a level */
		node = (void *)(entry - 2);
		shift = FIELD(node, shift) & 63;
		slot = index >> shift;
		if (!i && slot > 63)
			return 0; /* beyond the end */
		slots = (__u64)node + bpf_core_field_offset(struct xa_node, slots);
		entry = iot_word_at(slots + (slot & 63) * 8);
		if ((entry & 3) == 2 && entry < 64 * 4)
			entry = iot_word_at(slots + (entry >> 2) * 8);
		if (!shift || (entry & 3) != 2)
			break;
	}
	return entry & 3 ? 0 : entry;
}

/* Adds the run to the parts. */
__noinline int iot_split_close(__u64 id)
{
	struct split *split = bpf_map_lookup_elem(&splits, &id);
	struct part *part;
	__u32 i;

	if (!split || !split->run.bytes)
		return 0;
	for (i = 0; i < IOT_PARTS; i++) {
		part = &split->parts[i];
		if (!part->bytes || (part->owner == split->run.owner && part->pid == split->run.pid))
			break;
	}
	if (i == IOT_PARTS) {
		iot_lost(IOT_LOST_WALKS, 1);
		i--;
	}
	part = &split->parts[i & (IOT_PARTS - 1)];
	if (!part->bytes) {
		part->owner = split->run.owner;
		part->pid = split->run.pid;
	}
	part->bytes += split->run.bytes;
	split->run.bytes = 0;
	return 0;
}

/* Looks at the next page; 1 when there is none. */
__noinline int iot_split_page(__u64 id)
{
	struct split *split = bpf_map_lookup_elem(&splits, &id);
	__u64 owner, folio;
	__u32 n, pid = 0;

	if (!split || !split->left)
		return 1;
	n = IOT_PAGE_SIZE - (split->offset & (IOT_PAGE_SIZE - 1));
	if (n > split->left)
		n = split->left;
	folio = iot_cached_folio(split->mapping, split->offset >> IOT_PAGE_SHIFT);
	if (!folio || folio != split->folio) {
		if (folio) {
			owner = iot_folio_owner(folio, 0, IOT_FOR_WRITE);
			if (by_process)
				pid = iot_folio_pid(folio, owner, IOT_FOR_WRITE);
		} else {
			owner = split->unknown.owner;
			pid = split->unknown.pid;
		}
		if (owner != split->run.owner || pid != split->run.pid) {
			iot_split_close(id);
			split->run.owner = owner;
			split->run.pid = pid;
		}
		split->folio = folio;
	}
	split->run.bytes += n;
	split->left -= n;
	split->offset += n;
	return 0;
}

/* Looks at the next pages; 1 when there are no more. */
__noinline int iot_split_turn(__u64 id)
{
	int i;

	for (i = 0; i < IOT_TURN; i++)
		if (iot_split_page(id))
			return 1;
	return 0;
}

static const struct split no_split;

static __always_inline void iot_fuse_own(struct flight *f, __u64 owner, __u32 pid)
{
	f->usage.cgroup = iot_packed_cgroup(owner);
	f->usage.basis = iot_packed_basis(owner);
	f->usage.pid = pid;
}

static __always_inline __u64 iot_fuse_first_folio(__u64 args)
{
	__u64 pages = layout.pages ? iot_word_at(args + layout.pages) : 0;
	__u64 page = pages ? iot_word_at(pages) : 0;

	return page ? (__u64)iot_folio((void *)page) : 0;
}

/*
 * The inode of a writeback request. Since 6.16 its pages name it. Before, they are
 * copies that belong to no file, but the request names the inode.
 */
static __always_inline struct inode *iot_fuse_inode(__u64 args)
{
	__u64 folio = iot_fuse_first_folio(args);
	struct address_space *mapping = NULL;

	if (folio)
		mapping = iot_folio_mapping((void *)folio);
	if (iot_mapping_is_file(mapping))
		return iot_mapping_inode(mapping);
	return layout.inode ? (void *)iot_word_at(args + layout.inode) : NULL;
}

/* Finds the owners of a writeback request. */
__noinline int iot_fuse_own_writeback(__u64 id, __u64 args)
{
	struct flight *f = bpf_map_lookup_elem(&flights, &id);
	struct inode_note *note;
	struct split *split;
	__u64 inode;
	int i;

	if (!f)
		return 0;
	inode = (__u64)iot_fuse_inode(args);
	note = bpf_map_lookup_elem(&inode_notes, &inode);
	if (note && !note->shared) {
		iot_fuse_own(f, iot_pack(note->cgroup, IOT_DIRTIER), note->pid);
		return 0;
	}
	bpf_map_update_elem(&splits, &id, &no_split, BPF_ANY);
	split = bpf_map_lookup_elem(&splits, &id);
	if (!inode || !split)
		return 0;
	if (note) {
		split->unknown.owner = iot_pack(note->cgroup, IOT_DIRTIER);
		split->unknown.pid = note->pid;
	}
	split->mapping = inode + bpf_core_field_offset(struct inode, i_data);
	split->offset = f->offset;
	split->left = f->size;
	for (i = 0; i < IOT_TURNS; i++)
		if (iot_split_turn(id))
			break;
	if (split->left) { /* the last owner seen gets the rest */
		iot_lost(IOT_LOST_WALKS, 1);
		split->run.bytes += split->left;
	}
	if (!split->parts[0].bytes) { /* there is only one owner */
		iot_fuse_own(f, split->run.owner, split->run.pid);
		bpf_map_delete_elem(&splits, &id);
		return 0;
	}
	iot_split_close(id);
	f->split = 1;
	return 0;
}

/* The owner of any other request. caller: the current task asks. */
static __always_inline void iot_fuse_own_direct(struct flight *f, __u64 args, bool caller)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	bool data = f->usage.op == IOT_READ || f->usage.op == IOT_WRITE;
	__u64 owner = 0, folio;
	__u32 pid = 0;

	if (caller) {
		owner = iot_owner_from_task();
		if (owner && by_process) {
			pid = FIELD(task, tgid);
			iot_name_process(task, pid);
		}
	}
	folio = !owner && data ? iot_fuse_first_folio(args) : 0;
	if (folio) {
		owner = iot_folio_owner(folio, 0, f->usage.op == IOT_WRITE ? IOT_FOR_WRITE : 0);
		if (!caller && iot_packed_basis(owner) != IOT_PAGE && iot_packed_basis(owner) != IOT_DIRTIER)
			owner = 0; /* the current task is not the owner */
	}
	if (!owner && caller)
		owner = iot_pack(IOT_CGROUP_KERNEL, IOT_NONE);
	iot_fuse_own(f, owner, pid);
}

enum {
	IOT_FUSE_CALLER = 1, /* the current task asks */
	IOT_FUSE_SUBMIT = 2, /* not sent yet */
	IOT_FUSE_LATE = 4, /* ended, but never seen before */
};

/* Stores a request and its owner. */
__noinline int iot_fuse_begin(__u64 id, __u64 args, __u32 dev, __u32 how)
{
	struct flight fresh = {}, *f;
	__u32 opcode = iot_u32_at(args + layout.opcode);
	__u64 in = iot_word_at(args + layout.in_value);

	fresh.in = in;
	fresh.opcode = opcode;
	fresh.usage.source = IOT_FUSE;
	fresh.usage.op = iot_fuse_op(opcode);
	fresh.usage.dev = dev;
	fresh.submitted = how & IOT_FUSE_SUBMIT ? 1 : 0;
	if (!(how & IOT_FUSE_LATE))
		fresh.issued = bpf_ktime_get_ns();
	if (opcode == IOT_FUSE_READ || opcode == IOT_FUSE_WRITE) {
		fresh.offset = iot_word_at(in + IOT_FUSE_IN_OFFSET);
		fresh.size = iot_u32_at(in + IOT_FUSE_IN_SIZE);
	}
	bpf_map_update_elem(&flights, &id, &fresh, BPF_ANY);
	if (opcode == IOT_FUSE_WRITE && (iot_u32_at(in + IOT_FUSE_IN_WRITE_FLAGS) & IOT_FUSE_WRITE_CACHE))
		return iot_fuse_own_writeback(id, args);
	f = bpf_map_lookup_elem(&flights, &id);
	if (f)
		iot_fuse_own_direct(f, args, how & IOT_FUSE_CALLER);
	return 0;
}

static __always_inline __u32 iot_fuse_dev(__u64 req)
{
	return iot_u32_at(iot_word_at(iot_word_at(req + layout.req_link) + layout.link_conn) + layout.conn_dev);
}

static __always_inline __u32 iot_fuse_mount_dev(__u64 mount)
{
	return iot_u32_at(iot_word_at(mount + layout.mount_conn) + layout.mount_dev);
}

/* An assumed layout leads from the mount to a superblock: a wrong one does not find FUSE's. */
static __always_inline bool iot_fuse_layout_holds(__u64 mount)
{
	struct super_block *sb;

	if (!layout_assumed)
		return true;
	sb = (void *)iot_word_at(mount + layout.mount_conn);
	return FIELD(sb, s_magic) == IOT_FUSE_SUPER_MAGIC;
}

static __always_inline bool iot_is_daemon(__u32 dev)
{
	struct daemon d = { .dev = dev, .pid = bpf_get_current_pid_tgid() >> 32 };

	return bpf_map_lookup_elem(&daemons, &d);
}

/* For tracepoints: no task waits for a background request, so its fuse_args live until its end. */
static __always_inline bool iot_fuse_in_background(__u64 req)
{
	return iot_word_at(req + layout.req_flags) & layout.background;
}

static __always_inline __u64 iot_fuse_id(__u64 req)
{
	return iot_fuse_in_background(req) ? iot_word_at(req + layout.req_args) : req;
}

/* fuse_request_send: the request goes to the daemon. */
static __always_inline int iot_fuse_send(__u64 req)
{
	__u64 args = iot_word_at(req + layout.req_args), id = req;
	__u32 how = IOT_FUSE_CALLER, dev = iot_fuse_dev(req);
	struct flight *f;

	iot_fuse_see_send();
	if (iot_fuse_in_background(req)) {
		id = args;
		f = bpf_map_lookup_elem(&flights, &id);
		if (f && f->submitted) {
			f->submitted = 0;
			f->issued = bpf_ktime_get_ns();
			return 0;
		}
		if (iot_is_daemon(dev))
			how = 0;
	}
	return iot_fuse_begin(id, args, dev, how);
}

static __always_inline void iot_fuse_meet_daemon(__u32 dev)
{
	struct daemon d = { .dev = dev, .pid = bpf_get_current_pid_tgid() >> 32 };
	__u64 *count = bpf_map_lookup_elem(&daemons, &d), one = 1;

	if (count)
		__sync_fetch_and_add(count, 1);
	else if (iot_is_user_task((void *)bpf_get_current_task())) /* virtiofs answers from a kernel thread */
		bpf_map_update_elem(&daemons, &d, &one, BPF_ANY);
}

static __always_inline __u64 iot_fuse_done(__u64 args, __u32 opcode)
{
	switch (opcode) {
	case IOT_FUSE_READ:
		return iot_u32_at(args + layout.out_size); /* the kernel shrank it to what came */
	case IOT_FUSE_WRITE:
	case IOT_FUSE_COPY_FILE_RANGE:
		return iot_u32_at(iot_word_at(args + layout.out_value));
	case IOT_FUSE_COPY_FILE_RANGE_64:
		return iot_word_at(iot_word_at(args + layout.out_value));
	}
	return 0;
}

/*
 * The same for a request that was stored when it was sent. Where its fuse_args are
 * empty or belong to another request by now, all that was asked for counts as done.
 */
static __always_inline __u64 iot_fuse_done_of(const struct flight *f, __u64 args)
{
	bool data = f->opcode == IOT_FUSE_READ || f->opcode == IOT_FUSE_WRITE;
	__u64 in = iot_word_at(args + layout.in_value), bytes;

	if (!data)
		return iot_fuse_done(args, f->opcode);
	if (in != f->in || iot_u32_at(args + layout.opcode) != f->opcode ||
	    iot_word_at(in + IOT_FUSE_IN_OFFSET) != f->offset)
		return f->size;
	bytes = iot_fuse_done(args, f->opcode);
	if (f->opcode == IOT_FUSE_WRITE && !bytes)
		return f->size; /* the answer does not say it */
	return bytes < f->size ? bytes : f->size;
}

/* ENOSYS or EOPNOTSUPP: the daemon does not know the operation. */
static __always_inline bool iot_fuse_unknown(__s32 error)
{
	return error == -38 || error == -95;
}

/* Whether an error means a fault and not just an answer ("no such file"). */
static __always_inline bool iot_fuse_failed(__u8 op, __s32 error)
{
	if (!error)
		return false;
	if (op == IOT_READ || op == IOT_WRITE)
		return true;
	if (op == IOT_FLUSH)
		return true;
	switch (-error) {
	case 4: /* EINTR */
	case 5: /* EIO */
	case 103: /* ECONNABORTED */
	case 107: /* ENOTCONN */
	case 110: /* ETIMEDOUT */
	case 121: /* EREMOTEIO */
		return true;
	}
	return false;
}

static __always_inline void iot_fuse_record(const struct flight *f, const struct usage_key *usage, __u64 bytes,
					    __s32 error)
{
	struct io_record record = {
		.usage = *usage,
		.time = f->issued,
		.latency = f->issued ? bpf_ktime_get_ns() - f->issued : 0,
		.offset = f->offset,
		.bytes = bytes,
	};

	if (error)
		record.usage.flags |= IOT_ERROR;
	iot_record(&record);
}

/* Books a part of a request; taken: bytes that the daemon took from here on. Returns the bytes booked. */
__noinline __u64 iot_fuse_book_part(__u64 id, __u32 i, __u64 taken, __s32 error)
{
	struct split *split = bpf_map_lookup_elem(&splits, &id);
	struct flight *f = bpf_map_lookup_elem(&flights, &id);
	struct usage_key usage;
	struct part *part;
	__u64 n;

	if (!split || !f)
		return 0;
	part = &split->parts[i & (IOT_PARTS - 1)];
	n = part->bytes < taken ? part->bytes : taken;
	usage = f->usage;
	usage.cgroup = iot_packed_cgroup(part->owner);
	usage.basis = iot_packed_basis(part->owner);
	usage.pid = part->pid;
	if (!n && i)
		return 0;
	iot_account(&usage, n, !i); /* the first part has the operation itself */
	if (with_records)
		iot_fuse_record(f, &usage, n, error);
	return n;
}

static __always_inline void iot_fuse_book_parts(__u64 id, __u64 bytes, __s32 error)
{
	__u32 i;

	for (i = 0; i < IOT_PARTS; i++) {
		bytes -= iot_fuse_book_part(id, i, bytes, error);
		if (!bytes)
			break;
	}
	bpf_map_delete_elem(&splits, &id);
}

/*
 * Asynchronous direct I/O: the system call returned without a count, so its
 * application level is booked here.
 */
static __always_inline void iot_fuse_book_async(struct usage_key usage, __u64 args, __u64 bytes)
{
	__u64 io = layout.io ? iot_word_at(args + layout.io) : 0;

	if (!io || !(iot_u32_at(io + layout.io_async) & 0xff) || (iot_u32_at(io + layout.io_blocking) & 0xff))
		return;
	usage.flags = IOT_APP;
	iot_account(&usage, bytes, 0);
}

__noinline int iot_fuse_book_unknown(__u64 args, __u32 dev, __s32 error)
{
	__u32 opcode = iot_u32_at(args + layout.opcode);
	struct usage_key usage = { .source = IOT_FUSE, .op = iot_fuse_op(opcode), .dev = dev };

	iot_account(&usage, error ? 0 : iot_fuse_done(args, opcode), 1);
	return 0;
}

/*
 * Books a request that ended; returns 1 when it was not stored. Functions that call
 * each other share 512 bytes of stack, and before 6.8 each takes at least 32. So this
 * one, which needs much, is not called by those that find owners.
 */
__noinline int iot_fuse_finish(__u64 id, __u64 args, __s32 error)
{
	struct flight *f = bpf_map_lookup_elem(&flights, &id);
	__u64 bytes = 0, ns = 0;
	__u32 opcode;
	struct usage_key usage;

	if (!f)
		return 1;
	usage = f->usage;
	opcode = f->opcode;
	if (iot_fuse_unknown(error)) {
		usage.op = IOT_META_OP; /* nothing was done, and the kernel will not ask again */
	} else if (!error) {
		bytes = iot_fuse_done_of(f, args);
		iot_fuse_meet_daemon(usage.dev);
	}
	if (with_latency && f->issued) {
		ns = bpf_ktime_get_ns() - f->issued;
		iot_latency(&usage, ns);
	}
	if (f->split && usage.op == IOT_WRITE) {
		iot_fuse_book_parts(id, bytes, error);
	} else {
		iot_account(&usage, bytes, 1);
		if (with_records)
			iot_fuse_record(f, &usage, bytes, error);
	}
	bpf_map_delete_elem(&flights, &id);
	if (iot_fuse_failed(usage.op, error)) {
		usage.flags |= IOT_ERROR;
		iot_account(&usage, 0, 1);
	} else if (with_app && id == args && bytes && (opcode == IOT_FUSE_READ || opcode == IOT_FUSE_WRITE)) {
		iot_fuse_book_async(usage, args, bytes);
	}
	return 0;
}

/*
 * Whether a request was made before we saw the first one sent: it may have been sent
 * before we attached, so its end without its beginning is no loss.
 */
static __always_inline bool iot_fuse_is_old(__u64 req)
{
	return layout.req_created && iot_word_at(req + layout.req_created) <= first_sent;
}

/* fuse_request_end: the daemon answered, or the request was aborted. */
static __always_inline int iot_fuse_end(__u64 req, __u64 id)
{
	__u64 args = iot_word_at(req + layout.req_args);
	__s32 error = iot_u32_at(req + layout.req_error);

	if (!iot_fuse_finish(id, args, error) || !first_sent)
		return 0;
	if (!iot_fuse_is_old(req))
		iot_lost(IOT_LOST_LATENCIES, 1);
	iot_fuse_begin(id, args, iot_fuse_dev(req), IOT_FUSE_LATE);
	if (iot_fuse_finish(id, args, error)) /* there was no room to store it */
		iot_fuse_book_unknown(args, iot_fuse_dev(req), error);
	return 0;
}

SEC("raw_tp/fuse_request_send")
int iot_fuse_request_send(__u64 *ctx)
{
	return iot_fuse_send(ctx[0]);
}

SEC("raw_tp/fuse_request_end")
int iot_fuse_request_end(__u64 *ctx)
{
	return iot_fuse_end(ctx[0], iot_fuse_id(ctx[0]));
}

/*
 * The kernel skips a program while another run of it is in progress on the same
 * CPU. Since 7.0 programs on tracepoints are preempted, so it happens. Then a second
 * program on the same tracepoint, which runs after the first, finds that the work was
 * not done. The second can be skipped as well: it may be preempted itself, and while
 * user space reads our maps kprobes are skipped too. So there is a third.
 */
static __always_inline int iot_fuse_send_redundant(__u64 req)
{
	__u64 args = iot_word_at(req + layout.req_args), id = iot_fuse_id(req);
	struct flight *f = bpf_map_lookup_elem(&flights, &id);

	/* One with other arguments never ended: its sender was killed before the daemon took it. */
	if (f && !f->submitted && f->in == iot_word_at(args + layout.in_value))
		return 0;
	iot_lost(IOT_COVERED, 1);
	return iot_fuse_send(req);
}

static __always_inline int iot_fuse_end_redundant(__u64 req)
{
	__u64 args = iot_word_at(req + layout.req_args), id = iot_fuse_id(req);

	if (bpf_map_lookup_elem(&flights, &id)) {
		iot_lost(IOT_COVERED, 1);
		iot_fuse_finish(id, args, iot_u32_at(req + layout.req_error));
	}
	return 0;
}

SEC("raw_tp/fuse_request_send")
int iot_fuse_request_send_second(__u64 *ctx)
{
	return iot_fuse_send_redundant(ctx[0]);
}

SEC("raw_tp/fuse_request_send")
int iot_fuse_request_send_third(__u64 *ctx)
{
	return iot_fuse_send_redundant(ctx[0]);
}

SEC("raw_tp/fuse_request_end")
int iot_fuse_request_end_second(__u64 *ctx)
{
	return iot_fuse_end_redundant(ctx[0]);
}

SEC("raw_tp/fuse_request_end")
int iot_fuse_request_end_third(__u64 *ctx)
{
	return iot_fuse_end_redundant(ctx[0]);
}

/* The kernel may call the function once more for a request that has ended. */
static __always_inline int iot_fuse_end_call(__u64 req, __u64 id)
{
	if (iot_word_at(req + layout.req_flags) & layout.finished)
		return 0;
	if (!iot_fuse_layout_holds(iot_word_at(req + layout.req_link)))
		return 0;
	return iot_fuse_end(req, id);
}

SEC("fentry/fuse_request_end")
int iot_fuse_end_fentry(__u64 *ctx)
{
	__u64 req = iot_arg(ctx, 0);

	return iot_fuse_end_call(req, iot_word_at(req + layout.req_args));
}

SEC("kprobe/fuse_request_end")
int iot_fuse_end_kprobe(__u64 *ctx)
{
	__u64 req = IOT_PARM1(ctx);

	return iot_fuse_end_call(req, iot_word_at(req + layout.req_args));
}

/* For requests that a tracepoint saw sent. Programs on functions are not preempted. */
SEC("kprobe/fuse_request_end")
int iot_fuse_request_end_kprobe(__u64 *ctx)
{
	__u64 req = IOT_PARM1(ctx);

	return iot_fuse_end_call(req, iot_fuse_id(req));
}

static __always_inline int iot_fuse_call(__u64 mount, __u64 args, __u32 how)
{
	iot_fuse_see_send();
	if (!iot_fuse_layout_holds(mount)) {
		iot_lost(IOT_LOST_LATENCIES, 1);
		return 0;
	}
	return iot_fuse_begin(args, args, iot_fuse_mount_dev(mount), IOT_FUSE_CALLER | how);
}

SEC("fentry/fuse_simple_request")
int iot_fuse_request_fentry(__u64 *ctx)
{
	return iot_fuse_call(iot_arg(ctx, 0), iot_arg(ctx, 1), 0);
}

SEC("kprobe/fuse_simple_request")
int iot_fuse_request_kprobe(__u64 *ctx)
{
	return iot_fuse_call(IOT_PARM1(ctx), IOT_PARM2(ctx), 0);
}

/* Since 6.12, with the idmap of the mount as first argument. */
SEC("fentry/__fuse_simple_request")
int iot_fuse_request_idmap_fentry(__u64 *ctx)
{
	return iot_fuse_call(iot_arg(ctx, 1), iot_arg(ctx, 2), 0);
}

SEC("kprobe/__fuse_simple_request")
int iot_fuse_request_idmap_kprobe(__u64 *ctx)
{
	return iot_fuse_call(IOT_PARM2(ctx), IOT_PARM3(ctx), 0);
}

SEC("fentry/fuse_simple_background")
int iot_fuse_background_fentry(__u64 *ctx)
{
	return iot_fuse_call(iot_arg(ctx, 0), iot_arg(ctx, 1), IOT_FUSE_SUBMIT);
}

SEC("kprobe/fuse_simple_background")
int iot_fuse_background_kprobe(__u64 *ctx)
{
	return iot_fuse_call(IOT_PARM1(ctx), IOT_PARM2(ctx), IOT_FUSE_SUBMIT);
}

/* Application level: the results of calls on files. */

#define IOT_EAGAIN (-11) /* tried without blocking: the kernel tries once more */
#define IOT_EIOCBQUEUED (-529) /* will complete later: see iot_fuse_book_async */

static __always_inline __u32 iot_file_dev(struct file *file)
{
	return BPF_CORE_READ(file, f_inode, i_sb, s_dev);
}

static __always_inline int iot_fuse_app(__u32 dev, __u8 op, __s64 result)
{
	struct usage_key usage = { .source = IOT_FUSE, .op = op, .dev = dev, .flags = IOT_APP };
	struct task_struct *task = (void *)bpf_get_current_task();
	__u64 owner = iot_owner_from_task();

	if (result == IOT_EAGAIN)
		return 0;
	if (!owner)
		owner = iot_pack(IOT_CGROUP_KERNEL, IOT_NONE);
	usage.cgroup = iot_packed_cgroup(owner);
	usage.basis = iot_packed_basis(owner);
	if (by_process && iot_packed_basis(owner) == IOT_TASK) {
		usage.pid = FIELD(task, tgid);
		iot_name_process(task, usage.pid);
	}
	iot_account(&usage, result > 0 ? result : 0, 1);
	if (result < 0 && result != IOT_EIOCBQUEUED) {
		usage.flags |= IOT_ERROR;
		iot_account(&usage, 0, 1);
	}
	return 0;
}

static __always_inline int iot_fuse_app_iter(struct kiocb *kiocb, __u8 op, __s64 result)
{
	return iot_fuse_app(iot_file_dev(FIELD(kiocb, ki_filp)), op, result);
}

SEC("fexit/fuse_file_read_iter")
int iot_fuse_app_read(__u64 *ctx)
{
	return iot_fuse_app_iter((struct kiocb *)ctx[0], IOT_READ, ctx[2]);
}

SEC("fexit/fuse_file_write_iter")
int iot_fuse_app_write(__u64 *ctx)
{
	return iot_fuse_app_iter((struct kiocb *)ctx[0], IOT_WRITE, ctx[2]);
}

SEC("fexit/fuse_splice_read")
int iot_fuse_app_splice(__u64 *ctx)
{
	return iot_fuse_app(iot_file_dev((struct file *)ctx[0]), IOT_READ, ctx[5]);
}

static __always_inline int iot_fuse_app_enter(__u32 dev)
{
	__u64 task = bpf_get_current_pid_tgid();
	struct app_call call = { .dev = dev };

	bpf_map_update_elem(&app_calls, &task, &call, BPF_ANY);
	return 0;
}

static __always_inline int iot_fuse_app_leave(__u8 op, __s64 result)
{
	__u64 task = bpf_get_current_pid_tgid();
	struct app_call *call = bpf_map_lookup_elem(&app_calls, &task);

	if (!call)
		return 0;
	iot_fuse_app(call->dev, op, result);
	bpf_map_delete_elem(&app_calls, &task);
	return 0;
}

SEC("kprobe/fuse_file_read_iter")
int iot_fuse_app_iter_enter(__u64 *ctx)
{
	struct kiocb *kiocb = (struct kiocb *)IOT_PARM1(ctx);

	return iot_fuse_app_enter(iot_file_dev(FIELD(kiocb, ki_filp)));
}

SEC("kprobe/fuse_splice_read")
int iot_fuse_app_splice_enter(__u64 *ctx)
{
	return iot_fuse_app_enter(iot_file_dev((struct file *)IOT_PARM1(ctx)));
}

SEC("kretprobe/fuse_file_read_iter")
int iot_fuse_app_read_leave(__u64 *ctx)
{
	return iot_fuse_app_leave(IOT_READ, IOT_RESULT(ctx));
}

SEC("kretprobe/fuse_file_write_iter")
int iot_fuse_app_write_leave(__u64 *ctx)
{
	return iot_fuse_app_leave(IOT_WRITE, IOT_RESULT(ctx));
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
