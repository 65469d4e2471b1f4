/* SPDX-License-Identifier: BSD-2-Clause */
/* Unit tests of the machine facts. */
#define _GNU_SOURCE
#include <stdbool.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <numaif.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <tern/region.h>
#include "topology.h"

enum { MIB = 1 << 20 };

static int setup(void **state)
{
	struct topology *t;

	if (topology_new(&t))
		return -1;
	*state = t;
	return 0;
}

static int teardown(void **state)
{
	struct topology *t = *state;

	topology_delete(&t);
	return t ? -1 : 0;
}

static void test_delete_tolerates_null(void **state)
{
	struct topology *t = NULL;

	(void)state;
	topology_delete(&t);
	topology_delete(NULL);
}

static void test_nodes_have_memory_and_ascend(void **state)
{
	const struct topology *t = *state;

	assert_true(topology_nr_nodes(t) >= 1);
	for (unsigned i = 0; i < topology_nr_nodes(t); i++) {
		assert_true(topology_node_bytes(t, i) > 0);
		assert_true(topology_node_id(t, i) >= 0);
		if (i)
			assert_true(topology_node_id(t, i) > topology_node_id(t, i - 1));
	}
}

static void test_no_node_behind_the_last(void **state)
{
	const struct topology *t = *state;
	unsigned nr = topology_nr_nodes(t);
	char buf[8] = "x";

	assert_int_equal(topology_node_id(t, nr), TERN_NODE_ANY);
	assert_int_equal(topology_node_bytes(t, nr), 0);
	assert_int_equal(topology_node_cpus(t, nr, buf, sizeof(buf)), 0);
	assert_string_equal(buf, "");
}

static void test_cpus_are_those_of_the_affinity(void **state)
{
	const struct topology *t = *state;
	cpu_set_t set;

	assert_int_equal(sched_getaffinity(0, sizeof(set), &set), 0);
	assert_int_equal(topology_nr_cpus(t), CPU_COUNT(&set));
}

static void test_narrow_affinity_is_kept(void **state)
{
	struct topology *t;
	cpu_set_t all, one;
	int cpu = 0;

	(void)state;
	assert_int_equal(sched_getaffinity(0, sizeof(all), &all), 0);
	while (!CPU_ISSET(cpu, &all))
		cpu++;
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	assert_int_equal(sched_setaffinity(0, sizeof(one), &one), 0);
	assert_int_equal(topology_new(&t), 0);
	assert_int_equal(topology_nr_cpus(t), 1);
	topology_delete(&t);
	assert_int_equal(sched_setaffinity(0, sizeof(all), &all), 0);
}

static void test_node_cpus_reports_needed_length(void **state)
{
	const struct topology *t = *state;
	char buf[256], small[1] = { 'x' };
	int n = topology_node_cpus(t, 0, buf, sizeof(buf));

	assert_true(n > 0);
	assert_int_equal(strlen(buf), n);
	assert_int_equal(topology_node_cpus(t, 0, small, sizeof(small)), n);
	assert_int_equal(small[0], '\0');
}

static void test_touched_memory_has_a_node(void **state)
{
	const struct topology *t = *state;
	uint8_t *p =
		mmap(NULL, 4 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	bool known = false;

	assert_ptr_not_equal(p, MAP_FAILED);
	p[3 * MIB] = 1;
	int node = topology_node_of(p, 4 * MIB);

	for (unsigned i = 0; i < topology_nr_nodes(t); i++)
		known |= topology_node_id(t, i) == node;
	assert_true(known);
	munmap(p, 4 * MIB);
}

static void test_untouched_memory_has_no_node_and_stays_so(void **state)
{
	uint8_t *p =
		mmap(NULL, 4 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	unsigned char resident[4 * MIB / TERN_PAGE_SIZE];

	(void)state;
	assert_ptr_not_equal(p, MAP_FAILED);
	assert_int_equal(topology_node_of(p, 4 * MIB), TERN_NODE_ANY);
	assert_int_equal(mincore(p, 4 * MIB, resident), 0);
	for (size_t i = 0; i < sizeof(resident); i++)
		assert_int_equal(resident[i] & 1, 0);
	munmap(p, 4 * MIB);
}

static void test_untouched_bound_memory_has_its_policys_node(void **state)
{
	const struct topology *t = *state;
	unsigned last = topology_nr_nodes(t) - 1;
	int node = topology_node_id(t, last);
	unsigned long mask[16] = { 0 };
	uint8_t *p = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	assert_ptr_not_equal(p, MAP_FAILED);
	mask[node / 64] = 1ul << node % 64;
	assert_int_equal(mbind(p, MIB, MPOL_BIND, mask, sizeof(mask) * 8, 0), 0);
	assert_int_equal(topology_node_of(p, MIB), node);
	munmap(p, MIB);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_delete_tolerates_null),
		cmocka_unit_test(test_nodes_have_memory_and_ascend),
		cmocka_unit_test(test_no_node_behind_the_last),
		cmocka_unit_test(test_cpus_are_those_of_the_affinity),
		cmocka_unit_test(test_narrow_affinity_is_kept),
		cmocka_unit_test(test_node_cpus_reports_needed_length),
		cmocka_unit_test(test_touched_memory_has_a_node),
		cmocka_unit_test(test_untouched_memory_has_no_node_and_stays_so),
		cmocka_unit_test(test_untouched_bound_memory_has_its_policys_node),
	};

	return cmocka_run_group_tests_name("topology", tests, setup, teardown);
}
