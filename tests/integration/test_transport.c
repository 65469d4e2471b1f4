/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * The contract of src/transport.h, run over every transport from one source:
 *
 *	test_transport loop|tcp|tcp6|unix|fault|rdma|rdma-all|rdma-no-windows|rdma6|rdma-fault
 *		[test name]
 *
 * Each test gets a fresh pair of connections with two channels (transport_rig.h).
 */

#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "error.h"
#include "strangers.h"
#include "transport_push.h"
#include "transport_rig.h"

/* --- control queue --- */

static void control_both_ways(void **state)
{
	static const size_t lens[] = { 1, 2, 8191, 8192 };
	struct rig *f = *state;
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
	struct rig *f = *state;
	uint8_t buf[TRANSPORT_MSG_MAX + 1] = { 0 };

	assert_int_equal(f->ops->send(f->src, buf, sizeof(buf), LONG_MS, &f->err), -EMSGSIZE);
	assert_int_equal(f->ops->send(f->src, buf, 0, LONG_MS, NULL), -EMSGSIZE);
	assert_int_equal(f->ops->send(f->src, buf, 100, LONG_MS, NULL), 0);
	assert_int_equal(f->ops->recv(f->dst, buf, 99, LONG_MS, NULL), -EMSGSIZE);
}

static void control_timeout_then_message(void **state)
{
	struct rig *f = *state;
	char buf[16];

	assert_int_equal(f->ops->recv(f->dst, buf, sizeof(buf), 20, NULL), -ETIMEDOUT);
	assert_int_equal(f->ops->send(f->src, "x", 1, LONG_MS, NULL), 0);
	assert_int_equal(f->ops->recv(f->dst, buf, sizeof(buf), LONG_MS, NULL), 1);
}

static void control_close_is_orderly(void **state)
{
	struct rig *f = *state;
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
	struct rig *f = *state;
	char buf[16];

	f->ops->abort(f->src);
	assert_int_equal(f->ops->recv(f->dst, buf, sizeof(buf), LONG_MS, &f->err), -ECONNRESET);
	assert_true(f->err.message[0]);
	assert_int_equal(f->ops->recv(f->src, buf, sizeof(buf), LONG_MS, NULL), -ECANCELED);
	assert_int_equal(f->ops->send(f->src, buf, 1, LONG_MS, NULL), -ECANCELED);
}

/* --- channels --- */

static void write_all_lands(void **state)
{
	const struct transport_range all = { 0, 0, BIG };
	struct tern_channel_stats st = { 0 };
	struct rig *f = *state;
	struct rig_server s;

	rig_serve(&s, f, 0);
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(f->ops->write(f->sc[0], &all, 1, &f->err), 0);
	rig_fence(f, 0);
	assert_memory_equal(f->dmem[0], f->smem[0], BIG);
	f->ops->channel_stats(f->sc[0], &st);
	assert_int_equal(st.writes, 3);
	assert_true(st.bytes >= 3 * BIG);
	assert_true(st.zerocopy_bytes + st.zerocopy_copied <= 3 * BIG);
	rig_finish(&s, 1);
}

static void zerocopy_is_reported(void **state)
{
	const struct transport_range all = { 0, 0, BIG };
	struct tern_channel_stats st = { 0 };
	struct rig *f = *state;
	struct rig_server s;

	rig_serve(&s, f, 0);
	assert_int_equal(f->ops->write(f->sc[0], &all, 1, &f->err), 0);
	rig_fence(f, 0);
	f->ops->channel_stats(f->sc[0], &st);
	assert_true(st.zerocopy_bytes + st.zerocopy_copied > 0);
	assert_int_equal(f->ops->write(f->sc[0], &all, 1, &f->err), 0);
	rig_fence(f, 0);
	assert_memory_equal(f->dmem[0], f->smem[0], BIG);
	rig_finish(&s, 1);
}

