/* SPDX-License-Identifier: BSD-2-Clause */

/* The live line and the report of `tern bench`. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>
#include "progress.h"
#include "report.h"

#define MIB (1ull << 20)

/* Statistics in the middle of a migration. */
static struct tern_stats running(void)
{
	return (struct tern_stats){
		.state = TERN_STATE_ACTIVE,
		.ram_bytes = 1024 * MIB,
		.nr_rounds = 2,
		.bandwidth = 1000 * MIB,
		.dirty_rate = 500 * MIB,
	};
}

static void live_line_has_all_fields(void **state)
{
	struct tern_stats st = running();
	char line[256];

	progress_format(line, sizeof(line), 120, &st, 512 * MIB, 900.0 * MIB, 0);
	assert_string_equal(line, "active    50%  512/1024 MiB  900 MiB/s  dirty 500 MiB/s"
				  "  round 2  rest 1.0 s");
}

static void live_line_fits_any_terminal(void **state)
{
	struct tern_stats st = running();
	char line[256];

	for (unsigned columns = 0; columns < 120; columns++) {
		progress_format(line, sizeof(line), columns, &st, 512 * MIB, 1e15, 1e15);
		assert_true(strlen(line) <= columns);
		assert_null(strpbrk(line, "\033\r\n"));
	}
}

static void live_line_does_not_promise_what_never_ends(void **state)
{
	struct tern_stats st = running();
	char line[256];

	st.dirty_rate = 2 * st.bandwidth;
	progress_format(line, sizeof(line), 120, &st, 512 * MIB, 0, 0);
	assert_non_null(strstr(line, "rest ?"));
}

static void live_line_before_anything_is_known(void **state)
{
	struct tern_stats st = { .state = TERN_STATE_SETUP };
	char line[256];

	progress_format(line, sizeof(line), 120, &st, 0, 0, 0);
	assert_string_equal(line, "setup   ");
}

static const char *const contract[] = {
	"status",
	"transport",
	"mode",
	"total_ms",
	"setup_ms",
	"first_byte_ms",
	"downtime_ms",
	"downtime_ledger_us",
	"ram_bytes",
	"sent_bytes",
	"throughput_mib_s",
	"rounds",
	"pages",
	"registration",
	"channels",
	"cpu",
	"postcopy",
	"verify",
	"error",
	"memory",
	"guest",
};

/* Every key of the contract is in @report. */
static void check_keys(const json_t *report)
{
	for (unsigned i = 0; i < sizeof(contract) / sizeof(contract[0]); i++)
		if (!json_object_get(report, contract[i]))
			fail_msg("%s is missing", contract[i]);
}

static struct bench_args some_args(void)
{
	return (struct bench_args){ .role = BENCH_BOTH,
				    .guest = { .size = 64 * MIB, .nr_regions = 2, .vcpus = 1 } };
}

static void report_has_all_keys_without_results(void **state)
{
	struct bench_args args = some_args();
	json_t *report = report_make(&args, NULL, NULL);

	check_keys(report);
	assert_string_equal(json_string_value(json_object_get(report, "status")), "failed");
	assert_true(json_is_null(json_object_get(report, "verify")));
	assert_true(json_is_null(json_object_get(report, "error")));
	json_decref(report);
}

