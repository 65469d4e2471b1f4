/* SPDX-License-Identifier: BSD-2-Clause */
#define _GNU_SOURCE
#include "link.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "error.h"

#define REASON_MS 200 /* what the receiver has to find a better reason than a PING's failure */

/* Set the link's error and wake everybody.  The link's threads. */
static void link_die(struct link *l, const struct tern_error *why, bool closed)
{
	monitor_lock(l->mon);
	if (!l->dead) {
		l->dead = true;
		l->closed = closed;
		l->error = *why;
		if (l->died)
			l->died(l->died_opaque);
	}
	monitor_broadcast(l->mon);
	monitor_unlock(l->mon);
	l->conn->ops->abort(l->conn);
}

static unsigned link_timeout(struct link *l)
{
	monitor_lock(l->mon);
	unsigned ms = l->peer_timeout_ms;

	monitor_unlock(l->mon);
	return ms;
}

/* An ERROR message: its text, marked as the peer's, is the link's error. */
static void handle_error(struct link *l, const struct wire_error *e)
{
	struct tern_error why;
	int code = e->code;

	error_clear(&why);
	if (code >= 0 || code < -4095)
		code = -EREMOTEIO;
	error_set(&why, code, e->scope ? (enum tern_error_scope)e->scope : TERN_SCOPE_SESSION,
		  "the %s says: %.*s", l->role == TERN_SOURCE ? "destination" : "source", e->len,
		  (const char *)e->text);
	monitor_lock(l->mon);
	l->peer_error = true;
	l->peer_started = e->started;
	monitor_unlock(l->mon);
	link_die(l, &why, false);
}

static void handle_cancel(struct link *l)
{
	struct tern_error why;

	error_clear(&why);
	error_session(&why, -ECANCELED, "the source cancelled the migration; its guest runs on");
	monitor_lock(l->mon);
	l->peer_cancel = true;
	monitor_unlock(l->mon);
	link_die(l, &why, false);
}

/* Wait until the queue has room; false if the link has to stop. */
static bool wait_for_room(struct link *l)
{
	monitor_lock(l->mon);
	while (l->count == LINK_QUEUE && !l->stop && !l->dead && !l->draining)
		monitor_wait(l->mon, NEVER_NS);
	bool go_on = !l->stop && !l->dead;

	monitor_unlock(l->mon);
	return go_on;
}

static void enqueue(struct link *l, const struct wire_msg *msg)
{
	monitor_lock(l->mon);
	if (!l->draining)
		l->queue[(l->head + l->count++) % LINK_QUEUE] = *msg;
	monitor_broadcast(l->mon);
	monitor_unlock(l->mon);
}

/* The destination's guest waits for pages: no detour over the session's thread. */
static int handle_wanted(struct link *l, const struct wire_wanted *w, struct tern_error *err)
{
	int (*fn)(void *opaque, const struct wire_wanted *w, struct tern_error *err);

	monitor_lock(l->mon);
	while (l->wanted_soon && !l->stop)
		monitor_wait(l->mon, NEVER_NS);
	fn = l->wanted;
	void *opaque = l->wanted_opaque;
	bool stop = l->stop;

	monitor_unlock(l->mon);
	if (!fn && stop)
		return error_session(err, -ECANCELED, "the connection was aborted");
	if (!fn)
		return error_session(err, -EPROTO,
				     "message PAGES_WANTED from the peer, whose guest was not told "
				     "of missing pages");
	return fn(opaque, w, err);
}

/* The destination's VMM is ready for the switchover; that is looked at between rounds. */
static int handle_ack(struct link *l, struct tern_error *err)
{
	monitor_lock(l->mon);
	bool welcome = l->expects_ack && !l->acked;

	l->acked = true;
	monitor_broadcast(l->mon);
	monitor_unlock(l->mon);
	return welcome ? 0 :
			 error_session(err, -EPROTO,
				       "message SWITCHOVER_ACK from the peer, which was not asked "
				       "for it, or has sent it before");
}

/* Check one received message and act on it.  0 or -errno with *err. */
static int link_handle(struct link *l, const uint8_t *buf, size_t len, struct wire_msg *msg,
		       struct tern_error *err)
{
	int r = wire_decode(buf, len, msg, err);

	if (r)
		return r;
	if (msg->seq != l->rx_seq)
		return error_session(err, -EPROTO,
				     "message %s from the peer has sequence number %u, expected "
				     "was %u: a message was lost, repeated or made up",
				     wire_type_name(msg->type), msg->seq, l->rx_seq);
	l->rx_seq++;
	if (!(l->role == TERN_SOURCE ? wire_from_destination(msg->type) :
				       wire_from_source(msg->type)))
		return error_session(err, -EPROTO, "message %s from the peer: only the %s sends it",
				     wire_type_name(msg->type),
				     l->role == TERN_SOURCE ? "source" : "destination");
	switch (msg->type) {
	case WIRE_PING:
		break;
	case WIRE_ERROR:
		handle_error(l, &msg->error);
		break;
	case WIRE_CANCEL:
		handle_cancel(l);
		break;
	case WIRE_PAGES_WANTED:
		return handle_wanted(l, &msg->wanted, err);
	case WIRE_SWITCHOVER_ACK:
		return handle_ack(l, err);
	default:
		enqueue(l, msg);
		break;
	}
	return 0;
}

