/* SPDX-License-Identifier: BSD-2-Clause */
#include "agree.h"

#include <errno.h>
#include <inttypes.h>

#include "error.h"
#include "params.h"

static uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

uint64_t agree_deadline(const struct tern_session *s)
{
	return deadline_ns((int64_t)session_param(s, TERN_PARAM_PEER_TIMEOUT_MS));
}

int agree_check(const struct agreement *a, const char *message, struct tern_error *err)
{
	if (param_check(TERN_PARAM_CHUNK_BYTES, a->chunk_bytes))
		return error_session(err, -EPROTO,
				     "message %s has chunk_bytes = %" PRIu64
				     ", allowed are powers of two from 64 KiB to 64 MiB",
				     message, a->chunk_bytes);
	if (param_check(TERN_PARAM_PEER_TIMEOUT_MS, a->peer_timeout_ms))
		return error_session(err, -EPROTO,
				     "message %s has peer_timeout_ms = %u, allowed are 100 to "
				     "3600000",
				     message, a->peer_timeout_ms);
	return 0;
}

/* From now on the link has what was agreed. */
static void settle(struct tern_session *s, const struct agreement *a, bool postcopy)
{
	link_set_timeout(&s->link, a->peer_timeout_ms);
	monitor_lock(&s->mon);
	s->postcopy = postcopy;
	s->nr_channels = a->channels + (postcopy ? 1 : 0);
	monitor_unlock(&s->mon);
}

struct agreement agree_answer(struct tern_session *s, const struct agreement *asked, bool postcopy)
{
	uint64_t most = session_param(s, TERN_PARAM_CHANNELS);

	if (!most || (postcopy && most == TRANSPORT_CHANNELS_MAX))
		most = TRANSPORT_CHANNELS_MAX - (postcopy ? 1 : 0);

	struct agreement a = {
		.channels = (uint32_t)min_u64(asked->channels, most),
		.chunk_bytes =
			min_u64(asked->chunk_bytes, session_param(s, TERN_PARAM_CHUNK_BYTES)),
		.peer_timeout_ms = (uint32_t)min_u64(asked->peer_timeout_ms,
						     session_param(s, TERN_PARAM_PEER_TIMEOUT_MS)),
	};

	settle(s, &a, postcopy);
	return a;
}

int agree_take(struct tern_session *s, const struct agreement *chosen, uint32_t channels,
	       bool postcopy, const char *message, struct tern_error *err)
{
	uint64_t chunk_bytes = session_param(s, TERN_PARAM_CHUNK_BYTES);
	uint64_t timeout_ms = session_param(s, TERN_PARAM_PEER_TIMEOUT_MS);

	if (chosen->channels > channels)
		return error_session(err, -EPROTO,
				     "the destination chose %u channels, this source asked for %u",
				     chosen->channels, channels);
	int r = agree_check(chosen, message, err);

	if (r)
		return r;
	if (chosen->chunk_bytes > chunk_bytes)
		return error_session(err, -EPROTO,
				     "the destination chose chunks of %" PRIu64
				     " bytes, this source offered %" PRIu64,
				     chosen->chunk_bytes, chunk_bytes);
	if (chosen->peer_timeout_ms > timeout_ms)
		return error_session(err, -EPROTO,
				     "the destination chose a peer timeout of %u ms, this source "
				     "offered %" PRIu64 " ms",
				     chosen->peer_timeout_ms, timeout_ms);
	settle(s, chosen, postcopy);
	return 0;
}

int agree_await_channels(struct tern_session *s, struct tern_error *err)
{
	struct wire_msg msg;
	int r = session_expect(s, WIRE_SETUP_DONE, &msg, agree_deadline(s), err);

	if (r || msg.setup_done.channels == s->nr_channels)
		return r;
	return error_session(err, -EPROTO,
			     "message SETUP_DONE from the peer has channels = %u, agreed were %u",
			     msg.setup_done.channels, s->nr_channels);
}

int agree_announce_channels(struct tern_session *s, struct tern_error *err)
{
	struct wire_msg msg = {
		.type = WIRE_SETUP_DONE,
		.setup_done = { .channels = s->nr_channels },
	};

	return link_send(&s->link, &msg, err);
}
