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
#include "session.h"

struct receiver_thread {
	struct receiver *pool;
	struct transport_channel *ch;
	unsigned index;
	int node;
	char cpus[128]; /* that the thread may use; mon.lock */
	pthread_t thread;
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
static int check_zero(const struct tern_session *s, const struct wire_zero *z,
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

/* Clear pages that the source says are zero now; all of a message's ranges or none. */
static int place_zero(struct tern_session *s, const struct wire_zero *z, struct tern_error *err)
{
	int r = check_zero(s, z, err);

	for (unsigned i = 0; !r && i < z->count; i++) {
		const struct wire_page_range *p = &z->v[i];

		clear_pages(s->regions.v[p->region].hva + p->first_page * TERN_PAGE_SIZE,
			    p->nr_pages);
	}
	return r;
}

static void receiver_account(struct receiver_thread *t)
{
	struct timespec ts;

	if (clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts) == 0)
		atomic_store(&t->cpu_ns, (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec);
	atomic_store(&t->cpu, sched_getcpu());
}

/* Handle what serve() returned in @buf.  0 or -errno with *err. */
static int receiver_handle(struct receiver_thread *t, const uint8_t *buf, size_t len,
			   size_t contents, struct tern_error *err)
{
	struct wire_zero zero;
	int r;

	if (contents)
		return error_channel(err, -EPROTO, t->index,
				     "the source sent %zu bytes of contents with a message on "
				     "channel %u, which was not agreed on",
				     contents, t->index);
	r = wire_zero_decode(buf, len, &zero, err);
	if (!r)
		r = place_zero(t->pool->s, &zero, err);
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

		receiver_account(t);
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
	out->cpu_ns = atomic_load(&t->cpu_ns);
}
