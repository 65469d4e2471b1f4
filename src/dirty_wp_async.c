/* SPDX-License-Identifier: BSD-2-Clause */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "bitmap.h"
#include "dirty.h"
#include "dirty_walk.h"
#include "error.h"
#include "pagemap.h"
#include "populated.h"
#include "region.h"
#include "uffd.h"

/*
 * Dirty tracking by asynchronous write-protect (Linux 6.7).
 *
 * The kernel resolves a write to a protected page by itself: it takes the
 * protection away and lets the write go on.  No message, no thread of ours, and
 * it does not matter whether the write came from user space or from KVM.
 *
 *	start	register the regions; nothing is protected yet
 *	sync	look for pages that exist and are not protected (dirty_walk.c)
 *	clear	PAGEMAP_SCAN that protects what it reports, in one step per page
 *	stop	unregister; the kernel forgets all protection
 *
 * Between start() and the first clear() of a page nothing needs protection:
 * unprotected means dirty.  Holes are never protected.  This is what keeps
 * untouched RAM free: protecting a hole leaves a marker, and markers need page
 * tables, 2 MiB of them for each GiB of holes.
 *
 * clear() may find pages that were written since the last sync(); it adds their
 * bits, so that what was protected is also sent.  The exception are pages of
 * files that exist without an entry (see dirty_walk.c): they must get a marker,
 * and only if the caller has their bit, because it alone knows that they are
 * about to be sent.
 */

enum {
	CLEAR_BLOCK_PAGES = 8192, /* pages per step where entries may vanish; 1 KiB of bitmap */
};

struct wp_async {
	struct uffd uffd;
	const struct region_list *regions;
	const struct populated *populated;
	bool started;
};

/* One clear() in progress. */
struct wp_async_clear {
	const struct region *r;
	uint64_t first; /* page of bit 0 of bitmap */
	uint64_t *bitmap;
	uint64_t done_first; /* page of bit 0 of done */
	uint64_t *done; /* pages that were protected just now, or NULL */
};

/* wp_async_start - see struct tern_dirty_ops. */
static int wp_async_start(void *opaque)
{
	struct wp_async *a = opaque;
	int ret = a->started ? -EBUSY : dirty_walk_register(&a->uffd, a->regions);

	if (!ret)
		a->started = true;
	return ret;
}

/* wp_async_stop - see struct tern_dirty_ops. */
static void wp_async_stop(void *opaque)
{
	struct wp_async *a = opaque;

	if (a->started)
		dirty_walk_unregister(&a->uffd, a->regions);
	a->started = false;
}

/* wp_async_sync - see struct tern_dirty_ops. */
static int wp_async_sync(void *opaque, unsigned region, uint64_t first, uint64_t nr,
			 uint64_t *bitmap)
{
	struct wp_async *a = opaque;

	return dirty_walk_sync(a->populated, &a->regions->v[region], first, nr, bitmap);
}

/* wp_async_cleared - pagemap_fn: a run was written, and is protected now. */
static int wp_async_cleared(uint64_t start, uint64_t end, uint64_t kind, void *opaque)
{
	const struct wp_async_clear *c = opaque;
	uint64_t page = (start - (uintptr_t)c->r->hva) / TERN_PAGE_SIZE;
	uint64_t nr = (end - start) / TERN_PAGE_SIZE;

	bitmap_set_range(c->bitmap, page - c->first, nr);
	if (c->done)
		bitmap_set_range(c->done, page - c->done_first, nr);
	return 0;
}

/* wp_async_clear_range - protect and report what exists in [first, first + nr).  0 or -errno. */
static int wp_async_clear_range(const struct wp_async *a, struct wp_async_clear *c, uint64_t first,
				uint64_t nr)
{
	static const struct pagemap_query written = {
		.flags = PAGEMAP_PROTECT | PAGEMAP_REQUIRE_ASYNC,
		.inverted = PAGEMAP_PFNZERO,
		.all = PAGEMAP_WRITTEN | PAGEMAP_PFNZERO,
		.any = PAGEMAP_EXISTS,
		.wanted = PAGEMAP_WRITTEN,
	};
	uint64_t start = (uintptr_t)c->r->hva + first * TERN_PAGE_SIZE;

	return pagemap_scan(a->populated->pagemap_fd, &written, start, start + nr * TERN_PAGE_SIZE,
			    wp_async_cleared, c);
}

/*
 * wp_async_mark_rest - protect the pages of [first, first + nr) that have a bit
 * in c->bitmap and are not in c->done: those without an entry get a marker.
 */
