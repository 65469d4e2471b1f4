/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * The connecting side: control queue first, then the data channels.
 *
 * connect() tries the addresses of a name in the resolver's order; each gets an
 * equal share of the time that is left.  The data channels go to the very
 * address the control queue reached.  They are connected all at once and then
 * their statuses are awaited one after the other, because the destination
 * answers when it has the whole set.
 */

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "conn.h"
#include "error.h"
#include "uri.h"

int status_error(const struct tcp_conn *c, int channel, const struct frame_status *st,
		 struct tern_error *err)
{
	unsigned index = channel < 0 ? 0 : (unsigned)channel;

	switch (st->code) {
	case FRAME_STATUS_VERSION:
		return error_session(
			err, -EPROTONOSUPPORT,
			"The peer %s speaks version %u of the stream framing, this side "
			"version %u; use the same release on both sides",
			c->peer, st->value, FRAME_VERSION);
	case FRAME_STATUS_SESSION:
		return error_channel(
			err, -ENOENT, index,
			"The peer %s does not know the session that channel %u belongs "
			"to; it may have ended there",
			c->peer, index);
	case FRAME_STATUS_TAKEN:
		return error_channel(err, -EBUSY, index,
				     "The peer %s has channel %u attached already", c->peer, index);
	case FRAME_STATUS_INDEX:
	case FRAME_STATUS_COUNT:
		return error_channel(err, -EPROTO, index,
				     "The peer %s refused channel %u of %u: it expects %u channels",
				     c->peer, index, c->nr_channels, st->value);
	default:
		return error_channel(err, -EPROTO, index,
				     "The peer %s answered channel %u with the unknown status %u",
				     c->peer, index, st->code);
	}
}

/* Connect a socket and send the preamble.  Returns the fd or -errno with *err. */
static int open_stream(const struct sockaddr *sa, socklen_t len, const struct frame_preamble *pre,
		       const char *what, int cancel_fd, int64_t deadline, struct tern_error *err)
{
	uint8_t buf[FRAME_PREAMBLE_LEN];
	struct iovec iov = { .iov_base = buf, .iov_len = sizeof(buf) };
	int rc, fd = sock_connect(sa, len, what, cancel_fd, deadline, err);

	if (fd < 0)
		return fd;
	frame_preamble_put(buf, pre);
	rc = sock_send_all(fd, &iov, 1, cancel_fd, deadline);
	if (!rc)
		return fd;
	close(fd);
	return error_session(err, rc, "Greeting the peer over %s failed: %s", what, error_name(rc));
}

/* Control queue to the first address of @list that answers.  fd or -errno with *err. */
static int open_control(const struct addrinfo *list, const struct frame_preamble *pre,
			int cancel_fd, int64_t deadline, struct tern_error *err)
{
	int left_addrs = 0, fd = -EADDRNOTAVAIL;
	struct tern_error why = { 0 };

	for (const struct addrinfo *a = list; a; a = a->ai_next)
		left_addrs++;
	for (const struct addrinfo *a = list; a; a = a->ai_next) {
		int64_t share = sock_deadline(sock_remaining(deadline) / left_addrs--);

		error_clear(&why);
		fd = open_stream(a->ai_addr, a->ai_addrlen, pre, "the control queue", cancel_fd,
				 share, &why);
		if (fd >= 0 || fd == -ECANCELED)
			break;
	}
	if (fd < 0)
		return error_session(err, fd, "%s", why.message);
	return fd;
}

/* A destination to connect to needs a host and a port. */
static int check_target(const struct uri *uri, struct tern_error *err)
{
	char text[URI_HOST_MAX + 32];

	if (uri->scheme == URI_UNIX || (uri->host[0] && strcmp(uri->port, "0")))
		return 0;
	uri_format(uri, text, sizeof(text));
	return error_session(err, -EINVAL,
			     "Cannot connect to \"%s\": it needs a host and a port that is not 0",
			     text);
}

