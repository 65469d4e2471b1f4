/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_RDMA_VERBS_H
#define TERN_RDMA_VERBS_H

/*
 * Private structures of the RDMA transport.
 *
 * Threads: those of src/transport.h, and some of each connection's own.
 *
 *	pump        control completions, CM events; delivers messages and keys
 *	registrar   one per NUMA node that has exposed memory: registers and
 *	            deregisters it (both sides)
 *
 * Locks, in the order they are taken: verbs_hub.lock, verbs_conn.lock,
 * keys.lock, control.lock, verbs_channel.post_lock; verbs_channel.drain_lock before
 * all of them but the first.
 *
 * Two protection domains: guest memory and the data queue pairs are in one, the
 * control queue in the other.  So the keys of guest memory are worth nothing on
 * the control queue pair, which outlives revoke().
 */

#include <infiniband/verbs.h>
#include <netdb.h>
#include <pthread.h>
#include <rdma/rdma_cma.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "greeting.h"
#include "place.h"
#include "transport.h"

#define VERBS_TEXT_MAX 96 /* an address in words */

#define CTL_RING 64u /* receives of the control queue; send slots too */
#define CTL_RESERVE 4u /* credits that only CREDIT frames may use */
#define CTL_MSG_WINDOW 32u /* engine messages kept for recv() */
#define CTL_SLOT (CTL_HEADER_LEN + TRANSPORT_MSG_MAX)

#define CHAN_RING 32u /* receives of a channel at the destination */
#define CHAN_RING_PUSH 16u /* the same if pushes may arrive, which take more room */
#define CHAN_RING_SOURCE 16u /* and at the source: credits and answers only */
#define CHAN_SLOTS 8u /* send slots of a channel */
#define CHAN_SLOT (DATA_HEADER_LEN + TRANSPORT_NOTIFY_MAX)
#define CHAN_SLOT_PUSH (DATA_HEADER_LEN + TRANSPORT_SERVE_MAX)
#define CHAN_SQ_MAX 512u /* send queue entries asked for */
#define CHAN_BATCH 32u /* work requests posted at once */
#define CHAN_PENDING_MAX 1024u /* ranges accepted by write() and not yet posted */
#define CHAN_TALLY_BYTES (8ull << 20)
#define CHAN_BINDS 64u /* bindings of memory windows posted at once */
#define CHAN_SPIN 64u /* empty polls before sleeping */
#define CHAN_IDLE_SLICES 3u /* no progress for so many peer_timeout_ms: lost */

#define PIECE_BYTES TRANSPORT_RETIRE_BYTES /* grid that registrations do not cross */
#define KEYS_EXTENTS_MAX (1u << 20) /* numbers of registered extents */
#define KEYS_MR_SPARE 256u /* registrations of a device that are left to others */
#define EXTENT_NO_ID UINT32_MAX
#define KEYS_EARLY_MAX 1024u /* key frames kept until memory is exposed */
#define KEYS_JOBS_MAX 65536u /* ranges that may wait for the registrars */

#define CLOSE_LINGER_MS 1000

struct verbs_conn;
struct verbs_hub;
struct openings;

/* ---- keys: the source's registrations, and what the destination granted ---- */

enum key_state {
	KEY_QUEUED, /* waits for the registrar */
	KEY_PINNED, /* registered here, the peer is being asked */
	KEY_READY, /* both sides: may be written with */
};

/* What a channel writes to an extent with.  KEYS_ANY_CHANNEL: one for all of them. */
struct extent_key {
	struct extent *extent;
	_Atomic(struct extent_key *) next; /* of the extent; only ever added */
	struct extent_key *queue_next; /* registrar's queue; keys.lock */
	uint32_t channel; /* constant */
	bool asked; /* the destination is being asked, or granted it; keys.lock */
	bool last_try; /* nothing can be freed for it: refusal is final; keys.lock */
	uint64_t remote_va;
	uint32_t rkey;
	atomic_int state; /* enum key_state; READY makes the fields above valid */
};

