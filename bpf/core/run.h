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
	struct usage_key longest; /* the row of the longest run so far, to which the request itself goes */
	__u64 offset; /* of the run's first byte */
	__u32 bytes; /* of the run */
	__u32 before; /* bytes of the runs before it */
	__u32 most; /* bytes of the longest run that was booked */
	__u32 several; /* there is more than one owner */
};

static __always_inline void iot_run_begin(struct run *r, const struct usage_key *usage, __u64 offset)
{
	r->usage = *usage;
	r->longest = *usage;
	r->offset = offset;
	r->bytes = 0;
	r->before = 0;
	r->most = 0;
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
		r->longest = r->usage;
}

/*
 * Books the run. The operation is booked with the last one, on the owner of the longest:
 * the first page of a journal's commit, say, is nobody's data.
 */
static __always_inline void iot_run_book(struct run *r, bool last)
{
	bool longest = r->bytes > r->most;

	if (longest) {
		r->most = r->bytes;
		r->longest = r->usage;
	}
	iot_account(&r->usage, r->bytes, last && longest);
	if (last && !longest)
		iot_account(&r->longest, 0, 1);
	r->offset += r->bytes;
	r->before += r->bytes;
	r->bytes = 0;
}

#endif
