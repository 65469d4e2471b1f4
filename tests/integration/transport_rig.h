/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_TESTS_TRANSPORT_RIG_H
#define TERN_TESTS_TRANSPORT_RIG_H

/*
 * A source and a destination over any transport, for cmocka tests of the contract of
 * src/transport.h.  Both "hosts" are threads of this process, and the memories are two
 * separate mappings.
 */

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "transport.h"
#include "uri.h"

#define NR_CHANNELS 2u
#define BIG (4ull << 20) /* region 0, both sides */
#define SMALL (1ull << 20) /* region 1; the source has twice as much */
#define TIMEOUT_MS 1500
#define LONG_MS 20000 /* never reached when all is well */

struct rig_backend {
	const char *name;
	const char *uri;
	bool pin_all, no_windows;
	bool faults; /* with the fault layer in between */
	bool on_demand; /* only when asked for by name */
};

struct rig {
	const struct rig_backend *backend;
	struct loop_net *net;
	struct fault_net *faults; /* no rules: it has to be transparent */
	const struct transport *ops;
	struct transport_env env;
	struct transport_listener *listener;
	struct transport_conn *src, *dst;
	struct transport_channel *sc[NR_CHANNELS], *dc[NR_CHANNELS];
	uint8_t *smem[2], *dmem[2];
	struct uri uri; /* where the listener is */
	pthread_t acceptor, opener;
	bool accepting;
	bool uneven; /* the source's region 1 is twice the destination's, over RDMA too */
	int open_rc;
	atomic_uint strangers;
	struct tern_error err;
};

/* One-sided: the destination does not see a write, it only grants keys. */
bool rig_is_rdma(const struct rig *f);

/* rig_now_ms - CLOCK_MONOTONIC. */
int64_t rig_now_ms(void);

/* Set up a test whose *state is its struct rig_backend: up to listening, … connected, … open. */
int rig_setup_listening(void **state);
int rig_setup_connected(void **state);
int rig_setup_open(void **state);
/* Zero-copy asked for; loopback has to fall back, and nothing may get lost. */
int rig_setup_zerocopy(void **state);
int rig_teardown(void **state);

/* The steps of that. */
void rig_listen(struct rig *f);
void rig_connect(struct rig *f); /* without channels; the first message, "hello", is taken */
void rig_open(struct rig *f); /* memory, and the channels of both sides */
void rig_forget_nets(struct rig *f); /* what rig_listen() made besides the listener */

/* The destination's acceptor, which takes in data channels; no further peer is expected. */
void rig_acceptor_start(struct rig *f);
void rig_acceptor_stop(struct rig *f);

/* rig_reopen - from listening on all anew, up to open, with what was changed in f->env. */
void rig_reopen(struct rig *f);

/* serve() on a thread until it returns no message. */
struct rig_server {
	struct rig *f;
	unsigned channel;
	pthread_t thread;
	atomic_uint notifies;
	long rc;
	struct tern_error err;
};

void rig_serve(struct rig_server *s, struct rig *f, unsigned channel);

/* rig_fence - a fence that has to succeed. */
void rig_fence(struct rig *f, unsigned channel);

/* rig_finish - close the source in order; serve() has to say 0 on the @nr channels of @s. */
void rig_finish(struct rig_server *s, unsigned nr);

/*
 * rig_check_region - does region @r of the destination hold what it must?
 *
 * That is 0xdd, or the source's bytes where @map, of @len bytes, says so.
 */
void rig_check_region(const struct rig *f, unsigned r, const uint8_t *map, size_t len);

#endif
