/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * Queues of the fake: a work request is carried out inside post_send(), and completes
 * there too, unless completions are held back (verbs_fake_hold()).
 *
 * A request that fails puts its queue pair into the error state: what is posted then
 * is flushed.  If the peer's device refused it, the peer's queue pair goes there too.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "verbs_fake_private.h"

#define QUEUE_MAX 128u /* entries of a send or receive queue */

struct ibv_comp_channel *ibv_create_comp_channel(struct ibv_context *c)
{
	struct fake_comp *comp = calloc(1, sizeof(*comp));
	bool good;

	if (!comp)
		abort();
	pthread_mutex_lock(&fake.lock);
	good = fake_object(FAKE_COMP_CHANNEL);
	pthread_mutex_unlock(&fake.lock);
	if (!good) {
		free(comp);
		return NULL;
	}
	comp->base.context = c;
	comp->base.fd = eventfd(0, EFD_SEMAPHORE | EFD_NONBLOCK | EFD_CLOEXEC);
	return &comp->base;
}

int ibv_destroy_comp_channel(struct ibv_comp_channel *base)
{
	pthread_mutex_lock(&fake.lock);
	if (base->refcnt)
		fake_misuse("a completion channel is destroyed that is in use");
	fake.objects--;
	pthread_mutex_unlock(&fake.lock);
	close(base->fd);
	free(base);
	return 0;
}

struct ibv_cq *ibv_create_cq(struct ibv_context *c, int cqe, void *ctx,
			     struct ibv_comp_channel *comp, int vector)
{
	struct fake_cq *cq = calloc(1, sizeof(*cq));
	bool good;

	if (!cq)
		abort();
	if (vector < 0 || vector >= c->num_comp_vectors || cqe < 1 || cqe > (int)FAKE_CQ_MAX)
		fake_misuse("a completion queue of an impossible size or vector is asked for");
	pthread_mutex_lock(&fake.lock);
	good = fake_object(FAKE_CQ);
	if (good && comp)
		comp->refcnt++;
	pthread_mutex_unlock(&fake.lock);
	if (!good) {
		free(cq);
		return NULL;
	}
	cq->base.context = c;
	cq->base.channel = comp;
	cq->base.cq_context = ctx;
	cq->base.cqe = cqe;
	return &cq->base;
}

int ibv_destroy_cq(struct ibv_cq *base)
{
	struct fake_cq *cq = (struct fake_cq *)base;

	pthread_mutex_lock(&fake.lock);
	if (cq->events != cq->acked)
		fake_misuse("a completion queue is destroyed with events not acknowledged");
	for (struct fake_qp *qp = fake.qps; qp; qp = qp->next)
		if (qp->base.send_cq == base || qp->base.recv_cq == base)
			fake_misuse("a completion queue is destroyed that is in use");
	if (base->channel)
		base->channel->refcnt--;
	fake.objects--;
	pthread_mutex_unlock(&fake.lock);
	free(cq);
	return 0;
}

int ibv_get_cq_event(struct ibv_comp_channel *base, struct ibv_cq **cq, void **ctx)
{
	eventfd_t ignored;

	if (eventfd_read(base->fd, &ignored))
		return -1;
	pthread_mutex_lock(&fake.lock);
	*cq = &((struct fake_comp *)base)->cqs->base;
	((struct fake_comp *)base)->cqs = ((struct fake_cq *)*cq)->event_next;
	*ctx = (*cq)->cq_context;
	((struct fake_cq *)*cq)->events++;
	pthread_mutex_unlock(&fake.lock);
	return 0;
}

void ibv_ack_cq_events(struct ibv_cq *cq, unsigned int nr)
{
	pthread_mutex_lock(&fake.lock);
	((struct fake_cq *)cq)->acked += nr;
	pthread_mutex_unlock(&fake.lock);
}

/* Does @base belong to a data channel?  The lock is held. */
static bool of_channel(const struct ibv_cq *base)
{
	for (struct fake_qp *qp = fake.qps; qp; qp = qp->next)
		if (qp->base.recv_cq == base)
			return qp->id->data;
	return false;
}

int fake_poll_cq(struct ibv_cq *base, int nr, struct ibv_wc *wc)
{
	struct fake_cq *cq = (struct fake_cq *)base;
	int n = 0;

	pthread_mutex_lock(&fake.lock);
	if (fake_fails(of_channel(base) ? FAKE_POLL_CHANNEL : FAKE_POLL_CONTROL))
		n = -1;
	else
		for (; n < nr && cq->nr; n++, cq->nr--, cq->at = (cq->at + 1) % FAKE_CQ_MAX)
			wc[n] = cq->wc[cq->at];
	pthread_mutex_unlock(&fake.lock);
	return n;
}

