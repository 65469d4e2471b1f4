/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Unit tests of the scan for populated pages, on each backing, with PAGEMAP_SCAN
 * and by reading pagemap.
 */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include "bitmap.h"
#include "error.h"
#include "hugepages.h"
#include "leave_out.h"
#include "populated.h"
#include "region.h"

#define MIB (1ull << 20)
#define GIB (1ull << 30)
enum { PAGE = 4096 };

struct fixture {
	struct region_list list;
	struct populated p;
	struct tern_error err;
	uint8_t *hva;
	uint64_t size;
	uint64_t *bitmap;
};

/* fixture_new - one region of @size bytes mapped with @flags. */
static struct fixture *fixture_new(uint64_t size, int flags, int fd, bool tell_fd)
{
	struct fixture *f = calloc(1, sizeof(*f));
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, 0);

	assert_non_null(f);
	assert_ptr_not_equal(p, MAP_FAILED);
	madvise(p, size, MADV_NOHUGEPAGE); /* where they come by themselves */
	f->hva = p;
	f->size = size;
	f->bitmap = calloc(bitmap_words(size / PAGE), sizeof(uint64_t));
	struct tern_region_desc d = {
		.name = "ram",
		.hva = p,
		.size = size,
		.numa_node = 0,
		.fd = tell_fd ? fd : -1,
	};

	error_clear(&f->err);
	if (region_add(&f->list, &d, &f->err) || populated_init(&f->p, &f->list, &f->err))
		fail_msg("%s", f->err.message);
	return f;
}

static void fixture_delete(struct fixture *f)
{
	populated_fini(&f->p);
	region_list_fini(&f->list);
	munmap(f->hva, f->size);
	free(f->bitmap);
	free(f);
}

/* scan - look at everything; number of populated pages. */
static uint64_t scan(struct fixture *f)
{
	uint64_t nr = f->size / PAGE;

	memset(f->bitmap, 0, bitmap_words(nr) * sizeof(uint64_t));
	if (populated_scan(&f->p, &f->list.v[0], 0, nr, f->bitmap, &f->err))
		fail_msg("%s", f->err.message);
	return bitmap_count(f->bitmap, nr);
}

/* expect - exactly the @nr pages in @pages are populated. */
static void expect(struct fixture *f, const uint64_t *pages, unsigned nr)
{
	assert_int_equal(scan(f), nr);
	for (unsigned i = 0; i < nr; i++)
		if (!bitmap_test(f->bitmap, pages[i]))
			fail_msg("page %lu is not reported", (unsigned long)pages[i]);
}

#define EXPECT(f, ...)                                                          \
	do {                                                                    \
		const uint64_t expected_[] = { __VA_ARGS__ };                   \
		expect(f, expected_, sizeof(expected_) / sizeof(expected_[0])); \
	} while (0)

/* anon_pages - the anonymous case, by either way. */
static void anon_pages(bool can_scan)
{
	struct fixture *f = fixture_new(16 * MIB, MAP_PRIVATE | MAP_ANONYMOUS, -1, false);

	if (can_scan && !f->p.can_scan) {
		fixture_delete(f);
		leave_out("userfaultfd", "this kernel has no PAGEMAP_SCAN");
	}
	f->p.can_scan = can_scan;
	assert_int_equal(scan(f), 0);
	f->hva[0] = 1;
	f->hva[7 * PAGE] = 1;
	f->hva[8 * PAGE] = 1;
	f->hva[f->size - 1] = 1;
	EXPECT(f, 0, 7, 8, f->size / PAGE - 1);
	assert_int_equal(madvise(f->hva + 7 * PAGE, PAGE, MADV_DONTNEED), 0);
	EXPECT(f, 0, 8, f->size / PAGE - 1);
	fixture_delete(f);
}

static void test_anon_with_scan_ioctl(void **state)
{
	(void)state;
	anon_pages(true);
}

static void test_anon_by_reading_pagemap(void **state)
{
	(void)state;
	anon_pages(false);
}

