/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Postcopy, as seen by the destination.
 *
 *	MISSING …	which pages are not here
 *	POSTCOPY	from now on they fault; fault threads ask for them
 *	GO		the guest runs (destination.c)
 *	pages		channel threads place them, and wake who waits
 *	COMPLETE	nothing is missing: the memory is the guest's alone
 *
 * A lost link pauses nothing but the threads that need what is missing.  The session waits
 * for its source in POSTCOPY_PAUSED; the listener has stayed open for that.
 */
#include "destination.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "faults.h"
#include "mapper.h"
#include "missing.h"
#include "placement.h"
#include "stripe.h"

/* Nothing is missing any more.  Any thread of a channel. */
static void on_complete(void *opaque)
{
	struct tern_session *s = opaque;

	monitor_lock(&s->mon);
	monitor_broadcast(&s->mon);
	monitor_unlock(&s->mon);
}

/*
 * The source has no business there any more.  Session thread, and channel threads, which
 * end before the connection does.
 */
static void on_retire(void *opaque, uint32_t region, uint64_t offset, uint64_t len)
{
	struct tern_session *s = opaque;

	if (s->conn->ops->retire)
		s->conn->ops->retire(s->conn, region, offset, len);
}

/* Ask the source for pages.  Fault threads. */
static int request(void *opaque, const struct wire_page_range *v, unsigned nr)
{
	struct tern_session *s = opaque;
	struct wire_msg msg;
	int r = -ENOTCONN;

	msg.type = WIRE_PAGES_WANTED;
	msg.wanted.count = (uint16_t)nr;
	memcpy(msg.wanted.v, v, nr * sizeof(*v));
	monitor_lock(&s->mon);
	bool up = s->link_up;

	if (up)
		s->requesting++;
	monitor_unlock(&s->mon);
	if (!up)
		return r; /* asked for again when there is a link */
	r = link_send(&s->link, &msg, NULL);
	monitor_lock(&s->mon);
	s->requesting--;
	if (!s->link_up) /* then somebody waits for that; else nobody must be woken */
		monitor_broadcast(&s->mon);
	monitor_unlock(&s->mon);
	return r;
}

/* A fault that cannot be resolved: nothing to do but say so.  Fault threads. */
static void on_failure(void *opaque, const struct tern_error *why)
{
	session_event(opaque, TERN_EVENT_WARNING, why);
}

/* May fault threads use the link?  Waits until none does, if not.  Session thread. */
static void set_link_up(struct tern_session *s, bool up)
{
	monitor_lock(&s->mon);
	s->link_up = up;
	while (!up && s->requesting)
		monitor_wait(&s->mon, NEVER_NS);
	monitor_unlock(&s->mon);
}

void postcopy_stop_asking(struct tern_session *s)
{
	set_link_up(s, false);
}

/* Adds to what is not here; see missing_take(). */
static int add_missing(void *placement, uint32_t region, struct runs *runs)
{
	return placement_missing(placement, region, runs);
}

int postcopy_take_missing(struct destination *d, const struct wire_missing *m,
			  struct tern_error *err)
{
	struct tern_session *s = d->s;

	if (!s->placement || d->final_round)
		return error_session(err, -EPROTO, "message MISSING from the peer came %s",
				     s->placement ? "after POSTCOPY" : "without postcopy");
	return missing_take(s, m, add_missing, s->placement, err);
}

int postcopy_start_faults(struct tern_session *s, struct tern_error *err)
{
	struct faults_config config = {
		.placement = s->placement,
		.nr_threads = (unsigned)session_param(s, TERN_PARAM_FAULT_THREADS),
		.request = request,
		.fail = on_failure,
		.opaque = s,
	};
	struct faults *f;
	int r;

	r = faults_start(&config, &f, err);
	if (r)
		return r;
	monitor_lock(&s->mon);
	s->faults = f;
	monitor_unlock(&s->mon);
	return 0;
}

int postcopy_arm(struct destination *d, const struct wire_postcopy *m, struct tern_error *err)
{
	struct tern_session *s = d->s;
	int r;

	if (!s->placement || d->final_round)
		return error_session(err, -EPROTO, "message POSTCOPY from the peer came %s",
				     s->placement ? "twice" : "without postcopy");
	if (m->missing_pages != atomic_load(&s->placement->left))
		return error_session(err, -EPROTO,
				     "message POSTCOPY from the peer has missing_pages = %" PRIu64
				     ", its MISSING list %" PRIu64,
				     m->missing_pages, (uint64_t)atomic_load(&s->placement->left));
	d->missing_pages = m->missing_pages;
	d->final_round = true;
	session_set_state(s, TERN_STATE_DEVICE);
	s->placement->complete = on_complete;
	s->placement->retire = on_retire;
	s->placement->opaque = s;
	set_link_up(s, true); /* from the first page on that can be missed, it can be asked for */
	r = placement_arm(s->placement, err);
	if (r)
		return r;
	monitor_lock(&s->mon);
	s->postcopy_stats->missing_at_start = m->missing_pages;
	monitor_unlock(&s->mon);
	atomic_store(&s->armed_placement, s->placement);
	return 0;
}

