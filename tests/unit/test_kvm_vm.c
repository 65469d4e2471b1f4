/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Unit tests of what stands around KVM's dirty providers: descriptions of VMs, enabling the
 * capabilities, the choice of a provider, and rings that say what they must not.  For those
 * files take the place of vCPUs: a ring is memory that can be mapped at a certain offset.
 */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include "bitmap.h"
#include "kvm_ring.h"
#include "kvm_rig.h"
#include "marks.h"

static const struct kvm_rig_variant plain = { "plain", KVM_RIG_PLAIN, 0, 1 };
static const struct kvm_rig_variant ring = { "ring", KVM_RIG_RING, 4096, 1 };

/* expect_bad - the rig's description is refused, with @words in the sentence. */
static void expect_bad(struct kvm_rig *rig, const char *words)
{
	struct kvm_vm *vm = NULL;

	error_clear(&rig->err);
	assert_int_equal(kvm_vm_new(&rig->desc, &rig->list, &rig->limit, &vm, &rig->err), -EINVAL);
	assert_null(vm);
	assert_int_equal(rig->err.code, -EINVAL);
	if (!strstr(rig->err.message, words))
		fail_msg("no \"%s\" in: %s", words, rig->err.message);
	rig->err.code = 0;
}

/* expect_bad_slot - the same, with one field of slot 3 changed meanwhile. */
#define expect_bad_slot(rig, field, value, words)             \
	do {                                                  \
		struct tern_kvm_slot was = (rig)->slots[1];   \
		(rig)->slots[1].field = (value);              \
		expect_bad(rig, "slot 3 of address space 0"); \
		expect_bad(rig, words);                       \
		(rig)->slots[1] = was;                        \
	} while (0)

static void test_bad_slots_are_refused(void **state)
{
	struct kvm_rig *rig = kvm_rig_new_vm(&plain);
	uint64_t size = rig->slots[1].size;

	expect_bad_slot(rig, flags, KVM_MEM_LOG_DIRTY_PAGES, "KVM_MEM_LOG_DIRTY_PAGES");
	expect_bad_slot(rig, flags, 1u << 5, "flags other than KVM_MEM_READONLY");
	expect_bad_slot(rig, reserved, 1, "reserved");
	expect_bad_slot(rig, region, 2, "no region of that id");
	expect_bad_slot(rig, size, 0, "size is 0");
	expect_bad_slot(rig, size, size + 1, "multiple of 4096");
	expect_bad_slot(rig, size, 2 * size + 4096, "not within the region");
	expect_bad_slot(rig, size, -4096ull, "gpa");
	expect_bad_slot(rig, offset, 32 * 4096, "64 pages");
	expect_bad_slot(rig, offset, 2 * size, "not within the region");
	expect_bad_slot(rig, offset, -(uint64_t)TERN_KVM_SLOT_ALIGN, "not within the region");
	expect_bad_slot(rig, gpa, 5, "gpa");
	expect_bad_slot(rig, gpa, -4096ull, "beyond 2^64");
	expect_bad_slot(rig, hva, 0, "hva is 0");
	expect_bad_slot(rig, hva, 4097, "hva");
	rig->slots[0].slot = 3;
	expect_bad(rig, "described twice");
	kvm_rig_delete(rig);
}

static void test_bad_descriptions_are_refused(void **state)
{
	struct kvm_rig *rig = kvm_rig_new_vm(&plain);
	struct tern_kvm_desc good = rig->desc;

#define CASE(field, value, words)          \
	do {                               \
		rig->desc.field = (value); \
		expect_bad(rig, words);    \
		rig->desc = good;          \
	} while (0)
	CASE(reserved[6], 1, "reserved");
	CASE(flags, 2, "no such flag");
	CASE(vm_fd, -1, "vm_fd");
	CASE(nr_slots, 0, "no memory slots");
	CASE(slots, NULL, "no memory slots");
	CASE(vcpu_fds, NULL, "vCPUs without descriptors");
	CASE(ring_entries, 1000, "power of two");
#undef CASE
	kvm_rig_delete(rig);
}

