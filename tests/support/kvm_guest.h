/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_TESTS_KVM_GUEST_H
#define TERN_TESTS_KVM_GUEST_H

/*
 * A guest in KVM that writes pages: some instructions of 32-bit code without paging, in a
 * slot of its own whose log is never on.  Failures end the test.
 */

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum {
	KVM_GUEST_VCPUS_MAX = 4,
	KVM_GUEST_CODE_SLOT = 31, /* the guest's own slot, from gpa 0 on */
};

#define KVM_GUEST_RAM 0x10000000u /* gpa from which on slots may be put */

struct kvm_guest;

struct kvm_guest_vcpu {
	struct kvm_guest *g;
	unsigned index;
	int fd;
	struct kvm_run *run;
	volatile uint32_t *mailbox; /* what the guest's code and the test tell each other */
	pthread_t thread;
	_Atomic uint64_t ring_full; /* exits */
};

struct kvm_guest {
	int kvm_fd, vm_fd;
	uint8_t *code;
	unsigned nr_vcpus;
	struct kvm_guest_vcpu v[KVM_GUEST_VCPUS_MAX];
	void (*on_ring_full)(void *opaque, unsigned vcpu); /* NULL: must not happen */
	void *opaque;
};

/* kvm_guest_available - is there /dev/kvm?  If not, the running test is skipped or fails. */
void kvm_guest_available(void);

/* kvm_guest_new_vm - a VM without vCPUs and slots. */
struct kvm_guest *kvm_guest_new_vm(void);

/* kvm_guest_add_vcpus - and the slot of the code. */
void kvm_guest_add_vcpus(struct kvm_guest *g, unsigned nr);

/* kvm_guest_slot - KVM_SET_USER_MEMORY_REGION with @flags.  0 or -errno. */
int kvm_guest_slot(struct kvm_guest *g, uint32_t slot, uint32_t flags, uint64_t gpa, uint64_t size,
		   void *hva);

void kvm_guest_delete(struct kvm_guest *g);

/* kvm_guest_write - vCPU @i writes @value to the first bytes of @nr pages from @gpa on. */
void kvm_guest_write(struct kvm_guest *g, unsigned i, uint32_t gpa, uint32_t nr, uint32_t value);

/*
 * kvm_guest_roam - all vCPUs begin to write all over @bytes from @gpa on, a power of two.
 *
 * Each on a thread of its own, in bursts within 2 MiB, half of them to a few pages where the
 * vCPUs meet, growing stamps to words that are the vCPU's own.
 */
void kvm_guest_roam(struct kvm_guest *g, uint32_t gpa, uint32_t bytes);

/* kvm_guest_halt - and stop; vCPUs do not run when it returns. */
void kvm_guest_halt(struct kvm_guest *g);

/* kvm_guest_writes - of all vCPUs since they began to roam. */
uint64_t kvm_guest_writes(const struct kvm_guest *g);

#endif
