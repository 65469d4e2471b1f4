/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The destination's side of a session.
 *
 *	setup         a source is let in (acceptor.c)
 *	active        channel threads place RAM; ROUND messages count rounds
 *	device        after the final ROUND: STATE …, STATE_END, load, READY
 *	              GO: revoke access, resume, STARTED
 *	completed     wait for BYE, close
 *
 * The guest runs here only after GO (invariant 1): resume() has one caller below.
 */
#define _GNU_SOURCE
#include "destination.h"

#include <errno.h>
#include <inttypes.h>

#include "error.h"
#include "placement.h"
#include "receiver.h"

#define DESTINATION_PATIENCE 6 /* peer timeouts to wait for GO or BYE from a live peer */

/* ------------------------------------------------------------------ arrival */

static int take_round(struct destination *d, const struct wire_round *m, struct tern_error *err)
{
	struct tern_session *s = d->s;

	if (d->final_round)
		return error_session(err, -EPROTO,
				     "message ROUND from the peer after the final round");
	if (m->final && d->s->postcopy)
		return error_session(err, -EPROTO,
				     "message ROUND from the peer is final, POSTCOPY was agreed on");
	if (m->round != d->round + 1)
		return error_session(err, -EPROTO,
				     "message ROUND from the peer has round = %u, due is %u",
				     m->round, d->round + 1);
	d->round = m->round;
	d->final_round = m->final;

	struct tern_round_stats round = {
		.round = m->round,
		.final = m->final,
		.normal_pages = m->normal_pages,
		.zero_pages = m->zero_pages,
		.sent_bytes = m->bytes,
	};

	session_add_round(s, &round);
	monitor_lock(&s->mon);
	s->stats.skipped_pages += m->skipped_pages;
	monitor_unlock(&s->mon);
	session_event(s, TERN_EVENT_ROUND, NULL);
	if (d->final_round)
		session_set_state(s, TERN_STATE_DEVICE);
	return 0;
}

static int take_state(struct destination *d, const struct wire_state *m, struct tern_error *err)
{
	uint64_t max = session_param(d->s, TERN_PARAM_STATE_MAX);

	if (!d->final_round)
		return error_session(err, -EPROTO,
				     "message STATE from the peer before the final round");
	if (m->offset != d->state.len)
		return error_session(err, -EPROTO,
				     "message STATE from the peer has offset = %" PRIu64
				     ", due is %zu",
				     m->offset, d->state.len);
	int r = tern_state_write(&d->state, m->data, m->len);

	if (r == -EFBIG)
		return error_session(err, r,
				     "device state from the peer is larger than %" PRIu64
				     " bytes (state-max)",
				     max);
	if (r)
		return error_session(err, r, "cannot keep %zu bytes of device state",
				     d->state.len + m->len);
	return 0;
}

static int take_state_end(struct destination *d, const struct wire_state_end *m,
			  struct tern_error *err)
{
	if (!d->final_round)
		return error_session(err, -EPROTO,
				     "message STATE_END from the peer before the final round");
	if (m->total != d->state.len)
		return error_session(err, -EPROTO,
				     "message STATE_END from the peer has total = %" PRIu64
				     ", %zu bytes arrived",
				     m->total, d->state.len);
	d->state_complete = true;
	return 0;
}

/* Take messages until all RAM and state is here. */
static int receive_all(struct destination *d, struct tern_error *err)
{
	struct wire_msg msg;
	int r = 0;

	while (!r && !d->state_complete) {
		r = session_receive(d->s, &msg, NEVER_NS, "a message", err);
		if (r)
			break;
		switch (msg.type) {
		case WIRE_ROUND:
			r = take_round(d, &msg.round, err);
			break;
		case WIRE_STATE:
			r = take_state(d, &msg.state, err);
			break;
		case WIRE_STATE_END:
			r = take_state_end(d, &msg.state_end, err);
			break;
		case WIRE_MISSING:
			r = postcopy_take_missing(d, &msg.missing, err);
			break;
		case WIRE_POSTCOPY:
			r = postcopy_arm(d, &msg.postcopy, err);
			break;
		default:
			r = error_session(err, -EPROTO,
					  "message %s from the peer came where ROUND, STATE or "
					  "STATE_END was expected",
					  wire_type_name(msg.type));
			break;
		}
	}
	return r;
}

/*
 * The last moment before READY: is the session wanted, and did every channel place what
 * it was given?
 */
static int check_ready(struct tern_session *s, struct tern_error *err)
{
	monitor_lock(&s->mon);
	int r = session_check(s, err);

	if (!r && s->worker_failed_ns) { /* not adopted yet */
		*err = s->worker_error;
		r = err->code;
	}
	monitor_unlock(&s->mon);
	return r;
}

/* Why load() is of no use, if so.  -errno with *err; mon.lock is held. */
static int load_in_vain(struct tern_session *s, struct tern_error *err)
{
	int r = session_check(s, err);

	if (!r && s->link.dead)
		*err = s->link.error;
	else if (!r && s->worker_failed_ns)
		*err = s->worker_error;
	return r ? r : err->code;
}

