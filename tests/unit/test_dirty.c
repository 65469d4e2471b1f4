/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Unit tests of the userfaultfd dirty providers.
 *
 * Each test runs once per variant (provider, backing, way of reading the page
 * table).  A variant that this machine cannot have (no huge pages, an older
 * kernel) is skipped.
 */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include "bitmap.h"
#include "dirty_rig.h"

#define MIB (1ull << 20)
#define GIB (1ull << 30)
#define SYNC TERN_DIRTY_UFFD_WP_SYNC
#define ASYNC TERN_DIRTY_UFFD_WP_ASYNC

static const struct rig_variant async_anon = { "async/anon", ASYNC, RIG_ANON, true };
static const struct rig_variant async_memfd = { "async/memfd", ASYNC, RIG_MEMFD, true };
static const struct rig_variant async_huge = { "async/hugetlb", ASYNC, RIG_HUGETLB, true };
static const struct rig_variant async_huge_private = { "async/hugetlb private", ASYNC,
						       RIG_HUGETLB_PRIVATE, true };
static const struct rig_variant async_file = { "async/file", ASYNC, RIG_FILE, true };
static const struct rig_variant sync_anon = { "sync/anon", SYNC, RIG_ANON, false };
static const struct rig_variant sync_anon_scan = { "sync/anon/scan", SYNC, RIG_ANON, true };
static const struct rig_variant sync_memfd = { "sync/memfd", SYNC, RIG_MEMFD, false };
static const struct rig_variant sync_memfd_scan = { "sync/memfd/scan", SYNC, RIG_MEMFD, true };
static const struct rig_variant sync_huge = { "sync/hugetlb", SYNC, RIG_HUGETLB, false };
static const struct rig_variant sync_huge_private = { "sync/hugetlb private", SYNC,
						      RIG_HUGETLB_PRIVATE, false };

/* begin - a rig of the test's variant, or skip. */
static struct rig *begin(void **state, uint64_t size)
{
	struct rig *rig = rig_new(*state, size);

	if (!rig)
		rig_leave_out(*state);
	return rig;
}

/* end - stop and delete. */
static void end(struct rig *rig)
{
	rig->d.ops.stop(rig->d.opaque);
	rig_delete(rig);
}

/* expect_host_page - the bitmap holds exactly the host page that page @page is in. */
static void expect_host_page(struct rig *rig, uint64_t page)
{
	uint64_t first = page / rig->unit * rig->unit;

	assert_int_equal(bitmap_count(rig->bitmap, rig->r->nr_pages), rig->unit);
	assert_int_equal(bitmap_next_set(rig->bitmap, rig->r->nr_pages, 0), first);
	assert_int_equal(bitmap_next_clear(rig->bitmap, rig->r->nr_pages, first),
			 first + rig->unit);
}

static void test_unprotected_pages_are_dirty_until_cleared(void **state)
{
	struct rig *rig = begin(state, 8 * MIB);

	memset(rig->hva, 1, rig->size);
	rig_start(rig);
	rig_forget(rig);
	assert_int_equal(rig_sync(rig), rig->r->nr_pages);
	rig_clear(rig);
	rig_forget(rig);
	assert_int_equal(rig_sync(rig), 0);
	end(rig);
}

static void test_a_write_is_reported_until_cleared(void **state)
{
	struct rig *rig = begin(state, 8 * MIB);

	memset(rig->hva, 1, rig->size);
	rig_start(rig);
	rig_clear(rig);
	rig_forget(rig);
	rig->hva[1200 * TERN_PAGE_SIZE] = 2;
	for (unsigned i = 0; i < 3; i++) {
		rig_forget(rig);
		rig_sync(rig);
		expect_host_page(rig, 1200);
	}
	rig_clear(rig);
	expect_host_page(rig, 1200);
	rig_forget(rig);
	assert_int_equal(rig_sync(rig), 0);
	end(rig);
}

static void test_reading_is_not_reported(void **state)
{
	struct rig *rig = begin(state, 8 * MIB);
	uint64_t sum = 0;

	memset(rig->hva, 1, rig->size);
	rig_start(rig);
	rig_clear(rig);
	rig_forget(rig);
	for (uint64_t i = 0; i < rig->size; i += TERN_PAGE_SIZE)
		sum += *(volatile uint8_t *)(rig->hva + i);
	assert_int_equal(sum, rig->r->nr_pages);
	assert_int_equal(rig_sync(rig), 0);
	end(rig);
}

