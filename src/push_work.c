/* SPDX-License-Identifier: BSD-2-Clause */
/* The background: all that is missing, in the order of memory, and what is read ahead first. */
#include "pusher_private.h"

#include <errno.h>
#include <stdlib.h>

#include "bitmap.h"
#include "error.h"

#define PREPARE_MAX 512u /* runs of a stripe that are prepared; more are made ready one by one */
#define ANXIOUS_NS 20000000u /* the guest asked for something within that time */

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

	while (!e && !atomic_load(abandon) && pusher_take_note(b->p, &n)) {
		struct region *r = &b->p->c.regions->v[n.region];
		uint64_t nr;

		e = batch_flush(b, err);
		if (!e)
			e = batch_look(b, r, n.first, n.end, err);
		if (!e)
			e = batch_flush(b, err); /* it may have found holes */
		if (!e)
			await_turn(b->p, r, n.first, n.end, abandon);
		if (!e)
			e = batch_window(b, r, n.first, n.end, pusher_by_contents(b->p, r->id), &nr,
					 err);
		if (!e)
			e = batch_flush(b, err);
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

	if (!b->ch->ops->prepare || pusher_by_contents(b->p, r->id))
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
			e = batch_window(b, r, at, at + n, pusher_by_contents(p, r->id), &nr, err);
		if (!e) /* what was taken can not be asked for: do not wait with any of it */
			e = batch_flush(b, err);
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
	e = batch_look(b, st->region, st->first_page, st->first_page + st->nr_pages, err);
	if (!e) /* it may have found holes, and what follows may wait */
		e = batch_flush(b, err);
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
	batch_init(b, p, ch, result);
	while (!e && !atomic_load(abandon) && stripe_claim(&p->sections, node, &st))
		e = batch_look(b, st.region, st.first_page, st.first_page + st.nr_pages, err);
	if (!e)
		e = batch_flush(b, err);
	if (!e)
		e = push_stripes(b, node, abandon, err);
	if (!e && atomic_load(abandon))
		e = -ECANCELED;
	if (!e)
		e = ch->ops->fence(ch, err);
	free(b);
	return e;
}
