/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * The scripted peer: listening, connecting, and the control queue.  One lock and
 * one condition variable for all of it; see script.h.
 */

#define _GNU_SOURCE
#include "script_private.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "error.h"
#include "fuzz.h"

/* A session that does nothing for so long hangs, seconds. */
#define HANG_S 30

static struct script_conn *to_conn(struct transport_conn *c)
{
	return (struct script_conn *)c;
}

static struct script *to_script(const struct transport *ops)
{
	return (struct script *)(uintptr_t)ops;
}

struct script_listener {
	struct transport_listener base;
	struct script *script;
};

/* A new connection; the lock is held. */
static struct script_conn *conn_make(struct script *s, bool hollow)
{
	struct script_conn *c = calloc(1, sizeof(*c));

	FUZZ_CHECK(c, "no memory");
	c->base.ops = &s->ops;
	memset(c->base.session_id, 0x5e, sizeof(c->base.session_id));
	c->script = s;
	c->hollow = hollow;
	if (!hollow)
		s->conn = c;
	return c;
}

static int script_listen(const struct transport *ops, const struct transport_env *env,
			 const struct uri *uri, struct transport_listener **out,
			 struct tern_error *err)
{
	struct script_listener *l = calloc(1, sizeof(*l));

	FUZZ_CHECK(l, "no memory");
	l->base.ops = ops;
	l->script = to_script(ops);
	*out = &l->base;
	return 0;
}

static int script_listener_uri(const struct transport_listener *l, char *buf, size_t size)
{
	return snprintf(buf, size, "unix:script");
}

static int script_accept(struct transport_listener *base, int timeout_ms,
			 struct transport_conn **out, struct tern_error *err)
{
	struct script *s = ((struct script_listener *)base)->script;
	int r = 0;

	pthread_mutex_lock(&s->lock);
	while (!s->stopped && !s->latecomers && (s->conn || s->at >= s->size))
		pthread_cond_wait(&s->changed, &s->lock);
	if (s->stopped) {
		r = -ECANCELED;
	} else if (s->latecomers) {
		s->latecomers--;
		*out = &conn_make(s, true)->base;
	} else {
		*out = &conn_make(s, false)->base;
	}
	pthread_mutex_unlock(&s->lock);
	return r;
}

static void script_listener_stop(struct transport_listener *base)
{
	struct script *s = ((struct script_listener *)base)->script;

	pthread_mutex_lock(&s->lock);
	s->stopped = true;
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
}

static void script_listener_close(struct transport_listener *base)
{
	struct script *s = ((struct script_listener *)base)->script;

	pthread_mutex_lock(&s->lock);
	s->over = true;
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
	free(base);
}

static int script_connect(const struct transport *ops, const struct transport_env *env,
			  const struct uri *uri, const uint8_t id[TRANSPORT_SESSION_ID_LEN],
			  int cancel_fd, struct transport_conn **out, struct tern_error *err)
{
	struct script *s = to_script(ops);

	pthread_mutex_lock(&s->lock);
	FUZZ_CHECK(!s->connected, "the source connects twice");
	s->connected = true;
	struct script_conn *c = conn_make(s, false);

	memcpy(c->base.session_id, id, sizeof(c->base.session_id));
	*out = &c->base;
	pthread_mutex_unlock(&s->lock);
	return 0;
}

static int script_expose(struct transport_conn *conn, const struct transport_memory *mem,
			 unsigned nr, struct tern_error *err)
{
	return 0;
}

static int script_open_channels(struct transport_conn *base, unsigned nr,
				struct transport_channel **channels, struct tern_error *err)
{
	struct script_conn *c = to_conn(base);
	struct script *s = c->script;

	FUZZ_CHECK(nr >= 1 && nr <= 2, "the session opens %u channels, it was to have 2", nr);
	pthread_mutex_lock(&s->lock);
	FUZZ_CHECK(!c->nr_channels, "the session opens channels twice");
	for (unsigned i = 0; i < nr; i++) {
		c->channels[i].base.ops = &s->ops;
		c->channels[i].base.index = i;
		c->channels[i].conn = c;
		channels[i] = &c->channels[i].base;
	}
	c->nr_channels = nr;
	c->sent[SCRIPT_OPENED] = true;
	pthread_cond_broadcast(&s->changed);
	int r = c->aborted ? -ECANCELED : 0;

