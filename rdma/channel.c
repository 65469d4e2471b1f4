/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * Channels: what both ends share.
 *
 * A channel is one RC queue pair with its own completion queue and completion
 * channel, used by one thread.  The source posts writes and frames; the
 * destination posts receives, and answers.
 *
 * Send queue entries are numbered from 0.  A work request's wr_id is its
 * number; entry i lives at sq[i % sq_size].  Completions are asked for
 * selectively, and one completion retires all entries up to its number, because
 * an RC queue completes in order:
 *
 *	sq_tail            sq_signalled      sq_head
 *	   │ ░░░░░░░░░░░░░░░░░░░░│░░░░░░░░░░░░│
 *	   oldest incomplete     asked for    next
 *
 * A thread with nothing to do polls a few times, arms the completion queue,
 * polls once more, and sleeps on the completion channel, its own eventfd (keys
 * arrived, peer lost, revoked) and the connection's (aborted).
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "error.h"
#include "verbs.h"

#define RECV_BIT (1ull << 63)
#define POLL_BATCH 32

/* Send slots come first, then the receive ring. */
static uint8_t *tx_slot_at(struct verbs_channel *ch, unsigned i)
{
	return ch->buf + (size_t)i * ch->tx_slot;
}

uint8_t *vchan_rx_slot(struct verbs_channel *ch, unsigned slot)
{
	return tx_slot_at(ch, CHAN_SLOTS) + (size_t)slot * ch->rx_slot;
}

uint8_t *vchan_payload(struct verbs_channel *ch)
{
	return tx_slot_at(ch, ch->free_slots[ch->nr_free - 1]) + DATA_HEADER_LEN;
}

/*
 * vchan_failed - note why the channel is unusable, if it is the first reason.
 *
 * Fills *err with the first reason and returns its code.  The channel's thread.
 */
int vchan_failed(struct verbs_channel *ch, int code, struct tern_error *err, const char *fmt, ...)
{
	char text[TERN_ERROR_MESSAGE_MAX];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	if (!ch->failure.code)
		error_channel(&ch->failure, vconn_final(code), ch->base.index, "%s", text);
	error_channel(err, ch->failure.code, ch->base.index, "%s", ch->failure.message);
	return ch->failure.code;
}

/* Post receive @slot again.  0 or -errno; nothing if posting was stopped. */
int vchan_repost(struct verbs_channel *ch, unsigned slot)
{
	struct ibv_sge sge = {
		.addr = (uintptr_t)vchan_rx_slot(ch, slot),
		.length = ch->rx_slot,
		.lkey = ch->mr->lkey,
	};
	struct ibv_recv_wr wr = { .wr_id = RECV_BIT | slot, .sg_list = &sge, .num_sge = 1 };
	struct ibv_recv_wr *bad;
	int rc = 0;

	pthread_mutex_lock(&ch->post_lock);
	if (ch->posting)
		rc = -ibv_post_recv(ch->id->qp, &wr, &bad);
	pthread_mutex_unlock(&ch->post_lock);
	return rc;
}

/* The queue pair and its receives.  0 or -errno with *err. */
static int vchan_qp(struct verbs_channel *ch, struct tern_error *err)
{
	struct verbs_conn *c = ch->conn;
	struct ibv_qp_init_attr attr = {
		.send_cq = ch->send_cq ? ch->send_cq : ch->cq,
		.recv_cq = ch->cq,
		.qp_type = IBV_QPT_RC,
		.cap = {
			.max_send_wr = ch->sq_size,
			.max_recv_wr = ch->ring,
			.max_send_sge = 1,
			.max_recv_sge = 1,
		},
	};
	int rc = 0;

	rc = vqp_create(ch->id, c->pd_data, &attr, ch->bind_room, &ch->q);
	if (rc)
		return error_channel(
			err, rc, ch->base.index,
			"Device %s gave no queue pair of %u entries for channel %u: %s; "
			"use fewer --channels",
			c->device, ch->sq_size, ch->base.index, error_name(rc));
	ch->qp_num = ch->id->qp->qp_num;
	ch->posting = true;
	for (unsigned i = 0; i < ch->ring && !rc; i++)
		rc = vchan_repost(ch, i);
	if (rc)
		return error_channel(err, rc, ch->base.index,
				     "Posting a receive on channel %u (device %s, queue pair %u) "
				     "failed: %s",
				     ch->base.index, c->device, ch->qp_num, error_name(rc));
	return 0;
}

