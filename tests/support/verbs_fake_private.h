/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_TESTS_VERBS_FAKE_PRIVATE_H
#define TERN_TESTS_VERBS_FAKE_PRIVATE_H

/*
 * Between the parts of the fake:
 *
 *	verbs_fake.c		its state, and the faults
 *	verbs_fake_cm.c		the connection manager
 *	verbs_fake_dev.c	device, protection domains, registrations
 *	verbs_fake_queue.c	completion queues and queue pairs
 *	verbs_fake_mw.c		locked memory, memory windows
 *
 * The functions that are replaced have no argument for a context, so the fake's state
 * is one file-scope object, under one lock that every entry takes.
 */

#include <pthread.h>
#include <rdma/rdma_cma.h>
#include "verbs_fake.h"

#define FAKE_CQ_MAX 8192u
#define FAKE_RQ_MAX 256u
#define FAKE_MR_LISTS 4096u
#define FAKE_BUILT_MAX 64u
#define FAKE_INLINE_MAX 256u

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
	bool passive; /* made by a request */
	bool answered; /* the request was accepted or rejected */
	bool data; /* its greeting is that of a data channel */
	in_port_t port;
	struct sockaddr_storage bound; /* to listen */
	bool both; /* bound to all of IPv6, it takes IPv4 too */
};

struct fake_pd {
	struct ibv_pd base;
	unsigned users;
};

struct fake_mr {
	struct ibv_mr base;
	struct fake_mr *next;
	int access;
};

struct fake_comp {
	struct ibv_comp_channel base;
	struct fake_cq *cqs; /* that have an event; each at most one */
};

struct fake_mw {
	struct ibv_mw base; /* rkey: as allocated, then as bound */
	struct fake_mw *next;
	struct fake_qp *qp; /* NULL: not bound */
	struct ibv_mr *mr;
	uint64_t addr, length;
};

struct fake_cq {
	struct ibv_cq base;
	bool armed;
	struct fake_cq *event_next;
	unsigned at, nr;
	unsigned events, acked; /* handed out by ibv_get_cq_event(); acknowledged */
	struct ibv_wc wc[FAKE_CQ_MAX];
};

struct fake_qp {
	union {
		struct ibv_qp base;
		struct ibv_qp_ex ex; /* begins with it */
	};
	struct fake_qp *next; /* in fake.qps */
	struct fake_qp *peer; /* NULL: not connected, or gone */
	struct fake_id *id;
	bool dead, was_paired;
	bool sig_all;
	unsigned rq_at, rq_nr;
	struct {
		uint64_t wr_id;
		struct ibv_sge sge;
	} rq[FAKE_RQ_MAX];
	/* ibv_wr_*: the poster's. */
	bool building;
	unsigned nr_built;
	struct ibv_send_wr built[FAKE_BUILT_MAX];
	struct ibv_sge built_sge[FAKE_BUILT_MAX];
};

/* A completion that waits to be delivered. */
struct fake_held {
	struct fake_held *next;
	struct fake_qp *qp;
	struct ibv_wc wc;
};

/* A fault that is armed. */
struct fake_fault {
	unsigned n; /* at the n-th call from now; 0: none */
	int code; /* errno, or what else it brings */
	bool on; /* and at all later ones */
};

struct fake {
	pthread_mutex_t lock; /* everything */
	struct fake_fault call[FAKE_CALL_NR], answer[FAKE_ANSWER_NR], wr[FAKE_WR_NR];
	unsigned fired;
	struct {
		enum verbs_fake_call which;
		unsigned n; /* 0: none */
		void (*fn)(void *opaque);
		void *opaque;
	} at; /* before a call */
	bool absent, no_ipv4, hold;
	bool hold_answers; /* those of the accepting side */
	bool legacy; /* no ibv_wr_* */
	uint32_t max_inline;
	struct ibv_device_attr device;
	struct ibv_port_attr port;
	unsigned objects;
	uint32_t next_key;
	uint16_t next_port;
	struct fake_id *ids;
	struct fake_mr *mrs[FAKE_MR_LISTS]; /* by key */
	struct fake_qp *qps;
	struct fake_mw *mws;
	struct fake_held *held, **held_tail;
	struct {
		uint64_t limit, used; /* bytes; limit 0: none */
	} memlock[2]; /* source, destination */
	bool paging;
	uint64_t prefetched[2]; /* bytes; to be read, to be written */
};

extern struct fake fake;

/* fake_fires - does @f act now?  The lock is held. */
bool fake_fires(struct fake_fault *f);

/*
 * fake_fails - is this call one that was told to fail?  errno is set then.
 *
 * The lock is held, and dropped for what verbs_fake_at() was given.  fake_object() is the
 * same for the creation of an object, and counts the object if it does not fail.
 */
bool fake_fails(enum verbs_fake_call which);
bool fake_object(enum verbs_fake_call which);

/* fake_misuse - the program did what none may do: say so and abort. */
void fake_misuse(const char *what) __attribute__((noreturn));

/* verbs_fake_dev.c */
struct ibv_context *fake_context(void);
bool fake_covered(const struct ibv_pd *pd, uint32_t key, uint64_t addr, uint64_t len, int access);

/* verbs_fake_mw.c; the lock is held. */
bool fake_lock(int access, uint64_t len); /* may guest memory of @len be registered? */
void fake_unlock(int access, uint64_t len);
enum ibv_wc_status fake_bind(struct fake_qp *qp, const struct ibv_send_wr *wr);
bool fake_window_covers(const struct fake_qp *qp, uint32_t key, uint64_t addr, uint64_t len);
bool fake_pages(int access); /* may be registered without pinning, if it is to be */
bool fake_is_bound(const struct ibv_mr *mr, const struct fake_qp *qp); /* any window, to either */
/* They take the lock. */
struct ibv_mw *fake_alloc_mw(struct ibv_pd *pd, enum ibv_mw_type type);
int fake_dealloc_mw(struct ibv_mw *base);
int fake_advise_mr(struct ibv_pd *pd, enum ibv_advise_mr_advice advice, uint32_t flags,
		   struct ibv_sge *list, uint32_t nr);
int fake_query_device_ex(struct ibv_context *c, const struct ibv_query_device_ex_input *in,
			 struct ibv_device_attr_ex *attr, size_t size);

/* verbs_fake_queue.c; the lock is held.  The ops of the device's context. */
int fake_poll_cq(struct ibv_cq *base, int nr, struct ibv_wc *wc);
int fake_req_notify(struct ibv_cq *base, int solicited);
int fake_post_send(struct ibv_qp *base, struct ibv_send_wr *wr, struct ibv_send_wr **bad);
int fake_post_recv(struct ibv_qp *base, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad);
void fake_release_held(void);
void fake_qp_error(struct fake_qp *qp);
void fake_qp_pair(struct fake_qp *a, struct fake_qp *b);

/* verbs_fake_wr.c */
void fake_qp_init_ex(struct fake_qp *qp, uint64_t ops);
void fake_take_environment(void);

/* verbs_fake_cm.c; the lock is held. */
void fake_push(struct fake_id *id, enum rdma_cm_event_type type, int status, const void *data,
	       size_t len);

#endif
