/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * The ibv_wr_* functions of the fake: requests gather in the queue pair until
 * ibv_wr_complete() posts them as a list.  See verbs_fake.c.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "verbs_fake_private.h"

static struct fake_qp *to_fake(struct ibv_qp_ex *ex)
{
	return (struct fake_qp *)ex;
}

/* The request that is being built. */
static struct ibv_send_wr *current(struct fake_qp *qp)
{
	if (!qp->building || !qp->nr_built)
		fake_misuse("a setter of ibv_wr_* without a request");
	return &qp->built[qp->nr_built - 1];
}

static void wr_start(struct ibv_qp_ex *ex)
{
	struct fake_qp *qp = to_fake(ex);

	if (qp->building)
		fake_misuse("ibv_wr_start() twice");
	qp->building = true;
	qp->nr_built = 0;
}

/* One more request of @opcode. */
static struct ibv_send_wr *wr_add(struct ibv_qp_ex *ex, enum ibv_wr_opcode opcode)
{
	struct fake_qp *qp = to_fake(ex);
	unsigned i = qp->nr_built;

	if (!qp->building || i == FAKE_BUILT_MAX)
		fake_misuse("a request outside ibv_wr_start() and ibv_wr_complete(), or too many");
	qp->built[i] = (struct ibv_send_wr){
		.wr_id = ex->wr_id,
		.opcode = opcode,
		.send_flags = ex->wr_flags,
		.sg_list = &qp->built_sge[i],
		.num_sge = 1,
	};
	if (i)
		qp->built[i - 1].next = &qp->built[i];
	qp->nr_built++;
	return &qp->built[i];
}

static void wr_send(struct ibv_qp_ex *ex)
{
	wr_add(ex, IBV_WR_SEND);
}

static void wr_rdma_write(struct ibv_qp_ex *ex, uint32_t rkey, uint64_t remote_addr)
{
	struct ibv_send_wr *wr = wr_add(ex, IBV_WR_RDMA_WRITE);

	wr->wr.rdma.rkey = rkey;
	wr->wr.rdma.remote_addr = remote_addr;
}

static void wr_bind_mw(struct ibv_qp_ex *ex, struct ibv_mw *mw, uint32_t rkey,
		       const struct ibv_mw_bind_info *info)
{
	struct ibv_send_wr *wr = wr_add(ex, IBV_WR_BIND_MW);

	wr->bind_mw.mw = mw;
	wr->bind_mw.rkey = rkey;
	wr->bind_mw.bind_info = *info;
}

static void wr_set_sge(struct ibv_qp_ex *ex, uint32_t lkey, uint64_t addr, uint32_t length)
{
	struct ibv_send_wr *wr = current(to_fake(ex));

	*wr->sg_list = (struct ibv_sge){ .addr = addr, .length = length, .lkey = lkey };
}

static void wr_set_inline_data(struct ibv_qp_ex *ex, void *addr, size_t length)
{
	struct ibv_send_wr *wr = current(to_fake(ex));

	if (length > FAKE_INLINE_MAX)
		fake_misuse("more inline data than the queue pair can take");
	wr->send_flags |= IBV_SEND_INLINE;
	*wr->sg_list = (struct ibv_sge){ .addr = (uintptr_t)addr, .length = (uint32_t)length };
}

static int wr_complete(struct ibv_qp_ex *ex)
{
	struct fake_qp *qp = to_fake(ex);
	struct ibv_send_wr *bad;

	if (!qp->building)
		fake_misuse("ibv_wr_complete() without ibv_wr_start()");
	qp->building = false;
	return qp->nr_built ? fake_post_send(&ex->qp_base, qp->built, &bad) : 0;
}

void fake_qp_init_ex(struct fake_qp *qp, uint64_t ops)
{
	if (ops & IBV_QP_EX_WITH_BIND_MW)
		qp->ex.wr_bind_mw = wr_bind_mw;
	qp->ex.wr_start = wr_start;
	qp->ex.wr_complete = wr_complete;
	qp->ex.wr_send = wr_send;
	qp->ex.wr_rdma_write = wr_rdma_write;
	qp->ex.wr_set_sge = wr_set_sge;
	qp->ex.wr_set_inline_data = wr_set_inline_data;
}

struct ibv_qp_ex *ibv_qp_to_qp_ex(struct ibv_qp *base)
{
	struct fake_qp *qp = (struct fake_qp *)base;

	return qp->ex.wr_start ? &qp->ex : NULL;
}

/*
 * What a whole run of a suite lacks: VERBS_FAKE=legacy, noinline or both.  The suites
 * are the same as for real devices and know nothing of the fake.
 */
void fake_take_environment(void)
{
	const char *text = getenv("VERBS_FAKE");

	fake.legacy = text && strstr(text, "legacy");
	fake.max_inline = text && strstr(text, "noinline") ? 0 : FAKE_INLINE_MAX;
}

void verbs_fake_legacy(bool on)
{
	pthread_mutex_lock(&fake.lock);
	fake.legacy = on;
	pthread_mutex_unlock(&fake.lock);
}

void verbs_fake_max_inline(uint32_t bytes)
{
	pthread_mutex_lock(&fake.lock);
	fake.max_inline = bytes;
	pthread_mutex_unlock(&fake.lock);
}

int rdma_create_qp_ex(struct rdma_cm_id *id, struct ibv_qp_init_attr_ex *attr)
{
	struct ibv_qp_init_attr plain = {
		.send_cq = attr->send_cq,
		.recv_cq = attr->recv_cq,
		.cap = attr->cap,
		.qp_type = attr->qp_type,
		.sq_sig_all = attr->sq_sig_all,
	};
	bool wr = attr->comp_mask & IBV_QP_INIT_ATTR_SEND_OPS_FLAGS, refused;

	pthread_mutex_lock(&fake.lock);
	refused = attr->cap.max_inline_data > fake.max_inline || (wr && fake.legacy);
	errno = attr->cap.max_inline_data > fake.max_inline ? EINVAL : EOPNOTSUPP;
	pthread_mutex_unlock(&fake.lock);
	if (refused || rdma_create_qp(id, attr->pd, &plain))
		return -1;
	if (wr)
		fake_qp_init_ex((struct fake_qp *)id->qp, attr->send_ops_flags);
	return 0;
}
