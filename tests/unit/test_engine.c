/* SPDX-License-Identifier: BSD-2-Clause */
/* The small parts of the engine: states, parameters, stripes, convergence, limiter, state. */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "converge.h"
#include "limiter.h"
#include "params.h"
#include "state.h"
#include "stripe.h"
#include "vmstate.h"

static void ended_states_lead_nowhere(void **state)
{
	for (int from = 0; from < TERN_STATE_NR; from++)
		for (int to = 0; to < TERN_STATE_NR; to++)
			if (state_ended((enum tern_state)from)) {
				assert_false(state_allowed(TERN_SOURCE, (enum tern_state)from,
							   (enum tern_state)to));
				assert_false(state_allowed(TERN_DESTINATION, (enum tern_state)from,
							   (enum tern_state)to));
			}
}

static void only_device_and_postcopy_complete(void **state)
{
	for (int from = 0; from < TERN_STATE_NR; from++)
		assert_int_equal(state_allowed(TERN_SOURCE, (enum tern_state)from,
					       TERN_STATE_COMPLETED),
				 from == TERN_STATE_DEVICE || from == TERN_STATE_POSTCOPY_ACTIVE);
	assert_false(state_allowed(TERN_DESTINATION, TERN_STATE_ACTIVE,
				   TERN_STATE_PRE_SWITCHOVER));
}

/* After GO: no way back, no cancel, and giving up only while the link is lost. */
static void postcopy_is_not_cancelled(void **state)
{
	static const enum tern_state postcopy[] = { TERN_STATE_POSTCOPY_ACTIVE,
						    TERN_STATE_POSTCOPY_PAUSED,
						    TERN_STATE_POSTCOPY_RECOVER };

	for (int role = TERN_SOURCE; role <= TERN_DESTINATION; role++)
		for (int i = 0; i < 3; i++) {
			assert_false(state_allowed(role, postcopy[i], TERN_STATE_CANCELLING));
			assert_false(state_allowed(role, postcopy[i], TERN_STATE_ACTIVE));
			assert_false(state_allowed(role, postcopy[i], TERN_STATE_DEVICE));
			assert_int_equal(state_allowed(role, postcopy[i], TERN_STATE_FAILED),
					 postcopy[i] == TERN_STATE_POSTCOPY_PAUSED);
		}
}

static void names_are_qemus(void **state)
{
	assert_string_equal(tern_state_name(TERN_STATE_POSTCOPY_RECOVER), "postcopy-recover");
	assert_string_equal(tern_state_name(TERN_STATE_PRE_SWITCHOVER), "pre-switchover");
	assert_string_equal(tern_state_name((enum tern_state)99), "unknown");
	assert_string_equal(tern_state_name((enum tern_state)-1), "unknown");
	assert_string_equal(tern_param_info(TERN_PARAM_MAX_BANDWIDTH)->name, "max-bandwidth");
	assert_null(tern_param_info(TERN_PARAM_NR));
}

static void parameter_limits(void **state)
{
	for (int p = 0; p < TERN_PARAM_NR; p++) {
		const struct tern_param_info *i = tern_param_info((enum tern_param)p);

		assert_int_equal(param_check((enum tern_param)p, i->def), 0);
		assert_int_equal(param_check((enum tern_param)p, i->min), 0);
		if (i->min)
			assert_int_equal(param_check((enum tern_param)p, i->min - 1), -ERANGE);
		if (i->max < UINT64_MAX)
			assert_int_equal(param_check((enum tern_param)p, i->max + 1), -ERANGE);
	}
	assert_int_equal(param_check(TERN_PARAM_CHUNK_BYTES, 100000), -EINVAL);
	assert_int_equal(param_check(TERN_PARAM_NR, 0), -EINVAL);
}

/* A list of regions with made-up addresses: stripes never touch memory. */
static void make_regions(struct region_list *l, struct region *v, unsigned nr,
			 const uint64_t *pages, const int *nodes)
{
	memset(v, 0, nr * sizeof(*v));
	for (unsigned i = 0; i < nr; i++) {
		v[i].id = i;
		v[i].nr_pages = pages[i];
		v[i].size = pages[i] * TERN_PAGE_SIZE;
		v[i].host_page_size = TERN_PAGE_SIZE;
		v[i].numa_node = nodes[i];
	}
	*l = (struct region_list){ .v = v, .nr = nr, .cap = nr };
}

