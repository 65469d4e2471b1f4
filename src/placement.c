/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The sets of missing pages, and what arrives.  placement_map.c has the mappings and the
 * ioctls; the theory is in placement.h.
 */
#include "placement.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "bitmap.h"
#include "error.h"
#include "placement_private.h"

/* A part of a set: bits @mask of word @word. */
struct slice {
	uint64_t word, mask;
};

/* Walk the words of bits [first, first + nr). */
#define for_each_slice(s, first, nr)                                                             \
	for (uint64_t at_ = (first), end_ = (first) + (nr),                                      \
		      n_ = end_ - at_ < 64 - at_ % 64 ? end_ - at_ : 64 - at_ % 64;              \
	     at_ < end_ &&                                                                       \
	     ((s) = (struct slice){ at_ / 64, bitmap_mask((unsigned)(at_ % 64), (unsigned)n_) }, \
	     true);                                                                              \
	     at_ += n_, n_ = end_ - at_ < 64 ? end_ - at_ : 64)

static uint64_t load(const uint64_t *map, uint64_t word)
{
	return __atomic_load_n(&map[word], __ATOMIC_SEQ_CST);
}

/* Are all bits of [first, first + nr) @set? */
static bool all_are(const uint64_t *map, uint64_t first, uint64_t nr, bool set)
{
	struct slice s;

	for_each_slice (s, first, nr)
		if ((load(map, s.word) & s.mask) != (set ? s.mask : 0))
			return false;
	return true;
}

/* Set [first, first + nr).  True if none was. */
static bool set_all(uint64_t *map, uint64_t first, uint64_t nr)
{
	bool fresh = true;
	struct slice s;

	for_each_slice (s, first, nr)
		if (__atomic_fetch_or(&map[s.word], s.mask, __ATOMIC_SEQ_CST) & s.mask)
			fresh = false;
	return fresh;
}

/* ------------------------------------------------------------------ the sets */

/* The pages of host page @n of @v. */
static struct placement_fault host_page(const struct placement_region *v, uint64_t n)
{
	uint64_t page = n * v->host_pages, left = v->region->nr_pages - page;

	return (struct placement_fault){
		.region = v->region->id,
		.host_page = n,
		.page = page,
		.nr_pages = left < v->host_pages ? left : v->host_pages,
	};
}

int placement_missing(struct placement *p, uint32_t region, struct runs *runs)
{
	struct placement_region *v = &p->v[region];
	uint64_t first, nr;
	int r;

	assert(!atomic_load(&p->armed));
	while ((r = runs_next(runs, &first, &nr)) > 0) {
		/* The guest is paused, and nobody else looks yet: no atomics. */
		if (bitmap_next_set(v->missing, first + nr, first) != first + nr)
			return -EPROTO;
		bitmap_set_range(v->missing, first, nr);
		for (uint64_t at = first; at < first + nr;) {
			uint64_t block = at / v->block_pages, end = (block + 1) * v->block_pages;
			uint64_t n = (end < first + nr ? end : first + nr) - at;

			atomic_fetch_add(&v->left[block], (uint32_t)n);
			at += n;
		}
		v->nr_missing += nr;
		atomic_fetch_add(&p->left, nr);
	}
	return r;
}

void placement_again(struct placement *p)
{
	for (unsigned i = 0; i < p->nr; i++)
		memset(p->v[i].claimed, 0, bitmap_words(p->v[i].region->nr_pages) * 8);
}

bool placement_find(const struct placement *p, uint64_t hva, struct placement_fault *f)
{
	for (unsigned i = 0; i < p->nr; i++) {
		const struct region *r = p->v[i].region;
		uint64_t offset = hva - (uintptr_t)r->hva;

		if (offset >= r->size)
			continue;
		*f = host_page(&p->v[i], offset / TERN_PAGE_SIZE / p->v[i].host_pages);
		return true;
	}
	return false;
}

void placement_at(const struct placement *p, uint32_t region, uint64_t page,
		  struct placement_fault *f)
{
	*f = host_page(&p->v[region], page / p->v[region].host_pages);
}

bool placement_is_here(const struct placement *p, const struct placement_fault *f)
{
	return all_are(p->v[f->region].missing, f->page, f->nr_pages, false);
}

int placement_ask(struct placement *p, const struct placement_fault *f)
{
	return set_all(p->v[f->region].asked, f->host_page, 1);
}

/* The first bit of @map from @from on that is set, or @nr; others set bits meanwhile. */
static uint64_t next_set(const uint64_t *map, uint64_t nr, uint64_t from)
{
	for (uint64_t at = from; at < nr; at = (at / 64 + 1) * 64) {
		uint64_t word = load(map, at / 64) & ~0ull << at % 64;

		if (word)
			return at / 64 * 64 + (unsigned)__builtin_ctzll(word);
	}
	return nr;
}

