/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_SESSION_H
#define TERN_SESSION_H

/*
 * A session is one migration seen from one side.
 *
 *	struct tern_session *s;
 *	tern_session_new(TERN_SOURCE, &s);
 *	tern_session_add_region(s, &(struct tern_region_desc){ .name = "ram", ... });
 *	tern_session_set_vm_ops(s, &ops, vm);
 *	tern_session_connect(s, "tcp:host:4444");	// returns at once
 *	tern_session_wait(s, -1);			// 0: completed
 *	tern_session_delete(&s);
 *
 * The destination calls tern_session_listen() instead of connect.  There is no
 * global state: any number of sessions, in both roles, may live in a process.
 *
 * Threads: a session starts one thread of its own, one for the control queue
 * and one per channel, when it connects or listens, and joins them before
 * tern_session_delete() returns.  Unless said otherwise, functions may be
 * called from any thread but one session is configured by one thread only,
 * before it is started.
 */

#include <stddef.h>
#include <stdint.h>
#include <tern/error.h>
#include <tern/region.h>
#include <tern/vm.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

struct tern_session;
struct tern_blockers;

enum tern_role {
	TERN_SOURCE,
	TERN_DESTINATION,
};

/* States; names as in QEMU's query-migrate. */
enum tern_state {
	TERN_STATE_NONE = 0,
	TERN_STATE_SETUP,            /* connecting, handshake, channels */
	TERN_STATE_ACTIVE,           /* precopy rounds, the source guest runs */
	TERN_STATE_PRE_SWITCHOVER,   /* source guest paused, waiting for the VMM */
	TERN_STATE_DEVICE,           /* source guest paused, last pages and device state */
	TERN_STATE_POSTCOPY_ACTIVE,  /* destination guest runs, pages still missing */
	TERN_STATE_POSTCOPY_PAUSED,  /* the same, link lost */
	TERN_STATE_POSTCOPY_RECOVER, /* the same, new link being set up */
	TERN_STATE_COMPLETED,
	TERN_STATE_FAILED,
	TERN_STATE_CANCELLING,
	TERN_STATE_CANCELLED,
	TERN_STATE_NR,
};

/*
 * Who may run the guest now that the session has ended (invariant 1).
 * Meaningful in COMPLETED, FAILED and CANCELLED.
 */
enum tern_outcome {
	TERN_OUTCOME_NONE = 0,    /* not ended yet */
	TERN_OUTCOME_SOURCE,      /* the source guest runs on (or was never paused) */
	TERN_OUTCOME_DESTINATION, /* the destination guest runs */
	TERN_OUTCOME_UNKNOWN,     /* source only: GO was sent and no answer came.  The
				   * source stays paused; ask the destination host. */
	TERN_OUTCOME_NEITHER,     /* GO was given, but the destination said that it could
				   * not run the guest; both are paused */
	TERN_OUTCOME_NR,
};