/* ------------------------------------------------------------------ serving */

/* Why the link is of no use any more, if so.  -errno with *err; mon.lock is held. */
static int lost(struct tern_session *s, struct tern_error *err)
{
	if (s->link.dead)
		*err = s->link.error;
	else if (s->worker_failed_ns &&
		 now_ns() >= s->worker_failed_ns + SESSION_GRACE_MS * 1000000ull)
		*err = s->worker_error; /* the link had time to tell more */
	return err->code;
}

/* Until nothing is missing, or the link is lost.  0 or -errno with *err. */
static int await_pages(struct tern_session *s, struct tern_error *err)
{
	struct wire_msg msg;
	int r = 0;

	monitor_lock(&s->mon);
	while (!r && atomic_load(&s->placement->left)) {
		r = link_take(&s->link, &msg, err);
		if (r > 0)
			r = error_session(err, -EPROTO,
					  "message %s from the peer came while pages are missing",
					  wire_type_name(msg.type));
		if (!r)
			r = lost(s, err);
		if (!r)
			monitor_wait(&s->mon,
				     s->worker_failed_ns
					     ? s->worker_failed_ns + SESSION_GRACE_MS * 1000000ull
					     : NEVER_NS);
	}
	monitor_unlock(&s->mon);
	return r;
}

/* Nothing is missing any more, but the source may not know it. */
static void warn_unsure(struct tern_session *s, const struct tern_error *why)
{
	struct tern_error warning;

	error_clear(&warning);
	error_session(
		&warning, why->code,
		"all pages are here, but the source may not know (%s): leave the source guest "
		"paused",
		why->message);
	session_event(s, TERN_EVENT_WARNING, &warning);
}

/* Nothing is missing: say so, and wait for BYE, without which nothing changes. */
static void say_complete(struct tern_session *s)
{
	struct tern_error err;
	struct wire_msg msg;

	error_clear(&err);
	int r = link_send_empty(&s->link, WIRE_COMPLETE, &err);

	if (!r)
		r = session_expect(
			s, WIRE_BYE, &msg,
			deadline_ns((int64_t)session_param(s, TERN_PARAM_PEER_TIMEOUT_MS)), &err);
	if (!r)
		return;
	if (!err.code)
		error_session(&err, r, "%s", error_name(r));
	warn_unsure(s, &err);
}

/*
 * The link is lost: end all that used it, and tell the VMM.
 *
 * False: what had arrived was all there is, and nothing has to be recovered.
 */
static bool pause_session(struct destination *d, const struct tern_error *why)
{
	struct tern_session *s = d->s;
	struct tern_error warning;

	if (s->conn)
		s->conn->ops->abort(s->conn);
	set_link_up(s, false);
	destination_stop_receivers(s); /* which place what they have first */
	session_close_link(s);
	if (!atomic_load(&s->placement->left)) {
		monitor_lock(&s->mon);
		error_clear(&s->error);
		error_clear(&s->worker_error);
		s->worker_failed_ns = 0;
		monitor_unlock(&s->mon);
		warn_unsure(s, why);
		return false;
	}
	error_clear(&warning);
	error_session(&warning, why->code,
		      "the link to the source was lost (%s); %" PRIu64
		      " pages are missing, and threads of the guest that need them wait until the "
		      "source recovers, at %s",
		      why->message, (uint64_t)atomic_load(&s->placement->left), s->uri_text);
	monitor_lock(&s->mon);
	s->worker_failed_ns = 0;
	error_clear(&s->worker_error);
	s->error = warning; /* until it recovers */
	s->error.phase = s->state;
	d->admitted = false;
	monitor_unlock(&s->mon);
	session_set_state(s, TERN_STATE_POSTCOPY_PAUSED);
	session_event(s, TERN_EVENT_WARNING, &warning);
	return true;
}

