/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_TESTS_VERBS_PAIR_H
#define TERN_TESTS_VERBS_PAIR_H

/*
 * Both ends of an RDMA connection over the fake device, for cmocka tests: up to four
 * regions and two channels, one thread.
 */

#include <pthread.h>
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "rdma_transport.h"
#include "transport.h"
#include "uri.h"

#define PAIR_REGIONS_MAX 4u
#define PAIR_CHANNELS 2u
#define PAIR_PAGE 4096ull

struct verbs_pair {
	const struct transport *t;
	/* To be set before pair_connect(), with what pair_new() did not choose well. */
	struct transport_env src_env, dst_env;
	unsigned nr_regions;
	uint64_t size; /* of each region */
	int node[PAIR_REGIONS_MAX];
	unsigned accept_after_ms; /* as if the first request were lost, and repeated then */

	struct transport_listener *listener;
	struct transport_conn *src, *dst;
	struct transport_channel *sc[PAIR_CHANNELS], *dc[PAIR_CHANNELS];
	struct uri uri;
	uint8_t *smem[PAIR_REGIONS_MAX], *dmem[PAIR_REGIONS_MAX];
	pthread_t acceptor;
	bool accepting;
	int dst_rc;
	struct tern_error err; /* the source's */
	struct tern_error stranger; /* the last peer that was turned away */
};

/* pair_new - one region of 16 MiB, a timeout of 1 s; nothing is opened. */
struct verbs_pair *pair_new(void);

/* pair_listen - the destination listens; p->uri says where. */
void pair_listen(struct verbs_pair *p);

/* pair_connect - the control queue; listens first.  0 or the source's error, in p->err. */
int pair_connect(struct verbs_pair *p);

/* pair_open - as pair_connect(), and memory and channels. */
int pair_open(struct verbs_pair *p);

/* pair_write - write [@from, @from + @len) of region @r on channel @ch in ranges of @step. */
int pair_write(struct verbs_pair *p, unsigned ch, unsigned r, uint64_t from, uint64_t len,
	       uint64_t step);

/* pair_serve - handle frames of both channels until they end; one thread each. */
void pair_serve(struct verbs_pair *p, pthread_t threads[PAIR_CHANNELS]);

/* pair_delete - close everything; nothing of the device may be left. */
void pair_delete(struct verbs_pair *p);

void pair_assert_says(const struct tern_error *err, const char *what);

#endif
