/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_SRC_TOPOLOGY_PRIVATE_H
#define TERN_SRC_TOPOLOGY_PRIVATE_H

/* The inside of a topology; for topology.c and cpus.c only. */

#include <hwloc.h>
#include "topology.h"

struct topology {
	hwloc_topology_t hw;
	hwloc_cpuset_t usable; /* CPUs this process may use */
	hwloc_obj_t *node; /* nodes that have memory, by the kernel's number */
	unsigned nr_nodes;
};

/*
 * topology_new_synthetic - a machine that is not there, by hwloc's description of it
 * ("node:2 core:2 pu:2").  For tests.  As topology_new(), or -EINVAL.
 */
int topology_new_synthetic(const char *description, struct topology **out);

#endif
