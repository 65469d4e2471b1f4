/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_SRC_TRANSPORT_H
#define TERN_SRC_TRANSPORT_H

/*
 * The border between the engine and what moves bytes.
 *
 * The engine knows regions, pages, messages and states; a transport knows how
 * to put a range of registered memory into the same place of the peer's
 * memory, and how to carry small messages.  Neither looks into the other.  The
 * table speaks the language of verbs, because TCP can imitate one-sided writes
 * and RDMA should not imitate a stream.
 *
 * A connection (transport_conn) is a control queue plus N channels.
 *
 *   control queue   send/recv of bounded messages, reliable and in order, both
 *                   directions; a transport that needs credits keeps them itself
 *   channel i       write:  local range -> same range of the peer, one-sided
 *                   notify: a small message, delivered to the peer's serve() in
 *                           order with the channel's other notifies, and after
 *                           every earlier write of the channel has been placed
 *                   push:   a notify with a range's contents behind it; the peer's
 *                           serve() returns both, and places nothing
 *                   fence:  returns when every earlier write is placed and every
 *                           earlier notify or push has been *handled* by the peer
 *                           (its serve() was called again after returning it)
 *
 *   source                                   destination
 *   connect()                                listen() accept()
 *   expose(all regions)                      expose(all regions)
 *   request_channels()
 *   open_channels()                          open_channels()
 *   write() notify() push() fence() each     serve() per channel
 *   send()/recv()                            send()/recv()
 *   abort(), close()                         revoke(), abort(), close()
 *
 * Rules for every function:
 *  - 0 (or as stated) on success, negative errno on failure; the function that
 *    first meets the failure fills *err with the sentence, the others pass it
 *    on.  -ECANCELED means: abort() was called; *err may then be left alone.
 *  - Functions "of the control sender", "of the control receiver" and "of a
 *    channel" are each called by one thread at a time, but by different threads
 *    at once.  abort() may be called by any thread at any time before close(),
 *    and makes every blocked call return -ECANCELED soon.
 *  - Everything the peer sent is checked before it is used (invariant 6): a
 *    write outside an exposed range, an oversized message or an unknown frame
 *    is -EPROTO (or -EBADMSG) with an error that names the field and value, and
 *    touches no memory.
 *  - Memory given to expose() is used only between expose() and revoke() or
 *    close().  Source memory changes while it is being sent: a transport must
 *    not rely on reading the same byte twice.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <tern/error.h>
#include <tern/stats.h>

struct uri;
struct transport_listener;
struct transport_conn;
struct transport_channel;

#define TRANSPORT_MSG_MAX 8192u /* largest control message */
#define TRANSPORT_NOTIFY_MAX 4096u /* largest notify */
#define TRANSPORT_PUSH_MSG_MAX 256u /* longest message of a push */
#define TRANSPORT_PUSH_MAX 65536u /* most contents of a push */
#define TRANSPORT_SERVE_MAX (TRANSPORT_PUSH_MSG_MAX + TRANSPORT_PUSH_MAX) /* of serve() */
#define TRANSPORT_SESSION_ID_LEN 16u
#define TRANSPORT_CHANNELS_MAX 64u
#define TRANSPORT_RETIRE_BYTES (2ull << 20) /* unit of retire() */
#define TRANSPORT_WRITE_RANGES_MAX 64u /* ranges in one write() */

_Static_assert(TRANSPORT_NOTIFY_MAX <= TRANSPORT_SERVE_MAX, "a notify fits serve()'s buffer");

/* The network device of a connection. */
struct transport_device {
	char name[64]; /* "mlx5_0"; "": none (sockets) */
	unsigned port; /* 1, … */
	int numa_node; /* TERN_NODE_ANY: not known */
	char cpus[256]; /* nearest to it, as a list; "": not known */
};

/* first_write_ns of a channel that will tell when it happens, and has not written yet. */
#define TRANSPORT_NO_WRITE_YET UINT64_MAX

struct transport_range;

