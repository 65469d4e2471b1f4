/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * The control queue, sending side and resources.
 *
 * One queue pair carries the engine's messages and the transport's own frames
 * (keys, credits, goodbye).  Two windows keep every SEND from meeting an empty
 * receive queue or an overfull inbox:
 *
 *	credits      receives the peer has posted.  A receive is posted again as
 *	             soon as its frame was looked at.
 *	msg_credits  engine messages the peer will keep until its recv() is called.
 *
 * Every frame returns what is owed of both.  When half a ring is owed and nothing
 * else goes that way, a CREDIT frame goes; the last CTL_RESERVE credits are kept
 * for those, so that they can never be held up by other frames.
 *
 * Sends complete in order, and a completion wakes somebody, so only every
 * CTL_UNSIGNALLED-th asks for one; it frees the slots of those before it too.  One
 * that fails has a completion all the same.
 *
 * Slots:  | send 0 … CTL_RING-1 | receive 0 … CTL_RING-1 |, CTL_SLOT bytes each.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include "error.h"
#include "verbs.h"

#define RECV_BIT (1ull << 63) /* wr_id of receives */

static uint8_t *slot_at(struct control *q, unsigned i)
{
	return q->buf + (size_t)i * CTL_SLOT;
}

/* Queue pair of the control queue.  0 or -errno with *err. */
static int control_qp(struct verbs_conn *c, struct tern_error *err)
{
	struct ibv_qp_init_attr attr = {
		.send_cq = c->ctl.cq,
		.recv_cq = c->ctl.cq,
		.qp_type = IBV_QPT_RC,
		.cap = {
			.max_send_wr = CTL_RING,
			.max_recv_wr = CTL_RING,
			.max_send_sge = 1,
			.max_recv_sge = 1,
		},
	};
	int rc = vqp_create(c->id, c->pd_control, &attr, false, &c->ctl.q);

	if (!rc)
		return 0;
	return error_session(err, rc,
			     "Device %s gave no queue pair for the control queue to %s: %s",
			     c->device, c->peer, error_name(rc));
}

/* The sentence for a queue that could not be made. */
static int control_no_queue(struct verbs_conn *c, const char *what, int code,
			    struct tern_error *err)
{
	char hint[200] = "";

	if (code == -ENOMEM)
		verbs_memlock_hint(hint, sizeof(hint));
	return error_session(err, code,
			     "Making %s on device %s for the control queue failed: %s%s%s", what,
			     c->device, error_name(code), hint[0] ? "; " : "", hint);
}

int control_open(struct verbs_conn *c, struct tern_error *err)
{
	struct control *q = &c->ctl;
	size_t size = 2 * CTL_RING * (size_t)CTL_SLOT;

	q->comp = ibv_create_comp_channel(c->id->verbs);
	if (!q->comp)
		return control_no_queue(c, "a completion channel", -errno, err);
	(void)fcntl(q->comp->fd, F_SETFL, fcntl(q->comp->fd, F_GETFL) | O_NONBLOCK);
	q->cq = ibv_create_cq(c->id->verbs, 2 * CTL_RING, NULL, q->comp, 0);
	if (!q->cq)
		return control_no_queue(c, "a completion queue", -errno, err);
	q->buf = verbs_buffer_new(size, c->place.numa_node);
	if (!q->buf)
		return control_no_queue(c, "buffers", -ENOMEM, err);
	q->buf_size = size;
	q->mr = ibv_reg_mr(c->pd_control, q->buf, size, IBV_ACCESS_LOCAL_WRITE);
	if (!q->mr)
		return control_no_queue(c, "a registration of buffers", -errno, err);
	for (unsigned i = 0; i < CTL_RING; i++)
		q->free_slots[q->nr_free++] = (uint8_t)i;
	return control_qp(c, err);
}

