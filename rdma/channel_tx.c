/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * The source's end of a channel.
 *
 *	write()      ranges ──► pending[] ──► send queue ──► completions
 *	                           │ extent not READY yet: stays
 *
 * write() returns when its ranges are in pending[]; their registrations go on
 * meanwhile on both sides, so as much as fits there is registered ahead of the
 * wire.  Whatever is ready is posted, in any order: two pending writes never
 * concern one page (invariant 3), and an extent that waits for the lock budget
 * must not hold up those whose completion will free some.  notify(), push()
 * and fence() wait until nothing is pending.
 *
 * Work requests are posted in lists; the last of a list is signalled.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "error.h"
#include "verbs.h"

#define PENDING_BYTES (64ull << 20) /* most bytes pending in a channel */

int64_t vchan_patience(const struct verbs_channel *ch)
{
	return verbs_deadline((int)(CHAN_IDLE_SLICES * ch->conn->env.peer_timeout_ms));
}

/* May the channel be used?  0 or -errno with *err. */
static int tx_check(struct verbs_channel *ch, struct tern_error *err)
{
	int rc = vconn_check(ch->conn, err);

	if (rc)
		return rc;
	if (ch->failure.code)
		return error_channel(err, ch->failure.code, ch->base.index, "%s",
				     ch->failure.message);
	if (atomic_load(&ch->lost))
		return vchan_failed(ch, -ECONNRESET, err,
				    "The peer %s closed channel %u (device %s, queue pair %u)",
				    ch->conn->peer, ch->base.index, ch->conn->device, ch->qp_num);
	return 0;
}

/* The peer was silent for too long.  -ETIMEDOUT with *err. */
static int tx_timed_out(struct verbs_channel *ch, struct tern_error *err)
{
	unsigned ms = CHAN_IDLE_SLICES * ch->conn->env.peer_timeout_ms;

	if (ch->preparing || ch->nr_pending)
		return vchan_failed(ch, -ETIMEDOUT, err,
				    "The peer %s granted no key for channel %u for %u ms (device "
				    "%s); check that it is alive and reachable",
				    ch->conn->peer, ch->base.index, ms, ch->conn->device);
	return vchan_failed(ch, -ETIMEDOUT, err,
			    "The peer %s took nothing on channel %u for %u ms (device %s, queue "
			    "pair %u); check that it is alive and reachable",
			    ch->conn->peer, ch->base.index, ms, ch->conn->device, ch->qp_num);
}

int vchan_wait(struct verbs_channel *ch, int64_t *deadline, struct tern_error *err)
{
	int n = tx_check(ch, err);
	bool stuck;

	if (n)
		return n;
	stuck = room_stuck(ch);
	n = vchan_sleep(ch, *deadline, err);
	if (stuck && room_unstuck(ch))
		vchan_unhold(ch);
	if (n == -ETIMEDOUT)
		return tx_timed_out(ch, err);
	if (n > 0)
		*deadline = vchan_patience(ch);
	return n < 0 ? n : 0;
}

/* A frame of the destination: credits, or the answer to a fence. */
int vchan_take_answer(struct verbs_channel *ch, unsigned slot, const struct data_header *h,
		      struct tern_error *err)
{
	int rc;

	if (h->type != DATA_CREDIT && h->type != DATA_FENCE_ACK)
		return vchan_failed(
			ch, -EPROTO, err,
			"The peer %s sent a frame of type %u on channel %u, which it may "
			"not",
			ch->conn->peer, h->type, ch->base.index);
	ch->credits += h->credits;
	if (ch->credits > 4096)
		return vchan_failed(
			ch, -EPROTO, err,
			"The peer %s returned %u credits on channel %u, more than it was "
			"owed",
			ch->conn->peer, h->credits, ch->base.index);
	if (h->type == DATA_FENCE_ACK) {
		if (h->seq != ch->fence_acked + 1 || h->seq > ch->fence_seq)
			return vchan_failed(
				ch, -EPROTO, err,
				"The peer %s answered fence %llu on channel %u, due was "
				"%llu",
				ch->conn->peer, (unsigned long long)h->seq, ch->base.index,
				(unsigned long long)ch->fence_acked + 1);
		ch->fence_acked = h->seq;
	}
	rc = vchan_repost(ch, slot);
	if (rc)
		return vchan_failed(ch, rc, err, "Posting a receive on channel %u failed: %s",
				    ch->base.index, error_name(rc));
	return 0;
}

/* Entries that can be posted now; two are kept for frames. */
static unsigned sq_room(const struct verbs_channel *ch)
{
	uint64_t used = ch->sq_head - ch->sq_tail;

	return used + 2 >= ch->sq_size ? 0 : (unsigned)(ch->sq_size - 2 - used);
}

/* Write @i of a list, for @p. */
static void fill_write(struct verbs_channel *ch, const struct pending *p, struct verbs_write *v,
		       unsigned i)
{
	const struct extent *e = p->key->extent;

	v[i] = (struct verbs_write){
		.local = (uintptr_t)ch->conn->mem[e->region].hva + p->offset,
		.remote = p->key->remote_va + (p->offset - e->offset),
		.len = (uint32_t)p->len,
		.lkey = e->mr->lkey,
		.rkey = p->key->rkey,
	};
	ch->sq[(ch->sq_head + i) % ch->sq_size] = (struct sq_entry){ p->key, -1 };
}

