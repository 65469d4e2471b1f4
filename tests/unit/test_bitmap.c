/* SPDX-License-Identifier: BSD-2-Clause */
/* Unit tests of the page bitmaps, against a plain array of flags. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>
#include "bitmap.h"

enum { BITS = 200, WORDS = 4 };

/* fill - a reproducible pattern of bits, with runs of many lengths. */
static void fill(uint64_t *map, unsigned seed)
{
	uint64_t x = 88172645463325252ull + seed;

	for (unsigned i = 0; i < WORDS; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		map[i] = seed % 3 == 0 ? x : seed % 3 == 1 ? x & (x >> 1) & (x >> 2) : x | x >> 1;
	}
}

static void test_words(void **state)
{
	(void)state;
	assert_int_equal(bitmap_words(0), 0);
	assert_int_equal(bitmap_words(1), 1);
	assert_int_equal(bitmap_words(64), 1);
	assert_int_equal(bitmap_words(65), 2);
}

static void test_mask(void **state)
{
	(void)state;
	assert_true(bitmap_mask(0, 64) == ~0ull);
	assert_true(bitmap_mask(63, 1) == 1ull << 63);
	assert_true(bitmap_mask(4, 3) == 0x70);
}

static void test_single_bits(void **state)
{
	uint64_t map[WORDS] = { 0 };

	(void)state;
	for (unsigned i = 0; i < BITS; i++) {
		bitmap_set(map, i);
		for (unsigned k = 0; k < BITS; k++)
			assert_int_equal(bitmap_test(map, k), k == i);
		bitmap_clear(map, i);
	}
	assert_int_equal(bitmap_count(map, BITS), 0);
}

static void test_every_range_is_set_and_cleared_exactly(void **state)
{
	(void)state;
	for (unsigned from = 0; from < BITS; from++)
		for (unsigned n = 0; from + n <= BITS; n++) {
			uint64_t zero[WORDS] = { 0 }, ones[WORDS];

			memset(ones, 0xff, sizeof(ones));
			bitmap_set_range(zero, from, n);
			bitmap_clear_range(ones, from, n);
			assert_int_equal(bitmap_count(zero, BITS), n);
			for (unsigned w = 0; w < WORDS; w++)
				assert_true(zero[w] == ~ones[w]);
			if (n) {
				assert_int_equal(bitmap_next_set(zero, BITS, 0), from);
				assert_int_equal(bitmap_next_clear(zero, BITS, from), from + n);
			}
		}
}

static void test_count_ignores_bits_behind_the_end(void **state)
{
	uint64_t map[WORDS];

	(void)state;
	memset(map, 0xff, sizeof(map));
	for (unsigned bits = 0; bits <= BITS; bits++)
		assert_int_equal(bitmap_count(map, bits), bits);
}

static void test_next_agrees_with_looking_bit_by_bit(void **state)
{
	uint64_t map[WORDS];

	(void)state;
	for (unsigned seed = 0; seed < 30; seed++) {
		fill(map, seed);
		for (unsigned bits = 1; bits <= BITS; bits += 7)
			for (unsigned from = 0; from <= bits; from++) {
				unsigned set = from, clear = from;

				while (set < bits && !bitmap_test(map, set))
					set++;
				while (clear < bits && bitmap_test(map, clear))
					clear++;
				assert_int_equal(bitmap_next_set(map, bits, from), set);
				assert_int_equal(bitmap_next_clear(map, bits, from), clear);
			}
	}
}

static void test_runs_cover_the_set_bits_and_nothing_else(void **state)
{
	uint64_t map[WORDS];

	(void)state;
	for (unsigned seed = 0; seed < 30; seed++) {
		uint64_t copy[WORDS] = { 0 }, last = 0;

		fill(map, seed);
		bitmap_for_each_run (map, BITS, begin, end) {
			assert_true(begin < end && end <= BITS);
			assert_true(last == 0 || begin > last);
			bitmap_set_range(copy, begin, end - begin);
			last = end;
		}
		for (unsigned i = 0; i < BITS; i++)
			assert_int_equal(bitmap_test(copy, i), bitmap_test(map, i));
	}
}

static void test_no_run_in_an_empty_map(void **state)
{
	uint64_t map[WORDS] = { 0 };

	(void)state;
	bitmap_for_each_run (map, BITS, begin, end)
		fail_msg("run %lu-%lu", (unsigned long)begin, (unsigned long)end);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_words),
		cmocka_unit_test(test_mask),
		cmocka_unit_test(test_single_bits),
		cmocka_unit_test(test_every_range_is_set_and_cleared_exactly),
		cmocka_unit_test(test_count_ignores_bits_behind_the_end),
		cmocka_unit_test(test_next_agrees_with_looking_bit_by_bit),
		cmocka_unit_test(test_runs_cover_the_set_bits_and_nothing_else),
		cmocka_unit_test(test_no_run_in_an_empty_map),
	};

	return cmocka_run_group_tests_name("bitmap", tests, NULL, NULL);
}
