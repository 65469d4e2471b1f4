/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The mappings of placement, and the ioctls that give pages to the guest.
 *
 *	          guest's mapping            alias
 *	shared    │ empty, registered │      │ written by the session │
 *	                    └────── page cache ──────┘
 *	private   │ stale pages discarded, registered │   contents come in messages
 *
 * Emptying a shared mapping drops page table entries only; contents stay in the page
 * cache.  It is done early, when there may be many, and again at the switchover, when
 * there are few: those that somebody has touched since.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/userfaultfd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "bitmap.h"
#include "error.h"
#include "mapper.h"
#include "placement_private.h"

/* What regions need of userfaultfd, besides being able to place private pages. */
static uint64_t features_needed(const struct region_list *regions)
{
	uint64_t need = 0;

	for (unsigned i = 0; i < regions->nr; i++) {
		if (regions->v[i].backing == REGION_HUGETLB)
			need |= UFFD_CAN_MISSING_HUGETLB | UFFD_CAN_MINOR_HUGETLB;
		else if (regions->v[i].backing != REGION_ANON_PRIVATE)
			need |= UFFD_CAN_MISSING_SHMEM | UFFD_CAN_MINOR_SHMEM;
	}
	return need;
}

/* Can pages of @r be placed while the guest runs, and how?  0 or -EOPNOTSUPP with *err. */
static int kind_of(const struct region *r, enum placement_kind *kind, struct tern_error *err)
{
	if (r->backing == REGION_ANON_PRIVATE && r->host_page_size == TERN_PAGE_SIZE)
		*kind = PLACEMENT_COPY;
	else if (r->shared && (r->backing == REGION_SHMEM || r->backing == REGION_HUGETLB))
		*kind = PLACEMENT_SHARED;
	else
		return error_session(
			err, -EOPNOTSUPP,
			"postcopy cannot place pages of region '%s', which is %s; use "
			"private anonymous memory, or a shared mapping of a memfd or of "
			"hugetlbfs",
			r->name,
			r->backing == REGION_HUGETLB ? "a private mapping of huge pages"
						     : "a mapping of a file");
	return 0;
}

/* A second mapping of @r.  0 or -errno with *err. */
static int map_alias(struct placement_region *v, struct tern_error *err)
{
	const struct region *r = v->region;
	void *p = r->fd >= 0 ? mmap(NULL, r->size, PROT_READ | PROT_WRITE,
				    MAP_SHARED | MAP_NORESERVE, r->fd, (off_t)r->fd_offset)
			     : mremap(r->hva, 0, r->size, MREMAP_MAYMOVE);

	if (p == MAP_FAILED)
		return error_session(
			err, -errno,
			"cannot map region '%s' (%llu MiB) a second time for postcopy: "
			"%s; give the descriptor of its memory, and see that address "
			"space is left (ulimit -v)",
			r->name, (unsigned long long)(r->size >> 20), error_name(-errno));
	v->alias = p;
	return 0;
}

/* Take all pages from the guest's page table; of private memory, they are gone.  0 or -errno. */
static int empty(const struct region *r, struct tern_error *err)
{
	if (!madvise(r->hva, r->size, MADV_DONTNEED))
		return 0;
	return error_session(err, -errno,
			     "cannot empty the mapping of region '%s' for postcopy (madvise "
			     "MADV_DONTNEED): %s%s",
			     r->name, error_name(-errno),
			     errno == EINVAL
				     ? "; is it locked (mlock)? On huge pages Linux 5.18 is "
				       "needed"
				     : "");
}

/* Have the memory of a zeroed set at hand: it is filled while the guest is paused. */
static void touch(void *set, size_t bytes)
{
	for (size_t at = 0; at < bytes; at += TERN_PAGE_SIZE)
		((volatile uint8_t *)set)[at] = 0;
}

