/* SPDX-License-Identifier: BSD-2-Clause */
#define _GNU_SOURCE
#include "dirty_walk.h"

#include <errno.h>
#include <linux/userfaultfd.h>
#include <sys/mman.h>
#include <sys/utsname.h>
#include <unistd.h>
#include "bitmap.h"
#include "error.h"
#include "pagemap.h"
#include "populated.h"
#include "region.h"
#include "uffd.h"

#ifndef MFD_HUGE_SHIFT
#define MFD_HUGE_SHIFT 26 /* log2 of the huge page size in memfd_create()'s flags */
#endif

/*
 * The page table is the dirty log.
 *
 * Once a page was cleared its entry is write-protected, and the first write
 * takes the protection away, in the same instant in which the write becomes
 * possible.  So "exists and is not protected" is what a write leaves behind, and
 * neither a bitmap of our own nor any order between threads is needed to keep
 * it: there is no moment in which a page has been written and the log does not
 * say so.  Pages that nobody protected yet, because they were holes when
 * tracking began or were never cleared, count as written by the same rule, and
 * so does a page that was discarded and touched again.
 *
 * One case needs care.  A page of a *file* (shmem under memory pressure, any
 * other file) can lose its entry while the page lives on.  If the entry was
 * protected the kernel leaves a marker that says so; if it was not, nothing is
 * left, and the entry looks like that of a hole.  For such memory an empty entry
 * is no proof, and the file is asked whether the page exists.  If it does, it
 * counts as written.  For this to end, clear() must leave markers for pages that
 * exist and have no entry.
 *
 * A mapped shared zero page is left out where the kernel tells it: writing to it
 * brings in a new page that is not protected.
 */

bool dirty_walk_may_vanish(const struct region *r)
{
	return r->backing == REGION_SHMEM || r->backing == REGION_FILE_SHARED;
}

/* One sync in progress. */
struct dirty_walk {
	const struct populated *p;
	const struct region *r;
	uint64_t first;
	uint64_t *bitmap;
	bool may_vanish;
};

/* dirty_walk_run - pagemap_fn: one run of pages of one kind. */
static int dirty_walk_run(uint64_t start, uint64_t end, uint64_t kind, void *opaque)
{
	const struct dirty_walk *w = opaque;
	uint64_t page = (start - (uintptr_t)w->r->hva) / TERN_PAGE_SIZE;
	uint64_t nr = (end - start) / TERN_PAGE_SIZE;

	if (!(kind & PAGEMAP_EXISTS))
		return w->may_vanish
			       ? populated_scan_at(w->p, w->r, w->first, page, nr, w->bitmap, NULL)
			       : 0;
	if (kind & PAGEMAP_WRITTEN)
		bitmap_set_range(w->bitmap, page - w->first, nr);
	return 0;
}

int dirty_walk_sync(const struct populated *p, const struct region *r, uint64_t first, uint64_t nr,
		    uint64_t *bitmap)
{
	static const struct pagemap_query written = {
		.inverted = PAGEMAP_PFNZERO,
		.all = PAGEMAP_WRITTEN | PAGEMAP_PFNZERO,
		.any = PAGEMAP_EXISTS,
		.wanted = PAGEMAP_WRITTEN | PAGEMAP_EXISTS,
	};
	/* Empty entries too: whatever is written or not present. */
	static const struct pagemap_query written_or_empty = {
		.inverted = PAGEMAP_PRESENT,
		.any = PAGEMAP_WRITTEN | PAGEMAP_PRESENT,
		.wanted = PAGEMAP_WRITTEN | PAGEMAP_EXISTS,
	};
	struct dirty_walk w = {
		.p = p,
		.r = r,
		.first = first,
		.bitmap = bitmap,
		.may_vanish = dirty_walk_may_vanish(r),
	};
	uint64_t start = (uintptr_t)r->hva + first * TERN_PAGE_SIZE;
	uint64_t end = start + nr * TERN_PAGE_SIZE;

	if (!p->can_scan)
		return pagemap_read(p->pagemap_fd, start, end, dirty_walk_run, &w);
	return pagemap_scan(p->pagemap_fd, w.may_vanish ? &written_or_empty : &written, start, end,
			    dirty_walk_run, &w);
}

int dirty_walk_register(const struct uffd *u, const struct region_list *regions)
{
	for (unsigned i = 0; i < regions->nr; i++) {
		const struct region *r = &regions->v[i];
		int ret = uffd_register(u, r->hva, r->size, UFFDIO_REGISTER_MODE_WP, NULL);

		if (!ret)
			continue;
		while (i-- > 0)
			uffd_unregister(u, regions->v[i].hva, regions->v[i].size);
		return ret;
	}
	return 0;
}

void dirty_walk_unregister(const struct uffd *u, const struct region_list *regions)
{
	for (unsigned i = 0; i < regions->nr; i++)
		uffd_unregister(u, regions->v[i].hva, regions->v[i].size);
}

/*
 * dirty_walk_scratch - one host page of memory like that of @r, or MAP_FAILED.
 *
 * Huge pages are mapped without reserving one, and must not be touched.
 */
