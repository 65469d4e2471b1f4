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
#include "loop_private.h"

void loop_queue_clear(struct loop_queue *q)
{
	while (q->head) {
		struct loop_msg *m = q->head;

		q->head = m->next;
		free(m);
	}
}

struct timespec loop_deadline(long timeout_ms)
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

int loop_wait(struct loop_net *net, const struct timespec *deadline)
{
	return pthread_cond_timedwait(&net->changed, &net->lock, deadline) == ETIMEDOUT ? -ETIMEDOUT
											: 0;
}

/* See struct transport. */
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

/* See struct transport. */
static int loop_listener_uri(const struct transport_listener *l, char *buf, size_t size)
{
	return snprintf(buf, size, "unix:%s", ((const struct loop_listener *)l)->name);
}

void loop_link_put(struct loop_link *link)
{
	if (!link->end[0].closed || !link->end[1].closed)
		return;
	for (int i = 0; i < 2; i++) {
		struct loop_end *e = &link->end[i];

		for (unsigned c = 0; c < e->nr_channels; c++)
			loop_queue_clear(&e->channels[c].inbox);
		loop_queue_clear(&e->inbox);
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
			loop_link_put(e->link);
		} else if (e->inbox.head) {
			*at = e->backlog_next;
			return e;
		} else {
			at = &e->backlog_next;
		}
	}
	return NULL;
}

/* See struct transport. */
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

/* See struct transport. */
static void loop_listener_stop(struct transport_listener *base)
{
	struct loop_listener *l = (struct loop_listener *)base;

	pthread_mutex_lock(&l->net->lock);
	l->stopped = true;
	pthread_cond_broadcast(&l->net->changed);
	pthread_mutex_unlock(&l->net->lock);
}

/* See struct transport. */
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
		loop_link_put(e->link);
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

/* See struct transport. */
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

static const struct transport loop_ops = {
	.name = "loop",
	.one_sided = true,
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
	.push = loop_push,
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