/* Give a list of @nr writes to the device. */
static int post_list(struct verbs_channel *ch, const struct verbs_write *v, unsigned nr,
		     struct tern_error *err)
{
	/* From before the call: a device in software may send all of it before it returns. */
	uint64_t first = atomic_load_explicit(&ch->fig.first_write_ns, memory_order_relaxed)
				 ? 0
				 : verbs_now_ns();
	unsigned taken;
	int rc = vqp_write(&ch->q, ch->sq_head, v, nr, &taken);

	/* What was not taken goes back. */
	for (unsigned i = taken; i < nr; i++)
		keys_drop(ch->conn, ch->sq[(ch->sq_head + i) % ch->sq_size].key);
	ch->sq_head += taken;
	if (first && taken)
		atomic_store_explicit(&ch->fig.first_write_ns, first, memory_order_relaxed);
	if (rc)
		return vchan_failed(ch, rc, err,
				    "Posting writes on channel %u to %s failed (device %s, queue "
				    "pair %u): %s",
				    ch->base.index, ch->conn->peer, ch->conn->device, ch->qp_num,
				    error_name(rc));
	ch->sq_signalled = ch->sq_head;
	return 0;
}

/* Move what is ready from pending[] to the send queue, one list.  How many, or -errno. */
static int post_ready(struct verbs_channel *ch, struct tern_error *err)
{
	struct verbs_write v[CHAN_BATCH];
	unsigned room = sq_room(ch), nr = 0, kept = 0, i = 0;
	int rc;

	if (room > CHAN_BATCH)
		room = CHAN_BATCH;
	for (; i < ch->nr_pending && nr < room; i++) {
		struct pending *p = &ch->pending[i];

		if (atomic_load_explicit(&p->key->state, memory_order_acquire) == KEY_READY) {
			fill_write(ch, p, v, nr++);
			figure_add(&ch->fig.bytes, p->len);
			figure_add(&ch->fig.writes, p->last);
		} else {
			ch->pending[kept++] = *p;
		}
	}
	if (kept != i)
		memmove(&ch->pending[kept], &ch->pending[i],
			(ch->nr_pending - i) * sizeof(*ch->pending));
	ch->nr_pending -= i - kept;
	if (!nr)
		return 0;
	rc = post_list(ch, v, nr, err);
	return rc ? rc : (int)nr;
}

int vchan_advance(struct verbs_channel *ch, struct tern_error *err)
{
	int n;

	do {
		n = vchan_reap(ch, err);
		if (n >= 0 && ch->nr_pending)
			n = post_ready(ch, err);
		else if (n > 0)
			n = 0;
	} while (n > 0);
	return n;
}

/* Tell the destination how far we are, if it costs nothing. */
static int tx_tally(struct verbs_channel *ch, struct tern_error *err)
{
	uint64_t bytes = atomic_load_explicit(&ch->fig.bytes, memory_order_relaxed);

	if (bytes - ch->tally_bytes < CHAN_TALLY_BYTES || ch->credits < 8 || ch->nr_free < 4 ||
	    !sq_room(ch))
		return 0;
	ch->tally_bytes = bytes;
	return vchan_frame(ch, DATA_TALLY, NULL, 0, 0, err);
}

/* Bytes waiting in pending[]. */
static uint64_t pending_bytes(const struct verbs_channel *ch)
{
	uint64_t n = 0;

	for (unsigned i = 0; i < ch->nr_pending; i++)
		n += ch->pending[i].len;
	return n;
}

int vchan_drain(struct verbs_channel *ch, unsigned max, struct tern_error *err)
{
	int64_t deadline = vchan_patience(ch);
	int rc = tx_check(ch, err);

	if (!rc)
		rc = vchan_advance(ch, err);
	while (!rc && (ch->nr_pending > max || (max && pending_bytes(ch) > PENDING_BYTES))) {
		unsigned before = ch->nr_pending;

		figure_add(&ch->fig.stalls, 1);
		rc = vchan_wait(ch, &deadline, err);
		if (!rc)
			rc = vchan_advance(ch, err);
		if (ch->nr_pending != before)
			deadline = vchan_patience(ch);
	}
	return rc;
}

/* Put one range into pending[], cut at extents.  0 or -errno with *err. */
static int tx_add(struct verbs_channel *ch, const struct transport_range *r, struct tern_error *err)
{
	uint64_t at = r->offset, left = r->len;

	while (left) {
		struct extent_key *key;
		int64_t n;
		int rc = 0;

		if (ch->nr_pending == CHAN_PENDING_MAX)
			rc = vchan_drain(ch, CHAN_PENDING_MAX / 2, err);
		if (rc)
			return rc;
		n = keys_hold(ch->conn, ch->base.index, r->region, at,
			      left < ch->max_msg ? left : ch->max_msg, &key);
		if (n < 0)
			return vchan_failed(ch, (int)n, err,
					    "Keeping the registrations of channel %u failed: %s",
					    ch->base.index, error_name((int)n));
		left -= (uint64_t)n;
		ch->pending[ch->nr_pending++] = (struct pending){ key, at, (uint64_t)n, !left };
		at += (uint64_t)n;
	}
	return 0;
}

