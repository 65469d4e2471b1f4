/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * The RDMA transport when the device, the network or the peer fails: over the fake
 * verbs device, with one fault per test.  Each fault has to end in one sentence that
 * says what happened, and nothing may be left behind.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "error.h"
#include "greeting.h"
#include "rdma_transport.h"
#include "transport.h"
#include "uri.h"
#include "verbs_fake.h"

#define SIZE (16ull << 20)
#define PAGE 4096ull

struct pair {
	const struct transport *t;
	struct transport_env env;
	struct transport_listener *listener;
	struct transport_conn *src, *dst;
	struct transport_channel *sc, *dc;
	struct uri uri;
	uint8_t *smem, *dmem;
	pthread_t thread;
	int rc;
	struct tern_error err;
};

/* The destination: accept, expose, open; then stay in accept() for the channel. */
static void *acceptor_run(void *opaque)
{
	struct pair *p = opaque;
	struct transport_conn *extra;

	p->rc = p->t->accept(p->listener, 10000, &p->dst, NULL);
	if (!p->rc)
		(void)p->t->accept(p->listener, -1, &extra, NULL);
	return NULL;
}

static int setup(void **state)
{
	struct pair *p = calloc(1, sizeof(*p));
	char text[128];

	verbs_fake_reset();
	p->t = &rdma_transport;
	p->env = (struct transport_env){ .peer_timeout_ms = 1000, .chunk_bytes = 1 << 20 };
	p->smem = aligned_alloc(PAGE, SIZE);
	p->dmem = aligned_alloc(PAGE, SIZE);
	memset(p->smem, 0x5a, SIZE);
	memset(p->dmem, 0, SIZE);
	p->uri = (struct uri){ .scheme = URI_RDMA, .port = "0" };
	assert_int_equal(p->t->listen(p->t, &p->env, &p->uri, &p->listener, &p->err), 0);
	p->t->listener_uri(p->listener, text, sizeof(text));
	assert_int_equal(uri_parse(text, &p->uri, &p->err), 0);
	assert_int_equal(pthread_create(&p->thread, NULL, acceptor_run, p), 0);
	*state = p;
	return 0;
}

/* Close everything; nothing of the device may be left. */
static int teardown(void **state)
{
	struct pair *p = *state;

	p->t->listener_stop(p->listener);
	pthread_join(p->thread, NULL);
	if (p->src)
		p->t->close(p->src);
	if (p->dst)
		p->t->close(p->dst);
	p->t->listener_close(p->listener);
	assert_int_equal(verbs_fake_objects(), 0);
	free(p->smem);
	free(p->dmem);
	free(p);
	return 0;
}

static int do_connect(struct pair *p)
{
	const uint8_t id[TRANSPORT_SESSION_ID_LEN] = "faults";

	return p->t->connect(p->t, &p->env, &p->uri, id, -1, &p->src, &p->err);
}

static void *opener_run(void *opaque)
{
	struct pair *p = opaque;
	struct transport_memory m = { .hva = p->dmem, .size = SIZE, .fd = -1 };

	p->rc = p->t->expose(p->dst, &m, 1, NULL);
	if (!p->rc)
		p->rc = p->t->open_channels(p->dst, 1, &p->dc, NULL);
	return NULL;
}

/* Wait until accept() has handed the destination's connection out. */
static void await_destination(struct pair *p)
{
	char buf[TRANSPORT_MSG_MAX];

	assert_int_equal(p->t->send(p->src, "hello", 5, 5000, &p->err), 0);
	while (!__atomic_load_n(&p->dst, __ATOMIC_ACQUIRE))
		sched_yield();
	assert_int_equal(p->t->recv(p->dst, buf, sizeof(buf), 5000, &p->err), 5);
}

static int do_open(struct pair *p)
{
	struct transport_memory m = { .hva = p->smem, .size = SIZE, .fd = -1 };
	pthread_t opener;
	int rc;

	assert_int_equal(do_connect(p), 0);
	await_destination(p);
	assert_int_equal(pthread_create(&opener, NULL, opener_run, p), 0);
	assert_int_equal(p->t->expose(p->src, &m, 1, &p->err), 0);
	rc = p->t->open_channels(p->src, 1, &p->sc, &p->err);
	pthread_join(opener, NULL);
	return rc;
}

