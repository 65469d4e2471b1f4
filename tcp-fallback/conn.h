/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_TCP_FALLBACK_CONN_H
#define TERN_TCP_FALLBACK_CONN_H

/*
 * Private structures of the stream transports.
 *
 * Locks, in the order they are taken: tcp_hub.lock, tcp_conn.lock.
 * tcp_channel.place_lock is taken alone.
 */

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include "frame.h"
#include "sock.h"
#include "transport.h"

/* Room for one control record and the begin of the next. */
#define CONN_RX_MAX (2 * (FRAME_CONTROL_LEN + TRANSPORT_MSG_MAX))

/*
 * The staging buffer of a data channel: the longest message of a frame, or a push of a
 * page with all that may come before it.
 */
#define STAGE_MAX (FRAME_HEADER_LEN + TRANSPORT_PUSH_MSG_MAX + 4096u)

/* No byte moved for so many times peer_timeout_ms: the peer is lost. */
#define CHANNEL_IDLE_SLICES 3

struct tcp_hub;

/* Bytes of the control queue that arrived and are not taken yet. */
struct conn_rx {
	size_t len; /* bytes in buf */
	uint8_t buf[CONN_RX_MAX];
};

/*
 * MSG_ZEROCOPY sends of one channel that the kernel has not reported complete.
 * The kernel numbers them 0, 1, …; bytes[id % ZEROCOPY_MAX] is the length of
 * each in [done, next).  Channel's thread only.
 */
#define ZEROCOPY_MAX 1024u

struct zerocopy {
	bool on;
	uint32_t next; /* number of the next send */
	uint32_t pending; /* sends not yet reported */
	uint32_t bytes[ZEROCOPY_MAX]; /* 0: reported, or never sent */
};

/* Figures of a channel: written by its thread, read by any (relaxed). */
struct channel_figures {
	_Atomic uint64_t bytes, writes, stalls, zerocopy_bytes, zerocopy_copied;
};

/* A receive takes so many bytes before it is known how quick they are, see channel_rx.c. */
#define CHANNEL_RX_FIRST (128u << 10)

struct tcp_channel {
	struct transport_channel base;
	struct tcp_conn *conn;
	int fd; /* set under conn->lock by open_channels(), closed by close() */
	struct channel_figures fig;

	/* The channel's thread. */
	uint64_t fence_seq; /* of the last fence sent, or answered */
	bool broken; /* a frame was sent, or taken, in part: the stream cannot be used again */
	uint64_t yielded_ns; /* when others had their turn last */
	struct zerocopy zc;

	/*
	 * Destination; the channel's thread.  place_lock is held around every
	 * recvmsg() and memcpy() into exposed memory, together with the look at
	 * conn->revoked: see channel_rx.c.
	 */
	pthread_mutex_t place_lock;
	struct iovec iov[TRANSPORT_WRITE_RANGES_MAX + 1]; /* what is left to place, + staging */
	unsigned iov_at, iov_nr;
	uint64_t payload_left; /* bytes of [iov_at, iov_nr) */
	size_t stage_at, stage_len; /* unparsed bytes of stage */
	int lowat; /* SO_RCVLOWAT now; 0: never set */
	size_t rx_most; /* bytes of one recvmsg(); see channel_rx.c */
	bool rx_was_long; /* the last one */
	uint8_t stage[STAGE_MAX];
};

struct tcp_conn {
	struct transport_conn base;
	struct transport_env env;
	char peer[SOCK_TEXT_MAX];
	int fd; /* control queue; constant */
	int cancel_fd; /* eventfd, readable once aborted; constant */
	atomic_bool aborted; /* set by abort(), under lock; read by all */
	atomic_bool revoked; /* set by revoke(); read under place_lock */

	/* Control sender only. */
	bool tx_broken; /* a record was sent in part */

	/* Control receiver only (and the acceptor, before the connection is handed out). */
	struct conn_rx rx;

	/* Set by expose() and open_channels() before any channel thread runs. */
	struct transport_memory *mem;
	unsigned nr_mem;

	pthread_mutex_t lock; /* the fields below */
	struct tcp_channel *channels; /* array of nr_channels */
	unsigned nr_channels;

	/*
	 * Destination: sockets of data channels that have arrived.  wanted is
	 * 0 until open_channels() is called.
	 */
	struct tcp_hub *hub; /* constant; NULL on the source */
	struct tcp_conn *hub_next; /* hub->lock */
	unsigned wanted;
	int attach_fd; /* eventfd: something was attached; constant */
	int attached[TRANSPORT_CHANNELS_MAX]; /* or -1 */
	uint16_t attached_count[TRANSPORT_CHANNELS_MAX]; /* channel count of its preamble */
	bool taken[TRANSPORT_CHANNELS_MAX]; /* became channel i */
};

