/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A new link for a session in postcopy, as both sides see it.
 *
 *	source                               destination
 *	RECOVER  session id, sizes     ---->  is it my source?  picks channels, chunk
 *	                              <----  RECOVER_ACK  how many pages are missing
 *	                              <----  MISSING …    which
 *	opens N + 1 channels           ---->  takes them in
 *	                              <----  SETUP_DONE
 *
 * The session id, which only the two sides know, says that it is the same source.  What
 * the old link carried does not matter any more: a page counts as sent only if the
 * destination says that it is there.
 */
#include "session.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "error.h"
#include "params.h"
#include "placement.h"
#include "pusher.h"

static uint64_t recover_deadline(const struct tern_session *s)
{
	return deadline_ns((int64_t)session_param(s, TERN_PARAM_PEER_TIMEOUT_MS));
}

static uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* ------------------------------------------------------------------ source */

static int connect_again(struct tern_session *s, struct tern_error *err)
{
	struct transport_env env;
	struct transport_conn *conn;

	session_env(s, &env);
	env.channels = s->nr_channels;
	int r = s->transport->connect(s->transport, &env, &s->uri, s->session_id, -1, &conn, err);

	if (r)
		return r;
	memcpy(conn->session_id, s->session_id, sizeof(conn->session_id));
	monitor_lock(&s->mon);
	s->conn = conn;
	monitor_unlock(&s->mon);
	r = session_expose(s, conn, err);
	return r ? r : link_start(&s->link, &s->mon, conn, TERN_SOURCE, env.peer_timeout_ms, err);
}

static int send_recover(struct tern_session *s, struct tern_error *err)
{
	struct wire_msg msg = {
		.type = WIRE_RECOVER,
		.recover = {
			.version = WIRE_VERSION_MAX,
			.channels = session_bulk_channels(s),
			.chunk_bytes = session_param(s, TERN_PARAM_CHUNK_BYTES),
			.peer_timeout_ms = (uint32_t)session_param(s, TERN_PARAM_PEER_TIMEOUT_MS),
		},
	};

	memcpy(msg.recover.session_id, s->session_id, sizeof(s->session_id));
	return link_send(&s->link, &msg, err);
}

static int take_recover_ack(struct tern_session *s, const struct wire_recover_ack *ack,
			    struct tern_error *err)
{
	if (ack->channels > session_bulk_channels(s))
		return error_session(err, -EPROTO,
				     "the destination chose %u channels, this source asked for %u",
				     ack->channels, session_bulk_channels(s));
	if (param_check(TERN_PARAM_CHUNK_BYTES, ack->chunk_bytes) ||
	    ack->chunk_bytes > session_param(s, TERN_PARAM_CHUNK_BYTES))
		return error_session(err, -EPROTO,
				     "the destination chose chunks of %" PRIu64
				     " bytes, this source offered %" PRIu64,
				     ack->chunk_bytes, session_param(s, TERN_PARAM_CHUNK_BYTES));
	if (param_check(TERN_PARAM_PEER_TIMEOUT_MS, ack->peer_timeout_ms) ||
	    ack->peer_timeout_ms > session_param(s, TERN_PARAM_PEER_TIMEOUT_MS))
		return error_session(err, -EPROTO,
				     "the destination chose a peer timeout of %u ms, this source "
				     "offered %" PRIu64 " ms",
				     ack->peer_timeout_ms,
				     session_param(s, TERN_PARAM_PEER_TIMEOUT_MS));
	link_set_timeout(&s->link, ack->peer_timeout_ms);
	monitor_lock(&s->mon);
	s->nr_channels = ack->channels + 1;
	monitor_unlock(&s->mon);
	return 0;
}

/* One MISSING.  0 or -errno with *err. */
static int take_missing(struct tern_session *s, const struct wire_missing *m,
			struct tern_error *err)
{
	if (m->region >= s->regions.nr)
		return error_session(err, -EPROTO,
				     "message MISSING from the peer has region = %u, there are %u",
				     m->region, s->regions.nr);
	const struct region *r = &s->regions.v[m->region];
	struct runs runs = {
		.p = m->runs,
		.left = m->len,
		.at = m->first_page,
		.end = r->nr_pages,
	};

	if (m->first_page < r->nr_pages && !pusher_lacks(s->pusher, m->region, &runs))
		return 0;
	return error_session(
		err, -EPROTO,
		"message MISSING from the peer has runs that do not fit region '%s' of "
		"%" PRIu64 " pages, from page %" PRIu64 " on",
		r->name, r->nr_pages, m->first_page);
}

/* All that the destination lacks. */
static int receive_missing(struct tern_session *s, uint64_t pages, struct tern_error *err)
{
	struct wire_msg msg;
	int r = 0;

	pusher_forget(s->pusher);
	while (!r && pusher_nr_missing(s->pusher) < pages) {
		r = session_expect(s, WIRE_MISSING, &msg, recover_deadline(s), err);
		if (!r)
			r = take_missing(s, &msg.missing, err);
	}
	if (!r && pusher_nr_missing(s->pusher) != pages)
		r = error_session(err, -EPROTO,
				  "the destination lists %" PRIu64
				  " missing pages and said that there are %" PRIu64,
				  pusher_nr_missing(s->pusher), pages);
	return r;
}