/* The sets of @v.  0 or -ENOMEM with *err. */
static int make_sets(struct placement_region *v, struct tern_error *err)
{
	uint64_t pages = v->region->nr_pages, host = (pages + v->host_pages - 1) / v->host_pages;

	v->missing = calloc(bitmap_words(pages), sizeof(*v->missing));
	v->claimed = calloc(bitmap_words(pages), sizeof(*v->claimed));
	v->asked = calloc(bitmap_words(host), sizeof(*v->asked));
	v->left = calloc(v->nr_blocks, sizeof(*v->left));
	if (v->missing && v->claimed && v->asked && v->left) {
		touch(v->missing, bitmap_words(pages) * sizeof(*v->missing));
		touch(v->left, v->nr_blocks * sizeof(*v->left));
		return 0;
	}
	return error_session(err, -ENOMEM,
			     "no memory for the lists of missing pages of region '%s'",
			     v->region->name);
}

static int region_init(struct placement_region *v, const struct region *r, struct tern_error *err)
{
	int e = kind_of(r, &v->kind, err);

	v->region = r;
	v->host_pages = r->host_page_size / TERN_PAGE_SIZE;
	v->block_pages = PLACEMENT_BLOCK_BYTES / TERN_PAGE_SIZE;
	if (v->host_pages > v->block_pages)
		v->block_pages = v->host_pages;
	v->nr_blocks = (r->nr_pages + v->block_pages - 1) / v->block_pages;
	if (!e)
		e = make_sets(v, err);
	if (!e && v->kind == PLACEMENT_SHARED)
		e = map_alias(v, err);
	return e ? e : empty(r, err);
}

/* Who wants to know nothing. */
static void no_fault(void *opaque, uint32_t region, uint64_t host_page)
{
}

static void no_complete(void *opaque)
{
}

static void no_retire(void *opaque, uint32_t region, uint64_t offset, uint64_t len)
{
}

int placement_new(const struct region_list *regions, struct placement **out, struct tern_error *err)
{
	struct placement *p = calloc(1, sizeof(*p));
	struct uffd probe;
	int r;

	if (!p)
		return error_session(err, -ENOMEM, "no memory for postcopy");
	p->uffd.fd = -1;
	p->resolving = p->resolved = no_fault;
	p->complete = no_complete;
	p->retire = no_retire;
	p->v = calloc(regions->nr, sizeof(*p->v));
	r = p->v ? uffd_open(&probe, features_needed(regions), err)
		 : error_session(err, -ENOMEM, "no memory for postcopy");
	if (!r) { /* thread ids where the kernel has them */
		uint64_t want = features_needed(regions) | (probe.features & UFFD_CAN_THREAD_ID);

		uffd_close(&probe);
		r = uffd_open(&p->uffd, want, err);
	}
	for (unsigned i = 0; i < regions->nr && !r; i++) {
		p->nr = i + 1;
		r = region_init(&p->v[i], &regions->v[i], err);
	}
	if (r)
		placement_delete(&p);
	else
		*out = p;
	return r;
}

void placement_delete(struct placement **pp)
{
	struct placement *p = *pp;

	if (!p)
		return;
	for (unsigned i = 0; i < atomic_load(&p->nr_mappers); i++)
		mapper_delete(&p->mappers[i]);
	uffd_close(&p->uffd); /* unregisters, and wakes */
	for (unsigned i = 0; i < p->nr; i++) {
		struct placement_region *v = &p->v[i];

		if (v->alias)
			munmap(v->alias, v->region->size);
		free(v->missing);
		free(v->claimed);
		free(v->asked);
		free(v->left);
	}
	free(p->v);
	free(p);
	*pp = NULL;
}

void placement_forsake(struct placement *p)
{
	for (unsigned i = 0; i < p->nr; i++)
		(void)uffd_unregister(&p->uffd, p->v[i].region->hva, p->v[i].region->size);
	for (unsigned i = 0; i < atomic_load(&p->nr_mappers); i++)
		mapper_forsake(p->mappers[i]);
}

uint8_t *placement_hva(const struct placement *p, uint32_t id)
{
	return p->v[id].alias ? p->v[id].alias : p->v[id].region->hva;
}