static uint8_t *dirty_walk_scratch(const struct region *r)
{
	unsigned huge = (unsigned)__builtin_ctzll(r->host_page_size) << MFD_HUGE_SHIFT;
	int flags = r->shared ? MAP_SHARED : MAP_PRIVATE;
	uint8_t *p = MAP_FAILED;
	int fd;

	if (r->backing == REGION_ANON_PRIVATE)
		return mmap(NULL, r->host_page_size, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	fd = memfd_create("tern-probe",
			  MFD_CLOEXEC | (r->backing == REGION_HUGETLB ? MFD_HUGETLB | huge : 0));
	if (fd < 0)
		return MAP_FAILED;
	if (!ftruncate(fd, (off_t)r->host_page_size))
		p = mmap(NULL, r->host_page_size, PROT_READ | PROT_WRITE, flags | MAP_NORESERVE, fd,
			 0);
	close(fd);
	return p;
}

/* dirty_walk_kind - pagemap_fn: OR the kinds into a uint64_t. */
static int dirty_walk_kind(uint64_t start, uint64_t end, uint64_t kind, void *opaque)
{
	*(uint64_t *)opaque |= kind;
	return 0;
}

/*
 * dirty_walk_probe_page - protect and release the page at @p, which is
 * registered, and see both in the page table.  0, -ENOSYS or -errno.
 */
static int dirty_walk_probe_page(const struct uffd *u, const struct populated *pop, uint8_t *p,
				 dirty_walk_protect_fn *protect)
{
	uint64_t start = (uintptr_t)p, before = 0, protected = 0, after = 0;
	int ret;

	*(volatile uint8_t *)p = 1;
	ret = pagemap_read(pop->pagemap_fd, start, start + TERN_PAGE_SIZE, dirty_walk_kind,
			   &before);
	if (!ret)
		ret = protect(u, pop, p, TERN_PAGE_SIZE);
	if (!ret)
		ret = pagemap_read(pop->pagemap_fd, start, start + TERN_PAGE_SIZE, dirty_walk_kind,
				   &protected);
	if (!ret)
		ret = uffd_protect(u, p, TERN_PAGE_SIZE, false);
	if (!ret)
		ret = pagemap_read(pop->pagemap_fd, start, start + TERN_PAGE_SIZE, dirty_walk_kind,
				   &after);
	if (ret)
		return ret;
	if (!(before & PAGEMAP_WRITTEN) || (protected & PAGEMAP_WRITTEN) ||
	    !(after & PAGEMAP_WRITTEN))
		return -ENOSYS;
	return 0;
}

/* dirty_walk_try - all that tracking needs, on one host page at @p.  0 or -errno. */
static int dirty_walk_try(const struct uffd *u, const struct populated *pop, uint8_t *p,
			  uint64_t len, bool touch, dirty_walk_protect_fn *protect)
{
	uint64_t ioctls = 0;
	int ret = uffd_register(u, p, len, UFFDIO_REGISTER_MODE_WP, &ioctls);

	if (ret)
		return ret;
	if (!(ioctls & (1ull << _UFFDIO_WRITEPROTECT)))
		ret = -ENOSYS;
	else if (touch)
		ret = dirty_walk_probe_page(u, pop, p, protect);
	uffd_unregister(u, p, len);
	return ret;
}

/* dirty_walk_probe_like - probe on memory like @r.  0 or -errno. */
static int dirty_walk_probe_like(const struct uffd *u, const struct populated *pop,
				 const struct region *r, dirty_walk_protect_fn *protect)
{
	bool file = r->backing == REGION_FILE_PRIVATE || r->backing == REGION_FILE_SHARED;
	uint8_t *p;
	int ret;

	/* There is no scratch file of that file system: the region's first page must do. */
	if (file)
		return dirty_walk_try(u, pop, r->hva, r->host_page_size, false, protect);
	p = dirty_walk_scratch(r);
	if (p == MAP_FAILED)
		return -errno;
	ret = dirty_walk_try(u, pop, p, r->host_page_size, r->backing != REGION_HUGETLB, protect);
	munmap(p, r->host_page_size);
	return ret;
}

int dirty_walk_probe(const struct uffd *u, const struct populated *pop,
		     const struct region_list *regions, dirty_walk_protect_fn *protect,
		     struct tern_error *err)
{
	struct utsname un = { .release = "unknown" };

	uname(&un);
	for (unsigned i = 0; i < regions->nr; i++) {
		const struct region *r = &regions->v[i];
		bool seen = false;
		int ret;

		for (unsigned k = 0; k < i && !seen; k++)
			seen = regions->v[k].backing == r->backing &&
			       regions->v[k].shared == r->shared &&
			       regions->v[k].host_page_size == r->host_page_size;
		ret = seen ? 0 : dirty_walk_probe_like(u, pop, r, protect);
		if (ret)
			return error_session(err, ret == -EPERM ? -EPERM : -ENOSYS,
					     "cannot track writes to memory like region \"%s\" by "
					     "userfaultfd write-protect on kernel %s: %s; use a "
					     "newer kernel, or dirty callbacks",
					     r->name, un.release, error_name(ret));
	}
	return 0;
}
