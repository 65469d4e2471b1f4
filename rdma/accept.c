/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * The listening side: who is let in.
 *
 *	CONNECT_REQUEST   greeting is bad              reject, tell env.stranger
 *	                  control                      connection made, accepted; it waits
 *	                                               in the hub for its first message
 *	                  data, session known          channel made, accepted
 *	                  data, otherwise              reject with the reason
 *
 * A new connection's identifiers move to its own event channel, so from then on
 * its pump handles their events.  The pump makes the listener's eventfd readable
 * when the first message is there, or the peer is gone; accept() then hands the
 * connection out or drops it.
 *
 * The hub is what the listener and its connections share; each holds a
 * reference, so either may be closed first.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "error.h"
#include "listening.h"
#include "verbs.h"

#define WAITING_MAX 16u
#define GONE_MAX 16u

struct verbs_hub {
	pthread_mutex_t lock;
	unsigned refs;
	struct verbs_conn *conns; /* accepted, not closed yet */
	/* Sessions that were here, the latest ones; a ring. */
	uint8_t gone[GONE_MAX][TRANSPORT_SESSION_ID_LEN];
	unsigned nr_gone;
	int heard_fd; /* eventfd: pumps tell the listener; constant */
};

struct verbs_listener {
	struct transport_listener base;
	struct transport_env env;
	struct verbs_listening at;
	struct verbs_hub *hub;
	int stop_fd; /* eventfd */

	/* Acceptor: connections whose first message has not come yet. */
	struct {
		struct verbs_conn *conn;
		int64_t deadline;
	} waiting[WAITING_MAX];
};

static struct verbs_listener *to_listener(struct transport_listener *l)
{
	return (struct verbs_listener *)l;
}

/* Drop a reference; the last one frees the hub. */
void vhub_put(struct verbs_hub *hub)
{
	unsigned left;

	pthread_mutex_lock(&hub->lock);
	left = --hub->refs;
	pthread_mutex_unlock(&hub->lock);
	if (left)
		return;
	pthread_mutex_destroy(&hub->lock);
	if (hub->heard_fd >= 0)
		close(hub->heard_fd);
	free(hub);
}

/* A hub with one reference, the listener's.  NULL: no memory or descriptors. */
static struct verbs_hub *hub_new(void)
{
	struct verbs_hub *hub = calloc(1, sizeof(*hub));

	if (!hub)
		return NULL;
	hub->heard_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (hub->heard_fd < 0) {
		free(hub);
		return NULL;
	}
	pthread_mutex_init(&hub->lock, NULL);
	hub->refs = 1;
	return hub;
}

/* vhub_leave - no channel is attached to @c from now on.  Keeps the reference. */
void vhub_leave(struct verbs_conn *c)
{
	struct verbs_hub *hub = c->hub;

	pthread_mutex_lock(&hub->lock);
	for (struct verbs_conn **at = &hub->conns; *at; at = &(*at)->hub_next)
		if (*at == c) {
			*at = c->hub_next;
			memcpy(hub->gone[hub->nr_gone++ % GONE_MAX], c->base.session_id,
			       TRANSPORT_SESSION_ID_LEN);
			break;
		}
	pthread_mutex_unlock(&hub->lock);
}

int verbs_listener_listen(const struct transport *ops, const struct transport_env *env,
			  const struct uri *uri, struct transport_listener **out,
			  struct tern_error *err)
{
	struct verbs_listener *l = calloc(1, sizeof(*l));
	int rc = -ENOMEM;

	if (!l)
		return error_session(err, rc, "No memory for a listener");
	l->base.ops = ops;
	l->env = *env;
	l->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	l->hub = hub_new();
	if (!l->hub || l->stop_fd < 0)
		error_session(err, rc, "No memory or descriptors for a listener");
	else
		rc = verbs_listening_open(&l->at, l->env.rdma_device, uri, err);
	if (rc) {
		verbs_listener_close(&l->base);
		return rc;
	}
	*out = &l->base;
	return 0;
}

int verbs_listener_uri(const struct transport_listener *base, char *buf, size_t size)
{
	return verbs_listening_uri(&((const struct verbs_listener *)base)->at, buf, size);
}

