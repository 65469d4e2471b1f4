/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What a VMM can have a say in: the pause before the switchover, the destination's
 * acknowledgement, the time of postcopy, notifiers, blockers, the throttle, announcing.
 * Over every transport.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <unistd.h>
#include <tern/blockers.h>

#include "bitmap.h"
#include "monitor.h"
#include "postcopy_rig.h"
#include "session.h"

#define HISTORY_MAX 16u

static const uint64_t few_pages[] = { 4096 };

/* A guest that writes now and then, which ends by itself. */
static void calm_rig(struct rig *r, void **state)
{
	rig_init(r, state, TESTVM_MEMFD, 1, few_pages, 1);
	r->src.working_set = r->dst.working_set = 512;
	r->src.pause_us = r->dst.pause_us = 200;
	rig_sessions(r, TERN_MODE_PRECOPY);
}

/* One that writes all of its RAM all the time, says its log, and 32 MiB/s may be sent. */
static void wild_rig(struct rig *r, void **state, enum tern_mode mode)
{
	rig_init(r, state, TESTVM_MEMFD, 1, few_pages, 1);
	r->src.working_set = r->dst.working_set = few_pages[0];
	rig_sessions(r, mode);
	tern_session_set(r->s, TERN_PARAM_MAX_BANDWIDTH, 32 << 20);
	tern_session_set(r->s, TERN_PARAM_DOWNTIME_LIMIT_MS, 1);
	rig_all_dirty(r);
}

static int tame_start(void *opaque)
{
	return 0;
}

static void tame_stop(void *opaque)
{
}

/* The log of a guest that writes all of its RAM unless it is slowed by 90 percent or more. */
static int tame_sync(void *opaque, unsigned region, uint64_t first, uint64_t nr, uint64_t *bitmap)
{
	const struct testvm *vm = opaque;

	if (atomic_load(&vm->throttle) < 90 && vm->is_running)
		bitmap_set_range(bitmap, 0, nr);
	return 0;
}

static uint64_t ledger_sum(const struct tern_stats *st)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < TERN_LEDGER_NR; i++)
		sum += st->ledger_ns[i];
	return sum;
}

static void await_rounds(struct rig *r, unsigned nr)
{
	uint64_t until = deadline_ns(RIG_WAIT_MS);
	struct tern_stats st;

	do {
		assert_int_equal(tern_session_stats(r->s, &st, sizeof(st)), 0);
		assert_true(now_ns() < until);
		usleep(1000);
	} while (st.nr_rounds < nr);
}

/* ------------------------------------------------------ pause-before-switchover */

static void pause_and_continue(void **state)
{
	struct tern_stats st;
	uint64_t ticks;
	struct rig r;

	calm_rig(&r, state);
	tern_session_set(r.s, TERN_PARAM_PAUSE_BEFORE_SWITCHOVER, 1);
	assert_int_equal(tern_session_continue(r.s), -EBUSY);
	assert_int_equal(tern_session_continue(r.d), -EINVAL);
	rig_start(&r);
	rig_await_state(&r, r.s, TERN_STATE_PRE_SWITCHOVER);
	ticks = r.src.ticks;
	usleep(50000);
	assert_int_equal(r.src.ticks, ticks); /* it is paused */
	assert_int_equal(atomic_load(&r.src.saves), 0);
	assert_int_equal(tern_session_state(r.s), TERN_STATE_PRE_SWITCHOVER);
	assert_int_equal(tern_session_continue(r.s), 0);
	rig_wait(&r);
	rig_assert_moved(&r);
	assert_int_equal(tern_session_continue(r.s), -EBUSY);
	tern_session_stats(r.s, &st, sizeof(st));
	assert_true(st.ledger_ns[TERN_LEDGER_PRE_SWITCHOVER] >= 50000000);
	assert_int_equal(ledger_sum(&st), st.downtime_ns);
	rig_fini(&r);
}

