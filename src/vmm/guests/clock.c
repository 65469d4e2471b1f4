/* SPDX-License-Identifier: BSD-2-Clause */

/* Time in a guest: kvmclock and the time stamp counter; see lib.h. */

#include "lib.h"

#define KVM_LEAF 0x40000000u
#define KVM_CLOCKSOURCE2 (1u << 3)
#define MSR_SYSTEM_TIME 0x4b564d01u

/* What KVM writes for us; fields as in Linux' Documentation/virt/kvm/x86/msr.rst. */
static struct pvclock {
	volatile uint32_t version; /* odd: being written */
	uint32_t pad0;
	volatile uint64_t tsc_timestamp;
	volatile uint64_t system_time;
	volatile uint32_t mul;
	volatile int8_t shift;
	uint8_t flags, pad[2];
	char pad1[32];
} __attribute__((aligned(64))) pvclocks[BOOT_VCPUS_MAX];
static bool has_clock[BOOT_VCPUS_MAX];

bool clock_start(unsigned cpu)
{
	uint32_t r[4];

	cpuid(KVM_LEAF, 0, r);
	if (r[1] != 0x4b4d564b) /* "KVMK" */
		return false;
	cpuid(KVM_LEAF + 1, 0, r);
	if (!(r[0] & KVM_CLOCKSOURCE2))
		return false;
	wrmsr(MSR_SYSTEM_TIME, (uint64_t)&pvclocks[cpu] | 1);
	has_clock[cpu] = true;
	return true;
}

uint64_t clock_ns(unsigned cpu)
{
	const struct pvclock *p = &pvclocks[cpu];
	uint64_t delta, ns;
	uint32_t version;

	if (!has_clock[cpu])
		return 0;
	do {
		while ((version = p->version) & 1)
			cpu_relax();
		asm volatile("lfence" : : : "memory");
		delta = rdtsc() - p->tsc_timestamp;
		delta = p->shift < 0 ? delta >> -p->shift : delta << p->shift;
		ns = p->system_time + (uint64_t)((unsigned __int128)delta * p->mul >> 32);
		asm volatile("lfence" : : : "memory");
	} while (p->version != version);
	return ns;
}

uint64_t clock_tsc_khz(unsigned cpu)
{
	const struct pvclock *p = &pvclocks[cpu];
	uint64_t khz;

	if (!has_clock[cpu] || !p->mul)
		return 0;
	khz = (1000000ull << 32) / p->mul;
	return p->shift < 0 ? khz << -p->shift : khz >> p->shift;
}

uint64_t tsc_from_us(uint64_t us)
{
	return us * boot->tsc_khz / 1000;
}

uint64_t tsc_to_us(uint64_t tsc)
{
	return tsc * 1000 / boot->tsc_khz;
}
