/* SPDX-License-Identifier: BSD-2-Clause */
#define _GNU_SOURCE
#include "sender.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bitmap.h"
#include "cpus.h"
#include "error.h"
#include "scan.h"

/* Unit of SYNC: large, so that sparse memory costs few calls. */
#define SWEEP_BYTES (256ull << 20)

/* What goes first, unless a host page is larger. */
#define HEAD_PAGES BITMAP_WORD_BITS

/* The zero test runs ahead of memory by so many pages. */
#define PREFETCH_PAGES 8u

struct worker {
	struct sender *pool;
	struct transport_channel *ch; /* own thread: of the phase */
	pthread_t thread;
	unsigned index;
	int node;
	bool began; /* own thread: it has sent its first pages */
	struct sender_result result; /* own thread in a phase, session thread between */
	char cpus[128]; /* that the thread may use; monitor's lock */

	/* Ranges and zero pages gathered, not yet given to the transport. */
	struct transport_range ranges[TRANSPORT_WRITE_RANGES_MAX];
	unsigned nr_ranges;
	uint64_t range_bytes;
	struct wire_ranges zero;

	/* Read by anybody. */
	atomic_uint_fast64_t bytes;
	atomic_uint_fast64_t cpu_ns;
	atomic_int cpu;
};

struct sender {
	struct sender_config c;
	struct transport_channel **channels;
	struct stripe_map stripes; /* FIRST, SEND */
	struct stripe_map sweeps;  /* SYNC */
	struct scan *scan;         /* FIRST */
	struct worker **workers;
	unsigned nr, nr_started;
	atomic_bool abandon;
	int (*postcopy)(void *opaque, struct transport_channel *ch, int node,
			const atomic_bool *abandon, struct sender_result *result,
			struct tern_error *err);
	void *postcopy_opaque;
	atomic_uint_fast64_t first_byte_ns;

	/* Under the monitor's lock. */
	enum sender_phase phase;
	bool final;
	bool stop;
	unsigned nr_running;
	uint64_t generation; /* counts phases; a worker runs each once */
};

/* Give the gathered ranges to the transport. */
static int flush_ranges(struct worker *w, struct tern_error *err)
{
	struct sender *s = w->pool;

	if (!w->nr_ranges)
		return 0;
	if (!s->final)
		limiter_take(s->c.limiter, s->c.mon, w->range_bytes, &s->abandon);
	if (!atomic_load_explicit(&s->first_byte_ns, memory_order_relaxed)) {
		uint_fast64_t none = 0;

		atomic_compare_exchange_strong(&s->first_byte_ns, &none, now_ns());
	}
	int r = w->ch->ops->write(w->ch, w->ranges, w->nr_ranges, err);

	w->result.bytes += w->range_bytes;
	atomic_fetch_add_explicit(&w->bytes, w->range_bytes, memory_order_relaxed);
	w->nr_ranges = 0;
	w->range_bytes = 0;
	return r;
}

/* Give the gathered zero pages to the transport. */
static int flush_zero(struct worker *w, struct tern_error *err)
{
	uint8_t buf[TRANSPORT_NOTIFY_MAX];

	if (!w->zero.count)
		return 0;
	size_t len = wire_ranges_encode(WIRE_NOTIFY_ZERO, &w->zero, buf);

	w->zero.count = 0;
	return w->ch->ops->notify(w->ch, buf, len, err);
}

/* True if @offset of @region does not follow the last gathered range. */
static bool out_of_order(const struct worker *w, const struct region *r, uint64_t offset)
{
	const struct transport_range *last = &w->ranges[w->nr_ranges - 1];

	return r->id < last->region || (r->id == last->region && offset < last->offset);
}

/* Gather pages [first, end) for writing. */
static int put_pages(struct worker *w, struct region *r, uint64_t first, uint64_t end,
		     struct tern_error *err)
{
	uint64_t offset = first * TERN_PAGE_SIZE, left = (end - first) * TERN_PAGE_SIZE;
	uint64_t chunk = w->pool->c.chunk_bytes;