/* How long recv() may wait at once, ms: the timeout may change, and become shorter. */
static unsigned link_patience(const struct link *l, unsigned timeout_ms)
{
	uint64_t all = timeout_ms * 1000000ull;
	uint64_t left = all > l->silence_ns ? all - l->silence_ns : 0;
	unsigned ms = (unsigned)(left / 1000000u + 1);

	return ms < timeout_ms / 3 + 1 ? ms : timeout_ms / 3 + 1;
}

/* One turn of the receiver: a message; -ETIMEDOUT if the peer was silent.  1: it closed. */
static int link_turn(struct link *l, uint8_t *buf, struct wire_msg *msg, struct tern_error *err)
{
	unsigned timeout_ms = link_timeout(l);
	unsigned patience_ms = link_patience(l, timeout_ms);
	uint64_t patience = patience_ms * 1000000ull;
	uint64_t begin = now_ns();
	long n = l->conn->ops->recv(l->conn, buf, TRANSPORT_MSG_MAX, (int)patience_ms, err);

	if (n == -ETIMEDOUT) {
		/* What is beyond the limit of recv(), this side has overslept. */
		uint64_t waited = now_ns() - begin;

		error_clear(err);
		l->silence_ns += waited < patience ? waited : patience;
		if (l->silence_ns < timeout_ms * 1000000ull)
			return 0;
		return error_session(err, -ETIMEDOUT,
				     "the peer was silent for %u ms (peer-timeout): its process "
				     "hangs, or the network is cut",
				     timeout_ms);
	}
	if (n < 0)
		return (int)n;
	if (n == 0)
		return 1;
	l->silence_ns = 0;
	return link_handle(l, buf, (size_t)n, msg, err);
}

static void *link_main(void *arg)
{
	struct link *l = arg;
	uint8_t buf[TRANSPORT_MSG_MAX];
	struct wire_msg msg;
	struct tern_error err;
	int r = 0;

	pthread_setname_np(pthread_self(), "tern-control");
	error_clear(&err);
	while (!r && wait_for_room(l))
		r = link_turn(l, buf, &msg, &err);
	if (r > 0) {
		error_session(&err, -ECONNRESET, "the peer closed the connection");
		link_die(l, &err, true);
	} else if (r < 0) {
		if (!err.code)
			error_session(&err, r, "the connection was aborted");
		link_die(l, &err, false);
	}
	return NULL;
}

static void *pinger_main(void *arg)
{
	struct link *l = arg;
	struct tern_error err;
	int r = 0;

	pthread_setname_np(pthread_self(), "tern-ping");
	error_clear(&err);
	pthread_mutex_lock(&l->send_lock);
	while (!r && !l->ping_stop) {
		uint64_t at = l->last_tx_ns + l->ping_ns;

		if (now_ns() < at) {
			struct timespec ts = { .tv_sec = (time_t)(at / 1000000000u),
					       .tv_nsec = (long)(at % 1000000000u) };

			pthread_cond_timedwait(&l->ping_cond, &l->send_lock, &ts);
			continue;
		}
		pthread_mutex_unlock(&l->send_lock);
		r = link_send_empty(l, WIRE_PING, &err);
		pthread_mutex_lock(&l->send_lock);
	}
	pthread_mutex_unlock(&l->send_lock);
	if (!r)
		return NULL;
	/* The peer may have said why it is gone: that is worth more. */
	uint64_t until = deadline_ns(REASON_MS);

	monitor_lock(l->mon);
	while (!l->dead && !l->stop && monitor_wait(l->mon, until))
		;
	monitor_unlock(l->mon);
	link_die(l, &err, false);
	return NULL;
}

/* How long this side may be silent. */
static uint64_t ping_after_ns(unsigned peer_timeout_ms)
{
	return peer_timeout_ms / 3 * 1000000ull;
}

/* The sender's lock and condition.  0 or an errno value. */
static int sender_init(struct link *l)
{
	pthread_condattr_t attr;
	int r = pthread_mutex_init(&l->send_lock, NULL);

	if (r)
		return r;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	r = pthread_cond_init(&l->ping_cond, &attr);
	pthread_condattr_destroy(&attr);
	if (r)
		pthread_mutex_destroy(&l->send_lock);
	return r;
}

static void sender_fini(struct link *l)
{
	pthread_cond_destroy(&l->ping_cond);
	pthread_mutex_destroy(&l->send_lock);
}

static void pinger_stop(struct link *l)
{
	pthread_mutex_lock(&l->send_lock);
	l->ping_stop = true;
	pthread_cond_signal(&l->ping_cond);
	pthread_mutex_unlock(&l->send_lock);
	pthread_join(l->pinger, NULL);
}

