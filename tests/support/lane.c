/* SPDX-License-Identifier: BSD-2-Clause */
#define _GNU_SOURCE
#include "lane.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "leave_out.h"
#include "loop.h"
#include "session.h"

const struct transport *lane_transport(const struct lane *lane)
{
	struct tern_error err = { 0 };
	const struct transport *ops;
	struct uri uri;

	if (lane->ops)
		return lane->ops;
	if (uri_parse(lane->listen_uri, &uri, &err) || transport_find(&uri, &ops, &err)) {
		fprintf(stderr, "%s\n", err.message);
		abort();
	}
	return ops;
}

int lane_listen(const struct lane *lane, struct tern_session *dst)
{
	if (lane->ops)
		session_use_transport(dst, lane->ops);
	return tern_session_listen(dst, lane->listen_uri);
}

int lane_connect(const struct lane *lane, struct tern_session *src, struct tern_session *dst)
{
	char uri[512];

	if (lane->ops)
		session_use_transport(src, lane->ops);
	tern_session_uri(dst, uri, sizeof(uri));
	return tern_session_connect(src, uri);
}

int lane_run(const char *suite, const struct lane_case *cases, size_t nr, int argc, char **argv)
{
	char path[64];
	struct loop_net *net = loop_net_new();

	snprintf(path, sizeof(path), "unix:/tmp/tern-lane-%d", (int)getpid());

	struct lane lanes[] = {
		{ .name = "loop", .listen_uri = "unix:loop", .loop = net },
		{ .name = "tcp", .listen_uri = "tcp:127.0.0.1:0" },
		{ .name = "tcp6", .listen_uri = "tcp:[::1]:0" },
		{ .name = "unix", .listen_uri = path },
		{ .name = "rdma", .listen_uri = "rdma::0" },
		{ .name = "rdma6", .listen_uri = getenv("TERN_TEST_RDMA6") },
	};
	const char *rdma = getenv("TERN_TEST_RDMA"); /* "1" where a verbs device is */
	size_t nr_lanes = sizeof(lanes) / sizeof(lanes[0]), n = 0;
	struct CMUnitTest *tests = calloc(nr * nr_lanes, sizeof(*tests));
	char *names = calloc(nr * nr_lanes, 128);

	if (!net || !tests || !names)
		return 1;
	lanes[0].ops = loop_net_transport(net);
	for (size_t l = 0; l < nr_lanes; l++) {
		if (strcmp(lanes[l].name, "tcp6") == 0 && leave_out_has("ipv6"))
			continue;
		if (strcmp(lanes[l].name, "rdma") == 0 && (!rdma || strcmp(rdma, "1") != 0))
			continue;
		if (!lanes[l].listen_uri)
			continue;
		for (size_t i = 0; i < nr; i++, n++) {
			snprintf(names + n * 128, 128, "%s: %s", lanes[l].name, cases[i].name);
			tests[n] = (struct CMUnitTest){
				.name = names + n * 128,
				.test_func = cases[i].fn,
				.initial_state = &lanes[l],
			};
		}
	}
	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	int r = _cmocka_run_group_tests(suite, tests, n, NULL, NULL);

	free(tests);
	free(names);
	loop_net_delete(net);
	return r;
}
