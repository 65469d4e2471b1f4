/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_TESTS_FAULT_VICTIM_H
#define TERN_TESTS_FAULT_VICTIM_H

/*
 * A real session and its guest, for a hostile peer to have a go at.  It notes
 * what its event handler was told; like scenes, it never asserts.
 */

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "testvm.h"

#define VICTIM_HEARD_MAX 2048

struct victim {
	struct testvm_pair pair;
	struct testvm vm;
	struct tern_session *s;
	char *problems;
	atomic_bool slow_load; /* load() waits until another message has come */
	pthread_mutex_t lock;
	char heard[VICTIM_HEARD_MAX]; /* under lock: sentences about strangers, and warnings */
};

/* victim_open - a session of @role.  A source's guest runs. */
void victim_open(struct victim *v, enum tern_role role, char *problems);
void victim_close(struct victim *v);

/* victim_end - wait until it has ended; false, and noted, if it does not. */
bool victim_end(struct victim *v);

/* word_found - does @heard contain @text, or one of its parts between '|'? */
bool word_found(const char *heard, const char *text);

/* victim_await_word - wait until the handler was told something with @text in it. */
void victim_await_word(struct victim *v, const char *text);

/* victim_expect_error - its error must contain @text. */
void victim_expect_error(struct victim *v, const char *text);

/* victim_expect_ram - page 0 of region 0 must hold @first in all bytes, all else zeros. */
void victim_expect_ram(struct victim *v, uint8_t first);

/* victim_good_migration - a destination that still listens: a good source succeeds. */
void victim_good_migration(struct victim *v);

#endif
