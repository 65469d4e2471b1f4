/* SPDX-License-Identifier: BSD-2-Clause */
/* Sets of pages as run lengths: there and back, in pieces of any size, and nonsense. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "bitmap.h"
#include "runs.h"

#define PAGES_MAX 5000u
#define WORDS_MAX ((PAGES_MAX + 63) / 64)
#define CAP_MIN 20u

/* Take a piece into @map.  0 or what runs_next() gives. */
static int take(uint64_t *map, const uint8_t *buf, size_t len, uint64_t at, uint64_t end)
{
	struct runs runs = { .p = buf, .left = len, .at = at, .end = end };
	uint64_t first, nr;
	int r;

	while ((r = runs_next(&runs, &first, &nr)) > 0) {
		assert_true(nr > 0 && first + nr <= end);
		assert_int_equal(bitmap_next_set(map, first + nr, first), first + nr);
		bitmap_set_range(map, first, nr);
	}
	return r;
}

/* @map of @nr pages in pieces of at most @cap bytes, and back; how many pieces. */
static unsigned there_and_back(const uint64_t *map, uint64_t nr, size_t cap)
{
	uint8_t *buf = malloc(cap); /* ASan sees a write behind it */
	uint64_t back[WORDS_MAX] = { 0 };
	unsigned pieces = 0;

	for (uint64_t at = 0; at < nr;) {
		size_t len;
		uint64_t next = runs_put(map, at, nr, buf, cap, &len);

		assert_true(len <= cap);
		assert_true(next > at && next <= nr);
		assert_true(len || next == nr);
		assert_int_equal(take(back, buf, len, at, nr), 0);
		pieces += len != 0;
		at = next;
	}
	free(buf);
	assert_memory_equal(map, back, bitmap_words(nr) * 8);
	return pieces;
}

static void empty_set(void **state)
{
	uint64_t map[WORDS_MAX] = { 0 };
	uint8_t buf[CAP_MIN];
	size_t len = 1;

	assert_int_equal(there_and_back(map, 1000, CAP_MIN), 0);
	assert_int_equal(runs_put(map, 10, 1000, buf, sizeof(buf), &len), 1000);
	assert_int_equal(len, 0);
}

static void full_set(void **state)
{
	uint64_t map[WORDS_MAX] = { 0 };

	for (uint64_t nr = 1; nr <= 300; nr++) {
		bitmap_set_range(map, nr - 1, 1);
		assert_int_equal(there_and_back(map, nr, CAP_MIN), 1);
	}
}

/* The worst case: a run for every second page. */
static void alternating_set(void **state)
{
	uint64_t map[WORDS_MAX];

	for (int phase = 0; phase < 2; phase++) {
		memset(map, phase ? 0xaa : 0x55, sizeof(map));
		map[WORDS_MAX - 1] &= bitmap_mask(0, PAGES_MAX % 64);
		assert_true(there_and_back(map, PAGES_MAX, CAP_MIN) > 100);
		assert_int_equal(there_and_back(map, PAGES_MAX, PAGES_MAX + 20), 1);
	}
}

/* What lies behind the end is nobody's. */
static void bits_behind_the_end(void **state)
{
	uint64_t map[WORDS_MAX], due[WORDS_MAX] = { 0 };

	memset(map, 0xff, sizeof(map));
	for (uint64_t nr = 1; nr < 200; nr++) {
		uint8_t buf[CAP_MIN];
		uint64_t back[WORDS_MAX] = { 0 };
		size_t len;

		assert_int_equal(runs_put(map, 0, nr, buf, sizeof(buf), &len), nr);
		assert_int_equal(take(back, buf, len, 0, nr), 0);
		bitmap_set(due, nr - 1);
		assert_memory_equal(back, due, sizeof(due));
	}
}

static void random_sets(void **state)
{
	uint64_t map[WORDS_MAX];

	srand(5);
	for (int i = 0; i < 3000; i++) {
		uint64_t nr = 1 + (uint64_t)rand() % PAGES_MAX;
		unsigned runs = (unsigned)rand() % 60;

		memset(map, 0, sizeof(map));
		for (unsigned k = 0; k < runs; k++) {
			uint64_t first = (uint64_t)rand() % nr;
			uint64_t n = (uint64_t)rand() % (rand() % 2 ? 3 : 300) + 1;

			bitmap_set_range(map, first, first + n > nr ? nr - first : n);
		}
		there_and_back(map, nr, CAP_MIN + (size_t)rand() % 200);
	}
}