struct extent {
	uint32_t id; /* its number, or EXTENT_NO_ID: not registered yet; keys.lock */
	uint32_t region;
	uint64_t offset, len; /* bytes in the region; page-aligned; constant */
	struct ibv_mr *mr; /* registrar */
	struct extent_key key; /* the first one */
	/* keys.lock: */
	unsigned users; /* writes queued or in flight, and prepare() */
	unsigned unready; /* keys that are not READY */
	unsigned nr_asked; /* keys with ->asked */
	bool here; /* counted in keys.here */
	bool idle; /* on the idle list */
	bool stuck; /* scratch of room_may_come() */
	struct extent *next; /* in its piece, by offset */
	struct extent *lru_prev, *lru_next; /* idle list, oldest first */
};

/* A range of the destination's memory that the source may write to, or asked for. */
struct grant {
	uint32_t id; /* the source's number */
	uint32_t region;
	uint64_t offset, len; /* bytes in the region */
	struct ibv_mr *mr; /* registrar */
	struct window *windows; /* registrar */
	/* keys.lock: */
	unsigned unanswered; /* requests */
	unsigned nr_given; /* keys that were answered with success */
	uint64_t channels; /* bit i: channel i asked, and was not refused */
	bool counted; /* in keys.here */
	bool retired; /* the peer's access has ended, or is about to */
};

/* One channel's access to a grant; see windows.c. */
struct window {
	struct window *next; /* of the grant */
	struct window *queue_next; /* of the channel's bindings; post_lock */
	struct grant *grant;
	uint32_t channel;
	uint32_t rkey; /* as bound */
	struct ibv_mw *mw;
};

/* Keys to be answered in one frame. */
struct answers {
	struct key_granted v[KEYS_BATCH];
	unsigned nr;
};

enum grant_work {
	GRANT_WANTED, /* register, and answer */
	GRANT_RELEASE, /* deregister, and forget */
	GRANT_RETIRE, /* deregister; the number stays in use until the source releases it */
};

/* Work for the destination's registrar. */
struct grant_job {
	struct grant_job *next;
	struct grant *grant;
	enum grant_work work;
	uint32_t channel; /* that asks */
	uint64_t seq; /* order of arrival on the control queue */
	uint64_t frame; /* jobs of one frame are answered by one */
};

/* A key frame that arrived before memory was exposed. */
struct early_frame {
	struct early_frame *next;
	uint16_t type;
	size_t len;
	uint8_t payload[];
};

/* Registers the memory of one NUMA node. */
struct registrar {
	struct verbs_conn *conn;
	int node; /* -1: of no node; constant */
	pthread_t thread;
	bool running;
	pthread_cond_t work; /* with keys.lock, as everything below */
	bool busy; /* has work in hand */
	bool waits_for_room; /* its queue cannot go on until something is freed */
	struct extent_key *queue, **queue_tail; /* source */
	struct grant_job *jobs, **jobs_tail; /* destination; the first is in hand if busy */
};

struct keys {
	pthread_mutex_t lock; /* what follows, unless it says otherwise */
	pthread_cond_t done; /* an extent was pinned, or the connection failed */
	bool stop;
	struct registrar *registrars; /* constant, once started */
	unsigned nr_registrars;
	struct registrar **of_region; /* [nr_mem]; constant */
	uint64_t budget; /* bytes; UINT64_MAX: none; constant */
	uint64_t here; /* bytes registered, or about to be */
	uint64_t there; /* source: asked of the peer, or granted; destination: promised */

	/* Source. */
	uint64_t here_max, there_max; /* at most the budget; less after an ENOMEM */
	uint64_t peer_limit; /* the destination's memlock limit when it refused; 0: none */
	unsigned nr_asking; /* keys asked for and not answered yet */
	struct extent ***pieces; /* [region][offset / PIECE_BYTES]: list */
	struct extent *lru_first, *lru_last;
	struct extent **by_id; /* [nr_ids] */
	uint32_t *free_ids;
	uint32_t nr_ids, cap_ids, nr_free;
	uint32_t max_ids; /* registered at once: what numbers and device allow */
	atomic_uint nr_short; /* registrars that wait for room */
	struct verbs_channel *stuck; /* channels that cannot go on until there is room */
	struct verbs_channel *turn; /* the only one that may prepare while room is short */

	/* Destination. */
	struct grant **granted; /* by the source's number */
	uint32_t nr_granted;
	uint64_t nr_jobs, next_seq, next_frame;
	struct early_frame *early; /* in order of arrival */

	_Atomic uint64_t reg_ns, reg_bytes, reg_peak; /* figures */
};

/* ---- queue pairs ---- */

