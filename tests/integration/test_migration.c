/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Whole migrations between two sessions of one process, over every transport.
 * After each, RAM of both sides is compared byte for byte.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "hugepages.h"
#include "lane.h"
#include "leave_out.h"
#include "testvm.h"

#define WAIT_MS 30000

/* Both sides of one test. */
struct rig {
	struct testvm_pair pair;
	struct testvm src, dst;
	struct tern_session *s, *d;
	const struct lane *lane;
	bool zeroed;
};

static void rig_init(struct rig *r, void **state, enum testvm_backing backing, unsigned nr,
		     const uint64_t *pages)
{
	memset(r, 0, sizeof(*r));
	r->lane = *state;
	testvm_init(&r->src, &r->pair, backing, nr, pages);
	testvm_init(&r->dst, &r->pair, backing, nr, pages);
}

static void rig_sessions(struct rig *r)
{
	r->s = testvm_session(&r->src, TERN_SOURCE);
	r->d = testvm_session(&r->dst, TERN_DESTINATION);
	tern_session_set(r->s, TERN_PARAM_CHANNELS, 2);
}

static void rig_fini(struct rig *r)
{
	tern_session_delete(&r->s);
	tern_session_delete(&r->d);
	testvm_fini(&r->src);
	testvm_fini(&r->dst);
	assert_false(atomic_load(&r->pair.both_ran));
}

static void tell_error(const char *who, struct tern_session *s)
{
	struct tern_error e;

	if (tern_session_error(s, &e))
		print_message("%s: %s\n", who, e.message);
}

/* Migrate and wait for both sides. */
static void rig_go(struct rig *r)
{
	assert_int_equal(lane_listen(r->lane, r->d), 0);
	testvm_start(&r->src);
	assert_int_equal(lane_connect(r->lane, r->s, r->d), 0);
	tern_session_wait(r->s, WAIT_MS);
	tern_session_wait(r->d, WAIT_MS);
}

/* It completed, and the destination has what the source had. */
static void rig_assert_moved(struct rig *r)
{
	if (tern_session_state(r->s) != TERN_STATE_COMPLETED)
		tell_error("source", r->s);
	if (tern_session_state(r->d) != TERN_STATE_COMPLETED)
		tell_error("destination", r->d);
	assert_int_equal(tern_session_state(r->s), TERN_STATE_COMPLETED);
	assert_int_equal(tern_session_state(r->d), TERN_STATE_COMPLETED);
	assert_int_equal(tern_session_outcome(r->s), TERN_OUTCOME_DESTINATION);
	assert_int_equal(tern_session_outcome(r->d), TERN_OUTCOME_DESTINATION);
	assert_false(r->src.is_running);
	assert_true(r->dst.is_running);
	assert_true(r->dst.state_was_good);
	testvm_stop(&r->dst);
	assert_true(testvm_equal(&r->src, &r->dst));
}

/* It failed before GO: the source runs on, the destination never ran. */
static void rig_assert_source_runs(struct rig *r)
{
	assert_int_equal(tern_session_outcome(r->s), TERN_OUTCOME_SOURCE);
	assert_true(r->src.is_running);
	assert_false(r->dst.is_running);
	assert_int_equal(atomic_load(&r->dst.resumes), 0);
}

static void assert_error(struct tern_session *s, int code, const char *text)
{
	struct tern_error e;

	tern_session_error(s, &e);
	if (e.code != code || !strstr(e.message, text))
		fail_msg("error is %d '%s', expected %d with '%s'", e.code, e.message, code, text);
}

/* The destination compares after its guest was stopped: it must not write. */
static void keep_destination_still(struct rig *r)
{
	r->dst.working_set = 0;
}

static void idle_guest(void **state)
{
	const uint64_t pages[] = { 8192 };
	struct rig r;

	rig_init(&r, state, TESTVM_MEMFD, 1, pages);
	testvm_fill(&r.src, 1, 1);
	rig_sessions(&r);
	rig_go(&r);
	rig_assert_moved(&r);
	rig_fini(&r);
}

/* States that one side was told of. */
struct told {
	pthread_t caller;
	unsigned nr;
	bool on_caller;
	enum tern_state v[32];
};

static void on_event(void *opaque, const struct tern_event *event)
{
	struct told *t = opaque;

	t->on_caller |= pthread_equal(pthread_self(), t->caller) != 0;
	if (event->type == TERN_EVENT_STATE && t->nr < 32)
		t->v[t->nr++] = event->state;
}