/* Parameters; tern_param_info() gives name, unit, limits and default. */
enum tern_param {
	TERN_PARAM_CHANNELS = 0,     /* data channels; 0: choose */
	TERN_PARAM_CHUNK_BYTES,      /* largest single write */
	TERN_PARAM_STRIPE_BYTES,     /* unit of channel ownership */
	TERN_PARAM_DOWNTIME_LIMIT_MS,
	TERN_PARAM_MAX_BANDWIDTH,    /* bytes per second for rounds; 0: no limit.  Not
				      * applied while the guest is paused. */
	TERN_PARAM_PEER_TIMEOUT_MS,  /* a peer silent for so long is lost */
	TERN_PARAM_TIMEOUT_MS,       /* whole migration, from connect(); 0: none */
	TERN_PARAM_ZEROCOPY,         /* TCP: ask for MSG_ZEROCOPY (0/1) */
	TERN_PARAM_DIRTY_PROVIDER,   /* enum tern_dirty_provider */
	TERN_PARAM_STATE_MAX,        /* largest device state accepted or sent, bytes */
	TERN_PARAM_PIN,              /* RDMA: enum tern_pin */
	TERN_PARAM_LOCK_BUDGET,      /* RDMA: most guest RAM registered at once, bytes; 0:
				      * no limit.  The smaller one of both sides counts. */
	TERN_PARAM_WINDOWS,          /* RDMA: give the peer access to guest RAM by memory
				      * windows where device and peer can (0/1) */
	TERN_PARAM_MODE,             /* source: enum tern_mode */
	TERN_PARAM_PRECOPY_ROUNDS,   /* source, hybrid: rounds before the switchover; 0: until
				      * tern_session_start_postcopy(), or the rest fits */
	TERN_PARAM_MAX_POSTCOPY_BANDWIDTH, /* source: bytes per second for pages that nobody
				      * has asked for, after the switchover; 0: no limit */
	TERN_PARAM_FAULT_THREADS,    /* destination: threads that serve the guest's page
				      * faults in postcopy */
	TERN_PARAM_PAUSE_BEFORE_SWITCHOVER, /* source: wait in PRE_SWITCHOVER, guest paused, for
				      * tern_session_continue() (0/1) */
	TERN_PARAM_SWITCHOVER_ACK,   /* source: no switchover before the destination's VMM has
				      * called tern_session_switchover_ack() (0/1) */
	TERN_PARAM_AUTO_CONVERGE,    /* source: slow the guest by throttle() when it writes faster
				      * than its pages can be sent (0/1); without throttle() only
				      * an event WARNING */
	TERN_PARAM_THROTTLE_TRIGGER, /* … when so many percent of what was sent is dirty again */
	TERN_PARAM_THROTTLE_INITIAL, /* … by so many percent at first … */
	TERN_PARAM_THROTTLE_INCREMENT, /* … then by so many more each time … */
	TERN_PARAM_THROTTLE_MAX,     /* … up to this */
	TERN_PARAM_ANNOUNCE_ROUNDS,  /* destination: how often announce() is called, the first
				      * time at once; 0: never */
	TERN_PARAM_ANNOUNCE_INITIAL_MS, /* … then after so long … */
	TERN_PARAM_ANNOUNCE_STEP_MS, /* … and each time so much longer … */
	TERN_PARAM_ANNOUNCE_MAX_MS,  /* … but never longer than this */
	TERN_PARAM_VCPU_DIRTY_LIMIT, /* source, kvm-ring: bytes per second that a vCPU may
				      * dirty; one that dirties more is made to wait in
				      * tern_session_ring_full().  0: no limit */
	TERN_PARAM_NR,
};

/* When the guest moves: before, after, or between its pages. */
enum tern_mode {
	TERN_MODE_PRECOPY = 0, /* once the rest of its pages fits the downtime limit */
	TERN_MODE_POSTCOPY,    /* at once; its pages follow when it needs them, and anyway */
	TERN_MODE_HYBRID,      /* after TERN_PARAM_PRECOPY_ROUNDS; the rest follows */
	TERN_MODE_NR,
};

/* Parameters that are text; see tern_session_set_text(). */
enum tern_text {
	TERN_TEXT_RDMA_DEVICE = 0, /* RDMA device to use, NAME or NAME/PORT ("mlx5_0/1");
				    * "": the one that the route to the peer goes through.
				    * "auto:" then means RDMA; sockets take no notice. */
	TERN_TEXT_CPUS,            /* CPU budget of the session's threads: how many ("4"), or
				    * which ("0-3,8"; one: "3-3"); "": no bound */
	TERN_TEXT_NR,
};

enum tern_dirty_provider {
	TERN_DIRTY_AUTO = 0,       /* callbacks if set, else KVM if described (the ring if the VM
				    * has it, else the log), else the best userfaultfd one */
	TERN_DIRTY_NONE,           /* the guest is paused for the whole migration */
	TERN_DIRTY_UFFD_WP_ASYNC,  /* userfaultfd WP async + PAGEMAP_SCAN, Linux >= 6.7 */
	TERN_DIRTY_UFFD_WP_SYNC,   /* userfaultfd write-protect faults, Linux >= 5.14
				   * (5.19 for memfd and hugetlbfs) */
	TERN_DIRTY_CALLBACKS,      /* tern_session_set_dirty_ops() */
	TERN_DIRTY_KVM_LOG,        /* KVM's dirty bitmaps; tern_session_set_kvm() */
	TERN_DIRTY_KVM_RING,       /* KVM's dirty rings; tern_session_set_kvm() */
	TERN_DIRTY_NR,
};