/* vchan_check_ranges - the ranges must be ours.  0 or -EINVAL with *err. */
int vchan_check_ranges(struct verbs_channel *ch, const struct transport_range *ranges, unsigned nr,
		       struct tern_error *err)
{
	for (unsigned i = 0; i < nr; i++)
		if (!vconn_range_ok(ch->conn, ranges[i].region, ranges[i].offset, ranges[i].len))
			return error_channel(
				err, -EINVAL, ch->base.index,
				"A write of region %u offset %llu length %llu is outside what was "
				"exposed",
				ranges[i].region, (unsigned long long)ranges[i].offset,
				(unsigned long long)ranges[i].len);
	return 0;
}

int vchan_write(struct transport_channel *base, const struct transport_range *ranges, unsigned nr,
		struct tern_error *err)
{
	struct verbs_channel *ch = to_channel(base);
	int rc = vchan_check_ranges(ch, ranges, nr, err);

	if (!rc)
		rc = tx_check(ch, err);
	for (unsigned i = 0; i < nr && !rc; i++)
		rc = tx_add(ch, &ranges[i], err);
	if (!rc)
		rc = vchan_drain(ch, CHAN_PENDING_MAX / 2, err);
	return rc ? rc : tx_tally(ch, err);
}

/* Everything pending is posted and a frame can go.  0 or -errno with *err. */
static int tx_frame_room(struct verbs_channel *ch, struct tern_error *err)
{
	int64_t deadline = vchan_patience(ch);
	int rc = vchan_drain(ch, 0, err);

	while (!rc && (!ch->credits || !ch->nr_free || ch->sq_head - ch->sq_tail >= ch->sq_size)) {
		figure_add(&ch->fig.stalls, 1);
		rc = vchan_wait(ch, &deadline, err);
	}
	return rc;
}

int vchan_notify(struct transport_channel *base, const void *msg, size_t len,
		 struct tern_error *err)
{
	struct verbs_channel *ch = to_channel(base);
	int rc;

	if (len < 1 || len > TRANSPORT_NOTIFY_MAX)
		return error_channel(err, -EMSGSIZE, ch->base.index,
				     "A notify of %zu bytes cannot be sent; 1 to %u can", len,
				     TRANSPORT_NOTIFY_MAX);
	rc = tx_frame_room(ch, err);
	if (rc)
		return rc;
	figure_add(&ch->fig.bytes, DATA_HEADER_LEN + len);
	return vchan_frame(ch, DATA_NOTIFY, msg, len, 0, err);
}

/*
 * See struct transport.  The contents are copied: they need no registration here, and 64 KiB
 * cost less than waiting for one would.
 */
int vchan_push(struct transport_channel *base, const void *msg, size_t len,
	       const struct transport_range *range, struct tern_error *err)
{
	struct verbs_channel *ch = to_channel(base);
	struct verbs_conn *c = ch->conn;
	uint8_t *payload;
	int rc = transport_push_check(&c->env, base->index, len, range->len, err);

	if (!rc)
		rc = vchan_check_ranges(ch, range, 1, err);
	if (!rc)
		rc = tx_frame_room(ch, err);
	if (rc)
		return rc;
	payload = vchan_payload(ch);
	memcpy(payload, msg, len);
	memcpy(payload + len, (char *)c->mem[range->region].hva + range->offset, range->len);
	len += range->len;
	figure_add(&ch->fig.bytes, DATA_HEADER_LEN + len);
	return vchan_frame(ch, DATA_PUSH, NULL, len, range->len, err);
}

int vchan_fence(struct transport_channel *base, struct tern_error *err)
{
	struct verbs_channel *ch = to_channel(base);
	int64_t deadline;
	int rc = tx_frame_room(ch, err);

	if (rc)
		return rc;
	rc = vchan_frame(ch, DATA_FENCE, NULL, 0, ++ch->fence_seq, err);
	deadline = vchan_patience(ch);
	/* Its answer, and the completion of every write: the memory is free again. */
	while (!rc && (ch->fence_acked != ch->fence_seq || ch->sq_tail != ch->sq_head))
		rc = vchan_wait(ch, &deadline, err);
	vchan_unhold(ch);
	return rc;
}

/* vchan_end - say END and wait until the peer's device has it, at most until @deadline. */
void vchan_end(struct verbs_channel *ch, int64_t deadline)
{
	if (vchan_drain(ch, 0, NULL) || !ch->credits || !ch->nr_free ||
	    ch->sq_head - ch->sq_tail >= ch->sq_size)
		return;
	if (vchan_frame(ch, DATA_END, NULL, 0, 0, NULL))
		return;
	while (ch->sq_tail != ch->sq_head && verbs_remaining(deadline))
		if (vchan_wait(ch, &deadline, NULL))
			return;
}
