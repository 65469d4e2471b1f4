/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * One side of a migration, in a process and perhaps a host of its own, that runs a
 * command at a chosen point of it: cuts the wire, say, or kills somebody.
 *
 *	side [--peer-timeout MS] [--at POINT --run COMMAND] source|destination URI
 *
 *	POINT	before:send:GO		before the first GO is handed to the transport
 *		after:send:ROUND:2	after the second ROUND was
 *		before:recv:READY	READY has arrived; the engine has not seen it
 *		before:write::20	before the 20th write(); the same with open_channels,
 *					push, fence, serve, connect, accept
 *
 * The command is run by the shell and waited for; its parent ($PPID) is this process.
 *
 * The guest is a testvm, of which both ends know what its RAM must hold.  A destination
 * first says where it listens; at the end each side writes one line of JSON that says
 * what became of it.  Whether that is what must become of it is for the caller to judge,
 * who sees both; so the exit status is 0 whatever happened, unless this program failed.
 */
#include <errno.h>
#include <getopt.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <tern/tern.h>

#include "fault_transport.h"
#include "session.h"
#include "testvm.h"
#include "uri.h"
#include "wire.h"

#define FILL_STEP 1u
#define FILL_SEED 1234u
#define RUNS_ON_MS 5000u /* a guest that writes nothing for so long does not run */

/* 32 MiB, so that there is a while of precopy; and a small one. */
static const uint64_t region_pages[] = { 8192, 3 };

struct side {
	enum tern_role role;
	const char *uri;
	const char *command;
	unsigned peer_timeout_ms;
	struct fault_rule rule; /* action 0: none */
	struct fault_net *net;
	struct testvm_pair pair;
	struct testvm vm;
	struct tern_session *session;
};

/* Say what is wrong with the way this was called, and end. */
static void usage(const char *what)
{
	fprintf(stderr, "side: %s\n", what);
	exit(2);
}

/* At the point. */
static void run_command(void *opaque)
{
	const struct side *side = opaque;
	int status = system(side->command);

	if (status)
		fprintf(stderr, "side: '%s' ended with status 0x%x\n", side->command,
			(unsigned)status);
}

/* The operation called @name. */
static enum fault_op find_op(const char *name)
{
	static const struct {
		const char *name;
		enum fault_op op;
	} ops[] = {
		{ "connect", FAULT_CONNECT },
		{ "accept", FAULT_ACCEPT },
		{ "open_channels", FAULT_OPEN_CHANNELS },
		{ "send", FAULT_SEND },
		{ "recv", FAULT_RECV },
		{ "write", FAULT_WRITE },
		{ "push", FAULT_PUSH },
		{ "fence", FAULT_FENCE },
		{ "serve", FAULT_SERVE },
	};

	for (size_t i = 0; i < sizeof(ops) / sizeof(ops[0]); i++)
		if (!strcmp(ops[i].name, name))
			return ops[i].op;
	usage("no such operation in --at");
	return FAULT_OP_NR;
}

/* The message type called @name; any if it is empty. */
static int find_type(const char *name)
{
	if (!*name)
		return FAULT_ANY_TYPE;
	for (unsigned type = 0; type < WIRE_TYPE_NR; type++)
		if (!strcmp(wire_type_name(type), name))
			return (int)type;
	usage("no such message in --at");
	return FAULT_ANY_TYPE;
}

/* WHEN:OP[:MESSAGE[:NTH]], see the top. */
static void parse_point(char *text, struct fault_rule *rule)
{
	char *when = strsep(&text, ":"), *op = strsep(&text, ":");
	char *type = strsep(&text, ":"), *nth = strsep(&text, ":");

	if (!op || (strcmp(when, "before") && strcmp(when, "after")))
		usage("--at wants before:OP or after:OP");
	rule->action = strcmp(when, "after") ? FAULT_CALL : FAULT_CALL_AFTER;
	rule->op = find_op(op);
	rule->msg_type = find_type(type ? type : "");
	rule->nth = nth ? (unsigned)strtoul(nth, NULL, 10) : 1;
}

static void parse_arguments(struct side *side, int argc, char **argv)
{
	static const struct option options[] = {
		{ "peer-timeout", required_argument, NULL, 't' },
		{ "at", required_argument, NULL, 'a' },
		{ "run", required_argument, NULL, 'r' },
		{ 0 },
	};
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (c == 't')
			side->peer_timeout_ms = (unsigned)strtoul(optarg, NULL, 10);
		else if (c == 'a')
			parse_point(optarg, &side->rule);
		else if (c == 'r')
			side->command = optarg;
		else
			usage("unknown option");
	}
	if (optind + 2 != argc)
		usage("expected: source|destination URI");
	if (!side->rule.action != !side->command)
		usage("--at and --run belong together");
	side->role = strcmp(argv[optind], "source") ? TERN_DESTINATION : TERN_SOURCE;
	side->uri = argv[optind + 1];
	side->rule.side = side->role == TERN_SOURCE ? FAULT_SOURCE : FAULT_DESTINATION;
	side->rule.fn = run_command;
	side->rule.opaque = side;
}

