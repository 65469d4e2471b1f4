/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_TESTS_SCRIPT_PRIVATE_H
#define TERN_TESTS_SCRIPT_PRIVATE_H

/* Between script.c (connections) and script_play.c (what goes over them). */

#include <time.h>

#include "script.h"

/* In script_conn.sent, which is indexed by message type: channels were opened. */
#define SCRIPT_OPENED 0

/* script_time_us - the monotonic time in @us microseconds. */
struct timespec script_time_us(uint64_t us);

/* Ops; see src/transport.h. */
long script_recv(struct transport_conn *conn, void *buf, size_t cap, int timeout_ms,
		 struct tern_error *err);
int script_write(struct transport_channel *ch, const struct transport_range *ranges, unsigned nr,
		 struct tern_error *err);
int script_notify(struct transport_channel *ch, const void *msg, size_t len,
		  struct tern_error *err);
int script_fence(struct transport_channel *ch, struct tern_error *err);
long script_serve(struct transport_channel *ch, void *buf, size_t *contents,
		  struct tern_error *err);
void script_revoke(struct transport_conn *conn);

#endif
