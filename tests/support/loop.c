/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * The in-memory transport.
 *
 * Simple on purpose: one lock and one condition for a whole network.  A link has
 * two ends; each end is a transport_conn with a queue of control messages that
 * arrived, and per channel a queue of notifies that arrived.
 *
 *	struct loop_net ── listeners ── backlog of ends
 *	struct loop_link ── end[0] source, end[1] destination
 *
 * write() copies under the lock, so revoke(), which takes the lock, is final when
 * it returns, and fence() only has to wait for notifies to be handled: handled
 * counts up when serve() is called again.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "error.h"
#include "loop.h"
#include "transport.h"
#include "uri.h"

struct loop_msg {
	struct loop_msg *next;
	size_t len;
	uint8_t data[];
};

struct loop_queue {
	struct loop_msg *head, *tail;
};

struct loop_channel {
	struct transport_channel base;
	struct loop_end *end;
	struct loop_queue inbox; /* destination: notifies */
	uint64_t posted, handled; /* destination: notifies so far */
	bool handed_out; /* destination: serve() has returned one that is not handled */
	struct tern_error bad; /* destination: the peer wrote out of range */
	uint64_t bytes, writes;
};

struct loop_end {
	struct transport_conn base;
	struct loop_link *link;
	struct loop_end *peer;
	struct loop_end *backlog_next;
	struct transport_env env;
	struct transport_memory *mem;
	unsigned nr_mem;
	struct loop_queue inbox; /* control messages */
	struct loop_channel *channels;
	unsigned nr_channels;
	bool is_source, revoked, closed;
};

struct loop_link {
	struct loop_net *net;
	bool aborted; /* by either side */
	bool aborted_by[2]; /* [is_source] */
	struct loop_end end[2]; /* source, destination */
};

struct loop_listener {
	struct transport_listener base;
	struct loop_net *net;
	struct loop_listener *next;
	struct transport_env env;
	struct loop_end *backlog;
	bool stopped;
	char name[URI_PATH_MAX + 1];
};

struct loop_net {
	struct transport ops; /* first: found from the table */
	pthread_mutex_t lock; /* everything in the network */
	pthread_cond_t changed;
	struct loop_listener *listeners;
};

static struct loop_end *to_end(struct transport_conn *c)
{
	return (struct loop_end *)c;
}

static struct loop_channel *to_loop_channel(struct transport_channel *ch)
{
	return (struct loop_channel *)ch;
}

/* Append a copy of @data.  0 or -ENOMEM. */
static int queue_push(struct loop_queue *q, const void *data, size_t len)
{
	struct loop_msg *m = malloc(sizeof(*m) + len);

	if (!m)
		return -ENOMEM;
	m->next = NULL;
	m->len = len;
	memcpy(m->data, data, len);
	if (q->head)
		q->tail->next = m;
	else
		q->head = m;
	q->tail = m;
	return 0;
}

/* Take the first message; its length. */
static long queue_pop(struct loop_queue *q, void *buf)
{
	struct loop_msg *m = q->head;
	long len = (long)m->len;

	memcpy(buf, m->data, m->len);
	q->head = m->next;
	free(m);
	return len;
}

static void queue_clear(struct loop_queue *q)
{
	while (q->head) {
		struct loop_msg *m = q->head;

		q->head = m->next;
		free(m);
	}
}

/* @timeout_ms from now on the condition's clock; < 0: far away. */
static struct timespec loop_deadline(long timeout_ms)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	if (timeout_ms < 0)
		timeout_ms = 1000l * 86400 * 365;
	ts.tv_sec += timeout_ms / 1000;
	ts.tv_nsec += timeout_ms % 1000 * 1000000;
	if (ts.tv_nsec >= 1000000000) {
		ts.tv_nsec -= 1000000000;
		ts.tv_sec++;
	}
	return ts;
}

/* Wait for any change in the network, under its lock.  0 or -ETIMEDOUT. */
static int loop_wait(struct loop_net *net, const struct timespec *deadline)
{
	return pthread_cond_timedwait(&net->changed, &net->lock, deadline) == ETIMEDOUT ? -ETIMEDOUT
											: 0;
}

/* Why @e cannot be used: -ECANCELED after its own abort(), -ECONNRESET after the peer's; 0. */
static int end_dead(const struct loop_end *e, struct tern_error *err)
{
	if (e->link->aborted_by[e->is_source])
		return error_session(err, -ECANCELED, "The loop connection was aborted");
	if (e->link->aborted)
		return error_session(err, -ECONNRESET, "The loop peer was cut off");
	return 0;
}

