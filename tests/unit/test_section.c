/* SPDX-License-Identifier: BSD-2-Clause */

/* The form of tern-vm's device state: what is taken, what is refused, and in which words. */

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "section.h"

/* Where things are, as section.h says. */
#define FORMAT_AT 8u
#define COUNT_AT 12u
#define FIRST_AT 16u
#define VERSION_AT 16u /* these of a section */
#define INSTANCE_AT 20u
#define LENGTH_AT 24u
#define DATA_AT 32u

/* The sections of a good stream: clock, regs 0, regs 1, list (empty), msrs. */
#define NR_GOOD 5u
#define CLOCK_AT FIRST_AT
#define REGS_AT (CLOCK_AT + DATA_AT + 3)
#define REGS_1_AT (REGS_AT + DATA_AT + 8)
#define LIST_AT (REGS_1_AT + DATA_AT + 8)
#define MSRS_AT (LIST_AT + DATA_AT)
#define GOOD_BYTES (MSRS_AT + DATA_AT + 4 + 24)

static const struct section_rule rules[] = {
	{ .name = "clock", .version = 3, .nr_instances = 1, .len = 3 },
	{ .name = "regs", .version = 1, .nr_instances = 2, .len = 8 },
	{ .name = "list", .version = 1, .nr_instances = 1, .unit = 16 },
	{ .name = "msrs", .version = 1, .nr_instances = 1, .len = 4, .unit = 12 },
};
#define NR_RULES (sizeof(rules) / sizeof(rules[0]))

/* Append a section of @len bytes, all of them @fill. */
static void put(struct section_buf *b, const char *name, uint32_t version, uint32_t instance,
		uint8_t fill, size_t len)
{
	size_t at;

	assert_int_equal(section_open(b, name, version, instance, &at), 0);
	for (size_t i = 0; i < len; i++)
		assert_int_equal(section_put(b, &fill, 1), 0);
	section_close(b, at);
}

/* A stream that the rules want; for free(). */
static struct section_buf good(void)
{
	struct section_buf b = { 0 };

	assert_int_equal(section_begin(&b), 0);
	put(&b, "clock", 3, 0, 'c', 3);
	put(&b, "regs", 1, 0, 'r', 8);
	put(&b, "regs", 1, 1, 's', 8);
	put(&b, "list", 1, 0, 0, 0);
	put(&b, "msrs", 1, 0, 'm', 4 + 24);
	section_count(&b, NR_GOOD);
	assert_int_equal(b.len, GOOD_BYTES);
	return b;
}

/* Write @v at @at, little-endian, @bytes of them. */
static void poke(struct section_buf *b, size_t at, uint64_t v, unsigned bytes)
{
	assert_true(at + bytes <= b->len);
	for (unsigned i = 0; i < bytes; i++)
		b->p[at + i] = (uint8_t)(v >> 8 * i);
}

/* Parse and match the first @len bytes, in memory that ends with them. */
static int take(const struct section_buf *b, size_t len, struct tern_error *err)
{
	uint8_t *exact = malloc(len ? len : 1);
	struct section *s = NULL;
	unsigned nr = 0;
	int ret;

	assert_non_null(exact);
	if (len)
		memcpy(exact, b->p, len);
	memset(err, 0, sizeof(*err));
	ret = section_parse(len ? exact : exact + 1, len, &s, &nr, err);
	if (ret)
		assert_null(s);
	else
		ret = section_match(s, nr, rules, NR_RULES, err);
	free(s);
	free(exact);
	assert_int_equal(ret, err->code);
	return ret;
}

/* The stream is refused with @code, and with @a and @b in the sentence; it is freed. */
static void refused(struct section_buf *b, int code, const char *first, const char *second)
{
	struct tern_error err;

	assert_int_equal(take(b, b->len, &err), code);
	if (strncmp(err.message, "device state: ", 14) || !strstr(err.message, first) ||
	    !strstr(err.message, second))
		fail_msg("\"%s\" does not say \"%s\" and \"%s\"", err.message, first, second);
	free(b->p);
}

/* ------------------------------------------------------------------ what is taken */

