/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * Extents: which parts of the source's memory are registered on both sides.
 *
 * Regions are cut into pieces of PIECE_BYTES.  An extent is a run of pages
 * within a piece; extents never overlap.  The first prepare() or write() of a page
 * makes one, over exactly the pages that it names: registering allocates what it
 * covers, here and at the destination, and what was never touched must stay
 * unallocated (invariant 10).  Pages next to them that exist are left out as well:
 * they may be write-protected by the dirty log, and then registering them fails.
 *
 *	piece     |PPPPPP....PP.PPPP|      P: page exists, .: hole
 *	prepare     ▲▲▲▲
 *	extent     [eeee]
 *
 * An extent with users is queued, in flight, or held by prepare().  Without users it is
 * on the idle list, oldest first, where a registrar (of any node) takes it when the
 * budget is short.
 *
 * An extent gets its number when it is about to be registered.  There may be many more
 * extents than numbers, and than the device has registrations, when memory is full of
 * holes: then numbers are room like bytes, and idle extents are let go of.
 *
 * An extent has one key for all channels, or, with memory windows, one for each channel
 * that writes to it.  Keys are only ever added, so they are read without the lock.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "verbs.h"

#define PAGE 4096ull
/*
 * The first extent of all covers at most so much: the first write waits for nothing but
 * its registration, here and at the destination, where that allocates memory.
 */
#define FIRST_BYTES (16 * PAGE)

/* Take @e off the idle list. */
static void lru_remove(struct keys *k, struct extent *e)
{
	if (e->lru_prev)
		e->lru_prev->lru_next = e->lru_next;
	else
		k->lru_first = e->lru_next;
	if (e->lru_next)
		e->lru_next->lru_prev = e->lru_prev;
	else
		k->lru_last = e->lru_prev;
	e->lru_prev = e->lru_next = NULL;
	e->idle = false;
}

/* Put @e at the young end. */
static void lru_add(struct keys *k, struct extent *e)
{
	e->lru_prev = k->lru_last;
	e->lru_next = NULL;
	if (k->lru_last)
		k->lru_last->lru_next = e;
	else
		k->lru_first = e;
	k->lru_last = e;
	e->idle = true;
}

bool keys_numbers_left(const struct keys *k)
{
	return k->nr_free || k->nr_ids < k->max_ids;
}

/* keys_number_locked - @e is about to be registered: it gets a number.  0 or -ENOMEM. */
int keys_number_locked(struct keys *k, struct extent *e)
{
	if (e->id != EXTENT_NO_ID)
		return 0;
	if (k->nr_free) {
		e->id = k->free_ids[--k->nr_free];
		k->by_id[e->id] = e;
		return 0;
	}
	if (k->nr_ids == k->cap_ids) {
		uint32_t cap = k->cap_ids ? 2 * k->cap_ids : 1024;
		struct extent **v = realloc(k->by_id, cap * sizeof(*v));
		uint32_t *f;

		if (!v)
			return -ENOMEM;
		k->by_id = v;
		f = realloc(k->free_ids, cap * sizeof(*f));
		if (!f)
			return -ENOMEM;
		k->free_ids = f;
		k->cap_ids = cap;
	}
	e->id = k->nr_ids++;
	k->by_id[e->id] = e;
	return 0;
}

/* Hand @key to the registrar of its memory. */
static void queue_key(struct keys *k, struct extent_key *key)
{
	struct registrar *r = k->of_region[key->extent->region];

	*r->queue_tail = key;
	r->queue_tail = &key->queue_next;
	key->extent->unready++;
	pthread_cond_signal(&r->work);
}

/* A new extent over @len bytes at @offset of @region, in front of *@link.  NULL: no memory. */
static struct extent *extent_new(uint32_t region, uint64_t offset, uint64_t len,
				 struct extent **link)
{
	struct extent *e = calloc(1, sizeof(*e));

	if (!e)
		return NULL;
	e->id = EXTENT_NO_ID;
	e->region = region;
	e->offset = offset;
	e->len = len;
	e->next = *link;
	*link = e;
	return e;
}

/*
 * The key of @channel for @e, made if there is none.  NULL: no memory; an extent without
 * keys is gone then.
 */
static struct extent_key *key_get(struct keys *k, struct extent *e, uint32_t channel)
{
	_Atomic(struct extent_key *) *link;
	struct extent_key *key = &e->key;

	if (key->extent) {
		for (;; key = atomic_load(link)) {
			if (key->channel == channel)
				return key;
			link = &key->next;
			if (!atomic_load(link))
				break;
		}
		key = calloc(1, sizeof(*key));
		if (!key)
			return NULL;
		atomic_init(&key->state,
			    atomic_load(&e->key.state) == KEY_QUEUED ? KEY_QUEUED : KEY_PINNED);
	} else {
		link = NULL;
	}
	key->extent = e;
	key->channel = channel;
	if (link)
		atomic_store(link, key);
	queue_key(k, key);
	return key;
}

