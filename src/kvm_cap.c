/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Enabling KVM's ways of dirty tracking on a VM: for the VMM, before a session is there.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <tern/kvm.h>

#include "error.h"

#ifndef KVM_CAP_DIRTY_LOG_RING_ACQ_REL
#define KVM_CAP_DIRTY_LOG_RING_ACQ_REL 223
#endif

enum {
	RING_ENTRIES_MIN = 256, /* a page of them */
	RING_ENTRIES_MAX = 65536,
};

/* cap_check - what KVM_CHECK_EXTENSION says of the VM; 0 if it has no such thing. */
static int cap_check(int vm_fd, uint32_t cap)
{
	int r = ioctl(vm_fd, KVM_CHECK_EXTENSION, (unsigned long)cap);

	return r > 0 ? r : 0;
}

/* cap_enable - 0 or -errno. */
static int cap_enable(int vm_fd, uint32_t cap, uint64_t arg)
{
	struct kvm_enable_cap c = { .cap = cap, .args = { arg } };

	return ioctl(vm_fd, KVM_ENABLE_CAP, &c) ? -errno : 0;
}

/* cap_is_vm - is it a VM at all?  0 or -EBADF with *err. */
static int cap_is_vm(int vm_fd, const char *what, struct tern_error *err)
{
	/* Any number is a right question to a VM; other files do not know the question. */
	if (ioctl(vm_fd, KVM_CHECK_EXTENSION, (unsigned long)KVM_CAP_USER_MEMORY) > 0)
		return 0;
	return error_session(err, -EBADF,
			     "cannot enable %s: descriptor %d is not a VM; give the one of "
			     "KVM_CREATE_VM",
			     what, vm_fd);
}

int tern_kvm_enable_dirty_log(int vm_fd, struct tern_error *err)
{
	static const char what[] = "KVM's manual clearing of dirty logs";
	int r;

	if (err)
		error_clear(err);
	r = cap_is_vm(vm_fd, what, err);
	if (r)
		return r;
	int offered = cap_check(vm_fd, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2);

	if (!(offered & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE))
		return error_session(err, -ENOSYS,
				     "cannot enable %s: this kernel has no "
				     "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2; use Linux 5.2 or newer, "
				     "or do without: kvm-log works, at the guest's cost",
				     what);
	r = cap_enable(vm_fd, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
		       KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE |
			       ((unsigned)offered & KVM_DIRTY_LOG_INITIALLY_SET));
	return r ? error_session(err, r, "cannot enable %s: KVM_ENABLE_CAP gave %s", what,
				 error_name(r))
		 : 0;
}

/* cap_ring - the capability by which this kernel has rings, or 0; *bytes: the largest ring. */
static uint32_t cap_ring(int vm_fd, uint64_t *bytes)
{
	uint32_t cap = KVM_CAP_DIRTY_LOG_RING_ACQ_REL;
	int max = cap_check(vm_fd, cap);

#if defined(__x86_64__)
	if (!max) { /* older kernels promise the order of loads and stores by the machine's */
		cap = KVM_CAP_DIRTY_LOG_RING;
		max = cap_check(vm_fd, cap);
	}
#endif
	*bytes = (uint64_t)max;
	return max ? cap : 0;
}

int tern_kvm_enable_dirty_ring(int vm_fd, uint32_t entries, struct tern_error *err)
{
	uint64_t bytes = (uint64_t)entries * sizeof(struct kvm_dirty_gfn), max;
	uint32_t cap;
	int r;

	if (err)
		error_clear(err);
	r = cap_is_vm(vm_fd, "KVM's dirty rings", err);
	if (r)
		return r;
	if (entries < RING_ENTRIES_MIN || entries > RING_ENTRIES_MAX || (entries & (entries - 1)))
		return error_session(err, -EINVAL,
				     "cannot enable KVM's dirty rings of %u entries: it must be a "
				     "power of two from %d to %d; 4096 is a good number",
				     entries, RING_ENTRIES_MIN, RING_ENTRIES_MAX);
	cap = cap_ring(vm_fd, &max);
	if (!cap)
		return error_session(err, -ENOSYS,
				     "cannot enable KVM's dirty rings: this kernel has no "
				     "KVM_CAP_DIRTY_LOG_RING_ACQ_REL; use Linux 5.11 or newer on "
				     "x86, 6.2 elsewhere, or kvm-log");
	if (bytes > max)
		return error_session(err, -EINVAL,
				     "cannot enable KVM's dirty rings of %u entries: this kernel "
				     "allows %llu at most",
				     entries,
				     (unsigned long long)(max / sizeof(struct kvm_dirty_gfn)));
	r = cap_enable(vm_fd, cap, bytes);
	if (r == -EINVAL) /* all else that it refuses was looked at above */
		return error_session(err, -EEXIST,
				     "cannot enable KVM's dirty rings: the VM has vCPUs or rings "
				     "already; enable them before the first vCPU is made");
	return r ? error_session(err, r,
				 "cannot enable KVM's dirty rings of %u entries: KVM_ENABLE_CAP "
				 "gave %s",
				 entries, error_name(r))
		 : 0;
}
