/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Postcopy whose link is lost, by a fault layer over the lane's transport that cuts it at
 * a chosen call.
 *
 * Most cases cut it at the destination's first PAGES_WANTED: then a thread of its guest
 * waits for a page that the source was never asked for, next to nothing was pushed, and
 * both sides are paused.
 */
#define _GNU_SOURCE
#include "postcopy_recover.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "hugepages.h"
#include "leave_out.h"
#include "monitor.h"
#include "postcopy_rig.h"
#include "session.h"
#include "wire.h"

#define PAGES 4096u

/* Up to the moment at which both sides are paused, with @nr threads that wait for one page. */
static void pause_both(struct rig *r, void **state, enum testvm_backing backing, unsigned nr)
{
	const uint64_t pages[] = { PAGES };

	rig_init(r, state, backing, 1, pages, 1);
	rig_cuttable(r);
	rig_cut(r, FAULT_DESTINATION, FAULT_SEND, WIRE_PAGES_WANTED, 1);
	rig_sessions(r, TERN_MODE_POSTCOPY);
	rig_throttle(r);
	r->late = true;
	for (unsigned i = 0; i < nr; i++)
		rig_add_reader(r, PAGES - 1, 1, 0);
	rig_start(r);
	rig_await_paused(r);
}

static void recover_and_finish(struct rig *r)
{
	rig_unthrottle(r);
	rig_recover_until_done(r);
	rig_assert_moved(r);
	rig_fini(r);
}

/* Both sides are paused: end them.  The threads that wait read zeros. */
static void give_up(struct rig *r)
{
	unsigned nr = r->nr_readers;

	tern_session_delete(&r->s);
	tern_session_delete(&r->d);
	rig_end_readers(r, nr);
	assert_int_equal(atomic_exchange(&r->wrong, 0), nr);
	rig_fini(r);
}

void lost_link_pauses_both_sides(void **state)
{
	enum testvm_backing backings[] = { TESTVM_MEMFD, TESTVM_ANON };

	for (int i = 0; i < 2; i++) {
		struct tern_postcopy_stats st;
		struct rig r;

		pause_both(&r, state, backings[i], 1);
		rig_await(&r.src_heard.warnings, 1, "warnings");
		rig_await(&r.dst_heard.warnings, 1, "warnings");
		rig_assert_text(&r.src_heard, r.src_heard.warning, "the link to ");
		rig_assert_text(&r.src_heard, r.src_heard.warning, "was lost");
		rig_assert_text(&r.dst_heard, r.dst_heard.warning,
				"the link to the source was lost");
		rig_await_faults(&r, 1, 0);
		rig_postcopy(r.d, &st);
		assert_true(st.missing_pages > PAGES / 2);
		assert_int_equal(st.requests, 1);
		assert_int_equal(atomic_load(&r.readers[0].done), 0);
		assert_false(r.src.is_running);
		/* Without the background, the page comes only if it is asked for again. */
		assert_int_equal(tern_session_recover(r.s, NULL), 0);
		rig_join_readers(&r);
		rig_await_state(&r, r.s, TERN_STATE_POSTCOPY_ACTIVE);
		rig_await_state(&r, r.d, TERN_STATE_POSTCOPY_ACTIVE);
		rig_unthrottle(&r);
		rig_wait(&r);
		rig_assert_moved(&r);
		assert_int_equal(rig_postcopy(r.s, &st)->recoveries, 1);
		assert_int_equal(rig_postcopy(r.d, &st)->recoveries, 1);
		rig_fini(&r);
	}
}