void verbs_listener_stop(struct transport_listener *base)
{
	(void)eventfd_write(to_listener(base)->stop_fd, 1);
}

/* Forget waiting connection @i, which stays alive. */
static struct verbs_conn *waiting_take(struct verbs_listener *l, unsigned i)
{
	struct verbs_conn *c = l->waiting[i].conn;

	l->waiting[i].conn = NULL;
	return c;
}

/* Report a peer that is turned away. */
static void turn_away(struct verbs_listener *l, const char *peer, int code, const char *why)
{
	struct tern_error e = { 0 };

	if (!l->env.stranger)
		return;
	error_session(&e, code, "A connection from %s was turned away: %s", peer, why);
	l->env.stranger(l->env.opaque, &e);
}

/* Drop waiting connection @i. */
static void waiting_drop(struct verbs_listener *l, unsigned i, int code, const char *why)
{
	struct verbs_conn *c = waiting_take(l, i);

	turn_away(l, c->peer, code, why);
	vconn_abort(&c->base);
	vhub_leave(c);
	vconn_destroy(c);
}

void verbs_listener_close(struct transport_listener *base)
{
	struct verbs_listener *l = to_listener(base);

	for (unsigned i = 0; i < WAITING_MAX; i++)
		if (l->waiting[i].conn)
			waiting_drop(l, i, -ECANCELED, "the listener is closing");
	if (l->hub)
		vhub_put(l->hub);
	verbs_listening_close(&l->at);
	if (l->stop_fd >= 0)
		close(l->stop_fd);
	free(l);
}

/* Tell the peer of @id why it is turned away. */
static void refuse(struct rdma_cm_id *id, enum refusal_code code, uint32_t value)
{
	struct refusal r = { .version = GREETING_VERSION, .code = (uint16_t)code, .value = value };
	uint8_t buf[REFUSAL_LEN];

	refusal_put(buf, &r);
	(void)rdma_reject(id, buf, sizeof(buf));
}

/* The same, and destroy it. */
static void reject(struct rdma_cm_id *id, enum refusal_code code, uint32_t value)
{
	refuse(id, code, value);
	rdma_destroy_id(id);
}

/* Accept @id with our greeting.  0 or -errno. */
static int accept_id(struct rdma_cm_id *id, const struct greeting *answer)
{
	uint8_t buf[GREETING_LEN];
	struct rdma_conn_param param = {
		.private_data = buf,
		.private_data_len = sizeof(buf),
		.rnr_retry_count = 7,
	};

	greeting_put(buf, answer);
	return rdma_accept(id, &param) ? -errno : 0;
}

/* Resources of a new connection, and its acceptance.  0 or -errno; @id is @c's if c->id is set. */
static int vconn_accept(struct verbs_listener *l, struct verbs_conn *c, struct rdma_cm_id *id,
			const struct greeting *hello, struct tern_error *err)
{
	struct greeting answer = {
		.version = GREETING_VERSION,
		.kind = GREETING_CONTROL,
		.ring = CTL_RING,
		.msg_window = CTL_MSG_WINDOW,
		.piece_bytes = PIECE_BYTES,
	};
	int rc;

	if (rdma_migrate_id(id, c->cm))
		return error_session(err, -errno, "Moving a connection failed: %s",
				     error_name(-errno));
	rc = vconn_attach_device(c, id, err);
	if (rc)
		return rc;
	memcpy(answer.session_id, hello->session_id, TRANSPORT_SESSION_ID_LEN);
	c->windows = (hello->flags & GREETING_WINDOWS) && windows_possible(c);
	answer.flags = c->windows ? GREETING_WINDOWS : 0;
	answer.lock_budget = c->env.lock_budget; /* none if nothing is locked */
	control_begin(c, hello);
	c->listener_fd = l->hub->heard_fd;
	rc = accept_id(id, &answer);
	if (rc)
		return error_session(err, rc, "Accepting an RDMA connection from %s failed: %s",
				     c->peer, error_name(rc));
	return vconn_start(c, err);
}

