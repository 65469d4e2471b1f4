/* SPDX-License-Identifier: BSD-2-Clause */
/* What one thread gathers for its channel, and puts on it. */
#include "pusher_private.h"

#include <string.h>

#include "bitmap.h"
#include "monitor.h"
#include "populated.h"

#define WINDOW_WORDS (WINDOW_PAGES / 64u)
#define CONTENTS_PAGES (TRANSPORT_PUSH_MAX / TERN_PAGE_SIZE)

void batch_init(struct batch *b, struct pusher *p, struct transport_channel *ch,
		struct sender_result *result)
{
	b->p = p;
	b->ch = ch;
	b->result = result;
	b->nr = 0;
	b->bytes = 0;
	b->zero.count = b->empty.count = 0;
}

bool pusher_by_contents(const struct pusher *p, uint32_t region)
{
	return p->by_contents[region / 8] >> (region % 8) & 1;
}

/* Send a list of ranges of pages. */
static int flush_list(struct batch *b, enum wire_notify_type type, struct wire_ranges *list,
		      struct tern_error *err)
{
	if (!list->count)
		return 0;
	size_t len = wire_ranges_encode(type, list, b->buf);

	list->count = 0;
	return b->ch->ops->notify(b->ch, b->buf, len, err);
}

/* Contents are about to leave. */
static void note_first(struct pusher *p)
{
	uint64_t none = 0;

	if (!atomic_load_explicit(&p->first_ns, memory_order_relaxed))
		atomic_compare_exchange_strong(&p->first_ns, &none, now_ns());
}

/* Write what was gathered, and say that it is there. */
static int flush_ranges(struct batch *b, struct tern_error *err)
{
	struct wire_ranges placed;
	int r;

	if (!b->nr)
		return 0;
	placed.count = (uint16_t)b->nr;
	for (unsigned i = 0; i < b->nr; i++)
		placed.v[i] = (struct wire_page_range){
			.region = b->ranges[i].region,
			.first_page = b->ranges[i].offset / TERN_PAGE_SIZE,
			.nr_pages = b->ranges[i].len / TERN_PAGE_SIZE,
		};
	note_first(b->p);
	r = b->ch->ops->write(b->ch, b->ranges, b->nr, err);
	b->result->bytes += b->bytes;
	b->nr = 0;
	b->bytes = 0;
	return r ? r : flush_list(b, WIRE_NOTIFY_PLACED, &placed, err);
}

int batch_flush(struct batch *b, struct tern_error *err)
{
	int r = flush_ranges(b, err);

	if (!r)
		r = flush_list(b, WIRE_NOTIFY_EMPTY, &b->empty, err);
	return r ? r : flush_list(b, WIRE_NOTIFY_ZERO, &b->zero, err);
}

/* Add pages [first, end) to a list. */
static int put_list(struct batch *b, enum wire_notify_type type, struct wire_ranges *list,
		    const struct region *r, uint64_t first, uint64_t end, struct tern_error *err)
{
	int e = list->count == WIRE_RANGES_MAX ? flush_list(b, type, list, err) : 0;

	if (!e)
		list->v[list->count++] = (struct wire_page_range){ r->id, first, end - first };
	return e;
}

/* Pages [first, end), which are zero: of those that were sent before the contents go. */
static int put_zero(struct batch *b, const struct region *r, uint64_t first, uint64_t end,
		    struct tern_error *err)
{
	int e = 0;

	b->result->zero_pages += end - first;
	for (uint64_t a = first, z; a < end && !e; a = z) {
		bool sent = bitmap_test(r->sent, a);

		z = sent ? bitmap_next_clear(r->sent, end, a) : bitmap_next_set(r->sent, end, a);
		e = sent ? put_list(b, WIRE_NOTIFY_ZERO, &b->zero, r, a, z, err)
			 : put_list(b, WIRE_NOTIFY_EMPTY, &b->empty, r, a, z, err);
	}
	return e;
}

/* Send pages [first, end) with their contents. */
static int put_contents(struct batch *b, const struct region *r, uint64_t first, uint64_t end,
			struct tern_error *err)
{
	int e = 0;

	for (uint64_t at = first; at < end && !e; at += CONTENTS_PAGES) {
		uint64_t n = end - at < CONTENTS_PAGES ? end - at : CONTENTS_PAGES;
		struct transport_range range = { r->id, at * TERN_PAGE_SIZE, n * TERN_PAGE_SIZE };
		struct wire_notify msg = {
			.type = WIRE_NOTIFY_CONTENTS,
			.contents = { .region = r->id, .first_page = at },
		};

		note_first(b->p);
		e = b->ch->ops->push(b->ch, b->buf, wire_notify_encode(&msg, b->buf), &range, err);
		b->result->bytes += range.len;
	}
	return e;
}

/* Gather pages [first, end) for writing. */
static int put_ranges(struct batch *b, const struct region *r, uint64_t first, uint64_t end,
		      struct tern_error *err)
{
	uint64_t offset = first * TERN_PAGE_SIZE, left = (end - first) * TERN_PAGE_SIZE;
	uint64_t chunk = b->p->c.chunk_bytes;
	int e = 0;

