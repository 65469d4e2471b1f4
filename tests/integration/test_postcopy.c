/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Postcopy and hybrid migrations between two sessions of one process, over every
 * transport, with a guest that runs at the destination while its pages are missing.
 * postcopy_recover.c has those whose link is lost.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "hugepages.h"
#include "leave_out.h"
#include "monitor.h"
#include "postcopy_recover.h"
#include "postcopy_rig.h"
#include "wire.h"

/* ---------------------------------------------------------------------- moves */

/* A guest that writes all the time, on whichever side it runs. */
static void move(void **state, enum tern_mode mode, enum testvm_backing backing, unsigned nr,
		 const uint64_t *pages, unsigned step)
{
	struct tern_stats st;
	struct rig r;

	rig_init(&r, state, backing, nr, pages, step);
	r.src.working_set = r.dst.working_set = pages[0];
	r.src.pause_us = r.dst.pause_us = 20;
	rig_sessions(&r, mode);
	rig_start(&r);
	rig_wait(&r);
	rig_assert_moved(&r);
	assert_true(r.dst.ticks > 0);
	tern_session_stats(r.s, &st, sizeof(st));
	assert_int_equal(st.mode, mode);
	tern_session_stats(r.d, &st, sizeof(st));
	assert_int_equal(st.mode, TERN_MODE_POSTCOPY);
	rig_fini(&r);
}

static void move_huge_pages(void **state, enum tern_mode mode)
{
	const uint64_t pages[] = { 4 * 512, 512 };
	struct hugepages hp;

	if (hugepages_get(&hp, 10))
		leave_out("hugetlb", "cannot reserve 10 huge pages of 2 MiB");
	move(state, mode, TESTVM_HUGETLB, 2, pages, 512 * 2);
	hugepages_put(&hp);
}

static void postcopy_of_memfd(void **state)
{
	move(state, TERN_MODE_POSTCOPY, TESTVM_MEMFD, 1, (uint64_t[]){ 8192 }, 1);
}

static void postcopy_of_anon(void **state)
{
	move(state, TERN_MODE_POSTCOPY, TESTVM_ANON, 1, (uint64_t[]){ 8192 }, 1);
}

static void postcopy_of_huge_pages(void **state)
{
	move_huge_pages(state, TERN_MODE_POSTCOPY);
}

static void hybrid_of_memfd(void **state)
{
	move(state, TERN_MODE_HYBRID, TESTVM_MEMFD, 1, (uint64_t[]){ 8192 }, 1);
}

static void hybrid_of_anon(void **state)
{
	move(state, TERN_MODE_HYBRID, TESTVM_ANON, 1, (uint64_t[]){ 8192 }, 1);
}

static void hybrid_of_huge_pages(void **state)
{
	move_huge_pages(state, TERN_MODE_HYBRID);
}

/* Holes, pages, and regions that end within a word, a section or a block. */
static void odd_region_sizes(void **state)
{
	const uint64_t pages[] = { 1023, 1, 1025, 17000, 1, 63, 65, 64 };
	enum testvm_backing backings[] = { TESTVM_MEMFD, TESTVM_ANON };

	for (int i = 0; i < 2; i++) {
		move(state, TERN_MODE_POSTCOPY, backings[i], 8, pages, 3);
		move(state, TERN_MODE_HYBRID, backings[i], 8, pages, 3);
	}
}

static void hundreds_of_regions(void **state)
{
	enum testvm_backing backings[] = { TESTVM_MEMFD, TESTVM_ANON };
	uint64_t pages[300];

	for (int i = 0; i < 300; i++)
		pages[i] = 1 + (uint64_t)(i % 3);
	for (int i = 0; i < 2; i++)
		move(state, TERN_MODE_POSTCOPY, backings[i], 300, pages, 1);
}