/* A control connection: make it, and let it wait for its first message. */
static void control_request(struct verbs_listener *l, struct rdma_cm_id *id,
			    const struct greeting *hello, const char *peer)
{
	struct tern_error why = { 0 };
	struct verbs_conn *c = NULL;
	unsigned i = 0;
	int rc;

	while (i < WAITING_MAX && l->waiting[i].conn)
		i++;
	if (i == WAITING_MAX) {
		reject(id, REFUSAL_BUSY, 0);
		turn_away(l, peer, -EBUSY, "too many connections are waiting to say who they are");
		return;
	}
	rc = vconn_make(l->base.ops, &l->env, false, hello->session_id, &c, &why);
	if (!rc)
		rc = vconn_accept(l, c, id, hello, &why);
	if (rc) {
		bool owned = c && c->id;

		turn_away(l, peer, rc, why.message);
		if (owned)
			refuse(id, REFUSAL_BUSY, 0);
		if (c)
			vconn_destroy(c);
		if (!owned)
			reject(id, REFUSAL_BUSY, 0);
		return;
	}
	pthread_mutex_lock(&l->hub->lock);
	c->hub = l->hub;
	c->hub_next = l->hub->conns;
	l->hub->conns = c;
	l->hub->refs++;
	pthread_mutex_unlock(&l->hub->lock);
	l->waiting[i].conn = c;
	l->waiting[i].deadline = verbs_deadline((int)l->env.peer_timeout_ms);
}

/* May channel @hello->index be attached to @c?  0 or the refusal code.  conn->lock is held. */
static int may_attach(const struct verbs_conn *c, const struct greeting *hello, uint32_t *value)
{
	*value = c->wanted;
	if (atomic_load(&c->aborted) || atomic_load(&c->revoked))
		return REFUSAL_SESSION;
	if (c->wanted && hello->count != c->wanted)
		return REFUSAL_COUNT;
	return c->channels[hello->index] ? REFUSAL_TAKEN : 0;
}

/*
 * Give @ch to @c, and accept it.  0 or -errno; it is @c's in any case: from here on the pump
 * sees its events, and close() frees it.  conn->lock is held, so that the pump waits with the
 * events that move, and revoke() finds either no queue pair or one that it can end.
 */
static int take_in(struct verbs_conn *c, struct verbs_channel *ch, const struct greeting *hello)
{
	struct greeting answer = { .version = GREETING_VERSION,
				   .kind = GREETING_DATA,
				   .index = hello->index,
				   .count = hello->count,
				   .ring = (uint16_t)ch->ring,
				   .flags = ch->push ? GREETING_PUSH : 0 };
	int rc;

	memcpy(answer.session_id, hello->session_id, TRANSPORT_SESSION_ID_LEN);
	c->channels[hello->index] = ch;
	c->counts[hello->index] = hello->count;
	rc = rdma_migrate_id(ch->id, c->cm) ? -errno : accept_id(ch->id, &answer);
	if (rc)
		atomic_store(&ch->lost, true);
	return rc;
}

/*
 * Make channel @hello->index of @c on @id and accept it.  The refusal code, 0 if @id
 * belongs to @c now.  If this side fails, so does @c, which tells of it.  hub->lock is held.
 *
 * Making it takes a while, in which the session goes on: it may learn how many channels it
 * wants, be aborted, or take the memory back because its guest is about to run.  So whether
 * the channel may be attached is asked again when it is.
 */
static int attach(struct verbs_conn *c, struct rdma_cm_id *id, const struct greeting *hello,
		  uint32_t *value, struct tern_error *err)
{
	bool push = (hello->flags & GREETING_PUSH) && c->env.push;
	struct verbs_channel *ch;
	int code, rc = 0;

	pthread_mutex_lock(&c->lock);
	code = may_attach(c, hello, value);
	pthread_mutex_unlock(&c->lock);
	if (code)
		return code;
	if (vchan_make(c, hello->index, id, push, &ch, err)) {
		vconn_fail(c, err);
		return REFUSAL_BUSY;
	}
	vchan_begin(ch, hello);
	pthread_mutex_lock(&c->lock);
	code = may_attach(c, hello, value);
	if (!code)
		rc = take_in(c, ch, hello);
	pthread_mutex_unlock(&c->lock);
	if (code)
		vchan_unmake(ch);
	if (rc) {
		error_channel(err, rc, hello->index,
			      "Accepting channel %u from %s over RDMA failed (device %s): %s",
			      hello->index, c->peer, c->device, error_name(rc));
		vconn_fail(c, err); /* first: the peer may hang up when it is refused */
		refuse(id, REFUSAL_BUSY, 0);
	}
	return code;
}