	pthread_mutex_unlock(&s->lock);
	return r;
}

static int script_send(struct transport_conn *base, const void *buf, size_t len, int timeout_ms,
		       struct tern_error *err)
{
	struct script_conn *c = to_conn(base);
	struct script *s = c->script;
	struct tern_error why;
	struct wire_msg msg;

	error_clear(&why);
	FUZZ_CHECK(!wire_decode(buf, len, &msg, &why), "the session sends rubbish: %s",
		   why.message);
	FUZZ_CHECK(s->role == TERN_SOURCE ? wire_from_source(msg.type)
					  : wire_from_destination(msg.type),
		   "the session sends the other side's message %s", wire_type_name(msg.type));
	pthread_mutex_lock(&s->lock);
	FUZZ_CHECK(msg.seq == c->tx_seq, "the session sends message %s as number %u, %u was due",
		   wire_type_name(msg.type), msg.seq, c->tx_seq);
	c->tx_seq++;
	if (s->hooks.sending)
		s->hooks.sending(s->opaque, c, msg.type);
	c->sent[msg.type] = true;
	pthread_cond_broadcast(&s->changed);
	int r = c->aborted ? -ECANCELED : 0;

	pthread_mutex_unlock(&s->lock);
	return r;
}

static void script_abort(struct transport_conn *base)
{
	struct script_conn *c = to_conn(base);

	pthread_mutex_lock(&c->script->lock);
	c->aborted = true;
	pthread_cond_broadcast(&c->script->changed);
	pthread_mutex_unlock(&c->script->lock);
}

static void script_close(struct transport_conn *base)
{
	struct script_conn *c = to_conn(base);
	struct script *s = c->script;

	pthread_mutex_lock(&s->lock);
	if (s->conn == c)
		s->conn = NULL;
	if (s->role == TERN_SOURCE)
		s->over = true;
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
	free(c);
}

static void script_channel_stats(const struct transport_channel *ch, struct tern_channel_stats *out)
{
}

static const struct transport script_ops = {
	.name = "script",
	.listen = script_listen,
	.listener_uri = script_listener_uri,
	.accept = script_accept,
	.listener_stop = script_listener_stop,
	.listener_close = script_listener_close,
	.connect = script_connect,
	.expose = script_expose,
	.open_channels = script_open_channels,
	.send = script_send,
	.recv = script_recv,
	.write = script_write,
	.notify = script_notify,
	.fence = script_fence,
	.serve = script_serve,
	.revoke = script_revoke,
	.abort = script_abort,
	.close = script_close,
	.channel_stats = script_channel_stats,
};

void script_init(struct script *s, enum tern_role role, const uint8_t *data, size_t size,
		 unsigned patience_ms, const struct script_hooks *hooks, void *opaque)
{
	pthread_condattr_t attr;

	memset(s, 0, sizeof(*s));
	s->ops = script_ops;
	s->hooks = *hooks;
	s->opaque = opaque;
	s->role = role;
	s->patience_ms = patience_ms;
	s->data = data;
	s->size = size;
	pthread_mutex_init(&s->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&s->changed, &attr);
	pthread_condattr_destroy(&attr);
}

void script_fini(struct script *s)
{
	FUZZ_CHECK(!s->conn, "a connection was not closed");
	pthread_cond_destroy(&s->changed);
	pthread_mutex_destroy(&s->lock);
}

struct timespec script_time_us(uint64_t us)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	uint64_t ns = (uint64_t)ts.tv_nsec + us % 1000000 * 1000;

	ts.tv_sec += (time_t)(us / 1000000 + ns / 1000000000);
	ts.tv_nsec = (long)(ns % 1000000000);
	return ts;
}

void script_wait(struct script *s)
{
	struct timespec until = script_time_us(HANG_S * 1000000ull);

	pthread_mutex_lock(&s->lock);
	while (!s->over && (s->conn || s->latecomers || s->at < s->size))
		FUZZ_CHECK(!pthread_cond_timedwait(&s->changed, &s->lock, &until),
			   "the session hangs");
	pthread_mutex_unlock(&s->lock);
}

bool script_handled(struct script *s, enum wire_type type)
{
	pthread_mutex_lock(&s->lock);
	bool handled = s->conn && s->conn->handled[type];

	pthread_mutex_unlock(&s->lock);
	return handled;
}
