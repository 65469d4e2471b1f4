/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_CLI_CONTROL_H
#define TERN_CLI_CONTROL_H

/*
 * A socket by which a second `tern bench --recover` reaches a source whose migration is
 * paused: only that process has the pages that the destination lacks.
 *
 *	client		source
 *	"recover URI\n"	tern_session_recover()
 *			... until the link is there, or is not
 *	"ok\n", or a sentence and "\n"
 *
 * One client at a time; others wait in the backlog.
 */

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <tern/tern.h>

#define CONTROL_PATH_MAX 108u

struct control {
	int fd; /* listens; -1: closed; main thread */
	char path[CONTROL_PATH_MAX];

	pthread_mutex_t lock; /* below; a leaf */
	int client; /* waits for an answer; -1: none */
	bool tried; /* the session has begun to recover for it */
};

/*
 * control_open - listen at @path; NULL: at a place of this process's own.
 *
 * 0, or -errno with *err.  A socket file of a process that is gone is replaced.
 */
int control_open(struct control *c, const char *path, struct tern_error *err);
void control_close(struct control *c);

/* control_init - closed; must come before the others. */
void control_init(struct control *c);

/* control_ready - somebody connects: do what it asks.  Main thread. */
void control_ready(struct control *c, struct tern_session *s);

/* control_state - @s went to @state: is that what the client waits for?  Event handler. */
void control_state(struct control *c, struct tern_session *s, enum tern_state state);

/*
 * control_ask - have the source at @path (NULL: the only one of this user) recover to @uri.
 *
 * Waits until its link is there.  0; -ENOENT, -ECONNREFUSED, -EBUSY (there are several), or
 * -EIO (it did not recover), with *err.
 */
int control_ask(const char *path, const char *uri, struct tern_error *err);

#endif
