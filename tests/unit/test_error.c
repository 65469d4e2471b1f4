/* SPDX-License-Identifier: BSD-2-Clause */

/* Errors: the first one is kept, and its sentence can be printed and be put into JSON. */

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <jansson.h>

#include "error.h"
#include "utf8.h"

static void first_error_is_kept(void **state)
{
	struct tern_error err;

	error_clear(&err);
	assert_int_equal(error_session(&err, -EINVAL, "the %s", "first"), -EINVAL);
	assert_int_equal(error_channel(&err, -EIO, 3, "the second"), -EIO);
	assert_int_equal(err.code, -EINVAL);
	assert_int_equal(err.channel, -1);
	assert_string_equal(err.message, "the first");
	assert_int_equal(error_session(NULL, -EIO, "nobody asks"), -EIO);
}

/* What becomes of a text. */
static void becomes(const char *text, const char *want)
{
	struct tern_error err;

	error_clear(&err);
	error_session(&err, -EIO, "%s", text);
	assert_string_equal(err.message, want);
}

static void text_is_kept(void **state)
{
	/* The first and the last character of each length. */
	becomes("plain text: ~ 100 %", "plain text: ~ 100 %");
	becomes("\xc2\x80 \xdf\xbf", "\xc2\x80 \xdf\xbf");
	becomes("\xe0\xa0\x80 \xed\x9f\xbf \xee\x80\x80 \xef\xbf\xbf",
		"\xe0\xa0\x80 \xed\x9f\xbf \xee\x80\x80 \xef\xbf\xbf");
	becomes("\xf0\x90\x80\x80 \xf4\x8f\xbf\xbf", "\xf0\x90\x80\x80 \xf4\x8f\xbf\xbf");
}

static void what_is_no_text_is_marked(void **state)
{
	becomes("a\nb\tc\x1b[2J\x7f", "a?b?c?[2J?");
	becomes("\x80 \xbf", "? ?"); /* goes on, but nothing has begun */
	becomes("\xc3 x", "? x"); /* begins, and does not go on */
	becomes("\xe2\x82 x", "?? x");
	becomes("\xf0\x9f\x98 x", "??? x");
	becomes("\xc0\xaf \xc1\xbf", "?? ??"); /* longer than need be */
	becomes("\xe0\x9f\xbf", "???");
	becomes("\xf0\x8f\xbf\xbf", "????");
	becomes("\xed\xa0\x80", "???"); /* half of a pair */
	becomes("\xf4\x90\x80\x80 \xf5\x80\x80\x80 \xff", "???? ???? ?"); /* too large */
	becomes("cut short \xc3", "cut short ?");
	becomes("cut short \xf0\x9f\x98", "cut short ???");
}

/* Wherever a sentence is cut to fit, JSON can hold it. */
static void cut_in_a_character(void **state)
{
	char text[2 * TERN_ERROR_MESSAGE_MAX];
	struct tern_error err;
	json_t *o;

	for (size_t begin = 0; begin < 4; begin++) {
		memset(text, 'x', begin);
		for (size_t i = begin; i + 4 < sizeof(text); i += 4)
			memcpy(text + i, "\xf0\x9f\x90\xa6", 5);
		error_clear(&err);
		error_session(&err, -EIO, "%s", text);
		assert_int_equal(strlen(err.message), TERN_ERROR_MESSAGE_MAX - 1);
		o = json_string(err.message);
		assert_non_null(o);
		json_decref(o);
	}
}

/* The same idea of UTF-8 as the JSON library has: all pairs and threes of interesting bytes. */
static void agrees_with_json(void **state)
{
	static const uint8_t bytes[] = { 0x41, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf,
					 0xc0, 0xc1, 0xc2, 0xdf, 0xe0, 0xe1, 0xec, 0xed,
					 0xee, 0xef, 0xf0, 0xf1, 0xf3, 0xf4, 0xf5, 0xff };
	const unsigned nr = sizeof(bytes), all = nr * nr * nr * nr;

	for (unsigned i = 0; i < all; i++) {
		char text[5] = { (char)bytes[i % nr], (char)bytes[i / nr % nr],
				 (char)bytes[i / nr / nr % nr], (char)bytes[i / nr / nr / nr], 0 };
		json_t *o = json_string(text);
		size_t at = 0, len;

		while (text[at] && (len = utf8_length(text + at)))
			at += len;
		if (!o != !!text[at])
			fail_msg("%02x %02x %02x %02x: %s", (uint8_t)text[0], (uint8_t)text[1],
				 (uint8_t)text[2], (uint8_t)text[3], o ? "is UTF-8" : "is none");
		json_decref(o);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(first_error_is_kept),       cmocka_unit_test(text_is_kept),
		cmocka_unit_test(what_is_no_text_is_marked), cmocka_unit_test(cut_in_a_character),
		cmocka_unit_test(agrees_with_json),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
