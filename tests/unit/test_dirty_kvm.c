/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Unit tests of KVM's dirty providers, with a guest in KVM that writes.  Each runs once per
 * way in which the VM can be made.  argv[1], if given, is a filter ("*:ring").
 */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <linux/kvm.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "bitmap.h"
#include "kvm_rig.h"

static const struct kvm_rig_variant log_plain = { "plain", KVM_RIG_PLAIN, 0, 1 };
static const struct kvm_rig_variant log_manual = { "manual", KVM_RIG_MANUAL, 0, 1 };
static const struct kvm_rig_variant log_initially_set = { "initially set", KVM_RIG_INITIALLY_SET, 0,
							  1 };
static const struct kvm_rig_variant ring = { "ring", KVM_RIG_RING, 4096, 2 };

/* Called once, before KVM resets the rings. */
static void (*before_reset)(struct kvm_rig *rig);
static struct kvm_rig *reset_rig;

/* ioctl - takes the place of the C library's, so that a test can be there. */
int ioctl(int fd, unsigned long request, ...)
{
	va_list ap;

	va_start(ap, request);
	unsigned long arg = va_arg(ap, unsigned long);

	va_end(ap);
	if (request == KVM_RESET_DIRTY_RINGS && before_reset) {
		void (*hook)(struct kvm_rig *) = before_reset;

		before_reset = NULL;
		hook(reset_rig);
	}
	return (int)syscall(SYS_ioctl, fd, request, arg);
}

/* begin - a rig that tracks, whose bitmaps are empty. */
static struct kvm_rig *begin(void **state)
{
	struct kvm_rig *rig = kvm_rig_new(*state);

	kvm_rig_start(rig);
	kvm_rig_forget(rig);
	return rig;
}

/* end - stop and delete. */
static void end(struct kvm_rig *rig)
{
	rig->d.ops.stop(rig->d.opaque);
	kvm_rig_delete(rig);
}

/* populated - pages of both regions that exist. */
static uint64_t populated(struct kvm_rig *rig)
{
	uint64_t map[KVM_RIG_PAGES / 64], n = 0;

	for (unsigned i = 0; i < KVM_RIG_REGIONS; i++) {
		memset(map, 0, sizeof(map));
		assert_int_equal(populated_scan(&rig->p, &rig->list.v[i], 0,
						rig->list.v[i].nr_pages, map, NULL),
				 0);
		n += bitmap_count(map, rig->list.v[i].nr_pages);
	}
	return n;
}

static void test_holes_are_not_reported_and_stay_holes(void **state)
{
	struct kvm_rig *rig = begin(state);

	assert_int_equal(kvm_rig_sync(rig), 0);
	kvm_rig_write(rig, 0, 0, 77, 1);
	assert_int_equal(kvm_rig_sync(rig), 1);
	kvm_rig_copy_round(rig, true);
	assert_int_equal(kvm_rig_sync(rig), 0);
	assert_int_equal(populated(rig), 1);
	end(rig);
}

static void test_what_existed_and_is_not_written_is_not_reported(void **state)
{
	struct kvm_rig *rig = kvm_rig_new(*state);

	for (uint64_t i = 0; i < KVM_RIG_PAGES; i += 3)
		kvm_rig_write(rig, 0, 0, i, 1);
	kvm_rig_start(rig);
	assert_int_equal(bitmap_count(rig->bitmap[0], KVM_RIG_PAGES), (KVM_RIG_PAGES + 2) / 3);
	kvm_rig_forget(rig);
	assert_int_equal(kvm_rig_sync(rig), 0);
	kvm_rig_write(rig, 0, 0, 300, 2);
	kvm_rig_sync(rig);
	kvm_rig_expect(rig, 0, 300, 1);
	end(rig);
}

