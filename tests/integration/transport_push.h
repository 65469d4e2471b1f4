/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_TESTS_TRANSPORT_PUSH_H
#define TERN_TESTS_TRANSPORT_PUSH_H

/* Tests of push() and env.admit, for test_transport's list. */

#include <stdbool.h>
#include <stddef.h>
#include "transport_rig.h"

#define PUSH_TESTS 13

extern const struct CMUnitTest push_tests[PUSH_TESTS];

/* push_test_fits - does @test concern the transport @name?  True for those of other files. */
bool push_test_fits(CMUnitTestFunction test, const char *name);

#endif
