/* SPDX-License-Identifier: BSD-2-Clause */
#include "scan.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

#include "bitmap.h"

#define SECTION_BYTES (32ull << 20)

struct scan_section {
	pthread_mutex_t lock; /* held while it is scanned; a leaf */
	bool done;
};

struct scan_region {
	struct scan_section *sections;
	uint64_t nr, section_pages;
};

struct scan {
	const struct region_list *regions;
	const struct populated *populated;
	struct scan_region *v; /* by region id */
};

/* The sections of @r.  False: no memory. */
static bool scan_region_init(struct scan_region *v, const struct region *r)
{
	uint64_t bytes = r->host_page_size > SECTION_BYTES ? r->host_page_size : SECTION_BYTES;

	v->section_pages = bytes / TERN_PAGE_SIZE;
	v->nr = (r->nr_pages + v->section_pages - 1) / v->section_pages;
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
	uint64_t pages = s->v[r->id].section_pages, first = i * pages;
	uint64_t nr = r->nr_pages - first < pages ? r->nr_pages - first : pages;
	uint64_t *map = r->dirty + first / BITMAP_WORD_BITS;
	int e = populated_scan(s->populated, r, first, nr, map, err);

	if (!e)
		*found += bitmap_count(map, nr);
	return e;
}

int scan_stripe(struct scan *s, const struct stripe *st, uint64_t *found, struct tern_error *err)
{
	struct scan_region *v = &s->v[st->region->id];
	uint64_t last = (st->first_page + st->nr_pages - 1) / v->section_pages;
	int e = 0;

	for (uint64_t i = st->first_page / v->section_pages; i <= last && !e; i++) {
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