/* How guest RAM is registered for RDMA. */
enum tern_pin {
	TERN_PIN_PIPELINED = 0, /* what is about to be sent, ahead of the sender */
	TERN_PIN_ALL,           /* everything before the first byte, holes included */
	TERN_PIN_ODP,           /* nothing: on-demand paging with prefetch, where the device
				 * has it for RDMA writes; an error where it has not */
	TERN_PIN_NR,
};

struct tern_param_info {
	const char *name; /* "downtime-limit" */
	const char *unit; /* "ms", "bytes", "bytes/s", "" */
	uint64_t min, max, def;
};

enum tern_event_type {
	TERN_EVENT_STATE = 0, /* state changed; .state */
	TERN_EVENT_ROUND,     /* a precopy round ended; statistics are up to date */
	TERN_EVENT_STRANGER,  /* destination: a connection was turned away; .error */
	TERN_EVENT_WARNING,   /* something the operator may want to know; .error */
	TERN_EVENT_NR,
};

struct tern_event {
	enum tern_event_type type;
	enum tern_state state;          /* the session's state now */
	const struct tern_error *error; /* or NULL; valid during the call */
};

/*
 * Called on a thread of the session, with no lock held, one event at a time.
 * Must return soon; may call tern_session_stats(), tern_session_cancel() and
 * tern_session_error().
 */
typedef void tern_event_fn(void *opaque, const struct tern_event *event);

/*
 * tern_transport_available - can "rdma", "tcp" or "unix" be used here?
 *
 * Returns 0; -EPROTONOSUPPORT (not in this build); -ENODEV (no device that is up
 * and has an address); -EINVAL (no such transport).  @why, of @size bytes, gets a
 * phrase that says which device or what is missing; it may be NULL.  Any thread; may
 * block for some milliseconds.
 */
int tern_transport_available(const char *scheme, char *why, size_t size);

/* tern_version - the library's version, as "0.1.0".  Any thread. */
const char *tern_version(void);

/* Names as printed and as in QEMU; "unknown" for other values.  Any thread. */
const char *tern_state_name(enum tern_state state);
const char *tern_outcome_name(enum tern_outcome outcome);
const char *tern_dirty_provider_name(enum tern_dirty_provider provider);
const char *tern_mode_name(enum tern_mode mode);

/*
 * tern_param_info - describe @param, or NULL if there is no such parameter.
 * Any thread; the result is constant.
 */
const struct tern_param_info *tern_param_info(enum tern_param param);

/*
 * tern_uri_check - could a session of this build connect or listen to @uri?
 *
 * Looks at the text and at the transports in this build; resolves and opens nothing.
 * Returns 0; -EINVAL (not a URI of ours) or -EPROTONOSUPPORT (no such transport in this
 * build), with the sentence in *@err unless that is NULL.  Any thread.
 */
int tern_uri_check(const char *uri, struct tern_error *err);

/*
 * tern_session_new - make a session that is not connected to anything.
 *
 * Reads the machine's topology (some milliseconds).  Returns 0, -ENOMEM, or
 * -EINVAL for an unknown role; *@out is set only on success.
 */
int tern_session_new(enum tern_role role, struct tern_session **out);

/*
 * tern_session_delete - end and free *@s, and set it to NULL.
 *
 * A running migration is cancelled first as by tern_session_cancel(); after
 * GO, where it can no longer be cancelled, the call waits for the outcome.  A session
 * in POSTCOPY_PAUSED is given up: the destination guest will never get the pages that
 * are still missing.  At the destination that means that threads which wait for them go on
 * with whatever is there: end the guest first.
 * Blocks until all threads of the session have ended; not from a callback.
 * Tolerates NULL and *@s == NULL.
 */
