/* SPDX-License-Identifier: BSD-2-Clause */
#define _GNU_SOURCE
#include "receiver.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cpus.h"
#include "error.h"
#include "placement.h"
#include "session.h"

#define ACCOUNT_NS 10000000u /* between two looks at a thread's CPU time */

struct receiver_thread {
	struct receiver *pool;
	struct transport_channel *ch;
	unsigned index;
	int node;
	char cpus[128]; /* that the thread may use; mon.lock */
	pthread_t thread;
	uint64_t accounted_ns; /* own thread: when it looked at its CPU time last */
	atomic_uint_fast64_t cpu_ns;
	atomic_int cpu;
};

struct receiver {
	struct tern_session *s;
	unsigned nr; /* with a thread */
	bool joined; /* they have ended; session thread */
	struct receiver_thread v[];
};

/* Are the ranges of a ZERO possible?  Every value is the peer's. */
static int check_zero(const struct tern_session *s, const struct wire_ranges *z,
		      struct tern_error *err)
{
	const struct wire_page_range *last = NULL;

	for (unsigned i = 0; i < z->count; last = &z->v[i++]) {
		const struct wire_page_range *p = &z->v[i];

		if (p->region >= s->regions.nr)
			return error_set(err, -EPROTO, TERN_SCOPE_PAGE,
					 "message ZERO from the peer has region = %u, there are %u",
					 p->region, s->regions.nr);
		const struct region *r = &s->regions.v[p->region];

		if (p->first_page > r->nr_pages || p->nr_pages > r->nr_pages - p->first_page)
			return error_set(err, -EPROTO, TERN_SCOPE_PAGE,
					 "message ZERO from the peer has pages %" PRIu64
					 " + %" PRIu64 " of region '%s', it has %" PRIu64,
					 p->first_page, p->nr_pages, r->name, r->nr_pages);
		if (last && (last->region > p->region ||
			     (last->region == p->region &&
			      last->first_page + last->nr_pages > p->first_page)))
			return error_set(err, -EPROTO, TERN_SCOPE_PAGE,
					 "message ZERO from the peer has overlapping or descending "
					 "ranges in region '%s' at page %" PRIu64,
					 r->name, p->first_page);
	}
	return 0;
}

/*
 * Clear @nr_pages at @hva.  A hostile peer may name one page on two channels at once:
 * then both clear it, which does no harm and is no matter for ThreadSanitizer (whose
 * memset() would look).
 */
__attribute__((no_sanitize("thread"))) static void clear_pages(uint8_t *hva, uint64_t nr_pages)
{
	volatile uint64_t *word = (volatile uint64_t *)hva;

	for (uint64_t i = 0; i < nr_pages * (TERN_PAGE_SIZE / sizeof(*word)); i++)
		word[i] = 0;
}

/* Where the session writes region @id. */
static uint8_t *region_at(const struct tern_session *s, uint32_t id)
{
	return s->placement ? placement_hva(s->placement, id) : s->regions.v[id].hva;
}

/* Clear pages that the source says are zero now; all of a message's ranges or none. */
static int place_zero(struct tern_session *s, const struct wire_ranges *z, struct tern_error *err)
{
	int r = check_zero(s, z, err);

	for (unsigned i = 0; !r && i < z->count; i++) {
		const struct wire_page_range *p = &z->v[i];

		clear_pages(region_at(s, p->region) + p->first_page * TERN_PAGE_SIZE,
			    p->nr_pages);
	}
	return r;
}

static void receiver_account(struct receiver_thread *t)
{
	struct timespec ts;

	t->accounted_ns = now_ns();
	if (clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts) == 0)
		atomic_store(&t->cpu_ns, (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec);
	atomic_store(&t->cpu, sched_getcpu());
}

/* Ranges of pages that came after the switchover.  0 or -errno with *err. */
static int place_ranges(struct placement *p, const struct wire_notify *n, struct tern_error *err)
{
	int r = 0;

	for (unsigned i = 0; !r && i < n->ranges.count; i++) {
		const struct wire_page_range *v = &n->ranges.v[i];

		if (n->type == WIRE_NOTIFY_PLACED)
			r = placement_placed(p, v->region, v->first_page, v->nr_pages, err);
		else if (n->type == WIRE_NOTIFY_EMPTY)
			r = placement_empty(p, v->region, v->first_page, v->nr_pages, err);
		else
			r = placement_zero(p, v->region, v->first_page, v->nr_pages, err);
	}
	return r;
}

/* Pages that came with their contents, @len bytes at @buf.  0 or -errno with *err. */
static int place_contents(struct placement *p, const struct wire_contents *c, const uint8_t *buf,
			  size_t len, struct tern_error *err)
{
	if (len && len % TERN_PAGE_SIZE == 0)
		return placement_contents(p, c->region, c->first_page, len / TERN_PAGE_SIZE, buf,
					  err);
	return error_set(err, -EPROTO, TERN_SCOPE_PAGE,
			 "message CONTENTS from the peer brings %zu bytes, which are no whole pages",
			 len);
}