/* The destination had something in its RAM: it must not survive. */
static void stale_pages_are_gone(void **state)
{
	enum testvm_backing backings[] = { TESTVM_MEMFD, TESTVM_ANON };
	const uint64_t pages[] = { 4096 };

	for (int i = 0; i < 2; i++) {
		struct rig r;

		rig_init(&r, state, backings[i], 1, pages, 3);
		testvm_fill(&r.dst, 1, 9);
		rig_sessions(&r, TERN_MODE_POSTCOPY);
		rig_start(&r);
		rig_wait(&r);
		rig_assert_moved(&r);
		rig_fini(&r);
	}
}

static void precopy_to_a_destination_that_could(void **state)
{
	const uint64_t pages[] = { 4096 };
	struct tern_postcopy_stats pc;
	struct tern_stats st;
	struct rig r;

	rig_init(&r, state, TESTVM_MEMFD, 1, pages, 1);
	r.src.working_set = 1024;
	r.src.pause_us = 20;
	rig_sessions(&r, TERN_MODE_PRECOPY);
	rig_start(&r);
	rig_wait(&r);
	rig_assert_moved(&r);
	tern_session_stats(r.d, &st, sizeof(st));
	assert_int_equal(st.mode, TERN_MODE_PRECOPY);
	assert_int_equal(rig_postcopy(r.d, &pc)->missing_at_start, 0);
	rig_fini(&r);
}

/* A VMM looks at the figures of both sides all the time. */
static void figures_at_any_time(void **state)
{
	const uint64_t pages[] = { 8192 };
	struct tern_channel_stats c;
	struct tern_stats st;
	unsigned looks = 0;
	struct rig r;

	rig_init(&r, state, TESTVM_MEMFD, 1, pages, 1);
	rig_sessions(&r, TERN_MODE_HYBRID);
	tern_session_set(r.s, TERN_PARAM_MAX_BANDWIDTH, 64 << 20);
	rig_start(&r);
	while (tern_session_wait(r.s, 1) == -EINPROGRESS) {
		assert_int_equal(tern_session_stats(r.s, &st, sizeof(st)), 0);
		looks += st.state == TERN_STATE_ACTIVE;
		for (unsigned i = 0; i < st.nr_channels; i++)
			assert_int_equal(tern_session_channel_stats(r.s, i, &c, sizeof(c)), 0);
		assert_int_equal(tern_session_stats(r.d, &st, sizeof(st)), 0);
		for (unsigned i = 0; i < st.nr_channels; i++)
			assert_int_equal(tern_session_channel_stats(r.d, i, &c, sizeof(c)), 0);
	}
	assert_true(looks > 10);
	rig_wait(&r);
	rig_assert_moved(&r);
	rig_fini(&r);
}

/* ----------------------------------------------------------------- allocation */

/* Invariant 10: what was never touched exists on neither side afterwards. */
static void holes_stay_holes(void **state)
{
	enum testvm_backing backings[] = { TESTVM_MEMFD, TESTVM_ANON };
	enum tern_mode modes[] = { TERN_MODE_POSTCOPY, TERN_MODE_HYBRID };
	const uint64_t pages[] = { 20000, 1000 };

	for (int i = 0; i < 4; i++) {
		struct rig r;

		rig_init(&r, state, backings[i % 2], 2, pages, 97);
		uint64_t before = testvm_resident_pages(&r.src);

		rig_sessions(&r, modes[i / 2]);
		rig_start(&r);
		rig_wait(&r);
		assert_int_equal(tern_session_state(r.s), TERN_STATE_COMPLETED);
		assert_int_equal(testvm_resident_pages(&r.src), before);
		assert_true(testvm_resident_pages(&r.dst) <= before);
		rig_assert_moved(&r);
		rig_fini(&r);
	}
}