/* From the first to the last, each once, and never on the thread that started the session. */
static void check_told(const struct told *t)
{
	assert_false(t->on_caller);
	assert_true(t->nr > 2);
	assert_int_equal(t->v[0], TERN_STATE_SETUP);
	assert_int_equal(t->v[t->nr - 1], TERN_STATE_COMPLETED);
	for (unsigned i = 0; i < t->nr; i++)
		for (unsigned k = 0; k < i; k++)
			assert_int_not_equal(t->v[i], t->v[k]);
}

static void states_are_told_once(void **state)
{
	const uint64_t pages[] = { 512 };
	struct told src = { .caller = pthread_self() }, dst = { .caller = pthread_self() };
	struct rig r;

	rig_init(&r, state, TESTVM_MEMFD, 1, pages);
	testvm_fill(&r.src, 1, 1);
	rig_sessions(&r);
	tern_session_set_event_handler(r.s, on_event, &src);
	tern_session_set_event_handler(r.d, on_event, &dst);
	rig_go(&r);
	rig_assert_moved(&r);
	rig_fini(&r); /* joins their threads */
	check_told(&src);
	check_told(&dst);
}

static void running_guest(void **state)
{
	const uint64_t pages[] = { 16384 };
	enum testvm_backing backings[] = { TESTVM_MEMFD, TESTVM_ANON };

	for (int i = 0; i < 2; i++) {
		struct rig r;

		rig_init(&r, state, backings[i], 1, pages);
		testvm_fill(&r.src, 1, 2);
		r.src.working_set = 4096;
		r.src.pause_us = 20;
		keep_destination_still(&r);
		rig_sessions(&r);
		rig_go(&r);
		rig_assert_moved(&r);
		assert_true(r.src.ticks == r.dst.ticks && r.src.ticks > 0);
		rig_fini(&r);
	}
}

static void running_guest_with_sync_tracking(void **state)
{
	const uint64_t pages[] = { 8192 };
	enum testvm_backing backings[] = { TESTVM_MEMFD, TESTVM_ANON };

	for (int i = 0; i < 2; i++) {
		struct tern_stats st;
		struct rig r;

		rig_init(&r, state, backings[i], 1, pages);
		testvm_fill(&r.src, 2, 3); /* the holes are written while it moves */
		r.src.working_set = 8192;
		r.src.pause_us = 10;
		rig_sessions(&r);
		assert_int_equal(tern_session_set(r.s, TERN_PARAM_DIRTY_PROVIDER,
						  TERN_DIRTY_UFFD_WP_SYNC),
				 0);
		rig_go(&r);
		rig_assert_moved(&r);
		tern_session_stats(r.s, &st, sizeof(st));
		assert_int_equal(st.dirty_provider, TERN_DIRTY_UFFD_WP_SYNC);
		rig_fini(&r);
	}
}

static void odd_region_sizes(void **state)
{
	const uint64_t pages[] = { 1, 1023, 1024, 1025, 5000, 1, 63, 65 };
	struct rig r;

	rig_init(&r, state, TESTVM_ANON, 8, pages);
	testvm_fill(&r.src, 1, 4);
	r.src.working_set = 1;
	rig_sessions(&r);
	assert_int_equal(tern_session_set(r.s, TERN_PARAM_STRIPE_BYTES, 1 << 20), 0);
	rig_go(&r);
	rig_assert_moved(&r);
	rig_fini(&r);
}

static void hundreds_of_regions(void **state)
{
	uint64_t pages[300];
	struct rig r;

	for (int i = 0; i < 300; i++)
		pages[i] = 1 + (uint64_t)(i % 3);
	rig_init(&r, state, TESTVM_MEMFD, 300, pages);
	testvm_fill(&r.src, 1, 5);
	rig_sessions(&r);
	rig_go(&r);
	rig_assert_moved(&r);
	rig_fini(&r);
}

static void huge_pages(void **state)
{
	const uint64_t pages[] = { 4 * 512, 512 };
	struct hugepages hp;
	struct rig r;

	if (hugepages_get(&hp, 10))
		leave_out("hugetlb", "cannot reserve 10 huge pages of 2 MiB");
	rig_init(&r, state, TESTVM_HUGETLB, 2, pages);
	testvm_fill(&r.src, 512 * 2, 6);
	r.src.working_set = 2048;
	r.src.pause_us = 100;
	rig_sessions(&r);
	rig_go(&r);
	rig_assert_moved(&r);
	rig_fini(&r);
	hugepages_put(&hp);
}

