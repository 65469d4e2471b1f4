/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * The destination's end of a data channel.
 *
 * serve() receives straight into guest memory.  Towards the end of a payload,
 * behind the guest ranges, recvmsg() also offers a small staging buffer, so the tail
 * of one payload and the head of the next frame come in one call:
 *
 *	iov   [ guest range, rest ][ guest range ] … [ staging ]
 *
 * Bytes of the next payload that came along in the staging buffer (at most its
 * size per frame) are copied to their place; all others are placed by the kernel.
 * A frame's descriptors are all checked, and the session is asked (env.admit), before
 * its first byte is placed.
 *
 * The payload of a PUSH goes the same way into the buffer of serve()'s caller.  Where
 * pushes are welcome the staging buffer takes a whole push of a page: it costs one
 * recvmsg() and a copy of 4 KiB, which are less than a second recvmsg().
 *
 * Invariant 4, no placement after revoke():
 *
 *	serve()                              revoke()
 *	lock(place_lock)                     revoked = true
 *	if (revoked) unlock, leave           lock(place_lock)
 *	recvmsg(MSG_DONTWAIT) / memcpy       unlock(place_lock)
 *	unlock(place_lock)
 *
 * Guest memory is written only between that lock and unlock.  If serve() takes
 * the lock before revoke() does, revoke() waits for its unlock; if after, the
 * mutex makes the flag visible and serve() leaves without writing.  So when
 * revoke() returns, no thread is writing and none will.  The wait is short,
 * because no receive blocks in the kernel.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <string.h>
#include "conn.h"
#include "error.h"

/* Staging offered behind a payload: the longest head of a WRITE, unless pushes may come. */
#define STAGE_TAIL FRAME_WRITE_HEAD_MAX

/* The staging buffer is offered once less than so much of the payload is left, bytes. */
#define STAGE_NEAR (64u << 10)

/*
 * How much one recvmsg() takes at most, bytes: so much that it is back in RX_LONG_NS.
 *
 * A kernel without preemption gives the CPU to nobody else before it has copied all that is
 * there, several MiB perhaps, to pages that it has to find first: a vCPU that shares the CPU
 * stood still for 20 ms.  The time is that of the clock, so where others want the CPU it gets
 * less at once.  After one that took long others have their turn, see channel_give_way().
 *
 * Both cost speed where this side's senders are among the others: yielding after each of them,
 * with 0.4 ms for one, took 15 % of it.
 */
#define RX_LEAST (32u << 10)
#define RX_MOST (4u << 20)
#define RX_LONG_NS 500000u

/* Limits of SO_RCVLOWAT while payload is awaited, bytes. */
#define LOWAT_MIN (64u << 10)
#define LOWAT_MAX (1u << 20)

_Static_assert(STAGE_TAIL <= STAGE_MAX, "the head of a WRITE has to fit");
_Static_assert(FRAME_HEADER_LEN + TRANSPORT_NOTIFY_MAX <= STAGE_MAX, "a NOTIFY has to fit");

/* True between the first and the last byte of a frame. */
static bool mid_frame(const struct tcp_channel *ch)
{
	return ch->payload_left || ch->stage_len;
}

/* Room in the staging buffer: @want bytes in all, or more if they are there. */
static void stage_prepare(struct tcp_channel *ch, size_t want, struct iovec *iov)
{
	size_t tail = ch->conn->env.push ? STAGE_MAX : STAGE_TAIL;
	size_t cap = want > tail ? want : tail;

	if (ch->stage_at) {
		memmove(ch->stage, ch->stage + ch->stage_at, ch->stage_len);
		ch->stage_at = 0;
	}
	iov->iov_base = ch->stage + ch->stage_len;
	iov->iov_len = cap - ch->stage_len;
}

/* Account for @n received bytes: payload first, the rest is in the staging buffer. */
static void rx_account(struct tcp_channel *ch, size_t n)
{
	size_t placed = n < ch->payload_left ? n : ch->payload_left;
	unsigned nr = ch->iov_nr - ch->iov_at;
	struct iovec *at = sock_iov_advance(&ch->iov[ch->iov_at], &nr, placed);

	figure_add(&ch->fig.bytes, n);
	ch->iov_at = (unsigned)(at - ch->iov);
	ch->payload_left -= placed;
	ch->stage_len += n - placed;
}

