/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_TESTS_FAULT_SCENE_H
#define TERN_TESTS_FAULT_SCENE_H

/*
 * One migration of a live guest in which something goes wrong, and the judgement
 * whether both sides did what the invariants ask of them, whatever it was.
 *
 * Scenes are independent of each other, so many run at once (scene_crowd()): most
 * of their time is spent waiting for timeouts.  A scene never asserts; it writes
 * down its problems, and the test looks at them when all have ended.
 */

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "fault_transport.h"
#include "testvm.h"

/* Sanitizers make everything slow; a peer must not seem lost because of that. */
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define SCENE_SLOW 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer) || __has_feature(address_sanitizer)
#define SCENE_SLOW 1
#endif
#endif
#ifdef SCENE_SLOW
#define SCENE_PEER_TIMEOUT_MS (1500u * scene_slowness())
#else
#define SCENE_PEER_TIMEOUT_MS (400u * scene_slowness())
#endif

/* A session that has not ended after this hangs. */
#define SCENE_BOUND_MS ((int)(20 * SCENE_PEER_TIMEOUT_MS + 20000))

#define SCENE_PROBLEMS_MAX 1024

/*
 * scene_slowness - how many times slower than usual this machine is: TERN_TEST_SLOWNESS
 * in the environment (1 to 20), such as in a VM with emulated CPUs; else 1.
 */
unsigned scene_slowness(void);

/* What else goes on in the scene. */
enum scene_plot {
	SCENE_PLAIN,
	SCENE_ZEROS, /* some pages become zero while it runs: notifies */
	SCENE_SOURCE_CANCELS, /* inside save() */
	SCENE_SAVE_FAILS,
	SCENE_LOAD_FAILS,
	SCENE_RESUME_FAILS, /* the destination's */
	SCENE_POSTCOPY, /* without a round; a lost link is recovered as often as it takes */
};

struct loop_net;

struct scene {
	struct testvm_pair pair;
	struct testvm src, dst;
	struct tern_session *s, *d;
	bool zeroed;
	struct loop_net *loop; /* or NULL */
	struct fault_net *net;
	enum scene_plot plot;
	char listen_uri[64];
	atomic_uint strangers;
	bool missed; /* this machine was too slow: play it again */
	char *problems; /* SCENE_PROBLEMS_MAX bytes; "" while all is well */
	/* For faults that the fault layer does not know; may be NULL. */
	void (*on_listening)(void *opaque); /* the destination listens, nobody has connected */
	void *hook_opaque;
	unsigned (*fired)(void); /* how many of them have acted */
};

/*
 * scene_open - set up guests and sessions over @lane ("loop", "tcp", "unix", "rdma").
 *
 * @problems: the caller's buffer, cleared.  Setup failures end the process.
 */
void scene_open(struct scene *sc, const char *lane, enum scene_plot plot, char *problems);

/* How often a scene is played when a slow machine misses the fault. */
#define SCENE_TAKES 10u

/*
 * scene_play - migrate, wait until both sides have ended, judge.
 *
 * Peer timeouts are short here.  On a machine that is busy with other things a peer may
 * seem lost before the fault acted: what follows is judged all the same, but ->missed
 * is set.
 */
void scene_play(struct scene *sc);

/* scene_close - free everything. */
void scene_close(struct scene *sc);

/* problem_add - append a sentence to @problems, of SCENE_PROBLEMS_MAX bytes. */
void problem_add(char *problems, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* scene_problem - note a problem. */
#define scene_problem(sc, ...) problem_add((sc)->problems, __VA_ARGS__)

/* scene_completed - did the first or the second attempt complete on both sides? */
bool scene_completed(const struct scene *sc);

/* scene_crowd - call fn(opaque, 0 … nr - 1), several at a time, and wait for all. */
void scene_crowd(unsigned nr, void (*fn)(void *opaque, unsigned i), void *opaque);

#endif