/* Invariant 10: what was never touched exists on neither side afterwards. */
static void holes_stay_holes(void **state)
{
	const uint64_t pages[] = { 65536, 1000 };
	enum testvm_backing backings[] = { TESTVM_MEMFD, TESTVM_ANON };

	for (int i = 0; i < 2; i++) {
		struct tern_stats st;
		struct rig r;

		rig_init(&r, state, backings[i], 2, pages);
		testvm_fill(&r.src, 997, 7);
		uint64_t before = testvm_resident_pages(&r.src);

		rig_sessions(&r);
		rig_go(&r);
		assert_int_equal(tern_session_state(r.s), TERN_STATE_COMPLETED);
		assert_int_equal(testvm_resident_pages(&r.src), before);
		assert_true(testvm_resident_pages(&r.dst) <= before);
		tern_session_stats(r.s, &st, sizeof(st));
		assert_int_equal(st.skipped_pages, 66536 - before);
		rig_assert_moved(&r);
		rig_fini(&r);
	}
}

/* The destination had something in its RAM: it must not survive. */
static void dirty_destination_is_cleared(void **state)
{
	const uint64_t pages[] = { 4096 };
	struct rig r;

	rig_init(&r, state, TESTVM_ANON, 1, pages);
	testvm_fill(&r.src, 3, 8);
	testvm_fill(&r.dst, 1, 9);
	rig_sessions(&r);
	rig_go(&r);
	rig_assert_moved(&r);
	rig_fini(&r);
}

/* After the first round, once: pages with contents become zero, which takes ZERO messages. */
static void on_first_round(void *opaque, const struct tern_event *e)
{
	struct rig *r = opaque;

	if (e->type == TERN_EVENT_ROUND && !r->zeroed && !r->src.pauses) {
		r->zeroed = true;
		memset(r->src.ram[0], 0, r->src.pages[0] * TERN_PAGE_SIZE);
	}
}

static void pages_that_become_zero(void **state)
{
	const uint64_t pages[] = { 4096 };
	struct tern_round_stats round = { 0 };
	uint64_t zeros = 0;
	struct rig r;

	rig_init(&r, state, TESTVM_MEMFD, 1, pages);
	testvm_fill(&r.src, 1, 10);
	rig_sessions(&r);
	tern_session_set_event_handler(r.s, on_first_round, &r);
	r.src.working_set = 64;
	r.src.pause_us = 50;
	rig_go(&r);
	rig_assert_moved(&r);
	assert_true(r.zeroed);
	for (unsigned i = 0; !tern_session_round_stats(r.s, i, &round, sizeof(round)); i++)
		zeros += round.zero_pages;
	assert_true(zeros >= 4096 - 64);
	rig_fini(&r);
}

/* A VMM's own dirty log that knows only "everything may have changed". */
static int log_start(void *opaque)
{
	return 0;
}

static void log_stop(void *opaque)
{
	atomic_fetch_add((atomic_int *)opaque, 1);
}

static int log_sync(void *opaque, unsigned region, uint64_t first, uint64_t nr, uint64_t *bitmap)
{
	for (uint64_t i = 0; i < nr; i++)
		bitmap[i / 64] |= 1ull << i % 64;
	return 0;
}

static int log_sync_fails(void *opaque, unsigned region, uint64_t first, uint64_t nr,
			  uint64_t *bitmap)
{
	return -EIO;
}

static void own_dirty_log(void **state)
{
	const struct tern_dirty_ops ops = { .start = log_start, .stop = log_stop, .sync = log_sync };
	const uint64_t pages[] = { 2048 };
	atomic_int stops = 0;
	struct rig r;

	rig_init(&r, state, TESTVM_ANON, 1, pages);
	testvm_fill(&r.src, 1, 11);
	r.src.working_set = 2048;
	rig_sessions(&r);
	tern_session_set_dirty_ops(r.s, &ops, &stops);
	rig_go(&r);
	rig_assert_moved(&r);
	assert_int_equal(atomic_load(&stops), 1);
	rig_fini(&r);
}

static void own_dirty_log_fails(void **state)
{
	const struct tern_dirty_ops ops = { .start = log_start,
					    .stop = log_stop,
					    .sync = log_sync_fails };
	const uint64_t pages[] = { 2048 };
	atomic_int stops = 0;
	struct rig r;

	rig_init(&r, state, TESTVM_ANON, 1, pages);
	testvm_fill(&r.src, 1, 11);
	rig_sessions(&r);
	tern_session_set_dirty_ops(r.s, &ops, &stops);
	rig_go(&r);
	rig_assert_source_runs(&r);
	assert_error(r.s, -EIO, "dirty log of region ram0");
	assert_error(r.d, -EIO, "the source says: ");
	assert_int_equal(atomic_load(&stops), 1);
	rig_fini(&r);
}

