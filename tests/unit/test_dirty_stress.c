/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Stress tests of the dirty providers: threads write all over the region while a
 * migrator copies what is reported, round after round, as precopy does.  When
 * the writers have stopped, one last sync and copy must give an exact replica:
 * one lost write is one wrong page.
 *
 * Each word of a page is written by one thread, with stamps that only grow, so
 * that every write changes what must be found.  A writer stays in one zone of
 * 2 MiB for a burst of random length and then moves on, so that at any time some
 * pages, and some huge pages, have just been written for the last time: those
 * are the ones that a wrong order loses.  Every other write of a burst goes to
 * one of a few pages, where the writers meet.
 */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include "bitmap.h"
#include "dirty_rig.h"

#define MIB (1ull << 20)

enum {
	NR_WRITERS = 3,
	HOT_PAGES = 8,
	ZONE_PAGES = 512,
	RUNS = 2,
#ifdef __SANITIZE_THREAD__ /* each round takes ten times as long, and memory as much */
	ROUNDS = 5,
	SIZE_DIVISOR = 4,
#else
	ROUNDS = 25,
	SIZE_DIVISOR = 1,
#endif
	MIN_WRITES = 100, /* by all writers together before a round may end */
};

/* One writer. */
struct writer {
	pthread_t thread;
	struct rig *rig;
	unsigned index;
	const atomic_bool *stop;
	_Atomic uint64_t writes; /* set by the writer, read by all */
};

/* random_next - xorshift. */
static uint64_t random_next(uint64_t *x)
{
	*x ^= *x << 13;
	*x ^= *x >> 7;
	*x ^= *x << 17;
	return *x;
}

/*
 * put_stamp - what a guest does.  The copy that runs meanwhile may see it or not; that
 * is what is being tested, and not for ThreadSanitizer to judge.
 */
__attribute__((no_sanitize("thread"), noinline)) static void put_stamp(uint64_t *word,
								       uint64_t stamp)
{
	__atomic_store_n(word, stamp, __ATOMIC_RELAXED);
}

/* writer_burst - up to @nr stamps in zone @zone. */
static void writer_burst(struct writer *w, uint64_t *x, uint64_t zone, uint64_t nr)
{
	while (nr-- && !atomic_load_explicit(w->stop, memory_order_relaxed)) {
		uint64_t pick = random_next(x);
		uint64_t page = pick & 1 ? (pick >> 1) % HOT_PAGES * 7 : (pick >> 1) % ZONE_PAGES;
		uint64_t slot = (pick >> 32) % 16 * 32 + w->index;
		uint64_t stamp = atomic_load_explicit(&w->writes, memory_order_relaxed) + 1;
		uint64_t *word =
			(uint64_t *)(w->rig->hva + (zone * ZONE_PAGES + page) * TERN_PAGE_SIZE);

		put_stamp(word + slot, stamp);
		atomic_store_explicit(&w->writes, stamp, memory_order_relaxed);
	}
}

/* writer_run - bursts until told to stop. */
static void *writer_run(void *opaque)
{
	struct writer *w = opaque;
	uint64_t x = 0x9e3779b97f4a7c15ull * (w->index + 1);
	uint64_t zones = w->rig->r->nr_pages / ZONE_PAGES;

	while (!atomic_load_explicit(w->stop, memory_order_relaxed)) {
		uint64_t zone = random_next(&x) % zones;

		/* Long bursts for huge pages, or all of them would be written all the time. */
		writer_burst(w, &x, zone, 1ull << random_next(&x) % (w->rig->unit > 1 ? 20 : 6));
	}
	return NULL;
}

/* wait_for_writes - until the writers have made MIN_WRITES more than *seen; updates it. */
static void wait_for_writes(const struct writer *w, uint64_t *seen)
{
	uint64_t sum;

	do {
		sched_yield();
		sum = 0;
		for (unsigned i = 0; i < NR_WRITERS; i++)
			sum += atomic_load_explicit(&w[i].writes, memory_order_relaxed);
	} while (sum < *seen + MIN_WRITES);
	*seen = sum;
}