static void round_trip(void **state)
{
	struct section_buf b = good();
	struct tern_error err = { 0 };
	const struct section *found;
	struct section *s;
	unsigned nr;

	assert_int_equal(section_parse(b.p, b.len, &s, &nr, &err), 0);
	assert_int_equal(nr, NR_GOOD);
	assert_int_equal(section_match(s, nr, rules, NR_RULES, &err), 0);
	assert_int_equal(err.code, 0);
	found = section_find(s, nr, "regs", 1);
	assert_ptr_equal(found, &s[2]);
	assert_string_equal(found->name, "regs");
	assert_int_equal(found->version, 1);
	assert_int_equal(found->instance, 1);
	assert_int_equal(found->len, 8);
	assert_memory_equal(found->data, "ssssssss", 8);
	assert_int_equal(section_find(s, nr, "clock", 0)->version, 3);
	assert_int_equal(section_find(s, nr, "list", 0)->len, 0);
	assert_null(section_find(s, nr, "regs", 2));
	assert_null(section_find(s, nr, "reg", 0));
	free(s);
	free(b.p);
}

static void the_bytes_are_as_documented(void **state)
{
	static const uint8_t want[] = {
		'T',  'E',  'R',  'N',  'V',  'M',  'S',  'T',  1,    0,    0,    0,
		1,    0,    0,    0, /* head */
		'p',  'i',  't',  0,    0,    0,    0,    0,    0,    0,    0,    0,
		0,    0,    0,    0, /* name */
		4,    3,    2,    1,    8,    7,    6,    5,    12,   0,    0,    0,
		0,    0,    0,    0, /* version, instance, length */
		0x44, 0x33, 0x22, 0x11, 0xef, 0xcd, 0xab, 0x89, 0x67, 0x45, 0x23, 0x01,
	};
	struct section_buf b = { 0 };
	size_t at;

	assert_int_equal(section_begin(&b), 0);
	assert_int_equal(section_open(&b, "pit", 0x01020304, 0x05060708, &at), 0);
	assert_int_equal(section_put_u32(&b, 0x11223344), 0);
	assert_int_equal(section_put_u64(&b, 0x0123456789abcdef), 0);
	section_close(&b, at);
	section_count(&b, 1);
	assert_int_equal(b.len, sizeof(want));
	assert_memory_equal(b.p, want, sizeof(want));
	assert_int_equal(section_get_u32(b.p + FIRST_AT + DATA_AT), 0x11223344);
	assert_true(section_get_u64(b.p + FIRST_AT + DATA_AT + 4) == 0x0123456789abcdef);
	free(b.p);
}

static void order_does_not_matter(void **state)
{
	struct section_buf b = { 0 };
	struct tern_error err;

	assert_int_equal(section_begin(&b), 0);
	put(&b, "msrs", 1, 0, 0, 4);
	put(&b, "regs", 1, 1, 0, 8);
	put(&b, "list", 1, 0, 0, 32);
	put(&b, "regs", 1, 0, 0, 8);
	put(&b, "clock", 3, 0, 0, 3);
	section_count(&b, 5);
	if (take(&b, b.len, &err))
		fail_msg("%s", err.message);
	free(b.p);
}

static void longest_name(void **state)
{
	static const struct section_rule rule = { .name = "exactly15-bytes", .nr_instances = 1 };
	struct section_buf b = { 0 };
	struct tern_error err = { 0 };
	struct section *s;
	unsigned nr;

	assert_int_equal(strlen(rule.name), SECTION_NAME_MAX);
	assert_int_equal(section_begin(&b), 0);
	put(&b, rule.name, 0, 0, 0, 0);
	section_count(&b, 1);
	assert_int_equal(section_parse(b.p, b.len, &s, &nr, &err), 0);
	assert_int_equal(section_match(s, nr, &rule, 1, &err), 0);
	free(s);
	free(b.p);
}

