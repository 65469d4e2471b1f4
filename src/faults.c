/* SPDX-License-Identifier: BSD-2-Clause */
#define _GNU_SOURCE
#include "faults.h"

#include <errno.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "error.h"
#include "histogram.h"
#include "mapper.h"
#include "monitor.h"

#define BATCH WIRE_WANTED_PER_MSG /* faults per read */
#define WAITERS_MAX 4096u /* faults that are timed at once; more are served, not timed */
#define BUCKETS 1024u
#define THREADS_SEEN TERN_POSTCOPY_THREADS_MAX

/* A thread of the guest that waits for a page. */
struct waiter {
	struct waiter *next; /* of its bucket, or of the free ones */
	uint32_t region;
	uint32_t tid; /* 0: the kernel does not tell */
	uint64_t host_page;
	uint64_t ready_ns, read_ns; /* could have been, was read */
	uint64_t sent_ns, here_ns; /* 0: not asked for; not here yet */
	bool asked; /* counts as a request, not as a fault that was resolved here */
};

/* What one thread of the guest has waited. */
struct blocked {
	uint32_t tid;
	unsigned now; /* faults it waits for: 0 or 1 */
	uint64_t faults, ns;
};

struct fault_thread {
	struct faults *pool;
	pthread_t thread;
	bool running;
	int wake_fd; /* eventfd: stop, there are more mappers, or forsaken */
};

struct faults {
	struct faults_config c;
	atomic_bool stop;
	atomic_bool forsaken; /* one thread clears it, and does it */
	struct fault_thread threads[FAULTS_THREADS_MAX];

	pthread_mutex_t lock; /* all below; a leaf */
	struct waiter *pool, *free;
	struct waiter *buckets[BUCKETS];
	struct blocked blocked[THREADS_SEEN];
	unsigned nr_seen, nr_blocked;
	uint64_t all_since_ns; /* all threads seen so far are blocked since; 0: not all */
	uint64_t all_ns;
	uint64_t requests, duplicates, local, untimed;
	struct histogram total, notice, request, transfer, place;
};

/* ------------------------------------------------------------------- waiters */

static unsigned bucket_of(uint32_t region, uint64_t host_page)
{
	return (unsigned)((host_page * 0x9e3779b97f4a7c15ull + region) >> 54) % BUCKETS;
}

/* The figures of thread @tid, made if there is room; NULL: none.  Under the lock. */
static struct blocked *blocked_of(struct faults *f, uint32_t tid)
{
	for (unsigned i = 0; i < f->nr_seen; i++)
		if (f->blocked[i].tid == tid)
			return &f->blocked[i];
	if (f->nr_seen == THREADS_SEEN)
		return NULL;
	f->blocked[f->nr_seen].tid = tid;
	return &f->blocked[f->nr_seen++];
}

/* The number of blocked threads changed.  Under the lock. */
static void account_all(struct faults *f, uint64_t now)
{
	bool all = f->nr_blocked && f->nr_blocked == f->nr_seen;

	if (all && !f->all_since_ns)
		f->all_since_ns = now;
	if (!all && f->all_since_ns) {
		f->all_ns += now - f->all_since_ns;
		f->all_since_ns = 0;
	}
}

/* A fault was read. */
static void waiter_add(struct faults *f, const struct placement_fault *at, uint32_t tid,
		       uint64_t ready_ns, uint64_t now)
{
	unsigned b = bucket_of(at->region, at->host_page);

	pthread_mutex_lock(&f->lock);
	struct waiter *w = f->free;
	struct blocked *who = blocked_of(f, tid);

	if (who) {
		who->faults++;
		if (w && !who->now++)
			f->nr_blocked++;
		account_all(f, now);
	}
	if (w) {
		f->free = w->next;
		*w = (struct waiter){
			.next = f->buckets[b],
			.region = at->region,
			.tid = tid,
			.host_page = at->host_page,
			.ready_ns = ready_ns,
			.read_ns = now,
		};
		f->buckets[b] = w;
	} else {
		f->untimed++;
	}
	pthread_mutex_unlock(&f->lock);
}

/*
 * The page of all waiters at @at is asked for; @now: since then, or 0: it is about to be.
 * The answer may be quicker than the return from sending.
 */
