/* SPDX-License-Identifier: BSD-2-Clause */
#define _GNU_SOURCE
#include "cpus.h"

#include <errno.h>
#include <limits.h>
#include <numa.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <tern/region.h>
#include "error.h"
#include "topology_private.h"

/*
 * Choosing CPUs.
 *
 *	usable    what the affinity and the cpuset of the process allow
 *	chosen    the part of it that is within the budget
 *	set[i]    of chosen, the CPUs of node[i], or of the nearest node with any
 *	any       of chosen, the CPUs near the device, or all
 *
 * A budget of a number is dealt out one CPU at a time, to the memory's nodes in
 * turn, so that each node gets its share.  A node's CPUs are ranked: those near
 * the device first; among those, one of each core before its siblings.  When all
 * CPUs of the memory's nodes are taken, those of other nodes follow.  Without
 * memory that has a node, the device's CPUs rank first and the others follow.
 *
 * So a budget smaller than the number of nodes leaves nodes without a CPU; their
 * threads run on the nearest node that has one.  The same goes for nodes that have
 * memory and no CPUs at all.
 */

struct cpus {
	const struct topology *topology;
	bool bounded;
	hwloc_cpuset_t chosen;
	hwloc_cpuset_t any;
	hwloc_cpuset_t set[CPUS_NODES_MAX]; /* by the topology's index of the node */
};

/* Read "N" or "N-M" at *@text, and go behind it.  0 or -EINVAL. */
static int range_read(const char **text, unsigned *first, unsigned *last)
{
	unsigned *out[] = { first, last };

	for (int i = 0; i < 2; i++) {
		unsigned v = 0;

		if (**text < '0' || **text > '9')
			return -EINVAL;
		for (; **text >= '0' && **text <= '9'; ++*text)
			v = v < CPUS_NR_MAX ? v * 10 + (unsigned)(**text - '0') : v;
		if (v >= CPUS_NR_MAX)
			return -EINVAL;
		*out[i] = v;
		if (i || **text != '-') {
			*last = v;
			break;
		}
		++*text;
	}
	return *first <= *last ? 0 : -EINVAL;
}

/* The CPUs of a list, into @set (may be NULL).  0 or -EINVAL. */
static int list_read(const char *text, hwloc_bitmap_t set)
{
	unsigned first, last;

	do {
		if (range_read(&text, &first, &last))
			return -EINVAL;
		if (set && hwloc_bitmap_set_range(set, first, (int)last))
			return -ENOMEM;
	} while (*text++ == ',');
	return text[-1] ? -EINVAL : 0;
}

/* A plain number?  Then *@nr is it, up to CPUS_NR_MAX; above that CPUS_NR_MAX + 1. */
static bool number_read(const char *text, unsigned *nr)
{
	unsigned v = 0;

	if (!*text || text[strspn(text, "0123456789")])
		return false;
	for (; *text; text++)
		v = v <= CPUS_NR_MAX ? v * 10 + (unsigned)(*text - '0') : v;
	*nr = v <= CPUS_NR_MAX ? v : CPUS_NR_MAX + 1;
	return true;
}

int cpus_budget_check(const char *text, struct tern_error *err)
{
	unsigned nr;

	if (!text || !*text)
		return 0;
	if (number_read(text, &nr)) {
		if (nr >= 1 && nr <= CPUS_NR_MAX)
			return 0;
	} else if (!list_read(text, NULL)) {
		return 0;
	}
	return error_session(err, -EINVAL,
			     "a CPU budget of \"%.64s\" is not possible; give a number of CPUs "
			     "from 1 to %u, or a list such as 0-3,8 (one CPU: 3-3)",
			     text, CPUS_NR_MAX);
}

/* Index of @node in the topology; -1 if it has no such node. */
static int node_index(const struct topology *t, int node)
{
	for (unsigned i = 0; i < t->nr_nodes && i < CPUS_NODES_MAX; i++)
		if ((int)t->node[i]->os_index == node)
			return (int)i;
	return -1;
}

/* How far apart two nodes are; the kernel's measure, 10 is the same node. */
static int node_distance(const struct topology *t, unsigned a, unsigned b)
{
	int d = 0;

	if (a == b)
		return 10;
	if (hwloc_topology_is_thissystem(t->hw))
		d = numa_distance((int)t->node[a]->os_index, (int)t->node[b]->os_index);
	return d > 0 ? d : INT_MAX;
}

/*
 * Add to @out one CPU of @from that is not in @taken: of those in @near first, and the
 * first of a core before its siblings.  False if none is left.
 */