/* Fit the size of a receive to what the last one, of @n bytes, took. */
static void rx_fit(struct tcp_channel *ch, size_t n, uint64_t ns)
{
	ch->rx_was_long = ns > RX_LONG_NS / 2;
	if (ns > RX_LONG_NS)
		ch->rx_most = ch->rx_most / 2 > RX_LEAST ? ch->rx_most / 2 : RX_LEAST;
	else if (n >= ch->rx_most && ns < RX_LONG_NS / 2)
		ch->rx_most = ch->rx_most * 2 < RX_MOST ? ch->rx_most * 2 : RX_MOST;
}

/* recvmsg() into the first of @nr ranges at @iov.  As recvmsg(), with -errno. */
static ssize_t rx_some(struct tcp_channel *ch, struct iovec *iov, unsigned nr)
{
	struct sock_limit limit;
	struct msghdr msg = {
		.msg_iov = iov,
		.msg_iovlen = sock_limit(iov, nr, ch->rx_most, &limit),
	};
	uint64_t begin = sock_now_ns();
	ssize_t n = recvmsg(ch->fd, &msg, MSG_DONTWAIT);

	if (n < 0)
		n = -errno;
	else
		rx_fit(ch, (size_t)n, sock_now_ns() - begin);
	sock_limit_undo(&limit);
	return n;
}

/* The same for what @ch expects, under place_lock; -ECANCELED if revoked. */
static ssize_t rx_once(struct tcp_channel *ch, size_t want)
{
	ssize_t n = -ECANCELED;

	pthread_mutex_lock(&ch->place_lock);
	if (!atomic_load(&ch->conn->revoked)) {
		stage_prepare(ch, want, &ch->iov[ch->iov_nr]);
		n = rx_some(ch, &ch->iov[ch->iov_at],
			    ch->iov_nr - ch->iov_at + (ch->payload_left < STAGE_NEAR));
	}
	pthread_mutex_unlock(&ch->place_lock);
	return n;
}

/* The stream ended or failed with @code. */
static int rx_lost(struct tcp_channel *ch, int code, struct tern_error *err)
{
	return channel_lost(ch, code, mid_frame(ch) ? "the receipt of a frame" : "waiting for work",
			    err);
}

/*
 * Before waiting for payload: do not wake for less than LOWAT_MAX bytes of it, or than
 * what is left.  A wake-up per segment costs more than the copy; on loopback with two
 * cores this is a sixth of the receiver's time (SO_RCVLOWAT, socket(7); since Linux 4.20
 * TCP also raises the window for it, and wakes anyway when memory is short).  UNIX
 * sockets take the option and ignore it.
 */
static void rx_set_lowat(struct tcp_channel *ch)
{
	int lowat = ch->payload_left < LOWAT_MIN   ? 1
		    : ch->payload_left < LOWAT_MAX ? (int)ch->payload_left
						   : (int)LOWAT_MAX;

	if (lowat == ch->lowat)
		return;
	if (setsockopt(ch->fd, SOL_SOCKET, SO_RCVLOWAT, &lowat, sizeof(lowat)) == 0)
		ch->lowat = lowat;
}

/*
 * Receive something: payload into place, the rest into staging, of which @want
 * bytes are needed.  Waits without limit between frames (the source may have
 * nothing to send; the engine watches over the peer), else as long as bytes move.
 */
static int rx_fill(struct tcp_channel *ch, size_t want, struct tern_error *err)
{
	for (;;) {
		ssize_t n;
		int rc;

		if (conn_is_aborted(ch->conn))
			return rx_lost(ch, -ECANCELED, err);
		n = rx_once(ch, want);
		if (n > 0) {
			rx_account(ch, (size_t)n);
			if (ch->rx_was_long)
				channel_give_way(ch);
			return 0;
		}
		if (n == -EINTR)
			continue;
		if (n != -EAGAIN)
			return rx_lost(ch, n ? (int)n : -ECONNRESET, err);
		rx_set_lowat(ch);
		if (mid_frame(ch))
			rc = channel_wait(ch, POLLIN, "the receipt of a frame", err);
		else
			rc = sock_wait(ch->fd, POLLIN, ch->conn->cancel_fd, -1);
		if (rc < 0)
			return rx_lost(ch, rc, err);
	}
}