/* In the middle of what carries pages, at either side. */
void lost_link_while_pages_move(void **state)
{
	static const struct {
		enum testvm_backing backing;
		enum fault_side side;
		enum fault_op op;
		unsigned nth;
		enum fault_action action;
	} cuts[] = {
		{ TESTVM_MEMFD, FAULT_SOURCE, FAULT_WRITE, 3, FAULT_CUT },
		{ TESTVM_MEMFD, FAULT_SOURCE, FAULT_WRITE, 3, FAULT_CUT_AFTER },
		{ TESTVM_MEMFD, FAULT_SOURCE, FAULT_WRITE, 3, FAULT_SHORT },
		{ TESTVM_MEMFD, FAULT_SOURCE, FAULT_NOTIFY, 4, FAULT_CUT },
		{ TESTVM_MEMFD, FAULT_SOURCE, FAULT_NOTIFY, 4, FAULT_CUT_AFTER },
		{ TESTVM_MEMFD, FAULT_DESTINATION, FAULT_SERVE, 6, FAULT_CUT_AFTER },
		{ TESTVM_ANON, FAULT_SOURCE, FAULT_PUSH, 9, FAULT_CUT },
		{ TESTVM_ANON, FAULT_SOURCE, FAULT_PUSH, 9, FAULT_CUT_AFTER },
		{ TESTVM_ANON, FAULT_DESTINATION, FAULT_SERVE, 9, FAULT_CUT_AFTER },
	};
	const uint64_t pages[] = { PAGES };

	for (size_t i = 0; i < sizeof(cuts) / sizeof(cuts[0]); i++) {
		const struct fault_rule rule = {
			.side = cuts[i].side,
			.op = cuts[i].op,
			.msg_type = FAULT_ANY_TYPE,
			.nth = cuts[i].nth,
			.action = cuts[i].action,
		};
		struct tern_postcopy_stats st;
		struct rig r;

		rig_init(&r, state, cuts[i].backing, 1, pages, 1);
		rig_cuttable(&r);
		assert_int_equal(fault_net_add(r.net, &rule), 0);
		rig_sessions(&r, TERN_MODE_POSTCOPY);
		rig_add_reader(&r, 0, PAGES, 200);
		rig_start(&r);
		rig_recover_until_done(&r);
		rig_assert_moved(&r);
		assert_int_equal(fault_net_fired(r.net), 1);
		/* A channel may be served for the last time when all is over. */
		if (cuts[i].op != FAULT_SERVE)
			assert_true(rig_postcopy(r.d, &st)->recoveries >= 1);
		rig_fini(&r);
	}
}

/* Something has come: it is not placed before the session has found the link lost. */
struct losing {
	struct rig *r;
	atomic_bool done;
};

static void lose_link(void *opaque)
{
	struct losing *x = opaque;
	struct tern_session *d = x->r->d;
	bool up = true;

	if (atomic_exchange(&x->done, true))
		return;
	monitor_lock(&d->mon);
	struct transport_conn *conn = d->conn;

	monitor_unlock(&d->mon);
	conn->ops->abort(conn);
	while (up) {
		usleep(1000);
		monitor_lock(&d->mon);
		up = d->link_up;
		monitor_unlock(&d->mon);
	}
}

/* All that was missing had arrived: nothing is left that could be recovered. */
void link_lost_with_the_last_page(void **state)
{
	enum testvm_backing backings[] = { TESTVM_MEMFD, TESTVM_ANON };
	const uint64_t pages[] = { 1 };

	for (int i = 0; i < 2; i++) {
		struct tern_postcopy_stats st;
		struct rig r;
		struct losing x = { .r = &r };
		const struct fault_rule rule = {
			.side = FAULT_DESTINATION,
			.op = FAULT_SERVE,
			.msg_type = FAULT_ANY_TYPE,
			.action = FAULT_CALL_AFTER,
			.fn = lose_link,
			.opaque = &x,
		};

		rig_init(&r, state, backings[i], 1, pages, 1);
		rig_cuttable(&r);
		assert_int_equal(fault_net_add(r.net, &rule), 0);
		rig_sessions(&r, TERN_MODE_POSTCOPY);
		rig_start(&r);
		rig_await_state(&r, r.d, TERN_STATE_COMPLETED);
		rig_assert_text(&r.dst_heard, r.dst_heard.warning, "all pages are here");
		assert_int_equal(rig_postcopy(r.d, &st)->missing_pages, 0);
		assert_int_equal(tern_session_wait(r.d, -1), 0);
		assert_int_equal(tern_session_outcome(r.d), TERN_OUTCOME_DESTINATION);
		assert_memory_equal(r.dst.ram[0], r.src.ram[0], TERN_PAGE_SIZE);
		assert_true(r.dst.is_running);
		rig_await_state(&r, r.s, TERN_STATE_POSTCOPY_PAUSED);
		assert_false(r.src.is_running);
		tern_session_delete(&r.s);
		rig_fini(&r);
	}
}