/* Show how far it is, for who reads along. */
static void on_event(void *opaque, const struct tern_event *e)
{
	if (e->type == TERN_EVENT_STATE)
		fprintf(stderr, "state %s\n", tern_state_name(e->state));
	else if (e->error)
		fprintf(stderr, "%s\n", e->error->message);
}

/* The guest, and the session over the layer that runs the command. */
static void open_side(struct side *side)
{
	const struct transport *ops;
	struct tern_error err = { 0 };
	struct uri uri;

	if (uri_parse(side->uri, &uri, &err) || transport_find(&uri, &ops, &err))
		usage(err.message);
	side->net = fault_net_new(ops);
	if (!side->net)
		usage("out of memory");
	if (side->rule.action)
		fault_net_add(side->net, &side->rule);
	testvm_init(&side->vm, &side->pair, TESTVM_MEMFD,
		    sizeof(region_pages) / sizeof(region_pages[0]), region_pages);
	side->vm.working_set = 64;
	side->vm.pause_us = 2000;
	side->vm.state_bytes = 20000; /* three STATE messages */
	side->session = testvm_session(&side->vm, side->role);
	session_use_transport(side->session, fault_net_transport(side->net));
	tern_session_set(side->session, TERN_PARAM_CHANNELS, 2);
	tern_session_set(side->session, TERN_PARAM_PEER_TIMEOUT_MS, side->peer_timeout_ms);
	tern_session_set_event_handler(side->session, on_event, side);
}

/* Migrate; returns when the session has ended.  0 or -errno: it did not even begin. */
static int migrate(struct side *side)
{
	char uri[320];
	int r;

	if (side->role == TERN_SOURCE) {
		testvm_fill(&side->vm, FILL_STEP, FILL_SEED);
		testvm_start(&side->vm);
		r = tern_session_connect(side->session, side->uri);
	} else {
		r = tern_session_listen(side->session, side->uri);
		tern_session_uri(side->session, uri, sizeof(uri));
		fprintf(stderr, "listening on %s\n", uri);
	}
	if (!r)
		tern_session_wait(side->session, -1);
	return r;
}

/* Does the guest write, as one that runs does? */
static bool writes_on(struct side *side)
{
	volatile const uint64_t *ticks = &side->vm.ticks;
	uint64_t before = *ticks;

	for (unsigned ms = 0; side->vm.is_running && ms < RUNS_ON_MS; ms++) {
		if (*ticks != before)
			return true;
		usleep(1000);
	}
	return false;
}

/* What became of this side. */
static json_t *report(struct side *side)
{
	enum fault_side who = side->rule.side;
	bool source = side->role == TERN_SOURCE;
	bool running = side->vm.is_running, writes = writes_on(side);
	struct tern_error err = { 0 };

	tern_session_error(side->session, &err);
	testvm_stop(&side->vm);
	return json_pack(
		"{s:s, s:s, s:b, s:b, s:b, s:i, s:i, s:i, s:i, s:i, s:i, s:s}", "state",
		tern_state_name(tern_session_state(side->session)), "outcome",
		tern_outcome_name(tern_session_outcome(side->session)), "running", (int)running,
		"writes", (int)writes, "intact",
		(int)testvm_intact(&side->vm, FILL_STEP, FILL_SEED), "pauses", (int)side->vm.pauses,
		"resumes", (int)side->vm.resumes, "go",
		(int)fault_net_messages(side->net, who, source ? FAULT_SEND : FAULT_RECV, WIRE_GO),
		"started",
		(int)fault_net_messages(side->net, who, source ? FAULT_RECV : FAULT_SEND,
					WIRE_STARTED),
		"fired", (int)fault_net_fired(side->net), "code", err.code, "message", err.message);
}

int main(int argc, char **argv)
{
	struct side side = { .peer_timeout_ms = 5000 };
	json_t *result;

	parse_arguments(&side, argc, argv);
	open_side(&side);
	if (migrate(&side)) {
		struct tern_error err = { 0 };

		tern_session_error(side.session, &err);
		usage(err.message);
	}
	result = report(&side);
	if (!result || json_dumpf(result, stdout, JSON_COMPACT) || puts("") == EOF ||
	    fflush(stdout))
		usage("cannot write the report");
	json_decref(result);
	tern_session_delete(&side.session);
	testvm_fini(&side.vm);
	fault_net_delete(side.net);
	return 0;
}
