/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_SRC_AGREE_H
#define TERN_SRC_AGREE_H

/*
 * What both ends of a link agree on, whether it is the first one of a session (HELLO) or a
 * later one (RECOVER): the source asks, the destination may only lower what it asked for, and
 * the channels are there when SETUP_DONE is.
 *
 * All of it runs on the session's thread; what waits does so for at most a peer timeout.
 */

#include "session.h"

/* What can be lowered. */
struct agreement {
	uint32_t channels; /* for pages of the background, or of precopy */
	uint64_t chunk_bytes;
	uint32_t peer_timeout_ms;
};

/* agree_deadline - until when a message of the handshake has to come; for session_expect(). */
uint64_t agree_deadline(const struct tern_session *s);

/*
 * agree_check - are chunk size and peer timeout of @a, which @message brought, possible?
 *
 * 0 or -EPROTO with *err.
 */
int agree_check(const struct agreement *a, const char *message, struct tern_error *err);

/*
 * agree_answer - destination: the most of what is asked for, and of what this side would
 * take, is what the link has from now on.
 *
 * @postcopy: there is a channel more, for pages that the guest waits for.
 */
struct agreement agree_answer(struct tern_session *s, const struct agreement *asked, bool postcopy);

/*
 * agree_take - source: take what @message, the destination's answer, chose.
 *
 * @channels: how many were asked for.  0 or -EPROTO with *err: impossible, or more than was
 * asked for.
 */
int agree_take(struct tern_session *s, const struct agreement *chosen, uint32_t channels,
	       bool postcopy, const char *message, struct tern_error *err);

/* agree_await_channels - source: the destination has all channels.  0 or -errno with *err. */
int agree_await_channels(struct tern_session *s, struct tern_error *err);

/* agree_announce_channels - destination: say so.  0 or -errno with *err. */
int agree_announce_channels(struct tern_session *s, struct tern_error *err);

#endif