/* Nothing that the guest wrote since may be overwritten by what comes again. */
void guest_writes_across_lost_links(void **state)
{
	enum testvm_backing backings[] = { TESTVM_MEMFD, TESTVM_ANON };
	enum tern_mode modes[] = { TERN_MODE_POSTCOPY, TERN_MODE_HYBRID };
	const uint64_t pages[] = { PAGES };

	for (int i = 0; i < 4; i++) {
		enum fault_op op = i % 2 ? FAULT_PUSH : FAULT_NOTIFY;
		struct tern_postcopy_stats st;
		struct rig r;

		rig_init(&r, state, backings[i % 2], 1, pages, 1);
		r.src.working_set = r.dst.working_set = PAGES;
		rig_cuttable(&r);
		for (unsigned k = 1; k <= 4; k++)
			rig_cut(&r, FAULT_SOURCE, op, FAULT_ANY_TYPE, 5 * k);
		rig_sessions(&r, modes[i / 2]);
		if (modes[i / 2] == TERN_MODE_HYBRID)
			rig_all_dirty(&r);
		rig_start(&r);
		rig_recover_until_done(&r);
		rig_assert_moved(&r);
		assert_true(rig_postcopy(r.d, &st)->recoveries >= 1);
		rig_fini(&r);
	}
}

void lost_link_of_huge_pages(void **state)
{
	const uint64_t pages[] = { 4 * 512 };
	struct hugepages hp;
	struct rig r;

	if (hugepages_get(&hp, 8))
		leave_out("hugetlb", "cannot reserve 8 huge pages of 2 MiB");
	rig_init(&r, state, TESTVM_HUGETLB, 1, pages, 3);
	r.src.working_set = r.dst.working_set = 1024;
	rig_cuttable(&r);
	rig_cut(&r, FAULT_SOURCE, FAULT_NOTIFY, FAULT_ANY_TYPE, 3);
	rig_cut(&r, FAULT_SOURCE, FAULT_NOTIFY, FAULT_ANY_TYPE, 6);
	rig_sessions(&r, TERN_MODE_POSTCOPY);
	rig_start(&r);
	rig_recover_until_done(&r);
	rig_assert_moved(&r);
	rig_fini(&r);
	hugepages_put(&hp);
}

/* The request of one thread is lost, and again, whenever it is repeated. */
void requests_are_lost_several_times(void **state)
{
	struct rig r;

	pause_both(&r, state, TESTVM_MEMFD, 1);
	for (unsigned i = 1; i <= 3; i++)
		rig_cut(&r, FAULT_DESTINATION, FAULT_SEND, WIRE_PAGES_WANTED, i);
	for (unsigned i = 1; i <= 3; i++) {
		rig_await_paused(&r);
		assert_int_equal(tern_session_recover(r.s, NULL), 0);
		rig_await(&r.src_heard.paused, 1 + i, "pauses of the source");
		rig_await(&r.dst_heard.paused, 1 + i, "pauses of the destination");
		assert_int_equal(atomic_load(&r.readers[0].done), 0);
	}
	rig_await_paused(&r);
	assert_int_equal(tern_session_recover(r.s, NULL), 0);
	rig_join_readers(&r);
	assert_int_equal(fault_net_fired(r.net), 4);
	recover_and_finish(&r);
}

void recovery_is_cut_at_every_step(void **state)
{
	static const struct {
		enum fault_side side;
		enum fault_op op;
		int type;
	} steps[] = {
		{ FAULT_SOURCE, FAULT_CONNECT, FAULT_ANY_TYPE },
		{ FAULT_SOURCE, FAULT_SEND, WIRE_RECOVER },
		{ FAULT_DESTINATION, FAULT_ACCEPT, FAULT_ANY_TYPE },
		{ FAULT_DESTINATION, FAULT_RECV, WIRE_RECOVER },
		{ FAULT_DESTINATION, FAULT_SEND, WIRE_RECOVER_ACK },
		{ FAULT_SOURCE, FAULT_RECV, WIRE_RECOVER_ACK },
		{ FAULT_DESTINATION, FAULT_SEND, WIRE_MISSING },
		{ FAULT_SOURCE, FAULT_RECV, WIRE_MISSING },
		{ FAULT_SOURCE, FAULT_OPEN_CHANNELS, FAULT_ANY_TYPE },
		{ FAULT_DESTINATION, FAULT_OPEN_CHANNELS, FAULT_ANY_TYPE },
		{ FAULT_DESTINATION, FAULT_SEND, WIRE_SETUP_DONE },
		{ FAULT_SOURCE, FAULT_RECV, WIRE_SETUP_DONE },
	};
	struct rig r;

	pause_both(&r, state, TESTVM_MEMFD, 1);
	for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
		unsigned pauses = atomic_load(&r.src_heard.paused);

		rig_cut(&r, steps[i].side, steps[i].op, steps[i].type, 1);
		rig_await_paused(&r);
		assert_int_equal(tern_session_recover(r.s, NULL), 0);
		rig_await(&r.src_heard.paused, pauses + 1, "pauses of the source");
		rig_await_paused(&r);
		assert_int_equal(fault_net_fired(r.net), 2 + i);
		assert_int_equal(atomic_load(&r.readers[0].done), 0);
	}
	recover_and_finish(&r);
}