static void pause_before_postcopy(void **state)
{
	struct rig r;

	rig_init(&r, state, TESTVM_MEMFD, 1, few_pages, 1);
	r.src.working_set = r.dst.working_set = 512;
	rig_sessions(&r, TERN_MODE_POSTCOPY);
	tern_session_set(r.s, TERN_PARAM_PAUSE_BEFORE_SWITCHOVER, 1);
	rig_start(&r);
	rig_await_state(&r, r.s, TERN_STATE_PRE_SWITCHOVER);
	assert_int_equal(tern_session_continue(r.s), 0);
	rig_wait(&r);
	rig_assert_moved(&r);
	rig_fini(&r);
}

static void cancel_while_paused(void **state)
{
	struct rig r;

	calm_rig(&r, state);
	tern_session_set(r.s, TERN_PARAM_PAUSE_BEFORE_SWITCHOVER, 1);
	rig_start(&r);
	rig_await_state(&r, r.s, TERN_STATE_PRE_SWITCHOVER);
	assert_int_equal(tern_session_cancel(r.s), 0);
	assert_int_equal(tern_session_continue(r.s), -EBUSY); /* whatever the state still is */
	rig_wait(&r);
	assert_int_equal(tern_session_state(r.s), TERN_STATE_CANCELLED);
	rig_assert_source_runs(&r);
	rig_fini(&r);
}

/* Nobody says that it may go on: the migration's own time limit counts. */
static void paused_for_too_long(void **state)
{
	struct rig r;

	calm_rig(&r, state);
	tern_session_set(r.s, TERN_PARAM_PAUSE_BEFORE_SWITCHOVER, 1);
	tern_session_set(r.s, TERN_PARAM_TIMEOUT_MS, 1500);
	rig_start(&r);
	rig_wait(&r);
	rig_assert_error(r.s, -ETIMEDOUT, "timeout");
	rig_assert_source_runs(&r);
	rig_fini(&r);
}

/* A source that is paused before the switchover, and the first 0 or -errno of continue(). */
struct held {
	struct rig rig;
	int continued;
};

/* Inside resume(): the guest is given back already, so nothing can go on. */
static void continue_too_late(void *opaque)
{
	struct held *h = opaque;

	h->continued = tern_session_continue(h->rig.s);
}

static void held_init(struct held *h, void **state, enum tern_mode mode)
{
	struct rig *r = &h->rig;

	rig_init(r, state, TESTVM_MEMFD, 1, few_pages, 1);
	r->src.working_set = r->dst.working_set = 512;
	r->src.pause_us = r->dst.pause_us = 200;
	rig_cuttable(r);
	rig_sessions(r, mode);
	r->src.on_resume = continue_too_late;
	r->src.hook_opaque = h;
	h->continued = 0;
	tern_session_set(r->s, TERN_PARAM_PAUSE_BEFORE_SWITCHOVER, 1);
	tern_session_set(r->s, TERN_PARAM_PEER_TIMEOUT_MS, 1500);
	rig_start(r);
	rig_await_state(r, r->s, TERN_STATE_PRE_SWITCHOVER);
}

/* It has ended by itself: the guest runs on at the source, and nothing can go on. */
static void held_lost(struct held *h, int code, const char *text)
{
	struct rig *r = &h->rig;

	rig_wait(r);
	assert_int_equal(tern_session_state(r->s), TERN_STATE_FAILED);
	rig_assert_error(r->s, code, text);
	rig_assert_source_runs(r);
	assert_int_equal(atomic_load(&r->src.resumes), 1);
	assert_int_equal(atomic_load(&r->src.saves), 0);
	assert_int_equal(atomic_load(&r->dst.loads), 0);
	assert_int_equal(h->continued, -EBUSY);
	assert_int_equal(tern_session_continue(r->s), -EBUSY);
	assert_int_equal(tern_session_cancel(r->s), -ESRCH);
	rig_fini(r);
}

static void link_cut_while_paused(void **state)
{
	const enum tern_mode modes[] = { TERN_MODE_PRECOPY, TERN_MODE_HYBRID, TERN_MODE_POSTCOPY };

	for (int i = 0; i < 3; i++)
		for (int side = FAULT_SOURCE; side < FAULT_SIDE_NR; side++) {
			struct held h;

			held_init(&h, state, modes[i]);
			rig_cut(&h.rig, (enum fault_side)side, FAULT_SEND, FAULT_ANY_TYPE, 1);
			held_lost(&h, -ECONNRESET, "");
		}
}

