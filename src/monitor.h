/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_SRC_MONITOR_H
#define TERN_SRC_MONITOR_H

/*
 * One lock and one condition variable for all that is rare in a session: state,
 * first error, phases of the workers, messages from the control queue, cancel.
 * Whoever changes something that another thread may wait for broadcasts.  No
 * other lock is taken while it is held, and no callback of the VMM's is made.
 */

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

struct monitor {
	pthread_mutex_t lock;
	pthread_cond_t cond; /* CLOCK_MONOTONIC */
	unsigned nr_waiting; /* threads in monitor_wait(): tells tests that all is at rest */
};

#define NEVER_NS UINT64_MAX

/* now_ns - CLOCK_MONOTONIC in nanoseconds. */
uint64_t now_ns(void);

/* deadline_ns - @ms from now; NEVER_NS if negative. */
uint64_t deadline_ns(int64_t ms);

int monitor_init(struct monitor *m);
void monitor_fini(struct monitor *m);

static inline void monitor_lock(struct monitor *m)
{
	pthread_mutex_lock(&m->lock);
}

static inline void monitor_unlock(struct monitor *m)
{
	pthread_mutex_unlock(&m->lock);
}

static inline void monitor_broadcast(struct monitor *m)
{
	pthread_cond_broadcast(&m->cond);
}

/* monitor_wait - with the lock held; false if @deadline (now_ns() clock) passed first. */
bool monitor_wait(struct monitor *m, uint64_t deadline);

#endif
