/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_TESTS_SUPPORT_STRANGERS_H
#define TERN_TESTS_SUPPORT_STRANGERS_H

#include <stdint.h>

/* Raw sockets that knock at a stream listener and are no tern peers. */

struct strangers;
struct uri;

/* strangers_socket - a connected raw socket, or -1. */
int strangers_socket(const struct uri *uri);

/*
 * strangers_come - connect one of each kind: garbage, HTTP, TLS, an SSH banner, silent, a partial
 * preamble, a first message of a huge length or of none, a wrong version, one that hangs up, and
 * one that trickles.  NULL if one cannot connect.
 */
struct strangers *strangers_come(const struct uri *uri);
unsigned strangers_nr(const struct strangers *s);

/* strangers_trickle - the slow one sends its next byte. */
void strangers_trickle(struct strangers *s);

/* strangers_go - close and free. */
void strangers_go(struct strangers *s);

/*
 * strangers_attach - try a data channel by hand.
 *
 * Returns the code of the status that came back, or -1 if none came.  The acceptor runs elsewhere.
 */
int strangers_attach(const struct uri *uri, const uint8_t *session_id, uint16_t index,
		     uint16_t count);

#endif