static void test_a_hole_written_later_is_reported(void **state)
{
	struct rig *rig = begin(state, 8 * MIB);

	rig->hva[0] = 1;
	rig_start(rig);
	rig_clear(rig);
	rig_forget(rig);
	rig->hva[1500 * TERN_PAGE_SIZE] = 2;
	rig_sync(rig);
	expect_host_page(rig, 1500);
	rig_clear(rig);
	rig_forget(rig);
	assert_int_equal(rig_sync(rig), 0);
	rig->hva[1500 * TERN_PAGE_SIZE] = 3;
	rig_sync(rig);
	expect_host_page(rig, 1500);
	end(rig);
}

static void test_clear_of_a_hole_does_not_hide_its_write(void **state)
{
	struct rig *rig = begin(state, 8 * MIB);

	rig_start(rig);
	/* The caller may believe that a hole is populated. */
	bitmap_set_range(rig->bitmap, 0, rig->r->nr_pages);
	rig_clear(rig);
	rig->hva[700 * TERN_PAGE_SIZE] = 1;
	rig_forget(rig);
	rig_sync(rig);
	expect_host_page(rig, 700);
	end(rig);
}

static void test_clear_of_a_part_leaves_the_rest(void **state)
{
	struct rig *rig = begin(state, 8 * MIB);
	uint64_t map[512 / 64] = { 0 };

	memset(rig->hva, 1, rig->size);
	rig_start(rig);
	rig_clear(rig);
	rig->hva[10 * TERN_PAGE_SIZE] = 2;
	rig->hva[600 * TERN_PAGE_SIZE] = 2;
	rig_forget(rig);
	rig_sync(rig);
	bitmap_set(map, 600 - 512);
	assert_int_equal(rig->d.ops.clear(rig->d.opaque, 0, 512, 512, map), 0);
	rig_forget(rig);
	rig_sync(rig);
	expect_host_page(rig, 10);
	end(rig);
}

static void test_sync_of_a_part_looks_no_further(void **state)
{
	struct rig *rig = begin(state, 8 * MIB);
	uint64_t map[512 / 64 + 1] = { 0 };

	memset(rig->hva, 1, rig->size);
	rig_start(rig);
	assert_int_equal(rig->d.ops.sync(rig->d.opaque, 0, 512, 512, map), 0);
	assert_int_equal(bitmap_count(map, 512 + 64), 512);
	end(rig);
}

static void test_what_clear_adds_is_what_it_cleared(void **state)
{
	struct rig *rig = begin(state, 8 * MIB);

	memset(rig->hva, 1, rig->size);
	rig_start(rig);
	rig_clear(rig);
	rig_forget(rig);
	rig->hva[100 * TERN_PAGE_SIZE] = 2;
	rig->hva[900 * TERN_PAGE_SIZE] = 2;
	/* No sync between: either the bit is added, or a later sync has it. */
	rig_clear(rig);
	rig_sync(rig);
	assert_true(bitmap_test(rig->bitmap, 100));
	assert_true(bitmap_test(rig->bitmap, 900));
	assert_int_equal(bitmap_count(rig->bitmap, rig->r->nr_pages), 2 * rig->unit);
	end(rig);
}

static void test_a_discarded_page_written_again_is_reported(void **state)
{
	struct rig *rig = begin(state, 8 * MIB);

	memset(rig->hva, 1, rig->size);
	rig_start(rig);
	rig_clear(rig);
	assert_int_equal(
		madvise(rig->hva + 2 * MIB, 2 * MIB, rig->fd < 0 ? MADV_DONTNEED : MADV_REMOVE), 0);
	rig->hva[600 * TERN_PAGE_SIZE] = 7;
	rig_forget(rig);
	rig_sync(rig);
	assert_true(bitmap_test(rig->bitmap, 600));
	end(rig);
}

static void test_a_write_is_not_lost_with_its_page_table_entry(void **state)
{
	struct rig *rig = begin(state, 8 * MIB);

	memset(rig->hva, 1, rig->size);
	rig_start(rig);
	rig_clear(rig);
	rig->hva[600 * TERN_PAGE_SIZE] = 7;
	/* Shared: drops the entries, as reclaim does, and keeps the pages. */
	assert_int_equal(madvise(rig->hva, rig->size, MADV_DONTNEED), 0);
	rig_forget(rig);
	rig_sync(rig);
	expect_host_page(rig, 600);
	rig_clear(rig);
	rig_forget(rig);
	assert_int_equal(rig_sync(rig), 0);
	rig->hva[600 * TERN_PAGE_SIZE] = 8;
	rig_sync(rig);
	expect_host_page(rig, 600);
	end(rig);
}

