/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_SRC_KVM_GATE_H
#define TERN_SRC_KVM_GATE_H

/*
 * The gate between vCPU threads and the thread that harvests their dirty rings.
 *
 * A vCPU whose ring is full asks for a harvest and waits for the end of one that began
 * afterwards.  It lives as long as the session does, so that vCPUs may come at any time.
 *
 * It also keeps the limit: each page harvested from a vCPU's ring is a debt of its owner,
 * which is paid off at the rate of the limit.  The ring of one that owes is not harvested but
 * for sync(), so it fills up and the vCPU comes here, where it sleeps until nothing is owed.
 * QEMU guesses the time to sleep from the rate measured, and corrects it; here the rate is
 * what the debt is made of, so there is nothing to correct.
 */

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <tern/stats.h>

#include "monitor.h"

/* The longest sleep of a vCPU that owes: its thread has other duties too. */
#define KVM_GATE_SLEEP_NS (50ull * 1000000u)

struct kvm_gate_vcpu {
	struct tern_vcpu_stats stats;
	double owed_bytes;
	uint64_t settled_ns;   /* owed_bytes is of that time */
	uint64_t window_ns;    /* the rate is measured since then … */
	uint64_t window_pages; /* … and so many pages there were */
};

struct kvm_gate {
	struct monitor mon; /* guards all below */
	const _Atomic uint64_t *limit; /* bytes/s, 0: none */
	struct kvm_gate_vcpu *v;
	unsigned nr;
	bool tracking; /* there is a thread that harvests */
	bool pausing;  /* the VMM is about to pause the vCPUs: nobody owes anything */
	uint64_t wanted, done; /* harvests */
};

/* kvm_gate_init - closed; @limit must outlive it.  0 or -ENOMEM. */
int kvm_gate_init(struct kvm_gate *g, unsigned nr_vcpus, const _Atomic uint64_t *limit);
void kvm_gate_fini(struct kvm_gate *g);

/* kvm_gate_full - vCPU @i has a full ring: see tern_session_ring_full().  vCPU threads. */
void kvm_gate_full(struct kvm_gate *g, unsigned i);

/* kvm_gate_pausing - let all vCPUs go, and from now on hold none.  Session thread. */
void kvm_gate_pausing(struct kvm_gate *g);

/*
 * The harvester's side.
 *
 * kvm_gate_track - tracking begins or ends; the end lets all vCPUs go.
 * kvm_gate_wait - until a harvest is wanted, tracking ends (false) or @deadline; *turn: what a
 * harvest that begins now fulfils.
 * kvm_gate_done - harvest @turn is done.
 * kvm_gate_harvested - so many pages came from the ring of vCPU @i.
 * kvm_gate_owes - must the ring of vCPU @i be left alone for now?
 * kvm_gate_measure - close the windows in which rates are measured.
 */
void kvm_gate_track(struct kvm_gate *g, bool on);
bool kvm_gate_wait(struct kvm_gate *g, uint64_t deadline, uint64_t *turn);
void kvm_gate_done(struct kvm_gate *g, uint64_t turn);
void kvm_gate_harvested(struct kvm_gate *g, unsigned i, uint64_t pages);
bool kvm_gate_owes(struct kvm_gate *g, unsigned i);
void kvm_gate_measure(struct kvm_gate *g);

/* kvm_gate_stats - of vCPU @i.  Any thread. */
void kvm_gate_stats(struct kvm_gate *g, unsigned i, struct tern_vcpu_stats *out);

#endif