static void test_anon_zero_page_is_a_hole(void **state)
{
	struct fixture *f = fixture_new(MIB, MAP_PRIVATE | MAP_ANONYMOUS, -1, false);
	volatile uint8_t sink;

	(void)state;
	if (!f->p.can_scan) {
		fixture_delete(f);
		leave_out("userfaultfd", "this kernel has no PAGEMAP_SCAN");
	}
	sink = f->hva[3 * PAGE];
	(void)sink;
	f->hva[5 * PAGE] = 0;
	EXPECT(f, 5);
	fixture_delete(f);
}

static void test_many_runs_need_many_calls(void **state)
{
	struct fixture *f = fixture_new(16 * MIB, MAP_PRIVATE | MAP_ANONYMOUS, -1, false);
	bool ways[] = { f->p.can_scan, false };

	(void)state;
	for (uint64_t i = 0; i < f->size / PAGE; i += 2)
		f->hva[i * PAGE] = 1;
	for (unsigned w = 0; w < 2; w++) {
		f->p.can_scan = ways[w];
		assert_int_equal(scan(f), f->size / PAGE / 2);
		for (uint64_t i = 0; i < f->size / PAGE; i++)
			assert_int_equal(bitmap_test(f->bitmap, i), i % 2 == 0);
	}
	fixture_delete(f);
}

static void test_part_of_a_region(void **state)
{
	struct fixture *f = fixture_new(MIB, MAP_PRIVATE | MAP_ANONYMOUS, -1, false);
	bool ways[] = { f->p.can_scan, false };
	uint64_t map[2];

	(void)state;
	memset(f->hva, 1, f->size);
	for (unsigned w = 0; w < 2; w++) {
		f->p.can_scan = ways[w];
		memset(map, 0, sizeof(map));
		assert_int_equal(populated_scan(&f->p, &f->list.v[0], 64, 10, map, &f->err), 0);
		assert_int_equal(map[0], 0x3ff);
		assert_int_equal(map[1], 0);
		assert_int_equal(populated_scan_at(&f->p, &f->list.v[0], 64, 130, 3, map, &f->err),
				 0);
		assert_int_equal(map[0], 0x3ff);
		assert_int_equal(map[1], 7 << 2);
	}
	fixture_delete(f);
}

/* memfd_pages - the memfd case, with or without telling the region its fd. */
static void memfd_pages(bool tell_fd)
{
	int fd = memfd_create("test", MFD_CLOEXEC);

	assert_int_equal(ftruncate(fd, 16 * MIB), 0);
	struct fixture *f = fixture_new(16 * MIB, MAP_SHARED, fd, tell_fd);

	assert_int_equal(scan(f), 0);
	f->hva[2 * PAGE] = 1;
	f->hva[f->size - 1] = 1;
	EXPECT(f, 2, f->size / PAGE - 1);
	/* Written through the file, never mapped here. */
	assert_int_equal(pwrite(fd, "x", 1, 9 * PAGE), 1);
	EXPECT(f, 2, 9, f->size / PAGE - 1);
	/* Dropping our mapping of a page does not drop the page. */
	assert_int_equal(madvise(f->hva + 2 * PAGE, PAGE, MADV_DONTNEED), 0);
	EXPECT(f, 2, 9, f->size / PAGE - 1);
	assert_int_equal(madvise(f->hva + 2 * PAGE, PAGE, MADV_REMOVE), 0);
	EXPECT(f, 9, f->size / PAGE - 1);
	fixture_delete(f);
	close(fd);
}

static void test_memfd_by_its_fd(void **state)
{
	(void)state;
	memfd_pages(true);
}

static void test_memfd_by_its_mapping(void **state)
{
	(void)state;
	if (!geteuid()) {
		memfd_pages(false);
		return;
	}
	/* Without privilege the file cannot be had, and nothing can be told. */
	int fd = memfd_create("test", MFD_CLOEXEC);

	assert_int_equal(ftruncate(fd, MIB), 0);
	struct fixture *f = fixture_new(MIB, MAP_SHARED, fd, false);

	assert_int_equal(scan(f), MIB / PAGE);
	fixture_delete(f);
	close(fd);
}