void tern_session_delete(struct tern_session **s);

/*
 * tern_session_set - set a parameter before the session is started.
 *
 * Returns 0; -EINVAL for an unknown parameter or a value that is no multiple
 * of what it must be; -ERANGE outside the limits; -EBUSY once started.
 * TERN_PARAM_MAX_BANDWIDTH, TERN_PARAM_MAX_POSTCOPY_BANDWIDTH,
 * TERN_PARAM_DOWNTIME_LIMIT_MS and TERN_PARAM_VCPU_DIRTY_LIMIT may be set while a
 * migration runs.
 */
int tern_session_set(struct tern_session *s, enum tern_param param, uint64_t value);

/* tern_session_get - read a parameter.  Returns 0 or -EINVAL. */
int tern_session_get(const struct tern_session *s, enum tern_param param, uint64_t *value);

/*
 * tern_session_set_text - set a parameter that is text; NULL or "" takes it back.
 *
 * @value is copied.  Returns 0, -EINVAL as tern_text_check(), -EBUSY once started.
 *
 * TERN_TEXT_CPUS: threads of the session run on those CPUs only; a number of CPUs is
 * chosen from those that the process may use, each NUMA node with guest RAM getting
 * its share, nearest to the network device where there is a choice.  More than there
 * are means all; a list must hold only CPUs that the process may use, else connecting
 * or listening fails with -EINVAL.  Callbacks run within the budget too, and threads
 * that they start inherit it.
 */
int tern_session_set_text(struct tern_session *s, enum tern_text text, const char *value);

/*
 * tern_text_check - could tern_session_set_text() take @value?
 *
 * 0, or -EINVAL with the sentence in *@err unless that is NULL.  Any thread.
 */
int tern_text_check(enum tern_text text, const char *value, struct tern_error *err);

/*
 * tern_session_add_region - adopt a block of guest RAM.
 *
 * The memory must stay mapped until the session is deleted.  Its contents are
 * neither read nor allocated by this call.  Returns the region's id (0, 1, …
 * in order of adding), or -EINVAL (bad name, size, alignment, flags; overlap in
 * hva or gpa), -EEXIST (name taken), -ENOSPC (TERN_REGIONS_MAX), -EBUSY
 * (started), -ENOMEM.  tern_session_error() has the sentence.
 */
int tern_session_add_region(struct tern_session *s, const struct tern_region_desc *desc);

/* Callbacks; @ops is copied.  0, or -EBUSY once started. */
int tern_session_set_vm_ops(struct tern_session *s, const struct tern_vm_ops *ops, void *opaque);
int tern_session_set_dirty_ops(struct tern_session *s, const struct tern_dirty_ops *ops,
			       void *opaque);
int tern_session_set_event_handler(struct tern_session *s, tern_event_fn *fn, void *opaque);

/* What a notifier is told; see tern_session_add_notifier(). */
enum tern_notice {
	TERN_NOTICE_SETUP = 0,  /* source: a migration begins; nothing has happened yet */
	TERN_NOTICE_SWITCHOVER, /* source: the guest is paused, its state not saved yet */
	TERN_NOTICE_DONE,       /* completed: the guest runs at the destination, and with
				 * postcopy it lacks nothing any more */
	TERN_NOTICE_FAILED,     /* failed or cancelled; see tern_session_outcome() for where the
				 * guest is.  A source's guest runs on already. */
	TERN_NOTICE_NR,
};

/*
 * Called on the session's thread, no lock held.  A negative errno value for SETUP or
 * SWITCHOVER ends the migration, the guest running on at the source; for the others the
 * result is ignored.
 */
typedef int tern_notifier_fn(void *opaque, enum tern_notice notice);

#define TERN_NOTIFIERS_MAX 32u

/*
 * tern_session_add_notifier - another part of the VMM wants to know.
 *
 * They are called in the order of adding; after one that refuses, the rest are not asked.
 * Each hears DONE or FAILED exactly once, if the session was started.
 * Returns 0, -EINVAL (no function), -ENOSPC (TERN_NOTIFIERS_MAX), -EBUSY once started.
 */