static void zero_pages_cost_no_contents(void **state)
{
	enum testvm_backing backings[] = { TESTVM_MEMFD, TESTVM_ANON };
	const uint64_t pages[] = { 8192 };

	for (int i = 0; i < 2; i++) {
		struct tern_stats st;
		struct rig r;

		rig_init(&r, state, backings[i], 1, pages, 1);
		memset(r.src.ram[0], 0, pages[0] * TERN_PAGE_SIZE);
		rig_sessions(&r, TERN_MODE_POSTCOPY);
		rig_start(&r);
		rig_wait(&r);
		assert_int_equal(testvm_resident_pages(&r.dst), 0);
		tern_session_stats(r.s, &st, sizeof(st));
		assert_int_equal(st.normal_pages, 0);
		assert_int_equal(st.zero_pages, pages[0]);
		assert_true(st.sent_bytes < TERN_PAGE_SIZE * pages[0] / 100);
		rig_assert_moved(&r);
		rig_fini(&r);
	}
}

/* After the first round of hybrid: what was sent with contents is zero when it is pushed. */
static void zero_half(void *opaque)
{
	struct rig *r = opaque;

	memset(r->src.ram[0], 0, r->src.pages[0] / 2 * TERN_PAGE_SIZE);
}

static void sent_pages_that_become_zero(void **state)
{
	enum testvm_backing backings[] = { TESTVM_MEMFD, TESTVM_ANON };
	const uint64_t pages[] = { 4096 };

	for (int i = 0; i < 2; i++) {
		struct tern_stats st;
		struct rig r;

		rig_init(&r, state, backings[i], 1, pages, 1);
		rig_cuttable(&r); /* a hook, not a cut */
		rig_sessions(&r, TERN_MODE_HYBRID);
		assert_int_equal(
			fault_net_add(r.net, &(struct fault_rule){ .side = FAULT_SOURCE,
								   .op = FAULT_SEND,
								   .msg_type = 6, /* ROUND */
								   .nth = 1,
								   .action = FAULT_CALL,
								   .fn = zero_half,
								   .opaque = &r }),
			0);
		rig_start(&r);
		rig_wait(&r);
		rig_assert_moved(&r);
		assert_int_equal(fault_net_fired(r.net), 1);
		tern_session_stats(r.s, &st, sizeof(st));
		assert_true(st.zero_pages >= pages[0] / 2);
		rig_fini(&r);
	}
}

/* --------------------------------------------------------------------- faults */

/*
 * Each read leaves read-ahead for the background threads to do, and what they send is bounded
 * by the limit, however long this takes.
 */
static void read_ahead_keeps_to_the_limit(void **state)
{
	const uint64_t pages[] = { 64, 32768 }, rate = 1 << 20, slack = 1024;
	struct tern_postcopy_stats dst;
	struct rig r;

	rig_init(&r, state, TESTVM_MEMFD, 2, pages, 1);
	rig_sessions(&r, TERN_MODE_POSTCOPY);
	tern_session_set(r.s, TERN_PARAM_MAX_POSTCOPY_BANDWIDTH, rate);
	rig_add_reader(&r, 0, pages[1], 8000);
	uint64_t begin = now_ns();

	rig_start(&r);
	rig_join_readers(&r);
	rig_postcopy(r.d, &dst);
	uint64_t limited = (uint64_t)((double)(now_ns() - begin) / 1e9 * (double)rate) / TERN_PAGE_SIZE;

	assert_true(dst.requests > 0);
	assert_in_range(dst.missing_at_start - dst.missing_pages, dst.requests,
			dst.requests + limited + slack);
	rig_unthrottle(&r);
	rig_wait(&r);
	rig_assert_moved(&r);
	rig_fini(&r);
}