/* As many bytes as the header says: the example there, and a page in millions. */
static void known_bytes(void **state)
{
	uint64_t map[1] = { 1u << 4 | 1u << 5 | 7u << 7 };
	uint8_t buf[3 * CAP_MIN];
	size_t len;

	assert_int_equal(runs_put(map, 0, 10, buf, sizeof(buf), &len), 10);
	assert_int_equal(len, 4);
	assert_memory_equal(buf, "\4\2\1\3", 4);

	uint64_t first, nr;
	struct runs far = { .p = (const uint8_t *)"\x80\x80\x80\x80\x02\x01",
			    .left = 6,
			    .at = 5,
			    .end = 1ull << 40 };

	assert_int_equal(runs_next(&far, &first, &nr), 1);
	assert_int_equal(first, (2ull << 28) + 5);
	assert_int_equal(nr, 1);
	assert_int_equal(runs_next(&far, &first, &nr), 0);
}

/* A piece that begins in the middle. */
static void piece_from_the_middle(void **state)
{
	uint64_t map[WORDS_MAX] = { 0 }, back[WORDS_MAX] = { 0 };
	uint8_t buf[2 * CAP_MIN];
	size_t len;

	bitmap_set_range(map, 90, 20);
	assert_int_equal(runs_put(map, 100, 1000, buf, sizeof(buf), &len), 1000);
	assert_int_equal(take(back, buf, len, 100, 1000), 0);
	assert_int_equal(bitmap_count(back, 1000), 10);
	assert_int_equal(bitmap_next_set(back, 1000, 0), 100);
}

static const struct {
	const char *what;
	const char *bytes;
	size_t len;
	unsigned good; /* runs before the bad one */
} malformed[] = {
	{ "one number only", "\5", 1, 0 },
	{ "a number cut short", "\x80", 1, 0 },
	{ "the second number cut short", "\1\x80", 2, 0 },
	{ "cut short behind a good run", "\1\1\1", 3, 1 },
	{ "an empty run", "\1\0", 2, 0 },
	{ "an empty run behind a good one", "\1\1\0\0", 4, 1 },
	{ "a run beyond the end", "\0\x65", 2, 0 },
	{ "a gap beyond the end", "\x65\1", 2, 0 },
	{ "a gap to the end, and a page", "\x64\1", 2, 0 },
	{ "the last page, and one more", "\x63\1\0\1", 4, 1 },
	{ "a run of 2^63 - 1", "\0\xff\xff\xff\xff\xff\xff\xff\xff\x7f", 10, 0 },
	{ "a gap of 2^63 - 1", "\xff\xff\xff\xff\xff\xff\xff\xff\x7f\1", 10, 0 },
	{ "a number of ten bytes", "\0\x80\x80\x80\x80\x80\x80\x80\x80\x80\1", 11, 0 },
	{ "a number of ten bytes that is small", "\x81\x80\x80\x80\x80\x80\x80\x80\x80\0\1", 11,
	  0 },
	{ "a number of ten bytes that is not ended", "\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
	  11, 0 },
};

static void malformed_pieces(void **state)
{
	for (size_t i = 0; i < sizeof(malformed) / sizeof(malformed[0]); i++) {
		uint8_t *exact = malloc(malformed[i].len); /* ASan sees a read behind it */
		struct runs runs = { .p = exact, .left = malformed[i].len, .end = 100 };
		uint64_t first, nr;
		unsigned good = 0;
		int r;

		memcpy(exact, malformed[i].bytes, malformed[i].len);
		while ((r = runs_next(&runs, &first, &nr)) > 0) {
			assert_true(nr && first < 100 && nr <= 100 - first);
			good++;
		}
		if (r != -EPROTO || good != malformed[i].good)
			fail_msg("%s: %d after %u runs", malformed[i].what, r, good);
		free(exact);
	}
}

/* Whatever the bytes are, runs ascend and lie within. */
static void random_bytes(void **state)
{
	srand(6);
	for (int i = 0; i < 100000; i++) {
		uint8_t buf[40];
		size_t len = (size_t)rand() % sizeof(buf);
		uint64_t end = 1 + (uint64_t)rand() % 1000, at = (uint64_t)rand() % end;
		struct runs runs = { .p = buf, .left = len, .at = at, .end = end };
		uint64_t first, nr;
		int r;

		for (size_t k = 0; k < len; k++)
			buf[k] = (uint8_t)(rand() % 4 ? rand() % 8 : rand());
		while ((r = runs_next(&runs, &first, &nr)) > 0) {
			assert_true(first >= at && nr && nr <= end - first);
			at = first + nr;
		}
		assert_true(r == 0 || r == -EPROTO);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(empty_set),
		cmocka_unit_test(full_set),
		cmocka_unit_test(alternating_set),
		cmocka_unit_test(bits_behind_the_end),
		cmocka_unit_test(random_sets),
		cmocka_unit_test(known_bytes),
		cmocka_unit_test(piece_from_the_middle),
		cmocka_unit_test(malformed_pieces),
		cmocka_unit_test(random_bytes),
	};

	return cmocka_run_group_tests_name("runs", tests, NULL, NULL);
}
