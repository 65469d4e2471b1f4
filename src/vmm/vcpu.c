/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * One vCPU; see vcpu.h and, for how it is paused, machine.h.
 *
 * Its thread:	wait until running ─► KVM_RUN ─► exit? handle it ─► KVM_RUN …
 *		      ▲                  │
 *		      └───── EINTR ──────┘
 *
 * Only the signal that kicks it is let in, and its handler does nothing: what counts is
 * that KVM_RUN ends.  A kick between the look at `running` and KVM_RUN is not lost,
 * because it also sets immediate_exit, and that is cleared under the lock only.
 */

#define _GNU_SOURCE
#include "vcpu.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "bootinfo.h"
#include "cpuid.h"
#include "../cli/cli.h"

#define KICK_SIGNAL SIGUSR1

/* As long as others may have had the CPU before it is the turn of a vCPU that wakes up. */
#define SLICE_NS 100000u

/* struct sched_attr, first version: some headers do not have it, others clash with sched.h. */
struct sched_attributes {
	uint32_t size, policy;
	uint64_t flags;
	int32_t nice;
	uint32_t priority;
	uint64_t runtime, deadline, period;
};

/* Always in the hole between low and high RAM, see ram.h. */
#define HOLE_GPA 0xd0000000u

/* KVM_PRE_FAULT_MEMORY, which the headers do not have everywhere. */
struct pre_fault {
	uint64_t gpa, size, flags, padding[5];
};
#define PRE_FAULT_MEMORY _IOWR(KVMIO, 0xd5, struct pre_fault)

/* Nothing to do but to interrupt KVM_RUN. */
static void on_kick(int sig)
{
}

int vcpu_init(struct vcpu *v, struct machine *m, unsigned index, struct tern_error *err)
{
	void *run;
	int ret;

	*v = (struct vcpu){ .m = m, .index = index, .fd = -1 };
	v->fd = ioctl(m->fd, KVM_CREATE_VCPU, (unsigned long)index);
	if (v->fd < 0)
		return cli_fail(err, -errno, "cannot make vCPU %u: %s", index, strerror(errno));
	run = mmap(NULL, m->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, v->fd, 0);
	if (run == MAP_FAILED)
		return cli_fail(err, -errno, "cannot map vCPU %u: %s", index, strerror(errno));
	v->run = run;
	ret = cpuid_for_vcpu(m->supported, index, m->cfg.nr_vcpus, &v->cpuid, err);
	return ret ? ret : cpuid_set(v, v->cpuid, err);
}

void vcpu_fini(struct vcpu *v)
{
	if (v->has_thread)
		pthread_join(v->thread, NULL);
	if (v->run)
		munmap(v->run, v->m->run_size);
	if (v->fd >= 0)
		close(v->fd);
	free(v->cpuid);
}

void vcpu_kick(struct vcpu *v)
{
	if (v->run)
		__atomic_store_n(&v->run->immediate_exit, 1, __ATOMIC_RELEASE);
	if (v->has_thread)
		pthread_kill(v->thread, KICK_SIGNAL);
}

/*
 * Have KVM make the roots of the vCPU's page tables, and the memory that it keeps for more of
 * them, while nobody waits for it instead of at the next KVM_RUN: some 50 us.
 *
 * KVM_PRE_FAULT_MEMORY (Linux 6.11) does that before it looks at the page, which is one that
 * has no memory, so that it is never one that postcopy would have to bring.  What it says of
 * that page does not matter; and a KVM that does not know it has the work to do later.
 */
static void make_ready(struct vcpu *v)
{
	struct pre_fault range = { .gpa = HOLE_GPA, .size = 4096 };

	(void)ioctl(v->fd, PRE_FAULT_MEMORY, &range);
}

/* Wait until the machine runs.  False: the thread is to end. */
static bool enter(struct vcpu *v)
{
	struct machine *m = v->m;
	bool go;

	pthread_mutex_lock(&m->lock);
again:
	if (v->inside && !m->running) {
		v->inside = false;
		pthread_cond_broadcast(&m->moved);
	}
	while (!m->running && !m->quit) {
		if (v->made_ready == m->ready) {
			pthread_cond_wait(&m->wake, &m->lock);
			continue;
		}
		v->made_ready = m->ready;
		pthread_mutex_unlock(&m->lock);
		make_ready(v);
		pthread_mutex_lock(&m->lock);
	}
	throttle_sleep(v);
	if (!m->running && !m->quit)
		goto again; /* it was paused meanwhile */
	go = !m->quit;
	if (go) {
		__atomic_store_n(&v->run->immediate_exit, 0, __ATOMIC_RELEASE);
		if (!v->inside) {
			m->resumed_ns = cli_now_ns();
			pthread_cond_broadcast(&m->moved);
		}
	}
	v->inside = go;
	pthread_mutex_unlock(&m->lock);
	return go;
}

