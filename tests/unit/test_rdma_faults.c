/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * The RDMA transport when the device, the network or the peer fails: over the fake
 * verbs device, with one fault per test.  Each fault has to end in one sentence that
 * says what happened, and nothing may be left behind.
 *
 * Here: finding a device, connecting, registering memory.  What happens to work
 * requests is in test_rdma_transfer.c.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "error.h"
#include "verbs_fake.h"
#include "verbs_pair.h"

static int setup(void **state)
{
	*state = pair_new();
	return 0;
}

static int teardown(void **state)
{
	pair_delete(*state);
	return 0;
}

/* Connecting has to fail with @code, and say @what and the peer's address. */
static void assert_no_connection(struct verbs_pair *p, int code, const char *what)
{
	assert_int_equal(pair_connect(p), code);
	pair_assert_says(&p->err, what);
	pair_assert_says(&p->err, "127.0.0.1:");
	assert_int_equal(verbs_fake_fired(), 1);
}

/* Write everything, then a fence, with somebody who serves.  0 or the first error. */
static int write_all(struct verbs_pair *p)
{
	pthread_t threads[PAIR_CHANNELS];
	int rc;

	pair_serve(p, threads);
	rc = pair_write(p, 0, 0, 0, p->size, 1 << 20);
	if (!rc)
		rc = p->t->fence(p->sc[0], &p->err);
	p->t->abort(p->src);
	for (unsigned i = 0; i < PAIR_CHANNELS; i++)
		pthread_join(threads[i], NULL);
	return rc;
}

/* --- is there a device? --- */

/* rdma_available() and a connection: -ENODEV, with @what in the reason. */
static void assert_not_available(struct verbs_pair *p, const char *what)
{
	char address[64], why[128];

	assert_int_equal(rdma_available(address, sizeof(address), why, sizeof(why)), -ENODEV);
	if (!strstr(why, what))
		fail_msg("\"%s\" does not say \"%s\"", why, what);
}

static void no_device(void **state)
{
	struct verbs_pair *p = *state;
	struct uri uri = { .scheme = URI_RDMA, .host = "127.0.0.1", .port = "4444" };
	struct transport_listener *l;
	struct transport_conn *c;

	verbs_fake_absent();
	assert_not_available(p, "no RDMA device");
	assert_int_equal(p->t->connect(p->t, &p->src_env, &uri, (const uint8_t *)"0123456789abcdef",
				       -1, &c, &p->err),
			 -ENODEV);
	pair_assert_says(&p->err, "127.0.0.1:4444 is not reachable through an RDMA device");
	error_clear(&p->err);
	assert_int_equal(p->t->listen(p->t, &p->dst_env, &uri, &l, &p->err), -ENODEV);
	pair_assert_says(&p->err, "Listening on 127.0.0.1:4444 for RDMA failed");
	pair_assert_says(&p->err, "check that an RDMA device serves that address");
}

static void port_down(void **state)
{
	verbs_fake_port_attr()->state = IBV_PORT_DOWN;
	assert_not_available(*state, "active port");
}

static void no_address(void **state)
{
	verbs_fake_port_attr()->gid_tbl_len = 0;
	assert_not_available(*state, "has an IP address");
}

static void device_that_cannot_be_asked(void **state)
{
	verbs_fake_fail(FAKE_QUERY_DEVICE, 1, EIO);
	assert_not_available(*state, "active port");
	verbs_fake_fail(FAKE_QUERY_PORT, 1, EIO);
	assert_not_available(*state, "active port");
}

