/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A session and its connection: what the transport may assume and whom it asks, memory and
 * channels, figures, and the end of it.
 */
#include "session.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "placement.h"

/* The transport turned somebody away on its own. */
static void on_stranger(void *opaque, const struct tern_error *why)
{
	session_stranger(opaque, why);
}

void session_stranger(struct tern_session *s, const struct tern_error *why)
{
	monitor_lock(&s->mon);
	s->stats.strangers++;
	monitor_unlock(&s->mon);
	session_event(s, TERN_EVENT_STRANGER, why);
}

/* A write is about to be placed: before the switchover any is welcome. */
static int admit(void *opaque, const struct transport_range *ranges, unsigned nr,
		 struct tern_error *err)
{
	const struct tern_session *s = opaque;
	struct placement *p = atomic_load(&s->armed_placement);

	return p ? placement_admit(p, ranges, nr, err) : 0;
}

void session_env(struct tern_session *s, struct transport_env *env)
{
	*env = (struct transport_env){
		.peer_timeout_ms = (unsigned)session_param(s, TERN_PARAM_PEER_TIMEOUT_MS),
		.chunk_bytes = session_param(s, TERN_PARAM_CHUNK_BYTES),
		.push = s->role == TERN_DESTINATION ||
			session_param(s, TERN_PARAM_MODE) != TERN_MODE_PRECOPY,
		.admit = s->role == TERN_DESTINATION ? admit : NULL,
		.zerocopy = session_param(s, TERN_PARAM_ZEROCOPY),
		.pin_all = session_param(s, TERN_PARAM_PIN) == TERN_PIN_ALL,
		.on_demand = session_param(s, TERN_PARAM_PIN) == TERN_PIN_ODP,
		.no_windows = !session_param(s, TERN_PARAM_WINDOWS),
		.lock_budget = session_param(s, TERN_PARAM_LOCK_BUDGET),
		.rdma_device = s->texts[TERN_TEXT_RDMA_DEVICE],
		.channel_node = session_channel_node,
		.run_on = session_run_on,
		.device = session_on_device,
		.stranger = s->role == TERN_DESTINATION ? on_stranger : NULL,
		.opaque = s,
	};
}

int session_open_channels(struct tern_session *s, struct tern_error *err)
{
	struct transport_channel *opened[TRANSPORT_CHANNELS_MAX] = { NULL };
	int r = s->conn->ops->open_channels(s->conn, s->nr_channels, opened, err);

	if (r)
		return r;
	monitor_lock(&s->mon); /* others look at them for statistics */
	memcpy(s->channels, opened, sizeof(opened));
	monitor_unlock(&s->mon);
	return 0;
}

int session_expose(struct tern_session *s, struct transport_conn *conn, struct tern_error *err)
{
	struct transport_memory *mem = calloc(s->regions.nr, sizeof(*mem));

	if (!mem)
		return error_session(err, -ENOMEM, "cannot allocate the list of %u regions",
				     s->regions.nr);
	for (unsigned i = 0; i < s->regions.nr; i++) {
		const struct region *r = &s->regions.v[i];

		mem[i] = (struct transport_memory){
			.region = r->id,
			.hva = s->placement ? placement_hva(s->placement, i) : r->hva,
			.size = r->size,
			.fd = r->fd,
			.fd_offset = r->fd_offset,
			.numa_node = r->numa_node,
		};
	}
	int r = conn->ops->expose(conn, mem, s->regions.nr, err);

	free(mem);
	return r;
}

void session_conn_stats(const struct tern_session *s, struct tern_stats *st)
{
	struct transport_conn_stats c = { 0 };

	if (!s->conn || !s->conn->ops->conn_stats)
		return;
	s->conn->ops->conn_stats(s->conn, &c);
	st->registration_ns += c.registration_ns; /* to that of earlier links */
	st->registration_bytes += c.registration_bytes;
	if (c.locked_peak_bytes > st->locked_peak_bytes)
		st->locked_peak_bytes = c.locked_peak_bytes;
	snprintf(st->device, sizeof(st->device), "%s", c.device.name);
	st->device_port = (int32_t)c.device.port;
	st->device_node = c.device.name[0] ? c.device.numa_node : TERN_NODE_ANY;
}

void session_close_link(struct tern_session *s)
{
	link_stop(&s->link);
	monitor_lock(&s->mon);
	struct transport_conn *conn = s->conn;

	for (unsigned i = 0; conn && i < s->nr_channels; i++)
		if (s->channels[i])
			conn->ops->channel_stats(s->channels[i], &s->final_channels[i]);
	session_conn_stats(s, &s->stats);
	s->conn = NULL;
	memset(s->channels, 0, sizeof(s->channels));
	monitor_unlock(&s->mon);
	if (conn)
		conn->ops->close(conn);
}