static void fault_is_served_before_its_page_is_pushed(void **state)
{
	enum testvm_backing backings[] = { TESTVM_MEMFD, TESTVM_ANON };
	enum tern_mode modes[] = { TERN_MODE_POSTCOPY, TERN_MODE_HYBRID };
	const uint64_t pages[] = { 4096, 4096 };

	for (int i = 0; i < 4; i++) {
		struct tern_postcopy_stats src, dst;
		struct rig r;

		rig_init(&r, state, backings[i % 2], 2, pages, 1);
		rig_sessions(&r, modes[i / 2]);
		if (modes[i / 2] == TERN_MODE_HYBRID) { /* all is dirty at the switchover */
			r.src.working_set = r.dst.working_set = 4096;
			rig_all_dirty(&r);
		}
		rig_throttle(&r);
		rig_add_reader(&r, 3000, 500, 64);
		rig_start(&r);
		rig_join_readers(&r);
		assert_true(rig_postcopy(r.d, &dst)->requests > 0);
		assert_true(dst.missing_pages > 0);
		assert_true(dst.fault.nr > 0 && dst.fault.max_ns > 0);
		rig_await_state(&r, r.d, TERN_STATE_POSTCOPY_ACTIVE);
		rig_await_state(&r, r.s, TERN_STATE_POSTCOPY_ACTIVE);
		rig_unthrottle(&r);
		rig_wait(&r);
		rig_assert_moved(&r);
		/* Nothing was lost, so both sides counted the same. */
		rig_postcopy(r.s, &src);
		rig_postcopy(r.d, &dst);
		assert_int_equal(src.requests, dst.requests);
		assert_int_equal(dst.missing_pages, 0);
		rig_fini(&r);
	}
}

static void fault_on_a_huge_page_is_served(void **state)
{
	const uint64_t pages[] = { 8 * 512 };
	struct tern_postcopy_stats st;
	struct hugepages hp;
	struct rig r;

	if (hugepages_get(&hp, 16))
		leave_out("hugetlb", "cannot reserve 16 huge pages of 2 MiB");
	rig_init(&r, state, TESTVM_HUGETLB, 1, pages, 3);
	rig_sessions(&r, TERN_MODE_POSTCOPY);
	rig_throttle(&r);
	rig_add_reader(&r, 5 * 512, 3 * 512, 64);
	rig_start(&r);
	rig_join_readers(&r);
	rig_postcopy(r.d, &st);
	assert_true(st.requests >= 1 && st.requests <= 3);
	rig_unthrottle(&r);
	rig_wait(&r);
	rig_assert_moved(&r);
	rig_fini(&r);
	hugepages_put(&hp);
}

/* A page of huge memory that nobody has ever touched, read by the guest before all else. */
static void fault_on_a_hole_of_huge_memory_is_served(void **state)
{
	const uint64_t pages[] = { 4 * 512 };
	struct hugepages hp;
	struct rig r;

	if (hugepages_get(&hp, 8))
		leave_out("hugetlb", "cannot reserve 8 huge pages of 2 MiB");
	rig_init(&r, state, TESTVM_HUGETLB, 1, pages, 2 * 512);
	rig_sessions(&r, TERN_MODE_POSTCOPY);
	rig_throttle(&r);
	rig_add_reader(&r, 512, 512, 4);
	rig_add_reader(&r, 3 * 512, 512, 4);
	rig_start(&r);
	rig_join_readers(&r);
	rig_unthrottle(&r);
	rig_wait(&r);
	rig_assert_moved(&r);
	rig_fini(&r);
	hugepages_put(&hp);
}

static void many_threads_fault_at_once(void **state)
{
	enum testvm_backing backings[] = { TESTVM_MEMFD, TESTVM_ANON };
	const uint64_t pages[] = { 1024, 8192 };

	for (int i = 0; i < 4; i++) {
		struct tern_postcopy_stats st;
		struct rig r;

		rig_init(&r, state, backings[i % 2], 2, pages, 2);
		r.src.working_set = r.dst.working_set = 1024;
		rig_sessions(&r, TERN_MODE_POSTCOPY);
		tern_session_set(r.d, TERN_PARAM_FAULT_THREADS, i < 2 ? 1 : 4);
		rig_throttle(&r);
		for (unsigned k = 0; k < RIG_READERS_MAX; k++)
			rig_add_reader(&r, 0, 8192, 50);
		rig_start(&r);
		rig_await_faults(&r, 100, 0);
		rig_unthrottle(&r); /* in the middle of it */
		rig_wait(&r);
		rig_assert_moved(&r);
		rig_postcopy(r.d, &st);
		assert_true(st.nr_threads > 1 && st.blocked_ns > 0);
		rig_fini(&r);
	}
}

