/* SPDX-License-Identifier: BSD-2-Clause */
#include "pusher.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "bitmap.h"
#include "error.h"
#include "stripe.h"

#define SECTION_PAGES 16384u /* looked at in one go; a multiple of 64 */
#define WINDOW_PAGES 256u /* taken at once; a multiple of 64 */
#define WINDOW_WORDS (WINDOW_PAGES / 64u)
#define CONTENTS_PAGES (TRANSPORT_PUSH_MAX / TERN_PAGE_SIZE)
#define PREPARE_MAX 512u /* runs of a stripe that are prepared; more are made ready one by one */
#define AHEAD_PAGES 64u /* read-ahead behind a page */
#define STREAMS 8u /* threads that go through memory in order and are remembered */
#define NOTES 16u
#define ANXIOUS_NS 20000000u /* the guest asked for something within that time */

/* Pages [first, end) of a region. */
struct note {
	uint32_t region;
	uint64_t first, end;
};

/* Of a region: has somebody looked which of its pages exist? */
struct section {
	pthread_mutex_t lock; /* held while somebody does; a leaf */
	bool done;
};

struct push_region {
	uint64_t *missing; /* what the destination lacked at the begin */
	struct section *sections; /* [nr_sections]; none if region.dirty is known */
	uint64_t nr_sections;
};

/* A thread over there that goes through memory in order; the control thread's. */
struct stream {
	uint32_t region;
	uint64_t next; /* page that would go on with it */
	uint64_t run; /* pages sent ahead last; 0: none yet */
};

struct pusher {
	struct pusher_config c;
	uint8_t *by_contents;
	struct stripe_map sections, stripes;
	struct push_region *v; /* by region id */
	uint64_t nr_missing;
	_Atomic unsigned nr_todo; /* notes that nobody has taken: a hint to look */

	pthread_mutex_t lock; /* notes; a leaf */
	struct note todo[NOTES]; /* newest last */
	struct note recent[NOTES]; /* read ahead lately */
	unsigned next_recent;

	struct stream streams[STREAMS]; /* control thread */
	unsigned next_stream; /* to be replaced */

	_Atomic uint64_t asked_ns; /* when the guest asked last */
	_Atomic uint64_t requests, duplicates, hits;
};

/* What one thread has gathered for its channel. */
struct batch {
	struct pusher *p;
	struct transport_channel *ch;
	struct sender_result *result;
	struct transport_range ranges[TRANSPORT_WRITE_RANGES_MAX];
	unsigned nr;
	uint64_t bytes;
	struct wire_ranges zero, empty;
	uint8_t buf[TRANSPORT_NOTIFY_MAX];
};

/* ---------------------------------------------------------------- the lists */

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

/* ------------------------------------------------------------------ sending */

static bool by_contents(const struct pusher *p, uint32_t region)
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
	r = b->ch->ops->write(b->ch, b->ranges, b->nr, err);
	b->result->bytes += b->bytes;
	b->nr = 0;
	b->bytes = 0;
	return r ? r : flush_list(b, WIRE_NOTIFY_PLACED, &placed, err);
}

static int flush(struct batch *b, struct tern_error *err)
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

/* Send what is left of pages [first, end), at most WINDOW_PAGES of them; how many: *nr. */
static int push_window(struct batch *b, struct region *r, uint64_t first, uint64_t end,
		       bool contents, uint64_t *nr, struct tern_error *err)
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

