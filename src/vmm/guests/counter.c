/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * counter - one number per tick, on every vCPU.
 *
 *	counter: vcpu I tick N		its LAPIC timer, periodic
 *	counter: pit tick N		the PIT, through the IOAPIC, on vCPU 0
 *
 * Between ticks the vCPUs are halted.  N starts at 1 and grows by one from line to
 * line: whoever puts the output of several hosts together sees at once whether a tick
 * was lost, repeated or made up.
 *
 * Options: rate=HZ, ticks of each vCPU per second (20); pit=0 for no PIT.
 */

#include "lib.h"

/* Incremented by the interrupt of the vCPU that reads it. */
static struct {
	volatile uint64_t ticks;
	char pad[56];
} timers[BOOT_VCPUS_MAX];
static volatile uint64_t pit_ticks;

void guest_interrupt(unsigned cpu, unsigned vector)
{
	if (vector == VECTOR_TIMER)
		timers[cpu].ticks = timers[cpu].ticks + 1;
	else if (vector == VECTOR_PIT)
		pit_ticks = pit_ticks + 1;
}

void guest_main(unsigned cpu)
{
	uint64_t said = 0, pit_said = 0, rate = option("rate", 20);

	if (!rate || rate > 10000)
		rate = 20;
	if (!cpu) {
		say(T("counter: started on "), N(boot->nr_vcpus), T(" vcpus"));
		if (option("pit", 1))
			pit_start(59659); /* 20 Hz */
	}
	timer_start((uint32_t)(1000000000u / rate));
	for (;;) {
		/* Interrupts are off here: none is missed between looking and halting. */
		if (said < timers[cpu].ticks)
			say(T("counter: vcpu "), N(cpu), T(" tick "), N(++said));
		else if (!cpu && pit_said < pit_ticks)
			say(T("counter: pit tick "), N(++pit_said));
		else
			wait_for_interrupt();
	}
}