static int loop_listen(const struct transport *ops, const struct transport_env *env,
		       const struct uri *uri, struct transport_listener **out,
		       struct tern_error *err)
{
	struct loop_net *net = (struct loop_net *)ops;
	struct loop_listener *l = calloc(1, sizeof(*l));
	int rc = 0;

	if (!l)
		return error_session(err, -ENOMEM, "No memory for a loop listener");
	l->base.ops = ops;
	l->net = net;
	l->env = *env;
	memcpy(l->name, uri->path, sizeof(l->name));
	pthread_mutex_lock(&net->lock);
	for (struct loop_listener *o = net->listeners; o; o = o->next)
		if (!strcmp(o->name, l->name))
			rc = -EADDRINUSE;
	if (!rc) {
		l->next = net->listeners;
		net->listeners = l;
	}
	pthread_mutex_unlock(&net->lock);
	if (rc) {
		error_session(err, rc, "Listening on loop \"%s\" failed: it is taken", l->name);
		free(l);
		return rc;
	}
	*out = &l->base;
	return 0;
}

static int loop_listener_uri(const struct transport_listener *l, char *buf, size_t size)
{
	return snprintf(buf, size, "unix:%s", ((const struct loop_listener *)l)->name);
}

/* Free the link when both ends are closed.  Under the lock. */
static void link_put(struct loop_link *link)
{
	if (!link->end[0].closed || !link->end[1].closed)
		return;
	for (int i = 0; i < 2; i++) {
		struct loop_end *e = &link->end[i];

		for (unsigned c = 0; c < e->nr_channels; c++)
			queue_clear(&e->channels[c].inbox);
		queue_clear(&e->inbox);
		free(e->channels);
		free(e->mem);
	}
	free(link);
}

/* First end in the backlog that has a message (or is gone: dropped); taken off.  Or NULL. */
static struct loop_end *backlog_take(struct loop_listener *l)
{
	struct loop_end **at = &l->backlog;

	while (*at) {
		struct loop_end *e = *at;

		if (!e->inbox.head && (e->link->aborted || e->peer->closed)) {
			*at = e->backlog_next;
			e->closed = true;
			link_put(e->link);
		} else if (e->inbox.head) {
			*at = e->backlog_next;
			return e;
		} else {
			at = &e->backlog_next;
		}
	}
	return NULL;
}

static int loop_accept(struct transport_listener *base, int timeout_ms, struct transport_conn **out,
		       struct tern_error *err)
{
	struct loop_listener *l = (struct loop_listener *)base;
	struct timespec deadline = loop_deadline(timeout_ms);
	struct loop_end *e = NULL;
	int rc = 0;

	pthread_mutex_lock(&l->net->lock);
	while (!rc && !l->stopped) {
		e = backlog_take(l);
		if (e)
			break;
		rc = loop_wait(l->net, &deadline);
	}
	if (!e && l->stopped)
		rc = error_session(err, -ECANCELED, "Listening was stopped");
	else if (!e)
		rc = error_session(err, rc, "Nobody connected within %d ms", timeout_ms);
	else
		rc = 0;
	pthread_mutex_unlock(&l->net->lock);
	if (!rc)
		*out = &e->base;
	return rc;
}

static void loop_listener_stop(struct transport_listener *base)
{
	struct loop_listener *l = (struct loop_listener *)base;

	pthread_mutex_lock(&l->net->lock);
	l->stopped = true;
	pthread_cond_broadcast(&l->net->changed);
	pthread_mutex_unlock(&l->net->lock);
}

static void loop_listener_close(struct transport_listener *base)
{
	struct loop_listener *l = (struct loop_listener *)base;

	pthread_mutex_lock(&l->net->lock);
	for (struct loop_listener **at = &l->net->listeners; *at; at = &(*at)->next)
		if (*at == l) {
			*at = l->next;
			break;
		}
	for (struct loop_end *e = l->backlog, *next; e; e = next) {
		next = e->backlog_next;
		e->link->aborted = true;
		e->closed = true;
		link_put(e->link);
	}
	pthread_cond_broadcast(&l->net->changed);
	pthread_mutex_unlock(&l->net->lock);
	free(l);
}

/* Both ends of a new link.  NULL: no memory. */
static struct loop_link *link_new(struct loop_net *net, const uint8_t *session_id)
{
	struct loop_link *link = calloc(1, sizeof(*link));

	if (!link)
		return NULL;
	link->net = net;
	for (int i = 0; i < 2; i++) {
		struct loop_end *e = &link->end[i];

		e->base.ops = &net->ops;
		memcpy(e->base.session_id, session_id, TRANSPORT_SESSION_ID_LEN);
		e->link = link;
		e->peer = &link->end[!i];
		e->is_source = !i;
	}
	return link;
}