struct claimer {
	struct stripe_map *map;
	int node;
	uint8_t **seen; /* per region and page: how often */
};

static void *claim_all(void *arg)
{
	struct claimer *c = arg;
	struct stripe st;

	while (stripe_claim(c->map, c->node, &st))
		for (uint64_t p = 0; p < st.nr_pages; p++)
			__atomic_fetch_add(&c->seen[st.region->id][st.first_page + p], 1,
					   __ATOMIC_RELAXED);
	return NULL;
}

static void stripes_cover_all_once(void **state)
{
	const uint64_t pages[] = { 1, 1024, 1025, 4000, 7, 64 };
	const int nodes[] = { 0, 0, 1, TERN_NODE_ANY, 1, 0 };
	struct region regions[6];
	struct region_list list;
	struct stripe_map map;
	uint8_t *seen[6];

	make_regions(&list, regions, 6, pages, nodes);
	assert_int_equal(stripe_map_init(&map, &list, 1 << 20), 0);
	for (int i = 0; i < 6; i++)
		seen[i] = calloc(pages[i], 1);
	for (uint8_t phase = 1; phase <= 3; phase++) {
		pthread_t t[4];
		struct claimer c[4];

		stripe_map_rewind(&map);
		for (int i = 0; i < 4; i++) {
			c[i] = (struct claimer){ &map, i - 1, seen };
			assert_int_equal(pthread_create(&t[i], NULL, claim_all, &c[i]), 0);
		}
		for (int i = 0; i < 4; i++)
			pthread_join(t[i], NULL);
		for (int i = 0; i < 6; i++)
			for (uint64_t p = 0; p < pages[i]; p++)
				assert_int_equal(seen[i][p], phase);
	}
	for (int i = 0; i < 6; i++)
		free(seen[i]);
	stripe_map_fini(&map);
}

static void own_node_comes_first(void **state)
{
	const uint64_t pages[] = { 512, 512 };
	const int nodes[] = { 0, 1 };
	struct region regions[2];
	struct region_list list;
	struct stripe_map map;
	struct stripe st;

	make_regions(&list, regions, 2, pages, nodes);
	assert_int_equal(stripe_map_init(&map, &list, 1 << 20), 0);
	stripe_map_rewind(&map);
	assert_true(stripe_claim(&map, 1, &st));
	assert_int_equal(st.region->id, 1);
	assert_true(stripe_claim(&map, 1, &st));
	assert_int_equal(st.region->id, 1);
	assert_true(stripe_claim(&map, 1, &st));
	assert_int_equal(st.region->id, 0);
	assert_true(stripe_claim(&map, 0, &st));
	assert_int_equal(st.region->id, 0);
	assert_false(stripe_claim(&map, 0, &st));
	stripe_map_fini(&map);
}

static void stripes_hold_whole_host_pages(void **state)
{
	const uint64_t pages[] = { 4096 };
	const int nodes[] = { 0 };
	struct region regions[1];
	struct region_list list;
	struct stripe_map map;

	make_regions(&list, regions, 1, pages, nodes);
	regions[0].host_page_size = 2 << 20;
	assert_int_equal(stripe_map_init(&map, &list, 256 << 10), 0);
	assert_int_equal(map.stripe_pages, 512);
	stripe_map_fini(&map);
}

static void idle_guest_switches_at_once(void **state)
{
	struct converge c;

	converge_init(&c);
	assert_true(converge_decide(&c, 0, 0, 300000000));
	assert_int_equal(c.expected_ns, 0);
}

static void too_much_left_never_switches(void **state)
{
	struct converge c;

	converge_init(&c);
	for (int i = 0; i < 1000; i++)
		assert_false(converge_decide(&c, 1 << 30, 1 << 30, 300000000));
}

static void unknown_bandwidth_goes_on(void **state)
{
	struct converge c;

	converge_init(&c);
	assert_false(converge_decide(&c, 4096, 0, 300000000));
}

/* What fits but still shrinks gets shorter pauses; what no longer shrinks switches. */
static void fits_but_shrinks_goes_on(void **state)
{
	struct converge c;

	converge_init(&c);
	assert_false(converge_decide(&c, 256 << 20, 1ull << 30, 300000000));
	assert_false(converge_decide(&c, 64 << 20, 1ull << 30, 300000000));
	assert_false(converge_decide(&c, 16 << 20, 1ull << 30, 300000000));
	assert_true(converge_decide(&c, 15 << 20, 1ull << 30, 300000000));
}

