/* SPDX-License-Identifier: BSD-2-Clause */
#define _GNU_SOURCE
#include "populated.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "bitmap.h"
#include "error.h"
#include "maps.h"
#include "pagemap.h"
#include "region.h"

/*
 * Where the truth about a page is depends on what backs it.
 *
 * Private anonymous memory exists in our page table or nowhere: a page is
 * populated if its entry is present or swapped.  The shared zero page, which a
 * mere read leaves behind, is left out where the kernel tells it (PAGEMAP_SCAN).
 *
 * Shmem pages belong to the file, and the page table knows only those that were
 * touched through this mapping and not taken away since.  What the page table has
 * exists for certain; for the gaps the file is asked: SEEK_DATA and SEEK_HOLE find
 * pages in memory and in swap.  SEEK_HOLE cannot be told where to stop, so the last
 * extent of data it found is kept: or scans of a large file, a part at a time, would
 * walk all of the rest of the file each time.  The calls move the
 * file offset, which belongs to the open file description, so the caller's
 * descriptor is opened anew through /proc and its offset stays where it is; the
 * threads share the new one, because none of them uses the offset itself.
 *
 * Hugetlbfs has no SEEK_DATA.  It tells only how many pages the file has
 * (st_blocks).  If our mappings of it have as many present, then no page exists
 * that they do not show, and the page table can be trusted; else everything
 * counts as populated.  The count over all regions of a file is remembered with
 * the st_blocks it was made for, and repeated when the file has grown.  (Punching
 * a hole into the file and allocating another page through a mapping of another
 * process in the same breath would deceive it.)
 *
 * Private mappings of files, and other file systems: everything is populated.
 */

enum populated_how {
	POPULATED_ALL, /* cannot be told */
	POPULATED_PAGEMAP, /* our page table has it all */
	POPULATED_SEEK, /* SEEK_DATA on .fd */
	POPULATED_BLOCKS, /* our page table, if it agrees with st_blocks of .fd */
};

/* What is known of the file behind one region. */
struct populated_file {
	enum populated_how how;
	int fd; /* ours, or -1 */
	uint64_t offset; /* of the region in the file, bytes */
	dev_t dev; /* POPULATED_BLOCKS: which file */
	ino_t ino;
	/*
	 * POPULATED_BLOCKS: st_blocks + 1 at which the page table was found to be
	 * complete; 0: never.  Any scanning thread reads and writes it; a stale
	 * value only costs another count.
	 */
	_Atomic uint64_t complete_at;
	/*
	 * POPULATED_SEEK: an extent of the file that was all data, bytes.  Under the
	 * lock, a leaf.  Data may have become holes since; that is allowed.
	 */
	pthread_mutex_t lock;
	uint64_t data, hole;
};

/* One scan: where its results go. */
struct populated_walk {
	const struct region *r;
	uint64_t base; /* page of bit 0 */
	uint64_t *bitmap;
};

/* populated_first_vma - maps_walk() callback: take the first mapping. */
static int populated_first_vma(const struct maps_vma *v, void *opaque)
{
	*(struct maps_vma *)opaque = *v;
	return 1;
}

/* populated_open - the file behind @r anew, by its fd or its mapping @v.  fd or -errno. */
static int populated_open(const struct region *r, const struct maps_vma *v)
{
	char path[48];
	int fd = -1;

	if (r->fd >= 0) {
		snprintf(path, sizeof(path), "/proc/self/fd/%d", r->fd);
		fd = open(path, O_RDONLY | O_CLOEXEC);
	}
	return fd >= 0 ? fd : maps_open_file(v);
}

/* populated_find_file - settle how @r is asked.  0, or -errno if maps cannot be read. */
static int populated_find_file(struct populated_file *f, const struct region *r)
{
	uint64_t hva = (uintptr_t)r->hva;
	struct maps_vma v = { 0 };
	struct stat st;
	int ret = maps_walk(hva, hva + 1, populated_first_vma, &v);

	if (ret < 0)
		return ret;
	f->offset = v.offset + (hva - v.start);
	if (r->backing == REGION_ANON_PRIVATE ||
	    (r->backing == REGION_HUGETLB && !r->shared &&
	     !strncmp(v.path, "/anon_hugepage", strlen("/anon_hugepage")))) {
		f->how = POPULATED_PAGEMAP;
		return 0;
	}
	if (!r->shared || (r->backing != REGION_SHMEM && r->backing != REGION_HUGETLB))
		return 0;
	f->fd = populated_open(r, &v);
	if (f->fd < 0 || fstat(f->fd, &st) || st.st_ino != v.inode)
		return 0;
	f->dev = st.st_dev;
	f->ino = st.st_ino;
	f->how = r->backing == REGION_SHMEM ? POPULATED_SEEK : POPULATED_BLOCKS;
	return 0;
}