int recover_source(struct tern_session *s, struct tern_error *err)
{
	uint64_t chunk_bytes = 0;
	struct wire_msg msg;
	int r = connect_again(s, err);

	if (!r)
		r = send_recover(s, err);
	if (!r)
		r = session_expect(s, WIRE_RECOVER_ACK, &msg, recover_deadline(s), err);
	if (!r)
		r = take_recover_ack(s, &msg.recover_ack, err);
	if (!r)
		chunk_bytes = msg.recover_ack.chunk_bytes;
	if (!r)
		r = receive_missing(s, msg.recover_ack.missing_pages, err);
	if (!r)
		pusher_again(s->pusher, chunk_bytes);
	if (!r) {
		link_hold_wanted(&s->link); /* it may ask before the channels are known here */
		r = s->conn->ops->open_channels(s->conn, s->nr_channels, s->channels, err);
	}
	if (!r)
		link_set_wanted(&s->link, source_answer, s);
	if (!r)
		r = session_expect(s, WIRE_SETUP_DONE, &msg, recover_deadline(s), err);
	if (!r && msg.setup_done.channels != s->nr_channels)
		r = error_session(
			err, -EPROTO,
			"message SETUP_DONE from the peer has channels = %u, agreed were %u",
			msg.setup_done.channels, s->nr_channels);
	return r;
}

/* ------------------------------------------------------------- destination */

static int check_recover(const struct tern_session *s, const struct wire_recover *m,
			 struct tern_error *err)
{
	if (m->version < WIRE_VERSION_MIN || m->version > WIRE_VERSION_MAX)
		return error_session(err, -EPROTONOSUPPORT,
				     "protocol version differs: the source speaks %u, the "
				     "destination %u to %u",
				     m->version, WIRE_VERSION_MIN, WIRE_VERSION_MAX);
	if (memcmp(m->session_id, s->session_id, sizeof(s->session_id)) ||
	    memcmp(m->session_id, s->conn->session_id, sizeof(s->session_id)))
		return error_session(
			err, -EACCES,
			"message RECOVER names another session: this destination waits "
			"for the source of its own");
	if (param_check(TERN_PARAM_CHUNK_BYTES, m->chunk_bytes))
		return error_session(err, -EPROTO,
				     "message RECOVER has chunk_bytes = %" PRIu64
				     ", allowed are powers of two from 64 KiB to 64 MiB",
				     m->chunk_bytes);
	if (param_check(TERN_PARAM_PEER_TIMEOUT_MS, m->peer_timeout_ms))
		return error_session(err, -EPROTO,
				     "message RECOVER has peer_timeout_ms = %u, allowed are 100 to "
				     "3600000",
				     m->peer_timeout_ms);
	return 0;
}

static int answer_recover(struct tern_session *s, const struct wire_recover *m,
			  struct tern_error *err)
{
	uint64_t most = session_param(s, TERN_PARAM_CHANNELS);

	if (!most || most == TRANSPORT_CHANNELS_MAX)
		most = TRANSPORT_CHANNELS_MAX - 1;
	struct wire_msg msg = {
		.type = WIRE_RECOVER_ACK,
		.recover_ack = {
			.channels = (uint32_t)min_u64(m->channels, most),
			.chunk_bytes = min_u64(m->chunk_bytes,
					       session_param(s, TERN_PARAM_CHUNK_BYTES)),
			.peer_timeout_ms = (uint32_t)min_u64(
				m->peer_timeout_ms, session_param(s, TERN_PARAM_PEER_TIMEOUT_MS)),
			.missing_pages = atomic_load(&s->placement->left),
		},
	};

	monitor_lock(&s->mon);
	s->nr_channels = msg.recover_ack.channels + 1;
	monitor_unlock(&s->mon);
	link_set_timeout(&s->link, msg.recover_ack.peer_timeout_ms);
	return link_send(&s->link, &msg, err);
}

/* Which pages are missing. */
static int send_missing(struct tern_session *s, struct tern_error *err)
{
	struct wire_msg msg;
	int r = 0;

	for (unsigned i = 0; i < s->regions.nr && !r; i++) {
		uint64_t nr = s->regions.v[i].nr_pages;

		for (uint64_t at = 0; at < nr && !r;) {
			size_t len;

			msg.type = WIRE_MISSING;
			msg.missing.region = i;
			msg.missing.first_page = at;
			at = runs_put(s->placement->v[i].missing, at, nr, msg.missing.runs,
				      WIRE_RUNS_MAX, &len);
			msg.missing.len = (uint16_t)len;
			if (len)
				r = link_send(&s->link, &msg, err);
		}
	}
	return r;
}

int recover_destination(struct tern_session *s, struct tern_error *err)
{
	struct wire_msg msg;
	int r = session_expect(s, WIRE_RECOVER, &msg, recover_deadline(s), err);

	if (!r)
		r = check_recover(s, &msg.recover, err);
	if (r)
		return r;
	session_set_state(s, TERN_STATE_POSTCOPY_RECOVER);
	placement_again(s->placement);
	r = answer_recover(s, &msg.recover, err);
	if (!r)
		r = send_missing(s, err);
	if (!r)
		r = session_expose(s, s->conn, err);
	if (!r)
		r = s->conn->ops->open_channels(s->conn, s->nr_channels, s->channels, err);
	if (!r) {
		msg = (struct wire_msg){
			.type = WIRE_SETUP_DONE,
			.setup_done = { .channels = s->nr_channels },
		};
		r = link_send(&s->link, &msg, err);
	}
	return r;
}