/*
 * load() begins: if pages are missing it may wait for them, and who finds out that they will
 * not come has to end that.  0 or -errno with *err.
 */
static int load_begin(struct tern_session *s, struct tern_error *err)
{
	int r = 0;

	monitor_lock(&s->mon);
	if (s->faults) {
		r = load_in_vain(s, err);
		s->loading = !r;
		s->link.died = session_forsake_load;
		s->link.died_opaque = s;
	}
	monitor_unlock(&s->mon);
	return r;
}

/* load() is over.  0; -errno with *err: pages that it may have waited for did not come. */
static int load_end(struct tern_session *s, struct tern_error *err)
{
	monitor_lock(&s->mon);
	s->loading = false;
	s->link.died = NULL;
	int r = s->forsaken ? load_in_vain(s, err) : 0;

	monitor_unlock(&s->mon);
	return r;
}

/* Load the device state; READY says how long it took. */
static int load_state(struct destination *d, struct tern_error *err)
{
	struct tern_session *s = d->s;
	struct tern_state_reader reader = { .buf = d->state.buf, .len = d->state.len };
	uint64_t begin = now_ns();

	int in_vain = load_begin(s, err);

	if (in_vain)
		return in_vain;
	session_ask(s);
	int r = s->vm.load ? s->vm.load(s->vm_opaque, &reader) : 0;

	in_vain = load_end(s, err);
	if (in_vain)
		return in_vain;
	if (r < 0)
		return error_session(err, r,
				     "the destination VMM could not load the device state (%zu of "
				     "%zu bytes read): %s",
				     reader.at, reader.len, session_reason(s, r));
	if (s->vm.load && tern_state_remaining(&reader))
		return error_session(err, -EPROTO,
				     "the destination VMM left %zu of %zu bytes of device state "
				     "unread: the two VMMs differ",
				     tern_state_remaining(&reader), reader.len);
	monitor_lock(&s->mon);
	s->stats.state_bytes = d->state.len;
	s->stats.ledger_ns[TERN_LEDGER_STATE_LOAD] = now_ns() - begin;
	monitor_unlock(&s->mon);

	r = check_ready(s, err);
	if (!r)
		r = link_expect_silence(&s->link, "READY", err);
	if (r)
		return r;
	d->ready_ns = now_ns();
	struct wire_msg msg = { .type = WIRE_READY, .ready = { .load_ns = d->ready_ns - begin } };

	return link_send(&s->link, &msg, err);
}

/* --------------------------------------------------------------- switchover */

static uint64_t patience(struct tern_session *s)
{
	return deadline_ns(DESTINATION_PATIENCE *
			   (int64_t)session_param(s, TERN_PARAM_PEER_TIMEOUT_MS));
}

/* GO came in: unless the VMM cancelled first, the guest is ours from now on. */
static int accept_go(struct tern_session *s, struct tern_error *err)
{
	monitor_lock(&s->mon);
	int r = s->cancel_requested ? session_check(s, err) : 0;

	if (!r)
		s->point_of_no_return = true;
	monitor_unlock(&s->mon);
	return r;
}

int destination_start_receivers(struct tern_session *s, struct tern_error *err)
{
	struct receiver *receiver = NULL;
	int r = receiver_start(s, &receiver, err);

	if (r)
		return r;
	monitor_lock(&s->mon);
	s->receiver = receiver;
	monitor_unlock(&s->mon);
	return 0;
}

void destination_stop_receivers(struct tern_session *s)
{
	struct receiver *r = s->receiver; /* only this thread changes it */

	receiver_join(r);
	monitor_lock(&s->mon);
	for (unsigned i = 0; r && i < s->nr_channels; i++)
		receiver_channel_stats(r, i, &s->final_channels[i]);
	s->receiver = NULL;
	s->stats.engine_bytes = sizeof(*s) + region_overhead_bytes(&s->regions) +
				(s->placement ? placement_overhead_bytes(s->placement) : 0) +
				LINK_QUEUE * sizeof(struct wire_msg) +
				s->nr_rounds * sizeof(struct tern_round_stats);
	monitor_unlock(&s->mon);
	receiver_stop(&r);
}

/* Run the guest; the only place that does so at a destination. */
static int run_guest(struct destination *d, struct tern_error *err)
{
	struct tern_session *s = d->s;
	uint64_t begin = now_ns();

	if (!s->postcopy) {
		s->conn->ops->revoke(s->conn);
		destination_stop_receivers(s); /* one may still be clearing pages for a ZERO */
	}
	session_ask(s);
	s->resumed_at_ns = 0;
	uint64_t asked = now_ns();
	int r = s->vm.resume ? s->vm.resume(s->vm_opaque) : 0;

	if (r < 0)
		return error_session(err, r, "the destination VMM could not resume the guest: %s",
				     session_reason(s, r));
	uint64_t now = now_ns(), at = s->resumed_at_ns;

	if (at < asked || at > now)
		at = now;
	struct wire_msg msg = {
		.type = WIRE_STARTED,
		.started = { .resume_ns = at - begin,
			     .since_ns = now - at,
			     .waited_ns = begin - d->ready_ns },
	};

	link_send(&s->link, &msg, NULL);
	session_announce(s);
	monitor_lock(&s->mon);
	s->stats.ledger_ns[TERN_LEDGER_RESUME] = msg.started.resume_ns;
	monitor_unlock(&s->mon);
	return 0;
}

