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

#include "agree.h"
#include "error.h"
#include "missing.h"
#include "placement.h"
#include "pusher.h"

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
	struct agreement chosen = { ack->channels, ack->chunk_bytes, ack->peer_timeout_ms };

	return agree_take(s, &chosen, session_bulk_channels(s), true, "RECOVER_ACK", err);
}

/* Adds to what the destination lacks; see missing_take(). */
static int add_missing(void *pusher, uint32_t region, struct runs *runs)
{
	return pusher_lacks(pusher, region, runs);
}

/* All that the destination lacks. */
static int receive_missing(struct tern_session *s, uint64_t pages, struct tern_error *err)
{
	struct wire_msg msg;
	int r = 0;

	pusher_forget(s->pusher);
	while (!r && pusher_nr_missing(s->pusher) < pages) {
		r = session_expect(s, WIRE_MISSING, &msg, agree_deadline(s), err);
		if (!r)
			r = missing_take(s, &msg.missing, add_missing, s->pusher, err);
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
		r = session_expect(s, WIRE_RECOVER_ACK, &msg, agree_deadline(s), err);
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
		r = session_open_channels(s, err);
	}
	if (!r)
		link_set_wanted(&s->link, source_answer, s);
	return r ? r : agree_await_channels(s, err);
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
	return agree_check(&(struct agreement){ m->channels, m->chunk_bytes, m->peer_timeout_ms },
			   "RECOVER", err);
}

static int answer_recover(struct tern_session *s, const struct wire_recover *m,
			  struct tern_error *err)
{
	struct agreement asked = { m->channels, m->chunk_bytes, m->peer_timeout_ms };
	struct agreement a = agree_answer(s, &asked, true);
	struct wire_msg msg = {
		.type = WIRE_RECOVER_ACK,
		.recover_ack = {
			.channels = a.channels,
			.chunk_bytes = a.chunk_bytes,
			.peer_timeout_ms = a.peer_timeout_ms,
			.missing_pages = atomic_load(&s->placement->left),
		},
	};

	return link_send(&s->link, &msg, err);
}

/* Which pages are missing. */
static int send_missing(struct tern_session *s, struct tern_error *err)
{
	int r = 0;

	for (unsigned i = 0; i < s->regions.nr && !r; i++)
		r = missing_send(s, i, s->placement->v[i].missing, err);
	return r;
}

int recover_destination(struct tern_session *s, struct tern_error *err)
{
	struct wire_msg msg;
	int r = session_expect(s, WIRE_RECOVER, &msg, agree_deadline(s), err);

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
		r = session_open_channels(s, err);
	return r ? r : agree_announce_channels(s, err);
}
