/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Pages, folios and the files that they belong to. What changed in the kernel between
 * 5.10 and 7.x has one accessor for each change. Each checks that the field or type
 * exists instead of the kernel's version: distributions backport. A flavour has the
 * name of the last or first release with it.
 */
#ifndef IOTRACE_PAGE_H
#define IOTRACE_PAGE_H

#include "field.h"
#include "kernel.h"


#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

/* Folios came in 5.16 (7b230db3b8d3, "mm: Introduce struct folio"); page cache owners are read from them. */
struct folio {
	struct address_space *mapping;
	unsigned long index;
	unsigned long memcg_data;
};

/* Before 5.11 (bcfe06bf2622, "mm: memcontrol: Use helpers to read page's memcg data") a page pointed to its mem_cgroup. */
struct page___5_10 {
	struct address_space *mapping;
	unsigned long index;
	struct mem_cgroup *mem_cgroup;
};

struct page___5_15 {
	struct address_space *mapping;
	unsigned long index;
	unsigned long memcg_data;
};

/* A large folio's number of pages: renamed (_folio_nr_pages) some time after 6.12. */
struct folio___6_12 {
	unsigned int _folio_nr_pages;
};

struct folio___6_18 {
	unsigned int _nr_pages;
};

/* A tail page names its head by a pointer with bit 0 set, up to 7.0 ... */
struct page___7_0 {
	unsigned long compound_head;
};

/* ... and since 7.1 by a mask, where the size of struct page is a power of two. */
struct page___7_1 {
	unsigned long compound_info;
};

/* The same word in a folio, which has another type there. */
struct page___private {
	unsigned long private;
};

struct obj_cgroup {
	struct mem_cgroup *memcg;
};

/* Since 7.1 page cache and anonymous pages are charged to an obj_cgroup; is_root came with it. */
struct obj_cgroup___7_1 {
	bool is_root;
};

#pragma clang attribute pop

enum pageflags {
	PG_locked = 0,
	PG_uptodate = 2,
	PG_private = 13,
	PG_writeback = 15,
	PG_head = 16,
	PG_swapbacked = 18,
};

#define IOT_HAS_FLAG(flags, flag) (!!((flags) & (1UL << bpf_core_enum_value(enum pageflags, flag))))

/* The folio of a page whose compound_head or compound_info is info. */
static __always_inline struct folio *iot_head(const struct page *page, unsigned long info)
{
	const struct page___7_1 *p71 = (const void *)page;

	/* A mask has all its high bits set; kernels without it have a pointer here, as before. */
	if (bpf_core_field_exists(p71->compound_info) && (info & 1) && info > 0xffffffff00000000UL)
		return (void *)((unsigned long)page & info);
	if (info & 1)
		return (void *)(info - 1);
	return (void *)page;
}

static __always_inline struct folio *iot_folio(const struct page *page)
{
	const struct page___7_1 *p71 = (const void *)page;
	const struct page___7_0 *p70 = (const void *)page;

	if (bpf_core_field_exists(p71->compound_info))
		return iot_head(page, FIELD(p71, compound_info));
	return iot_head(page, FIELD(p70, compound_head));
}

/* The number of pages of a large folio; 0 where it is not known. */
static __always_inline unsigned int iot_folio_pages(const struct folio *folio)
{
	const struct folio___6_18 *f618 = (const void *)folio;
	const struct folio___6_12 *f612 = (const void *)folio;

	if (bpf_core_field_exists(f618->_nr_pages))
		return FIELD(f618, _nr_pages);
	if (bpf_core_field_exists(f612->_folio_nr_pages))
		return FIELD(f612, _folio_nr_pages);
	return 0;
}

/* The number of pages of a folio; 1 where a large one does not say it. */
static __always_inline unsigned int iot_folio_size(const struct folio *folio)
{
	unsigned long flags = 0;
	unsigned int n;

	/* flags is the first word of struct page and struct folio, whatever its type is called */
	bpf_probe_read_kernel(&flags, sizeof(flags), folio);
	if (!(flags & (1UL << bpf_core_enum_value(enum pageflags, PG_head))))
		return 1;
	n = iot_folio_pages(folio);
	return n ? n : 1;
}

/*
 * Whether a page is one of a folio. What is compared may be no page at all: it is not
 * read, because an address that is not canonical makes the kernel complain in its log.
 */
static __always_inline bool iot_in_folio(__u64 page, __u64 folio)
{
	if (page < folio)
		return false;
	return page - folio < (__u64)iot_folio_size((void *)folio) * bpf_core_type_size(struct page___5_15);
}

static __always_inline struct address_space *iot_folio_mapping(const struct folio *folio)
{
	const struct page___5_15 *page = (const void *)folio;

	if (bpf_core_type_exists(struct folio))
		return FIELD(folio, mapping);
	return FIELD(page, mapping);
}

