/* SPDX-License-Identifier: BSD-2-Clause */
/* The lists: what was missing at the begin, what is left to send. */
#include "pusher_private.h"

#include <stdlib.h>
#include <string.h>
#include <errno.h>

#include "bitmap.h"
#include "error.h"

/* The lists of region @r.  0 or -ENOMEM. */
static int region_init(struct push_region *v, const struct region *r, bool look)
{
	v->missing = calloc(bitmap_words(r->nr_pages), sizeof(*v->missing));
	if (!v->missing)
		return -ENOMEM;
	if (!look)
		return 0;
	v->sections =
		calloc((r->nr_pages + SECTION_PAGES - 1) / SECTION_PAGES, sizeof(*v->sections));
	if (!v->sections)
		return -ENOMEM;
	v->nr_sections = (r->nr_pages + SECTION_PAGES - 1) / SECTION_PAGES;
	for (uint64_t i = 0; i < v->nr_sections; i++)
		pthread_mutex_init(&v->sections[i].lock, NULL);
	return 0;
}

static void region_fini(struct push_region *v)
{
	for (uint64_t i = 0; i < v->nr_sections; i++)
		pthread_mutex_destroy(&v->sections[i].lock);
	free(v->sections);
	free(v->missing);
}

/* Everything is missing, or that is not known yet; touches the memory of the lists. */
static void first_missing(struct pusher *p)
{
	for (unsigned i = 0; i < p->c.regions->nr; i++) {
		const struct region *r = &p->c.regions->v[i];
		uint64_t *map = p->v[i].missing;

		if (!p->c.all_missing) {
			bitmap_clear_range(map, 0, r->nr_pages);
			continue;
		}
		bitmap_set_range(map, 0, r->nr_pages);
		p->nr_missing += r->nr_pages;
	}
}

void pusher_begin(struct pusher *p)
{
	for (unsigned i = 0; i < p->c.regions->nr && !p->c.all_missing; i++) {
		const struct region *r = &p->c.regions->v[i];

		memcpy(p->v[i].missing, r->dirty, bitmap_words(r->nr_pages) * 8);
		p->nr_missing += bitmap_count(p->v[i].missing, r->nr_pages);
	}
}

int pusher_new(const struct pusher_config *config, struct pusher **out, struct tern_error *err)
{
	struct pusher *p = calloc(1, sizeof(*p));
	unsigned nr = config->regions->nr;
	int r = p ? 0 : -ENOMEM;

	if (r)
		return error_session(err, r, "no memory for postcopy");
	p->c = *config;
	pthread_mutex_init(&p->lock, NULL);
	p->by_contents = calloc(WIRE_BY_CONTENTS_MAX, 1);
	p->v = calloc(nr, sizeof(*p->v));
	if (!p->by_contents || !p->v)
		r = -ENOMEM;
	for (unsigned i = 0; !r && i < nr; i++)
		r = region_init(&p->v[i], &config->regions->v[i], config->all_missing);
	if (!r)
		r = stripe_map_init(&p->stripes, config->regions, config->stripe_bytes);
	if (!r)
		r = stripe_map_init(&p->sections, config->regions,
				    (uint64_t)SECTION_PAGES * TERN_PAGE_SIZE);
	if (r) {
		pusher_delete(&p);
		return error_session(err, r, "no memory for the lists of missing pages");
	}
	memcpy(p->by_contents, config->by_contents, config->by_contents_len);
	first_missing(p);
	*out = p;
	return 0;
}

void pusher_delete(struct pusher **pp)
{
	struct pusher *p = *pp;

	if (!p)
		return;
	stripe_map_fini(&p->stripes);
	stripe_map_fini(&p->sections);
	for (unsigned i = 0; p->v && i < p->c.regions->nr; i++)
		region_fini(&p->v[i]);
	free(p->v);
	free(p->by_contents);
	pthread_mutex_destroy(&p->lock);
	free(p);
	*pp = NULL;
}

const uint64_t *pusher_missing(const struct pusher *p, uint32_t id)
{
	return p->v[id].missing;
}

uint64_t pusher_nr_missing(const struct pusher *p)
{
	return p->nr_missing;
}

void pusher_forget(struct pusher *p)
{
	for (unsigned i = 0; i < p->c.regions->nr; i++)
		memset(p->v[i].missing, 0, bitmap_words(p->c.regions->v[i].nr_pages) * 8);
	p->nr_missing = 0;
}

int pusher_lacks(struct pusher *p, uint32_t region, struct runs *runs)
{
	uint64_t first, nr;
	int r;

	while ((r = runs_next(runs, &first, &nr)) > 0) {
		uint64_t *map = p->v[region].missing;

		if (bitmap_next_set(map, first + nr, first) != first + nr)
			return -EPROTO;
		bitmap_set_range(map, first, nr);
		p->nr_missing += nr;
	}
	return r;
}

void pusher_again(struct pusher *p, uint64_t chunk_bytes)
{
	p->c.chunk_bytes = chunk_bytes;
	for (unsigned i = 0; i < p->c.regions->nr; i++) {
		struct region *r = &p->c.regions->v[i];
		size_t bytes = bitmap_words(r->nr_pages) * 8;

		if (!p->c.all_missing)
			memcpy(r->dirty, p->v[i].missing, bytes);
		else
			memset(r->dirty, 0, bytes);
		for (uint64_t k = 0; k < p->v[i].nr_sections; k++)
			p->v[i].sections[k].done = false;
	}
	stripe_map_rewind(&p->stripes);
	stripe_map_rewind(&p->sections);
	atomic_store(&p->nr_todo, 0);
}

uint64_t pusher_asked_ns(const struct pusher *p)
{
	return atomic_load_explicit(&p->asked_ns, memory_order_relaxed);
}

void pusher_take_asked(struct pusher *p, struct sender_result *out)
{
	out->normal_pages += atomic_exchange(&p->asked_normal, 0);
	out->zero_pages += atomic_exchange(&p->asked_zero, 0);
	out->bytes += atomic_exchange(&p->asked_bytes, 0);
}

uint64_t pusher_first_byte_ns(const struct pusher *p)
{
	return atomic_load_explicit(&p->first_ns, memory_order_relaxed);
}

void pusher_stats(const struct pusher *p, struct tern_postcopy_stats *out)
{
	out->requests = atomic_load(&p->requests);
	out->duplicates = atomic_load(&p->duplicates);
	out->read_ahead_hits = atomic_load(&p->hits);
}

uint64_t pusher_overhead_bytes(const struct pusher *p)
{
	uint64_t n = sizeof(*p) + p->c.regions->nr * sizeof(*p->v);

	for (unsigned i = 0; i < p->c.regions->nr; i++)
		n += bitmap_words(p->c.regions->v[i].nr_pages) * 8 +
		     p->v[i].nr_sections * sizeof(struct section);
	return n;
}
