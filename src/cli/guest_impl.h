/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_CLI_GUEST_IMPL_H
#define TERN_CLI_GUEST_IMPL_H

/* The inside of a guest; for guest*.c only. */

#include <pthread.h>
#include <stdatomic.h>
#include "guest.h"

/* observed[] of a working-set page that no destination vCPU has overwritten. */
#define GUEST_UNSEEN 0u
/* … and of one that held neither its stamp's version nor version 0. */
#define GUEST_TORN UINT64_MAX

/* One vCPU; each on cache lines of its own. */
struct guest_vcpu {
	struct guest *guest;
	unsigned index;
	pthread_t thread;
	uint64_t slice_first; /* its part of the working set: first page … */
	uint64_t slice_pages; /* … and number of pages; set while paused */
	uint64_t handover; /* k at guest_load(); set while paused */
	struct histogram *touch; /* destination: first accesses; its thread, or while paused */
	_Atomic uint64_t k; /* pages written; written by its thread, read by any */
	_Atomic uint64_t gap_ns; /* longest gap; the same */
	/* Its thread only: */
	uint64_t epoch; /* guest.epoch its pace is counted from */
	uint64_t base_ns, base_k; /* k was base_k at base_ns */
	uint64_t expected_ns; /* when its next iteration should begin */
} __attribute__((aligned(128)));

struct guest {
	struct guest_config cfg; /* changed by guest_load() only, while paused */
	struct layout layout;
	struct content content;
	struct guest_region *regions;
	unsigned nr_regions;
	struct guest_vcpu *vcpus; /* GUEST_VCPUS_MAX of them, slices empty beyond cfg.vcpus */
	unsigned nr_threads; /* vcpus[] with a thread */

	/*
	 * Destination: per working-set page, version + 1 that it held when first
	 * overwritten here.  Written by the vCPU that owns the page, read while
	 * paused.  NULL on the source.
	 */
	uint64_t *observed;
	struct histogram *touch; /* memory of all vcpus[].touch, or NULL */

	pthread_mutex_t lock; /* the fields below */
	pthread_cond_t wake; /* resumed, quit, or (timed) a sleep's end */
	pthread_cond_t stopped; /* paused and nr_running == 0 */
	unsigned nr_running; /* vCPU threads that may write a page now */
	bool paused, quit;
	bool resting; /* runs, and has nothing to do */
	uint64_t epoch; /* counts guest_resume() */
	uint64_t resumed_ns; /* when that was */
	_Atomic bool logging; /* page writes go into the regions' dirty logs */
	_Atomic bool halt; /* a hint to leave the write loop; set under the lock */
};

/* guest_log_mark - a vCPU has written page @page of guest RAM. */
void guest_log_mark(struct guest *g, uint64_t page);

/* guest_lay_out - set g->layout by g->cfg.  While paused. */
void guest_lay_out(struct guest *g);

/* guest_slice - give all vCPUs their slices of the working set.  While paused. */
void guest_slice(struct guest *g);

/* guest_target - the working-set number of the page that the k-th write of @v goes to. */
uint64_t guest_target(const struct guest *g, const struct guest_vcpu *v, uint64_t k);

/* guest_node - the @i-th NUMA node (modulo their number) with memory; -1 if unknown. */
int guest_node(unsigned i);

/* guest_bind_memory - have @r's memory allocated on its node.  0 or -errno. */
int guest_bind_memory(const struct guest_region *r);

/* guest_bind_vcpu - run the calling thread on CPUs of the node of @v's pages. */
void guest_bind_vcpu(const struct guest_vcpu *v);

/* guest_find_region - the region that page @page of guest RAM is in. */
const struct guest_region *guest_find_region(const struct guest *g, uint64_t page);

#endif
