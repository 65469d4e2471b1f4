/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_SRC_KVM_RING_H
#define TERN_SRC_KVM_RING_H

/*
 * The dirty ring of one vCPU, as KVM maps it.
 *
 *	 RESET  RESET   0     0    DIRTY  DIRTY  DIRTY   0
 *	       |                  |                    |
 *	       KVM takes these    next                 KVM writes here
 *	       back at a reset
 *
 * KVM fills an entry and then makes it DIRTY.  Whoever harvests takes DIRTY entries in their
 * order and makes them RESET; KVM_RESET_DIRTY_RINGS write-protects their pages again and
 * makes the entries empty.  Where the next entry is KVM does not tell, and others may have
 * harvested before: it is looked for, as the first one of the only run of DIRTY entries.
 */

#include <stdbool.h>
#include <stdint.h>

struct kvm_dirty_gfn;
struct tern_error;

struct kvm_ring {
	struct kvm_dirty_gfn *v; /* mapped from the vCPU; KVM writes it too */
	uint32_t nr;
	uint32_t next; /* entry to harvest next */
	bool found;    /* next is known */
};

/* What an entry says: a page of a slot. */
struct kvm_ring_entry {
	uint32_t slot;
	uint64_t page;
};

/* kvm_ring_present - does the vCPU have one? */
bool kvm_ring_present(int vcpu_fd);

/*
 * kvm_ring_open - map the ring of vCPU @index, of @entries (0: ask the kernel).
 *
 * 0; -ENXIO (the VM was made without), -EINVAL (another number of entries), -errno, with *err.
 */
int kvm_ring_open(struct kvm_ring *r, int vcpu_fd, unsigned index, uint32_t entries,
		  struct tern_error *err);
void kvm_ring_close(struct kvm_ring *r);

/* kvm_ring_busy - is it at least half full?  False while it is not known where it begins. */
bool kvm_ring_busy(const struct kvm_ring *r);

/*
 * kvm_ring_take - harvest up to @max entries into @out; returns how many.
 *
 * One thread at a time.  KVM must be told by KVM_RESET_DIRTY_RINGS afterwards.
 */
uint32_t kvm_ring_take(struct kvm_ring *r, struct kvm_ring_entry *out, uint32_t max);

#endif
