/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * Slowing vCPUs.
 *
 * While a percentage p is set, a thread kicks all vCPUs out of the guest once in a period
 * of RUN_NS / (1 - p), and each sleeps for the p of it before it goes back; so a vCPU that
 * sleeps anyway (HLT) is hardly slowed.  It is the way of QEMU's cpu-throttle.c.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <time.h>
#include "machine.h"
#include "vcpu.h"

#define RUN_NS 10000000ull /* that a vCPU runs in a period */
#define PERCENT_MAX 99u

/* @ns from now, on the clock of the machine's conditions. */
static struct timespec after(uint64_t ns)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	ns += (uint64_t)t.tv_nsec;
	t.tv_sec += (time_t)(ns / 1000000000u);
	t.tv_nsec = (long)(ns % 1000000000u);
	return t;
}

void throttle_sleep(struct vcpu *v)
{
	struct machine *m = v->m;
	struct timespec until = after(RUN_NS * m->throttle / (100 - m->throttle));

	if (!v->must_sleep)
		return;
	v->must_sleep = false;
	while (m->running && !m->quit && m->throttle &&
	       pthread_cond_timedwait(&m->wake, &m->lock, &until) != ETIMEDOUT)
		;
}

static void *throttle_main(void *opaque)
{
	struct machine *m = opaque;

	pthread_mutex_lock(&m->lock);
	while (!m->quit) {
		if (!m->throttle) {
			pthread_cond_wait(&m->throttled, &m->lock);
			continue;
		}
		struct timespec until = after(RUN_NS * 100 / (100 - m->throttle));

		pthread_cond_timedwait(&m->throttled, &m->lock, &until);
		for (unsigned i = 0; m->throttle && m->running && i < m->nr_vcpus; i++) {
			m->vcpus[i].must_sleep = true;
			vcpu_kick(&m->vcpus[i]);
		}
	}
	pthread_mutex_unlock(&m->lock);
	return NULL;
}

int machine_throttle(struct machine *m, unsigned percent)
{
	int ret = 0;

	pthread_mutex_lock(&m->lock);
	m->throttle = percent < PERCENT_MAX ? percent : PERCENT_MAX;
	if (percent && !m->has_throttler) {
		ret = -pthread_create(&m->throttler, NULL, throttle_main, m);
		m->has_throttler = !ret;
	}
	pthread_cond_broadcast(&m->throttled);
	pthread_cond_broadcast(&m->wake);
	pthread_mutex_unlock(&m->lock);
	return ret;
}

void throttle_end(struct machine *m)
{
	pthread_mutex_lock(&m->lock);
	pthread_cond_broadcast(&m->throttled);
	pthread_mutex_unlock(&m->lock);
	if (m->has_throttler)
		pthread_join(m->throttler, NULL);
	m->has_throttler = false;
}