/* auto: goes by the route, and says why. */
static void route_decides(void **state)
{
	struct uri here = { .scheme = URI_AUTO, .host = "127.0.0.1", .port = "1" };
	struct uri here6 = { .scheme = URI_AUTO, .host = "::1", .port = "1" };
	struct uri away = { .scheme = URI_AUTO, .host = "192.0.2.1", .port = "1" };
	const struct transport *t;
	char why[128];

	assert_int_equal(transport_choose(&here, "", &t, why, sizeof(why), NULL), 0);
	assert_string_equal(t->name, "rdma");
	assert_non_null(strstr(why, "device fake0 leads to 127.0.0.1"));
	assert_int_equal(transport_choose(&here6, "", &t, why, sizeof(why), NULL), 0);
	assert_string_equal(t->name, "rdma");
	assert_int_equal(transport_choose(&away, "", &t, why, sizeof(why), NULL), 0);
	assert_string_equal(t->name, "tcp");
	assert_non_null(strstr(why, "no RDMA device here leads to 192.0.2.1"));
	verbs_fake_absent();
	assert_int_equal(transport_choose(&here, "", &t, why, sizeof(why), NULL), 0);
	assert_string_equal(t->name, "tcp");
	assert_non_null(strstr(why, "no RDMA device"));
}

/* --- connecting --- */

static void address_unresolved(void **state)
{
	verbs_fake_answer(FAKE_ADDR_ERROR, 1);
	assert_no_connection(*state, -ENODEV, "use tcp:");
}

/* The first look at an address comes to nothing: another one follows. */
static void address_found_later(void **state)
{
	verbs_fake_answer(FAKE_ADDR_TIMEOUT, 1);
	assert_int_equal(pair_open(*state), 0);
	assert_int_equal(verbs_fake_fired(), 1);
}

/* The same of a channel's. */
static void address_of_a_channel_found_later(void **state)
{
	verbs_fake_answer(FAKE_ADDR_TIMEOUT, 2);
	assert_int_equal(pair_open(*state), 0);
	assert_int_equal(verbs_fake_fired(), 1);
}

static void address_refused_at_once(void **state)
{
	verbs_fake_fail(FAKE_RESOLVE, 1, ENETUNREACH);
	assert_no_connection(*state, -ENETUNREACH, "is not reachable through an RDMA device");
}

static void route_unresolved(void **state)
{
	verbs_fake_answer(FAKE_ROUTE_ERROR, 1);
	assert_no_connection(*state, -ETIMEDOUT, "No RDMA route to 127.0.0.1");
}

static void rejected_without_a_word(void **state)
{
	verbs_fake_answer(FAKE_REJECT, 1);
	assert_no_connection(*state, -ECONNREFUSED, "rejected the RDMA connection (reason 28)");
}

static void rejected_by_another_program(void **state)
{
	verbs_fake_answer(FAKE_REJECT_FOREIGN, 1);
	assert_no_connection(*state, -ECONNREFUSED, "check that a tern destination listens there");
}

static void unreachable(void **state)
{
	verbs_fake_answer(FAKE_UNREACHABLE, 1);
	assert_no_connection(*state, -ETIMEDOUT, "the host did not answer");
}

static void never_answered(void **state)
{
	struct verbs_pair *p = *state;

	p->src_env.peer_timeout_ms = 100;
	verbs_fake_answer(FAKE_SILENCE, 1);
	assert_no_connection(p, -ETIMEDOUT, "no answer in time");
}

/* A datagram that is lost costs seconds, however short the peer timeout is. */
static void answered_late(void **state)
{
	struct verbs_pair *p = *state;

	p->src_env.peer_timeout_ms = p->dst_env.peer_timeout_ms = 100;
	p->src_env.answer_ms = p->dst_env.answer_ms = 0; /* as a session has it */
	p->accept_after_ms = 500;
	assert_int_equal(pair_connect(p), 0);
}

static void connect_call_fails(void **state)
{
	verbs_fake_fail(FAKE_CONNECT, 1, EINVAL);
	assert_no_connection(*state, -EINVAL, "Invalid argument");
}

/* The device goes away while the source waits for an answer. */
static void *remover_run(void *opaque)
{
	while (!verbs_fake_fired())
		sched_yield();
	verbs_fake_remove_device();
	return NULL;
}

