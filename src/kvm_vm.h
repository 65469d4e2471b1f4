/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_SRC_KVM_VM_H
#define TERN_SRC_KVM_VM_H

/*
 * A VM as the VMM described it, checked, with what lives as long as the session does: the
 * marks of its dirty pages and the gate of its vCPUs.  Both may be used by any thread while
 * the provider comes and goes.
 */

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <tern/kvm.h>

#include "kvm_gate.h"

struct marks;
struct region_list;
struct tern_error;

struct kvm_vm {
	int vm_fd;
	uint32_t flags;
	struct tern_kvm_slot *slots; /* by number */
	unsigned nr_slots;
	int *vcpu_fds;
	unsigned nr_vcpus;
	uint32_t ring_entries; /* 0: ask the kernel */
	struct kvm_gate gate;
	_Atomic(struct marks *) marks; /* made by the provider's constructor; NULL before */
};

/*
 * kvm_vm_new - check and copy *desc.
 *
 * @limit: bytes/s that a vCPU may dirty, read whenever it matters; must outlive the VM.
 * 0; -EINVAL or -ENOMEM with *err.
 */
int kvm_vm_new(const struct tern_kvm_desc *desc, const struct region_list *regions,
	       const _Atomic uint64_t *limit, struct kvm_vm **out, struct tern_error *err);

/* kvm_vm_delete - nobody uses it any more.  Tolerates NULL. */
void kvm_vm_delete(struct kvm_vm **vm);

/*
 * kvm_vm_ready - a provider is about to use it: check that @regions, which do not grow any
 * more, are covered, and make the marks.  0, -EINVAL or -ENOMEM with *err.
 */
int kvm_vm_ready(struct kvm_vm *vm, const struct region_list *regions, struct tern_error *err);

/* kvm_vm_has_ring - does the first vCPU have a dirty ring? */
bool kvm_vm_has_ring(const struct kvm_vm *vm);

/* kvm_vm_log_on - turn on the logs of all slots, or of none.  0 or -errno with *err. */
int kvm_vm_log_on(const struct kvm_vm *vm, struct tern_error *err);

/* kvm_vm_log_off - turn them off again; what cannot be turned off stays on. */
void kvm_vm_log_off(const struct kvm_vm *vm);

/* kvm_vm_find - the slot with that number, or NULL. */
const struct tern_kvm_slot *kvm_vm_find(const struct kvm_vm *vm, uint32_t slot);

#endif
