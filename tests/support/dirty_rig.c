/* SPDX-License-Identifier: BSD-2-Clause */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "bitmap.h"
#include "dirty_rig.h"
#include "leave_out.h"
#include "pagemap.h"

enum { STRIPE_BYTES = 2 << 20 };

/* rig_open_file - an unlinked file of @size bytes in the working directory, or -1. */
static int rig_open_file(uint64_t size)
{
	char path[] = "tern-test-XXXXXX";
	int fd = mkstemp(path);

	if (fd < 0)
		return -1;
	unlink(path);
	if (ftruncate(fd, (off_t)size)) {
		close(fd);
		return -1;
	}
	return fd;
}

/* rig_map - rig->hva and rig->fd.  0 or -1. */
static int rig_map(struct rig *rig, enum rig_backing backing)
{
	bool huge = backing == RIG_HUGETLB || backing == RIG_HUGETLB_PRIVATE;
	int flags = MAP_SHARED;

	if (huge) {
		if (hugepages_get(&rig->hp, (long)(rig->size >> 21)))
			return -1;
		rig->has_hugepages = true;
	}
	if (backing == RIG_ANON)
		flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
	else if (backing == RIG_HUGETLB_PRIVATE)
		flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB;
	else if (backing == RIG_FILE)
		rig->fd = rig_open_file(rig->size);
	else
		rig->fd = memfd_create("rig", MFD_CLOEXEC | (huge ? MFD_HUGETLB : 0));
	if (backing != RIG_ANON && backing != RIG_HUGETLB_PRIVATE &&
	    (rig->fd < 0 || (backing != RIG_FILE && ftruncate(rig->fd, (off_t)rig->size))))
		return -1;
	void *p = mmap(NULL, rig->size, PROT_READ | PROT_WRITE, flags, rig->fd, 0);

	if (p == MAP_FAILED)
		return -1;
	rig->hva = p;
	/* Where huge pages come by themselves, one write would make 512 pages dirty. */
	madvise(p, rig->size, MADV_NOHUGEPAGE);
	return 0;
}

struct rig *rig_new(const struct rig_variant *v, uint64_t size)
{
	struct rig *rig = calloc(1, sizeof(*rig));

	assert_non_null(rig);
	rig->size = size;
	rig->fd = -1;
	rig->p.pagemap_fd = -1;
	error_clear(&rig->err);
	if (rig_map(rig, v->backing)) {
		rig_delete(rig);
		return NULL;
	}
	struct tern_region_desc desc = {
		.name = "ram",
		.hva = rig->hva,
		.size = size,
		.fd = rig->fd,
	};

	if (region_add(&rig->list, &desc, &rig->err) ||
	    populated_init(&rig->p, &rig->list, &rig->err))
		fail_msg("%s", rig->err.message);
	if (v->can_scan && !rig->p.can_scan) {
		rig_delete(rig);
		return NULL;
	}
	rig->p.can_scan = v->can_scan;
	rig->r = &rig->list.v[0];
	rig->unit = rig->r->host_page_size / TERN_PAGE_SIZE;
	if (dirty_init(&rig->d, v->provider, NULL, NULL, NULL, &rig->list, &rig->p, &rig->err))
		fail_msg("%s: %s", v->name, rig->err.message);
	assert_int_equal(rig->d.kind, v->provider);
	rig->bitmap = calloc(bitmap_words(rig->r->nr_pages), sizeof(uint64_t));
	rig->replica = mmap(NULL, size, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	assert_ptr_not_equal(rig->replica, MAP_FAILED);
	return rig;
}

void rig_delete(struct rig *rig)
{
	dirty_fini(&rig->d);
	populated_fini(&rig->p);
	region_list_fini(&rig->list);
	if (rig->hva)
		munmap(rig->hva, rig->size);
	if (rig->replica)
		munmap(rig->replica, rig->size);
	if (rig->fd >= 0)
		close(rig->fd);
	if (rig->has_hugepages)
		hugepages_put(&rig->hp);
	free(rig->bitmap);
	free(rig);
}

void rig_start(struct rig *rig)
{
	assert_int_equal(rig->d.ops.start(rig->d.opaque), 0);
	rig_forget(rig);
	assert_int_equal(populated_scan(&rig->p, rig->r, 0, rig->r->nr_pages, rig->bitmap, NULL),
			 0);
}

uint64_t rig_sync(struct rig *rig)
{
	assert_int_equal(rig->d.ops.sync(rig->d.opaque, 0, 0, rig->r->nr_pages, rig->bitmap), 0);
	return bitmap_count(rig->bitmap, rig->r->nr_pages);
}

void rig_clear(struct rig *rig)
{
	assert_int_equal(rig->d.ops.clear(rig->d.opaque, 0, 0, rig->r->nr_pages, rig->bitmap), 0);
}

void rig_forget(struct rig *rig)
{
	memset(rig->bitmap, 0, bitmap_words(rig->r->nr_pages) * sizeof(uint64_t));
}

void rig_leave_out(const struct rig_variant *v)
{
	int fd = pagemap_open();
	bool can_scan = fd >= 0 && pagemap_can_scan(fd);

	if (fd >= 0)
		close(fd);
	if (v->can_scan && !can_scan)
		leave_out("userfaultfd", "this kernel has no PAGEMAP_SCAN");
	leave_out("hugetlb", "no huge pages can be reserved");
}

/* rig_copy_stripe - copy the dirty pages among @nr from @first on. */
static void rig_copy_stripe(struct rig *rig, uint64_t first, uint64_t nr)
{
	const uint64_t *map = rig->bitmap + first / 64;

	bitmap_for_each_run (map, nr, begin, end)
		memcpy(rig->replica + (first + begin) * TERN_PAGE_SIZE,
		       rig->hva + (first + begin) * TERN_PAGE_SIZE, (end - begin) * TERN_PAGE_SIZE);
}

void rig_copy_round(struct rig *rig, bool clear)
{
	uint64_t stripe = STRIPE_BYTES / TERN_PAGE_SIZE;

	for (uint64_t first = 0; first < rig->r->nr_pages; first += stripe) {
		uint64_t nr = rig->r->nr_pages - first;

		nr = nr < stripe ? nr : stripe;
#ifdef TEST_COPY_BEFORE_CLEAR /* breaks invariant 2; the stress tests must fail */
		rig_copy_stripe(rig, first, nr);
#endif
		if (clear)
			assert_int_equal(rig->d.ops.clear(rig->d.opaque, 0, first, nr,
							  rig->bitmap + first / 64),
					 0);
#ifndef TEST_COPY_BEFORE_CLEAR
		rig_copy_stripe(rig, first, nr);
#endif
	}
	rig_forget(rig);
}

long rig_page_tables_kib(void)
{
	FILE *f = fopen("/proc/self/status", "re");
	char line[128];
	long kib = -1;

	assert_non_null(f);
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "VmPTE: %ld kB", &kib) == 1)
			break;
	fclose(f);
	return kib;
}
