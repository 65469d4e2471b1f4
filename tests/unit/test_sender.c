/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the workers put on a channel in a phase, over a channel that notes it.
 *
 * The guest of these tests writes all the time: whenever the dirty log is cleared for some
 * pages, all of them turn out to have been written.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "bitmap.h"
#include "sender.h"

#define PAGES 1024u
#define STRIPE_PAGES 256u

/*
 * A channel that counts how often each page is told, and what a sender needs.  Its functions
 * run on the worker's thread, where nothing can be asserted: they count.
 */
struct rig {
	struct transport_channel ch;
	struct transport_channel *channels[1];
	struct transport ops;
	struct monitor mon;
	struct limiter limiter;
	struct region region;
	struct region_list regions;
	struct populated populated;
	struct dirty dirty;
	struct sender *sender;
	unsigned told[PAGES]; /* since the last fence */
	unsigned most; /* of all pages and phases */
	unsigned cleared[PAGES]; /* in the dirty log, since the last fence */
	unsigned untold; /* pages that were cleared, and not told before the fence */
	unsigned bad; /* calls that make no sense */
};

static struct rig *rig_of(struct transport_channel *ch)
{
	return (struct rig *)((char *)ch - offsetof(struct rig, ch));
}

static void tell(struct rig *rig, uint64_t first, uint64_t nr)
{
	for (uint64_t p = first; p < first + nr; p++) {
		if (p >= PAGES)
			rig->bad++;
		else if (++rig->told[p] > rig->most)
			rig->most = rig->told[p];
	}
}

static int note_write(struct transport_channel *ch, const struct transport_range *ranges,
		      unsigned nr, struct tern_error *err)
{
	for (unsigned i = 0; i < nr; i++)
		tell(rig_of(ch), ranges[i].offset / TERN_PAGE_SIZE, ranges[i].len / TERN_PAGE_SIZE);
	return 0;
}

static int note_notify(struct transport_channel *ch, const void *msg, size_t len,
		       struct tern_error *err)
{
	struct wire_notify n;

	if (wire_notify_decode(msg, len, &n, err) || n.type != WIRE_NOTIFY_ZERO) {
		rig_of(ch)->bad++;
		return 0;
	}
	for (unsigned i = 0; i < n.ranges.count; i++)
		tell(rig_of(ch), n.ranges.v[i].first_page, n.ranges.v[i].nr_pages);
	return 0;
}

/* What was cleared in the dirty log has to be told before the phase ends. */
static int note_fence(struct transport_channel *ch, struct tern_error *err)
{
	struct rig *rig = rig_of(ch);

	for (unsigned p = 0; p < PAGES; p++)
		rig->untold += rig->cleared[p] && !rig->told[p];
	memset(rig->told, 0, sizeof(rig->told));
	memset(rig->cleared, 0, sizeof(rig->cleared));
	return 0;
}

/* Everything was written since anybody looked. */
static int clear_all(void *opaque, unsigned region, uint64_t first, uint64_t nr, uint64_t *bitmap)
{
	struct rig *rig = opaque;

	bitmap_set_range(bitmap, 0, nr);
	for (uint64_t p = first; p < first + nr; p++)
		rig->cleared[p]++;
	return 0;
}

static void no_failure(void *opaque, const struct tern_error *why)
{
	((struct rig *)opaque)->bad++;
}

static void run_anywhere(void *opaque, int node)
{
}

static struct rig *rig_new(void)
{
	struct rig *rig = calloc(1, sizeof(*rig));
	struct region *r = &rig->region;
	struct sender_config config = {
		.mon = &rig->mon,
		.regions = &rig->regions,
		.zero = zero_ops_get(0),
		.populated = &rig->populated,
		.dirty = &rig->dirty,
		.limiter = &rig->limiter,
		.stripe_bytes = STRIPE_PAGES * TERN_PAGE_SIZE,
		.chunk_bytes = 1 << 20,
		.fail = no_failure,
		.run_on = run_anywhere,
		.opaque = rig,
	};
	rig->ops.write = note_write;
	rig->ops.notify = note_notify;
	rig->ops.fence = note_fence;
	rig->ch.ops = &rig->ops;
	rig->channels[0] = &rig->ch;
	rig->dirty.ops.clear = clear_all;
	rig->dirty.opaque = rig;
	assert_int_equal(monitor_init(&rig->mon), 0);
	*r = (struct region){ .nr_pages = PAGES,
			      .size = PAGES * TERN_PAGE_SIZE,
			      .host_page_size = TERN_PAGE_SIZE,
			      .numa_node = TERN_NODE_ANY };
	r->hva = aligned_alloc(TERN_PAGE_SIZE, r->size);
	r->dirty = calloc(bitmap_words(PAGES), sizeof(*r->dirty));
	r->sent = calloc(bitmap_words(PAGES), sizeof(*r->sent));
	bitmap_set_range(r->sent, 0, PAGES); /* so that zero pages have to be told */
	memset(r->hva, 0, r->size);
	for (unsigned p = 0; p < PAGES; p += 3)
		r->hva[p * TERN_PAGE_SIZE] = 1;
	rig->regions = (struct region_list){ .v = r, .nr = 1, .cap = 1 };
	assert_int_equal(sender_start(&config, rig->channels, 1, &rig->sender, NULL), 0);
	return rig;
}

static void rig_delete(struct rig *rig)
{
	sender_stop(&rig->sender);
	monitor_fini(&rig->mon);
	free(rig->region.hva);
	free(rig->region.dirty);
	free(rig->region.sent);
	free(rig);
}

/* One phase, from its begin to its end. */
static void run_phase(struct rig *rig)
{
	sender_begin(rig->sender, SENDER_SEND, false);
	monitor_lock(&rig->mon);
	while (!sender_idle(rig->sender))
		monitor_wait(&rig->mon, NEVER_NS);
	monitor_unlock(&rig->mon);
}

/* Two writes of a page, or a write and a ZERO, have no order before a fence. */
static void a_page_goes_once_in_a_phase(void **state)
{
	static const unsigned first_dirty[] = { 0, 63, 64, 100, STRIPE_PAGES - 1, PAGES - 1 };

	for (unsigned i = 0; i < sizeof(first_dirty) / sizeof(first_dirty[0]); i++) {
		struct rig *rig = rig_new();

		for (unsigned phase = 0; phase < 3; phase++) {
			bitmap_set_range(rig->region.dirty, first_dirty[i], PAGES - first_dirty[i]);
			run_phase(rig);
			assert_int_equal(rig->most, 1);
			assert_int_equal(rig->untold, 0);
			assert_int_equal(rig->bad, 0);
			assert_int_equal(bitmap_next_set(rig->region.dirty, PAGES, 0), PAGES);
		}
		rig_delete(rig);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_page_goes_once_in_a_phase),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
