/* SPDX-License-Identifier: BSD-2-Clause */

#define _GNU_SOURCE
#include "raw_peer.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "verbs.h"

#define WAIT_MS 20000
#define RECV_BIT (1ull << 63)

struct greeting raw_greeting(enum greeting_kind kind)
{
	return (struct greeting){
		.version = GREETING_VERSION,
		.kind = (uint16_t)kind,
		.count = kind == GREETING_DATA,
		.session_id = "raw peer",
		.ring = RAW_SLOTS,
		.msg_window = 32,
		.piece_bytes = kind == GREETING_CONTROL ? (uint32_t)PIECE_BYTES : 0,
	};
}

/* Wait for @fd, whatever signals come (libFuzzer has a timer).  False: nothing came. */
static bool await_fd(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	int64_t deadline = verbs_deadline(WAIT_MS);
	int n;

	do
		n = poll(&p, 1, verbs_remaining(deadline));
	while (n < 0 && errno == EINTR);
	return n == 1;
}

/* The next event of @cm, copied; its private data in @r if there is an @r. */
static struct rdma_cm_event await_event(struct rdma_event_channel *cm, struct raw_peer *r)
{
	struct rdma_cm_event copy, *e = NULL;

	if (!await_fd(cm->fd) || rdma_get_cm_event(cm, &e))
		fail_msg("no event of the connection manager came");
	copy = *e;
	if (r && e->param.conn.private_data_len) {
		r->nr_words = e->param.conn.private_data_len;
		memcpy(r->words, e->param.conn.private_data, r->nr_words);
	}
	rdma_ack_cm_event(e);
	return copy;
}

static void post_receive(struct raw_peer *r, unsigned slot)
{
	struct ibv_sge sge = {
		.addr = (uintptr_t)r->buf + slot * RAW_SLOT,
		.length = RAW_SLOT,
		.lkey = r->mr->lkey,
	};
	struct ibv_recv_wr wr = { .wr_id = RECV_BIT | slot, .sg_list = &sge, .num_sge = 1 }, *bad;

	assert_int_equal(ibv_post_recv(r->id->qp, &wr, &bad), 0);
}

/* Queues and @nr_recv receives on r->id, which has a device. */
static void make_queues(struct raw_peer *r, unsigned nr_recv)
{
	struct ibv_qp_init_attr attr = {
		.qp_type = IBV_QPT_RC,
		.sq_sig_all = 1,
		.cap = { .max_send_wr = 8,
			 .max_recv_wr = RAW_SLOTS,
			 .max_send_sge = 1,
			 .max_recv_sge = 1 },
	};
	struct ibv_context *device = r->id->verbs;

	r->buf = calloc(RAW_SLOTS + 1, RAW_SLOT);
	r->pd = ibv_alloc_pd(device);
	r->comp = ibv_create_comp_channel(device);
	r->cq = ibv_create_cq(device, 256, NULL, r->comp, 0);
	r->mr = ibv_reg_mr(r->pd, r->buf, (RAW_SLOTS + 1) * (size_t)RAW_SLOT,
			   IBV_ACCESS_LOCAL_WRITE);
	assert_true(r->buf && r->pd && r->comp && r->cq && r->mr);
	(void)fcntl(r->comp->fd, F_SETFL, fcntl(r->comp->fd, F_GETFL) | O_NONBLOCK);
	attr.send_cq = attr.recv_cq = r->cq;
	assert_int_equal(rdma_create_qp(r->id, r->pd, &attr), 0);
	for (unsigned i = 0; i < nr_recv; i++)
		post_receive(r, i);
}

