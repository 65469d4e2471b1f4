/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_SRC_TOPOLOGY_H
#define TERN_SRC_TOPOLOGY_H

/*
 * Facts about the machine, from hwloc and libnuma: NUMA nodes, their CPUs, and
 * which node a range of memory is on.  Read once; constant afterwards.
 * Which CPUs a thread gets is cpus.h's matter.
 */

#include <stddef.h>
#include <stdint.h>

struct topology;

/* topology_new - read the machine.  0, -ENOMEM, or hwloc's errno negated. */
int topology_new(struct topology **out);
void topology_delete(struct topology **t);

/* Nodes that have memory; node numbers are the kernel's. */
unsigned topology_nr_nodes(const struct topology *t);
int topology_node_id(const struct topology *t, unsigned index);
uint64_t topology_node_bytes(const struct topology *t, unsigned index);

/* CPUs of node @index that this process may use, as a list like "0-3,8"; as snprintf(). */
int topology_node_cpus(const struct topology *t, unsigned index, char *buf, size_t size);
unsigned topology_nr_cpus(const struct topology *t); /* that this process may use */

/*
 * topology_node_of - node of the memory [p, p + size), by the first pages that
 * exist (they are not touched), else by the mapping's policy; TERN_NODE_ANY if
 * the kernel does not say.
 */
int topology_node_of(const void *p, uint64_t size);

#endif
