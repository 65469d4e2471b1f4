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

/* What a guest has to define: run on vCPU @cpu, with interrupts off; never returns. */
void guest_main(unsigned cpu);

/* And for an interrupt that is not an exception; the LAPIC is told by the caller. */
void guest_interrupt(unsigned cpu, unsigned vector);

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
