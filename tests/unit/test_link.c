/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the control link takes for a dead peer, over a connection that takes its time.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>
#include <cmocka.h>

#include "link.h"

#define TIMEOUT_MS 120u

/*
 * A connection on which nothing comes, after some messages if so wanted.  recv() comes back late by late_ms, as for a thread
 * that did not get its CPU when it was due; listened_ms is how long it was asked to wait.
 */
struct rig {
	struct transport_conn conn;
	struct transport ops;
	struct monitor mon;
	struct link link;
	unsigned late_ms;
	enum wire_type says; /* so many of these come first */
	uint32_t seq;
	atomic_uint nr_says, turns, listened_ms, pings;
	atomic_bool aborted;
};

static struct rig *rig_of(struct transport_conn *conn)
{
	return (struct rig *)((char *)conn - offsetof(struct rig, conn));
}

static void pass_ms(unsigned ms)
{
	nanosleep(&(struct timespec){ .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000 }, NULL);
}

static long late_recv(struct transport_conn *conn, void *buf, size_t cap, int timeout_ms,
		      struct tern_error *err)
{
	struct rig *rig = rig_of(conn);

	if (rig->aborted)
		return -ECANCELED;
	if (rig->seq < rig->nr_says) {
		struct wire_msg msg = { .type = rig->says, .seq = rig->seq++ };

		if (msg.type == WIRE_PAGES_WANTED) {
			msg.wanted.count = 1;
			msg.wanted.v[0] = (struct wire_page_range){ 0, 0, 1 };
		}
		return (long)wire_encode(&msg, buf);
	}
	pass_ms((unsigned)timeout_ms + rig->late_ms);
	rig->turns++;
	rig->listened_ms += (unsigned)timeout_ms;
	return -ETIMEDOUT;
}

static int count_pings(struct transport_conn *conn, const void *msg, size_t len, int timeout_ms,
		       struct tern_error *err)
{
	rig_of(conn)->pings++;
	return 0;
}

static void note_abort(struct transport_conn *conn)
{
	rig_of(conn)->aborted = true;
}

/* With @nr messages @says of the destination first. */
static void rig_start_with(struct rig *rig, unsigned late_ms, enum wire_type says, unsigned nr)
{
	memset(rig, 0, sizeof(*rig));
	rig->says = says;
	rig->nr_says = nr;
	rig->ops =
		(struct transport){ .recv = late_recv, .send = count_pings, .abort = note_abort };
	rig->conn.ops = &rig->ops;
	rig->late_ms = late_ms;
	assert_int_equal(monitor_init(&rig->mon), 0);
	assert_int_equal(
		link_start(&rig->link, &rig->mon, &rig->conn, TERN_SOURCE, TIMEOUT_MS, NULL), 0);
}

static void rig_start(struct rig *rig, unsigned late_ms)
{
	rig_start_with(rig, late_ms, WIRE_PING, 0);
}

/* Wait until so many PINGs were sent. */
static void rig_await_pings(struct rig *rig, unsigned nr)
{
	for (unsigned ms = 0; rig->pings < nr; ms++) {
		assert_true(ms < 60000);
		pass_ms(1);
	}
}

/* Wait until the link is dead.  Its error. */
static struct tern_error rig_await_death(struct rig *rig)
{
	struct wire_msg msg;
	struct tern_error err = { 0 };

	monitor_lock(&rig->mon);
	while (!link_take(&rig->link, &msg, &err))
		assert_true(monitor_wait(&rig->mon, deadline_ns(60000)));
	monitor_unlock(&rig->mon);
	return err;
}

static void rig_stop(struct rig *rig)
{
	link_stop(&rig->link);
	monitor_fini(&rig->mon);
}

static void test_silent_peer_is_dead(void **state)
{
	struct rig rig;
	struct tern_error err;

	rig_start(&rig, 0);
	err = rig_await_death(&rig);
	assert_int_equal(err.code, -ETIMEDOUT);
	assert_non_null(strstr(err.message, "the peer was silent for 120 ms"));
	assert_in_range(rig.listened_ms, TIMEOUT_MS, TIMEOUT_MS * 2);
	assert_true(rig.pings >= 1);
	rig_stop(&rig);
}

/*
 * A thread that always comes late by twice the limit has not heard anything for the limit
 * after its first turn; it has to have listened for that long.
 */
static void test_own_lateness_is_not_silence(void **state)
{
	struct rig rig;

	rig_start(&rig, 2 * TIMEOUT_MS);
	assert_int_equal(rig_await_death(&rig).code, -ETIMEDOUT);
	assert_true(rig.turns > 2);
	assert_in_range(rig.listened_ms, TIMEOUT_MS, TIMEOUT_MS * 2);
	rig_stop(&rig);
}

static int answer_slowly(void *opaque, const struct wire_wanted *w, struct tern_error *err)
{
	rig_await_pings(opaque, 4); /* more than one timeout */
	return -ECANCELED; /* that is enough */
}

/* Pages on a slow wire take longer than the peer may wait for a word. */
static void test_busy_with_pages_is_not_silent(void **state)
{
	struct rig rig;

	rig_start_with(&rig, 0, WIRE_PAGES_WANTED, 0);
	link_hold_wanted(&rig.link);
	link_set_wanted(&rig.link, answer_slowly, &rig);
	rig.nr_says = 1;
	assert_int_equal(rig_await_death(&rig).code, -ECANCELED);
	assert_true(rig.pings >= 4);
	rig_stop(&rig);
}

/* Nobody takes messages for a while, which is the session's affair. */
static void test_full_queue_is_not_silent(void **state)
{
	struct rig rig;

	rig_start_with(&rig, 0, WIRE_READY, LINK_QUEUE);
	rig_await_pings(&rig, 4);
	monitor_lock(&rig.mon);
	assert_false(rig.link.dead);
	monitor_unlock(&rig.mon);
	rig_stop(&rig);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_silent_peer_is_dead),
		cmocka_unit_test(test_own_lateness_is_not_silence),
		cmocka_unit_test(test_busy_with_pages_is_not_silent),
		cmocka_unit_test(test_full_queue_is_not_silent),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