static int loop_connect(const struct transport *ops, const struct transport_env *env,
			const struct uri *uri, const uint8_t session_id[TRANSPORT_SESSION_ID_LEN],
			int cancel_fd, struct transport_conn **out, struct tern_error *err)
{
	struct loop_net *net = (struct loop_net *)ops;
	struct pollfd p = { .fd = cancel_fd, .events = POLLIN };
	struct loop_link *link;
	struct loop_listener *l;
	struct loop_end **at;

	if (poll(&p, 1, 0) > 0)
		return error_session(err, -ECANCELED, "Connecting was cancelled");
	link = link_new(net, session_id);
	if (!link)
		return error_session(err, -ENOMEM, "No memory for a loop connection");
	pthread_mutex_lock(&net->lock);
	for (l = net->listeners; l && strcmp(l->name, uri->path); l = l->next)
		;
	if (l) {
		link->end[0].env = *env;
		link->end[1].env = l->env;
		for (at = &l->backlog; *at; at = &(*at)->backlog_next)
			;
		*at = &link->end[1];
		*out = &link->end[0].base;
	}
	pthread_mutex_unlock(&net->lock);
	if (l)
		return 0;
	free(link);
	return error_session(err, -ECONNREFUSED,
			     "Connecting to loop \"%s\" failed: nothing is listening there",
			     uri->path);
}

static int loop_expose(struct transport_conn *conn, const struct transport_memory *mem, unsigned nr,
		       struct tern_error *err)
{
	struct loop_end *e = to_end(conn);
	struct transport_memory *v = calloc(nr ? nr : 1, sizeof(*v));

	if (!v)
		return error_session(err, -ENOMEM, "No memory for a list of %u regions", nr);
	for (unsigned i = 0; i < nr; i++)
		v[i] = mem[i];
	pthread_mutex_lock(&e->link->net->lock);
	free(e->mem);
	e->mem = v;
	e->nr_mem = nr;
	pthread_mutex_unlock(&e->link->net->lock);
	return 0;
}

/* Wait until the peer has opened its channels too; under the lock. */
static int await_peer_channels(struct loop_end *e, struct tern_error *err)
{
	struct timespec deadline = loop_deadline((long)e->env.peer_timeout_ms);

	for (;;) {
		int rc = end_dead(e, err);

		if (rc)
			return rc;
		if (e->peer->nr_channels == e->nr_channels)
			return 0;
		if (e->peer->nr_channels)
			return error_session(err, -EPROTO,
					     "The loop peer expects %u channels, this side %u",
					     e->peer->nr_channels, e->nr_channels);
		rc = loop_wait(e->link->net, &deadline);
		if (rc)
			return error_session(err, rc, "The loop peer opened no channels in time");
	}
}

static int loop_open_channels(struct transport_conn *conn, unsigned nr,
			      struct transport_channel **channels, struct tern_error *err)
{
	struct loop_end *e = to_end(conn);
	struct loop_channel *v = calloc(nr ? nr : 1, sizeof(*v));
	int rc;

	if (!v)
		return error_session(err, -ENOMEM, "No memory for %u channels", nr);
	if (e->nr_channels || nr < 1 || nr > TRANSPORT_CHANNELS_MAX) {
		free(v);
		return error_session(err, -EINVAL, "Cannot open %u channels", nr);
	}
	for (unsigned i = 0; i < nr; i++) {
		v[i].base.ops = conn->ops;
		v[i].base.index = i;
		v[i].end = e;
	}
	pthread_mutex_lock(&e->link->net->lock);
	e->channels = v;
	e->nr_channels = nr;
	pthread_cond_broadcast(&e->link->net->changed);
	rc = await_peer_channels(e, err);
	pthread_mutex_unlock(&e->link->net->lock);
	for (unsigned i = 0; !rc && i < nr; i++)
		channels[i] = &v[i].base;
	return rc;
}

static int loop_send(struct transport_conn *conn, const void *msg, size_t len, int timeout_ms,
		     struct tern_error *err)
{
	struct loop_end *e = to_end(conn);
	int rc;

	if (len < 1 || len > TRANSPORT_MSG_MAX)
		return error_session(err, -EMSGSIZE,
				     "A control message of %zu bytes cannot be sent", len);
	pthread_mutex_lock(&e->link->net->lock);
	rc = end_dead(e, err);
	if (!rc && e->peer->closed)
		rc = error_session(err, -ECONNRESET, "The loop peer has closed");
	if (!rc && queue_push(&e->peer->inbox, msg, len))
		rc = error_session(err, -ENOMEM, "No memory for a control message");
	pthread_cond_broadcast(&e->link->net->changed);
	pthread_mutex_unlock(&e->link->net->lock);
	return rc;
}

