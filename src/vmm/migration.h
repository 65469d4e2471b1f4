/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_VMM_MIGRATION_H
#define TERN_VMM_MIGRATION_H

/*
 * One migration of the machine: a session of libtern, and what it asks of us.
 *
 * A session stays after its end, for its statistics, until the next one begins.
 * All functions here are called on the main thread.
 */

#include <jansson.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <tern/tern.h>
#include <pthread.h>
#include "params.h"

struct vmm;

struct migration {
	struct vmm *vmm;
	struct params params;
	enum tern_role role;
	struct tern_session *session; /* NULL: there was none yet; main thread */
	pthread_rwlock_t vcpu_lock; /* guards this: the session, as vCPUs' threads may use it */
	struct tern_session *vcpu_session;
	atomic_bool ran_there; /* source: the destination said that it runs the guest */
	/* Is the guest to run on?  Written by pause() or load(), read by later callbacks. */
	bool wants_to_run;
};

void migration_init(struct migration *g, struct vmm *v);

/* migration_fini - end it; cancels one that runs, waits for one that cannot be cancelled. */
void migration_fini(struct migration *g);

/* migration_runs - has one begun and not ended? */
bool migration_runs(const struct migration *g);

/* migration_must_stay - would migration_fini() wait for the other side (postcopy)? */
bool migration_must_stay(const struct migration *g);

/*
 * migration_in_doubt - is this a source whose postcopy is paused and whose destination was told
 * to run the guest, but never said that it does?  The memory here is complete then.
 */
bool migration_in_doubt(const struct migration *g);

/* migration_start - be the source.  Returns at once.  0, or -errno with *@err. */
int migration_start(struct migration *g, const char *uri, struct tern_error *err);

/*
 * migration_listen - be the destination; the machine must be a fresh one.  Returns at once.
 * 0, or -errno with *@err.
 */
int migration_listen(struct migration *g, const char *uri, struct tern_error *err);

/* migration_cancel - give it up.  0, or -EBUSY with *@err: the guest has moved. */
int migration_cancel(struct migration *g, struct tern_error *err);

/* migration_continue - leave pre-switchover.  0, or -errno with *@err. */
int migration_continue(struct migration *g, struct tern_error *err);

/* migration_start_postcopy - end precopy (mode hybrid).  0, or -errno with *@err. */
int migration_start_postcopy(struct migration *g, struct tern_error *err);

/* migration_ring_full - the dirty ring of vCPU @index is full; its own thread. */
void migration_ring_full(struct migration *g, unsigned index);

/* migration_recover - source: go on after a lost link, to @uri.  0, or -errno with *@err. */
int migration_recover(struct migration *g, const char *uri, struct tern_error *err);

/* migration_json - what `query-migrate` answers. */
json_t *migration_json(const struct migration *g);

#endif
