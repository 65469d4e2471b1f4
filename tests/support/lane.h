/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_TESTS_LANE_H
#define TERN_TESTS_LANE_H

/*
 * Lanes: the transports that a suite runs over, from one source.  A test case gets
 * its lane as cmocka's state.
 */

#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <tern/tern.h>

#include "transport.h"

struct loop_net;

struct lane {
	const char *name;
	const char *listen_uri; /* port 0, or a path */
	struct loop_net *loop;  /* the loop transport's net, or NULL */
	const struct transport *ops; /* instead of the URI's, or NULL */
};

struct lane_case {
	const char *name;
	CMUnitTestFunction fn;
};

#define LANE_CASE(fn_)                                                                             \
	{                                                                                          \
		.name = #fn_, .fn = fn_                                                            \
	}

/*
 * lane_run - run all @cases over all lanes: loop, TCP over IPv4 and IPv6, UNIX,
 * RDMA where the environment has TERN_TEST_RDMA=1, and RDMA over IPv6 where its
 * TERN_TEST_RDMA6 is a URI to listen on ("rdma:[::1]:0").
 *
 * @argv[1], if given, is a filter ("tcp*", "*: cancel_*").  Returns main()'s value.
 */
int lane_run(const char *suite, const struct lane_case *cases, size_t nr, int argc, char **argv);

/* lane_transport - the table that @lane's sessions use. */
const struct transport *lane_transport(const struct lane *lane);

/* lane_listen / lane_connect - start sessions over the lane; connect goes to @dst. */
int lane_listen(const struct lane *lane, struct tern_session *dst);
int lane_connect(const struct lane *lane, struct tern_session *src, struct tern_session *dst);

#endif
