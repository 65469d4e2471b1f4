/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Where a session's threads run.
 *
 * Channels are dealt to the NUMA nodes of the regions in turn, in the order in
 * which the nodes appear in the list; so channel i has the same part of the list on
 * both sides.  Which CPUs a node's threads get is for cpus.c to choose, within
 * the budget.  It is chosen twice: when the session starts, and again when the
 * transport knows its network device, since CPUs near that are better.
 *
 * With a budget, the session's own thread is confined to the chosen CPUs, and so
 * are the threads that it makes, unless they are bound more narrowly.  Without one
 * only threads that move data are bound: to their memory's node.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "cpus.h"
#include "error.h"
#include "session.h"

/* The plan in force; NULL before the session is started. */
static const struct cpus *plan_of(const struct tern_session *s)
{
	return atomic_load_explicit(&s->cpus, memory_order_acquire);
}

/* Choose CPUs; @device_cpus may be NULL.  0 or -errno with *err. */
static int make_plan(struct tern_session *s, const char *device_cpus, struct cpus **out,
		     struct tern_error *err)
{
	int nodes[CPUS_NODES_MAX];
	struct cpus_config config = {
		.topology = s->topology,
		.budget = s->texts[TERN_TEXT_CPUS],
		.nodes = nodes,
		.nr_nodes = region_nodes(&s->regions, nodes, CPUS_NODES_MAX),
		.device_cpus = device_cpus,
	};

	return cpus_new(&config, out, err);
}

int session_place_start(struct tern_session *s, struct tern_error *err)
{
	struct cpus *plan, *old = atomic_load(&s->cpus);
	int r = make_plan(s, NULL, &plan, err);

	if (r)
		return r;
	atomic_store(&s->cpus, plan);
	cpus_delete(&old); /* of a start that failed: no thread has seen it */
	return 0;
}

void session_place_fini(struct tern_session *s)
{
	struct cpus *plan = atomic_load(&s->cpus);

	cpus_delete(&plan);
	cpus_delete(&s->first_cpus);
}

void session_home(struct tern_session *s)
{
	const struct cpus *plan = plan_of(s);

	if (plan && cpus_bounded(plan))
		(void)cpus_bind_all(plan); /* fails only if the CPUs went offline */
}

void session_run_on(void *opaque, int node)
{
	const struct cpus *plan = plan_of(opaque);

	if (!plan)
		return;
	if (node == TERN_NODE_ANY && !cpus_near_device(plan))
		session_home(opaque);
	else
		(void)cpus_bind(plan, node);
}

int session_channel_node(void *opaque, unsigned i)
{
	const struct tern_session *s = opaque;
	int nodes[CPUS_NODES_MAX];
	unsigned nr = region_nodes(&s->regions, nodes, CPUS_NODES_MAX);

	return nr ? nodes[i % nr] : TERN_NODE_ANY;
}

unsigned session_nr_cpus(const struct tern_session *s)
{
	const struct cpus *plan = plan_of(s);

	return plan ? cpus_nr(plan) : topology_nr_cpus(s->topology);
}

void session_cpus_text(const struct tern_session *s, char *buf, size_t size)
{
	const struct cpus *plan = plan_of(s);

	buf[0] = '\0';
	if (plan)
		cpus_list_all(plan, buf, size);
}

void session_on_device(void *opaque, const struct transport_device *device)
{
	struct tern_session *s = opaque;
	struct cpus *plan = NULL;
	struct tern_error err;

	error_clear(&err);
	monitor_lock(&s->mon);
	if (!s->first_cpus && device->cpus[0] && !make_plan(s, device->cpus, &plan, &err)) {
		s->first_cpus = atomic_load(&s->cpus); /* somebody may be looking at it */
		atomic_store_explicit(&s->cpus, plan, memory_order_release);
	}
	monitor_unlock(&s->mon);
	session_home(s);
}
