/* SPDX-License-Identifier: BSD-2-Clause */

/* On-demand paging (--pin odp), over the fake verbs device: no other here has it. */

#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include "verbs_fake.h"
#include "verbs_pair.h"

#define MIB (1ull << 20)

/* The device can, both sides want. */
static int setup(void **state)
{
	struct verbs_pair *p = pair_new();

	verbs_fake_paging();
	p->src_env.on_demand = p->dst_env.on_demand = true;
	*state = p;
	return 0;
}

static int teardown(void **state)
{
	pair_delete(*state);
	return 0;
}

static struct transport_conn_stats stats(const struct verbs_pair *p, const struct transport_conn *c)
{
	struct transport_conn_stats st = { 0 };

	p->t->conn_stats(c, &st);
	return st;
}

/* Everything, with no memory that may be locked on either side. */
static void nothing_is_locked(void **state)
{
	struct verbs_pair *p = *state;

	verbs_fake_memlock(PAIR_PAGE, PAIR_PAGE);
	p->src_env.lock_budget = 4 * MIB;
	assert_int_equal(pair_open(p), 0);
	assert_int_equal(pair_write(p, 0, 0, 0, p->size, MIB), 0);
	assert_int_equal(p->t->notify(p->sc[0], "n", 1, &p->err), 0);
	assert_memory_equal(p->smem[0], p->dmem[0], p->size);
	assert_int_equal(stats(p, p->src).locked_peak_bytes, 0);
	assert_int_equal(stats(p, p->dst).locked_peak_bytes, 0);
	assert_int_equal(stats(p, p->dst).registration_bytes, p->size);
}

/* Invariant 10: what is not sent is not prefetched, on either side. */
static void only_what_is_sent_is_prefetched(void **state)
{
	const struct transport_range r[2] = { { 0, 3 * PAIR_PAGE, PAIR_PAGE },
					      { 0, 9 * PAIR_PAGE, 2 * PAIR_PAGE } };
	struct verbs_pair *p = *state;

	assert_int_equal(pair_open(p), 0);
	assert_int_equal(verbs_fake_prefetched(false), 0);
	assert_int_equal(p->t->prepare(p->sc[0], r, 2, &p->err), 0);
	assert_int_equal(p->t->write(p->sc[0], r, 2, &p->err), 0);
	assert_int_equal(p->t->notify(p->sc[0], "n", 1, &p->err), 0);
	assert_int_equal(verbs_fake_prefetched(false), 3 * PAIR_PAGE);
	assert_int_equal(verbs_fake_prefetched(true), 3 * PAIR_PAGE);
}

/* Windows are not bound to such memory. */
static void no_windows(void **state)
{
	struct verbs_pair *p = *state;

	assert_int_equal(pair_open(p), 0);
	assert_int_equal(pair_write(p, 0, 0, 0, MIB, MIB), 0);
	assert_int_equal(p->t->notify(p->sc[0], "n", 1, &p->err), 0);
	assert_int_equal(verbs_fake_mws(), 0);
}

/* Each side decides for itself; the budget of the one that pins is kept. */
static void only_the_source_pages(void **state)
{
	struct verbs_pair *p = *state;

	p->dst_env.on_demand = false;
	p->dst_env.lock_budget = 4 * MIB;
	assert_int_equal(pair_open(p), 0);
	assert_int_equal(pair_write(p, 0, 0, 0, p->size, MIB), 0);
	assert_int_equal(p->t->notify(p->sc[0], "n", 1, &p->err), 0);
	assert_memory_equal(p->smem[0], p->dmem[0], p->size);
	assert_int_equal(stats(p, p->src).locked_peak_bytes, 0);
	assert_in_range(stats(p, p->dst).locked_peak_bytes, MIB, 4 * MIB);
	assert_int_equal(verbs_fake_prefetched(true), 0);
}

static void only_the_destination_pages(void **state)
{
	struct verbs_pair *p = *state;

	p->src_env.on_demand = false;
	p->src_env.lock_budget = 4 * MIB;
	assert_int_equal(pair_open(p), 0);
	assert_int_equal(pair_write(p, 0, 0, 0, p->size, MIB), 0);
	assert_int_equal(p->t->notify(p->sc[0], "n", 1, &p->err), 0);
	assert_memory_equal(p->smem[0], p->dmem[0], p->size);
	assert_in_range(stats(p, p->src).locked_peak_bytes, MIB, 4 * MIB);
	assert_int_equal(stats(p, p->dst).locked_peak_bytes, 0);
	assert_int_equal(verbs_fake_prefetched(false), 0);
	assert_true(verbs_fake_prefetched(true) >= p->size);
}

/* A device without it: one sentence, and nothing is tried. */
static void device_cannot(void **state)
{
	struct verbs_pair *p = *state;

	verbs_fake_reset();
	assert_int_equal(pair_connect(p), -EOPNOTSUPP);
	pair_assert_says(&p->err, "Device fake0 has no on-demand paging for RDMA writes; use --pin "
				  "pipelined");
}

/* The destination's device cannot, the source does not want it. */
static void destination_cannot(void **state)
{
	struct verbs_pair *p = *state;

	verbs_fake_reset();
	p->src_env.on_demand = false;
	assert_true(pair_connect(p) < 0);
	pair_assert_says(&p->stranger, "Device fake0 has no on-demand paging");
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		T(nothing_is_locked),     T(only_what_is_sent_is_prefetched), T(no_windows),
		T(only_the_source_pages), T(only_the_destination_pages),      T(device_cannot),
		T(destination_cannot),
	};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
