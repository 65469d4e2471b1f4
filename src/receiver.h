/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_SRC_RECEIVER_H
#define TERN_SRC_RECEIVER_H

/*
 * The destination's workers: one thread per channel that places what arrives.
 * Each is bound to a node of the regions, in turn, as at the source.  The threads
 * end when their channel is revoked or aborted; a failure is told to the session.
 */

#include <tern/stats.h>

struct tern_session;
struct tern_error;
struct receiver;

/* receiver_start - one thread for each of the session's channels. */
int receiver_start(struct tern_session *s, struct receiver **out, struct tern_error *err);

/*
 * receiver_join - wait for the threads' end (revoke or abort came first).  Their figures
 * are final then, and can be read until receiver_stop().
 */
void receiver_join(struct receiver *r);

/* receiver_stop - join the threads and free. */
void receiver_stop(struct receiver **r);

/* receiver_channel_stats - node, cpus and cpu, and cpu_ns added, of thread @i.  mon.lock is held. */
void receiver_channel_stats(const struct receiver *r, unsigned i, struct tern_channel_stats *out);

#endif
