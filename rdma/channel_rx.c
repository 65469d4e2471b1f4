/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * The destination's end of a channel.
 *
 * Writes land without anybody here noticing; serve() handles the frames
 * between them.  A receive completion comes after every earlier write of its
 * queue pair has been placed, which is what makes NOTIFY and FENCE mean
 * something.  The figures of what was placed are the source's word.
 */

#include <errno.h>
#include <string.h>
#include "error.h"
#include "verbs.h"

/* serve() may not go on.  -ECANCELED or -errno with *err; 0: it may. */
static int serve_check(struct verbs_channel *ch, struct tern_error *err)
{
	if (atomic_load(&ch->conn->revoked))
		return error_channel(err, -ECANCELED, ch->base.index,
				     "The memory was taken back from %s", ch->conn->peer);
	return vconn_check(ch->conn, err);
}

/*
 * Tell the peer what it may send again, if half a ring is owed.
 *
 * Without a free send slot later: serve() comes here again when one is free, because
 * the completion of a send wakes the thread.
 */
static int return_credits(struct verbs_channel *ch, struct tern_error *err)
{
	if (ch->owe < ch->ring / 2 || !ch->nr_free)
		return 0;
	return vchan_frame(ch, DATA_CREDIT, NULL, 0, 0, err);
}

/* Give slot @slot back to the ring, and credits to the peer. */
static int give_back(struct verbs_channel *ch, unsigned slot, struct tern_error *err)
{
	int rc = vchan_repost(ch, slot);

	if (rc)
		return vchan_failed(ch, rc, err,
				    "Posting a receive on channel %u (device %s, queue pair %u) "
				    "failed: %s",
				    ch->base.index, ch->conn->device, ch->qp_num, error_name(rc));
	ch->owe++;
	return return_credits(ch, err);
}

/* Answer a fence; waits for a send slot. */
static int answer_fence(struct verbs_channel *ch, uint64_t seq, struct tern_error *err)
{
	while (!ch->nr_free) {
		int n = serve_check(ch, err);

		if (!n)
			n = vchan_sleep(ch, -1, err);
		if (n < 0)
			return n;
	}
	return vchan_frame(ch, DATA_FENCE_ACK, NULL, 0, seq, err);
}

/* The source's figures. */
static void take_figures(struct verbs_channel *ch, const struct data_header *h)
{
	atomic_store_explicit(&ch->fig.bytes, h->bytes, memory_order_relaxed);
	atomic_store_explicit(&ch->fig.writes, h->writes, memory_order_relaxed);
}

/* Hand out the @len bytes of payload in @slot, which stays ours until the next serve(). */
static long hand_out(struct verbs_channel *ch, unsigned slot, void *buf, uint32_t len)
{
	memcpy(buf, vchan_rx_slot(ch, slot) + DATA_HEADER_LEN, len);
	ch->rx_hold = (int)slot;
	return (long)len;
}

/* Does the payload of @h, a PUSH, consist of a message and contents that are possible? */
static bool push_fits(const struct data_header *h)
{
	return h->seq >= 1 && h->seq <= TRANSPORT_PUSH_MAX && h->len > h->seq &&
	       h->len - h->seq <= TRANSPORT_PUSH_MSG_MAX;
}

/* Hand out the PUSH in @slot; its length or -EPROTO with *err. */
static long serve_push(struct verbs_channel *ch, unsigned slot, const struct data_header *h,
		       void *buf, size_t *contents, struct tern_error *err)
{
	if (!push_fits(h))
		return vchan_failed(ch, -EPROTO, err,
				    "The peer %s sent a push on channel %u with contents = %llu "
				    "of %u bytes; possible are 1 to %u, behind 1 to %u bytes of "
				    "message",
				    ch->conn->peer, ch->base.index, (unsigned long long)h->seq,
				    h->len, TRANSPORT_PUSH_MAX, TRANSPORT_PUSH_MSG_MAX);
	*contents = (size_t)h->seq;
	return hand_out(ch, slot, buf, h->len);
}

