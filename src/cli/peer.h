/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_CLI_PEER_H
#define TERN_CLI_PEER_H

/*
 * The destination as a child process, when both roles run on this machine.
 *
 * It is forked before the parent has any thread.  It reports JSON objects over
 * one pipe, and holds the reading end of another one whose writing end only the
 * parent has: when that hangs up, the parent is gone or wants an end.
 */

#include <jansson.h>
#include <stdio.h>
#include <sys/types.h>
#include <tern/error.h>

struct peer {
	pid_t pid; /* 0: none, or reaped */
	FILE *from; /* its reports */
	int life_fd; /* our end of the other pipe, or -1 */
};

/* The child: writes reports to @out, ends when @life_fd hangs up; returns an exit code. */
typedef int peer_main_fn(void *ctx, FILE *out, int life_fd);

/*
 * peer_start - fork and run @fn in the child.  0 or -errno with *err.
 *
 * The child dies with its parent (PR_SET_PDEATHSIG) and ignores SIGINT, which a
 * terminal sends to both; the parent decides.
 */
int peer_start(struct peer *p, peer_main_fn *fn, void *ctx, struct tern_error *err);

/*
 * peer_read - wait for the child's next report.
 *
 * Returns 0 with a new reference in *@out, -EINTR if @signal_fd (or -1) became
 * readable first, -ETIMEDOUT after @timeout_ms (< 0: none), -EPIPE if the child
 * ended without a report, -EBADMSG if it sent something else.
 */
int peer_read(struct peer *p, int signal_fd, int timeout_ms, json_t **out);

/* peer_report - in the child: send @report (its reference is taken). */
void peer_report(FILE *out, json_t *report);

/* peer_hang_up - tell the child to end. */
void peer_hang_up(struct peer *p);

/*
 * peer_end - hang up, wait up to @grace_ms for the child to end, end it, reap it.
 *
 * @how (of @size bytes) says how it ended if that was by a signal not sent here,
 * else it is empty.
 */
void peer_end(struct peer *p, int grace_ms, char *how, size_t size);

#endif