/* A port is read or written, perhaps several times by one instruction. */
static void handle_io(struct vcpu *v)
{
	struct kvm_run *run = v->run;
	uint8_t *data = (uint8_t *)run + run->io.data_offset;
	unsigned reg = run->io.port - BOOT_SERIAL_PORT;
	bool serial = reg < SERIAL_PORTS && run->io.size == 1;

	for (uint32_t i = 0; i < run->io.count; i++, data += run->io.size) {
		if (run->io.direction == KVM_EXIT_IO_OUT) {
			if (serial)
				serial_out(&v->m->serial, reg, *data);
		} else if (serial) {
			*data = serial_in(&v->m->serial, reg);
		} else {
			memset(data, 0xff, run->io.size);
		}
	}
}

/* The guest cannot go on. */
static void crash(struct vcpu *v, const char *what)
{
	struct kvm_regs regs = { 0 };
	char why[200];

	ioctl(v->fd, KVM_GET_REGS, &regs);
	snprintf(why, sizeof(why), "vCPU %u: %s at rip 0x%llx; the guest is stopped", v->index,
		 what, (unsigned long long)regs.rip);
	machine_crash(v->m, why);
}

/* What KVM_RUN came back for. */
static void handle_exit(struct vcpu *v)
{
	char what[96];

	switch (v->run->exit_reason) {
	case KVM_EXIT_IO:
		handle_io(v);
		break;
	case KVM_EXIT_MMIO:
		/* Nobody is there. */
		if (!v->run->mmio.is_write)
			memset(v->run->mmio.data, 0xff, sizeof(v->run->mmio.data));
		break;
	case KVM_EXIT_INTR:
		break;
	case KVM_EXIT_DIRTY_RING_FULL:
		v->m->cfg.ring_full(v->m->cfg.opaque, v->index);
		break;
	case KVM_EXIT_SHUTDOWN:
		crash(v, "triple fault");
		break;
	default:
		snprintf(what, sizeof(what), "KVM exit reason %u, suberror %u", v->run->exit_reason,
			 v->run->exit_reason == KVM_EXIT_INTERNAL_ERROR ? v->run->internal.suberror
									: 0);
		crash(v, what);
	}
}

/*
 * Have KVM do now what it does at the first KVM_RUN of a virtual machine, such as making a
 * thread of its own, instead of while a guest that has been moved waits for it.  Nothing of
 * the guest runs: KVM_RUN looks at immediate_exit first.
 */
static void warm_up(struct vcpu *v)
{
	__atomic_store_n(&v->run->immediate_exit, 1, __ATOMIC_RELEASE);
	(void)ioctl(v->fd, KVM_RUN, 0);
}

/*
 * A vCPU does little at a time and should do it soon, so it asks for short time slices: since
 * Linux 6.12 a thread with a shorter slice runs before others as soon as it wakes up
 * (sched_setattr(2): sched_runtime of SCHED_OTHER).  Its share of the CPU stays the same.  The
 * threads that move RAM have work for longer, and without this it is they that go first.
 * Kernels before that ignore it.  A scheduling policy or niceness given by the user stays.
 */
static void ask_for_short_slices(void)
{
	struct sched_attributes attr = { .size = sizeof(attr) };

	if (syscall(SYS_sched_getattr, 0, &attr, sizeof(attr), 0) ||
	    attr.policy != SCHED_OTHER)
		return;
	attr.runtime = SLICE_NS;
	(void)syscall(SYS_sched_setattr, 0, &attr, 0);
}

/* The thread. */
static void *vcpu_main(void *opaque)
{
	struct vcpu *v = opaque;
	char what[96];
	sigset_t set;

	sigfillset(&set);
	sigdelset(&set, KICK_SIGNAL);
	pthread_sigmask(SIG_SETMASK, &set, NULL);
	warm_up(v); /* the thread that KVM makes inherits what it finds */
	ask_for_short_slices();
	while (enter(v)) {
		int r;

		while ((r = ioctl(v->fd, KVM_RUN, 0)) == 0)
			handle_exit(v);
		if (errno == EINTR || errno == EAGAIN)
			continue;
		snprintf(what, sizeof(what), "KVM_RUN failed: %s", strerror(errno));
		crash(v, what);
	}
	return NULL;
}

int vcpu_start(struct vcpu *v, struct tern_error *err)
{
	struct sigaction sa = { .sa_handler = on_kick };
	char name[16];
	int ret;

	sigaction(KICK_SIGNAL, &sa, NULL);
	ret = pthread_create(&v->thread, NULL, vcpu_main, v);
	if (ret)
		return cli_fail(err, -ret, "cannot start a thread for vCPU %u: %s", v->index,
				strerror(ret));
	pthread_mutex_lock(&v->m->lock);
	v->has_thread = true;
	pthread_mutex_unlock(&v->m->lock);
	snprintf(name, sizeof(name), "vcpu%u", v->index);
	pthread_setname_np(v->thread, name);
	return 0;
}
