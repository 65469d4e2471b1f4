/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Run once per fault point: the n-th call of each kind that the engine makes to its
 * transport goes wrong, for n = 1, 2, 3, … until a migration completes without having
 * met the fault.  What must hold is judged by scene.c.
 *
 * Where a transport wants its memory prepared, each of the many small regions is a call
 * of its own, all alike: after the first CALLS_DENSE calls only some of them are taken.
 *
 *	test_calls LANE [FILTER]
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <fnmatch.h>
#include <stdlib.h>
#include <string.h>

#include "scene.h"

/* No migration of these tests makes so many calls of one kind. */
#define CALLS_MAX 200u
#define CALLS_DENSE 8u
#define CALLS_STRIDE 13u

/* With postcopy there are as many as the guest asks for pages. */
#define CALLS_POSTCOPY 50u

struct point {
	const char *name;
	enum fault_side side;
	enum fault_op op;
	enum fault_action action;
	unsigned at_least; /* calls that every migration makes */
	bool postcopy;
};

static const struct point points[] = {
	{ "connect_fails", FAULT_SOURCE, FAULT_CONNECT, FAULT_ERROR, 1 },
	{ "connect_then_cut", FAULT_SOURCE, FAULT_CONNECT, FAULT_CUT, 1 },
	{ "accept_fails", FAULT_DESTINATION, FAULT_ACCEPT, FAULT_ERROR, 1 },
	{ "accept_then_cut", FAULT_DESTINATION, FAULT_ACCEPT, FAULT_CUT, 1 },
	{ "open_channels_fails_at_source", FAULT_SOURCE, FAULT_OPEN_CHANNELS, FAULT_ERROR, 1 },
	{ "cut_before_open_channels_at_source", FAULT_SOURCE, FAULT_OPEN_CHANNELS, FAULT_CUT, 1 },
	{ "open_channels_then_cut_at_source", FAULT_SOURCE, FAULT_OPEN_CHANNELS, FAULT_CUT_AFTER,
	  1 },
	{ "open_channels_stalls_at_source", FAULT_SOURCE, FAULT_OPEN_CHANNELS, FAULT_STALL, 1 },
	{ "open_channels_fails_at_destination", FAULT_DESTINATION, FAULT_OPEN_CHANNELS, FAULT_ERROR,
	  1 },
	{ "cut_before_open_channels_at_destination", FAULT_DESTINATION, FAULT_OPEN_CHANNELS,
	  FAULT_CUT, 1 },
	{ "open_channels_then_cut_at_destination", FAULT_DESTINATION, FAULT_OPEN_CHANNELS,
	  FAULT_CUT_AFTER, 1 },
	{ "open_channels_stalls_at_destination", FAULT_DESTINATION, FAULT_OPEN_CHANNELS,
	  FAULT_STALL, 1 },
	{ "prepare_fails", FAULT_SOURCE, FAULT_PREPARE, FAULT_ERROR, 2 },
	{ "cut_before_prepare", FAULT_SOURCE, FAULT_PREPARE, FAULT_CUT, 2 },
	{ "cut_after_prepare", FAULT_SOURCE, FAULT_PREPARE, FAULT_CUT_AFTER, 2 },
	{ "prepare_stalls", FAULT_SOURCE, FAULT_PREPARE, FAULT_STALL, 2 },
	{ "write_fails", FAULT_SOURCE, FAULT_WRITE, FAULT_ERROR, 2 },
	{ "cut_before_write", FAULT_SOURCE, FAULT_WRITE, FAULT_CUT, 2 },
	{ "cut_after_write", FAULT_SOURCE, FAULT_WRITE, FAULT_CUT_AFTER, 2 },
	{ "write_is_cut_short", FAULT_SOURCE, FAULT_WRITE, FAULT_SHORT, 2 },
	{ "write_stalls", FAULT_SOURCE, FAULT_WRITE, FAULT_STALL, 2 },
	{ "notify_fails", FAULT_SOURCE, FAULT_NOTIFY, FAULT_ERROR, 1 },
	{ "cut_before_notify", FAULT_SOURCE, FAULT_NOTIFY, FAULT_CUT, 1 },
	{ "cut_after_notify", FAULT_SOURCE, FAULT_NOTIFY, FAULT_CUT_AFTER, 1 },
	{ "notify_stalls", FAULT_SOURCE, FAULT_NOTIFY, FAULT_STALL, 1 },
	{ "fence_fails", FAULT_SOURCE, FAULT_FENCE, FAULT_ERROR, 4 },
	{ "cut_before_fence", FAULT_SOURCE, FAULT_FENCE, FAULT_CUT, 4 },
	{ "cut_after_fence", FAULT_SOURCE, FAULT_FENCE, FAULT_CUT_AFTER, 4 },
	{ "fence_stalls", FAULT_SOURCE, FAULT_FENCE, FAULT_STALL, 4 },
	{ "serve_fails", FAULT_DESTINATION, FAULT_SERVE, FAULT_ERROR, 2 },
	{ "cut_before_serve", FAULT_DESTINATION, FAULT_SERVE, FAULT_CUT, 2 },
	{ "cut_after_serve", FAULT_DESTINATION, FAULT_SERVE, FAULT_CUT_AFTER, 2 },
	{ "serve_stalls", FAULT_DESTINATION, FAULT_SERVE, FAULT_STALL, 2 },
	{ "push_fails_in_postcopy", FAULT_SOURCE, FAULT_PUSH, FAULT_ERROR, 2, true },
	{ "cut_before_push_in_postcopy", FAULT_SOURCE, FAULT_PUSH, FAULT_CUT, 2, true },
	{ "cut_after_push_in_postcopy", FAULT_SOURCE, FAULT_PUSH, FAULT_CUT_AFTER, 2, true },
	{ "push_is_cut_short_in_postcopy", FAULT_SOURCE, FAULT_PUSH, FAULT_SHORT, 2, true },
	{ "push_stalls_in_postcopy", FAULT_SOURCE, FAULT_PUSH, FAULT_STALL, 2, true },
	{ "notify_fails_in_postcopy", FAULT_SOURCE, FAULT_NOTIFY, FAULT_ERROR, 1, true },
	{ "cut_after_notify_in_postcopy", FAULT_SOURCE, FAULT_NOTIFY, FAULT_CUT_AFTER, 1, true },
	{ "fence_fails_in_postcopy", FAULT_SOURCE, FAULT_FENCE, FAULT_ERROR, 2, true },
	{ "cut_before_fence_in_postcopy", FAULT_SOURCE, FAULT_FENCE, FAULT_CUT, 2, true },
	{ "fence_stalls_in_postcopy", FAULT_SOURCE, FAULT_FENCE, FAULT_STALL, 2, true },
	{ "serve_fails_in_postcopy", FAULT_DESTINATION, FAULT_SERVE, FAULT_ERROR, 2, true },
	{ "cut_after_serve_in_postcopy", FAULT_DESTINATION, FAULT_SERVE, FAULT_CUT_AFTER, 2, true },
	{ "serve_stalls_in_postcopy", FAULT_DESTINATION, FAULT_SERVE, FAULT_STALL, 2, true },
};

