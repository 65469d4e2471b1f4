/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_TESTS_SUPPORT_FAULT_TRANSPORT_H
#define TERN_TESTS_SUPPORT_FAULT_TRANSPORT_H

/*
 * A transport that passes every call on to another one, counts, and at chosen
 * calls misbehaves.  One instance serves both sides of a test; the side of a
 * connection is where it came from (connect(): source, accept(): destination).
 *
 *	struct fault_net *n = fault_net_new(&tcp_transport);
 *	fault_net_add(n, &(struct fault_rule){ .side = FAULT_SOURCE, .op = FAULT_SEND,
 *		.msg_type = MSG_GO, .nth = 1, .action = FAULT_CUT_AFTER });
 *	... use fault_net_transport(n) ...
 *	assert_int_equal(fault_net_fired(n), 1);
 *	fault_net_delete(n);
 */

#include <stdint.h>

struct fault_net;
struct transport;

enum fault_side {
	FAULT_SOURCE,
	FAULT_DESTINATION,
	FAULT_SIDE_NR,
};

enum fault_op {
	FAULT_CONNECT,
	FAULT_ACCEPT,
	FAULT_OPEN_CHANNELS,
	FAULT_PREPARE, /* called only if the inner transport has it */
	FAULT_SEND,
	FAULT_RECV,
	FAULT_WRITE,
	FAULT_NOTIFY,
	FAULT_PUSH,
	FAULT_FENCE,
	FAULT_SERVE,
	FAULT_OP_NR,
};

enum fault_action {
	FAULT_ERROR = 1, /* the call is not made and fails with -EIO */
	FAULT_CUT, /* the link is dead; the call is made and fails */
	FAULT_CUT_AFTER, /* the call is made, then the link dies; its result stands */
	FAULT_DELAY, /* the call is made after delay_ms */
	FAULT_SHORT, /* write: the first half of the bytes, then the link is dead; push,
		      * which arrives whole or not at all: the link is dead */
	FAULT_SWALLOW, /* send, recv: as if the message had been lost */
	FAULT_STALL, /* the call waits; see below */
	FAULT_KILL, /* this process dies at once, without the call */
	FAULT_KILL_AFTER, /* the call is made, then this process dies */
	FAULT_STOP, /* this process stops (SIGSTOP); once continued, the call is made */
	FAULT_CALL, /* fn(opaque) is called, then the call is made */
	FAULT_CALL_AFTER, /* the call is made, then fn(opaque) is called */
};

/*
 * A stalled call waits until abort(), a cut, or fault_net_release(), but no longer
 * than the contract of struct transport lets such a call wait for a peer that does
 * not go on; then it fails with -ETIMEDOUT.  serve() alone waits without limit.  A
 * recv() stalled by type goes on so in later calls: the message never comes.
 */

#define FAULT_ANY_TYPE (-1)

struct fault_rule {
	enum fault_side side;
	enum fault_op op;
	/*
	 * send, recv: only messages whose first two bytes, little-endian, are
	 * this; FAULT_ANY_TYPE: any call.  A recv with a type acts on the
	 * message after it arrived.
	 */
	int msg_type;
	unsigned nth; /* at the nth call that matches, from 1; 0: at all of them */
	enum fault_action action;
	unsigned delay_ms;
	void (*fn)(void *opaque); /* for FAULT_CALL and FAULT_CALL_AFTER */
	void *opaque;
};

/* fault_net_new - a layer over @inner without rules; NULL: no memory. */
struct fault_net *fault_net_new(const struct transport *inner);

/* fault_net_delete - all listeners and connections are closed already. */
void fault_net_delete(struct fault_net *net);

/* fault_net_transport - the table to give to both sides. */
const struct transport *fault_net_transport(struct fault_net *net);

/* fault_net_add - one more rule, 16 at most.  0 or -ENOSPC.  Any thread. */
int fault_net_add(struct fault_net *net, const struct fault_rule *rule);

/* fault_net_release - end all stalls, now and from now on. */
void fault_net_release(struct fault_net *net);

/* fault_net_calls - calls of @op on @side so far.  Any thread. */
unsigned fault_net_calls(struct fault_net *net, enum fault_side side, enum fault_op op);

/*
 * fault_net_messages - control messages of @type (below 32) that the engine of @side
 * handed to send(), whatever became of them, or was given by recv().  Any thread.
 */
unsigned fault_net_messages(struct fault_net *net, enum fault_side side, enum fault_op op,
			    unsigned type);

/* fault_net_fired - how often a rule has acted.  Any thread. */
unsigned fault_net_fired(struct fault_net *net);

#endif
