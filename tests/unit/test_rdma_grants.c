/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * The end of the peer's access, piece by piece, as postcopy completes them: what it takes
 * back, what it leaves, and what it costs; over the fake verbs device.
 */

#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "verbs.h"
#include "verbs_fake.h"
#include "verbs_pair.h"

#define KIB 1024ull
#define MIB (1ull << 20)

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

/* Is the destination's memory at @offset of @region registered?  Waits while that changes. */
static bool is_registered(struct verbs_pair *p, uint32_t region, uint64_t offset)
{
	struct keys *k = &to_conn(p->dst)->keys;
	bool found = false, waits, there = false;

	do {
		waits = false;
		pthread_mutex_lock(&k->lock);
		for (uint32_t i = 0; i < k->nr_granted; i++) {
			const struct grant *g = k->granted[i];

			if (!g || g->region != region || offset < g->offset ||
			    offset - g->offset >= g->len)
				continue;
			found = true;
			waits = g->retired;
			there = g->mr;
		}
		pthread_mutex_unlock(&k->lock);
		sched_yield();
	} while (waits);
	assert_true(found);
	return there;
}

/* Write @len bytes at @offset of @region. */
static void write_at(struct verbs_pair *p, uint32_t region, uint64_t offset, uint64_t len)
{
	const struct transport_range r = { region, offset, len };

	assert_int_equal(p->t->write(p->sc[0], &r, 1, &p->err), 0);
}

/* Two regions with a few ranges each that were written, each with a number of its own. */
static void open_and_write(struct verbs_pair *p, pthread_t servers[PAIR_CHANNELS])
{
	p->nr_regions = 2;
	p->size = 5 * MIB;
	assert_int_equal(pair_open(p), 0);
	pair_serve(p, servers);
	for (uint32_t i = 0; i < 2; i++) {
		write_at(p, i, 0, 64 * KIB);
		write_at(p, i, 128 * KIB, 64 * KIB);
		write_at(p, i, 2 * MIB, 2 * MIB);
		write_at(p, i, 4 * MIB, MIB);
	}
	assert_int_equal(p->t->fence(p->sc[0], &p->err), 0);
}

static void close_source(struct verbs_pair *p, pthread_t servers[PAIR_CHANNELS])
{
	p->t->close(p->src);
	p->src = NULL;
	for (unsigned i = 0; i < PAIR_CHANNELS; i++)
		pthread_join(servers[i], NULL);
}

/* All ranges of a piece, whatever their numbers, and nothing beside it. */
static void a_piece_is_taken_back(void **state)
{
	struct verbs_pair *p = *state;
	pthread_t servers[PAIR_CHANNELS];

	open_and_write(p, servers);
	p->t->retire(p->dst, 1, 0, 2 * MIB);
	assert_false(is_registered(p, 1, 0));
	assert_false(is_registered(p, 1, 128 * KIB));
	assert_true(is_registered(p, 1, 2 * MIB));
	assert_true(is_registered(p, 1, 4 * MIB));
	assert_true(is_registered(p, 0, 0));
	assert_true(is_registered(p, 0, 128 * KIB));
	p->t->retire(p->dst, 1, 0, 2 * MIB); /* again: nothing is left to do */
	close_source(p, servers);
}

/* A range that is not all of it in what was named stays. */
static void a_part_of_a_piece_is_taken_back(void **state)
{
	struct verbs_pair *p = *state;
	pthread_t servers[PAIR_CHANNELS];

	open_and_write(p, servers);
	p->t->retire(p->dst, 0, 64 * KIB, 2 * MIB);
	assert_true(is_registered(p, 0, 0));
	assert_false(is_registered(p, 0, 128 * KIB));
	assert_true(is_registered(p, 0, 2 * MIB));
	close_source(p, servers);
}

/* As after a last round: many pieces at once, the last one short. */
static void a_region_is_taken_back(void **state)
{
	struct verbs_pair *p = *state;
	pthread_t servers[PAIR_CHANNELS];

	open_and_write(p, servers);
	p->t->retire(p->dst, 0, 0, p->size);
	assert_false(is_registered(p, 0, 0));
	assert_false(is_registered(p, 0, 128 * KIB));
	assert_false(is_registered(p, 0, 2 * MIB));
	assert_false(is_registered(p, 0, 4 * MIB));
	assert_true(is_registered(p, 1, 4 * MIB));
	p->t->retire(p->dst, 0, p->size, 2 * MIB); /* there is no such thing */
	close_source(p, servers);
}

/* Numbers that the source took back are no longer found where they were. */
static void what_was_released_is_not_taken_back(void **state)
{
	struct verbs_pair *p = *state;
	pthread_t servers[PAIR_CHANNELS];

	p->src_env.lock_budget = 4 * MIB;
	assert_int_equal(pair_open(p), 0);
	pair_serve(p, servers);
	assert_int_equal(pair_write(p, 0, 0, 0, p->size, MIB), 0);
	assert_int_equal(p->t->fence(p->sc[0], &p->err), 0);
	p->t->retire(p->dst, 0, 0, p->size);
	assert_false(is_registered(p, 0, p->size - MIB));
	assert_int_equal(pair_write(p, 0, 0, 0, 4 * MIB, MIB), 0);
	assert_int_equal(p->t->fence(p->sc[0], &p->err), 0);
	assert_memory_equal(p->smem[0], p->dmem[0], p->size);
	close_source(p, servers);
}

/* CPU time of this thread. */
static uint64_t cpu_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/*
 * Pieces complete in the threads that resolve the guest's faults, and there are as many of
 * them as the guest has numbers: what lies elsewhere must cost nothing.  Here the numbers
 * are as high as those of a guest of 2 TiB.
 */
static void other_pieces_cost_nothing(void **state)
{
	const struct key_wanted w = { KEYS_EXTENTS_MAX - 1, 0, 4 * MIB, PAIR_PAGE,
				      KEYS_ANY_CHANNEL };
	uint8_t buf[KEYS_HEAD_LEN + KEYS_WANTED_LEN];
	struct verbs_pair *p = *state;
	uint64_t begin;
	bool there;

	assert_int_equal(pair_open(p), 0);
	assert_int_equal(control_queue(to_conn(p->src), CTL_KEYS_WANTED, buf,
				       (uint32_t)keys_wanted_put(buf, &w, 1)),
			 0);
	do { /* until the request has arrived */
		struct keys *k = &to_conn(p->dst)->keys;

		pthread_mutex_lock(&k->lock);
		there = k->nr_granted == KEYS_EXTENTS_MAX;
		pthread_mutex_unlock(&k->lock);
		sched_yield();
	} while (!there);
	begin = cpu_ns();
	for (unsigned i = 0; i < 10000; i++)
		p->t->retire(p->dst, 0, 0, 2 * MIB);
	assert_in_range(cpu_ns() - begin, 0, 1000000000u);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		T(a_piece_is_taken_back),     T(a_part_of_a_piece_is_taken_back),
		T(a_region_is_taken_back),    T(what_was_released_is_not_taken_back),
		T(other_pieces_cost_nothing),
	};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
