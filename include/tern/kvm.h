/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_KVM_H
#define TERN_KVM_H

/*
 * Dirty tracking by KVM, for VMMs that use it.
 *
 * A VMM that describes its VM leaves the rest to the library: turning the logs of the
 * memory slots on and off, reading and clearing them (or harvesting the dirty rings), and
 * clearing pages just before they are read.
 *
 *	vm = ioctl(kvm, KVM_CREATE_VM, type);
 *	tern_kvm_enable_dirty_ring(vm, 4096, &err);	// or tern_kvm_enable_dirty_log(vm, &err)
 *	... vCPUs, memory slots, a session with its regions ...
 *	tern_session_set_kvm(s, &(struct tern_kvm_desc){ .vm_fd = vm, ... });
 *	tern_session_connect(s, uri);
 *
 * There are two providers.
 *
 * kvm-log	A bitmap per slot.  With KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 (Linux 5.2;
 *		tern_kvm_enable_dirty_log()) reading it leaves it alone, and it is cleared in
 *		pieces, each just before it is sent.  Without, it works too: KVM then clears
 *		and write-protects a slot whenever it is read, so the guest faults more.
 *		Where KVM has KVM_DIRTY_LOG_INITIALLY_SET (Linux 5.7) that is enabled with it:
 *		when tracking begins, slots are then write-protected in pieces, and no vCPU
 *		has to wait for all of it.
 * kvm-ring	A ring per vCPU (Linux 5.11, x86; 6.2 elsewhere), which the library harvests.
 *		Costs what was written and not what there is, knows which vCPU writes, and can
 *		slow down one that writes too much (TERN_PARAM_VCPU_DIRTY_LIMIT).  The VM must
 *		have been made with it: tern_kvm_enable_dirty_ring().  KVM does not report
 *		writes that it makes outside of a vCPU (interrupt controllers on arm64).
 *
 * TERN_DIRTY_AUTO takes the ring if the VM has it, else the log.
 *
 * What the VMM does
 *	- It enables a capability, if it wants one, before it makes vCPUs.
 *	- It gives the slots to KVM without KVM_MEM_LOG_DIRTY_PAGES, and neither changes them
 *	  nor reads their logs while a session is active.
 *	- What others than vCPUs write into guest RAM (the VMM's devices, DMA, vhost) KVM does
 *	  not see: the VMM says so with tern_session_mark_dirty().
 *	- With the ring, a vCPU thread that comes out of KVM_RUN with
 *	  KVM_EXIT_DIRTY_RING_FULL calls tern_session_ring_full() and goes on.
 */

#include <stddef.h>
#include <stdint.h>
#include <tern/error.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

struct tern_session;

/* Where a slot begins in its region is a multiple of so many bytes (64 pages). */
#define TERN_KVM_SLOT_ALIGN (64u * 4096u)

/*
 * A memory slot, as it was given to KVM_SET_USER_MEMORY_REGION: the library gives it again,
 * with the log on or off.  KVM takes a slot of another gpa for one that has moved, so what
 * stands here must be true.
 */
struct tern_kvm_slot {
	uint32_t slot;     /* its number, the address space in the upper 16 bits */
	uint32_t flags;    /* KVM_MEM_READONLY or 0 */
	uint32_t region;   /* id of the region that it shows … */
	uint32_t reserved; /* 0 */
	uint64_t offset;   /* … from here on, bytes; a multiple of TERN_KVM_SLOT_ALIGN */
	uint64_t size;     /* bytes, a multiple of TERN_PAGE_SIZE, not 0 */
	uint64_t gpa;      /* guest physical address; need not be the region's plus offset */
	uint64_t hva;      /* userspace_addr; need not be the region's plus offset */
};

/* Flags of struct tern_kvm_desc. */
enum {
	/*
	 * There are pages of regions that no slot shows: the guest cannot write them, and
	 * the VMM marks those that it writes.  Without it, such a page is an error, because
	 * a slot that was forgotten would be memory that is lost.
	 */
	TERN_KVM_GAPS = 1u << 0,
};

