/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_VMM_GUESTS_LIB_H
#define TERN_VMM_GUESTS_LIB_H

/*
 * The little that the guests share: printing, time, interrupts, options.
 *
 * Freestanding and without floating-point code, so that the vector registers hold
 * only what a guest puts there by hand.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "../bootinfo.h"

#define PAGE_BYTES 4096u
#define VECTOR_PIT 0x30
#define VECTOR_TIMER 0x31
#define VECTOR_SPURIOUS 0x3f

struct frame {
	uint64_t r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rdx, rcx, rbx, rax;
	uint64_t vector, error;
	uint64_t rip, cs, rflags, rsp, ss;
};

extern const struct boot_info *boot; /* set before guest_main() */

/*
 * What a guest has to define: run on vCPU @cpu, with interrupts off and all privileges;
 * never returns.
 *
 * Work that takes the CPU for long belongs behind user_run(): a host that virtualizes in
 * software may run only unprivileged code directly, and interpret the rest at a
 * thousandth of the speed.
 */
void guest_main(unsigned cpu);

/* And for an interrupt that is not an exception; the LAPIC is told by the caller. */
void guest_interrupt(unsigned cpu, unsigned vector);

/* ----------------------------------------------------------------- privileges */

/* user_run - go on with fn(cpu) without privileges; never returns. */
void user_run(void (*fn)(unsigned cpu), unsigned cpu) __attribute__((noreturn));

/* kernel_call - from there: the result of fn(argument), run with all privileges. */
uint64_t kernel_call(uint64_t (*fn)(uint64_t argument), uint64_t argument);

/* ----------------------------------------------------------------------- CPU */

static inline void outb(uint16_t port, uint8_t v)
{
	asm volatile("outb %0, %1" : : "a"(v), "Nd"(port));
}

static inline uint64_t rdtsc(void)
{
	uint32_t lo, hi;

	asm volatile("rdtsc" : "=a"(lo), "=d"(hi) : : "memory");
	return (uint64_t)hi << 32 | lo;
}

static inline uint64_t rdmsr(uint32_t msr)
{
	uint32_t lo, hi;

	asm volatile("rdmsr" : "=a"(lo), "=d"(hi) : "c"(msr));
	return (uint64_t)hi << 32 | lo;
}

static inline void wrmsr(uint32_t msr, uint64_t v)
{
	asm volatile("wrmsr" : : "c"(msr), "a"((uint32_t)v), "d"((uint32_t)(v >> 32)) : "memory");
}

static inline void cpuid(uint32_t leaf, uint32_t sub, uint32_t r[4])
{
	asm volatile("cpuid"
		     : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3])
		     : "a"(leaf), "c"(sub));
}

static inline void cpu_relax(void)
{
	asm volatile("pause" : : : "memory");
}

/* Wait for an interrupt, which is let in only here. */
static inline void wait_for_interrupt(void)
{
	asm volatile("sti; hlt; cli" : : : "memory");
}

/* ------------------------------------------------------------------ printing */

/*
 * say - print one line: pieces of text, and numbers.
 *
 * The whole line goes out under a lock; never call it from guest_interrupt().
 */
struct piece {
	const char *text; /* or NULL: the number */
	uint64_t number;
	bool hex;
};
#define T(s) ((struct piece){ .text = (s) })
#define N(n) ((struct piece){ .number = (n) })
#define X(n) ((struct piece){ .number = (n), .hex = true })
#define say(...)                                          \
	say_pieces((const struct piece[]){ __VA_ARGS__ }, \
		   sizeof((const struct piece[]){ __VA_ARGS__ }) / sizeof(struct piece))
void say_pieces(const struct piece *p, unsigned nr);

/* ------------------------------------------------------------------ interrupts */

/* timer_start - LAPIC timer of this vCPU: VECTOR_TIMER every @ns. */
void timer_start(uint32_t ns);

/* pit_start - PIT through the IOAPIC to vCPU 0: VECTOR_PIT with a divisor of 1193182 Hz. */
void pit_start(uint16_t divisor);

/* ---------------------------------------------------------------------- time */

/* clock_start - begin to use kvmclock on this vCPU.  False: there is none. */
bool clock_start(unsigned cpu);

/* clock_ns - kvmclock, after clock_start(); 0: there is none. */
uint64_t clock_ns(unsigned cpu);

/* clock_tsc_khz - the frequency of rdtsc() as kvmclock has it, after clock_start(); or 0. */
uint64_t clock_tsc_khz(unsigned cpu);

/* tsc_from_us - @us in units of rdtsc(); tsc_to_us - and back. */
uint64_t tsc_from_us(uint64_t us);
uint64_t tsc_to_us(uint64_t tsc);

/* ------------------------------------------------------------------ registers */

/*
 * registers_load - put a pattern of this vCPU into registers that C code does not use.
 *
 * x87, SSE and AVX registers, debug registers, CR2, CR8, and MSRs; see registers.c.
 * From behind user_run(), after registers_allow() before it.
 */
void registers_allow(unsigned cpu);
void registers_load(unsigned cpu);

/* registers_check - NULL: all still hold it; else the name of one that does not. */
const char *registers_check(unsigned cpu);

/* -------------------------------------------------------------------- options */

/* option - the number after "NAME=" in the guest's arguments (K, M, G allowed), or @def. */
uint64_t option(const char *name, uint64_t def);

/* option_is - does "NAME=VALUE" stand there? */
bool option_is(const char *name, const char *value);

/* ----------------------------------------------------------------------- RAM */

/*
 * Pages that the guest may use: all RAM above the image, in 2 MiB steps, numbered
 * from 0 over the hole.
 */
uint64_t ram_pages(void);
uint64_t *ram_page(uint64_t n);

#endif
