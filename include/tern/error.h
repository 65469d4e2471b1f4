/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_ERROR_H
#define TERN_ERROR_H

/*
 * Errors.
 *
 * Every function of the library that can fail returns 0 (or a count) on
 * success and a negative errno value on failure.  What went wrong in words is
 * kept by the session: the *first* error that any of its threads met, because
 * the later ones are usually its consequences.
 */

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/* What an error concerns. */
enum tern_error_scope {
	TERN_SCOPE_NONE = 0,
	TERN_SCOPE_PAGE,    /* one page or range of guest RAM */
	TERN_SCOPE_CHANNEL, /* one data channel */
	TERN_SCOPE_SESSION, /* the session as a whole */
};

#define TERN_ERROR_MESSAGE_MAX 512

struct tern_error {
	int code;                   /* negative errno; 0: no error */
	enum tern_error_scope scope;
	int phase;                  /* enum tern_state in which it happened */
	int channel;                /* channel index, or -1 */
	char message[TERN_ERROR_MESSAGE_MAX]; /* one sentence, UTF-8, no newline */
};

/*
 * tern_error_scope_name - "page", "channel", "session" or "none".
 *
 * Any thread; never blocks.  An unknown value gives "unknown".
 */
const char *tern_error_scope_name(enum tern_error_scope scope);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif

#endif