struct verbs_qp {
	struct ibv_qp *qp;
	struct ibv_qp_ex *ex; /* NULL: the provider has no ibv_wr_* */
	uint32_t max_inline; /* bytes */
};

/* One RDMA write. */
struct verbs_write {
	uint64_t local, remote; /* addresses */
	uint32_t len, lkey, rkey;
};

/* ---- control queue ---- */

struct ctl_frame { /* of the transport's own, waiting to be sent */
	struct ctl_frame *next;
	uint16_t type;
	uint32_t len;
	uint8_t payload[];
};

struct ctl_message { /* of the engine, waiting for recv() */
	struct ctl_message *next;
	uint32_t len;
	uint8_t payload[];
};

struct control {
	struct verbs_qp q;
	struct ibv_comp_channel *comp;
	struct ibv_cq *cq;
	struct ibv_mr *mr; /* of buf */
	uint8_t *buf; /* CTL_RING send slots, then CTL_RING receive slots */
	size_t buf_size;
	unsigned nr_events; /* pump: completion events to acknowledge */

	pthread_mutex_t lock; /* the fields below, and posting sends */
	pthread_cond_t cond; /* any of them changed */
	bool posting; /* the queue pair may be posted to */
	uint8_t free_slots[CTL_RING];
	unsigned nr_free;
	unsigned credits, msg_credits; /* what the peer can take */
	unsigned owe, owe_msgs; /* what it may be told it can send again */
	struct ctl_frame *frames, **frames_tail;
	struct ctl_message *inbox, **inbox_tail;
	unsigned nr_inbox;
	bool bye; /* the peer closed in order */
	bool bye_sent; /* ours has completed */
	struct tern_error error; /* first; code != 0: the connection is dead */
	struct tern_error data_error; /* first; code != 0: no channel goes on */
};

/* ---- channels ---- */

/* Figures of a channel: written by its thread, read by any (relaxed). */
struct vchan_figures {
	_Atomic uint64_t bytes, writes, stalls;
	_Atomic uint64_t first_write_ns; /* when the first was posted; 0: not yet */
};

/* A part of a range that write() has taken; belongs to the channel's thread. */
struct pending {
	struct extent_key *key;
	uint64_t offset, len; /* bytes in the region */
	bool last; /* of its range */
};

/* What a send queue entry holds until it is complete. */
struct sq_entry {
	struct extent_key *key; /* or NULL */
	int slot; /* or -1 */
};

struct verbs_channel {
	struct transport_channel base;
	struct verbs_conn *conn;
	struct rdma_cm_id *id; /* owned; set under conn->lock */
	struct verbs_qp q; /* of id */
	struct ibv_comp_channel *comp;
	struct ibv_cq *cq;
	struct ibv_mr *mr; /* of buf */
	uint8_t *buf; /* CHAN_SLOTS send slots, then the receive ring; on .node */
	uint32_t tx_slot, rx_slot; /* bytes of a slot of each; constant */
	bool push; /* pushes may go, or arrive; constant */
	size_t buf_size;
	int node; /* of the memory it serves; constant */
	int buf_node; /* that buf lies on; constant */
	unsigned vector; /* completion vector; constant */
	unsigned ring; /* receive slots */
	uint32_t qp_num;
	int wake_fd; /* eventfd: keys arrived, or something ended */
	atomic_bool lost; /* the peer disconnected; pump */
	bool established; /* conn->lock; pump */
	struct vchan_figures fig;

	/* While it waits for room; keys.lock.  The fields that say what for stay as they are. */
	struct verbs_channel *stuck_next;
	bool stuck, pressed; /* pressed: has to let go of what it holds */

	pthread_mutex_t post_lock; /* posting at the destination, against revoke() */
	bool posting; /* the queue pair may be posted to; under post_lock */

	/* Destination with memory windows; NULL otherwise. */
	struct ibv_cq *send_cq;
	pthread_mutex_t drain_lock; /* polling it: the pump, or the channel's thread at the end */
	unsigned nr_send_events; /* pump */
	unsigned bind_room; /* bindings that may be posted at once; constant */
	unsigned nr_binding; /* posted; post_lock */
	struct window *binds, **binds_tail; /* not posted yet; post_lock */
	_Atomic uint64_t frames_sent; /* sequence number after the last complete frame */
	atomic_bool send_failed; /* send_wc says why */
	struct ibv_wc send_wc;