/* The VM; unused fields, reserved too, must be 0. */
struct tern_kvm_desc {
	int vm_fd;            /* of KVM_CREATE_VM */
	uint32_t flags;       /* TERN_KVM_* */
	const struct tern_kvm_slot *slots; /* all that show guest RAM; several may show a page */
	uint32_t nr_slots;
	uint32_t nr_vcpus;
	const int *vcpu_fds;  /* of KVM_CREATE_VCPU; needed for the ring, else may be NULL */
	uint32_t ring_entries; /* entries of each vCPU's ring; 0: ask the kernel */
	uint32_t reserved[7];
};

/*
 * tern_session_set_kvm - source: describe the VM.
 *
 * After all regions were added, before the session is started.  The description is copied;
 * the descriptors are not, and stay open until the session is deleted.  May be repeated; the
 * last one counts.
 *
 * Returns 0; -EINVAL (role, or something in the description), -EBUSY (started), -ENOMEM.
 * tern_session_error() has the sentence.
 */
int tern_session_set_kvm(struct tern_session *s, const struct tern_kvm_desc *desc);

/*
 * tern_session_mark_dirty - the VMM has written [offset, offset + len) of region @region.
 *
 * For what it writes through its own mapping.  Call it after the write, and before the
 * guest is told of it; at the latest before pause() returns.  An atomic operation for every
 * 64 pages; never blocks.  Any thread, at any time between starting and deleting the
 * session.  Providers other than KVM's see what this process writes by themselves, or leave it
 * to the VMM's callbacks: then this does nothing.  What another process or a device writes
 * they do not see at all.
 *
 * Returns 0, or -EINVAL if there is no such range.
 */
int tern_session_mark_dirty(struct tern_session *s, unsigned region, uint64_t offset, uint64_t len);

/*
 * tern_session_ring_full - vCPU @vcpu came out of KVM_RUN with KVM_EXIT_DIRTY_RING_FULL.
 *
 * @vcpu counts vcpu_fds of the description.  Waits until the ring has room, then the vCPU
 * may run again.  If it has written more than TERN_PARAM_VCPU_DIRTY_LIMIT allows, it is
 * made to wait: up to 50 ms, then the call returns although there may be no room, so that
 * the thread can see to its other duties; running the vCPU ends at once with the same
 * exit then, and the wait goes on.  While nothing is tracked it returns at once.
 *
 * Call it from the vCPU's own thread, with no lock held that pause() or the other vCPUs
 * need.  A session that is being deleted must not be called.
 *
 * Returns 0; -EINVAL if no such vCPU was described.
 */
int tern_session_ring_full(struct tern_session *s, unsigned vcpu);

/*
 * tern_kvm_enable_dirty_log - enable KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 of a VM, with
 * KVM_DIRTY_LOG_INITIALLY_SET if the kernel has it.
 *
 * At any time, but not while a session is active.  From then on KVM_GET_DIRTY_LOG clears
 * nothing on any slot of the VM, and all of a slot is set when its log is turned on, which a
 * VMM that reads logs by itself must know: that is why the library does not do it unasked.
 *
 * Returns 0; -ENOSYS (a kernel older than 5.2) or -errno, with the sentence in *@err unless
 * that is NULL.  Any thread.
 */
int tern_kvm_enable_dirty_log(int vm_fd, struct tern_error *err);

/*
 * tern_kvm_enable_dirty_ring - give each vCPU of a VM a dirty ring of @entries.
 *
 * Before the first vCPU is made.  @entries is a power of two from 256 to 65536, as far as
 * the kernel allows; 4096 is a good number.  A VM with rings has no dirty log.
 *
 * Returns 0; -ENOSYS (no dirty ring), -EINVAL (@entries), -EEXIST (there are vCPUs, or
 * rings, already) or -errno, with the sentence in *@err unless that is NULL.  Any thread.
 */
int tern_kvm_enable_dirty_ring(int vm_fd, uint32_t entries, struct tern_error *err);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif

#endif