/* The source does not know whether the guest runs there: a recovery tells. */
void link_lost_before_started_arrives(void **state)
{
	const uint64_t pages[] = { PAGES };

	for (int i = 0; i < 2; i++) {
		struct rig r;

		rig_init(&r, state, TESTVM_MEMFD, 1, pages, 1);
		rig_cuttable(&r);
		rig_cut(&r, i ? FAULT_SOURCE : FAULT_DESTINATION, i ? FAULT_RECV : FAULT_SEND,
			WIRE_STARTED, 1);
		rig_sessions(&r, TERN_MODE_POSTCOPY);
		rig_add_reader(&r, 0, PAGES, 200);
		rig_start(&r);
		rig_await_paused(&r);
		assert_int_equal(atomic_load(&r.src.resumes), 0);
		recover_and_finish(&r);
	}
}

/* The destination never got the guest; the source cannot know, and must not run it. */
void link_lost_before_go_arrives(void **state)
{
	const uint64_t pages[] = { PAGES };
	struct rig r;

	rig_init(&r, state, TESTVM_MEMFD, 1, pages, 1);
	rig_cuttable(&r);
	rig_cut(&r, FAULT_DESTINATION, FAULT_RECV, WIRE_GO, 1);
	rig_sessions(&r, TERN_MODE_POSTCOPY);
	rig_start(&r);
	rig_await_state(&r, r.s, TERN_STATE_POSTCOPY_PAUSED);
	assert_true(tern_session_wait(r.d, RIG_WAIT_MS) != 0);
	assert_int_equal(tern_session_outcome(r.d), TERN_OUTCOME_SOURCE);
	assert_int_equal(atomic_load(&r.dst.resumes), 0);
	assert_int_equal(atomic_load(&r.src.resumes), 0);
	tern_session_delete(&r.s);
	assert_int_equal(atomic_load(&r.src.resumes), 0);
	assert_int_equal(atomic_load(&r.src_heard.last_state), TERN_STATE_FAILED);
	assert_int_equal(atomic_load(&r.src_heard.last_outcome), TERN_OUTCOME_UNKNOWN);
	rig_fini(&r);
}

/* The destination has all pages; the source does not hear of it, and keeps its pages. */
void link_lost_with_complete(void **state)
{
	const uint64_t pages[] = { PAGES };
	struct rig r;

	rig_init(&r, state, TESTVM_MEMFD, 1, pages, 1);
	rig_cuttable(&r);
	rig_cut(&r, FAULT_DESTINATION, FAULT_SEND, WIRE_COMPLETE, 1);
	rig_sessions(&r, TERN_MODE_POSTCOPY);
	rig_start(&r);
	assert_int_equal(tern_session_wait(r.d, RIG_WAIT_MS), 0);
	assert_int_equal(tern_session_outcome(r.d), TERN_OUTCOME_DESTINATION);
	rig_assert_text(&r.dst_heard, r.dst_heard.warning, "the source may not know");
	rig_await_state(&r, r.s, TERN_STATE_POSTCOPY_PAUSED);
	assert_int_equal(atomic_load(&r.src.resumes), 0);
	tern_session_delete(&r.s);
	assert_int_equal(atomic_load(&r.src.resumes), 0);
	assert_int_equal(atomic_load(&r.src_heard.last_outcome), TERN_OUTCOME_DESTINATION);
	testvm_stop(&r.dst);
	assert_true(testvm_equal(&r.src, &r.dst));
	rig_fini(&r);
}