static void every_page_is_touched_while_all_is_pushed(void **state)
{
	enum testvm_backing backings[] = { TESTVM_MEMFD, TESTVM_ANON };
	const uint64_t pages[] = { 64, 16384 };

	for (int i = 0; i < 2; i++) {
		struct rig r;

		rig_init(&r, state, backings[i], 2, pages, 1);
		rig_sessions(&r, TERN_MODE_POSTCOPY);
		for (unsigned k = 0; k < 4; k++)
			rig_add_reader(&r, 4096 * k, 4096, 0);
		rig_start(&r);
		rig_wait(&r);
		rig_assert_moved(&r);
		rig_fini(&r);
	}
}

/* The guest has asked for all its pages: the bandwidth limit holds up nobody any more. */
static void completes_when_faults_have_brought_all(void **state)
{
	enum testvm_backing backings[] = { TESTVM_MEMFD, TESTVM_ANON };
	const uint64_t pages[] = { 1024 };

	for (int i = 0; i < 2; i++) {
		struct rig r;

		rig_init(&r, state, backings[i], 1, pages, 1);
		rig_sessions(&r, TERN_MODE_POSTCOPY);
		rig_throttle(&r);
		rig_add_reader(&r, 0, 1024, 0);
		rig_start(&r);
		rig_wait(&r);
		rig_assert_moved(&r);
		assert_int_equal(atomic_load(&r.dst_heard.warnings), 0);
		rig_fini(&r);
	}
}

/* Inside load(), so before GO: the VMM looks at its guest's RAM. */
static void read_ram(void *opaque)
{
	struct rig *r = opaque;

	for (uint64_t p = 0; p < r->src.pages[0]; p += 100)
		if (memcmp(r->dst.ram[0] + p * TERN_PAGE_SIZE, r->src.ram[0] + p * TERN_PAGE_SIZE,
			   TERN_PAGE_SIZE) != 0)
			atomic_fetch_add(&r->wrong, 1);
}

/* The same, whatever is there. */
static void touch_ram(void *opaque)
{
	struct rig *r = opaque;

	for (uint64_t p = 0; p < r->src.pages[0]; p++)
		(void)*(volatile uint8_t *)(r->dst.ram[0] + p * TERN_PAGE_SIZE);
}

static void load_may_read_guest_ram(void **state)
{
	enum testvm_backing backings[] = { TESTVM_MEMFD, TESTVM_ANON };
	const uint64_t pages[] = { 4096 };

	for (int i = 0; i < 2; i++) {
		struct tern_postcopy_stats st;
		struct rig r;

		rig_init(&r, state, backings[i], 1, pages, 1);
		rig_sessions(&r, TERN_MODE_POSTCOPY);
		r.dst.on_load = read_ram;
		r.dst.hook_opaque = &r;
		rig_start(&r);
		rig_wait(&r);
		assert_int_equal(atomic_load(&r.wrong), 0);
		assert_true(rig_postcopy(r.d, &st)->requests >= 4096 / 100);
		rig_assert_moved(&r);
		rig_fini(&r);
	}
}

