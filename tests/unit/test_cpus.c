/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Unit tests of the choice of CPUs.  The machines are hwloc's synthetic ones; "2x2x2"
 * below has two nodes of two cores with two CPUs each: node 0 has 0-3, node 1 has 4-7.
 */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <tern/tern.h>
#include "cpus.h"
#include "topology_private.h"

#define MACHINE "node:2 core:2 pu:2"

/* What a choice gives: all CPUs, and those of nodes 0, 1 and of no node. */
struct result {
	int code;
	unsigned nr;
	char all[64], node[2][64], any[64];
	char message[TERN_ERROR_MESSAGE_MAX];
};

/* Choose on MACHINE for memory on @nodes (-2 ends them). */
static struct result choose(const char *budget, const char *device, const int *nodes)
{
	struct result r = { .code = 0 };
	struct cpus_config config = { .budget = budget, .device_cpus = device, .nodes = nodes };
	struct tern_error err = { 0 };
	struct topology *t;
	struct cpus *c = NULL;

	assert_int_equal(topology_new_synthetic(MACHINE, &t), 0);
	config.topology = t;
	while (nodes[config.nr_nodes] > -2)
		config.nr_nodes++;
	r.code = cpus_new(&config, &c, &err);
	if (!r.code) {
		r.nr = cpus_nr(c);
		cpus_list_all(c, r.all, sizeof(r.all));
		cpus_list(c, 0, r.node[0], sizeof(r.node[0]));
		cpus_list(c, 1, r.node[1], sizeof(r.node[1]));
		cpus_list(c, TERN_NODE_ANY, r.any, sizeof(r.any));
	} else {
		assert_null(c);
		snprintf(r.message, sizeof(r.message), "%s", err.message);
	}
	cpus_delete(&c);
	topology_delete(&t);
	return r;
}

static const int both[] = { 0, 1, -2 }, second[] = { 1, -2 }, any[] = { TERN_NODE_ANY, -2 };

static void test_without_a_budget_each_node_has_its_own(void **state)
{
	struct result r = choose(NULL, NULL, both);

	(void)state;
	assert_int_equal(r.code, 0);
	assert_string_equal(r.all, "0-7");
	assert_string_equal(r.node[0], "0-3");
	assert_string_equal(r.node[1], "4-7");
	assert_string_equal(r.any, "0-7");
}

static void test_memory_without_a_node_is_near_the_device(void **state)
{
	struct result r = choose("", "4-7", any);

	(void)state;
	assert_string_equal(r.any, "4-7");
	assert_string_equal(r.node[0], "0-3");
}

static void test_number_is_divided_among_nodes(void **state)
{
	struct result r = choose("4", NULL, both);

	(void)state;
	/* One CPU of each core before its sibling. */
	assert_string_equal(r.all, "0,2,4,6");
	assert_string_equal(r.node[0], "0,2");
	assert_string_equal(r.node[1], "4,6");
	assert_int_equal(r.nr, 4);
}

static void test_number_goes_to_the_memorys_node_first(void **state)
{
	(void)state;
	assert_string_equal(choose("4", NULL, second).all, "4-7");
	assert_string_equal(choose("5", NULL, second).all, "0,4-7");
}

static void test_odd_number_gives_the_first_node_one_more(void **state)
{
	struct result r = choose("3", NULL, both);

	(void)state;
	assert_string_equal(r.node[0], "0,2");
	assert_string_equal(r.node[1], "4");
}

static void test_fewer_than_nodes_share(void **state)
{
	struct result r = choose("1", NULL, both);

	(void)state;
	assert_string_equal(r.all, "0");
	assert_string_equal(r.node[0], "0");
	assert_string_equal(r.node[1], "0");
	assert_string_equal(r.any, "0");
}

static void test_number_prefers_the_devices_cpus(void **state)
{
	(void)state;
	assert_string_equal(choose("2", "6-7", second).all, "6-7");
	assert_string_equal(choose("1", "6-7", second).all, "6");
	assert_string_equal(choose("2", "4-7", any).all, "4,6");
	assert_string_equal(choose("2", "4-7", any).any, "4,6");
}

static void test_more_than_there_are_means_all(void **state)
{
	(void)state;
	assert_string_equal(choose("8", NULL, both).all, "0-7");
	assert_string_equal(choose("8000", NULL, both).all, "0-7");
	assert_string_equal(choose("8192", NULL, any).all, "0-7");
}

