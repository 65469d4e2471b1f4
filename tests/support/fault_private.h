/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_TESTS_SUPPORT_FAULT_PRIVATE_H
#define TERN_TESTS_SUPPORT_FAULT_PRIVATE_H

/* What the parts of the fault-injecting layer share. */

#include <pthread.h>
#include <stdbool.h>
#include "fault_transport.h"
#include "transport.h"

#define RULES_MAX 16u
#define FAULT_TYPES 32u /* message types below this are counted */

struct fault_net {
	struct transport ops; /* first: found from the table */
	const struct transport *inner;
	pthread_mutex_t lock; /* all below, and the flags of connections */
	pthread_cond_t changed;
	struct fault_rule rules[RULES_MAX];
	unsigned seen[RULES_MAX]; /* calls that matched each rule */
	unsigned nr_rules, fired;
	unsigned calls[FAULT_SIDE_NR][FAULT_OP_NR];
	unsigned messages[FAULT_SIDE_NR][FAULT_OP_NR][FAULT_TYPES]; /* of send and recv */
	bool released;
};

/* The table of every net (fault_transport.c). */
extern const struct transport fault_transport_ops;

/*
 * fault_net_match - count a call and find the rule that acts on it.
 *
 * @type: the message's, or FAULT_ANY_TYPE for a call without one.  @count: the call
 * begins (and not: its message has arrived).  True with *rule (a copy).
 */
bool fault_net_match(struct fault_net *net, enum fault_side side, enum fault_op op, int type,
		     bool count, struct fault_rule *rule);

/* fault_net_arrived - a message of @type is about to be given to the engine of @side. */
void fault_net_arrived(struct fault_net *net, enum fault_side side, int type);

#endif
