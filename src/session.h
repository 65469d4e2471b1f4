/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_SRC_SESSION_H
#define TERN_SRC_SESSION_H

/*
 * A session from the inside.
 *
 * Threads and what they own:
 *
 *	caller's threads     configure; read statistics; cancel
 *	session thread       the state machine: source_run() or destination_run();
 *	                     VM callbacks and most events
 *	acceptor thread      destination: transport accept(), refuses latecomers
 *	control thread       in the link: receives and keeps alive
 *	channel threads      source: sender workers; destination: receivers
 *
 * Locks, in the order they are taken: event_lock, mon.lock, link.send_lock.
 * event_lock serialises the caller's event handler and is the only lock held while
 * it runs (the session's functions that a handler may call take mon.lock).
 * A field says who writes it; without a word it is constant once started.
 */

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <tern/tern.h>

#include <tern/stats.h>

#include "limiter.h"
#include "link.h"
#include "monitor.h"
#include "region.h"
#include "topology.h"
#include "transport.h"
#include "uri.h"
#include "wire.h"
#include "zero.h"

#define SESSION_ROUNDS_MAX 1024u

/* Seconds are too coarse and pauses too short: everything is now_ns() time. */
struct session_times {
	uint64_t begin;      /* connect() or listen() was called; destination: HELLO arrived */
	uint64_t connected;  /* source: the control connection is there; 0: not yet */
	uint64_t setup_done; /* first round could begin */
	uint64_t end;        /* ended; 0: not yet */
};

#define SESSION_TEXT_MAX 1024u /* bytes of a parameter that is text */

struct cpus;
struct kvm_vm;
struct sender;
struct source;
struct receiver;
struct placement;
struct faults;
struct pusher;

struct tern_session {
	enum tern_role role;
	_Atomic uint64_t params[TERN_PARAM_NR];
	char texts[TERN_TEXT_NR][SESSION_TEXT_MAX];
	struct region_list regions;
	struct tern_vm_ops vm;
	void *vm_opaque;
	struct {
		tern_notifier_fn *fn;
		void *opaque;
	} notifiers[TERN_NOTIFIERS_MAX];
	unsigned nr_notifiers;
	struct tern_blockers *blockers;
	struct tern_dirty_ops user_dirty;
	bool has_user_dirty;
	void *dirty_opaque;
	struct kvm_vm *kvm; /* source: as described; NULL: not */
	struct source *source; /* source: the session thread's, until it has ended */
	tern_event_fn *event;
	void *event_opaque;
	struct topology *topology;
	bool owns_topology; /* else the caller's of session_new_with() */
	const struct zero_ops *zero;
	const struct transport *transport; /* from the URI, or … */
	bool transport_is_given; /* … by session_use_transport(), whatever the URI */
	struct uri uri;
	char uri_text[320]; /* bound address, once known */
	char transport_why[200]; /* why this transport */
	int cancel_fd;      /* eventfd: readable once cancelled */
	uint8_t session_id[TRANSPORT_SESSION_ID_LEN]; /* source: its own; destination: of the
						       * source that was admitted */
	pthread_t thread;
	pthread_t announcer;     /* session thread; … */
	bool announces;          /* … there is one */
	bool exposed;            /* destination, session thread: this candidate was given RAM */
	uint64_t resumed_at_ns; /* session thread: by the VMM's word; 0: it has not said */
	char reason[TERN_REASON_MAX + 1]; /* session thread: why a callback failed; "": unknown */
	pthread_mutex_t event_lock;

	struct monitor mon;

	_Atomic(struct cpus *) cpus; /* where threads run; replaced once, session_place.c */

	/* Under mon.lock. */
	bool started;            /* the session thread was created */
	bool ended;              /* it is done: state is final, guest resumed */
	bool cancel_requested;
	bool point_of_no_return; /* source: GO goes out; destination: GO came in */
	uint64_t worker_failed_ns; /* a channel thread failed then; 0: none */
	struct tern_error worker_error;
	enum tern_state state;
	enum tern_outcome outcome;
	struct tern_error error; /* the first */
	struct tern_stats stats; /* what has no better home; see stats.c */
	struct session_times times;
	struct tern_round_stats *rounds;
	unsigned nr_rounds;
	struct limiter limiter;
	struct limiter postcopy_limiter;
	bool recover_requested;  /* source: tern_session_recover() was called … */
	struct uri recover_uri;  /* … to go there … */
	const struct transport *recover_transport; /* … by this */
	bool link_up;            /* destination: fault threads may use the link … */
	unsigned requesting;     /* … and so many do */
	bool abandoned;          /* is being deleted: a paused session gives up */
	bool postcopy_requested; /* source: no round after this one */
	bool continue_requested; /* source: leave PRE_SWITCHOVER */
	bool ack_agreed;         /* destination: the source waits for SWITCHOVER_ACK … */
	bool ack_given;          /* … which the VMM has given … */
	bool ack_sent;           /* … and which is on its way */
	struct tern_postcopy_stats *postcopy_stats; /* what has no better home, and the final
						     * figures */
	struct cpus *first_cpus; /* what .cpus was before the device was known */

