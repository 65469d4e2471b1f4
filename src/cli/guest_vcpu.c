/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * vCPU threads of the synthetic guest.
 *
 * Each vCPU owns a slice of the working set; slices are disjoint, so a page has
 * one writer and its version is that vCPU's write counter.  The k-th write
 * rewrites one whole page, guest_target(v, k), with version k + 1.
 *
 * Pace: write n after the vCPU was resumed is due at base + n * period.  A
 * thread writes what is due and then sleeps, at least SLEEP_MIN_NS, so low rates
 * cost nothing and high rates come in small bursts.  What cannot be kept up with
 * is forgotten after BACKLOG_NS.
 *
 *	            lock                    unlock
 *	  ┌─ paused: wait ─► nr_running++ ───────► burst of page writes ─┐
 *	  └─ sleep (timed wait) ◄─ nr_running-- ◄────── lock ◄───────────┘
 *
 * A sleeping thread is not running: it takes the lock and looks at `paused`
 * before it may write again.  So guest_pause() waits only for threads in the
 * middle of a burst, and those look at `halt` before each page.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "cli.h"
#include "guest_impl.h"

#define SLEEP_MIN_NS 1000000u
#define BACKLOG_NS 50000000u
#define NS_PER_S 1000000000u

/* For products of two 64-bit numbers. */
__extension__ typedef unsigned __int128 wide;

/* Slices of the working set: equal shares in order, empty beyond cfg.vcpus. */
void guest_slice(struct guest *g)
{
	uint64_t pages = g->layout.ws_pages, n = g->cfg.vcpus;

	for (unsigned i = 0; i < GUEST_VCPUS_MAX; i++) {
		struct guest_vcpu *v = &g->vcpus[i];

		v->slice_first = i < n ? pages / n * i + (i < pages % n ? i : pages % n) : pages;
		v->slice_pages = i < n ? pages / n + (i < pages % n) : 0;
	}
}

/* @h scaled to 0 … n - 1; n is not 0. */
static uint64_t pick(uint64_t h, uint64_t n)
{
	return (uint64_t)((wide)h * n >> 64);
}

/* Where the k-th write of @v goes; its slice is not empty. */
uint64_t guest_target(const struct guest *g, const struct guest_vcpu *v, uint64_t k)
{
	uint64_t n = v->slice_pages, hot = n / 10 ? n / 10 : 1;
	uint64_t h;

	if (g->cfg.pattern == GUEST_SEQUENTIAL)
		return v->slice_first + k % n;
	if (g->cfg.pattern == GUEST_ALTERNATE)
		return v->slice_first + k % ((n + 1) / 2) * 2;
	h = content_mix(g->cfg.seed ^ content_mix(((uint64_t)v->index << 48) + k));
	if (g->cfg.pattern == GUEST_UNIFORM || n == hot)
		return v->slice_first + pick(h, n);
	/* Nine writes of ten go to the first tenth of the slice. */
	if (h % 10)
		return v->slice_first + pick(content_mix(h), hot);
	return v->slice_first + hot + pick(content_mix(h), n - hot);
}

/* vCPUs that have something to write. */
static uint64_t nr_writers(const struct guest *g)
{
	return g->layout.ws_pages < g->cfg.vcpus ? g->layout.ws_pages : g->cfg.vcpus;
}

/* Whether @v ever writes. */
static bool vcpu_is_writer(const struct guest_vcpu *v)
{
	return v->guest->cfg.dirty_rate && v->slice_pages;
}

/* When write @k of a writer is due, CLOCK_MONOTONIC nanoseconds. */
static uint64_t due_ns(const struct guest_vcpu *v, uint64_t k)
{
	const struct guest *g = v->guest;
	wide ns = (wide)(k - v->base_k) * GUEST_PAGE_SIZE * NS_PER_S * nr_writers(g) /
		  g->cfg.dirty_rate;

	/* Never so far ahead that the sum could wrap. */
	return v->base_ns +
	       (ns > UINT32_MAX * (wide)NS_PER_S ? UINT32_MAX * (uint64_t)NS_PER_S : (uint64_t)ns);
}

/*
 * Destination: before the first overwrite of working-set page @i, see what arrived.  If it
 * has not arrived yet, the first byte is what is waited for.
 */
static void observe(struct guest_vcpu *v, uint64_t i, uint64_t page, const uint8_t *p)
{
	struct guest *g = v->guest;
	uint64_t version, begin;

	if (g->observed[i] != GUEST_UNSEEN)
		return;
	begin = cli_now_ns();
	(void)*(const volatile uint8_t *)p;
	histogram_add(v->touch, cli_now_ns() - begin);
	g->observed[i] = content_observe(&g->content, p, page, &version) ? version + 1 : GUEST_TORN;
}

/* Write @v's k-th page. */
static void write_page(struct guest_vcpu *v, uint64_t k)
{
	struct guest *g = v->guest;
	uint64_t i = guest_target(g, v, k), page = layout_ws_page(&g->layout, i);
	uint8_t *p = guest_page(g, page);

	if (g->observed)
		observe(v, i, page, p);
	content_write(&g->content, p, page, k + 1);
	guest_log_mark(g, page);
}

/* Note how much later than expected an iteration began. */
static void note_gap(struct guest_vcpu *v, uint64_t now)
{
	if (now > v->expected_ns && now - v->expected_ns > atomic_load(&v->gap_ns))
		atomic_store(&v->gap_ns, now - v->expected_ns);
}

/*
 * Write what is due, until the guest is halted.  Returns when the next write is
 * due, or 0 if halted.
 */