static void test_gaps_must_be_meant(void **state)
{
	struct kvm_rig *rig = kvm_rig_new_vm(&plain);

	rig->desc.nr_slots = 2; /* 5 and 3: the second half of region 0 is not there */
	expect_bad(rig, "no slot shows region ram at offset 0x1000000");
	rig->slots[1].offset = TERN_KVM_SLOT_ALIGN;
	expect_bad(rig, "offset 0");
	rig->desc.flags = TERN_KVM_GAPS;
	assert_int_equal(kvm_vm_new(&rig->desc, &rig->list, &rig->limit, &rig->kvm, &rig->err), 0);
	kvm_rig_delete(rig);
}

/* Another address space shows the same memory, as for system management mode. */
static void test_slots_may_overlap_in_a_region(void **state)
{
	struct kvm_rig *rig = kvm_rig_new_vm(&plain);
	struct tern_kvm_slot slots[4];

	memcpy(slots, rig->slots, sizeof(rig->slots));
	slots[3] = slots[1];
	slots[3].slot |= 1 << 16;
	rig->desc.slots = slots;
	rig->desc.nr_slots = 4;
	assert_int_equal(kvm_vm_new(&rig->desc, &rig->list, &rig->limit, &rig->kvm, &rig->err), 0);
	assert_int_equal(kvm_vm_find(rig->kvm, 3)->slot, 3);
	assert_int_equal(kvm_vm_find(rig->kvm, 1 << 16 | 3)->slot, 1 << 16 | 3);
	assert_null(kvm_vm_find(rig->kvm, 1 << 16 | 4));
	kvm_rig_delete(rig);
}

/* expect_refused - a provider is not made of the rig's description, and says @words. */
static void expect_refused(struct kvm_rig *rig, enum tern_dirty_provider kind, int code,
			   const char *words)
{
	error_clear(&rig->err);
	kvm_vm_delete(&rig->kvm);
	assert_int_equal(kvm_vm_new(&rig->desc, &rig->list, &rig->limit, &rig->kvm, &rig->err), 0);
	assert_int_equal(
		dirty_init(&rig->d, kind, NULL, NULL, rig->kvm, &rig->list, &rig->p, &rig->err),
		code);
	if (!strstr(rig->err.message, words))
		fail_msg("no \"%s\" in: %s", words, rig->err.message);
	rig->err.code = 0;
}

static void test_providers_say_what_is_missing(void **state)
{
	struct kvm_rig *rig = kvm_rig_new_vm(&plain);

	error_clear(&rig->err);
	assert_int_equal(dirty_init(&rig->d, TERN_DIRTY_KVM_LOG, NULL, NULL, NULL, &rig->list,
				    &rig->p, &rig->err),
			 -EINVAL);
	assert_non_null(strstr(rig->err.message, "tern_session_set_kvm()"));
	expect_refused(rig, TERN_DIRTY_KVM_RING, -ENXIO, "tern_kvm_enable_dirty_ring()");
	rig->desc.nr_vcpus = 0;
	expect_refused(rig, TERN_DIRTY_KVM_RING, -EINVAL, "no vCPU was described");
	rig->desc.vm_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	expect_refused(rig, TERN_DIRTY_KVM_LOG, -ENOTTY, "KVM_CREATE_VM");
	close(rig->desc.vm_fd);
	rig->desc.vm_fd = rig->g->vm_fd;
	assert_int_equal(kvm_guest_slot(rig->g, 3, KVM_MEM_LOG_DIRTY_PAGES, rig->slots[1].gpa,
					rig->slots[1].size, rig->hva[0]),
			 0);
	expect_refused(rig, TERN_DIRTY_KVM_LOG, -EBUSY, "slot 3 of address space 0 is on already");
	kvm_rig_delete(rig);
}

