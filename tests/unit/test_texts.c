/* SPDX-License-Identifier: BSD-2-Clause */
/* Unit tests of a session's parameters that are text. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <tern/tern.h>

#define SIZE (1u << 20)

/* A destination with a region. */
static int setup(void **state)
{
	struct tern_region_desc desc = {
		.name = "ram", .size = SIZE, .numa_node = TERN_NODE_ANY, .fd = -1
	};
	struct tern_session *s;

	if (tern_session_new(TERN_DESTINATION, &s))
		return -1;
	desc.hva = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (desc.hva == MAP_FAILED || tern_session_add_region(s, &desc) != 0)
		return -1;
	*state = s;
	return 0;
}

static int teardown(void **state)
{
	struct tern_session *s = *state;

	tern_session_delete(&s);
	return 0;
}

static void test_good_ones_are_taken(void **state)
{
	struct tern_session *s = *state;

	assert_int_equal(tern_session_set_text(s, TERN_TEXT_CPUS, "1"), 0);
	assert_int_equal(tern_session_set_text(s, TERN_TEXT_CPUS, NULL), 0);
	assert_int_equal(tern_session_set_text(s, TERN_TEXT_RDMA_DEVICE, "mlx5_0/1"), 0);
	assert_int_equal(tern_session_set_text(s, TERN_TEXT_RDMA_DEVICE, "rocep59s0f0np0"), 0);
	assert_int_equal(tern_session_set_text(s, TERN_TEXT_RDMA_DEVICE, ""), 0);
}

static void test_bad_ones_are_refused_with_a_sentence(void **state)
{
	static const char *const devices[] = { "/", "a/", "a/0", "a/256", "a/-1", "a b", "a/1x" };
	struct tern_error err;
	char endless[2000];

	for (size_t i = 0; i < sizeof(devices) / sizeof(devices[0]); i++) {
		assert_int_equal(tern_text_check(TERN_TEXT_RDMA_DEVICE, devices[i], &err), -EINVAL);
		assert_non_null(strstr(err.message, devices[i]));
		assert_int_equal(tern_session_set_text(*state, TERN_TEXT_RDMA_DEVICE, devices[i]),
				 -EINVAL);
	}
	memset(endless, '1', sizeof(endless) - 1);
	endless[sizeof(endless) - 1] = '\0';
	assert_int_equal(tern_text_check(TERN_TEXT_CPUS, endless, &err), -EINVAL);
	assert_non_null(strstr(err.message, "too long"));
	assert_int_equal(tern_text_check(TERN_TEXT_RDMA_DEVICE, endless, NULL), -EINVAL);
}

static void test_there_is_no_such_parameter(void **state)
{
	assert_int_equal(tern_session_set_text(*state, TERN_TEXT_NR, "1"), -EINVAL);
	assert_int_equal(tern_text_check((enum tern_text) - 1, "1", NULL), -EINVAL);
}

static void test_impossible_cpus_end_the_start_and_can_be_taken_back(void **state)
{
	struct tern_session *s = *state;
	struct tern_error err;

	assert_int_equal(tern_session_set_text(s, TERN_TEXT_CPUS, "0-8191"), 0);
	assert_int_equal(tern_session_listen(s, "tcp:127.0.0.1:0"), -EINVAL);
	tern_session_error(s, &err);
	assert_non_null(strstr(err.message, "CPU budget 0-8191"));
	assert_int_equal(tern_session_set_text(s, TERN_TEXT_CPUS, "1"), 0);
	assert_int_equal(tern_session_listen(s, "tcp:127.0.0.1:0"), 0);
}

static void test_budget_is_in_the_statistics(void **state)
{
	struct tern_session *s = *state;
	struct tern_stats st;

	assert_int_equal(tern_session_set_text(s, TERN_TEXT_CPUS, "1"), 0);
	assert_int_equal(tern_session_listen(s, "tcp:127.0.0.1:0"), 0);
	assert_int_equal(tern_session_stats(s, &st, sizeof(st)), 0);
	assert_true(strlen(st.cpus) > 0);
	assert_null(strpbrk(st.cpus, ",-"));
	assert_string_equal(st.device, "");
	assert_int_equal(st.device_node, TERN_NODE_ANY);
}

static void test_nothing_changes_once_started(void **state)
{
	struct tern_session *s = *state;

	assert_int_equal(tern_session_listen(s, "tcp:127.0.0.1:0"), 0);
	assert_int_equal(tern_session_set_text(s, TERN_TEXT_CPUS, "1"), -EBUSY);
	assert_int_equal(tern_session_set_text(s, TERN_TEXT_RDMA_DEVICE, "x"), -EBUSY);
}

#define CASE(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_good_ones_are_taken),
		CASE(test_bad_ones_are_refused_with_a_sentence),
		CASE(test_there_is_no_such_parameter),
		CASE(test_impossible_cpus_end_the_start_and_can_be_taken_back),
		CASE(test_budget_is_in_the_statistics),
		CASE(test_nothing_changes_once_started),
	};

	return cmocka_run_group_tests_name("texts", tests, NULL, NULL);
}
