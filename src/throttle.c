/* SPDX-License-Identifier: BSD-2-Clause */
#include "throttle.h"

#define HIGH_PERIODS 2u

void throttle_begin(struct throttle *t, uint64_t now)
{
	*t = (struct throttle){ .begin_ns = now };
}

/* One step more. */
static unsigned next_step(const struct throttle *t, const struct throttle_config *c)
{
	unsigned next = t->percent ? t->percent + c->increment : c->initial;

	return next < c->max ? next : c->max;
}

unsigned throttle_look(struct throttle *t, const struct throttle_config *c, uint64_t now,
		       uint64_t dirty_bytes, uint64_t sent_bytes)
{
	uint64_t sent = sent_bytes - t->sent_bytes;

	t->dirty_bytes += dirty_bytes;
	if (now - t->begin_ns < THROTTLE_PERIOD_NS)
		return t->percent;
	if ((double)t->dirty_bytes * 100 > (double)sent * c->trigger && ++t->high >= HIGH_PERIODS) {
		t->high = 0;
		t->percent = next_step(t, c);
	}
	t->begin_ns = now;
	t->dirty_bytes = 0;
	t->sent_bytes = sent_bytes;
	return t->percent;
}
