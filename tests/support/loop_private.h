/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_TESTS_SUPPORT_LOOP_PRIVATE_H
#define TERN_TESTS_SUPPORT_LOOP_PRIVATE_H

/* Structures of the in-memory transport; see loop.c. */

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>
#include "transport.h"
#include "uri.h"

struct loop_msg {
	struct loop_msg *next;
	size_t len, contents; /* contents: how many of the bytes, at the end */
	uint8_t data[];
};

struct loop_queue {
	struct loop_msg *head, *tail;
};

struct loop_channel {
	struct transport_channel base;
	struct loop_end *end;
	struct loop_queue inbox; /* destination: notifies and pushes */
	uint64_t posted, handled; /* destination: of them, so far */
	bool handed_out; /* destination: serve() has returned one that is not handled */
	struct tern_error bad; /* destination: the peer did what it may not */
	uint64_t bytes, writes;
};

struct loop_end {
	struct transport_conn base;
	struct loop_link *link;
	struct loop_end *peer;
	struct loop_end *backlog_next;
	struct transport_env env;
	struct transport_memory *mem;
	unsigned nr_mem;
	struct loop_queue inbox; /* control messages */
	struct loop_channel *channels;
	unsigned nr_channels;
	bool is_source, revoked, closed;
};

struct loop_link {
	struct loop_net *net;
	bool aborted; /* by either side */
	bool aborted_by[2]; /* [is_source] */
	struct loop_end end[2]; /* source, destination */
};

struct loop_listener {
	struct transport_listener base;
	struct loop_net *net;
	struct loop_listener *next;
	struct transport_env env;
	struct loop_end *backlog;
	bool stopped;
	char name[URI_PATH_MAX + 1];
};

struct loop_net {
	struct transport ops; /* first: found from the table */
	pthread_mutex_t lock; /* everything in the network */
	pthread_cond_t changed;
	struct loop_listener *listeners;
};

/* Messages that were not taken are freed. */
void loop_queue_clear(struct loop_queue *q);

/* @timeout_ms from now on the condition's clock; < 0: far away. */
struct timespec loop_deadline(long timeout_ms);

/* Wait for any change in the network, under its lock.  0 or -ETIMEDOUT. */
int loop_wait(struct loop_net *net, const struct timespec *deadline);

/* Free the link when both ends are closed.  Under the lock. */
void loop_link_put(struct loop_link *link);

/* Ops of connections and channels. */
int loop_expose(struct transport_conn *conn, const struct transport_memory *mem, unsigned nr,
		struct tern_error *err);
int loop_open_channels(struct transport_conn *conn, unsigned nr,
		       struct transport_channel **channels, struct tern_error *err);
int loop_send(struct transport_conn *conn, const void *msg, size_t len, int timeout_ms,
	      struct tern_error *err);
long loop_recv(struct transport_conn *conn, void *buf, size_t cap, int timeout_ms,
	       struct tern_error *err);
int loop_write(struct transport_channel *base, const struct transport_range *ranges, unsigned nr,
	       struct tern_error *err);
int loop_notify(struct transport_channel *base, const void *msg, size_t len,
		struct tern_error *err);
int loop_push(struct transport_channel *base, const void *msg, size_t len,
	      const struct transport_range *range, struct tern_error *err);
int loop_fence(struct transport_channel *base, struct tern_error *err);
long loop_serve(struct transport_channel *base, void *buf, size_t *contents,
		struct tern_error *err);
void loop_revoke(struct transport_conn *conn);
void loop_abort(struct transport_conn *conn);
void loop_close(struct transport_conn *conn);
void loop_channel_stats(const struct transport_channel *base, struct tern_channel_stats *out);

#endif
