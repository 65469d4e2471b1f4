/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_CLI_PARALLEL_H
#define TERN_CLI_PARALLEL_H

#include <stdint.h>

#define PARALLEL_THREADS_MAX 64u

/* Work on item @item; called by several threads at once with different items. */
typedef void parallel_fn(void *ctx, uint64_t item);

/* parallel_threads - threads that parallel_run() uses: the CPUs this process may run on. */
unsigned parallel_threads(void);

/*
 * parallel_run - call @fn for items 0 … @nr - 1 on all CPUs; returns when all are done.
 *
 * Cannot fail: where a thread cannot be started the others do its work.
 */
void parallel_run(uint64_t nr, parallel_fn *fn, void *ctx);

#endif
