/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * A connection: its life and its control queue.
 *
 * The control queue is one socket.  A record is a u32 length and a message;
 * length 0 says that the sender closes in order, so that a peer that died (its
 * kernel closes the socket just the same) is never mistaken for one that was
 * done.  Received bytes gather in conn_rx until a record is whole, which makes
 * recv() restartable after a timeout.
 *
 * abort() sets a flag, makes an eventfd readable that every wait watches, and
 * shuts down all sockets.  Sockets are closed only by close(), when no other
 * call is running, so a file descriptor is never reused under a thread.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <linux/sockios.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include "conn.h"
#include "error.h"

/* How long close() waits for the peer's kernel to have the last bytes, milliseconds. */
#define CLOSE_LINGER_MS 1000

bool conn_range_ok(const struct tcp_conn *c, const struct transport_range *r)
{
	uint64_t size;

	if (r->region >= c->nr_mem || !r->len)
		return false;
	size = c->mem[r->region].size;
	return r->len <= size && r->offset <= size - r->len;
}

int conn_new(const struct transport *ops, const struct transport_env *env, int fd,
	     const uint8_t *session_id, struct tcp_conn **out, struct tern_error *err)
{
	struct tcp_conn *c = calloc(1, sizeof(*c));
	int rc;

	if (!c)
		return error_session(err, -ENOMEM, "No memory for a connection");
	c->base.ops = ops;
	c->env = *env;
	memcpy(c->base.session_id, session_id, TRANSPORT_SESSION_ID_LEN);
	for (unsigned i = 0; i < TRANSPORT_CHANNELS_MAX; i++)
		c->attached[i] = -1;
	c->cancel_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (c->cancel_fd < 0)
		goto free_conn;
	c->attach_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (c->attach_fd < 0)
		goto close_cancel;
	pthread_mutex_init(&c->lock, NULL);
	c->fd = fd;
	sock_peer_text(fd, c->peer, sizeof(c->peer));
	*out = c;
	return 0;

close_cancel:
	close(c->cancel_fd);
free_conn:
	rc = -errno;
	free(c);
	return error_session(err, rc, "Making an eventfd for a connection failed: %s",
			     error_name(rc));
}

void conn_free(struct tcp_conn *c)
{
	for (unsigned i = 0; i < c->nr_channels; i++) {
		if (c->channels[i].fd >= 0)
			close(c->channels[i].fd);
		pthread_mutex_destroy(&c->channels[i].place_lock);
	}
	for (unsigned i = 0; i < TRANSPORT_CHANNELS_MAX; i++)
		if (c->attached[i] >= 0)
			close(c->attached[i]);
	free(c->channels);
	free(c->mem);
	close(c->fd);
	close(c->attach_fd);
	close(c->cancel_fd);
	pthread_mutex_destroy(&c->lock);
	free(c);
}

int conn_channels_alloc(struct tcp_conn *c, unsigned nr, struct tern_error *err)
{
	struct tcp_channel *v;

	if (c->nr_channels || nr < 1 || nr > TRANSPORT_CHANNELS_MAX)
		return error_session(err, -EINVAL,
				     "Cannot open %u channels to %s: 1 to %u are possible, once",
				     nr, c->peer, TRANSPORT_CHANNELS_MAX);
	v = calloc(nr, sizeof(*v));
	if (!v)
		return error_session(err, -ENOMEM, "No memory for %u channels", nr);
	for (unsigned i = 0; i < nr; i++) {
		v[i].base.ops = c->base.ops;
		v[i].base.index = i;
		v[i].conn = c;
		v[i].fd = -1;
		pthread_mutex_init(&v[i].place_lock, NULL);
		v[i].rx_most = CHANNEL_RX_FIRST;
	}
	pthread_mutex_lock(&c->lock);
	c->channels = v;
	c->nr_channels = nr;
	pthread_mutex_unlock(&c->lock);
	return 0;
}

int conn_channel_set_fd(struct tcp_conn *c, unsigned i, int fd)
{
	int rc = 0;

	pthread_mutex_lock(&c->lock);
	c->channels[i].fd = fd;
	if (conn_is_aborted(c)) {
		shutdown(fd, SHUT_RDWR);
		rc = -ECANCELED;
	}
	pthread_mutex_unlock(&c->lock);
	return rc;
}

int conn_expose(struct transport_conn *conn, const struct transport_memory *mem, unsigned nr,
		struct tern_error *err)
{
	struct tcp_conn *c = to_conn(conn);
	struct transport_memory *v = calloc(nr ? nr : 1, sizeof(*v));