void link_lost_with_bye(void **state)
{
	const uint64_t pages[] = { PAGES };
	struct rig r;

	rig_init(&r, state, TESTVM_MEMFD, 1, pages, 1);
	rig_cuttable(&r);
	rig_cut(&r, FAULT_SOURCE, FAULT_SEND, WIRE_BYE, 1);
	rig_sessions(&r, TERN_MODE_POSTCOPY);
	rig_start(&r);
	rig_wait(&r);
	rig_assert_text(&r.dst_heard, r.dst_heard.warning, "the source may not know");
	rig_assert_moved(&r);
	rig_fini(&r);
}

/* ------------------------------------------------------------------- who recovers */

/* From the fault layer to the bare transport, by the listener's URI. */
void recovery_over_another_transport(void **state)
{
	const struct lane *lane = *state;
	char uri[320];
	struct rig r;

	if (lane->loop) {
		print_message("the loop transport has no URI of its own: nothing to test\n");
		return;
	}
	pause_both(&r, state, TESTVM_MEMFD, 1);
	unsigned connects = fault_net_calls(r.net, FAULT_SOURCE, FAULT_CONNECT);

	tern_session_uri(r.d, uri, sizeof(uri));
	rig_unthrottle(&r);
	assert_int_equal(tern_session_recover(r.s, uri), 0);
	rig_wait(&r);
	rig_assert_moved(&r);
	assert_int_equal(fault_net_calls(r.net, FAULT_SOURCE, FAULT_CONNECT), connects);
	rig_fini(&r);
}

/* An address where nobody listens, URIs that are none; and then the right one. */
void recovery_finds_nobody(void **state)
{
	const struct lane *lane = *state;
	char uri[320];
	struct rig r;

	pause_both(&r, state, TESTVM_ANON, 1);
	tern_session_uri(r.d, uri, sizeof(uri));
	assert_int_equal(tern_session_recover(r.s, "nonsense"), -EINVAL);
	assert_int_equal(tern_session_recover(r.s, "tcp:nohost"), -EINVAL);
	assert_int_equal(tern_session_state(r.s), TERN_STATE_POSTCOPY_PAUSED);
	assert_int_equal(tern_session_recover(r.s, "unix:/tmp/tern-test-nobody-is-here"), 0);
	rig_await_text(&r.src_heard, r.src_heard.warning, "tern-test-nobody-is-here");
	rig_await_state(&r, r.s, TERN_STATE_POSTCOPY_PAUSED);
	assert_int_equal(tern_session_state(r.d), TERN_STATE_POSTCOPY_PAUSED);
	if (lane->loop) {
		give_up(&r); /* no URI names its transport */
		return;
	}
	rig_unthrottle(&r);
	assert_int_equal(tern_session_recover(r.s, uri), 0);
	rig_wait(&r);
	rig_assert_moved(&r);
	rig_fini(&r);
}

static void change_session_id(struct rig *r)
{
	monitor_lock(&r->s->mon);
	r->s->session_id[0] ^= 1;
	monitor_unlock(&r->s->mon);
}

void recovery_of_a_stranger_is_turned_away(void **state)
{
	struct rig r;

	pause_both(&r, state, TESTVM_MEMFD, 1);
	unsigned pauses = atomic_load(&r.dst_heard.paused);

	change_session_id(&r);
	assert_int_equal(tern_session_recover(r.s, NULL), 0);
	rig_await(&r.dst_heard.strangers, 1, "strangers");
	rig_assert_text(&r.dst_heard, r.dst_heard.stranger, "names another session");
	rig_await(&r.src_heard.paused, 2, "pauses of the source");
	rig_await_text(&r.src_heard, r.src_heard.warning, "names another session");
	assert_int_equal(atomic_load(&r.dst_heard.paused), pauses);
	assert_int_equal(tern_session_state(r.d), TERN_STATE_POSTCOPY_PAUSED);
	assert_int_equal(atomic_load(&r.readers[0].done), 0);
	change_session_id(&r);
	recover_and_finish(&r);
}

