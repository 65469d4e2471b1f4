/* SPDX-License-Identifier: BSD-2-Clause */
/* Unit tests of the zero test: every implementation that this CPU can run. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "zero.h"

enum { PAGE = 4096 };

/* Two readable pages and an unmapped one behind them. */
static uint8_t *guarded;

static int guarded_setup(void **state)
{
	(void)state;
	guarded = mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (guarded == MAP_FAILED)
		return -1;
	return mprotect(guarded + 2 * PAGE, PAGE, PROT_NONE);
}

static int guarded_teardown(void **state)
{
	(void)state;
	return munmap(guarded, 3 * PAGE);
}

static void test_zero_memory_is_zero(void **state)
{
	const struct zero_ops *z;

	(void)state;
	for (unsigned i = 0; (z = zero_ops_get(i)); i++) {
		assert_true(z->is_zero(guarded, PAGE));
		assert_true(z->is_zero(guarded, 2 * PAGE));
		assert_true(z->is_zero(guarded + PAGE, PAGE));
	}
}

static void test_every_byte_position_is_seen(void **state)
{
	const struct zero_ops *z;

	(void)state;
	for (unsigned i = 0; (z = zero_ops_get(i)); i++)
		for (size_t at = 0; at < 2 * PAGE; at++) {
			guarded[at] = (uint8_t)(1u << at % 8);
			if (z->is_zero(guarded, 2 * PAGE))
				fail_msg("%s missed byte %zu", z->name, at);
			guarded[at] = 0;
		}
}

static void test_bytes_outside_do_not_matter(void **state)
{
	const struct zero_ops *z;

	(void)state;
	for (unsigned i = 0; (z = zero_ops_get(i)); i++) {
		guarded[PAGE - 1] = 1;
		assert_true(z->is_zero(guarded + PAGE, PAGE));
		guarded[PAGE - 1] = 0;
		guarded[PAGE] = 1;
		assert_true(z->is_zero(guarded, PAGE));
		guarded[PAGE] = 0;
	}
}

static void test_empty_range_is_zero(void **state)
{
	const struct zero_ops *z;

	(void)state;
	guarded[0] = 1;
	for (unsigned i = 0; (z = zero_ops_get(i)); i++)
		assert_true(z->is_zero(guarded, 0));
	guarded[0] = 0;
}

static void test_plain_c_comes_first(void **state)
{
	(void)state;
	assert_string_equal(zero_ops_get(0)->name, "c");
	assert_null(zero_ops_get(1000));
}

static void test_best_is_the_last_of_the_list(void **state)
{
	const struct zero_ops *z, *last = NULL;

	(void)state;
	for (unsigned i = 0; (z = zero_ops_get(i)); i++)
		last = z;
	assert_ptr_equal(zero_ops_best(), last);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_zero_memory_is_zero),
		cmocka_unit_test(test_every_byte_position_is_seen),
		cmocka_unit_test(test_bytes_outside_do_not_matter),
		cmocka_unit_test(test_empty_range_is_zero),
		cmocka_unit_test(test_plain_c_comes_first),
		cmocka_unit_test(test_best_is_the_last_of_the_list),
	};

	return cmocka_run_group_tests_name("zero", tests, guarded_setup, guarded_teardown);
}