/* Wait for GO and obey. */
static int take_over(struct destination *d, struct tern_error *err)
{
	struct tern_session *s = d->s;
	struct wire_msg msg;
	int r = session_expect(s, WIRE_GO, &msg, patience(s), err);

	if (!r)
		r = accept_go(s, err);
	if (!r)
		r = run_guest(d, err);
	return r;
}

/* --------------------------------------------------------------------- ends */

/* The guest did not start here: tell the source, unless it told us. */
static void give_up(struct destination *d, const struct tern_error *err)
{
	struct tern_session *s = d->s;

	session_settle(s, err);
	monitor_lock(&s->mon);
	bool after_go = s->point_of_no_return;
	bool cancelled = s->cancel_requested || (s->link.peer_cancel && !after_go);
	bool tell = s->link.running && !s->link.dead;
	struct tern_error why = s->error;

	monitor_unlock(&s->mon);
	if (cancelled)
		session_set_state(s, TERN_STATE_CANCELLING);
	if (tell) {
		link_send_error(&s->link, &why, false);
		link_drain(&s->link, SESSION_GRACE_MS);
	}
	session_notify(s, TERN_NOTICE_FAILED, NULL);
	session_end(s, cancelled ? TERN_STATE_CANCELLED : TERN_STATE_FAILED,
		    after_go ? TERN_OUTCOME_NEITHER : TERN_OUTCOME_SOURCE);
}

/* The guest runs here.  BYE says that the source knows; without it nothing changes. */
static void finish(struct tern_session *s)
{
	struct wire_msg msg;
	struct tern_error err;

	error_clear(&err);
	session_notify(s, TERN_NOTICE_DONE, NULL);
	session_end(s, TERN_STATE_COMPLETED, TERN_OUTCOME_DESTINATION);
	if (s->postcopy)
		return; /* BYE was seen, or does not matter */
	if (session_expect(s, WIRE_BYE, &msg, patience(s), &err)) {
		struct tern_error warning;

		error_clear(&warning);
		error_session(&warning, err.code,
			      "the guest runs here, but the source may not know (%s): leave the "
			      "source guest paused",
			      err.message);
		session_event(s, TERN_EVENT_WARNING, &warning);
	}
}

/* The guest runs here and will never get the pages that it lacks. */
static void lose_pages(struct tern_session *s)
{
	session_notify(s, TERN_NOTICE_FAILED, NULL);
	session_end(s, TERN_STATE_FAILED, TERN_OUTCOME_DESTINATION);
}

static void tear_down(struct destination *d)
{
	struct tern_session *s = d->s;

	if (s->conn)
		s->conn->ops->abort(s->conn);
	postcopy_stop_asking(s); /* a fault may be looked at when its page is here */
	destination_stop_receivers(s);
	session_close_link(s);
	postcopy_fini(s);
	s->listener->ops->listener_stop(s->listener);
	pthread_join(d->acceptor, NULL);
	destination_refuse_waiting(d);
	monitor_lock(&s->mon);
	struct transport_listener *l = s->listener;

	s->listener = NULL;
	monitor_unlock(&s->mon);
	l->ops->listener_close(l);
	vmstate_fini(&d->state);
	monitor_lock(&s->mon);
	s->ended = true;
	monitor_broadcast(&s->mon);
	monitor_unlock(&s->mon);
}

/* From the first candidate to the running guest. */
static int migrate_in(struct destination *d, struct tern_error *err)
{
	struct tern_session *s = d->s;
	int r = destination_admit(d, err);

	if (r)
		return r;
	destination_refuse_waiting(d);
	session_home(s); /* the device may have changed where that is */
	session_set_state(s, TERN_STATE_ACTIVE);
	r = destination_start_receivers(s, err);
	if (!r)
		r = receive_all(d, err);
	if (!r)
		r = load_state(d, err);
	if (!r)
		r = take_over(d, err);
	return r;
}

void destination_run(struct tern_session *s)
{
	struct destination d = {
		.s = s,
		.state = { .max = session_param(s, TERN_PARAM_STATE_MAX) },
	};
	struct tern_error err;

	error_clear(&err);
	int r = -pthread_create(&d.acceptor, NULL, destination_acceptor_main, &d);

	if (r) {
		error_session(&err, r, "cannot start the acceptor thread: %s", error_name(r));
		give_up(&d, &err);
		monitor_lock(&s->mon);
		s->ended = true;
		monitor_broadcast(&s->mon);
		monitor_unlock(&s->mon);
		return;
	}
	r = migrate_in(&d, &err);
	if (!r && s->postcopy)
		r = postcopy_serve(&d, &err);
	if (!r)
		finish(s);
	else if (s->postcopy && s->state == TERN_STATE_POSTCOPY_PAUSED)
		lose_pages(s);
	else
		give_up(&d, &err);
	tear_down(&d);
}