bool raw_connect(struct raw_peer *r, const struct uri *uri, const void *hello, size_t len,
		 unsigned nr_recv)
{
	struct rdma_conn_param param = { .private_data = hello, .private_data_len = (uint8_t)len };
	struct addrinfo *list;

	memset(r, 0, sizeof(*r));
	r->cm = rdma_create_event_channel();
	assert_non_null(r->cm);
	assert_int_equal(rdma_create_id(r->cm, &r->id, NULL, RDMA_PS_TCP), 0);
	assert_int_equal(getaddrinfo(uri->host, uri->port, NULL, &list), 0);
	assert_int_equal(rdma_resolve_addr(r->id, NULL, list->ai_addr, WAIT_MS), 0);
	freeaddrinfo(list);
	assert_int_equal(await_event(r->cm, NULL).event, RDMA_CM_EVENT_ADDR_RESOLVED);
	assert_int_equal(rdma_resolve_route(r->id, WAIT_MS), 0);
	assert_int_equal(await_event(r->cm, NULL).event, RDMA_CM_EVENT_ROUTE_RESOLVED);
	make_queues(r, nr_recv);
	assert_int_equal(rdma_connect(r->id, &param), 0);
	r->connected = await_event(r->cm, r).event == RDMA_CM_EVENT_ESTABLISHED;
	return r->connected;
}

bool raw_greet(struct raw_peer *r, const struct uri *uri, const struct greeting *hello)
{
	uint8_t buf[GREETING_LEN];

	greeting_put(buf, hello);
	return raw_connect(r, uri, buf, sizeof(buf), RAW_SLOTS);
}

void raw_listen(struct raw_listener *l)
{
	struct sockaddr_in sin = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_ANY) };

	l->cm = rdma_create_event_channel();
	assert_non_null(l->cm);
	assert_int_equal(rdma_create_id(l->cm, &l->id, NULL, RDMA_PS_TCP), 0);
	assert_int_equal(rdma_bind_addr(l->id, (struct sockaddr *)&sin), 0);
	assert_int_equal(rdma_listen(l->id, 8), 0);
	l->uri = (struct uri){ .scheme = URI_RDMA, .host = "127.0.0.1" };
	snprintf(l->uri.port, sizeof(l->uri.port), "%u", ntohs(rdma_get_src_port(l->id)));
}

void raw_unlisten(struct raw_listener *l)
{
	rdma_destroy_id(l->id);
	rdma_destroy_event_channel(l->cm);
}

void raw_accept(struct raw_peer *r, struct raw_listener *l, const void *answer, size_t len,
		unsigned nr_recv)
{
	struct rdma_conn_param param = { .private_data = answer, .private_data_len = (uint8_t)len };
	struct rdma_cm_event e;

	memset(r, 0, sizeof(*r));
	r->cm = rdma_create_event_channel();
	assert_non_null(r->cm);
	e = await_event(l->cm, r);
	assert_int_equal(e.event, RDMA_CM_EVENT_CONNECT_REQUEST);
	r->id = e.id;
	assert_int_equal(rdma_migrate_id(r->id, r->cm), 0);
	make_queues(r, nr_recv);
	assert_int_equal(rdma_accept(r->id, &param), 0);
	assert_int_equal(await_event(r->cm, NULL).event, RDMA_CM_EVENT_ESTABLISHED);
	r->connected = true;
}

void raw_welcome(struct raw_peer *r, struct raw_listener *l, const struct greeting *answer)
{
	uint8_t buf[GREETING_LEN];

	greeting_put(buf, answer);
	raw_accept(r, l, buf, sizeof(buf), RAW_SLOTS);
}

void raw_reject(struct raw_listener *l, const void *words, size_t len)
{
	struct rdma_cm_event e = await_event(l->cm, NULL);

	assert_int_equal(e.event, RDMA_CM_EVENT_CONNECT_REQUEST);
	assert_int_equal(rdma_reject(e.id, words, (uint8_t)len), 0);
	rdma_destroy_id(e.id);
}

/* Wait until the completion queue may have something.  False: nothing came. */
static bool await_completion(struct raw_peer *r)
{
	struct ibv_cq *cq;
	void *ctx;

	if (!await_fd(r->comp->fd))
		return false;
	while (!ibv_get_cq_event(r->comp, &cq, &ctx))
		r->events++;
	return true;
}

/* Take one completion, waiting for it.  False: none came. */
static bool take_completion(struct raw_peer *r, struct ibv_wc *wc)
{
	int n;

	do {
		assert_int_equal(ibv_req_notify_cq(r->cq, 0), 0);
		n = ibv_poll_cq(r->cq, 1, wc);
		assert_true(n >= 0);
	} while (!n && await_completion(r));
	return n > 0;
}