/* A completion queue for sends whose events come to the pump.  0 or -1 with errno. */
static int vchan_send_cq(struct verbs_channel *ch)
{
	struct verbs_conn *c = ch->conn;

	ch->send_cq =
		ibv_create_cq(c->id->verbs, (int)ch->sq_size, ch, c->ctl.comp, (int)ch->vector);
	if (!ch->send_cq)
		return -1;
	return ibv_req_notify_cq(ch->send_cq, 0) ? -1 : 0;
}

/* Queues, buffers and arrays.  0 or -errno with *err. */
static int vchan_resources(struct verbs_channel *ch, struct tern_error *err)
{
	struct verbs_conn *c = ch->conn;
	size_t size = CHAN_SLOTS * (size_t)ch->tx_slot + ch->ring * (size_t)ch->rx_slot;
	char hint[200] = "";
	int rc;

	ch->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	ch->sq = calloc(ch->sq_size, sizeof(*ch->sq));
	ch->pending = c->source ? calloc(CHAN_PENDING_MAX, sizeof(*ch->pending)) : NULL;
	ch->buf = verbs_buffer_new(size, ch->node);
	ch->buf_size = size;
	if (ch->wake_fd < 0 || !ch->sq || (c->source && !ch->pending) || !ch->buf)
		goto fail;
	ch->buf_node = verbs_buffer_node(ch->buf);
	ch->comp = ibv_create_comp_channel(c->id->verbs);
	if (!ch->comp)
		goto fail;
	(void)fcntl(ch->comp->fd, F_SETFL, fcntl(ch->comp->fd, F_GETFL) | O_NONBLOCK);
	ch->cq = ibv_create_cq(c->id->verbs, (int)(ch->sq_size + ch->ring), NULL, ch->comp,
			       (int)ch->vector);
	if (!ch->cq || (ch->bind_room && vchan_send_cq(ch)))
		goto fail;
	ch->mr = ibv_reg_mr(c->pd_data, ch->buf, size, IBV_ACCESS_LOCAL_WRITE);
	if (ch->mr)
		return 0;
fail:
	rc = errno ? -errno : -ENOMEM;
	if (rc == -ENOMEM)
		verbs_memlock_hint(hint, sizeof(hint));
	return error_channel(err, rc, ch->base.index,
			     "Making the queues of channel %u on device %s failed: %s%s%s",
			     ch->base.index, c->device, error_name(rc), hint[0] ? "; " : "", hint);
}

/* Where the channel's memory, buffers and interrupts are. */
static void vchan_place(struct verbs_channel *ch)
{
	const struct transport_env *env = &ch->conn->env;
	unsigned nth = 0;

	ch->node = verbs_channel_node(env, ch->base.index);
	if (ch->node < 0) /* no matter where the memory is: near the device */
		ch->node = ch->conn->place.numa_node;
	for (unsigned i = 0; i < ch->base.index; i++)
		nth += verbs_channel_node(env, i) == verbs_channel_node(env, ch->base.index);
	ch->vector = place_vector_for(&ch->conn->vectors, ch->node, nth, ch->base.index);
}

/*
 * How many of what the channel has.  Contents of a push go one way only, so large slots are
 * for sending at the source and for receiving at the destination.
 */
static void vchan_sizes(struct verbs_channel *ch)
{
	struct verbs_conn *c = ch->conn;

	ch->ring = c->source ? CHAN_RING_SOURCE : ch->push ? CHAN_RING_PUSH : CHAN_RING;
	ch->tx_slot = c->source && ch->push ? CHAN_SLOT_PUSH : CHAN_SLOT;
	ch->rx_slot = !c->source && ch->push ? CHAN_SLOT_PUSH : CHAN_SLOT;
	ch->sq_size = c->source ? CHAN_SQ_MAX : 2 * CHAN_SLOTS;
	if (!c->source && c->windows)
		ch->sq_size += CHAN_BINDS;
	if (c->attr.max_qp_wr > 0 && ch->sq_size > (unsigned)c->attr.max_qp_wr)
		ch->sq_size = (unsigned)c->attr.max_qp_wr;
	if (c->attr.max_cqe > 0 && ch->sq_size + ch->ring > (unsigned)c->attr.max_cqe)
		ch->sq_size = (unsigned)c->attr.max_cqe - ch->ring;
	ch->bind_room = !c->source && c->windows ? ch->sq_size - CHAN_SLOTS : 0;
	ch->max_msg = c->max_msg < PIECE_BYTES ? c->max_msg : PIECE_BYTES;
}

/* vchan_unmake - the channel was never connected: free it; its identifier is the caller's again. */
void vchan_unmake(struct verbs_channel *ch)
{
	struct rdma_cm_id *id = ch->id;

	ch->id = NULL;
	if (id->qp)
		rdma_destroy_qp(id);
	vchan_free(ch);
}

