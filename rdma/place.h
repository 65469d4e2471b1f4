/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_RDMA_PLACE_H
#define TERN_RDMA_PLACE_H

/* Places: nodes of threads, buffers and completion interrupts; see place.c. */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include "transport.h"

#define PLACE_CPUS_MAX 8192u
#define PLACE_VECTORS_MAX 512u

/* Where a thread was before verbs_place_enter(). */
struct place_saved {
	cpu_set_t *set;
};

/* The node of each completion vector's interrupt; TERN_NODE_ANY: not known. */
struct place_vectors {
	unsigned nr;
	int16_t node[PLACE_VECTORS_MAX];
};

/* verbs_channel_node - node of the memory that channel @index serves. */
int verbs_channel_node(const struct transport_env *env, unsigned index);

/*
 * verbs_place_enter - run the calling thread on CPUs for memory of @node for a while;
 * verbs_place_leave() goes back.
 */
void verbs_place_enter(const struct transport_env *env, int node, struct place_saved *saved);
void verbs_place_leave(struct place_saved *saved);

/*
 * verbs_buffer_new - memory of whole pages, cleared, on @node if it has room.
 * NULL with errno.  verbs_buffer_free() wants the same size.
 */
void *verbs_buffer_new(size_t size, int node);
void verbs_buffer_free(void *p, size_t size);

/* verbs_buffer_node - the node that the page at @p lies on; it must have been touched. */
int verbs_buffer_node(void *p);

/*
 * verbs_device_facts - what the kernel knows of the place of device @name.
 * @path: its folder in /sys/class/infiniband; "": none.
 */
void verbs_device_facts(const char *name, const char *path, unsigned port,
			struct transport_device *out);

/*
 * place_vectors_read - where the interrupts of a device's completion vectors arrive.
 *
 * @path as above; @irq_dir is /proc/irq.  @nr: vectors the device has.  What the
 * driver does not tell stays unknown.
 */
void place_vectors_read(const char *path, const char *irq_dir, int nr, struct place_vectors *out);

/*
 * place_vector_for - a completion vector for the @nth channel (0, …) of those on @node;
 * @index is its number among all channels.
 *
 * Vectors of the node in turn; where none is known, all in turn.
 */
unsigned place_vector_for(const struct place_vectors *v, int node, unsigned nth, unsigned index);

#endif