bool placement_next_asked(const struct placement *p, struct placement_fault *f)
{
	for (uint32_t i = f->region; i < p->nr; i++) {
		const struct placement_region *v = &p->v[i];
		uint64_t nr = (v->region->nr_pages + v->host_pages - 1) / v->host_pages;
		uint64_t n = next_set(v->asked, nr, i == f->region ? f->host_page : 0);

		for (; n < nr; n = next_set(v->asked, nr, n + 1)) {
			struct placement_fault found = host_page(v, n);

			if (placement_is_here(p, &found))
				continue;
			*f = found;
			return true;
		}
	}
	return false;
}

/* ------------------------------------------------------------------- arrival */

/* Pages [first, first + nr) of @region exist.  0 or -EPROTO with *err. */
static int check_range(const struct placement *p, const char *what, uint32_t region, uint64_t first,
		       uint64_t nr, struct tern_error *err)
{
	if (region >= p->nr)
		return error_set(err, -EPROTO, TERN_SCOPE_PAGE,
				 "message %s from the peer has region = %u, there are %u", what,
				 region, p->nr);
	const struct region *r = p->v[region].region;

	if (first <= r->nr_pages && nr <= r->nr_pages - first)
		return 0;
	return error_set(err, -EPROTO, TERN_SCOPE_PAGE,
			 "message %s from the peer has pages %" PRIu64 " + %" PRIu64
			 " of region '%s', it has %" PRIu64,
			 what, first, nr, r->name, r->nr_pages);
}

/* The peer sent a page that it may not send. */
static int not_missing(const struct placement_region *v, const char *what, uint64_t first,
		       uint64_t nr, struct tern_error *err)
{
	return error_set(err, -EPROTO, TERN_SCOPE_PAGE,
			 "%s from the peer brings pages %" PRIu64 " + %" PRIu64
			 " of region '%s', of which some are here or on their way: a page is "
			 "placed once",
			 what, first, nr, v->region->name);
}

/* Take pages for placing: they must be missing, and nobody else's.  0 or -EPROTO with *err. */
static int claim(struct placement_region *v, const char *what, uint64_t first, uint64_t nr,
		 struct tern_error *err)
{
	if (!all_are(v->missing, first, nr, true) || !set_all(v->claimed, first, nr))
		return not_missing(v, what, first, nr, err);
	return 0;
}

/* Give the guest the host pages of [first, first + nr) for which somebody waits. */
static int wake(struct placement *p, struct placement_region *v, uint64_t first, uint64_t nr)
{
	uint64_t from = first / v->host_pages, to = (first + nr - 1) / v->host_pages + 1;
	struct slice s;
	int r = 0;

	for_each_slice (s, from, to - from) {
		uint64_t asked = load(v->asked, s.word) & s.mask;

		for (; asked && !r; asked &= asked - 1) {
			struct placement_fault f =
				host_page(v, s.word * 64 + (unsigned)__builtin_ctzll(asked));

			if (placement_is_here(p, &f))
				r = placement_resolve(p, &f);
		}
	}
	return r;
}

/*
 * Block @block is complete: the memory is the guest's alone.  The transport takes access
 * away in larger units, so their last block counts; if two of them become complete at
 * once, both may see that all are, which does no harm.
 */
static void block_complete(struct placement *p, struct placement_region *v, uint64_t block)
{
	uint64_t bytes = v->block_pages * TERN_PAGE_SIZE;
	uint64_t nr = bytes < TRANSPORT_RETIRE_BYTES ? TRANSPORT_RETIRE_BYTES / bytes : 1;
	uint64_t first = block / nr * nr, offset = first * bytes;

	placement_release(p, v, block, 1);
	for (uint64_t i = first; i < first + nr && i < v->nr_blocks; i++)
		if (atomic_load(&v->left[i]))
			return;
	p->retire(p->opaque, v->region->id, offset,
		  offset + nr * bytes < v->region->size ? nr * bytes : v->region->size - offset);
}

/* Pages [first, first + nr), all of one block, are here.  0 or -errno of the kernel's. */
static int arrived_in_block(struct placement *p, struct placement_region *v, uint64_t first,
			    uint64_t nr)
{
	uint64_t block = first / v->block_pages;
	uint32_t n = 0;
	struct slice s;
	int r;

	for_each_slice (s, first, nr) {
		uint64_t old = __atomic_fetch_and(&v->missing[s.word], ~s.mask, __ATOMIC_SEQ_CST);

		n += (unsigned)__builtin_popcountll(old & s.mask);
	}
	r = wake(p, v, first, nr);
	if (n && atomic_fetch_sub(&v->left[block], n) == n)
		block_complete(p, v, block);
	if (n && atomic_fetch_sub(&p->left, n) == n)
		p->complete(p->opaque);
	return r;
}