int tern_session_add_notifier(struct tern_session *s, tern_notifier_fn *fn, void *opaque);

#define TERN_REASON_MAX 255u /* bytes without the terminating 0 */

/*
 * tern_session_explain - why the callback that calls this is about to fail.
 *
 * For pause(), resume(), save(), load() and notifiers, on the thread that they are called
 * on.  @reason, "the guest has 2 vCPUs, this machine 3; …", takes the place of the errno
 * value's name in the session's error, which the peer's session gets too.  It is copied,
 * and cut at TERN_REASON_MAX; the last call counts; NULL takes it back, as does a callback
 * that returns 0.  Never blocks.
 */
void tern_session_explain(struct tern_session *s, const char *reason);

/*
 * tern_session_resumed_at - when the guest began to run, in nanoseconds of CLOCK_MONOTONIC.
 *
 * For resume() at the destination, on the thread that it is called on.  Without it the
 * downtime ends when resume() returns; a resume() that waits until vCPUs run may be late to
 * be told so, because they have its CPU.  A time before the call or after its return is not
 * believed.  Never blocks.
 */
void tern_session_resumed_at(struct tern_session *s, uint64_t monotonic_ns);

/*
 * tern_session_set_blockers - source: do not migrate while something forbids it.
 *
 * See <tern/blockers.h>.  @b must outlive the session; NULL takes it back.  Returns 0, or
 * -EBUSY once started.
 */
int tern_session_set_blockers(struct tern_session *s, struct tern_blockers *b);

/*
 * tern_session_connect - source: start the migration to @uri.
 *
 * Checks the URI and the configuration, starts the session's thread and
 * returns; connecting itself happens there.  Returns 0, -EINVAL (URI, no
 * region, role), -EBUSY (started before), -EPERM (blocked: the session's error has the
 * reasons), -EPROTONOSUPPORT (transport not in this build), -ENOMEM, -EAGAIN (no thread).
 */
int tern_session_connect(struct tern_session *s, const char *uri);

/*
 * tern_session_listen - destination: wait for a source at @uri.
 *
 * Clears what is not zero in the regions (see TERN_REGION_ZEROED), binds, and
 * returns; accepting happens on the session's thread.  Port 0 chooses a port;
 * tern_session_uri() has it.  Returns as connect(), and -EADDRINUSE,
 * -EADDRNOTAVAIL, -EACCES, and what else bind(2) gives.
 *
 * A stranger (no tern peer, another version, other regions, silent) is turned
 * away with TERN_EVENT_STRANGER and the session goes on listening, until the
 * first peer whose handshake succeeds.  If it had come far enough to write to the
 * regions by itself (RDMA), they are cleared again first, all of them; a session
 * whose memory cannot be cleared fails.
 */
int tern_session_listen(struct tern_session *s, const char *uri);

/*
 * tern_session_uri - where the session listens or connects to.
 *
 * Returns the length of the URI as snprintf() does (0 before it is started).
 */
int tern_session_uri(const struct tern_session *s, char *buf, size_t size);

/*
 * tern_session_cancel - give up, from any thread or callback; never blocks.
 *
 * Before GO the source guest goes on and the session ends in CANCELLED.
 * Returns 0 (also if already cancelling), -EBUSY once GO was given: the guest
 * then belongs to the destination, -ESRCH if not started or already ended.
 */
int tern_session_cancel(struct tern_session *s);

/*
 * tern_session_start_postcopy - source, TERN_MODE_HYBRID: no further precopy round.
 *
 * The switchover begins when the round that is under way has ended.  Returns 0 (also if it
 * was called before), -EINVAL (a destination, or another mode), -ESRCH (not started, or
 * ended), -EBUSY (the switchover has begun).  Any thread; never blocks.
 */
int tern_session_start_postcopy(struct tern_session *s);

/*
 * tern_session_continue - source, in PRE_SWITCHOVER: go on with the switchover.
 *
 * Returns 0, -EINVAL (a destination), -EBUSY (in another state, or it has failed or was
 * cancelled meanwhile, whatever the state still is).  Any thread; never blocks.
 */