	if (!v)
		return error_session(err, -ENOMEM, "No memory for a list of %u regions", nr);
	for (unsigned i = 0; i < nr; i++)
		v[i] = mem[i];
	free(c->mem);
	c->mem = v;
	c->nr_mem = nr;
	return 0;
}

int conn_send(struct transport_conn *conn, const void *msg, size_t len, int timeout_ms,
	      struct tern_error *err)
{
	struct tcp_conn *c = to_conn(conn);
	uint8_t head[FRAME_CONTROL_LEN];
	struct iovec iov[2] = {
		{ .iov_base = head, .iov_len = sizeof(head) },
		{ .iov_base = (void *)msg, .iov_len = len },
	};
	int rc;

	if (len < 1 || len > TRANSPORT_MSG_MAX)
		return error_session(err, -EMSGSIZE,
				     "A control message of %zu bytes cannot be sent; 1 to %u can",
				     len, TRANSPORT_MSG_MAX);
	if (conn_is_aborted(c))
		return error_session(err, -ECANCELED, "The connection to %s was aborted", c->peer);
	if (c->tx_broken)
		return error_session(err, -ECONNRESET, "The control queue to %s broke off earlier",
				     c->peer);
	frame_put_u32(head, (uint32_t)len);
	rc = sock_send_all(c->fd, iov, 2, c->cancel_fd, sock_deadline(timeout_ms));
	if (!rc)
		return 0;
	c->tx_broken = true;
	if (rc == -ECANCELED || conn_is_aborted(c))
		return error_session(err, -ECANCELED, "The connection to %s was aborted", c->peer);
	if (rc == -ETIMEDOUT)
		return error_session(err, rc,
				     "The peer %s took no control message for %d ms; check that it "
				     "is alive and reachable",
				     c->peer, timeout_ms);
	return error_session(err, rc, "Sending a control message to %s failed: %s", c->peer,
			     error_name(rc));
}

/*
 * Take a whole record out of conn_rx.  Its length; -EAGAIN if it is not all
 * there; 0 for an orderly close, which stays, so that it is found again.
 */
static long conn_rx_take(struct tcp_conn *c, void *buf, size_t cap, struct tern_error *err)
{
	struct conn_rx *rx = &c->rx;
	struct frame_status st;
	uint32_t len;

	if (rx->len < FRAME_CONTROL_LEN)
		return -EAGAIN;
	len = frame_get_u32(rx->buf);
	if (!len)
		return 0;
	if (len == FRAME_STATUS_MARK) {
		if (rx->len < FRAME_STATUS_LEN)
			return -EAGAIN;
		(void)frame_status_get(rx->buf, &st);
		return status_error(c, -1, &st, err);
	}
	if (len > TRANSPORT_MSG_MAX || len > cap)
		return error_session(err, -EMSGSIZE,
				     "The peer %s sent a control message of %u bytes; at most %zu "
				     "are allowed",
				     c->peer, len,
				     cap < TRANSPORT_MSG_MAX ? cap : TRANSPORT_MSG_MAX);
	if (rx->len < FRAME_CONTROL_LEN + len)
		return -EAGAIN;
	memcpy(buf, rx->buf + FRAME_CONTROL_LEN, len);
	rx->len -= FRAME_CONTROL_LEN + len;
	memmove(rx->buf, rx->buf + FRAME_CONTROL_LEN + len, rx->len);
	return (long)len;
}

/* Read what there is into conn_rx, waiting for the first byte.  0 or -errno with *err. */
static int conn_rx_fill(struct tcp_conn *c, int64_t deadline, struct tern_error *err)
{
	struct conn_rx *rx = &c->rx;

	for (;;) {
		ssize_t n = recv(c->fd, rx->buf + rx->len, sizeof(rx->buf) - rx->len, MSG_DONTWAIT);
		int rc;

		if (n > 0) {
			rx->len += (size_t)n;
			return 0;
		}
		rc = n ? -errno : -ECONNRESET;
		if (conn_is_aborted(c))
			return error_session(err, -ECANCELED, "The connection to %s was aborted",
					     c->peer);
		if (!n)
			return error_session(err, rc,
					     "The peer %s closed the connection without a word; it "
					     "or its host may have died",
					     c->peer);
		if (rc == -EINTR)
			continue;
		if (rc != -EAGAIN)
			return error_session(err, rc,
					     "Receiving control messages from %s failed: %s",
					     c->peer, error_name(rc));
		rc = sock_wait(c->fd, POLLIN, c->cancel_fd, deadline);
		if (rc < 0)
			return rc == -ETIMEDOUT
				       ? rc
				       : error_session(err, rc, "The connection to %s was aborted",
						       c->peer);
	}
}

