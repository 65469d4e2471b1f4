/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * The connecting side: the data channels, to the very address that the control
 * queue reached.
 *
 *	resolve address ─► resolve route ─► queue pair, request ─► established
 *
 * All channels go through these steps at once, each driven by the events of one
 * event channel: a connection takes several trips and waits for kernel threads on
 * both hosts, and the guest waits for none of that one channel after another.
 *
 * What needs no agreement with the peer, up to the queue pair, is done while the control
 * connection is under way: vconn_make_channels() makes as many as the engine is going to
 * ask for.  vconn_request_channels() requests those that were agreed on, and the peer makes
 * its own while this side has something else to do, until vconn_connect_channels().
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "error.h"
#include "verbs.h"

/* A channel on its way. */
struct opening {
	struct rdma_cm_id *id; /* until @ch owns it */
	struct verbs_channel *ch; /* made */
};

struct openings {
	struct verbs_conn *c;
	struct rdma_event_channel *cm;
	int64_t deadline;
	unsigned nr;
	unsigned made, established;
	bool requested;
	struct opening v[TRANSPORT_CHANNELS_MAX];
};

/* The greeting of channel @i. */
static struct greeting channel_greeting(const struct openings *o, unsigned i)
{
	struct greeting hello = {
		.version = GREETING_VERSION,
		.kind = GREETING_DATA,
		.index = (uint16_t)i,
		.count = (uint16_t)o->nr,
		.ring = CHAN_RING_SOURCE,
		.flags = o->c->env.push ? GREETING_PUSH : 0,
	};

	memcpy(hello.session_id, o->c->base.session_id, TRANSPORT_SESSION_ID_LEN);
	return hello;
}

/* Ask for the address of channel @i.  0 or -errno with *err. */
static int seek(struct openings *o, unsigned i, struct tern_error *err)
{
	struct verbs_conn *c = o->c;
	struct sockaddr *src = c->src.ss_family ? (struct sockaddr *)&c->src : NULL;

	return verbs_cm_resolve_addr(o->v[i].id, src, rdma_get_peer_addr(c->id), c->peer,
				     o->deadline, err);
}

/* First step of channel @i.  0 or -errno with *err. */
static int begin(struct openings *o, unsigned i, struct tern_error *err)
{
	if (rdma_create_id(o->cm, &o->v[i].id, NULL, RDMA_PS_TCP)) {
		o->v[i].id = NULL;
		return error_channel(err, -errno, i,
				     "Making an RDMA connection identifier failed: %s",
				     error_name(-errno));
	}
	verbs_cm_ack_timeout(o->v[i].id, o->c->env.peer_timeout_ms);
	return seek(o, i, err);
}

/* The route of channel @i is known: make it.  0 or -errno with *err. */
static int make(struct openings *o, unsigned i, struct tern_error *err)
{
	struct opening *v = &o->v[i];
	int rc = vchan_make(o->c, i, v->id, o->c->env.push, &v->ch, err);

	if (rc) {
		v->ch = NULL;
		return rc;
	}
	v->id = NULL;
	o->made++;
	return 0;
}

/* Ask the peer to take channel @i.  0 or -errno with *err. */
static int request(struct openings *o, unsigned i, struct tern_error *err)
{
	struct greeting hello = channel_greeting(o, i);

	return verbs_cm_request(o->v[i].ch->id, &hello, o->c->peer, err);
}

/* The peer took channel @i.  0 or -errno with *err. */
static int established(struct openings *o, unsigned i, const struct cm_event *ev,
		       struct tern_error *err)
{
	struct greeting hello = channel_greeting(o, i), answer;
	struct verbs_conn *c = o->c;
	struct verbs_channel *ch = o->v[i].ch;
	int rc = verbs_cm_answer(ev, &hello, c->peer, &answer, err);

	if (rc)
		return rc;
	if (ch->push && !(answer.flags & GREETING_PUSH))
		return error_channel(err, -EPROTONOSUPPORT, i,
				     "The peer %s takes no contents with messages on channel %u; "
				     "both sides have to be set up for that (env.push)",
				     c->peer, i);
	vchan_begin(ch, &answer);
	o->established++;
	return 0;
}

/* Which channel @id is, or o->nr. */
static unsigned opening_of(const struct openings *o, const struct rdma_cm_id *id)
{
	unsigned i = 0;

	while (i < o->nr && o->v[i].id != id && !(o->v[i].ch && o->v[i].ch->id == id))
		i++;
	return i;
}

/*
 * The peer took the control connection and rejects channel @i.  A program that dies leaves
 * that to its kernel, which has no reason of ours: nothing listens any more, or the request
 * was waiting to be looked at.
 */
static int rejected(const struct verbs_conn *c, unsigned i, const struct cm_event *ev,
		    struct tern_error *err)
{
	struct refusal r;

	if (refusal_get(ev->private_data, ev->private_len, &r))
		return verbs_cm_wrong(ev, c->peer, err);
	return error_channel(err, -ECONNRESET, i,
			     "The peer %s is gone: it took the control connection, and channel %u "
			     "was rejected without a word (reason %d); it may have died",
			     c->peer, i, ev->status);
}