	while (left && !e) {
		uint64_t n = left < chunk ? left : chunk;

		if (b->nr == TRANSPORT_WRITE_RANGES_MAX || (b->nr && b->bytes + n > chunk))
			e = flush_ranges(b, err);
		if (e)
			break;
		b->ranges[b->nr++] = (struct transport_range){ r->id, offset, n };
		b->bytes += n;
		offset += n;
		left -= n;
	}
	return e;
}

/* Pages [first, end) were taken: send them.  @contents: in messages. */
static int put_run(struct batch *b, const struct region *r, uint64_t first, uint64_t end,
		   bool contents, struct tern_error *err)
{
	const struct zero_ops *zero = b->p->c.zero;
	const uint8_t *hva = r->hva;
	int e = 0;

	for (uint64_t a = first, z; a < end && !e; a = z) {
		bool is_zero = zero->is_zero(hva + a * TERN_PAGE_SIZE, TERN_PAGE_SIZE);

		for (z = a + 1; z < end; z++)
			if (zero->is_zero(hva + z * TERN_PAGE_SIZE, TERN_PAGE_SIZE) != is_zero)
				break;
		if (is_zero) {
			e = put_zero(b, r, a, z, err);
			continue;
		}
		b->result->normal_pages += z - a;
		e = contents ? put_contents(b, r, a, z, err) : put_ranges(b, r, a, z, err);
	}
	return e;
}

/* Take the pages of [first, end) that nobody has; at most WINDOW_PAGES.  How many. */
static uint64_t take(struct region *r, uint64_t first, uint64_t end, uint64_t *taken)
{
	uint64_t nr = 0;

	memset(taken, 0, (WINDOW_WORDS + 1) * sizeof(*taken));
	for (uint64_t at = first, n; at < end; at += n) {
		uint64_t word = at / 64, mask;

		n = 64 - at % 64 < end - at ? 64 - at % 64 : end - at;
		mask = bitmap_mask((unsigned)(at % 64), (unsigned)n);
		if (!(__atomic_load_n(&r->dirty[word], __ATOMIC_RELAXED) & mask))
			continue;
		mask &= __atomic_fetch_and(&r->dirty[word], ~mask, __ATOMIC_ACQ_REL);
		taken[word - first / 64] = mask;
		nr += (unsigned)__builtin_popcountll(mask);
	}
	return nr;
}

int batch_window(struct batch *b, struct region *r, uint64_t first, uint64_t end, bool contents,
		 uint64_t *nr, struct tern_error *err)
{
	uint64_t taken[WINDOW_WORDS + 1], base = first / 64 * 64;
	int e = 0;

	*nr = take(r, first, end, taken);
	if (!*nr)
		return 0;
	bitmap_for_each_run (taken, end - base, a, z) {
		e = put_run(b, r, base + a, base + z, contents, err);
		if (e)
			break;
	}
	return e;
}

/* -------------------------------------------------------------- what exists */

/*
 * Look at section @i of @r, unless somebody did: which of its missing pages exist, and
 * which do not (*holes).  1: those are to be told; 0: no; -errno with *err.
 */
static int look(struct batch *b, struct region *r, uint64_t i, uint64_t *holes,
		struct tern_error *err)
{
	struct push_region *v = &b->p->v[r->id];
	uint64_t first = i * SECTION_PAGES, nr = r->nr_pages - first;
	uint64_t *dirty = r->dirty + first / 64;
	const uint64_t *missing = v->missing + first / 64;
	int e = 0;

	nr = nr < SECTION_PAGES ? nr : SECTION_PAGES;
	pthread_mutex_lock(&v->sections[i].lock);
	if (!v->sections[i].done) {
		e = populated_scan(b->p->c.populated, r, first, nr, dirty, err);
		b->result->dirty_pages += e ? 0 : bitmap_count(dirty, nr);
		for (uint64_t w = 0; w < bitmap_words(nr); w++) {
			holes[w] = missing[w] & ~dirty[w];
			dirty[w] &= missing[w];
		}
		v->sections[i].done = !e;
		e = e ? e : 1;
	}
	pthread_mutex_unlock(&v->sections[i].lock);
	return e;
}

int batch_look(struct batch *b, struct region *r, uint64_t first, uint64_t end,
	       struct tern_error *err)
{
	uint64_t holes[SECTION_PAGES / 64];

	if (!b->p->v[r->id].nr_sections)
		return 0;
	for (uint64_t i = first / SECTION_PAGES; i * SECTION_PAGES < end; i++) {
		uint64_t base = i * SECTION_PAGES, nr = r->nr_pages - base;
		int e = look(b, r, i, holes, err);

		if (e < 0)
			return e;
		if (!e)
			continue;
		nr = nr < SECTION_PAGES ? nr : SECTION_PAGES;
		e = 0;
		bitmap_for_each_run (holes, nr, a, z) {
			e = put_list(b, WIRE_NOTIFY_EMPTY, &b->empty, r, base + a, base + z, err);
			if (e)
				return e;
		}
	}
	return 0;
}