/* What a transport may assume of the session that uses it. */
struct transport_env {
	unsigned peer_timeout_ms; /* limit for handshakes, and for a write, notify or fence
				   * during which no byte moves (3 times this) */
	unsigned answer_ms; /* RDMA: how long the answer to a connection request may take, if that
			     * is more than peer_timeout_ms; 0: two tries of the kernel's */
	uint64_t chunk_bytes; /* largest range in a write() */
	unsigned channels; /* source: data channels that are likely to be opened, 0: not known.
			    * What needs no agreement can be made ready in connect(). */
	bool push; /* contents will travel with messages: push() may be called, or its
		    * peer's arrive, and buffers are made for it.  Both sides have to have it. */
	bool zerocopy; /* TCP: use MSG_ZEROCOPY where it helps */
	bool pin_all; /* RDMA: register all memory before the first write */
	bool on_demand; /* RDMA: pin nothing, let the device take page faults */
	bool no_windows; /* RDMA: no memory windows, even where the device has them */
	uint64_t lock_budget; /* RDMA: most bytes of memory registered at once; 0: no limit */
	const char *rdma_device; /* RDMA: "NAME" or "NAME/PORT"; NULL or "": by route.
				  * Valid as long as the listener or connection. */
	/*
	 * Places.  A transport's own threads call run_on() when they start; a thread that
	 * makes queues for a channel is on the channel's node meanwhile.  All may be NULL
	 * and may be called by any thread.
	 */
	int (*channel_node)(void *opaque, unsigned index); /* of the memory that channel
							    * @index serves, or TERN_NODE_ANY */
	void (*run_on)(void *opaque, int node); /* the calling thread, on CPUs of @node that
						 * it may use; TERN_NODE_ANY: nearest the
						 * device, if known, else all it may use */
	void (*device)(void *opaque, const struct transport_device *device); /* known now */
	/*
	 * A connection was turned away by the transport itself (garbage, silent).
	 * Called inside accept(); may be NULL.
	 */
	void (*stranger)(void *opaque, const struct tern_error *why);
	/*
	 * Destination; may be NULL.  A transport that places writes itself (sockets) asks
	 * before the first byte of a write is placed: 0, or -errno with *err, and then
	 * nothing of it is placed and serve() fails with that.  All ranges lie in exposed
	 * memory.  Threads of channels; quick, and without a call to the transport.  A
	 * device that writes by itself (RDMA) cannot ask.
	 */
	int (*admit)(void *opaque, const struct transport_range *ranges, unsigned nr,
		     struct tern_error *err);
	void *opaque;
};

/* One region as a transport sees it.  Ids are dense: 0, 1, … */
struct transport_memory {
	uint32_t region;
	void *hva;
	uint64_t size;
	int fd; /* behind hva, or -1 */
	uint64_t fd_offset;
	int numa_node;
};

/* A range of one region, on both sides the same. */
struct transport_range {
	uint32_t region;
	uint64_t offset; /* bytes from the region's begin */
	uint64_t len; /* 1 … env.chunk_bytes */
};

/* Figures of a connection as a whole. */
struct transport_conn_stats {
	uint64_t registration_ns, registration_bytes; /* memory registration, RDMA */
	uint64_t locked_peak_bytes; /* most that was registered at once */
	struct transport_device device;
};

/* Bases; a transport embeds them as the first member of its own structures. */
struct transport_listener {
	const struct transport *ops;
};

struct transport_conn {
	const struct transport *ops;
	uint8_t session_id[TRANSPORT_SESSION_ID_LEN];
};

struct transport {
	const char *name; /* "tcp", as in statistics and JSON */
	bool one_sided; /* the peer's writes are placed by a device, from expose() on, whether
			 * or not anybody is in serve(); else by serve() */

	/*
	 * Bind and listen.  Blocks only for name resolution.  Errors say which
	 * address and what to do.  *env is copied.  @ops is the table itself, so that a
	 * table may be embedded in a structure that carries state.
	 */
	int (*listen)(const struct transport *ops, const struct transport_env *env,
		      const struct uri *uri, struct transport_listener **out,
		      struct tern_error *err);

	/* The bound address as a URI ("tcp:127.0.0.1:4444"), as snprintf().  Any thread. */
	int (*listener_uri)(const struct transport_listener *l, char *buf, size_t size);

