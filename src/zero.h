/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_SRC_ZERO_H
#define TERN_SRC_ZERO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * The zero test.  Implementations for AVX-512, AVX2, NEON and plain C; the best
 * one that this CPU has is chosen once per session (no global state).
 */

struct zero_ops {
	const char *name; /* "avx512", "avx2", "neon", "c" */

	/*
	 * True if @len bytes at @p are all zero.  @p is aligned to 4096, @len a
	 * multiple of 4096.  Stops early at the first byte that is not zero: pages
	 * that are not zero mostly show it in their first cache line.
	 */
	bool (*is_zero)(const void *p, size_t len);
};

/* zero_ops_best - for this CPU.  Never NULL. */
const struct zero_ops *zero_ops_best(void);

/*
 * zero_looks - does every page of [@p, @p + @len) begin with a zero cache line?
 *
 * A guess at whether all of them are zero, where one has to be made before the test
 * that counts.
 */
bool zero_looks(const void *p, size_t len);

/* zero_ops_get - the @i-th of those this CPU can run, plain C first; NULL behind the last. */
const struct zero_ops *zero_ops_get(unsigned i);

#endif
