/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_SRC_THROTTLE_H
#define TERN_SRC_THROTTLE_H

/*
 * When to slow the guest, and by how much: QEMU's rule for auto-converge
 * (migration_trigger_throttle() in migration/ram.c).
 *
 * Looks count when a second has passed since the last one that did.  If in that time
 * the guest wrote more than the trigger's share of what was sent, twice in all since
 * the last step, it is slowed by a step.
 */

#include <stdint.h>

#define THROTTLE_PERIOD_NS 1000000000ull

struct throttle_config {
	unsigned trigger, initial, increment, max; /* percent */
};

struct throttle {
	unsigned percent; /* 0: full speed */
	unsigned high; /* periods over the trigger since the last step */
	uint64_t begin_ns; /* of this period */
	uint64_t dirty_bytes; /* in this period */
	uint64_t sent_bytes; /* in all, when it began */
};

/* throttle_begin - the guest runs at full speed. */
void throttle_begin(struct throttle *t, uint64_t now);

/*
 * throttle_look - after a look at the dirty log.
 *
 * @dirty_bytes were written since the last look, @sent_bytes have been sent in all.
 * Returns the percentage from now on.
 */
unsigned throttle_look(struct throttle *t, const struct throttle_config *c, uint64_t now,
		       uint64_t dirty_bytes, uint64_t sent_bytes);

#endif