void control_close(struct verbs_conn *c)
{
	struct control *q = &c->ctl;

	if (c->id && c->id->qp)
		rdma_destroy_qp(c->id);
	if (q->cq) {
		if (q->nr_events)
			ibv_ack_cq_events(q->cq, q->nr_events);
		ibv_destroy_cq(q->cq);
	}
	if (q->comp)
		ibv_destroy_comp_channel(q->comp);
	if (q->mr)
		ibv_dereg_mr(q->mr);
	verbs_buffer_free(q->buf, q->buf_size);
	while (q->frames) {
		struct ctl_frame *f = q->frames;

		q->frames = f->next;
		free(f);
	}
	while (q->inbox) {
		struct ctl_message *m = q->inbox;

		q->inbox = m->next;
		free(m);
	}
}

/* control_repost - receive slot @slot (0 …) may be filled again.  0 or -errno. */
int control_repost(struct verbs_conn *c, unsigned slot)
{
	struct ibv_sge sge = {
		.addr = (uintptr_t)slot_at(&c->ctl, CTL_RING + slot),
		.length = CTL_SLOT,
		.lkey = c->ctl.mr->lkey,
	};
	struct ibv_recv_wr wr = { .wr_id = RECV_BIT | slot, .sg_list = &sge, .num_sge = 1 };
	struct ibv_recv_wr *bad;

	return -ibv_post_recv(c->id->qp, &wr, &bad);
}

int control_post_receives(struct verbs_conn *c, struct tern_error *err)
{
	for (unsigned i = 0; i < CTL_RING; i++) {
		int rc = control_repost(c, i);

		if (rc)
			return error_session(err, rc,
					     "Posting a receive on queue pair %u of device %s "
					     "failed: %s",
					     c->id->qp->qp_num, c->device, error_name(rc));
	}
	return 0;
}

/* control_begin - the connection is established; @peer is its greeting. */
void control_begin(struct verbs_conn *c, const struct greeting *peer)
{
	pthread_mutex_lock(&c->ctl.lock);
	c->ctl.credits = peer->ring;
	c->ctl.msg_credits = peer->msg_window;
	c->ctl.posting = true;
	pthread_mutex_unlock(&c->ctl.lock);
	c->peer_budget = peer->lock_budget;
}

/* May a frame of @type be posted now?  ctl.lock is held. */
static bool may_post(const struct control *q, uint16_t type)
{
	unsigned keep = type == CTL_CREDIT ? 0 : CTL_RESERVE;

	return q->posting && q->nr_free && q->credits > keep;
}

/* Post a frame; may_post() was true.  0 or -errno.  ctl.lock is held. */
static int control_post(struct verbs_conn *c, uint16_t type, const void *payload, uint32_t len)
{
	struct control *q = &c->ctl;
	unsigned slot = q->free_slots[--q->nr_free];
	bool signal = type == CTL_BYE || q->unsignalled + 1 == CTL_UNSIGNALLED;
	struct ctl_header h = { .type = type,
				.credits = (uint16_t)q->owe,
				.msg_credits = (uint16_t)q->owe_msgs,
				.len = len };
	int rc;

	ctl_header_put(slot_at(q, slot), &h);
	if (len)
		memcpy(slot_at(q, slot) + CTL_HEADER_LEN, payload, len);
	rc = vqp_send(&q->q, (uint64_t)type << 32 | slot, slot_at(q, slot), CTL_HEADER_LEN + len,
		      q->mr->lkey, signal);
	if (rc) {
		q->free_slots[q->nr_free++] = (uint8_t)slot;
		return rc;
	}
	q->sent[(q->sent_at + CTL_RING - 1 - q->nr_free) % CTL_RING] = (uint8_t)slot;
	q->unsignalled = signal ? 0 : q->unsignalled + 1;
	q->owe = 0;
	q->owe_msgs = 0;
	q->credits--;
	return 0;
}