static void test_reports_exactly_what_was_written(void **state)
{
	static const uint64_t pages[] = { 0,
					  1,
					  63,
					  64,
					  1000,
					  KVM_RIG_HALF - 1,
					  KVM_RIG_HALF,
					  KVM_RIG_HALF + 65,
					  KVM_RIG_PAGES - 1 };
	static const uint64_t more[] = { 0, 64, 959, 960, KVM_RIG_MORE_PAGES - 1 };
	enum { NR = sizeof(pages) / sizeof(pages[0]), NR_MORE = sizeof(more) / sizeof(more[0]) };
	struct kvm_rig *rig = begin(state);

	for (unsigned i = 0; i < NR; i++)
		kvm_rig_write(rig, 0, 0, pages[i], i + 1);
	for (unsigned i = 0; i < NR_MORE; i++)
		kvm_rig_write(rig, 0, 1, more[i], i + 1);
	kvm_rig_sync(rig);
	for (unsigned i = 0; i < NR; i++)
		kvm_rig_expect(rig, 0, pages[i], NR + NR_MORE);
	for (unsigned i = 0; i < NR_MORE; i++)
		kvm_rig_expect(rig, 1, more[i], NR + NR_MORE);
	kvm_rig_copy_round(rig, true);
	assert_int_equal(kvm_rig_differing(rig), 0);
	assert_int_equal(kvm_rig_sync(rig), 0);
	end(rig);
}

static void test_a_write_is_reported_until_cleared(void **state)
{
	struct kvm_rig *rig = begin(state);

	kvm_rig_write(rig, 0, 0, 1200, 1);
	for (unsigned i = 0; i < 3; i++) {
		kvm_rig_forget(rig);
		kvm_rig_sync(rig);
		kvm_rig_expect(rig, 0, 1200, 1);
	}
	kvm_rig_copy_round(rig, true);
	assert_int_equal(kvm_rig_sync(rig), 0);
	kvm_rig_write(rig, 0, 0, 1200, 2);
	kvm_rig_sync(rig);
	kvm_rig_expect(rig, 0, 1200, 1);
	end(rig);
}

/* The heart of invariant 2: what is written after clear() is seen again. */
static void test_a_write_after_clear_is_reported_again(void **state)
{
	struct kvm_rig *rig = begin(state);

	for (unsigned i = 0; i < 5; i++) {
		kvm_rig_write(rig, 0, 1, 990, 2 * i);
		kvm_rig_sync(rig);
		kvm_rig_expect(rig, 1, 990, 1);
		/* Written between the sync and the clear: need not, but may be reported. */
		kvm_rig_write(rig, 0, 1, 990, 2 * i + 1);
		kvm_rig_copy_round(rig, true);
		assert_int_equal(kvm_rig_differing(rig), 0);
		kvm_rig_write(rig, 0, 1, 990, 1000 + i);
		assert_int_equal(kvm_rig_sync(rig), 1);
		kvm_rig_copy_round(rig, true);
	}
	end(rig);
}

static void test_clear_leaves_other_pages(void **state)
{
	struct kvm_rig *rig = begin(state);
	uint64_t map[64] = { 0 };

	kvm_rig_write(rig, 0, 0, 64, 1);
	kvm_rig_write(rig, 0, 0, 65, 1);
	kvm_rig_write(rig, 0, 0, 128, 1);
	kvm_rig_sync(rig);
	kvm_rig_expect(rig, 0, 64, 3);
	kvm_rig_forget(rig);
	bitmap_set(map, 1);
	assert_int_equal(rig->d.ops.clear(rig->d.opaque, 0, 64, 4096, map), 0);
	assert_int_equal(bitmap_count(map, 4096), 1);
	kvm_rig_sync(rig);
	kvm_rig_expect(rig, 0, 64, 2);
	kvm_rig_expect(rig, 0, 128, 2);
	end(rig);
}