static void waiters_sent(struct faults *f, const struct placement_fault *at, uint64_t now)
{
	pthread_mutex_lock(&f->lock);
	struct waiter *w = f->buckets[bucket_of(at->region, at->host_page)];

	for (; w; w = w->next) {
		if (w->region != at->region || w->host_page != at->host_page)
			continue;
		w->asked = true;
		if (!w->sent_ns)
			w->sent_ns = now;
	}
	pthread_mutex_unlock(&f->lock);
}

void faults_resolving(void *opaque, uint32_t region, uint64_t host_page)
{
	struct faults *f = opaque;
	uint64_t now = now_ns();

	pthread_mutex_lock(&f->lock);
	for (struct waiter *w = f->buckets[bucket_of(region, host_page)]; w; w = w->next)
		if (w->region == region && w->host_page == host_page && !w->here_ns)
			w->here_ns = now;
	pthread_mutex_unlock(&f->lock);
}

/* The time between two moments; they may have been taken out of order by a few. */
static uint64_t between(uint64_t from, uint64_t to)
{
	return to > from ? to - from : 0;
}

/* A thread goes on at @now.  Under the lock. */
static void waiter_done(struct faults *f, const struct waiter *w, uint64_t now)
{
	struct blocked *who = blocked_of(f, w->tid);
	uint64_t sent = w->sent_ns ? w->sent_ns : w->here_ns;

	if (who) {
		who->ns += between(w->ready_ns, now);
		if (who->now && !--who->now)
			f->nr_blocked--;
		account_all(f, now);
	}
	if (!w->asked) {
		f->local++;
		return;
	}
	histogram_add(&f->total, between(w->ready_ns, now));
	histogram_add(&f->notice, between(w->ready_ns, w->read_ns));
	histogram_add(&f->request, between(w->read_ns, sent));
	histogram_add(&f->transfer, between(sent, w->here_ns));
	histogram_add(&f->place, between(w->here_ns, now));
}

void faults_resolved(void *opaque, uint32_t region, uint64_t host_page)
{
	struct faults *f = opaque;
	uint64_t now = now_ns();

	pthread_mutex_lock(&f->lock);
	struct waiter **at = &f->buckets[bucket_of(region, host_page)];

	while (*at) {
		struct waiter *w = *at;

		/* One that came after resolving() waits for the next one. */
		if (w->region != region || w->host_page != host_page || !w->here_ns) {
			at = &w->next;
			continue;
		}
		*at = w->next;
		waiter_done(f, w, now);
		w->next = f->free;
		f->free = w;
	}
	pthread_mutex_unlock(&f->lock);
}

/* ------------------------------------------------------------------- threads */

/* What a batch of faults asks for. */
struct batch {
	struct placement_fault asked[BATCH];
	unsigned nr;
	unsigned duplicates;
};

/* Resolve @at, which is here.  0 or -errno. */
static int resolve(struct faults *f, const struct placement_fault *at)
{
	int r = placement_resolve(f->c.placement, at);
	struct tern_error err;

	if (!r)
		return 0;
	error_clear(&err);
	error_set(&err, r, TERN_SCOPE_PAGE,
		  "cannot resolve a fault of the guest at page %llu of region %u: %s; a thread of "
		  "the guest hangs",
		  (unsigned long long)at->page, at->region, error_name(r));
	f->c.fail(f->c.opaque, &err);
	return r;
}

/* Which page a fault of @m, or of this process (NULL), is at. */
static bool find(const struct placement *p, const struct mapper *m, uint64_t hva,
		 struct placement_fault *at)
{
	return m ? mapper_find(p, m, hva, at) : placement_find(p, hva, at);
}

/* One fault, of @m or of this process (NULL).  0 or -errno. */
static int take_fault(struct faults *f, struct mapper *m, const struct uffd_msg *msg,
		      uint64_t ready_ns, struct batch *b)
{
	struct placement *p = f->c.placement;
	struct placement_fault at;

	if (msg->event != UFFD_EVENT_PAGEFAULT || !find(p, m, msg->arg.pagefault.address, &at))
		return 0;
	waiter_add(f, &at, msg->arg.pagefault.feat.ptid, ready_ns, now_ns());
	if (m)
		mapper_ask(m, &at);
	if (placement_is_here(p, &at))
		return resolve(f, &at);
	if (placement_ask(p, &at)) {
		b->asked[b->nr++] = at;
	} else {
		waiters_sent(f, &at, now_ns()); /* by somebody else's request */
		b->duplicates++;
	}
	/* It may have come between the two looks, and whoever brought it saw nobody waiting. */
	return placement_is_here(p, &at) ? resolve(f, &at) : 0;
}