static void test_pages_of_the_file_that_were_never_mapped(void **state)
{
	struct rig *rig = begin(state, 8 * MIB);
	uint8_t page[TERN_PAGE_SIZE];

	memset(page, 5, sizeof(page));
	assert_int_equal(pwrite(rig->fd, page, sizeof(page), 33 * TERN_PAGE_SIZE), sizeof(page));
	rig_start(rig);
	assert_true(bitmap_test(rig->bitmap, 33));
	rig_forget(rig);
	rig_sync(rig);
	assert_true(bitmap_test(rig->bitmap, 33));
	rig_clear(rig);
	assert_int_equal(rig->hva[33 * TERN_PAGE_SIZE], 5);
	rig_forget(rig);
	assert_int_equal(rig_sync(rig), 0);
	rig->hva[33 * TERN_PAGE_SIZE] = 6;
	rig_sync(rig);
	expect_host_page(rig, 33);
	end(rig);
}

static void test_a_system_call_may_write(void **state)
{
	struct rig *rig = begin(state, 8 * MIB);
	int pipe_fd[2];

	assert_int_equal(pipe(pipe_fd), 0);
	memset(rig->hva, 1, rig->size);
	rig_start(rig);
	rig_clear(rig);
	assert_int_equal(write(pipe_fd[1], "tern", 4), 4);
	assert_int_equal(read(pipe_fd[0], rig->hva + 50 * TERN_PAGE_SIZE, 4), 4);
	rig_forget(rig);
	rig_sync(rig);
	expect_host_page(rig, 50);
	close(pipe_fd[0]);
	close(pipe_fd[1]);
	end(rig);
}

static void test_writes_go_on_after_stop_and_start_works_again(void **state)
{
	struct rig *rig = begin(state, 8 * MIB);

	memset(rig->hva, 1, rig->size);
	for (unsigned i = 0; i < 3; i++) {
		rig_start(rig);
		rig_clear(rig);
		rig->hva[i * 512 * TERN_PAGE_SIZE] = 2;
		rig_forget(rig);
		rig_sync(rig);
		expect_host_page(rig, i * 512);
		rig->d.ops.stop(rig->d.opaque);
		/* Still protected pages must not stop anyone now. */
		memset(rig->hva, 3, rig->size);
	}
	rig_delete(rig);
}

static void test_stop_without_start_is_harmless(void **state)
{
	struct rig *rig = begin(state, 8 * MIB);

	end(rig);
}

static void test_start_twice_is_refused(void **state)
{
	struct rig *rig = begin(state, 8 * MIB);

	rig_start(rig);
	assert_int_equal(rig->d.ops.start(rig->d.opaque), -EBUSY);
	end(rig);
}

static void test_holes_cost_no_page_tables(void **state)
{
	struct rig *rig = begin(state, 16 * GIB);
	long before = rig_page_tables_kib();

	rig->hva[5 * GIB] = 1;
	rig_start(rig);
	rig_clear(rig);
	rig_sync(rig);
	rig_clear(rig);
	assert_true(rig_page_tables_kib() - before < 256);
	end(rig);
}

/* A writer of one page. */
static void *write_one_page(void *page)
{
	for (unsigned i = 0; i < 2000; i++)
		__atomic_add_fetch((uint64_t *)page, 1, __ATOMIC_RELAXED);
	return NULL;
}

static void test_two_writers_of_one_page(void **state)
{
	struct rig *rig = begin(state, 8 * MIB);
	uint64_t *word = (uint64_t *)(rig->hva + 40 * TERN_PAGE_SIZE), seen = 0;
	pthread_t t[2];

	rig->hva[0] = 1;
	*word = 0;
	rig_start(rig);
	rig_clear(rig);
	for (unsigned i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&t[i], NULL, write_one_page, word), 0);
	for (unsigned i = 0; i < 200; i++) {
		rig_forget(rig);
		rig_sync(rig);
		rig_clear(rig);
		seen = __atomic_load_n(word, __ATOMIC_RELAXED);
	}
	for (unsigned i = 0; i < 2; i++)
		pthread_join(t[i], NULL);
	assert_int_equal(*word, 4000);
	rig_forget(rig);
	rig_sync(rig);
	assert_true(seen == 4000 || bitmap_test(rig->bitmap, 40));
	end(rig);
}

/* --- choosing ---------------------------------------------------------------- */

/* user_start, user_stop, user_sync - callbacks of a VMM. */
static int user_start(void *opaque)
{
	return 0;
}

static void user_stop(void *opaque)
{
}