/* A log that comes as a whole: nobody asks for its parts before begin(). */
struct begun {
	atomic_int begins, syncs_before, fails;
};

static int log_begin(void *opaque)
{
	struct begun *b = opaque;

	atomic_fetch_add(&b->begins, 1);
	return atomic_load(&b->fails) ? -EIO : 0;
}

static int log_sync_after_begin(void *opaque, unsigned region, uint64_t first, uint64_t nr,
				uint64_t *bitmap)
{
	struct begun *b = opaque;

	if (!atomic_load(&b->begins))
		atomic_fetch_add(&b->syncs_before, 1);
	return log_sync(opaque, region, first, nr, bitmap);
}

static void log_stop_quietly(void *opaque)
{
}

static const struct tern_dirty_ops begin_ops = { .start = log_start,
						 .stop = log_stop_quietly,
						 .sync = log_sync_after_begin,
						 .begin = log_begin };

static void own_dirty_log_begins_each_sync(void **state)
{
	const uint64_t pages[] = { 2048, 16 };
	struct begun b = { 0 };
	struct tern_stats st;
	struct rig r;

	rig_init(&r, state, TESTVM_ANON, 2, pages);
	testvm_fill(&r.src, 1, 11);
	rig_sessions(&r);
	tern_session_set_dirty_ops(r.s, &begin_ops, &b);
	rig_go(&r);
	rig_assert_moved(&r);
	tern_session_stats(r.s, &st, sizeof(st));
	assert_int_equal(atomic_load(&b.begins), st.nr_rounds); /* after each but the last, and
								 * when the guest is paused */
	assert_int_equal(atomic_load(&b.syncs_before), 0);
	rig_fini(&r);
}

static void own_dirty_log_fails_to_begin(void **state)
{
	const uint64_t pages[] = { 2048 };
	struct begun b = { .fails = 1 };
	struct rig r;

	rig_init(&r, state, TESTVM_ANON, 1, pages);
	testvm_fill(&r.src, 1, 11);
	rig_sessions(&r);
	tern_session_set_dirty_ops(r.s, &begin_ops, &b);
	rig_go(&r);
	rig_assert_source_runs(&r);
	assert_error(r.s, -EIO, "cannot read the dirty log (callbacks)");
	rig_fini(&r);
}

static void large_device_state(void **state)
{
	const uint64_t pages[] = { 16 };
	struct rig r;

	rig_init(&r, state, TESTVM_ANON, 1, pages);
	r.src.state_bytes = r.dst.state_bytes = 3000001;
	rig_sessions(&r);
	rig_go(&r);
	rig_assert_moved(&r);
	rig_fini(&r);
}

static void device_state_too_large_for_destination(void **state)
{
	const uint64_t pages[] = { 16 };
	struct rig r;

	rig_init(&r, state, TESTVM_ANON, 1, pages);
	r.src.state_bytes = 100000;
	rig_sessions(&r);
	assert_int_equal(tern_session_set(r.d, TERN_PARAM_STATE_MAX, 50000), 0);
	rig_go(&r);
	rig_assert_source_runs(&r);
	assert_error(r.d, -EFBIG, "larger than 50000 bytes");
	assert_error(r.s, -EFBIG, "the destination says: ");
	rig_fini(&r);
}

static void device_state_left_unread(void **state)
{
	const uint64_t pages[] = { 16 };
	struct rig r;

	rig_init(&r, state, TESTVM_ANON, 1, pages);
	r.src.state_bytes = 1000;
	r.dst.leave_unread = 10;
	rig_sessions(&r);
	rig_go(&r);
	rig_assert_source_runs(&r);
	assert_error(r.d, -EPROTO, "left 10 of 1000 bytes");
	rig_fini(&r);
}

