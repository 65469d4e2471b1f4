/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * dirty - pages written at a given rate over a working set; how long did it stand still?
 *
 *	dirty: vcpu I line N pages P gap_us G longest_us L back B clock_us C
 *
 * Each vCPU writes to a part of the working set of its own, and looks at its time stamp
 * counter all the time.  G is the longest time between two looks since the last line,
 * L the longest ever, B how often the counter went back, and C what kvmclock says.  The
 * time that a line takes to print is left out.
 *
 * Options: rate=BYTES of pages written per second, of all vCPUs together (64M); ws=BYTES,
 * the working set (32M, or all of RAM if that is less); random=1 for pages in random
 * order; interval=MS between lines (200).
 */

#include "lib.h"

struct writer {
	unsigned cpu;
	uint64_t first, nr; /* pages of the working set */
	uint64_t written, at, random;
};

void guest_interrupt(unsigned cpu, unsigned vector)
{
}

/* Dirty one page. */
static void write_page(struct writer *w, bool random)
{
	if (random) {
		w->random = w->random * 6364136223846793005ull + 1442695040888963407ull;
		w->at = (w->random >> 20) % w->nr;
	} else if (++w->at == w->nr) {
		w->at = 0;
	}
	w->written++;
	*(volatile uint64_t *)ram_page(w->first + w->at) = w->written;
}

static void writer_init(struct writer *w, unsigned cpu)
{
	uint64_t pages = ram_pages(), ws = option("ws", 32 << 20) / PAGE_BYTES;

	if (ws > pages)
		ws = pages;
	if (ws < boot->nr_vcpus)
		ws = boot->nr_vcpus;
	*w = (struct writer){ .cpu = cpu, .random = cpu };
	w->first = ws * cpu / boot->nr_vcpus;
	w->nr = ws * (cpu + 1) / boot->nr_vcpus - w->first;
}

static void write_on(unsigned cpu)
{
	uint64_t rate = option("rate", 64 << 20) / PAGE_BYTES / boot->nr_vcpus;
	uint64_t between = rate ? tsc_from_us(1000000) / rate : 0;
	uint64_t interval = tsc_from_us(option("interval", 200) * 1000);
	uint64_t slack = tsc_from_us(10000), line = 0, gap = 0, longest = 0, back = 0;
	uint64_t now, last, due, report_due;
	bool random = option("random", 0);
	struct writer w;

	writer_init(&w, cpu);
	last = due = rdtsc();
	report_due = last + interval;
	for (;;) {
		now = rdtsc();
		if (now < last)
			back++;
		else if (now - last > gap)
			gap = now - last;
		last = now;
		if (rate && now >= due) {
			write_page(&w, random);
			due = now - due > slack ? now : due + between;
		} else {
			cpu_relax();
		}
		if (now < report_due)
			continue;
		longest = gap > longest ? gap : longest;
		say(T("dirty: vcpu "), N(cpu), T(" line "), N(++line), T(" pages "), N(w.written),
		    T(" gap_us "), N(tsc_to_us(gap)), T(" longest_us "), N(tsc_to_us(longest)),
		    T(" back "), N(back), T(" clock_us "), N(clock_ns(cpu) / 1000));
		gap = 0;
		last = rdtsc();
		report_due = last + interval;
	}
}

void guest_main(unsigned cpu)
{
	clock_start(cpu);
	user_run(write_on, cpu);
}