int fake_req_notify(struct ibv_cq *base, int solicited)
{
	int rc = 0;

	(void)solicited;
	pthread_mutex_lock(&fake.lock);
	if (fake_fails(of_channel(base) ? FAKE_NOTIFY_CHANNEL : FAKE_NOTIFY_CONTROL))
		rc = errno;
	else
		((struct fake_cq *)base)->armed = true;
	pthread_mutex_unlock(&fake.lock);
	return rc;
}

/* Put @wc into @base, and raise the event if it is armed.  The lock is held. */
static void deliver(struct ibv_cq *base, const struct ibv_wc *wc)
{
	struct fake_cq *cq = (struct fake_cq *)base, **at;
	struct fake_comp *comp;

	if (cq->nr == (unsigned)cq->base.cqe)
		fake_misuse("a completion queue overflows");
	cq->wc[(cq->at + cq->nr++) % FAKE_CQ_MAX] = *wc;
	if (!cq->armed)
		return;
	cq->armed = false;
	comp = (struct fake_comp *)cq->base.channel;
	for (at = &comp->cqs; *at && *at != cq; at = &(*at)->event_next)
		;
	if (*at) /* has one that nobody has taken yet */
		return;
	cq->event_next = NULL;
	*at = cq;
	(void)eventfd_write(cq->base.channel->fd, 1);
}

/* A completion of a receive of @qp.  The lock is held. */
static void received(struct fake_qp *qp, uint64_t wr_id, enum ibv_wc_status status, uint32_t len)
{
	deliver(qp->base.recv_cq, &(struct ibv_wc){ .wr_id = wr_id,
						    .status = status,
						    .opcode = IBV_WC_RECV,
						    .byte_len = len,
						    .qp_num = qp->base.qp_num });
}

/* A completion of something sent, now or when they are let go.  The lock is held. */
static void sent(struct fake_qp *qp, const struct ibv_send_wr *wr, enum ibv_wc_status status)
{
	struct ibv_wc wc = {
		.wr_id = wr->wr_id,
		.status = status,
		.opcode = wr->opcode == IBV_WR_SEND ? IBV_WC_SEND : IBV_WC_RDMA_WRITE,
		.qp_num = qp->base.qp_num,
	};
	struct fake_held *h;

	bool hold = fake.hold || (fake.hold_answers && qp->id->passive);

	if (!hold || !qp->id->data || wr->opcode == IBV_WR_BIND_MW) {
		deliver(qp->base.send_cq, &wc);
		return;
	}
	h = calloc(1, sizeof(*h));
	if (!h)
		abort();
	h->qp = qp;
	h->wc = wc;
	*fake.held_tail = h;
	fake.held_tail = &h->next;
}

void fake_release_held(void)
{
	while (fake.held) {
		struct fake_held *h = fake.held;

		fake.held = h->next;
		deliver(h->qp->base.send_cq, &h->wc);
		free(h);
	}
	fake.held_tail = &fake.held;
}

/* Completions of @qp, which goes away, are not delivered any more.  The lock is held. */
static void drop_held(const struct fake_qp *qp)
{
	struct fake_held **at = &fake.held;

	while (*at) {
		struct fake_held *h = *at;

		if (h->qp != qp) {
			at = &h->next;
			continue;
		}
		*at = h->next;
		free(h);
	}
	fake.held_tail = at;
}

void fake_qp_error(struct fake_qp *qp)
{
	if (qp->dead)
		return;
	qp->dead = true;
	for (; qp->rq_nr; qp->rq_nr--, qp->rq_at = (qp->rq_at + 1) % FAKE_RQ_MAX)
		received(qp, qp->rq[qp->rq_at].wr_id, IBV_WC_WR_FLUSH_ERR, 0);
}

void fake_qp_pair(struct fake_qp *a, struct fake_qp *b)
{
	a->peer = b;
	b->peer = a;
	a->was_paired = b->was_paired = true;
}