/* Ask the source for what a batch needs.  What fails is asked for again with a new link. */
static void ask(struct faults *f, const struct batch *b)
{
	struct wire_page_range v[BATCH];

	for (unsigned i = 0; i < b->nr; i++)
		v[i] = (struct wire_page_range){ b->asked[i].region, b->asked[i].page,
						 b->asked[i].nr_pages };
	for (unsigned i = 0; i < b->nr; i++)
		waiters_sent(f, &b->asked[i], 0);
	if (b->nr)
		(void)f->c.request(f->c.opaque, v, b->nr);

	uint64_t now = now_ns();

	for (unsigned i = 0; i < b->nr; i++)
		waiters_sent(f, &b->asked[i], now);
	pthread_mutex_lock(&f->lock);
	f->requests += b->nr;
	f->duplicates += b->duplicates;
	pthread_mutex_unlock(&f->lock);
}

/* Read and handle the faults there are of @m, or of this process (NULL).  0 or -errno. */
static int take_faults(struct faults *f, struct mapper *m, uint64_t ready_ns)
{
	struct uffd_msg msg[BATCH];
	struct batch b = { .nr = 0 };
	ssize_t n = read(m ? mapper_fd(m) : f->c.placement->uffd.fd, msg, sizeof(msg));
	int r = 0;

	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? -EAGAIN : -errno;
	for (size_t i = 0; i < (size_t)n / sizeof(msg[0]) && !r; i++)
		r = take_fault(f, m, &msg[i], ready_ns, &b);
	ask(f, &b);
	return r;
}

/* All faults of @m, or of this process (NULL), as long as there are any.  0 or -errno. */
static int drain(struct faults *f, struct mapper *m)
{
	int r;

	if (!atomic_load(&f->c.placement->armed))
		return 0; /* nothing is registered yet */
	do
		r = take_faults(f, m, now_ns());
	while (!r);
	return r == -EAGAIN ? 0 : r;
}

/* What thread @t waits for: its eventfd, this process's faults, those of the mappers. */
static unsigned fill(const struct fault_thread *t, struct pollfd *p)
{
	const struct placement *pl = t->pool->c.placement;
	unsigned nr = atomic_load(&pl->nr_mappers);

	p[0] = (struct pollfd){ .fd = t->wake_fd, .events = POLLIN };
	p[1] = (struct pollfd){ .fd = pl->uffd.fd, .events = POLLIN };
	for (unsigned i = 0; i < nr; i++)
		p[2 + i] = (struct pollfd){ .fd = mapper_fd(pl->mappers[i]), .events = POLLIN };
	return 2 + nr;
}

static void *fault_main(void *arg)
{
	struct fault_thread *t = arg;
	struct faults *f = t->pool;
	struct pollfd p[2 + PLACEMENT_MAPPERS_MAX];
	struct tern_error err;
	eventfd_t ignored;
	int r = 0;

	pthread_setname_np(pthread_self(), "tern-fault");
	while (!r && !atomic_load(&f->stop)) {
		unsigned nr = fill(t, p);

		if (poll(p, nr, -1) < 0 && errno != EINTR)
			r = -errno;
		if (p[0].revents)
			(void)eventfd_read(t->wake_fd, &ignored);
		if (atomic_exchange(&f->forsaken, false))
			placement_forsake(f->c.placement);
		if (!r)
			r = drain(f, NULL);
		for (unsigned i = 2; i < nr; i++) /* one whose process is gone ends alone */
			if (p[i].revents & POLLIN)
				(void)drain(f, f->c.placement->mappers[i - 2]);
	}
	if (!r)
		return NULL;
	error_clear(&err);
	error_session(&err, r, "cannot read the guest's page faults: %s", error_name(r));
	f->c.fail(f->c.opaque, &err);
	return NULL;
}

void faults_mappers_changed(struct faults *f)
{
	for (unsigned i = 0; i < FAULTS_THREADS_MAX; i++)
		if (f->threads[i].running)
			(void)eventfd_write(f->threads[i].wake_fd, 1);
}

void faults_forsake(struct faults *f)
{
	atomic_store(&f->forsaken, true);
	faults_mappers_changed(f);
}

