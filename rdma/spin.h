/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_RDMA_SPIN_H
#define TERN_RDMA_SPIN_H

/*
 * How long to poll before sleeping.
 *
 * In postcopy a thread of the guest waits for a request and its answer, and to sleep and be
 * woken takes longer than the two do on the wire.  So who waits for the next one polls first,
 * for as long as the last ones took to come, if that was not long: the rule by which KVM
 * polls for a vCPU that halted (halt_poll_ns).  If they come further apart than
 * SPIN_MAX_NS nobody polls.
 *
 * The price is CPU time, at most SPIN_MAX_NS after each request or answer.  At the source
 * the guest is paused and leaves its CPUs; at the destination it runs, so spin_pause() lets
 * whoever else is ready go first.
 */

#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include "cm.h"

#define SPIN_FIRST_NS 50000u
#define SPIN_MAX_NS 1000000u

struct spin {
	uint64_t ns; /* to poll next time */
};

/* spin_adapt - what was waited for came after @waited_ns. */
static inline void spin_adapt(struct spin *s, uint64_t waited_ns)
{
	if (waited_ns > SPIN_MAX_NS)
		s->ns = 0;
	else if (waited_ns > s->ns)
		s->ns = s->ns ? 2 * s->ns : SPIN_FIRST_NS;
	if (s->ns > SPIN_MAX_NS)
		s->ns = SPIN_MAX_NS;
}

/* spin_pause - between two polls of a wait that began at @begin_ns: go on?  Others may run. */
static inline bool spin_pause(const struct spin *s, uint64_t begin_ns)
{
	if (!s->ns || verbs_now_ns() - begin_ns >= s->ns)
		return false;
	sched_yield();
	return true;
}

#endif
