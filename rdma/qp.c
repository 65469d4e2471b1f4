/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * Queue pairs: making them, and posting to their send queues.
 *
 * Providers that have the ibv_wr_* functions build work requests straight in the
 * device's format; others take linked lists of struct ibv_send_wr (ibv_wr_post(3),
 * ibv_post_send(3)).  Which one a queue pair has is settled when it is made.  Small
 * messages travel inline, if the device can: their buffer is not read again.
 */

#include <errno.h>
#include <string.h>
#include "verbs.h"

#define INLINE_BYTES 128u /* asked for; frames without a payload are 16 or 32 bytes */

/*
 * Make the queue pair of @id by rdma_create_qp_ex(); with ibv_wr_* for @ops
 * (IBV_QP_EX_WITH_…), unless that is 0.  0 or -errno.
 */
static int qp_make(struct rdma_cm_id *id, struct ibv_pd *pd, struct ibv_qp_init_attr *attr,
		   uint64_t ops)
{
	struct ibv_qp_init_attr_ex ex = {
		.send_cq = attr->send_cq,
		.recv_cq = attr->recv_cq,
		.cap = attr->cap,
		.qp_type = attr->qp_type,
		.sq_sig_all = attr->sq_sig_all,
		.comp_mask = IBV_QP_INIT_ATTR_PD,
		.pd = pd,
	};

	if (ops) {
		ex.comp_mask |= IBV_QP_INIT_ATTR_SEND_OPS_FLAGS;
		ex.send_ops_flags = ops;
	}
	if (rdma_create_qp_ex(id, &ex))
		return errno ? -errno : -EIO;
	attr->cap = ex.cap;
	return 0;
}

/* Did making a queue pair fail because the provider cannot do what was asked? */
static bool cannot(int rc)
{
	return rc == -EINVAL || rc == -EOPNOTSUPP || rc == -ENOSYS;
}

int vqp_create(struct rdma_cm_id *id, struct ibv_pd *pd, struct ibv_qp_init_attr *attr, bool binds,
	       struct verbs_qp *out)
{
	const uint64_t ops = IBV_QP_EX_WITH_SEND | IBV_QP_EX_WITH_RDMA_WRITE |
			     (binds ? IBV_QP_EX_WITH_BIND_MW : 0);
	struct ibv_qp_cap wanted = attr->cap;
	int rc = -EINVAL;

	memset(out, 0, sizeof(*out));
	/* Best first: both; no ibv_wr_*; not inline; neither. */
	for (unsigned try = 0; try < 4 && cannot(rc); try++) {
		bool wr = !(try & 1);

		attr->cap = wanted;
		attr->cap.max_inline_data = try & 2 ? 0 : INLINE_BYTES;
		rc = qp_make(id, pd, attr, wr ? ops : 0);
		if (rc)
			continue;
		out->qp = id->qp;
		out->ex = wr ? ibv_qp_to_qp_ex(id->qp) : NULL;
		out->max_inline = attr->cap.max_inline_data;
	}
	return rc;
}

/* vqp_send() for providers without ibv_wr_*. */
static int send_by_list(struct verbs_qp *q, uint64_t wr_id, void *buf, uint32_t len, uint32_t lkey,
			unsigned flags)
{
	struct ibv_sge sge = { .addr = (uintptr_t)buf, .length = len, .lkey = lkey };
	struct ibv_send_wr wr = {
		.wr_id = wr_id,
		.sg_list = &sge,
		.num_sge = 1,
		.opcode = IBV_WR_SEND,
		.send_flags = flags,
	};
	struct ibv_send_wr *bad;

	return -ibv_post_send(q->qp, &wr, &bad);
}

/*
 * The setter says that the data is inline; rxe's provider (rdma-core 44) wants the flag
 * as well, and the others do not look at it.
 */