static void test_providers_of_a_vm_with_rings(void **state)
{
	struct kvm_rig *rig = kvm_rig_new_vm(&ring);

	expect_refused(rig, TERN_DIRTY_KVM_LOG, -ENXIO, "use kvm-ring");
	rig->desc.ring_entries = 8192;
	expect_refused(rig, TERN_DIRTY_KVM_RING, -EINVAL, "4096 entries, and not the 8192");
	rig->desc.ring_entries = 2048;
	expect_refused(rig, TERN_DIRTY_KVM_RING, -EINVAL, "4096 entries, and not the 2048");
	rig->desc.ring_entries = 0;
	kvm_vm_delete(&rig->kvm);
	assert_int_equal(kvm_vm_new(&rig->desc, &rig->list, &rig->limit, &rig->kvm, &rig->err), 0);
	assert_int_equal(dirty_init(&rig->d, TERN_DIRTY_AUTO, NULL, NULL, rig->kvm, &rig->list,
				    &rig->p, &rig->err),
			 0);
	assert_int_equal(rig->d.kind, TERN_DIRTY_KVM_RING);
	kvm_rig_delete(rig);
}

static void test_auto_takes_the_log_where_there_is_no_ring(void **state)
{
	struct kvm_rig *rig = kvm_rig_new_vm(&plain);

	assert_int_equal(kvm_vm_new(&rig->desc, &rig->list, &rig->limit, &rig->kvm, &rig->err), 0);
	assert_int_equal(dirty_init(&rig->d, TERN_DIRTY_AUTO, NULL, NULL, rig->kvm, &rig->list,
				    &rig->p, &rig->err),
			 0);
	assert_int_equal(rig->d.kind, TERN_DIRTY_KVM_LOG);
	kvm_rig_delete(rig);
}

/* A slot that KVM does not have so: the others are as they were. */
static void test_a_slot_that_is_not_there(void **state)
{
	struct kvm_rig *rig = kvm_rig_new_vm(&plain);
	struct kvm_dirty_log log = { .slot = 3 };

	rig->slots[0].size -= 4096;
	rig->desc.flags = TERN_KVM_GAPS;
	assert_int_equal(kvm_vm_new(&rig->desc, &rig->list, &rig->limit, &rig->kvm, &rig->err), 0);
	assert_int_equal(dirty_init(&rig->d, TERN_DIRTY_KVM_LOG, NULL, NULL, rig->kvm, &rig->list,
				    &rig->p, &rig->err),
			 0);
	int r = rig->d.ops.start(rig->d.opaque);

	assert_true(r < 0);
	dirty_failed(&rig->d, r, "start dirty tracking", &rig->err);
	assert_non_null(strstr(rig->err.message, "slot 5 of address space 0"));
	assert_non_null(strstr(rig->err.message, "just as it was given to KVM"));
	assert_int_equal(ioctl(rig->g->vm_fd, KVM_GET_DIRTY_LOG, &log), -1);
	assert_int_equal(errno, ENOENT);
	kvm_rig_delete(rig);
}

/* expect_ring_refused - tern_kvm_enable_dirty_ring() gives @code and says @words. */
static void expect_ring_refused(int vm_fd, uint32_t entries, int code, const char *words)
{
	struct tern_error err;

	assert_int_equal(tern_kvm_enable_dirty_ring(vm_fd, entries, &err), code);
	assert_int_equal(err.code, code);
	if (!strstr(err.message, words))
		fail_msg("no \"%s\" in: %s", words, err.message);
	assert_int_equal(tern_kvm_enable_dirty_ring(vm_fd, entries, NULL), code);
}

static void test_enabling(void **state)
{
	struct kvm_guest *g;
	struct tern_error err;
	int fd = open("/dev/null", O_RDWR | O_CLOEXEC);

	kvm_guest_available();
	g = kvm_guest_new_vm();
	expect_ring_refused(fd, 4096, -EBADF, "not a VM");
	expect_ring_refused(g->vm_fd, 0, -EINVAL, "power of two");
	expect_ring_refused(g->vm_fd, 4095, -EINVAL, "power of two");
	expect_ring_refused(g->vm_fd, 128, -EINVAL, "from 256");
	expect_ring_refused(g->vm_fd, 1u << 17, -EINVAL, "to 65536");
	assert_int_equal(tern_kvm_enable_dirty_log(fd, &err), -EBADF);
	assert_non_null(strstr(err.message, "not a VM"));
	assert_int_equal(tern_kvm_enable_dirty_log(g->vm_fd, &err), 0);
	assert_int_equal(err.code, 0);
	assert_int_equal(tern_kvm_enable_dirty_ring(g->vm_fd, 4096, &err), 0);
	expect_ring_refused(g->vm_fd, 4096, -EEXIST, "vCPUs or rings already");
	kvm_guest_delete(g);
	close(fd);
}