int tern_session_continue(struct tern_session *s);

/*
 * tern_session_switchover_ack - destination: this VMM is ready for the switchover.
 *
 * A source with TERN_PARAM_SWITCHOVER_ACK goes on with its rounds until then; others take no
 * notice.  May be called at any time, before a source has come too, and more than once.
 * Returns 0, or -EINVAL (a source).  Any thread; never blocks.
 */
int tern_session_switchover_ack(struct tern_session *s);

/*
 * tern_session_recover - source, in POSTCOPY_PAUSED: connect to the destination again.
 *
 * At @uri, over any transport that the destination listens on (it stays where it listened
 * first, which may be several addresses); NULL: where it was before.  Returns at once; the state
 * becomes POSTCOPY_RECOVER, and then POSTCOPY_ACTIVE, or POSTCOPY_PAUSED again with an
 * event WARNING that says why.  May be repeated without limit.  Any thread.
 *
 * Returns 0, -EINVAL (URI, or a destination: it waits for its source by itself), -EBUSY
 * (not paused), -EPROTONOSUPPORT (transport not in this build).
 */
int tern_session_recover(struct tern_session *s, const char *uri);

/* A part of a region as another process has it mapped. */
struct tern_mapping {
	uint32_t region; /* its id */
	uint32_t reserved; /* 0 */
	uint64_t offset, size; /* bytes of the region; whole host pages */
	uint64_t hva; /* where, in that process */
};

/*
 * tern_session_add_mapper - destination, postcopy: another process maps guest RAM too.
 *
 * Faults are per process.  One that shares the guest's memory (a vhost-user device, say)
 * empties its mappings (madvise MADV_DONTNEED), registers them with a userfaultfd of its
 * own for missing and minor faults, and hands that descriptor to the VMM before it touches
 * the memory again; the VMM calls this from load() or later.  From then on its faults are
 * served like the guest's.  When nothing is missing any more, its mappings are
 * unregistered, and it goes on without.
 *
 * Mappings do not overlap in that process.
 * @uffd has been through UFFDIO_API; it is duplicated (and becomes non-blocking) and may be
 * closed.  Only shared regions can be mapped so.  A call that fails changes nothing: the
 * mappings stay registered as they were.
 *
 * Returns 0; -EINVAL (role, or a mapping that does not fit: tern_session_error() has no
 * part in it, *@err says why unless it is NULL), -EAGAIN (not yet in postcopy), -ESRCH
 * (nothing is missing any more: unregister them yourself), -ENOSPC (16 there are), -ENOMEM,
 * -EBADF.  Any thread.
 */
int tern_session_add_mapper(struct tern_session *s, int uffd, const struct tern_mapping *maps,
			    unsigned nr, struct tern_error *err);

/*
 * tern_session_wait - block until the session has ended.
 *
 * @timeout_ms < 0 waits forever.  Returns -EINPROGRESS if it has not ended in that
 * time, and for no other reason: a session that has ended returns 0 if it completed,
 * -ECANCELED if it was cancelled, or the code of its error, which may be -ETIMEDOUT of a
 * silent peer, say (-EIO in place of an error -EINPROGRESS).  -ESRCH: it was never
 * started.  Once it has ended, tern_session_state() tells COMPLETED, FAILED or
 * CANCELLED, whatever the code.
 */
int tern_session_wait(struct tern_session *s, int timeout_ms);

/* tern_session_state, tern_session_outcome - where the session is.  Any thread. */
enum tern_state tern_session_state(const struct tern_session *s);
enum tern_outcome tern_session_outcome(const struct tern_session *s);

/*
 * tern_session_error - copy the session's first error; in POSTCOPY_PAUSED, why it is.
 *
 * Before it is started: why the last call of tern_session_add_region(),
 * tern_session_set_kvm(), tern_session_connect() or tern_session_listen() failed, if it did.
 * Returns its code (0: there is none; *@out is cleared then).  Any thread.
 */
int tern_session_error(const struct tern_session *s, struct tern_error *out);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif

#endif
