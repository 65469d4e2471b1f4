/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * Accepting: strangers become connections, data channels, or are turned away.
 *
 *	new ──preamble──┬─ control ──first message whole──► accept() returns it
 *	                └─ data ──► hub_attach(), or a refusal by status
 *
 * Anybody can connect, so every stranger is held at arm's length: a byte that
 * cannot belong to a preamble ends it at once, and it has env.peer_timeout_ms
 * from its arrival, however eagerly it trickles.  All strangers and the
 * listening sockets wait in one poll(), so none of them delays another.  At most
 * LISTENER_STRANGERS_MAX are kept; for one more, the oldest that has sent nothing
 * gives way, or else the oldest of all.
 *
 * Only as much is read as belongs to the preamble and the first message; what a
 * control peer sends beyond stays in the socket or goes along in conn_rx.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "error.h"
#include "listener.h"
#include "sock.h"

/* Connections taken from one listening socket before the strangers get their turn. */
#define ACCEPT_BURST 32

/* Close stranger @s; tell env.stranger @why, with the peer's address.  Always 0. */
static int stranger_drop(struct tcp_listener *l, struct stranger *s, int code, const char *why)
{
	struct tern_error e = { 0 };
	char peer[SOCK_TEXT_MAX];

	sock_peer_text(s->fd, peer, sizeof(peer));
	error_session(&e, code, "A connection from %s was turned away: %s", peer, why);
	close(s->fd);
	s->fd = -1;
	if (l->env.stranger)
		l->env.stranger(l->env.opaque, &e);
	return 0;
}

/* Tell stranger @s why by status, then drop it.  Always 0. */
static int stranger_refuse(struct tcp_listener *l, struct stranger *s,
			   const struct frame_status *st, const char *why)
{
	uint8_t buf[FRAME_STATUS_LEN];

	frame_status_put(buf, st);
	(void)send(s->fd, buf, sizeof(buf), MSG_NOSIGNAL | MSG_DONTWAIT);
	return stranger_drop(l, s, -EPROTO, why);
}

/* A place for a new stranger; may drop another. */
static struct stranger *stranger_slot(struct tcp_listener *l)
{
	struct stranger *silent = NULL, *oldest = NULL;

	for (struct stranger *s = l->strangers; s < l->strangers + LISTENER_STRANGERS_MAX; s++) {
		if (s->fd < 0)
			return s;
		if (!oldest || s->arrival < oldest->arrival)
			oldest = s;
		if (!s->len && (!silent || s->arrival < silent->arrival))
			silent = s;
	}
	if (silent)
		oldest = silent;
	stranger_drop(l, oldest, -EBUSY, "too many connections are waiting to say who they are");
	return oldest;
}

/* Take in new connections on listening socket @fd.  0 or -errno with *err. */
static int take_strangers(struct tcp_listener *l, int listen_fd, struct tern_error *err)
{
	for (unsigned i = 0; i < ACCEPT_BURST; i++) {
		int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
		struct stranger *s;

		if (fd < 0) {
			int rc = -errno;

			if (rc == -EMFILE || rc == -ENFILE || rc == -ENOMEM || rc == -ENOBUFS)
				return error_session(err, rc,
						     "Accepting a connection failed: %s; raise the "
						     "limit of open files (ulimit -n)",
						     error_name(rc));
			return 0; /* none left, or this one is gone already */
		}
		sock_tune(fd);
		s = stranger_slot(l);
		s->fd = fd;
		s->len = 0;
		s->arrival = l->arrivals++;
		s->deadline = sock_deadline((int)l->env.peer_timeout_ms);
	}
	return 0;
}

/* Make a connection of @s, whose first message is whole.  0 or -errno with *err. */
static int stranger_to_conn(struct tcp_listener *l, struct stranger *s, struct transport_conn **out,
			    struct tern_error *err)
{
	struct tcp_conn *c;
	int rc = conn_new(l->base.ops, &l->env, s->fd, s->pre.session_id, &c, err);

	if (rc)
		return rc;
	c->rx.len = s->len - FRAME_PREAMBLE_LEN;
	memcpy(c->rx.buf, s->buf + FRAME_PREAMBLE_LEN, c->rx.len);
	s->fd = -1;
	hub_add(l->hub, c);
	*out = &c->base;
	return 1;
}

/* The data preamble of @s is whole: attach it or refuse it.  Always 0. */
static int stranger_to_channel(struct tcp_listener *l, struct stranger *s)
{
	struct frame_status st = hub_attach(l->hub, &s->pre, s->fd);
	char why[96];

	if (!st.code) {
		s->fd = -1;
		return 0;
	}
	if (st.code == FRAME_STATUS_SESSION)
		snprintf(why, sizeof(why), "its data channel belongs to no session here");
	else if (st.code == FRAME_STATUS_TAKEN)
		snprintf(why, sizeof(why), "channel %u of its session is attached already",
			 s->pre.index);
	else
		snprintf(why, sizeof(why), "channel %u of %u does not fit the %u of its session",
			 s->pre.index, s->pre.count, st.value);
	return stranger_refuse(l, s, &st, why);
}

/*
 * Look at what @s has sent so far.  1: *out is a new connection; 0: go on
 * (@s may be gone); -errno with *err: accept() fails.
 */
static int stranger_advance(struct tcp_listener *l, struct stranger *s, struct transport_conn **out,
			    struct tern_error *err)
{
	const struct frame_status version = { FRAME_STATUS_VERSION, FRAME_VERSION };
	const char *bad;
	uint32_t len;

