/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * The proof that every page of the synthetic guest is right.
 *
 * 1. Replay: for each vCPU the writes 0 … K - 1 give the last version of every
 *    page of its slice (`now`), and the writes before the handover the version
 *    it had when the guest moved (`then`).
 * 2. Each page in memory is compared in full with version `now` (0 outside the
 *    working set, zeros where the guest never touched RAM).
 * 3. A page that the destination's vCPUs overwrote cannot be looked at any more;
 *    the vCPU looked before it wrote, and noted the version it found.  That must
 *    be `then`, so a stale or torn page cannot hide behind an overwrite.
 *
 * Untouched RAM is not read where the kernel knows that it has no memory: residency
 * and data extents for memfd, pagemap for anonymous memory.  Huge pages are read
 * through their file, which gives zeros for holes without allocating them.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "cli.h"
#include "guest_impl.h"
#include "parallel.h"

#define BLOCK LAYOUT_BLOCK_PAGES
#define PAGEMAP_HAS_MEMORY (3ull << 62) /* present or swapped */

/* One verification; shared by its threads. */
struct check {
	struct guest *g;
	uint64_t *now, *then; /* per working-set page: versions */
	int pagemap; /* /proc/self/pagemap, or -1 if not needed */
	_Atomic uint64_t pages, bad;
	_Atomic int failed; /* first negative errno of a thread */
	pthread_mutex_t lock; /* *out's notes */
	struct guest_verify *out;
};

/* A run of pages within one block and one region. */
struct run {
	const struct guest_region *region;
	uint64_t first; /* index in guest RAM */
	unsigned nr;
	const uint8_t *data; /* its contents */
	bool hole[BLOCK]; /* page has no memory and reads as zero; do not look at data */
};

/* Versions of one vCPU's pages; a parallel_fn. */
static void replay_vcpu(void *ctx, uint64_t i)
{
	struct check *c = ctx;
	struct guest_vcpu *v = &c->g->vcpus[i];
	uint64_t k_end = atomic_load(&v->k);

	for (uint64_t k = 0; k < k_end; k++) {
		uint64_t page = guest_target(c->g, v, k);

		c->now[page] = k + 1;
		if (k < v->handover)
			c->then[page] = k + 1;
	}
}

/* Keep the sentence about a bad page if there is room for it. */
static void note_bad(struct check *c, uint64_t page, const char *what)
{
	const struct guest_region *r = guest_find_region(c->g, page);
	struct guest_verify *out = c->out;

	atomic_fetch_add(&c->bad, 1);
	pthread_mutex_lock(&c->lock);
	if (out->nr_notes < GUEST_NOTES_MAX)
		snprintf(out->note[out->nr_notes++], sizeof(out->note[0]),
			 "page %" PRIu64 " (%s+0x%" PRIx64 "): %s", page, r->name,
			 (page - r->first_page) * GUEST_PAGE_SIZE, what);
	pthread_mutex_unlock(&c->lock);
}

/* Say what is wrong with a page that is not version @want. */
static void diagnose(struct check *c, const uint8_t *p, uint64_t page, uint64_t want)
{
	uint64_t found, stamp[2];
	char what[128];

	memcpy(stamp, p, sizeof(stamp));
	if (content_observe(&c->g->content, p, page, &found))
		snprintf(what, sizeof(what),
			 "holds version %" PRIu64 ", must hold version %" PRIu64, found, want);
	else if (content_all_zero(p))
		snprintf(what, sizeof(what), "is all zeros, must hold version %" PRIu64, want);
	else if (stamp[0] < c->g->layout.nr_pages && stamp[0] != page && stamp[1] &&
		 content_check(&c->g->content, p, stamp[0], stamp[1]))
		snprintf(what, sizeof(what), "holds page %" PRIu64 " (version %" PRIu64 ")",
			 stamp[0], stamp[1]);
	else
		snprintf(what, sizeof(what), "corrupt, must hold version %" PRIu64, want);
	note_bad(c, page, what);
}