/* As many sections as there may be, each found again. */
static void as_many_as_possible(void **state)
{
	static const struct section_rule rule = {
		.name = "regs", .version = 1, .nr_instances = SECTIONS_MAX, .len = 1
	};
	struct section_buf b = { 0 };
	struct tern_error err = { 0 };
	struct section *s;
	unsigned nr;

	assert_int_equal(section_begin(&b), 0);
	for (uint32_t i = 0; i < SECTIONS_MAX; i++)
		put(&b, "regs", 1, i, (uint8_t)i, 1);
	section_count(&b, SECTIONS_MAX);
	assert_int_equal(section_parse(b.p, b.len, &s, &nr, &err), 0);
	assert_int_equal(nr, SECTIONS_MAX);
	assert_int_equal(section_match(s, nr, &rule, 1, &err), 0);
	assert_int_equal(*section_find(s, nr, "regs", SECTIONS_MAX - 1)->data,
			 (uint8_t)(SECTIONS_MAX - 1));
	free(s);
	free(b.p);
}

/* A stream of no sections has the right form; what is missing is said by the rules. */
static void no_sections(void **state)
{
	struct section_buf b = { 0 };
	struct tern_error err = { 0 };
	struct section *s = NULL;
	unsigned nr = 7;

	assert_int_equal(section_begin(&b), 0);
	assert_int_equal(section_parse(b.p, b.len, &s, &nr, &err), 0);
	assert_int_equal(nr, 0);
	assert_int_equal(section_match(s, nr, NULL, 0, &err), 0);
	assert_null(section_find(s, nr, "clock", 0));
	free(s);
	refused(&b, -EPROTO, "section clock number 0", "missing");
}

/* ---------------------------------------------------------------- the stream's form */

static void no_bytes(void **state)
{
	struct section_buf b = { 0 };
	struct tern_error err;

	assert_int_equal(take(&b, 0, &err), -ENODATA);
	assert_non_null(strstr(err.message, "cut short: 0 bytes, its head alone has 16"));
}

/* Wherever it ends too early, that is what is said. */
static void cut_short_at_every_byte(void **state)
{
	static const struct {
		const char *name;
		size_t at, bytes;
	} parts[] = {
		{ "section 0 (clock)", CLOCK_AT, 3 },    { "section 1 (regs)", REGS_AT, 8 },
		{ "section 2 (regs)", REGS_1_AT, 8 },    { "section 3 (list)", LIST_AT, 0 },
		{ "section 4 (msrs)", MSRS_AT, 4 + 24 },
	};
	struct section_buf b = good();
	struct tern_error err;

	for (size_t len = 0; len < b.len; len++) {
		unsigned i = 0;

		assert_int_equal(take(&b, len, &err), -ENODATA);
		assert_non_null(strstr(err.message, "cut short"));
		while (i + 1 < NR_GOOD && len >= parts[i + 1].at)
			i++;
		if (len < FIRST_AT) {
			assert_non_null(strstr(err.message, "its head alone"));
		} else if (len < parts[i].at + DATA_AT) {
			char words[64];

			snprintf(words, sizeof(words), "in section %u of %u,", i, NR_GOOD);
			if (!strstr(err.message, words))
				fail_msg("%zu bytes: \"%s\" does not say \"%s\"", len, err.message,
					 words);
		} else if (!strstr(err.message, parts[i].name)) {
			fail_msg("%zu bytes: \"%s\" does not say \"%s\"", len, err.message,
				 parts[i].name);
		}
	}
	assert_int_equal(take(&b, b.len, &err), 0);
	free(b.p);
}

static void another_kind(void **state)
{
	for (unsigned i = 0; i < 8; i++) {
		struct section_buf b = good();

		b.p[i] ^= 0x20;
		refused(&b, -EPROTO, "TERNVMST", "none of tern-vm's");
	}
}

static void another_format(void **state)
{
	static const uint32_t formats[] = { 0, SECTION_FORMAT + 1, UINT32_MAX };

	for (unsigned i = 0; i < sizeof(formats) / sizeof(formats[0]); i++) {
		struct section_buf b = good();
		char words[32];

		poke(&b, FORMAT_AT, formats[i], 4);
		snprintf(words, sizeof(words), "has format %u", formats[i]);
		refused(&b, -EPROTO, words, "reads format 1; use the same version");
	}
}