static void extra_rounds_are_bounded(void **state)
{
	struct converge c;
	uint64_t left = 1ull << 40;
	int rounds = 0;

	converge_init(&c);
	while (!converge_decide(&c, left, 1ull << 40, 10000000000)) {
		left = left / 100 * 70;
		assert_true(++rounds <= (int)CONVERGE_EXTRA_ROUNDS);
	}
}

static void limiter_keeps_the_rate(void **state)
{
	struct monitor mon;
	struct limiter l = { 0 };
	atomic_bool stop = false;

	assert_int_equal(monitor_init(&mon), 0);
	limiter_set(&l, &mon, 100 << 20);
	uint64_t begin = now_ns();

	for (int i = 0; i < 11; i++) /* the first goes at once: 10 MiB at 100 MiB/s */
		limiter_take(&l, &mon, 1 << 20, &stop);
	assert_true(now_ns() - begin >= 99000000);
	monitor_fini(&mon);
}

static void *lift(void *arg)
{
	void **a = arg;

	limiter_set(a[0], a[1], 0);
	return NULL;
}

static void limiter_lets_go_when_lifted(void **state)
{
	struct monitor mon;
	struct limiter l = { 0 };
	atomic_bool stop = false;
	pthread_t t;

	assert_int_equal(monitor_init(&mon), 0);
	limiter_set(&l, &mon, 1);
	limiter_take(&l, &mon, 1 << 20, &stop); /* the next one is due in 12 days */
	void *args[] = { &l, &mon };

	assert_int_equal(pthread_create(&t, NULL, lift, args), 0);
	limiter_take(&l, &mon, 1 << 20, &stop);
	pthread_join(t, NULL);
	stop = true;
	limiter_set(&l, &mon, 1);
	limiter_take(&l, &mon, 1 << 20, &stop);
	limiter_take(&l, &mon, 1 << 20, &stop);
	monitor_fini(&mon);
}

static void device_state_there_and_back(void **state)
{
	struct tern_state_writer w = { .max = 10000 };
	uint8_t in[9000], out[9000];

	for (size_t i = 0; i < sizeof(in); i++)
		in[i] = (uint8_t)(i * 7);
	assert_int_equal(tern_state_write(&w, in, 1), 0);
	assert_int_equal(tern_state_write(&w, in + 1, sizeof(in) - 1), 0);
	assert_int_equal(tern_state_write(&w, in, 1001), -EFBIG);
	assert_int_equal(tern_state_write(&w, in, SIZE_MAX), -EFBIG);
	assert_int_equal(w.len, sizeof(in));

	struct tern_state_reader r = { .buf = w.buf, .len = w.len };

	assert_int_equal(tern_state_read(&r, out, 5000), 0);
	assert_int_equal(tern_state_read(&r, out, 5000), -ENODATA);
	assert_int_equal(tern_state_remaining(&r), 4000);
	assert_int_equal(tern_state_read(&r, out + 5000, 4000), 0);
	assert_int_equal(tern_state_read(&r, out, SIZE_MAX), -ENODATA);
	assert_int_equal(tern_state_read(&r, NULL, 0), 0);
	assert_memory_equal(out, in, 0);
	vmstate_fini(&w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(ended_states_lead_nowhere),
		cmocka_unit_test(only_device_and_postcopy_complete),
		cmocka_unit_test(postcopy_is_not_cancelled),
		cmocka_unit_test(names_are_qemus),
		cmocka_unit_test(parameter_limits),
		cmocka_unit_test(stripes_cover_all_once),
		cmocka_unit_test(own_node_comes_first),
		cmocka_unit_test(stripes_hold_whole_host_pages),
		cmocka_unit_test(idle_guest_switches_at_once),
		cmocka_unit_test(too_much_left_never_switches),
		cmocka_unit_test(unknown_bandwidth_goes_on),
		cmocka_unit_test(fits_but_shrinks_goes_on),
		cmocka_unit_test(extra_rounds_are_bounded),
		cmocka_unit_test(limiter_keeps_the_rate),
		cmocka_unit_test(limiter_lets_go_when_lifted),
		cmocka_unit_test(device_state_there_and_back),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