/* Copy to its place what of the payload is in the staging buffer.  0 or -ECANCELED. */
static int rx_place_staged(struct tcp_channel *ch, struct tern_error *err)
{
	int rc = 0;

	if (!ch->stage_len)
		return 0;
	pthread_mutex_lock(&ch->place_lock);
	if (atomic_load(&ch->conn->revoked))
		rc = -ECANCELED;
	while (!rc && ch->stage_len && ch->payload_left) {
		struct iovec *v = &ch->iov[ch->iov_at];
		size_t n = v->iov_len < ch->stage_len ? v->iov_len : ch->stage_len;

		memcpy(v->iov_base, ch->stage + ch->stage_at, n);
		v->iov_base = (char *)v->iov_base + n;
		v->iov_len -= n;
		if (!v->iov_len)
			ch->iov_at++;
		ch->stage_at += n;
		ch->stage_len -= n;
		ch->payload_left -= n;
	}
	pthread_mutex_unlock(&ch->place_lock);
	return rc ? rx_lost(ch, rc, err) : 0;
}

/* Receive the payload that was laid out.  0 or -errno with *err. */
static int rx_payload(struct tcp_channel *ch, struct tern_error *err)
{
	int rc = rx_place_staged(ch, err);

	while (!rc && ch->payload_left)
		rc = rx_fill(ch, 0, err);
	return rc;
}

/* Take @n bytes off the staging buffer. */
static void stage_drop(struct tcp_channel *ch, size_t n)
{
	ch->stage_at += n;
	ch->stage_len -= n;
}

/* Have @want bytes of the frame's head in the staging buffer. */
static int stage_need(struct tcp_channel *ch, size_t want, struct tern_error *err)
{
	int rc = 0;

	while (!rc && ch->stage_len < want)
		rc = rx_fill(ch, want, err);
	return rc;
}

/* Does @r begin before @last ends, in the order of regions and offsets? */
static bool range_before_end(const struct transport_range *r, const struct transport_range *last)
{
	if (r->region != last->region)
		return r->region < last->region;
	return r->offset < last->offset + last->len;
}

/* Take the @nr descriptors of the WRITE at the staging buffer's begin.  0 or -EPROTO with *err. */
static int write_ranges(struct tcp_channel *ch, struct transport_range *v, unsigned nr,
			struct tern_error *err)
{
	const uint8_t *at = ch->stage + ch->stage_at + FRAME_HEADER_LEN;

	for (unsigned i = 0; i < nr; i++, at += FRAME_RANGE_LEN) {
		const struct transport_range *r = &v[i], *last = &v[i ? i - 1 : 0];

		frame_range_get(at, &v[i]);
		if (!conn_range_ok(ch->conn, r))
			return error_channel(
				err, -EPROTO, ch->base.index,
				"The peer %s wants to write region %u offset %llu "
				"length %llu, which is outside the memory it was given",
				ch->conn->peer, r->region, (unsigned long long)r->offset,
				(unsigned long long)r->len);
		if (i && range_before_end(r, last))
			return error_channel(
				err, -EPROTO, ch->base.index,
				"The peer %s sent a WRITE with descending or overlapping ranges: "
				"region %u offset %llu length %llu follows region %u offset %llu "
				"length %llu",
				ch->conn->peer, r->region, (unsigned long long)r->offset,
				(unsigned long long)r->len, last->region,
				(unsigned long long)last->offset, (unsigned long long)last->len);
	}
	return 0;
}

/* May all of a WRITE be placed?  Then its head is taken, and its ranges are laid out. */
static int write_begin(struct tcp_channel *ch, const struct frame_header *h, struct tern_error *err)
{
	size_t head = FRAME_HEADER_LEN + h->nr_ranges * FRAME_RANGE_LEN;
	const struct transport_env *env = &ch->conn->env;
	struct transport_range v[TRANSPORT_WRITE_RANGES_MAX];
	int rc = stage_need(ch, head, err);
	uint64_t bytes = 0;

	if (!rc)
		rc = write_ranges(ch, v, h->nr_ranges, err);
	if (!rc && env->admit)
		rc = env->admit(env->opaque, v, h->nr_ranges, err);
	if (rc)
		return rc;
	for (unsigned i = 0; i < h->nr_ranges; i++) {
		ch->iov[i].iov_base = (char *)ch->conn->mem[v[i].region].hva + v[i].offset;
		ch->iov[i].iov_len = v[i].len;
		bytes += v[i].len;
	}
	stage_drop(ch, head);
	ch->iov_at = 0;
	ch->iov_nr = h->nr_ranges;
	ch->payload_left = bytes;
	return 0;
}

/* Place a WRITE. */
static int serve_write(struct tcp_channel *ch, const struct frame_header *h, struct tern_error *err)
{
	int rc = write_begin(ch, h, err);

	if (!rc)
		rc = rx_payload(ch, err);
	if (rc)
		return rc;
	ch->iov_at = ch->iov_nr = 0;
	figure_add(&ch->fig.writes, h->nr_ranges);
	return 0;
}