/*
 * Handle the oldest frame.  > 0: length of a notify or push in @buf; 0: END; -EAGAIN:
 * go on; -errno with *err.
 */
static long serve_frame(struct verbs_channel *ch, void *buf, size_t *contents,
			struct tern_error *err)
{
	unsigned slot = ch->rx[ch->rx_at];
	struct data_header h;
	int rc = 0;

	ch->rx_at = (ch->rx_at + 1) % ch->ring;
	ch->rx_nr--;
	data_header_get(vchan_rx_slot(ch, slot), &h);
	take_figures(ch, &h);
	ch->pushed = h.type == DATA_PUSH;
	switch (h.type) {
	case DATA_NOTIFY:
		if (!h.len || h.len > TRANSPORT_NOTIFY_MAX)
			break;
		return hand_out(ch, slot, buf, h.len);
	case DATA_PUSH:
		if (!ch->push)
			break;
		return serve_push(ch, slot, &h, buf, contents, err);
	case DATA_FENCE:
		rc = answer_fence(ch, h.seq, err);
		if (!rc)
			rc = give_back(ch, slot, err);
		return rc ? rc : -EAGAIN;
	case DATA_TALLY:
		rc = give_back(ch, slot, err);
		return rc ? rc : -EAGAIN;
	case DATA_END:
		ch->ended = true;
		return 0;
	default:
		break;
	}
	return vchan_failed(ch, -EPROTO, err,
			    "The peer %s sent a frame of type %u and %u bytes on channel %u, which "
			    "it may not",
			    ch->conn->peer, h.type, h.len, ch->base.index);
}

/* Poll for as long as it is likely to pay; see spin.h.  As vchan_reap(). */
static int serve_spin(struct verbs_channel *ch, uint64_t begin_ns, struct tern_error *err)
{
	int n = 0;

	while (!n && ch->pushed && spin_pause(&ch->spin, begin_ns))
		n = vchan_reap(ch, err);
	return n;
}

/* Nothing has arrived: wait.  0 or -errno with *err. */
static int serve_wait(struct verbs_channel *ch, struct tern_error *err)
{
	uint64_t begin = verbs_now_ns();
	bool lost = atomic_load(&ch->lost); /* before the last look */
	int n = vchan_reap(ch, err);

	if (n)
		return n < 0 ? n : 0;
	if (lost)
		return vchan_failed(ch, -ECONNRESET, err,
				    "The peer %s closed channel %u without a word; it or its host "
				    "may have died",
				    ch->conn->peer, ch->base.index);
	n = serve_spin(ch, begin, err);
	if (!n)
		n = vchan_sleep(ch, -1, err);
	if (n > 0 && ch->pushed)
		spin_adapt(&ch->spin, verbs_now_ns() - begin);
	return n < 0 && n != -ETIMEDOUT ? n : 0;
}

long vchan_serve(struct transport_channel *base, void *buf, size_t *contents,
		 struct tern_error *err)
{
	struct verbs_channel *ch = to_channel(base);
	long n = 0;
	int rc;

	*contents = 0;
	if (ch->rx_hold >= 0) {
		rc = give_back(ch, (unsigned)ch->rx_hold, NULL); /* told below if it matters */
		ch->rx_hold = -1;
		if (rc && !serve_check(ch, err))
			return vchan_failed(ch, rc, err, "%s", ch->failure.message);
	}
	for (;;) {
		rc = serve_check(ch, err);
		if (rc)
			return rc;
		if (ch->ended)
			return 0;
		n = return_credits(ch, err);
		if (n)
			break;
		if (ch->rx_nr) {
			n = serve_frame(ch, buf, contents, err);
			if (n != -EAGAIN)
				break;
			continue;
		}
		n = serve_wait(ch, err);
		if (n)
			break;
	}
	/* What looks like a failure may be the consequence of an end of our own. */
	if (n < 0 && atomic_load(&ch->conn->revoked))
		return -ECANCELED;
	if (n < 0 && atomic_load(&ch->conn->aborted))
		return -ECANCELED;
	return n;
}
