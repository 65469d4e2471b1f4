/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_SRC_PLACEMENT_PRIVATE_H
#define TERN_SRC_PLACEMENT_PRIVATE_H

/* What placement.c and placement_map.c share. */

#include "placement.h"

/* placement_copy - UFFDIO_COPY of @nr pages at @buf.  0 or -errno; what is there already stays. */
int placement_copy(struct placement *p, const struct placement_region *v, uint64_t first,
		   uint64_t nr, const uint8_t *buf);

/* placement_release - unregister @nr blocks, which are complete; who waits there looks again. */
void placement_release(struct placement *p, const struct placement_region *v, uint64_t block,
		       uint64_t nr);

/* placement_failed - the sentence for a page that could not be given to the guest.  @code. */
int placement_failed(const struct placement_region *v, uint64_t first, int code,
		     struct tern_error *err);

#endif
