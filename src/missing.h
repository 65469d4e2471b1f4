/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_SRC_MISSING_H
#define TERN_SRC_MISSING_H

/*
 * The message MISSING, which lists pages that the destination lacks: the source sends it
 * before switchover into postcopy, the destination when a link is made again.
 */

#include "runs.h"
#include "session.h"

/*
 * missing_send - list the pages of region @id that are set in @map, in as many messages as
 * it takes; none if no page is set.  0 or -errno with *err.
 */
int missing_send(struct tern_session *s, uint32_t id, const uint64_t *map, struct tern_error *err);

/*
 * missing_take - check a message and hand its pages out.
 *
 * @take: adds the runs to what is known of a region.  -EPROTO: they are not well-formed, or
 * a page is listed twice.  Returns 0, or -EPROTO with *err.
 */
int missing_take(const struct tern_session *s, const struct wire_missing *m,
		 int (*take)(void *opaque, uint32_t region, struct runs *runs), void *opaque,
		 struct tern_error *err);

#endif