static inline struct tcp_conn *to_conn(struct transport_conn *c)
{
	return (struct tcp_conn *)c;
}

static inline struct tcp_channel *to_channel(struct transport_channel *c)
{
	return (struct tcp_channel *)c;
}

/* Add to a figure that only this thread writes. */
static inline void figure_add(_Atomic uint64_t *f, uint64_t n)
{
	atomic_store_explicit(f, atomic_load_explicit(f, memory_order_relaxed) + n,
			      memory_order_relaxed);
}

static inline bool conn_is_aborted(struct tcp_conn *c)
{
	return atomic_load(&c->aborted);
}

/* True if [offset, offset + len) lies in region @r of what was exposed; no overflow. */
bool conn_range_ok(const struct tcp_conn *c, const struct transport_range *r);

/* conn_new - a connection on control socket @fd, which it owns from now on if 0 is returned. */
int conn_new(const struct transport *ops, const struct transport_env *env, int fd,
	     const uint8_t *session_id, struct tcp_conn **out, struct tern_error *err);

/* conn_free - free what conn_new() and open_channels() made; sends nothing. */
void conn_free(struct tcp_conn *c);

/* conn_channels_alloc - the array of @nr channels, without sockets; under no lock. */
int conn_channels_alloc(struct tcp_conn *c, unsigned nr, struct tern_error *err);

/*
 * conn_channel_set_fd - give channel @i its socket.
 *
 * -ECANCELED if the connection was aborted meanwhile; the channel owns @fd in any case.
 */
int conn_channel_set_fd(struct tcp_conn *c, unsigned i, int fd);

/* Ops; see src/transport.h. */
int conn_expose(struct transport_conn *conn, const struct transport_memory *mem, unsigned nr,
		struct tern_error *err);
int conn_send(struct transport_conn *conn, const void *msg, size_t len, int timeout_ms,
	      struct tern_error *err);
long conn_recv(struct transport_conn *conn, void *buf, size_t cap, int timeout_ms,
	       struct tern_error *err);
void conn_revoke(struct transport_conn *conn);
void conn_abort(struct transport_conn *conn);
void conn_close(struct transport_conn *conn);

/* connect.c */
int tcp_connect(const struct transport *ops, const struct transport_env *env, const struct uri *uri,
		const uint8_t session_id[TRANSPORT_SESSION_ID_LEN], int cancel_fd,
		struct transport_conn **out, struct tern_error *err);
int connect_channels(struct tcp_conn *c, unsigned nr, struct tern_error *err);

/* status_error - the sentence for a refusal @st by the listening side; returns its code. */
int status_error(const struct tcp_conn *c, int channel, const struct frame_status *st,
		 struct tern_error *err);

/* channel_tx.c, channel_rx.c */
int channel_write(struct transport_channel *ch, const struct transport_range *ranges, unsigned nr,
		  struct tern_error *err);
int channel_notify(struct transport_channel *ch, const void *msg, size_t len,
		   struct tern_error *err);
int channel_push(struct transport_channel *ch, const void *msg, size_t len,
		 const struct transport_range *range, struct tern_error *err);
int channel_fence(struct transport_channel *ch, struct tern_error *err);
void channel_end(struct tcp_channel *ch, int64_t deadline);
long channel_serve(struct transport_channel *ch, void *buf, size_t *contents,
		   struct tern_error *err);
int channel_wait(struct tcp_channel *ch, short events, const char *doing, struct tern_error *err);
void channel_give_way(struct tcp_channel *ch);
int channel_lost(struct tcp_channel *ch, int code, const char *doing, struct tern_error *err);

/* zerocopy.c */
void zerocopy_start(struct tcp_channel *ch);
bool zerocopy_room(const struct tcp_channel *ch);
void zerocopy_sent(struct tcp_channel *ch, size_t bytes);
int zerocopy_drain(struct tcp_channel *ch);

/* hub.c */
struct tcp_hub *hub_new(void);
void hub_put(struct tcp_hub *hub);
void hub_add(struct tcp_hub *hub, struct tcp_conn *c);
void hub_remove(struct tcp_conn *c);
struct frame_status hub_attach(struct tcp_hub *hub, const struct frame_preamble *pre, int fd);
int hub_collect(struct tcp_conn *c, unsigned nr, struct tern_error *err);

#endif
