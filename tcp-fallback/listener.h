/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_TCP_FALLBACK_LISTENER_H
#define TERN_TCP_FALLBACK_LISTENER_H

#include <sys/types.h>
#include "conn.h"
#include "uri.h"

#define LISTENER_FDS_MAX 8u /* addresses of one name */
#define LISTENER_STRANGERS_MAX 64u

/*
 * A connection whose kind is not known yet, or whose first control message is
 * not whole.  Acceptor only.
 */
struct stranger {
	int fd; /* -1: free */
	uint64_t arrival; /* serial number */
	int64_t deadline; /* absolute, whatever it sends meanwhile */
	struct frame_preamble pre; /* valid once len ≥ FRAME_PREAMBLE_LEN */
	size_t len; /* bytes in buf */
	uint8_t buf[FRAME_PREAMBLE_LEN + FRAME_CONTROL_LEN + TRANSPORT_MSG_MAX];
};

struct tcp_listener {
	struct transport_listener base;
	struct transport_env env;
	struct tcp_hub *hub;
	int stop_fd; /* eventfd, readable once stopped */
	int fds[LISTENER_FDS_MAX];
	unsigned nr_fds;

	/* UNIX: the socket file as it was made, so that only that one is removed. */
	char path[sizeof(((struct uri *)0)->path)];
	dev_t path_dev;
	ino_t path_ino;

	uint64_t arrivals;
	struct stranger strangers[LISTENER_STRANGERS_MAX];
};

static inline struct tcp_listener *to_listener(struct transport_listener *l)
{
	return (struct tcp_listener *)l;
}

/* Ops; see src/transport.h. */
int listener_listen(const struct transport *ops, const struct transport_env *env,
		    const struct uri *uri, struct transport_listener **out, struct tern_error *err);
int listener_uri(const struct transport_listener *l, char *buf, size_t size);
void listener_stop(struct transport_listener *l);
void listener_close(struct transport_listener *l);
int listener_accept(struct transport_listener *l, int timeout_ms, struct transport_conn **out,
		    struct tern_error *err);

#endif