	if (!frame_is_magic(s->buf, s->len))
		return stranger_drop(l, s, -EPROTO, "it does not speak this protocol");
	if (s->len < FRAME_PREAMBLE_LEN)
		return 0;
	bad = frame_preamble_get(s->buf, &s->pre);
	if (bad)
		return stranger_drop(l, s, -EPROTO, bad);
	if (s->pre.version != FRAME_VERSION)
		return stranger_refuse(l, s, &version, "it speaks another framing version");
	if (s->pre.kind == FRAME_KIND_DATA)
		return stranger_to_channel(l, s);
	if (s->len < FRAME_PREAMBLE_LEN + FRAME_CONTROL_LEN)
		return 0;
	len = frame_get_u32(s->buf + FRAME_PREAMBLE_LEN);
	if (!len || len > TRANSPORT_MSG_MAX)
		return stranger_drop(l, s, -EMSGSIZE, "the length of its first message is bad");
	if (s->len < FRAME_PREAMBLE_LEN + FRAME_CONTROL_LEN + len)
		return 0;
	return stranger_to_conn(l, s, out, err);
}

/* Read from stranger @s.  As stranger_advance(). */
static int stranger_read(struct tcp_listener *l, struct stranger *s, struct transport_conn **out,
			 struct tern_error *err)
{
	/* What follows a data preamble is not ours to read. */
	size_t cap = s->len < FRAME_PREAMBLE_LEN ? FRAME_PREAMBLE_LEN : sizeof(s->buf);

	for (;;) {
		ssize_t n = recv(s->fd, s->buf + s->len, cap - s->len, MSG_DONTWAIT);
		int rc;

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return 0;
		if (n <= 0)
			return stranger_drop(l, s, -ECONNRESET,
					     s->len ? "it closed before it had said who it is"
						    : "it closed without a word");
		s->len += (size_t)n;
		rc = stranger_advance(l, s, out, err);
		if (rc || s->fd < 0 || cap == sizeof(s->buf))
			return rc;
		if (s->len == cap)
			cap = sizeof(s->buf);
	}
}

/* Drop strangers whose time is up; returns the earliest deadline that is left, or -1. */
static int64_t strangers_expire(struct tcp_listener *l)
{
	int64_t first = -1, now = sock_now_ms();

	for (struct stranger *s = l->strangers; s < l->strangers + LISTENER_STRANGERS_MAX; s++) {
		if (s->fd >= 0 && s->deadline <= now)
			stranger_drop(l, s, -ETIMEDOUT,
				      s->len ? "it did not say in time who it is"
					     : "it stayed silent");
		if (s->fd >= 0 && (first < 0 || s->deadline < first))
			first = s->deadline;
	}
	return first;
}

/* p[0]: stop; p[1 … nr_fds]: listening sockets; then the strangers (fd -1: ignored). */
static unsigned poll_layout(const struct tcp_listener *l, struct pollfd *p)
{
	unsigned n = 0;

	p[n++] = (struct pollfd){ .fd = l->stop_fd, .events = POLLIN };
	for (unsigned i = 0; i < l->nr_fds; i++)
		p[n++] = (struct pollfd){ .fd = l->fds[i], .events = POLLIN };
	for (unsigned i = 0; i < LISTENER_STRANGERS_MAX; i++)
		p[n++] = (struct pollfd){ .fd = l->strangers[i].fd, .events = POLLIN };
	return n;
}

/* Serve what poll() found.  Strangers first: taking in new ones may replace them. */
static int poll_handle(struct tcp_listener *l, const struct pollfd *p, struct transport_conn **out,
		       struct tern_error *err)
{
	for (unsigned i = 0; i < LISTENER_STRANGERS_MAX; i++) {
		int rc = 0;

		if (p[1 + l->nr_fds + i].revents)
			rc = stranger_read(l, &l->strangers[i], out, err);
		if (rc)
			return rc;
	}
	for (unsigned i = 0; i < l->nr_fds; i++) {
		int rc = 0;

		if (p[1 + i].revents)
			rc = take_strangers(l, l->fds[i], err);
		if (rc)
			return rc;
	}
	return 0;
}

/* See struct transport. */
int listener_accept(struct transport_listener *base, int timeout_ms, struct transport_conn **out,
		    struct tern_error *err)
{
	struct tcp_listener *l = to_listener(base);
	int64_t deadline = sock_deadline(timeout_ms);

	for (;;) {
		struct pollfd p[1 + LISTENER_FDS_MAX + LISTENER_STRANGERS_MAX];
		int64_t first = strangers_expire(l);
		int wait_ms, n, rc;

		if (deadline >= 0 && (first < 0 || deadline < first))
			first = deadline;
		wait_ms = sock_remaining(first);
		n = poll(p, poll_layout(l, p), wait_ms);
		if (n < 0 && errno != EINTR)
			return error_session(err, -errno, "Waiting for connections failed: %s",
					     error_name(-errno));
		if (n > 0 && p[0].revents)
			return error_session(err, -ECANCELED, "Listening was stopped");
		rc = n > 0 ? poll_handle(l, p, out, err) : 0;
		if (rc)
			return rc < 0 ? rc : 0;
		if (n == 0 && deadline >= 0 && !sock_remaining(deadline))
			return error_session(err, -ETIMEDOUT, "Nobody connected within %d ms",
					     timeout_ms);
	}
}