static void device_removed_while_connecting(void **state)
{
	struct verbs_pair *p = *state;
	pthread_t thread;

	verbs_fake_answer(FAKE_SILENCE, 1);
	assert_int_equal(pthread_create(&thread, NULL, remover_run, p), 0);
	assert_no_connection(p, -ENODEV, "was removed while connecting");
	pthread_join(thread, NULL);
}

/* The destination cannot accept: both sides say so, each in its own words. */
static void accepting_fails(void **state)
{
	struct verbs_pair *p = *state;

	verbs_fake_fail(FAKE_ACCEPT, 1, EIO);
	assert_no_connection(p, -EBUSY, "look there for the reason");
	pair_assert_says(&p->stranger, "turned away: Accepting an RDMA connection");
	pair_assert_says(&p->stranger, "Input/output error");
}

static void listening_fails(void **state)
{
	struct verbs_pair *p = *state;
	struct uri uri = { .scheme = URI_RDMA, .port = "0" };
	struct transport_listener *l;

	verbs_fake_fail(FAKE_LISTEN, 1, ENOSPC);
	assert_int_equal(p->t->listen(p->t, &p->dst_env, &uri, &l, &p->err), -ENOSPC);
	pair_assert_says(&p->err, "for RDMA failed: No space left on device");
}

/* --- channels --- */

static void channel_rejected(void **state)
{
	struct verbs_pair *p = *state;

	p->dst_env.peer_timeout_ms = 100;
	verbs_fake_answer(FAKE_REJECT, 2); /* the first one is the control queue's */
	assert_int_equal(pair_open(p), -ECONNRESET);
	pair_assert_says(&p->err, "channel 0 was rejected without a word (reason 28)");
	/* It misses one channel, and may have seen the others come and go. */
	assert_true(p->dst_rc == -ETIMEDOUT || p->dst_rc == -ECONNRESET);
}

static void channel_not_accepted(void **state)
{
	struct verbs_pair *p = *state;

	verbs_fake_fail(FAKE_ACCEPT, 2, EIO);
	assert_int_equal(pair_open(p), -EBUSY);
	pair_assert_says(&p->err, "look there for the reason");
	assert_int_equal(p->dst_rc, -EIO);
}

static void channel_never_answered(void **state)
{
	struct verbs_pair *p = *state;

	p->src_env.peer_timeout_ms = p->dst_env.peer_timeout_ms = 150;
	verbs_fake_answer(FAKE_SILENCE, 2);
	assert_int_equal(pair_open(p), -ETIMEDOUT);
	pair_assert_says(&p->err, "no answer in time");
	assert_true(p->dst_rc == -ETIMEDOUT || p->dst_rc == -ECONNRESET);
}

/* A device with small queues: they are what is used. */
static void small_device(void **state)
{
	struct verbs_pair *p = *state;

	verbs_fake_device_attr()->max_qp_wr = 64;
	verbs_fake_device_attr()->max_cqe = 128;
	verbs_fake_port_attr()->max_msg_sz = 65536;
	assert_int_equal(pair_open(p), 0);
	assert_int_equal(write_all(p), 0);
	assert_memory_equal(p->dmem[0], p->smem[0], p->size);
}

/* --- registering --- */

/* No room at all: the limit is named. */
static void registration_fails(void **state)
{
	struct verbs_pair *p = *state;

	assert_int_equal(pair_open(p), 0);
	verbs_fake_fail_from(FAKE_REG_SOURCE, 1, ENOMEM);
	assert_int_equal(write_all(p), -ENOMEM);
	pair_assert_says(&p->err, "device fake0 failed");
	pair_assert_says(&p->err, "memlock");
	pair_assert_says(&p->err, "--lock-budget");
}

static void registration_fails_at_destination(void **state)
{
	struct verbs_pair *p = *state;

	assert_int_equal(pair_open(p), 0);
	verbs_fake_fail_from(FAKE_REG_DESTINATION, 1, ENOMEM);
	assert_int_equal(write_all(p), -ENOMEM);
	pair_assert_says(&p->err, "The destination 127.0.0.1:");
	pair_assert_says(&p->err, "memlock");
}