/* Each callback fails once, and says why or not: before GO the source runs on. */
static void callbacks_that_fail(void **state)
{
	static const struct {
		size_t at;
		bool source;
		const char *text, *explain;
	} cases[] = {
#define FIELD(name) offsetof(struct testvm, fail_##name)
		{ FIELD(pause), true, "could not pause the guest: No such device", NULL },
		{ FIELD(save), true, "could not save the device state: No such device", NULL },
		{ FIELD(load), false, "(0 of 8 bytes read): No such device", NULL },
		{ FIELD(pause), true, "could not pause the guest: vCPU 3 hangs", "vCPU 3 hangs" },
		{ FIELD(save), true, "could not save the device state: disk 0 is busy",
		  "disk 0 is busy" },
		{ FIELD(load), false, "(0 of 8 bytes read): there is no disk 1",
		  "there is no disk 1" },
#undef FIELD
	};
	const uint64_t pages[] = { 256 };

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct rig r;

		rig_init(&r, state, TESTVM_ANON, 1, pages);
		testvm_fill(&r.src, 1, 12);
		struct testvm *vm = cases[i].source ? &r.src : &r.dst;

		*(int *)((char *)vm + cases[i].at) = -ENXIO;
		vm->explain = cases[i].explain;
		rig_sessions(&r);
		rig_go(&r);
		assert_int_equal(tern_session_state(r.s), TERN_STATE_FAILED);
		rig_assert_source_runs(&r);
		assert_error(r.s, -ENXIO, cases[i].text);
		assert_error(r.d, -ENXIO, cases[i].text);
		rig_fini(&r);
	}
}

/* Whatever code a callback gives, a session that has ended does not look like one that runs. */
static void callback_that_says_in_progress(void **state)
{
	const uint64_t pages[] = { 256 };
	struct rig r;

	rig_init(&r, state, TESTVM_ANON, 1, pages);
	r.dst.fail_load = -EINPROGRESS;
	rig_sessions(&r);
	rig_go(&r);
	assert_int_equal(tern_session_state(r.s), TERN_STATE_FAILED);
	assert_int_equal(tern_session_state(r.d), TERN_STATE_FAILED);
	assert_int_equal(tern_session_wait(r.s, -1), -EIO);
	assert_int_equal(tern_session_wait(r.d, -1), -EIO);
	assert_error(r.s, -EINPROGRESS, "could not load the device state");
	rig_fini(&r);
}

/* A long reason is cut, the same at both sides. */
static void reason_of_any_length(void **state)
{
	const uint64_t pages[] = { 256 };
	char reason[2 * TERN_REASON_MAX];
	struct tern_error e;
	struct rig r;

	memset(reason, 'w', sizeof(reason) - 1);
	reason[sizeof(reason) - 1] = 0;
	rig_init(&r, state, TESTVM_ANON, 1, pages);
	r.dst.fail_load = -ENXIO;
	r.dst.explain = reason;
	rig_sessions(&r);
	rig_go(&r);
	rig_assert_source_runs(&r);
	reason[TERN_REASON_MAX] = 0;
	assert_error(r.s, -ENXIO, reason);
	assert_error(r.d, -ENXIO, reason);
	tern_session_error(r.s, &e);
	assert_null(strstr(strstr(e.message, reason) + 1, reason));
	rig_fini(&r);
}

static void explain_needlessly(void *opaque)
{
	const struct testvm *vm = opaque;

	tern_session_explain(vm->session, "of something that went well");
}

/* What was said about a callback that did not fail after all is not said of the next. */
static void reason_of_another_callback(void **state)
{
	const uint64_t pages[] = { 256 };
	struct rig r;

	rig_init(&r, state, TESTVM_ANON, 1, pages);
	r.dst.on_load = explain_needlessly;
	r.dst.hook_opaque = &r.dst;
	r.dst.fail_resume = -EBADFD;
	rig_sessions(&r);
	rig_go(&r);
	assert_error(r.d, -EBADFD, "could not resume the guest: File descriptor in bad state");
	assert_error(r.s, -EBADFD, "could not resume the guest: File descriptor in bad state");
	rig_fini(&r);
}

/* After GO the source does not run again by itself, even if it knows the other does not. */
static void destination_cannot_resume(void **state)
{
	const uint64_t pages[] = { 256 };
	struct rig r;

	rig_init(&r, state, TESTVM_ANON, 1, pages);
	r.dst.fail_resume = -EBADFD;
	r.dst.explain = "the accelerator is gone";
	rig_sessions(&r);
	rig_go(&r);
	assert_error(r.d, -EBADFD, "could not resume the guest: the accelerator is gone");
	assert_error(r.s, -EBADFD, "could not resume the guest: the accelerator is gone");
	assert_int_equal(tern_session_outcome(r.s), TERN_OUTCOME_NEITHER);
	assert_int_equal(tern_session_outcome(r.d), TERN_OUTCOME_NEITHER);
	assert_false(r.src.is_running);
	assert_int_equal(atomic_load(&r.src.resumes), 0);
	assert_error(r.s, -EBADFD, "may be resumed here");
	rig_fini(&r);
}

