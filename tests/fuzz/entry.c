/* SPDX-License-Identifier: BSD-2-Clause */

/* libFuzzer's entry into a target. */

#include "fuzz.h"

/*
 * An answer that does not come is mostly one that will not come: short, for speed.
 * What a slow machine misses by it is only depth.
 */
#define PATIENCE_MS 20

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	fuzz_one(data, size, PATIENCE_MS);
	return 0;
}
