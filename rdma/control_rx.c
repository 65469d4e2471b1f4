/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * The control queue, receiving side: the pump thread, and recv().
 *
 *	completion queue ──► pump ──► inbox ──► recv()          MSG
 *	                          ──► keys or grants            KEYS…
 *	CM events        ──► pump ──► channels established, lost
 *
 * The pump never waits for anything but its file descriptors, so that credits
 * flow whatever the engine does.  A disconnection without BYE is the peer's
 * death; frames that arrived before it are delivered first.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
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

/* The connection dies of something that this side's device would not do. */
static void device_is_bad(struct verbs_conn *c, const char *what, int code)
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
	pthread_cond_broadcast(&q->cond);
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

/* A send is complete: its slot is free. */
static void send_done(struct verbs_conn *c, const struct ibv_wc *wc)
{
	struct control *q = &c->ctl;

	pthread_mutex_lock(&q->lock);
	q->free_slots[q->nr_free++] = (uint8_t)wc->wr_id;
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
		device_is_bad(c, "Posting a receive", rc);
	pthread_mutex_lock(&c->ctl.lock);
	control_flush_locked(c);
	pthread_mutex_unlock(&c->ctl.lock);
}

/* Handle all completions there are. */
static void drain(struct verbs_conn *c)
{
	struct ibv_wc wc[POLL_BATCH];
	int n;

	while ((n = ibv_poll_cq(c->ctl.cq, POLL_BATCH, wc)) > 0) {
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
		device_is_bad(c, "Polling the completions", -EIO);
}

/* The control connection is gone.  Without BYE that is the peer's death. */
static void disconnected(struct verbs_conn *c)
{
	struct tern_error why = { 0 };

	drain(c);
	pthread_mutex_lock(&c->ctl.lock);
	bool bye = c->ctl.bye;

	c->ctl.posting = false;
	pthread_mutex_unlock(&c->ctl.lock);
	if (!bye) {
		error_session(
			&why, -ECONNRESET,
			"The peer %s closed the connection without a word; it or its host may "
			"have died",
			c->peer);
		vconn_fail(c, &why);
	}
	(void)rdma_disconnect(c->id); /* flush what is outstanding; a second time does no harm */
	vconn_tell_listener(c);
}

/* Which channel @id is, or NULL.  conn->lock is held. */
static struct verbs_channel *find_channel(struct verbs_conn *c, const struct rdma_cm_id *id)
{
	for (unsigned i = 0; i < TRANSPORT_CHANNELS_MAX; i++)
		if (c->channels[i] && c->channels[i]->id == id)
			return c->channels[i];
	return NULL;
}

/*
 * Does an event of an established connection not mean its end?  UNREACHABLE comes when the
 * address of the peer's host does not resolve any more.  It may again before the queue pair
 * has tried often enough; if not, its completion says so.
 */
static bool goes_on(const struct cm_event *ev)
{
	return ev->type == RDMA_CM_EVENT_TIMEWAIT_EXIT || ev->type == RDMA_CM_EVENT_UNREACHABLE;
}

/* An event of a channel's connection. */
static void vchan_event(struct verbs_conn *c, const struct cm_event *ev)
{
	struct verbs_channel *ch;

	pthread_mutex_lock(&c->lock);
	ch = find_channel(c, ev->id);
	if (ch && ev->type == RDMA_CM_EVENT_ESTABLISHED) {
		ch->established = true;
		pthread_cond_broadcast(&c->changed);
	} else if (ch && !(ch->established && goes_on(ev))) {
		atomic_store(&ch->lost, true);
		if (ch->established) /* flush what is outstanding */
			(void)rdma_disconnect(ch->id);
		(void)eventfd_write(ch->wake_fd, 1);
	}
	pthread_mutex_unlock(&c->lock);
}

/* Handle all CM events there are. */
static void cm_events(struct verbs_conn *c)
{
	struct tern_error why = { 0 };
	struct cm_event ev;

	while (!verbs_cm_next(c->cm, -1, 0, &ev)) {
		if (ev.type == RDMA_CM_EVENT_DEVICE_REMOVAL) {
			error_session(&why, -ENODEV, "The RDMA device %s was removed", c->device);
			vconn_fail(c, &why);
		} else if (ev.id != c->id) {
			vchan_event(c, &ev);
		} else if (ev.type != RDMA_CM_EVENT_ESTABLISHED && !goes_on(&ev)) {
			disconnected(c);
		}
	}
}

/* Take the completion event, if there is one, and ask for the next. */
static void rearm(struct verbs_conn *c)
{
	struct ibv_cq *cq;
	void *ctx;
	int rc;

	while (!ibv_get_cq_event(c->ctl.comp, &cq, &ctx)) {
		if (cq == c->ctl.cq)
			c->ctl.nr_events++;
		else
			windows_event(ctx);
	}
	rc = -ibv_req_notify_cq(c->ctl.cq, 0);
	if (rc)
		device_is_bad(c, "Arming the completions", rc);
}

void *control_pump(void *conn)
{
	struct verbs_conn *c = conn;
	struct pollfd p[3] = {
		{ .fd = c->ctl.comp->fd, .events = POLLIN },
		{ .fd = c->cm->fd, .events = POLLIN },
		{ .fd = c->kick_fd, .events = POLLIN },
	};
	eventfd_t ignored;

	pthread_setname_np(pthread_self(), "tern-rdma-ctl");
	verbs_thread_on_node(c, c->place.numa_node);
	while (!atomic_load(&c->pump_stop)) {
		rearm(c);
		drain(c);
		if (poll(p, 3, -1) < 0 && errno != EINTR)
			break;
		if (p[1].revents)
			cm_events(c);
		if (p[2].revents) {
			(void)eventfd_read(c->kick_fd, &ignored);
			vconn_wake_all(c);
		}
	}
	return NULL;
}

/* Take the first message.  Its length, or -EMSGSIZE with *err (it stays).  ctl.lock is held. */
static long inbox_take(struct verbs_conn *c, void *buf, size_t cap, struct tern_error *err)
{
	struct control *q = &c->ctl;
	struct ctl_message *m = q->inbox;
	long len = m->len;

	if (m->len > cap)
		return error_session(err, -EMSGSIZE,
				     "The peer %s sent a control message of %u bytes; at most %zu "
				     "are allowed",
				     c->peer, m->len, cap);
	memcpy(buf, m->payload, m->len);
	q->inbox = m->next;
	if (!q->inbox)
		q->inbox_tail = &q->inbox;
	q->nr_inbox--;
	q->owe_msgs++;
	free(m);
	control_flush_locked(c);
	return len;
}

/* What recv() returns now, or -EAGAIN.  ctl.lock is held. */
static long recv_now(struct verbs_conn *c, void *buf, size_t cap, struct tern_error *err)
{
	struct control *q = &c->ctl;

	if (atomic_load(&c->aborted))
		return error_session(err, -ECANCELED, "The connection to %s was aborted", c->peer);
	if (q->inbox)
		return inbox_take(c, buf, cap, err);
	if (q->bye)
		return 0;
	if (q->error.code)
		return error_session(err, q->error.code, "%s", q->error.message);
	return -EAGAIN;
}

long control_recv(struct transport_conn *conn, void *buf, size_t cap, int timeout_ms,
		  struct tern_error *err)
{
	struct verbs_conn *c = to_conn(conn);
	struct timespec ts;
	int waited = 0;
	long n;

	verbs_timespec(verbs_deadline(timeout_ms), &ts);
	pthread_mutex_lock(&c->ctl.lock);
	while ((n = recv_now(c, buf, cap, err)) == -EAGAIN && waited != ETIMEDOUT)
		waited = pthread_cond_timedwait(&c->ctl.cond, &c->ctl.lock, &ts);
	pthread_mutex_unlock(&c->ctl.lock);
	if (n == -EAGAIN)
		return error_session(err, -ETIMEDOUT,
				     "No control message came from %s within %d ms", c->peer,
				     timeout_ms);
	return n;
}