static void *cancel_now(void *opaque)
{
	tern_session_cancel(opaque);
	return NULL;
}

static void cancel_in_save(void *opaque)
{
	cancel_now(opaque);
}

static void cancel_in_round(void *opaque, const struct tern_event *e)
{
	struct rig *r = opaque;

	if (e->type == TERN_EVENT_ROUND)
		tern_session_cancel(r->s);
}

static void cancel_while_active(void **state)
{
	const uint64_t pages[] = { 4096 };
	struct rig r;

	rig_init(&r, state, TESTVM_ANON, 1, pages);
	testvm_fill(&r.src, 1, 13);
	r.src.working_set = 4096;
	rig_sessions(&r);
	tern_session_set_event_handler(r.s, cancel_in_round, &r);
	rig_go(&r);
	assert_int_equal(tern_session_state(r.s), TERN_STATE_CANCELLED);
	assert_int_equal(tern_session_state(r.d), TERN_STATE_CANCELLED);
	assert_int_equal(tern_session_wait(r.s, 0), -ECANCELED);
	rig_assert_source_runs(&r);
	assert_error(r.d, -ECANCELED, "the source cancelled");
	rig_fini(&r);
}

static void cancel_while_paused(void **state)
{
	const uint64_t pages[] = { 256 };
	struct rig r;

	rig_init(&r, state, TESTVM_ANON, 1, pages);
	rig_sessions(&r);
	r.src.on_save = cancel_in_save;
	r.src.hook_opaque = r.s;
	rig_go(&r);
	assert_int_equal(tern_session_state(r.s), TERN_STATE_CANCELLED);
	assert_int_equal(atomic_load(&r.src.resumes), 1);
	rig_assert_source_runs(&r);
	rig_fini(&r);
}

struct late_cancel {
	struct tern_session *s;
	int result;
};

static void cancel_in_resume(void *opaque)
{
	struct late_cancel *c = opaque;

	c->result = tern_session_cancel(c->s);
}

/* While the destination's resume() runs, GO has been given on both sides. */
static void cancel_after_go_is_refused(void **state)
{
	const uint64_t pages[] = { 256 };

	for (int who = 0; who < 2; who++) {
		struct late_cancel c = { 0 };
		struct rig r;

		rig_init(&r, state, TESTVM_ANON, 1, pages);
		rig_sessions(&r);
		c.s = who ? r.s : r.d;
		r.dst.on_resume = cancel_in_resume;
		r.dst.hook_opaque = &c;
		rig_go(&r);
		assert_int_equal(c.result, -EBUSY);
		rig_assert_moved(&r);
		rig_fini(&r);
	}
}

static void destination_cancels(void **state)
{
	const uint64_t pages[] = { 256 };
	struct rig r;

	rig_init(&r, state, TESTVM_ANON, 1, pages);
	rig_sessions(&r);
	r.src.on_save = cancel_in_save;
	r.src.hook_opaque = r.d;
	rig_go(&r);
	assert_int_equal(tern_session_state(r.s), TERN_STATE_FAILED);
	assert_int_equal(tern_session_state(r.d), TERN_STATE_CANCELLED);
	rig_assert_source_runs(&r);
	assert_error(r.s, -ECANCELED, "the destination says: ");
	rig_fini(&r);
}

static void cancel_while_listening(void **state)
{
	const uint64_t pages[] = { 16 };
	struct rig r;

	rig_init(&r, state, TESTVM_ANON, 1, pages);
	rig_sessions(&r);
	assert_int_equal(lane_listen(r.lane, r.d), 0);
	assert_int_equal(tern_session_wait(r.d, 10), -EINPROGRESS);
	assert_int_equal(tern_session_cancel(r.d), 0);
	assert_int_equal(tern_session_wait(r.d, WAIT_MS), -ECANCELED);
	rig_fini(&r);
}

