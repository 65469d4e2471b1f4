/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_VMM_MACHINE_H
#define TERN_VMM_MACHINE_H

/*
 * The machine: a KVM virtual machine with its RAM, vCPUs and devices.
 *
 * Interrupt controllers (8259, IOAPIC, LAPICs) and the PIT are KVM's; the serial port
 * is ours.  Each vCPU has a thread, which lives as long as the machine.  A machine is
 * made paused, and then gets either a guest (boot.h) or the state of one (state.h).
 * It is used for one guest only: to take another one in, make another machine.
 *
 * Pausing: `running` goes false, every vCPU's immediate_exit is set, and its thread
 * gets a signal.  KVM_RUN then ends with EINTR, after it has completed the I/O that the
 * last exit was about; only there a vCPU stops, so its registers can be saved.
 */

#include <linux/kvm.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <tern/error.h>
#include "ram.h"
#include "serial.h"

struct machine;

/* What KVM is made to tell of writes. */
enum machine_dirty {
	MACHINE_DIRTY_LOG = 0,
	MACHINE_DIRTY_RING,
	MACHINE_DIRTY_NONE,
};

#define MACHINE_RING_ENTRIES 4096u

struct machine_config {
	uint64_t mem; /* bytes */
	unsigned nr_vcpus;
	enum ram_backing backing;
	enum machine_dirty dirty;
	unsigned ring_entries; /* with rings */
	int serial_fd;
	/*
	 * The guest cannot go on: @why says what happened, one sentence.  The machine is
	 * pausing.  A vCPU's thread; must not call machine_pause() or machine_delete().
	 */
	void (*crashed)(void *opaque, const char *why);
	/* The dirty ring of vCPU @index is full; its thread. */
	void (*ring_full)(void *opaque, unsigned index);
	void *opaque;
};

struct vcpu {
	struct machine *m;
	unsigned index;
	int fd;
	struct kvm_run *run;
	struct kvm_cpuid2 *cpuid; /* what it has been given */
	pthread_t thread;
	bool has_thread;
	bool inside; /* its thread is in or about KVM_RUN; guarded by m->lock */
	bool must_sleep; /* the throttle says so; guarded by m->lock */
	unsigned made_ready; /* the last m->ready that it has seen; its thread's */
};

struct machine {
	struct machine_config cfg;
	int kvm_fd, fd;
	size_t run_size; /* of struct kvm_run, bytes */
	unsigned xsave_size; /* of KVM_GET_XSAVE2, bytes */
	uint32_t tsc_khz; /* of the vCPUs */
	struct kvm_cpuid2 *supported; /* what a vCPU can have here */
	struct kvm_msr_list *msrs; /* those that are saved; see state_prepare() */
	struct ram ram;
	struct serial serial;
	unsigned nr_vcpus; /* made */
	struct vcpu *vcpus;

	pthread_mutex_t lock; /* guards what follows and vcpu.inside */
	pthread_cond_t wake; /* running, quit or ready have changed */
	pthread_cond_t moved; /* a vCPU has gone in or come out */
	bool running, quit, crashed;
	unsigned ready; /* count of machine_make_ready() */
	uint64_t resumed_ns; /* CLOCK_MONOTONIC: when the last vCPU went in */
	unsigned throttle; /* percent */
	pthread_cond_t throttled; /* it has changed, or quit has; for the throttle's thread */
	pthread_t throttler;
	bool has_throttler;
};

/*
 * machine_new - make a machine with empty RAM, paused.
 *
 * 0, or -errno with *@err.  Threads have not been started.
 */
int machine_new(const struct machine_config *cfg, struct machine **out, struct tern_error *err);

/* machine_start - start the vCPUs' threads; they wait for machine_resume(). */
int machine_start(struct machine *m, struct tern_error *err);

/* machine_delete - end threads, free all, set *@mp to NULL.  Tolerates NULL. */
void machine_delete(struct machine **mp);

/*
 * machine_pause - stop all vCPUs, and wait for that @timeout_ms (< 0: for ever).
 *
 * A vCPU that waits for a page in postcopy does not come out before it has it.
 * True: they have stopped, and what they sent to the serial port is written out.
 * Any thread but a vCPU's.
 */
bool machine_pause(struct machine *m, int timeout_ms);

/*
 * machine_make_ready - the vCPUs have their state and will soon run: let each have KVM do
 * beforehand what it can of what it does before the guest's first instruction.
 *
 * Does not wait for them, and needs none of the guest's RAM.  Any thread but a vCPU's.
 */
void machine_make_ready(struct machine *m);

/*
 * machine_resume - let all vCPUs run, and wait until they do: whoever measures how long the
 * guest stood still does not miss the time that a thread waits for a CPU.
 *
 * 0, or -EIO if the guest has crashed.  Any thread but a vCPU's.
 */
int machine_resume(struct machine *m);

/* machine_resumed_ns - when all vCPUs ran, after machine_resume(); CLOCK_MONOTONIC. */
uint64_t machine_resumed_ns(struct machine *m);

/*
 * machine_throttle - let each vCPU run only 100 - @percent percent of the time (throttle.c).
 *
 * 0: at full speed.  0, or -errno if there is no thread for it.  Any thread but a vCPU's.
 */
int machine_throttle(struct machine *m, unsigned percent);

/* throttle_sleep - what vCPU @v owes, if anything; m->lock is held, and dropped meanwhile. */
void throttle_sleep(struct vcpu *v);

/* throttle_end - end the thread; quit is set. */
void throttle_end(struct machine *m);

/* machine_is_running - has it been resumed and not been paused since? */
bool machine_is_running(struct machine *m);

/* machine_crash - pause for good because of @why, from a vCPU's thread. */
void machine_crash(struct machine *m, const char *why);

#endif
