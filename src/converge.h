/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_SRC_CONVERGE_H
#define TERN_SRC_CONVERGE_H

/*
 * When to stop the rounds and pause the guest.
 *
 * The remainder must fit the downtime limit at the measured bandwidth.  That alone
 * would pause a guest for the whole limit although one more short round could cut
 * the pause to a fraction: so rounds go on while each still shrinks the remainder
 * by a quarter and what is left takes longer than CONVERGE_FLOOR_NS.  A guest that
 * dirties at a steady rate below the bandwidth shrinks its remainder geometrically,
 * so this costs a few short rounds; one that does not shrink is switched over at
 * once.  A remainder that does not fit never switches over.
 */

#include <stdbool.h>
#include <stdint.h>

#define CONVERGE_FLOOR_NS 500000u /* not worth another round */
#define CONVERGE_EXTRA_ROUNDS 16u /* at most so many beyond the first that fits */

struct converge {
	uint64_t last_bytes;   /* remainder after the round before; UINT64_MAX: none */
	unsigned extra_rounds; /* rounds since it first fitted */
	uint64_t expected_ns;  /* of the last decision: time for the remainder */
};

/* converge_init - before the first round. */
void converge_init(struct converge *c);

/*
 * converge_decide - after a round: switch over now?
 *
 * @remaining_bytes dirty now; @bandwidth in bytes/s, 0 if not known yet (then
 * only an empty remainder fits); @limit_ns the downtime limit.
 */
bool converge_decide(struct converge *c, uint64_t remaining_bytes, uint64_t bandwidth,
		     uint64_t limit_ns);

#endif
