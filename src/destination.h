/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_SRC_DESTINATION_H
#define TERN_SRC_DESTINATION_H

/*
 * The destination's side of a session, as its files share it.  All of it runs on the
 * session thread; channel threads place pages, fault threads ask for them.
 */

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "session.h"
#include "vmstate.h"

#define CANDIDATES_MAX 4u

struct destination {
	struct tern_session *s;
	pthread_t acceptor;

	/* Under mon.lock. */
	struct transport_conn *candidates[CANDIDATES_MAX];
	unsigned nr_candidates;
	bool admitted; /* a peer's handshake succeeded: no more candidates */

	/* Session thread. */
	uint32_t round;
	bool final_round; /* or POSTCOPY */
	uint64_t missing_pages; /* in all MISSING */
	struct tern_state_writer state; /* what arrived of the device state */
	bool state_complete;
	uint64_t ready_ns; /* READY was sent then */
};

/* The acceptor, with its struct destination, until the listener is stopped (acceptor.c). */
void *destination_acceptor_main(void *arg);

/*
 * destination_admit - take candidates until a handshake succeeds.
 *
 * 0; or -errno with *err if the session is not wanted any more.
 */
int destination_admit(struct destination *d, struct tern_error *err);

/*
 * destination_next_candidate - wait for a peer, and make it s->conn.
 *
 * 0; or -errno with *err if the session is not wanted any more.
 */
int destination_next_candidate(struct destination *d, struct tern_error *err);

/* destination_dismiss - the candidate's handshake failed with @why: tell it, report it. */
void destination_dismiss(struct destination *d, const struct tern_error *why);

/* destination_refuse_waiting - turn away candidates that nobody took. */
void destination_refuse_waiting(struct destination *d);

/* destination_start_receivers - a thread for each channel.  0 or -errno with *err. */
int destination_start_receivers(struct tern_session *s, struct tern_error *err);

/* destination_stop_receivers - end them, whose channels were revoked or aborted. */
void destination_stop_receivers(struct tern_session *s);

/* destination_find_reason - why the link ended: a dead link knows better than its victims. */
void destination_find_reason(struct tern_session *s, int code, struct tern_error *why);

/*
 * Postcopy (postcopy_destination.c).
 *
 * postcopy_start_faults - the threads that serve the guest's faults, of the placement that is
 * there: in good time, because starting threads would be a third of the downtime.
 * postcopy_take_missing - MISSING.  postcopy_arm - POSTCOPY: from now on pages fault, and
 * are asked for.  0 or -errno with *err.
 * postcopy_serve - the guest runs: until nothing is missing, over lost links.  0; -errno
 * with *err if the session was given up.
 * postcopy_stop_asking - no fault thread uses the link any more, which was aborted.
 * postcopy_fini - end its threads and take the memory from userfaultfd.
 */
int postcopy_start_faults(struct tern_session *s, struct tern_error *err);
int postcopy_take_missing(struct destination *d, const struct wire_missing *m,
			  struct tern_error *err);
int postcopy_arm(struct destination *d, const struct wire_postcopy *m, struct tern_error *err);
int postcopy_serve(struct destination *d, struct tern_error *err);
void postcopy_stop_asking(struct tern_session *s);
void postcopy_fini(struct tern_session *s);

#endif
