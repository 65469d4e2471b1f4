/* SPDX-License-Identifier: BSD-2-Clause */

/* The command line of `tern bench`: values, limits, contradictions, sentences. */

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>
#include "bench_args.h"
#include "parse.h"

#define KIB 1024ull
#define MIB (1024 * KIB)
#define GIB (1024 * MIB)

/* Parse a NULL-terminated list of arguments. */
static int parse(const char *const *list, struct bench_args *a, struct tern_error *err)
{
	char *argv[32] = { (char *)"bench" };
	int argc = 1;

	for (; *list; list++)
		argv[argc++] = (char *)*list;
	*err = (struct tern_error){ 0 };
	return bench_args_parse(argc, argv, a, err);
}

#define ARGS(...) ((const char *const[]){ __VA_ARGS__, NULL })

static struct bench_args good(const char *const *list)
{
	struct bench_args a;
	struct tern_error err;

	if (parse(list, &a, &err))
		fail_msg("%s", err.message);
	return a;
}

/* Both @a and @b must be in the sentence. */
static void bad(const char *const *list, const char *a, const char *b)
{
	struct bench_args out = { .uri = "untouched" };
	struct tern_error err;

	assert_int_equal(parse(list, &out, &err), -EINVAL);
	assert_int_equal(err.code, -EINVAL);
	if (!strstr(err.message, a) || !strstr(err.message, b))
		fail_msg("\"%s\" does not say \"%s\" and \"%s\"", err.message, a, b);
	assert_null(strchr(err.message, '\n'));
	assert_string_equal(out.uri, "untouched");
}

static uint64_t size_of(const char *text)
{
	uint64_t v = 0;

	if (parse_size(text, &v))
		fail_msg("%s is refused", text);
	return v;
}

static void sizes_are_powers_of_1024(void **state)
{
	assert_int_equal(size_of("0"), 0);
	assert_int_equal(size_of("4096"), 4096);
	assert_int_equal(size_of("3K"), 3 * KIB);
	assert_int_equal(size_of("512M"), 512 * MIB);
	assert_int_equal(size_of("2G"), 2 * GIB);
	assert_int_equal(size_of("1T"), 1024 * GIB);
	assert_int_equal(size_of("18446744073709551615"), UINT64_MAX);
}

