/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_SRC_LINK_H
#define TERN_SRC_LINK_H

/*
 * The control link: the engine's messages over a connection's control queue.
 *
 * A link owns two threads.  One receives and decodes messages, checks sequence
 * numbers and who may send what; when the peer has been silent for the whole of the
 * peer timeout the link is dead.  Silence is the time in which this thread listened and
 * nothing came: not while the queue below is full, nor while the thread did not run,
 * because its CPU, process or machine was held up.  A peer on the same machine was too then.
 *
 * The other one sends PING when this side has sent nothing for a third of the peer
 * timeout.  The receiver cannot do that as well: it may be busy with PAGES_WANTED, whose
 * pages take their time on a slow wire, or wait until its queue has room.
 *
 * PING and ERROR are handled here, PAGES_WANTED by the session's function, the rest
 * waits in a short queue for the session's thread.
 *
 * A link dies once, with one error: the peer is silent, closed, reset, sent
 * rubbish, or said ERROR.  Then the connection is aborted, so that channel
 * threads stop too, and the session's thread is woken through the monitor.
 */

#include <stdbool.h>
#include <stdint.h>
#include <tern/error.h>
#include <tern/session.h>

#include "monitor.h"
#include "transport.h"
#include "wire.h"

#define LINK_QUEUE 8u

struct link {
	/* Constant after link_start(). */
	struct monitor *mon;
	struct transport_conn *conn;
	enum tern_role role; /* ours */
	pthread_t thread, pinger;
	bool running;

	/* Sender side; send_lock is a leaf lock, held while a message goes out. */
	pthread_mutex_t send_lock;
	pthread_cond_t ping_cond; /* CLOCK_MONOTONIC; tells the pinger of a change of … */
	uint64_t ping_ns;         /* … how long this side may be silent, … */
	bool ping_stop;           /* … or its end */
	uint32_t tx_seq;
	uint64_t last_tx_ns;

	/* Receiver thread only. */
	uint32_t rx_seq;
	uint64_t silence_ns; /* of the peer, since it was last heard */

	/* Under the monitor's lock. */
	unsigned peer_timeout_ms;
	struct wire_msg *queue; /* LINK_QUEUE messages */
	unsigned head, count;
	/* PAGES_WANTED goes here, on the link's thread; NULL: nobody expects it. */
	int (*wanted)(void *opaque, const struct wire_wanted *w, struct tern_error *err);
	void *wanted_opaque;
	bool wanted_soon; /* until then it waits */
	/* Called once, with the lock held, when the link dies; NULL: nobody asked. */
	void (*died)(void *opaque);
	void *died_opaque;
	bool stop;
	bool draining;          /* drop what arrives */
	bool dead;
	bool closed;            /* dead by an orderly close of the peer */
	bool peer_error;        /* dead by an ERROR message … */
	bool peer_started;      /* … that said so of its guest */
	bool peer_cancel;       /* dead by a CANCEL message */
	bool expects_ack;       /* SWITCHOVER_ACK may come … */
	bool acked;             /* … and has come */
	struct tern_error error;
};

/*
 * link_start - take over the control queue of @conn.
 *
 * @conn stays the caller's, and must outlive the link.  0, -ENOMEM, -EAGAIN.
 */
int link_start(struct link *l, struct monitor *mon, struct transport_conn *conn,
	       enum tern_role role, unsigned peer_timeout_ms, struct tern_error *err);

/* link_stop - end the threads and free; the connection must have been aborted or be idle. */
void link_stop(struct link *l);

/*
 * link_set_wanted - PAGES_WANTED is welcome from now on (@fn), or not (NULL).
 *
 * @fn is called on the link's thread, which receives nothing meanwhile; an error kills
 * the link.
 */
void link_set_wanted(struct link *l,
		     int (*fn)(void *opaque, const struct wire_wanted *w, struct tern_error *err),
		     void *opaque);

/*
 * link_hold_wanted - PAGES_WANTED may come from now on, and waits for link_set_wanted().
 *
 * For a new link, where the destination asks as soon as it is complete, which the source
 * may find out later.
 */
void link_hold_wanted(struct link *l);

/* link_set_timeout - use the negotiated peer timeout from now on. */
void link_set_timeout(struct link *l, unsigned peer_timeout_ms);

/*
 * link_send - send one message; any thread; blocks at most the peer timeout.
 *
 * 0 or -errno with *err; the message may then have been sent or not.
 */
int link_send(struct link *l, struct wire_msg *msg, struct tern_error *err);

/* link_send_empty - a message without fields. */
int link_send_empty(struct link *l, enum wire_type type, struct tern_error *err);

/* link_send_error - tell the peer why the session ends; failures do not matter. */
void link_send_error(struct link *l, const struct tern_error *why, bool started);

/*
 * link_drain - drop what arrives until the peer closes, at most @timeout_ms.
 *
 * After the last message (an ERROR, say): a socket closed with unread bytes is
 * reset, and the reset could overtake that message.
 */
void link_drain(struct link *l, int timeout_ms);

/*
 * link_take - with the monitor's lock held: the next message, if there is one.
 *
 * 1: taken; 0: none; -errno: none and the link is dead (*err is the link's error).
 */
int link_take(struct link *l, struct wire_msg *msg, struct tern_error *err);

/*
 * link_expect_silence - the peer has nothing to say before this side has sent @what.
 *
 * Called before sending it.  0; -EPROTO if a message waits; the link's error if it is
 * dead.  Takes the monitor's lock; _locked() is for callers that hold it.
 */
int link_expect_silence(struct link *l, const char *what, struct tern_error *err);
int link_expect_silence_locked(struct link *l, const char *what, struct tern_error *err);

#endif
