/* SPDX-License-Identifier: BSD-2-Clause */
/* Reasons not to migrate: the list, and what a session makes of it. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "blockers.h"
#include "error.h"

static void a_list(void **state)
{
	char long_reason[TERN_BLOCKER_REASON_MAX + 2], text[200];
	struct tern_blockers *b;
	int first, second;

	assert_int_equal(tern_blockers_new(&b), 0);
	assert_int_equal(tern_blockers_get(b, 0, text, sizeof(text)), -ENOENT);
	first = tern_blockers_add(b, "device vfio0 cannot be saved");
	second = tern_blockers_add(b, "a snapshot is being made");
	assert_true(first > 0 && second > 0 && first != second);
	assert_int_equal(tern_blockers_get(b, 0, text, sizeof(text)), first);
	assert_string_equal(text, "device vfio0 cannot be saved");
	assert_int_equal(tern_blockers_get(b, 1, text, 11), second);
	assert_string_equal(text, "a snapshot");
	assert_int_equal(tern_blockers_get(b, 2, text, sizeof(text)), -ENOENT);

	assert_int_equal(tern_blockers_remove(b, first), 0);
	assert_int_equal(tern_blockers_remove(b, first), -ENOENT);
	assert_int_equal(tern_blockers_get(b, 0, text, sizeof(text)), second);

	memset(long_reason, 'x', sizeof(long_reason));
	long_reason[TERN_BLOCKER_REASON_MAX + 1] = 0;
	assert_int_equal(tern_blockers_add(b, long_reason), -EINVAL);
	assert_int_equal(tern_blockers_add(b, ""), -EINVAL);
	assert_int_equal(tern_blockers_add(b, NULL), -EINVAL);
	long_reason[TERN_BLOCKER_REASON_MAX] = 0;
	assert_true(tern_blockers_add(b, long_reason) > 0);
	tern_blockers_delete(&b);
	assert_null(b);
	tern_blockers_delete(&b);
	tern_blockers_delete(NULL);
}

static void migrations_and_reasons(void **state)
{
	struct tern_error err = { 0 };
	struct tern_blockers *b;
	int ids[100];

	assert_int_equal(tern_blockers_new(&b), 0);
	assert_int_equal(blockers_begin(b, &err), 0);
	assert_int_equal(blockers_begin(b, &err), 0);
	assert_int_equal(tern_blockers_add(b, "too late"), -EBUSY);
	blockers_end(b);
	assert_int_equal(tern_blockers_add(b, "too late"), -EBUSY);
	blockers_end(b);
	ids[0] = tern_blockers_add(b, "the first reason");
	ids[1] = tern_blockers_add(b, "the second reason");
	assert_int_equal(blockers_begin(b, &err), -EPERM);
	assert_non_null(strstr(err.message, "the first reason; the second reason"));
	assert_int_equal(tern_blockers_remove(b, ids[0]), 0);
	assert_int_equal(tern_blockers_remove(b, ids[1]), 0);
	/* More than a sentence can hold. */
	for (int i = 0; i < 100; i++)
		ids[i] = tern_blockers_add(b, "one of a hundred reasons that are the same");
	error_clear(&err);
	assert_int_equal(blockers_begin(b, &err), -EPERM);
	for (int i = 0; i < 100; i++)
		assert_int_equal(tern_blockers_remove(b, ids[i]), 0);
	assert_int_equal(blockers_begin(b, &err), 0);
	blockers_end(b);
	tern_blockers_delete(&b);
	/* No list is one without reasons. */
	assert_int_equal(blockers_begin(NULL, &err), 0);
	blockers_end(NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_list),
		cmocka_unit_test(migrations_and_reasons),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
