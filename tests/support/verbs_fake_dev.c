/* SPDX-License-Identifier: BSD-2-Clause */

/* The device of the fake: protection domains, registrations, queues.  See verbs_fake.c. */

#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "verbs_fake_private.h"

/* The compatibility macros stand in the way of the definitions below. */
#undef ibv_reg_mr
#undef ibv_query_port

static int fake_poll_cq(struct ibv_cq *base, int nr, struct ibv_wc *wc);
static int fake_req_notify(struct ibv_cq *base, int solicited);
static int fake_post_send(struct ibv_qp *base, struct ibv_send_wr *wr, struct ibv_send_wr **bad);
static int fake_post_recv(struct ibv_qp *base, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad);

static struct ibv_device device = { .name = "fake0" };
static struct ibv_context context = {
	.device = &device,
	.num_comp_vectors = 2,
	.ops = { .poll_cq = fake_poll_cq,
		 .req_notify_cq = fake_req_notify,
		 .post_send = fake_post_send,
		 .post_recv = fake_post_recv },
};

struct ibv_context *fake_context(void)
{
	return &context;
}

void fake_count(int by)
{
	pthread_mutex_lock(&fake.lock);
	fake.objects += (unsigned)by;
	pthread_mutex_unlock(&fake.lock);
}

struct ibv_device **ibv_get_device_list(int *nr)
{
	struct ibv_device **v = calloc(2, sizeof(*v));

	if (!v)
		return NULL;
	*nr = fake.absent ? 0 : 1;
	v[0] = fake.absent ? NULL : &device;
	return v;
}

void ibv_free_device_list(struct ibv_device **list)
{
	free(list);
}

const char *ibv_get_device_name(struct ibv_device *d)
{
	return d->name;
}

struct ibv_context *ibv_open_device(struct ibv_device *d)
{
	(void)d;
	return &context;
}

int ibv_close_device(struct ibv_context *c)
{
	(void)c;
	return 0;
}

int ibv_query_device(struct ibv_context *c, struct ibv_device_attr *attr)
{
	(void)c;
	*attr = (struct ibv_device_attr){
		.phys_port_cnt = 1, .max_qp_wr = 128, .max_cqe = 4096, .max_mr = 1 << 16
	};
	return 0;
}

int ibv_query_port(struct ibv_context *c, uint8_t port, struct _compat_ibv_port_attr *compat)
{
	struct ibv_port_attr *attr = (struct ibv_port_attr *)compat;

	(void)c;
	(void)port;
	attr->state = IBV_PORT_ACTIVE;
	attr->gid_tbl_len = 1;
	attr->max_msg_sz = 1u << 20;
	return 0;
}

int ibv_query_gid(struct ibv_context *c, uint8_t port, int index, union ibv_gid *gid)
{
	static const uint8_t loopback[16] = { [10] = 0xff, 0xff, 127, 0, 0, 1 };

	(void)c;
	(void)port;
	(void)index;
	memcpy(gid->raw, loopback, sizeof(loopback));
	return 0;
}

struct ibv_pd *ibv_alloc_pd(struct ibv_context *c)
{
	struct ibv_pd *pd = calloc(1, sizeof(*pd));

	if (pd)
		pd->context = c;
	fake_count(pd ? 1 : 0);
	return pd;
}

int ibv_dealloc_pd(struct ibv_pd *pd)
{
	free(pd);
	fake_count(-1);
	return 0;
}

struct ibv_mr *ibv_reg_mr(struct ibv_pd *pd, void *addr, size_t length, int access)
{
	struct fake_mr *mr = calloc(1, sizeof(*mr));

	pthread_mutex_lock(&fake.lock);
	/* Buffers of the transport are LOCAL_WRITE; guest memory is 0 or also REMOTE_WRITE. */
	if (!mr || (access != IBV_ACCESS_LOCAL_WRITE && fake_fires(FAKE_REG_ENOMEM))) {
		pthread_mutex_unlock(&fake.lock);
		free(mr);
		errno = ENOMEM;
		return NULL;
	}
	mr->base.context = pd->context;
	mr->base.pd = pd;
	mr->base.addr = addr;
	mr->base.length = length;
	mr->base.lkey = mr->base.rkey = fake.next_key++;
	mr->access = access;
	mr->next = fake.mrs;
	fake.mrs = mr;
	fake.objects++;
	pthread_mutex_unlock(&fake.lock);
	return &mr->base;
}

struct ibv_mr *ibv_reg_mr_iova2(struct ibv_pd *pd, void *addr, size_t length, uint64_t iova,
				unsigned int access)
{
	(void)iova;
	return ibv_reg_mr(pd, addr, length, (int)access);
}