/* A file for a vCPU, with a ring of @entries. */
struct fake {
	int fd;
	struct kvm_dirty_gfn *v;
	uint32_t nr;
};

static void fake_init(struct fake *f, uint32_t entries)
{
	off_t at = (off_t)KVM_DIRTY_LOG_PAGE_OFFSET * 4096;
	size_t size = entries * sizeof(*f->v);

	f->nr = entries;
	f->fd = memfd_create("ring", MFD_CLOEXEC);
	assert_true(f->fd >= 0);
	assert_int_equal(ftruncate(f->fd, at + (off_t)size), 0);
	f->v = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, f->fd, at);
	assert_ptr_not_equal(f->v, MAP_FAILED);
}

static void fake_fini(struct fake *f)
{
	munmap(f->v, f->nr * sizeof(*f->v));
	close(f->fd);
}

/* fake_push - as KVM does it, at entry @i. */
static void fake_push(struct fake *f, uint32_t i, uint32_t slot, uint64_t page)
{
	f->v[i % f->nr].slot = slot;
	f->v[i % f->nr].offset = page;
	__atomic_store_n(&f->v[i % f->nr].flags, KVM_DIRTY_GFN_F_DIRTY, __ATOMIC_RELEASE);
}

/* fake_reset - as KVM does it. */
static void fake_reset(struct fake *f)
{
	for (uint32_t i = 0; i < f->nr; i++)
		if (f->v[i].flags & KVM_DIRTY_GFN_F_RESET)
			f->v[i].flags = 0;
}

static void test_rings_have_the_size_that_is_found_out(void **state)
{
	for (uint32_t entries = 256; entries <= 65536; entries *= 2) {
		struct tern_error err;
		struct kvm_ring r;
		struct fake f;

		error_clear(&err);
		fake_init(&f, entries);
		assert_true(kvm_ring_present(f.fd));
		assert_int_equal(kvm_ring_open(&r, f.fd, 7, 0, &err), 0);
		assert_int_equal(r.nr, entries);
		kvm_ring_close(&r);
		assert_int_equal(kvm_ring_open(&r, f.fd, 7, 128, &err), -EINVAL);
		assert_non_null(strstr(err.message, "vCPU 7"));
		fake_fini(&f);
	}
	assert_false(kvm_ring_present(-1));
}

/* Wherever the entries begin, they are found and taken in order. */
static void test_a_ring_is_harvested_from_where_it_begins(void **state)
{
	enum { NR = 256 };
	static struct kvm_ring_entry out[NR];

	for (uint32_t start = 0; start < NR; start++) {
		struct tern_error err;
		struct kvm_ring r;
		struct fake f;

		error_clear(&err);
		fake_init(&f, NR);
		assert_int_equal(kvm_ring_open(&r, f.fd, 0, 0, &err), 0);
		assert_int_equal(kvm_ring_take(&r, out, NR), 0);
		for (uint32_t i = 0; i < 100; i++)
			fake_push(&f, start + i, 1, i);
		assert_false(kvm_ring_busy(&r));
		assert_int_equal(kvm_ring_take(&r, out, 40), 40);
		assert_int_equal(kvm_ring_take(&r, out + 40, NR), 60);
		for (uint32_t i = 0; i < 100; i++)
			assert_int_equal(out[i].page, i);
		fake_reset(&f);
		for (uint32_t i = 0; i < 200; i++)
			fake_push(&f, start + 100 + i, 1, i);
		assert_true(kvm_ring_busy(&r));
		assert_int_equal(kvm_ring_take(&r, out, NR), 200);
		assert_int_equal(out[0].page, 0);
		assert_int_equal(out[199].page, 199);
		kvm_ring_close(&r);
		fake_fini(&f);
	}
}

