/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_TESTS_LEAVE_OUT_H
#define TERN_TESTS_LEAVE_OUT_H

/*
 * Parts of the machine a test may have to do without.  A test that misses one
 * fails, unless the user left the part out by name (tests/run.sh --leave-out,
 * which sets TERN_TEST_LEAVE_OUT to names separated by commas): then it is
 * skipped and says so in the words tests/results.py looks for.
 *
 * Include it after cmocka.h.
 */

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* leave_out_has - was @part ("kvm", "hugetlb", …) left out by name? */
static inline bool leave_out_has(const char *part)
{
	const char *list = getenv("TERN_TEST_LEAVE_OUT");
	size_t len = strlen(part);

	while (list && *list) {
		size_t word = strcspn(list, ", ");

		if (word == len && !strncmp(list, part, len))
			return true;
		list += word;
		list += strspn(list, ", ");
	}
	return false;
}

/* leave_out - the running test cannot go on without @part: skip if left out, else fail. */
#define leave_out(part, why)                                                              \
	do {                                                                              \
		if (leave_out_has(part)) {                                                \
			print_message("left out: %s\n", part);                            \
			skip();                                                           \
		}                                                                         \
		fail_msg("%s; to do without it: tests/run.sh --leave-out %s", why, part); \
	} while (0)

#endif