/*
 * Pages [first, first + nr) are here: those that were missing no longer are.  Wakes
 * who waits for them.  0 or -errno of the kernel's.
 */
static int arrived(struct placement *p, struct placement_region *v, uint64_t first, uint64_t nr)
{
	int r = 0;

	for (uint64_t at = first, n; at < first + nr && !r; at += n) {
		uint64_t left = v->block_pages - at % v->block_pages;

		n = first + nr - at < left ? first + nr - at : left;
		r = arrived_in_block(p, v, at, n);
	}
	return r;
}

int placement_admit(struct placement *p, const struct transport_range *ranges, unsigned nr,
		    struct tern_error *err)
{
	int r = 0;

	for (unsigned i = 0; i < nr && !r; i++) {
		const struct transport_range *t = &ranges[i];
		struct placement_region *v = &p->v[t->region];

		if (v->kind != PLACEMENT_SHARED)
			r = error_set(
				err, -EPROTO, TERN_SCOPE_PAGE,
				"a write from the peer is for region '%s', whose pages have to "
				"come in messages",
				v->region->name);
		else if (t->offset % TERN_PAGE_SIZE || t->len % TERN_PAGE_SIZE)
			r = error_set(err, -EPROTO, TERN_SCOPE_PAGE,
				      "a write from the peer of %" PRIu64
				      " bytes at offset %" PRIu64
				      " of region '%s' is not one of whole pages",
				      t->len, t->offset, v->region->name);
		else
			r = claim(v, "a write", t->offset / TERN_PAGE_SIZE, t->len / TERN_PAGE_SIZE,
				  err);
	}
	return r;
}

int placement_placed(struct placement *p, uint32_t region, uint64_t first, uint64_t nr,
		     struct tern_error *err)
{
	int r = check_range(p, "PLACED", region, first, nr, err);

	if (r)
		return r;
	struct placement_region *v = &p->v[region];

	if (v->kind != PLACEMENT_SHARED || !all_are(v->missing, first, nr, true))
		return not_missing(v, "message PLACED", first, nr, err);
	r = arrived(p, v, first, nr);
	return r ? placement_failed(v, first, r, err) : 0;
}

/*
 * Contents of shared memory.  Several pages at once are read-ahead: the guest is about to
 * need them, so they are mapped before it does.  What that misses is mapped when asked for.
 */
static void place_shared(struct placement *p, const struct placement_region *v, uint64_t first,
			 uint64_t nr, const uint8_t *buf)
{
	memcpy(v->alias + first * TERN_PAGE_SIZE, buf, nr * TERN_PAGE_SIZE);
	if (nr > 1 && v->host_pages == 1)
		(void)uffd_continue(&p->uffd, v->region->hva + first * TERN_PAGE_SIZE,
				    nr * TERN_PAGE_SIZE);
}

int placement_contents(struct placement *p, uint32_t region, uint64_t first, uint64_t nr,
		       const uint8_t *buf, struct tern_error *err)
{
	int r = check_range(p, "CONTENTS", region, first, nr, err);

	if (!r)
		r = claim(&p->v[region], "message CONTENTS", first, nr, err);
	if (r)
		return r;
	struct placement_region *v = &p->v[region];

	if (v->kind == PLACEMENT_SHARED)
		place_shared(p, v, first, nr, buf);
	else
		r = placement_copy(p, v, first, nr, buf);
	if (!r)
		r = arrived(p, v, first, nr);
	return r ? placement_failed(v, first, r, err) : 0;
}

int placement_zero(struct placement *p, uint32_t region, uint64_t first, uint64_t nr,
		   struct tern_error *err)
{
	int r = check_range(p, "ZERO", region, first, nr, err);

	if (!r)
		r = claim(&p->v[region], "message ZERO", first, nr, err);
	if (r)
		return r;
	struct placement_region *v = &p->v[region];

	if (v->kind == PLACEMENT_SHARED) /* private pages were discarded */
		memset(v->alias + first * TERN_PAGE_SIZE, 0, nr * TERN_PAGE_SIZE);
	r = arrived(p, v, first, nr);
	return r ? placement_failed(v, first, r, err) : 0;
}

int placement_empty(struct placement *p, uint32_t region, uint64_t first, uint64_t nr,
		    struct tern_error *err)
{
	int r = check_range(p, "EMPTY", region, first, nr, err);

	if (r)
		return r;
	r = arrived(p, &p->v[region], first, nr);
	return r ? placement_failed(&p->v[region], first, r, err) : 0;
}
