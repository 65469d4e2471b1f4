/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_CLI_H
#define TERN_CLI_H

/*
 * What the files of the `tern` command share: exit codes, subcommands, errors.
 *
 * The command links the public symbols of libtern only.  Errors are carried in
 * the library's public struct tern_error, filled by cli_fail() here.
 */

#include <stdint.h>
#include <tern/error.h>

/* Exit codes; docs/design.md section 8. */
enum {
	CLI_EXIT_OK = 0,
	CLI_EXIT_FAILED = 1,
	CLI_EXIT_USAGE = 2,
	CLI_EXIT_CANCELLED = 3,
	CLI_EXIT_UNVERIFIED = 4,
};

/* Subcommands: argv[0] is the subcommand's name; they return an exit code. */
int cmd_bench(int argc, char **argv);
int cmd_info(int argc, char **argv);

/*
 * cli_fail - write a sentence into *err and return @code.
 *
 * @code is a negative errno value.  An error that is already set is kept; @err
 * may be NULL.  The sentence is cut to fit; control characters and what is no UTF-8
 * become '?'.
 */
int cli_fail(struct tern_error *err, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* cli_complain - print "tern: …" and a newline on stderr. */
void cli_complain(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* cli_now_ns - CLOCK_MONOTONIC in nanoseconds. */
uint64_t cli_now_ns(void);

#endif
