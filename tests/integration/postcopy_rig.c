/* SPDX-License-Identifier: BSD-2-Clause */
#define _GNU_SOURCE
#include "postcopy_rig.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "bitmap.h"
#include "leave_out.h"
#include "monitor.h"
#include "session.h"
#include "uffd.h"

#define SEED 4711u

/* A rate at which one window of the background goes out at once, and the next one never. */
#define TRICKLE 1024u

static void need_userfaultfd(void)
{
	struct tern_error err = { 0 };
	struct uffd u;

	if (uffd_open(&u,
		      UFFD_CAN_MISSING_SHMEM | UFFD_CAN_MINOR_SHMEM | UFFD_CAN_MISSING_HUGETLB |
			      UFFD_CAN_MINOR_HUGETLB,
		      &err))
		leave_out("userfaultfd", err.message);
	uffd_close(&u);
}

void rig_init(struct rig *r, void **state, enum testvm_backing backing, unsigned nr,
	      const uint64_t *pages, unsigned step)
{
	need_userfaultfd();
	memset(r, 0, sizeof(*r));
	r->lane = *(const struct lane *)*state;
	r->step = step;
	pthread_mutex_init(&r->src_heard.lock, NULL);
	pthread_mutex_init(&r->dst_heard.lock, NULL);
	testvm_init(&r->src, &r->pair, backing, nr, pages);
	testvm_init(&r->dst, &r->pair, backing, nr, pages);
	testvm_fill(&r->src, step, SEED);
}

void rig_cuttable(struct rig *r)
{
	r->net = fault_net_new(lane_transport(&r->lane));
	assert_non_null(r->net);
	r->lane.ops = fault_net_transport(r->net);
}

void rig_cut(struct rig *r, enum fault_side side, enum fault_op op, int type, unsigned nth)
{
	const struct fault_rule rule = {
		.side = side, .op = op, .msg_type = type, .nth = nth, .action = FAULT_CUT
	};

	assert_int_equal(fault_net_add(r->net, &rule), 0);
}

static void note(struct rig_heard *h, char *text, const struct tern_error *e)
{
	pthread_mutex_lock(&h->lock);
	snprintf(text, RIG_TEXT_MAX, "%s", e->message);
	pthread_mutex_unlock(&h->lock);
}

static void hear(struct rig_heard *h, const struct tern_session *s, const struct tern_event *e)
{
	switch (e->type) {
	case TERN_EVENT_STATE:
		atomic_fetch_add(&h->paused, e->state == TERN_STATE_POSTCOPY_PAUSED);
		atomic_store(&h->last_outcome, tern_session_outcome(s));
		atomic_store(&h->last_state, e->state);
		break;
	case TERN_EVENT_WARNING:
		note(h, h->warning, e->error);
		atomic_fetch_add(&h->warnings, 1);
		break;
	case TERN_EVENT_STRANGER:
		note(h, h->stranger, e->error);
		atomic_fetch_add(&h->strangers, 1);
		break;
	default:
		break;
	}
}

static void on_source_event(void *opaque, const struct tern_event *e)
{
	struct rig *r = opaque;

	hear(&r->src_heard, r->s, e);
}

static void on_destination_event(void *opaque, const struct tern_event *e)
{
	struct rig *r = opaque;

	hear(&r->dst_heard, r->d, e);
}

void rig_sessions(struct rig *r, enum tern_mode mode)
{
	r->s = testvm_session(&r->src, TERN_SOURCE);
	r->d = testvm_session(&r->dst, TERN_DESTINATION);
	tern_session_set(r->s, TERN_PARAM_CHANNELS, 2);
	tern_session_set(r->s, TERN_PARAM_STRIPE_BYTES, 1 << 20);
	assert_int_equal(tern_session_set(r->s, TERN_PARAM_MODE, mode), 0);
	tern_session_set_event_handler(r->s, on_source_event, r);
	tern_session_set_event_handler(r->d, on_destination_event, r);
}

static int log_start(void *opaque)
{
	return 0;
}

static void log_stop(void *opaque)
{
}

static int log_sync(void *opaque, unsigned region, uint64_t first, uint64_t nr, uint64_t *bitmap)
{
	bitmap_set_range(bitmap, 0, nr);
	return 0;
}

void rig_all_dirty(struct rig *r)
{
	const struct tern_dirty_ops ops = { .start = log_start,
					    .stop = log_stop,
					    .sync = log_sync };

	assert_int_equal(tern_session_set_dirty_ops(r->s, &ops, NULL), 0);
}

void rig_throttle(struct rig *r)
{
	assert_int_equal(tern_session_set(r->s, TERN_PARAM_MAX_POSTCOPY_BANDWIDTH, TRICKLE), 0);
}

void rig_unthrottle(struct rig *r)
{
	assert_int_equal(tern_session_set(r->s, TERN_PARAM_MAX_POSTCOPY_BANDWIDTH, 0), 0);
}

/* -------------------------------------------------------------------- readers */

