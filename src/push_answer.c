/* SPDX-License-Identifier: BSD-2-Clause */
/* Requests, and what is likely to be asked for next. */
#include "pusher_private.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "error.h"

#define CONTENTS_PAGES (TRANSPORT_PUSH_MAX / TERN_PAGE_SIZE)
#define AHEAD_PAGES 64u /* read-ahead behind a page */

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

bool pusher_take_note(struct pusher *p, struct note *n)
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

	e = batch_look(b, r, w->first_page, end, err);
	for (uint64_t at = w->first_page, n; at < end && !e; at += n) {
		uint64_t nr;

		n = end - at < WINDOW_PAGES ? end - at : WINDOW_PAGES;
		e = batch_window(b, r, at, at + n, true, &nr, err);
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
		e = batch_look(b, r, end, end + ahead, err);
		if (!e)
			e = batch_window(b, r, end, end + ahead, true, &nr, err);
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

	batch_init(&b, p, ch, &result);
	atomic_store_explicit(&p->asked_ns, now_ns(), memory_order_relaxed);
	for (unsigned i = 0; i < w->count && !e; i++)
		e = answer(&b, &w->v[i], err);
	if (!e)
		e = batch_flush(&b, err);
	for (unsigned i = 0; i < w->count && !e; i++)
		e = go_on(&b, &w->v[i], err);
	if (!e)
		e = batch_flush(&b, err);
	atomic_fetch_add(&p->asked_normal, result.normal_pages);
	atomic_fetch_add(&p->asked_zero, result.zero_pages);
	atomic_fetch_add(&p->asked_bytes, result.bytes);
	return e;
}