static bool take_one(hwloc_topology_t hw, hwloc_const_bitmap_t from, hwloc_const_bitmap_t near,
		     hwloc_bitmap_t taken)
{
	int best = -1, best_rank = INT_MAX, cpu;

	hwloc_bitmap_foreach_begin(cpu, from)
	{
		hwloc_obj_t core = hwloc_get_ancestor_obj_by_type(
			hw, HWLOC_OBJ_CORE, hwloc_get_pu_obj_by_os_index(hw, (unsigned)cpu));
		int rank = 0;

		if (hwloc_bitmap_isset(taken, (unsigned)cpu))
			continue;
		if (near && !hwloc_bitmap_isset(near, (unsigned)cpu))
			rank += 2;
		if (core && hwloc_bitmap_intersects(core->cpuset, taken))
			rank += 1;
		if (rank < best_rank) {
			best = cpu;
			best_rank = rank;
		}
	}
	hwloc_bitmap_foreach_end();
	return best >= 0 && !hwloc_bitmap_set(taken, (unsigned)best);
}

/* A CPU for node index @i: its own, else of the nearest node that has one left, else any. */
static bool take_near(const struct topology *t, int i, hwloc_const_bitmap_t near,
		      hwloc_bitmap_t taken)
{
	hwloc_bitmap_t left = hwloc_bitmap_alloc();
	int best = -1, best_distance = INT_MAX;
	bool ok;

	if (!left)
		return false;
	for (unsigned k = 0; i >= 0 && k < t->nr_nodes; k++) {
		int d = node_distance(t, (unsigned)i, k);

		hwloc_bitmap_and(left, t->node[k]->cpuset, t->usable);
		hwloc_bitmap_andnot(left, left, taken);
		if (!hwloc_bitmap_iszero(left) && d < best_distance) {
			best = (int)k;
			best_distance = d;
		}
	}
	if (best >= 0)
		hwloc_bitmap_and(left, t->node[best]->cpuset, t->usable);
	else
		hwloc_bitmap_copy(left, t->usable);
	ok = take_one(t->hw, left, near, taken);
	hwloc_bitmap_free(left);
	return ok;
}

/* @nr CPUs into the empty @chosen.  See above. */
static void choose_number(const struct cpus_config *c, unsigned nr, hwloc_const_bitmap_t near,
			  hwloc_bitmap_t chosen)
{
	const struct topology *t = c->topology;
	int nodes[CPUS_NODES_MAX];
	hwloc_bitmap_t own = hwloc_bitmap_alloc();
	unsigned nr_nodes = 0, given = 0, idle = 0;

	for (unsigned i = 0; i < c->nr_nodes && nr_nodes < CPUS_NODES_MAX; i++)
		if (node_index(t, c->nodes[i]) >= 0)
			nodes[nr_nodes++] = node_index(t, c->nodes[i]);
	/* In turn, until all of the memory's nodes have no CPU left. */
	for (unsigned i = 0; own && nr_nodes && given < nr && idle < nr_nodes; i++) {
		hwloc_bitmap_and(own, t->node[nodes[i % nr_nodes]]->cpuset, t->usable);
		if (take_one(t->hw, own, near, chosen)) {
			given++;
			idle = 0;
		} else {
			idle++;
		}
	}
	for (unsigned i = 0; given < nr; i++, given++)
		if (!take_near(t, nr_nodes ? nodes[i % nr_nodes] : -1, near, chosen))
			break;
	hwloc_bitmap_free(own);
}

/* A list into the empty @chosen.  0 or -errno with *err. */
static int choose_list(const struct cpus_config *c, hwloc_bitmap_t chosen, struct tern_error *err)
{
	hwloc_bitmap_t over = hwloc_bitmap_alloc();
	char bad[64], have[96];
	int ret = over ? list_read(c->budget, chosen) : -ENOMEM;

	if (ret) {
		hwloc_bitmap_free(over);
		return error_session(err, ret, "cannot read the CPU list \"%.64s\"", c->budget);
	}
	hwloc_bitmap_andnot(over, chosen, c->topology->usable);
	if (!hwloc_bitmap_iszero(over)) {
		hwloc_bitmap_list_snprintf(bad, sizeof(bad), over);
		hwloc_bitmap_list_snprintf(have, sizeof(have), c->topology->usable);
		ret = error_session(err, -EINVAL,
				    "the CPU budget %.64s has CPUs that this process may not use: "
				    "%s; it may use %s (affinity, cpuset of its cgroup)",
				    c->budget, bad, have);
	}
	hwloc_bitmap_free(over);
	return ret;
}

/* The CPUs within the budget.  0 or -errno with *err. */
static int choose(struct cpus *s, const struct cpus_config *c, hwloc_const_bitmap_t near,
		  struct tern_error *err)
{
	unsigned nr;
	int ret = cpus_budget_check(c->budget, err);

	if (ret)
		return ret;
	s->bounded = c->budget && *c->budget;
	if (!s->bounded) {
		hwloc_bitmap_copy(s->chosen, c->topology->usable);
		return 0;
	}
	if (!number_read(c->budget, &nr))
		return choose_list(c, s->chosen, err);
	choose_number(c, nr, near, s->chosen);
	return hwloc_bitmap_iszero(s->chosen)
		       ? error_session(err, -ENOMEM, "no memory for choosing CPUs")
		       : 0;
}

