/* SPDX-License-Identifier: BSD-2-Clause */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include "bitmap.h"
#include "kvm_rig.h"
#include "marks.h"

#define PAGE ((uint64_t)TERN_PAGE_SIZE)

enum { STRIPE_PAGES = 512 };

static const uint64_t region_pages[KVM_RIG_REGIONS] = { KVM_RIG_PAGES, KVM_RIG_MORE_PAGES };

enum tern_dirty_provider kvm_rig_provider(const struct kvm_rig_variant *v)
{
	return v->how == KVM_RIG_RING ? TERN_DIRTY_KVM_RING : TERN_DIRTY_KVM_LOG;
}

/* enable - what the variant wants of KVM. */
static void enable(struct kvm_rig *rig)
{
	const struct kvm_rig_variant *v = rig->variant;
	struct kvm_enable_cap cap = {
		.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
		.args = { KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE },
	};
	int r = 0;

	if (v->how == KVM_RIG_INITIALLY_SET)
		r = tern_kvm_enable_dirty_log(rig->g->vm_fd, &rig->err);
	else if (v->how == KVM_RIG_RING)
		r = tern_kvm_enable_dirty_ring(rig->g->vm_fd, v->ring_entries, &rig->err);
	else if (v->how == KVM_RIG_MANUAL)
		r = ioctl(rig->g->vm_fd, KVM_ENABLE_CAP, &cap);
	if (r)
		fail_msg("%s: %d: %s", v->name, r, rig->err.message);
}

/* on_ring_full - of the guest's vCPUs. */
static void on_ring_full(void *opaque, unsigned vcpu)
{
	struct kvm_rig *rig = opaque;

	kvm_gate_full(&rig->kvm->gate, vcpu);
}

