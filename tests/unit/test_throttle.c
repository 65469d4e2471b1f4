/* SPDX-License-Identifier: BSD-2-Clause */
/* Auto-converge: when the guest is slowed, and by how much. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "throttle.h"

#define MS 1000000ull

static const struct throttle_config defaults = { 50, 20, 10, 99 };

/* @n seconds, each with 100 bytes sent and @dirty written; the percentage then. */
static unsigned seconds(struct throttle *t, unsigned n, uint64_t dirty)
{
	unsigned percent = t->percent;

	while (n--)
		percent = throttle_look(t, &defaults, t->begin_ns + 1000 * MS, dirty,
					t->sent_bytes + 100);
	return percent;
}

static void steps(void **state)
{
	struct throttle t;

	throttle_begin(&t, 7);
	assert_int_equal(seconds(&t, 1, 51), 0); /* once may be chance */
	assert_int_equal(seconds(&t, 1, 51), 20);
	assert_int_equal(seconds(&t, 1, 51), 20);
	assert_int_equal(seconds(&t, 1, 51), 30);
	assert_int_equal(seconds(&t, 12, 1000), 90);
	assert_int_equal(seconds(&t, 2, 1000), 99);
	assert_int_equal(seconds(&t, 20, 1000), 99);
	assert_int_equal(seconds(&t, 20, 0), 99); /* it is not let go of before the end */
}

static void below_the_trigger(void **state)
{
	struct throttle t;

	throttle_begin(&t, 0);
	assert_int_equal(seconds(&t, 100, 50), 0);
	/* Twice in all, not in a row, as in QEMU. */
	assert_int_equal(seconds(&t, 1, 51), 0);
	assert_int_equal(seconds(&t, 3, 50), 0);
	assert_int_equal(seconds(&t, 1, 51), 20);
}

/* Looks within a second count together. */
static void short_rounds(void **state)
{
	struct throttle t;
	uint64_t sent = 0;

	throttle_begin(&t, 0);
	for (uint64_t now = 100 * MS; now < 1000 * MS; now += 100 * MS)
		assert_int_equal(throttle_look(&t, &defaults, now, 60, sent += 100), 0);
	assert_int_equal(throttle_look(&t, &defaults, 1000 * MS, 60, sent += 100), 0);
	assert_int_equal(t.high, 1);
	for (uint64_t now = 1500 * MS; now < 2000 * MS; now += 100 * MS)
		assert_int_equal(throttle_look(&t, &defaults, now, 70, sent += 100), 0);
	assert_int_equal(throttle_look(&t, &defaults, 2000 * MS, 0, sent += 100), 20);
	/* Nothing was sent, and something written. */
	assert_int_equal(throttle_look(&t, &defaults, 3000 * MS, 1, sent), 20);
	assert_int_equal(throttle_look(&t, &defaults, 4000 * MS, 1, sent), 30);
}

static void a_low_maximum(void **state)
{
	const struct throttle_config low = { 50, 40, 10, 30 };
	struct throttle t;

	throttle_begin(&t, 0);
	throttle_look(&t, &low, 1000 * MS, 100, 100);
	assert_int_equal(throttle_look(&t, &low, 2000 * MS, 100, 200), 30);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(steps),
		cmocka_unit_test(below_the_trigger),
		cmocka_unit_test(short_rounds),
		cmocka_unit_test(a_low_maximum),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