/* What the destination's vCPU saw before it overwrote working-set page @i. */
static bool observed_ok(struct check *c, uint64_t i, uint64_t page)
{
	uint64_t seen = c->g->observed ? c->g->observed[i] : GUEST_UNSEEN;
	char what[128];

	if (seen == GUEST_UNSEEN || seen == c->then[i] + 1)
		return true;
	if (seen == GUEST_TORN)
		snprintf(what, sizeof(what),
			 "was corrupt after the handover, before the "
			 "destination's vCPU overwrote it");
	else
		snprintf(what, sizeof(what),
			 "held version %" PRIu64 " after the handover, must have held %" PRIu64,
			 seen - 1, c->then[i]);
	note_bad(c, page, what);
	return false;
}

/* Compare page @i of a run. */
static void check_page(struct check *c, const struct run *run, unsigned i, uint64_t ws)
{
	const struct content *content = &c->g->content;
	const uint8_t *p = run->data + (uint64_t)i * GUEST_PAGE_SIZE;
	uint64_t page = run->first + i, version = 0;
	bool touched = layout_block_touched(&c->g->layout, page / BLOCK);

	if (ws != LAYOUT_NONE) {
		version = c->now[ws];
		if (!observed_ok(c, ws, page))
			return;
	}
	if (run->hole[i]) {
		if (touched && !content_is_zero(content, page, version))
			note_bad(c, page, "has no memory (all zeros), must hold data");
	} else if (!touched) {
		if (!content_all_zero(p))
			note_bad(c, page, "not zero, but the guest never touched it");
	} else if (!content_check(content, p, page, version)) {
		diagnose(c, p, page, version);
	}
}

/*
 * Holes of a run in memfd memory: pages that are neither in memory (mincore()) nor
 * swapped out (the file's data).  SEEK_HOLE is not used: it walks on to the end of the
 * data, however far behind the run that is.  0 or -errno.
 */
static int holes_memfd(struct run *run)
{
	off_t begin = (off_t)((run->first - run->region->first_page) * GUEST_PAGE_SIZE);
	off_t end = begin + (off_t)run->nr * GUEST_PAGE_SIZE;
	unsigned char resident[BLOCK];

	if (mincore((void *)run->data, run->nr * GUEST_PAGE_SIZE, resident))
		return -errno;
	memset(run->hole, false, sizeof(run->hole));
	for (unsigned i = 0; i < run->nr;) {
		off_t pos = begin + (off_t)i * GUEST_PAGE_SIZE, data;

		if (resident[i] & 1) {
			i++;
			continue;
		}
		data = lseek(run->region->fd, pos, SEEK_DATA);
		if (data < 0 && errno != ENXIO)
			return -errno;
		if (data < 0 || data > end)
			data = end;
		for (; pos < data; pos += GUEST_PAGE_SIZE)
			run->hole[i++] = true;
		i += data == pos && data < end; /* swapped out, or resident by now */
	}
	return 0;
}

/* Holes of a run in anonymous memory, from pagemap.  0 or -errno. */
static int holes_anon(const struct check *c, struct run *run)
{
	uint64_t entry[BLOCK];
	size_t bytes = run->nr * sizeof(entry[0]);
	off_t at = (off_t)((uintptr_t)run->data / GUEST_PAGE_SIZE * sizeof(entry[0]));
	ssize_t n = pread(c->pagemap, entry, bytes, at);

	if (n < 0)
		return -errno;
	if ((size_t)n != bytes)
		return -EIO;
	for (unsigned i = 0; i < run->nr; i++)
		run->hole[i] = !(entry[i] & PAGEMAP_HAS_MEMORY);
	return 0;
}