static void figures_add_up(void **state)
{
	const uint64_t pages[] = { 8192 };
	struct tern_postcopy_stats pc;
	struct tern_channel_stats c;
	struct tern_round_stats round;
	uint64_t normal = 0, sum = 0, bytes = 0, faults = 0;
	struct tern_stats st;
	char *json;
	struct rig r;

	rig_init(&r, state, TESTVM_MEMFD, 1, pages, 2);
	rig_sessions(&r, TERN_MODE_POSTCOPY);
	rig_add_reader(&r, 0, 8192, 300);
	rig_start(&r);
	rig_wait(&r);
	rig_assert_moved(&r);
	tern_session_stats(r.s, &st, sizeof(st));
	for (unsigned i = 0; !tern_session_round_stats(r.s, i, &round, sizeof(round)); i++)
		normal += round.normal_pages;
	for (int i = 0; i < TERN_LEDGER_NR; i++)
		sum += st.ledger_ns[i];
	for (unsigned i = 0; !tern_session_channel_stats(r.s, i, &c, sizeof(c)); i++)
		bytes += c.bytes;
	assert_int_equal(sum, st.downtime_ns);
	assert_int_equal(normal, st.normal_pages);
	/* Every other page exists; asked for or not, each went once. */
	assert_int_equal(normal + st.zero_pages, 4096);
	assert_true(st.first_byte_ns > 0);
	assert_true(bytes >= normal * TERN_PAGE_SIZE);
	assert_int_equal(tern_session_stats_json(r.s, &json), 0);
	assert_non_null(strstr(json, "\"mode\": \"postcopy\""));
	free(json);
	tern_session_stats(r.d, &st, sizeof(st));
	assert_true(st.postcopy_ns > 0);
	rig_postcopy(r.d, &pc);
	assert_int_equal(pc.missing_at_start, 8192);
	assert_int_equal(pc.missing_pages, 0);
	for (unsigned i = 0; i < TERN_POSTCOPY_BUCKETS; i++)
		faults += pc.log2_us[i];
	assert_int_equal(faults, pc.fault.nr);
	assert_int_equal(pc.recoveries, 0);
	rig_fini(&r);
}

/* --------------------------------------------------------------- before GO, and after */

static void cancel_source(void *opaque)
{
	struct rig *r = opaque;

	assert_int_equal(tern_session_cancel(r->s), 0);
}

static void cancel_in_save(void **state)
{
	const uint64_t pages[] = { 1024 };
	struct rig r;

	rig_init(&r, state, TESTVM_MEMFD, 1, pages, 1);
	rig_sessions(&r, TERN_MODE_POSTCOPY);
	r.src.on_save = cancel_source;
	r.src.hook_opaque = &r;
	rig_start(&r);
	rig_wait(&r);
	assert_int_equal(tern_session_state(r.s), TERN_STATE_CANCELLED);
	assert_int_equal(tern_session_state(r.d), TERN_STATE_CANCELLED);
	rig_assert_source_runs(&r);
	rig_fini(&r);
}

static void cancel_destination_and_read_ram(void *opaque)
{
	struct rig *r = opaque;

	assert_int_equal(tern_session_cancel(r->d), 0);
	touch_ram(r);
}

static void read_ram_and_cancel(void *opaque)
{
	read_ram(opaque);
	cancel_source(opaque);
}

/* The last moment before GO, when pages were fetched already. */
static void cancel_in_load(void **state)
{
	enum testvm_backing backings[] = { TESTVM_MEMFD, TESTVM_ANON };
	const uint64_t pages[] = { 1024 };

	for (int i = 0; i < 2; i++) {
		struct rig r;

		rig_init(&r, state, backings[i], 1, pages, 1);
		rig_sessions(&r, TERN_MODE_POSTCOPY);
		r.dst.on_load = read_ram_and_cancel;
		r.dst.hook_opaque = &r;
		rig_start(&r);
		rig_wait(&r);
		assert_int_equal(tern_session_state(r.s), TERN_STATE_CANCELLED);
		assert_int_equal(tern_session_state(r.d), TERN_STATE_CANCELLED);
		assert_int_equal(atomic_load(&r.wrong), 0);
		rig_assert_source_runs(&r);
		assert_int_equal(atomic_load(&r.src.resumes), 1);
		rig_fini(&r);
	}
}

static void cancel_source_and_read_ram(void *opaque)
{
	cancel_source(opaque);
	touch_ram(opaque);
}