static void test_list_is_kept(void **state)
{
	struct result r = choose("1,5-6", NULL, both);

	(void)state;
	assert_string_equal(r.all, "1,5-6");
	assert_string_equal(r.node[0], "1");
	assert_string_equal(r.node[1], "5-6");
}

static void test_list_of_one_cpu(void **state)
{
	struct result r = choose("5-5", NULL, both);

	(void)state;
	assert_string_equal(r.all, "5");
	assert_string_equal(r.node[0], "5");
}

static void test_list_with_a_strange_cpu_is_refused(void **state)
{
	struct result r = choose("6-9", NULL, both);

	(void)state;
	assert_int_equal(r.code, -EINVAL);
	assert_non_null(strstr(r.message, "8-9"));
	assert_non_null(strstr(r.message, "0-7"));
}

static void test_device_of_unreadable_cpus_is_ignored(void **state)
{
	(void)state;
	assert_string_equal(choose("2", "garbage", second).all, "4,6");
}

static void test_what_is_no_budget(void **state)
{
	static const char *const bad[] = {
		"0", "8193", "99999", "4294967297",       "-1",  "1-",   "3-1", "1,,2", ",1", "1,",
		"a", "0x2",  " 1",    "0-99999999999999", "1 2", "00000"
	};
	struct tern_error err;

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		memset(&err, 0, sizeof(err));
		assert_int_equal(cpus_budget_check(bad[i], &err), -EINVAL);
		assert_non_null(strstr(err.message, bad[i]));
		assert_int_equal(choose(bad[i], NULL, both).code, -EINVAL);
	}
}

static void test_what_is_a_budget(void **state)
{
	static const char *const good[] = { "", "1", "8192", "0-0", "0-3,8", "7,5,6", "0,1,2-4,3" };

	(void)state;
	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
		assert_int_equal(cpus_budget_check(good[i], NULL), 0);
	assert_int_equal(cpus_budget_check(NULL, NULL), 0);
}

/* On the machine as it is: a thread goes where it should, and never beyond its affinity. */
static void test_binding_keeps_a_narrow_affinity(void **state)
{
	int node = 0;
	struct cpus_config config = { .nodes = &node, .nr_nodes = 1 };
	struct topology *t;
	struct cpus *c;
	cpu_set_t all, one, now;
	char text[64], want[16];
	int cpu = 0;

	(void)state;
	assert_int_equal(sched_getaffinity(0, sizeof(all), &all), 0);
	while (!CPU_ISSET(cpu, &all))
		cpu++;
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	assert_int_equal(sched_setaffinity(0, sizeof(one), &one), 0);
	assert_int_equal(topology_new(&t), 0);
	config.topology = t;
	assert_int_equal(cpus_new(&config, &c, NULL), 0);
	for (unsigned i = 0; i <= topology_nr_nodes(t); i++) {
		assert_int_equal(cpus_bind(c, topology_node_id(t, i)), 0);
		assert_int_equal(sched_getaffinity(0, sizeof(now), &now), 0);
		assert_true(CPU_EQUAL(&now, &one));
	}
	snprintf(want, sizeof(want), "%d", cpu);
	cpus_list_thread(text, sizeof(text));
	assert_string_equal(text, want);
	cpus_delete(&c);
	topology_delete(&t);
	assert_int_equal(sched_setaffinity(0, sizeof(all), &all), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_without_a_budget_each_node_has_its_own),
		cmocka_unit_test(test_memory_without_a_node_is_near_the_device),
		cmocka_unit_test(test_number_is_divided_among_nodes),
		cmocka_unit_test(test_number_goes_to_the_memorys_node_first),
		cmocka_unit_test(test_odd_number_gives_the_first_node_one_more),
		cmocka_unit_test(test_fewer_than_nodes_share),
		cmocka_unit_test(test_number_prefers_the_devices_cpus),
		cmocka_unit_test(test_more_than_there_are_means_all),
		cmocka_unit_test(test_list_is_kept),
		cmocka_unit_test(test_list_of_one_cpu),
		cmocka_unit_test(test_list_with_a_strange_cpu_is_refused),
		cmocka_unit_test(test_device_of_unreadable_cpus_is_ignored),
		cmocka_unit_test(test_what_is_no_budget),
		cmocka_unit_test(test_what_is_a_budget),
		cmocka_unit_test(test_binding_keeps_a_narrow_affinity),
	};

	return cmocka_run_group_tests_name("cpus", tests, NULL, NULL);
}