/* As open_control() for either kind of URI. */
static int open_uri(const struct uri *uri, const struct frame_preamble *pre, int cancel_fd,
		    int64_t deadline, struct tern_error *err)
{
	struct addrinfo *list, one = { 0 };
	struct sockaddr_storage sa;
	int fd = check_target(uri, err);

	if (fd)
		return fd;
	if (uri->scheme == URI_UNIX) {
		one.ai_addrlen = sock_unix_address(uri->path, &sa);
		one.ai_addr = (struct sockaddr *)&sa;
		return open_control(&one, pre, cancel_fd, deadline, err);
	}
	fd = sock_resolve(uri, 0, &list, err);
	if (fd)
		return fd;
	fd = open_control(list, pre, cancel_fd, deadline, err);
	freeaddrinfo(list);
	return fd;
}

/* See struct transport. */
int tcp_connect(const struct transport *ops, const struct transport_env *env, const struct uri *uri,
		const uint8_t session_id[TRANSPORT_SESSION_ID_LEN], int cancel_fd,
		struct transport_conn **out, struct tern_error *err)
{
	struct frame_preamble pre = { .version = FRAME_VERSION, .kind = FRAME_KIND_CONTROL };
	struct tcp_conn *c;
	int rc, fd;

	memcpy(pre.session_id, session_id, TRANSPORT_SESSION_ID_LEN);
	fd = open_uri(uri, &pre, cancel_fd, sock_deadline((int)env->peer_timeout_ms), err);
	if (fd < 0)
		return fd;
	rc = conn_new(ops, env, fd, session_id, &c, err);
	if (rc) {
		close(fd);
		return rc;
	}
	if (uri->scheme == URI_UNIX)
		snprintf(c->peer, sizeof(c->peer), "%s", uri->path);
	*out = &c->base;
	return 0;
}

/* Await the status of channel @i.  0 or -errno with *err. */
static int await_status(struct tcp_conn *c, unsigned i, int64_t deadline, struct tern_error *err)
{
	uint8_t buf[FRAME_STATUS_LEN];
	struct frame_status st;
	int rc = sock_recv_all(c->channels[i].fd, buf, sizeof(buf), c->cancel_fd, deadline);

	if (rc == -ECANCELED || conn_is_aborted(c))
		return error_channel(err, -ECANCELED, i, "The connection to %s was aborted",
				     c->peer);
	if (rc == -ETIMEDOUT)
		return error_channel(err, rc, i,
				     "The peer %s did not take in channel %u within %u ms; check "
				     "that it is alive and no firewall limits connections",
				     c->peer, i, c->env.peer_timeout_ms);
	if (rc)
		return error_channel(err, rc, i, "The peer %s closed channel %u at once: %s",
				     c->peer, i, error_name(rc));
	if (!frame_status_get(buf, &st))
		return error_channel(err, -EPROTO, i,
				     "The peer %s answered channel %u with something that is no "
				     "status",
				     c->peer, i);
	return st.code ? status_error(c, (int)i, &st, err) : 0;
}

/* connect_channels - open_channels() of the source. */
int connect_channels(struct tcp_conn *c, unsigned nr, struct tern_error *err)
{
	struct frame_preamble pre = { .version = FRAME_VERSION, .kind = FRAME_KIND_DATA };
	int64_t deadline = sock_deadline((int)c->env.peer_timeout_ms);
	struct sockaddr_storage sa;
	socklen_t len = sizeof(sa);
	int rc = conn_channels_alloc(c, nr, err);

	if (rc)
		return rc;
	if (getpeername(c->fd, (struct sockaddr *)&sa, &len))
		return error_session(err, -errno, "The connection to %s is gone", c->peer);
	memcpy(pre.session_id, c->base.session_id, TRANSPORT_SESSION_ID_LEN);
	pre.count = (uint16_t)nr;
	for (unsigned i = 0; i < nr; i++) {
		int fd;

		pre.index = (uint16_t)i;
		fd = open_stream((struct sockaddr *)&sa, len, &pre, "a data channel", c->cancel_fd,
				 deadline, err);
		if (fd < 0)
			return fd;
		rc = conn_channel_set_fd(c, i, fd);
		if (rc)
			return error_session(err, rc, "The connection to %s was aborted", c->peer);
	}
	for (unsigned i = 0; i < nr; i++) {
		rc = await_status(c, i, deadline, err);
		if (rc)
			return rc;
		zerocopy_start(&c->channels[i]);
	}
	return 0;
}