/* Register blocks [from, to) of @v.  0 or -errno with *err. */
static int register_blocks(struct placement *p, const struct placement_region *v, uint64_t from,
			   uint64_t to, struct tern_error *err)
{
	uint64_t begin = from * v->block_pages, end = to * v->block_pages;
	uint64_t mode = UFFDIO_REGISTER_MODE_MISSING;
	int r;

	if (end > v->region->nr_pages)
		end = v->region->nr_pages;
	if (v->kind == PLACEMENT_SHARED)
		mode |= UFFDIO_REGISTER_MODE_MINOR;
	r = uffd_register(&p->uffd, v->region->hva + begin * TERN_PAGE_SIZE,
			  (end - begin) * TERN_PAGE_SIZE, mode, NULL);
	if (!r)
		return 0;
	return error_session(err, r,
			     "cannot have missing pages of region '%s' reported (UFFDIO_REGISTER): "
			     "%s%s",
			     v->region->name, error_name(r),
			     r == -EBUSY ? "; somebody else has registered that memory" : "");
}

/* Discard the missing pages of private region @v.  0 or -errno with *err. */
static int discard(struct placement *p, const struct placement_region *v, struct tern_error *err)
{
	bitmap_for_each_run (v->missing, v->region->nr_pages, a, b) {
		uint64_t bytes = (b - a) * TERN_PAGE_SIZE;

		if (madvise(v->region->hva + a * TERN_PAGE_SIZE, bytes, MADV_DONTNEED))
			return error_session(
				err, -errno,
				"cannot discard %llu KiB of region '%s' for postcopy: %s",
				(unsigned long long)bytes >> 10, v->region->name,
				error_name(-errno));
		atomic_fetch_add(&p->stale, bytes);
	}
	return 0;
}

/* The next run of blocks, from *from on, of which pages are (@missing) or are not missing. */
static bool next_blocks(const struct placement_region *v, bool missing, uint64_t *from,
			uint64_t *to)
{
	uint64_t a = *from;

	while (a < v->nr_blocks && (atomic_load(&v->left[a]) != 0) != missing)
		a++;
	*from = *to = a;
	while (*to < v->nr_blocks && (atomic_load(&v->left[*to]) != 0) == missing)
		++*to;
	return a < v->nr_blocks;
}

int placement_arm(struct placement *p, struct tern_error *err)
{
	int r = 0;

	atomic_store(&p->armed, true);
	for (unsigned i = 0; i < p->nr && !r; i++) {
		const struct placement_region *v = &p->v[i];
		uint64_t from = 0, to = 0;

		if (v->kind == PLACEMENT_SHARED)
			r = empty(v->region, err);
		/* The guest waits: what lacks everything needs no look at its blocks. */
		if (!r && v->nr_missing == v->region->nr_pages) {
			r = register_blocks(p, v, 0, v->nr_blocks, err);
			from = to = v->nr_blocks;
		}
		for (; !r && next_blocks(v, true, &from, &to); from = to)
			r = register_blocks(p, v, from, to, err);
		if (!r && v->kind == PLACEMENT_COPY)
			r = discard(p, v, err);
	}
	return r;
}

void placement_release(struct placement *p, const struct placement_region *v, uint64_t block,
		       uint64_t nr)
{
	uint64_t begin = block * v->block_pages, end = begin + nr * v->block_pages;

	if (end > v->region->nr_pages)
		end = v->region->nr_pages;
	/*
	 * It may fail where the process has as many mappings as it may have; then the
	 * memory stays registered, and its faults are resolved here.
	 */
	(void)uffd_unregister(&p->uffd, v->region->hva + begin * TERN_PAGE_SIZE,
			      (end - begin) * TERN_PAGE_SIZE);
}

int placement_failed(const struct placement_region *v, uint64_t first, int code,
		     struct tern_error *err)
{
	return error_set(err, code, TERN_SCOPE_PAGE,
			 "cannot give page %llu of region '%s' to the guest: %s",
			 (unsigned long long)first, v->region->name, error_name(code));
}

/* Who waits there looks again. */
static int wake(const struct uffd *u, const uint8_t *hva, uint64_t len)
{
	int r = uffd_wake(u, hva, len);

	return uffd_benign(r) ? 0 : r;
}

/* The pages are in no page cache: they are zero, and nobody has touched them yet. */
static int map_hole(const struct placement_region *v, const struct uffd *u, uint64_t page,
		    uint8_t *hva, uint64_t len)
{
	if (v->region->backing != REGION_HUGETLB)
		return uffd_zero(u, hva, len);
	/* UFFDIO_ZEROPAGE knows no huge pages; touching the alias makes one. */
	(void)*(volatile uint8_t *)(v->alias + page * TERN_PAGE_SIZE);
	return uffd_continue(u, hva, len);
}

