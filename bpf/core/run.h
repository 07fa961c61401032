/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A request shared out among its owners. A source walks over the pages of a request
 * and says whose each piece is; adjacent pieces of one owner are a run. Where a run
 * ends, the source's iot_run_ends takes it: it books it, or keeps it until the
 * request's end.
 */
#ifndef IOTRACE_RUN_H
#define IOTRACE_RUN_H

#include "cgroup.h"
#include "record.h"

struct run {
	struct usage_key usage; /* the row of the run */
	struct usage_key first; /* the row of the first run */
	__u64 offset; /* of the run's first byte */
	__u32 bytes; /* of the run */
	__u32 before; /* bytes of the runs before it */
	__u32 ops; /* 1 until the request itself is booked, with its first run */
	__u32 several; /* there is more than one owner */
};

static __always_inline void iot_run_begin(struct run *r, const struct usage_key *usage, __u64 offset)
{
	r->usage = *usage;
	r->first = *usage;
	r->offset = offset;
	r->bytes = 0;
	r->before = 0;
	r->ops = 1;
	r->several = 0;
}

/* Whether the next piece belongs to another row than the run. */
static __always_inline bool iot_run_differs(const struct run *r, const struct owner *o)
{
	return o->cgroup != r->usage.cgroup || o->basis != r->usage.basis || o->pid != r->usage.pid ||
	       o->fsdev != r->usage.fsdev;
}

static __always_inline void iot_run_own(struct run *r, const struct owner *o)
{
	r->usage.cgroup = o->cgroup;
	r->usage.basis = o->basis;
	r->usage.pid = o->pid;
	r->usage.fsdev = o->fsdev;
	if (!r->several)
		r->first = r->usage;
}

/* Books the run. */
static __always_inline void iot_run_book(struct run *r)
{
	iot_account(&r->usage, r->bytes, r->ops);
	r->offset += r->bytes;
	r->before += r->bytes;
	r->bytes = 0;
	r->ops = 0;
}

#endif