static int user_sync(void *opaque, unsigned region, uint64_t first, uint64_t nr, uint64_t *bitmap)
{
	*(unsigned *)opaque = region;
	return 0;
}

static const struct tern_dirty_ops user_ops = {
	.start = user_start,
	.stop = user_stop,
	.sync = user_sync,
};

/* choose - dirty_init() of @kind on the rig's region; its result and d->kind. */
static int choose(struct rig *rig, enum tern_dirty_provider kind, const struct tern_dirty_ops *user,
		  enum tern_dirty_provider *got)
{
	unsigned seen = 77;

	dirty_fini(&rig->d);
	error_clear(&rig->err);
	int ret = dirty_init(&rig->d, kind, user, &seen, NULL, &rig->list, &rig->p, &rig->err);

	*got = rig->d.kind;
	assert_int_equal(rig->err.code, ret);
	if (!ret && user) {
		assert_int_equal(rig->d.ops.sync(rig->d.opaque, 3, 0, 64, NULL), 0);
		assert_int_equal(seen, 3);
	}
	return ret;
}

static void test_auto_prefers_callbacks_then_async_then_sync(void **state)
{
	struct rig *rig = begin(state, 8 * MIB);
	enum tern_dirty_provider got;

	assert_int_equal(choose(rig, TERN_DIRTY_AUTO, &user_ops, &got), 0);
	assert_int_equal(got, TERN_DIRTY_CALLBACKS);
	assert_int_equal(choose(rig, TERN_DIRTY_AUTO, NULL, &got), 0);
	assert_int_equal(got, TERN_DIRTY_UFFD_WP_ASYNC);
	rig->p.can_scan = false;
	assert_int_equal(choose(rig, TERN_DIRTY_AUTO, NULL, &got), 0);
	assert_int_equal(got, TERN_DIRTY_UFFD_WP_SYNC);
	rig_delete(rig);
}

static void test_async_without_scan_ioctl_says_so(void **state)
{
	struct rig *rig = begin(state, 8 * MIB);
	enum tern_dirty_provider got;

	rig->p.can_scan = false;
	assert_int_equal(choose(rig, TERN_DIRTY_UFFD_WP_ASYNC, NULL, &got), -ENOSYS);
	assert_non_null(strstr(rig->err.message, "PAGEMAP_SCAN"));
	assert_non_null(strstr(rig->err.message, "6.7"));
	rig_delete(rig);
}

static void test_incomplete_callbacks_are_refused(void **state)
{
	struct rig *rig = begin(state, 8 * MIB);
	struct tern_dirty_ops ops = user_ops;
	enum tern_dirty_provider got;

	ops.sync = NULL;
	assert_int_equal(choose(rig, TERN_DIRTY_CALLBACKS, &ops, &got), -EINVAL);
	assert_non_null(strstr(rig->err.message, "NULL"));
	assert_int_equal(choose(rig, TERN_DIRTY_CALLBACKS, NULL, &got), -EINVAL);
	assert_non_null(strstr(rig->err.message, "there are none"));
	rig_delete(rig);
}

static void test_none_reports_nothing(void **state)
{
	struct rig *rig = begin(state, 8 * MIB);
	enum tern_dirty_provider got;

	assert_int_equal(choose(rig, TERN_DIRTY_NONE, NULL, &got), 0);
	rig_start(rig);
	rig->hva[0] = 1;
	rig_forget(rig);
	assert_int_equal(rig_sync(rig), 0);
	assert_null(rig->d.ops.clear);
	end(rig);
}

static void test_unknown_provider_is_refused(void **state)
{
	struct rig *rig = begin(state, 8 * MIB);
	enum tern_dirty_provider got;

	assert_int_equal(choose(rig, 99, NULL, &got), -EINVAL);
	assert_non_null(strstr(rig->err.message, "99"));
	rig_delete(rig);
}

static void test_sync_refuses_files_with_a_sentence(void **state)
{
	struct rig *rig = begin(state, 8 * MIB);
	enum tern_dirty_provider got;

	assert_int_equal(rig->r->backing, REGION_FILE_SHARED);
	assert_int_equal(choose(rig, TERN_DIRTY_UFFD_WP_SYNC, NULL, &got), -ENOSYS);
	assert_non_null(strstr(rig->err.message, "maps a file"));
	rig_delete(rig);
}

/* unprivileged_uffd - the sysctl: may everyone use all of userfaultfd? */
static bool unprivileged_uffd(void)
{
	FILE *f = fopen("/proc/sys/vm/unprivileged_userfaultfd", "re");
	int value = 0;

	if (f && fscanf(f, "%d", &value) != 1)
		value = 0;
	if (f)
		fclose(f);
	return value != 0;
}

