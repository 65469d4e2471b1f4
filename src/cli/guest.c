/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * The synthetic guest's RAM: allocation, fill, population.
 *
 * Each region is a mapping of its own, aligned to 2 MiB so that transparent huge
 * pages stay possible.  The regions are deliberately unequal in size: region i
 * gets a share of i % 4 + 1, in host pages.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "cli.h"
#include "guest_impl.h"
#include "parallel.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MFD_HUGE_2MB
#define MFD_HUGE_2MB (21u << 26)
#endif

static const char *const backing_names[] = { "memfd", "anon", "hugetlb" };
_Static_assert(sizeof(backing_names) / sizeof(backing_names[0]) == GUEST_BACKING_NR, "names");
static const char *const pattern_names[] = { "uniform", "sequential", "hot", "alternate" };
_Static_assert(sizeof(pattern_names) / sizeof(pattern_names[0]) == GUEST_PATTERN_NR, "names");

/* Name of a backing. */
const char *guest_backing_name(enum guest_backing backing)
{
	return (unsigned)backing < GUEST_BACKING_NR ? backing_names[backing] : "unknown";
}

/* Name of a write pattern. */
const char *guest_pattern_name(enum guest_pattern pattern)
{
	return (unsigned)pattern < GUEST_PATTERN_NR ? pattern_names[pattern] : "unknown";
}

/* Host page size of a backing, bytes. */
uint64_t guest_host_page(enum guest_backing backing)
{
	return backing == GUEST_HUGETLB ? GUEST_HUGE_PAGE : GUEST_PAGE_SIZE;
}

/* One number from a file in /sys; 0 if it cannot be read. */
static unsigned long read_sys(const char *path)
{
	FILE *f = fopen(path, "re");
	unsigned long n = 0;

	if (!f)
		return 0;
	if (fscanf(f, "%lu", &n) != 1)
		n = 0;
	fclose(f);
	return n;
}

#define HUGE_DIR "/sys/kernel/mm/hugepages/hugepages-2048kB/"

/* Say why a region of @bytes could not be had; @code is what the kernel gave. */
static int memory_error(const struct guest *g, uint64_t bytes, int code, struct tern_error *err)
{
	if (g->cfg.backing == GUEST_HUGETLB)
		return cli_fail(err, code,
				"cannot allocate %llu MiB of 2 MiB huge pages for the guest (%s): "
				"%lu of %lu reserved pages are free; reserve more with "
				"`sysctl vm.nr_hugepages=N` (each side needs %llu) or use "
				"--backing memfd",
				(unsigned long long)bytes >> 20, strerror(-code),
				read_sys(HUGE_DIR "free_hugepages"),
				read_sys(HUGE_DIR "nr_hugepages"),
				(unsigned long long)(g->cfg.size / GUEST_HUGE_PAGE));
	return cli_fail(err, code,
			"cannot allocate %llu MiB of %s memory for the guest: %s; use a smaller "
			"--size",
			(unsigned long long)bytes >> 20, guest_backing_name(g->cfg.backing),
			strerror(-code));
}