/* load() reads pages that will not come any more: it goes on, in vain. */
static void pages_do_not_come_in_load(void **state)
{
	enum testvm_backing backings[] = { TESTVM_MEMFD, TESTVM_ANON };
	void (*hooks[])(void *) = { cancel_source_and_read_ram, cancel_destination_and_read_ram,
				    touch_ram };
	const uint64_t pages[] = { 1024 };

	for (int i = 0; i < 6; i++) {
		struct rig r;

		rig_init(&r, state, backings[i % 2], 1, pages, 1);
		if (hooks[i / 2] == touch_ram) { /* the link is lost instead */
			rig_cuttable(&r);
			rig_cut(&r, FAULT_DESTINATION, FAULT_SEND, WIRE_PAGES_WANTED, 1);
		}
		rig_sessions(&r, TERN_MODE_POSTCOPY);
		r.dst.on_load = hooks[i / 2];
		r.dst.hook_opaque = &r;
		rig_start(&r);
		rig_wait(&r);
		assert_int_equal(tern_session_outcome(r.s), TERN_OUTCOME_SOURCE);
		assert_int_equal(tern_session_outcome(r.d), TERN_OUTCOME_SOURCE);
		rig_assert_source_runs(&r);
		assert_int_equal(atomic_load(&r.src.resumes), 1);
		assert_int_equal(atomic_load(&r.dst.resumes), 0);
		rig_fini(&r);
	}
}

static void cancel_after_go_is_refused(void **state)
{
	const uint64_t pages[] = { 4096 };
	struct rig r;

	rig_init(&r, state, TESTVM_MEMFD, 1, pages, 1);
	rig_sessions(&r, TERN_MODE_POSTCOPY);
	rig_throttle(&r);
	rig_start(&r);
	rig_await_state(&r, r.s, TERN_STATE_POSTCOPY_ACTIVE);
	rig_await_state(&r, r.d, TERN_STATE_POSTCOPY_ACTIVE);
	assert_int_equal(tern_session_cancel(r.s), -EBUSY);
	assert_int_equal(tern_session_cancel(r.d), -EBUSY);
	assert_int_equal(tern_session_recover(r.s, NULL), -EBUSY);
	assert_int_equal(tern_session_recover(r.d, NULL), -EINVAL);
	rig_unthrottle(&r);
	rig_wait(&r);
	rig_assert_moved(&r);
	rig_fini(&r);
}

static void load_that_fails(void **state)
{
	const uint64_t pages[] = { 1024 };
	struct rig r;

	rig_init(&r, state, TESTVM_MEMFD, 1, pages, 1);
	r.dst.fail_load = -ENXIO;
	rig_sessions(&r, TERN_MODE_POSTCOPY);
	rig_start(&r);
	rig_wait(&r);
	rig_assert_source_runs(&r);
	rig_assert_error(r.s, -ENXIO, "could not load");
	rig_fini(&r);
}

static void destination_cannot_resume(void **state)
{
	const uint64_t pages[] = { 1024 };
	struct rig r;

	rig_init(&r, state, TESTVM_ANON, 1, pages, 1);
	r.dst.fail_resume = -EBADFD;
	rig_sessions(&r, TERN_MODE_POSTCOPY);
	rig_start(&r);
	rig_wait(&r);
	assert_int_equal(tern_session_outcome(r.s), TERN_OUTCOME_NEITHER);
	assert_int_equal(tern_session_outcome(r.d), TERN_OUTCOME_NEITHER);
	assert_false(r.src.is_running);
	rig_assert_error(r.s, -EBADFD, "may be resumed here");
	rig_fini(&r);
}

/* deleting a session that moves pages waits for them. */
static void delete_while_pages_move(void **state)
{
	const uint64_t pages[] = { 16384 };
	struct rig r;

	rig_init(&r, state, TESTVM_MEMFD, 1, pages, 1);
	rig_sessions(&r, TERN_MODE_POSTCOPY);
	rig_start(&r);
	rig_await_state(&r, r.s, TERN_STATE_POSTCOPY_ACTIVE);
	tern_session_delete(&r.s);
	assert_int_equal(atomic_load(&r.src_heard.last_state), TERN_STATE_COMPLETED);
	assert_int_equal(atomic_load(&r.src_heard.last_outcome), TERN_OUTCOME_DESTINATION);
	tern_session_delete(&r.d);
	assert_int_equal(atomic_load(&r.dst_heard.last_state), TERN_STATE_COMPLETED);
	testvm_stop(&r.dst);
	assert_true(testvm_equal(&r.src, &r.dst));
	rig_fini(&r);
}

