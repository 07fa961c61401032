/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Which file a request is for (--by file). A row names a file by a number; what the number
 * stands for is in the map of files, which has no names: user space asks for those later,
 * with the program in names.bpf.c.
 *
 * Without --by file none of this is called, and user space cuts the functions out of the
 * programs (tracer/part.go).
 */
#ifndef IOTRACE_FILE_H
#define IOTRACE_FILE_H

#include "hash.h"
#include "maps.h"
#include "page.h"

#define IOT_FILE_WORDS 8

/* Whether the file of a request is asked for. */
static __always_inline bool iot_files_on(void)
{
	__u32 zero = 0, *on;

	if (!by_file)
		return false;
	on = bpf_map_lookup_elem(&file_switch, &zero);
	return on && *on;
}

/* The hash of so many words, at most IOT_FILE_WORDS, of what else identifies a file. */
__noinline __u32 iot_file_more(__u64 at, __u32 words)
{
	__u64 sum = 0;
	__u32 i;

	for (i = 0; i < IOT_FILE_WORDS && i < words; i++)
		sum = (sum ^ iot_word_at(at + i * sizeof(__u64))) * 0xD6E8FEB86659FD93ULL;
	return sum >> 32;
}

static __always_inline bool iot_same_file(const struct file_record *a, const struct file_record *b)
{
	return a->ino == b->ino && a->dev == b->dev && a->generation == b->generation && a->more == b->more;
}

#define IOT_FILE_TRIES 4

/*
 * The number of the file that an inode has. A server may give a file the number of one
 * that was removed: where the generation does not tell them apart, the words at `at` do (a
 * file handle, say), of which more is the hash. 0: there is nothing of the kind.
 */
__noinline __u32 iot_file_of(__u64 addr, __u64 at, __u32 words, __u32 more)
{
	struct inode *inode = (void *)addr;
	struct file_record now = {}, *known;
	__u32 id, i;

	if (!addr)
		return 0;
	now.ino = FIELD(inode, i_ino);
	now.dev = BPF_CORE_READ(inode, i_sb, s_dev);
	now.generation = FIELD(inode, i_generation);
	now.inode = addr;
	now.at = at;
	now.words = words;
	now.more = more;
	id = iot_hash(now.ino ^ ((__u64)now.dev << 32 | now.generation) * 0x9E3779B97F4A7C15ULL ^ (__u64)now.more << 16, 31);
#pragma unroll
	for (i = 0; i < IOT_FILE_TRIES; i++) {
		id |= IOT_FILE;
		if (id < IOT_FILE_FIRST)
			id = IOT_FILE_FIRST;
		known = bpf_map_lookup_elem(&files, &id);
		if (!known) {
			now.mode = FIELD(inode, i_mode);
			now.rdev = FIELD(inode, i_rdev);
			bpf_map_update_elem(&files, &id, &now, BPF_NOEXIST);
			known = bpf_map_lookup_elem(&files, &id);
			if (!known)
				break;
		}
		if (iot_same_file(known, &now)) {
			if (known->inode != addr) { /* it was forgotten meanwhile, and read again */
				known->at = at;
				known->inode = addr;
			}
			return id;
		}
		id++;
	}
	iot_lost(IOT_LOST_FILES, 1);
	return IOT_FILE_OTHER;
}

#endif
