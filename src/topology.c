/* SPDX-License-Identifier: BSD-2-Clause */
#define _GNU_SOURCE
#include "topology.h"

#include <errno.h>
#include <numa.h>
#include <numaif.h>
#include <sched.h>
#include <stdlib.h>
#include <tern/region.h>
#include "topology_private.h"

/*
 * Facts about the machine.
 *
 * hwloc reads nodes and CPUs once; the set of CPUs that the process may use is
 * taken from the affinity of the thread that calls topology_new(), and is cut
 * from every node's CPUs, so that binding a thread never widens what the
 * operator allowed.  Nothing changes afterwards: all functions may be called
 * from any thread.
 *
 * Where memory is comes from move_pages(2) without target nodes, which looks
 * into the page table and touches nothing, and, for memory that does not exist
 * yet, from its policy.
 */

enum {
	PLACEMENT_SAMPLES = 256, /* addresses asked in one call */
	PLACEMENT_ROUNDS = 16, /* calls, each over a part of the range */
};

/* topology_usable - *out: CPUs of the calling thread's affinity.  0 or -errno. */
static int topology_usable(hwloc_topology_t hw, hwloc_cpuset_t *out)
{
	hwloc_cpuset_t set = hwloc_bitmap_alloc();

	if (!set)
		return -ENOMEM;
	if (!hwloc_topology_is_thissystem(hw) || hwloc_get_cpubind(hw, set, HWLOC_CPUBIND_THREAD) ||
	    hwloc_bitmap_iszero(set))
		hwloc_bitmap_copy(set, hwloc_topology_get_allowed_cpuset(hw));
	*out = set;
	return 0;
}

/* topology_compare_nodes - order by the kernel's number, for qsort(). */
static int topology_compare_nodes(const void *a, const void *b)
{
	const hwloc_obj_t x = *(const hwloc_obj_t *)a, y = *(const hwloc_obj_t *)b;

	return x->os_index < y->os_index ? -1 : x->os_index > y->os_index;
}

/* topology_read_nodes - collect the nodes that have memory.  0 or -ENOMEM. */
static int topology_read_nodes(struct topology *t)
{
	int nr = hwloc_get_nbobjs_by_type(t->hw, HWLOC_OBJ_NUMANODE);
	hwloc_obj_t obj = NULL;

	t->node = calloc(nr > 0 ? (size_t)nr : 1, sizeof(t->node[0]));
	if (!t->node)
		return -ENOMEM;
	while ((obj = hwloc_get_next_obj_by_type(t->hw, HWLOC_OBJ_NUMANODE, obj)))
		if (obj->attr->numanode.local_memory)
			t->node[t->nr_nodes++] = obj;
	qsort(t->node, t->nr_nodes, sizeof(t->node[0]), topology_compare_nodes);
	return 0;
}

/*
 * topology_load - hwloc's tree with no more than nodes, cores and CPUs.  0 or -errno.
 *
 * Groups are kept because hwloc hangs a node below the smallest object that has the
 * node's CPUs, and gives the node that object's: without groups that is the machine,
 * and each node would seem to have all CPUs.  @synthetic: a machine that is not there.
 */
static int topology_load(const char *synthetic, hwloc_topology_t *out)
{
	hwloc_topology_t hw;

	if (hwloc_topology_init(&hw))
		return errno ? -errno : -ENOMEM;
	if ((synthetic && hwloc_topology_set_synthetic(hw, synthetic)) ||
	    hwloc_topology_set_all_types_filter(hw, HWLOC_TYPE_FILTER_KEEP_NONE) ||
	    hwloc_topology_set_type_filter(hw, HWLOC_OBJ_GROUP, HWLOC_TYPE_FILTER_KEEP_STRUCTURE) ||
	    hwloc_topology_set_type_filter(hw, HWLOC_OBJ_CORE, HWLOC_TYPE_FILTER_KEEP_ALL) ||
	    hwloc_topology_load(hw)) {
		int ret = errno ? -errno : -EIO;

		hwloc_topology_destroy(hw);
		return ret;
	}
	*out = hw;
	return 0;
}

/* topology_make - read the machine, or the one that @synthetic describes. */
static int topology_make(const char *synthetic, struct topology **out)
{
	struct topology *t = calloc(1, sizeof(*t));
	int ret;

	if (!t)
		return -ENOMEM;
	ret = topology_load(synthetic, &t->hw);
	if (ret)
		goto free_t;
	ret = topology_usable(t->hw, &t->usable);
	if (!ret)
		ret = topology_read_nodes(t);
	if (ret) {
		topology_delete(&t);
		return ret;
	}
	*out = t;
	return 0;
free_t:
	free(t);
	return ret;
}