/*
 * vchan_make - a channel on @id, which has a device; @id stays the caller's on failure.
 *
 * @push: both sides want contents to travel with messages.
 */
int vchan_make(struct verbs_conn *c, unsigned index, struct rdma_cm_id *id, bool push,
	       struct verbs_channel **out, struct tern_error *err)
{
	struct verbs_channel *ch = calloc(1, sizeof(*ch));
	struct place_saved saved;
	int rc;

	if (!ch)
		return error_channel(err, -ENOMEM, index, "No memory for channel %u", index);
	ch->base.ops = c->base.ops;
	ch->base.index = index;
	ch->conn = c;
	ch->id = id;
	ch->rx_hold = -1;
	ch->wake_fd = -1;
	ch->push = push;
	ch->binds_tail = &ch->binds;
	vchan_sizes(ch);
	pthread_mutex_init(&ch->post_lock, NULL);
	pthread_mutex_init(&ch->drain_lock, NULL);
	vchan_place(ch);
	verbs_place_enter(&c->env, ch->node, &saved);
	for (unsigned i = 0; i < CHAN_SLOTS; i++)
		ch->free_slots[ch->nr_free++] = (uint8_t)i;
	if (id->verbs != c->id->verbs)
		rc = error_channel(
			err, -EXDEV, index,
			"Channel %u arrived through device %s, the control queue through "
			"%s; give the peer one address of one device",
			index, ibv_get_device_name(id->verbs->device), c->device);
	else
		rc = vchan_resources(ch, err);
	if (!rc)
		rc = vchan_qp(ch, err);
	verbs_place_leave(&saved);
	if (rc) {
		vchan_unmake(ch);
		return rc;
	}
	*out = ch;
	return 0;
}

/* vchan_begin - established; @peer is its greeting. */
void vchan_begin(struct verbs_channel *ch, const struct greeting *peer)
{
	ch->credits = peer->ring;
}

/*
 * Put the queue pair into the error state: nothing is carried out in its name any more.
 *
 * Destroying it may wait for the windows that are bound to it, and freeing those is
 * slow.  Not the reset state, which is as good: resetting a queue pair to which packets are
 * on their way crashes the kernel with soft-RoCE (Linux 6.1; its responder sees the state
 * change under its hands).  0 or an errno.
 */
static int vchan_error(struct verbs_channel *ch)
{
	struct ibv_qp_attr attr = { .qp_state = IBV_QPS_ERR };

	return ibv_modify_qp(ch->id->qp, &attr, IBV_QP_STATE);
}

/*
 * vchan_stop_posting - end the queue pair: when it returns the peer can write no more.
 *
 * Quick.  The destination's thread may be using the channel; it finds out by
 * post_lock.  conn->lock is held.
 */
void vchan_stop_posting(struct verbs_channel *ch)
{
	pthread_mutex_lock(&ch->post_lock);
	if (ch->posting) {
		ch->posting = false;
		if (ch->established)
			(void)rdma_disconnect(ch->id);
		if (!ch->bind_room || vchan_error(ch))
			rdma_destroy_qp(ch->id);
	}
	pthread_mutex_unlock(&ch->post_lock);
}

/* vchan_free - no thread uses it any more. */
void vchan_free(struct verbs_channel *ch)
{
	if (ch->id && ch->id->qp)
		rdma_destroy_qp(ch->id);
	if (ch->send_cq) {
		if (ch->nr_send_events)
			ibv_ack_cq_events(ch->send_cq, ch->nr_send_events);
		ibv_destroy_cq(ch->send_cq);
	}
	if (ch->cq) {
		if (ch->nr_events)
			ibv_ack_cq_events(ch->cq, ch->nr_events);
		ibv_destroy_cq(ch->cq);
	}
	if (ch->comp)
		ibv_destroy_comp_channel(ch->comp);
	if (ch->mr)
		ibv_dereg_mr(ch->mr);
	if (ch->id)
		rdma_destroy_id(ch->id);
	if (ch->wake_fd >= 0)
		close(ch->wake_fd);
	free(ch->held);
	free(ch->pending);
	free(ch->sq);
	verbs_buffer_free(ch->buf, ch->buf_size);
	pthread_mutex_destroy(&ch->drain_lock);
	pthread_mutex_destroy(&ch->post_lock);
	free(ch);
}

