/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * Room: the lock budget, kept by the source for both sides.
 *
 *	here     bytes registered at the source, or about to be
 *	there    bytes that the destination was asked for and has not refused
 *
 * Neither may pass its maximum, which is the lock budget, until registering fails
 * with ENOMEM: then it is lowered to what did fit, on the side that said so, and the
 * transfer goes on within that.  What does not fit waits in its registrar's queue,
 * while extents that are idle are let go of, those of any node.
 *
 * A further key of an extent needs no bytes, but a memory window of the destination, of
 * which only their end is known: one that is refused waits until any extent was let go of.
 *
 * Nothing idle: then room comes from writes that complete, unless every registered
 * extent is held by a channel that itself waits for room.  prepare() holds what it
 * named, so two channels could each hold half of the budget and wait for the other
 * half.  Channels that are about to sleep with nothing in flight are therefore on a
 * list (only while a registrar is short); when nothing else is in motion, they are
 * pressed to let go, all but one, which has the turn to prepare.  If that is not
 * enough either, one last registration is tried above a lowered maximum, and its
 * failure, or a budget that is too small, is the end.
 */

#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include "error.h"
#include "verbs.h"

/* room_wake_locked - something was freed, or ended: whoever waits for room looks again. */
void room_wake_locked(struct keys *k)
{
	if (!atomic_load(&k->nr_short))
		return;
	for (unsigned i = 0; i < k->nr_registrars; i++)
		if (k->registrars[i].waits_for_room)
			pthread_cond_signal(&k->registrars[i].work);
}

/* One key that was asked for is not any more: registrars that may not ask for more look again. */
static void asking_less(struct keys *k)
{
	if (k->nr_asking-- < KEYS_ASKING_MAX)
		return;
	for (unsigned i = 0; i < k->nr_registrars; i++)
		pthread_cond_signal(&k->registrars[i].work);
}

/* room_granted_locked - a key that was asked for was granted. */
void room_granted_locked(struct keys *k, struct extent_key *key)
{
	key->extent->unready--;
	asking_less(k);
	if (k->there > k->there_max) /* a last try went well */
		k->there_max = k->there;
}

/* Let go of extent @e on both sides.  keys.lock is held, and dropped meanwhile. */
static void release(struct registrar *r, struct extent *e)
{
	struct verbs_conn *c = r->conn;
	uint8_t buf[KEYS_HEAD_LEN + KEYS_RELEASE_LEN];
	struct tern_error why = { 0 };
	int rc = 0;

	r->busy = true;
	pthread_mutex_unlock(&c->keys.lock);
	if (e->mr)
		ibv_dereg_mr(e->mr);
	if (e->nr_asked)
		rc = control_queue(c, CTL_KEYS_RELEASE, buf,
				   (uint32_t)keys_release_put(buf, &e->id, 1));
	if (rc) {
		error_session(&why, rc, "No memory to release registrations");
		vconn_fail(c, &why);
	}
	pthread_mutex_lock(&c->keys.lock);
	r->busy = false;
	keys_forget_locked(&c->keys, e);
}

/* What registering @key still needs, here and at the destination. */
static uint64_t need_here(const struct extent_key *key)
{
	return key->extent->here ? 0 : key->extent->len;
}

static uint64_t need_there(const struct extent_key *key)
{
	return key->extent->nr_asked ? 0 : key->extent->len;
}

static bool fits(const struct keys *k, const struct extent_key *key, uint64_t here_max,
		 uint64_t there_max)
{
	uint64_t a = need_here(key), b = need_there(key);

	if (key->extent->id == EXTENT_NO_ID && !keys_numbers_left(k))
		return false;
	return (!a || k->here + a <= here_max) && (!b || k->there + b <= there_max);
}

/* Was @key refused for want of a window, and nothing let go of since?  keys.lock is held. */
static bool lacks_window(const struct keys *k, const struct extent_key *key)
{
	return key->refused_at == k->nr_released + 1;
}

/* May @key be asked for now? */
static bool fits_now(const struct keys *k, const struct extent_key *key)
{
	return !lacks_window(k, key) && fits(k, key, k->here_max, k->there_max);
}

/* Take @key, which *link points to, off the queue. */
static void unqueue(struct registrar *r, struct extent_key **link)
{
	struct extent_key *key = *link;

	*link = key->queue_next;
	key->queue_next = NULL;
	if (!*link)
		r->queue_tail = link;
}