static uint64_t burst(struct guest_vcpu *v)
{
	struct guest *g = v->guest;
	uint64_t k = atomic_load(&v->k);

	while (!atomic_load_explicit(&g->halt, memory_order_acquire)) {
		uint64_t now = cli_now_ns(), due = due_ns(v, k);

		note_gap(v, now);
		v->expected_ns = now;
		if (due > now)
			return due > now + SLEEP_MIN_NS ? due : now + SLEEP_MIN_NS;
		if (now - due > BACKLOG_NS) {
			v->base_ns = now;
			v->base_k = k;
		}
		write_page(v, k);
		atomic_store_explicit(&v->k, ++k, memory_order_release);
	}
	return 0;
}

/* Sleep until @until or until something changes.  The lock is held. */
static void vcpu_sleep(struct guest_vcpu *v, uint64_t until)
{
	struct guest *g = v->guest;
	struct timespec ts = { .tv_sec = (time_t)(until / NS_PER_S),
			       .tv_nsec = (long)(until % NS_PER_S) };

	v->expected_ns = until;
	while (!g->paused && !g->resting && !g->quit)
		if (pthread_cond_timedwait(&g->wake, &g->lock, &ts) == ETIMEDOUT)
			break;
}

/* Count the pace from the last guest_resume().  The lock is held. */
static void vcpu_rebase(struct guest_vcpu *v)
{
	struct guest *g = v->guest;

	if (v->epoch == g->epoch)
		return;
	v->epoch = g->epoch;
	v->base_ns = v->expected_ns = g->resumed_ns;
	v->base_k = atomic_load(&v->k);
	guest_bind_vcpu(v); /* guest_load() may have moved its pages */
}

/* A vCPU thread. */
static void *vcpu_main(void *arg)
{
	struct guest_vcpu *v = arg;
	struct guest *g = v->guest;

	pthread_mutex_lock(&g->lock);
	while (!g->quit) {
		uint64_t until;

		if (g->paused || g->resting || !vcpu_is_writer(v)) {
			pthread_cond_wait(&g->wake, &g->lock);
			continue;
		}
		vcpu_rebase(v);
		g->nr_running++;
		pthread_mutex_unlock(&g->lock);
		until = burst(v);
		pthread_mutex_lock(&g->lock);
		if (!--g->nr_running)
			pthread_cond_signal(&g->stopped);
		if (until)
			vcpu_sleep(v, until);
	}
	pthread_mutex_unlock(&g->lock);
	return NULL;
}

/* Start the threads of all vCPUs that have none yet. */
int guest_start_vcpus(struct guest *g, struct tern_error *err)
{
	while (g->nr_threads < g->cfg.vcpus) {
		struct guest_vcpu *v = &g->vcpus[g->nr_threads];
		int ret = pthread_create(&v->thread, NULL, vcpu_main, v);

		if (ret)
			return cli_fail(err, -ret, "cannot start vCPU thread %u of %u: %s",
					v->index, g->cfg.vcpus, strerror(ret));
		g->nr_threads++;
	}
	return 0;
}

/* Stop all vCPUs. */
void guest_pause(struct guest *g)
{
	atomic_store(&g->halt, true);
	pthread_mutex_lock(&g->lock);
	g->paused = true;
	while (g->nr_running)
		pthread_cond_wait(&g->stopped, &g->lock);
	pthread_mutex_unlock(&g->lock);
}

/* Neither paused nor resting any more, perhaps: let the vCPUs write.  The lock is held. */
static void let_write(struct guest *g)
{
	if (g->paused || g->resting)
		return;
	g->epoch++;
	g->resumed_ns = cli_now_ns();
	atomic_store(&g->halt, false);
	pthread_cond_broadcast(&g->wake);
}

/* Let all vCPUs go on. */
void guest_resume(struct guest *g)
{
	pthread_mutex_lock(&g->lock);
	if (g->paused) {
		g->paused = false;
		let_write(g);
	}
	pthread_mutex_unlock(&g->lock);
}

/* Give the vCPUs nothing to do, or something again; see guest.h. */
void guest_rest(struct guest *g, bool rest)
{
	pthread_mutex_lock(&g->lock);
	if (rest)
		atomic_store(&g->halt, true);
	if (g->resting != rest) {
		g->resting = rest;
		let_write(g);
	}
	pthread_mutex_unlock(&g->lock);
}

/* Whether any vCPU writes. */
bool guest_is_busy(const struct guest *g)
{
	return g->cfg.dirty_rate && g->layout.ws_pages;
}

/* Pages written by all vCPUs. */
uint64_t guest_writes(const struct guest *g)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < g->cfg.vcpus; i++)
		sum += atomic_load(&g->vcpus[i].k);
	return sum;
}

/* CPU time of the vCPU threads. */
uint64_t guest_cpu_ns(const struct guest *g)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < g->nr_threads; i++) {
		struct timespec ts;
		clockid_t clock;

		if (!pthread_getcpuclockid(g->vcpus[i].thread, &clock) &&
		    !clock_gettime(clock, &ts))
			sum += (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
	}
	return sum;
}

/* Longest gap of any vCPU. */
uint64_t guest_longest_gap_ns(const struct guest *g)
{
	uint64_t max = 0;

	for (unsigned i = 0; i < g->nr_threads; i++) {
		uint64_t gap = atomic_load(&g->vcpus[i].gap_ns);

		if (gap > max)
			max = gap;
	}
	return max;
}

/* First accesses of all vCPUs. */
void guest_first_touch(const struct guest *g, uint64_t least_ns, struct histogram *out)
{
	memset(out, 0, sizeof(*out));
	for (unsigned i = 0; i < GUEST_VCPUS_MAX; i++)
		if (g->vcpus[i].touch)
			histogram_merge(out, g->vcpus[i].touch, least_ns);
}