	bitmap_set_range(r->sent, first, end - first);
	w->result.normal_pages += end - first;
	while (left) {
		uint64_t n = left < chunk ? left : chunk;

		if (w->nr_ranges == TRANSPORT_WRITE_RANGES_MAX ||
		    (w->nr_ranges && (w->range_bytes + n > chunk || out_of_order(w, r, offset)))) {
			int e = flush_ranges(w, err);

			if (e)
				return e;
		}
		w->ranges[w->nr_ranges++] =
			(struct transport_range){ .region = r->id, .offset = offset, .len = n };
		w->range_bytes += n;
		offset += n;
		left -= n;
	}
	return 0;
}

/* The same for page @first and the gathered zero pages. */
static bool zero_out_of_order(const struct worker *w, const struct region *r, uint64_t first)
{
	if (!w->zero.count)
		return false;
	const struct wire_page_range *last = &w->zero.v[w->zero.count - 1];

	return r->id < last->region || (r->id == last->region && first < last->first_page);
}

/*
 * Pages [first, end) are zero.  The destination's RAM read as zero when the
 * migration began, so only pages sent with contents before need telling.
 */
static int put_zero(struct worker *w, struct region *r, uint64_t first, uint64_t end,
		    struct tern_error *err)
{
	w->result.zero_pages += end - first;
	for (uint64_t a = bitmap_next_set(r->sent, end, first); a < end;) {
		uint64_t b = bitmap_next_clear(r->sent, end, a);

		if (w->zero.count == WIRE_RANGES_MAX || zero_out_of_order(w, r, a)) {
			int e = flush_zero(w, err);

			if (e)
				return e;
		}
		w->zero.v[w->zero.count++] = (struct wire_page_range){
			.region = r->id,
			.first_page = a,
			.nr_pages = b - a,
		};
		a = bitmap_next_set(r->sent, end, b);
	}
	return 0;
}

/*
 * Is page @p of @r zero?  Most pages that are not show it in their first cache line,
 * which is cold: without the prefetch the test of random data waits for memory once a
 * page.  A prefetch past the region's end is harmless.
 */
static bool page_is_zero(const struct worker *w, const struct region *r, uint64_t p)
{
	const uint8_t *page = r->hva + p * TERN_PAGE_SIZE;

	__builtin_prefetch(page + PREFETCH_PAGES * TERN_PAGE_SIZE);
	return w->pool->c.zero->is_zero(page, TERN_PAGE_SIZE);
}

/* Pages [first, end) are dirty: split them into zero and other ones. */
static int put_run(struct worker *w, struct region *r, uint64_t first, uint64_t end,
		   struct tern_error *err)
{
	uint64_t a = first;
	bool is_zero = page_is_zero(w, r, a);

	for (uint64_t p = first + 1; p <= end; p++) {
		bool next = p < end && page_is_zero(w, r, p);

		if (p < end && next == is_zero)
			continue;
		int e = is_zero ? put_zero(w, r, a, p, err) : put_pages(w, r, a, p, err);

		if (e)
			return e;
		a = p;
		is_zero = next;
	}
	return 0;
}

/*
 * Let the transport get ready for the dirty pages of @st.  Before the dirty bits
 * are cleared, because it may look like a write.  Runs that look all zero are left out:
 * they will hardly be written.
 */
static int prepare_stripe(struct worker *w, const struct stripe *st, const uint64_t *map,
			  struct tern_error *err)
{
	const struct region *r = st->region;
	struct transport_range *v = NULL;
	unsigned nr = 0, cap = 0;
	int e = 0;

	if (!w->ch->ops->prepare)
		return 0;
	e = flush_ranges(w, err); /* of the stripe before, while it is still prepared */
	if (e)
		return e;
	bitmap_for_each_run (map, st->nr_pages, a, b) {
		uint64_t offset = (st->first_page + a) * TERN_PAGE_SIZE;
		uint64_t len = (b - a) * TERN_PAGE_SIZE;

		if (zero_looks(r->hva + offset, len))
			continue;
		if (nr == cap) {
			cap = cap ? 2 * cap : 64;
			struct transport_range *bigger = realloc(v, cap * sizeof(*v));

			if (!bigger) {
				free(v);
				return error_session(err, -ENOMEM, "no memory for a list of %u runs",
						     cap);
			}
			v = bigger;
		}
		v[nr++] = (struct transport_range){ r->id, offset, len };
	}
	if (nr)
		e = w->ch->ops->prepare(w->ch, v, nr, err);
	free(v);
	return e;
}