int link_start(struct link *l, struct monitor *mon, struct transport_conn *conn,
	       enum tern_role role, unsigned peer_timeout_ms, struct tern_error *err)
{
	memset(l, 0, sizeof(*l));
	error_clear(&l->error);
	l->mon = mon;
	l->conn = conn;
	l->role = role;
	l->peer_timeout_ms = peer_timeout_ms;
	l->last_tx_ns = now_ns();
	l->ping_ns = ping_after_ns(peer_timeout_ms);
	l->queue = calloc(LINK_QUEUE, sizeof(*l->queue));
	if (!l->queue)
		return error_session(err, -ENOMEM, "cannot allocate the control queue");
	int r = sender_init(l);

	if (r)
		goto free_queue;
	r = pthread_create(&l->pinger, NULL, pinger_main, l);
	if (r)
		goto fini_sender;
	r = pthread_create(&l->thread, NULL, link_main, l);
	if (r)
		goto stop_pinger;
	l->running = true;
	return 0;

stop_pinger:
	pinger_stop(l);
fini_sender:
	sender_fini(l);
free_queue:
	free(l->queue);
	l->queue = NULL;
	return error_session(err, -r, "cannot start the threads of the control queue: %s",
			     error_name(r));
}

void link_stop(struct link *l)
{
	if (!l->running)
		return;
	monitor_lock(l->mon);
	l->stop = true;
	monitor_broadcast(l->mon);
	monitor_unlock(l->mon);
	l->conn->ops->abort(l->conn);
	pthread_join(l->thread, NULL);
	pinger_stop(l);
	sender_fini(l);
	free(l->queue);
	l->queue = NULL;
	l->running = false;
}

void link_set_wanted(struct link *l,
		     int (*fn)(void *opaque, const struct wire_wanted *w, struct tern_error *err),
		     void *opaque)
{
	monitor_lock(l->mon);
	l->wanted = fn;
	l->wanted_opaque = opaque;
	l->wanted_soon = false;
	monitor_broadcast(l->mon);
	monitor_unlock(l->mon);
}

void link_hold_wanted(struct link *l)
{
	monitor_lock(l->mon);
	l->wanted_soon = true;
	monitor_unlock(l->mon);
}

void link_set_timeout(struct link *l, unsigned peer_timeout_ms)
{
	monitor_lock(l->mon);
	l->peer_timeout_ms = peer_timeout_ms;
	monitor_unlock(l->mon);
	pthread_mutex_lock(&l->send_lock);
	l->ping_ns = ping_after_ns(peer_timeout_ms);
	pthread_cond_signal(&l->ping_cond);
	pthread_mutex_unlock(&l->send_lock);
}

int link_send(struct link *l, struct wire_msg *msg, struct tern_error *err)
{
	uint8_t buf[TRANSPORT_MSG_MAX];
	int timeout_ms = (int)link_timeout(l);

	pthread_mutex_lock(&l->send_lock);
	msg->seq = l->tx_seq++;
	size_t len = wire_encode(msg, buf);
	int r = l->conn->ops->send(l->conn, buf, len, timeout_ms, err);

	l->last_tx_ns = now_ns();
	pthread_mutex_unlock(&l->send_lock);
	if (r && err && !err->code)
		error_session(err, r, "cannot send message %s: %s", wire_type_name(msg->type),
			      r == -ECANCELED ? "the connection was aborted" : error_name(r));
	return r;
}

int link_send_empty(struct link *l, enum wire_type type, struct tern_error *err)
{
	struct wire_msg msg = { .type = type };

	return link_send(l, &msg, err);
}

void link_send_error(struct link *l, const struct tern_error *why, bool started)
{
	struct wire_msg msg = { .type = WIRE_ERROR };
	size_t len = strnlen(why->message, WIRE_ERROR_TEXT_MAX);

	msg.error.code = why->code;
	msg.error.scope = (uint8_t)why->scope;
	msg.error.started = started;
	msg.error.len = (uint16_t)len;
	memcpy(msg.error.text, why->message, len);
	link_send(l, &msg, NULL);
}

void link_drain(struct link *l, int timeout_ms)
{
	uint64_t until = deadline_ns(timeout_ms);

	monitor_lock(l->mon);
	l->draining = true;
	l->count = 0;
	monitor_broadcast(l->mon);
	while (!l->dead && monitor_wait(l->mon, until))
		;
	monitor_unlock(l->mon);
}

int link_take(struct link *l, struct wire_msg *msg, struct tern_error *err)
{
	if (l->count) {
		*msg = l->queue[l->head];
		l->head = (l->head + 1) % LINK_QUEUE;
		l->count--;
		monitor_broadcast(l->mon);
		return 1;
	}
	if (!l->dead)
		return 0;
	if (!err->code)
		*err = l->error;
	return l->error.code;
}

int link_expect_silence_locked(struct link *l, const char *what, struct tern_error *err)
{
	if (l->dead) {
		if (!err->code)
			*err = l->error;
		return l->error.code;
	}
	if (l->count)
		return error_session(err, -EPROTO,
				     "message %s from the peer came before %s was sent",
				     wire_type_name(l->queue[l->head].type), what);
	return 0;
}

int link_expect_silence(struct link *l, const char *what, struct tern_error *err)
{
	monitor_lock(l->mon);
	int r = link_expect_silence_locked(l, what, err);

	monitor_unlock(l->mon);
	return r;
}