/* Write everything in 1 MiB ranges, then a fence.  0 or the first error. */
static int write_all(struct pair *p)
{
	int rc = 0;

	for (uint64_t at = 0; at < SIZE && !rc; at += 1 << 20) {
		struct transport_range r = { 0, at, 1 << 20 };

		rc = p->t->write(p->sc, &r, 1, &p->err);
	}
	return rc ? rc : p->t->fence(p->sc, &p->err);
}

static void assert_says(const struct pair *p, const char *what)
{
	if (!strstr(p->err.message, what))
		fail_msg("\"%s\" does not say \"%s\"", p->err.message, what);
}

static void no_device(void **state)
{
	struct pair *p = *state;
	char address[64], why[128];

	verbs_fake_absent();
	assert_int_equal(rdma_available(address, sizeof(address), why, sizeof(why)), -ENODEV);
	assert_non_null(strstr(why, "no RDMA device"));
	assert_int_equal(do_connect(p), -ENODEV);
	assert_says(p, "not reachable through an RDMA device");
}

static void address_unresolved(void **state)
{
	struct pair *p = *state;

	verbs_fake_answer(FAKE_ADDR_ERROR, 1);
	assert_int_equal(do_connect(p), -ENODEV);
	assert_says(p, "127.0.0.1");
	assert_says(p, "use tcp:");
}

static void route_unresolved(void **state)
{
	struct pair *p = *state;

	verbs_fake_answer(FAKE_ROUTE_ERROR, 1);
	assert_int_equal(do_connect(p), -ETIMEDOUT);
	assert_says(p, "No RDMA route");
}

static void rejected(void **state)
{
	struct pair *p = *state;

	verbs_fake_answer(FAKE_REJECT, 1);
	assert_int_equal(do_connect(p), -ECONNREFUSED);
	assert_says(p, "rejected the RDMA connection (reason 28)");
}

static void channel_rejected(void **state)
{
	struct pair *p = *state;
	struct transport_memory m = { .hva = p->smem, .size = SIZE, .fd = -1 };

	assert_int_equal(do_connect(p), 0);
	await_destination(p);
	assert_int_equal(p->t->expose(p->src, &m, 1, &p->err), 0);
	verbs_fake_answer(FAKE_REJECT, 1);
	assert_int_equal(p->t->open_channels(p->src, 1, &p->sc, &p->err), -ECONNREFUSED);
}

/* The n-th registration, for every n that there is, on either side. */
static void registration_fails(void **state)
{
	struct pair *p = *state;

	assert_int_equal(do_open(p), 0);
	verbs_fake_fail_from(FAKE_REG_SOURCE, 5, ENOMEM);
	assert_int_equal(write_all(p), -ENOMEM);
	assert_says(p, "memlock");
	assert_says(p, "--lock-budget");
}

static void first_registration_fails_with_pin_all(void **state)
{
	struct pair *p = *state;

	p->env.pin_all = true;
	verbs_fake_fail_from(FAKE_REG_SOURCE, 1, ENOMEM);
	assert_int_equal(do_open(p), -ENOMEM);
	assert_says(p, "memlock");
}

static void pin_all_above_budget(void **state)
{
	struct pair *p = *state;

	p->env.pin_all = true;
	p->env.lock_budget = 8 << 20;
	assert_int_equal(do_open(p), -ENOMEM);
	assert_says(p, "16 MiB is more than the lock budget of 8 MiB");
}

/* What the completion says in words, with device and queue pair. */
static void retry_exceeded(void **state)
{
	struct pair *p = *state;

	assert_int_equal(do_open(p), 0);
	verbs_fake_wc(FAKE_WR_WRITE, 3, IBV_WC_RETRY_EXC_ERR);
	assert_int_equal(write_all(p), -ETIMEDOUT);
	assert_says(p, "transport retry counter exceeded");
	assert_says(p, "device fake0, queue pair ");
	assert_int_equal(p->err.scope, TERN_SCOPE_CHANNEL);
	assert_int_equal(p->err.channel, 0);
}

