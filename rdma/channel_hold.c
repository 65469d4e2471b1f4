/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * What prepare() holds.
 *
 * Everything named stays registered until the next prepare() or fence(): it could not
 * be registered again once the dirty log has protected it, or only at the price of
 * sending it twice.
 *
 * While room is short and another channel has the turn, a channel lets go of all it
 * holds, waits, and begins again; see keys_room.c.
 */

#include <errno.h>
#include <stdlib.h>
#include "error.h"
#include "verbs.h"

/* What was held was let go of: begin again.  No errno: those come from device and peer, too. */
#define LET_GO 1

void vchan_unhold(struct verbs_channel *ch)
{
	while (ch->nr_held)
		keys_drop(ch->conn, ch->held[--ch->nr_held]);
}

/* Hold the extents of one range; they are made if there are none.  0 or -errno. */
static int hold(struct verbs_channel *ch, const struct transport_range *r)
{
	uint64_t at = r->offset, end = at + r->len;

	while (at < end) {
		struct extent_key *key;
		int64_t n;

		if (ch->nr_held == ch->cap_held) {
			unsigned cap = ch->cap_held ? 2 * ch->cap_held : 64;
			struct extent_key **v = realloc(ch->held, cap * sizeof(*v));

			if (!v)
				return -ENOMEM;
			ch->held = v;
			ch->cap_held = cap;
		}
		n = keys_hold(ch->conn, ch->base.index, r->region, at, end - at, &key);
		if (n < 0)
			return (int)n;
		ch->held[ch->nr_held++] = key;
		at += (uint64_t)n;
	}
	return 0;
}

/* Hold all of @ranges.  0 or -errno with *err. */
static int hold_all(struct verbs_channel *ch, const struct transport_range *ranges, unsigned nr,
		    struct tern_error *err)
{
	int rc = 0;

	for (unsigned i = 0; i < nr && !rc; i++)
		rc = hold(ch, &ranges[i]);
	if (!rc)
		return 0;
	return vchan_failed(ch, rc, err, "Keeping the registrations of channel %u failed: %s",
			    ch->base.index, error_name(rc));
}

/* Has another channel the turn to prepare? */
static bool other_has_turn(struct verbs_channel *ch)
{
	struct keys *k = &ch->conn->keys;
	bool other;

	pthread_mutex_lock(&k->lock);
	other = k->turn && k->turn != ch;
	pthread_mutex_unlock(&k->lock);
	return other;
}

/*
 * Wait until everything held is registered here.  0; LET_GO; or -errno with *err.
 * Completions of this channel may have to free some room meanwhile.
 */
static int await_held(struct verbs_channel *ch, int64_t *deadline, struct tern_error *err)
{
	unsigned i = 0;
	int rc;

	while (i < ch->nr_held) {
		if (atomic_load(&ch->held[i]->state) != KEY_QUEUED) {
			i++;
			continue;
		}
		rc = vchan_advance(ch, err);
		if (!rc && atomic_load(&ch->held[i]->state) == KEY_QUEUED)
			rc = vchan_wait(ch, deadline, err);
		if (rc)
			return rc;
		if (!ch->nr_held)
			return LET_GO;
	}
	return 0;
}

/* Ops; see src/transport.h. */
int vchan_prepare(struct transport_channel *base, const struct transport_range *ranges, unsigned nr,
		  struct tern_error *err)
{
	struct verbs_channel *ch = to_channel(base);
	int64_t deadline;
	int rc = vchan_check_ranges(ch, ranges, nr, err);

	/* The first write has to leave soon: nothing is registered ahead beside it. */
	if (!rc && !atomic_load_explicit(&ch->fig.first_write_ns, memory_order_relaxed))
		rc = vchan_drain(ch, 0, err);
	if (rc)
		return rc;
	deadline = vchan_patience(ch);
	vchan_unhold(ch);
	ch->preparing = true;
	do {
		rc = hold_all(ch, ranges, nr, err);
		if (!rc)
			rc = await_held(ch, &deadline, err);
		while (rc == LET_GO && other_has_turn(ch)) {
			int waited = vchan_advance(ch, err);

			if (!waited)
				waited = vchan_wait(ch, &deadline, err);
			rc = waited ? waited : rc;
		}
	} while (rc == LET_GO);
	ch->preparing = false;
	room_turn_over(ch);
	return rc;
}
