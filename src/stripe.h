/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_SRC_STRIPE_H
#define TERN_SRC_STRIPE_H

/*
 * Stripes: who sends what in a round.
 *
 * Regions are cut into stripes of a fixed size (aligned to region begin, the
 * last one shorter).  All stripes of one NUMA node form a queue.  In each phase a
 * worker claims stripes one by one, first from its own node's queue, then, when
 * that is empty, from the others.  A claimed stripe is the worker's until the
 * phase ends; every phase that sends ends with a fence on every channel, so
 * ownership moves only across fences (invariant 3).
 *
 *	region 0 (node 0)   |s0|s1|s2|s3|s|      queue of node 0: 0..4, 5..6
 *	region 1 (node 0)   |s0|s1|              queue of node 1: 0..3
 *	region 2 (node 1)   |s0|s1|s2|s3|
 *
 * Claiming is one atomic add; nothing else is shared.
 */

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "region.h"

#define STRIPE_NODES_MAX 64u

struct stripe {
	struct region *region;
	uint64_t first_page;
	uint64_t nr_pages;
};

struct stripe_queue {
	int node;                 /* NUMA node, TERN_NODE_ANY for regions without one */
	uint64_t nr;              /* stripes */
	unsigned nr_regions;
	struct region **regions;
	uint64_t *begin;          /* begin[i]: number of the first stripe of regions[i] */
	_Alignas(64) atomic_uint_fast64_t next;
};

struct stripe_map {
	uint64_t stripe_pages;
	unsigned nr_queues;
	struct stripe_queue *queues;
};

/* stripe_map_init - cut all regions.  @stripe_bytes is raised to the largest host page. */
int stripe_map_init(struct stripe_map *map, struct region_list *regions, uint64_t stripe_bytes);
void stripe_map_fini(struct stripe_map *map);

/* stripe_map_rewind - begin a phase: all stripes are free.  No worker may be claiming. */
void stripe_map_rewind(struct stripe_map *map);

/*
 * stripe_claim - take the next free stripe.
 *
 * @node: the worker's; its queue is tried first.  Returns false when all are taken.
 * Any worker, concurrently.
 */
bool stripe_claim(struct stripe_map *map, int node, struct stripe *out);

#endif