/* Handle what serve() returned in @buf.  0 or -errno with *err. */
static int receiver_handle(struct receiver_thread *t, const uint8_t *buf, size_t len,
			   size_t contents, struct tern_error *err)
{
	struct tern_session *s = t->pool->s;
	struct placement *p = atomic_load(&s->armed_placement);
	struct wire_notify n;
	int r;

	r = wire_notify_decode(buf, len - contents, &n, err);
	if (!r && (n.type == WIRE_NOTIFY_CONTENTS) != (contents != 0))
		r = error_channel(err, -EPROTO, t->index,
				  "message %s from the peer came with %zu bytes of contents on "
				  "channel %u",
				  wire_notify_name(n.type), contents, t->index);
	if (!r && !p && n.type != WIRE_NOTIFY_ZERO)
		r = error_channel(err, -EPROTO, t->index,
				  "message %s from the peer came on channel %u before the "
				  "switchover to postcopy",
				  wire_notify_name(n.type), t->index);
	if (r)
		return r;
	if (!p)
		r = place_zero(s, &n.ranges, err);
	else if (n.type == WIRE_NOTIFY_CONTENTS)
		r = place_contents(p, &n.contents, buf + len - contents, contents, err);
	else
		r = place_ranges(p, &n, err);
	if (r)
		err->channel = (int)t->index;
	return r;
}

/* Place until the channel ends, with @buf for serve().  0 if it ended because we ended it. */
static int receiver_serve(struct receiver_thread *t, uint8_t *buf, struct tern_error *err)
{
	for (;;) {
		size_t contents;
		long n = t->ch->ops->serve(t->ch, buf, &contents, err);
		int r;

		if (n == -ECANCELED)
			return 0;
		if (n < 0)
			return (int)n;
		if (n == 0)
			return error_channel(err, -ECONNRESET, t->index,
					     "the source closed channel %u", t->index);
		r = receiver_handle(t, buf, (size_t)n, contents, err);
		if (r)
			return r;
		/* Last, and not each time: somebody may wait for this, or for the next one. */
		if (now_ns() - t->accounted_ns >= ACCOUNT_NS)
			receiver_account(t);
	}
}

/* The same with a buffer, on the thread's node and in whole pages. */
static int receiver_loop(struct receiver_thread *t, struct tern_error *err)
{
	void *buf;
	int r = posix_memalign(&buf, TERN_PAGE_SIZE, TRANSPORT_SERVE_MAX);

	if (r)
		return error_channel(err, -r, t->index,
				     "cannot allocate %u bytes for what arrives on channel %u: %s",
				     TRANSPORT_SERVE_MAX, t->index, error_name(-r));
	r = receiver_serve(t, buf, err);
	free(buf);
	return r;
}

static void *receiver_main(void *arg)
{
	struct receiver_thread *t = arg;
	char cpus[sizeof(t->cpus)] = "";
	struct tern_error err;

	pthread_setname_np(pthread_self(), "tern-receive");
	session_run_on(t->pool->s, t->node);
	cpus_list_thread(cpus, sizeof(cpus));
	monitor_lock(&t->pool->s->mon);
	memcpy(t->cpus, cpus, sizeof(cpus));
	monitor_unlock(&t->pool->s->mon);
	receiver_account(t);
	error_clear(&err);
	if (receiver_loop(t, &err))
		session_worker_failed(t->pool->s, &err);
	receiver_account(t);
	return NULL;
}

int receiver_start(struct tern_session *s, struct receiver **out, struct tern_error *err)
{
	struct receiver *p = calloc(1, sizeof(*p) + s->nr_channels * sizeof(p->v[0]));

	if (!p)
		return error_session(err, -ENOMEM, "cannot allocate %u channel threads",
				     s->nr_channels);
	p->s = s;
	for (unsigned i = 0; i < s->nr_channels; i++) {
		struct receiver_thread *t = &p->v[i];

		t->pool = p;
		t->ch = s->channels[i];
		t->index = i;
		t->node = session_channel_node(s, i);
		atomic_store(&t->cpu, -1);
		int r = pthread_create(&t->thread, NULL, receiver_main, t);

		if (r) {
			s->conn->ops->abort(s->conn);
			receiver_stop(&p);
			return error_session(err, -r, "cannot start channel thread %u: %s", i,
					     error_name(r));
		}
		p->nr++;
	}
	*out = p;
	return 0;
}

void receiver_join(struct receiver *r)
{
	for (unsigned i = 0; r && !r->joined && i < r->nr; i++)
		pthread_join(r->v[i].thread, NULL);
	if (r)
		r->joined = true;
}

void receiver_stop(struct receiver **rp)
{
	struct receiver *r = *rp;

	receiver_join(r);
	free(r);
	*rp = NULL;
}

void receiver_channel_stats(const struct receiver *r, unsigned i, struct tern_channel_stats *out)
{
	const struct receiver_thread *t = &r->v[i];

	out->numa_node = t->node;
	snprintf(out->cpus, sizeof(out->cpus), "%s", t->cpus);
	out->cpu = atomic_load(&t->cpu);
	out->cpu_ns += atomic_load(&t->cpu_ns); /* to that of earlier links */
}
