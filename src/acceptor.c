/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Who is let in at the destination, and the RAM that is there for them.
 *
 *	listen()      clear RAM that is not zero, bind           (caller's thread)
 *	setup         take candidates one by one until a handshake succeeds; clear RAM again
 *	              after one that failed, if that one may have written to it
 *
 * The acceptor thread stays in the transport's accept() all the time, because data
 * channels arrive there too.  It hands candidates over in a short queue while the
 * session is in setup, or waits for its source to come back; otherwise, and when the queue
 * is full, it turns newcomers away with an ERROR message.  A candidate whose handshake
 * fails is a stranger: it is told why, reported, and forgotten.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>

#include "bitmap.h"
#include "destination.h"
#include "error.h"
#include "populated.h"

#define CLEAR_PAGES 16384u /* pages looked at in one go by clear_region() */

/* ------------------------------------------------------------------- listen */

/* Is the session still wanted?  -ECANCELED with *err if not. */
static int check_cancel(struct tern_session *s, struct tern_error *err)
{
	monitor_lock(&s->mon);
	int r = session_check(s, err);

	monitor_unlock(&s->mon);
	return r;
}

/* Make every byte of @r zero without allocating what was never touched. */
static int clear_region(struct tern_session *s, const struct populated *p, struct region *r,
			struct tern_error *err)
{
	uint64_t map[CLEAR_PAGES / BITMAP_WORD_BITS];

	for (uint64_t first = 0; first < r->nr_pages; first += CLEAR_PAGES) {
		uint64_t nr = r->nr_pages - first < CLEAR_PAGES ? r->nr_pages - first : CLEAR_PAGES;
		int e = check_cancel(s, err); /* there may be much of it */

		memset(map, 0, sizeof(map));
		if (!e)
			e = populated_scan(p, r, first, nr, map, err);
		if (e)
			return e;
		bitmap_for_each_run (map, nr, a, b) {
			for (uint64_t i = a; i < b; i++) {
				uint8_t *page = r->hva + (first + i) * TERN_PAGE_SIZE;

				if (!s->zero->is_zero(page, TERN_PAGE_SIZE))
					memset(page, 0, TERN_PAGE_SIZE);
			}
		}
	}
	return 0;
}

/*
 * Make all regions zero.  @vouched: but for those that the caller vouches for, which is of no
 * worth once a peer could write to them.
 */
static int clear_regions(struct tern_session *s, bool vouched, struct tern_error *err)
{
	struct populated p;
	int r = populated_init(&p, &s->regions, err);

	if (r)
		return r;
	for (unsigned i = 0; !r && i < s->regions.nr; i++)
		if (!vouched || !(s->regions.v[i].flags & TERN_REGION_ZEROED))
			r = clear_region(s, &p, &s->regions.v[i], err);
	populated_fini(&p);
	return r;
}

int destination_listen(struct tern_session *s, struct tern_error *err)
{
	struct transport_env env;
	struct transport_listener *l;
	int r = clear_regions(s, true, err);

	if (r)
		return r;
	session_env(s, &env);
	r = s->transport->listen(s->transport, &env, &s->uri, &l, err);
	if (r)
		return r;
	l->ops->listener_uri(l, s->uri_text, sizeof(s->uri_text));
	monitor_lock(&s->mon);
	s->listener = l;
	monitor_unlock(&s->mon);
	return 0;
}

/* --------------------------------------------------------------- acceptance */

/* Tell a latecomer that this session is taken, and drop it. */
static void refuse(struct tern_session *s, struct transport_conn *conn)
{
	struct tern_error why;
	struct wire_msg msg = { .type = WIRE_ERROR };
	uint8_t buf[TRANSPORT_MSG_MAX];

	error_clear(&why);
	error_session(&why, -EBUSY,
		      "the destination at %s is busy with another migration; only one source can "
		      "connect",
		      s->uri_text);
	msg.error.code = why.code;
	msg.error.scope = TERN_SCOPE_SESSION;
	msg.error.len = (uint16_t)strnlen(why.message, WIRE_ERROR_TEXT_MAX);
	memcpy(msg.error.text, why.message, msg.error.len);
	conn->ops->send(conn, buf, wire_encode(&msg, buf), SESSION_GRACE_MS, NULL);
	conn->ops->close(conn);
	session_stranger(s, &why);
}

/* Queue a candidate; false if it is not wanted. */
static bool enqueue_candidate(struct destination *d, struct transport_conn *conn)
{
	struct tern_session *s = d->s;

	monitor_lock(&s->mon);
	bool wanted = !d->admitted && !s->cancel_requested && d->nr_candidates < CANDIDATES_MAX;

	if (wanted)
		d->candidates[d->nr_candidates++] = conn;
	monitor_broadcast(&s->mon);
	monitor_unlock(&s->mon);
	return wanted;
}

/* accept() failed for a reason of this host (no descriptors, say): report, pause. */
static void accept_failed(struct destination *d, const struct tern_error *err)
{
	struct tern_session *s = d->s;
	uint64_t until = deadline_ns(SESSION_GRACE_MS);

	session_event(s, TERN_EVENT_WARNING, err);
	monitor_lock(&s->mon);
	while (!s->cancel_requested && monitor_wait(&s->mon, until))
		;
	monitor_unlock(&s->mon);
}

void *destination_acceptor_main(void *arg)
{
	struct destination *d = arg;
	struct transport_listener *l = d->s->listener;
	struct transport_conn *conn;
	struct tern_error err;

	pthread_setname_np(pthread_self(), "tern-accept");
	for (;;) {
		error_clear(&err);
		int r = l->ops->accept(l, -1, &conn, &err);

		if (r == -ECANCELED)
			return NULL;
		if (r == -ETIMEDOUT)
			continue;
		if (r)
			accept_failed(d, &err);
		else if (!enqueue_candidate(d, conn))
			refuse(d->s, conn);
	}
}

int destination_next_candidate(struct destination *d, struct tern_error *err)
{
	struct tern_session *s = d->s;
	int r = 0;

	monitor_lock(&s->mon);
	while (!d->nr_candidates && !r) {
		if (!s->point_of_no_return)
			r = session_check(s, err);
		else if (s->abandoned)
			r = error_session(err, -ECANCELED, "postcopy was given up");
		if (!r)
			session_wait_until(s, NEVER_NS);
	}
	if (!r) {
		s->conn = d->candidates[0];
		memmove(&d->candidates[0], &d->candidates[1],
			--d->nr_candidates * sizeof(d->candidates[0]));
		if (!s->point_of_no_return)
			s->times.begin = now_ns();
	}
	monitor_unlock(&s->mon);
	return r;
}

void destination_dismiss(struct destination *d, const struct tern_error *why)
{
	struct tern_session *s = d->s;

	monitor_lock(&s->mon);
	bool tell = s->link.running && !s->link.dead;

	monitor_unlock(&s->mon);
	if (tell) {
		link_send_error(&s->link, why, false);
		link_drain(&s->link, SESSION_GRACE_MS);
	}
	session_close_link(s);
	memset(&s->link, 0, sizeof(s->link));
	if (!s->point_of_no_return) {
		postcopy_fini(s);
		monitor_lock(&s->mon); /* what a stranger took is not the migration's */
		s->stats.registration_ns = s->stats.registration_bytes = 0;
		s->stats.locked_peak_bytes = 0;
		monitor_unlock(&s->mon);
	}
	session_stranger(s, why);
}

void destination_find_reason(struct tern_session *s, int code, struct tern_error *why)
{
	monitor_lock(&s->mon);
	if (s->link.dead && (!why->code || why->code == -ECANCELED))
		*why = s->link.error;
	monitor_unlock(&s->mon);
	if (!why->code)
		error_session(why, code, "the peer went away during the handshake");
}

/*
 * A candidate that had come far enough to write to RAM by itself was turned away, and its
 * connection is closed: whoever comes next relies on RAM that reads as zero.
 */
static int clear_after(struct tern_session *s, struct tern_error *err)
{
	bool dirty = s->exposed && s->transport->one_sided;

	s->exposed = false;
	return dirty ? clear_regions(s, false, err) : 0;
}

int destination_admit(struct destination *d, struct tern_error *err)
{
	struct tern_session *s = d->s;

	for (;;) {
		struct tern_error why;
		int r = destination_next_candidate(d, err);

		if (r)
			return r;
		error_clear(&why);
		r = link_start(&s->link, &s->mon, s->conn, TERN_DESTINATION,
			       (unsigned)session_param(s, TERN_PARAM_PEER_TIMEOUT_MS), &why);
		if (!r)
			r = handshake_destination(s, &why);
		if (!r) {
			monitor_lock(&s->mon);
			d->admitted = true;
			s->times.setup_done = now_ns();
			monitor_unlock(&s->mon);
			return 0;
		}
		destination_find_reason(s, r, &why);
		if (check_cancel(s, err))
			return s->error.code;
		destination_dismiss(d, &why);
		r = clear_after(s, err);
		if (r)
			return r;
	}
}

void destination_refuse_waiting(struct destination *d)
{
	for (;;) {
		struct transport_conn *conn = NULL;

		monitor_lock(&d->s->mon);
		if (d->nr_candidates)
			conn = d->candidates[--d->nr_candidates];
		monitor_unlock(&d->s->mon);
		if (!conn)
			return;
		refuse(d->s, conn);
	}
}