int topology_new(struct topology **out)
{
	return topology_make(NULL, out);
}

int topology_new_synthetic(const char *description, struct topology **out)
{
	return topology_make(description, out);
}

void topology_delete(struct topology **t)
{
	if (!t || !*t)
		return;
	hwloc_bitmap_free((*t)->usable);
	hwloc_topology_destroy((*t)->hw);
	free((*t)->node);
	free(*t);
	*t = NULL;
}

unsigned topology_nr_nodes(const struct topology *t)
{
	return t->nr_nodes;
}

int topology_node_id(const struct topology *t, unsigned index)
{
	return index < t->nr_nodes ? (int)t->node[index]->os_index : TERN_NODE_ANY;
}

uint64_t topology_node_bytes(const struct topology *t, unsigned index)
{
	return index < t->nr_nodes ? t->node[index]->attr->numanode.local_memory : 0;
}

/* topology_node_set - new set of the usable CPUs of @node, or NULL (no memory). */
static hwloc_cpuset_t topology_node_set(const struct topology *t, hwloc_obj_t node)
{
	hwloc_cpuset_t set = hwloc_bitmap_alloc();

	if (set)
		hwloc_bitmap_and(set, node->cpuset, t->usable);
	return set;
}

int topology_node_cpus(const struct topology *t, unsigned index, char *buf, size_t size)
{
	hwloc_cpuset_t set;
	int n;

	if (size)
		buf[0] = '\0';
	if (index >= t->nr_nodes)
		return 0;
	set = topology_node_set(t, t->node[index]);
	if (!set)
		return -ENOMEM;
	n = hwloc_bitmap_list_snprintf(buf, size, set);
	hwloc_bitmap_free(set);
	return n;
}

unsigned topology_nr_cpus(const struct topology *t)
{
	int n = hwloc_bitmap_weight(t->usable);

	return n > 0 ? (unsigned)n : 1;
}

/*
 * topology_placed_on - node of the first page that exists among @nr addresses
 * from @p on, @step bytes apart; TERN_NODE_ANY if none exists.
 */
static int topology_placed_on(const uint8_t *p, uint64_t step, unsigned nr)
{
	void *page[PLACEMENT_SAMPLES];
	int status[PLACEMENT_SAMPLES];

	for (unsigned i = 0; i < nr; i++)
		page[i] = (void *)(uintptr_t)(p + i * step);
	if (move_pages(0, nr, page, NULL, status, 0))
		return TERN_NODE_ANY;
	for (unsigned i = 0; i < nr; i++)
		if (status[i] >= 0)
			return status[i];
	return TERN_NODE_ANY;
}

/* topology_policy_of - the one node that the policy of @p names, or TERN_NODE_ANY. */
static int topology_policy_of(const void *p)
{
	struct bitmask *mask = numa_allocate_nodemask();
	int mode = MPOL_DEFAULT, node = TERN_NODE_ANY;

	if (!mask)
		return TERN_NODE_ANY;
	if (!get_mempolicy(&mode, mask->maskp, mask->size + 1, (void *)(uintptr_t)p, MPOL_F_ADDR) &&
	    (mode == MPOL_BIND || mode == MPOL_PREFERRED) && numa_bitmask_weight(mask) == 1)
		for (unsigned i = 0; i < mask->size; i++)
			if (numa_bitmask_isbitset(mask, i))
				node = (int)i;
	numa_bitmask_free(mask);
	return node;
}

int topology_node_of(const void *p, uint64_t size)
{
	const uint8_t *base = p;
	uint64_t nr_pages = size / TERN_PAGE_SIZE;
	uint64_t samples = PLACEMENT_SAMPLES * PLACEMENT_ROUNDS;
	int node = TERN_NODE_ANY;

	if (samples > nr_pages)
		samples = nr_pages;
	uint64_t step = samples ? nr_pages / samples * TERN_PAGE_SIZE : 0;

	/* Small memory is asked page by page, large memory at even distances. */
	for (uint64_t i = 0; i < samples && node == TERN_NODE_ANY; i += PLACEMENT_SAMPLES) {
		uint64_t nr = samples - i < PLACEMENT_SAMPLES ? samples - i : PLACEMENT_SAMPLES;

		node = topology_placed_on(base + i * step, step, (unsigned)nr);
	}
	return node == TERN_NODE_ANY ? topology_policy_of(p) : node;
}
