/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The kernel types and fields that the programs read. CO-RE finds the real offsets
 * when a program is loaded, so no vmlinux.h is needed, and a reader sees at once what
 * we depend on. What changed between 5.10 and 7.x is in page.h, what only one
 * source reads in its types.h.
 */
#ifndef IOTRACE_KERNEL_H
#define IOTRACE_KERNEL_H

#include <linux/types.h>
#include <stdbool.h>
#include <stddef.h>

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct list_head {
	struct list_head *next, *prev;
};

/* cgroups and tasks */

struct kernfs_node {
	__u64 id;
};

struct cgroup_root {
	int hierarchy_id;
};

struct cgroup;

struct cgroup_subsys_state {
	struct cgroup *cgroup;
	struct cgroup_subsys_state *parent;
};

struct cgroup {
	struct cgroup_subsys_state self;
	int level;
	struct kernfs_node *kn;
	struct cgroup_root *root;
};

enum cgroup_subsys_id {
	io_cgrp_id = 3,
	memory_cgrp_id = 4,
};

struct css_set {
	struct cgroup_subsys_state *subsys[12];
	struct cgroup *dfl_cgrp;
};

struct files_struct;

struct task_struct {
	unsigned int flags;
	int tgid;
	struct css_set *cgroups;
	struct files_struct *files;
	void *stack;
	char comm[16];
};

#define PF_KTHREAD 0x00200000

/* memory */

struct mem_cgroup {
	struct cgroup_subsys_state css;
};

struct super_block {
	__u32 s_dev;
	unsigned long s_magic;
	void *s_fs_info;
};

struct xarray {
	unsigned int xa_flags;
	void *xa_head;
};

struct xa_node {
	unsigned char shift;
	void *slots[64];
	unsigned long marks[3][1];
};

struct inode;

struct address_space {
	struct inode *host;
	struct xarray i_pages;
	struct {
		int counter;
	} i_mmap_writable; /* mappings that may be written through */
};

struct inode {
	unsigned short i_mode;
	unsigned long i_ino;
	struct super_block *i_sb;
	__u32 i_rdev;
	__u32 i_generation;
	struct address_space i_data;
};

struct file {
	struct inode *f_inode;
};

struct dentry {
	struct inode *d_inode;
};

struct kiocb {
	struct file *ki_filp;
};

struct page;

/* block */

struct gendisk {
	int major;
	int first_minor;
	void *private_data;
};

struct bvec_iter {
	__u64 bi_sector;
	unsigned int bi_size;
	unsigned int bi_idx;
} __attribute__((packed));

struct bio_vec {
	struct page *bv_page;
	unsigned int bv_len;
	unsigned int bv_offset;
};

struct blkcg {
	struct cgroup_subsys_state css;
};

struct blkcg_gq {
	struct blkcg *blkcg;
};

struct bio {
	struct bio *bi_next;
	struct bvec_iter bi_iter;
	struct blkcg_gq *bi_blkg;
	void *bi_end_io;
	void *bi_private;
	unsigned int bi_opf;
	unsigned short bi_vcnt;
	struct bio_vec *bi_io_vec;
};

/* modules: the name alone; MODULE_NAME_LEN is 56 on 64 bit */

struct module {
	char name[56];
};

#pragma clang attribute pop

#endif
