/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_SRC_PUSHER_PRIVATE_H
#define TERN_SRC_PUSHER_PRIVATE_H

/*
 * What the parts of the pusher share; the theory is in pusher.h.
 *
 *	pusher.c	the lists of what is missing, and of what is left to send
 *	push_batch.c	what one thread puts on its channel
 *	push_work.c	the background
 *	push_answer.c	requests, and what is likely to be asked for next
 */

#include <pthread.h>

#include "pusher.h"
#include "stripe.h"
#include "wire.h"

#define SECTION_PAGES 16384u /* looked at in one go; a multiple of 64 */
#define WINDOW_PAGES 256u /* taken at once; a multiple of 64 */
#define STREAMS 8u /* threads that go through memory in order and are remembered */
#define NOTES 16u

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
	/* What answers have sent and pusher_take_asked() has not counted yet. */
	_Atomic uint64_t asked_normal, asked_zero, asked_bytes;
	_Atomic uint64_t first_ns; /* when the first contents left; 0: not yet */
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

/* batch_init - nothing is gathered yet for @ch; what is sent counts in @result. */
void batch_init(struct batch *b, struct pusher *p, struct transport_channel *ch,
		struct sender_result *result);

/* batch_flush - send what was gathered.  0 or -errno with *err. */
int batch_flush(struct batch *b, struct tern_error *err);

/*
 * batch_window - send what is left of pages [first, end), at most WINDOW_PAGES of them;
 * how many: *nr.
 *
 * @contents: in messages.  0 or -errno with *err.
 */
int batch_window(struct batch *b, struct region *r, uint64_t first, uint64_t end, bool contents,
		 uint64_t *nr, struct tern_error *err);

/*
 * batch_look - look which of pages [first, end) exist, unless somebody did, and gather
 * what of them is empty.  0 or -errno with *err.
 */
int batch_look(struct batch *b, struct region *r, uint64_t first, uint64_t end,
	       struct tern_error *err);

/* pusher_by_contents - do pages of @region go in messages? */
bool pusher_by_contents(const struct pusher *p, uint32_t region);

/* pusher_take_note - the newest one, which is remembered as read ahead.  False: none. */
bool pusher_take_note(struct pusher *p, struct note *n);

#endif