int ibv_dereg_mr(struct ibv_mr *base)
{
	struct fake_mr **at;

	pthread_mutex_lock(&fake.lock);
	for (at = &fake.mrs; *at != (struct fake_mr *)base; at = &(*at)->next)
		;
	*at = (*at)->next;
	fake.objects--;
	pthread_mutex_unlock(&fake.lock);
	free(base);
	return 0;
}

/* Does registration @key of @pd cover the range, with @access?  The lock is held. */
static bool covered(const struct ibv_pd *pd, uint32_t key, uint64_t addr, uint64_t len, int access)
{
	for (struct fake_mr *mr = fake.mrs; mr; mr = mr->next) {
		uint64_t base = (uintptr_t)mr->base.addr;

		if (mr->base.lkey == key)
			return mr->base.pd == pd && (mr->access & access) == access &&
			       addr >= base && len <= mr->base.length &&
			       addr - base <= mr->base.length - len;
	}
	return false;
}

struct ibv_comp_channel *ibv_create_comp_channel(struct ibv_context *c)
{
	struct fake_comp *comp = calloc(1, sizeof(*comp));

	if (!comp)
		return NULL;
	comp->base.context = c;
	comp->base.fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	fake_count(1);
	return &comp->base;
}

int ibv_destroy_comp_channel(struct ibv_comp_channel *base)
{
	close(base->fd);
	free(base);
	fake_count(-1);
	return 0;
}

struct ibv_cq *ibv_create_cq(struct ibv_context *c, int cqe, void *ctx,
			     struct ibv_comp_channel *comp, int vector)
{
	struct fake_cq *cq = calloc(1, sizeof(*cq));

	(void)vector;
	if (!cq)
		return NULL;
	cq->base.context = c;
	cq->base.channel = comp;
	cq->base.cq_context = ctx;
	cq->base.cqe = cqe;
	fake_count(1);
	return &cq->base;
}

int ibv_destroy_cq(struct ibv_cq *base)
{
	free(base);
	fake_count(-1);
	return 0;
}

int ibv_get_cq_event(struct ibv_comp_channel *base, struct ibv_cq **cq, void **ctx)
{
	eventfd_t ignored;

	if (eventfd_read(base->fd, &ignored))
		return -1;
	*cq = ((struct fake_comp *)base)->cq;
	*ctx = NULL;
	return 0;
}

void ibv_ack_cq_events(struct ibv_cq *cq, unsigned int nr)
{
	(void)cq;
	(void)nr;
}

static int fake_poll_cq(struct ibv_cq *base, int nr, struct ibv_wc *wc)
{
	struct fake_cq *cq = (struct fake_cq *)base;
	int n = 0;

	pthread_mutex_lock(&fake.lock);
	for (; n < nr && cq->nr; n++, cq->nr--, cq->at = (cq->at + 1) % FAKE_CQ_MAX)
		wc[n] = cq->wc[cq->at];
	pthread_mutex_unlock(&fake.lock);
	return n;
}

static int fake_req_notify(struct ibv_cq *base, int solicited)
{
	(void)solicited;
	pthread_mutex_lock(&fake.lock);
	((struct fake_cq *)base)->armed = true;
	pthread_mutex_unlock(&fake.lock);
	return 0;
}

/* A completion for @qp.  The lock is held. */
static void complete(struct fake_qp *qp, struct ibv_cq *base, uint64_t wr_id,
		     enum ibv_wc_status status, uint32_t len)
{
	struct fake_cq *cq = (struct fake_cq *)base;

	if (cq->nr == (unsigned)cq->base.cqe) /* a device would raise an error: so do we */
		abort();
	cq->wc[(cq->at + cq->nr++) % FAKE_CQ_MAX] = (struct ibv_wc){
		.wr_id = wr_id, .status = status, .byte_len = len, .qp_num = qp->base.qp_num
	};
	if (!cq->armed)
		return;
	cq->armed = false;
	((struct fake_comp *)cq->base.channel)->cq = base;
	(void)eventfd_write(cq->base.channel->fd, 1);
}

void fake_qp_error(struct fake_qp *qp)
{
	if (qp->dead)
		return;
	qp->dead = true;
	for (; qp->rq_nr; qp->rq_nr--, qp->rq_at = (qp->rq_at + 1) % FAKE_RQ_MAX)
		complete(qp, qp->base.recv_cq, qp->rq[qp->rq_at].wr_id, IBV_WC_WR_FLUSH_ERR, 0);
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

	if (!qp || attr->cap.max_send_wr > 128 || attr->cap.max_recv_wr > 128) {
		free(qp);
		errno = qp ? EINVAL : ENOMEM;
		return -1;
	}
	pthread_mutex_lock(&fake.lock);
	qp->base.context = &context;
	qp->base.pd = pd;
	qp->base.send_cq = attr->send_cq;
	qp->base.recv_cq = attr->recv_cq;
	qp->base.qp_num = fake.next_key++;
	fake.objects++;
	id->qp = &qp->base;
	pthread_mutex_unlock(&fake.lock);
	return 0;
}