static void test_a_ring_full_to_the_brim_is_harvested(void **state)
{
	static struct kvm_ring_entry out[256];
	struct tern_error err;
	struct kvm_ring r;
	struct fake f;

	error_clear(&err);
	fake_init(&f, 256);
	assert_int_equal(kvm_ring_open(&r, f.fd, 0, 0, &err), 0);
	for (uint32_t i = 0; i < 256; i++)
		fake_push(&f, i, 1, i);
	assert_int_equal(kvm_ring_take(&r, out, 256), 256);
	assert_int_equal(kvm_ring_take(&r, out, 256), 0);
	kvm_ring_close(&r);
	fake_fini(&f);
}

/* fake_rig - a rig whose only vCPU is a file with a ring; it tracks. */
static struct kvm_rig *fake_rig(struct fake *f)
{
	struct kvm_rig *rig = kvm_rig_new_vm(&ring);

	fake_init(f, 4096);
	rig->vcpu_fds[0] = f->fd;
	assert_int_equal(kvm_vm_new(&rig->desc, &rig->list, &rig->limit, &rig->kvm, &rig->err), 0);
	assert_int_equal(dirty_init(&rig->d, TERN_DIRTY_KVM_RING, NULL, NULL, rig->kvm, &rig->list,
				    &rig->p, &rig->err),
			 0);
	kvm_rig_start(rig);
	return rig;
}

/* expect_bad_entry - begin() finds the entry bad and says where; good ones count still. */
static void expect_bad_entry(uint32_t slot, uint64_t page, const char *words)
{
	struct fake f;
	struct kvm_rig *rig = fake_rig(&f);
	uint64_t map[KVM_RIG_MORE_PAGES / 64 + 1] = { 0 };

	fake_push(&f, 10, 5, 1000);
	fake_push(&f, 11, slot, page);
	fake_push(&f, 12, 5, 999);
	assert_int_equal(rig->d.ops.begin(rig->d.opaque), -ERANGE);
	dirty_failed(&rig->d, -ERANGE, "read the dirty log", &rig->err);
	if (!strstr(rig->err.message, words))
		fail_msg("no \"%s\" in: %s", words, rig->err.message);
	assert_int_equal(f.v[11].flags, KVM_DIRTY_GFN_F_RESET);
	assert_int_equal(rig->d.ops.sync(rig->d.opaque, 1, 0, KVM_RIG_MORE_PAGES, map), 0);
	assert_int_equal(bitmap_count(map, KVM_RIG_MORE_PAGES), 2);
	assert_true(bitmap_test(map, 999) && bitmap_test(map, 1000));
	/* It stays so: what that entry meant is not known. */
	assert_int_equal(rig->d.ops.begin(rig->d.opaque), -ERANGE);
	rig->d.ops.stop(rig->d.opaque);
	kvm_rig_delete(rig);
	fake_fini(&f);
}

static void test_bad_entries_are_errors(void **state)
{
	expect_bad_entry(5, KVM_RIG_MORE_PAGES, "vCPU 0 names page 0x3e9 of slot 5");
	expect_bad_entry(5, UINT64_MAX, "page 0xffffffffffffffff of slot 5");
	expect_bad_entry(4, KVM_RIG_HALF, "page 0x1000 of slot 4");
	expect_bad_entry(6, 0, "slot 6 of address space 0");
	expect_bad_entry(1 << 16 | 5, 0, "slot 5 of address space 1");
	expect_bad_entry(UINT32_MAX, 0, "slot 65535 of address space 65535");
}

/* The pages of entries land where their slots show their regions. */
static void test_entries_are_of_the_regions_pages(void **state)
{
	struct fake f;
	struct kvm_rig *rig = fake_rig(&f);

	fake_push(&f, 4094, 3, 0);
	fake_push(&f, 4095, 3, KVM_RIG_HALF - 1);
	fake_push(&f, 4096, 4, 0);
	fake_push(&f, 4097, 4, 5);
	fake_push(&f, 4098, 4, 5);
	assert_int_equal(kvm_rig_sync(rig), 4);
	kvm_rig_expect(rig, 0, 0, 4);
	kvm_rig_expect(rig, 0, KVM_RIG_HALF - 1, 4);
	kvm_rig_expect(rig, 0, KVM_RIG_HALF, 4);
	kvm_rig_expect(rig, 0, KVM_RIG_HALF + 5, 4);
	rig->d.ops.stop(rig->d.opaque);
	kvm_rig_delete(rig);
	fake_fini(&f);
}

