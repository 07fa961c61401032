// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The name of a file, for --by file. User space runs the program itself (BPF_PROG_TEST_RUN,
 * for raw tracepoints since 5.10: 1b4d60ec162f), once for each file and not when a request
 * is sent: nothing waits for it. It only reads memory. No file system is asked, so a server
 * that does not answer holds nobody up.
 *
 * The memory may change meanwhile. So a file has a name only if its inode is the same before
 * and after, and each part of the path only if it was not being renamed (d_seq).
 */
#include "core/file.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct hlist_node {
	struct hlist_node *next;
};

struct hlist_head {
	struct hlist_node *first;
};

struct hlist_bl_node {
	struct hlist_bl_node **pprev;
};

struct qstr {
	const unsigned char *name;
};

struct inode___names {
	unsigned int i_nlink;
	struct hlist_head i_dentry;
};

struct seqcount {
	unsigned int sequence;
};

struct seqcount_spinlock {
	struct seqcount seqcount;
};

struct dentry___names {
	struct seqcount_spinlock d_seq;
	struct hlist_bl_node d_hash;
	struct dentry___names *d_parent;
	struct qstr d_name;
	struct inode *d_inode;
};

/* Where a dentry is in the list of its inode: in a union that has a name up to some release after 6.18 ... */
struct dentry___6_18 {
	union {
		struct hlist_node d_alias;
	} d_u;
};

/* ... and none since. */
struct dentry___7_3 {
	struct hlist_node d_alias;
};

#pragma clang attribute pop

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct file_name);
} file_names SEC(".maps");

static __always_inline __u64 iot_alias_offset(void)
{
	if (bpf_core_field_exists(((struct dentry___7_3 *)0)->d_alias))
		return bpf_core_field_offset(((struct dentry___7_3 *)0)->d_alias);
	return bpf_core_field_offset(((struct dentry___6_18 *)0)->d_u.d_alias);
}

/* Whether a name can be looked up: it was not removed. */
static __always_inline bool iot_is_hashed(struct dentry___names *d)
{
	return FIELD(d, d_hash.pprev) != NULL;
}

#define IOT_ALIASES 8

/* One of the file's names: one that can be looked up, if there is one. */
static __always_inline struct dentry___names *iot_any_name(struct inode *inode)
{
	struct hlist_node *node = FIELD((struct inode___names *)inode, i_dentry.first);
	struct dentry___names *d, *first = NULL;
	int i;

	for (i = 0; i < IOT_ALIASES && node; i++) {
		d = (void *)node - iot_alias_offset();
		if (FIELD(d, d_inode) == inode) {
			if (iot_is_hashed(d))
				return d;
			if (!first)
				first = d;
		}
		node = FIELD(node, next);
	}
	return first;
}

static __always_inline bool iot_is_same(const struct file_record *r)
{
	struct inode *inode = (void *)r->inode;

	return FIELD(inode, i_ino) == r->ino && FIELD(inode, i_generation) == r->generation &&
	       BPF_CORE_READ(inode, i_sb, s_dev) == r->dev &&
	       (!r->words || iot_file_more(r->at, r->words) == r->more);
}

/* ctx[0] is the file's number. */
SEC("raw_tp")
int iot_file_name(__u64 *ctx)
{
	__u32 zero = 0, id = ctx[0], at = 0;
	struct file_name *name = bpf_map_lookup_elem(&file_names, &zero);
	struct file_record *r = bpf_map_lookup_elem(&files, &id);
	struct dentry___names *d, *up;
	struct inode *inode;
	__u32 renames;
	__s64 n;
	int i;

	if (!name)
		return 0;
	name->state = IOT_NAME_GONE;
	name->bytes = 0;
	name->depth = 0;
	name->links = 0;
	if (!r || !iot_is_same(r))
		return 0;
	inode = (void *)r->inode;
	name->links = FIELD((struct inode___names *)inode, i_nlink);
	d = iot_any_name(inode);
	if (!d) {
		name->state = IOT_NAME_NONE | (name->links ? 0 : IOT_NAME_REMOVED);
		if (!iot_is_same(r))
			name->state = IOT_NAME_GONE;
		return 0;
	}
	name->state = iot_is_hashed(d) || FIELD(d, d_parent) == d ? 0 : IOT_NAME_REMOVED;
	for (i = 0; i < IOT_PATH_DEPTH; i++) {
		renames = FIELD(d, d_seq.seqcount.sequence);
		up = FIELD(d, d_parent);
		if (!up || up == d)
			break;
		if (at >= IOT_PATH_BYTES)
			break;
		n = bpf_probe_read_kernel_str(name->text + at, IOT_COMPONENT_MAX, FIELD(d, d_name.name));
		if (n <= 0 || n > IOT_COMPONENT_MAX)
			break;
		if (renames & 1 || FIELD(d, d_seq.seqcount.sequence) != renames) {
			name->state = IOT_NAME_GONE; /* asked again it has a name */
			return 0;
		}
		at += n;
		name->depth++;
		d = up;
	}
	up = FIELD(d, d_parent);
	if (up != d)
		name->state |= IOT_NAME_PARTIAL;
	name->bytes = at;
	if (!iot_is_same(r))
		name->state = IOT_NAME_GONE;
	return 0;
}