static void more_sections_than_possible(void **state)
{
	struct section_buf b = good();

	poke(&b, COUNT_AT, SECTIONS_MAX + 1, 4);
	refused(&b, -EPROTO, "4097 sections", "at most 4096");
	b = good();
	poke(&b, COUNT_AT, UINT32_MAX, 4);
	refused(&b, -EPROTO, "4294967295 sections", "at most 4096");
}

static void more_sections_than_there_are(void **state)
{
	struct section_buf b = good();

	poke(&b, COUNT_AT, NR_GOOD + 1, 4);
	refused(&b, -ENODATA, "cut short", "in section 5 of 6,");
}

static void fewer_sections_than_there_are(void **state)
{
	struct section_buf b = good();

	poke(&b, COUNT_AT, NR_GOOD - 1, 4);
	refused(&b, -EPROTO, "60 bytes follow", "its last section");
}

static void bytes_behind_the_last_section(void **state)
{
	struct section_buf b = good();

	assert_int_equal(section_put(&b, "x", 1), 0);
	refused(&b, -EPROTO, "1 bytes follow", "its last section");
}

/* The length of the last section, and of one in the middle, goes beyond the end. */
static void length_beyond_the_end(void **state)
{
	static const uint64_t lengths[] = { 4 + 24 + 1, UINT32_MAX, (uint64_t)UINT32_MAX + 1,
					    UINT64_MAX - DATA_AT + 1, UINT64_MAX };

	for (unsigned i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
		struct section_buf b = good();
		char words[64];

		poke(&b, MSRS_AT + LENGTH_AT, lengths[i], 8);
		snprintf(words, sizeof(words), "section 4 (msrs) wants %llu bytes",
			 (unsigned long long)lengths[i]);
		refused(&b, -ENODATA, words, "28 are left");
	}
	for (unsigned i = 1; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
		struct section_buf b = good();

		poke(&b, REGS_AT + LENGTH_AT, lengths[i], 8);
		refused(&b, -ENODATA, "section 1 (regs)", "are left");
	}
}

/* A name is printable text, and zeroes behind it. */
static void improper_names(void **state)
{
	static const struct {
		size_t at;
		uint8_t byte;
	} wrong[] = { { 0, 0 },   { 1, ' ' },  { 2, '\n' }, { 3, 0x7f }, { 4, 0xff },
		      { 6, 'x' }, { 14, 'x' }, { 15, 'x' }, { 15, 1 } };

	for (unsigned i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		struct section_buf b = good();

		b.p[CLOCK_AT + wrong[i].at] = wrong[i].byte;
		refused(&b, -EPROTO, "section 0", "name");
	}
}

static void name_without_an_end(void **state)
{
	struct section_buf b = good();

	memset(b.p + REGS_AT, 'n', 16);
	refused(&b, -EPROTO, "section 1", "name");
}

/* ------------------------------------------------------------------ what is wanted */

static void unknown_section(void **state)
{
	struct section_buf b = good();

	memcpy(b.p + LIST_AT, "gpu\0", 4);
	poke(&b, LIST_AT + VERSION_AT, 5, 4);
	refused(&b, -EPROTO, "unknown section gpu (version 5)", "has not");
}

/* A longer name is another one, as is a shorter one. */
static void name_that_begins_alike(void **state)
{
	struct section_buf b = good();

	memcpy(b.p + LIST_AT, "lists", 5);
	refused(&b, -EPROTO, "unknown section lists", "");
	b = good();
	memcpy(b.p + LIST_AT, "lis\0", 4);
	refused(&b, -EPROTO, "unknown section lis ", "");
}

static void another_version(void **state)
{
	static const uint32_t versions[] = { 0, 2, 4, UINT32_MAX }; /* older, newer */

	for (unsigned i = 0; i < sizeof(versions) / sizeof(versions[0]); i++) {
		struct section_buf b = good();
		char words[64];

		poke(&b, CLOCK_AT + VERSION_AT, versions[i], 4);
		snprintf(words, sizeof(words), "section clock number 0 has version %u,",
			 versions[i]);
		refused(&b, -EPROTO, words, "reads version 3; use the same version on both hosts");
	}
}