static void test_marks_set_ranges(void **state)
{
	struct region r = { .nr_pages = 200 };
	struct region_list list = { .v = &r, .nr = 1, .cap = 1 };
	struct marks *m = marks_new(&list);
	uint64_t map[4] = { 0 }, take[4] = { 0, ~0ull, 0, 0 };

	assert_non_null(m);
	marks_set(m, 0, 60, 140);
	marks_get(m, 0, 0, 200, map);
	assert_int_equal(bitmap_count(map, 256), 140);
	assert_int_equal(bitmap_next_set(map, 200, 0), 60);
	marks_take(m, 0, 0, 200, take);
	memset(map, 0, sizeof(map));
	marks_get(m, 0, 0, 190, map);
	assert_int_equal(map[0], 0xfull << 60);
	assert_int_equal(map[1], 0);
	assert_int_equal(map[2], (1ull << 62) - 1);
	marks_delete(&m);
	assert_null(m);
}

/* Nobody tracks: vCPUs are not held up. */
static void test_a_closed_gate_holds_nobody(void **state)
{
	_Atomic uint64_t limit = 1;
	struct tern_vcpu_stats st;
	struct kvm_gate g;

	assert_int_equal(kvm_gate_init(&g, 2, &limit), 0);
	kvm_gate_full(&g, 1);
	kvm_gate_track(&g, true);
	kvm_gate_track(&g, false);
	kvm_gate_full(&g, 1);
	kvm_gate_stats(&g, 1, &st);
	assert_int_equal(st.ring_full, 2);
	kvm_gate_fini(&g);
}

/* Who owes is held for 50 ms at most, and not at all when the guest is about to be paused. */
static void test_a_debt_is_waited_for(void **state)
{
	_Atomic uint64_t limit = 1 << 20;
	struct tern_vcpu_stats st;
	struct kvm_gate g;

	assert_int_equal(kvm_gate_init(&g, 2, &limit), 0);
	kvm_gate_track(&g, true);
	kvm_gate_harvested(&g, 0, 256); /* a second's worth */
	assert_true(kvm_gate_owes(&g, 0));
	assert_false(kvm_gate_owes(&g, 1));
	uint64_t begin = now_ns();

	kvm_gate_full(&g, 0);
	assert_true(now_ns() - begin >= KVM_GATE_SLEEP_NS);
	kvm_gate_stats(&g, 0, &st);
	assert_true(st.throttled_ns >= KVM_GATE_SLEEP_NS);
	assert_true(kvm_gate_owes(&g, 0));
	kvm_gate_pausing(&g);
	assert_false(kvm_gate_owes(&g, 0));
	kvm_gate_track(&g, true);
	kvm_gate_harvested(&g, 0, 256);
	atomic_store(&limit, 0);
	assert_false(kvm_gate_owes(&g, 0));
	kvm_gate_fini(&g);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_bad_slots_are_refused),
		cmocka_unit_test(test_bad_descriptions_are_refused),
		cmocka_unit_test(test_gaps_must_be_meant),
		cmocka_unit_test(test_slots_may_overlap_in_a_region),
		cmocka_unit_test(test_providers_say_what_is_missing),
		cmocka_unit_test(test_providers_of_a_vm_with_rings),
		cmocka_unit_test(test_auto_takes_the_log_where_there_is_no_ring),
		cmocka_unit_test(test_a_slot_that_is_not_there),
		cmocka_unit_test(test_enabling),
		cmocka_unit_test(test_rings_have_the_size_that_is_found_out),
		cmocka_unit_test(test_a_ring_is_harvested_from_where_it_begins),
		cmocka_unit_test(test_a_ring_full_to_the_brim_is_harvested),
		cmocka_unit_test(test_bad_entries_are_errors),
		cmocka_unit_test(test_entries_are_of_the_regions_pages),
		cmocka_unit_test(test_marks_set_ranges),
		cmocka_unit_test(test_a_closed_gate_holds_nobody),
		cmocka_unit_test(test_a_debt_is_waited_for),
	};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests_name("kvm vm", tests, NULL, NULL);
}
