/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_SRC_ERROR_H
#define TERN_SRC_ERROR_H

/*
 * Filling in errors.
 *
 * The function that first decides that something failed writes one sentence:
 * what was attempted, on what, what came back, and what to do.  Its callers
 * pass the code on and leave the message alone.
 */

#include <tern/error.h>

/*
 * error_set - fill *err and return its code.
 *
 * @code is a negative errno value.  @err may be NULL.  An error that is already
 * set (code != 0) is kept: the first one wins.  The message is cut to fit, and
 * control characters and what is no UTF-8 become '?'.
 */
int error_set(struct tern_error *err, int code, enum tern_error_scope scope, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));

/* The usual scope. */
#define error_session(err, code, ...) error_set(err, code, TERN_SCOPE_SESSION, __VA_ARGS__)

/* error_channel - as error_set() with TERN_SCOPE_CHANNEL and the channel's index. */
int error_channel(struct tern_error *err, int code, unsigned channel, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));

/* error_clear - no error. */
void error_clear(struct tern_error *err);

/* error_name - strerror text of a negative errno; thread-safe, never NULL. */
const char *error_name(int code);

#endif