	/*
	 * Wait for the next peer whose first control message has arrived whole
	 * (recv() then returns it without waiting).  Any number of strangers
	 * that are silent, slow or speak garbage must not delay it; they are
	 * dropped after env.peer_timeout_ms and told to env.stranger.  Also
	 * takes in the data channels of connections accepted earlier, and turns
	 * away those that belong to none.  Returns 0; -ETIMEDOUT (< 0 timeout:
	 * wait for ever); -ECANCELED after listener_stop().  One thread at a
	 * time (the acceptor).
	 */
	int (*accept)(struct transport_listener *l, int timeout_ms, struct transport_conn **out,
		      struct tern_error *err);

	/* Make accept() return -ECANCELED, now and from now on.  Any thread. */
	void (*listener_stop)(struct transport_listener *l);

	/* Free the listener; no call on it may be running.  Connections stay. */
	void (*listener_close)(struct transport_listener *l);

	/*
	 * Connect the control queue.  Blocks up to env.peer_timeout_ms, or to what a
	 * second try of the network takes, if that is more (the listening side may
	 * have to be inside accept() meanwhile); an eventfd-like @cancel_fd (or -1)
	 * becoming readable ends it with -ECANCELED.
	 */
	int (*connect)(const struct transport *ops, const struct transport_env *env,
		       const struct uri *uri, const uint8_t session_id[TRANSPORT_SESSION_ID_LEN],
		       int cancel_fd, struct transport_conn **out, struct tern_error *err);

	/*
	 * Give the transport all regions, once, before open_channels().  On the
	 * destination they become writable by the peer.  @mem is copied.
	 */
	int (*expose)(struct transport_conn *conn, const struct transport_memory *mem, unsigned nr,
		      struct tern_error *err);

	/*
	 * Source; may be NULL.  Ask the peer for @nr channels and return at once: for those
	 * who have other things to do before open_channels() of as many, which waits for
	 * the answers.  What can only go wrong later is told there.
	 */
	int (*request_channels)(struct transport_conn *conn, unsigned nr, struct tern_error *err);

	/*
	 * Source: connect @nr channels.  Destination: wait, for as long as connect()
	 * would, until the peer has attached all @nr (the acceptor thread has to be
	 * inside accept() meanwhile).  Fills channels[0 … nr-1]; they
	 * belong to the connection and are freed by close().
	 */
	int (*open_channels)(struct transport_conn *conn, unsigned nr,
			     struct transport_channel **channels, struct tern_error *err);

	/*
	 * Send one control message of 1 … TRANSPORT_MSG_MAX bytes.  Control
	 * sender.  Blocks for flow control at most @timeout_ms (-ETIMEDOUT; the
	 * connection is then unusable).  The buffer may be reused on return.
	 */
	int (*send)(struct transport_conn *conn, const void *msg, size_t len, int timeout_ms,
		    struct tern_error *err);

	/*
	 * Receive one control message.  Control receiver.  Returns its length
	 * (≥ 1); 0 if the peer closed in an orderly way; -ETIMEDOUT (a message may
	 * have arrived in part; call again); -EMSGSIZE for a message above @cap
	 * or TRANSPORT_MSG_MAX; -ECONNRESET and the like.
	 */
	long (*recv)(struct transport_conn *conn, void *buf, size_t cap, int timeout_ms,
		     struct tern_error *err);

	/*
	 * Source, of a channel; may be NULL.  Pages of @ranges will be written soon:
	 * returns when this side's memory is ready for that.  Making it ready may
	 * look like a write to whoever tracks dirty pages (registration does, on
	 * Linux before 6.2), so it has to come before the dirty bits are cleared.
	 * Any number of ranges of any length; they stay ready until the next
	 * prepare() or fence(), so write() them before that.
	 */
	int (*prepare)(struct transport_channel *ch, const struct transport_range *ranges,
		       unsigned nr, struct tern_error *err);

	/*
	 * Source, of a channel.  Write @nr ranges (1 … TRANSPORT_WRITE_RANGES_MAX,
	 * ascending, not overlapping) of exposed memory into the peer's.  Posted: the
	 * memory may still be read until the next fence().  May block for flow control.
	 */
	int (*write)(struct transport_channel *ch, const struct transport_range *ranges,
		     unsigned nr, struct tern_error *err);

