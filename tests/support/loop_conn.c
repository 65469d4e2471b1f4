/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * The in-memory transport's connections and channels; see loop.c.  A queue holds
 * what has arrived at an end; everything happens under the network's lock.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "error.h"
#include "loop_private.h"

static struct loop_end *to_end(struct transport_conn *c)
{
	return (struct loop_end *)c;
}

static struct loop_channel *to_loop_channel(struct transport_channel *ch)
{
	return (struct loop_channel *)ch;
}

/* Append a copy of the @len bytes at @data and @contents bytes at @more.  0 or -ENOMEM. */
static int queue_add(struct loop_queue *q, const void *data, size_t len, const void *more,
		     size_t contents)
{
	struct loop_msg *m = malloc(sizeof(*m) + len + contents);

	if (!m)
		return -ENOMEM;
	m->next = NULL;
	m->len = len + contents;
	m->contents = contents;
	memcpy(m->data, data, len);
	if (contents)
		memcpy(m->data + len, more, contents);
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

/* Why @e cannot be used: -ECANCELED after its own abort(), -ECONNRESET after the peer's; 0. */
static int end_dead(const struct loop_end *e, struct tern_error *err)
{
	if (e->link->aborted_by[e->is_source])
		return error_session(err, -ECANCELED, "The loop connection was aborted");
	if (e->link->aborted)
		return error_session(err, -ECONNRESET, "The loop peer was cut off");
	return 0;
}

/* See struct transport. */
int loop_expose(struct transport_conn *conn, const struct transport_memory *mem, unsigned nr,
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

/* See struct transport. */
int loop_open_channels(struct transport_conn *conn, unsigned nr,
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

/* See struct transport. */
int loop_send(struct transport_conn *conn, const void *msg, size_t len, int timeout_ms,
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
	if (!rc && queue_add(&e->peer->inbox, msg, len, NULL, 0))
		rc = error_session(err, -ENOMEM, "No memory for a control message");
	pthread_cond_broadcast(&e->link->net->changed);
	pthread_mutex_unlock(&e->link->net->lock);
	return rc;
}

/* See struct transport. */
long loop_recv(struct transport_conn *conn, void *buf, size_t cap, int timeout_ms,
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

/* See struct transport. */
int loop_write(struct transport_channel *base, const struct transport_range *ranges, unsigned nr,
	       struct tern_error *err)
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
	if (dst && to->env.admit && to->env.admit(to->env.opaque, ranges, nr, &dst->bad))
		dst = NULL;
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

/* Put a notify, or a push of the @contents bytes at @more, into the peer's inbox. */
static int deliver(struct loop_channel *ch, const void *msg, size_t len, const void *more,
		   size_t contents, struct tern_error *err)
{
	struct loop_end *to = ch->end->peer;
	struct loop_net *net = ch->end->link->net;
	unsigned index = ch->base.index;
	int rc;

	pthread_mutex_lock(&net->lock);
	rc = tx_dead(ch, err);
	if (!rc && contents && !to->env.push) {
		error_channel(&to->channels[index].bad, -EPROTO, index,
			      "The loop peer pushed contents, which are not welcome");
	} else if (!rc) {
		rc = queue_add(&to->channels[index].inbox, msg, len, more, contents);
		if (rc) {
			error_channel(err, rc, index, "No memory for a notify");
		} else {
			to->channels[index].posted++;
			to->channels[index].bytes += contents;
			ch->bytes += contents;
		}
	}
	pthread_cond_broadcast(&net->changed);
	pthread_mutex_unlock(&net->lock);
	return rc;
}

/* See struct transport. */
int loop_notify(struct transport_channel *base, const void *msg, size_t len, struct tern_error *err)
{
	if (len < 1 || len > TRANSPORT_NOTIFY_MAX)
		return error_channel(err, -EMSGSIZE, base->index, "Bad length of a notify");
	return deliver(to_loop_channel(base), msg, len, NULL, 0, err);
}

/* See struct transport. */
int loop_push(struct transport_channel *base, const void *msg, size_t len,
	      const struct transport_range *range, struct tern_error *err)
{
	struct loop_channel *ch = to_loop_channel(base);
	struct loop_end *e = ch->end;
	int rc = transport_push_check(&e->env, base->index, len, range->len, err);

	if (rc)
		return rc;
	if (!range_ok(e, range))
		return error_channel(err, -EINVAL, base->index, "Range outside memory");
	return deliver(ch, msg, len, (char *)e->mem[range->region].hva + range->offset, range->len,
		       err);
}

/* See struct transport. */
int loop_fence(struct transport_channel *base, struct tern_error *err)
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

/* See struct transport. */
long loop_serve(struct transport_channel *base, void *buf, size_t *contents, struct tern_error *err)
{
	struct loop_channel *ch = to_loop_channel(base);
	struct loop_end *e = ch->end;
	struct timespec deadline = loop_deadline(-1);
	long n;

	*contents = 0;
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
			*contents = ch->inbox.head->contents;
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

/* See struct transport. */
void loop_revoke(struct transport_conn *conn)
{
	struct loop_end *e = to_end(conn);

	pthread_mutex_lock(&e->link->net->lock);
	e->revoked = true;
	pthread_cond_broadcast(&e->link->net->changed);
	pthread_mutex_unlock(&e->link->net->lock);
}

/* See struct transport. */
void loop_abort(struct transport_conn *conn)
{
	struct loop_end *e = to_end(conn);

	pthread_mutex_lock(&e->link->net->lock);
	e->link->aborted = true;
	e->link->aborted_by[e->is_source] = true;
	pthread_cond_broadcast(&e->link->net->changed);
	pthread_mutex_unlock(&e->link->net->lock);
}

/* See struct transport. */
void loop_close(struct transport_conn *conn)
{
	struct loop_end *e = to_end(conn);
	struct loop_net *net = e->link->net;

	pthread_mutex_lock(&net->lock);
	e->closed = true;
	pthread_cond_broadcast(&net->changed);
	loop_link_put(e->link);
	pthread_mutex_unlock(&net->lock);
}

/* See struct transport. */
void loop_channel_stats(const struct transport_channel *base, struct tern_channel_stats *out)
{
	const struct loop_channel *ch = (const struct loop_channel *)base;

	pthread_mutex_lock(&ch->end->link->net->lock);
	out->bytes += ch->bytes;
	out->writes += ch->writes;
	pthread_mutex_unlock(&ch->end->link->net->lock);
}
