/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_CLI_BENCH_ARGS_H
#define TERN_CLI_BENCH_ARGS_H

/* The options of `tern bench`; the contract is docs/design.md section 8. */

#include <stdbool.h>
#include <stdint.h>
#include <tern/session.h>
#include "guest.h"

enum bench_role {
	BENCH_BOTH, /* two processes on this machine */
	BENCH_SOURCE, /* --connect */
	BENCH_DESTINATION, /* --listen */
};

struct bench_args {
	enum bench_role role;
	const char *uri; /* --listen or --connect; points into argv */
	const char *transport; /* "auto", "rdma" or "tcp" */
	struct guest_config guest;
	bool prealloc;
	uint64_t run_before_ms; /* how long the source guest runs before it is moved */
	uint64_t run_after_ms; /* how long the destination guest runs before verification */
	uint64_t timeout_ms; /* 0: none */
	uint64_t downtime_limit_ms;
	const char *text[TERN_TEXT_NR]; /* parameters that are text, or NULL; in argv */
	bool recover; /* tell a paused source to connect to uri */
	const char *control; /* its socket, or NULL; points into argv */
	const char *json; /* file, "-", or NULL; points into argv */

	/* Parameters for the session; the library's defaults stand where .set is false. */
	struct bench_param {
		bool set;
		uint64_t value;
		const char *option; /* as typed, for messages */
	} param[TERN_PARAM_NR];
};

enum { BENCH_ARGS_HELP = 1 };

/*
 * bench_args_parse - read the command line; argv[0] is "bench".
 *
 * Returns 0 with *@out; BENCH_ARGS_HELP if --help was given; -EINVAL with one
 * sentence in *err that names the option and the value.  Prints nothing.  Not
 * to be called by two threads at once (getopt).
 */
int bench_args_parse(int argc, char **argv, struct bench_args *out, struct tern_error *err);

/* bench_args_usage - the text of --help. */
const char *bench_args_usage(void);

#endif