/* Read page @page of the last region, and compare it with the source's, which is paused. */
static void read_page(struct rig_reader *rd, uint64_t page)
{
	struct rig *r = rd->rig;
	unsigned last = r->src.nr_regions - 1;
	size_t at = page * TERN_PAGE_SIZE;

	if (memcmp(r->dst.ram[last] + at, r->src.ram[last] + at, TERN_PAGE_SIZE) != 0)
		atomic_fetch_add(&r->wrong, 1);
	atomic_fetch_add(&rd->done, 1);
}

static void *reader_main(void *arg)
{
	struct rig_reader *rd = arg;
	uint64_t x = rd->seed;

	while (rd->rig->late && atomic_load(&rd->rig->src_heard.last_state) == TERN_STATE_DEVICE)
		usleep(100);
	for (uint64_t i = 0; !rd->reads && i < rd->nr; i++)
		read_page(rd, rd->first + i);
	for (unsigned i = 0; i < rd->reads; i++) {
		x = x * 6364136223846793005ull + 1442695040888963407ull;
		read_page(rd, rd->first + (x >> 33) % rd->nr);
	}
	atomic_store(&rd->ended, true);
	return NULL;
}

/* Inside resume(): the guest runs. */
static void begin_readers(void *opaque)
{
	struct rig *r = opaque;

	unsigned nr = r->nr_readers;

	for (unsigned i = 0; i < nr; i++) {
		if (pthread_create(&r->readers[i].thread, NULL, reader_main, &r->readers[i]))
			abort();
		atomic_store(&r->nr_begun, i + 1);
	}
}

void rig_add_reader(struct rig *r, uint64_t first, uint64_t nr, unsigned reads)
{
	struct rig_reader *rd = &r->readers[r->nr_readers];

	assert_true(r->nr_readers < RIG_READERS_MAX);
	rd->rig = r;
	rd->first = first;
	rd->nr = nr;
	rd->reads = reads;
	rd->seed = ++r->nr_readers;
	r->dst.on_resume = begin_readers;
	r->dst.hook_opaque = r;
}

static void tell_side(const char *who, struct tern_session *s, struct rig_heard *h)
{
	struct tern_error e;

	tern_session_error(s, &e);
	pthread_mutex_lock(&h->lock);
	print_message("%s: %s: %s; warned: %s; turned away: %s\n", who,
		      tern_state_name(tern_session_state(s)), e.message, h->warning, h->stranger);
	pthread_mutex_unlock(&h->lock);
}

/* Say where both sides are, before a test fails. */
static void tell(struct rig *r)
{
	if (r->s)
		tell_side("source", r->s, &r->src_heard);
	if (r->d)
		tell_side("destination", r->d, &r->dst_heard);
}

void rig_end_readers(struct rig *r, unsigned nr)
{
	uint64_t until = deadline_ns(RIG_WAIT_MS);

	for (unsigned i = 0; i < nr; i++) {
		while (atomic_load(&r->nr_begun) <= i || !atomic_load(&r->readers[i].ended)) {
			if (now_ns() > until)
				tell(r);
			if (now_ns() > until)
				fail_msg("reader %u hangs after %u pages", i,
					 atomic_load(&r->readers[i].done));
			usleep(500);
		}
		pthread_join(r->readers[i].thread, NULL);
	}
	r->nr_readers = 0;
	atomic_store(&r->nr_begun, 0);
}

void rig_join_readers(struct rig *r)
{
	rig_end_readers(r, r->nr_readers);
	assert_int_equal(atomic_load(&r->wrong), 0);
}

/* ----------------------------------------------------------------------- runs */

void rig_start(struct rig *r)
{
	assert_int_equal(lane_listen(&r->lane, r->d), 0);
	testvm_start(&r->src);
	assert_int_equal(lane_connect(&r->lane, r->s, r->d), 0);
}

static void must_end(struct rig *r, struct tern_session *s, const char *who)
{
	if (tern_session_wait(s, RIG_WAIT_MS) != -EINPROGRESS)
		return;
	tell(r);
	fail_msg("the %s does not end", who);
}

void rig_wait(struct rig *r)
{
	must_end(r, r->s, "source");
	must_end(r, r->d, "destination");
}

static bool has_ended(struct tern_session *s)
{
	enum tern_state state = tern_session_state(s);

	return state == TERN_STATE_COMPLETED || state == TERN_STATE_FAILED ||
	       state == TERN_STATE_CANCELLED;
}

void rig_await_state(struct rig *r, struct tern_session *s, enum tern_state state)
{
	uint64_t until = deadline_ns(RIG_WAIT_MS);

	while (tern_session_state(s) != state) {
		if (now_ns() > until || has_ended(s)) {
			tell(r);
			fail_msg("not in state %s", tern_state_name(state));
		}
		usleep(500);
	}
}

void rig_await_paused(struct rig *r)
{
	rig_await_state(r, r->s, TERN_STATE_POSTCOPY_PAUSED);
	rig_await_state(r, r->d, TERN_STATE_POSTCOPY_PAUSED);
	/* And both were told, so that pauses can be counted. */
	for (uint64_t until = deadline_ns(RIG_WAIT_MS);
	     atomic_load(&r->src_heard.last_state) != TERN_STATE_POSTCOPY_PAUSED ||
	     atomic_load(&r->dst_heard.last_state) != TERN_STATE_POSTCOPY_PAUSED;) {
		assert_true(now_ns() < until);
		usleep(500);
	}
}