	/*
	 * Made and unmade by the session thread under mon.lock, so that others may
	 * look at them under mon.lock; used by the session thread without it.
	 */
	struct transport_listener *listener;
	struct transport_conn *conn;
	struct link link;
	struct transport_channel *channels[TRANSPORT_CHANNELS_MAX];
	unsigned nr_channels;
	struct sender *sender;
	struct receiver *receiver;
	bool postcopy;                 /* agreed on; the last channel is for what is asked for */
	struct placement *placement;   /* destination, if so */
	_Atomic(struct placement *) armed_placement; /* the same, from the switchover on; any
						      * thread of a channel */
	struct faults *faults;
	bool loading;  /* load() may wait for pages; under mon.lock */
	bool forsaken; /* and they will not come */
	struct pusher *pusher;         /* source, if so */
	uint8_t by_contents[WIRE_BY_CONTENTS_MAX]; /* source: what REGIONS_ACK said */
	unsigned by_contents_len;

	/* Figures of the channels after their threads are gone. */
	struct tern_channel_stats final_channels[TRANSPORT_CHANNELS_MAX];
};

/* session_param - a parameter's value now. */
static inline uint64_t session_param(const struct tern_session *s, enum tern_param p)
{
	return atomic_load_explicit(&s->params[p], memory_order_relaxed);
}

/*
 * session_new_with - as tern_session_new(), with a topology that was read before.
 *
 * *topology stays the caller's and must outlive the session.  For callers that make
 * many sessions: reading the machine takes milliseconds.
 */
int session_new_with(enum tern_role role, struct topology *topology, struct tern_session **out);

/* session_is_started - is it too late to configure it?  Any thread. */
bool session_is_started(struct tern_session *s);

/* session_use_transport - for tests: this table instead of the one the URI names. */
void session_use_transport(struct tern_session *s, const struct transport *ops);

/*
 * session_set_state - go to @to and tell the caller's handler.  Session thread.
 * The transition must be in the table (asserted).
 */
void session_set_state(struct tern_session *s, enum tern_state to);

/* session_event - call the caller's handler.  Any thread, no lock held. */
void session_event(struct tern_session *s, enum tern_event_type type, const struct tern_error *err);

/*
 * session_set_up - a call that configures a session ended so: its error, or that there was
 * none, takes the place of an earlier call's.  Not once started; caller's thread.
 */
void session_set_up(struct tern_session *s, const struct tern_error *result);

/* session_fail - note an error if it is the first, and wake the session thread.  Any thread. */
void session_fail(struct tern_session *s, const struct tern_error *why);

/*
 * session_worker_failed - a channel thread failed.  Any thread.
 *
 * It counts as the session's error only after SESSION_GRACE_MS: when the peer ends
 * the session, channels often notice before the control queue delivers the reason.
 */
#define SESSION_GRACE_MS 200u
void session_worker_failed(struct tern_session *s, const struct tern_error *why);

/*
 * session_forsake_load - no page will come any more; with mon.lock held.
 *
 * A load() that reads guest RAM must not wait for one: it goes on, and what it does is
 * thrown away.  Does nothing outside load().
 */
void session_forsake_load(void *session);

/*
 * session_wait_until - with mon.lock held: sleep until something changes.
 *
 * At most until @deadline, the migration's own deadline, or the end of a grace.
 */
void session_wait_until(struct tern_session *s, uint64_t deadline);

/*
 * session_check - with mon.lock held: may the session go on?
 *
 * 0, or -errno with *err: cancelled, past the migration's deadline, an error of a
 * worker, or a dead link (whose error is preferred to its consequences).  While a
 * destination is in setup only cancel counts: its peer may still be a stranger.
 */
int session_check(struct tern_session *s, struct tern_error *err);

/*
 * session_receive - wait for a message.  Session thread.
 *
 * Waits at most until @deadline.  0 with *msg, or -errno with *err; -ETIMEDOUT
 * with "@what did not arrive" at the deadline.
 */
int session_receive(struct tern_session *s, struct wire_msg *msg, uint64_t deadline,
		    const char *what, struct tern_error *err);

/* session_expect - session_receive(), and the message must be of @type (else -EPROTO). */
int session_expect(struct tern_session *s, enum wire_type type, struct wire_msg *msg,
		   uint64_t deadline, struct tern_error *err);

/*
 * session_settle - decide what the session's error is, now that a step failed with *err.
 *
 * If the failure may be a consequence of the peer's ending the session, waits up to
 * SESSION_GRACE_MS for its reason.  Returns the code.
 */
int session_settle(struct tern_session *s, const struct tern_error *err);

