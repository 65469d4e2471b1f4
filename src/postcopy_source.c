/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Postcopy, as seen by the source.
 *
 *	guest runs	---- MISSING … ----------->   only if everything is missing, else
 *	guest paused	---- MISSING …, POSTCOPY -->  its pages fault from now on
 *			(state, READY, GO, STARTED as ever: switchover.c)
 *	workers		==== pages ===============>
 *	control thread	<--- PAGES_WANTED ---------   its guest waits
 *			==== those pages =========>   on a channel of their own
 *			<--- COMPLETE -------------   nothing is missing
 *			---- BYE ------------------>
 *
 * After GO the guest belongs to the destination, which cannot do without this side's
 * pages.  So whatever fails from then on, the session does not: it goes to
 * POSTCOPY_PAUSED, keeps all pages, and waits for tern_session_recover().  A new link
 * begins with what the destination still lacks, so nothing that was under way matters.
 *
 * If GO was sent and STARTED did not come, this side does not know whether the guest
 * runs there.  It stays paused all the same: a destination that has it will take a
 * new link, one that never got GO will not be found.
 */
#include "source.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "error.h"
#include "missing.h"
#include "pusher.h"

int source_answer(void *opaque, const struct wire_wanted *w, struct tern_error *err)
{
	struct tern_session *s = opaque;

	return pusher_answer(s->pusher, s->channels[s->nr_channels - 1], w, err);
}

/* Make the lists of what is missing. */
static int make_pusher(struct source *src, struct tern_error *err)
{
	struct tern_session *s = src->s;
	struct pusher_config config = {
		.mon = &s->mon,
		.regions = &s->regions,
		.populated = &src->populated,
		.zero = s->zero,
		.limiter = &s->postcopy_limiter,
		.stripe_bytes = session_param(s, TERN_PARAM_STRIPE_BYTES),
		.chunk_bytes = session_param(s, TERN_PARAM_CHUNK_BYTES),
		.all_missing = !src->tracking,
		.by_contents = s->by_contents,
		.by_contents_len = s->by_contents_len,
	};
	struct pusher *p;
	int r = pusher_new(&config, &p, err);

	if (r)
		return r;
	monitor_lock(&s->mon);
	s->pusher = p;
	monitor_unlock(&s->mon);
	return 0;
}

/* Tell the destination all that it lacks. */
static int send_all_missing(struct tern_session *s, struct tern_error *err)
{
	int r = 0;

	for (unsigned i = 0; i < s->regions.nr && !r; i++)
		r = missing_send(s, i, pusher_missing(s->pusher, i), err);
	return r;
}

/* What does not depend on what the guest still does: all is missing, without a round before. */
int postcopy_prepare(struct source *src, struct tern_error *err)
{
	int r = make_pusher(src, err);

	return r || src->tracking ? r : send_all_missing(src->s, err);
}

int postcopy_begin(struct source *src, struct tern_error *err)
{
	struct tern_session *s = src->s;
	struct wire_msg msg;
	int r = 0;

	link_set_wanted(&s->link, source_answer, s);
	pusher_begin(s->pusher);
	if (src->tracking)
		r = send_all_missing(s, err);
	if (r)
		return r;
	msg.type = WIRE_POSTCOPY;
	msg.postcopy.missing_pages = pusher_nr_missing(s->pusher);
	r = link_expect_silence(&s->link, "POSTCOPY", err);
	return r ? r : link_send(&s->link, &msg, err);
}

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

/* When to look again at a failed worker.  mon.lock is held. */
static uint64_t next_look(const struct tern_session *s)
{
	return s->worker_failed_ns ? s->worker_failed_ns + SESSION_GRACE_MS * 1000000ull : NEVER_NS;
}