/* Send the dirty pages of one stripe. */
static int send_stripe(struct worker *w, const struct stripe *st, struct tern_error *err)
{
	struct sender *s = w->pool;
	const struct dirty *d = s->c.dirty;
	struct region *r = st->region;
	uint64_t *map = r->dirty + st->first_page / BITMAP_WORD_BITS;
	uint64_t words = bitmap_words(st->nr_pages);

	if (bitmap_next_set(map, st->nr_pages, 0) == st->nr_pages)
		return 0;
	int e = prepare_stripe(w, st, map, err);

	if (e)
		return e;
	if (!s->final && d->ops.clear) {
		e = d->ops.clear(d->opaque, r->id, st->first_page, st->nr_pages, map);

		if (e)
			return error_set(err, e, TERN_SCOPE_PAGE,
					 "cannot clear the dirty log of region %s, pages %llu to "
					 "%llu: %s",
					 r->name, (unsigned long long)st->first_page,
					 (unsigned long long)(st->first_page + st->nr_pages - 1),
					 error_name(e));
	}
	bitmap_for_each_run (map, st->nr_pages, a, b) {
		e = put_run(w, r, st->first_page + a, st->first_page + b, err);
		if (e)
			return e;
	}
	memset(map, 0, words * sizeof(*map));
	return 0;
}

/* Everything claimed has been gathered: hand over the rest and wait until it is placed. */
static int send_end(struct worker *w, struct tern_error *err)
{
	int r = flush_ranges(w, err);

	if (!r)
		r = flush_zero(w, err);
	if (!r)
		r = w->ch->ops->fence(w->ch, err);
	return r;
}

/* SYNC of one sweep. */
static int sync_sweep(struct worker *w, const struct stripe *st, struct tern_error *err)
{
	const struct dirty *d = w->pool->c.dirty;
	struct region *r = st->region;
	uint64_t *map = r->dirty + st->first_page / BITMAP_WORD_BITS;
	int e = d->ops.sync(d->opaque, r->id, st->first_page, st->nr_pages, map);

	if (e)
		return error_set(err, e, TERN_SCOPE_PAGE, "cannot read the dirty log of region %s: %s",
				 r->name, error_name(e));
	w->result.dirty_pages += bitmap_count(map, st->nr_pages);
	return 0;
}

/*
 * The first pages of a worker's first stripe go ahead of the others: whatever has to be
 * made ready for them on both sides is little then, and the first byte leaves soon.
 *
 * Takes them off *st.  They must not be looked at again in this phase: clearing the dirty log
 * may add what the guest has written since, and a page goes once between two fences.  Nor need
 * those before them, of which none was dirty.
 */
static int send_first(struct worker *w, struct stripe *st, struct tern_error *err)
{
	const uint64_t *map = st->region->dirty + st->first_page / BITMAP_WORD_BITS;
	uint64_t host = st->region->host_page_size / TERN_PAGE_SIZE;
	uint64_t unit = host > HEAD_PAGES ? host : HEAD_PAGES;
	uint64_t set = bitmap_next_set(map, st->nr_pages, 0), at = set / unit * unit;
	uint64_t nr = st->nr_pages - at < unit ? st->nr_pages - at : unit;
	struct stripe head = { st->region, st->first_page + at, nr };

	if (set == st->nr_pages)
		return 0;

	int r = send_stripe(w, &head, err);

	st->first_page += at + nr;
	st->nr_pages -= at + nr;
	w->began = true;
	return r ? r : flush_ranges(w, err);
}

/* One claimed stripe or sweep. */
static int worker_stripe(struct worker *w, enum sender_phase phase, struct stripe *st,
			 struct tern_error *err)
{
	int r = 0;