/* Posting failed: the connection is dead.  ctl.lock is held. */
static void post_failed(struct verbs_conn *c, int code)
{
	if (!c->ctl.error.code)
		error_session(
			&c->ctl.error, vconn_final(code),
			"Sending on the control queue to %s failed (device %s, queue pair %u): "
			"%s",
			c->peer, c->device, c->id->qp->qp_num, error_name(code));
	c->ctl.posting = false;
	control_tell_locked(&c->ctl);
	vconn_kick(c); /* the pump wakes the others */
}

/* Send waiting frames, or credits if much is owed.  ctl.lock is held. */
void control_flush_locked(struct verbs_conn *c)
{
	struct control *q = &c->ctl;
	int rc = 0;

	while (!rc && q->frames && may_post(q, q->frames->type)) {
		struct ctl_frame *f = q->frames;

		rc = control_post(c, f->type, f->payload, f->len);
		q->frames = f->next;
		if (!q->frames)
			q->frames_tail = &q->frames;
		free(f);
	}
	if (!rc && (q->owe >= CTL_RING / 2 || q->owe_msgs >= CTL_MSG_WINDOW / 2) &&
	    may_post(q, CTL_CREDIT))
		rc = control_post(c, CTL_CREDIT, NULL, 0);
	if (rc)
		post_failed(c, rc);
}

int control_queue(struct verbs_conn *c, uint16_t type, const void *payload, uint32_t len)
{
	struct ctl_frame *f = malloc(sizeof(*f) + len);

	if (!f)
		return -ENOMEM;
	f->next = NULL;
	f->type = type;
	f->len = len;
	if (len)
		memcpy(f->payload, payload, len);
	pthread_mutex_lock(&c->ctl.lock);
	*c->ctl.frames_tail = f;
	c->ctl.frames_tail = &f->next;
	control_flush_locked(c);
	pthread_mutex_unlock(&c->ctl.lock);
	return 0;
}

/* Wait until an engine message may go.  0, -ETIMEDOUT, -ECANCELED, -errno.  ctl.lock is held. */
static int wait_for_room(struct verbs_conn *c, int timeout_ms)
{
	struct control *q = &c->ctl;
	struct timespec ts;
	int rc = 0;

	verbs_timespec(verbs_deadline(timeout_ms), &ts);
	for (;;) {
		if (atomic_load(&c->aborted))
			return -ECANCELED;
		if (q->error.code)
			return q->error.code;
		if (q->bye)
			return -ECONNRESET;
		if (!q->frames && q->msg_credits && may_post(q, CTL_MSG))
			return 0;
		if (rc)
			return -ETIMEDOUT;
		rc = pthread_cond_timedwait(&q->cond, &q->lock, &ts);
		rc = rc == ETIMEDOUT ? rc : 0;
	}
}

int control_send(struct transport_conn *conn, const void *msg, size_t len, int timeout_ms,
		 struct tern_error *err)
{
	struct verbs_conn *c = to_conn(conn);
	struct tern_error why;
	int rc;

	if (len < 1 || len > TRANSPORT_MSG_MAX)
		return error_session(err, -EMSGSIZE,
				     "A control message of %zu bytes cannot be sent; 1 to %u can",
				     len, TRANSPORT_MSG_MAX);
	pthread_mutex_lock(&c->ctl.lock);
	rc = wait_for_room(c, timeout_ms);
	if (!rc) {
		rc = control_post(c, CTL_MSG, msg, (uint32_t)len);
		if (!rc)
			c->ctl.msg_credits--;
		else
			post_failed(c, rc);
	}
	why = c->ctl.error;
	pthread_mutex_unlock(&c->ctl.lock);
	if (!rc)
		return 0;
	if (rc == -ECANCELED)
		return error_session(err, rc, "The connection to %s was aborted", c->peer);
	if (why.code)
		return error_session(err, why.code, "%s", why.message);
	if (rc == -ETIMEDOUT)
		return error_session(err, rc,
				     "The peer %s took no control message for %d ms; check that it "
				     "is alive and reachable",
				     c->peer, timeout_ms);
	return error_session(err, rc, "The peer %s closed the connection", c->peer);
}