	/* Everything below: the channel's thread. */
	unsigned nr_events;
	unsigned credits; /* frames the peer can take */
	unsigned owe; /* receives reposted and not yet told */
	uint64_t fence_seq, fence_acked;
	struct sq_entry *sq; /* [sq_size], by sequence number */
	uint64_t sq_head, sq_tail; /* sequence numbers: next, oldest incomplete */
	uint64_t sq_signalled; /* last one with a completion asked for, + 1 */
	unsigned sq_size;
	uint8_t free_slots[CHAN_SLOTS];
	unsigned nr_free;
	struct pending *pending; /* [CHAN_PENDING_MAX] */
	unsigned nr_pending;
	uint64_t tally_bytes; /* written when the last TALLY went out */
	uint64_t max_msg; /* bytes in one write */
	struct extent_key **held; /* by the last prepare(), until the next one or a fence */
	unsigned nr_held, cap_held;
	bool preparing; /* inside prepare() */
	uint16_t rx[CHAN_RING]; /* destination: slots that arrived, in order */
	unsigned rx_at, rx_nr;
	int rx_hold; /* slot that serve() returned, or -1 */
	bool ended; /* the peer said END */
	struct tern_error failure; /* code != 0: unusable */
};

/* ---- connection ---- */

struct verbs_conn {
	struct transport_conn base;
	struct transport_env env;
	bool source;
	char peer[VERBS_TEXT_MAX]; /* "192.0.2.1:4444"; constant */
	char device[64]; /* "rxe0"; constant */
	struct transport_device place; /* the same, and where it is; constant */
	struct place_vectors vectors; /* constant */
	struct sockaddr_storage src; /* source: own address if the user named a device;
				      * family 0: any; constant */
	struct rdma_event_channel *cm; /* pump, once it runs */
	struct rdma_cm_id *id; /* control queue */
	struct ibv_pd *pd_control, *pd_data;
	struct ibv_device_attr attr;
	uint64_t max_msg;
	int cancel_fd; /* eventfd, readable once aborted; constant */
	int kick_fd; /* eventfd: the pump has something to look at */
	atomic_bool aborted, revoked;

	/* Set by expose(), before any channel runs. */
	struct transport_memory *mem;
	unsigned nr_mem;

	struct control ctl;
	struct keys keys;
	uint64_t peer_budget; /* bytes; 0: none */
	bool windows; /* keys are of memory windows, per channel; set with peer_budget */
	bool paging; /* registrations pin nothing; set with pd_data */

	pthread_t pump;
	bool pumping;
	atomic_bool pump_stop;
	atomic_bool heard; /* a first message arrived, or it died; for accept() */
	int listener_fd; /* eventfd of the listener to tell, or -1; the hub keeps it open */

	struct openings *openings; /* source: channels on their way; session's thread */

	pthread_mutex_t lock; /* the fields below */
	pthread_cond_t changed; /* channels were attached or established, or it failed */
	struct verbs_channel *channels[TRANSPORT_CHANNELS_MAX];
	uint16_t counts[TRANSPORT_CHANNELS_MAX]; /* destination: of their greetings */
	unsigned nr_channels; /* given out; 0 until open_channels() */
	unsigned wanted;

	struct verbs_hub *hub; /* destination; constant */
	struct verbs_conn *hub_next; /* hub->lock */
};

static inline struct verbs_conn *to_conn(struct transport_conn *c)
{
	return (struct verbs_conn *)c;
}

static inline struct verbs_channel *to_channel(struct transport_channel *c)
{
	return (struct verbs_channel *)c;
}

static inline void figure_add(_Atomic uint64_t *f, uint64_t n)
{
	atomic_fetch_add_explicit(f, n, memory_order_relaxed);
}

/* cm.c: the connection manager, and small helpers of time and text. */
int64_t verbs_now_ms(void);
uint64_t verbs_now_ns(void);
int64_t verbs_deadline(int timeout_ms);
int verbs_remaining(int64_t deadline);
void verbs_timespec(int64_t deadline_ms, struct timespec *out);
void verbs_cond_init(pthread_cond_t *cond);
void verbs_address_text(const struct sockaddr *sa, char *buf, size_t size);

/* What verbs_cm_wait() found. */
struct cm_event {
	enum rdma_cm_event_type type;
	int status;
	struct rdma_cm_id *id;
	uint8_t private_data[GREETING_LEN];
	size_t private_len;
};