/* Was a session of this id here?  hub->lock is held. */
static bool was_here(const struct verbs_hub *hub, const uint8_t *id)
{
	for (unsigned i = 0; i < GONE_MAX && i < hub->nr_gone; i++)
		if (!memcmp(hub->gone[i], id, TRANSPORT_SESSION_ID_LEN))
			return true;
	return false;
}

/*
 * A data channel: find its connection.  A source requests its channels before it knows
 * whether it fits, so one whose session has just ended is no stranger of its own.  Nor is
 * one that cannot be made, often because its source has left since: its session fails.
 */
static void data_request(struct verbs_listener *l, struct rdma_cm_id *id,
			 const struct greeting *hello, const char *peer)
{
	struct tern_error why = { 0 };
	int code = REFUSAL_SESSION;
	uint32_t value = 0;
	bool known;

	pthread_mutex_lock(&l->hub->lock);
	known = was_here(l->hub, hello->session_id);
	for (struct verbs_conn *c = l->hub->conns; c; c = c->hub_next) {
		if (memcmp(c->base.session_id, hello->session_id, TRANSPORT_SESSION_ID_LEN))
			continue;
		known = true;
		if (atomic_load(&c->aborted) || atomic_load(&c->revoked))
			continue;
		code = attach(c, id, hello, &value, &why);
		break;
	}
	pthread_mutex_unlock(&l->hub->lock);
	if (!code)
		return;
	reject(id, (enum refusal_code)code, value);
	if (code == REFUSAL_BUSY || (code == REFUSAL_SESSION && known))
		return; /* its session told, or tells, why it ends */
	turn_away(l, peer, -EPROTO,
		  code == REFUSAL_SESSION ? "its data channel belongs to no session here"
		  : code == REFUSAL_TAKEN ? "that channel of its session is attached already"
					  : "its channel count does not fit its session");
}

/* A request to connect. */
static void request(struct verbs_listener *l, const struct cm_event *ev)
{
	char peer[VERBS_TEXT_MAX], why[128], text[192];
	struct greeting hello;

	verbs_address_text(rdma_get_peer_addr(ev->id), peer, sizeof(peer));
	if (!greeting_get(ev->private_data, ev->private_len, &hello)) {
		reject(ev->id, REFUSAL_GREETING, 0);
		turn_away(l, peer, -EPROTO, "it does not speak this protocol");
	} else if (hello.version != GREETING_VERSION) {
		reject(ev->id, REFUSAL_VERSION, GREETING_VERSION);
		snprintf(text, sizeof(text),
			 "it speaks version %u of the RDMA framing, this side version %u",
			 hello.version, GREETING_VERSION);
		turn_away(l, peer, -EPROTO, text);
	} else if (greeting_check(&hello, why, sizeof(why))) {
		reject(ev->id, REFUSAL_GREETING, 0);
		snprintf(text, sizeof(text), "its greeting is impossible: %s", why);
		turn_away(l, peer, -EPROTO, text);
	} else if (hello.kind == GREETING_DATA) {
		data_request(l, ev->id, &hello, peer);
	} else if (hello.piece_bytes != PIECE_BYTES) {
		reject(ev->id, REFUSAL_PIECE, PIECE_BYTES);
		snprintf(text, sizeof(text),
			 "it registers memory in pieces of %u bytes, this side of %u",
			 hello.piece_bytes, (unsigned)PIECE_BYTES);
		turn_away(l, peer, -EPROTO, text);
	} else {
		control_request(l, ev->id, &hello, peer);
	}
}

/* The same for one that died before its first message. */
static void waiting_drop_dead(struct verbs_listener *l, unsigned i)
{
	struct verbs_conn *c = l->waiting[i].conn;
	struct tern_error why;

	pthread_mutex_lock(&c->ctl.lock);
	why = c->ctl.error;
	pthread_mutex_unlock(&c->ctl.lock);
	if (!why.code || why.code == -ECONNRESET)
		waiting_drop(l, i, -ECONNRESET, "it closed without a word");
	else
		waiting_drop(l, i, why.code, why.message);
}