	/* Source, of a channel.  1 … TRANSPORT_NOTIFY_MAX bytes; copied. */
	int (*notify)(struct transport_channel *ch, const void *msg, size_t len,
		      struct tern_error *err);

	/*
	 * Source, of a channel; only if env.push was set on this side (else -EINVAL).  Like
	 * notify(), with the contents of @range of exposed memory (1 … TRANSPORT_PUSH_MAX
	 * bytes) behind the message of 1 … TRANSPORT_PUSH_MSG_MAX bytes: the peer's serve()
	 * returns both together, and placing them is its caller's business.  In order with
	 * the channel's writes, notifies and fences.  The message is copied; the memory may
	 * still be read until the next fence(), as for write().  -EMSGSIZE: either is too
	 * long.  Needs no prepare().  May block for flow control.
	 */
	int (*push)(struct transport_channel *ch, const void *msg, size_t len,
		    const struct transport_range *range, struct tern_error *err);

	/* Source, of a channel.  See above; blocks. */
	int (*fence)(struct transport_channel *ch, struct tern_error *err);

	/*
	 * Destination, of a channel.  Place writes and answer fences until a notify or a
	 * push arrives: returns its length, with the message in @buf (at least
	 * TRANSPORT_SERVE_MAX bytes) and a push's contents right behind it.  *contents is
	 * how many of the returned bytes are contents (0: a notify).  0: the peer closed
	 * the channel in order.  @buf may be written to during the call only.
	 */
	long (*serve)(struct transport_channel *ch, void *buf, size_t *contents,
		      struct tern_error *err);

	/*
	 * Destination; may be NULL.  The peer has no business any more in [@offset,
	 * @offset + @len) of @region, of which TRANSPORT_RETIRE_BYTES or more are given at
	 * a time, aligned to that, or a region's end: take its access from it.  Returns at
	 * once; it is done soon, as far as the device can.  Any thread.
	 */
	void (*retire)(struct transport_conn *conn, uint32_t region, uint64_t offset, uint64_t len);

	/*
	 * Destination, any one thread: when it returns, the peer can no longer
	 * write to exposed memory (invariant 4).  serve() of all channels returns
	 * -ECANCELED.  Quick; slow releasing is left to close().  The control queue
	 * goes on working.
	 */
	void (*revoke)(struct transport_conn *conn);

	/* Any thread, any time, any number of times: the link is dead from now on. */
	void (*abort)(struct transport_conn *conn);

	/* Free everything; no other call may be running.  Tells the peer by an orderly close. */
	void (*close)(struct transport_conn *conn);

	/*
	 * Add this channel's bytes, writes, stalls, zerocopy_* to *out, and set
	 * buffer_node and completion_vector if it has such (other fields are the
	 * engine's).  Any thread; figures may be slightly old.
	 */
	void (*channel_stats)(const struct transport_channel *ch, struct tern_channel_stats *out);

	/* Add the connection's figures to *out.  Any thread.  May be NULL. */
	void (*conn_stats)(const struct transport_conn *conn, struct transport_conn_stats *out);
};

struct transport_channel {
	const struct transport *ops;
	unsigned index;
};

/*
 * transport_find - the transport for a URI scheme.
 *
 * 0; -EPROTONOSUPPORT with a sentence if this build has none of that name.
 * "auto" gives TCP's: nothing is probed.
 */
int transport_find(const struct uri *uri, const struct transport **out, struct tern_error *err);

/*
 * transport_push_check - may contents be pushed here, of these sizes?
 *
 * 0; -EINVAL (env.push is not set); -EMSGSIZE, with *err.
 */
int transport_push_check(const struct transport_env *env, unsigned channel, size_t len,
			 uint64_t contents, struct tern_error *err);

/*
 * transport_choose - settle "auto"; else as transport_find(); @why (may be NULL) gets the
 * reason for the choice.
 *
 * "auto" means RDMA if this host has an RDMA device that is up and leads to the URI's
 * host (without a host: any), else TCP.  If the user named a device (@rdma_device, not
 * ""), it means RDMA: what is wrong with that device is said when it is used.  May block
 * for a second.
 */
int transport_choose(const struct uri *uri, const char *rdma_device, const struct transport **out,
		     char *why, size_t size, struct tern_error *err);

#endif
