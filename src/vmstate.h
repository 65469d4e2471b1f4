/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_SRC_VMSTATE_H
#define TERN_SRC_VMSTATE_H

/*
 * Device state: a byte string, buffered whole on both sides.  The source's
 * save() appends to a writer; the destination's load() takes from a reader that
 * holds everything that arrived.
 */

#include <stddef.h>
#include <stdint.h>
#include <tern/vm.h>

struct tern_error;

struct tern_state_writer {
	uint8_t *buf;
	size_t len, cap;
	uint64_t max; /* TERN_PARAM_STATE_MAX */
};

struct tern_state_reader {
	const uint8_t *buf;
	size_t len, at;
};

/* vmstate_fini - free the buffer. */
void vmstate_fini(struct tern_state_writer *w);

#endif