/* A connection with a first message, if there is one; drops those that died or are late. */
static struct verbs_conn *first_heard(struct verbs_listener *l, int64_t *next)
{
	for (unsigned i = 0; i < WAITING_MAX; i++) {
		struct verbs_conn *c = l->waiting[i].conn;
		bool message, heard;

		if (!c)
			continue;
		heard = atomic_load(&c->heard); /* is set after the message is there: look first */
		pthread_mutex_lock(&c->ctl.lock);
		message = c->ctl.inbox != NULL;
		pthread_mutex_unlock(&c->ctl.lock);
		if (message)
			return waiting_take(l, i);
		if (heard)
			waiting_drop_dead(l, i);
		else if (!verbs_remaining(l->waiting[i].deadline))
			waiting_drop(l, i, -ETIMEDOUT, "it stayed silent");
		else if (*next < 0 || l->waiting[i].deadline < *next)
			*next = l->waiting[i].deadline;
	}
	return NULL;
}

int verbs_listener_accept(struct transport_listener *base, int timeout_ms,
			  struct transport_conn **out, struct tern_error *err)
{
	struct verbs_listener *l = to_listener(base);
	int64_t deadline = verbs_deadline(timeout_ms);
	struct pollfd p[3] = {
		{ .fd = l->stop_fd, .events = POLLIN },
		{ .fd = l->at.cm->fd, .events = POLLIN },
		{ .fd = l->hub->heard_fd, .events = POLLIN },
	};

	for (;;) {
		int64_t next = deadline;
		struct verbs_conn *c = first_heard(l, &next);
		struct cm_event ev;
		eventfd_t ignored;
		int n;

		if (c) {
			*out = &c->base;
			return 0;
		}
		n = poll(p, 3, verbs_remaining(next));
		if (n > 0 && p[0].revents)
			return error_session(err, -ECANCELED, "Listening was stopped");
		if (n > 0 && p[2].revents)
			(void)eventfd_read(l->hub->heard_fd, &ignored);
		while (n > 0 && !verbs_cm_next(l->at.cm, -1, 0, &ev)) {
			if (ev.type == RDMA_CM_EVENT_CONNECT_REQUEST)
				request(l, &ev);
			else if (ev.type == RDMA_CM_EVENT_DEVICE_REMOVAL)
				return error_session(err, -ENODEV, "The RDMA device was removed");
		}
		if (n == 0 && deadline >= 0 && !verbs_remaining(deadline))
			return error_session(err, -ETIMEDOUT, "Nobody connected within %d ms",
					     timeout_ms);
	}
}

/* How many of the first @nr channels are established; drops those that do not fit. */
static unsigned count_channels(struct verbs_conn *c, unsigned nr)
{
	unsigned have = 0;

	for (unsigned i = 0; i < TRANSPORT_CHANNELS_MAX; i++)
		if (c->channels[i] && c->channels[i]->established && i < nr && c->counts[i] == nr)
			have++;
	return have;
}

/* vhub_collect - open_channels() of the destination. */
int vhub_collect(struct verbs_conn *c, unsigned nr, struct tern_error *err)
{
	unsigned patience_ms = verbs_cm_patience_ms(&c->env);
	struct timespec ts;
	unsigned have;
	int rc = 0, waited = 0;

	verbs_timespec(verbs_deadline((int)patience_ms), &ts);
	pthread_mutex_lock(&c->lock);
	c->wanted = nr;
	while ((have = count_channels(c, nr)) < nr && !waited) {
		rc = vconn_check(c, err); /* under the lock, lest its end is told before the wait */
		if (rc)
			break;
		waited = pthread_cond_timedwait(&c->changed, &c->lock, &ts);
	}
	if (have == nr)
		c->nr_channels = nr;
	pthread_mutex_unlock(&c->lock);
	if (rc || have == nr)
		return rc;
	return error_session(err, -ETIMEDOUT,
			     "Only %u of %u data channels from %s arrived within %u ms; check that "
			     "UDP port 4791 is open (RoCE)",
			     have, nr, c->peer, patience_ms);
}
