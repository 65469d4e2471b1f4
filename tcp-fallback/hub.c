/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * The hub: where data connections find the connection they belong to.
 *
 * A listener and the connections accepted on it each hold a reference, so either
 * may be closed first.  The acceptor attaches the socket of a data channel to
 * the connection of the same session id; open_channels() collects them:
 *
 *	acceptor                               open_channels()
 *	attached[i] = fd, attach_fd readable   wanted = nr
 *	                                       attached[i] -> channels[i].fd, taken[i]
 *	                                       status "ok" to the peer
 *
 * What arrives before open_channels() is kept, at most one socket per index, so
 * the number of waiting sockets is bounded.  The index and the count are
 * compared with @nr as soon as it is known.
 */

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "conn.h"
#include "error.h"

struct tcp_hub {
	pthread_mutex_t lock; /* refs, conns and their hub_next */
	unsigned refs;
	struct tcp_conn *conns; /* oldest first */
};

/* hub_new - one reference, the listener's.  NULL: no memory. */
struct tcp_hub *hub_new(void)
{
	struct tcp_hub *hub = calloc(1, sizeof(*hub));

	if (!hub)
		return NULL;
	pthread_mutex_init(&hub->lock, NULL);
	hub->refs = 1;
	return hub;
}

/* hub_put - drop a reference; frees the hub with the last one. */
void hub_put(struct tcp_hub *hub)
{
	unsigned left;

	pthread_mutex_lock(&hub->lock);
	left = --hub->refs;
	pthread_mutex_unlock(&hub->lock);
	if (left)
		return;
	pthread_mutex_destroy(&hub->lock);
	free(hub);
}

/* hub_add - make @c known; takes a reference for it. */
void hub_add(struct tcp_hub *hub, struct tcp_conn *c)
{
	struct tcp_conn **at;

	pthread_mutex_lock(&hub->lock);
	for (at = &hub->conns; *at; at = &(*at)->hub_next)
		;
	*at = c;
	c->hub = hub;
	hub->refs++;
	pthread_mutex_unlock(&hub->lock);
}

/* hub_remove - no socket is attached to @c from now on.  Keeps the reference. */
void hub_remove(struct tcp_conn *c)
{
	struct tcp_conn **at;

	pthread_mutex_lock(&c->hub->lock);
	for (at = &c->hub->conns; *at; at = &(*at)->hub_next)
		if (*at == c) {
			*at = c->hub_next;
			break;
		}
	pthread_mutex_unlock(&c->hub->lock);
}

/* May a data connection with this index and count be channel @i of @wanted? */
static struct frame_status attach_check(unsigned index, unsigned count, unsigned wanted)
{
	if (index >= wanted)
		return (struct frame_status){ FRAME_STATUS_INDEX, (uint16_t)wanted };
	if (count != wanted)
		return (struct frame_status){ FRAME_STATUS_COUNT, (uint16_t)wanted };
	return (struct frame_status){ FRAME_STATUS_OK, 0 };
}

/* Attach under conn->lock; see hub_attach(). */
static struct frame_status conn_attach(struct tcp_conn *c, const struct frame_preamble *pre, int fd)
{
	struct frame_status st = { FRAME_STATUS_OK, 0 };

	if (c->wanted)
		st = attach_check(pre->index, pre->count, c->wanted);
	if (st.code)
		return st;
	if (c->attached[pre->index] >= 0 || c->taken[pre->index])
		return (struct frame_status){ FRAME_STATUS_TAKEN, pre->index };
	c->attached[pre->index] = fd;
	c->attached_count[pre->index] = pre->count;
	(void)eventfd_write(c->attach_fd, 1);
	return st;
}

/*
 * hub_attach - give data socket @fd to the connection of @pre's session.
 *
 * Code OK: the connection owns @fd now.  Otherwise the caller tells the peer.
 * Acceptor.
 */
struct frame_status hub_attach(struct tcp_hub *hub, const struct frame_preamble *pre, int fd)
{
	struct frame_status st = { FRAME_STATUS_SESSION, 0 };

	pthread_mutex_lock(&hub->lock);
	for (struct tcp_conn *c = hub->conns; c; c = c->hub_next) {
		if (memcmp(c->base.session_id, pre->session_id, TRANSPORT_SESSION_ID_LEN) ||
		    conn_is_aborted(c) || atomic_load(&c->revoked))
			continue;
		pthread_mutex_lock(&c->lock);
		st = conn_attach(c, pre, fd);
		pthread_mutex_unlock(&c->lock);
		break;
	}
	pthread_mutex_unlock(&hub->lock);
	return st;
}

/* Answer a data preamble.  A new socket has room for it, so it never waits. */
static int status_send(int fd, const struct frame_status *st)
{
	uint8_t buf[FRAME_STATUS_LEN];

	frame_status_put(buf, st);
	return send(fd, buf, sizeof(buf), MSG_NOSIGNAL | MSG_DONTWAIT) == sizeof(buf) ? 0
										      : -ECONNRESET;
}

/*
 * Make channels of the sockets attached so far; refuse those that do not fit.
 * Returns how many became channels.
 */
static unsigned collect_attached(struct tcp_conn *c)
{
	unsigned got = 0;

	for (unsigned i = 0; i < TRANSPORT_CHANNELS_MAX; i++) {
		struct frame_status st;
		int fd;

		pthread_mutex_lock(&c->lock);
		fd = c->attached[i];
		c->attached[i] = -1;
		st = attach_check(i, c->attached_count[i], c->wanted);
		if (fd >= 0 && !st.code)
			c->taken[i] = true;
		pthread_mutex_unlock(&c->lock);
		if (fd < 0)
			continue;
		if (st.code) {
			(void)status_send(fd, &st);
			close(fd);
			continue;
		}
		/* An abort() meanwhile, or a peer that is gone, shows in the channel's use. */
		(void)conn_channel_set_fd(c, i, fd);
		(void)status_send(fd, &st);
		got++;
	}
	return got;
}

/*
 * hub_collect - open_channels() of the destination.
 *
 * Waits up to peer_timeout_ms for all @nr channels.  0, -ETIMEDOUT, -ECANCELED.
 */
int hub_collect(struct tcp_conn *c, unsigned nr, struct tern_error *err)
{
	int64_t deadline = sock_deadline((int)c->env.peer_timeout_ms);
	unsigned have = 0;
	int rc = conn_channels_alloc(c, nr, err);

	if (rc)
		return rc;
	pthread_mutex_lock(&c->lock);
	c->wanted = nr;
	pthread_mutex_unlock(&c->lock);
	for (;;) {
		eventfd_t ignored;

		if (conn_is_aborted(c))
			rc = -ECANCELED;
		else
			have += collect_attached(c);
		if (rc >= 0 && have == nr)
			return 0;
		if (rc >= 0)
			rc = sock_wait(c->attach_fd, POLLIN, c->cancel_fd, deadline);
		if (rc == -ECANCELED)
			return error_session(err, rc, "The connection to %s was aborted", c->peer);
		if (rc < 0)
			return error_session(err, rc,
					     "Only %u of %u data channels from %s arrived within "
					     "%u ms; check that no firewall limits connections",
					     have, nr, c->peer, c->env.peer_timeout_ms);
		(void)eventfd_read(c->attach_fd, &ignored);
	}
}
