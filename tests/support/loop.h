/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_TESTS_SUPPORT_LOOP_H
#define TERN_TESTS_SUPPORT_LOOP_H

/*
 * A transport inside one process.  Listeners are found by name in a network
 * that the test makes; the URI is unix:NAME.  No sockets, no files.
 */

struct loop_net;
struct transport;

/* loop_net_new - an empty network; NULL: no memory. */
struct loop_net *loop_net_new(void);

/* loop_net_delete - frees it; every listener and connection is closed already. */
void loop_net_delete(struct loop_net *net);

/* loop_net_transport - the table whose listen() and connect() meet in @net. */
const struct transport *loop_net_transport(struct loop_net *net);

#endif
