/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * Memory windows at the destination.
 *
 *	registrar   registers a range for local use only, allocates a type 2 window and
 *	            posts its binding to the queue pair of the channel that asked
 *	pump        reaps the binding, and only then sends the key
 *
 * A window lets one queue pair write one range, and is dead without that queue pair:
 * a key that one channel was given is worth nothing on another, and nothing at all
 * once the data queue pairs are in the error state.  The memory itself has no key that the peer
 * could use.
 *
 * The send queue of such a channel has a completion queue of its own, whose events come
 * to the pump: neither the registrar nor serve() waits for a binding.  Completions of
 * frames arrive there as well; their number is passed on to the channel's thread.
 *
 * Windows go before their registration, and before their queue pair is destroyed: some
 * drivers wait for them there.
 */

#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include "error.h"
#include "verbs.h"

#define BIND_BIT (1ull << 62) /* wr_id: the address of a struct window */
#define POLL_BATCH 32

bool windows_possible(const struct verbs_conn *c)
{
	const unsigned type2 = IBV_DEVICE_MEM_WINDOW_TYPE_2A | IBV_DEVICE_MEM_WINDOW_TYPE_2B;

	return !c->env.no_windows && !c->paging && (c->attr.device_cap_flags & type2) &&
	       c->attr.max_mw > 0;
}

/* Post the binding of @w.  0 or -errno.  post_lock is held. */
static int post_bind(struct verbs_channel *ch, struct window *w)
{
	const struct verbs_conn *c = ch->conn;
	const struct grant *g = w->grant;
	const struct ibv_mw_bind_info info = {
		.mr = g->mr,
		.addr = (uintptr_t)c->mem[g->region].hva + g->offset,
		.length = g->len,
		.mw_access_flags = IBV_ACCESS_REMOTE_WRITE,
	};

	return vqp_bind(&ch->q, BIND_BIT | (uintptr_t)w, w->mw, w->rkey, &info);
}

/* Post as many bindings as there is room for.  0 or -errno.  post_lock is held. */
static int post_binds(struct verbs_channel *ch)
{
	int rc = 0;

	while (!rc && ch->binds && ch->nr_binding < ch->bind_room && ch->posting) {
		struct window *w = ch->binds;

		ch->binds = w->queue_next;
		if (!ch->binds)
			ch->binds_tail = &ch->binds;
		ch->nr_binding++;
		rc = post_bind(ch, w);
	}
	return rc;
}

/* Binding failed for good: the connection is dead. */
static void bind_failed(struct verbs_channel *ch, int code, const char *words)
{
	struct tern_error why = { 0 };

	error_channel(&why, code, ch->base.index,
		      "Binding a memory window for channel %u failed (device %s, queue pair %u): "
		      "%s; try --no-windows",
		      ch->base.index, ch->conn->device, ch->qp_num, words);
	vconn_fail(ch->conn, &why);
}

/* @ch's send completion queue does not work: the connection is dead. */
static void queue_failed(struct verbs_channel *ch, const char *what, int code)
{
	struct tern_error why = { 0 };

	error_channel(&why, code, ch->base.index,
		      "%s the completions of what channel %u sends failed (device %s, queue pair "
		      "%u): %s",
		      what, ch->base.index, ch->conn->device, ch->qp_num, error_name(code));
	vconn_fail(ch->conn, &why);
}

/* The attached channel @index, or NULL. */
static struct verbs_channel *channel_at(struct verbs_conn *c, uint32_t index)
{
	struct verbs_channel *ch;

	pthread_mutex_lock(&c->lock);
	ch = index < TRANSPORT_CHANNELS_MAX ? c->channels[index] : NULL;
	pthread_mutex_unlock(&c->lock);
	return ch;
}

int window_open(struct verbs_conn *c, struct grant *g, uint32_t channel)
{
	struct verbs_channel *ch = channel_at(c, channel);
	struct window *w;
	int rc;

	if (!ch)
		return -ENOTCONN;
	w = calloc(1, sizeof(*w));
	if (!w)
		return -ENOMEM;
	w->mw = ibv_alloc_mw(c->pd_data, IBV_MW_TYPE_2);
	if (!w->mw) {
		rc = -registrar_no_room(errno);
		free(w);
		return rc;
	}
	w->grant = g;
	w->channel = channel;
	w->rkey = ibv_inc_rkey(w->mw->rkey);
	w->next = g->windows;
	g->windows = w;
	pthread_mutex_lock(&ch->post_lock);
	*ch->binds_tail = w;
	ch->binds_tail = &w->queue_next;
	rc = post_binds(ch);
	pthread_mutex_unlock(&ch->post_lock);
	if (rc)
		bind_failed(ch, rc, error_name(rc));
	return 0;
}

void windows_close(struct grant *g)
{
	while (g->windows) {
		struct window *w = g->windows;

		g->windows = w->next;
		ibv_dealloc_mw(w->mw);
		free(w);
	}
}

/* A completion of @ch's send queue.  Bindings are answered in @a. */
static void reaped(struct verbs_channel *ch, const struct ibv_wc *wc, struct answers *a)
{
	struct window *w = (struct window *)(uintptr_t)(wc->wr_id & ~BIND_BIT);

	if (wc->status == IBV_WC_WR_FLUSH_ERR) {
		atomic_store(&ch->lost, true); /* the cause came first, or from elsewhere */
	} else if (!(wc->wr_id & BIND_BIT) && wc->status == IBV_WC_SUCCESS) {
		atomic_store(&ch->frames_sent, wc->wr_id + 1);
	} else if (!(wc->wr_id & BIND_BIT)) {
		if (!atomic_load(&ch->send_failed)) {
			ch->send_wc = *wc;
			atomic_store(&ch->send_failed, true);
		}
	} else if (wc->status == IBV_WC_SUCCESS) {
		grants_answer(ch->conn, w->grant, w->channel, w->rkey, a);
	} else {
		bind_failed(ch, -EIO, ibv_wc_status_str(wc->status));
	}
}

void windows_drain(struct verbs_channel *ch)
{
	struct answers a = { .nr = 0 };
	struct ibv_wc wc[POLL_BATCH];
	unsigned bound;
	int n, rc;

	pthread_mutex_lock(&ch->drain_lock);
	while ((n = ibv_poll_cq(ch->send_cq, POLL_BATCH, wc)) > 0) {
		bound = 0;
		for (int i = 0; i < n; i++) {
			reaped(ch, &wc[i], &a);
			bound += !!(wc[i].wr_id & BIND_BIT);
		}
		grants_send(ch->conn, &a);
		pthread_mutex_lock(&ch->post_lock);
		ch->nr_binding -= bound;
		rc = post_binds(ch);
		pthread_mutex_unlock(&ch->post_lock);
		if (rc)
			bind_failed(ch, rc, error_name(rc));
		if (bound < (unsigned)n)
			(void)eventfd_write(ch->wake_fd, 1);
	}
	pthread_mutex_unlock(&ch->drain_lock);
	if (n < 0)
		queue_failed(ch, "Polling", -EIO);
}

void windows_event(struct verbs_channel *ch)
{
	int rc;

	ch->nr_send_events++;
	rc = -ibv_req_notify_cq(ch->send_cq, 0);
	if (rc)
		queue_failed(ch, "Arming", rc);
	windows_drain(ch);
}