static void report_merges_both_sides(void **state)
{
	struct bench_args args = some_args();
	json_t *source =
		json_pack("{s:{s:s, s:I, s:f}, s:f, s:I, s:n}", "stats", "status", "completed",
			  "ram_bytes", (json_int_t)(1024 * MIB), "throughput_mib_s", 5.0, "cpu_s",
			  1.5, "peak_rss_bytes", (json_int_t)7, "error");
	json_t *destination =
		json_pack("{s:f, s:{s:i, s:i}, s:{s:i, s:s}}", "cpu_s", 2.5, "verify", "pages", 10,
			  "bad", 3, "error", "code", -5, "message", "gone");
	json_t *report = report_make(&args, source, destination), *o;

	check_keys(report);
	assert_string_equal(json_string_value(json_object_get(report, "status")), "completed");
	o = json_object_get(report, "cpu");
	assert_true(json_real_value(json_object_get(o, "source_s")) == 1.5);
	assert_true(json_real_value(json_object_get(o, "destination_s")) == 2.5);
	assert_true(json_real_value(json_object_get(o, "total_s_per_gib")) == 4.0);
	o = json_object_get(report, "memory");
	assert_int_equal(json_integer_value(json_object_get(o, "source_peak_rss_bytes")), 7);
	assert_true(json_is_null(json_object_get(o, "destination_peak_rss_bytes")));
	o = json_object_get(report, "verify");
	assert_int_equal(json_integer_value(json_object_get(o, "bad")), 3);
	/* The source has no error, the destination has. */
	o = json_object_get(report, "error");
	assert_string_equal(json_string_value(json_object_get(o, "message")), "gone");
	assert_true(json_real_value(json_object_get(report, "throughput_mib_s")) == 5.0);
	json_decref(report);
	json_decref(source);
	json_decref(destination);
}

static void no_throughput_for_what_did_not_arrive(void **state)
{
	struct bench_args args = some_args();
	json_t *source = json_pack("{s:{s:s, s:f}}", "stats", "status", "cancelled",
				   "throughput_mib_s", 5.0);
	json_t *report = report_make(&args, source, NULL);

	assert_true(json_is_null(json_object_get(report, "throughput_mib_s")));
	json_decref(report);
	json_decref(source);
}

/* Print a report and return the text in @buf. */
static void print_to(const json_t *report, char *buf, size_t size)
{
	FILE *f = fmemopen(buf, size, "w");

	assert_non_null(f);
	report_print(f, report);
	fclose(f);
}

static void summary_says_not_verified(void **state)
{
	struct bench_args args = some_args();
	json_t *source = json_pack("{s:{s:s}}", "stats", "status", "completed");
	json_t *destination = json_pack("{s:{s:i, s:i, s:[s], s:b}}", "verify", "pages", 10, "bad",
					1, "first_bad", "page 3: stale", "guest_ran", 1);
	json_t *report = report_make(&args, source, destination);
	char text[4096] = { 0 };

	print_to(report, text, sizeof(text));
	assert_non_null(strstr(text, "completed, NOT verified"));
	assert_non_null(strstr(text, "page 3: stale"));
	json_decref(report);
	json_decref(source);
	json_decref(destination);
}

static void summary_of_nothing_is_printed(void **state)
{
	struct bench_args args = some_args();
	json_t *report = report_make(&args, NULL, NULL);
	char text[4096] = { 0 };

	print_to(report, text, sizeof(text));
	assert_non_null(strstr(text, "tern bench: failed"));
	assert_null(strstr(text, "verified"));
	json_decref(report);
}

static void report_to_a_bad_path_says_which(void **state)
{
	struct bench_args args = some_args();
	struct tern_error err = { 0 };
	json_t *report = report_make(&args, NULL, NULL);

	assert_true(report_write("/nonexistent/x.json", report, &err) < 0);
	assert_non_null(strstr(err.message, "/nonexistent/x.json"));
	json_decref(report);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(live_line_has_all_fields),
		cmocka_unit_test(live_line_fits_any_terminal),
		cmocka_unit_test(live_line_does_not_promise_what_never_ends),
		cmocka_unit_test(live_line_before_anything_is_known),
		cmocka_unit_test(report_has_all_keys_without_results),
		cmocka_unit_test(report_merges_both_sides),
		cmocka_unit_test(no_throughput_for_what_did_not_arrive),
		cmocka_unit_test(summary_says_not_verified),
		cmocka_unit_test(summary_of_nothing_is_printed),
		cmocka_unit_test(report_to_a_bad_path_says_which),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
