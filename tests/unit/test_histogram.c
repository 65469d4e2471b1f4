/* SPDX-License-Identifier: BSD-2-Clause */
/* The histogram of times: its buckets, and how near its percentiles come. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "histogram.h"

#define BUCKETS (HISTOGRAM_OCTAVES * HISTOGRAM_PARTS)
#define VALUES 20000u

static uint64_t random_ns(void)
{
	uint64_t v = (uint64_t)rand() << 31 ^ (uint64_t)rand();

	return v >> (unsigned)rand() % 60;
}

/* @ns is in the bucket whose floor is the last one not above it. */
static void check(uint64_t ns)
{
	unsigned b = histogram_bucket(ns);

	assert_true(b < BUCKETS);
	assert_true(histogram_floor(b) <= ns);
	if (b < BUCKETS - 1)
		assert_true(histogram_floor(b + 1) > ns);
}

static void powers_of_two(void **state)
{
	for (unsigned i = 0; i < 64; i++) {
		uint64_t v = 1ull << i;

		check(v - 1);
		check(v);
		check(v + 1);
	}
	check(UINT64_MAX);
}

static void random_values(void **state)
{
	srand(7);
	for (int i = 0; i < 1000000; i++)
		check(random_ns());
}

static void floors_ascend_by_a_sixteenth(void **state)
{
	for (unsigned b = 0; b < BUCKETS - 1; b++) {
		uint64_t floor = histogram_floor(b), next = histogram_floor(b + 1);

		assert_int_equal(histogram_bucket(floor), b);
		assert_true(next > floor);
		assert_true(next - floor <= floor / HISTOGRAM_PARTS + 1);
	}
}

static void nothing(void **state)
{
	static struct histogram h;

	assert_int_equal(histogram_percentile(&h, 500), 0);
	assert_int_equal(histogram_percentile(&h, 1000), 0);
}

static void one_value(void **state)
{
	static const uint64_t values[] = { 0, 1, 15, 16, 17, 1000, 123456789, 1ull << 43 };

	for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
		struct histogram h = { .nr = 0 };

		histogram_add(&h, values[i]);
		assert_int_equal(h.nr, 1);
		assert_int_equal(h.sum_ns, values[i]);
		assert_int_equal(h.max_ns, values[i]);
		assert_int_equal(histogram_percentile(&h, 1000), values[i]);
	}
}

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

static void percentiles_within_six_percent(void **state)
{
	static const unsigned permille[] = { 1, 10, 100, 500, 900, 990, 999, 1000 };
	static uint64_t v[VALUES];

	srand(8);
	for (unsigned nr = 1; nr <= VALUES; nr = nr * 3 + 1) {
		struct histogram h = { .nr = 0 };

		for (unsigned i = 0; i < nr; i++) {
			v[i] = random_ns() % (1ull << 43);
			histogram_add(&h, v[i]);
		}
		qsort(v, nr, sizeof(v[0]), by_value);
		for (size_t p = 0; p < sizeof(permille) / sizeof(permille[0]); p++) {
			uint64_t rank = ((uint64_t)nr * permille[p] + 999) / 1000;
			uint64_t due = v[rank - 1], got = histogram_percentile(&h, permille[p]);

			if ((got > due ? got - due : due - got) > due / 16)
				fail_msg("%u values, %u permille: %llu, due is %llu", nr,
					 permille[p], (unsigned long long)got,
					 (unsigned long long)due);
		}
		assert_int_equal(histogram_percentile(&h, 1000), v[nr - 1]);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(powers_of_two),
		cmocka_unit_test(random_values),
		cmocka_unit_test(floors_ascend_by_a_sixteenth),
		cmocka_unit_test(nothing),
		cmocka_unit_test(one_value),
		cmocka_unit_test(percentiles_within_six_percent),
	};

	return cmocka_run_group_tests_name("histogram", tests, NULL, NULL);
}