/* A new link with the source.  0 or -errno with *err; a stranger changes nothing. */
static int take_link(struct destination *d, struct tern_error *err)
{
	struct tern_session *s = d->s;
	int r = link_start(&s->link, &s->mon, s->conn, TERN_DESTINATION,
			   (unsigned)session_param(s, TERN_PARAM_PEER_TIMEOUT_MS), err);

	if (!r)
		r = recover_destination(s, err);
	if (!r)
		r = destination_start_receivers(s, err);
	if (r)
		return r;
	monitor_lock(&s->mon);
	d->admitted = true;
	error_clear(&s->error);
	s->postcopy_stats->recoveries++;
	monitor_unlock(&s->mon);
	set_link_up(s, true);
	session_set_state(s, TERN_STATE_POSTCOPY_ACTIVE);
	return faults_ask_again(s->faults);
}

/*
 * Paused: until there is a new link.
 *
 * 0; 1: nothing is missing any more, and there is no link; -errno with *err: the session
 * is given up.
 */
static int recover(struct destination *d, struct tern_error *err)
{
	struct tern_session *s = d->s;

	for (;;) {
		struct tern_error why;
		int r = destination_next_candidate(d, err);

		if (r) {
			monitor_lock(&s->mon);
			s->error = *err;
			s->error.phase = s->state;
			monitor_unlock(&s->mon);
			return r;
		}
		error_clear(&why);
		r = take_link(d, &why);
		if (!r) {
			destination_refuse_waiting(d);
			return 0;
		}
		destination_find_reason(s, r, &why);
		if (s->state == TERN_STATE_POSTCOPY_PAUSED)
			destination_dismiss(d, &why);
		else if (!pause_session(d, &why))
			return 1;
	}
}

int postcopy_serve(struct destination *d, struct tern_error *err)
{
	struct tern_session *s = d->s;
	uint64_t begin = now_ns();
	int r;

	session_set_state(s, TERN_STATE_POSTCOPY_ACTIVE);
	placement_settle(s->placement);
	for (;;) {
		struct tern_error why;

		error_clear(&why);
		r = await_pages(s, &why);
		if (!r)
			break;
		r = pause_session(d, &why) ? recover(d, err) : 1;
		if (r < 0)
			return r;
		if (r)
			break;
	}
	monitor_lock(&s->mon);
	s->stats.postcopy_ns = now_ns() - begin;
	if (!s->times.end)
		s->times.end = now_ns();
	monitor_unlock(&s->mon);
	if (!r)
		say_complete(s);
	return 0;
}

/* Add a mapper to the placement, which is there.  0 or -errno with *err.  mon.lock is held. */
static int add_mapper(struct tern_session *s, int uffd, const struct tern_mapping *maps,
		      unsigned nr, struct tern_error *err)
{
	struct placement *p = s->placement;
	unsigned i = atomic_load(&p->nr_mappers);
	int r;

	if (i == PLACEMENT_MAPPERS_MAX)
		return error_session(err, -ENOSPC, "%u other processes map guest RAM already", i);
	r = mapper_new(p, uffd, maps, nr, &p->mappers[i], err);
	if (r)
		return r;
	atomic_store(&p->nr_mappers, i + 1);
	if (s->faults)
		faults_mappers_changed(s->faults);
	return 0;
}

int tern_session_add_mapper(struct tern_session *s, int uffd, const struct tern_mapping *maps,
			    unsigned nr, struct tern_error *err)
{
	struct tern_error scratch;
	int r;

	if (!err)
		err = &scratch;
	error_clear(err);
	if (s->role != TERN_DESTINATION || !nr)
		return error_session(
			err, -EINVAL,
			"only a destination can serve other processes, of at least one "
			"mapping");
	monitor_lock(&s->mon);
	if (atomic_load(&s->armed_placement) && s->placement)
		r = add_mapper(s, uffd, maps, nr, err);
	else if (s->state == TERN_STATE_COMPLETED || s->ended)
		r = error_session(err, -ESRCH, "all pages are here");
	else
		r = error_session(err, -EAGAIN,
				  "the session is not in postcopy: call this from load() or later");
	monitor_unlock(&s->mon);
	return r;
}

void postcopy_fini(struct tern_session *s)
{
	atomic_store(&s->armed_placement, NULL);
	monitor_lock(&s->mon);
	struct placement *p = s->placement;
	struct faults *f = s->faults;

	if (s->postcopy_stats)
		session_postcopy_now(s, s->postcopy_stats);
	s->placement = NULL;
	s->faults = NULL;
	monitor_unlock(&s->mon);
	faults_stop(&f);
	placement_delete(&p); /* who waits looks again */
}
