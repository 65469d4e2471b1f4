/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_TESTS_RAW_PEER_H
#define TERN_TESTS_RAW_PEER_H

/*
 * A peer of the RDMA transport made of bare verbs calls, for either role: it greets
 * with any bytes, sends any frames, posts as many receives as it likes, and keeps no
 * rules.  For cmocka tests over the fake device; it waits 20 s at most.
 */

#include <infiniband/verbs.h>
#include <rdma/rdma_cma.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "greeting.h"
#include "uri.h"

#define RAW_SLOTS 64u /* receives; one more is for sending */
#define RAW_SLOT 16384u

/* A queue pair to the victim. */
struct raw_peer {
	struct rdma_event_channel *cm;
	struct rdma_cm_id *id;
	struct ibv_pd *pd;
	struct ibv_comp_channel *comp;
	struct ibv_cq *cq;
	struct ibv_mr *mr;
	uint8_t *buf;
	bool connected;
	unsigned events; /* of completions, to acknowledge */
	struct {
		unsigned slot;
		uint32_t len;
	} arrived[RAW_SLOTS]; /* received while waiting for something else */
	unsigned nr_arrived;
	uint8_t words[256]; /* the victim's private data: greeting or refusal */
	size_t nr_words;
};

struct raw_listener {
	struct rdma_event_channel *cm;
	struct rdma_cm_id *id;
	struct uri uri;
};

/* A greeting without fault, to be spoilt: of the control queue, or of channel 0 of 1. */
struct greeting raw_greeting(enum greeting_kind kind);

/*
 * raw_connect - connect with @len bytes of private data, with @nr_recv receives posted.
 *
 * True if the victim accepted.  Its words are kept in any case.
 */
bool raw_connect(struct raw_peer *r, const struct uri *uri, const void *hello, size_t len,
		 unsigned nr_recv);

/* raw_greet - the same with a greeting, and all receives. */
bool raw_greet(struct raw_peer *r, const struct uri *uri, const struct greeting *hello);

void raw_listen(struct raw_listener *l);
void raw_unlisten(struct raw_listener *l);

/* raw_accept - accept the next request with @len bytes of private data. */
void raw_accept(struct raw_peer *r, struct raw_listener *l, const void *answer, size_t len,
		unsigned nr_recv);

/* raw_welcome - the same with a greeting, and all receives. */
void raw_welcome(struct raw_peer *r, struct raw_listener *l, const struct greeting *answer);

/* raw_reject - reject the next request. */
void raw_reject(struct raw_listener *l, const void *words, size_t len);

/* raw_send - SEND @len bytes; the status of its completion. */
enum ibv_wc_status raw_send(struct raw_peer *r, const void *bytes, size_t len);

/* raw_control - send a control frame; raw_data: one of a data channel. */
enum ibv_wc_status raw_control(struct raw_peer *r, const struct ctl_header *h, const void *payload,
			       size_t len);
enum ibv_wc_status raw_data(struct raw_peer *r, const struct data_header *h, const void *payload,
			    size_t len);

/* raw_write - RDMA write of @len bytes of 0x77; the status of its completion. */
enum ibv_wc_status raw_write(struct raw_peer *r, uint64_t remote_va, uint32_t rkey, size_t len);

/* raw_recv - the next frame that arrived: its bytes in *frame, and its length; -1: none came. */
long raw_recv(struct raw_peer *r, const uint8_t **frame);

/* raw_close - hang up, without a word. */
void raw_close(struct raw_peer *r);

#endif
