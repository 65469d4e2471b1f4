/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * dirty - pages written at a given rate over a working set; how long did it stand still?
 *
 *	dirty: vcpu I line N pages P gap_us G longest_us L gaps G@E,… said_us S back B clock_us C
 *
 * Each vCPU writes to a part of the working set of its own, and looks at its time stamp
 * counter all the time.  G is the longest time between two looks since the last line,
 * L the longest ever, B how often the counter went back, and C what kvmclock says.  The
 * longest eight since the last line follow with what kvmclock said when they ended (us),
 * so that whoever knows when something happened finds what it cost.  The time that a line
 * takes to print is left out; of the line before it is S, from its C on.
 *
 * Options: rate=BYTES of pages written per second, of all vCPUs together (64M; 0 for an
 * idle guest); ws=BYTES, the working set (32M, or all of RAM if that is less); random=1 for
 * pages in random order; fill=BYTES of RAM, filled with random words before (0);
 * halt=HZ to halt when there is nothing to write, until a timer goes off so often per
 * second (0: look all the time); interval=MS between lines (200).
 */

#include "lib.h"

#define GAPS 8

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

/* A time without a look, in units of rdtsc(). */
struct gap {
	uint64_t length, end;
};

/* Keep it if it is one of the longest, which are sorted. */
static void gap_keep(struct gap *gaps, uint64_t length, uint64_t end)
{
	unsigned i = GAPS - 1;

	if (length <= gaps[i].length)
		return;
	for (; i && gaps[i - 1].length < length; i--)
		gaps[i] = gaps[i - 1];
	gaps[i] = (struct gap){ length, end };
}

/* Random words in this vCPU's part of what is to be filled. */
static void fill(unsigned cpu)
{
	uint64_t pages = option("fill", 0) / PAGE_BYTES, most = ram_pages();
	uint64_t v = 0x9e3779b97f4a7c15ull * (cpu + 1), first, end;

	if (!pages)
		return;
	pages = pages < most ? pages : most;
	first = pages * cpu / boot->nr_vcpus;
	end = pages * (cpu + 1) / boot->nr_vcpus;
	for (uint64_t i = first; i < end; i++) {
		uint64_t *p = ram_page(i);

		for (unsigned k = 0; k < PAGE_BYTES / sizeof(*p); k++) {
			v ^= v << 13;
			v ^= v >> 7;
			v ^= v << 17;
			p[k] = v;
		}
	}
	say(T("dirty: vcpu "), N(cpu), T(" has filled "), N(end - first), T(" pages"));
}

static uint64_t halt(uint64_t unused)
{
	wait_for_interrupt();
	return 0;
}

/* The longest gaps as "US@CLOCK_US", and when that is: at @now kvmclock said @clock_us. */
static void report(const struct writer *w, uint64_t line, uint64_t longest, uint64_t said,
		   uint64_t back, const struct gap *g, uint64_t now, uint64_t clock_us)
{
#define GAP(i) N(tsc_to_us(g[i].length)), T("@"), N(clock_us - tsc_to_us(now - g[i].end))
	say(T("dirty: vcpu "), N(w->cpu), T(" line "), N(line), T(" pages "), N(w->written),
	    T(" gap_us "), N(tsc_to_us(g[0].length)), T(" longest_us "), N(tsc_to_us(longest)),
	    T(" gaps "), GAP(0), T(","), GAP(1), T(","), GAP(2), T(","), GAP(3), T(","), GAP(4),
	    T(","), GAP(5), T(","), GAP(6), T(","), GAP(7), T(" said_us "), N(tsc_to_us(said)),
	    T(" back "), N(back), T(" clock_us "), N(clock_us));
#undef GAP
}

static void write_on(unsigned cpu)
{
	uint64_t rate = option("rate", 64 << 20) / PAGE_BYTES / boot->nr_vcpus;
	uint64_t between = rate ? tsc_from_us(1000000) / rate : 0;
	uint64_t interval = tsc_from_us(option("interval", 200) * 1000);
	uint64_t slack = tsc_from_us(10000), line = 0, longest = 0, said = 0, back = 0;
	uint64_t now, last, due, report_due;
	bool random = option("random", 0), halts = option("halt", 0);
	struct gap gaps[GAPS] = { { 0 } };
	struct writer w;

	fill(cpu);
	writer_init(&w, cpu);
	last = due = rdtsc();
	report_due = last + interval;
	for (;;) {
		now = rdtsc();
		if (now < last)
			back++;
		else
			gap_keep(gaps, now - last, now);
		last = now;
		if (rate && now >= due) {
			write_page(&w, random);
			due = now - due > slack ? now : due + between;
		} else if (halts) {
			kernel_call(halt, 0);
		} else {
			cpu_relax();
		}
		if (now < report_due)
			continue;
		longest = gaps[0].length > longest ? gaps[0].length : longest;
		now = rdtsc();
		report(&w, ++line, longest, said, back, gaps, now, clock_ns(cpu) / 1000);
		for (unsigned i = 0; i < GAPS; i++)
			gaps[i] = (struct gap){ 0, now };
		last = rdtsc();
		said = last - now;
		report_due = last + interval;
	}
}

void guest_main(unsigned cpu)
{
	uint64_t hz = option("halt", 0);

	clock_start(cpu);
	if (hz)
		timer_start((uint32_t)(1000000000u / (hz < 10000 ? hz : 10000)));
	user_run(write_on, cpu);
}
