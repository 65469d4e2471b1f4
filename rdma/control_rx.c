/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * The control queue: what to do with its completions.
 *
 *	completion queue ──► inbox ──► recv()          MSG
 *	                 ──► keys or grants            KEYS…
 *
 * Nothing here waits, so credits flow whatever the engine does.  Who calls it is
 * told in control_poll.c.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "error.h"
#include "verbs.h"

#define RECV_BIT (1ull << 63)
#define POLL_BATCH 16

/* The connection dies of something the peer sent. */
static void peer_is_bad(struct verbs_conn *c, const char *what, uint64_t value)
{
	struct tern_error why = { 0 };

	error_session(&why, -EPROTO,
		      "The peer %s broke the protocol of the control queue: %s is %llu", c->peer,
		      what, (unsigned long long)value);
	vconn_fail(c, &why);
}

void control_device_failed(struct verbs_conn *c, const char *what, int code)
{
	struct tern_error why = { 0 };

	error_session(&why, code,
		      "%s of the control queue to %s failed (device %s, queue pair %u): %s", what,
		      c->peer, c->device, c->id->qp->qp_num, error_name(code));
	vconn_fail(c, &why);
}

/* An engine message into the inbox.  ctl.lock is held. */
static int inbox_put(struct verbs_conn *c, const uint8_t *payload, uint32_t len)
{
	struct control *q = &c->ctl;
	struct ctl_message *m;

	if (q->nr_inbox + q->owe_msgs >= CTL_MSG_WINDOW)
		return -EPROTO;
	m = malloc(sizeof(*m) + len);
	if (!m)
		return -ENOMEM;
	m->next = NULL;
	m->len = len;
	memcpy(m->payload, payload, len);
	*q->inbox_tail = m;
	q->inbox_tail = &m->next;
	q->nr_inbox++;
	return 0;
}

/* Credits and engine part of a frame.  0 or -errno. */
static int take_locked(struct verbs_conn *c, const struct ctl_header *h, const uint8_t *payload)
{
	struct control *q = &c->ctl;
	int rc = 0;

	q->owe++;
	q->credits += h->credits;
	q->msg_credits += h->msg_credits;
	if (q->owe > CTL_RING || q->credits > 4096 || q->msg_credits > 4096)
		return -EPROTO;
	if (h->type == CTL_MSG)
		rc = inbox_put(c, payload, h->len);
	if (h->type == CTL_BYE)
		q->bye = true;
	control_tell_locked(q);
	return rc;
}

/* One frame of @bytes bytes in receive slot @slot. */
static void take_frame(struct verbs_conn *c, unsigned slot, uint32_t bytes)
{
	const uint8_t *buf = c->ctl.buf + (size_t)(CTL_RING + slot) * CTL_SLOT;
	struct ctl_header h;
	int rc;

	if (bytes < CTL_HEADER_LEN || bytes > CTL_SLOT) {
		peer_is_bad(c, "the length of a frame", bytes);
		return;
	}
	ctl_header_get(buf, &h);
	if (h.len != bytes - CTL_HEADER_LEN) {
		peer_is_bad(c, "the payload length of a frame", h.len);
		return;
	}
	if (h.type < CTL_MSG || h.type > CTL_BYE || (h.type == CTL_MSG && !h.len)) {
		peer_is_bad(c, "the type of a frame", h.type);
		return;
	}
	pthread_mutex_lock(&c->ctl.lock);
	rc = take_locked(c, &h, buf + CTL_HEADER_LEN);
	pthread_mutex_unlock(&c->ctl.lock);
	if (rc)
		peer_is_bad(c, "the number of messages or credits outstanding", h.credits);
	if (h.type == CTL_KEYS && c->source)
		keys_take(c, buf + CTL_HEADER_LEN, h.len);
	else if ((h.type == CTL_KEYS_WANTED || h.type == CTL_KEYS_RELEASE) && !c->source)
		grants_take(c, h.type, buf + CTL_HEADER_LEN, h.len);
	else if (h.type == CTL_KEYS || h.type == CTL_KEYS_WANTED || h.type == CTL_KEYS_RELEASE)
		peer_is_bad(c, "the type of a frame, which this side cannot take,", h.type);
	if (h.type == CTL_MSG || h.type == CTL_BYE)
		vconn_tell_listener(c);
}

/*
 * A completion that failed: the queue pair is in error.  A flush is the consequence of
 * that and follows the cause, if the cause is a request of ours or the end of the
 * connection; alone, it is all there is to tell.
 */
static void completion_failed(struct verbs_conn *c, const struct ibv_wc *wc)
{
	struct tern_error why = { 0 };
	bool expected;

	pthread_mutex_lock(&c->ctl.lock);
	expected = !c->ctl.posting || c->ctl.bye || c->ctl.error.code;
	pthread_mutex_unlock(&c->ctl.lock);
	if (wc->status == IBV_WC_WR_FLUSH_ERR && (expected || atomic_load(&c->aborted)))
		return;
	/* Not -ETIMEDOUT: from recv() that would mean that nothing came yet. */
	error_session(&why, -ECONNRESET,
		      "The control queue to %s failed (device %s, queue pair %u): %s (status %d); "
		      "check the peer and the link",
		      c->peer, c->device, c->id->qp->qp_num, ibv_wc_status_str(wc->status),
		      wc->status);
	vconn_fail(c, &why);
}

/* A send is complete, and all before it are: their slots are free. */
static void send_done(struct verbs_conn *c, const struct ibv_wc *wc)
{
	struct control *q = &c->ctl;
	uint8_t slot;

	pthread_mutex_lock(&q->lock);
	do {
		slot = q->sent[q->sent_at++ % CTL_RING];
		q->free_slots[q->nr_free++] = slot;
	} while (slot != (uint8_t)wc->wr_id && q->nr_free < CTL_RING);
	if (wc->wr_id >> 32 == CTL_BYE)
		q->bye_sent = true;
	control_flush_locked(c);
	pthread_cond_broadcast(&q->cond);
	pthread_mutex_unlock(&q->lock);
}

/* A receive is complete: look at it and post it again. */
static void receive_done(struct verbs_conn *c, const struct ibv_wc *wc)
{
	unsigned slot = (unsigned)(wc->wr_id & ~RECV_BIT);
	int rc;

	take_frame(c, slot, wc->byte_len);
	rc = control_repost(c, slot);
	if (rc)
		control_device_failed(c, "Posting a receive", rc);
	pthread_mutex_lock(&c->ctl.lock);
	control_flush_locked(c);
	pthread_mutex_unlock(&c->ctl.lock);
}

void control_drain(struct verbs_conn *c)
{
	struct ibv_wc wc[POLL_BATCH];
	int n;

	while ((n = ibv_poll_cq(c->ctl.cq, POLL_BATCH, wc)) > 0) {
		c->ctl.armed = false; /* the event, if there was to be one, has been made */
		for (int i = 0; i < n; i++) {
			if (wc[i].status != IBV_WC_SUCCESS)
				completion_failed(c, &wc[i]);
			else if (wc[i].wr_id & RECV_BIT)
				receive_done(c, &wc[i]);
			else
				send_done(c, &wc[i]);
		}
	}
	if (n < 0)
		control_device_failed(c, "Polling the completions", -EIO);
}