/* Answer fence @seq: all that came before it is placed and handled. */
static int serve_fence(struct tcp_channel *ch, uint64_t seq, struct tern_error *err)
{
	uint8_t buf[FRAME_HEADER_LEN];
	struct iovec iov = { .iov_base = buf, .iov_len = sizeof(buf) };
	int slice_ms = (int)ch->conn->env.peer_timeout_ms;
	int rc;

	stage_drop(ch, FRAME_HEADER_LEN);
	frame_header_put(buf, &(struct frame_header){ .type = FRAME_FENCE_ACK, .seq = seq });
	rc = sock_send_all(ch->fd, &iov, 1, ch->conn->cancel_fd,
			   sock_deadline(CHANNEL_IDLE_SLICES * slice_ms));
	return rc ? channel_lost(ch, rc, "the answer to a fence", err) : 0;
}

/* Hand out a NOTIFY; its length or -errno. */
static long serve_notify(struct tcp_channel *ch, const struct frame_header *h, void *buf,
			 struct tern_error *err)
{
	int rc = stage_need(ch, FRAME_HEADER_LEN + h->length, err);

	if (rc)
		return rc;
	memcpy(buf, ch->stage + ch->stage_at + FRAME_HEADER_LEN, h->length);
	stage_drop(ch, FRAME_HEADER_LEN + h->length);
	return (long)h->length;
}

/*
 * Receive message and contents of a PUSH into @buf; their length or -errno.  After a
 * failure @buf must not be written to any more.
 */
static long serve_push(struct tcp_channel *ch, const struct frame_header *h, void *buf,
		       size_t *contents, struct tern_error *err)
{
	size_t len = h->length + (size_t)h->contents;
	int rc;

	stage_drop(ch, FRAME_HEADER_LEN);
	ch->iov[0] = (struct iovec){ .iov_base = buf, .iov_len = len };
	ch->iov_at = 0;
	ch->iov_nr = 1;
	ch->payload_left = len;
	rc = rx_payload(ch, err);
	ch->iov_at = ch->iov_nr = 0;
	ch->payload_left = 0;
	ch->broken = rc;
	if (rc)
		return rc;
	*contents = (size_t)h->contents;
	return (long)len;
}

/* A frame that cannot be: name the field. */
static int serve_bad(struct tcp_channel *ch, const char *field, const struct frame_header *h,
		     struct tern_error *err)
{
	return error_channel(
		err, -EPROTO, ch->base.index,
		"The peer %s sent a frame with a bad %s on channel %u (type %u, ranges "
		"%u, length %u, %s %llu)",
		ch->conn->peer, field, ch->base.index, h->type, h->nr_ranges, h->length,
		h->type == FRAME_PUSH ? "contents" : "sequence",
		(unsigned long long)(h->type == FRAME_PUSH ? h->contents : h->seq));
}

/* See struct transport. */
long channel_serve(struct transport_channel *base, void *buf, size_t *contents,
		   struct tern_error *err)
{
	struct tcp_channel *ch = to_channel(base);

	*contents = 0;
	for (;;) {
		struct frame_header h;
		const char *bad;
		int rc = ch->broken ? rx_lost(ch, -ECONNRESET, err)
				    : stage_need(ch, FRAME_HEADER_LEN, err);

		if (rc)
			return rc;
		if (atomic_load(&ch->conn->revoked) || conn_is_aborted(ch->conn))
			return rx_lost(ch, -ECANCELED, err);
		bad = frame_header_get(ch->stage + ch->stage_at, &h);
		if (!bad &&
		    (h.type == FRAME_FENCE_ACK || (h.type == FRAME_PUSH && !ch->conn->env.push)))
			bad = "type";
		if (!bad && h.type == FRAME_FENCE && h.seq != ++ch->fence_seq)
			bad = "sequence";
		if (bad)
			return serve_bad(ch, bad, &h, err);
		switch (h.type) {
		case FRAME_WRITE:
			rc = serve_write(ch, &h, err);
			break;
		case FRAME_NOTIFY:
			return serve_notify(ch, &h, buf, err);
		case FRAME_PUSH:
			return serve_push(ch, &h, buf, contents, err);
		case FRAME_FENCE:
			rc = serve_fence(ch, h.seq, err);
			break;
		case FRAME_END:
			return 0; /* stays, so that it is found again */
		}
		if (rc)
			return rc;
	}
}