void rdma_destroy_qp(struct rdma_cm_id *id)
{
	struct fake_qp *qp = (struct fake_qp *)id->qp;

	pthread_mutex_lock(&fake.lock);
	if (qp->peer)
		qp->peer->peer = NULL;
	id->qp = NULL;
	fake.objects--;
	pthread_mutex_unlock(&fake.lock);
	free(qp);
}

static int fake_post_recv(struct ibv_qp *base, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad)
{
	struct fake_qp *qp = (struct fake_qp *)base;
	int rc = 0;

	pthread_mutex_lock(&fake.lock);
	for (; wr && !rc; wr = wr->next) {
		unsigned i = (qp->rq_at + qp->rq_nr) % FAKE_RQ_MAX;

		if (qp->rq_nr == FAKE_RQ_MAX) {
			*bad = wr;
			rc = ENOMEM;
		} else if (qp->dead) {
			complete(qp, base->recv_cq, wr->wr_id, IBV_WC_WR_FLUSH_ERR, 0);
		} else {
			qp->rq[i].wr_id = wr->wr_id;
			qp->rq[i].sge = wr->sg_list[0];
			qp->rq_nr++;
		}
	}
	pthread_mutex_unlock(&fake.lock);
	return rc;
}

/* A SEND from @qp.  The lock is held. */
static enum ibv_wc_status do_send(struct fake_qp *qp, const struct ibv_sge *from)
{
	struct fake_qp *to = qp->peer;
	const struct ibv_sge *sge = &to->rq[to->rq_at].sge;

	if (!to->rq_nr)
		return IBV_WC_RNR_RETRY_EXC_ERR;
	if (from->length > sge->length)
		return IBV_WC_REM_INV_REQ_ERR;
	if (!covered(to->base.pd, sge->lkey, sge->addr, sge->length, IBV_ACCESS_LOCAL_WRITE))
		return IBV_WC_REM_OP_ERR;
	memcpy((void *)(uintptr_t)sge->addr, (const void *)(uintptr_t)from->addr, from->length);
	complete(to, to->base.recv_cq, to->rq[to->rq_at].wr_id, IBV_WC_SUCCESS, from->length);
	to->rq_at = (to->rq_at + 1) % FAKE_RQ_MAX;
	to->rq_nr--;
	return IBV_WC_SUCCESS;
}

/* An RDMA write.  The lock is held. */
static enum ibv_wc_status do_write(struct fake_qp *qp, const struct ibv_send_wr *wr)
{
	const struct ibv_sge *sge = wr->sg_list;

	if (fake.wc_at && !--fake.wc_at)
		return fake.wc_status;
	if (!covered(qp->peer->base.pd, wr->wr.rdma.rkey, wr->wr.rdma.remote_addr, sge->length,
		     IBV_ACCESS_REMOTE_WRITE))
		return IBV_WC_REM_ACCESS_ERR;
	memcpy((void *)(uintptr_t)wr->wr.rdma.remote_addr, (const void *)(uintptr_t)sge->addr,
	       sge->length);
	return IBV_WC_SUCCESS;
}

/* One work request.  The lock is held. */
static enum ibv_wc_status execute(struct fake_qp *qp, const struct ibv_send_wr *wr)
{
	const struct ibv_sge *sge = wr->sg_list;

	if (qp->dead)
		return IBV_WC_WR_FLUSH_ERR;
	if (!qp->peer || qp->peer->dead)
		return IBV_WC_RETRY_EXC_ERR;
	if (!covered(qp->base.pd, sge->lkey, sge->addr, sge->length, 0))
		return IBV_WC_LOC_PROT_ERR;
	return wr->opcode == IBV_WR_SEND ? do_send(qp, sge) : do_write(qp, wr);
}

static int fake_post_send(struct ibv_qp *base, struct ibv_send_wr *wr, struct ibv_send_wr **bad)
{
	struct fake_qp *qp = (struct fake_qp *)base;
	int rc = 0;

	pthread_mutex_lock(&fake.lock);
	if (!qp->was_paired || (wr->opcode == IBV_WR_RDMA_WRITE && fake_fires(FAKE_POST_ENOMEM))) {
		*bad = wr;
		rc = qp->was_paired ? ENOMEM : EINVAL;
		wr = NULL;
	}
	for (; wr; wr = wr->next) {
		enum ibv_wc_status status = execute(qp, wr);

		if (status || (wr->send_flags & IBV_SEND_SIGNALED))
			complete(qp, base->send_cq, wr->wr_id, status, 0);
		if (status)
			fake_qp_error(qp);
	}
	pthread_mutex_unlock(&fake.lock);
	return rc;
}
