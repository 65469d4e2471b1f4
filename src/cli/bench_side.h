/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_CLI_BENCH_SIDE_H
#define TERN_CLI_BENCH_SIDE_H

/*
 * One side of a benchmark: a guest, a session, and what was measured.
 *
 *	side_open()     guest made and filled, session configured
 *	side_start()    connect or listen; the clock starts
 *	side_wait()     until the session has ended
 *	side_finish()   run on, verify
 *	side_result()   everything as JSON
 *	side_close()
 */

#include <jansson.h>
#include <stdbool.h>
#include "bench_args.h"
#include "control.h"
#include "guest.h"
#include "procstat.h"
#include "progress.h"

struct side {
	const struct bench_args *args;
	enum tern_role role;
	struct guest *guest;
	struct tern_session *session;
	struct progress progress;
	int wake_fd; /* eventfd: the session's state changed */
	int signal_fd; /* SIGINT and SIGTERM as a signalfd; -1: do not look */
	struct control control; /* for --recover; source alone */
	int life_fd; /* readable or hung up: the other process is gone; -1: none */

	struct tern_error error; /* what bench itself met, or the session's first error */
	struct tern_error refusal; /* written by load(): why the device state was refused */
	bool started;
	bool gave_up; /* cancelled by --timeout, a signal, or the other process's end */
	uint64_t started_ns; /* when connect() or listen() was called */
	uint64_t begin_guest_cpu_ns, end_guest_cpu_ns;
	struct procstat begin, end; /* at side_start() and when the session ended */
	uint64_t end_writes; /* pages the guest had written then */
	bool verified; /* *verify is valid */
	bool ran_on; /* after the end the guest was seen to run (or is idle) */
	struct guest_verify verify;
};

/*
 * side_open - make everything ready.  0, or -errno with side->error.
 *
 * @quiet: no progress.  The side must be closed in any case.
 */
int side_open(struct side *side, const struct bench_args *args, enum tern_role role, bool quiet);

/*
 * side_start - connect to or listen at @uri.
 *
 * 0; -EINVAL or -EPROTONOSUPPORT for a URI that cannot be used; or what
 * tern_session_connect() gave; with side->error.
 */
int side_start(struct side *side, const char *uri);

/* side_wait - until the session has ended; 0 if it completed, else its error's code. */
int side_wait(struct side *side);

/*
 * side_finish - look at the guest after the end.
 *
 * Where the guest runs now, see that it does, and verify its RAM: on the
 * destination after a migration that completed (after --run-after), on the
 * source after one that did not.
 */
void side_finish(struct side *side);

/* side_completed, side_cancelled - how it ended. */
bool side_completed(const struct side *side);
bool side_cancelled(const struct side *side);

/* side_exit_code - CLI_EXIT_*, as far as this side can tell. */
int side_exit_code(const struct side *side);

/* side_result - what this side measured, a new object; NULL if out of memory. */
json_t *side_result(const struct side *side);

void side_close(struct side *side);

/* bench_dirty_ops - the guest's own dirty log as a session asks for it; opaque as below. */
const struct tern_dirty_ops *bench_dirty_ops(void);

/* bench_vm_ops - the callbacks by which a session drives side->guest; opaque is the side. */
const struct tern_vm_ops *bench_vm_ops(void);

/*
 * bench_apply_params - check what was asked against the library's limits, and set
 * it if @s is not NULL.
 *
 * 0, or -EINVAL with a sentence that names the option, the value and the limits.
 */
int bench_apply_params(const struct bench_args *args, enum tern_role role, struct tern_session *s,
		       struct tern_error *err);

#endif