	if (phase == SENDER_SYNC)
		return sync_sweep(w, st, err);
	if (phase == SENDER_FIRST)
		r = scan_stripe(w->pool->scan, st, &w->result.dirty_pages, err);
	if (!r && !w->began)
		r = send_first(w, st, err);
	return r ? r : send_stripe(w, st, err);
}

/* One worker's share of a phase. */
static int worker_phase(struct worker *w, enum sender_phase phase, struct tern_error *err)
{
	struct sender *s = w->pool;
	struct stripe st;
	int r = 0;

	memset(&w->result, 0, sizeof(w->result));
	if (phase == SENDER_POSTCOPY) {
		r = s->postcopy(s->postcopy_opaque, w->ch, w->node, &s->abandon, &w->result, err);
		atomic_fetch_add_explicit(&w->bytes, w->result.bytes, memory_order_relaxed);
		return r;
	}
	while (!r && !atomic_load_explicit(&s->abandon, memory_order_relaxed)) {
		if (!stripe_claim(phase == SENDER_SYNC ? &s->sweeps : &s->stripes, w->node, &st))
			return phase == SENDER_SYNC ? 0 : send_end(w, err);
		r = worker_stripe(w, phase, &st, err);
	}
	return r ? r : -ECANCELED;
}

/* Note where the thread ran and what it cost. */
static void worker_account(struct worker *w)
{
	struct timespec ts;

	if (clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts) == 0)
		atomic_store(&w->cpu_ns, (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec);
	atomic_store(&w->cpu, sched_getcpu());
}

static void *worker_main(void *arg)
{
	struct worker *w = arg;
	struct sender *s = w->pool;
	char cpus[sizeof(w->cpus)] = "";
	uint64_t seen = 0;

	pthread_setname_np(pthread_self(), "tern-send");
	s->c.run_on(s->c.opaque, w->node);
	cpus_list_thread(cpus, sizeof(cpus));
	monitor_lock(s->c.mon);
	memcpy(w->cpus, cpus, sizeof(cpus));
	while (!s->stop) {
		if (s->generation == seen) {
			monitor_wait(s->c.mon, NEVER_NS);
			continue;
		}
		seen = s->generation;
		enum sender_phase phase = s->phase;

		w->ch = s->channels[w->index];

		monitor_unlock(s->c.mon);

		struct tern_error err;

		error_clear(&err);
		int r = worker_phase(w, phase, &err);

		worker_account(w);
		if (r) {
			if (!err.code)
				error_channel(&err, r, w->index, "channel %u was aborted",
					      w->index);
			s->c.fail(s->c.opaque, &err);
			atomic_store(&s->abandon, true);
		}
		monitor_lock(s->c.mon);
		if (--s->nr_running == 0)
			monitor_broadcast(s->c.mon);
	}
	monitor_unlock(s->c.mon);
	return NULL;
}

/* The node channel @i serves: nodes take turns. */
static int worker_node(const struct sender *s, unsigned i)
{
	return s->stripes.queues[i % s->stripes.nr_queues].node;
}

int sender_start(const struct sender_config *config, struct transport_channel **channels,
		 unsigned nr, struct sender **out, struct tern_error *err)
{
	struct sender *s = calloc(1, sizeof(*s));

	if (!s)
		return error_session(err, -ENOMEM, "cannot allocate %u channel workers", nr);
	s->c = *config;
	s->channels = channels;
	s->nr = nr;
	s->workers = calloc(nr, sizeof(struct worker *));
	int r = s->workers ? 0 : -ENOMEM;

	if (!r)
		r = stripe_map_init(&s->stripes, config->regions, config->stripe_bytes);
	if (!r)
		r = stripe_map_init(&s->sweeps, config->regions,
				    config->stripe_bytes > SWEEP_BYTES ? config->stripe_bytes :
									 SWEEP_BYTES);
	if (!r) {
		s->scan = scan_new(config->regions, config->populated);
		r = s->scan ? 0 : -ENOMEM;
	}
	for (unsigned i = 0; !r && i < nr; i++) {
		struct worker *w = aligned_alloc(64, (sizeof(*w) + 63) / 64 * 64);

		if (!w) {
			r = -ENOMEM;
			break;
		}
		memset(w, 0, sizeof(*w));
		s->workers[i] = w;
		w->pool = s;
		w->index = i;
		w->node = worker_node(s, i);
		atomic_store(&w->cpu, -1);
		r = -pthread_create(&w->thread, NULL, worker_main, w);
		if (!r)
			s->nr_started++;
	}
	if (r) {
		error_session(err, r, "cannot start %u channel workers: %s", nr, error_name(r));
		sender_stop(&s);
		return r;
	}
	*out = s;
	return 0;
}