/* Read a run of huge-page memory through its file into @buf.  0 or -errno. */
static int read_hugetlb(struct run *run, uint8_t *buf)
{
	size_t bytes = (size_t)run->nr * GUEST_PAGE_SIZE, done = 0;
	off_t at = (off_t)((run->first - run->region->first_page) * GUEST_PAGE_SIZE);

	while (done < bytes) {
		ssize_t n = pread(run->region->fd, buf + done, bytes - done, at + (off_t)done);

		if (n <= 0)
			return n ? -errno : -EIO;
		done += (size_t)n;
	}
	run->data = buf;
	memset(run->hole, 0, sizeof(run->hole));
	return 0;
}

/* Find a run's holes or contents by what backs it, and compare its pages. */
static int check_run(struct check *c, struct run *run, uint8_t *buf)
{
	uint64_t ws = layout_ws_first(&c->g->layout, run->first / BLOCK);
	int ret = 0;

	run->data = run->region->hva + (run->first - run->region->first_page) * GUEST_PAGE_SIZE;
	if (c->g->cfg.backing == GUEST_MEMFD)
		ret = holes_memfd(run);
	else if (c->g->cfg.backing == GUEST_ANON)
		ret = holes_anon(c, run);
	else
		ret = read_hugetlb(run, buf);
	if (ret)
		return ret;
	for (unsigned i = 0; i < run->nr; i++) {
		uint64_t n = ws == LAYOUT_NONE ? LAYOUT_NONE : ws + (run->first + i) % BLOCK;

		check_page(c, run, i, n < c->g->layout.ws_pages ? n : LAYOUT_NONE);
	}
	atomic_fetch_add(&c->pages, run->nr);
	return 0;
}

/* Compare one block, run by run; a parallel_fn. */
static void check_block(void *ctx, uint64_t b)
{
	struct check *c = ctx;
	uint64_t page = b * BLOCK, end = page + layout_block_pages(&c->g->layout, b);
	struct run run;
	uint8_t *buf = NULL;
	int ret = 0;

	if (c->g->cfg.backing == GUEST_HUGETLB) {
		buf = aligned_alloc(GUEST_PAGE_SIZE, GUEST_HUGE_PAGE);
		if (!buf)
			ret = -ENOMEM;
	}
	while (page < end && !ret) {
		uint64_t stop;

		run.region = guest_find_region(c->g, page);
		stop = run.region->first_page + run.region->nr_pages;
		run.first = page;
		run.nr = (unsigned)((stop < end ? stop : end) - page);
		ret = check_run(c, &run, buf);
		page += run.nr;
	}
	if (ret)
		atomic_store(&c->failed, ret);
	free(buf);
}

/* Run the check on all CPUs; see guest.h. */
int guest_verify(struct guest *g, struct guest_verify *out, struct tern_error *err)
{
	struct check c = { .g = g, .out = out, .pagemap = -1 };
	uint64_t n = g->layout.ws_pages + 1;
	int ret = 0;

	memset(out, 0, sizeof(*out));
	c.now = calloc(n, sizeof(*c.now));
	c.then = calloc(n, sizeof(*c.then));
	if (!c.now || !c.then) {
		ret = cli_fail(err, -ENOMEM, "cannot verify the guest: out of memory");
		goto free_versions;
	}
	if (g->cfg.backing == GUEST_ANON) {
		c.pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
		if (c.pagemap < 0) {
			ret = cli_fail(err, -errno, "cannot open /proc/self/pagemap: %s",
				       strerror(errno));
			goto free_versions;
		}
	}
	pthread_mutex_init(&c.lock, NULL);
	parallel_run(g->cfg.vcpus, replay_vcpu, &c);
	parallel_run(g->layout.nr_blocks, check_block, &c);
	out->pages = atomic_load(&c.pages);
	out->bad = atomic_load(&c.bad);
	ret = atomic_load(&c.failed);
	if (ret)
		cli_fail(err, ret, "cannot read the guest's memory to verify it: %s",
			 strerror(-ret));
	pthread_mutex_destroy(&c.lock);
	if (c.pagemap >= 0)
		close(c.pagemap);
free_versions:
	free(c.now);
	free(c.then);
	return ret;
}