/*
 * verbs_cm_next - take an event from @cm and acknowledge it.
 *
 * Waits until @deadline.  0; -ETIMEDOUT; -ECANCELED if @cancel_fd is readable.
 */
int verbs_cm_next(struct rdma_event_channel *cm, int cancel_fd, int64_t deadline,
		  struct cm_event *ev);

/* verbs_cm_channel - a non-blocking event channel.  0 or -errno with *err. */
int verbs_cm_channel(struct rdma_event_channel **out, struct tern_error *err);

/* verbs_cm_wait - verbs_cm_next() with a sentence in *err. */
int verbs_cm_wait(struct rdma_event_channel *cm, const char *peer, int cancel_fd, int64_t deadline,
		  struct cm_event *ev, struct tern_error *err);

/* verbs_cm_wrong - the sentence for @ev, which was not the event waited for.  -errno. */
int verbs_cm_wrong(const struct cm_event *ev, const char *peer, struct tern_error *err);

/*
 * verbs_cm_resolve - address and route of @id to @dst, from @src unless that is NULL;
 * it has a device then.  The two steps alone only begin: an event tells the end.
 */
int verbs_cm_resolve(struct rdma_event_channel *cm, struct rdma_cm_id *id, struct sockaddr *src,
		     struct sockaddr *dst, const char *peer, int cancel_fd, int64_t deadline,
		     struct tern_error *err);
/*
 * verbs_cm_ack_timeout - let the queue pair notice a dead peer or wire within @peer_timeout_ms.
 *
 * Then the error is that of a transfer, with its status, and not just silence.  Before the
 * route is resolved; both sides take it from there.
 */
void verbs_cm_ack_timeout(struct rdma_cm_id *id, unsigned peer_timeout_ms);
int verbs_cm_resolve_addr(struct rdma_cm_id *id, struct sockaddr *src, struct sockaddr *dst,
			  const char *peer, int64_t deadline, struct tern_error *err);
int verbs_cm_resolve_route(struct rdma_cm_id *id, const char *peer, int64_t deadline,
			   struct tern_error *err);

/*
 * verbs_cm_request - ask @peer to connect @id, whose queue pair exists.
 *
 * Only begins.  verbs_cm_await_answer() waits for the event ESTABLISHED, and
 * verbs_cm_answer() takes the peer's greeting out of it.  -ECONNREFUSED: nothing
 * listens, or refused.
 */
int verbs_cm_request(struct rdma_cm_id *id, const struct greeting *hello, const char *peer,
		     struct tern_error *err);
int verbs_cm_await_answer(struct rdma_event_channel *cm, const struct greeting *hello,
			  const char *peer, int cancel_fd, int64_t deadline,
			  struct greeting *answer, struct tern_error *err);
int verbs_cm_answer(const struct cm_event *ev, const struct greeting *hello, const char *peer,
		    struct greeting *answer, struct tern_error *err);

/* connect.c */
/* verbs_check_device - @id was resolved to a device: is it the one asked for?  0 or -EXDEV. */
int verbs_check_device(struct verbs_conn *c, struct rdma_cm_id *id, const char *peer,
		       struct tern_error *err);

/* device.c */
/* verbs_memlock_hint - what to do about a registration that failed for want of memory. */
void verbs_memlock_hint(char *buf, size_t size);
/* verbs_memlock_limit - RLIMIT_MEMLOCK in bytes; 0: unlimited. */
uint64_t verbs_memlock_limit(void);
/* verbs_local_address - an address of an RDMA device that is up.  0 or -ENODEV. */
int verbs_local_address(char *buf, size_t size, char *why, size_t why_size);

/* choose.c */
/* verbs_device_is - is the device of @id the one that @want, "NAME" or "NAME/PORT", names? */
bool verbs_device_is(const char *want, const struct rdma_cm_id *id);
/*
 * verbs_device_address - an address of the device @want, to reach @peer from (NULL: any;
 * IPv4 before IPv6).  0 with *out; -ENODEV (no such device or port), -ENETDOWN,
 * -EADDRNOTAVAIL (no address of that family), with *err.
 */
int verbs_device_address(struct rdma_event_channel *cm, const char *want,
			 const struct sockaddr *peer, struct sockaddr_storage *out,
			 struct tern_error *err);

/* place.c; more is in place.h */
/* verbs_thread_on_node - the calling thread runs on CPUs for memory of @node from now on. */
void verbs_thread_on_node(struct verbs_conn *c, int node);

