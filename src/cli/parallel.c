/* SPDX-License-Identifier: BSD-2-Clause */

#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include "parallel.h"

/* One parallel_run(); shared by its threads. */
struct job {
	parallel_fn *fn;
	void *ctx;
	uint64_t nr;
	_Atomic uint64_t next; /* the next item that nobody has taken */
};

/* CPUs in this process's affinity mask, 1 … PARALLEL_THREADS_MAX. */
unsigned parallel_threads(void)
{
	cpu_set_t set;
	int n = 1;

	if (!sched_getaffinity(0, sizeof(set), &set))
		n = CPU_COUNT(&set);
	if (n < 1)
		n = 1;
	return (unsigned)n < PARALLEL_THREADS_MAX ? (unsigned)n : PARALLEL_THREADS_MAX;
}

/* Take items until none is left. */
static void *worker(void *arg)
{
	struct job *job = arg;
	uint64_t item;

	while ((item = atomic_fetch_add(&job->next, 1)) < job->nr)
		job->fn(job->ctx, item);
	return NULL;
}

/* Run @fn over all items on all CPUs; see parallel.h. */
void parallel_run(uint64_t nr, parallel_fn *fn, void *ctx)
{
	struct job job = { .fn = fn, .ctx = ctx, .nr = nr };
	pthread_t threads[PARALLEL_THREADS_MAX];
	unsigned want = parallel_threads(), started = 0;

	while (started + 1 < want && started + 1 < nr &&
	       !pthread_create(&threads[started], NULL, worker, &job))
		started++;
	worker(&job);
	while (started)
		pthread_join(threads[--started], NULL);
}