/* add_region - map and add region @i. */
static void add_region(struct kvm_rig *rig, unsigned i)
{
	uint64_t size = region_pages[i] * PAGE;
	struct tern_region_desc desc = { .name = i ? "more" : "ram", .size = size, .fd = -1 };
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	void *replica = mmap(NULL, size, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	assert_ptr_not_equal(p, MAP_FAILED);
	assert_ptr_not_equal(replica, MAP_FAILED);
	madvise(p, size, MADV_NOHUGEPAGE);
	rig->hva[i] = p;
	rig->replica[i] = replica;
	rig->bitmap[i] = calloc(bitmap_words(region_pages[i]), sizeof(uint64_t));
	desc.hva = p;
	desc.gpa = KVM_GUEST_RAM + i * 4ull * KVM_RIG_HALF * PAGE;
	if (region_add(&rig->list, &desc, &rig->err) < 0)
		fail_msg("%s", rig->err.message);
}

/* describe - the slots, and the description of the VM. */
static void describe(struct kvm_rig *rig)
{
	uint64_t half = KVM_RIG_HALF * PAGE;

	rig->slots[0] = (struct tern_kvm_slot){
		.slot = 5,
		.region = 1,
		.size = KVM_RIG_MORE_PAGES * PAGE,
		.gpa = KVM_GUEST_RAM + 4 * half,
		.hva = (uintptr_t)rig->hva[1],
	};
	for (unsigned i = 0; i < 2; i++)
		rig->slots[1 + i] = (struct tern_kvm_slot){
			.slot = 3 + i,
			.offset = i * half,
			.size = half,
			.gpa = KVM_GUEST_RAM + (1 - i) * half,
			.hva = (uintptr_t)rig->hva[0] + i * half,
		};
	for (unsigned i = 0; i < rig->g->nr_vcpus; i++)
		rig->vcpu_fds[i] = rig->g->v[i].fd;
	rig->desc = (struct tern_kvm_desc){
		.vm_fd = rig->g->vm_fd,
		.slots = rig->slots,
		.nr_slots = KVM_RIG_SLOTS,
		.vcpu_fds = rig->vcpu_fds,
		.nr_vcpus = rig->g->nr_vcpus,
		.ring_entries = rig->variant->ring_entries,
	};
}

struct kvm_rig *kvm_rig_new_vm(const struct kvm_rig_variant *v)
{
	struct kvm_rig *rig = calloc(1, sizeof(*rig));

	assert_non_null(rig);
	kvm_guest_available();
	rig->variant = v;
	rig->p.pagemap_fd = -1;
	error_clear(&rig->err);
	rig->g = kvm_guest_new_vm();
	enable(rig);
	kvm_guest_add_vcpus(rig->g, v->nr_vcpus);
	rig->g->on_ring_full = v->how == KVM_RIG_RING ? on_ring_full : NULL;
	rig->g->opaque = rig;
	for (unsigned i = 0; i < KVM_RIG_REGIONS; i++)
		add_region(rig, i);
	if (populated_init(&rig->p, &rig->list, &rig->err))
		fail_msg("%s", rig->err.message);
	describe(rig);
	for (unsigned i = 0; i < KVM_RIG_SLOTS; i++)
		assert_int_equal(kvm_guest_slot(rig->g, rig->slots[i].slot, 0, rig->slots[i].gpa,
						rig->slots[i].size,
						(void *)(uintptr_t)rig->slots[i].hva),
				 0);
	return rig;
}

struct kvm_rig *kvm_rig_new(const struct kvm_rig_variant *v)
{
	struct kvm_rig *rig = kvm_rig_new_vm(v);

	if (kvm_vm_new(&rig->desc, &rig->list, &rig->limit, &rig->kvm, &rig->err) ||
	    dirty_init(&rig->d, kvm_rig_provider(v), NULL, NULL, rig->kvm, &rig->list, &rig->p,
		       &rig->err))
		fail_msg("%s: %s", v->name, rig->err.message);
	assert_int_equal(rig->d.kind, kvm_rig_provider(v));
	return rig;
}

void kvm_rig_delete(struct kvm_rig *rig)
{
	dirty_fini(&rig->d);
	kvm_vm_delete(&rig->kvm);
	populated_fini(&rig->p);
	kvm_guest_delete(rig->g);
	region_list_fini(&rig->list);
	for (unsigned i = 0; i < KVM_RIG_REGIONS; i++) {
		munmap(rig->hva[i], region_pages[i] * PAGE);
		munmap(rig->replica[i], region_pages[i] * PAGE);
		free(rig->bitmap[i]);
	}
	free(rig);
}

/* fail_why - an operation of the provider gave @code. */
static void fail_why(const struct kvm_rig *rig, const char *what, int code)
{
	if (code)
		fail_msg("%s: %s: %d: %s", rig->variant->name, what, code,
			 rig->d.why ? rig->d.why->message : "");
}

void kvm_rig_start(struct kvm_rig *rig)
{
	fail_why(rig, "start", rig->d.ops.start(rig->d.opaque));
	kvm_rig_forget(rig);
	for (unsigned i = 0; i < KVM_RIG_REGIONS; i++)
		assert_int_equal(populated_scan(&rig->p, &rig->list.v[i], 0, region_pages[i],
						rig->bitmap[i], NULL),
				 0);
}

uint64_t kvm_rig_sync(struct kvm_rig *rig)
{
	uint64_t all = 0;

	fail_why(rig, "begin", rig->d.ops.begin(rig->d.opaque));
	for (unsigned i = 0; i < KVM_RIG_REGIONS; i++) {
		fail_why(rig, "sync",
			 rig->d.ops.sync(rig->d.opaque, i, 0, region_pages[i], rig->bitmap[i]));
		all += bitmap_count(rig->bitmap[i], region_pages[i]);
	}
	return all;
}

void kvm_rig_forget(struct kvm_rig *rig)
{
	for (unsigned i = 0; i < KVM_RIG_REGIONS; i++)
		memset(rig->bitmap[i], 0, bitmap_words(region_pages[i]) * sizeof(uint64_t));
}

/* copy_stripe - copy the dirty pages among @nr from @first on. */
static void copy_stripe(struct kvm_rig *rig, unsigned i, uint64_t first, uint64_t nr)
{
	const uint64_t *map = rig->bitmap[i] + first / 64;

	bitmap_for_each_run (map, nr, begin, end)
		memcpy(rig->replica[i] + (first + begin) * PAGE,
		       rig->hva[i] + (first + begin) * PAGE, (end - begin) * PAGE);
}

void kvm_rig_copy_round(struct kvm_rig *rig, bool clear)
{
	for (unsigned i = 0; i < KVM_RIG_REGIONS; i++)
		for (uint64_t first = 0; first < region_pages[i]; first += STRIPE_PAGES) {
			uint64_t nr = region_pages[i] - first;

			nr = nr < STRIPE_PAGES ? nr : STRIPE_PAGES;
#ifdef TEST_COPY_BEFORE_CLEAR /* breaks invariant 2; the stress tests must fail */
			copy_stripe(rig, i, first, nr);
#endif
			if (clear)
				fail_why(rig, "clear",
					 rig->d.ops.clear(rig->d.opaque, i, first, nr,
							  rig->bitmap[i] + first / 64));
#ifndef TEST_COPY_BEFORE_CLEAR
			copy_stripe(rig, i, first, nr);
#endif
		}
	kvm_rig_forget(rig);
}

void kvm_rig_write(struct kvm_rig *rig, unsigned i, unsigned region, uint64_t page, uint32_t value)
{
	for (unsigned k = 0; k < KVM_RIG_SLOTS; k++) {
		const struct tern_kvm_slot *s = &rig->slots[k];

		if (s->region != region || page * PAGE < s->offset ||
		    page * PAGE - s->offset >= s->size)
			continue;
		kvm_guest_write(rig->g, i, (uint32_t)(s->gpa + page * PAGE - s->offset), 1, value);
		assert_int_equal(*(uint32_t *)(rig->hva[region] + page * PAGE), value);
		return;
	}
	fail_msg("no slot shows page %lu of region %u", (unsigned long)page, region);
}

void kvm_rig_mark(struct kvm_rig *rig, unsigned region, uint64_t page)
{
	marks_set(atomic_load(&rig->kvm->marks), region, page, 1);
}

void kvm_rig_expect(struct kvm_rig *rig, unsigned region, uint64_t page, uint64_t all)
{
	uint64_t n = 0;

	assert_true(bitmap_test(rig->bitmap[region], page));
	for (unsigned i = 0; i < KVM_RIG_REGIONS; i++)
		n += bitmap_count(rig->bitmap[i], region_pages[i]);
	assert_int_equal(n, all);
}

uint64_t kvm_rig_differing(const struct kvm_rig *rig)
{
	uint64_t bad = 0;

	for (unsigned i = 0; i < KVM_RIG_REGIONS; i++)
		for (uint64_t k = 0; k < region_pages[i]; k++)
			bad += memcmp(rig->hva[i] + k * PAGE, rig->replica[i] + k * PAGE, PAGE) !=
			       0;
	return bad;
}