/* Make the only region of @vm, which is of huge pages, a private mapping. */
static void make_private(struct testvm *vm)
{
	size_t size = vm->pages[0] * TERN_PAGE_SIZE;
	void *p = mmap(vm->ram[0], size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, vm->fd[0],
		       0);

	assert_ptr_equal(p, vm->ram[0]);
	close(vm->fd[0]);
	vm->fd[0] = -1;
}

static void private_huge_pages_are_refused(void **state)
{
	const char *text = "postcopy cannot place pages of region 'ram0'";
	const uint64_t pages[] = { 512 };
	struct hugepages hp;
	struct rig r;

	if (hugepages_get(&hp, 4))
		leave_out("hugetlb", "cannot reserve 4 huge pages of 2 MiB");
	rig_init(&r, state, TESTVM_HUGETLB, 1, pages, 512);
	make_private(&r.dst);
	rig_sessions(&r, TERN_MODE_POSTCOPY);
	rig_start(&r);
	assert_int_equal(tern_session_wait(r.s, RIG_WAIT_MS), -EOPNOTSUPP);
	rig_assert_error(r.s, -EOPNOTSUPP, text);
	rig_await(&r.dst_heard.strangers, 1, "strangers");
	rig_assert_text(&r.dst_heard, r.dst_heard.stranger, text);
	rig_assert_source_runs(&r);
	assert_int_equal(tern_session_state(r.d), TERN_STATE_SETUP);
	rig_fini(&r);
	hugepages_put(&hp);
}

static const struct lane_case cases[] = {
	LANE_CASE(postcopy_of_memfd),
	LANE_CASE(postcopy_of_anon),
	LANE_CASE(postcopy_of_huge_pages),
	LANE_CASE(hybrid_of_memfd),
	LANE_CASE(hybrid_of_anon),
	LANE_CASE(hybrid_of_huge_pages),
	LANE_CASE(odd_region_sizes),
	LANE_CASE(hundreds_of_regions),
	LANE_CASE(stale_pages_are_gone),
	LANE_CASE(precopy_to_a_destination_that_could),
	LANE_CASE(figures_at_any_time),
	LANE_CASE(holes_stay_holes),
	LANE_CASE(zero_pages_cost_no_contents),
	LANE_CASE(sent_pages_that_become_zero),
	LANE_CASE(read_ahead_keeps_to_the_limit),
	LANE_CASE(fault_is_served_before_its_page_is_pushed),
	LANE_CASE(fault_on_a_huge_page_is_served),
	LANE_CASE(fault_on_a_hole_of_huge_memory_is_served),
	LANE_CASE(many_threads_fault_at_once),
	LANE_CASE(every_page_is_touched_while_all_is_pushed),
	LANE_CASE(completes_when_faults_have_brought_all),
	LANE_CASE(load_may_read_guest_ram),
	LANE_CASE(figures_add_up),
	LANE_CASE(cancel_in_save),
	LANE_CASE(cancel_in_load),
	LANE_CASE(pages_do_not_come_in_load),
	LANE_CASE(cancel_after_go_is_refused),
	LANE_CASE(load_that_fails),
	LANE_CASE(destination_cannot_resume),
	LANE_CASE(delete_while_pages_move),
	LANE_CASE(private_huge_pages_are_refused),
	POSTCOPY_RECOVER_CASES,
};

int main(int argc, char **argv)
{
	return lane_run("postcopy", cases, sizeof(cases) / sizeof(cases[0]), argc, argv);
}