/* A source of the same regions, which begins with HELLO. */
void new_migration_to_a_paused_destination_is_turned_away(void **state)
{
	const uint64_t pages[] = { PAGES };
	struct testvm_pair pair = { 0 };
	struct testvm vm;
	struct rig r;

	pause_both(&r, state, TESTVM_MEMFD, 1);
	testvm_init(&vm, &pair, TESTVM_MEMFD, 1, pages);
	struct tern_session *s = testvm_session(&vm, TERN_SOURCE);

	tern_session_set(s, TERN_PARAM_MODE, TERN_MODE_POSTCOPY);
	testvm_start(&vm);
	assert_int_equal(lane_connect(&r.lane, s, r.d), 0);
	assert_true(tern_session_wait(s, RIG_WAIT_MS) != 0);
	rig_assert_error(s, -EPROTO, "the destination says: ");
	assert_true(vm.is_running);
	rig_await(&r.dst_heard.strangers, 1, "strangers");
	rig_assert_text(&r.dst_heard, r.dst_heard.stranger, "HELLO");
	assert_int_equal(tern_session_state(r.d), TERN_STATE_POSTCOPY_PAUSED);
	tern_session_delete(&s);
	testvm_fini(&vm);
	recover_and_finish(&r);
}

/* --------------------------------------------------------------------- while paused */

/* Faults of a paused guest wait, are counted, and are served after the recovery. */
void faults_while_paused_wait(void **state)
{
	enum testvm_backing backings[] = { TESTVM_MEMFD, TESTVM_ANON };

	for (int i = 0; i < 2; i++) {
		struct tern_postcopy_stats st;
		struct rig r;

		pause_both(&r, state, backings[i], 40);
		rig_await_faults(&r, 1, 39);
		for (unsigned k = 0; k < 40; k++)
			assert_int_equal(atomic_load(&r.readers[k].done), 0);
		assert_int_equal(tern_session_recover(r.s, NULL), 0);
		rig_join_readers(&r);
		rig_postcopy(r.d, &st);
		assert_int_equal(st.duplicates, 39);
		assert_int_equal(st.nr_threads, 40);
		recover_and_finish(&r);
	}
}

/* Nobody will bring its pages: its guest's threads wait on, until it is deleted too. */
void paused_source_is_deleted(void **state)
{
	struct rig r;

	pause_both(&r, state, TESTVM_MEMFD, 1);
	tern_session_delete(&r.s);
	assert_int_equal(atomic_load(&r.src_heard.last_state), TERN_STATE_FAILED);
	assert_int_equal(atomic_load(&r.src_heard.last_outcome), TERN_OUTCOME_DESTINATION);
	assert_int_equal(atomic_load(&r.src.resumes), 0);
	assert_int_equal(tern_session_state(r.d), TERN_STATE_POSTCOPY_PAUSED);
	assert_int_equal(atomic_load(&r.readers[0].done), 0);
	tern_session_delete(&r.d);
	rig_end_readers(&r, 1);
	assert_int_equal(atomic_exchange(&r.wrong, 0), 1); /* it read zeros */
	rig_fini(&r);
}

void paused_destination_is_deleted(void **state)
{
	enum testvm_backing backings[] = { TESTVM_MEMFD, TESTVM_ANON };

	for (int i = 0; i < 2; i++) {
		struct rig r;

		pause_both(&r, state, backings[i], 1);
		tern_session_delete(&r.d);
		assert_int_equal(atomic_load(&r.dst_heard.last_state), TERN_STATE_FAILED);
		assert_int_equal(atomic_load(&r.dst_heard.last_outcome), TERN_OUTCOME_DESTINATION);
		rig_end_readers(&r, 1);
		assert_int_equal(atomic_exchange(&r.wrong, 0), 1); /* it read zeros */
		/* The source finds nobody, and stays paused. */
		assert_int_equal(tern_session_recover(r.s, NULL), 0);
		rig_await(&r.src_heard.paused, 2, "pauses of the source");
		assert_int_equal(atomic_load(&r.src.resumes), 0);
		rig_fini(&r);
	}
}

void paused_session_is_not_cancelled(void **state)
{
	struct rig r;

	pause_both(&r, state, TESTVM_MEMFD, 1);
	assert_int_equal(tern_session_cancel(r.s), -EBUSY);
	assert_int_equal(tern_session_cancel(r.d), -EBUSY);
	assert_int_equal(tern_session_recover(r.d, NULL), -EINVAL);
	assert_int_equal(tern_session_wait(r.s, 0), -EINPROGRESS);
	assert_int_equal(tern_session_wait(r.d, 0), -EINPROGRESS);
	recover_and_finish(&r);
}
