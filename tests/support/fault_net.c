/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * The fault-injecting layer's memory: its rules, and what it counted.
 */

#include <errno.h>
#include <stdlib.h>
#include <time.h>
#include "fault_private.h"

bool fault_net_match(struct fault_net *net, enum fault_side side, enum fault_op op, int type,
		     bool count, struct fault_rule *rule)
{
	bool found = false;

	pthread_mutex_lock(&net->lock);
	net->calls[side][op] += count;
	if (op == FAULT_SEND && type >= 0 && type < (int)FAULT_TYPES)
		net->messages[side][op][type]++;
	for (unsigned i = 0; i < net->nr_rules; i++) {
		const struct fault_rule *r = &net->rules[i];
		bool by_type = (op == FAULT_SEND || op == FAULT_RECV) && r->msg_type >= 0;

		if (r->side != side || r->op != op)
			continue;
		if (by_type ? r->msg_type != type : !count)
			continue;
		net->seen[i]++;
		if (found || (r->nth && net->seen[i] != r->nth))
			continue;
		*rule = *r;
		net->fired++;
		found = true;
	}
	pthread_mutex_unlock(&net->lock);
	return found;
}

void fault_net_arrived(struct fault_net *net, enum fault_side side, int type)
{
	if (type < 0 || type >= (int)FAULT_TYPES)
		return;
	pthread_mutex_lock(&net->lock);
	net->messages[side][FAULT_RECV][type]++;
	pthread_mutex_unlock(&net->lock);
}

struct fault_net *fault_net_new(const struct transport *inner)
{
	struct fault_net *net = calloc(1, sizeof(*net));
	pthread_condattr_t attr;

	if (!net)
		return NULL;
	net->ops = fault_transport_ops;
	net->ops.name = inner->name;
	net->ops.one_sided = inner->one_sided;
	if (!inner->retire)
		net->ops.retire = NULL;
	if (!inner->prepare)
		net->ops.prepare = NULL;
	if (!inner->conn_stats)
		net->ops.conn_stats = NULL;
	net->inner = inner;
	pthread_mutex_init(&net->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&net->changed, &attr);
	pthread_condattr_destroy(&attr);
	return net;
}

void fault_net_delete(struct fault_net *net)
{
	if (!net)
		return;
	pthread_cond_destroy(&net->changed);
	pthread_mutex_destroy(&net->lock);
	free(net);
}

const struct transport *fault_net_transport(struct fault_net *net)
{
	return &net->ops;
}

int fault_net_add(struct fault_net *net, const struct fault_rule *rule)
{
	int rc = -ENOSPC;

	pthread_mutex_lock(&net->lock);
	if (net->nr_rules < RULES_MAX) {
		net->rules[net->nr_rules++] = *rule;
		rc = 0;
	}
	pthread_mutex_unlock(&net->lock);
	return rc;
}

void fault_net_release(struct fault_net *net)
{
	pthread_mutex_lock(&net->lock);
	net->released = true;
	pthread_cond_broadcast(&net->changed);
	pthread_mutex_unlock(&net->lock);
}

unsigned fault_net_calls(struct fault_net *net, enum fault_side side, enum fault_op op)
{
	unsigned n;

	pthread_mutex_lock(&net->lock);
	n = net->calls[side][op];
	pthread_mutex_unlock(&net->lock);
	return n;
}

unsigned fault_net_fired(struct fault_net *net)
{
	unsigned n;

	pthread_mutex_lock(&net->lock);
	n = net->fired;
	pthread_mutex_unlock(&net->lock);
	return n;
}

unsigned fault_net_messages(struct fault_net *net, enum fault_side side, enum fault_op op,
			    unsigned type)
{
	unsigned n = 0;

	pthread_mutex_lock(&net->lock);
	if (type < FAULT_TYPES)
		n = net->messages[side][op][type];
	pthread_mutex_unlock(&net->lock);
	return n;
}