void sender_stop(struct sender **sp)
{
	struct sender *s = *sp;

	if (!s)
		return;
	atomic_store(&s->abandon, true);
	monitor_lock(s->c.mon);
	s->stop = true;
	monitor_broadcast(s->c.mon);
	monitor_unlock(s->c.mon);
	for (unsigned i = 0; i < s->nr_started; i++)
		pthread_join(s->workers[i]->thread, NULL);
	for (unsigned i = 0; s->workers && i < s->nr; i++)
		free(s->workers[i]);
	free(s->workers);
	stripe_map_fini(&s->stripes);
	stripe_map_fini(&s->sweeps);
	scan_delete(s->scan);
	free(s);
	*sp = NULL;
}

void sender_set_postcopy(struct sender *s,
			 int (*fn)(void *opaque, struct transport_channel *ch, int node,
				   const atomic_bool *abandon, struct sender_result *result,
				   struct tern_error *err),
			 void *opaque)
{
	s->postcopy = fn;
	s->postcopy_opaque = opaque;
}

void sender_begin(struct sender *s, enum sender_phase phase, bool final)
{
	stripe_map_rewind(phase == SENDER_SYNC ? &s->sweeps : &s->stripes);
	monitor_lock(s->c.mon);
	s->phase = phase;
	s->final = final;
	s->nr_running = s->nr;
	s->generation++;
	monitor_broadcast(s->c.mon);
	monitor_unlock(s->c.mon);
}

bool sender_idle(const struct sender *s)
{
	return s->nr_running == 0;
}

void sender_abandon(struct sender *s)
{
	atomic_store(&s->abandon, true);
	monitor_lock(s->c.mon);
	monitor_broadcast(s->c.mon);
	monitor_unlock(s->c.mon);
}

void sender_result(const struct sender *s, struct sender_result *out)
{
	memset(out, 0, sizeof(*out));
	for (unsigned i = 0; i < s->nr; i++) {
		const struct sender_result *r = &s->workers[i]->result;

		out->dirty_pages += r->dirty_pages;
		out->normal_pages += r->normal_pages;
		out->zero_pages += r->zero_pages;
		out->bytes += r->bytes;
	}
}

uint64_t sender_bytes(const struct sender *s)
{
	uint64_t n = 0;

	for (unsigned i = 0; i < s->nr; i++)
		n += atomic_load_explicit(&s->workers[i]->bytes, memory_order_relaxed);
	return n;
}

uint64_t sender_first_byte_ns(const struct sender *s)
{
	return atomic_load_explicit(&s->first_byte_ns, memory_order_relaxed);
}

void sender_channel_stats(const struct sender *s, unsigned i, struct tern_channel_stats *out)
{
	const struct worker *w;

	if (i >= s->nr) /* the channel for requests has no worker */
		return;
	w = s->workers[i];
	out->numa_node = w->node;
	snprintf(out->cpus, sizeof(out->cpus), "%s", w->cpus);
	out->cpu = atomic_load(&w->cpu);
	out->cpu_ns += atomic_load(&w->cpu_ns); /* to that of earlier links */
}

uint64_t sender_overhead_bytes(const struct sender *s)
{
	return sizeof(*s) + s->nr * (sizeof(struct worker) + sizeof(struct worker *)) +
	       2 * STRIPE_NODES_MAX * sizeof(struct stripe_queue) +
	       2ull * s->c.regions->nr * (sizeof(struct region *) + sizeof(uint64_t)) +
	       scan_overhead_bytes(s->scan);
}