/* conn.c */
int vconn_make(const struct transport *ops, const struct transport_env *env, bool source,
	       const uint8_t *session_id, struct verbs_conn **out, struct tern_error *err);
int vconn_attach_device(struct verbs_conn *c, struct rdma_cm_id *id, struct tern_error *err);
int vconn_start(struct verbs_conn *c, struct tern_error *err);
void vconn_destroy(struct verbs_conn *c);
bool vconn_range_ok(const struct verbs_conn *c, uint32_t region, uint64_t offset, uint64_t len);
/* vconn_fail - note why the connection is dead, if it is the first reason, and wake everybody. */
void vconn_fail(struct verbs_conn *c, const struct tern_error *why);
void vconn_tell_listener(struct verbs_conn *c);
/*
 * vconn_fail_data - as vconn_fail() for the channels alone: the control queue goes on, so that
 * the engine can tell the peer.
 */
void vconn_fail_data(struct verbs_conn *c, const struct tern_error *why);
/* vconn_check - 0, -ECANCELED if aborted, or the reason why no channel can go on. */
int vconn_check(struct verbs_conn *c, struct tern_error *err);
void vconn_wake_all(struct verbs_conn *c);
void vconn_wake_channels(struct verbs_conn *c);
void vconn_kick(struct verbs_conn *c);

int vconn_expose(struct transport_conn *conn, const struct transport_memory *mem, unsigned nr,
		 struct tern_error *err);
int vconn_open_channels(struct transport_conn *conn, unsigned nr,
			struct transport_channel **channels, struct tern_error *err);
void vconn_retire(struct transport_conn *conn, uint32_t region, uint64_t offset, uint64_t len);
void vconn_revoke(struct transport_conn *conn);
void vconn_abort(struct transport_conn *conn);
void vconn_close(struct transport_conn *conn);
void vconn_stats(const struct transport_conn *conn, struct transport_conn_stats *out);

/* qp.c */
/*
 * vqp_create - make the queue pair of @id in @pd.
 *
 * With ibv_wr_* and inline sends if the provider has them.  @binds: memory windows are
 * going to be bound to it.  attr->cap becomes what it has.  0 or -errno.
 */
int vqp_create(struct rdma_cm_id *id, struct ibv_pd *pd, struct ibv_qp_init_attr *attr, bool binds,
	       struct verbs_qp *out);

/* vqp_send - post one SEND, signalled.  0 or -errno.  One poster at a time, as for vqp_write(). */
int vqp_send(struct verbs_qp *q, uint64_t wr_id, void *buf, uint32_t len, uint32_t lkey);

/*
 * vqp_write - post @nr writes (1 … CHAN_BATCH); the last one is signalled.
 *
 * They are numbered from @wr_id.  0 or -errno; *taken: how many were posted.
 */
int vqp_write(struct verbs_qp *q, uint64_t wr_id, const struct verbs_write *v, unsigned nr,
	      unsigned *taken);

/* vqp_bind - post the binding of @mw as @rkey, signalled.  0 or -errno.  One poster at a time. */
int vqp_bind(struct verbs_qp *q, uint64_t wr_id, struct ibv_mw *mw, uint32_t rkey,
	     const struct ibv_mw_bind_info *info);

/* control.c */
int control_open(struct verbs_conn *c, struct tern_error *err);
void control_close(struct verbs_conn *c);
int control_post_receives(struct verbs_conn *c, struct tern_error *err);
void control_begin(struct verbs_conn *c, const struct greeting *peer);
int control_send(struct transport_conn *conn, const void *msg, size_t len, int timeout_ms,
		 struct tern_error *err);
/* control_queue - send a frame of the transport's own as soon as possible.  0 or -ENOMEM. */
int control_queue(struct verbs_conn *c, uint16_t type, const void *payload, uint32_t len);
void control_flush_locked(struct verbs_conn *c);
int control_repost(struct verbs_conn *c, unsigned slot);

/* control_rx.c */
void *control_pump(void *conn);
long control_recv(struct transport_conn *conn, void *buf, size_t cap, int timeout_ms,
		  struct tern_error *err);

/* channel.c */
int vchan_make(struct verbs_conn *c, unsigned index, struct rdma_cm_id *id, bool push,
	       struct verbs_channel **out, struct tern_error *err);