/* A stripe that begins in one slot and ends in the other. */
static void test_clear_across_slots(void **state)
{
	struct kvm_rig *rig = begin(state);
	uint64_t map[2] = { 0 };

	kvm_rig_write(rig, 0, 0, KVM_RIG_HALF - 1, 1);
	kvm_rig_write(rig, 0, 0, KVM_RIG_HALF, 1);
	bitmap_set_range(map, 63, 2);
	kvm_rig_sync(rig);
	assert_int_equal(rig->d.ops.clear(rig->d.opaque, 0, KVM_RIG_HALF - 64, 128, map), 0);
	kvm_rig_forget(rig);
	assert_int_equal(kvm_rig_sync(rig), 0);
	end(rig);
}

static void test_sync_of_a_part_reports_the_part(void **state)
{
	struct kvm_rig *rig = begin(state);
	uint64_t map[2] = { 0 };

	kvm_rig_write(rig, 0, 1, 63, 1);
	kvm_rig_write(rig, 0, 1, 64, 1);
	kvm_rig_write(rig, 0, 1, 192, 1);
	assert_int_equal(rig->d.ops.begin(rig->d.opaque), 0);
	assert_int_equal(rig->d.ops.sync(rig->d.opaque, 1, 64, 128, map), 0);
	assert_int_equal(map[0], 1);
	assert_int_equal(map[1], 0);
	end(rig);
}

static void test_marks_are_reported_until_cleared(void **state)
{
	struct kvm_rig *rig = begin(state);

	kvm_rig_mark(rig, 1, 5);
	kvm_rig_write(rig, 0, 0, 5, 1);
	kvm_rig_sync(rig);
	kvm_rig_expect(rig, 1, 5, 2);
	kvm_rig_expect(rig, 0, 5, 2);
	kvm_rig_copy_round(rig, true);
	kvm_rig_mark(rig, 1, 5);
	kvm_rig_sync(rig);
	kvm_rig_expect(rig, 1, 5, 1);
	kvm_rig_copy_round(rig, true);
	assert_int_equal(kvm_rig_sync(rig), 0);
	end(rig);
}

/* A mark that comes after the page was looked at is not lost with it. */
static void test_a_mark_after_sync_survives_the_clear_of_others(void **state)
{
	struct kvm_rig *rig = begin(state);

	kvm_rig_write(rig, 0, 0, 64, 1);
	kvm_rig_sync(rig);
	kvm_rig_mark(rig, 0, 65);
	kvm_rig_copy_round(rig, true);
	kvm_rig_sync(rig);
	kvm_rig_expect(rig, 0, 65, 1);
	end(rig);
}

/* log_of - KVM_GET_DIRTY_LOG of a slot.  0 or -errno. */
static int log_of(struct kvm_rig *rig, uint32_t slot)
{
	uint64_t map[KVM_RIG_PAGES / 64];
	struct kvm_dirty_log log = { .slot = slot, .dirty_bitmap = map };

	return ioctl(rig->g->vm_fd, KVM_GET_DIRTY_LOG, &log) ? -errno : 0;
}

static void test_stop_turns_the_logs_off(void **state)
{
	struct kvm_rig *rig = begin(state);
	bool is_ring = rig->variant->how == KVM_RIG_RING;

	assert_int_equal(log_of(rig, 3), is_ring ? -ENXIO : 0);
	rig->d.ops.stop(rig->d.opaque);
	for (uint32_t slot = 3; slot <= 5; slot++)
		assert_int_equal(log_of(rig, slot), is_ring ? -ENXIO : -ENOENT);
	kvm_rig_write(rig, 0, 0, 9, 1);
	kvm_rig_delete(rig);
}