/* Nothing arrives from the destination any more, and nobody says that the link is dead. */
static void link_silent_while_paused(void **state)
{
	const struct fault_rule rule = { .side = FAULT_DESTINATION,
					 .op = FAULT_SEND,
					 .msg_type = FAULT_ANY_TYPE,
					 .action = FAULT_SWALLOW };
	struct held h;
	int code;

	held_init(&h, state, TERN_MODE_PRECOPY);
	assert_int_equal(fault_net_add(h.rig.net, &rule), 0);
	do /* as a VMM that has other things to do between */
		code = tern_session_wait(h.rig.s, 10);
	while (code == -EINPROGRESS);
	assert_int_equal(code, -ETIMEDOUT);
	assert_int_equal(tern_session_state(h.rig.s), TERN_STATE_FAILED);
	held_lost(&h, -ETIMEDOUT, "silent");
}

static void destination_gives_up_while_source_paused(void **state)
{
	struct held h;

	held_init(&h, state, TERN_MODE_PRECOPY);
	assert_int_equal(tern_session_cancel(h.rig.d), 0);
	held_lost(&h, -ECANCELED, "the destination says: ");
}

/* The VMM says "go on" at the same moment: the guest is not given away by that. */
static void link_cut_as_it_goes_on(void **state)
{
	struct held h;

	held_init(&h, state, TERN_MODE_PRECOPY);
	rig_cut(&h.rig, FAULT_SOURCE, FAULT_SEND, FAULT_ANY_TYPE, 1);
	assert_int_equal(tern_session_continue(h.rig.s), 0);
	rig_wait(&h.rig);
	assert_int_equal(tern_session_state(h.rig.s), TERN_STATE_FAILED);
	rig_assert_source_runs(&h.rig);
	assert_int_equal(atomic_load(&h.rig.src.resumes), 1);
	assert_int_equal(h.continued, -EBUSY);
	rig_fini(&h.rig);
}

/* -------------------------------------------------------------- switchover-ack */

static void rounds_until_acknowledged(void **state)
{
	enum tern_mode modes[] = { TERN_MODE_PRECOPY, TERN_MODE_HYBRID, TERN_MODE_POSTCOPY };

	for (int i = 0; i < 3; i++) {
		struct rig r;

		rig_init(&r, state, TESTVM_MEMFD, 1, few_pages, 1);
		r.src.working_set = r.dst.working_set = 512;
		r.src.pause_us = r.dst.pause_us = 200;
		rig_sessions(&r, modes[i]);
		tern_session_set(r.s, TERN_PARAM_SWITCHOVER_ACK, 1);
		rig_start(&r);
		rig_await_state(&r, r.s, TERN_STATE_ACTIVE);
		if (modes[i] == TERN_MODE_PRECOPY)
			await_rounds(&r, 4); /* they go on */
		usleep(20000);
		assert_int_equal(tern_session_state(r.s), TERN_STATE_ACTIVE);
		assert_int_equal(atomic_load(&r.src.pauses), 0);
		assert_int_equal(tern_session_switchover_ack(r.s), -EINVAL);
		assert_int_equal(tern_session_switchover_ack(r.d), 0);
		assert_int_equal(tern_session_switchover_ack(r.d), 0);
		rig_wait(&r);
		rig_assert_moved(&r);
		rig_fini(&r);
	}
}

/* Before anybody has connected, and where nobody asked for it. */
static void acknowledged_early(void **state)
{
	for (int wanted = 0; wanted < 2; wanted++) {
		struct rig r;

		calm_rig(&r, state);
		tern_session_set(r.s, TERN_PARAM_SWITCHOVER_ACK, (uint64_t)wanted);
		assert_int_equal(tern_session_switchover_ack(r.d), 0);
		rig_start(&r);
		rig_wait(&r);
		rig_assert_moved(&r);
		rig_fini(&r);
	}
}

