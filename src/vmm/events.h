/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_VMM_EVENTS_H
#define TERN_VMM_EVENTS_H

/*
 * Events on their way to the control socket's clients: posted by any thread, taken by
 * the main one, which sleeps on @fd.
 */

#include <jansson.h>
#include <pthread.h>

struct events {
	int fd; /* eventfd: readable while there are some */
	pthread_mutex_t lock; /* guards list */
	json_t *list; /* array of finished QMP events */
};

/* events_init - 0 or -errno; events_fini() is due only after 0. */
int events_init(struct events *e);
void events_fini(struct events *e);

/* events_post - add one, stamped with the time now.  Takes over @data; NULL: none. */
void events_post(struct events *e, const char *name, json_t *data);

/* events_take - all there are, an array for json_decref(); perhaps empty. */
json_t *events_take(struct events *e);

#endif