static long loop_recv(struct transport_conn *conn, void *buf, size_t cap, int timeout_ms,
		      struct tern_error *err)
{
	struct loop_end *e = to_end(conn);
	struct timespec deadline = loop_deadline(timeout_ms);
	long n;

	pthread_mutex_lock(&e->link->net->lock);
	for (;;) {
		if (e->link->aborted_by[e->is_source])
			n = end_dead(e, err);
		else if (e->inbox.head && e->inbox.head->len > cap)
			n = error_session(err, -EMSGSIZE,
					  "The loop peer sent a control message of %zu bytes; at "
					  "most %zu are allowed",
					  e->inbox.head->len, cap);
		else if (e->inbox.head)
			n = queue_pop(&e->inbox, buf);
		else if (e->link->aborted)
			n = end_dead(e, err);
		else if (e->peer->closed)
			n = 0;
		else if (!loop_wait(e->link->net, &deadline))
			continue;
		else
			n = error_session(err, -ETIMEDOUT, "No control message came within %d ms",
					  timeout_ms);
		break;
	}
	pthread_mutex_unlock(&e->link->net->lock);
	return n;
}

/* True if @r lies in the exposed memory of @e. */
static bool range_ok(const struct loop_end *e, const struct transport_range *r)
{
	return r->region < e->nr_mem && r->len && r->len <= e->mem[r->region].size &&
	       r->offset <= e->mem[r->region].size - r->len;
}

/* Why a channel operation of the source cannot go on; under the lock. */
static int tx_dead(struct loop_channel *ch, struct tern_error *err)
{
	struct loop_end *e = ch->end;
	int rc = end_dead(e, err);

	if (!rc &&
	    (e->peer->closed || e->peer->revoked || e->peer->channels[ch->base.index].bad.code))
		rc = error_channel(err, -ECONNRESET, ch->base.index,
				   "The loop peer closed channel %u", ch->base.index);
	return rc;
}

static int loop_write(struct transport_channel *base, const struct transport_range *ranges,
		      unsigned nr, struct tern_error *err)
{
	struct loop_channel *ch = to_loop_channel(base);
	struct loop_end *e = ch->end, *to = e->peer;
	struct loop_channel *dst;
	int rc;

	for (unsigned i = 0; i < nr; i++)
		if (!range_ok(e, &ranges[i]))
			return error_channel(err, -EINVAL, base->index, "Range outside memory");
	pthread_mutex_lock(&e->link->net->lock);
	rc = tx_dead(ch, err);
	dst = rc ? NULL : &to->channels[base->index];
	for (unsigned i = 0; dst && i < nr; i++)
		if (!range_ok(to, &ranges[i])) {
			error_channel(&dst->bad, -EPROTO, base->index,
				      "The loop peer wants to write region %u offset %llu length "
				      "%llu, which is outside the memory it was given",
				      ranges[i].region, (unsigned long long)ranges[i].offset,
				      (unsigned long long)ranges[i].len);
			dst = NULL;
		}
	for (unsigned i = 0; dst && i < nr; i++) {
		const struct transport_range *r = &ranges[i];

		memcpy((char *)to->mem[r->region].hva + r->offset,
		       (char *)e->mem[r->region].hva + r->offset, r->len);
		ch->bytes += r->len;
		dst->bytes += r->len;
		ch->writes++;
		dst->writes++;
	}
	pthread_cond_broadcast(&e->link->net->changed);
	pthread_mutex_unlock(&e->link->net->lock);
	return rc;
}

static int loop_notify(struct transport_channel *base, const void *msg, size_t len,
		       struct tern_error *err)
{
	struct loop_channel *ch = to_loop_channel(base), *dst;
	struct loop_net *net = ch->end->link->net;
	int rc;

	if (len < 1 || len > TRANSPORT_NOTIFY_MAX)
		return error_channel(err, -EMSGSIZE, base->index, "Bad length of a notify");
	pthread_mutex_lock(&net->lock);
	rc = tx_dead(ch, err);
	if (!rc) {
		dst = &ch->end->peer->channels[base->index];
		rc = queue_push(&dst->inbox, msg, len);
		if (rc)
			error_channel(err, rc, base->index, "No memory for a notify");
		else
			dst->posted++;
	}
	pthread_cond_broadcast(&net->changed);
	pthread_mutex_unlock(&net->lock);
	return rc;
}

