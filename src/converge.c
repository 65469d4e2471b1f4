/* SPDX-License-Identifier: BSD-2-Clause */
#include "converge.h"

void converge_init(struct converge *c)
{
	*c = (struct converge){ .last_bytes = UINT64_MAX };
}

/* Nanoseconds for @bytes at @bandwidth; UINT64_MAX if it is not known. */
static uint64_t transfer_ns(uint64_t bytes, uint64_t bandwidth)
{
	if (!bytes)
		return 0;
	if (!bandwidth)
		return UINT64_MAX;
	double ns = (double)bytes * 1e9 / (double)bandwidth;

	return ns > 1e18 ? UINT64_MAX : (uint64_t)ns;
}

bool converge_decide(struct converge *c, uint64_t remaining_bytes, uint64_t bandwidth,
		     uint64_t limit_ns)
{
	bool shrinks = remaining_bytes < c->last_bytes - c->last_bytes / 4;

	c->last_bytes = remaining_bytes;
	c->expected_ns = transfer_ns(remaining_bytes, bandwidth);
	if (c->expected_ns > limit_ns) {
		c->extra_rounds = 0;
		return false;
	}
	if (c->expected_ns <= CONVERGE_FLOOR_NS || !shrinks)
		return true;
	return c->extra_rounds++ >= CONVERGE_EXTRA_ROUNDS;
}