int rdma_create_qp(struct rdma_cm_id *id, struct ibv_pd *pd, struct ibv_qp_init_attr *attr)
{
	struct fake_qp *qp = calloc(1, sizeof(*qp));
	bool good;

	if (!qp)
		abort();
	if (attr->cap.max_send_wr > QUEUE_MAX || attr->cap.max_recv_wr > QUEUE_MAX) {
		free(qp);
		errno = EINVAL;
		return -1;
	}
	pthread_mutex_lock(&fake.lock);
	good = fake_object(FAKE_QP);
	if (good) {
		qp->base.context = id->verbs;
		qp->base.pd = pd;
		qp->base.send_cq = attr->send_cq;
		qp->base.recv_cq = attr->recv_cq;
		qp->base.qp_num = fake.next_key++;
		qp->sig_all = attr->sq_sig_all;
		qp->id = (struct fake_id *)id;
		qp->next = fake.qps;
		fake.qps = qp;
		((struct fake_pd *)pd)->users++;
		id->qp = &qp->base;
	}
	pthread_mutex_unlock(&fake.lock);
	if (!good)
		free(qp);
	return good ? 0 : -1;
}

void rdma_destroy_qp(struct rdma_cm_id *id)
{
	struct fake_qp *qp = (struct fake_qp *)id->qp, **at;

	pthread_mutex_lock(&fake.lock);
	if (fake_is_bound(NULL, qp))
		fake_misuse("a queue pair is destroyed that a memory window is bound to");
	if (qp->peer)
		qp->peer->peer = NULL;
	drop_held(qp);
	for (at = &fake.qps; *at != qp; at = &(*at)->next)
		;
	*at = qp->next;
	((struct fake_pd *)qp->base.pd)->users--;
	id->qp = NULL;
	fake.objects--;
	pthread_mutex_unlock(&fake.lock);
	free(qp);
}

/* To RESET or ERR: the states that end what a queue pair does. */
int ibv_modify_qp(struct ibv_qp *base, struct ibv_qp_attr *attr, int mask)
{
	struct fake_qp *qp = (struct fake_qp *)base;

	if (mask != IBV_QP_STATE ||
	    (attr->qp_state != IBV_QPS_RESET && attr->qp_state != IBV_QPS_ERR))
		return EINVAL;
	pthread_mutex_lock(&fake.lock);
	if (attr->qp_state == IBV_QPS_ERR) {
		fake_qp_error(qp);
	} else { /* nothing is flushed */
		drop_held(qp);
		qp->rq_nr = 0;
		qp->dead = true;
	}
	pthread_mutex_unlock(&fake.lock);
	return 0;
}

int fake_post_recv(struct ibv_qp *base, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad)
{
	struct fake_qp *qp = (struct fake_qp *)base;
	int rc = 0;

	pthread_mutex_lock(&fake.lock);
	for (; wr; wr = wr->next) {
		unsigned i = (qp->rq_at + qp->rq_nr) % FAKE_RQ_MAX;

		if (fake_fails(FAKE_POST_RECV))
			rc = errno;
		else if (qp->rq_nr == QUEUE_MAX)
			rc = ENOMEM;
		if (rc) {
			*bad = wr;
			break;
		}
		if (qp->dead) {
			received(qp, wr->wr_id, IBV_WC_WR_FLUSH_ERR, 0);
			continue;
		}
		qp->rq[i].wr_id = wr->wr_id;
		qp->rq[i].sge = wr->sg_list[0];
		qp->rq_nr++;
	}
	pthread_mutex_unlock(&fake.lock);
	return rc;
}

/* A SEND from @qp; the receiver is not told of it if @unheard.  The lock is held. */
static enum ibv_wc_status do_send(struct fake_qp *qp, const struct ibv_sge *from, bool unheard)
{
	struct fake_qp *to = qp->peer;
	const struct ibv_sge *sge = &to->rq[to->rq_at].sge;
	uint64_t wr_id = to->rq[to->rq_at].wr_id;

	if (!to->rq_nr)
		return IBV_WC_RNR_RETRY_EXC_ERR;
	if (from->length > sge->length)
		return IBV_WC_REM_INV_REQ_ERR;
	if (!fake_covered(to->base.pd, sge->lkey, sge->addr, sge->length, IBV_ACCESS_LOCAL_WRITE))
		return IBV_WC_REM_OP_ERR;
	memcpy((void *)(uintptr_t)sge->addr, (const void *)(uintptr_t)from->addr, from->length);
	to->rq_at = (to->rq_at + 1) % FAKE_RQ_MAX;
	to->rq_nr--;
	if (!unheard)
		received(to, wr_id, IBV_WC_SUCCESS, from->length);
	return IBV_WC_SUCCESS;
}