/* All send queue entries up to and including @seq are complete. */
static void retire(struct verbs_channel *ch, uint64_t seq)
{
	while (ch->sq_tail <= seq && ch->sq_tail < ch->sq_head) {
		struct sq_entry *e = &ch->sq[ch->sq_tail++ % ch->sq_size];

		if (e->key)
			keys_drop(ch->conn, e->key);
		if (e->slot >= 0)
			ch->free_slots[ch->nr_free++] = (uint8_t)e->slot;
	}
}

/* A transfer failed, and not because the connection ended.  -errno with *err. */
static int transfer_failed(struct verbs_channel *ch, const struct ibv_wc *wc,
			   struct tern_error *err)
{
	struct verbs_conn *c = ch->conn;
	int code = -EIO;

	if (wc->status == IBV_WC_WR_FLUSH_ERR)
		code = -ECONNRESET; /* the queue pair ended, and no request of ours did it */
	if (wc->status == IBV_WC_RETRY_EXC_ERR || wc->status == IBV_WC_RNR_RETRY_EXC_ERR)
		code = -ETIMEDOUT;
	return vchan_failed(ch, code, err,
			    "A transfer to %s on channel %u failed (device %s, queue pair %u): %s "
			    "(status %d); check the peer and the link",
			    c->peer, ch->base.index, c->device, ch->qp_num,
			    ibv_wc_status_str(wc->status), wc->status);
}

/* A completion that failed.  -errno with *err. */
static int completion_failed(struct verbs_channel *ch, const struct ibv_wc *wc,
			     struct tern_error *err)
{
	struct verbs_conn *c = ch->conn;

	if (atomic_load(&ch->lost))
		return vchan_failed(ch, -ECONNRESET, err,
				    "The peer %s ended channel %u (device %s, queue pair %u)",
				    c->peer, ch->base.index, c->device, ch->qp_num);
	return transfer_failed(ch, wc, err);
}

/* A frame arrived in @slot. */
static int frame_arrived(struct verbs_channel *ch, unsigned slot, uint32_t bytes,
			 struct tern_error *err)
{
	struct data_header h;

	if (bytes >= DATA_HEADER_LEN)
		data_header_get(vchan_rx_slot(ch, slot), &h);
	if (bytes < DATA_HEADER_LEN || bytes > ch->rx_slot || h.len != bytes - DATA_HEADER_LEN)
		return vchan_failed(ch, -EPROTO, err,
				    "The peer %s sent a frame of %u bytes on channel %u whose "
				    "length field does not fit",
				    ch->conn->peer, bytes, ch->base.index);
	if (ch->conn->source)
		return vchan_take_answer(ch, slot, &h, err);
	ch->rx[(ch->rx_at + ch->rx_nr++) % ch->ring] = (uint16_t)slot;
	return 0;
}

/* Handle what the pump found complete of what was sent.  0 or -errno with *err. */
static int reap_sent(struct verbs_channel *ch, struct tern_error *err)
{
	uint64_t sent = atomic_load(&ch->frames_sent);

	if (sent > ch->sq_tail)
		retire(ch, sent - 1);
	return atomic_load(&ch->send_failed) ? transfer_failed(ch, &ch->send_wc, err) : 0;
}

/*
 * vchan_reap - handle the completions there are.
 *
 * Returns how many, or -errno with *err.
 */
int vchan_reap(struct verbs_channel *ch, struct tern_error *err)
{
	struct ibv_wc wc[POLL_BATCH];
	int n = ibv_poll_cq(ch->cq, POLL_BATCH, wc);
	int rc = 0;

	if (n < 0)
		return vchan_failed(
			ch, -EIO, err,
			"Polling the completions of channel %u failed (device %s, queue "
			"pair %u)",
			ch->base.index, ch->conn->device, ch->qp_num);
	for (int i = 0; i < n && !rc; i++) {
		if (wc[i].status == IBV_WC_WR_FLUSH_ERR && !ch->conn->source) {
			if (ch->send_cq) /* the cause may be there */
				windows_drain(ch);
			atomic_store(&ch->lost, true); /* what arrived before still counts */
		} else if (wc[i].status != IBV_WC_SUCCESS)
			rc = completion_failed(ch, &wc[i], err);
		else if (wc[i].wr_id & RECV_BIT)
			rc = frame_arrived(ch, (unsigned)(wc[i].wr_id & ~RECV_BIT), wc[i].byte_len,
					   err);
		else
			retire(ch, wc[i].wr_id);
	}
	if (!rc && ch->send_cq)
		rc = reap_sent(ch, err);
	return rc ? rc : n;
}

/* Take the completion event, if there is one, and ask for the next one.  0 or -errno. */
static int rearm(struct verbs_channel *ch)
{
	struct ibv_cq *cq;
	void *ctx;

	/* There is one at most: it was asked for once. */
	if (!ibv_get_cq_event(ch->comp, &cq, &ctx))
		ch->nr_events++;
	return -ibv_req_notify_cq(ch->cq, 0);
}