static void never_acknowledged(void **state)
{
	struct rig r;

	calm_rig(&r, state);
	tern_session_set(r.s, TERN_PARAM_SWITCHOVER_ACK, 1);
	tern_session_set(r.s, TERN_PARAM_TIMEOUT_MS, 1500);
	rig_start(&r);
	rig_wait(&r);
	rig_assert_error(r.s, -ETIMEDOUT, "timeout");
	assert_int_equal(atomic_load(&r.src.pauses), 0);
	rig_assert_source_runs(&r);
	rig_fini(&r);
}

/* -------------------------------------------------------------- start_postcopy */

static void postcopy_when_asked(void **state)
{
	struct tern_stats st;
	struct rig r;

	wild_rig(&r, state, TERN_MODE_HYBRID);
	assert_int_equal(tern_session_set(r.s, TERN_PARAM_PRECOPY_ROUNDS, 0), 0);
	assert_int_equal(tern_session_start_postcopy(r.s), -ESRCH);
	assert_int_equal(tern_session_start_postcopy(r.d), -EINVAL);
	rig_start(&r);
	await_rounds(&r, 3);
	assert_int_equal(tern_session_state(r.s), TERN_STATE_ACTIVE);
	assert_int_equal(tern_session_start_postcopy(r.s), 0);
	assert_int_equal(tern_session_set(r.s, TERN_PARAM_MAX_BANDWIDTH, 0), 0);
	rig_wait(&r);
	rig_assert_moved(&r);
	tern_session_stats(r.d, &st, sizeof(st));
	assert_int_equal(st.mode, TERN_MODE_POSTCOPY);
	assert_int_equal(tern_session_start_postcopy(r.s), -ESRCH);
	rig_fini(&r);
}

static void postcopy_in_precopy_mode(void **state)
{
	struct rig r;

	calm_rig(&r, state);
	rig_start(&r);
	assert_int_equal(tern_session_start_postcopy(r.s), -EINVAL);
	rig_wait(&r);
	rig_assert_moved(&r);
	rig_fini(&r);
}

/* ------------------------------------------------------------ end of the downtime */

enum { LATE_MS = 300 };

/* resume() of the destination takes LATE_MS; does it say when the guest began to run? */
struct late {
	struct rig *rig;
	bool says;
	int64_t off_ns; /* by how much that is wrong */
};

static void late_resume(void *opaque)
{
	const struct late *l = opaque;
	uint64_t at = now_ns();

	usleep(LATE_MS * 1000);
	if (l->says)
		tern_session_resumed_at(l->rig->d, at + (uint64_t)l->off_ns);
}

/* What the source's ledger has for the resumption, ns. */
static uint64_t resumption_of(void **state, bool says, int64_t off_ns)
{
	struct tern_stats st;
	struct rig r;
	struct late l = { .rig = &r, .says = says, .off_ns = off_ns };

	calm_rig(&r, state);
	r.dst.on_resume = late_resume;
	r.dst.hook_opaque = &l;
	rig_start(&r);
	rig_wait(&r);
	rig_assert_moved(&r);
	tern_session_stats(r.s, &st, sizeof(st));
	assert_int_equal(ledger_sum(&st), st.downtime_ns);
	rig_fini(&r);
	return st.ledger_ns[TERN_LEDGER_RESUME];
}

static void word_of_resumption(void **state)
{
	const int64_t late_ns = LATE_MS * 1000000ll, far_ns = 3600 * 1000000000ll;

	assert_true(resumption_of(state, true, 0) < (uint64_t)late_ns);
	assert_true(resumption_of(state, false, 0) >= (uint64_t)late_ns);
	/* Not believed. */
	assert_true(resumption_of(state, true, -far_ns) >= (uint64_t)late_ns);
	assert_true(resumption_of(state, true, far_ns) >= (uint64_t)late_ns);
}

/* ------------------------------------------------------------------- notifiers */