static void sizes_that_are_none(void **state)
{
	static const char *const wrong[] = { "",     "M",   "-1", "+1",  " 1",  "1 ", "1.5G",
					     "0x10", "1MB", "1m", "1MM", "one", "1P" };
	uint64_t v;

	for (unsigned i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
		assert_int_equal(parse_size(wrong[i], &v), -EINVAL);
}

static void sizes_that_overflow(void **state)
{
	uint64_t v;

	assert_int_equal(parse_size("18446744073709551616", &v), -ERANGE);
	assert_int_equal(parse_size("99999999999999999999999", &v), -ERANGE);
	assert_int_equal(parse_size("16777216T", &v), -ERANGE);
	assert_int_equal(parse_size("18014398509481984K", &v), -ERANGE);
}

static void seconds_have_decimals(void **state)
{
	uint64_t v;

	assert_int_equal(parse_seconds("10", &v), 0);
	assert_int_equal(v, 10000);
	assert_int_equal(parse_seconds("0.25", &v), 0);
	assert_int_equal(v, 250);
	assert_int_equal(parse_seconds("1.0019", &v), 0);
	assert_int_equal(v, 1001);
	assert_int_equal(parse_seconds("1.", &v), -EINVAL);
	assert_int_equal(parse_seconds(".5", &v), -EINVAL);
	assert_int_equal(parse_seconds("1s", &v), -EINVAL);
	assert_int_equal(parse_seconds("18446744073709551", &v), -ERANGE);
}

static void defaults(void **state)
{
	struct bench_args a = good((const char *const[]){ NULL });

	assert_int_equal(a.role, BENCH_BOTH);
	assert_string_equal(a.transport, "auto");
	assert_int_equal(a.guest.size, GIB);
	assert_int_equal(a.guest.touched, GIB);
	assert_int_equal(a.guest.working_set, 64 * MIB);
	assert_int_equal(a.guest.dirty_rate, 100 * MIB);
	assert_int_equal(a.guest.nr_regions, 1);
	assert_int_equal(a.guest.vcpus, 1);
	assert_int_equal(a.guest.backing, GUEST_MEMFD);
	assert_int_equal(a.guest.fill, CONTENT_MIXED);
	assert_int_equal(a.guest.pattern, GUEST_UNIFORM);
	assert_false(a.prealloc);
	assert_int_equal(a.run_after_ms, 100);
	assert_int_equal(a.timeout_ms, 0);
	assert_null(a.json);
	assert_true(a.param[TERN_PARAM_CHANNELS].set);
	assert_int_equal(a.param[TERN_PARAM_CHANNELS].value, 2);
	assert_int_equal(a.param[TERN_PARAM_DOWNTIME_LIMIT_MS].value, 300);
	assert_false(a.param[TERN_PARAM_CHUNK_BYTES].set);
	assert_false(a.param[TERN_PARAM_ZEROCOPY].set);
	assert_false(a.param[TERN_PARAM_STRIPE_BYTES].set);
}

static void guest_options(void **state)
{
	struct bench_args a = good(ARGS(
		"--size", "512M", "--regions=3", "--backing", "anon", "--fill", "text", "--touched",
		"50%", "--prealloc", "--vcpus", "4", "--dirty-rate", "1G", "--working-set", "32M",
		"--pattern", "hot", "--seed", "77", "--run-after", "0"));

	assert_int_equal(a.guest.size, 512 * MIB);
	assert_int_equal(a.guest.nr_regions, 3);
	assert_int_equal(a.guest.backing, GUEST_ANON);
	assert_int_equal(a.guest.fill, CONTENT_TEXT);
	assert_int_equal(a.guest.touched, 256 * MIB);
	assert_true(a.prealloc);
	assert_int_equal(a.guest.vcpus, 4);
	assert_int_equal(a.guest.dirty_rate, GIB);
	assert_int_equal(a.guest.working_set, 32 * MIB);
	assert_int_equal(a.guest.pattern, GUEST_HOT);
	assert_int_equal(a.guest.seed, 77);
	assert_int_equal(a.run_after_ms, 0);
}

static void session_options(void **state)
{
	struct bench_args a =
		good(ARGS("--channels", "5", "--chunk", "256K", "--downtime-limit", "20",
			  "--max-bandwidth", "64M", "--timeout", "1.5", "--peer-timeout", "700",
			  "--zerocopy", "--dirty-provider", "uffd-wp-sync", "--json", "-", "--mode",
			  "precopy", "--transport", "tcp"));

	assert_int_equal(a.param[TERN_PARAM_CHANNELS].value, 5);
	assert_int_equal(a.param[TERN_PARAM_CHUNK_BYTES].value, 256 * KIB);
	assert_true(a.param[TERN_PARAM_CHUNK_BYTES].set);
	assert_string_equal(a.param[TERN_PARAM_CHUNK_BYTES].option, "chunk");
	assert_int_equal(a.param[TERN_PARAM_DOWNTIME_LIMIT_MS].value, 20);
	assert_int_equal(a.param[TERN_PARAM_MAX_BANDWIDTH].value, 64 * MIB);
	assert_int_equal(a.param[TERN_PARAM_TIMEOUT_MS].value, 1500);
	assert_int_equal(a.timeout_ms, 1500);
	assert_int_equal(a.param[TERN_PARAM_PEER_TIMEOUT_MS].value, 700);
	assert_true(a.param[TERN_PARAM_ZEROCOPY].set);
	assert_int_equal(a.param[TERN_PARAM_ZEROCOPY].value, 1);
	assert_int_equal(a.param[TERN_PARAM_DIRTY_PROVIDER].value, TERN_DIRTY_UFFD_WP_SYNC);
	assert_string_equal(a.json, "-");
	assert_string_equal(a.transport, "tcp");
}

static void roles(void **state)
{
	struct bench_args a = good(ARGS("--listen", "tcp::4444"));

	assert_int_equal(a.role, BENCH_DESTINATION);
	assert_string_equal(a.uri, "tcp::4444");
	a = good(ARGS("--connect", "unix:/tmp/x", "--size", "4K"));
	assert_int_equal(a.role, BENCH_SOURCE);
	assert_int_equal(a.guest.working_set, 4096);
}

static void help_wins(void **state)
{
	struct bench_args a;
	struct tern_error err;

	assert_int_equal(parse(ARGS("--help"), &a, &err), BENCH_ARGS_HELP);
	assert_int_equal(parse(ARGS("--size", "1G", "-h"), &a, &err), BENCH_ARGS_HELP);
}

static void usage_names_every_option(void **state)
{
	static const char *const names[] = {
		"--listen URI",
		"--connect URI",
		"--transport auto|rdma|tcp",
		"--size SIZE",
		"--regions N",
		"--backing memfd|anon|hugetlb",
		"--fill random|zero|text|mixed",
		"--touched PCT%|SIZE",
		"--prealloc",
		"--vcpus N",
		"--dirty-rate SIZE",
		"--working-set SIZE",
		"--pattern uniform|sequential|hot|alternate",
		"--mode precopy|postcopy|hybrid",
		"--channels N",
		"--chunk SIZE",
		"--pin pipelined|all|odp",
		"--lock-budget SIZE",
		"--no-windows",
		"--downtime-limit MS",
		"--max-bandwidth SIZE",
		"--timeout SEC",
		"--json FILE",
		"--zerocopy",
		"--dirty-provider NAME",
		"--peer-timeout MS",
		"--seed N",
		"--run-after MS",
	};

	for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (!strstr(bench_args_usage(), names[i]))
			fail_msg("--help does not tell of %s", names[i]);
}

static void impossible_sizes(void **state)
{
	bad(ARGS("--size", "0"), "--size 0", "4096");
	bad(ARGS("--size", "-1"), "--size -1", "K, M, G or T");
	bad(ARGS("--size", "4097"), "--size 4097", "multiple");
	bad(ARGS("--size", "99999999T"), "--size 99999999T", "from 4096 to");
	bad(ARGS("--size", "128T"), "--size 128T", "from 4096 to");
	bad(ARGS("--size", "1G5"), "--size 1G5", "a size");
	bad(ARGS("--size", ""), "--size", "a size");
	bad(ARGS("--size", "3M", "--backing", "hugetlb"), "--size 3145728", "2M");
	bad(ARGS("--touched", "101%"), "--touched 101%", "100%");
	bad(ARGS("--touched", "-1%"), "--touched -1%", "a size");
	bad(ARGS("--touched", "1000"), "--touched 1000", "multiple");
	bad(ARGS("--touched", "2G"), "--touched 2G", "1073741824");
	bad(ARGS("--working-set", "2G"), "--working-set 2G", "1073741824");
	bad(ARGS("--working-set", "100"), "--working-set 100", "multiple");
	bad(ARGS("--size", "16M", "--touched", "8M", "--working-set", "9M"), "--working-set 9M",
	    "8388608");
	bad(ARGS("--chunk", "5000"), "--chunk 5000", "multiple");
	bad(ARGS("--dirty-rate", "1000T"), "--dirty-rate 1000T", "from 0 to");
	bad(ARGS("--touched", "0", "--dirty-rate", "1M"), "--dirty-rate 1M", "empty");
}

static void impossible_numbers(void **state)
{
	bad(ARGS("--regions", "0"), "--regions 0", "from 1 to 4096");
	bad(ARGS("--regions", "4097"), "--regions 4097", "from 1 to 4096");
	bad(ARGS("--size", "8K", "--regions", "3"), "--regions 3", "2 regions");
	bad(ARGS("--vcpus", "0"), "--vcpus 0", "from 1 to 256");
	bad(ARGS("--vcpus", "257"), "--vcpus 257", "from 1 to 256");
	bad(ARGS("--vcpus", "2x"), "--vcpus 2x", "whole number");
	bad(ARGS("--channels", "-2"), "--channels -2", "whole number");
	bad(ARGS("--timeout", "0"), "--timeout 0", "seconds");
	bad(ARGS("--timeout", "abc"), "--timeout abc", "seconds");
	bad(ARGS("--seed", "18446744073709551616"), "--seed 18446744073709551616", "from 0");
}

static void unknown_words(void **state)
{
	bad(ARGS("--fill", "randomly"), "--fill randomly", "random|zero|text|mixed");
	bad(ARGS("--fill", "rand"), "--fill rand", "random|zero|text|mixed");
	bad(ARGS("--backing", "file"), "--backing file", "memfd|anon|hugetlb");
	bad(ARGS("--pattern", ""), "--pattern", "uniform|sequential|hot|alternate");
	bad(ARGS("--mode", "live"), "--mode live", "precopy|postcopy|hybrid");
	bad(ARGS("--precopy-rounds", "2"), "--precopy-rounds 2", "is for --mode hybrid");
	bad(ARGS("--mode", "postcopy", "--precopy-rounds", "2"), "--precopy-rounds 2",
	    "is for --mode hybrid");
	bad(ARGS("--transport", "udp"), "--transport udp", "auto|rdma|tcp");
	bad(ARGS("--pin", "none"), "--pin none", "pipelined|all|odp");
	bad(ARGS("--dirty-provider", "magic"), "--dirty-provider magic", "uffd-wp-async");
	bad(ARGS("--dirty-provider", "user"), "--dirty-provider user", "callbacks");
}

static void wrong_shape(void **state)
{
	bad(ARGS("--sise", "1G"), "--sise", "unknown option");
	bad(ARGS("--size"), "--size", "needs a value");
	bad(ARGS("--prealloc=yes"), "--prealloc=yes", "unwanted value");
	bad(ARGS("1G"), "\"1G\"", "unexpected");
	bad(ARGS("--json", ""), "--json", "something");
	bad(ARGS("-x"), "-x", "unknown option");
}

static void contradictions(void **state)
{
	bad(ARGS("--listen", "tcp::1", "--connect", "tcp:h:1"), "--listen", "--connect");
	bad(ARGS("--transport", "rdma", "--connect", "tcp:h:1"), "--transport rdma", "tcp:h:1");
	bad(ARGS("--transport", "tcp", "--listen", "rdma::1"), "--transport tcp", "rdma::1");
	bad(ARGS("--transport", "tcp", "--pin", "all"), "--pin all", "means nothing for tcp");
	bad(ARGS("--connect", "tcp:h:1", "--lock-budget", "1G"), "--lock-budget 1G",
	    "means nothing for tcp");
}

static void parts_not_in_this_build(void **state)
{
#ifndef HAVE_RDMA
	bad(ARGS("--transport", "rdma"), "--transport rdma", "not in this build");
	bad(ARGS("--connect", "rdma:h:1"), "rdma:h:1", "not in this build");
	bad(ARGS("--pin", "pipelined"), "--pin pipelined", "not in this build");
	bad(ARGS("--lock-budget", "1G"), "--lock-budget 1G", "not in this build");
#endif
}

#ifdef HAVE_RDMA
/* With RDMA in the build its options reach the session's parameters. */
static void rdma_options(void **state)
{
	struct bench_args a =
		good(ARGS("--transport", "rdma", "--pin", "all", "--lock-budget", "64M",
			  "--no-windows"));

	assert_string_equal(a.transport, "rdma");
	assert_true(a.param[TERN_PARAM_PIN].set);
	assert_int_equal(a.param[TERN_PARAM_PIN].value, TERN_PIN_ALL);
	assert_int_equal(a.param[TERN_PARAM_LOCK_BUDGET].value, 64ull << 20);
	assert_true(a.param[TERN_PARAM_WINDOWS].set);
	assert_int_equal(a.param[TERN_PARAM_WINDOWS].value, 0);
}
#endif

static void last_of_two_wins(void **state)
{
	struct bench_args a =
		good(ARGS("--size", "1G", "--touched", "50%", "--size", "64M", "--touched", "8M"));

	assert_int_equal(a.guest.size, 64 * MIB);
	assert_int_equal(a.guest.touched, 8 * MIB);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(sizes_are_powers_of_1024),
		cmocka_unit_test(sizes_that_are_none),
		cmocka_unit_test(sizes_that_overflow),
		cmocka_unit_test(seconds_have_decimals),
		cmocka_unit_test(defaults),
		cmocka_unit_test(guest_options),
		cmocka_unit_test(session_options),
		cmocka_unit_test(roles),
		cmocka_unit_test(help_wins),
		cmocka_unit_test(usage_names_every_option),
		cmocka_unit_test(impossible_sizes),
		cmocka_unit_test(impossible_numbers),
		cmocka_unit_test(unknown_words),
		cmocka_unit_test(wrong_shape),
		cmocka_unit_test(contradictions),
		cmocka_unit_test(parts_not_in_this_build),
#ifdef HAVE_RDMA
		cmocka_unit_test(rdma_options),
#endif
		cmocka_unit_test(last_of_two_wins),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
