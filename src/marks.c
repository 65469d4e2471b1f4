/* SPDX-License-Identifier: BSD-2-Clause */
#include "marks.h"

#include <stdlib.h>

#include "bitmap.h"
#include "region.h"

struct marks *marks_new(const struct region_list *regions)
{
	struct marks *m = calloc(1, sizeof(*m));

	if (!m)
		return NULL;
	m->v = calloc(regions->nr ? regions->nr : 1, sizeof(*m->v));
	if (!m->v) {
		marks_delete(&m);
		return NULL;
	}
	for (; m->nr < regions->nr; m->nr++) {
		struct marks_region *r = &m->v[m->nr];

		r->nr_pages = regions->v[m->nr].nr_pages;
		r->map = calloc(bitmap_words(r->nr_pages), sizeof(*r->map));
		if (!r->map) {
			marks_delete(&m);
			return NULL;
		}
	}
	return m;
}

void marks_delete(struct marks **mp)
{
	struct marks *m = *mp;

	if (!m)
		return;
	for (unsigned i = 0; i < m->nr; i++)
		free(m->v[i].map);
	free(m->v);
	free(m);
	*mp = NULL;
}

void marks_set(struct marks *m, unsigned region, uint64_t first, uint64_t nr)
{
	while (nr) {
		unsigned off = first % BITMAP_WORD_BITS;
		unsigned n = BITMAP_WORD_BITS - off;

		if (n > nr)
			n = (unsigned)nr;
		marks_set_word(m, region, first / BITMAP_WORD_BITS, bitmap_mask(off, n));
		first += n;
		nr -= n;
	}
}

void marks_get(const struct marks *m, unsigned region, uint64_t first, uint64_t nr,
	       uint64_t *bitmap)
{
	const _Atomic uint64_t *map = m->v[region].map + first / BITMAP_WORD_BITS;
	uint64_t words = bitmap_words(nr);

	for (uint64_t i = 0; i < words; i++) {
		uint64_t word = atomic_load_explicit(&map[i], memory_order_acquire);

		if (i == words - 1 && nr % BITMAP_WORD_BITS)
			word &= bitmap_mask(0, nr % BITMAP_WORD_BITS);
		bitmap[i] |= word;
	}
}

void marks_take(struct marks *m, unsigned region, uint64_t first, uint64_t nr,
		const uint64_t *bitmap)
{
	_Atomic uint64_t *map = m->v[region].map + first / BITMAP_WORD_BITS;

	/*
	 * A word without any mark may be passed over: a mark that comes later stays, and
	 * makes the page be read again.
	 */
	for (uint64_t i = 0; i < bitmap_words(nr); i++)
		if (bitmap[i] && atomic_load_explicit(&map[i], memory_order_relaxed))
			atomic_fetch_and(&map[i], ~bitmap[i]);
}

uint64_t marks_overhead_bytes(const struct marks *m)
{
	uint64_t n = sizeof(*m) + m->nr * sizeof(*m->v);

	for (unsigned i = 0; i < m->nr; i++)
		n += bitmap_words(m->v[i].nr_pages) * sizeof(uint64_t);
	return n;
}