/* A message that came while pages go out: only COMPLETE may. */
static int take_message(struct tern_session *s, const struct wire_msg *msg, bool *complete,
			struct tern_error *err)
{
	if (msg->type != WIRE_COMPLETE || *complete)
		return error_session(err, -EPROTO,
				     "message %s from the peer came where COMPLETE was expected",
				     wire_type_name(msg->type));
	*complete = true;
	monitor_lock(&s->mon);
	s->times.end = now_ns();
	monitor_unlock(&s->mon);
	/* Workers may wait for their turn to send what has gone for requests meanwhile. */
	limiter_set(&s->postcopy_limiter, &s->mon, 0);
	return 0;
}

/*
 * When to give a peer up that does not say COMPLETE; @sent_ns: when all background pages had
 * arrived, or 0.  What it asked for later takes a moment more.
 */
static uint64_t overdue_ns(struct tern_session *s, uint64_t sent_ns)
{
	uint64_t asked_ns = pusher_asked_ns(s->pusher);
	uint64_t patience_ns = SOURCE_PATIENCE * 1000000ull *
			       (uint64_t)session_param(s, TERN_PARAM_PEER_TIMEOUT_MS);

	return sent_ns ? (asked_ns > sent_ns ? asked_ns : sent_ns) + patience_ns : NEVER_NS;
}

/* Is the peer to be given up?  -errno with *err. */
static int lost_patience(struct tern_session *s, uint64_t sent_ns, struct tern_error *err)
{
	if (now_ns() < overdue_ns(s, sent_ns))
		return 0;
	return error_session(err, -ETIMEDOUT,
			     "all pages were sent, and %s did not say COMPLETE within %d peer "
			     "timeouts; see what it waits for",
			     s->uri_text, SOURCE_PATIENCE);
}

/* Send everything, and wait until the destination has it.  0 or -errno with *err. */
static int push_all(struct source *src, struct tern_error *err)
{
	struct tern_session *s = src->s;
	bool complete = false;
	uint64_t sent_ns = 0;
	struct wire_msg msg;
	int r = 0;

	sender_set_postcopy(s->sender, pusher_work, s->pusher);
	sender_begin(s->sender, SENDER_POSTCOPY, true);
	monitor_lock(&s->mon);
	while (!r && !complete) {
		r = link_take(&s->link, &msg, err);
		if (r > 0) {
			monitor_unlock(&s->mon);
			r = take_message(s, &msg, &complete, err);
			monitor_lock(&s->mon);
			continue;
		}
		if (!sent_ns && sender_idle(s->sender))
			sent_ns = now_ns();
		if (!r)
			r = lost(s, err);
		if (!r)
			r = lost_patience(s, sent_ns, err);
		if (!r)
			monitor_wait(&s->mon,
				     s->worker_failed_ns ? next_look(s) : overdue_ns(s, sent_ns));
	}
	/* The workers end by themselves, unless the link is lost; then they have to notice. */
	for (bool told = false; !sender_idle(s->sender);) {
		if (!told && (r || s->link.dead || s->worker_failed_ns)) {
			told = true;
			monitor_unlock(&s->mon);
			sender_abandon(s->sender);
			s->conn->ops->abort(s->conn);
			monitor_lock(&s->mon);
		} else {
			monitor_wait(&s->mon, NEVER_NS);
		}
	}
	monitor_unlock(&s->mon);
	return r;
}

/* Add what a phase, ended or not, has sent to the session's figures. */
static void take_figures(struct source *src, uint64_t begin)
{
	struct tern_session *s = src->s;
	struct sender_result result;

	sender_result(s->sender, &result);
	pusher_take_asked(s->pusher, &result);
	struct tern_round_stats round = {
		.round = ++src->round,
		.final = 1,
		.duration_ns = now_ns() - begin,
		.dirty_pages = pusher_nr_missing(s->pusher),
		.normal_pages = result.normal_pages,
		.zero_pages = result.zero_pages,
		.sent_bytes = result.bytes,
	};

	session_add_round(s, &round);
}