/* Look at the sections of pages [first, end) of @r, and tell what of them is empty. */
static int look_at(struct batch *b, struct region *r, uint64_t first, uint64_t end,
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

/* -------------------------------------------------------------------- notes */

/* Pages behind those that were asked for are likely to be next. */
static void leave_note(struct pusher *p, const struct region *r, uint64_t end)
{
	struct note n = { r->id, end, end + AHEAD_PAGES };

	if (n.end > r->nr_pages)
		n.end = r->nr_pages;
	if (n.first >= n.end)
		return;
	pthread_mutex_lock(&p->lock);
	unsigned nr = atomic_load(&p->nr_todo);

	if (nr == NOTES)
		memmove(&p->todo[0], &p->todo[1], --nr * sizeof(p->todo[0]));
	p->todo[nr++] = n;
	atomic_store(&p->nr_todo, nr);
	pthread_mutex_unlock(&p->lock);
}

/* The newest note, which is remembered as read ahead.  False: none. */
static bool take_note(struct pusher *p, struct note *n)
{
	if (!atomic_load_explicit(&p->nr_todo, memory_order_relaxed))
		return false;
	pthread_mutex_lock(&p->lock);
	unsigned nr = atomic_load(&p->nr_todo);

	if (nr) {
		*n = p->todo[nr - 1];
		atomic_store(&p->nr_todo, nr - 1);
		p->recent[p->next_recent++ % NOTES] = *n;
	}
	pthread_mutex_unlock(&p->lock);
	return nr;
}

/* @n is read ahead. */
static void remember(struct pusher *p, const struct note *n)
{
	pthread_mutex_lock(&p->lock);
	p->recent[p->next_recent++ % NOTES] = *n;
	pthread_mutex_unlock(&p->lock);
}

/* Was @page read ahead lately? */
static bool was_ahead(struct pusher *p, uint32_t region, uint64_t page)
{
	bool found = false;

	pthread_mutex_lock(&p->lock);
	for (unsigned i = 0; i < NOTES; i++)
		found |= p->recent[i].region == region && page >= p->recent[i].first &&
			 page < p->recent[i].end;
	pthread_mutex_unlock(&p->lock);
	return found;
}

/* ------------------------------------------------------------------- workers */

/*
 * The first page from @from on, below @end, that is (@left) or is not left to be sent.
 * Others take pages meanwhile, so it may be wrong as soon as it is known.
 */
static uint64_t next_page(const struct region *r, uint64_t end, uint64_t from, bool left)
{
	for (uint64_t at = from; at < end; at = (at / 64 + 1) * 64) {
		uint64_t word = __atomic_load_n(&r->dirty[at / 64], __ATOMIC_RELAXED);

		word = (left ? word : ~word) & ~0ull << at % 64;
		if (!word)
			continue;
		at = at / 64 * 64 + (unsigned)__builtin_ctzll(word);
		return at < end ? at : end;
	}
	return end;
}

/*
 * Wait until pages [first, end) of @r may be sent, unless all of them were.  Before they are
 * taken: one that waits here can be asked for.
 */
static void await_turn(struct pusher *p, const struct region *r, uint64_t first, uint64_t end,
		       const atomic_bool *abandon)
{
	if (next_page(r, end, first, true) < end)
		limiter_take(p->c.limiter, p->c.mon, (end - first) * TERN_PAGE_SIZE, abandon);
}

/* Read ahead of what was asked for. */
static int push_notes(struct batch *b, const atomic_bool *abandon, struct tern_error *err)
{
	struct note n;
	int e = 0;

	while (!e && !atomic_load(abandon) && take_note(b->p, &n)) {
		struct region *r = &b->p->c.regions->v[n.region];
		uint64_t nr;

		e = flush(b, err);
		if (!e)
			e = look_at(b, r, n.first, n.end, err);
		if (!e)
			e = flush(b, err); /* it may have found holes */
		if (!e)
			await_turn(b->p, r, n.first, n.end, abandon);
		if (!e)
			e = push_window(b, r, n.first, n.end, by_contents(b->p, r->id), &nr, err);
		if (!e)
			e = flush(b, err);
	}
	return e;
}

/* Have the transport get ready for what is left of @st, and is not all zero. */
static int prepare(struct batch *b, const struct stripe *st, struct tern_error *err)
{
	struct transport_range v[PREPARE_MAX];
	const struct region *r = st->region;
	uint64_t end = st->first_page + st->nr_pages;
	unsigned nr = 0;

	if (!b->ch->ops->prepare || by_contents(b->p, r->id))
		return 0;
	for (uint64_t a = next_page(r, end, st->first_page, true), z; a < end && nr < PREPARE_MAX;
	     a = next_page(r, end, z, true)) {
		z = next_page(r, end, a, false);
		uint64_t at = a * TERN_PAGE_SIZE, len = (z - a) * TERN_PAGE_SIZE;

		/* Unless somebody took it just now, or it is zero and will hardly be written. */
		if (z > a && !zero_looks(r->hva + at, len))
			v[nr++] = (struct transport_range){ r->id, at, len };
	}
	return nr ? b->ch->ops->prepare(b->ch, v, nr, err) : 0;
}

/* How many pages to take at once: few if few may be sent in a second. */
static uint64_t window_pages(const struct pusher *p)
{
	uint64_t rate = atomic_load_explicit(&p->c.limiter->rate, memory_order_relaxed);
	uint64_t pages = rate ? rate / 100 / TERN_PAGE_SIZE / 64 * 64 : WINDOW_PAGES;

	return pages < 64 ? 64 : pages > WINDOW_PAGES ? WINDOW_PAGES : pages;
}

/*
 * While the guest asks for pages, what it asks for next may have been taken already, and
 * be behind all that is in the channel: then little may be.
 */
static int keep_short(struct batch *b, struct tern_error *err)
{
	uint64_t asked = atomic_load_explicit(&b->p->asked_ns, memory_order_relaxed);

	return now_ns() - asked < ANXIOUS_NS ? b->ch->ops->fence(b->ch, err) : 0;
}

/* Send what is left of a stripe. */
static int push_stripe(struct batch *b, const struct stripe *st, const atomic_bool *abandon,
		       struct tern_error *err)
{
	struct pusher *p = b->p;
	struct region *r = st->region;
	uint64_t end = st->first_page + st->nr_pages, n;
	int e = 0;

	for (uint64_t at = st->first_page; at < end && !e && !atomic_load(abandon); at += n) {
		uint64_t nr = 0;

		n = window_pages(p);
		n = end - at < n ? end - at : n;
		await_turn(p, r, at, at + n, abandon);
		e = push_notes(b, abandon, err);
		if (!e)
			e = push_window(b, r, at, at + n, by_contents(p, r->id), &nr, err);
		if (!e) /* what was taken can not be asked for: do not wait with any of it */
			e = flush(b, err);
		if (!e && nr)
			e = keep_short(b, err);
	}
	return e;
}

/* Claim a stripe and get ready for it.  1, 0: there is none, or -errno with *err. */
static int next_stripe(struct batch *b, int node, struct stripe *st, struct tern_error *err)
{
	int e;

	if (!stripe_claim(&b->p->stripes, node, st))
		return 0;
	e = look_at(b, st->region, st->first_page, st->first_page + st->nr_pages, err);
	if (!e) /* it may have found holes, and what follows may wait */
		e = flush(b, err);
	if (!e)
		e = prepare(b, st, err);
	return e ? e : 1;
}

/*
 * Send all stripes that nobody else does.  The next one is made ready before this one is
 * sent: what the peer has to do for it takes a while.
 */
static int push_stripes(struct batch *b, int node, const atomic_bool *abandon,
			struct tern_error *err)
{
	struct stripe now, next;
	int have = next_stripe(b, node, &now, err), e = 0;

	while (have > 0 && !e && !atomic_load(abandon)) {
		have = next_stripe(b, node, &next, err);
		if (have >= 0)
			e = push_stripe(b, &now, abandon, err);
		now = next;
	}
	return have < 0 ? have : e;
}

int pusher_work(void *opaque, struct transport_channel *ch, int node, const atomic_bool *abandon,
		struct sender_result *result, struct tern_error *err)
{
	struct pusher *p = opaque;
	struct batch *b = calloc(1, sizeof(*b));
	struct stripe st;
	int e = 0;

	atomic_store(&p->asked_ns, now_ns()); /* it is about to */
	if (!b)
		return error_session(err, -ENOMEM, "no memory for a channel's lists of pages");
	b->p = p;
	b->ch = ch;
	b->result = result;
	while (!e && !atomic_load(abandon) && stripe_claim(&p->sections, node, &st))
		e = look_at(b, st.region, st.first_page, st.first_page + st.nr_pages, err);
	if (!e)
		e = flush(b, err);
	if (!e)
		e = push_stripes(b, node, abandon, err);
	if (!e && atomic_load(abandon))
		e = -ECANCELED;
	if (!e)
		e = ch->ops->fence(ch, err);
	free(b);
	return e;
}

/* ------------------------------------------------------------------ requests */

/*
 * How many pages to send along behind @end: more and more, up to one message, if the
 * request goes on where one before it, with what was sent along, ended.
 */
static uint64_t stream_ahead(struct pusher *p, const struct region *r, uint64_t first, uint64_t end)
{
	struct stream *st = NULL;
	uint64_t left = r->nr_pages - end;

	for (unsigned i = 0; i < STREAMS && !st; i++)
		if (p->streams[i].region == r->id && p->streams[i].next == first && first)
			st = &p->streams[i];
	if (st) {
		st->run = st->run ? 2 * st->run : 2;
		st->run = st->run < CONTENTS_PAGES ? st->run : CONTENTS_PAGES;
	} else {
		st = &p->streams[p->next_stream++ % STREAMS];
		st->run = 0;
	}
	st->run = st->run < left ? st->run : left;
	st->region = r->id;
	st->next = end + st->run;
	return st->run;
}

/* Is it a request for one host page, or a part of it? */
static int check_wanted(const struct pusher *p, const struct wire_page_range *w,
			struct tern_error *err)
{
	if (w->region >= p->c.regions->nr)
		return error_set(err, -EPROTO, TERN_SCOPE_PAGE,
				 "message PAGES_WANTED from the peer has region = %u, there are %u",
				 w->region, p->c.regions->nr);
	const struct region *r = &p->c.regions->v[w->region];

	if (w->first_page >= r->nr_pages || w->nr_pages > r->nr_pages - w->first_page)
		return error_set(err, -EPROTO, TERN_SCOPE_PAGE,
				 "message PAGES_WANTED from the peer has pages %" PRIu64
				 " + %" PRIu64 " of region '%s', it has %" PRIu64,
				 w->first_page, w->nr_pages, r->name, r->nr_pages);
	if (w->nr_pages > r->host_page_size / TERN_PAGE_SIZE)
		return error_set(err, -EPROTO, TERN_SCOPE_PAGE,
				 "message PAGES_WANTED from the peer has nr_pages = %" PRIu64
				 " for region '%s', whose host pages have %" PRIu64,
				 w->nr_pages, r->name, r->host_page_size / TERN_PAGE_SIZE);
	return 0;
}

/* Answer one request: always with contents, whatever the region. */
static int answer(struct batch *b, const struct wire_page_range *w, struct tern_error *err)
{
	struct pusher *p = b->p;
	uint64_t end = w->first_page + w->nr_pages, found = 0;
	int e = check_wanted(p, w, err);

	if (e)
		return e;
	struct region *r = &p->c.regions->v[w->region];

	e = look_at(b, r, w->first_page, end, err);
	for (uint64_t at = w->first_page, n; at < end && !e; at += n) {
		uint64_t nr;

		n = end - at < WINDOW_PAGES ? end - at : WINDOW_PAGES;
		e = push_window(b, r, at, at + n, true, &nr, err);
		found += e ? 0 : nr;
	}
	atomic_fetch_add(&p->requests, 1);
	if (!found) {
		atomic_fetch_add(&p->duplicates, 1);
		if (was_ahead(p, w->region, w->first_page))
			atomic_fetch_add(&p->hits, 1);
	}
	return e;
}

/* After the answers: what the guest is likely to need next. */
static int go_on(struct batch *b, const struct wire_page_range *w, struct tern_error *err)
{
	struct region *r = &b->p->c.regions->v[w->region];
	uint64_t end = w->first_page + w->nr_pages, nr = 0;
	uint64_t ahead = stream_ahead(b->p, r, w->first_page, end);
	int e = 0;

	if (ahead) {
		e = look_at(b, r, end, end + ahead, err);
		if (!e)
			e = push_window(b, r, end, end + ahead, true, &nr, err);
		remember(b->p, &(struct note){ r->id, end, end + ahead });
	}
	leave_note(b->p, r, end + ahead);
	return e;
}

int pusher_answer(struct pusher *p, struct transport_channel *ch, const struct wire_wanted *w,
		  struct tern_error *err)
{
	struct sender_result result = { 0 };
	struct batch b;
	int e = 0;

	b.p = p;
	b.ch = ch;
	b.result = &result;
	b.nr = 0;
	b.bytes = 0;
	b.zero.count = b.empty.count = 0;
	atomic_store_explicit(&p->asked_ns, now_ns(), memory_order_relaxed);
	for (unsigned i = 0; i < w->count && !e; i++)
		e = answer(&b, &w->v[i], err);
	if (!e)
		e = flush(&b, err);
	for (unsigned i = 0; i < w->count && !e; i++)
		e = go_on(&b, &w->v[i], err);
	if (!e)
		e = flush(&b, err);
	return e;
}

uint64_t pusher_asked_ns(const struct pusher *p)
{
	return atomic_load_explicit(&p->asked_ns, memory_order_relaxed);
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
