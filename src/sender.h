/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_SRC_SENDER_H
#define TERN_SRC_SENDER_H

/*
 * The source's workers: one thread per channel, bound to the channel's NUMA node.
 *
 * The session's thread runs phases; in a phase every worker claims stripes until
 * none is left.
 *
 *	FIRST  dirty = pages that exist, section by section (scan.h); and SEND
 *	SEND   clear the dirty log of the stripe, test for zero, write; then fence
 *	SYNC   dirty |= pages written since
 *	POSTCOPY  what the config's function does; see pusher.h
 *
 * Between phases no worker runs, so what a phase leaves in bitmaps and counters
 * may be read without locks.  A worker that fails reports to the pool's owner
 * and stops; the others stop at their next stripe.
 */

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <tern/stats.h>

#include "dirty.h"
#include "limiter.h"
#include "monitor.h"
#include "populated.h"
#include "stripe.h"
#include "transport.h"
#include "wire.h"
#include "zero.h"

enum sender_phase {
	SENDER_FIRST,
	SENDER_SEND,
	SENDER_SYNC,
	SENDER_POSTCOPY,
};

/* What a phase did; SYNC fills dirty_pages only, SEND all but that. */
struct sender_result {
	uint64_t dirty_pages;  /* pages set in the bitmaps (FIRST, SYNC) */
	uint64_t normal_pages;
	uint64_t zero_pages;
	uint64_t bytes;        /* of guest RAM handed to the transport */
};

/* What the pool works on; constant while it exists. */
struct sender_config {
	struct monitor *mon;
	struct region_list *regions;
	const struct zero_ops *zero;
	const struct populated *populated;
	const struct dirty *dirty;
	struct limiter *limiter;
	uint64_t stripe_bytes;
	uint64_t chunk_bytes;
	/* A worker failed; called on its thread, the pool's lock is not held. */
	void (*fail)(void *opaque, const struct tern_error *why);
	/* Run the calling thread on CPUs of @node. */
	void (*run_on)(void *opaque, int node);
	void *opaque;
};

struct sender;

/*
 * sender_start - make @nr workers for @channels, which are there when the first phase begins;
 * the array stays the caller's.  0, -ENOMEM, -EAGAIN with *err.
 */
int sender_start(const struct sender_config *config, struct transport_channel **channels,
		 unsigned nr, struct sender **out, struct tern_error *err);

/* sender_stop - end the workers (their channels have been aborted or are idle) and free. */
void sender_stop(struct sender **s);

/* sender_set_postcopy - the function of POSTCOPY and its opaque.  No phase may be running. */
void sender_set_postcopy(struct sender *s,
			 int (*fn)(void *opaque, struct transport_channel *ch, int node,
				   const atomic_bool *abandon, struct sender_result *result,
				   struct tern_error *err),
			 void *opaque);

/*
 * sender_begin - start a phase; @final: the guest is paused (no clear(), no limit).
 * Session thread; no phase may be running.
 */
void sender_begin(struct sender *s, enum sender_phase phase, bool final);

/* sender_idle - with the monitor's lock held: has the phase ended? */
bool sender_idle(const struct sender *s);

/* sender_abandon - make a running phase end soon.  Any thread. */
void sender_abandon(struct sender *s);

/* sender_result - sum over all workers, of the phase that ended last. */
void sender_result(const struct sender *s, struct sender_result *out);

/* Running figures, any thread: since the pool was made. */
uint64_t sender_bytes(const struct sender *s);
uint64_t sender_first_byte_ns(const struct sender *s); /* now_ns() clock; 0: none yet */

/*
 * Figures of worker @i that the transport does not know: node, cpus, cpu, cpu_ns.
 * The monitor's lock is held.
 */
void sender_channel_stats(const struct sender *s, unsigned i, struct tern_channel_stats *out);

/* sender_overhead_bytes - memory the pool holds. */
uint64_t sender_overhead_bytes(const struct sender *s);

#endif