/* The link is lost: end all that used it, and tell the VMM. */
static void pause_session(struct source *src, const struct tern_error *why)
{
	struct tern_session *s = src->s;
	struct tern_error warning;

	link_set_wanted(&s->link, NULL, NULL);
	if (s->sender)
		sender_abandon(s->sender);
	if (s->conn)
		s->conn->ops->abort(s->conn);
	source_stop_workers(src);
	session_close_link(s);
	error_clear(&warning);
	error_session(
		&warning, why->code,
		"the link to %s was lost (%s); pages that the destination lacks are kept, and "
		"threads of its guest that need them wait: recover, to this address or another",
		s->uri_text, why->message);
	monitor_lock(&s->mon);
	s->worker_failed_ns = 0;
	error_clear(&s->worker_error);
	s->error = warning; /* until it recovers */
	s->error.phase = s->state;
	s->recover_requested = false;
	monitor_unlock(&s->mon);
	session_set_state(s, TERN_STATE_POSTCOPY_PAUSED);
	session_event(s, TERN_EVENT_WARNING, &warning);
}

/* Paused: wait for tern_session_recover().  0; -ECANCELED with *err: the session is given up. */
static int await_recover(struct tern_session *s, struct tern_error *err)
{
	int r = 0;

	monitor_lock(&s->mon);
	while (!s->recover_requested && !s->abandoned)
		monitor_wait(&s->mon, NEVER_NS);
	if (s->abandoned) {
		r = error_session(
			err, -ECANCELED,
			"postcopy was given up: the destination guest lacks pages and will "
			"not get them");
		s->error = *err;
		s->error.phase = s->state;
	} else {
		s->recover_requested = false;
		error_clear(&s->error);
		s->uri = s->recover_uri;
		s->transport = s->recover_transport;
		uri_format(&s->uri, s->uri_text, sizeof(s->uri_text));
	}
	monitor_unlock(&s->mon);
	return r;
}

/* Paused: until there is a new link, or the session is given up. */
static int recover(struct source *src, struct tern_error *err)
{
	struct tern_session *s = src->s;

	for (;;) {
		struct tern_error why;
		int r = await_recover(s, err);

		if (r)
			return r;
		session_set_state(s, TERN_STATE_POSTCOPY_RECOVER);
		error_clear(&why);
		r = recover_source(s, &why);
		if (!r)
			r = source_start_workers(src, &why);
		if (!r)
			break;
		pause_session(src, &why);
	}
	src->started = true;
	monitor_lock(&s->mon);
	s->postcopy_stats->recoveries++;
	monitor_unlock(&s->mon);
	session_set_state(s, TERN_STATE_POSTCOPY_ACTIVE);
	return 0;
}

/*
 * The last look at the dirty log was taken long ago, and protection would be in the way of
 * registering memory.  Not while the guest was paused: it takes milliseconds.
 */
static void stop_tracking(struct source *src)
{
	if (src->tracking)
		src->dirty.ops.stop(src->dirty.opaque);
	src->tracking = false;
}

int postcopy_run(struct source *src, const struct tern_error *lost_at_go, struct tern_error *err)
{
	struct tern_session *s = src->s;
	struct tern_error why;
	int r = lost_at_go ? lost_at_go->code : 0;

	stop_tracking(src);

	if (lost_at_go)
		why = *lost_at_go;
	else
		session_set_state(s, TERN_STATE_POSTCOPY_ACTIVE);
	src->started = !lost_at_go;
	for (;;) {
		uint64_t begin = now_ns();

		if (!r) {
			error_clear(&why);
			r = push_all(src, &why);
			take_figures(src, begin);
		}
		if (!r)
			break;
		if (!why.code)
			error_session(&why, r ? r : -EIO, "the link ended");
		pause_session(src, &why);
		r = recover(src, err);
		if (r)
			return r;
	}
	link_send_empty(&s->link, WIRE_BYE, NULL);
	return 0;
}
