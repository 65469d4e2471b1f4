/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * Who looks after the control queue: the pump thread, and recv().
 *
 *	control.cq  ──► pump, or the thread in recv() ──► control_rx.c
 *	CM events   ──► pump ──► channels established, lost
 *
 * The pump can always do it, and never waits for anything but its file descriptors.  But a
 * message that wakes the pump, which then wakes recv(), has woken one thread too many, and
 * in postcopy a thread of the guest waits for that.  So recv() sleeps on the completion
 * channel itself for a while (LOOK_MS), and the pump, which sees that, leaves it alone:
 *
 *	looked_after  set by recv() whenever it looks, cleared by the pump every LOOK_MS.
 *	              While it finds it set it only watches its other file descriptors.
 *
 * If recv()'s thread is busy with a message, the pump is back within two LOOK_MS.  If no
 * message comes for LOOK_MS, recv() hands over to the pump, and sleeps until that has one:
 * an idle connection wakes nobody.  Both may look at once; poll_lock sees to it that one
 * does after the other.
 *
 * Before recv() sleeps it polls, if messages come quickly (spin.h).
 *
 * A disconnection without BYE is the peer's death; frames that arrived before it are
 * delivered first.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include "error.h"
#include "verbs.h"

#define LOOK_MS 5

void control_tell_locked(struct control *q)
{
	pthread_cond_broadcast(&q->cond);
	if (q->watching)
		(void)eventfd_write(q->recv_fd, 1);
	q->watching = false;
}

/*
 * Take an event if there is one, see to it that the next completion makes one, and handle the
 * completions.  Any thread.
 */
static void look(struct verbs_conn *c)
{
	struct control *q = &c->ctl;
	struct ibv_cq *cq;
	void *ctx;
	int rc = 0;

	pthread_mutex_lock(&q->poll_lock);
	if (!ibv_get_cq_event(q->comp, &cq, &ctx)) { /* if there are more, poll() says so */
		if (cq == q->cq) {
			q->nr_events++;
			q->armed = false;
		} else {
			windows_event(ctx);
		}
	}
	do { /* a completion that comes before arming makes no event */
		if (!q->armed)
			rc = -ibv_req_notify_cq(q->cq, 0);
		q->armed = !rc;
		control_drain(c);
	} while (!q->armed && !rc);
	pthread_mutex_unlock(&q->poll_lock);
	if (rc)
		control_device_failed(c, "Arming the completions", rc);
}

/* Handle the completions.  Any thread. */
static void peek(struct verbs_conn *c)
{
	pthread_mutex_lock(&c->ctl.poll_lock);
	control_drain(c);
	pthread_mutex_unlock(&c->ctl.poll_lock);
}

void control_hand_over(struct verbs_conn *c)
{
	atomic_store(&c->ctl.looked_after, false);
	(void)eventfd_write(c->kick_fd, 1);
}

