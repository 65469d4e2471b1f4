/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * The source's end of a data channel.
 *
 * A WRITE goes out by sendmsg() over the header, the range descriptors and the
 * guest memory itself, TX_MOST bytes at a time; what the socket does not take at
 * once follows as room appears.  Nothing is copied on the way, and header and
 * payload are not cut into small segments.
 *
 *	iov   [ header + ranges ][ guest range ][ guest range ] …
 *
 * A PUSH goes out likewise, over header, message and guest memory.
 *
 * With MSG_ZEROCOPY the head is sent by itself (the kernel would read it from
 * our stack after we returned) with MSG_MORE, the payload after it by reference.
 *
 * A frame that was sent in part makes the stream meaningless: the channel is
 * marked broken and only fails from then on.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <linux/sockios.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include "conn.h"
#include "error.h"

/*
 * How much one sendmsg() takes at most, bytes, unless it does not copy them: some 0.2 ms.  As
 * for receives (channel_rx.c), a kernel without preemption gives the CPU to nobody else
 * before the call is over, and to a peer on this host a call may go on for as long as the peer
 * makes room: a vCPU stood still for 6 ms.
 */
#define TX_MOST (512u << 10)

/*
 * Others may have their turn while so many bytes or more are sent, and after that: not after a
 * page that a vCPU waits for, behind which there may be the next.
 */
#define TX_LONG (64u << 10)

/* So often they have it. */
#define YIELD_NS 1000000u

/* Payload below this many bytes is copied: pinning pages costs more. */
#define ZEROCOPY_MIN_BYTES (64u << 10)

/*
 * channel_lost - put into words that @code ended the channel while @doing.
 *
 * Returns @code, or -ECANCELED if our own abort() or revoke() was the cause.
 */
int channel_lost(struct tcp_channel *ch, int code, const char *doing, struct tern_error *err)
{
	struct tcp_conn *c = ch->conn;

	if (conn_is_aborted(c) || atomic_load(&c->revoked) || code == -ECANCELED)
		return error_channel(err, -ECANCELED, ch->base.index,
				     "Channel %u with %s was shut down", ch->base.index, c->peer);
	if (code == -EPIPE || code == -ESHUTDOWN)
		code = -ECONNRESET;
	if (code == -ECONNRESET)
		return error_channel(err, code, ch->base.index,
				     "The peer %s closed channel %u during %s; it or its host may "
				     "have died",
				     c->peer, ch->base.index, doing);
	if (code == -ETIMEDOUT)
		return error_channel(
			err, code, ch->base.index,
			"No byte moved on channel %u with %s for %u ms during %s; check "
			"the peer and the network",
			ch->base.index, c->peer, CHANNEL_IDLE_SLICES * c->env.peer_timeout_ms,
			doing);
	return error_channel(err, code, ch->base.index, "Channel %u with %s failed during %s: %s",
			     ch->base.index, c->peer, doing, error_name(code));
}

/*
 * channel_wait - wait for @events on the channel's socket, as long as bytes move.
 *
 * The kernel may still be sending what it took from us; as long as its queue
 * shrinks, the peer is alive.  Returns the revents, or -errno with *err.
 */
int channel_wait(struct tcp_channel *ch, short events, const char *doing, struct tern_error *err)
{
	int slice_ms = (int)ch->conn->env.peer_timeout_ms;
	int before = -1, queued = 0;

	figure_add(&ch->fig.stalls, 1);
	for (int idle = 0; idle < CHANNEL_IDLE_SLICES;) {
		int rc = sock_wait(ch->fd, events, ch->conn->cancel_fd, sock_deadline(slice_ms));

		if (rc > 0)
			return rc;
		if (rc != -ETIMEDOUT)
			return channel_lost(ch, rc, doing, err);
		if (ioctl(ch->fd, SIOCOUTQ, &queued))
			queued = 0;
		idle = queued == before || !queued ? idle + 1 : 1;
		before = queued;
	}
	return channel_lost(ch, -ETIMEDOUT, doing, err);
}

