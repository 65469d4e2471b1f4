/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_VMM_CPUID_H
#define TERN_VMM_CPUID_H

/*
 * What the vCPUs say that they can do.
 *
 * Everything that KVM can offer here, except what has state that is not migrated
 * (nested virtualization, shadow stacks).  A guest keeps the CPUID that it was started with: it is
 * part of the device state, and a destination takes it only if it can offer all of it.
 */

#include <linux/kvm.h>
#include "machine.h"

#define CPUID_ENTRIES_MAX 256u

/* cpuid_bytes - size of a table of @nr entries. */
size_t cpuid_bytes(unsigned nr);

/*
 * cpuid_adjust - take out what cannot be migrated, add what KVM leaves to the VMM.
 *
 * @tsc_deadline: KVM's LAPIC has the timer of that name.
 */
void cpuid_adjust(struct kvm_cpuid2 *t, bool tsc_deadline);

/* cpuid_supported - what a vCPU can have here; *@out is for free(). */
int cpuid_supported(int kvm_fd, struct kvm_cpuid2 **out, struct tern_error *err);

/* cpuid_for_vcpu - a copy of @base for vCPU @index of @nr; *@out is for free(). */
int cpuid_for_vcpu(const struct kvm_cpuid2 *base, unsigned index, unsigned nr,
		   struct kvm_cpuid2 **out, struct tern_error *err);

/* cpuid_set - give it to a vCPU, which has not run yet. */
int cpuid_set(const struct vcpu *v, const struct kvm_cpuid2 *table, struct tern_error *err);

/*
 * cpuid_check - is all of @guest within @here?
 *
 * 0, or -ENOTSUP with *@err: another vendor, or a feature word with bits that are
 * missing here.
 */
int cpuid_check(const struct kvm_cpuid2 *guest, const struct kvm_cpuid2 *here,
		struct tern_error *err);

#endif
