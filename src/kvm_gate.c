/* SPDX-License-Identifier: BSD-2-Clause */
#include "kvm_gate.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <tern/region.h>

int kvm_gate_init(struct kvm_gate *g, unsigned nr_vcpus, const _Atomic uint64_t *limit)
{
	int r;

	memset(g, 0, sizeof(*g));
	g->v = calloc(nr_vcpus ? nr_vcpus : 1, sizeof(*g->v));
	if (!g->v)
		return -ENOMEM;
	g->nr = nr_vcpus;
	g->limit = limit;
	r = monitor_init(&g->mon);
	if (r)
		free(g->v);
	return r;
}

void kvm_gate_fini(struct kvm_gate *g)
{
	monitor_fini(&g->mon);
	free(g->v);
}

/*
 * owed_ns - how long vCPU @v must go on waiting.  mon is held.
 *
 * Pays off what the time since the last look was worth.  Time in which nothing is owed earns
 * nothing.
 */
static uint64_t owed_ns(struct kvm_gate *g, struct kvm_gate_vcpu *v)
{
	uint64_t limit = atomic_load_explicit(g->limit, memory_order_relaxed);
	uint64_t now = now_ns();

	v->owed_bytes -= (double)(now - v->settled_ns) * 1e-9 * (double)limit;
	v->settled_ns = now;
	if (v->owed_bytes < 1 || !limit)
		v->owed_bytes = 0;
	if (!v->owed_bytes || g->pausing)
		return 0;
	double ns = v->owed_bytes / (double)limit * 1e9;

	return ns < 1e15 ? (uint64_t)ns + 1 : 1000000000000000u;
}

/* throttle - make @v sleep off what it owes; false if it still owes.  mon is held. */
static bool throttle(struct kvm_gate *g, struct kvm_gate_vcpu *v)
{
	uint64_t begin = now_ns(), now = begin, end = begin + KVM_GATE_SLEEP_NS, owed = 0;

	while (g->tracking && (owed = owed_ns(g, v)) && now < end) {
		monitor_wait(&g->mon, owed < end - now ? now + owed : end);
		now = now_ns();
	}
	v->stats.throttled_ns += now - begin;
	return !g->tracking || !owed;
}

void kvm_gate_full(struct kvm_gate *g, unsigned i)
{
	struct kvm_gate_vcpu *v = &g->v[i];

	monitor_lock(&g->mon);
	v->stats.ring_full++;
	if (throttle(g, v)) {
		uint64_t turn = ++g->wanted;

		monitor_broadcast(&g->mon);
		while (g->tracking && g->done < turn)
			monitor_wait(&g->mon, NEVER_NS);
	}
	monitor_unlock(&g->mon);
}

void kvm_gate_pausing(struct kvm_gate *g)
{
	monitor_lock(&g->mon);
	g->pausing = true;
	monitor_broadcast(&g->mon);
	monitor_unlock(&g->mon);
}

void kvm_gate_track(struct kvm_gate *g, bool on)
{
	uint64_t now = now_ns();

	monitor_lock(&g->mon);
	g->tracking = on;
	g->pausing = false;
	for (unsigned i = 0; on && i < g->nr; i++) {
		g->v[i].owed_bytes = 0;
		g->v[i].settled_ns = g->v[i].window_ns = now;
	}
	monitor_broadcast(&g->mon);
	monitor_unlock(&g->mon);
}

bool kvm_gate_wait(struct kvm_gate *g, uint64_t deadline, uint64_t *turn)
{
	bool on;

	monitor_lock(&g->mon);
	while (g->tracking && g->done >= g->wanted && monitor_wait(&g->mon, deadline))
		;
	*turn = g->wanted;
	on = g->tracking;
	monitor_unlock(&g->mon);
	return on;
}

void kvm_gate_done(struct kvm_gate *g, uint64_t turn)
{
	monitor_lock(&g->mon);
	g->done = turn;
	monitor_broadcast(&g->mon);
	monitor_unlock(&g->mon);
}

void kvm_gate_harvested(struct kvm_gate *g, unsigned i, uint64_t pages)
{
	struct kvm_gate_vcpu *v = &g->v[i];

	monitor_lock(&g->mon);
	owed_ns(g, v);
	v->owed_bytes += (double)pages * TERN_PAGE_SIZE;
	v->window_pages += pages;
	v->stats.dirty_pages += pages;
	monitor_unlock(&g->mon);
}

bool kvm_gate_owes(struct kvm_gate *g, unsigned i)
{
	monitor_lock(&g->mon);
	bool owes = owed_ns(g, &g->v[i]) != 0;

	monitor_unlock(&g->mon);
	return owes;
}

void kvm_gate_measure(struct kvm_gate *g)
{
	uint64_t now = now_ns();

	monitor_lock(&g->mon);
	for (unsigned i = 0; i < g->nr; i++) {
		struct kvm_gate_vcpu *v = &g->v[i];

		if (now <= v->window_ns)
			continue;
		v->stats.dirty_rate = (uint64_t)((double)(v->window_pages * TERN_PAGE_SIZE) * 1e9 /
						 (double)(now - v->window_ns));
		v->window_pages = 0;
		v->window_ns = now;
	}
	monitor_unlock(&g->mon);
}

void kvm_gate_stats(struct kvm_gate *g, unsigned i, struct tern_vcpu_stats *out)
{
	monitor_lock(&g->mon);
	*out = g->v[i].stats;
	monitor_unlock(&g->mon);
}