/*
 * vchan_sleep - wait until there may be something to do.
 *
 * Handles completions.  Returns how many (0: woken for another reason),
 * -ETIMEDOUT at @deadline, -ECANCELED, or -errno with *err.
 */
int vchan_sleep(struct verbs_channel *ch, int64_t deadline, struct tern_error *err)
{
	struct pollfd p[3] = {
		{ .fd = ch->conn->cancel_fd, .events = POLLIN },
		{ .fd = ch->wake_fd, .events = POLLIN },
		{ .fd = ch->comp->fd, .events = POLLIN },
	};
	eventfd_t ignored;
	int n = 0;

	for (unsigned i = 0; i < CHAN_SPIN && !n; i++)
		n = vchan_reap(ch, err);
	if (n)
		return n;
	n = rearm(ch);
	if (n)
		return vchan_failed(ch, n, err,
				    "Arming the completion queue of channel %u failed (device %s, "
				    "queue pair %u): %s",
				    ch->base.index, ch->conn->device, ch->qp_num, error_name(n));
	n = vchan_reap(ch, err);
	if (n)
		return n;
	n = poll(p, 3, verbs_remaining(deadline));
	if (n == 0)
		return -ETIMEDOUT;
	if (n > 0 && p[0].revents)
		return error_channel(err, -ECANCELED, ch->base.index,
				     "The connection to %s was aborted", ch->conn->peer);
	if (n > 0 && p[1].revents)
		(void)eventfd_read(ch->wake_fd, &ignored);
	return vchan_reap(ch, err);
}

/*
 * vchan_frame - post a frame; the caller saw to room, a slot and a credit.
 *
 * @payload: @len bytes; NULL: they are at vchan_payload() already.  @seq: see data_header.
 * 0 or -errno with *err; nothing is posted after vchan_stop_posting().
 */
int vchan_frame(struct verbs_channel *ch, uint16_t type, const void *payload, size_t len,
		uint64_t seq, struct tern_error *err)
{
	unsigned slot = ch->free_slots[--ch->nr_free];
	struct data_header h = {
		.type = type,
		.credits = (uint16_t)ch->owe,
		.len = (uint32_t)len,
		.seq = seq,
		.bytes = atomic_load_explicit(&ch->fig.bytes, memory_order_relaxed),
		.writes = atomic_load_explicit(&ch->fig.writes, memory_order_relaxed),
	};
	uint8_t *buf = tx_slot_at(ch, slot);
	int rc = 0;

	data_header_put(buf, &h);
	if (payload && len)
		memcpy(buf + DATA_HEADER_LEN, payload, len);
	ch->sq[ch->sq_head % ch->sq_size] = (struct sq_entry){ .slot = (int)slot };
	pthread_mutex_lock(&ch->post_lock);
	rc = ch->posting ? vqp_send(&ch->q, ch->sq_head, buf, (uint32_t)(DATA_HEADER_LEN + len),
				    ch->mr->lkey, true)
			 : -ECANCELED;
	pthread_mutex_unlock(&ch->post_lock);
	if (rc) {
		ch->free_slots[ch->nr_free++] = (uint8_t)slot;
		return vchan_failed(
			ch, rc, err,
			"Sending on channel %u to %s failed (device %s, queue pair %u): "
			"%s",
			ch->base.index, ch->conn->peer, ch->conn->device, ch->qp_num,
			error_name(rc));
	}
	ch->sq_head++;
	ch->sq_signalled = ch->sq_head;
	ch->owe = 0;
	ch->credits--;
	return 0;
}

void vchan_stats(const struct transport_channel *base, struct tern_channel_stats *out)
{
	const struct verbs_channel *ch = (const struct verbs_channel *)base;
	uint64_t first = atomic_load_explicit(&ch->fig.first_write_ns, memory_order_relaxed);

	if (!out->first_write_ns || out->first_write_ns == TRANSPORT_NO_WRITE_YET)
		out->first_write_ns = first ? first : TRANSPORT_NO_WRITE_YET; /* the first link's */
	out->bytes += atomic_load_explicit(&ch->fig.bytes, memory_order_relaxed);
	out->writes += atomic_load_explicit(&ch->fig.writes, memory_order_relaxed);
	out->stalls += atomic_load_explicit(&ch->fig.stalls, memory_order_relaxed);
	out->buffer_node = ch->buf_node;
	out->completion_vector = (int32_t)ch->vector;
}