/* One event.  0 or -errno with *err. */
static int step(struct openings *o, const struct cm_event *ev, struct tern_error *err)
{
	struct verbs_conn *c = o->c;
	unsigned i = opening_of(o, ev->id);
	int rc;

	if (i == o->nr)
		return 0;
	if (verbs_cm_addr_again(ev, o->deadline))
		return seek(o, i, err);
	switch (ev->type) {
	case RDMA_CM_EVENT_ADDR_RESOLVED:
		rc = verbs_check_device(c, o->v[i].id, c->peer, err);
		return rc ? rc : verbs_cm_resolve_route(o->v[i].id, c->peer, o->deadline, err);
	case RDMA_CM_EVENT_ROUTE_RESOLVED:
		return make(o, i, err);
	case RDMA_CM_EVENT_ESTABLISHED:
		return established(o, i, ev, err);
	case RDMA_CM_EVENT_REJECTED:
		return rejected(c, i, ev, err);
	default:
		return verbs_cm_wrong(ev, c->peer, err);
	}
}

/*
 * All are established: their events belong to the pump from here on.  One that was
 * disconnected meanwhile tells so to the pump, because its events move with it.
 */
static int hand_over(struct openings *o, struct tern_error *err)
{
	struct verbs_conn *c = o->c;
	int rc = 0;

	for (unsigned i = 0; i < o->nr && !rc; i++) {
		struct verbs_channel *ch = o->v[i].ch;

		pthread_mutex_lock(&c->lock); /* the pump waits with the events that move */
		if (rdma_migrate_id(ch->id, c->cm)) {
			rc = error_channel(err, -errno, i,
					   "Moving channel %u to its event channel failed: %s", i,
					   error_name(-errno));
		} else {
			ch->established = true;
			c->channels[i] = ch;
			o->v[i].ch = NULL;
		}
		pthread_mutex_unlock(&c->lock);
	}
	if (rc)
		return rc;
	pthread_mutex_lock(&c->lock);
	c->nr_channels = o->nr;
	pthread_mutex_unlock(&c->lock);
	return vconn_check(c, err);
}

/* Free what was not handed over, from channel @first on. */
static void openings_drop(struct openings *o, unsigned first)
{
	for (unsigned i = first; i < o->nr; i++) {
		if (o->v[i].ch)
			vchan_free(o->v[i].ch);
		if (o->v[i].id)
			rdma_destroy_id(o->v[i].id);
		o->v[i] = (struct opening){ NULL, NULL };
	}
	o->nr = o->nr < first ? o->nr : first;
}

/* vconn_forget_channels - free what vconn_make_channels() made and nobody asked for. */
void vconn_forget_channels(struct verbs_conn *c)
{
	struct openings *o = c->openings;

	if (!o)
		return;
	openings_drop(o, 0);
	if (o->cm)
		rdma_destroy_event_channel(o->cm);
	free(o);
	c->openings = NULL;
}

/* Wait for events until *@count is @nr.  0 or -errno with *err. */
static int await(struct openings *o, const unsigned *count, unsigned nr, struct tern_error *err)
{
	struct cm_event ev;
	int rc = 0;

	while (!rc && *count < nr) {
		rc = verbs_cm_wait(o->cm, o->c->peer, o->c->cancel_fd, o->deadline, &ev, err);
		if (!rc)
			rc = step(o, &ev, err);
	}
	return rc;
}

/*
 * vconn_make_channels - @nr channels and their queue pairs, ahead of time.
 *
 * The peer hears nothing of them.  0 or -errno with *err, and then there is none.
 */
int vconn_make_channels(struct verbs_conn *c, unsigned nr, struct tern_error *err)
{
	struct openings *o = calloc(1, sizeof(*o));
	int rc;

	if (!o)
		return error_session(err, -ENOMEM, "No memory for %u channels", nr);
	o->c = c;
	o->deadline = verbs_deadline((int)verbs_cm_patience_ms(&c->env));
	o->nr = nr;
	c->openings = o;
	rc = verbs_cm_channel(&o->cm, err);
	for (unsigned i = 0; i < nr && !rc; i++)
		rc = begin(o, i, err);
	if (!rc)
		rc = await(o, &o->made, nr, err);
	if (rc)
		vconn_forget_channels(c);
	return rc;
}

/* Make @nr channels, or take those that were made, and request them.  0 or -errno with *err. */
static int request_all(struct verbs_conn *c, unsigned nr, struct tern_error *err)
{
	struct openings *o = c->openings;
	int rc = 0;

	if (o && (o->nr < nr || o->requested))
		vconn_forget_channels(c);
	if (!c->openings)
		rc = vconn_make_channels(c, nr, err);
	if (rc)
		return rc;
	o = c->openings;
	openings_drop(o, nr);
	o->requested = true;
	for (unsigned i = 0; i < nr && !rc; i++)
		rc = request(o, i, err);
	return rc;
}

/* Ops; see src/transport.h. */
int vconn_request_channels(struct transport_conn *conn, unsigned nr, struct tern_error *err)
{
	struct verbs_conn *c = to_conn(conn);

	if (c->nr_channels || nr < 1 || nr > TRANSPORT_CHANNELS_MAX)
		return error_session(err, -EINVAL, "Cannot request %u channels of %s", nr, c->peer);
	return request_all(c, nr, err);
}

/* vconn_connect_channels - open_channels() of the source. */
int vconn_connect_channels(struct verbs_conn *c, unsigned nr, struct tern_error *err)
{
	struct openings *o = c->openings;
	int rc = 0;

	if (!o || !o->requested || o->nr != nr)
		rc = request_all(c, nr, err);
	if (rc)
		return rc;
	o = c->openings;
	o->deadline = verbs_deadline((int)verbs_cm_patience_ms(&c->env));
	rc = await(o, &o->established, nr, err);
	if (!rc)
		rc = hand_over(o, err);
	vconn_forget_channels(c);
	return rc;
}