static int loop_fence(struct transport_channel *base, struct tern_error *err)
{
	struct loop_channel *ch = to_loop_channel(base), *dst;
	struct loop_net *net = ch->end->link->net;
	struct timespec deadline = loop_deadline(3l * ch->end->env.peer_timeout_ms);
	uint64_t want = 0;
	int rc;

	pthread_mutex_lock(&net->lock);
	rc = tx_dead(ch, err);
	if (!rc)
		want = ch->end->peer->channels[base->index].posted;
	while (!rc) {
		dst = &ch->end->peer->channels[base->index];
		if (dst->handled >= want)
			break;
		rc = loop_wait(net, &deadline);
		if (rc)
			error_channel(err, rc, base->index, "The loop peer handles no notifies");
		else
			rc = tx_dead(ch, err);
	}
	pthread_mutex_unlock(&net->lock);
	return rc;
}

static long loop_serve(struct transport_channel *base, void *buf, struct tern_error *err)
{
	struct loop_channel *ch = to_loop_channel(base);
	struct loop_end *e = ch->end;
	struct timespec deadline = loop_deadline(-1);
	long n;

	pthread_mutex_lock(&e->link->net->lock);
	if (ch->handed_out) {
		ch->handed_out = false;
		ch->handled++;
		pthread_cond_broadcast(&e->link->net->changed);
	}
	for (;; loop_wait(e->link->net, &deadline)) {
		if (e->revoked) {
			n = error_channel(err, -ECANCELED, base->index, "Access was revoked");
		} else if (e->link->aborted) {
			n = end_dead(e, err);
		} else if (ch->inbox.head) {
			n = queue_pop(&ch->inbox, buf);
			ch->handed_out = true;
		} else if (ch->bad.code) {
			n = error_channel(err, ch->bad.code, base->index, "%s", ch->bad.message);
		} else if (e->peer->closed) {
			n = 0;
		} else {
			continue;
		}
		break;
	}
	pthread_mutex_unlock(&e->link->net->lock);
	return n;
}

static void loop_revoke(struct transport_conn *conn)
{
	struct loop_end *e = to_end(conn);

	pthread_mutex_lock(&e->link->net->lock);
	e->revoked = true;
	pthread_cond_broadcast(&e->link->net->changed);
	pthread_mutex_unlock(&e->link->net->lock);
}

static void loop_abort(struct transport_conn *conn)
{
	struct loop_end *e = to_end(conn);

	pthread_mutex_lock(&e->link->net->lock);
	e->link->aborted = true;
	e->link->aborted_by[e->is_source] = true;
	pthread_cond_broadcast(&e->link->net->changed);
	pthread_mutex_unlock(&e->link->net->lock);
}

static void loop_close(struct transport_conn *conn)
{
	struct loop_end *e = to_end(conn);
	struct loop_net *net = e->link->net;

	pthread_mutex_lock(&net->lock);
	e->closed = true;
	pthread_cond_broadcast(&net->changed);
	link_put(e->link);
	pthread_mutex_unlock(&net->lock);
}

static void loop_channel_stats(const struct transport_channel *base, struct tern_channel_stats *out)
{
	const struct loop_channel *ch = (const struct loop_channel *)base;

	pthread_mutex_lock(&ch->end->link->net->lock);
	out->bytes += ch->bytes;
	out->writes += ch->writes;
	pthread_mutex_unlock(&ch->end->link->net->lock);
}

static const struct transport loop_ops = {
	.name = "loop",
	.listen = loop_listen,
	.listener_uri = loop_listener_uri,
	.accept = loop_accept,
	.listener_stop = loop_listener_stop,
	.listener_close = loop_listener_close,
	.connect = loop_connect,
	.expose = loop_expose,
	.open_channels = loop_open_channels,
	.send = loop_send,
	.recv = loop_recv,
	.write = loop_write,
	.notify = loop_notify,
	.fence = loop_fence,
	.serve = loop_serve,
	.revoke = loop_revoke,
	.abort = loop_abort,
	.close = loop_close,
	.channel_stats = loop_channel_stats,
};

struct loop_net *loop_net_new(void)
{
	struct loop_net *net = calloc(1, sizeof(*net));
	pthread_condattr_t attr;

	if (!net)
		return NULL;
	net->ops = loop_ops;
	pthread_mutex_init(&net->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&net->changed, &attr);
	pthread_condattr_destroy(&attr);
	return net;
}

void loop_net_delete(struct loop_net *net)
{
	if (!net)
		return;
	pthread_cond_destroy(&net->changed);
	pthread_mutex_destroy(&net->lock);
	free(net);
}

const struct transport *loop_net_transport(struct loop_net *net)
{
	return &net->ops;
}