/*
 * session_notify - tell the VMM's notifiers (session_control.c).  Session thread.
 *
 * 0; for SETUP and SWITCHOVER -errno with *err if one refuses.
 */
int session_notify(struct tern_session *s, enum tern_notice notice, struct tern_error *err);

/*
 * What the VMM says about its callbacks' failures (session_control.c).  Session thread.
 *
 * session_ask - call this before a callback that may use tern_session_explain().
 * session_reason - after it has returned @code: what it said, or the code's name.
 */
void session_ask(struct tern_session *s);
const char *session_reason(const struct tern_session *s, int code);

/*
 * session_announce - begin to call the VMM's announce(); failing is no error (announce.c).
 * session_announce_end - wait for the end of that, after .abandoned was set.
 */
void session_announce(struct tern_session *s);
void session_announce_end(struct tern_session *s);

/* session_stranger - count and report a connection that was turned away.  Any thread. */
void session_stranger(struct tern_session *s, const struct tern_error *why);

/* session_env - what the transport may assume. */
void session_env(struct tern_session *s, struct transport_env *env);

/*
 * Where threads run (session_place.c).
 *
 * session_place_start - choose CPUs; before any thread of the session runs.  0, -ENOMEM,
 * -EINVAL (the budget), with *err.
 * session_home - confine the calling thread to the budget, if there is one.
 * session_channel_node, session_run_on, session_on_device - as in transport_env; opaque
 * is the session.
 */
int session_place_start(struct tern_session *s, struct tern_error *err);
void session_place_fini(struct tern_session *s);
void session_home(struct tern_session *s);
int session_channel_node(void *opaque, unsigned i);
void session_run_on(void *opaque, int node);
void session_on_device(void *opaque, const struct transport_device *device);
unsigned session_nr_cpus(const struct tern_session *s); /* that threads may use */
void session_cpus_text(const struct tern_session *s, char *buf, size_t size);

/* session_open_channels - open s->nr_channels of them.  0 or -errno with *err. */
int session_open_channels(struct tern_session *s, struct tern_error *err);

/* session_expose - give all regions to the connection. */
int session_expose(struct tern_session *s, struct transport_conn *conn, struct tern_error *err);

/* session_end - final state and outcome; wakes tern_session_wait(). */
void session_end(struct tern_session *s, enum tern_state state, enum tern_outcome outcome);

/*
 * session_first_byte_ns - when this side handed the first contents to the transport, by what
 * the threads at work now know; 0: not yet.  mon.lock is held.
 */
uint64_t session_first_byte_ns(const struct tern_session *s);

/*
 * session_conn_stats - add the connection's own figures, if it has any, to those of earlier
 * ones.  mon.lock is held.
 */
void session_conn_stats(const struct tern_session *s, struct tern_stats *st);

/* session_close_link - stop the link's thread and close the connection. */
void session_close_link(struct tern_session *s);

/* session_add_round - remember the figures of a round. */
void session_add_round(struct tern_session *s, const struct tern_round_stats *round);

/*
 * source_new - what the role source needs; 0 or -ENOMEM.
 * source_delete - the session thread has ended.  Stops what tracks writes, if that was left
 * to this moment.
 */
int source_new(struct tern_session *s);
void source_delete(struct tern_session *s);

/* The two roles; called on the session thread. */
void source_run(struct tern_session *s);
void destination_run(struct tern_session *s);

/* destination_listen - clear the regions and bind; on the caller's thread. */
int destination_listen(struct tern_session *s, struct tern_error *err);

/* session_bulk_channels - how many channels carry pages that nobody has asked for. */
static inline unsigned session_bulk_channels(const struct tern_session *s)
{
	return s->nr_channels - (s->postcopy ? 1 : 0);
}

/* session_postcopy_now - figures of postcopy as they are.  mon.lock is held. */
void session_postcopy_now(struct tern_session *s, struct tern_postcopy_stats *out);

/*
 * Handshakes (handshake.c).  The source's has two parts: after the first one it is agreed how
 * many channels there will be, and the destination is busy; after the second one, as after
 * the destination's, s->channels are open.
 */
int handshake_source_begin(struct tern_session *s, struct tern_error *err);
int handshake_source_end(struct tern_session *s, struct tern_error *err);
int handshake_destination(struct tern_session *s, struct tern_error *err);

/*
 * The same for a new link of a session in postcopy (recover.c).  recover_source() also
 * connects, and takes what the destination lacks into s->pusher; s->conn is there or NULL
 * on failure.  recover_destination() has the candidate in s->conn and s->link.
 */
int recover_source(struct tern_session *s, struct tern_error *err);

/*
 * source_answer - for link_set_wanted(): the destination's guest waits for pages.  Opaque
 * is the session.
 */
int source_answer(void *session, const struct wire_wanted *w, struct tern_error *err);
int recover_destination(struct tern_session *s, struct tern_error *err);

#endif