/* Take @key off the queue and count it.  0 or -ENOMEM with *err. */
static int take(struct registrar *r, struct extent_key **link, struct tern_error *err)
{
	struct keys *k = &r->conn->keys;
	struct extent_key *key = *link;

	if (keys_number_locked(k, key->extent))
		return error_session(err, -ENOMEM, "No memory for the list of registrations");
	k->here += need_here(key);
	k->there += need_there(key);
	key->extent->here = true;
	key->extent->nr_asked++;
	key->asked = true;
	k->nr_asking++;
	registrar_peak_locked(r->conn);
	unqueue(r, link);
	return 0;
}

/* room_unask_locked - @key was not asked for after all, or was refused. */
void room_unask_locked(struct keys *k, struct extent_key *key)
{
	key->asked = false;
	asking_less(k);
	if (!--key->extent->nr_asked)
		k->there -= key->extent->len;
}

/* room_return_locked - @key goes back to the head of @r's queue. */
void room_return_locked(struct registrar *r, struct extent_key *key)
{
	struct extent *e = key->extent;

	if (!e->mr && e->here) {
		e->here = false;
		r->conn->keys.here -= e->len;
	}
	key->queue_next = r->queue;
	if (!r->queue)
		r->queue_tail = &key->queue_next;
	r->queue = key;
}

/*
 * Does nobody want *link any more?  It is dropped then, with its extent; keys.lock may be
 * dropped meanwhile.  If other channels have keys of the extent, they go as well when there
 * is no window for this one: nothing but this one keeps the extent from being let go of.
 */
static bool drop_unwanted(struct registrar *r, struct extent_key **link)
{
	struct verbs_conn *c = r->conn;
	struct extent *e = (*link)->extent;
	bool alone = !e->nr_asked && !atomic_load(&e->key.next);

	if (e->users || c->env.pin_all)
		return false;
	if (!alone && (e->unready > 1 || !lacks_window(&c->keys, *link)))
		return false;
	unqueue(r, link);
	keys_unlink_locked(&c->keys, e);
	release(r, e);
	return true;
}

/* Is @ch, which is on the list, still without anything to do?  keys.lock is held. */
static bool still_stuck(const struct keys *k, const struct verbs_channel *ch)
{
	for (unsigned i = 0; ch->preparing && i < ch->nr_held; i++)
		if (atomic_load(&ch->held[i]->state) == KEY_QUEUED)
			return true;
	if (ch->preparing) /* may be waiting for its turn */
		return !ch->nr_held && k->turn && k->turn != ch;
	for (unsigned i = 0; i < ch->nr_pending; i++)
		if (atomic_load(&ch->pending[i].key->state) == KEY_READY)
			return false;
	return true;
}

/* Note which extents are held by channels that are stuck. */
static void mark_stuck(struct keys *k, bool value)
{
	for (struct verbs_channel *ch = k->stuck; ch; ch = ch->stuck_next)
		for (unsigned i = 0; i < ch->nr_held; i++)
			ch->held[i]->extent->stuck = value;
}

/* Will anything be freed, or at least answered, if one just waits?  keys.lock is held. */
static bool room_may_come(struct keys *k, bool pin_all)
{
	bool may = k->nr_asking > 0;

	for (unsigned i = 0; i < k->nr_registrars; i++)
		may |= k->registrars[i].busy;
	if (may || pin_all) /* then nothing is let go of, idle or not */
		return may;
	for (struct verbs_channel *ch = k->stuck; ch; ch = ch->stuck_next)
		may |= !still_stuck(k, ch);
	if (may)
		return true;
	mark_stuck(k, true);
	for (uint32_t i = 0; i < k->nr_ids && !may; i++) {
		const struct extent *e = k->by_id[i];

		may = e && e->here && !e->unready && !e->idle && !e->stuck;
	}
	mark_stuck(k, false);
	return may;
}

/* Make stuck channels let go of what they hold.  True if there is one that will. */
static bool press(struct keys *k)
{
	bool any = false;

	for (struct verbs_channel *ch = k->stuck; ch; ch = ch->stuck_next) {
		if (!ch->nr_held || ch == k->turn)
			continue;
		if (ch->preparing && !k->turn) {
			k->turn = ch;
			continue;
		}
		if (!ch->pressed) {
			ch->pressed = true;
			(void)eventfd_write(ch->wake_fd, 1);
		}
		any = true;
	}
	return any;
}

/* Nothing can be freed for @key.  The sentence. */
static void never(struct verbs_conn *c, const struct extent_key *key, struct tern_error *err)
{
	const struct keys *k = &c->keys;

	if (key->extent->id == EXTENT_NO_ID && !keys_numbers_left(k)) {
		error_session(err, -ENOMEM,
			      "All %u registrations that device %s can have at once are in use; "
			      "use fewer --channels, or a smaller --chunk",
			      k->max_ids, c->device);
		return;
	}
	error_session(err, -ENOMEM,
		      "The lock budget of %llu KiB is too small: %llu KiB are registered and in "
		      "use, and %llu KiB more are needed (device %s); raise --lock-budget on both "
		      "sides, or use fewer --channels",
		      (unsigned long long)k->budget >> 10, (unsigned long long)k->here >> 10,
		      (unsigned long long)key->extent->len >> 10, c->device);
}