/*
 * The extent that covers page @page of piece @p, made if there is none.  Up to @want
 * pages are wanted.  keys.lock is held.
 */
static struct extent *piece_extent(struct verbs_conn *c, uint32_t region, uint64_t p, unsigned page,
				   unsigned want)
{
	struct keys *k = &c->keys;
	const struct transport_memory *m = &c->mem[region];
	uint64_t base = p * PIECE_BYTES;
	uint64_t size = m->size - base < PIECE_BYTES ? m->size - base : PIECE_BYTES;
	unsigned nr = (unsigned)((size + PAGE - 1) / PAGE), min = 0, max = nr;
	struct extent **link = &k->pieces[region][p];
	uint64_t at = base + page * PAGE, len;
	unsigned first = page, end;

	for (; *link && (*link)->offset + (*link)->len <= at; link = &(*link)->next)
		min = (unsigned)(((*link)->offset + (*link)->len - base + PAGE - 1) / PAGE);
	if (*link && (*link)->offset <= at)
		return *link;
	if (*link)
		max = (unsigned)(((*link)->offset - base) / PAGE);
	end = page + want < max ? page + want : max;
	if (c->env.pin_all) {
		first = min;
		end = max;
	}
	len = end == nr ? size - first * PAGE : (end - first) * PAGE;
	return extent_new(region, base + first * PAGE, len, link);
}

int64_t keys_hold(struct verbs_conn *c, uint32_t channel, uint32_t region, uint64_t offset,
		  uint64_t len, struct extent_key **out)
{
	struct keys *k = &c->keys;
	uint64_t p = offset / PIECE_BYTES, in = offset % PIECE_BYTES, room;
	unsigned page = (unsigned)(in / PAGE);
	struct extent_key *key = NULL;
	struct extent *e;

	if (len > PIECE_BYTES - in)
		len = PIECE_BYTES - in;
	pthread_mutex_lock(&k->lock);
	if (!k->begun && !c->env.pin_all && len > FIRST_BYTES)
		len = FIRST_BYTES;
	k->begun = true;
	e = piece_extent(c, region, p, page, (unsigned)((in + len + PAGE - 1) / PAGE) - page);
	if (e)
		key = key_get(k, e, c->windows ? channel : KEYS_ANY_CHANNEL);
	if (key) {
		if (e->idle)
			lru_remove(k, e);
		e->users++;
	}
	pthread_mutex_unlock(&k->lock);
	if (!key)
		return -ENOMEM;
	*out = key;
	room = e->offset + e->len - offset;
	return (int64_t)(len < room ? len : room);
}

void keys_drop(struct verbs_conn *c, struct extent_key *key)
{
	struct extent *e = key->extent;
	struct keys *k = &c->keys;

	pthread_mutex_lock(&k->lock);
	if (!--e->users) {
		lru_add(k, e);
		room_wake_locked(k);
	}
	pthread_mutex_unlock(&k->lock);
}

/* keys_unlink_locked - take @e, which is idle, out of everything but the accounts. */
void keys_unlink_locked(struct keys *k, struct extent *e)
{
	struct extent **link = &k->pieces[e->region][e->offset / PIECE_BYTES];

	lru_remove(k, e);
	while (*link != e)
		link = &(*link)->next;
	*link = e->next;
	if (e->id != EXTENT_NO_ID)
		k->by_id[e->id] = NULL;
}

/*
 * keys_evict_locked - take the extent that was idle longest out of everything.
 *
 * NULL if no extent that is registered on both sides is idle.  The caller
 * deregisters it, then calls keys_forget_locked().
 */
struct extent *keys_evict_locked(struct keys *k)
{
	struct extent *e = k->lru_first;

	while (e && e->unready)
		e = e->lru_next;
	if (e)
		keys_unlink_locked(k, e);
	return e;
}

/* keys_free_extent - free @e and its keys. */
void keys_free_extent(struct extent *e)
{
	struct extent_key *key = atomic_load(&e->key.next);

	while (key) {
		struct extent_key *next = atomic_load(&key->next);

		free(key);
		key = next;
	}
	free(e);
}

/* keys_forget_locked - @e's number may be used again, and its bytes by others. */
void keys_forget_locked(struct keys *k, struct extent *e)
{
	if (e->id != EXTENT_NO_ID)
		k->free_ids[k->nr_free++] = e->id;
	if (e->here)
		k->here -= e->len;
	if (e->nr_asked) {
		k->there -= e->len;
		k->nr_released++;
	}
	keys_free_extent(e);
	room_wake_locked(k);
}
