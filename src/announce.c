/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Telling the network where the guest is now: the VMM's announce(), a few times.
 *
 * On a thread of its own, which outlives the migration: the source learns at once that
 * the guest runs, and what waits for the session to end does not wait for this.
 */
#define _GNU_SOURCE
#include "session.h"

#include "error.h"

/* Milliseconds between call @round and the next. */
static uint64_t pause_ms(const struct tern_session *s, unsigned round)
{
	uint64_t ms = session_param(s, TERN_PARAM_ANNOUNCE_INITIAL_MS) +
		      round * session_param(s, TERN_PARAM_ANNOUNCE_STEP_MS);
	uint64_t max = session_param(s, TERN_PARAM_ANNOUNCE_MAX_MS);

	return ms < max ? ms : max;
}

static void *announce_main(void *arg)
{
	struct tern_session *s = arg;
	unsigned rounds = (unsigned)session_param(s, TERN_PARAM_ANNOUNCE_ROUNDS);
	bool stop = false;

	pthread_setname_np(pthread_self(), "tern-announce");
	for (unsigned i = 0; i < rounds && !stop; i++) {
		(void)s->vm.announce(s->vm_opaque, i);
		if (i + 1 == rounds)
			break;
		uint64_t until = deadline_ns((int64_t)pause_ms(s, i));

		monitor_lock(&s->mon);
		while (!s->abandoned && monitor_wait(&s->mon, until))
			;
		stop = s->abandoned;
		monitor_unlock(&s->mon);
	}
	return NULL;
}

void session_announce(struct tern_session *s)
{
	struct tern_error err;

	if (!s->vm.announce || !session_param(s, TERN_PARAM_ANNOUNCE_ROUNDS))
		return;
	int r = -pthread_create(&s->announcer, NULL, announce_main, s);

	s->announces = !r;
	if (!r)
		return;
	error_clear(&err);
	error_session(&err, r, "cannot start the thread that announces the guest: %s",
		      error_name(r));
	session_event(s, TERN_EVENT_WARNING, &err);
}

void session_announce_end(struct tern_session *s)
{
	if (s->announces)
		pthread_join(s->announcer, NULL);
	s->announces = false;
}
