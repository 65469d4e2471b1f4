/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_SRC_DIRTY_WALK_H
#define TERN_SRC_DIRTY_WALK_H

/*
 * What the two userfaultfd providers share: reading from the page table which
 * pages are not write-protected, and trying that out before it is needed.
 */

#include <stdbool.h>
#include <stdint.h>

struct populated;
struct region;
struct region_list;
struct tern_error;
struct uffd;

/*
 * dirty_walk_sync - set in @bitmap (bit 0 is page @first) the pages of
 * [first, first + nr) that exist and are not write-protected.
 *
 * Any thread, concurrently.  0 or -errno.
 */
int dirty_walk_sync(const struct populated *p, const struct region *r, uint64_t first, uint64_t nr,
		    uint64_t *bitmap);

/*
 * dirty_walk_may_vanish - can a page of @r lose its page table entry, and with
 * it the knowledge that it was written, and yet exist?
 */
bool dirty_walk_may_vanish(const struct region *r);

/*
 * dirty_walk_protect_fn - write-protect [p, p + len) of memory registered with
 * @u, as the provider does it.  0 or -errno.
 */
typedef int dirty_walk_protect_fn(const struct uffd *u, const struct populated *pop, uint8_t *p,
				  uint64_t len);

/*
 * dirty_walk_probe - try on memory like each of @regions what tracking needs:
 * registering, protecting, and seeing both that and the end of it in the page
 * table.  The regions themselves are not written.
 *
 * 0, -ENOSYS or -EPERM with *err.
 */
int dirty_walk_probe(const struct uffd *u, const struct populated *pop,
		     const struct region_list *regions, dirty_walk_protect_fn *protect,
		     struct tern_error *err);

/* dirty_walk_register - register all @regions for write-protect, or none.  0 or -errno. */
int dirty_walk_register(const struct uffd *u, const struct region_list *regions);

/* dirty_walk_unregister - undo it; wakes whoever waits in them. */
void dirty_walk_unregister(const struct uffd *u, const struct region_list *regions);

#endif