long conn_recv(struct transport_conn *conn, void *buf, size_t cap, int timeout_ms,
	       struct tern_error *err)
{
	struct tcp_conn *c = to_conn(conn);
	int64_t deadline = sock_deadline(timeout_ms);

	for (;;) {
		long n;
		int rc;

		if (conn_is_aborted(c))
			return error_session(err, -ECANCELED, "The connection to %s was aborted",
					     c->peer);
		n = conn_rx_take(c, buf, cap, err);
		if (n != -EAGAIN)
			return n;
		rc = conn_rx_fill(c, deadline, err);
		if (rc == -ETIMEDOUT)
			return error_session(err, rc,
					     "No control message came from %s within %d ms",
					     c->peer, timeout_ms);
		if (rc)
			return rc;
	}
}

void conn_revoke(struct transport_conn *conn)
{
	struct tcp_conn *c = to_conn(conn);
	unsigned nr;

	atomic_store(&c->revoked, true);
	pthread_mutex_lock(&c->lock);
	nr = c->nr_channels;
	for (unsigned i = 0; i < TRANSPORT_CHANNELS_MAX; i++)
		if (c->attached[i] >= 0)
			shutdown(c->attached[i], SHUT_RDWR);
	for (unsigned i = 0; i < c->nr_channels; i++)
		if (c->channels[i].fd >= 0)
			shutdown(c->channels[i].fd, SHUT_RDWR);
	pthread_mutex_unlock(&c->lock);
	/*
	 * A serve() that took place_lock before the flag was set is waited for
	 * here; one that takes it later sees the flag (see channel_rx.c).  The
	 * array never changes once it is there.
	 */
	for (unsigned i = 0; i < nr; i++) {
		pthread_mutex_lock(&c->channels[i].place_lock);
		pthread_mutex_unlock(&c->channels[i].place_lock);
	}
}

void conn_abort(struct transport_conn *conn)
{
	struct tcp_conn *c = to_conn(conn);

	pthread_mutex_lock(&c->lock);
	if (!conn_is_aborted(c)) {
		atomic_store(&c->aborted, true);
		(void)eventfd_write(c->cancel_fd, 1);
		shutdown(c->fd, SHUT_RDWR);
		for (unsigned i = 0; i < c->nr_channels; i++)
			if (c->channels[i].fd >= 0)
				shutdown(c->channels[i].fd, SHUT_RDWR);
		for (unsigned i = 0; i < TRANSPORT_CHANNELS_MAX; i++)
			if (c->attached[i] >= 0)
				shutdown(c->attached[i], SHUT_RDWR);
	}
	pthread_mutex_unlock(&c->lock);
}

/*
 * Let the peer's kernel take what was sent on @fd, and throw away what it sent
 * to us: a socket closed with unread data resets the connection, which could
 * destroy our last message on its way.  Does not wait for the peer's program: on
 * a UNIX socket what was sent is in the peer's queue already.
 */
static void conn_linger(int fd, int64_t deadline)
{
	uint8_t sink[4096];
	int left = 0, domain = AF_UNIX;
	socklen_t size = sizeof(domain);

	(void)getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size);
	(void)shutdown(fd, SHUT_WR);
	for (;;) {
		ssize_t n = recv(fd, sink, sizeof(sink), MSG_DONTWAIT);

		if (n > 0)
			continue;
		if (!n || errno != EAGAIN || domain == AF_UNIX || ioctl(fd, SIOCOUTQ, &left) ||
		    !left)
			return;
		if (!sock_remaining(deadline))
			return;
		(void)sock_wait(fd, POLLIN, -1, sock_deadline(2));
	}
}

void conn_close(struct transport_conn *conn)
{
	static const uint8_t goodbye[FRAME_CONTROL_LEN]; /* length 0 */
	struct tcp_conn *c = to_conn(conn);
	struct iovec iov = { .iov_base = (void *)goodbye, .iov_len = sizeof(goodbye) };
	int64_t deadline = sock_deadline(CLOSE_LINGER_MS);

	if (c->hub)
		hub_remove(c);
	if (!conn_is_aborted(c)) {
		for (unsigned i = 0; !c->hub && i < c->nr_channels; i++)
			channel_end(&c->channels[i], deadline);
		if (!c->tx_broken && !sock_send_all(c->fd, &iov, 1, -1, deadline))
			conn_linger(c->fd, deadline);
	}
	if (c->hub)
		hub_put(c->hub);
	conn_free(c);
}
