/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_RDMA_KEYS_H
#define TERN_RDMA_KEYS_H

/*
 * Keys: the source's registrations, and what the destination granted.
 *
 * Private to the RDMA transport; the locks are in verbs.h.
 */

#include <infiniband/verbs.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <tern/error.h>
#include "greeting.h"
#include "transport.h"

#define PIECE_BYTES TRANSPORT_RETIRE_BYTES /* grid that registrations do not cross */
#define KEYS_EXTENTS_MAX (1u << 20) /* numbers of registered extents */
#define KEYS_MR_SPARE 256u /* registrations of a device that are left to others */
#define EXTENT_NO_ID UINT32_MAX
#define KEYS_EARLY_MAX 1024u /* key frames kept until memory is exposed */
#define KEYS_ASKING_MAX 8192u /* keys that a source asks for before they are answered */
#define KEYS_JOBS_MAX 65536u /* requests that may wait for the destination's registrars */

struct verbs_channel;
struct verbs_conn;

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
	uint64_t refused_at; /* nr_released + 1 when its window was refused; 0: never; keys.lock */
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
	struct grant *piece_next, **piece_at; /* in its piece's list; what points to it there */
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
	uint64_t nr_released; /* extents that the destination was told to let go of */
	bool begun; /* there was an extent */
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
	struct grant ***granted_in; /* [region][offset / PIECE_BYTES]: list, in no order */
	uint64_t nr_jobs, next_seq, next_frame;
	struct early_frame *early; /* in order of arrival */

	_Atomic uint64_t reg_ns, reg_bytes, reg_peak; /* figures */
};

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
 * Lets go of idle extents for them, and leaves KEYS_ASKING_MAX unanswered at most.
 * keys.lock is held, and may be dropped meanwhile.  Returns how many; 0: the queue is
 * empty, or has to wait, or *err says why it never can go on.
 */
unsigned room_take(struct registrar *r, struct extent_key **v, struct tern_error *err);
void room_return_locked(struct registrar *r, struct extent_key *key);
void room_unask_locked(struct keys *k, struct extent_key *key);
void room_granted_locked(struct keys *k, struct extent_key *key);
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
int registrar_no_room(int code);
/* registrar_peak_locked - more is registered than before: is it the most so far? */
void registrar_peak_locked(struct verbs_conn *c);

/* paging.c: on-demand paging. */
/* paging_start - see that the device has it, if it is asked for.  0 or -errno with *err. */
int paging_start(struct verbs_conn *c, struct tern_error *err);
/* paging_prefetch - what @mr covers is about to be sent, or written by the peer. */
void paging_prefetch(const struct verbs_conn *c, const struct ibv_mr *mr);

/* grants.c: what the destination grants. */
int grants_init(struct verbs_conn *c, struct tern_error *err);
void grants_take(struct verbs_conn *c, uint16_t type, const uint8_t *payload, size_t len);
int grants_exposed(struct verbs_conn *c, struct tern_error *err);
void *grants_main(void *registrar);
/* grants_answer - add the key that @channel asked for, to @g, to @a, which has room. */
void grants_answer(struct verbs_conn *c, struct grant *g, uint32_t channel, uint32_t rkey,
		   struct answers *a);
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

#endif
