/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The page cache. */
#ifndef IOTRACE_CACHE_H
#define IOTRACE_CACHE_H

#include "page.h"

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

#endif
