/* SPDX-License-Identifier: BSD-2-Clause */
#include "scan.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

#include "bitmap.h"

/* Small ones at the begin of a region, for the first byte's sake; then larger ones. */
#define SMALL_BYTES (8ull << 20)
#define LARGE_BYTES (64ull << 20)
#define NR_SMALL 8u

struct scan_section {
	pthread_mutex_t lock; /* held while it is scanned; a leaf */
	bool done;
};

struct scan_region {
	struct scan_section *sections;
	uint64_t nr;
	uint64_t small_pages, large_pages; /* of the first NR_SMALL sections, of the others */
};

struct scan {
	const struct region_list *regions;
	const struct populated *populated;
	struct scan_region *v; /* by region id */
};

/* Where section @i begins, in pages. */
static uint64_t section_begin(const struct scan_region *v, uint64_t i)
{
	return i < NR_SMALL ? i * v->small_pages
			    : NR_SMALL * v->small_pages + (i - NR_SMALL) * v->large_pages;
}

/* The section that @page lies in. */
static uint64_t section_of(const struct scan_region *v, uint64_t page)
{
	uint64_t small = NR_SMALL * v->small_pages;

	return page < small ? page / v->small_pages : NR_SMALL + (page - small) / v->large_pages;
}

/* The sections of @r.  False: no memory. */
static bool scan_region_init(struct scan_region *v, const struct region *r)
{
	uint64_t host = r->host_page_size;

	v->small_pages = (host > SMALL_BYTES ? host : SMALL_BYTES) / TERN_PAGE_SIZE;
	v->large_pages = (host > LARGE_BYTES ? host : LARGE_BYTES) / TERN_PAGE_SIZE;
	v->nr = section_of(v, r->nr_pages - 1) + 1;
	v->sections = calloc(v->nr, sizeof(*v->sections));
	if (!v->sections)
		return false;
	for (uint64_t i = 0; i < v->nr; i++)
		pthread_mutex_init(&v->sections[i].lock, NULL);
	return true;
}

struct scan *scan_new(const struct region_list *regions, const struct populated *populated)
{
	struct scan *s = calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	s->regions = regions;
	s->populated = populated;
	s->v = calloc(regions->nr, sizeof(*s->v));
	for (unsigned i = 0; i < regions->nr; i++) {
		if (!s->v || !scan_region_init(&s->v[i], &regions->v[i])) {
			scan_delete(s);
			return NULL;
		}
	}
	return s;
}

void scan_delete(struct scan *s)
{
	if (!s)
		return;
	for (unsigned i = 0; s->v && i < s->regions->nr; i++) {
		for (uint64_t k = 0; s->v[i].sections && k < s->v[i].nr; k++)
			pthread_mutex_destroy(&s->v[i].sections[k].lock);
		free(s->v[i].sections);
	}
	free(s->v);
	free(s);
}

/* Scan section @i of @r; its lock is held. */
static int scan_section(struct scan *s, struct region *r, uint64_t i, uint64_t *found,
			struct tern_error *err)
{
	const struct scan_region *v = &s->v[r->id];
	uint64_t first = section_begin(v, i), end = section_begin(v, i + 1);
	uint64_t nr = (end < r->nr_pages ? end : r->nr_pages) - first;
	uint64_t *map = r->dirty + first / BITMAP_WORD_BITS;
	int e = populated_scan(s->populated, r, first, nr, map, err);

	if (!e)
		*found += bitmap_count(map, nr);
	return e;
}

int scan_stripe(struct scan *s, const struct stripe *st, uint64_t *found, struct tern_error *err)
{
	struct scan_region *v = &s->v[st->region->id];
	uint64_t last = section_of(v, st->first_page + st->nr_pages - 1);
	int e = 0;

	for (uint64_t i = section_of(v, st->first_page); i <= last && !e; i++) {
		pthread_mutex_lock(&v->sections[i].lock);
		if (!v->sections[i].done)
			e = scan_section(s, st->region, i, found, err);
		v->sections[i].done = !e;
		pthread_mutex_unlock(&v->sections[i].lock);
	}
	return e;
}

uint64_t scan_overhead_bytes(const struct scan *s)
{
	uint64_t n = sizeof(*s) + s->regions->nr * sizeof(*s->v);

	for (unsigned i = 0; i < s->regions->nr; i++)
		n += s->v[i].nr * sizeof(*s->v[i].sections);
	return n;
}