struct listener {
	struct rig *rig;
	struct tern_session *const *session;
	enum tern_notice refuse; /* TERN_NOTICE_NR: none */
	int code;
	enum tern_notice heard[HISTORY_MAX];
	bool source_ran[HISTORY_MAX];
	atomic_uint nr;
	const char *why; /* of the refusal; NULL: the code alone */
};

static int listen_in(void *opaque, enum tern_notice notice)
{
	struct listener *l = opaque;
	unsigned i = atomic_fetch_add(&l->nr, 1);

	assert_true(i < HISTORY_MAX);
	l->heard[i] = notice;
	l->source_ran[i] = l->rig->src.is_running;
	if (notice == l->refuse && l->why)
		tern_session_explain(*l->session, l->why);
	return notice == l->refuse ? l->code : 0;
}

static void assert_heard(const struct listener *l, unsigned nr, const enum tern_notice *want)
{
	assert_int_equal(atomic_load(&l->nr), nr);
	for (unsigned i = 0; i < nr; i++)
		assert_int_equal(l->heard[i], want[i]);
}

static void notices_in_order(void **state)
{
	const enum tern_notice source[] = { TERN_NOTICE_SETUP, TERN_NOTICE_SWITCHOVER,
					    TERN_NOTICE_DONE };
	const enum tern_notice destination[] = { TERN_NOTICE_DONE };
	struct listener a, b, c;
	struct rig r;

	calm_rig(&r, state);
	a = b = c = (struct listener){ .rig = &r, .refuse = TERN_NOTICE_NR };
	assert_int_equal(tern_session_add_notifier(r.s, NULL, NULL), -EINVAL);
	assert_int_equal(tern_session_add_notifier(r.s, listen_in, &a), 0);
	assert_int_equal(tern_session_add_notifier(r.s, listen_in, &b), 0);
	assert_int_equal(tern_session_add_notifier(r.d, listen_in, &c), 0);
	rig_start(&r);
	assert_int_equal(tern_session_add_notifier(r.s, listen_in, &b), -EBUSY);
	rig_wait(&r);
	rig_assert_moved(&r);
	assert_heard(&a, 3, source);
	assert_heard(&b, 3, source);
	assert_heard(&c, 1, destination);
	assert_true(a.source_ran[0] && !a.source_ran[1]);
	rig_fini(&r);
}

static void a_notifier_refuses(void **state)
{
	const enum tern_notice at_setup[] = { TERN_NOTICE_SETUP, TERN_NOTICE_FAILED };
	const enum tern_notice at_switchover[] = { TERN_NOTICE_SETUP, TERN_NOTICE_SWITCHOVER,
						   TERN_NOTICE_FAILED };
	const enum tern_notice only_failed[] = { TERN_NOTICE_FAILED };

	for (int i = 0; i < 2; i++) {
		struct listener a, b;
		struct rig r;

		calm_rig(&r, state);
		a = b = (struct listener){ .rig = &r, .refuse = TERN_NOTICE_NR };
		a.refuse = i ? TERN_NOTICE_SWITCHOVER : TERN_NOTICE_SETUP;
		a.code = -EBADMSG;
		a.session = &r.s;
		a.why = i ? "the mirror lags" : NULL;
		tern_session_add_notifier(r.s, listen_in, &a);
		tern_session_add_notifier(r.s, listen_in, &b);
		rig_start(&r);
		assert_int_equal(tern_session_wait(r.s, RIG_WAIT_MS), -EBADMSG);
		rig_assert_error(r.s, -EBADMSG,
				 i ? "refused the switchover of the migration: the mirror lags"
				   : "refused the setup of the migration: Bad message");
		tern_session_cancel(r.d);
		rig_wait(&r);
		rig_assert_source_runs(&r);
		if (i) {
			assert_heard(&a, 3, at_switchover);
			assert_int_equal(atomic_load(&b.nr),
					 2); /* not asked about the switchover */
			assert_true(a.source_ran[2]);
		} else {
			assert_heard(&a, 2, at_setup);
			assert_heard(&b, 1, only_failed);
		}
		rig_fini(&r);
	}
}

