/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * Registers that C code does not use, as witnesses; see lib.h.
 *
 * Guests are compiled for general registers only, so whatever is put into the others
 * stays there until somebody loses it: a host that saves or loads too little.
 */

#include "lib.h"

#define CPUID_XSAVE (1u << 26)
#define CPUID_AVX (1u << 28)
#define CR4_OSXSAVE (1u << 18)
#define VECTORS 16

static const struct {
	uint32_t msr;
	const char *name;
	uint64_t mask; /* bits of the pattern that it takes */
} msrs[] = {
	{ 0xc0000081, "MSR STAR", ~0ull },
	{ 0xc0000082, "MSR LSTAR", 0x00007fffffffffffull },
	{ 0xc0000083, "MSR CSTAR", 0x00007fffffffffffull },
	{ 0xc0000084, "MSR SFMASK", 0xffffffffull },
	{ 0xc0000100, "MSR FS_BASE", 0x00007fffffffffffull },
	{ 0xc0000101, "MSR GS_BASE", 0x00007fffffffffffull },
	{ 0xc0000102, "MSR KERNEL_GS_BASE", 0x00007fffffffffffull },
	{ 0x174, "MSR SYSENTER_CS", 0xffff },
	{ 0x175, "MSR SYSENTER_ESP", 0x7fffffff },
	{ 0x176, "MSR SYSENTER_EIP", 0x7fffffff },
};
#define NR_MSRS (sizeof(msrs) / sizeof(msrs[0]))

static uint64_t vectors[BOOT_VCPUS_MAX][VECTORS][4] __attribute__((aligned(32)));
static bool has_avx[BOOT_VCPUS_MAX];

/* The pattern of register number @n of vCPU @cpu. */
static uint64_t pattern(unsigned cpu, unsigned n)
{
	return ((uint64_t)cpu * 1000 + n + 1) * 0x9e3779b97f4a7c15ull;
}

/* All vector registers from or to memory; @op is the instruction's operands. */
#define EACH(OP) \
	OP(0)    \
	OP(1)    \
	OP(2) OP(3) OP(4) OP(5) OP(6) OP(7) OP(8) OP(9) OP(10) OP(11) OP(12) OP(13) OP(14) OP(15)
#define YMM_LOAD(n) "vmovdqu " #n "*32(%0), %%ymm" #n "\n\t"
#define YMM_STORE(n) "vmovdqu %%ymm" #n ", " #n "*32(%0)\n\t"
#define XMM_LOAD(n) "movdqu " #n "*32(%0), %%xmm" #n "\n\t"
#define XMM_STORE(n) "movdqu %%xmm" #n ", " #n "*32(%0)\n\t"

static void avx_enable(unsigned cpu)
{
	uint32_t r[4];
	uint64_t cr4;

	cpuid(1, 0, r);
	has_avx[cpu] = (r[2] & CPUID_XSAVE) && (r[2] & CPUID_AVX);
	if (!has_avx[cpu])
		return;
	asm volatile("mov %%cr4, %0" : "=r"(cr4));
	asm volatile("mov %0, %%cr4" : : "r"(cr4 | CR4_OSXSAVE));
	asm volatile("xsetbv" : : "c"(0), "a"(7), "d"(0));
}

static void vectors_load(unsigned cpu)
{
	for (unsigned i = 0; i < VECTORS; i++)
		for (unsigned k = 0; k < 4; k++)
			vectors[cpu][i][k] = pattern(cpu, 100 + i * 4 + k);
	if (has_avx[cpu])
		asm volatile(EACH(YMM_LOAD) : : "r"(vectors[cpu]) : "memory");
	else
		asm volatile(EACH(XMM_LOAD) : : "r"(vectors[cpu]) : "memory");
}