/*
 * channel_give_way - let others have the CPU (sched_yield(2)), if that was YIELD_NS ago.
 *
 * The channel's thread, after a call that took long.  Without it they would have to wait for the timer's tick, 4 ms and often twice that: the
 * scheduler looks only then whether a thread that is not interrupted has had its share.
 */
void channel_give_way(struct tcp_channel *ch)
{
	uint64_t now = sock_now_ns();

	if (now - ch->yielded_ns < YIELD_NS)
		return;
	sched_yield();
	ch->yielded_ns = sock_now_ns();
}

/* Wait for room.  The peer never half-closes, so its end of stream is a loss. */
static int wait_for_room(struct tcp_channel *ch, const char *doing, struct tern_error *err)
{
	int rc = channel_wait(ch, POLLOUT | POLLRDHUP, doing, err);

	if (rc < 0)
		return rc;
	if (rc & POLLRDHUP)
		return channel_lost(ch, -ECONNRESET, doing, err);
	if ((rc & POLLERR) && ch->zc.pending)
		zerocopy_drain(ch);
	return 0;
}

/* sendmsg() of the first @most bytes.  As sendmsg(), with -errno. */
static ssize_t send_some(struct tcp_channel *ch, struct iovec *iov, unsigned nr, size_t most,
			 int flags)
{
	struct sock_limit limit;
	struct msghdr msg = { .msg_iov = iov };

	msg.msg_iovlen = sock_limit(iov, nr, most, &limit);
	if (msg.msg_iovlen < nr || (limit.last && limit.last->iov_len < limit.len))
		flags |= MSG_MORE; /* no small segment at the end of what is sent now */
	ssize_t n = sendmsg(ch->fd, &msg, flags | MSG_NOSIGNAL | MSG_DONTWAIT);

	if (n < 0)
		n = -errno;
	sock_limit_undo(&limit);
	return n;
}

/*
 * Send all of @iov, of which the channel may be left broken on failure.
 * @flags: MSG_MORE, MSG_ZEROCOPY.
 */
static int channel_send(struct tcp_channel *ch, struct iovec *iov, unsigned nr, int flags,
			const char *doing, struct tern_error *err)
{
	bool is_long = sock_iov_bytes(iov, nr) >= TX_LONG;

	while (nr) {
		size_t most = flags & MSG_ZEROCOPY ? SIZE_MAX : TX_MOST;
		int rc = 0;
		ssize_t n = send_some(ch, iov, nr, most, flags);

		if (n > 0) {
			if (is_long)
				channel_give_way(ch);
			figure_add(&ch->fig.bytes, (uint64_t)n);
			if (flags & MSG_ZEROCOPY)
				zerocopy_sent(ch, (size_t)n);
			iov = sock_iov_advance(iov, &nr, (size_t)n);
			if (!zerocopy_room(ch))
				flags &= ~MSG_ZEROCOPY;
			continue;
		}
		if (n == -ENOBUFS && (flags & MSG_ZEROCOPY))
			flags &= ~MSG_ZEROCOPY; /* locked-memory limit: copy instead */
		else if (n == -EAGAIN)
			rc = wait_for_room(ch, doing, err);
		else if (n != -EINTR)
			rc = channel_lost(ch, (int)n, doing, err);
		if (rc) {
			ch->broken = true;
			return rc;
		}
	}
	return 0;
}

/* What every operation looks at first. */
static int channel_usable(struct tcp_channel *ch, struct tern_error *err)
{
	if (conn_is_aborted(ch->conn))
		return channel_lost(ch, -ECANCELED, "sending", err);
	if (ch->broken)
		return error_channel(err, -ECONNRESET, ch->base.index,
				     "Channel %u with %s broke off earlier", ch->base.index,
				     ch->conn->peer);
	return 0;
}

/* Range @r of what is to be done (@what) is not ours.  -EINVAL with *err. */
static int range_outside(struct tcp_channel *ch, const char *what, const struct transport_range *r,
			 struct tern_error *err)
{
	return error_channel(err, -EINVAL, ch->base.index,
			     "Cannot %s region %u offset %llu length %llu: it is outside the "
			     "exposed memory",
			     what, r->region, (unsigned long long)r->offset,
			     (unsigned long long)r->len);
}