/* differing - pages of the replica that differ from the region; *first: the first of them. */
static uint64_t differing(const struct rig *rig, uint64_t *first)
{
	uint64_t bad = 0;

	for (uint64_t i = 0; i < rig->r->nr_pages; i++)
		if (memcmp(rig->hva + i * TERN_PAGE_SIZE, rig->replica + i * TERN_PAGE_SIZE,
			   TERN_PAGE_SIZE) &&
		    !bad++)
			*first = i;
	return bad;
}

/* migrate_once - one run; @touched_percent of the pages exist when tracking starts. */
static void migrate_once(const struct rig_variant *v, uint64_t size, unsigned touched_percent)
{
	struct rig *rig = rig_new(v, size);
	struct writer w[NR_WRITERS];
	atomic_bool stop = false;
	uint64_t seen = 0, bad, first = 0;

	if (!rig)
		rig_leave_out(v);
	for (uint64_t i = 0; i < rig->r->nr_pages; i++)
		if (i % 100 < touched_percent)
			memset(rig->hva + i * TERN_PAGE_SIZE, (int)(i & 0x7f), TERN_PAGE_SIZE);
	for (unsigned i = 0; i < NR_WRITERS; i++) {
		w[i] = (struct writer){ .rig = rig, .index = i, .stop = &stop };
		assert_int_equal(pthread_create(&w[i].thread, NULL, writer_run, &w[i]), 0);
	}
	rig_start(rig);
	for (unsigned round = 0; round < ROUNDS; round++) {
		rig_copy_round(rig, true);
		wait_for_writes(w, &seen);
		rig_sync(rig);
	}
	atomic_store(&stop, true);
	for (unsigned i = 0; i < NR_WRITERS; i++)
		pthread_join(w[i].thread, NULL);
	rig_sync(rig);
	rig_copy_round(rig, false);
	rig->d.ops.stop(rig->d.opaque);
	bad = differing(rig, &first);
	rig_delete(rig);
	if (bad)
		fail_msg("%s: %lu pages differ, the first is %lu", v->name, (unsigned long)bad,
			 (unsigned long)first);
}

static void test_replica_of_populated_memory(void **state)
{
	for (unsigned run = 0; run < RUNS; run++)
		migrate_once(*state, 16 * MIB / SIZE_DIVISOR, 100);
}

static void test_replica_of_memory_with_holes(void **state)
{
	for (unsigned run = 0; run < RUNS; run++)
		migrate_once(*state, 32 * MIB / SIZE_DIVISOR, 10);
}

static void test_replica_of_untouched_memory(void **state)
{
	for (unsigned run = 0; run < RUNS; run++)
		migrate_once(*state, 64 * MIB / SIZE_DIVISOR, 0);
}

static const struct rig_variant async_anon = { "async/anon", TERN_DIRTY_UFFD_WP_ASYNC, RIG_ANON,
					       true };
static const struct rig_variant async_memfd = { "async/memfd", TERN_DIRTY_UFFD_WP_ASYNC, RIG_MEMFD,
						true };
static const struct rig_variant async_huge = { "async/hugetlb", TERN_DIRTY_UFFD_WP_ASYNC,
					       RIG_HUGETLB, true };
static const struct rig_variant sync_anon = { "sync/anon", TERN_DIRTY_UFFD_WP_SYNC, RIG_ANON,
					      false };
static const struct rig_variant sync_memfd = { "sync/memfd", TERN_DIRTY_UFFD_WP_SYNC, RIG_MEMFD,
					       false };
static const struct rig_variant sync_huge = { "sync/hugetlb", TERN_DIRTY_UFFD_WP_SYNC, RIG_HUGETLB,
					      false };
static const struct rig_variant sync_anon_scan = { "sync/anon/scan", TERN_DIRTY_UFFD_WP_SYNC,
						   RIG_ANON, true };

#define T(test, variant)                                                          \
	{                                                                         \
#test ":" #variant, test, NULL, NULL, (void *)(uintptr_t)&variant \
	}
#define T_ALL(test)                                                                         \
	T(test, async_anon), T(test, async_memfd), T(test, async_huge), T(test, sync_anon), \
		T(test, sync_anon_scan), T(test, sync_memfd), T(test, sync_huge)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T_ALL(test_replica_of_populated_memory),
		T_ALL(test_replica_of_memory_with_holes),
		T_ALL(test_replica_of_untouched_memory),
	};

	return cmocka_run_group_tests_name("dirty stress", tests, NULL, NULL);
}
