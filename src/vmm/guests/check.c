/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * check - all RAM filled from a generator, rewritten and checked all the time.
 *
 *	check: vcpu I line N pass P step S
 *	check: BAD …
 *
 * Each vCPU owns a part of RAM.  It goes through its pages in a fixed scattered order,
 * pass after pass; a step looks whether the page holds what pass P wrote, and writes
 * what pass P + 1 writes.  So what any page must hold follows from one number, the
 * step: a page that is lost, torn, or older or newer than it may be is found within a
 * pass, and usually at once, because between its steps the vCPU looks at pages at
 * random.  With each line registers are checked too (registers.c).
 *
 * N grows by one from line to line, and S never shrinks.  After BAD all stop for good.
 *
 * Options: rate=BYTES rewritten per second, of all vCPUs together (32M); ram=BYTES to
 * use (all); interval=MS between lines (100).
 */

#include "lib.h"

#define WORDS (PAGE_BYTES / 8)

struct part {
	uint64_t first, nr; /* pages of RAM */
	uint64_t stride; /* page of step s: s * stride % nr */
	uint64_t pass, at; /* step = pass * nr + at */
	uint64_t random;
	unsigned cpu;
};

static volatile int all_stop;

void guest_interrupt(unsigned cpu, unsigned vector)
{
}

/* What word @k of a page holds; @seed is seed_of(). */
static inline uint64_t word(uint64_t seed, uint64_t k)
{
	return (seed + k) * 0xd6e8feb86659fd93ull ^ seed >> 7;
}

static inline uint64_t seed_of(uint64_t page, uint64_t pass)
{
	return (page * 0x9e3779b97f4a7c15ull) ^ (pass * 0xc2b2ae3d27d4eb4full);
}

static void page_write(uint64_t page, uint64_t pass)
{
	uint64_t seed = seed_of(page, pass), *p = ram_page(page);

	for (uint64_t k = 0; k < WORDS; k++)
		p[k] = word(seed, k);
}

static void stop(void)
{
	__atomic_store_n(&all_stop, 1, __ATOMIC_SEQ_CST);
	for (;;)
		cpu_relax();
}

static void page_check(const struct part *part, uint64_t page, uint64_t pass)
{
	uint64_t seed = seed_of(page, pass), *p = ram_page(page);

	for (uint64_t k = 0; k < WORDS; k++) {
		if (p[k] == word(seed, k))
			continue;
		say(T("check: BAD vcpu "), N(part->cpu), T(" gpa 0x"), X((uint64_t)p), T(" word "),
		    N(k), T(" holds 0x"), X(p[k]), T(" instead of 0x"), X(word(seed, k)),
		    T(" of pass "), N(pass), T(", step "), N(part->pass * part->nr + part->at));
		stop();
	}
}

static uint64_t gcd(uint64_t a, uint64_t b)
{
	while (b) {
		uint64_t t = a % b;

		a = b;
		b = t;
	}
	return a;
}

static uint64_t page_of(const struct part *p, uint64_t at)
{
	return p->first + at * p->stride % p->nr;
}

/* Rewrite the page that is next. */
static void step(struct part *p)
{
	uint64_t page = page_of(p, p->at);

	page_check(p, page, p->pass);
	page_write(page, p->pass + 1);
	if (++p->at == p->nr) {
		p->at = 0;
		p->pass++;
	}
}

/* Look at any page. */
static void look(struct part *p)
{
	uint64_t at;

	p->random = p->random * 6364136223846793005ull + 1442695040888963407ull;
	at = (p->random >> 20) % p->nr;
	page_check(p, page_of(p, at), at < p->at ? p->pass + 1 : p->pass);
}

static void report(const struct part *p, uint64_t line)
{
	const char *bad = registers_check(p->cpu);

	if (bad) {
		say(T("check: BAD vcpu "), N(p->cpu), T(" register "), T(bad), T(", step "),
		    N(p->pass * p->nr + p->at));
		stop();
	}
	say(T("check: vcpu "), N(p->cpu), T(" line "), N(line), T(" pass "), N(p->pass),
	    T(" step "), N(p->pass * p->nr + p->at));
}

/* This vCPU's part of RAM, filled. */
static void part_init(struct part *p, unsigned cpu)
{
	uint64_t pages = ram_pages(), most = option("ram", 0) / PAGE_BYTES;

	if (most && most < pages)
		pages = most;
	*p = (struct part){ .cpu = cpu, .random = cpu };
	p->first = pages * cpu / boot->nr_vcpus;
	p->nr = pages * (cpu + 1) / boot->nr_vcpus - p->first;
	if (!p->nr) {
		say(T("check: BAD there is no RAM for vcpu "), N(cpu));
		stop();
	}
	p->stride = p->nr * 5 / 8 + 1;
	while (gcd(p->stride, p->nr) != 1)
		p->stride++;
	for (uint64_t i = 0; i < p->nr; i++)
		page_write(p->first + i, 0);
}

static void check(unsigned cpu)
{
	uint64_t rate = option("rate", 32 << 20) / PAGE_BYTES / boot->nr_vcpus;
	uint64_t between = rate ? tsc_from_us(1000000) / rate : 0;
	uint64_t interval = tsc_from_us(option("interval", 100) * 1000), line = 0;
	uint64_t slack = tsc_from_us(10000), now, due, report_due;
	struct part p;

	registers_load(cpu);
	part_init(&p, cpu);
	say(T("check: vcpu "), N(cpu), T(" has filled "), N(p.nr), T(" pages"));
	due = report_due = rdtsc();
	while (!__atomic_load_n(&all_stop, __ATOMIC_RELAXED)) {
		now = rdtsc();
		if (rate && now >= due) {
			step(&p);
			/* Time that passed meanwhile is not made up for. */
			due = now - due > slack ? now : due + between;
		} else {
			look(&p);
		}
		if (now >= report_due) {
			report(&p, ++line);
			report_due = now + interval;
		}
	}
	stop();
}

void guest_main(unsigned cpu)
{
	registers_allow(cpu);
	user_run(check, cpu);
}