/* An RDMA write.  The lock is held. */
static enum ibv_wc_status do_write(struct fake_qp *qp, const struct ibv_send_wr *wr)
{
	const struct ibv_sge *sge = wr->sg_list;

	if (!fake_covered(qp->peer->base.pd, wr->wr.rdma.rkey, wr->wr.rdma.remote_addr, sge->length,
			  IBV_ACCESS_REMOTE_WRITE) &&
	    !fake_window_covers(qp->peer, wr->wr.rdma.rkey, wr->wr.rdma.remote_addr, sge->length))
		return IBV_WC_REM_ACCESS_ERR;
	memcpy((void *)(uintptr_t)wr->wr.rdma.remote_addr, (const void *)(uintptr_t)sge->addr,
	       sge->length);
	return IBV_WC_SUCCESS;
}

/* What a work request of @qp is for. */
static enum verbs_fake_wr wr_kind(const struct fake_qp *qp, const struct ibv_send_wr *wr)
{
	if (wr->opcode == IBV_WR_RDMA_WRITE)
		return FAKE_WR_WRITE;
	if (wr->opcode == IBV_WR_BIND_MW)
		return FAKE_WR_BIND;
	if (qp->id->data)
		return qp->id->passive ? FAKE_WR_ANSWER : FAKE_WR_FRAME;
	return qp->id->passive ? FAKE_WR_CONTROL_BACK : FAKE_WR_CONTROL;
}

/* Carry out one work request.  *lost: its completion must not be seen.  The lock is held. */
static enum ibv_wc_status execute(struct fake_qp *qp, const struct ibv_send_wr *wr, bool *lost)
{
	struct fake_fault *fault = &fake.wr[wr_kind(qp, wr)];
	const struct ibv_sge *sge = wr->sg_list;

	bool unheard = false;

	*lost = false;
	if (qp->dead)
		return IBV_WC_WR_FLUSH_ERR;
	if (fake_fires(fault)) {
		*lost = fault->code == FAKE_WC_LOST;
		unheard = fault->code == FAKE_WC_UNHEARD;
		if (!*lost && !unheard)
			return (enum ibv_wc_status)fault->code;
	}
	if (wr->opcode == IBV_WR_BIND_MW) /* nothing goes over the wire */
		return fake_bind(qp, wr);
	if (!qp->peer || qp->peer->dead)
		return IBV_WC_RETRY_EXC_ERR;
	if (!(wr->send_flags & IBV_SEND_INLINE) &&
	    !fake_covered(qp->base.pd, sge->lkey, sge->addr, sge->length, 0))
		return IBV_WC_LOC_PROT_ERR;
	return wr->opcode == IBV_WR_SEND ? do_send(qp, sge, unheard) : do_write(qp, wr);
}

/* @qp's request failed: what becomes of the queue pairs.  The lock is held. */
static void fail_qp(struct fake_qp *qp, enum ibv_wc_status status)
{
	fake_qp_error(qp);
	if (qp->peer && (status == IBV_WC_REM_ACCESS_ERR || status == IBV_WC_REM_INV_REQ_ERR ||
			 status == IBV_WC_REM_OP_ERR))
		fake_qp_error(qp->peer);
}

/* The fault that concerns posting @wr. */
static enum verbs_fake_call post_call(const struct fake_qp *qp, const struct ibv_send_wr *wr)
{
	if (wr->opcode == IBV_WR_RDMA_WRITE)
		return FAKE_POST_WRITE;
	if (wr->opcode == IBV_WR_BIND_MW)
		return FAKE_POST_BIND;
	return qp->id->data ? FAKE_POST_FRAME : FAKE_POST_CONTROL;
}

int fake_post_send(struct ibv_qp *base, struct ibv_send_wr *wr, struct ibv_send_wr **bad)
{
	struct fake_qp *qp = (struct fake_qp *)base;
	int rc = 0;

	pthread_mutex_lock(&fake.lock);
	if (!qp->was_paired)
		rc = EINVAL;
	else if (fake_fails(post_call(qp, wr)))
		rc = errno;
	if (rc) {
		*bad = wr;
		wr = NULL;
	}
	for (; wr; wr = wr->next) {
		bool lost;
		enum ibv_wc_status status = execute(qp, wr, &lost);

		if (status || (!lost && (qp->sig_all || (wr->send_flags & IBV_SEND_SIGNALED))))
			sent(qp, wr, status);
		if (status)
			fail_qp(qp, status);
	}
	pthread_mutex_unlock(&fake.lock);
	return rc;
}