int populated_init(struct populated *p, const struct region_list *regions, struct tern_error *err)
{
	int ret = 0;

	*p = (struct populated){ .pagemap_fd = -1, .regions = regions, .nr = regions->nr };
	p->file = calloc(regions->nr ? regions->nr : 1, sizeof(p->file[0]));
	if (!p->file)
		return error_session(err, -ENOMEM, "cannot allocate the list of %u region files",
				     regions->nr);
	for (unsigned i = 0; i < p->nr; i++) {
		p->file[i].fd = -1;
		pthread_mutex_init(&p->file[i].lock, NULL);
	}
	p->pagemap_fd = pagemap_open();
	if (p->pagemap_fd < 0) {
		ret = error_session(err, p->pagemap_fd,
				    "cannot open /proc/self/pagemap: %s; is /proc mounted?",
				    error_name(p->pagemap_fd));
		goto fini;
	}
	p->can_scan = pagemap_can_scan(p->pagemap_fd);
	for (unsigned i = 0; i < p->nr && !ret; i++)
		ret = populated_find_file(&p->file[i], &regions->v[i]);
	if (!ret)
		return 0;
	error_session(err, ret, "cannot read /proc/self/maps: %s; is /proc mounted?",
		      error_name(ret));
fini:
	populated_fini(p);
	return ret;
}

void populated_fini(struct populated *p)
{
	if (p->file && p->pagemap_fd >= 0)
		close(p->pagemap_fd);
	for (unsigned i = 0; p->file && i < p->nr; i++) {
		if (p->file[i].fd >= 0)
			close(p->file[i].fd);
		pthread_mutex_destroy(&p->file[i].lock);
	}
	free(p->file);
	*p = (struct populated){ .pagemap_fd = -1 };
}

/* populated_mark - pagemap_fn: set the bits of a run that exists. */
static int populated_mark(uint64_t start, uint64_t end, uint64_t kind, void *opaque)
{
	const struct populated_walk *w = opaque;
	uint64_t hva = (uintptr_t)w->r->hva;

	if (kind & PAGEMAP_EXISTS)
		bitmap_set_range(w->bitmap, (start - hva) / TERN_PAGE_SIZE - w->base,
				 (end - start) / TERN_PAGE_SIZE);
	return 0;
}

/* populated_walk_pagemap - call @fn for what exists in [first, first + nr).  0 or -errno. */
static int populated_walk_pagemap(const struct populated *p, const struct region *r, uint64_t first,
				  uint64_t nr, pagemap_fn *fn, void *opaque)
{
	static const struct pagemap_query exists = {
		.inverted = PAGEMAP_PFNZERO,
		.all = PAGEMAP_PFNZERO,
		.any = PAGEMAP_EXISTS,
		.wanted = PAGEMAP_EXISTS,
	};
	uint64_t start = (uintptr_t)r->hva + first * TERN_PAGE_SIZE;
	uint64_t end = start + nr * TERN_PAGE_SIZE;

	if (p->can_scan)
		return pagemap_scan(p->pagemap_fd, &exists, start, end, fn, opaque);
	return pagemap_read(p->pagemap_fd, start, end, fn, opaque);
}

/*
 * populated_extent - the first extent [*data, *hole) of data in [@at, @end).
 *
 * Where data begins behind @end its extent is not measured: that would walk all of it.
 * 0; -ENXIO: there is none; or another -errno.
 */
static int populated_extent(struct populated_file *f, uint64_t at, uint64_t end, uint64_t *data,
			    uint64_t *hole)
{
	pthread_mutex_lock(&f->lock);
	bool known = at >= f->data && at < f->hole;

	*data = at;
	*hole = f->hole;
	pthread_mutex_unlock(&f->lock);
	if (known)
		return 0;
	for (;;) {
		off_t d = lseek(f->fd, (off_t)at, SEEK_DATA);

		if (d >= 0 && (uint64_t)d >= end)
			return -ENXIO;
		off_t h = d < 0 ? d : lseek(f->fd, d, SEEK_HOLE);

		if (h >= 0) {
			*data = (uint64_t)d;
			*hole = (uint64_t)h;
			break;
		}
		if (d < 0 || errno != ENXIO) /* else it was punched out meanwhile: again */
			return -errno;
	}
	pthread_mutex_lock(&f->lock);
	f->data = *data;
	f->hole = *hole;
	pthread_mutex_unlock(&f->lock);
	return 0;
}

