/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * The contract of src/transport.h, run over every transport from one source:
 *
 *	test_transport loop|tcp|tcp6|unix|fault|rdma|rdma-all|rdma-no-windows|rdma6|rdma-fault
 *		[test name]
 *
 * Each test gets a fresh pair of connections with two channels; both "hosts"
 * are threads of this process, and the memories are two separate mappings.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>
#include "error.h"
#include "fault_transport.h"
#include "loop.h"
#include "strangers.h"
#include "transport.h"
#include "uri.h"

#define NR_CHANNELS 2u
#define BIG (4ull << 20) /* region 0, both sides */
#define SMALL (1ull << 20) /* region 1; the source has twice as much */
#define TIMEOUT_MS 1500
#define LONG_MS 20000 /* never reached when all is well */

struct backend {
	const char *name;
	const char *uri;
	bool pin_all, no_windows;
	bool faults; /* with the fault layer in between */
	bool on_demand; /* only when asked for by name */
};

struct fix {
	const struct backend *backend;
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
static bool is_rdma(const struct fix *f)
{
	return !strncmp(f->backend->name, "rdma", 4);
}

/* Milliseconds of CLOCK_MONOTONIC. */
static int64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* env.stranger: count. */
static void count_stranger(void *opaque, const struct tern_error *why)
{
	struct fix *f = opaque;

	assert_true(why->code < 0);
	assert_non_null(strstr(why->message, "turned away"));
	atomic_fetch_add(&f->strangers, 1);
}

/* The destination's acceptor, which takes in data channels; no further peer is expected. */
static void *acceptor_run(void *opaque)
{
	struct fix *f = opaque;
	struct transport_conn *extra;

	return (void *)(intptr_t)f->ops->accept(f->listener, -1, &extra, NULL);
}

static void acceptor_start(struct fix *f)
{
	assert_int_equal(pthread_create(&f->acceptor, NULL, acceptor_run, f), 0);
	f->accepting = true;
}

static void acceptor_stop(struct fix *f)
{
	void *rc;

	if (!f->accepting)
		return;
	f->ops->listener_stop(f->listener);
	pthread_join(f->acceptor, &rc);
	assert_int_equal((intptr_t)rc, -ECANCELED);
	f->accepting = false;
}

/* Listen for the backend of @f. */
static void do_listen(struct fix *f)
{
	const char *own = getenv("TERN_TEST_RDMA6");
	char text[256];
	struct uri uri;
	int rc;

	if (own && !strcmp(f->backend->name, "rdma6"))
		snprintf(text, sizeof(text), "%s", own);
	else
		snprintf(text, sizeof(text), f->backend->uri, (int)getpid());
	assert_int_equal(uri_parse(text, &uri, &f->err), 0);
	if (!strcmp(f->backend->name, "loop")) {
		f->net = loop_net_new();
		assert_non_null(f->net);
		f->ops = loop_net_transport(f->net);
	} else {
		assert_int_equal(transport_find(&uri, &f->ops, &f->err), 0);
	}
	if (f->backend->faults) {
		f->faults = fault_net_new(f->ops);
		assert_non_null(f->faults);
		f->ops = fault_net_transport(f->faults);
	}
	rc = f->ops->listen(f->ops, &f->env, &uri, &f->listener, &f->err);
	if (rc)
		fail_msg("%s", f->err.message);
	assert_true(f->ops->listener_uri(f->listener, text, sizeof(text)) < (int)sizeof(text));
	assert_int_equal(uri_parse(text, &f->uri, &f->err), 0);
}

/* The destination's side of do_connect(). */
static void *accept_run(void *opaque)
{
	struct fix *f = opaque;

	return (void *)(intptr_t)f->ops->accept(f->listener, LONG_MS, &f->dst, NULL);
}

/* A connected pair without channels; the first message, "hello", is taken. */
static void do_connect(struct fix *f)
{
	const uint8_t id[TRANSPORT_SESSION_ID_LEN] = "session 1";
	char buf[TRANSPORT_MSG_MAX];
	pthread_t thread;
	void *rc;

	assert_int_equal(pthread_create(&thread, NULL, accept_run, f), 0);
	if (f->ops->connect(f->ops, &f->env, &f->uri, id, -1, &f->src, &f->err))
		fail_msg("%s", f->err.message);
	assert_int_equal(f->ops->send(f->src, "hello", 5, LONG_MS, &f->err), 0);
	pthread_join(thread, &rc);
	assert_int_equal((intptr_t)rc, 0);
	assert_memory_equal(f->dst->session_id, id, sizeof(id));
	assert_int_equal(f->ops->recv(f->dst, buf, sizeof(buf), 0, &f->err), 5);
	assert_memory_equal(buf, "hello", 5);
}

static void *opener_run(void *opaque)
{
	struct fix *f = opaque;

	f->open_rc = f->ops->open_channels(f->dst, NR_CHANNELS, f->dc, NULL);
	return NULL;
}

/* Expose memory and open the channels of both sides. */
static void do_open(struct fix *f)
{
	struct transport_memory s[2] = {
		{ .region = 0, .hva = f->smem[0], .size = BIG, .fd = -1 },
		{ .region = 1, .hva = f->smem[1], .size = 2 * SMALL, .fd = -1 },
	};
	struct transport_memory d[2] = {
		{ .region = 0, .hva = f->dmem[0], .size = BIG, .fd = -1 },
		{ .region = 1, .hva = f->dmem[1], .size = SMALL, .fd = -1 },
	};

	/* RDMA asks for keys of whole pieces, so the sizes have to agree as in real life. */
	if (is_rdma(f) && !f->uneven)
		s[1].size = SMALL;
	assert_int_equal(f->ops->expose(f->src, s, 2, &f->err), 0);
	assert_int_equal(f->ops->expose(f->dst, d, 2, &f->err), 0);
	acceptor_start(f);
	assert_int_equal(pthread_create(&f->opener, NULL, opener_run, f), 0);
	if (f->ops->open_channels(f->src, NR_CHANNELS, f->sc, &f->err))
		fail_msg("%s", f->err.message);
	pthread_join(f->opener, NULL);
	assert_int_equal(f->open_rc, 0);
}

/* Source memory is noise, the destination's is 0xdd. */
static void fill(struct fix *f)
{
	uint32_t x = 1;

	for (unsigned i = 0; i < 2; i++) {
		size_t len = i ? 2 * SMALL : BIG;

		f->smem[i] = aligned_alloc(4096, len);
		f->dmem[i] = aligned_alloc(4096, len);
		for (size_t j = 0; j < len; j++)
			f->smem[i][j] = (uint8_t)((x = x * 1664525 + 1013904223) >> 24);
		memset(f->dmem[i], 0xdd, len);
	}
}

static int setup_listening(void **state)
{
	struct fix *f = calloc(1, sizeof(*f));

	f->backend = *state;
	f->env = (struct transport_env){ .peer_timeout_ms = TIMEOUT_MS,
					 .chunk_bytes = BIG,
					 .stranger = count_stranger,
					 .opaque = f };
	f->env.pin_all = f->backend->pin_all;
	f->env.no_windows = f->backend->no_windows;
	fill(f);
	do_listen(f);
	*state = f;
	return 0;
}

static int setup_connected(void **state)
{
	setup_listening(state);
	do_connect(*state);
	return 0;
}

/* Forget what do_listen() made besides the listener, which is closed. */
static void forget_nets(struct fix *f)
{
	loop_net_delete(f->net);
	fault_net_delete(f->faults);
	f->net = NULL;
	f->faults = NULL;
}

/* As setup_open(), in the middle of a test, with a lock budget of @bytes. */
static void do_connect_with_budget(struct fix *f, uint64_t bytes)
{
	f->ops->listener_close(f->listener);
	forget_nets(f);
	f->env.lock_budget = bytes;
	do_listen(f);
	do_connect(f);
	do_open(f);
}

static int setup_open(void **state)
{
	setup_connected(state);
	do_open(*state);
	return 0;
}

/* Zero-copy asked for; loopback has to fall back, and nothing may get lost. */
static int setup_zerocopy(void **state)
{
	struct fix *f;

	setup_listening(state);
	f = *state;
	f->env.zerocopy = true;
	do_connect(f);
	do_open(f);
	return 0;
}

static int teardown(void **state)
{
	struct fix *f = *state;

	acceptor_stop(f);
	if (f->src)
		f->ops->close(f->src);
	if (f->dst)
		f->ops->close(f->dst);
	f->ops->listener_close(f->listener);
	loop_net_delete(f->net);
	fault_net_delete(f->faults);
	for (unsigned i = 0; i < 2; i++) {
		free(f->smem[i]);
		free(f->dmem[i]);
	}
	free(f);
	return 0;
}

/* --- control queue --- */

static void control_both_ways(void **state)
{
	static const size_t lens[] = { 1, 2, 8191, 8192 };
	struct fix *f = *state;
	uint8_t out[TRANSPORT_MSG_MAX], in[TRANSPORT_MSG_MAX];

	for (unsigned way = 0; way < 2; way++) {
		struct transport_conn *a = way ? f->dst : f->src, *b = way ? f->src : f->dst;

		for (unsigned i = 0; i < 4; i++) {
			memset(out, (int)(i + 1), sizeof(out));
			assert_int_equal(f->ops->send(a, out, lens[i], LONG_MS, &f->err), 0);
		}
		for (unsigned i = 0; i < 4; i++) {
			memset(out, (int)(i + 1), sizeof(out));
			assert_int_equal(f->ops->recv(b, in, sizeof(in), LONG_MS, &f->err),
					 lens[i]);
			assert_memory_equal(in, out, lens[i]);
		}
	}
}

static void control_oversized_refused(void **state)
{
	struct fix *f = *state;
	uint8_t buf[TRANSPORT_MSG_MAX + 1] = { 0 };

	assert_int_equal(f->ops->send(f->src, buf, sizeof(buf), LONG_MS, &f->err), -EMSGSIZE);
	assert_int_equal(f->ops->send(f->src, buf, 0, LONG_MS, NULL), -EMSGSIZE);
	assert_int_equal(f->ops->send(f->src, buf, 100, LONG_MS, NULL), 0);
	assert_int_equal(f->ops->recv(f->dst, buf, 99, LONG_MS, NULL), -EMSGSIZE);
}

static void control_timeout_then_message(void **state)
{
	struct fix *f = *state;
	char buf[16];

	assert_int_equal(f->ops->recv(f->dst, buf, sizeof(buf), 20, NULL), -ETIMEDOUT);
	assert_int_equal(f->ops->send(f->src, "x", 1, LONG_MS, NULL), 0);
	assert_int_equal(f->ops->recv(f->dst, buf, sizeof(buf), LONG_MS, NULL), 1);
}

static void control_close_is_orderly(void **state)
{
	struct fix *f = *state;
	char buf[16];

	assert_int_equal(f->ops->send(f->src, "last", 4, LONG_MS, NULL), 0);
	f->ops->close(f->src);
	f->src = NULL;
	assert_int_equal(f->ops->recv(f->dst, buf, sizeof(buf), LONG_MS, NULL), 4);
	assert_int_equal(f->ops->recv(f->dst, buf, sizeof(buf), LONG_MS, NULL), 0);
	assert_int_equal(f->ops->recv(f->dst, buf, sizeof(buf), LONG_MS, NULL), 0);
}

static void control_abort_is_no_close(void **state)
{
	struct fix *f = *state;
	char buf[16];

	f->ops->abort(f->src);
	assert_int_equal(f->ops->recv(f->dst, buf, sizeof(buf), LONG_MS, &f->err), -ECONNRESET);
	assert_true(f->err.message[0]);
	assert_int_equal(f->ops->recv(f->src, buf, sizeof(buf), LONG_MS, NULL), -ECANCELED);
	assert_int_equal(f->ops->send(f->src, buf, 1, LONG_MS, NULL), -ECANCELED);
}

/* --- channels --- */

/* serve() on a thread until it returns no notify. */
struct server {
	struct fix *f;
	unsigned channel;
	pthread_t thread;
	atomic_uint notifies;
	long rc;
	struct tern_error err;
};

static void *server_run(void *opaque)
{
	struct server *s = opaque;
	char buf[TRANSPORT_SERVE_MAX];
	size_t contents;

	while ((s->rc = s->f->ops->serve(s->f->dc[s->channel], buf, &contents, &s->err)) > 0)
		atomic_fetch_add(&s->notifies, 1);
	return NULL;
}

static void server_start(struct server *s, struct fix *f, unsigned channel)
{
	memset(s, 0, sizeof(*s));
	s->f = f;
	s->channel = channel;
	assert_int_equal(pthread_create(&s->thread, NULL, server_run, s), 0);
}

/* A fence that has to succeed. */
static void must_fence(struct fix *f, unsigned channel)
{
	if (f->ops->fence(f->sc[channel], &f->err))
		fail_msg("fence: %s", f->err.message);
}

/* Close the source in order; serve() has to say 0. */
static void server_finish(struct server *s, unsigned nr)
{
	struct fix *f = s->f;

	if (f->src)
		f->ops->close(f->src);
	f->src = NULL;
	for (unsigned i = 0; i < nr; i++) {
		pthread_join(s[i].thread, NULL);
		if (s[i].rc)
			fail_msg("serve() returned %ld: %s", s[i].rc, s[i].err.message);
	}
}

/* What the destination must hold: 0xdd, or the source's bytes where @map says so. */
static void check_region(const struct fix *f, unsigned r, const uint8_t *map, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (f->dmem[r][i] != (map[i] ? f->smem[r][i] : 0xdd))
			fail_msg("region %u byte %zu is wrong", r, i);
}

static void write_all_lands(void **state)
{
	const struct transport_range all = { 0, 0, BIG };
	struct tern_channel_stats st = { 0 };
	struct fix *f = *state;
	struct server s;

	server_start(&s, f, 0);
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(f->ops->write(f->sc[0], &all, 1, &f->err), 0);
	must_fence(f, 0);
	assert_memory_equal(f->dmem[0], f->smem[0], BIG);
	f->ops->channel_stats(f->sc[0], &st);
	assert_int_equal(st.writes, 3);
	assert_true(st.bytes >= 3 * BIG);
	assert_true(st.zerocopy_bytes + st.zerocopy_copied <= 3 * BIG);
	server_finish(&s, 1);
}

static void zerocopy_is_reported(void **state)
{
	const struct transport_range all = { 0, 0, BIG };
	struct tern_channel_stats st = { 0 };
	struct fix *f = *state;
	struct server s;

	server_start(&s, f, 0);
	assert_int_equal(f->ops->write(f->sc[0], &all, 1, &f->err), 0);
	must_fence(f, 0);
	f->ops->channel_stats(f->sc[0], &st);
	assert_true(st.zerocopy_bytes + st.zerocopy_copied > 0);
	assert_int_equal(f->ops->write(f->sc[0], &all, 1, &f->err), 0);
	must_fence(f, 0);
	assert_memory_equal(f->dmem[0], f->smem[0], BIG);
	server_finish(&s, 1);
}

/* Ranges of odd lengths at odd offsets, over both regions, up to 64 in a write. */
static void write_scattered_lands_exactly(void **state)
{
	struct fix *f = *state;
	uint8_t *map = calloc(1, BIG), *map1 = calloc(1, SMALL);
	struct transport_range r[TRANSPORT_WRITE_RANGES_MAX];
	struct server s;
	const struct transport_range last = { 1, SMALL - 5, 5 };
	uint64_t at = 1;
	unsigned nr = 0, k = 0, batch = 1;

	server_start(&s, f, 0);
	for (; at + 9000 < BIG; k++) {
		r[nr] = (struct transport_range){ 0, at, 1 + k * 37 % 1500 };
		memset(map + at, 1, r[nr].len);
		at += r[nr].len + 1 + k % 513;
		if (++nr == batch) {
			assert_int_equal(f->ops->write(f->sc[0], r, nr, &f->err), 0);
			nr = 0;
			batch = batch % TRANSPORT_WRITE_RANGES_MAX + 1;
		}
	}
	if (nr)
		assert_int_equal(f->ops->write(f->sc[0], r, nr, &f->err), 0);
	memset(map1 + last.offset, 1, last.len);
	assert_int_equal(f->ops->write(f->sc[0], &last, 1, &f->err), 0);
	must_fence(f, 0);
	check_region(f, 0, map, BIG);
	check_region(f, 1, map1, SMALL);
	server_finish(&s, 1);
	free(map);
	free(map1);
}

/* Thousands of small writes, each with a notify behind it, in both channels at once. */
static void *small_writes_run(void *opaque)
{
	struct server *s = opaque;
	struct fix *f = s->f;
	const struct transport *t = f->ops;

	for (uint64_t at = s->channel * 512; at < BIG; at += 1024) {
		struct transport_range r = { 0, at, 512 };

		if (t->write(f->sc[s->channel], &r, 1, &s->err))
			return &s->err;
		if (at % 16384 < 1024 && t->notify(f->sc[s->channel], &at, 8, &s->err))
			return &s->err;
	}
	return t->fence(f->sc[s->channel], &s->err) ? &s->err : NULL;
}

static void two_channels_in_parallel(void **state)
{
	struct fix *f = *state;
	struct server rx[2], tx[2];
	void *failed;

	for (unsigned i = 0; i < 2; i++) {
		server_start(&rx[i], f, i);
		tx[i].f = f;
		tx[i].channel = i;
		error_clear(&tx[i].err);
		assert_int_equal(pthread_create(&tx[i].thread, NULL, small_writes_run, &tx[i]), 0);
	}
	for (unsigned i = 0; i < 2; i++) {
		pthread_join(tx[i].thread, &failed);
		if (failed)
			fail_msg("%s", tx[i].err.message);
		assert_int_equal(atomic_load(&rx[i].notifies), BIG / 16384);
	}
	assert_memory_equal(f->dmem[0], f->smem[0], BIG);
	server_finish(rx, 2);
}

static void notify_after_write_sees_it(void **state)
{
	const struct transport_range r = { 0, 4096, 3 * 4096 };
	uint8_t msg[TRANSPORT_NOTIFY_MAX], buf[TRANSPORT_SERVE_MAX];
	struct fix *f = *state;
	size_t contents;

	for (unsigned len = 1; len <= TRANSPORT_NOTIFY_MAX; len = len * 3 + 1) {
		memset(msg, (int)len, len);
		memset(f->dmem[0], 0, BIG);
		assert_int_equal(f->ops->write(f->sc[1], &r, 1, &f->err), 0);
		assert_int_equal(f->ops->notify(f->sc[1], msg, len, &f->err), 0);
		assert_int_equal(f->ops->serve(f->dc[1], buf, &contents, &f->err), len);
		assert_int_equal(contents, 0);
		assert_memory_equal(buf, msg, len);
		assert_memory_equal(f->dmem[0] + 4096, f->smem[0] + 4096, r.len);
	}
	assert_int_equal(f->ops->notify(f->sc[1], msg, sizeof(msg), &f->err), 0);
	assert_int_equal(f->ops->serve(f->dc[1], buf, &contents, &f->err), sizeof(msg));
	assert_int_equal(f->ops->notify(f->sc[1], msg, sizeof(msg) + 1, NULL), -EMSGSIZE);
}

static void *fence_run(void *opaque)
{
	struct server *s = opaque;

	s->rc = s->f->ops->fence(s->f->sc[0], &s->err);
	atomic_store(&s->notifies, 1); /* done */
	return NULL;
}

/* A fence waits for the notify before it to be handled: the next serve() says so. */
static void fence_waits_for_handling(void **state)
{
	struct fix *f = *state;
	struct server fence = { .f = f }, rx;
	char buf[TRANSPORT_SERVE_MAX];
	size_t contents;

	assert_int_equal(f->ops->notify(f->sc[0], "n", 1, &f->err), 0);
	assert_int_equal(pthread_create(&fence.thread, NULL, fence_run, &fence), 0);
	assert_int_equal(f->ops->serve(f->dc[0], buf, &contents, &f->err), 1);
	poll(NULL, 0, 50); /* time for a fence that is wrong to return */
	assert_int_equal(atomic_load(&fence.notifies), 0);
	server_start(&rx, f, 0);
	pthread_join(fence.thread, NULL);
	assert_int_equal(fence.rc, 0);
	server_finish(&rx, 1);
}

/*
 * The same over RDMA, where the destination refuses the key instead of the bytes: the
 * connection ends, and both sides say why.
 */
static void key_out_of_range_is_refused(void **state)
{
	const struct transport_range bad = { 1, SMALL - 4096, 8192 };
	struct fix *f = *state;
	char buf[TRANSPORT_NOTIFY_MAX];
	uint8_t *none = calloc(1, BIG);
	struct server s;
	int rc;

	f->uneven = true;
	do_connect(f);
	do_open(f);
	server_start(&s, f, 0);
	rc = f->ops->write(f->sc[0], &bad, 1, &f->err);
	if (!rc)
		rc = f->ops->fence(f->sc[0], &f->err);
	assert_true(rc < 0);
	pthread_join(s.thread, NULL);
	assert_int_equal(s.rc, -EPROTO);
	assert_non_null(strstr(s.err.message, "region 1"));
	assert_non_null(strstr(s.err.message, "outside what was exposed"));
	assert_int_equal(f->ops->recv(f->dst, buf, sizeof(buf), LONG_MS, &f->err), -EPROTO);
	check_region(f, 0, none, BIG);
	check_region(f, 1, none, SMALL);
	free(none);
}

/* A lock budget far below the memory: everything lands, and the budget holds. */
static void small_lock_budget_is_kept(void **state)
{
	struct transport_conn_stats cs = { 0 }, cd = { 0 };
	struct fix *f = *state;
	struct server s;

	do_connect_with_budget(f, 4ull << 20);
	server_start(&s, f, 0);
	for (uint64_t at = 0; at < BIG; at += 65536) {
		struct transport_range r[2] = { { 0, at, 65536 }, { 1, at / 4 % SMALL, 4096 } };

		assert_int_equal(f->ops->write(f->sc[0], r, 2, &f->err), 0);
	}
	must_fence(f, 0);
	assert_memory_equal(f->dmem[0], f->smem[0], BIG);
	f->ops->conn_stats(f->src, &cs);
	f->ops->conn_stats(f->dst, &cd);
	assert_in_range(cs.locked_peak_bytes, 4096, 4ull << 20);
	assert_in_range(cd.locked_peak_bytes, 4096, 4ull << 20);
	assert_true(cs.registration_bytes > (4ull << 20));
	server_finish(&s, 1);
}

/* The source's region 1 is larger than what the destination exposed. */
static void write_out_of_range_touches_nothing(void **state)
{
	const struct transport_range bad[2] = { { 0, 0, 4096 }, { 1, SMALL - 4096, 4097 } };
	struct fix *f = *state;
	char buf[TRANSPORT_SERVE_MAX];
	size_t contents;
	uint8_t *none;

	none = calloc(1, BIG);
	assert_int_equal(f->ops->write(f->sc[0], bad, 2, &f->err), 0);
	assert_int_equal(f->ops->serve(f->dc[0], buf, &contents, &f->err), -EPROTO);
	assert_non_null(strstr(f->err.message, "region 1 offset 1044480 length 4097"));
	check_region(f, 0, none, BIG);
	check_region(f, 1, none, 2 * SMALL);
	free(none);
}

static void write_checks_own_memory(void **state)
{
	const struct transport_range bad[] = {
		{ 2, 0, 1 }, { 0, BIG, 1 }, { 0, 0, BIG + 1 }, { 0, UINT64_MAX, 2 }, { 0, 0, 0 },
	};
	struct fix *f = *state;

	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_int_equal(f->ops->write(f->sc[0], &bad[i], 1, NULL), -EINVAL);
}

/* --- ends --- */

/* One blocked call, on a thread. */
struct blocked {
	struct fix *f;
	pthread_t thread;
	const char *what;
	long rc;
};

static void *blocked_run(void *opaque)
{
	struct blocked *b = opaque;
	struct fix *f = b->f;
	char buf[TRANSPORT_SERVE_MAX];
	size_t contents;

	if (!strcmp(b->what, "recv source"))
		b->rc = f->ops->recv(f->src, buf, sizeof(buf), LONG_MS, NULL);
	else if (!strcmp(b->what, "recv destination"))
		b->rc = f->ops->recv(f->dst, buf, sizeof(buf), LONG_MS, NULL);
	else if (!strcmp(b->what, "serve"))
		b->rc = f->ops->serve(f->dc[0], buf, &contents, NULL);
	else if (!strcmp(b->what, "fence"))
		b->rc = f->ops->fence(f->sc[1], NULL);
	return NULL;
}

static void abort_wakes_every_blocked_call(void **state)
{
	struct fix *f = *state;
	struct blocked b[] = {
		{ .f = f, .what = "recv source" },
		{ .f = f, .what = "recv destination" },
		{ .f = f, .what = "serve" },
		{ .f = f, .what = "fence" },
	};
	int64_t begin;

	assert_int_equal(f->ops->notify(f->sc[1], "n", 1, NULL), 0); /* nobody handles it */
	for (unsigned i = 0; i < 4; i++)
		assert_int_equal(pthread_create(&b[i].thread, NULL, blocked_run, &b[i]), 0);
	poll(NULL, 0, 50); /* most likely blocked by now; must hold in any case */
	begin = now_ms();
	f->ops->abort(f->dst);
	f->ops->abort(f->src);
	for (unsigned i = 0; i < 4; i++)
		pthread_join(b[i].thread, NULL);
	assert_true(now_ms() - begin < 1000);
	/* A source that saw the destination's end first may say so. */
	assert_true(b[0].rc == -ECANCELED || b[0].rc == -ECONNRESET);
	assert_int_equal(b[1].rc, -ECANCELED);
	assert_int_equal(b[2].rc, -ECANCELED);
	assert_true(b[3].rc == -ECANCELED || b[3].rc == -ECONNRESET);
}

/* The source writes without end; after revoke() no byte of the destination may change. */
static void *flood_run(void *opaque)
{
	struct server *s = opaque;
	const struct transport_range half = { 0, s->channel * BIG / 2, BIG / 2 };

	while (!(s->rc = s->f->ops->write(s->f->sc[s->channel], &half, 1, NULL)))
		;
	return NULL;
}

static void revoke_stops_placement(void **state)
{
	struct fix *f = *state;
	struct server rx[2], tx[2] = { { .f = f, .channel = 0 }, { .f = f, .channel = 1 } };
	struct tern_channel_stats st = { 0 };
	char buf[16];

	for (unsigned i = 0; i < 2; i++) {
		server_start(&rx[i], f, i);
		assert_int_equal(pthread_create(&tx[i].thread, NULL, flood_run, &tx[i]), 0);
	}
	do {
		f->ops->channel_stats(f->dc[0], &st);
	} while (!st.writes);
	f->ops->revoke(f->dst);
	memset(f->dmem[0], 0x55, BIG);
	for (unsigned i = 0; i < 2; i++) {
		pthread_join(rx[i].thread, NULL);
		pthread_join(tx[i].thread, NULL);
		assert_int_equal(rx[i].rc, -ECANCELED);
		assert_true(tx[i].rc < 0);
	}
	for (size_t i = 0; i < BIG; i++)
		if (f->dmem[0][i] != 0x55)
			fail_msg("byte %zu was placed after revoke()", i);
	/* The control queue goes on. */
	assert_int_equal(f->ops->send(f->dst, "ok", 2, LONG_MS, NULL), 0);
	assert_int_equal(f->ops->recv(f->src, buf, sizeof(buf), LONG_MS, NULL), 2);
}

/*
 * Invariant 4: what was written before, with keys that are still there, cannot be written
 * after revoke().
 */
static void write_after_revoke_fails(void **state)
{
	const struct transport_range r = { 0, 0, BIG };
	struct fix *f = *state;
	struct server rx[2];
	char buf[16];
	int rc;

	for (unsigned i = 0; i < 2; i++)
		server_start(&rx[i], f, i);
	assert_int_equal(f->ops->write(f->sc[0], &r, 1, &f->err), 0);
	must_fence(f, 0);
	assert_memory_equal(f->dmem[0], f->smem[0], BIG);
	f->ops->revoke(f->dst);
	memset(f->dmem[0], 0x55, BIG);
	rc = f->ops->write(f->sc[0], &r, 1, &f->err);
	if (!rc)
		rc = f->ops->fence(f->sc[0], &f->err);
	assert_true(rc < 0);
	for (unsigned i = 0; i < 2; i++) {
		pthread_join(rx[i].thread, NULL);
		assert_int_equal(rx[i].rc, -ECANCELED);
	}
	for (size_t i = 0; i < BIG; i++)
		if (f->dmem[0][i] != 0x55)
			fail_msg("byte %zu was placed after revoke()", i);
	assert_int_equal(f->ops->send(f->dst, "ok", 2, LONG_MS, NULL), 0);
	assert_int_equal(f->ops->recv(f->src, buf, sizeof(buf), LONG_MS, NULL), 2);
}

static void abort_by_source_ends_serve(void **state)
{
	struct fix *f = *state;
	struct server rx;

	server_start(&rx, f, 0);
	f->ops->abort(f->src);
	pthread_join(rx.thread, NULL);
	assert_int_equal(rx.rc, -ECONNRESET);
}

/* --- accepting --- */

static void accept_times_out(void **state)
{
	struct fix *f = *state;

	assert_int_equal(f->ops->accept(f->listener, 30, &f->dst, NULL), -ETIMEDOUT);
}

static void accept_ends_on_stop(void **state)
{
	struct fix *f = *state;

	acceptor_start(f);
	acceptor_stop(f);
	assert_int_equal(f->ops->accept(f->listener, -1, &f->dst, NULL), -ECANCELED);
}

static void listener_may_close_first(void **state)
{
	struct fix *f = *state;
	char buf[16];

	acceptor_stop(f);
	f->ops->listener_close(f->listener);
	assert_int_equal(f->ops->send(f->src, "x", 1, LONG_MS, NULL), 0);
	assert_int_equal(f->ops->recv(f->dst, buf, sizeof(buf), LONG_MS, NULL), 1);
	f->ops->close(f->src);
	f->ops->close(f->dst);
	f->src = f->dst = NULL;
	forget_nets(f);
	do_listen(f); /* the address is free again; teardown() closes it */
}

static void open_channels_needs_the_peer(void **state)
{
	struct fix *f = *state;

	assert_int_equal(f->ops->open_channels(f->dst, NR_CHANNELS, f->dc, &f->err), -ETIMEDOUT);
	assert_true(f->err.message[0]);
}

static void connect_to_nobody(void **state)
{
	const uint8_t id[TRANSPORT_SESSION_ID_LEN] = { 0 };
	struct fix *f = *state;
	struct transport_conn *c;
	int rc;

	f->ops->listener_close(f->listener);
	rc = f->ops->connect(f->ops, &f->env, &f->uri, id, -1, &c, &f->err);
	assert_true(rc == -ECONNREFUSED || rc == -ENOENT);
	assert_non_null(strstr(f->err.message, "nothing is listening there"));
	forget_nets(f);
	do_listen(f);
}

static void listen_twice_is_refused(void **state)
{
	struct transport_listener *l;
	struct fix *f = *state;

	assert_int_equal(f->ops->listen(f->ops, &f->env, &f->uri, &l, &f->err), -EADDRINUSE);
	assert_true(f->err.message[0]);
}

/* A good peer gets through at once whoever else is at the door; sockets only. */
static void strangers_delay_nobody(void **state)
{
	struct fix *f = *state;
	struct strangers *crowd;
	int64_t begin;

	crowd = strangers_come(&f->uri);
	assert_non_null(crowd);
	begin = now_ms();
	do_connect(f);
	assert_true(now_ms() - begin < TIMEOUT_MS / 2);
	begin = now_ms();
	/* All of them go, the silent ones and those that trickle too. */
	while (atomic_load(&f->strangers) < strangers_nr(crowd)) {
		struct transport_conn *c;

		strangers_trickle(crowd);
		assert_int_equal(f->ops->accept(f->listener, 20, &c, NULL), -ETIMEDOUT);
		assert_true(now_ms() - begin < 3 * TIMEOUT_MS);
	}
	strangers_go(crowd);
}

/* More silent connections than places: the oldest ones give way, a good peer gets in. */
static void crowd_of_silent_strangers(void **state)
{
	struct fix *f = *state;
	int fds[80];

	for (unsigned i = 0; i < 80; i++) {
		struct transport_conn *c;

		fds[i] = strangers_socket(&f->uri);
		assert_true(fds[i] >= 0);
		assert_int_equal(f->ops->accept(f->listener, 0, &c, NULL), -ETIMEDOUT);
	}
	assert_true(atomic_load(&f->strangers) >= 80 - 64);
	do_connect(f);
	for (unsigned i = 0; i < 80; i++)
		close(fds[i]);
}

/* Data connections that fit nothing are refused with a status that says why. */
static void data_channels_are_checked(void **state)
{
	static const uint8_t unknown[TRANSPORT_SESSION_ID_LEN] = "another";
	struct fix *f = *state;

	assert_int_equal(strangers_attach(&f->uri, f->dst->session_id, 0, NR_CHANNELS), 3);
	assert_int_equal(strangers_attach(&f->uri, f->dst->session_id, 2, 3), 4);
	assert_int_equal(strangers_attach(&f->uri, f->dst->session_id, 1, 3), 5);
	assert_int_equal(strangers_attach(&f->uri, unknown, 0, NR_CHANNELS), 2);
	write_all_lands(state);
}

#define T(name, setup)                             \
	{                                          \
#name, name, setup, teardown, NULL \
	}

static const struct CMUnitTest all_tests[] = {
	T(control_both_ways, setup_connected),
	T(control_oversized_refused, setup_connected),
	T(control_timeout_then_message, setup_connected),
	T(control_close_is_orderly, setup_connected),
	T(control_abort_is_no_close, setup_connected),
	T(write_all_lands, setup_open),
	T(write_scattered_lands_exactly, setup_open),
	T(two_channels_in_parallel, setup_open),
	T(notify_after_write_sees_it, setup_open),
	T(fence_waits_for_handling, setup_open),
	T(write_out_of_range_touches_nothing, setup_open),
	T(write_checks_own_memory, setup_open),
	T(key_out_of_range_is_refused, setup_listening),
	T(small_lock_budget_is_kept, setup_listening),
	T(abort_wakes_every_blocked_call, setup_open),
	T(abort_by_source_ends_serve, setup_open),
	T(revoke_stops_placement, setup_open),
	T(write_after_revoke_fails, setup_open),
	T(accept_times_out, setup_listening),
	T(accept_ends_on_stop, setup_listening),
	T(listener_may_close_first, setup_connected),
	T(open_channels_needs_the_peer, setup_connected),
	T(connect_to_nobody, setup_listening),
	T(listen_twice_is_refused, setup_listening),
	T(write_scattered_lands_exactly, setup_zerocopy),
	T(write_all_lands, setup_zerocopy),
	T(strangers_delay_nobody, setup_listening),
	T(crowd_of_silent_strangers, setup_listening),
	T(data_channels_are_checked, setup_open),
	T(zerocopy_is_reported, setup_zerocopy),
};

#define NR_TESTS (sizeof(all_tests) / sizeof(all_tests[0]))

/* rdma6 listens at $TERN_TEST_RDMA6 where a real device is: it does not serve [::1]. */
static const struct backend backends[] = {
	{ .name = "loop", .uri = "unix:test" },
	{ .name = "tcp", .uri = "tcp:127.0.0.1:0" },
	{ .name = "tcp6", .uri = "tcp:[::1]:0" },
	{ .name = "unix", .uri = "unix:/tmp/tern-test-%d.sock" },
	{ .name = "fault", .uri = "tcp:127.0.0.1:0", .faults = true },
	{ .name = "rdma", .uri = "rdma::0" },
	{ .name = "rdma-all", .uri = "rdma::0", .pin_all = true },
	{ .name = "rdma-no-windows", .uri = "rdma::0", .no_windows = true },
	{ .name = "rdma6", .uri = "rdma:[::1]:0", .on_demand = true },
	{ .name = "rdma-fault", .uri = "rdma::0", .faults = true, .on_demand = true },
};

/* Does @test concern the transport @name?  What does not is left out of its list. */
static bool fits(CMUnitTestFunction test, const char *name)
{
	bool tcp = !strncmp(name, "tcp", 3), rdma = !strncmp(name, "rdma", 4);

	if (test == zerocopy_is_reported)
		return tcp;
	/* These need a socket that strangers can connect to. */
	if (test == strangers_delay_nobody || test == crowd_of_silent_strangers ||
	    test == data_channels_are_checked)
		return !rdma && strcmp(name, "loop") != 0;
	if (test == write_out_of_range_touches_nothing)
		return !rdma;
	/* With all pinned open_channels() finds it. */
	if (test == key_out_of_range_is_refused || test == small_lock_budget_is_kept)
		return rdma && strcmp(name, "rdma-all") != 0;
	return true;
}

int main(int argc, char **argv)
{
	struct CMUnitTest tests[NR_TESTS];
	const char *rdma = getenv("TERN_TEST_RDMA"); /* set where a verbs device is: the lab */
	int failed = 0;

	if (argc > 2)
		cmocka_set_test_filter(argv[2]);
	for (unsigned b = 0; b < sizeof(backends) / sizeof(backends[0]); b++) {
		size_t nr = 0;

		if (argc > 1 && strcmp(argv[1], backends[b].name))
			continue;
		if (argc < 2 && backends[b].on_demand)
			continue;
		if (argc < 2 && !strncmp(backends[b].name, "rdma", 4) &&
		    (!rdma || strcmp(rdma, "1")))
			continue;
		for (unsigned i = 0; i < NR_TESTS; i++) {
			if (!fits(all_tests[i].test_func, backends[b].name))
				continue;
			tests[nr] = all_tests[i];
			tests[nr++].initial_state = (void *)&backends[b];
		}
		failed += _cmocka_run_group_tests(backends[b].name, tests, nr, NULL, NULL);
	}
	return failed;
}
