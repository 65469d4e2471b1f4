/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_TESTS_KVM_RIG_H
#define TERN_TESTS_KVM_RIG_H

/*
 * A guest in KVM under one of KVM's dirty providers, and a replica of its RAM.  Failures end
 * the test.
 *
 *	region 0, 32 MiB	slot 3 shows its first half, slot 4 its second; the guest has
 *				them the other way round
 *	region 1, 1001 pages	slot 5, which ends in the middle of 64 pages
 */

#include <stdbool.h>
#include <stdint.h>
#include "dirty.h"
#include "error.h"
#include "kvm_guest.h"
#include "kvm_vm.h"
#include "populated.h"
#include "region.h"

enum {
	KVM_RIG_REGIONS = 2,
	KVM_RIG_SLOTS = 3,
	KVM_RIG_PAGES = 8192, /* of region 0 */
	KVM_RIG_HALF = KVM_RIG_PAGES / 2,
	KVM_RIG_MORE_PAGES = 1001, /* of region 1 */
};

/* How the VM is made. */
enum kvm_rig_how {
	KVM_RIG_PLAIN,  /* KVM_GET_DIRTY_LOG clears */
	KVM_RIG_MANUAL,
	KVM_RIG_INITIALLY_SET,
	KVM_RIG_RING,
};

struct kvm_rig_variant {
	const char *name;
	enum kvm_rig_how how;
	uint32_t ring_entries;
	unsigned nr_vcpus;
};

struct kvm_rig {
	const struct kvm_rig_variant *variant;
	struct kvm_guest *g;
	struct region_list list;
	struct populated p;
	struct kvm_vm *kvm;
	struct dirty d;
	struct tern_error err;
	struct tern_kvm_slot slots[KVM_RIG_SLOTS];
	int vcpu_fds[KVM_GUEST_VCPUS_MAX];
	struct tern_kvm_desc desc;
	_Atomic uint64_t limit;
	uint8_t *hva[KVM_RIG_REGIONS], *replica[KVM_RIG_REGIONS];
	uint64_t *bitmap[KVM_RIG_REGIONS];
};

/* kvm_rig_provider - which provider the variant is for. */
enum tern_dirty_provider kvm_rig_provider(const struct kvm_rig_variant *v);

/* kvm_rig_new_vm - all but vm and d: a test may change the description first. */
struct kvm_rig *kvm_rig_new_vm(const struct kvm_rig_variant *v);

/* kvm_rig_new - all of it. */
struct kvm_rig *kvm_rig_new(const struct kvm_rig_variant *v);
void kvm_rig_delete(struct kvm_rig *rig);

/* kvm_rig_start - start tracking; the bitmaps are what is populated now. */
void kvm_rig_start(struct kvm_rig *rig);

/* kvm_rig_sync - begin() and sync() into the bitmaps; how many bits are set in all. */
uint64_t kvm_rig_sync(struct kvm_rig *rig);

/* kvm_rig_forget - empty the bitmaps. */
void kvm_rig_forget(struct kvm_rig *rig);

/*
 * kvm_rig_copy_round - for each stripe: clear() if @clear, and copy its dirty pages into the
 * replica; the bitmaps are empty afterwards.
 */
void kvm_rig_copy_round(struct kvm_rig *rig, bool clear);

/* kvm_rig_write - vCPU @i writes @value to page @page of region @region. */
void kvm_rig_write(struct kvm_rig *rig, unsigned i, unsigned region, uint64_t page, uint32_t value);

/* kvm_rig_mark - what tern_session_mark_dirty() does, for one page. */
void kvm_rig_mark(struct kvm_rig *rig, unsigned region, uint64_t page);

/* kvm_rig_expect - the bitmaps hold page @page of region @region, and so many pages in all. */
void kvm_rig_expect(struct kvm_rig *rig, unsigned region, uint64_t page, uint64_t all);

/* kvm_rig_differing - pages of the replica that differ from the guest's RAM. */
uint64_t kvm_rig_differing(const struct kvm_rig *rig);

#endif