/* populated_walk_data - set the bits of what @f has in [first, first + nr).  0 or -errno. */
static int populated_walk_data(struct populated_file *f, const struct populated_walk *w,
			       uint64_t first, uint64_t nr)
{
	uint64_t at = f->offset + first * TERN_PAGE_SIZE, end = at + nr * TERN_PAGE_SIZE;

	while (at < end) {
		uint64_t data, hole;
		int ret = populated_extent(f, at, end, &data, &hole);

		if (ret)
			return ret == -ENXIO ? 0 : ret;
		uint64_t from = (data - f->offset) / TERN_PAGE_SIZE;
		uint64_t to = (hole < end ? hole : end) - f->offset;

		to = (to + TERN_PAGE_SIZE - 1) / TERN_PAGE_SIZE;
		bitmap_set_range(w->bitmap, from - w->base, to - from);
		at = hole;
	}
	return 0;
}

/*
 * populated_walk_shmem - the page table first, then the file for what that does not show.
 *
 * 0 or -errno.
 */
static int populated_walk_shmem(const struct populated *p, struct populated_file *f,
				const struct populated_walk *w, uint64_t first, uint64_t nr)
{
	uint64_t end = first + nr;
	int ret = populated_walk_pagemap(p, w->r, first, nr, populated_mark, (void *)w);

	for (uint64_t a = first; !ret && a < end;) {
		a = w->base + bitmap_next_clear(w->bitmap, end - w->base, a - w->base);
		if (a >= end)
			break;
		uint64_t b = w->base + bitmap_next_set(w->bitmap, end - w->base, a - w->base);

		ret = populated_walk_data(f, w, a, b - a);
		a = b;
	}
	return ret;
}

/* populated_add_bytes - pagemap_fn: sum what exists into a uint64_t. */
static int populated_add_bytes(uint64_t start, uint64_t end, uint64_t kind, void *opaque)
{
	if (kind & PAGEMAP_EXISTS)
		*(uint64_t *)opaque += end - start;
	return 0;
}

/*
 * populated_is_complete - does our page table show every page of the file @f?
 *
 * Pages are counted before the file's blocks are asked for: a page that appears
 * between makes the answer no, never a wrong yes.  1, 0 or -errno.
 */
static int populated_is_complete(const struct populated *p, struct populated_file *f)
{
	uint64_t known = atomic_load_explicit(&f->complete_at, memory_order_relaxed);
	uint64_t bytes = 0;
	struct stat st;

	if (fstat(f->fd, &st))
		return -errno;
	if (known && known == (uint64_t)st.st_blocks + 1)
		return 1;
	for (unsigned i = 0; i < p->nr; i++) {
		const struct region *r = &p->regions->v[i];
		int ret = 0;

		if (p->file[i].how == POPULATED_BLOCKS && p->file[i].ino == f->ino &&
		    p->file[i].dev == f->dev)
			ret = populated_walk_pagemap(p, r, 0, r->nr_pages, populated_add_bytes,
						     &bytes);
		if (ret)
			return ret;
	}
	if (fstat(f->fd, &st))
		return -errno;
	if ((uint64_t)st.st_blocks * 512 != bytes)
		return 0;
	atomic_store_explicit(&f->complete_at, (uint64_t)st.st_blocks + 1, memory_order_relaxed);
	return 1;
}

int populated_scan_at(const struct populated *p, const struct region *r, uint64_t base,
		      uint64_t first, uint64_t nr, uint64_t *bitmap, struct tern_error *err)
{
	struct populated_file *f = &p->file[r->id];
	struct populated_walk w = { .r = r, .base = base, .bitmap = bitmap };
	enum populated_how how = f->how;
	int ret = 0;

	if (how == POPULATED_BLOCKS) {
		ret = populated_is_complete(p, f);
		how = ret > 0 ? POPULATED_PAGEMAP : POPULATED_ALL;
		ret = ret < 0 ? ret : 0;
	}
	if (!ret && how == POPULATED_PAGEMAP)
		ret = populated_walk_pagemap(p, r, first, nr, populated_mark, &w);
	else if (!ret && how == POPULATED_SEEK)
		ret = populated_walk_shmem(p, f, &w, first, nr);
	else if (!ret)
		bitmap_set_range(bitmap, first - base, nr);
	if (ret)
		return error_set(err, ret, TERN_SCOPE_PAGE,
				 "cannot find out which pages of region \"%s\" exist: %s", r->name,
				 error_name(ret));
	return 0;
}

int populated_scan(const struct populated *p, const struct region *r, uint64_t first, uint64_t nr,
		   uint64_t *bitmap, struct tern_error *err)
{
	return populated_scan_at(p, r, first, first, nr, bitmap, err);
}
