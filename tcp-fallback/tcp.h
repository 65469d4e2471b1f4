/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_TCP_FALLBACK_TCP_H
#define TERN_TCP_FALLBACK_TCP_H

/* The stream-socket transports; src/transport.h is their contract. */

struct transport;

extern const struct transport tcp_transport; /* tcp:HOST:PORT */
extern const struct transport unix_transport; /* unix:PATH */

#endif
