/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * The guest's own dirty log, as a VMM has one (KVM's, say): --dirty-provider callbacks.
 *
 *	vCPU	store page ── full barrier ── is there a log? ── set bit
 *	start()	there is a log ── full barrier ── … the engine reads pages
 *	clear()	take bits (a full barrier) ─────── … the engine reads those pages
 *
 * Of a vCPU's store and the engine's read at least one sees the other: either the
 * engine reads what was stored, or the vCPU finds the log, or sets its bit after the
 * bit was taken.  A bit may be set for a page that was read in time; it is sent twice.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "guest_impl.h"

#define WORD_BITS 64u

int guest_log_start(struct guest *g)
{
	for (unsigned i = 0; i < g->nr_regions; i++) {
		struct guest_region *r = &g->regions[i];
		uint64_t words = (r->nr_pages + WORD_BITS - 1) / WORD_BITS;

		if (!r->log)
			r->log = calloc(words, sizeof(*r->log));
		if (!r->log)
			return -ENOMEM;
		for (uint64_t k = 0; k < words; k++) /* of an earlier migration */
			atomic_store_explicit(&r->log[k], 0, memory_order_relaxed);
	}
	atomic_store(&g->logging, true);
	return 0;
}

void guest_log_stop(struct guest *g)
{
	atomic_store(&g->logging, false);
}

void guest_log_mark(struct guest *g, uint64_t page)
{
	const struct guest_region *r;

	atomic_thread_fence(memory_order_seq_cst);
	if (!atomic_load(&g->logging))
		return;
	r = guest_find_region(g, page);
	page -= r->first_page;
	atomic_fetch_or(&r->log[page / WORD_BITS], 1ull << page % WORD_BITS);
}

void guest_log_sync(struct guest *g, unsigned region, uint64_t first, uint64_t nr, uint64_t *bitmap)
{
	_Atomic uint64_t *log = g->regions[region].log + first / WORD_BITS;

	for (uint64_t i = 0; i < (nr + WORD_BITS - 1) / WORD_BITS; i++)
		bitmap[i] |= atomic_load_explicit(&log[i], memory_order_relaxed);
}

void guest_log_clear(struct guest *g, unsigned region, uint64_t first, uint64_t nr,
		     const uint64_t *bitmap)
{
	_Atomic uint64_t *log = g->regions[region].log + first / WORD_BITS;

	for (uint64_t i = 0; i < (nr + WORD_BITS - 1) / WORD_BITS; i++)
		if (bitmap[i])
			atomic_fetch_and(&log[i], ~bitmap[i]);
	atomic_thread_fence(memory_order_seq_cst);
}
