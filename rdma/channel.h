/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_RDMA_CHANNEL_H
#define TERN_RDMA_CHANNEL_H

/*
 * Channels; the theory is in channel.c, channel_tx.c and channel_rx.c.
 *
 * Private to the RDMA transport; the locks are in verbs.h.
 */

#include <infiniband/verbs.h>
#include <pthread.h>
#include <rdma/rdma_cma.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <tern/error.h>
#include "keys.h"
#include "queue.h"

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
	bool pushed; /* the last frame was a push, and so may the next one be */
	struct spin spin; /* serve(), after a push */
	bool ended; /* the peer said END */
	struct tern_error failure; /* code != 0: unusable */
};

/* channel.c */
int vchan_make(struct verbs_conn *c, unsigned index, struct rdma_cm_id *id, bool push,
	       struct verbs_channel **out, struct tern_error *err);
void vchan_unmake(struct verbs_channel *ch);
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
/*
 * vchan_drain - wait until at most @max writes are pending, and not too many bytes.  0 or -errno
 * with *err.
 */
int vchan_drain(struct verbs_channel *ch, unsigned max, struct tern_error *err);
/* vchan_advance - post and reap without waiting.  0 or -errno with *err. */
int vchan_advance(struct verbs_channel *ch, struct tern_error *err);

/* channel_hold.c: what prepare() holds. */
int vchan_prepare(struct transport_channel *base, const struct transport_range *ranges, unsigned nr,
		  struct tern_error *err);
void vchan_unhold(struct verbs_channel *ch);

#endif