/* A receive that completed well is kept for raw_recv(). */
static void keep(struct raw_peer *r, const struct ibv_wc *wc)
{
	if (wc->status != IBV_WC_SUCCESS)
		return;
	assert_true(r->nr_arrived < RAW_SLOTS);
	r->arrived[r->nr_arrived].slot = (unsigned)(wc->wr_id & ~RECV_BIT);
	r->arrived[r->nr_arrived++].len = wc->byte_len;
}

/* Post @wr over @len bytes that stand in the send slot; the status of its completion. */
static enum ibv_wc_status post(struct raw_peer *r, struct ibv_send_wr *wr, size_t len)
{
	struct ibv_sge sge = {
		.addr = (uintptr_t)r->buf + RAW_SLOTS * RAW_SLOT,
		.length = (uint32_t)len,
		.lkey = r->mr->lkey,
	};
	struct ibv_send_wr *bad;
	struct ibv_wc wc;

	wr->sg_list = &sge;
	wr->num_sge = 1;
	wr->send_flags = IBV_SEND_SIGNALED;
	assert_int_equal(ibv_post_send(r->id->qp, wr, &bad), 0);
	while (take_completion(r, &wc)) {
		if (!(wc.wr_id & RECV_BIT))
			return wc.status;
		keep(r, &wc);
	}
	fail_msg("a work request never completed");
	return IBV_WC_GENERAL_ERR;
}

enum ibv_wc_status raw_send(struct raw_peer *r, const void *bytes, size_t len)
{
	struct ibv_send_wr wr = { .opcode = IBV_WR_SEND };

	assert_true(len <= RAW_SLOT);
	memcpy(r->buf + RAW_SLOTS * RAW_SLOT, bytes, len);
	return post(r, &wr, len);
}

enum ibv_wc_status raw_control(struct raw_peer *r, const struct ctl_header *h, const void *payload,
			       size_t len)
{
	uint8_t buf[RAW_SLOT];

	ctl_header_put(buf, h);
	if (len)
		memcpy(buf + CTL_HEADER_LEN, payload, len);
	return raw_send(r, buf, CTL_HEADER_LEN + len);
}

enum ibv_wc_status raw_data(struct raw_peer *r, const struct data_header *h, const void *payload,
			    size_t len)
{
	uint8_t buf[RAW_SLOT];

	data_header_put(buf, h);
	if (len)
		memcpy(buf + DATA_HEADER_LEN, payload, len);
	return raw_send(r, buf, DATA_HEADER_LEN + len);
}

enum ibv_wc_status raw_write(struct raw_peer *r, uint64_t remote_va, uint32_t rkey, size_t len)
{
	struct ibv_send_wr wr = { .opcode = IBV_WR_RDMA_WRITE,
				  .wr.rdma = { .remote_addr = remote_va, .rkey = rkey } };

	assert_true(len <= RAW_SLOT);
	memset(r->buf + RAW_SLOTS * RAW_SLOT, 0x77, len);
	return post(r, &wr, len);
}

long raw_recv(struct raw_peer *r, const uint8_t **frame)
{
	struct ibv_wc wc;
	unsigned slot;
	long len;

	while (!r->nr_arrived) {
		if (!take_completion(r, &wc) || wc.status != IBV_WC_SUCCESS)
			return -1;
		keep(r, &wc);
	}
	slot = r->arrived[0].slot;
	len = r->arrived[0].len;
	memmove(&r->arrived[0], &r->arrived[1], --r->nr_arrived * sizeof(r->arrived[0]));
	*frame = r->buf + slot * RAW_SLOT;
	return len;
}

void raw_close(struct raw_peer *r)
{
	if (!r->cm)
		return;
	if (r->connected)
		(void)rdma_disconnect(r->id);
	rdma_destroy_qp(r->id);
	ibv_ack_cq_events(r->cq, r->events);
	ibv_destroy_cq(r->cq);
	ibv_destroy_comp_channel(r->comp);
	ibv_dereg_mr(r->mr);
	ibv_dealloc_pd(r->pd);
	rdma_destroy_id(r->id);
	rdma_destroy_event_channel(r->cm);
	free(r->buf);
	memset(r, 0, sizeof(*r));
}