static void test_memfd_part_by_offset(void **state)
{
	int fd = memfd_create("test", MFD_CLOEXEC);
	struct region_list list = { 0 };
	struct tern_error err = { 0 };
	struct populated p;
	uint64_t map[4] = { 0 };

	(void)state;
	assert_int_equal(ftruncate(fd, 4 * MIB), 0);
	uint8_t *hva = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_SHARED, fd, MIB);

	assert_ptr_not_equal(hva, MAP_FAILED);
	assert_int_equal(pwrite(fd, "x", 1, 5 * PAGE), 1);
	assert_int_equal(pwrite(fd, "x", 1, MIB + 70 * PAGE), 1);
	assert_int_equal(pwrite(fd, "x", 1, 2 * MIB), 1);
	struct tern_region_desc d = {
		.name = "ram",
		.hva = hva,
		.size = MIB,
		.fd = fd,
		.fd_offset = MIB,
	};

	assert_int_equal(region_add(&list, &d, &err), 0);
	assert_int_equal(populated_init(&p, &list, &err), 0);
	assert_int_equal(populated_scan(&p, &list.v[0], 0, MIB / PAGE, map, &err), 0);
	assert_int_equal(bitmap_count(map, MIB / PAGE), 1);
	assert_true(bitmap_test(map, 70));
	populated_fini(&p);
	region_list_fini(&list);
	munmap(hva, MIB);
	close(fd);
}

static void test_callers_file_offset_stays(void **state)
{
	int fd = memfd_create("test", MFD_CLOEXEC);

	(void)state;
	assert_int_equal(ftruncate(fd, MIB), 0);
	struct fixture *f = fixture_new(MIB, MAP_SHARED, fd, true);

	f->hva[40 * PAGE] = 1;
	assert_int_equal(lseek(fd, 123, SEEK_SET), 123);
	EXPECT(f, 40);
	assert_int_equal(lseek(fd, 0, SEEK_CUR), 123);
	fixture_delete(f);
	close(fd);
}

static void test_scanning_does_not_allocate(void **state)
{
	int fd = memfd_create("test", MFD_CLOEXEC);
	unsigned char resident[MIB / PAGE];

	(void)state;
	assert_int_equal(ftruncate(fd, MIB), 0);
	struct fixture *f = fixture_new(MIB, MAP_SHARED, fd, true);

	assert_int_equal(scan(f), 0);
	assert_int_equal(mincore(f->hva, MIB, resident), 0);
	for (size_t i = 0; i < sizeof(resident); i++)
		assert_int_equal(resident[i] & 1, 0);
	fixture_delete(f);
	close(fd);
}

static void test_private_file_is_all_populated(void **state)
{
	int fd = memfd_create("test", MFD_CLOEXEC);

	(void)state;
	assert_int_equal(ftruncate(fd, MIB), 0);
	struct fixture *f = fixture_new(MIB, MAP_PRIVATE, fd, false);

	assert_int_equal(scan(f), MIB / PAGE);
	fixture_delete(f);
	close(fd);
}

static void test_hugetlb_private(void **state)
{
	struct hugepages hp;

	(void)state;
	if (hugepages_get(&hp, 4))
		leave_out("hugetlb", "no huge pages can be reserved");
	struct fixture *f =
		fixture_new(8 * MIB, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, false);
	bool ways[] = { f->p.can_scan, false };

	f->hva[2 * MIB] = 1;
	for (unsigned w = 0; w < 2; w++) {
		f->p.can_scan = ways[w];
		assert_int_equal(scan(f), 512);
		assert_int_equal(bitmap_next_set(f->bitmap, 2048, 0), 512);
		assert_int_equal(bitmap_next_clear(f->bitmap, 2048, 512), 1024);
	}
	fixture_delete(f);
	hugepages_put(&hp);
}