void vchan_free(struct verbs_channel *ch);
void vchan_begin(struct verbs_channel *ch, const struct greeting *peer);
void vchan_stop_posting(struct verbs_channel *ch);
int vchan_reap(struct verbs_channel *ch, struct tern_error *err);
int vchan_sleep(struct verbs_channel *ch, int64_t deadline, struct tern_error *err);
int vchan_frame(struct verbs_channel *ch, uint16_t type, const void *payload, size_t len,
		uint64_t seq, struct tern_error *err);
int vchan_repost(struct verbs_channel *ch, unsigned slot);
uint8_t *vchan_rx_slot(struct verbs_channel *ch, unsigned slot);
/* vchan_payload - where vchan_frame() finds the payload of its next frame if it is given none. */
uint8_t *vchan_payload(struct verbs_channel *ch);
int vchan_failed(struct verbs_channel *ch, int code, struct tern_error *err, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));
void vchan_stats(const struct transport_channel *base, struct tern_channel_stats *out);

/* channel_tx.c, channel_rx.c */
int vchan_write(struct transport_channel *ch, const struct transport_range *ranges, unsigned nr,
		struct tern_error *err);
int vchan_notify(struct transport_channel *ch, const void *msg, size_t len, struct tern_error *err);
int vchan_push(struct transport_channel *ch, const void *msg, size_t len,
	       const struct transport_range *range, struct tern_error *err);
int vchan_fence(struct transport_channel *ch, struct tern_error *err);
void vchan_end(struct verbs_channel *ch, int64_t deadline);
long vchan_serve(struct transport_channel *ch, void *buf, size_t *contents, struct tern_error *err);
int vchan_take_answer(struct verbs_channel *ch, unsigned slot, const struct data_header *h,
		      struct tern_error *err);
int vchan_check_ranges(struct verbs_channel *ch, const struct transport_range *ranges, unsigned nr,
		       struct tern_error *err);
/* vchan_patience - when the peer, silent from now on, counts as dead. */
int64_t vchan_patience(const struct verbs_channel *ch);
/* vchan_wait - until anything happens; *deadline moves on when it does.  0 or -errno with *err. */
int vchan_wait(struct verbs_channel *ch, int64_t *deadline, struct tern_error *err);
/* vchan_advance - post and reap without waiting.  0 or -errno with *err. */
int vchan_advance(struct verbs_channel *ch, struct tern_error *err);

/* channel_hold.c: what prepare() holds. */
int vchan_prepare(struct transport_channel *base, const struct transport_range *ranges, unsigned nr,
		  struct tern_error *err);
void vchan_unhold(struct verbs_channel *ch);

/* keys.c: the source's registrations and keys; keys_extent.c: which extents there are. */
int keys_init(struct verbs_conn *c, struct tern_error *err);
void keys_fini(struct verbs_conn *c);
void *keys_main(void *registrar);
/*
 * keys_hold - the key of @channel for @offset of @region, and how much of @len it covers.
 *
 * Makes it and hands it to the registrar if there is none.  The caller is one of the
 * extent's users until keys_drop().  Returns the bytes covered (> 0) or -errno.
 */
int64_t keys_hold(struct verbs_conn *c, uint32_t channel, uint32_t region, uint64_t offset,
		  uint64_t len, struct extent_key **out);
void keys_drop(struct verbs_conn *c, struct extent_key *key);
/* keys_pin_all - register everything, both sides. */
int keys_pin_all(struct verbs_conn *c, struct tern_error *err);
void keys_take(struct verbs_conn *c, const uint8_t *payload, size_t len);
struct extent *keys_evict_locked(struct keys *k);
bool keys_numbers_left(const struct keys *k);
int keys_number_locked(struct keys *k, struct extent *e);
void keys_unlink_locked(struct keys *k, struct extent *e);
void keys_forget_locked(struct keys *k, struct extent *e);
void keys_free_extent(struct extent *e);

/* keys_room.c: the lock budget of the source, and what to do when it is short. */
/*
 * room_take - keys off @r's queue for which there is room, at most KEYS_BATCH.
 *
 * Lets go of idle extents for them.  keys.lock is held, and may be dropped meanwhile.
 * Returns how many; 0: the queue is empty, or has to wait, or *err says why it never
 * can go on.
 */
