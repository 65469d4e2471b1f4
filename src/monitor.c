/* SPDX-License-Identifier: BSD-2-Clause */
#include "monitor.h"

#include <errno.h>
#include <time.h>

uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

uint64_t deadline_ns(int64_t ms)
{
	return ms < 0 ? NEVER_NS : now_ns() + (uint64_t)ms * 1000000u;
}

int monitor_init(struct monitor *m)
{
	pthread_condattr_t attr;
	int r = pthread_condattr_init(&attr);

	if (r)
		return -r;
	m->nr_waiting = 0;
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	r = pthread_cond_init(&m->cond, &attr);
	pthread_condattr_destroy(&attr);
	if (r)
		return -r;
	r = pthread_mutex_init(&m->lock, NULL);
	if (r)
		pthread_cond_destroy(&m->cond);
	return -r;
}

void monitor_fini(struct monitor *m)
{
	pthread_mutex_destroy(&m->lock);
	pthread_cond_destroy(&m->cond);
}

bool monitor_wait(struct monitor *m, uint64_t deadline)
{
	struct timespec ts = {
		.tv_sec = (time_t)(deadline / 1000000000u),
		.tv_nsec = (long)(deadline % 1000000000u),
	};
	int r;

	m->nr_waiting++;
	if (deadline == NEVER_NS)
		r = pthread_cond_wait(&m->cond, &m->lock);
	else
		r = pthread_cond_timedwait(&m->cond, &m->lock, &ts);
	m->nr_waiting--;
	return r != ETIMEDOUT;
}
