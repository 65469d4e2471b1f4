/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_SRC_SOURCE_H
#define TERN_SRC_SOURCE_H

/*
 * The source's side of a session: setup, precopy rounds, switchover, and the way
 * back if any of it fails.  All of it runs on the session thread; only sender
 * workers read guest RAM.
 */

#include <stdbool.h>
#include <stdint.h>

#include "converge.h"
#include "dirty.h"
#include "populated.h"
#include "sender.h"
#include "session.h"
#include "throttle.h"

/* The peer answers keep-alive but not READY, STARTED, or COMPLETE: so many peer timeouts. */
#define SOURCE_PATIENCE 6

struct source {
	struct tern_session *s;
	struct populated populated;
	bool has_populated;
	struct dirty dirty;
	bool has_dirty;
	bool tracking;       /* dirty.start() was called */
	bool started;        /* postcopy: the destination has said that it runs the guest */
	bool paused;         /* vm.pause() was called: resume() is due on failure */
	uint32_t round;
	uint64_t total_pages;
	uint64_t skipped_pages;
	uint64_t remaining_pages;
	uint64_t bandwidth;  /* bytes/s of the last round that moved enough to tell */
	uint64_t last_sync_ns;
	struct throttle throttle;
};

/*
 * source_phase - run a phase on all workers and wait.  Before SYNC the dirty provider may
 * fetch its log as a whole.  0 or -errno with *err.
 */
int source_phase(struct source *src, enum sender_phase phase, bool final, struct tern_error *err);

/* source_send_round - SEND phase plus the ROUND message and figures. */
int source_send_round(struct source *src, bool final, struct tern_error *err);

/*
 * source_start_workers - a worker for each channel but the one for requests.
 *
 * How many there are has been agreed on; they need not be open yet.
 */
int source_start_workers(struct source *src, struct tern_error *err);

/* source_stop_workers - end them and keep their figures; the connection was aborted or is idle. */
void source_stop_workers(struct source *src);

/*
 * precopy_run - rounds until the remainder fits the downtime limit.
 *
 * It may leave the guest slowed.
 */
int precopy_run(struct source *src, struct tern_error *err);

/* source_unthrottle - the guest is slowed no more. */
void source_unthrottle(struct source *src);

/*
 * switchover_run - pause, last round, device state, READY, GO, STARTED.
 *
 * On failure session.point_of_no_return tells whether GO had been given.
 */
int switchover_run(struct source *src, struct tern_error *err);

/*
 * Postcopy (postcopy_source.c).
 *
 * postcopy_prepare - before the guest is paused: what takes time by the size of RAM.
 * postcopy_begin - guest paused: tell the destination what it lacks.
 * postcopy_run - after STARTED, or after GO if that did not come (@lost says why): send it,
 * and go on after lost links, until nothing is missing.  0; -errno with *err if the session
 * was given up.
 */
int postcopy_prepare(struct source *src, struct tern_error *err);
int postcopy_begin(struct source *src, struct tern_error *err);
int postcopy_run(struct source *src, const struct tern_error *lost, struct tern_error *err);

#endif
