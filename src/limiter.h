/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_SRC_LIMITER_H
#define TERN_SRC_LIMITER_H

/*
 * max-bandwidth: one budget in bytes per second for all channels together.
 *
 * Time is handed out: each taker reserves the span its bytes need at the rate and
 * waits until its span begins.  Fields are under the monitor's lock; the rate may
 * change at any time.
 */

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "monitor.h"

struct limiter {
	atomic_uint_fast64_t rate; /* bytes/s, 0: no limit */
	uint64_t next_ns;          /* when the next taker may begin */
};

/* limiter_set - change the rate and wake those who wait. */
void limiter_set(struct limiter *l, struct monitor *mon, uint64_t rate);

/*
 * limiter_take - wait until @bytes may be sent.
 *
 * Ends early when *@stop becomes true or the limit is lifted.
 */
void limiter_take(struct limiter *l, struct monitor *mon, uint64_t bytes, const atomic_bool *stop);

#endif
