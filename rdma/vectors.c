/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * Completion vectors and the nodes of their interrupts.
 *
 * Verbs only count vectors.  Which interrupt belongs to a vector is the driver's
 * business, but drivers that give each vector an interrupt of its own say so in the
 * interrupt's name: "mlx5_comp3@pci:0000:3b:00.0" is vector 3.  The device lists its
 * interrupts in /sys, and each has a folder in /proc/irq with its affinity and a
 * folder of its name:
 *
 *	…/mlx5_0/device/msi_irqs/131      /proc/irq/131/mlx5_comp3@pci:0000:3b:00.0/
 *	                                  /proc/irq/131/smp_affinity_list: 24
 *
 * An interrupt that may arrive on CPUs of several nodes has no node.
 */

#define _GNU_SOURCE
#include <dirent.h>
#include <numa.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tern/region.h>
#include "place.h"

/* The node of all CPUs of a list such as "0-3,8"; TERN_NODE_ANY if there are several. */
static int node_of_list(const char *text)
{
	int node = TERN_NODE_ANY;

	while (*text >= '0' && *text <= '9') {
		char *end;
		unsigned long first = strtoul(text, &end, 10), last = first;

		if (*end == '-')
			last = strtoul(end + 1, &end, 10);
		for (; first <= last && first < PLACE_CPUS_MAX; first++) {
			int n = numa_node_of_cpu((int)first);

			if (n < 0 || (node != TERN_NODE_ANY && n != node))
				return TERN_NODE_ANY;
			node = n;
		}
		text = *end == ',' ? end + 1 : "";
	}
	return node;
}

/* The node of interrupt @dir. */
static int irq_node(const char *dir)
{
	char path[600], text[256];
	int node = TERN_NODE_ANY;
	FILE *f;

	snprintf(path, sizeof(path), "%s/smp_affinity_list", dir);
	f = fopen(path, "re");
	if (!f)
		return node;
	if (fgets(text, sizeof(text), f))
		node = node_of_list(text);
	fclose(f);
	return node;
}

/* The vector of interrupt @dir, by its name; -1 if it is none. */
static int irq_vector(const char *dir)
{
	int vector = -1;
	DIR *d = opendir(dir);

	for (struct dirent *e; d && vector < 0 && (e = readdir(d));) {
		const char *at = strstr(e->d_name, "_comp");
		char *end;

		if (!at || at[5] < '0' || at[5] > '9')
			continue;
		vector = (int)strtoul(at + 5, &end, 10);
		if (*end && *end != '@')
			vector = -1;
	}
	if (d)
		closedir(d);
	return vector;
}

void place_vectors_read(const char *path, const char *irq_dir, int nr, struct place_vectors *out)
{
	char dir[512];
	DIR *d;

	out->nr = nr < 1 ? 1 : (unsigned)nr;
	if (out->nr > PLACE_VECTORS_MAX)
		out->nr = PLACE_VECTORS_MAX;
	for (unsigned i = 0; i < PLACE_VECTORS_MAX; i++)
		out->node[i] = TERN_NODE_ANY;
	snprintf(dir, sizeof(dir), "%s/device/msi_irqs", path);
	d = path[0] ? opendir(dir) : NULL;
	for (struct dirent *e; d && (e = readdir(d));) {
		int vector;

		if (e->d_name[0] < '0' || e->d_name[0] > '9')
			continue;
		snprintf(dir, sizeof(dir), "%s/%.16s", irq_dir, e->d_name);
		vector = irq_vector(dir);
		if (vector >= 0 && (unsigned)vector < out->nr)
			out->node[vector] = (int16_t)irq_node(dir);
	}
	if (d)
		closedir(d);
}

unsigned place_vector_for(const struct place_vectors *v, int node, unsigned nth, unsigned index)
{
	unsigned nr = 0;

	for (unsigned i = 0; node != TERN_NODE_ANY && i < v->nr; i++)
		nr += v->node[i] == node;
	if (!nr)
		return index % v->nr;
	nth %= nr;
	for (unsigned i = 0; i < v->nr; i++)
		if (v->node[i] == node && !nth--)
			return i;
	return 0; /* not reached */
}