/* Something else than memory: no second attempt, and no hint at limits. */
static void registration_is_refused(void **state)
{
	struct verbs_pair *p = *state;

	assert_int_equal(pair_open(p), 0);
	verbs_fake_fail(FAKE_REG_SOURCE, 3, EPERM);
	assert_int_equal(write_all(p), -EPERM);
	pair_assert_says(&p->err, "Registering ");
	pair_assert_says(&p->err, "device fake0 failed: Operation not permitted");
	assert_null(strstr(p->err.message, "memlock"));
}

/* Guest memory that is write-protected just now: touched, and tried again. */
static void registration_faults_once(void **state)
{
	struct verbs_pair *p = *state;

	assert_int_equal(pair_open(p), 0);
	verbs_fake_fail(FAKE_REG_SOURCE, 2, EFAULT);
	assert_int_equal(write_all(p), 0);
	assert_int_equal(verbs_fake_fired(), 1);
	assert_memory_equal(p->dmem[0], p->smem[0], p->size);
}

static void registration_faults_for_ever(void **state)
{
	struct verbs_pair *p = *state;

	assert_int_equal(pair_open(p), 0);
	verbs_fake_fail_from(FAKE_REG_SOURCE, 2, EFAULT);
	assert_int_equal(write_all(p), -EFAULT);
	pair_assert_says(&p->err, "Bad address");
}

static void first_registration_fails_with_pin_all(void **state)
{
	struct verbs_pair *p = *state;

	p->src_env.pin_all = true;
	verbs_fake_fail_from(FAKE_REG_SOURCE, 1, ENOMEM);
	assert_int_equal(pair_open(p), -ENOMEM);
	pair_assert_says(&p->err, "memlock");
}

static void pin_all_above_budget(void **state)
{
	struct verbs_pair *p = *state;

	p->src_env.pin_all = true;
	p->src_env.lock_budget = 8 << 20;
	assert_int_equal(pair_open(p), -ENOMEM);
	pair_assert_says(&p->err, "16 MiB is more than the lock budget of 8 MiB");
}

static void budget_too_small(void **state)
{
	struct verbs_pair *p = *state;

	p->dst_env.lock_budget = 4096;
	assert_int_equal(pair_open(p), -EINVAL);
	pair_assert_says(&p->err, "lock budget of 4096 bytes is too small");
}

/* Only what is written gets registered. */
static void holes_are_not_registered(void **state)
{
	const struct transport_range r[2] = { { 0, 3 * PAIR_PAGE, PAIR_PAGE },
					      { 0, 9 * PAIR_PAGE, 2 * PAIR_PAGE } };
	struct transport_conn_stats st = { 0 };
	struct verbs_pair *p = *state;

	assert_int_equal(pair_open(p), 0);
	assert_int_equal(p->t->prepare(p->sc[0], r, 2, &p->err), 0);
	p->t->conn_stats(p->src, &st);
	assert_int_equal(st.registration_bytes, 3 * PAIR_PAGE);
	assert_int_equal(p->t->write(p->sc[0], r, 2, &p->err), 0);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		T(no_device),
		T(port_down),
		T(no_address),
		T(device_that_cannot_be_asked),
		T(route_decides),
		T(address_unresolved),
		T(address_found_later),
		T(address_of_a_channel_found_later),
		T(address_refused_at_once),
		T(route_unresolved),
		T(rejected_without_a_word),
		T(rejected_by_another_program),
		T(unreachable),
		T(never_answered),
		T(answered_late),
		T(connect_call_fails),
		T(device_removed_while_connecting),
		T(accepting_fails),
		T(listening_fails),
		T(channel_rejected),
		T(channel_not_accepted),
		T(channel_never_answered),
		T(small_device),
		T(registration_fails),
		T(registration_fails_at_destination),
		T(registration_is_refused),
		T(registration_faults_once),
		T(registration_faults_for_ever),
		T(first_registration_fails_with_pin_all),
		T(pin_all_above_budget),
		T(budget_too_small),
		T(holes_are_not_registered),
	};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
