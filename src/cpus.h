/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_SRC_CPUS_H
#define TERN_SRC_CPUS_H

/*
 * On which CPUs a session's threads run: near their memory and the network
 * device, within a budget.
 *
 * A budget is a number of CPUs ("4"), of which the nearest are chosen, or a list
 * ("0-3,8").  Made once; constant afterwards.
 */

#include <stdbool.h>
#include <stddef.h>

#define CPUS_NR_MAX 8192u /* CPUs a kernel can have */
#define CPUS_NODES_MAX 64u

struct topology;
struct tern_error;
struct cpus;

/* What is chosen for. */
struct cpus_config {
	const struct topology *topology; /* must outlive the result */
	const char *budget; /* number or list; NULL or "": all that the process may use */
	const int *nodes; /* of the memory, in the order in which channels are dealt */
	unsigned nr_nodes;
	const char *device_cpus; /* nearest to the device, as a list; NULL or "": not known */
};

/*
 * cpus_budget_check - is @text a budget?  0, or -EINVAL with a sentence.
 * Says nothing about what the machine has.
 */
int cpus_budget_check(const char *text, struct tern_error *err);

/*
 * cpus_new - choose.
 *
 * 0; -ENOMEM; -EINVAL for a budget that is none, or a list with a CPU that the
 * process may not use, with a sentence.  A number above what there is means all.
 */
int cpus_new(const struct cpus_config *config, struct cpus **out, struct tern_error *err);
void cpus_delete(struct cpus **cpus);

/* cpus_bounded - was there a budget? */
bool cpus_bounded(const struct cpus *cpus);

/* cpus_nr - CPUs chosen; all that the process may use if there is no budget. */
unsigned cpus_nr(const struct cpus *cpus);

/*
 * cpus_bind - run the calling thread on the CPUs for memory of @node.
 *
 * TERN_NODE_ANY: on those for memory without a node, which are the device's where
 * they are known, else all chosen.  A node without CPUs in the budget: on those of the nearest node
 * that has some.  0 or -errno.
 */
int cpus_bind(const struct cpus *cpus, int node);

/* cpus_bind_all - run the calling thread on all CPUs chosen.  0 or -errno. */
int cpus_bind_all(const struct cpus *cpus);

/* cpus_near_device - is something known about the device, so that memory without a node
 * has CPUs of its own? */
bool cpus_near_device(const struct cpus *cpus);

/* cpus_list - the same CPUs as a list ("0-3,8"), as snprintf(). */
int cpus_list(const struct cpus *cpus, int node, char *buf, size_t size);

/* cpus_list_all - all CPUs chosen. */
int cpus_list_all(const struct cpus *cpus, char *buf, size_t size);

/* cpus_list_thread - CPUs that the calling thread may run on now, asked from the kernel. */
void cpus_list_thread(char *buf, size_t size);

#endif