/* Ranges of odd lengths at odd offsets, over both regions, up to 64 in a write. */
static void write_scattered_lands_exactly(void **state)
{
	struct rig *f = *state;
	uint8_t *map = calloc(1, BIG), *map1 = calloc(1, SMALL);
	struct transport_range r[TRANSPORT_WRITE_RANGES_MAX];
	struct rig_server s;
	const struct transport_range last = { 1, SMALL - 5, 5 };
	uint64_t at = 1;
	unsigned nr = 0, k = 0, batch = 1;

	rig_serve(&s, f, 0);
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
	rig_fence(f, 0);
	rig_check_region(f, 0, map, BIG);
	rig_check_region(f, 1, map1, SMALL);
	rig_finish(&s, 1);
	free(map);
	free(map1);
}

/* Thousands of small writes, each with a notify behind it, in both channels at once. */
static void *small_writes_run(void *opaque)
{
	struct rig_server *s = opaque;
	struct rig *f = s->f;
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
	struct rig *f = *state;
	struct rig_server rx[2], tx[2];
	void *failed;

	for (unsigned i = 0; i < 2; i++) {
		rig_serve(&rx[i], f, i);
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
	rig_finish(rx, 2);
}

static void notify_after_write_sees_it(void **state)
{
	const struct transport_range r = { 0, 4096, 3 * 4096 };
	uint8_t msg[TRANSPORT_NOTIFY_MAX], buf[TRANSPORT_SERVE_MAX];
	struct rig *f = *state;
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
	struct rig_server *s = opaque;

	s->rc = s->f->ops->fence(s->f->sc[0], &s->err);
	atomic_store(&s->notifies, 1); /* done */
	return NULL;
}

/* A fence waits for the notify before it to be handled: the next serve() says so. */
static void fence_waits_for_handling(void **state)
{
	struct rig *f = *state;
	struct rig_server fence = { .f = f }, rx;
	char buf[TRANSPORT_SERVE_MAX];
	size_t contents;

	assert_int_equal(f->ops->notify(f->sc[0], "n", 1, &f->err), 0);
	assert_int_equal(pthread_create(&fence.thread, NULL, fence_run, &fence), 0);
	assert_int_equal(f->ops->serve(f->dc[0], buf, &contents, &f->err), 1);
	poll(NULL, 0, 50); /* time for a fence that is wrong to return */
	assert_int_equal(atomic_load(&fence.notifies), 0);
	rig_serve(&rx, f, 0);
	pthread_join(fence.thread, NULL);
	assert_int_equal(fence.rc, 0);
	rig_finish(&rx, 1);
}

/*
 * The same over RDMA, where the destination refuses the key instead of the bytes: the
 * connection ends, and both sides say why.
 */
static void key_out_of_range_is_refused(void **state)
{
	const struct transport_range bad = { 1, SMALL - 4096, 8192 };
	struct rig *f = *state;
	char buf[TRANSPORT_NOTIFY_MAX];
	uint8_t *none = calloc(1, BIG);
	struct rig_server s;
	int rc;

	f->uneven = true;
	rig_connect(f);
	rig_open(f);
	rig_serve(&s, f, 0);
	rc = f->ops->write(f->sc[0], &bad, 1, &f->err);
	if (!rc)
		rc = f->ops->fence(f->sc[0], &f->err);
	assert_true(rc < 0);
	pthread_join(s.thread, NULL);
	assert_int_equal(s.rc, -EPROTO);
	assert_non_null(strstr(s.err.message, "region 1"));
	assert_non_null(strstr(s.err.message, "outside what was exposed"));
	assert_int_equal(f->ops->recv(f->dst, buf, sizeof(buf), LONG_MS, &f->err), -EPROTO);
	rig_check_region(f, 0, none, BIG);
	rig_check_region(f, 1, none, SMALL);
	free(none);
}

/* A lock budget far below the memory: everything lands, and the budget holds. */
static void small_lock_budget_is_kept(void **state)
{
	struct transport_conn_stats cs = { 0 }, cd = { 0 };
	struct rig *f = *state;
	struct rig_server s;

	f->env.lock_budget = 4ull << 20;
	rig_reopen(f);
	rig_serve(&s, f, 0);
	for (uint64_t at = 0; at < BIG; at += 65536) {
		struct transport_range r[2] = { { 0, at, 65536 }, { 1, at / 4 % SMALL, 4096 } };

		assert_int_equal(f->ops->write(f->sc[0], r, 2, &f->err), 0);
	}
	rig_fence(f, 0);
	assert_memory_equal(f->dmem[0], f->smem[0], BIG);
	f->ops->conn_stats(f->src, &cs);
	f->ops->conn_stats(f->dst, &cd);
	assert_in_range(cs.locked_peak_bytes, 4096, 4ull << 20);
	assert_in_range(cd.locked_peak_bytes, 4096, 4ull << 20);
	assert_true(cs.registration_bytes > (4ull << 20));
	rig_finish(&s, 1);
}

/* The source's region 1 is larger than what the destination exposed. */
static void write_out_of_range_touches_nothing(void **state)
{
	const struct transport_range bad[2] = { { 0, 0, 4096 }, { 1, SMALL - 4096, 4097 } };
	struct rig *f = *state;
	char buf[TRANSPORT_SERVE_MAX];
	size_t contents;
	uint8_t *none;

	none = calloc(1, BIG);
	assert_int_equal(f->ops->write(f->sc[0], bad, 2, &f->err), 0);
	assert_int_equal(f->ops->serve(f->dc[0], buf, &contents, &f->err), -EPROTO);
	assert_non_null(strstr(f->err.message, "region 1 offset 1044480 length 4097"));
	rig_check_region(f, 0, none, BIG);
	rig_check_region(f, 1, none, 2 * SMALL);
	free(none);
}

static void write_checks_own_memory(void **state)
{
	const struct transport_range bad[] = {
		{ 2, 0, 1 }, { 0, BIG, 1 }, { 0, 0, BIG + 1 }, { 0, UINT64_MAX, 2 }, { 0, 0, 0 },
	};
	struct rig *f = *state;

	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_int_equal(f->ops->write(f->sc[0], &bad[i], 1, NULL), -EINVAL);
}

/* --- ends --- */

/* One blocked call, on a thread. */
struct blocked {
	struct rig *f;
	pthread_t thread;
	const char *what;
	long rc;
};

static void *blocked_run(void *opaque)
{
	struct blocked *b = opaque;
	struct rig *f = b->f;
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
	struct rig *f = *state;
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
	begin = rig_now_ms();
	f->ops->abort(f->dst);
	f->ops->abort(f->src);
	for (unsigned i = 0; i < 4; i++)
		pthread_join(b[i].thread, NULL);
	assert_true(rig_now_ms() - begin < 1000);
	/* A source that saw the destination's end first may say so. */
	assert_true(b[0].rc == -ECANCELED || b[0].rc == -ECONNRESET);
	assert_int_equal(b[1].rc, -ECANCELED);
	assert_int_equal(b[2].rc, -ECANCELED);
	assert_true(b[3].rc == -ECANCELED || b[3].rc == -ECONNRESET);
}

/* The source writes without end; after revoke() no byte of the destination may change. */
static void *flood_run(void *opaque)
{
	struct rig_server *s = opaque;
	const struct transport_range half = { 0, s->channel * BIG / 2, BIG / 2 };

	while (!(s->rc = s->f->ops->write(s->f->sc[s->channel], &half, 1, NULL)))
		;
	return NULL;
}

static void revoke_stops_placement(void **state)
{
	struct rig *f = *state;
	struct rig_server rx[2], tx[2] = { { .f = f, .channel = 0 }, { .f = f, .channel = 1 } };
	struct tern_channel_stats st = { 0 };
	char buf[16];

	for (unsigned i = 0; i < 2; i++) {
		rig_serve(&rx[i], f, i);
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
	struct rig *f = *state;
	struct rig_server rx[2];
	char buf[16];
	int rc;

	for (unsigned i = 0; i < 2; i++)
		rig_serve(&rx[i], f, i);
	assert_int_equal(f->ops->write(f->sc[0], &r, 1, &f->err), 0);
	rig_fence(f, 0);
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
	struct rig *f = *state;
	struct rig_server rx;

	rig_serve(&rx, f, 0);
	f->ops->abort(f->src);
	pthread_join(rx.thread, NULL);
	assert_int_equal(rx.rc, -ECONNRESET);
}

/* --- accepting --- */

static void accept_times_out(void **state)
{
	struct rig *f = *state;

	assert_int_equal(f->ops->accept(f->listener, 30, &f->dst, NULL), -ETIMEDOUT);
}

static void accept_ends_on_stop(void **state)
{
	struct rig *f = *state;

	rig_acceptor_start(f);
	rig_acceptor_stop(f);
	assert_int_equal(f->ops->accept(f->listener, -1, &f->dst, NULL), -ECANCELED);
}

static void listener_may_close_first(void **state)
{
	struct rig *f = *state;
	char buf[16];

	rig_acceptor_stop(f);
	f->ops->listener_close(f->listener);
	assert_int_equal(f->ops->send(f->src, "x", 1, LONG_MS, NULL), 0);
	assert_int_equal(f->ops->recv(f->dst, buf, sizeof(buf), LONG_MS, NULL), 1);
	f->ops->close(f->src);
	f->ops->close(f->dst);
	f->src = f->dst = NULL;
	rig_forget_nets(f);
	rig_listen(f); /* the address is free again; rig_teardown() closes it */
}

static void open_channels_needs_the_peer(void **state)
{
	struct rig *f = *state;

	f->ops->listener_close(f->listener);
	rig_forget_nets(f);
	f->env.answer_ms = 1; /* no patience beyond the peer timeout */
	rig_listen(f);
	rig_connect(f);
	assert_int_equal(f->ops->open_channels(f->dst, NR_CHANNELS, f->dc, &f->err), -ETIMEDOUT);
	assert_true(f->err.message[0]);
}

static void connect_to_nobody(void **state)
{
	const uint8_t id[TRANSPORT_SESSION_ID_LEN] = { 0 };
	struct rig *f = *state;
	struct transport_conn *c;
	int rc;

	f->ops->listener_close(f->listener);
	rc = f->ops->connect(f->ops, &f->env, &f->uri, id, -1, &c, &f->err);
	assert_true(rc == -ECONNREFUSED || rc == -ENOENT);
	assert_non_null(strstr(f->err.message, "nothing is listening there"));
	rig_forget_nets(f);
	rig_listen(f);
}

static void listen_twice_is_refused(void **state)
{
	struct transport_listener *l;
	struct rig *f = *state;

	assert_int_equal(f->ops->listen(f->ops, &f->env, &f->uri, &l, &f->err), -EADDRINUSE);
	assert_true(f->err.message[0]);
}

/* A good peer gets through at once whoever else is at the door; sockets only. */
static void strangers_delay_nobody(void **state)
{
	struct rig *f = *state;
	struct strangers *crowd;
	int64_t begin;

	crowd = strangers_come(&f->uri);
	assert_non_null(crowd);
	begin = rig_now_ms();
	rig_connect(f);
	assert_true(rig_now_ms() - begin < TIMEOUT_MS / 2);
	begin = rig_now_ms();
	/* All of them go, the silent ones and those that trickle too. */
	while (atomic_load(&f->strangers) < strangers_nr(crowd)) {
		struct transport_conn *c;

		strangers_trickle(crowd);
		assert_int_equal(f->ops->accept(f->listener, 20, &c, NULL), -ETIMEDOUT);
		assert_true(rig_now_ms() - begin < 3 * TIMEOUT_MS);
	}
	strangers_go(crowd);
}

/* More silent connections than places: the oldest ones give way, a good peer gets in. */
static void crowd_of_silent_strangers(void **state)
{
	struct rig *f = *state;
	int fds[80];

	for (unsigned i = 0; i < 80; i++) {
		struct transport_conn *c;

		fds[i] = strangers_socket(&f->uri);
		assert_true(fds[i] >= 0);
		assert_int_equal(f->ops->accept(f->listener, 0, &c, NULL), -ETIMEDOUT);
	}
	assert_true(atomic_load(&f->strangers) >= 80 - 64);
	rig_connect(f);
	for (unsigned i = 0; i < 80; i++)
		close(fds[i]);
}

/* Data connections that fit nothing are refused with a status that says why. */
static void data_channels_are_checked(void **state)
{
	static const uint8_t unknown[TRANSPORT_SESSION_ID_LEN] = "another";
	struct rig *f = *state;

	assert_int_equal(strangers_attach(&f->uri, f->dst->session_id, 0, NR_CHANNELS), 3);
	assert_int_equal(strangers_attach(&f->uri, f->dst->session_id, 2, 3), 4);
	assert_int_equal(strangers_attach(&f->uri, f->dst->session_id, 1, 3), 5);
	assert_int_equal(strangers_attach(&f->uri, unknown, 0, NR_CHANNELS), 2);
	write_all_lands(state);
}

#define T(name, setup)                                 \
	{                                              \
#name, name, setup, rig_teardown, NULL \
	}

static const struct CMUnitTest all_tests[] = {
	T(control_both_ways, rig_setup_connected),
	T(control_oversized_refused, rig_setup_connected),
	T(control_timeout_then_message, rig_setup_connected),
	T(control_close_is_orderly, rig_setup_connected),
	T(control_abort_is_no_close, rig_setup_connected),
	T(write_all_lands, rig_setup_open),
	T(write_scattered_lands_exactly, rig_setup_open),
	T(two_channels_in_parallel, rig_setup_open),
	T(notify_after_write_sees_it, rig_setup_open),
	T(fence_waits_for_handling, rig_setup_open),
	T(write_out_of_range_touches_nothing, rig_setup_open),
	T(write_checks_own_memory, rig_setup_open),
	T(key_out_of_range_is_refused, rig_setup_listening),
	T(small_lock_budget_is_kept, rig_setup_listening),
	T(abort_wakes_every_blocked_call, rig_setup_open),
	T(abort_by_source_ends_serve, rig_setup_open),
	T(revoke_stops_placement, rig_setup_open),
	T(write_after_revoke_fails, rig_setup_open),
	T(accept_times_out, rig_setup_listening),
	T(accept_ends_on_stop, rig_setup_listening),
	T(listener_may_close_first, rig_setup_connected),
	T(open_channels_needs_the_peer, rig_setup_listening),
	T(connect_to_nobody, rig_setup_listening),
	T(listen_twice_is_refused, rig_setup_listening),
	T(write_scattered_lands_exactly, rig_setup_zerocopy),
	T(write_all_lands, rig_setup_zerocopy),
	T(strangers_delay_nobody, rig_setup_listening),
	T(crowd_of_silent_strangers, rig_setup_listening),
	T(data_channels_are_checked, rig_setup_open),
	T(zerocopy_is_reported, rig_setup_zerocopy),
};

#define NR_TESTS (sizeof(all_tests) / sizeof(all_tests[0]))

/* rdma6 listens at $TERN_TEST_RDMA6 where a real device is: it does not serve [::1]. */
static const struct rig_backend backends[] = {
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
	return push_test_fits(test, name);
}

int main(int argc, char **argv)
{
	struct CMUnitTest tests[NR_TESTS + PUSH_TESTS];
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
		for (unsigned i = 0; i < NR_TESTS + PUSH_TESTS; i++) {
			const struct CMUnitTest *t =
				i < NR_TESTS ? &all_tests[i] : &push_tests[i - NR_TESTS];

			if (!fits(t->test_func, backends[b].name))
				continue;
			tests[nr] = *t;
			tests[nr++].initial_state = (void *)&backends[b];
		}
		failed += _cmocka_run_group_tests(backends[b].name, tests, nr, NULL, NULL);
	}
	return failed;
}