static void delete_while_running(void **state)
{
	const uint64_t pages[] = { 4096 };
	struct rig r;

	rig_init(&r, state, TESTVM_ANON, 1, pages);
	testvm_fill(&r.src, 1, 14);
	r.src.working_set = 4096;
	rig_sessions(&r);
	tern_session_set(r.s, TERN_PARAM_MAX_BANDWIDTH, 1 << 20);
	assert_int_equal(lane_listen(r.lane, r.d), 0);
	testvm_start(&r.src);
	assert_int_equal(lane_connect(r.lane, r.s, r.d), 0);
	while (tern_session_state(r.s) == TERN_STATE_SETUP)
		usleep(1000);
	tern_session_delete(&r.s);
	assert_true(r.src.is_running);
	tern_session_wait(r.d, WAIT_MS);
	assert_int_equal(tern_session_state(r.d), TERN_STATE_CANCELLED);
	rig_fini(&r);
}

static void times_out(void **state)
{
	const uint64_t pages[] = { 4096 };
	struct rig r;

	rig_init(&r, state, TESTVM_ANON, 1, pages);
	testvm_fill(&r.src, 1, 15);
	rig_sessions(&r);
	tern_session_set(r.s, TERN_PARAM_MAX_BANDWIDTH, 1 << 20);
	tern_session_set(r.s, TERN_PARAM_TIMEOUT_MS, 300);
	rig_go(&r);
	assert_int_equal(tern_session_state(r.s), TERN_STATE_CANCELLED);
	assert_error(r.s, -ETIMEDOUT, "within 300 ms");
	rig_assert_source_runs(&r);
	rig_fini(&r);
}

/* Strangers that a destination told of, and what it said; its events come one at a time. */
struct strangers {
	unsigned nr;
	char text[2048];
};

static void strangers_counted(void *opaque, const struct tern_event *e)
{
	struct strangers *x = opaque;
	size_t len = strlen(x->text);

	if (e->type != TERN_EVENT_STRANGER)
		return;
	x->nr++;
	snprintf(x->text + len, sizeof(x->text) - len, "%s\n", e->error ? e->error->message : "");
}

static void try_misfit(struct rig *r, unsigned nr, const uint64_t *pages, const char *text)
{
	struct testvm_pair pair = { 0 };
	struct testvm vm;

	testvm_init(&vm, &pair, TESTVM_ANON, nr, pages);
	struct tern_session *s = testvm_session(&vm, TERN_SOURCE);

	testvm_start(&vm);
	assert_int_equal(lane_connect(r->lane, s, r->d), 0);
	assert_int_equal(tern_session_wait(s, WAIT_MS), -EINVAL);
	assert_error(s, -EINVAL, text);
	assert_true(vm.is_running);
	tern_session_delete(&s);
	testvm_fini(&vm);
}

/* Sources that do not fit are turned away, each told of once; then one that fits gets in. */
static void misfits_are_turned_away(void **state)
{
	const uint64_t good[] = { 100, 200 };
	const uint64_t fewer[] = { 300 }, other[] = { 200, 100 }, more[] = { 100, 201 };
	struct strangers strangers = { 0 };
	struct tern_stats st;
	struct rig r;

	rig_init(&r, state, TESTVM_ANON, 2, good);
	testvm_fill(&r.src, 1, 16);
	rig_sessions(&r);
	tern_session_set_event_handler(r.d, strangers_counted, &strangers);
	assert_int_equal(lane_listen(r.lane, r.d), 0);
	try_misfit(&r, 1, fewer, "number of regions differs: 1 at the source, 2");
	try_misfit(&r, 2, more, "RAM size differs: 1232896 bytes at the source, 1228800");
	try_misfit(&r, 2, other, "size of region 'ram0' differs: 819200 bytes at the source, 409600");
	testvm_start(&r.src);
	assert_int_equal(lane_connect(r.lane, r.s, r.d), 0);
	tern_session_wait(r.s, WAIT_MS);
	tern_session_wait(r.d, WAIT_MS);
	rig_assert_moved(&r);
	if (strangers.nr != 3)
		fail_msg("%u strangers, not 3:\n%s", strangers.nr, strangers.text);
	tern_session_stats(r.d, &st, sizeof(st));
	assert_int_equal(st.strangers, 3);
	rig_fini(&r);
}

/* A second source while the first one is at work. */
struct second {
	struct rig *r;
	int result;
	struct tern_error error;
};

static void connect_second(void *opaque)
{
	struct second *x = opaque;
	const uint64_t pages[] = { 64 };
	struct testvm_pair pair = { 0 };
	struct testvm vm;

	testvm_init(&vm, &pair, TESTVM_ANON, 1, pages);
	struct tern_session *s = testvm_session(&vm, TERN_SOURCE);

	testvm_start(&vm);
	lane_connect(x->r->lane, s, x->r->d);
	x->result = tern_session_wait(s, WAIT_MS);
	tern_session_error(s, &x->error);
	tern_session_delete(&s);
	testvm_fini(&vm);
}