/*
 * Lay out a WRITE: descriptors into @head, guest memory into iov[1 … nr].
 * Returns the payload's bytes, or -EINVAL with *err.
 */
static int64_t write_layout(struct tcp_channel *ch, const struct transport_range *ranges,
			    unsigned nr, uint8_t *head, struct iovec *iov, struct tern_error *err)
{
	struct tcp_conn *c = ch->conn;
	int64_t payload = 0;

	if (nr < 1 || nr > TRANSPORT_WRITE_RANGES_MAX)
		return error_channel(err, -EINVAL, ch->base.index,
				     "A write of %u ranges is not possible; 1 to %u are", nr,
				     TRANSPORT_WRITE_RANGES_MAX);
	for (unsigned i = 0; i < nr; i++) {
		const struct transport_range *r = &ranges[i];

		if (!conn_range_ok(c, r) || r->len > UINT32_MAX)
			return range_outside(ch, "write", r, err);
		frame_range_put(head + FRAME_HEADER_LEN + i * FRAME_RANGE_LEN, r);
		iov[i + 1].iov_base = (char *)c->mem[r->region].hva + r->offset;
		iov[i + 1].iov_len = r->len;
		payload += (int64_t)r->len;
	}
	frame_header_put(head,
			 &(struct frame_header){ .type = FRAME_WRITE, .nr_ranges = (uint8_t)nr });
	iov[0].iov_base = head;
	iov[0].iov_len = FRAME_HEADER_LEN + nr * FRAME_RANGE_LEN;
	return payload;
}

/* See struct transport. */
int channel_write(struct transport_channel *base, const struct transport_range *ranges, unsigned nr,
		  struct tern_error *err)
{
	struct tcp_channel *ch = to_channel(base);
	struct iovec iov[TRANSPORT_WRITE_RANGES_MAX + 1];
	uint8_t head[FRAME_WRITE_HEAD_MAX];
	int64_t payload;
	int rc = channel_usable(ch, err);

	if (rc)
		return rc;
	payload = write_layout(ch, ranges, nr, head, iov, err);
	if (payload < 0)
		return (int)payload;
	if (ch->zc.pending)
		zerocopy_drain(ch);
	if (ch->zc.on && payload >= ZEROCOPY_MIN_BYTES && zerocopy_room(ch)) {
		rc = channel_send(ch, iov, 1, MSG_MORE, "a write", err);
		if (!rc)
			rc = channel_send(ch, iov + 1, nr, MSG_ZEROCOPY, "a write", err);
	} else {
		rc = channel_send(ch, iov, nr + 1, 0, "a write", err);
	}
	if (!rc)
		figure_add(&ch->fig.writes, nr);
	return rc;
}

/* See struct transport. */
int channel_notify(struct transport_channel *base, const void *msg, size_t len,
		   struct tern_error *err)
{
	struct tcp_channel *ch = to_channel(base);
	uint8_t head[FRAME_HEADER_LEN];
	struct iovec iov[2] = {
		{ .iov_base = head, .iov_len = sizeof(head) },
		{ .iov_base = (void *)msg, .iov_len = len },
	};
	int rc = channel_usable(ch, err);

	if (rc)
		return rc;
	if (len < 1 || len > TRANSPORT_NOTIFY_MAX)
		return error_channel(err, -EMSGSIZE, base->index,
				     "A notify of %zu bytes cannot be sent; 1 to %u can", len,
				     TRANSPORT_NOTIFY_MAX);
	frame_header_put(head,
			 &(struct frame_header){ .type = FRAME_NOTIFY, .length = (uint32_t)len });
	return channel_send(ch, iov, 2, 0, "a notify", err);
}