static __always_inline unsigned long iot_folio_index(const struct folio *folio)
{
	const struct page___5_15 *page = (const void *)folio;

	if (bpf_core_type_exists(struct folio))
		return FIELD(folio, index);
	return FIELD(page, index);
}

/* Low bits of folio.mapping: not a file's address_space (anonymous, movable, KSM). */
#define IOT_MAPPING_FLAGS 3UL
#define IOT_MAPPING_ANON 1UL

static __always_inline bool iot_mapping_is_file(const struct address_space *mapping)
{
	return mapping && !((unsigned long)mapping & IOT_MAPPING_FLAGS);
}

/*
 * The raw owner word of a folio: equal words mean equal owners. Its low bits
 * are flags: 1 a slab's vector of objects, 2 kernel memory, 4 unused here.
 */
static __always_inline unsigned long iot_folio_owner_word(const struct folio *folio)
{
	const struct page___5_10 *p510 = (const void *)folio;
	const struct page___5_15 *p515 = (const void *)folio;

	if (bpf_core_field_exists(p510->mem_cgroup))
		return (unsigned long)FIELD(p510, mem_cgroup);
	if (bpf_core_type_exists(struct folio))
		return FIELD(folio, memcg_data);
	return FIELD(p515, memcg_data);
}

/*
 * A struct page, read at once: each field alone would take a helper call.
 */
struct page_words {
	unsigned long word[8];
};

#define IOT_WORD(words, type, field) ((words)->word[bpf_core_field_offset(((type *)0)->field) / sizeof(unsigned long)])

static __always_inline struct folio *iot_words_folio(const struct page_words *words, const struct page *page)
{
	if (bpf_core_field_exists(((struct page___7_1 *)0)->compound_info))
		return iot_head(page, IOT_WORD(words, struct page___7_1, compound_info));
	return iot_head(page, IOT_WORD(words, struct page___7_0, compound_head));
}

static __always_inline struct address_space *iot_words_mapping(const struct page_words *words)
{
	if (bpf_core_type_exists(struct folio))
		return (void *)IOT_WORD(words, struct folio, mapping);
	return (void *)IOT_WORD(words, struct page___5_15, mapping);
}

static __always_inline unsigned long iot_words_index(const struct page_words *words)
{
	if (bpf_core_type_exists(struct folio))
		return IOT_WORD(words, struct folio, index);
	return IOT_WORD(words, struct page___5_15, index);
}

static __always_inline unsigned long iot_words_owner(const struct page_words *words)
{
	if (bpf_core_field_exists(((struct page___5_10 *)0)->mem_cgroup))
		return IOT_WORD(words, struct page___5_10, mem_cgroup);
	if (bpf_core_type_exists(struct folio))
		return IOT_WORD(words, struct folio, memcg_data);
	return IOT_WORD(words, struct page___5_15, memcg_data);
}

#define IOT_FUSE_SUPER_MAGIC 0x65735546 /* include/uapi/linux/magic.h */

static __always_inline __u64 iot_inode_number(const struct inode *inode)
{
	return FIELD(inode, i_ino);
}

static __always_inline __u32 iot_inode_dev(const struct inode *inode)
{
	return BPF_CORE_READ(inode, i_sb, s_dev);
}

static __always_inline __u32 iot_file_dev(const struct file *file)
{
	return BPF_CORE_READ(file, f_inode, i_sb, s_dev);
}

/*
 * The inode that contains an address_space, without a read. For block devices and a
 * few other oddities it is not the mapping's host, but never for FUSE.
 */
static __always_inline struct inode *iot_mapping_inode(const struct address_space *mapping)
{
	return (void *)mapping - bpf_core_field_offset(struct inode, i_data);
}

/*
 * Whether no page of the file is dirty or being written. The page cache's xarray has
 * its marks in xa_flags, above the six real flags (include/linux/xarray.h, since
 * 4.20).
 */
static __always_inline bool iot_mapping_is_clean(const struct address_space *mapping)
{
	return !(FIELD(mapping, i_pages.xa_flags) >> 6);
}

#define IOT_OWNER_SLAB 1UL
#define IOT_OWNER_KMEM 2UL
#define IOT_OWNER_FLAGS 7UL

static __always_inline bool iot_owner_is_objcg(unsigned long word)
{
	const struct page___5_10 *p510 = NULL;

	if (bpf_core_field_exists(p510->mem_cgroup))
		return false;
	if (bpf_core_field_exists(((struct obj_cgroup___7_1 *)0)->is_root))
		return true;
	return word & IOT_OWNER_KMEM;
}

#endif