/* Fill set[@i]: CPUs of that node, or of the nearest with any. */
static void set_node(struct cpus *s, unsigned i)
{
	const struct topology *t = s->topology;
	int best = INT_MAX;

	hwloc_bitmap_copy(s->set[i], s->chosen);
	for (unsigned k = 0; k < t->nr_nodes; k++) {
		int d = node_distance(t, i, k);

		if (d < best && hwloc_bitmap_intersects(t->node[k]->cpuset, s->chosen)) {
			hwloc_bitmap_and(s->set[i], t->node[k]->cpuset, s->chosen);
			best = d;
		}
	}
}

/* What is chosen, by node.  0 or -ENOMEM. */
static int set_all(struct cpus *s, hwloc_const_bitmap_t near)
{
	s->any = hwloc_bitmap_dup(s->chosen);
	if (!s->any)
		return -ENOMEM;
	if (near && hwloc_bitmap_intersects(near, s->chosen))
		hwloc_bitmap_and(s->any, near, s->chosen);
	for (unsigned i = 0; i < s->topology->nr_nodes && i < CPUS_NODES_MAX; i++) {
		s->set[i] = hwloc_bitmap_alloc();
		if (!s->set[i])
			return -ENOMEM;
		set_node(s, i);
	}
	return 0;
}

int cpus_new(const struct cpus_config *config, struct cpus **out, struct tern_error *err)
{
	struct cpus *s = calloc(1, sizeof(*s));
	hwloc_bitmap_t near = NULL;
	int ret;

	if (!s)
		return error_session(err, -ENOMEM, "no memory for choosing CPUs");
	s->topology = config->topology;
	s->chosen = hwloc_bitmap_alloc();
	if (config->device_cpus && *config->device_cpus) {
		near = hwloc_bitmap_alloc();
		/* Facts of the kernel: what cannot be read is not known. */
		if (near && list_read(config->device_cpus, near)) {
			hwloc_bitmap_free(near);
			near = NULL;
		}
	}
	ret = s->chosen ? choose(s, config, near, err) : -ENOMEM;
	if (!ret && set_all(s, near))
		ret = error_session(err, -ENOMEM, "no memory for choosing CPUs");
	hwloc_bitmap_free(near);
	if (ret) {
		cpus_delete(&s);
		return ret;
	}
	*out = s;
	return 0;
}

void cpus_delete(struct cpus **cpus)
{
	struct cpus *s = cpus ? *cpus : NULL;

	if (!s)
		return;
	for (unsigned i = 0; i < CPUS_NODES_MAX; i++)
		hwloc_bitmap_free(s->set[i]);
	hwloc_bitmap_free(s->any);
	hwloc_bitmap_free(s->chosen);
	free(s);
	*cpus = NULL;
}

bool cpus_bounded(const struct cpus *cpus)
{
	return cpus->bounded;
}

unsigned cpus_nr(const struct cpus *cpus)
{
	int n = hwloc_bitmap_weight(cpus->chosen);

	return n > 0 ? (unsigned)n : 1;
}

bool cpus_near_device(const struct cpus *cpus)
{
	return !hwloc_bitmap_isequal(cpus->any, cpus->chosen);
}

/* The CPUs for @node. */
static hwloc_const_bitmap_t set_of(const struct cpus *s, int node)
{
	int i = node == TERN_NODE_ANY ? -1 : node_index(s->topology, node);

	return i < 0 ? s->any : s->set[i];
}

int cpus_bind(const struct cpus *cpus, int node)
{
	if (hwloc_set_cpubind(cpus->topology->hw, set_of(cpus, node), HWLOC_CPUBIND_THREAD))
		return errno ? -errno : -EIO;
	return 0;
}

int cpus_bind_all(const struct cpus *cpus)
{
	if (hwloc_set_cpubind(cpus->topology->hw, cpus->chosen, HWLOC_CPUBIND_THREAD))
		return errno ? -errno : -EIO;
	return 0;
}

int cpus_list(const struct cpus *cpus, int node, char *buf, size_t size)
{
	return hwloc_bitmap_list_snprintf(buf, size, set_of(cpus, node));
}

int cpus_list_all(const struct cpus *cpus, char *buf, size_t size)
{
	return hwloc_bitmap_list_snprintf(buf, size, cpus->chosen);
}

void cpus_list_thread(char *buf, size_t size)
{
	cpu_set_t *set = CPU_ALLOC(CPUS_NR_MAX);
	hwloc_bitmap_t map = hwloc_bitmap_alloc();
	size_t bytes = CPU_ALLOC_SIZE(CPUS_NR_MAX);

	buf[0] = '\0';
	if (set && map && !sched_getaffinity(0, bytes, set)) {
		for (unsigned i = 0; i < CPUS_NR_MAX; i++)
			if (CPU_ISSET_S(i, bytes, set))
				hwloc_bitmap_set(map, i);
		hwloc_bitmap_list_snprintf(buf, size, map);
	}
	hwloc_bitmap_free(map);
	CPU_FREE(set);
}
