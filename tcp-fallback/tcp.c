/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * The tables of the stream transports.  TCP and UNIX sockets differ only in how
 * they are bound and found, so both tables have the same functions.
 */

#include "conn.h"
#include "listener.h"
#include "tcp.h"

/* See struct transport: the source connects, the destination collects. */
static int tcp_open_channels(struct transport_conn *conn, unsigned nr,
			     struct transport_channel **channels, struct tern_error *err)
{
	struct tcp_conn *c = to_conn(conn);
	int rc = c->hub ? hub_collect(c, nr, err) : connect_channels(c, nr, err);

	if (rc)
		return rc;
	for (unsigned i = 0; i < nr; i++)
		channels[i] = &c->channels[i].base;
	return 0;
}

/* See struct transport. */
static void tcp_channel_stats(const struct transport_channel *base, struct tern_channel_stats *out)
{
	const struct channel_figures *f = &((const struct tcp_channel *)base)->fig;

	out->bytes += atomic_load_explicit(&f->bytes, memory_order_relaxed);
	out->writes += atomic_load_explicit(&f->writes, memory_order_relaxed);
	out->stalls += atomic_load_explicit(&f->stalls, memory_order_relaxed);
	out->zerocopy_bytes += atomic_load_explicit(&f->zerocopy_bytes, memory_order_relaxed);
	out->zerocopy_copied += atomic_load_explicit(&f->zerocopy_copied, memory_order_relaxed);
}

#define STREAM_TRANSPORT(scheme)                                                                 \
	{                                                                                        \
		.name = scheme, .listen = listener_listen, .listener_uri = listener_uri,         \
		.accept = listener_accept, .listener_stop = listener_stop,                       \
		.listener_close = listener_close, .connect = tcp_connect, .expose = conn_expose, \
		.open_channels = tcp_open_channels, .send = conn_send, .recv = conn_recv,        \
		.write = channel_write, .notify = channel_notify, .push = channel_push,          \
		.fence = channel_fence, .serve = channel_serve, .revoke = conn_revoke,           \
		.abort = conn_abort, .close = conn_close, .channel_stats = tcp_channel_stats,    \
	}

const struct transport tcp_transport = STREAM_TRANSPORT("tcp");
const struct transport unix_transport = STREAM_TRANSPORT("unix");