static void version_of_another_instance(void **state)
{
	struct section_buf b = good();

	poke(&b, REGS_1_AT + VERSION_AT, 2, 4);
	refused(&b, -EPROTO, "section regs number 1 has version 2,", "reads version 1");
}

static void another_length(void **state)
{
	static const unsigned lengths[] = { 0, 7, 9 };

	for (unsigned i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
		struct section_buf b = { 0 };
		char words[64];

		assert_int_equal(section_begin(&b), 0);
		put(&b, "regs", 1, 1, 0, lengths[i]);
		section_count(&b, 1);
		snprintf(words, sizeof(words), "section regs number 1 has %u bytes", lengths[i]);
		refused(&b, -EPROTO, words, "here it has 8");
	}
}

/* Not a whole number of entries behind the fixed part. */
static void length_that_is_no_multiple(void **state)
{
	static const unsigned lengths[] = { 0, 3, 5, 4 + 11, 4 + 13, 12 };

	for (unsigned i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
		struct section_buf b = { 0 };
		char words[64];

		assert_int_equal(section_begin(&b), 0);
		put(&b, "msrs", 1, 0, 0, lengths[i]);
		section_count(&b, 1);
		snprintf(words, sizeof(words), "section msrs number 0 has %u bytes", lengths[i]);
		refused(&b, -EPROTO, words, "here it has 4 and any multiple of 12 more");
	}
}

static void instance_that_there_is_not(void **state)
{
	static const uint32_t instances[] = { 2, UINT32_MAX };

	for (unsigned i = 0; i < sizeof(instances) / sizeof(instances[0]); i++) {
		struct section_buf b = good();
		char words[64];

		poke(&b, REGS_1_AT + INSTANCE_AT, instances[i], 4);
		snprintf(words, sizeof(words), "section regs number %u", instances[i]);
		refused(&b, -EPROTO, words, "there are 2 here");
	}
}

static void twice_the_same(void **state)
{
	struct section_buf b = good();

	poke(&b, REGS_1_AT + INSTANCE_AT, 0, 4);
	refused(&b, -EPROTO, "section regs number 0", "there twice");
}

/* Each section in its turn is not there. */
static void missing(void **state)
{
	static const struct {
		size_t at, end;
		const char *words;
	} parts[] = {
		{ CLOCK_AT, REGS_AT, "section clock number 0" },
		{ REGS_AT, REGS_1_AT, "section regs number 0" },
		{ REGS_1_AT, LIST_AT, "section regs number 1" },
		{ LIST_AT, MSRS_AT, "section list number 0" },
		{ MSRS_AT, GOOD_BYTES, "section msrs number 0" },
	};

	for (unsigned i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
		struct section_buf b = good();

		memmove(b.p + parts[i].at, b.p + parts[i].end, b.len - parts[i].end);
		b.len -= parts[i].end - parts[i].at;
		section_count(&b, NR_GOOD - 1);
		refused(&b, -EPROTO, parts[i].words, "is missing");
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(round_trip),
		cmocka_unit_test(the_bytes_are_as_documented),
		cmocka_unit_test(order_does_not_matter),
		cmocka_unit_test(longest_name),
		cmocka_unit_test(as_many_as_possible),
		cmocka_unit_test(no_sections),
		cmocka_unit_test(no_bytes),
		cmocka_unit_test(cut_short_at_every_byte),
		cmocka_unit_test(another_kind),
		cmocka_unit_test(another_format),
		cmocka_unit_test(more_sections_than_possible),
		cmocka_unit_test(more_sections_than_there_are),
		cmocka_unit_test(fewer_sections_than_there_are),
		cmocka_unit_test(bytes_behind_the_last_section),
		cmocka_unit_test(length_beyond_the_end),
		cmocka_unit_test(improper_names),
		cmocka_unit_test(name_without_an_end),
		cmocka_unit_test(unknown_section),
		cmocka_unit_test(name_that_begins_alike),
		cmocka_unit_test(another_version),
		cmocka_unit_test(version_of_another_instance),
		cmocka_unit_test(another_length),
		cmocka_unit_test(length_that_is_no_multiple),
		cmocka_unit_test(instance_that_there_is_not),
		cmocka_unit_test(twice_the_same),
		cmocka_unit_test(missing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
