/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_RDMA_QUEUE_H
#define TERN_RDMA_QUEUE_H

/*
 * Queue pairs, and the control queue.
 *
 * Private to the RDMA transport; the locks are in verbs.h.
 */

#include <infiniband/verbs.h>
#include <pthread.h>
#include <rdma/rdma_cma.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <tern/error.h>
#include "greeting.h"
#include "spin.h"
#include "transport.h"

#define CTL_RING 64u /* receives of the control queue; send slots too */
#define CTL_UNSIGNALLED 16u /* sends that are freed by one completion */
#define CTL_RESERVE 4u /* credits that only CREDIT frames may use */
#define CTL_MSG_WINDOW 32u /* engine messages kept for recv() */
#define CTL_SLOT (CTL_HEADER_LEN + TRANSPORT_MSG_MAX)

struct verbs_conn;

struct verbs_qp {
	struct ibv_qp *qp;
	struct ibv_qp_ex *ex; /* NULL: the provider has no ibv_wr_* */
	uint32_t max_inline; /* bytes */
};

/* One RDMA write. */
struct verbs_write {
	uint64_t local, remote; /* addresses */
	uint32_t len, lkey, rkey;
};

/* qp.c */
/*
 * vqp_create - make the queue pair of @id in @pd.
 *
 * With ibv_wr_* and inline sends if the provider has them.  @binds: memory windows are
 * going to be bound to it.  attr->cap becomes what it has.  0 or -errno.
 */
int vqp_create(struct rdma_cm_id *id, struct ibv_pd *pd, struct ibv_qp_init_attr *attr, bool binds,
	       struct verbs_qp *out);

/* vqp_send - post one SEND.  0 or -errno.  One poster at a time, as for vqp_write(). */
int vqp_send(struct verbs_qp *q, uint64_t wr_id, void *buf, uint32_t len, uint32_t lkey,
	     bool signal);

/*
 * vqp_write - post @nr writes (1 … CHAN_BATCH); the last one is signalled.
 *
 * They are numbered from @wr_id.  0 or -errno; *taken: how many were posted.
 */
int vqp_write(struct verbs_qp *q, uint64_t wr_id, const struct verbs_write *v, unsigned nr,
	      unsigned *taken);

/* vqp_bind - post the binding of @mw as @rkey, signalled.  0 or -errno.  One poster at a time. */
int vqp_bind(struct verbs_qp *q, uint64_t wr_id, struct ibv_mw *mw, uint32_t rkey,
	     const struct ibv_mw_bind_info *info);

/* ---- control queue ---- */

struct ctl_frame { /* of the transport's own, waiting to be sent */
	struct ctl_frame *next;
	uint16_t type;
	uint32_t len;
	uint8_t payload[];
};

struct ctl_message { /* of the engine, waiting for recv() */
	struct ctl_message *next;
	uint32_t len;
	uint8_t payload[];
};

struct control {
	struct verbs_qp q;
	struct ibv_comp_channel *comp;
	struct ibv_cq *cq;
	struct ibv_mr *mr; /* of buf */
	uint8_t *buf; /* CTL_RING send slots, then CTL_RING receive slots */
	size_t buf_size;

	pthread_mutex_t poll_lock; /* polling and arming cq, and taking events of comp */
	unsigned nr_events; /* completion events to acknowledge; poll_lock */
	bool armed; /* the next completion makes an event; poll_lock */
	atomic_bool looked_after; /* by the thread in recv(); see control_poll.c */
	struct spin spin; /* recv() */
	int recv_fd; /* eventfd: recv(), which is watching, has to look again */

	pthread_mutex_t lock; /* the fields below, and posting sends */
	pthread_cond_t cond; /* any of them changed */
	bool posting; /* the queue pair may be posted to */
	bool watching; /* recv() sleeps on the completion channel and recv_fd */
	uint8_t free_slots[CTL_RING];
	unsigned nr_free;
	uint8_t sent[CTL_RING]; /* slots under way, in order, from sent_at on */
	unsigned sent_at, unsignalled;
	unsigned credits, msg_credits; /* what the peer can take */
	unsigned owe, owe_msgs; /* what it may be told it can send again */
	struct ctl_frame *frames, **frames_tail;
	struct ctl_message *inbox, **inbox_tail;
	unsigned nr_inbox;
	bool bye; /* the peer closed in order */
	bool bye_sent; /* ours has completed */
	struct tern_error error; /* first; code != 0: the connection is dead */
	struct tern_error data_error; /* first; code != 0: no channel goes on */
};

/* control.c */
int control_open(struct verbs_conn *c, struct tern_error *err);
void control_close(struct verbs_conn *c);
int control_post_receives(struct verbs_conn *c, struct tern_error *err);
void control_begin(struct verbs_conn *c, const struct greeting *peer);
int control_send(struct transport_conn *conn, const void *msg, size_t len, int timeout_ms,
		 struct tern_error *err);
/* control_queue - send a frame of the transport's own as soon as possible.  0 or -ENOMEM. */
int control_queue(struct verbs_conn *c, uint16_t type, const void *payload, uint32_t len);
void control_flush_locked(struct verbs_conn *c);
int control_repost(struct verbs_conn *c, unsigned slot);

/* control_rx.c */
/* control_drain - handle all completions there are.  poll_lock is held, or no thread runs. */
void control_drain(struct verbs_conn *c);
/* control_device_failed - the connection dies of something that the device would not do. */
void control_device_failed(struct verbs_conn *c, const char *what, int code);

/* control_poll.c */
/* control_tell_locked - whoever waits for the control queue looks again.  ctl.lock is held. */
void control_tell_locked(struct control *q);
/* control_hand_over - the pump looks after the control queue from now on.  Any thread. */
void control_hand_over(struct verbs_conn *c);
void *control_pump(void *conn);
long control_recv(struct transport_conn *conn, void *buf, size_t cap, int timeout_ms,
		  struct tern_error *err);

#endif