int vqp_send(struct verbs_qp *q, uint64_t wr_id, void *buf, uint32_t len, uint32_t lkey,
	     bool signal)
{
	unsigned flags =
		(signal ? IBV_SEND_SIGNALED : 0) | (len <= q->max_inline ? IBV_SEND_INLINE : 0);

	if (!q->ex)
		return send_by_list(q, wr_id, buf, len, lkey, flags);
	ibv_wr_start(q->ex);
	q->ex->wr_id = wr_id;
	q->ex->wr_flags = flags;
	ibv_wr_send(q->ex);
	if (len <= q->max_inline)
		ibv_wr_set_inline_data(q->ex, buf, len);
	else
		ibv_wr_set_sge(q->ex, lkey, (uintptr_t)buf, len);
	return -ibv_wr_complete(q->ex);
}

/* vqp_write() for providers without ibv_wr_*. */
static int write_by_list(struct verbs_qp *q, uint64_t wr_id, const struct verbs_write *v,
			 unsigned nr, unsigned *taken)
{
	struct ibv_send_wr wr[CHAN_BATCH], *bad = NULL;
	struct ibv_sge sge[CHAN_BATCH];
	int rc;

	for (unsigned i = 0; i < nr; i++) {
		sge[i] = (struct ibv_sge){
			.addr = v[i].local,
			.length = v[i].len,
			.lkey = v[i].lkey,
		};
		wr[i] = (struct ibv_send_wr){
			.wr_id = wr_id + i,
			.next = i + 1 < nr ? &wr[i + 1] : NULL,
			.sg_list = &sge[i],
			.num_sge = 1,
			.opcode = IBV_WR_RDMA_WRITE,
			.send_flags = i + 1 < nr ? 0 : IBV_SEND_SIGNALED,
			.wr.rdma = { .remote_addr = v[i].remote, .rkey = v[i].rkey },
		};
	}
	rc = -ibv_post_send(q->qp, wr, &bad);
	*taken = !rc ? nr : bad ? (unsigned)(bad - wr) : 0;
	return rc;
}

int vqp_write(struct verbs_qp *q, uint64_t wr_id, const struct verbs_write *v, unsigned nr,
	      unsigned *taken)
{
	int rc;

	if (!q->ex)
		return write_by_list(q, wr_id, v, nr, taken);
	ibv_wr_start(q->ex);
	for (unsigned i = 0; i < nr; i++) {
		q->ex->wr_id = wr_id + i;
		q->ex->wr_flags = i + 1 < nr ? 0 : IBV_SEND_SIGNALED;
		ibv_wr_rdma_write(q->ex, v[i].rkey, v[i].remote);
		ibv_wr_set_sge(q->ex, v[i].lkey, v[i].local, v[i].len);
	}
	rc = -ibv_wr_complete(q->ex); /* all or nothing */
	*taken = rc ? 0 : nr;
	return rc;
}

/* vqp_bind() for providers without ibv_wr_*. */
static int bind_by_list(struct verbs_qp *q, uint64_t wr_id, struct ibv_mw *mw, uint32_t rkey,
			const struct ibv_mw_bind_info *info)
{
	struct ibv_send_wr wr = {
		.wr_id = wr_id,
		.opcode = IBV_WR_BIND_MW,
		.send_flags = IBV_SEND_SIGNALED,
		.bind_mw = { .mw = mw, .rkey = rkey, .bind_info = *info },
	};
	struct ibv_send_wr *bad;

	return -ibv_post_send(q->qp, &wr, &bad);
}

int vqp_bind(struct verbs_qp *q, uint64_t wr_id, struct ibv_mw *mw, uint32_t rkey,
	     const struct ibv_mw_bind_info *info)
{
	if (!q->ex)
		return bind_by_list(q, wr_id, mw, rkey, info);
	ibv_wr_start(q->ex);
	q->ex->wr_id = wr_id;
	q->ex->wr_flags = IBV_SEND_SIGNALED;
	ibv_wr_bind_mw(q->ex, mw, rkey, info);
	return -ibv_wr_complete(q->ex);
}