static const char *vectors_check(unsigned cpu)
{
	for (unsigned i = 0; i < VECTORS; i++)
		for (unsigned k = 0; k < 4; k++)
			vectors[cpu][i][k] = 0;
	if (has_avx[cpu])
		asm volatile(EACH(YMM_STORE) : : "r"(vectors[cpu]) : "memory");
	else
		asm volatile(EACH(XMM_STORE) : : "r"(vectors[cpu]) : "memory");
	for (unsigned i = 0; i < VECTORS; i++)
		for (unsigned k = 0; k < (has_avx[cpu] ? 4 : 2); k++)
			if (vectors[cpu][i][k] != pattern(cpu, 100 + i * 4 + k))
				return k < 2 ? "XMM" : "YMM";
	return NULL;
}

/* The x87 stack holds one number. */
static void x87_load(unsigned cpu)
{
	uint64_t v = pattern(cpu, 1) >> 8;

	asm volatile("fninit; fildll %0" : : "m"(v));
}

static bool x87_check(unsigned cpu)
{
	uint64_t v = 0;

	asm volatile("fld %%st(0); fistpll %0" : "=m"(v));
	return v == pattern(cpu, 1) >> 8;
}

void registers_allow(unsigned cpu)
{
	avx_enable(cpu);
}

/* What takes privileges to load; for kernel_call(). */
static uint64_t privileged_load(uint64_t argument)
{
	unsigned cpu = (unsigned)argument;

	for (unsigned i = 0; i < NR_MSRS; i++)
		wrmsr(msrs[i].msr, pattern(cpu, 10 + i) & msrs[i].mask);
	/* Breakpoints that are not enabled. */
	asm volatile("mov %0, %%dr0" : : "r"(pattern(cpu, 2) >> 20));
	asm volatile("mov %0, %%dr1" : : "r"(pattern(cpu, 3) >> 20));
	asm volatile("mov %0, %%dr2" : : "r"(pattern(cpu, 4) >> 20));
	asm volatile("mov %0, %%dr3" : : "r"(pattern(cpu, 5) >> 20));
	asm volatile("mov %0, %%cr2" : : "r"(pattern(cpu, 6)));
	asm volatile("mov %0, %%cr8" : : "r"((uint64_t)cpu % 15 + 1));
	return 0;
}

/*
 * Is AVX still on, after the host has been at work?  An emulated host that does not tell
 * its KVM about xsetbv (QEMU 7.2) loses it, with no migration at all.
 */
static bool avx_is_on(void)
{
	uint32_t lo, hi;

	asm volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
	return (lo & 7) == 7;
}

void registers_load(unsigned cpu)
{
	kernel_call(privileged_load, cpu);
	has_avx[cpu] = has_avx[cpu] && avx_is_on();
	x87_load(cpu);
	vectors_load(cpu);
}

/* And to check: 0, or the name's address. */
static uint64_t privileged_check(uint64_t argument)
{
	unsigned cpu = (unsigned)argument;
	uint64_t v;

#define SAME(reg, want)                                      \
	do {                                                 \
		asm volatile("mov %%" reg ", %0" : "=r"(v)); \
		if (v != (want))                             \
			return (uint64_t)reg;                \
	} while (0)
	SAME("dr0", pattern(cpu, 2) >> 20);
	SAME("dr1", pattern(cpu, 3) >> 20);
	SAME("dr2", pattern(cpu, 4) >> 20);
	SAME("dr3", pattern(cpu, 5) >> 20);
	SAME("cr2", pattern(cpu, 6));
	SAME("cr8", (uint64_t)cpu % 15 + 1);
	for (unsigned i = 0; i < NR_MSRS; i++)
		if (rdmsr(msrs[i].msr) != (pattern(cpu, 10 + i) & msrs[i].mask))
			return (uint64_t)msrs[i].name;
	return 0;
}

const char *registers_check(unsigned cpu)
{
	const char *bad = vectors_check(cpu);

	if (!bad && !x87_check(cpu))
		bad = "x87";
	return bad ? bad : (const char *)kernel_call(privileged_check, cpu);
}