static int wp_async_mark_rest(const struct wp_async *a, const struct wp_async_clear *c,
			      uint64_t first, uint64_t nr)
{
	uint64_t rest[CLEAR_BLOCK_PAGES / BITMAP_WORD_BITS];
	uint64_t hva = (uintptr_t)c->r->hva + first * TERN_PAGE_SIZE;
	uint64_t word = (first - c->first) / BITMAP_WORD_BITS;

	for (uint64_t i = 0; i < bitmap_words(nr); i++)
		rest[i] = c->bitmap[word + i] & ~c->done[i];
	bitmap_for_each_run (rest, nr, begin, end) {
		int ret = pagemap_protect(a->populated->pagemap_fd, hva + begin * TERN_PAGE_SIZE,
					  hva + end * TERN_PAGE_SIZE);

		if (ret)
			return ret;
	}
	return 0;
}

/*
 * wp_async_clear_all - every page of [first, first + nr) is about to be sent.
 *
 * There is nothing to find out: protect the range as it is, which takes the kernel a
 * fifth less time than protecting and reporting.  All stripes of a dense guest's first
 * round come here.
 */
static int wp_async_clear_all(const struct wp_async *a, const struct wp_async_clear *c,
			      uint64_t first, uint64_t nr)
{
	uint64_t start = (uintptr_t)c->r->hva + first * TERN_PAGE_SIZE;

	return pagemap_protect(a->populated->pagemap_fd, start, start + nr * TERN_PAGE_SIZE);
}

/* wp_async_clear - see struct tern_dirty_ops. */
static int wp_async_clear(void *opaque, unsigned region, uint64_t first, uint64_t nr,
			  uint64_t *bitmap)
{
	struct wp_async *a = opaque;
	uint64_t done[CLEAR_BLOCK_PAGES / BITMAP_WORD_BITS];
	struct wp_async_clear c = {
		.r = &a->regions->v[region],
		.first = first,
		.bitmap = bitmap,
	};
	int ret = 0;

	if (bitmap_next_clear(bitmap, nr, 0) == nr)
		return wp_async_clear_all(a, &c, first, nr);
	if (!dirty_walk_may_vanish(c.r))
		return wp_async_clear_range(a, &c, first, nr);
	c.done = done;
	for (uint64_t off = 0; off < nr && !ret; off += CLEAR_BLOCK_PAGES) {
		uint64_t n = nr - off < CLEAR_BLOCK_PAGES ? nr - off : CLEAR_BLOCK_PAGES;

		memset(done, 0, sizeof(done));
		c.done_first = first + off;
		ret = wp_async_clear_range(a, &c, first + off, n);
		if (!ret)
			ret = wp_async_mark_rest(a, &c, first + off, n);
	}
	return ret;
}

/* wp_async_destroy - after stop(). */
static void wp_async_destroy(void *opaque)
{
	struct wp_async *a = opaque;

	uffd_close(&a->uffd);
	free(a);
}

/* wp_async_protect_page - dirty_walk_protect_fn. */
static int wp_async_protect_page(const struct uffd *u, const struct populated *pop, uint8_t *p,
				 uint64_t len)
{
	return pagemap_protect(pop->pagemap_fd, (uintptr_t)p, (uintptr_t)p + len);
}

int dirty_wp_async_new(struct dirty *d, const struct region_list *regions,
		       const struct populated *populated, struct tern_error *err)
{
	struct wp_async *a;
	int ret;

	if (!populated->can_scan)
		return error_session(err, -ENOSYS,
				     "cannot track writes asynchronously: the kernel has no "
				     "PAGEMAP_SCAN; use Linux 6.7 or newer");
	a = calloc(1, sizeof(*a));
	if (!a)
		return error_session(err, -ENOMEM, "cannot allocate the dirty provider");
	a->regions = regions;
	a->populated = populated;
	ret = uffd_open(&a->uffd, UFFD_CAN_WP | UFFD_CAN_WP_SHARED | UFFD_CAN_WP_ASYNC, err);
	if (!ret)
		ret = dirty_walk_probe(&a->uffd, populated, regions, wp_async_protect_page, err);
	if (ret) {
		wp_async_destroy(a);
		return ret;
	}
	d->kind = TERN_DIRTY_UFFD_WP_ASYNC;
	d->stop_can_wait = true;
	d->ops = (struct tern_dirty_ops){
		.start = wp_async_start,
		.stop = wp_async_stop,
		.sync = wp_async_sync,
		.clear = wp_async_clear,
	};
	d->opaque = a;
	d->destroy = wp_async_destroy;
	return 0;
}