static void test_hugetlb_shared_trusts_page_table_only_if_complete(void **state)
{
	struct hugepages hp;

	(void)state;
	if (hugepages_get(&hp, 4))
		leave_out("hugetlb", "no huge pages can be reserved");
	int fd = memfd_create("huge", MFD_CLOEXEC | MFD_HUGETLB);

	assert_int_equal(ftruncate(fd, 8 * MIB), 0);
	struct fixture *f = fixture_new(8 * MIB, MAP_SHARED, fd, true);
	uint8_t *other = mmap(NULL, 8 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	bool ways[] = { f->p.can_scan, false };

	assert_ptr_not_equal(other, MAP_FAILED);
	assert_int_equal(scan(f), 0);
	f->hva[2 * MIB] = 1;
	for (unsigned w = 0; w < 2; w++) {
		f->p.can_scan = ways[w];
		assert_int_equal(scan(f), 512);
		assert_true(bitmap_test(f->bitmap, 512));
	}
	/* A page that only another mapping has touched: nothing can be told. */
	other[6 * MIB] = 1;
	for (unsigned w = 0; w < 2; w++) {
		f->p.can_scan = ways[w];
		assert_int_equal(scan(f), 2048);
	}
	/* Once we see it too, it can. */
	f->hva[6 * MIB] = 1;
	assert_int_equal(scan(f), 1024);
	munmap(other, 8 * MIB);
	fixture_delete(f);
	close(fd);
	hugepages_put(&hp);
}

/* now_ms - monotonic time. */
static double now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

/*
 * 64 GiB of which 1/64 exists, in pieces: the scan must not depend on the size
 * of the holes.  The limit is generous (a few milliseconds are usual), but far
 * below what reading an entry for each page takes on the same machine.
 */
static void sparse_is_quick(int flags, int fd)
{
	struct fixture *f = fixture_new(64 * GIB, flags | MAP_NORESERVE, fd, fd >= 0);
	double best = 1e9;

	if (fd < 0 && !f->p.can_scan) {
		fixture_delete(f);
		leave_out("userfaultfd", "this kernel has no PAGEMAP_SCAN");
	}
	for (uint64_t off = 0; off < f->size; off += GIB)
		memset(f->hva + off, 1, 4 * MIB);
	for (unsigned i = 0; i < 5; i++) {
		double begin = now_ms();

		assert_int_equal(scan(f), 64 * 1024);
		if (now_ms() - begin < best)
			best = now_ms() - begin;
	}
	print_message("64 GiB with 256 MiB in 64 pieces: %.2f ms\n", best);
	assert_true(best < 40);
	fixture_delete(f);
}

static void test_sparse_anon_is_quick(void **state)
{
	(void)state;
	sparse_is_quick(MAP_PRIVATE | MAP_ANONYMOUS, -1);
}

static void test_sparse_memfd_is_quick(void **state)
{
	int fd = memfd_create("test", MFD_CLOEXEC);

	(void)state;
	assert_int_equal(ftruncate(fd, 64 * GIB), 0);
	sparse_is_quick(MAP_SHARED, fd);
	close(fd);
}

static void test_fini_twice_is_harmless(void **state)
{
	struct region_list list = { 0 };
	struct tern_error err = { 0 };
	struct populated p;

	(void)state;
	assert_int_equal(populated_init(&p, &list, &err), 0);
	populated_fini(&p);
	populated_fini(&p);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_anon_with_scan_ioctl),
		cmocka_unit_test(test_anon_by_reading_pagemap),
		cmocka_unit_test(test_anon_zero_page_is_a_hole),
		cmocka_unit_test(test_many_runs_need_many_calls),
		cmocka_unit_test(test_part_of_a_region),
		cmocka_unit_test(test_memfd_by_its_fd),
		cmocka_unit_test(test_memfd_by_its_mapping),
		cmocka_unit_test(test_memfd_part_by_offset),
		cmocka_unit_test(test_callers_file_offset_stays),
		cmocka_unit_test(test_scanning_does_not_allocate),
		cmocka_unit_test(test_private_file_is_all_populated),
		cmocka_unit_test(test_hugetlb_private),
		cmocka_unit_test(test_hugetlb_shared_trusts_page_table_only_if_complete),
		cmocka_unit_test(test_sparse_anon_is_quick),
		cmocka_unit_test(test_sparse_memfd_is_quick),
		cmocka_unit_test(test_fini_twice_is_harmless),
	};

	return cmocka_run_group_tests_name("populated", tests, NULL, NULL);
}