/* Reserve @bytes of address space at a multiple of 2 MiB; NULL if there is none. */
static uint8_t *reserve(uint64_t bytes)
{
	uint64_t span = bytes + GUEST_HUGE_PAGE;
	uint8_t *p, *begin;

	p = mmap(NULL, span, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		return NULL;
	begin = (uint8_t *)(((uintptr_t)p + GUEST_HUGE_PAGE - 1) &
			    ~(uintptr_t)(GUEST_HUGE_PAGE - 1));
	if (begin > p)
		munmap(p, (size_t)(begin - p));
	munmap(begin + bytes, span - bytes - (size_t)(begin - p));
	return begin;
}

/* Map the memory of region @r.  0 or -errno. */
static int region_map(const struct guest *g, struct guest_region *r, struct tern_error *err)
{
	uint64_t bytes = r->nr_pages * GUEST_PAGE_SIZE;
	int flags = MAP_FIXED | MAP_NORESERVE | MAP_PRIVATE | MAP_ANONYMOUS;
	unsigned mfd = MFD_CLOEXEC;
	uint8_t *at;
	void *p;
	int ret;

	if (g->cfg.backing == GUEST_HUGETLB)
		mfd |= MFD_HUGETLB | MFD_HUGE_2MB;
	if (g->cfg.backing != GUEST_ANON) {
		/* Huge pages are reserved here: a fault must not find the pool empty. */
		flags = MAP_FIXED | MAP_SHARED;
		r->fd = memfd_create(r->name, mfd);
		if (r->fd < 0 || ftruncate(r->fd, (off_t)bytes))
			return memory_error(g, bytes, -errno, err);
	}
	at = reserve(bytes);
	if (!at)
		return memory_error(g, bytes, -errno, err);
	p = mmap(at, bytes, PROT_READ | PROT_WRITE, flags, r->fd, 0);
	if (p == MAP_FAILED) {
		ret = memory_error(g, bytes, -errno, err);
		munmap(at, bytes);
		return ret;
	}
	r->hva = p;
	if (r->node >= 0 && (ret = guest_bind_memory(r)))
		return cli_fail(err, ret, "cannot place region %s on NUMA node %d: %s", r->name,
				r->node, strerror(-ret));
	return 0;
}

/* Cut the RAM into regions of unequal size; see above. */
static void regions_cut(struct guest *g)
{
	uint64_t unit = guest_host_page(g->cfg.backing) / GUEST_PAGE_SIZE;
	uint64_t units = g->layout.nr_pages / unit, spare = units - g->nr_regions;
	uint64_t weights = 0, first = 0, gpa = 0, given = 0;

	for (unsigned i = 0; i < g->nr_regions; i++)
		weights += i % 4 + 1;
	for (unsigned i = 0; i < g->nr_regions; i++) {
		struct guest_region *r = &g->regions[i];
		uint64_t extra = spare / weights * (i % 4 + 1);

		if (i == g->nr_regions - 1)
			extra = spare - given;
		given += extra;
		snprintf(r->name, sizeof(r->name), "ram%u", i);
		r->fd = -1;
		r->node = g->cfg.numa_split ? guest_node(i) : -1;
		r->host_page_size = unit * GUEST_PAGE_SIZE;
		r->first_page = first;
		r->nr_pages = (1 + extra) * unit;
		r->gpa = gpa;
		first += r->nr_pages;
		/* The next one begins at a 2 MiB border, behind a gap. */
		gpa += r->nr_pages * GUEST_PAGE_SIZE + 2 * GUEST_HUGE_PAGE - 1;
		gpa &= ~(uint64_t)(GUEST_HUGE_PAGE - 1);
	}
}

/* The lock and the condition variables; the timed waits use CLOCK_MONOTONIC. */
static void sync_init(struct guest *g)
{
	pthread_condattr_t attr;

	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_mutex_init(&g->lock, NULL);
	pthread_cond_init(&g->wake, &attr);
	pthread_cond_init(&g->stopped, &attr);
	pthread_condattr_destroy(&attr);
}

/* Which pages are touched, and which are the working set; see guest_impl.h. */
void guest_lay_out(struct guest *g)
{
	const struct guest_config *c = &g->cfg;

	layout_init(&g->layout, c->size / GUEST_PAGE_SIZE, c->touched / GUEST_PAGE_SIZE,
		    c->working_set / GUEST_PAGE_SIZE);
	g->layout.ws_first = c->pattern == GUEST_ALTERNATE;
}

/* Allocate a guest; see guest.h. */
int guest_new(const struct guest_config *cfg, struct guest **out, struct tern_error *err)
{
	struct guest *g = calloc(1, sizeof(*g));
	int ret = 0;

	if (!g)
		return cli_fail(err, -ENOMEM, "cannot allocate the guest: out of memory");
	g->cfg = *cfg;
	g->paused = true;
	atomic_store(&g->halt, true);
	g->nr_regions = cfg->nr_regions;
	g->content = (struct content){ .seed = cfg->seed, .fill = cfg->fill };
	guest_lay_out(g);
	sync_init(g);
	g->regions = calloc(g->nr_regions, sizeof(*g->regions));
	g->vcpus = aligned_alloc(128, GUEST_VCPUS_MAX * sizeof(*g->vcpus));
	if (!g->regions || !g->vcpus) {
		ret = cli_fail(err, -ENOMEM, "cannot allocate the guest: out of memory");
		g->nr_regions = 0;
		goto del;
	}
	memset(g->vcpus, 0, GUEST_VCPUS_MAX * sizeof(*g->vcpus));
	for (unsigned i = 0; i < GUEST_VCPUS_MAX; i++) {
		g->vcpus[i].guest = g;
		g->vcpus[i].index = i;
	}
	guest_slice(g);
	regions_cut(g);
	for (unsigned i = 0; i < g->nr_regions && !ret; i++)
		ret = region_map(g, &g->regions[i], err);
	if (ret)
		goto del;
	*out = g;
	return 0;
del:
	guest_delete(&g);
	return ret;
}

/* End the vCPU threads, which hold nothing. */
static void vcpus_stop(struct guest *g)
{
	pthread_mutex_lock(&g->lock);
	g->quit = true;
	atomic_store(&g->halt, true);
	pthread_cond_broadcast(&g->wake);
	pthread_mutex_unlock(&g->lock);
	for (unsigned i = 0; i < g->nr_threads; i++)
		pthread_join(g->vcpus[i].thread, NULL);
	g->nr_threads = 0;
}

/* Free a guest, made in full or in part. */
void guest_delete(struct guest **gp)
{
	struct guest *g = gp ? *gp : NULL;

	if (!g)
		return;
	vcpus_stop(g);
	for (unsigned i = 0; i < g->nr_regions; i++) {
		struct guest_region *r = &g->regions[i];

		if (r->hva)
			munmap(r->hva, r->nr_pages * GUEST_PAGE_SIZE);
		free(r->log);
		/* An unmade entry is all zeros and has no name. */
		if (r->name[0] && r->fd >= 0)
			close(r->fd);
	}
	pthread_cond_destroy(&g->wake);
	pthread_cond_destroy(&g->stopped);
	pthread_mutex_destroy(&g->lock);
	free(g->observed);
	free(g->touch);
	free(g->vcpus);
	free(g->regions);
	free(g);
	*gp = NULL;
}

/* What the guest is now. */
const struct guest_config *guest_config(const struct guest *g)
{
	return &g->cfg;
}

/* Where its touched pages and its working set are. */
const struct layout *guest_layout(const struct guest *g)
{
	return &g->layout;
}

/* Number of regions. */
unsigned guest_nr_regions(const struct guest *g)
{
	return g->nr_regions;
}

/* Region @i. */
const struct guest_region *guest_region(const struct guest *g, unsigned i)
{
	return &g->regions[i];
}

/* The region of a page, by bisection. */
const struct guest_region *guest_find_region(const struct guest *g, uint64_t page)
{
	unsigned lo = 0, hi = g->nr_regions - 1;

	while (lo < hi) {
		unsigned mid = (lo + hi + 1) / 2;

		if (g->regions[mid].first_page <= page)
			lo = mid;
		else
			hi = mid - 1;
	}
	return &g->regions[lo];
}

/* Address of a page. */
uint8_t *guest_page(const struct guest *g, uint64_t page)
{
	const struct guest_region *r = guest_find_region(g, page);

	return r->hva + (page - r->first_page) * GUEST_PAGE_SIZE;
}

/* Fill one block; a parallel_fn. */
static void fill_block(void *ctx, uint64_t b)
{
	struct guest *g = ctx;
	uint64_t first = b * LAYOUT_BLOCK_PAGES;

	if (!layout_block_touched(&g->layout, b))
		return;
	for (unsigned i = 0; i < layout_block_pages(&g->layout, b); i++)
		content_write(&g->content, guest_page(g, first + i), first + i, 0);
}

/* Write version 0 of all touched pages. */
void guest_fill(struct guest *g)
{
	parallel_run(g->layout.nr_blocks, fill_block, g);
}

/* Populate one block, region by region; a parallel_fn. */
static void populate_block(void *ctx, uint64_t b)
{
	struct guest *g = ctx;
	uint64_t page = b * LAYOUT_BLOCK_PAGES, end = page + layout_block_pages(&g->layout, b);

	if (!layout_block_touched(&g->layout, b))
		return;
	while (page < end) {
		const struct guest_region *r = guest_find_region(g, page);
		uint64_t stop = r->first_page + r->nr_pages;
		volatile uint8_t *p = guest_page(g, page);
		size_t bytes;

		if (stop > end)
			stop = end;
		bytes = (stop - page) * GUEST_PAGE_SIZE;
		/* Before Linux 5.14 each page has to be touched by hand. */
		if (madvise((void *)p, bytes, MADV_POPULATE_WRITE))
			for (size_t off = 0; off < bytes; off += GUEST_PAGE_SIZE)
				p[off] = 0;
		page = stop;
	}
}

/* Allocate all touched pages. */
void guest_populate(struct guest *g)
{
	parallel_run(g->layout.nr_blocks, populate_block, g);
}
