/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Whole migrations over the verbs fake in which a call to the device, or a work request,
 * fails: the n-th of its kind, for growing n, until a migration completes without having
 * met the fault.  What must hold is judged by scene.c: above all that before GO the
 * source's guest runs on, and that a second attempt succeeds.
 *
 * The device is one for the whole process, so the migrations go one after the other.
 * The walk along every single call is unit/test_rdma_walk.c.
 *
 *	test_verbs [FILTER]
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>

#include "scene.h"
#include "verbs_fake.h"

/* No migration of these tests makes so many calls of one kind. */
#define CALLS_MAX 20000u

struct point {
	enum verbs_fake_call call;
	enum verbs_fake_wr wr;
	int code; /* errno, or a status of @wr */
	bool is_wr;
	unsigned n; /* the next one to fail */
};

/* The destination listens: from here on. */
static void arm(void *opaque)
{
	const struct point *p = opaque;

	if (p->is_wr)
		verbs_fake_wc(p->wr, p->n, p->code);
	else
		verbs_fake_fail(p->call, p->n, p->code);
}

/* One migration with the fault at call p->n; true if it was met. */
static bool play_at(struct point *p, char *problems)
{
	unsigned takes = 0;
	struct scene sc;
	bool met;

again:
	verbs_fake_reset();
	scene_open(&sc, "rdma", SCENE_ZEROS, problems);
	sc.on_listening = arm;
	sc.hook_opaque = p;
	sc.fired = verbs_fake_fired;
	scene_play(&sc);
	if (sc.missed && !sc.problems[0] && ++takes < SCENE_TAKES) {
		scene_close(&sc);
		goto again;
	}
	if (sc.missed)
		scene_problem(&sc, "this machine is too slow for it");
	met = verbs_fake_fired() > 0;
	if (!met && !scene_completed(&sc))
		scene_problem(&sc, "without a fault it did not complete");
	verbs_fake_reset();
	scene_close(&sc);
	if (verbs_fake_objects())
		problem_add(problems, "%u objects are left", verbs_fake_objects());
	return met;
}

static void walk(void **state)
{
	char problems[SCENE_PROBLEMS_MAX] = "";
	struct point *p = *state;
	unsigned met = 0;

	for (p->n = 1; p->n < CALLS_MAX && play_at(p, problems); p->n += 1 + p->n) {
		met++;
		if (problems[0])
			break;
	}
	if (problems[0])
		fail_msg("call %u: %s", p->n, problems);
	assert_true(met > 0);
	assert_true(p->n < CALLS_MAX);
}

#define CALL(name_, code_)                                                          \
	{                                                                           \
		.name = #name_, .test_func = walk, .initial_state = &(struct point) \
		{                                                                   \
			.call = FAKE_##name_, .code = code_                         \
		}                                                                   \
	}
#define WR(name_, code_)                                                                  \
	{                                                                                 \
		.name = "WR_" #name_, .test_func = walk, .initial_state = &(struct point) \
		{                                                                         \
			.wr = FAKE_WR_##name_, .code = code_, .is_wr = true               \
		}                                                                         \
	}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		CALL(OBJECT, EPERM),
		CALL(ACCEPT, EPERM),
		CALL(POST_WRITE, EPERM),
		CALL(POST_FRAME, EPERM),
		CALL(POST_CONTROL, EPERM),
		CALL(POST_RECV, EPERM),
		WR(WRITE, IBV_WC_RETRY_EXC_ERR),
		WR(FRAME, IBV_WC_RETRY_EXC_ERR),
		WR(ANSWER, IBV_WC_RETRY_EXC_ERR),
		WR(CONTROL, IBV_WC_RETRY_EXC_ERR),
		WR(CONTROL_BACK, IBV_WC_RETRY_EXC_ERR),
	};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests_name("verbs", tests, NULL, NULL);
}