/* -------------------------------------------------------------------- blockers */

static void blocked_and_not(void **state)
{
	struct tern_blockers *b;
	struct rig r;
	int id;

	calm_rig(&r, state);
	assert_int_equal(tern_blockers_new(&b), 0);
	id = tern_blockers_add(b, "device gpu0 cannot be moved");
	assert_int_equal(tern_session_set_blockers(r.s, b), 0);
	tern_session_set(r.s, TERN_PARAM_PAUSE_BEFORE_SWITCHOVER, 1);
	assert_int_equal(lane_listen(&r.lane, r.d), 0);
	testvm_start(&r.src);
	assert_int_equal(lane_connect(&r.lane, r.s, r.d), -EPERM);
	rig_assert_error(r.s, -EPERM, "device gpu0 cannot be moved");
	assert_int_equal(tern_blockers_remove(b, id), 0);
	assert_int_equal(lane_connect(&r.lane, r.s, r.d), 0);
	rig_await_state(&r, r.s, TERN_STATE_PRE_SWITCHOVER);
	assert_int_equal(tern_blockers_add(b, "too late"), -EBUSY);
	assert_int_equal(tern_session_set_blockers(r.s, NULL), -EBUSY);
	assert_int_equal(tern_session_continue(r.s), 0);
	rig_wait(&r);
	rig_assert_moved(&r);
	assert_true(tern_blockers_add(b, "afterwards") > 0);
	rig_fini(&r);
	tern_blockers_delete(&b);
}

/* -------------------------------------------------------------------- throttle */

static void slowed_until_it_fits(void **state)
{
	const struct tern_dirty_ops tame = { .start = tame_start,
					     .stop = tame_stop,
					     .sync = tame_sync };
	struct rig r;
	unsigned nr;

	rig_init(&r, state, TESTVM_MEMFD, 1, few_pages, 1);
	rig_sessions(&r, TERN_MODE_PRECOPY);
	tern_session_set(r.s, TERN_PARAM_MAX_BANDWIDTH, 32 << 20);
	tern_session_set(r.s, TERN_PARAM_DOWNTIME_LIMIT_MS, 1);
	assert_int_equal(tern_session_set_dirty_ops(r.s, &tame, &r.src), 0);
	tern_session_set(r.s, TERN_PARAM_AUTO_CONVERGE, 1);
	tern_session_set(r.s, TERN_PARAM_THROTTLE_INITIAL, 60);
	tern_session_set(r.s, TERN_PARAM_THROTTLE_INCREMENT, 39);
	rig_start(&r);
	rig_wait(&r);
	rig_assert_moved(&r);
	nr = atomic_load(&r.src.nr_throttles);
	assert_int_equal(nr, 3);
	assert_int_equal(r.src.throttles[0], 60);
	assert_int_equal(r.src.throttles[1], 99);
	assert_int_equal(r.src.throttles[2], 0);
	assert_int_equal(atomic_load(&r.dst.nr_throttles), 0);
	rig_fini(&r);
}

/* It does not help within the time limit: the guest runs on, at full speed. */
static void full_speed_after_a_timeout(void **state)
{
	struct tern_stats st;
	struct rig r;
	unsigned nr;

	wild_rig(&r, state, TERN_MODE_PRECOPY);
	tern_session_set(r.s, TERN_PARAM_AUTO_CONVERGE, 1);
	tern_session_set(r.s, TERN_PARAM_THROTTLE_INITIAL, 1);
	tern_session_set(r.s, TERN_PARAM_THROTTLE_INCREMENT, 1);
	tern_session_set(r.s, TERN_PARAM_TIMEOUT_MS, 4000);
	rig_start(&r);
	rig_wait(&r);
	rig_assert_error(r.s, -ETIMEDOUT, "timeout");
	rig_assert_source_runs(&r);
	nr = atomic_load(&r.src.nr_throttles);
	assert_true(nr >= 2);
	assert_int_equal(r.src.throttles[0], 1);
	assert_int_equal(r.src.throttles[nr - 1], 0);
	tern_session_stats(r.s, &st, sizeof(st));
	assert_int_equal(st.throttle_percent, 0);
	rig_fini(&r);
}