void rig_await_faults(struct rig *r, uint64_t nr, uint64_t duplicates)
{
	uint64_t until = deadline_ns(RIG_WAIT_MS);
	struct tern_postcopy_stats st;

	while (rig_postcopy(r->d, &st)->requests < nr || st.duplicates < duplicates) {
		if (now_ns() > until)
			fail_msg("%llu requests and %llu duplicates",
				 (unsigned long long)st.requests,
				 (unsigned long long)st.duplicates);
		usleep(500);
	}
}

void rig_await(atomic_uint *counter, unsigned nr, const char *what)
{
	uint64_t until = deadline_ns(RIG_WAIT_MS);

	while (atomic_load(counter) < nr) {
		if (now_ns() > until)
			fail_msg("%u %s, due are %u", atomic_load(counter), what, nr);
		usleep(500);
	}
}

void rig_recover_until_done(struct rig *r)
{
	uint64_t until = deadline_ns(RIG_WAIT_MS);

	while (!has_ended(r->s)) {
		/* A destination that has not noticed yet is busy with the old link. */
		if (tern_session_state(r->d) == TERN_STATE_POSTCOPY_PAUSED)
			tern_session_recover(r->s, NULL);
		if (now_ns() > until) {
			tell(r);
			fail_msg("does not recover");
		}
		usleep(1000);
	}
	must_end(r, r->d, "destination");
}

/* --------------------------------------------------------------------- judgement */

void rig_assert_moved(struct rig *r)
{
	if (tern_session_state(r->s) != TERN_STATE_COMPLETED ||
	    tern_session_state(r->d) != TERN_STATE_COMPLETED)
		tell(r);
	assert_int_equal(tern_session_state(r->s), TERN_STATE_COMPLETED);
	assert_int_equal(tern_session_state(r->d), TERN_STATE_COMPLETED);
	assert_int_equal(tern_session_outcome(r->s), TERN_OUTCOME_DESTINATION);
	assert_int_equal(tern_session_outcome(r->d), TERN_OUTCOME_DESTINATION);
	assert_false(r->src.is_running);
	assert_true(r->dst.is_running);
	assert_true(r->dst.state_was_good);
	rig_join_readers(r);
	testvm_stop(&r->dst);
	if (r->dst.working_set)
		assert_true(testvm_intact(&r->dst, r->step, SEED));
	else
		assert_true(testvm_equal(&r->src, &r->dst));
}

void rig_assert_source_runs(struct rig *r)
{
	assert_int_equal(tern_session_outcome(r->s), TERN_OUTCOME_SOURCE);
	assert_true(r->src.is_running);
	assert_false(r->dst.is_running);
	assert_int_equal(atomic_load(&r->dst.resumes), 0);
}

void rig_assert_error(struct tern_session *s, int code, const char *text)
{
	struct tern_error e;

	tern_session_error(s, &e);
	if (e.code != code || !strstr(e.message, text))
		fail_msg("error is %d '%s', expected %d with '%s'", e.code, e.message, code, text);
}

/* Does @in of @h have @text?  Its present contents into @copy. */
static bool has_text(struct rig_heard *h, const char *in, const char *text, char *copy)
{
	pthread_mutex_lock(&h->lock);
	memcpy(copy, in, RIG_TEXT_MAX);
	pthread_mutex_unlock(&h->lock);
	return strstr(copy, text);
}

void rig_assert_text(struct rig_heard *h, const char *in, const char *text)
{
	char copy[RIG_TEXT_MAX];

	if (!has_text(h, in, text, copy))
		fail_msg("heard '%s', expected '%s'", copy, text);
}

void rig_await_text(struct rig_heard *h, const char *in, const char *text)
{
	uint64_t until = deadline_ns(RIG_WAIT_MS);
	char copy[RIG_TEXT_MAX];

	while (!has_text(h, in, text, copy)) {
		if (now_ns() > until)
			fail_msg("heard '%s', expected '%s'", copy, text);
		usleep(500);
	}
}

struct tern_postcopy_stats *rig_postcopy(const struct tern_session *s,
					 struct tern_postcopy_stats *st)
{
	assert_int_equal(tern_session_postcopy_stats(s, st, sizeof(*st)), 0);
	return st;
}

void rig_fini(struct rig *r)
{
	tern_session_delete(&r->s);
	tern_session_delete(&r->d);
	rig_end_readers(r, atomic_load(&r->nr_begun)); /* of a guest that ran at all */
	assert_int_equal(atomic_load(&r->wrong), 0);
	testvm_fini(&r->src);
	testvm_fini(&r->dst);
	fault_net_delete(r->net);
	pthread_mutex_destroy(&r->src_heard.lock);
	pthread_mutex_destroy(&r->dst_heard.lock);
	assert_false(atomic_load(&r->pair.both_ran));
}
