/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A walk along a whole migration: each control message, in both directions, is hit
 * once by each kind of fault, at its sender and at its receiver.  What must hold is
 * the same everywhere and is judged by scene.c.
 *
 *	test_walk LANE [FILTER]
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "scene.h"
#include "wire.h"

/* A message of a normal migration. */
struct step {
	enum wire_type type;
	enum fault_side sender;
	unsigned nth;
};

static const struct step steps[] = {
	{ WIRE_HELLO, FAULT_SOURCE, 1 },
	{ WIRE_HELLO_ACK, FAULT_DESTINATION, 1 },
	{ WIRE_REGIONS, FAULT_SOURCE, 1 },
	{ WIRE_REGIONS, FAULT_SOURCE, 2 },
	{ WIRE_REGIONS_ACK, FAULT_DESTINATION, 1 },
	{ WIRE_SETUP_DONE, FAULT_DESTINATION, 1 },
	{ WIRE_ROUND, FAULT_SOURCE, 1 },
	{ WIRE_ROUND, FAULT_SOURCE, 2 },
	{ WIRE_STATE, FAULT_SOURCE, 1 },
	{ WIRE_STATE, FAULT_SOURCE, 3 },
	{ WIRE_STATE_END, FAULT_SOURCE, 1 },
	{ WIRE_READY, FAULT_DESTINATION, 1 },
	{ WIRE_GO, FAULT_SOURCE, 1 },
	{ WIRE_STARTED, FAULT_DESTINATION, 1 },
	{ WIRE_BYE, FAULT_SOURCE, 1 },
};

/* Messages of migrations that end otherwise, and of postcopy. */
static const struct {
	enum scene_plot plot;
	struct step step;
} endings[] = {
	{ SCENE_SOURCE_CANCELS, { WIRE_CANCEL, FAULT_SOURCE, 1 } },
	{ SCENE_SAVE_FAILS, { WIRE_ERROR, FAULT_SOURCE, 1 } },
	{ SCENE_LOAD_FAILS, { WIRE_ERROR, FAULT_DESTINATION, 1 } },
	{ SCENE_RESUME_FAILS, { WIRE_ERROR, FAULT_DESTINATION, 1 } },
	{ SCENE_POSTCOPY, { WIRE_HELLO_ACK, FAULT_DESTINATION, 1 } },
	{ SCENE_POSTCOPY, { WIRE_REGIONS_ACK, FAULT_DESTINATION, 1 } },
	{ SCENE_POSTCOPY, { WIRE_MISSING, FAULT_SOURCE, 1 } },
	{ SCENE_POSTCOPY, { WIRE_POSTCOPY, FAULT_SOURCE, 1 } },
	{ SCENE_POSTCOPY, { WIRE_STATE, FAULT_SOURCE, 1 } },
	{ SCENE_POSTCOPY, { WIRE_STATE_END, FAULT_SOURCE, 1 } },
	{ SCENE_POSTCOPY, { WIRE_READY, FAULT_DESTINATION, 1 } },
	{ SCENE_POSTCOPY, { WIRE_GO, FAULT_SOURCE, 1 } },
	{ SCENE_POSTCOPY, { WIRE_STARTED, FAULT_DESTINATION, 1 } },
	{ SCENE_POSTCOPY, { WIRE_PAGES_WANTED, FAULT_DESTINATION, 1 } },
	{ SCENE_POSTCOPY, { WIRE_COMPLETE, FAULT_DESTINATION, 1 } },
	{ SCENE_POSTCOPY, { WIRE_BYE, FAULT_SOURCE, 1 } },
};

#define NR(a) (sizeof(a) / sizeof((a)[0]))

/* What happens to a message, and on whose side. */
struct mishap {
	const char *name;
	bool at_receiver;
	enum fault_action action;
};

static const struct mishap mishaps[] = {
	{ "send_fails", false, FAULT_ERROR },
	{ "cut_before_send", false, FAULT_CUT },
	{ "cut_after_send", false, FAULT_CUT_AFTER },
	{ "send_is_swallowed", false, FAULT_SWALLOW },
	{ "send_stalls", false, FAULT_STALL },
	{ "receive_fails", true, FAULT_ERROR },
	{ "cut_before_receive", true, FAULT_CUT },
	{ "cut_after_receive", true, FAULT_CUT_AFTER },
	{ "receive_is_swallowed", true, FAULT_SWALLOW },
	{ "receive_stalls", true, FAULT_STALL },
};

/* One mishap for all steps. */
struct walk {
	const char *lane;
	const struct mishap *mishap;
	char problems[NR(steps) + NR(endings)][SCENE_PROBLEMS_MAX];
};

static const struct step *walk_step(unsigned i)
{
	return i < NR(steps) ? &steps[i] : &endings[i - NR(steps)].step;
}

static void walk_one(void *opaque, unsigned i)
{
	struct walk *w = opaque;
	const struct step *st = walk_step(i);
	enum fault_side receiver = st->sender == FAULT_SOURCE ? FAULT_DESTINATION : FAULT_SOURCE;
	struct fault_rule rule = {
		.side = w->mishap->at_receiver ? receiver : st->sender,
		.op = w->mishap->at_receiver ? FAULT_RECV : FAULT_SEND,
		.msg_type = (int)st->type,
		.nth = st->nth,
		.action = w->mishap->action,
	};
	struct scene sc;
	unsigned takes = 0;

again:
	scene_open(&sc, w->lane, i < NR(steps) ? SCENE_PLAIN : endings[i - NR(steps)].plot,
		   w->problems[i]);
	fault_net_add(sc.net, &rule);
	scene_play(&sc);
	/* On a slow machine all pages may be there before the guest gets to run. */
	if (st->type == WIRE_PAGES_WANTED && !fault_net_fired(sc.net))
		sc.missed = true;
	if (sc.missed && !sc.problems[0] && ++takes < SCENE_TAKES) {
		scene_close(&sc);
		goto again;
	}
	if (sc.missed)
		scene_problem(&sc, "this machine is too slow for it");
	/* Whether the receiver still listens to the very last message is its own affair. */
	if (fault_net_fired(sc.net) != 1 && !(w->mishap->at_receiver && st->type == WIRE_BYE))
		scene_problem(&sc, "the fault acted %u times", fault_net_fired(sc.net));
	scene_close(&sc);
}

static void walk(void **state)
{
	struct walk *w = *state;
	bool good = true;

	scene_crowd(NR(steps) + NR(endings), walk_one, w);
	for (unsigned i = 0; i < NR(w->problems); i++) {
		const struct step *st = walk_step(i);

		if (!w->problems[i][0])
			continue;
		print_error("%s: %s %u, %s: %s\n", w->lane, wire_type_name(st->type), st->nth,
			    w->mishap->name, w->problems[i]);
		good = false;
	}
	assert_true(good);
}

int main(int argc, char **argv)
{
	static const struct walk empty;
	struct CMUnitTest tests[NR(mishaps)];
	struct walk *walks = calloc(NR(mishaps), sizeof(*walks));

	if (argc < 2 || !walks)
		return 2;
	for (size_t i = 0; i < NR(mishaps); i++) {
		walks[i] = empty;
		walks[i].lane = argv[1];
		walks[i].mishap = &mishaps[i];
		tests[i] = (struct CMUnitTest){
			.name = mishaps[i].name,
			.test_func = walk,
			.initial_state = &walks[i],
		};
	}
	if (argc > 2)
		cmocka_set_test_filter(argv[2]);
	int r = cmocka_run_group_tests_name("walk", tests, NULL, NULL);

	free(walks);
	return r;
}