/* A migration that failed, and another one: for rings, from the middle of them. */
static void test_a_second_provider_goes_on(void **state)
{
	struct kvm_rig *rig = begin(state);

	for (unsigned turn = 0; turn < 3; turn++) {
		for (uint64_t i = 0; i < 700; i++)
			kvm_rig_write(rig, 0, 0, 3 * i, turn + 1);
		kvm_rig_sync(rig);
		kvm_rig_expect(rig, 0, 3, 700);
		kvm_rig_write(rig, 0, 0, 1, 1);
		rig->d.ops.stop(rig->d.opaque);
		dirty_fini(&rig->d);
		kvm_vm_delete(&rig->kvm);
		kvm_rig_write(rig, 0, 0, 2, 1);
		assert_int_equal(
			kvm_vm_new(&rig->desc, &rig->list, &rig->limit, &rig->kvm, &rig->err), 0);
		assert_int_equal(dirty_init(&rig->d, TERN_DIRTY_AUTO, NULL, NULL, rig->kvm,
					    &rig->list, &rig->p, &rig->err),
				 0);
		assert_int_equal(rig->d.kind, kvm_rig_provider(rig->variant));
		kvm_rig_start(rig);
		kvm_rig_forget(rig);
		assert_int_equal(kvm_rig_sync(rig), 0);
	}
	end(rig);
}

/* Both vCPUs write the same and different pages. */
static void test_all_vcpus_are_heard(void **state)
{
	struct kvm_rig *rig = begin(state);
	unsigned nr = rig->g->nr_vcpus;

	for (unsigned i = 0; i < nr; i++) {
		kvm_rig_write(rig, i, 0, 100, i + 1);
		kvm_rig_write(rig, i, 0, 200 + i, 1);
	}
	kvm_rig_sync(rig);
	kvm_rig_expect(rig, 0, 100, 1 + nr);
	for (unsigned i = 0; i < nr; i++)
		kvm_rig_expect(rig, 0, 200 + i, 1 + nr);
	end(rig);
}

/* read_and_write_again - page 1 is cleared and read, and then written again. */
static void read_and_write_again(struct kvm_rig *rig)
{
	kvm_rig_forget(rig);
	bitmap_set(rig->bitmap[0], 1);
	kvm_rig_copy_round(rig, true);
	kvm_rig_write(rig, 0, 0, 1, 2);
}

/*
 * Between the moment in which an entry is taken and that in which KVM protects its page, a
 * channel reads the page and the guest writes it: KVM will not tell of that write.
 */
static void test_a_page_read_during_a_harvest_is_read_again(void **state)
{
	struct kvm_rig *rig = begin(state);

	kvm_rig_write(rig, 0, 0, 1, 1);
	reset_rig = rig;
	before_reset = read_and_write_again;
	kvm_rig_sync(rig);
	assert_null(before_reset);
	kvm_rig_sync(rig);
	kvm_rig_expect(rig, 0, 1, 1);
	kvm_rig_copy_round(rig, true);
	assert_int_equal(kvm_rig_differing(rig), 0);
	end(rig);
}

#define T(test, variant)                                                          \
	{                                                                         \
#test ":" #variant, test, NULL, NULL, (void *)(uintptr_t)&variant \
	}
#define T_ALL(test) \
	T(test, log_plain), T(test, log_manual), T(test, log_initially_set), T(test, ring)

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		T_ALL(test_holes_are_not_reported_and_stay_holes),
		T_ALL(test_what_existed_and_is_not_written_is_not_reported),
		T_ALL(test_reports_exactly_what_was_written),
		T_ALL(test_a_write_is_reported_until_cleared),
		T_ALL(test_a_write_after_clear_is_reported_again),
		T_ALL(test_clear_leaves_other_pages),
		T_ALL(test_clear_across_slots),
		T_ALL(test_sync_of_a_part_reports_the_part),
		T_ALL(test_marks_are_reported_until_cleared),
		T_ALL(test_a_mark_after_sync_survives_the_clear_of_others),
		T_ALL(test_stop_turns_the_logs_off),
		T_ALL(test_a_second_provider_goes_on),
		T_ALL(test_all_vcpus_are_heard),
		T(test_a_page_read_during_a_harvest_is_read_again, ring),
	};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests_name("dirty kvm", tests, NULL, NULL);
}