int placement_map_shared(const struct placement *p, const struct uffd *u,
			 const struct placement_fault *f, uint8_t *hva)
{
	const struct placement_region *v = &p->v[f->region];
	uint64_t len = f->nr_pages * TERN_PAGE_SIZE;
	int r = uffd_continue(u, hva, len);

	if (r == -EFAULT)
		r = map_hole(v, u, f->page, hva, len);
	return r && uffd_benign(r) ? wake(u, hva, len) : r;
}

/* The page of private memory that is here: zero, unless it was placed. */
static int map_private(const struct placement *p, const struct placement_fault *f, uint8_t *hva)
{
	uint64_t len = f->nr_pages * TERN_PAGE_SIZE;
	int r = uffd_zero(&p->uffd, hva, len);

	return r && uffd_benign(r) ? wake(&p->uffd, hva, len) : r;
}

int placement_resolve(struct placement *p, const struct placement_fault *f)
{
	const struct placement_region *v = &p->v[f->region];
	uint8_t *hva = v->region->hva + f->page * TERN_PAGE_SIZE;
	unsigned nr = atomic_load(&p->nr_mappers);
	int r;

	p->resolving(p->fault_opaque, f->region, f->host_page);
	r = v->kind == PLACEMENT_COPY ? map_private(p, f, hva)
				      : placement_map_shared(p, &p->uffd, f, hva);
	for (unsigned i = 0; i < nr && !r; i++)
		r = mapper_resolve(p, p->mappers[i], f);
	p->resolved(p->fault_opaque, f->region, f->host_page);
	return r;
}

int placement_copy(struct placement *p, const struct placement_region *v, uint64_t first,
		   uint64_t nr, const uint8_t *buf)
{
	uint8_t *hva = v->region->hva + first * TERN_PAGE_SIZE;
	int r = uffd_copy(&p->uffd, hva, buf, nr * TERN_PAGE_SIZE);

	if (r != -EEXIST)
		return r;
	/* An attempt before a lost link got to some page: it says nothing of those behind. */
	r = 0;
	for (uint64_t at = 0; at < nr * TERN_PAGE_SIZE && !r; at += TERN_PAGE_SIZE) {
		r = uffd_copy(&p->uffd, hva + at, buf + at, TERN_PAGE_SIZE);
		if (r == -EEXIST)
			r = wake(&p->uffd, hva + at, TERN_PAGE_SIZE);
	}
	return r;
}

/* Blocks [from, to) of @v are complete: whole units of retire() in there. */
static void retire_blocks(struct placement *p, const struct placement_region *v, uint64_t from,
			  uint64_t to)
{
	uint64_t bytes = v->block_pages * TERN_PAGE_SIZE, end = to * bytes;
	uint64_t begin = (from * bytes + TRANSPORT_RETIRE_BYTES - 1) / TRANSPORT_RETIRE_BYTES *
			 TRANSPORT_RETIRE_BYTES;

	end = to == v->nr_blocks ? v->region->size
				 : end / TRANSPORT_RETIRE_BYTES * TRANSPORT_RETIRE_BYTES;
	if (begin < end)
		p->retire(p->opaque, v->region->id, begin, end - begin);
}

void placement_settle(struct placement *p)
{
	for (unsigned i = 0; i < p->nr; i++) {
		const struct placement_region *v = &p->v[i];
		uint64_t from = 0, to = 0;

		for (; next_blocks(v, false, &from, &to); from = to) {
			placement_release(p, v, from, to - from);
			retire_blocks(p, v, from, to);
		}
		if (v->kind == PLACEMENT_COPY) /* the rest comes in messages */
			retire_blocks(p, v, 0, v->nr_blocks);
	}
}

uint64_t placement_overhead_bytes(const struct placement *p)
{
	uint64_t n = sizeof(*p) + p->nr * sizeof(*p->v);

	for (unsigned i = 0; i < p->nr; i++) {
		const struct placement_region *v = &p->v[i];

		n += 2 * bitmap_words(v->region->nr_pages) * 8 +
		     bitmap_words(v->region->nr_pages / v->host_pages) * 8 +
		     v->nr_blocks * sizeof(*v->left);
	}
	return n;
}
