/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_RDMA_VERBS_H
#define TERN_RDMA_VERBS_H

/*
 * Private structures of the RDMA transport.
 *
 * Threads: those of src/transport.h, and some of each connection's own.
 *
 *	pump        CM events, control completions, unless recv() takes them; delivers
 *	            messages and keys
 *	registrar   one per NUMA node that has exposed memory: registers and
 *	            deregisters it (both sides)
 *
 * Locks, in the order they are taken: verbs_hub.lock, verbs_conn.lock,
 * keys.lock, control.lock, verbs_channel.post_lock; before all of them but the first
 * control.poll_lock, then verbs_channel.drain_lock.
 *
 * Two protection domains: guest memory and the data queue pairs are in one, the
 * control queue in the other.  So the keys of guest memory are worth nothing on
 * the control queue pair, which outlives revoke().
 */

#include <errno.h>
#include <netdb.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "channel.h"
#include "cm.h"
#include "keys.h"
#include "place.h"
#include "queue.h"
#include "transport.h"

#define VERBS_TEXT_MAX 96 /* an address in words */
#define CLOSE_LINGER_MS 1000

struct verbs_hub;
struct openings;

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
	atomic_bool kicked; /* everybody has */
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

/* connect.c */
/* verbs_check_device - @id was resolved to a device: is it the one asked for?  0 or -EXDEV. */
int verbs_check_device(struct verbs_conn *c, struct rdma_cm_id *id, const char *peer,
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
/*
 * vconn_final - the code of what has failed for good, with @code from the device or the peer.
 *
 * -EAGAIN would mean to those who wait that nothing has come yet, and they would wait on.
 */
static inline int vconn_final(int code)
{
	return code == -EAGAIN ? -EIO : code;
}
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
int vconn_request_channels(struct transport_conn *conn, unsigned nr, struct tern_error *err);
int vconn_connect_channels(struct verbs_conn *c, unsigned nr, struct tern_error *err);

#endif