/* See struct transport.  The kernel copies the memory: nothing is read after the return. */
int channel_push(struct transport_channel *base, const void *msg, size_t len,
		 const struct transport_range *range, struct tern_error *err)
{
	struct tcp_channel *ch = to_channel(base);
	struct tcp_conn *c = ch->conn;
	uint8_t head[FRAME_HEADER_LEN];
	struct iovec iov[3] = {
		{ .iov_base = head, .iov_len = sizeof(head) },
		{ .iov_base = (void *)msg, .iov_len = len },
		{ .iov_len = range->len },
	};
	int rc = channel_usable(ch, err);

	if (!rc)
		rc = transport_push_check(&c->env, base->index, len, range->len, err);
	if (!rc && !conn_range_ok(c, range))
		rc = range_outside(ch, "push", range, err);
	if (rc)
		return rc;
	iov[2].iov_base = (char *)c->mem[range->region].hva + range->offset;
	frame_header_put(head, &(struct frame_header){ .type = FRAME_PUSH,
						       .length = (uint32_t)len,
						       .contents = range->len });
	return channel_send(ch, iov, 3, 0, "a push", err);
}

/* Receive exactly one record from the destination.  0 or -errno with *err. */
static int channel_recv_header(struct tcp_channel *ch, uint8_t *buf, struct tern_error *err)
{
	size_t have = 0;

	while (have < FRAME_HEADER_LEN) {
		ssize_t n = recv(ch->fd, buf + have, FRAME_HEADER_LEN - have, MSG_DONTWAIT);
		int rc = 0;

		if (n > 0) {
			have += (size_t)n;
			continue;
		}
		if (!n)
			return channel_lost(ch, -ECONNRESET, "a fence", err);
		if (errno == EAGAIN)
			rc = channel_wait(ch, POLLIN, "a fence", err);
		else if (errno != EINTR)
			rc = channel_lost(ch, -errno, "a fence", err);
		if (rc < 0)
			return rc;
		if ((rc & POLLERR) && ch->zc.pending)
			zerocopy_drain(ch);
	}
	return 0;
}

/* Wait until the kernel no longer reads the memory of any write of this channel. */
static int fence_zerocopy(struct tcp_channel *ch, struct tern_error *err)
{
	int rc = zerocopy_drain(ch);

	while (!rc && ch->zc.pending) {
		uint32_t before = ch->zc.pending;

		rc = channel_wait(ch, 0, "a fence", err); /* POLLERR is always reported */
		if (rc < 0)
			return rc;
		rc = zerocopy_drain(ch);
		if (!rc && ch->zc.pending == before)
			rc = -ECONNRESET; /* woken by the end of the connection */
	}
	return rc ? channel_lost(ch, rc, "a fence", err) : 0;
}

/* See struct transport. */
int channel_fence(struct transport_channel *base, struct tern_error *err)
{
	struct tcp_channel *ch = to_channel(base);
	struct frame_header h = { .type = FRAME_FENCE };
	uint8_t buf[FRAME_HEADER_LEN];
	struct iovec iov = { .iov_base = buf, .iov_len = sizeof(buf) };
	const char *bad;
	int rc = channel_usable(ch, err);

	if (rc)
		return rc;
	h.seq = ++ch->fence_seq;
	frame_header_put(buf, &h);
	rc = channel_send(ch, &iov, 1, 0, "a fence", err);
	if (rc)
		return rc;
	rc = channel_recv_header(ch, buf, err);
	if (rc) {
		ch->broken = true;
		return rc;
	}
	bad = frame_header_get(buf, &h);
	if (!bad && h.type != FRAME_FENCE_ACK)
		bad = "type";
	if (!bad && h.seq != ch->fence_seq)
		bad = "sequence";
	if (bad) {
		ch->broken = true;
		return error_channel(err, -EPROTO, base->index,
				     "The peer %s answered fence %llu of channel %u with a bad %s "
				     "(type %u, sequence %llu)",
				     ch->conn->peer, (unsigned long long)ch->fence_seq, base->index,
				     bad, h.type, (unsigned long long)h.seq);
	}
	return fence_zerocopy(ch, err);
}

/* channel_end - tell the peer that the channel is done, if its stream is whole.  Best effort. */
void channel_end(struct tcp_channel *ch, int64_t deadline)
{
	uint8_t buf[FRAME_HEADER_LEN];
	struct iovec iov = { .iov_base = buf, .iov_len = sizeof(buf) };

	if (ch->fd < 0 || ch->broken)
		return;
	frame_header_put(buf, &(struct frame_header){ .type = FRAME_END });
	(void)sock_send_all(ch->fd, &iov, 1, -1, deadline);
	(void)shutdown(ch->fd, SHUT_WR);
}