/* A VMM that cannot slow its guest. */
static void no_throttle_is_told(void **state)
{
	struct rig r;

	rig_init(&r, state, TESTVM_MEMFD, 1, few_pages, 1);
	rig_sessions(&r, TERN_MODE_PRECOPY);
	tern_session_set(r.s, TERN_PARAM_AUTO_CONVERGE, 1);
	r.s->vm.throttle = NULL;
	rig_start(&r);
	rig_wait(&r);
	rig_assert_moved(&r);
	rig_assert_text(&r.src_heard, r.src_heard.warning, "no throttle()");
	rig_fini(&r);
}

static void not_slowed_unless_asked_for(void **state)
{
	struct rig r;

	wild_rig(&r, state, TERN_MODE_PRECOPY);
	tern_session_set(r.s, TERN_PARAM_TIMEOUT_MS, 2500);
	rig_start(&r);
	rig_wait(&r);
	rig_assert_source_runs(&r);
	assert_int_equal(atomic_load(&r.src.nr_throttles), 0);
	rig_fini(&r);
}

/* ---------------------------------------------------------------- announcement */

static void announced_a_few_times(void **state)
{
	struct rig r;

	calm_rig(&r, state);
	tern_session_set(r.d, TERN_PARAM_ANNOUNCE_INITIAL_MS, 1);
	tern_session_set(r.d, TERN_PARAM_ANNOUNCE_STEP_MS, 1);
	rig_start(&r);
	rig_wait(&r);
	rig_assert_moved(&r);
	rig_await(&r.dst.announces, 5, "announcements");
	usleep(50000);
	assert_int_equal(atomic_load(&r.dst.announces), 5);
	assert_int_equal(atomic_load(&r.src.announces), 0);
	rig_fini(&r);
}

/* A session that is deleted does not wait for the rest of them. */
static void announcing_ends_with_the_session(void **state)
{
	uint64_t begin;
	struct rig r;

	calm_rig(&r, state);
	tern_session_set(r.d, TERN_PARAM_ANNOUNCE_INITIAL_MS, 100000);
	tern_session_set(r.d, TERN_PARAM_ANNOUNCE_MAX_MS, 100000);
	rig_start(&r);
	rig_wait(&r);
	rig_assert_moved(&r);
	rig_await(&r.dst.announces, 1, "the first announcement");
	begin = now_ns();
	tern_session_delete(&r.d);
	assert_true(now_ns() - begin < 50000000000ull);
	assert_int_equal(atomic_load(&r.dst.announces), 1);
	rig_fini(&r);
}

int main(int argc, char **argv)
{
	static const struct lane_case cases[] = {
		LANE_CASE(pause_and_continue),
		LANE_CASE(pause_before_postcopy),
		LANE_CASE(cancel_while_paused),
		LANE_CASE(paused_for_too_long),
		LANE_CASE(link_cut_while_paused),
		LANE_CASE(link_silent_while_paused),
		LANE_CASE(destination_gives_up_while_source_paused),
		LANE_CASE(link_cut_as_it_goes_on),
		LANE_CASE(rounds_until_acknowledged),
		LANE_CASE(acknowledged_early),
		LANE_CASE(never_acknowledged),
		LANE_CASE(postcopy_when_asked),
		LANE_CASE(postcopy_in_precopy_mode),
		LANE_CASE(word_of_resumption),
		LANE_CASE(notices_in_order),
		LANE_CASE(a_notifier_refuses),
		LANE_CASE(blocked_and_not),
		LANE_CASE(slowed_until_it_fits),
		LANE_CASE(full_speed_after_a_timeout),
		LANE_CASE(no_throttle_is_told),
		LANE_CASE(not_slowed_unless_asked_for),
		LANE_CASE(announced_a_few_times),
		LANE_CASE(announcing_ends_with_the_session),
	};

	return lane_run("switchover", cases, sizeof(cases) / sizeof(cases[0]), argc, argv);
}