int faults_start(const struct faults_config *config, struct faults **out, struct tern_error *err)
{
	struct faults *f = calloc(1, sizeof(*f));
	int r = 0;

	if (!f)
		return error_session(err, -ENOMEM, "no memory for the fault threads");
	f->c = *config;
	pthread_mutex_init(&f->lock, NULL);
	for (unsigned i = 0; i < FAULTS_THREADS_MAX; i++)
		f->threads[i].wake_fd = -1;
	f->pool = calloc(WAITERS_MAX, sizeof(*f->pool));
	if (!f->pool)
		r = -ENOMEM;
	for (unsigned i = 0; !r && i < WAITERS_MAX; i++) {
		f->pool[i].next = f->free;
		f->free = &f->pool[i];
	}
	f->c.placement->resolving = faults_resolving;
	f->c.placement->resolved = faults_resolved;
	f->c.placement->fault_opaque = f;
	for (unsigned i = 0; !r && i < config->nr_threads && i < FAULTS_THREADS_MAX; i++) {
		struct fault_thread *t = &f->threads[i];

		t->pool = f;
		t->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		r = t->wake_fd < 0 ? -errno : -pthread_create(&t->thread, NULL, fault_main, t);
		t->running = !r;
	}
	if (r) {
		faults_stop(&f);
		return error_session(err, r, "cannot start %u fault threads: %s",
				     config->nr_threads, error_name(r));
	}
	*out = f;
	return 0;
}

void faults_stop(struct faults **fp)
{
	struct faults *f = *fp;

	if (!f)
		return;
	atomic_store(&f->stop, true);
	faults_mappers_changed(f);
	for (unsigned i = 0; i < FAULTS_THREADS_MAX; i++) {
		if (f->threads[i].running)
			pthread_join(f->threads[i].thread, NULL);
		if (f->threads[i].wake_fd >= 0)
			close(f->threads[i].wake_fd);
	}
	free(f->pool);
	pthread_mutex_destroy(&f->lock);
	free(f);
	*fp = NULL;
}

int faults_ask_again(struct faults *f)
{
	struct placement_fault at = { 0 };
	struct wire_page_range v[BATCH];
	unsigned nr = 0;
	int r = 0;

	for (; !r && placement_next_asked(f->c.placement, &at); at.host_page++) {
		v[nr++] = (struct wire_page_range){ at.region, at.page, at.nr_pages };
		if (nr == BATCH) {
			r = f->c.request(f->c.opaque, v, nr);
			nr = 0;
		}
	}
	return !r && nr ? f->c.request(f->c.opaque, v, nr) : r;
}

/* p50, p99, p99.9 and most of @h, and its sum. */
static void summarise(const struct histogram *h, struct tern_latency *out)
{
	out->nr = h->nr;
	out->sum_ns = h->sum_ns;
	out->p50_ns = histogram_percentile(h, 500);
	out->p99_ns = histogram_percentile(h, 990);
	out->p999_ns = histogram_percentile(h, 999);
	out->max_ns = h->max_ns;
}

void faults_stats(struct faults *f, struct tern_postcopy_stats *out)
{
	pthread_mutex_lock(&f->lock);
	out->requests = f->requests;
	out->duplicates = f->duplicates;
	out->local_faults = f->local;
	summarise(&f->total, &out->fault);
	summarise(&f->notice, &out->notice);
	summarise(&f->request, &out->request);
	summarise(&f->transfer, &out->transfer);
	summarise(&f->place, &out->place);
	for (unsigned b = 0; b < HISTOGRAM_OCTAVES * HISTOGRAM_PARTS; b++) {
		uint64_t us = histogram_floor(b) / 1000;
		unsigned log2 = us ? 64u - (unsigned)__builtin_clzll(us) : 0;

		if (log2 >= TERN_POSTCOPY_BUCKETS)
			log2 = TERN_POSTCOPY_BUCKETS - 1;
		out->log2_us[log2] += f->total.counts[b];
	}
	out->all_blocked_ns = f->all_ns + (f->all_since_ns ? now_ns() - f->all_since_ns : 0);
	out->nr_threads = f->nr_seen;
	for (unsigned i = 0; i < f->nr_seen; i++) {
		out->blocked_ns += f->blocked[i].ns;
		out->threads[i] = (struct tern_blocked_thread){
			.tid = f->blocked[i].tid,
			.faults = f->blocked[i].faults,
			.blocked_ns = f->blocked[i].ns,
		};
	}
	pthread_mutex_unlock(&f->lock);
}