unsigned room_take(struct registrar *r, struct extent_key **v, struct tern_error *err);
void room_return_locked(struct registrar *r, struct extent_key *key);
void room_unask_locked(struct keys *k, struct extent_key *key);
void room_wake_locked(struct keys *k);
/* room_stuck - @ch is about to sleep: tell those who look for room.  False: no need. */
bool room_stuck(struct verbs_channel *ch);
/* room_unstuck - it woke up.  True: it has to let go of what prepare() holds. */
bool room_unstuck(struct verbs_channel *ch);
/* room_turn_over - @ch is done preparing. */
void room_turn_over(struct verbs_channel *ch);

/* registrar.c: the threads, and registering itself. */
int registrars_start(struct verbs_conn *c, void *(*main)(void *), struct tern_error *err);
void registrars_stop(struct verbs_conn *c);
void registrars_free(struct verbs_conn *c);
struct ibv_mr *registrar_register(struct verbs_conn *c, uint32_t region, uint64_t offset,
				  uint64_t len, int access);
/* registrar_peak_locked - more is registered than before: is it the most so far? */
void registrar_peak_locked(struct verbs_conn *c);

/* paging.c: on-demand paging. */
/* paging_start - see that the device has it, if it is asked for.  0 or -errno with *err. */
int paging_start(struct verbs_conn *c, struct tern_error *err);
/* paging_prefetch - what @mr covers is about to be sent, or written by the peer. */
void paging_prefetch(const struct verbs_conn *c, const struct ibv_mr *mr);

/* grants.c: what the destination grants. */
void grants_take(struct verbs_conn *c, uint16_t type, const uint8_t *payload, size_t len);
int grants_exposed(struct verbs_conn *c, struct tern_error *err);
void *grants_main(void *registrar);
/* grants_answer - add the answer to @channel's request for @g to @a, which has room. */
void grants_answer(struct verbs_conn *c, struct grant *g, uint32_t channel, int status,
		   uint32_t rkey, struct answers *a);
void grants_send(struct verbs_conn *c, struct answers *a);
/* grants_retire - nothing more is going to be written there; see struct transport. */
void grants_retire(struct verbs_conn *c, uint32_t region, uint64_t offset, uint64_t len);
void grants_close_windows(struct verbs_conn *c);
void grants_fini(struct verbs_conn *c);

/* windows.c: memory windows of the destination. */
/* windows_possible - can, and may, this side's device bind windows? */
bool windows_possible(const struct verbs_conn *c);
/*
 * window_open - let @channel write to @g, which is registered.  Registrar.
 *
 * 0: the pump will answer.  -ENOMEM; -ENOTCONN: there is no such channel.
 */
int window_open(struct verbs_conn *c, struct grant *g, uint32_t channel);
/* windows_close - nobody may write to @g any more. */
void windows_close(struct grant *g);
/* windows_event - an event of @ch's send completion queue.  Pump. */
void windows_event(struct verbs_channel *ch);
/* windows_drain - handle what there is in @ch's send completion queue. */
void windows_drain(struct verbs_channel *ch);

/* accept.c */
int verbs_listener_listen(const struct transport *ops, const struct transport_env *env,
			  const struct uri *uri, struct transport_listener **out,
			  struct tern_error *err);
int verbs_listener_uri(const struct transport_listener *l, char *buf, size_t size);
int verbs_listener_accept(struct transport_listener *l, int timeout_ms, struct transport_conn **out,
			  struct tern_error *err);
void verbs_listener_stop(struct transport_listener *l);
void verbs_listener_close(struct transport_listener *l);
void vhub_leave(struct verbs_conn *c);
void vhub_put(struct verbs_hub *hub);
int vhub_collect(struct verbs_conn *c, unsigned nr, struct tern_error *err);

/* connect.c */
int verbs_resolve(const struct uri *uri, int flags, struct addrinfo **out, struct tern_error *err);
int verbs_connect(const struct transport *ops, const struct transport_env *env,
		  const struct uri *uri, const uint8_t session_id[TRANSPORT_SESSION_ID_LEN],
		  int cancel_fd, struct transport_conn **out, struct tern_error *err);

/* connect_channels.c */
int vconn_make_channels(struct verbs_conn *c, unsigned nr, struct tern_error *err);
void vconn_forget_channels(struct verbs_conn *c);
int vconn_connect_channels(struct verbs_conn *c, unsigned nr, struct tern_error *err);

#endif
