/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_TESTS_VERBS_FAKE_PRIVATE_H
#define TERN_TESTS_VERBS_FAKE_PRIVATE_H

/* Between the two halves of the fake. */

#include <pthread.h>
#include <rdma/rdma_cma.h>
#include "verbs_fake.h"

#define FAKE_CQ_MAX 8192u
#define FAKE_RQ_MAX 256u

struct fake_event {
	struct rdma_cm_event base; /* first: freed as such */
	struct fake_event *next;
	uint8_t data[256];
};

struct fake_channel {
	struct rdma_event_channel base;
	struct fake_event *events;
};

struct fake_id {
	struct rdma_cm_id base;
	struct fake_id *next, *peer;
	bool listening, connected;
	in_port_t port;
};

struct fake_mr {
	struct ibv_mr base;
	struct fake_mr *next;
	int access;
};

struct fake_comp {
	struct ibv_comp_channel base;
	struct ibv_cq *cq; /* that has an event */
};

struct fake_cq {
	struct ibv_cq base;
	bool armed;
	unsigned at, nr;
	struct ibv_wc wc[FAKE_CQ_MAX];
};

struct fake_qp {
	struct ibv_qp base;
	struct fake_qp *peer; /* NULL: not connected, or gone */
	bool dead, was_paired;
	unsigned rq_at, rq_nr;
	struct {
		uint64_t wr_id;
		struct ibv_sge sge;
	} rq[FAKE_RQ_MAX];
};

struct fake {
	pthread_mutex_t lock; /* everything */
	unsigned fault[FAKE_NR];
	unsigned wc_at;
	enum ibv_wc_status wc_status;
	bool absent;
	unsigned objects;
	uint32_t next_key;
	uint16_t next_port;
	struct fake_id *ids;
	struct fake_mr *mrs;
};

extern struct fake fake;

bool fake_fires(enum verbs_fake_fault which); /* the lock is held */
void fake_count(int by); /* takes the lock */
struct ibv_context *fake_context(void);
void fake_qp_error(struct fake_qp *qp);
void fake_qp_pair(struct fake_qp *a, struct fake_qp *b);

#endif
