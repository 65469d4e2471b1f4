/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_SRC_PUSHER_H
#define TERN_SRC_PUSHER_H

/*
 * The source's side of postcopy: what the destination lacks, and who sends it.
 *
 *	workers		all channels but the last: stripe by stripe, in the background
 *	control thread	the last channel: what the destination's guest waits for
 *
 * region.dirty says which pages are still to be sent.  Whoever sends a page first takes
 * its bit, by an atomic operation, so a page is sent once (invariant 5), and a page that
 * was taken is in some channel already.  A worker takes few pages at a time, so that what
 * the guest asks for is rarely stuck behind many others.
 *
 * When the guest was moved without a precopy round nobody has looked yet which of its
 * pages exist: everything is missing.  Then the workers first look at all memory, section
 * by section, and tell the destination what is EMPTY; a request looks at its own section.
 *
 * Read-ahead: a thread that goes through memory in order gets a growing run of pages along
 * with the one that it asked for.  Besides, each request leaves a note, and the next worker
 * that comes by sends what lies behind the page before it goes on.
 */

#include <stdatomic.h>
#include <stdint.h>
#include <tern/stats.h>

#include "limiter.h"
#include "monitor.h"
#include "populated.h"
#include "region.h"
#include "runs.h"
#include "sender.h"
#include "transport.h"
#include "wire.h"
#include "zero.h"

struct pusher;
struct sender_result;
struct tern_error;

struct pusher_config {
	struct monitor *mon;
	struct region_list *regions;
	const struct populated *populated;
	const struct zero_ops *zero;
	struct limiter *limiter;
	uint64_t stripe_bytes, chunk_bytes;
	bool all_missing; /* no precopy round; else region.dirty is what is missing */
	const uint8_t *by_contents; /* a bit per region; copied */
	unsigned by_contents_len;
};

/*
 * pusher_new - before the guest is paused.  0 or -ENOMEM with *err.
 *
 * What is missing is known at once with all_missing, else after pusher_begin(): region.dirty
 * has become final.
 */
int pusher_new(const struct pusher_config *config, struct pusher **out, struct tern_error *err);
void pusher_begin(struct pusher *p);
void pusher_delete(struct pusher **p);

/* pusher_missing - the map of pages of region @id that the destination lacks, by bits. */
const uint64_t *pusher_missing(const struct pusher *p, uint32_t id);
uint64_t pusher_nr_missing(const struct pusher *p);

/* pusher_asked_ns - when the destination asked for pages last.  Any thread. */
uint64_t pusher_asked_ns(const struct pusher *p);

/*
 * pusher_forget, pusher_lacks - after a lost link: forget what was missing; the
 * destination lacks the pages of a piece.  0 or -EPROTO.  pusher_again() - begin anew with
 * that, in chunks of @chunk_bytes.  No worker runs.
 */
void pusher_forget(struct pusher *p);
int pusher_lacks(struct pusher *p, uint32_t region, struct runs *runs);
void pusher_again(struct pusher *p, uint64_t chunk_bytes);

/* pusher_work - a worker's share, on @ch; see struct sender_config.  opaque: the pusher. */
int pusher_work(void *pusher, struct transport_channel *ch, int node, const atomic_bool *abandon,
		struct sender_result *result, struct tern_error *err);

/*
 * pusher_answer - the destination's guest waits for these pages.  Control thread.
 *
 * Every value is the peer's.  0, -EPROTO, or what the channel gives, with *err.
 */
int pusher_answer(struct pusher *p, struct transport_channel *ch, const struct wire_wanted *w,
		  struct tern_error *err);

/*
 * pusher_take_asked - add to *out what answers to requests have sent since the last call.
 *
 * What the background sends counts in the results of its threads.  Any thread.
 */
void pusher_take_asked(struct pusher *p, struct sender_result *out);

/* pusher_first_byte_ns - when the first contents left (now_ns() clock); 0: not yet.  Any thread. */
uint64_t pusher_first_byte_ns(const struct pusher *p);

/* pusher_stats - requests, duplicates, read_ahead_hits.  Any thread. */
void pusher_stats(const struct pusher *p, struct tern_postcopy_stats *out);

uint64_t pusher_overhead_bytes(const struct pusher *p);

#endif