/* The first key of @r's queue that fits, or does for a @last_try; NULL if none does. */
static struct extent_key **first_fit(struct registrar *r, bool last_try)
{
	const struct keys *k = &r->conn->keys;

	for (struct extent_key **link = &r->queue; *link; link = &(*link)->queue_next)
		if (last_try ? fits(k, *link, k->budget, k->budget) : fits_now(k, *link))
			return link;
	return NULL;
}

/*
 * Nothing at the head of @r's queue fits and nothing is idle.  What can be taken
 * nevertheless, or NULL; then *err says why it never can be, or is left alone: wait.
 */
static struct extent_key **last_resort(struct registrar *r, struct tern_error *err)
{
	struct keys *k = &r->conn->keys;
	struct extent_key **link = first_fit(r, false);

	if (link || room_may_come(k, r->conn->env.pin_all) || press(k))
		return link;
	link = first_fit(r, true);
	if (link)
		(*link)->last_try = true;
	else
		never(r->conn, r->queue, err);
	return link;
}

/* @r is, or is not any more, waiting for room. */
static void set_short(struct registrar *r, bool value)
{
	struct keys *k = &r->conn->keys;

	if (r->waits_for_room == value)
		return;
	r->waits_for_room = value;
	if (!value) {
		atomic_fetch_sub(&k->nr_short, 1);
		return;
	}
	atomic_fetch_add(&k->nr_short, 1);
	/* Channels that sleep have to say what they hold. */
	pthread_mutex_unlock(&k->lock);
	vconn_wake_channels(r->conn);
	pthread_mutex_lock(&k->lock);
}

/*
 * How many to ask for at once: the destination answers when all of them are registered,
 * which takes long if their memory is fresh.  So the very first goes alone, and a few
 * others in small company.  keys.lock is held.
 */
static unsigned batch_now(const struct keys *k)
{
	if (k->here <= 2 * PIECE_BYTES)
		return 1;
	return k->here < 64 * PIECE_BYTES ? 4 : KEYS_BATCH;
}

unsigned room_take(struct registrar *r, struct extent_key **v, struct tern_error *err)
{
	struct keys *k = &r->conn->keys;
	unsigned nr = 0;

	while (r->queue && nr < KEYS_BATCH) {
		struct extent_key **link = &r->queue;
		struct extent *old;

		if (drop_unwanted(r, link))
			continue;
		if (k->nr_asking >= KEYS_ASKING_MAX) /* an answer wakes us */
			break;
		if (!fits_now(k, *link)) {
			old = r->conn->env.pin_all ? NULL : keys_evict_locked(k);
			if (old) {
				release(r, old);
				continue;
			}
			if (nr)
				break;
			if (!r->waits_for_room) {
				set_short(r, true);
				continue;
			}
			link = last_resort(r, err);
			if (!link)
				return 0;
		}
		v[nr] = *link;
		if (take(r, link, err))
			return 0;
		nr++;
		if (nr >= batch_now(k))
			break;
	}
	set_short(r, false);
	return nr;
}

bool room_stuck(struct verbs_channel *ch)
{
	struct keys *k = &ch->conn->keys;

	if (!atomic_load(&k->nr_short) || ch->sq_head != ch->sq_tail ||
	    (!ch->preparing && !ch->nr_pending))
		return false;
	pthread_mutex_lock(&k->lock);
	ch->stuck = true;
	ch->stuck_next = k->stuck;
	k->stuck = ch;
	room_wake_locked(k);
	pthread_mutex_unlock(&k->lock);
	return true;
}

bool room_unstuck(struct verbs_channel *ch)
{
	struct keys *k = &ch->conn->keys;
	struct verbs_channel **at = &k->stuck;
	bool pressed;

	pthread_mutex_lock(&k->lock);
	while (*at != ch)
		at = &(*at)->stuck_next;
	*at = ch->stuck_next;
	ch->stuck = false;
	pressed = ch->pressed;
	ch->pressed = false;
	pthread_mutex_unlock(&k->lock);
	return pressed;
}

void room_turn_over(struct verbs_channel *ch)
{
	struct keys *k = &ch->conn->keys;
	bool mine;

	pthread_mutex_lock(&k->lock);
	mine = k->turn == ch;
	if (mine)
		k->turn = NULL;
	pthread_mutex_unlock(&k->lock);
	if (mine)
		vconn_wake_channels(ch->conn);
}
