/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_TESTS_SCRIPT_H
#define TERN_TESTS_SCRIPT_H

/*
 * A transport whose peer reads from a script, the fuzzer's input.
 *
 * The script is a row of records, each of three bytes and a payload:
 *
 *	byte 0   bits 0-1  what it is: enum script_kind
 *	         bit 2     raw: a control message goes out as it is; otherwise flags, seq
 *	                   and running numbers are put right, so that few inputs end at
 *	                   the first check
 *	         bit 3     hasty: the peer does not wait for what it answers
 *	         bits 4-7  notify: channel
 *	byte 1-2 length of the payload, little-endian
 *
 * A peer that is not hasty waits, before it sends a message, until the session has
 * said what that message answers, as a real one would.  If the session comes to
 * rest without that, or the patience is over, the connection ends; so it does after
 * the last record.
 *
 * Everything the session sends is decoded and must be valid: right sender, right
 * sequence number.
 *
 * Destination: accept() hands out a connection while the script goes on, one
 * after the other, so a script can have strangers before the real source.
 */

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "transport.h"
#include "wire.h"

enum script_kind {
	SCRIPT_CONTROL = 0,
	SCRIPT_NOTIFY = 1, /* destination only */
	SCRIPT_CLOSE = 2, /* the peer closes this connection */
	SCRIPT_LATECOMER = 3, /* destination: somebody else connects, says nothing, closes */
};

#define SCRIPT_RAW 0x04u
#define SCRIPT_HASTY 0x08u
#define SCRIPT_HEAD_LEN 3u
#define SCRIPT_PATIENT_MS 1000u /* with such a patience, at_rest() is not relied upon */
#define SCRIPT_INBOX 8u /* notifies that wait in a channel */

struct script;

struct script_notify {
	const uint8_t *msg;
	size_t len;
};

struct script_channel {
	struct transport_channel base;
	struct script_conn *conn;
	struct script_notify inbox[SCRIPT_INBOX], out; /* out: serve() returned it */
	unsigned nr;
	bool handed_out;
};

struct script_conn {
	struct transport_conn base;
	struct script *script;
	bool hollow; /* a latecomer */
	bool ended, aborted, revoked;
	unsigned nr_channels;
	struct script_channel channels[TRANSPORT_CHANNELS_MAX];
	uint32_t tx_seq; /* of the session's messages */
	uint32_t rx_seq; /* of the script's */
	uint32_t rounds; /* ROUND messages delivered */
	uint64_t state_bytes; /* of STATE messages delivered */
	unsigned last; /* type that recv() returned last, 0: none */
	bool sent[WIRE_TYPE_NR]; /* by the session */
	bool delivered[WIRE_TYPE_NR]; /* recv() returned it */
	bool handled[WIRE_TYPE_NR]; /* and was called again */
};

/* What the harness wants to know; any may be NULL.  Called with the script's lock held. */
struct script_hooks {
	void (*sending)(void *opaque, struct script_conn *conn, enum wire_type type);
	/* A notify was handed out; @handled: and came back. */
	void (*notify)(void *opaque, const uint8_t *msg, size_t len, bool handled);
	void (*write)(void *opaque, const struct transport_range *ranges, unsigned nr);
	/*
	 * Is the session at rest but for messages to come?  @busy: a notify is on its
	 * way.  Called without the lock; may be wrong when a thread is about to wake up.
	 */
	bool (*at_rest)(void *opaque, bool busy);
};

struct script {
	struct transport ops; /* first: transport calls find the script by it */
	struct script_hooks hooks;
	void *opaque;
	enum tern_role role; /* of the session under test */
	unsigned patience_ms;
	pthread_mutex_t lock; /* everything below, and the connections */
	pthread_cond_t changed;
	const uint8_t *data;
	size_t size, at;
	struct script_conn *conn; /* in use */
	bool connected; /* source: it has had its connection */
	unsigned latecomers;
	bool stopped, over; /* over: the listener, or the source's connection, is closed */
};

/* script_init - @opaque goes to @hooks. */
void script_init(struct script *s, enum tern_role role, const uint8_t *data, size_t size,
		 unsigned patience_ms, const struct script_hooks *hooks, void *opaque);
void script_fini(struct script *s);

/* script_wait - until the peer has nothing more to say or the session is through. */
void script_wait(struct script *s);

/* script_handled - did the session get @type, on the connection in use, and come back for more? */
bool script_handled(struct script *s, enum wire_type type);

#endif
