/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * The synthetic guest over several NUMA nodes (--numa-split).
 *
 * Region i lies on the i-th of the nodes that have memory and that the process may
 * use, in turn.  The node is preferred rather than demanded: a node that is full
 * makes the guest slow and does not kill it.  A vCPU runs on the CPUs of the node
 * where the middle of its part of the working set lies, as far as its affinity allows.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <numa.h>
#include <numaif.h>
#include <sched.h>
#include "guest_impl.h"

#define CPUS_MAX 8192
#define NODES_MAX 1024u
#define MASK_BITS (8 * sizeof(unsigned long))

/* Whether the process may allocate on node @n, and the node has memory. */
static bool node_usable(int n)
{
	return numa_bitmask_isbitset(numa_all_nodes_ptr, (unsigned)n);
}

unsigned guest_nr_nodes(void)
{
	unsigned nr = 0;

	if (numa_available() < 0)
		return 1;
	for (int n = 0; n <= numa_max_node(); n++)
		nr += node_usable(n);
	return nr ? nr : 1;
}

/* The @i-th node; see guest_impl.h. */
int guest_node(unsigned i)
{
	if (numa_available() < 0)
		return -1;
	i %= guest_nr_nodes();
	for (int n = 0; n <= numa_max_node(); n++)
		if (node_usable(n) && !i--)
			return n;
	return -1;
}

/* The policy of a region's memory; see guest_impl.h. */
int guest_bind_memory(const struct guest_region *r)
{
	unsigned long mask[NODES_MAX / MASK_BITS] = { 0 };
	unsigned node = (unsigned)r->node;

	if (node >= NODES_MAX)
		return -EINVAL;
	mask[node / MASK_BITS] = 1ul << node % MASK_BITS;
	if (mbind(r->hva, r->nr_pages * GUEST_PAGE_SIZE, MPOL_PREFERRED, mask, NODES_MAX, 0))
		return -errno;
	return 0;
}

/* Cut the calling thread's affinity down to @node, unless nothing would be left. */
static void run_on_node(int node)
{
	struct bitmask *cpus = numa_allocate_cpumask();
	cpu_set_t *set = CPU_ALLOC(CPUS_MAX);
	size_t bytes = CPU_ALLOC_SIZE(CPUS_MAX);

	if (cpus && set && !numa_node_to_cpus(node, cpus) && !sched_getaffinity(0, bytes, set)) {
		for (unsigned i = 0; i < CPUS_MAX; i++)
			if (i >= cpus->size || !numa_bitmask_isbitset(cpus, i))
				CPU_CLR_S(i, bytes, set);
		if (CPU_COUNT_S(bytes, set))
			(void)sched_setaffinity(0, bytes, set);
	}
	if (cpus)
		numa_free_cpumask(cpus);
	CPU_FREE(set);
}

/* Where a vCPU runs; see guest_impl.h. */
void guest_bind_vcpu(const struct guest_vcpu *v)
{
	const struct guest *g = v->guest;
	const struct guest_region *r;

	if (!g->cfg.numa_split || !v->slice_pages)
		return;
	r = guest_find_region(g, layout_ws_page(&g->layout, v->slice_first + v->slice_pages / 2));
	if (r->node >= 0)
		run_on_node(r->node);
}