static void second_source_is_refused(void **state)
{
	const uint64_t pages[] = { 64 };
	struct second x = { 0 };
	struct rig r;

	rig_init(&r, state, TESTVM_ANON, 1, pages);
	testvm_fill(&r.src, 1, 17);
	rig_sessions(&r);
	x.r = &r;
	r.src.on_save = connect_second;
	r.src.hook_opaque = &x;
	rig_go(&r);
	assert_int_equal(x.result, -EBUSY);
	assert_non_null(strstr(x.error.message, "busy with another migration"));
	rig_assert_moved(&r);
	rig_fini(&r);
}

static void statistics_add_up(void **state)
{
	const uint64_t pages[] = { 8192 };
	struct tern_channel_stats c;
	struct tern_round_stats round;
	struct tern_stats st;
	uint64_t normal = 0, sum = 0, bytes = 0;
	char *json;
	struct rig r;

	rig_init(&r, state, TESTVM_MEMFD, 1, pages);
	testvm_fill(&r.src, 2, 18);
	r.src.working_set = 100;
	r.src.pause_us = 50;
	rig_sessions(&r);
	rig_go(&r);
	rig_assert_moved(&r);
	tern_session_stats(r.s, &st, sizeof(st));
	for (unsigned i = 0; !tern_session_round_stats(r.s, i, &round, sizeof(round)); i++) {
		normal += round.normal_pages;
		assert_int_equal(round.round, i + 1);
		assert_int_equal(round.final, i + 1 == st.nr_rounds);
	}
	assert_int_equal(normal, st.normal_pages);
	for (int i = 0; i < TERN_LEDGER_NR; i++)
		sum += st.ledger_ns[i];
	assert_int_equal(sum, st.downtime_ns);
	assert_true(st.downtime_ns > 0 && st.downtime_ns < st.total_ns);
	for (unsigned i = 0; !tern_session_channel_stats(r.s, i, &c, sizeof(c)); i++)
		bytes += c.bytes;
	assert_int_equal(bytes, st.sent_bytes);
	assert_true(bytes >= st.normal_pages * TERN_PAGE_SIZE);
	assert_int_equal(st.ram_bytes, 8192 * TERN_PAGE_SIZE);
	assert_true(st.setup_ns > 0 && st.first_byte_ns >= st.setup_ns);
	assert_int_equal(tern_session_stats_json(r.s, &json), 0);
	assert_non_null(strstr(json, "\"status\": \"completed\""));
	free(json);
	rig_fini(&r);
}

static const struct lane_case cases[] = {
	LANE_CASE(idle_guest),
	LANE_CASE(states_are_told_once),
	LANE_CASE(running_guest),
	LANE_CASE(running_guest_with_sync_tracking),
	LANE_CASE(odd_region_sizes),
	LANE_CASE(hundreds_of_regions),
	LANE_CASE(huge_pages),
	LANE_CASE(holes_stay_holes),
	LANE_CASE(dirty_destination_is_cleared),
	LANE_CASE(pages_that_become_zero),
	LANE_CASE(own_dirty_log),
	LANE_CASE(own_dirty_log_fails),
	LANE_CASE(own_dirty_log_begins_each_sync),
	LANE_CASE(own_dirty_log_fails_to_begin),
	LANE_CASE(large_device_state),
	LANE_CASE(device_state_too_large_for_destination),
	LANE_CASE(device_state_left_unread),
	LANE_CASE(callbacks_that_fail),
	LANE_CASE(callback_that_says_in_progress),
	LANE_CASE(reason_of_any_length),
	LANE_CASE(reason_of_another_callback),
	LANE_CASE(destination_cannot_resume),
	LANE_CASE(cancel_while_active),
	LANE_CASE(cancel_while_paused),
	LANE_CASE(cancel_after_go_is_refused),
	LANE_CASE(destination_cancels),
	LANE_CASE(cancel_while_listening),
	LANE_CASE(delete_while_running),
	LANE_CASE(times_out),
	LANE_CASE(misfits_are_turned_away),
	LANE_CASE(second_source_is_refused),
	LANE_CASE(statistics_add_up),
};

int main(int argc, char **argv)
{
	return lane_run("migration", cases, sizeof(cases) / sizeof(cases[0]), argc, argv);
}
