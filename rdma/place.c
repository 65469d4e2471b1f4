/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * Places: on which node a thread runs, a buffer lies, a completion interrupt arrives.
 *
 * What the provider's library allocates for a queue (the rings, the doorbell page)
 * is touched first by the thread that makes the queue.  So that thread moves to the
 * channel's node meanwhile, and back to where it was.  Which CPUs of a node are
 * allowed is the engine's to say, see run_on() in struct transport_env.
 *
 * The device's own place is read from /sys.  A software device has none there, but
 * may lie over a network interface that has (soft-RoCE names it in "parent").
 */

#define _GNU_SOURCE
#include <errno.h>
#include <numa.h>
#include <numaif.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <tern/region.h>
#include "verbs.h"

#define PAGE 4096u
#define MASK_BITS (8 * sizeof(unsigned long))
#define NODES_MAX 1024u

void verbs_thread_on_node(struct verbs_conn *c, int node)
{
	if (c->env.run_on)
		c->env.run_on(c->env.opaque, node);
}

int verbs_channel_node(const struct transport_env *env, unsigned index)
{
	return env->channel_node ? env->channel_node(env->opaque, index) : TERN_NODE_ANY;
}

void verbs_place_enter(const struct transport_env *env, int node, struct place_saved *saved)
{
	saved->set = env->run_on ? CPU_ALLOC(PLACE_CPUS_MAX) : NULL;
	if (saved->set && sched_getaffinity(0, CPU_ALLOC_SIZE(PLACE_CPUS_MAX), saved->set)) {
		CPU_FREE(saved->set);
		saved->set = NULL;
	}
	if (saved->set)
		env->run_on(env->opaque, node);
}

void verbs_place_leave(struct place_saved *saved)
{
	if (!saved->set)
		return;
	/* Fails only if all those CPUs went offline; then any is as good. */
	(void)sched_setaffinity(0, CPU_ALLOC_SIZE(PLACE_CPUS_MAX), saved->set);
	CPU_FREE(saved->set);
}

void *verbs_buffer_new(size_t size, int node)
{
	unsigned long mask[NODES_MAX / MASK_BITS] = { 0 };
	void *p;

	size = (size + PAGE - 1) / PAGE * PAGE;
	p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		return NULL;
	if (node >= 0 && (unsigned)node < NODES_MAX) {
		mask[(unsigned)node / MASK_BITS] = 1ul << (unsigned)node % MASK_BITS;
		/* Refused where the process may not use the node: then it lies elsewhere. */
		(void)mbind(p, size, MPOL_PREFERRED, mask, NODES_MAX, 0);
	}
	memset(p, 0, size);
	return p;
}

void verbs_buffer_free(void *p, size_t size)
{
	if (p)
		munmap(p, (size + PAGE - 1) / PAGE * PAGE);
}

int verbs_buffer_node(void *p)
{
	int node = TERN_NODE_ANY;

	if (get_mempolicy(&node, NULL, 0, p, MPOL_F_NODE | MPOL_F_ADDR))
		return TERN_NODE_ANY;
	return node;
}

/* The first line of @dir/@file without its newline.  False if it is not there or too long. */
static bool read_line(const char *dir, const char *file, char *buf, size_t size)
{
	char path[512];
	bool whole = false;
	FILE *f;

	if (snprintf(path, sizeof(path), "%s/%s", dir, file) >= (int)sizeof(path))
		return false;
	f = fopen(path, "re");
	if (!f)
		return false;
	if (fgets(buf, (int)size, f)) {
		size_t n = strcspn(buf, "\n");

		whole = buf[n] == '\n' || feof(f);
		buf[n] = '\0';
	}
	fclose(f);
	if (!whole)
		buf[0] = '\0';
	return whole;
}

void verbs_device_facts(const char *name, const char *path, unsigned port,
			struct transport_device *out)
{
	char dir[512], parent[64], text[16];

	memset(out, 0, sizeof(*out));
	snprintf(out->name, sizeof(out->name), "%s", name);
	out->port = port;
	out->numa_node = TERN_NODE_ANY;
	if (!path[0])
		return;
	snprintf(dir, sizeof(dir), "%s/device", path);
	if (!read_line(dir, "numa_node", text, sizeof(text))) {
		if (!read_line(path, "parent", parent, sizeof(parent)))
			return;
		snprintf(dir, sizeof(dir), "/sys/class/net/%s/device", parent);
		if (!read_line(dir, "numa_node", text, sizeof(text)))
			return;
	}
	out->numa_node = atoi(text) < 0 ? TERN_NODE_ANY : atoi(text);
	/* A device without a node names all CPUs as near: that says nothing. */
	if (out->numa_node != TERN_NODE_ANY)
		(void)read_line(dir, "local_cpulist", out->cpus, sizeof(out->cpus));
}