/* unprivileged_child - what AUTO says without privileges; the child's exit code. */
static int unprivileged_child(const struct rig_variant *v)
{
	struct tern_error err;

	if (!geteuid() && (setresgid(65534, 65534, 65534) || setresuid(65534, 65534, 65534) ||
			   prctl(PR_SET_DUMPABLE, 1)))
		return 10;
	/* Asynchronous tracking needs no privilege. */
	struct rig *rig = rig_new(v, 8 * MIB);

	if (!rig)
		return 11;
	dirty_fini(&rig->d);
	rig->p.can_scan = false;
	error_clear(&err);
	int ret = dirty_init(&rig->d, TERN_DIRTY_AUTO, NULL, NULL, NULL, &rig->list, &rig->p, &err);

	if (unprivileged_uffd())
		return ret ? 14 : 0;
	if (ret != -EPERM)
		return 12;
	if (!strstr(err.message, "PAGEMAP_SCAN") ||
	    !strstr(err.message, "vm.unprivileged_userfaultfd"))
		return 13;
	return 0;
}

static void test_auto_without_privilege_says_what_is_missing(void **state)
{
	int status;
	struct rig *rig = begin(state, 8 * MIB); /* this variant must be possible at all */

	rig_delete(rig);
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (!pid)
		_exit(unprivileged_child(*state));
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
}

#define T(test, variant)                                                          \
	{                                                                         \
#test ":" #variant, test, NULL, NULL, (void *)(uintptr_t)&variant \
	}
#define T_4K(test)                                                                              \
	T(test, async_anon), T(test, async_memfd), T(test, sync_anon), T(test, sync_anon_scan), \
		T(test, sync_memfd), T(test, sync_memfd_scan)
#define T_ALL(test)                                                                       \
	T_4K(test), T(test, async_huge), T(test, async_huge_private), T(test, sync_huge), \
		T(test, sync_huge_private)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T_ALL(test_unprotected_pages_are_dirty_until_cleared),
		T_ALL(test_a_write_is_reported_until_cleared),
		T_ALL(test_reading_is_not_reported),
		T_ALL(test_a_hole_written_later_is_reported),
		T_ALL(test_clear_of_a_hole_does_not_hide_its_write),
		T_ALL(test_clear_of_a_part_leaves_the_rest),
		T_ALL(test_sync_of_a_part_looks_no_further),
		T_ALL(test_what_clear_adds_is_what_it_cleared),
		T_ALL(test_a_discarded_page_written_again_is_reported),
		T_ALL(test_a_system_call_may_write),
		T_ALL(test_writes_go_on_after_stop_and_start_works_again),
		T_ALL(test_stop_without_start_is_harmless),
		T_ALL(test_start_twice_is_refused),
		T_ALL(test_two_writers_of_one_page),
		T(test_unprotected_pages_are_dirty_until_cleared, async_file),
		T(test_a_write_is_reported_until_cleared, async_file),
		T(test_a_write_is_not_lost_with_its_page_table_entry, async_memfd),
		T(test_a_write_is_not_lost_with_its_page_table_entry, async_file),
		T(test_a_write_is_not_lost_with_its_page_table_entry, sync_memfd),
		T(test_a_write_is_not_lost_with_its_page_table_entry, sync_memfd_scan),
		T(test_pages_of_the_file_that_were_never_mapped, async_memfd),
		T(test_pages_of_the_file_that_were_never_mapped, sync_memfd),
		T(test_pages_of_the_file_that_were_never_mapped, sync_memfd_scan),
		T(test_holes_cost_no_page_tables, async_anon),
		T(test_holes_cost_no_page_tables, async_memfd),
		T(test_holes_cost_no_page_tables, sync_anon),
		T(test_holes_cost_no_page_tables, sync_memfd),
		T(test_auto_prefers_callbacks_then_async_then_sync, async_anon),
		T(test_auto_prefers_callbacks_then_async_then_sync, async_memfd),
		T(test_auto_prefers_callbacks_then_async_then_sync, async_huge),
		T(test_async_without_scan_ioctl_says_so, async_anon),
		T(test_incomplete_callbacks_are_refused, sync_anon),
		T(test_none_reports_nothing, sync_anon),
		T(test_unknown_provider_is_refused, sync_anon),
		T(test_sync_refuses_files_with_a_sentence, async_file),
		T(test_auto_without_privilege_says_what_is_missing, async_anon),
	};

	return cmocka_run_group_tests_name("dirty", tests, NULL, NULL);
}