#define NR_POINTS (sizeof(points) / sizeof(points[0]))

/* A point over a lane, and what came of it. */
struct walk {
	const char *lane;
	const struct point *point;
	unsigned met; /* migrations in which the fault acted */
	bool done; /* one went by without meeting it */
	unsigned at; /* the call at which something broke */
	char problems[SCENE_PROBLEMS_MAX];
};

/* One migration with the fault at call @nth; true if it was met and all is well. */
static bool play_at(struct walk *w, unsigned nth)
{
	struct fault_rule rule = {
		.side = w->point->side,
		.op = w->point->op,
		.msg_type = FAULT_ANY_TYPE,
		.nth = nth,
		.action = w->point->action,
	};
	struct scene sc;
	unsigned takes = 0;

again:
	scene_open(&sc, w->lane, w->point->postcopy ? SCENE_POSTCOPY : SCENE_ZEROS, w->problems);
	fault_net_add(sc.net, &rule);
	scene_play(&sc);
	if (sc.missed && !sc.problems[0] && ++takes < SCENE_TAKES) {
		scene_close(&sc);
		goto again;
	}
	if (sc.missed)
		scene_problem(&sc, "this machine is too slow for it");
	bool met = fault_net_fired(sc.net) > 0;

	if (!met && !scene_completed(&sc))
		scene_problem(&sc, "without a fault it did not complete");
	scene_close(&sc);
	w->met += met;
	w->at = nth;
	w->done = !met;
	return met && !w->problems[0];
}

static void play_all(void *opaque, unsigned i)
{
	struct walk *w = (struct walk *)opaque + i;
	unsigned nth = 1, max = w->point->postcopy ? CALLS_POSTCOPY : CALLS_MAX;

	while (nth <= max && play_at(w, nth))
		nth += nth < CALLS_DENSE ? 1 : CALLS_STRIDE;
}

/* The walks were done by main(), many at a time; this is the verdict on one. */
static void verdict(void **state)
{
	const struct walk *w = *state;

	if (w->problems[0])
		fail_msg("%s, call %u: %s", w->lane, w->at, w->problems);
	assert_true(w->done || w->point->postcopy);
	assert_true(w->met >= w->point->at_least);
}

/* Does a transport without prepare() have this point? */
static bool fits(const struct point *p, const char *lane)
{
	return p->op != FAULT_PREPARE || !strcmp(lane, "rdma");
}

int main(int argc, char **argv)
{
	struct CMUnitTest tests[NR_POINTS];
	struct walk *walks = calloc(NR_POINTS, sizeof(*walks));
	unsigned nr = 0;

	if (argc < 2 || !walks)
		return 2;
	for (size_t i = 0; i < NR_POINTS; i++) {
		if (!fits(&points[i], argv[1]) ||
		    (argc > 2 && fnmatch(argv[2], points[i].name, 0)))
			continue;
		walks[nr].lane = argv[1];
		walks[nr].point = &points[i];
		tests[nr] = (struct CMUnitTest){
			.name = points[i].name,
			.test_func = verdict,
			.initial_state = &walks[nr],
		};
		nr++;
	}
	scene_crowd(nr, play_all, walks);
	int r = _cmocka_run_group_tests("calls", tests, nr, NULL, NULL);

	free(walks);
	return r;
}