/* The control connection is gone.  Without BYE that is the peer's death. */
static void disconnected(struct verbs_conn *c)
{
	struct tern_error why = { 0 };

	peek(c);
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

void *control_pump(void *conn)
{
	struct verbs_conn *c = conn;
	struct pollfd p[3] = {
		{ .events = POLLIN },
		{ .fd = c->cm->fd, .events = POLLIN },
		{ .fd = c->kick_fd, .events = POLLIN },
	};
	eventfd_t ignored;

	pthread_setname_np(pthread_self(), "tern-rdma-ctl");
	verbs_thread_on_node(c, c->place.numa_node);
	while (!atomic_load(&c->pump_stop)) {
		bool by_recv = atomic_exchange(&c->ctl.looked_after, false);

		if (!by_recv)
			look(c);
		p[0].fd = by_recv ? -1 : c->ctl.comp->fd;
		if (poll(p, 3, by_recv ? LOOK_MS : -1) < 0 && errno != EINTR)
			break;
		if (p[1].revents)
			cm_events(c);
		if (p[2].revents)
			(void)eventfd_read(c->kick_fd, &ignored);
		if (atomic_exchange(&c->kicked, false))
			vconn_wake_all(c);
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

/* The same; if there is nothing, control_tell_locked() writes to recv_fd from now on. */
static long recv_or_watch(struct verbs_conn *c, void *buf, size_t cap, struct tern_error *err)
{
	long n;

	pthread_mutex_lock(&c->ctl.lock);
	n = recv_now(c, buf, cap, err);
	c->ctl.watching = n == -EAGAIN;
	pthread_mutex_unlock(&c->ctl.lock);
	return n;
}

/* Poll for as long as it is likely to pay; see spin.h.  What recv_now() returns. */
static long recv_by_polling(struct verbs_conn *c, void *buf, size_t cap, uint64_t begin_ns,
			    struct tern_error *err)
{
	long n = -EAGAIN;

	while (n == -EAGAIN && spin_pause(&c->ctl.spin, begin_ns)) {
		peek(c);
		n = recv_or_watch(c, buf, cap, err);
	}
	return n;
}

/*
 * Look after the completion queue until a message is there, or for LOOK_MS, or until
 * @deadline.  What recv_now() returns, -EAGAIN: none came.
 *
 * First the completions alone: taking the event that told of a message, and asking for the
 * next one, are system calls that the message need not wait for.
 */
static long recv_by_looking(struct verbs_conn *c, void *buf, size_t cap, int64_t deadline,
			    uint64_t begin_ns, struct tern_error *err)
{
	struct control *q = &c->ctl;
	int64_t until = verbs_deadline(LOOK_MS);
	struct pollfd p[2] = {
		{ .fd = q->comp->fd, .events = POLLIN },
		{ .fd = q->recv_fd, .events = POLLIN },
	};
	eventfd_t ignored;
	int left = 1;
	long n;

	if (deadline >= 0 && deadline < until)
		until = deadline;
	for (;;) {
		atomic_store(&q->looked_after, true);
		peek(c);
		n = recv_or_watch(c, buf, cap, err);
		if (n != -EAGAIN)
			return n;
		n = recv_by_polling(c, buf, cap, begin_ns, err);
		if (n != -EAGAIN)
			return n;
		look(c);
		n = recv_or_watch(c, buf, cap, err);
		if (n != -EAGAIN || !left)
			break;
		left = verbs_remaining(until);
		if (poll(p, 2, left) > 0 && p[1].revents)
			(void)eventfd_read(q->recv_fd, &ignored);
	}
	if (n == -EAGAIN)
		control_hand_over(c);
	return n;
}

long control_recv(struct transport_conn *conn, void *buf, size_t cap, int timeout_ms,
		  struct tern_error *err)
{
	struct verbs_conn *c = to_conn(conn);
	int64_t deadline = verbs_deadline(timeout_ms);
	uint64_t begin = verbs_now_ns();
	struct timespec ts;
	int waited = 0;
	long n;

	n = recv_by_looking(c, buf, cap, deadline, begin, err);
	if (n == -EAGAIN) {
		verbs_timespec(deadline, &ts);
		pthread_mutex_lock(&c->ctl.lock);
		c->ctl.watching = false;
		while ((n = recv_now(c, buf, cap, err)) == -EAGAIN && waited != ETIMEDOUT)
			waited = pthread_cond_timedwait(&c->ctl.cond, &c->ctl.lock, &ts);
		pthread_mutex_unlock(&c->ctl.lock);
	}
	if (n == -EAGAIN) { /* the pump may not have run since a message came */
		peek(c);
		pthread_mutex_lock(&c->ctl.lock);
		n = recv_now(c, buf, cap, err);
		pthread_mutex_unlock(&c->ctl.lock);
	}
	spin_adapt(&c->ctl.spin, verbs_now_ns() - begin);
	if (n == -EAGAIN)
		return error_session(err, -ETIMEDOUT,
				     "No control message came from %s within %d ms", c->peer,
				     timeout_ms);
	return n;
}