static void remote_access_error(void **state)
{
	struct pair *p = *state;

	assert_int_equal(do_open(p), 0);
	verbs_fake_wc(FAKE_WR_WRITE, 1, IBV_WC_REM_ACCESS_ERR);
	assert_int_equal(write_all(p), -EIO);
	assert_says(p, "remote access error");
}

static void rnr_exceeded(void **state)
{
	struct pair *p = *state;

	assert_int_equal(do_open(p), 0);
	verbs_fake_wc(FAKE_WR_WRITE, 2, IBV_WC_RNR_RETRY_EXC_ERR);
	assert_int_equal(write_all(p), -ETIMEDOUT);
	assert_says(p, "RNR retry counter exceeded");
}

static void posting_fails(void **state)
{
	const struct transport_range r = { 0, 0, 1 << 20 };
	struct pair *p = *state;
	int rc;

	assert_int_equal(do_open(p), 0);
	/* Keys first, so that the next post is that of the write. */
	assert_int_equal(p->t->prepare(p->sc, &r, 1, &p->err), 0);
	assert_int_equal(p->t->write(p->sc, &r, 1, &p->err), 0);
	verbs_fake_fail(FAKE_POST_WRITE, 1, ENOMEM);
	rc = p->t->write(p->sc, &r, 1, &p->err);
	if (!rc)
		rc = p->t->fence(p->sc, &p->err);
	assert_int_equal(rc, -ENOMEM);
	assert_says(p, "fake0");
}

static void device_removed(void **state)
{
	struct pair *p = *state;
	char buf[16];

	assert_int_equal(do_open(p), 0);
	verbs_fake_remove_device();
	assert_int_equal(p->t->recv(p->src, buf, sizeof(buf), 5000, &p->err), -ENODEV);
	assert_says(p, "The RDMA device fake0 was removed");
	assert_int_equal(write_all(p), -ENODEV);
}

/* Invariant 4: after revoke() a write fails, and the memory stays as it is. */
static void write_after_revoke_fails(void **state)
{
	const struct transport_range r = { 0, 0, 1 << 20 };
	struct pair *p = *state;
	int rc;

	assert_int_equal(do_open(p), 0);
	assert_int_equal(p->t->write(p->sc, &r, 1, &p->err), 0);
	p->t->revoke(p->dst);
	memset(p->dmem, 0x11, SIZE);
	rc = p->t->write(p->sc, &r, 1, &p->err);
	if (!rc)
		rc = p->t->fence(p->sc, &p->err);
	assert_true(rc < 0);
	for (uint64_t i = 0; i < SIZE; i++)
		if (p->dmem[i] != 0x11)
			fail_msg("byte %llu changed", (unsigned long long)i);
}

/* Only what is written gets registered. */
static void holes_are_not_registered(void **state)
{
	const struct transport_range r[2] = { { 0, 3 * PAGE, PAGE }, { 0, 9 * PAGE, 2 * PAGE } };
	struct transport_conn_stats st = { 0 };
	struct pair *p = *state;

	assert_int_equal(do_open(p), 0);
	assert_int_equal(p->t->prepare(p->sc, r, 2, &p->err), 0);
	p->t->conn_stats(p->src, &st);
	assert_int_equal(st.registration_bytes, 3 * PAGE);
	assert_int_equal(p->t->write(p->sc, r, 2, &p->err), 0);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		T(no_device),
		T(address_unresolved),
		T(route_unresolved),
		T(rejected),
		T(channel_rejected),
		T(registration_fails),
		T(first_registration_fails_with_pin_all),
		T(pin_all_above_budget),
		T(retry_exceeded),
		T(remote_access_error),
		T(rnr_exceeded),
		T(posting_fails),
		T(device_removed),
		T(write_after_revoke_fails),
		T(holes_are_not_registered),
	};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
