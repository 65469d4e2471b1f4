/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The judgement does not look at which fault was injected, only at what passed the
 * fault layer and what became of both sides:
 *
 *	GO handed to send()  STARTED given by recv()   then
 *	no                   -                         the source runs on, the
 *	                                               destination never ran
 *	yes                  no                        the source stays paused and says
 *	                                               so; the destination runs if it
 *	                                               was given GO
 *	yes                  yes                       completed on both sides
 *
 * In all cases: never both, both end in bounded time, with a sentence that says
 * what happened; and a destination that runs has the source's RAM.
 *
 * With postcopy a lost link is no end once GO was sent.  If GO arrived, the migration
 * is recovered until the destination has all pages.  If not, the source keeps its pages
 * and does not run, for it cannot know.
 *
 * A destination whose handshake failed goes on listening.  Then a second attempt,
 * without a fault, has to complete.
 */
#define _GNU_SOURCE
#include "scene.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "loop.h"
#include "monitor.h"
#include "session.h"
#include "uri.h"
#include "wire.h"

#define CROWD_WIDTH 6u

/* 66 regions: two REGIONS messages.  20000 bytes of device state: three STATE messages. */
#define NR_REGIONS 66u
#define STATE_BYTES 20000u

/* Bytes per second in the background: so slow that the guest has to ask for pages. */
#define POSTCOPY_RATE (16u << 20)

/* What is in the RAM before the guest runs: see testvm_fill(). */
#define FILL_STEP 1
#define FILL_SEED 77

unsigned scene_slowness(void)
{
	const char *text = getenv("TERN_TEST_SLOWNESS");
	unsigned long n = text ? strtoul(text, NULL, 10) : 1;

	return n < 1 ? 1 : n > 20 ? 20 : (unsigned)n;
}

void problem_add(char *problems, const char *fmt, ...)
{
	size_t used = strlen(problems);
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(problems + used, SCENE_PROBLEMS_MAX - used, fmt, ap);
	va_end(ap);
	used = strlen(problems);
	snprintf(problems + used, SCENE_PROBLEMS_MAX - used, "; ");
}

static void on_event(void *opaque, const struct tern_event *e)
{
	struct scene *sc = opaque;

	if (e->type == TERN_EVENT_STRANGER)
		atomic_fetch_add(&sc->strangers, 1);
}

static void cancel_in_save(void *opaque)
{
	struct scene *sc = opaque;

	tern_session_cancel(sc->s);
}

/* After the first round: pages of one region each become zero, for both channels. */
static void zero_some(void *opaque, const struct tern_event *e)
{
	struct scene *sc = opaque;

	if (e->type != TERN_EVENT_ROUND || sc->zeroed)
		return;
	sc->zeroed = true;
	for (unsigned i = 1; i < sc->src.nr_regions; i += 2)
		memset(sc->src.ram[i], 0, TERN_PAGE_SIZE);
}

/* What the plot asks of the callbacks. */
static void apply_plot(struct scene *sc)
{
	switch (sc->plot) {
	case SCENE_PLAIN:
	case SCENE_ZEROS:
		break;
	case SCENE_POSTCOPY: /* the guest goes on to write, and waits for pages */
		sc->dst.working_set = sc->src.working_set;
		sc->src.working_first =
			sc->src.pages[0] - sc->src.working_set; /* what comes last */
		sc->dst.working_first = sc->src.working_first;
		sc->dst.pause_us = sc->src.pause_us;
		break;
	case SCENE_SOURCE_CANCELS:
		sc->src.on_save = cancel_in_save;
		sc->src.hook_opaque = sc;
		break;
	case SCENE_SAVE_FAILS:
		sc->src.fail_save = -ENXIO;
		break;
	case SCENE_LOAD_FAILS:
		sc->dst.fail_load = -ENXIO;
		break;
	case SCENE_RESUME_FAILS:
		sc->dst.fail_resume = -ENXIO;
		break;
	}
}

/* A session over the fault layer. */
static struct tern_session *new_session(struct scene *sc, struct testvm *vm, enum tern_role role)
{
	struct tern_session *s = testvm_session(vm, role);

	session_use_transport(s, fault_net_transport(sc->net));
	tern_session_set(s, TERN_PARAM_CHANNELS, 2);
	tern_session_set(s, TERN_PARAM_STRIPE_BYTES, 1 << 20);
	tern_session_set(s, TERN_PARAM_PEER_TIMEOUT_MS, SCENE_PEER_TIMEOUT_MS);
	if (role == TERN_SOURCE && sc->plot == SCENE_POSTCOPY) {
		tern_session_set(s, TERN_PARAM_MODE, TERN_MODE_POSTCOPY);
		tern_session_set(s, TERN_PARAM_MAX_POSTCOPY_BANDWIDTH, POSTCOPY_RATE);
	}
	if (role == TERN_SOURCE && sc->plot == SCENE_ZEROS)
		tern_session_set_event_handler(s, zero_some, sc);
	return s;
}

/* The layer over the lane's transport, and where to listen. */
static void open_lane(struct scene *sc, const char *lane)
{
	const struct transport *ops;
	struct tern_error err = { 0 };
	struct uri uri;

	if (strcmp(lane, "tcp") == 0)
		snprintf(sc->listen_uri, sizeof(sc->listen_uri), "tcp:127.0.0.1:0");
	else if (strcmp(lane, "rdma") == 0)
		snprintf(sc->listen_uri, sizeof(sc->listen_uri), "rdma::0");
	else
		snprintf(sc->listen_uri, sizeof(sc->listen_uri), "unix:/tmp/tern-scene-%d-%p",
			 (int)getpid(), (void *)sc);
	if (strcmp(lane, "loop") == 0) {
		sc->loop = loop_net_new();
		ops = loop_net_transport(sc->loop);
	} else if (uri_parse(sc->listen_uri, &uri, &err) || transport_find(&uri, &ops, &err)) {
		fprintf(stderr, "%s\n", err.message);
		abort();
	}
	sc->net = fault_net_new(ops);
}

void scene_open(struct scene *sc, const char *lane, enum scene_plot plot, char *problems)
{
	uint64_t pages[NR_REGIONS] = { 1024 };

	for (unsigned i = 1; i < NR_REGIONS; i++)
		pages[i] = 1;
	memset(sc, 0, sizeof(*sc));
	sc->problems = problems;
	problems[0] = 0;
	sc->plot = plot;
	open_lane(sc, lane);
	testvm_init(&sc->src, &sc->pair, TESTVM_ANON, NR_REGIONS, pages);
	testvm_init(&sc->dst, &sc->pair, TESTVM_ANON, NR_REGIONS, pages);
	testvm_fill(&sc->src, FILL_STEP, FILL_SEED);
	sc->src.working_set = 128;
	sc->src.pause_us = 100;
	sc->src.state_bytes = sc->dst.state_bytes = STATE_BYTES;
	apply_plot(sc);
	sc->s = new_session(sc, &sc->src, TERN_SOURCE);
	sc->d = new_session(sc, &sc->dst, TERN_DESTINATION);
	tern_session_set_event_handler(sc->d, on_event, sc);
}

void scene_close(struct scene *sc)
{
	tern_session_delete(&sc->s);
	tern_session_delete(&sc->d);
	testvm_fini(&sc->src);
	testvm_fini(&sc->dst);
	fault_net_delete(sc->net);
	loop_net_delete(sc->loop);
}

/* Wait for @s to end; a session that does not is a problem, and the end of the process. */
static void must_end(struct scene *sc, struct tern_session *s, const char *who)
{
	if (tern_session_wait(s, SCENE_BOUND_MS) != -EINPROGRESS)
		return;
	fprintf(stderr, "%s: state %s: does not end (%s)\n", who,
		tern_state_name(tern_session_state(s)), sc->problems);
	abort();
}

static bool has_ended(const struct tern_session *s)
{
	enum tern_state state = tern_session_state(s);

	return state == TERN_STATE_COMPLETED || state == TERN_STATE_FAILED ||
	       state == TERN_STATE_CANCELLED;
}

static bool is_paused(const struct tern_session *s)
{
	return tern_session_state(s) == TERN_STATE_POSTCOPY_PAUSED;
}

/* Recover until the source has ended, or nobody is there to recover with. */
static void recover(struct scene *sc)
{
	uint64_t until = deadline_ns(SCENE_BOUND_MS);

	while (!has_ended(sc->s) && now_ns() < until) {
		if (is_paused(sc->s) && has_ended(sc->d))
			return;
		if (is_paused(sc->s) && is_paused(sc->d))
			tern_session_recover(sc->s, NULL);
		usleep(2000);
	}
	must_end(sc, sc->s, "source");
}

/* Connect a source and wait for its end. */
static void attempt(struct scene *sc)
{
	char uri[320];

	tern_session_uri(sc->d, uri, sizeof(uri));
	if (tern_session_connect(sc->s, uri))
		scene_problem(sc, "connect() failed");
	if (sc->plot == SCENE_POSTCOPY)
		recover(sc);
	else
		must_end(sc, sc->s, "source");
}

/*
 * The source has ended.  True if the destination went on listening, and has
 * dismissed the candidate; false if it has ended.
 */
static bool still_listening(struct scene *sc)
{
	uint64_t until = deadline_ns(3 * SCENE_PEER_TIMEOUT_MS);

	while (tern_session_state(sc->d) == TERN_STATE_SETUP) {
		if (atomic_load(&sc->strangers) || now_ns() > until)
			return true;
		usleep(2000);
	}
	must_end(sc, sc->d, "destination");
	return false;
}

/* Does the error of @s say what happened? */
static void judge_error(struct scene *sc, struct tern_session *s, const char *who)
{
	static const char *const apt[] = {
		"cut",
		"closed",
		"silent",
		"sequence number",
		"did not arrive",
		"says:",
		"injected",
		"aborted",
		"cancelled",
		"could not",
		"lost",
		"no answer",
		"in time",
		"expected",
		"no control message",
		"handles no",
		"no byte moved",
		"did not take",
		"took nothing",
		"retry counter exceeded",
		"reset",
		"is gone",
		"not permitted",
		"no room for another connection",
		"work request flushed",
		"ended channel",
	};
	struct tern_error e;
	bool found = false;

	tern_session_error(s, &e);
	for (size_t i = 0; i < sizeof(apt) / sizeof(apt[0]); i++)
		found |= strcasestr(e.message, apt[i]) != NULL;
	if (!e.code || !found)
		scene_problem(sc, "%s has the error %d '%s'", who, e.code, e.message);
	if (tern_session_state(s) == TERN_STATE_COMPLETED)
		scene_problem(sc, "%s completed", who);
}

/* GO was not sent: invariant 7. */
static void judge_source_runs(struct scene *sc, bool d_ended)
{
	if (tern_session_outcome(sc->s) != TERN_OUTCOME_SOURCE)
		scene_problem(sc, "before GO the outcome is %s",
			      tern_outcome_name(tern_session_outcome(sc->s)));
	if (!sc->src.is_running || sc->src.resumes != sc->src.pauses)
		scene_problem(sc, "the source does not run on (%d pauses, %d resumes)",
			      sc->src.pauses, sc->src.resumes);
	if (sc->dst.is_running || sc->dst.resumes)
		scene_problem(sc, "the destination ran without GO");
	judge_error(sc, sc->s, "source");
	if (!d_ended)
		return;
	if (tern_session_outcome(sc->d) != TERN_OUTCOME_SOURCE)
		scene_problem(sc, "the destination's outcome is %s",
			      tern_outcome_name(tern_session_outcome(sc->d)));
	judge_error(sc, sc->d, "destination");
}

/* A guest that begins to run before its pages are there has written to some since. */
static bool ram_is_right(const struct scene *sc)
{
	if (sc->plot == SCENE_POSTCOPY)
		return testvm_intact(&sc->dst, FILL_STEP, FILL_SEED);
	return testvm_equal(&sc->src, &sc->dst);
}

/* The destination runs: it must know it, and have the same RAM. */
static void judge_destination_runs(struct scene *sc)
{
	if (tern_session_outcome(sc->d) != TERN_OUTCOME_DESTINATION)
		scene_problem(sc, "the running destination's outcome is %s",
			      tern_outcome_name(tern_session_outcome(sc->d)));
	if (!sc->dst.is_running || !sc->dst.state_was_good)
		scene_problem(sc, "the destination does not run, or its state is bad");
	testvm_stop(&sc->dst);
	if (!sc->src.is_running && !ram_is_right(sc))
		scene_problem(sc, "RAM differs");
}

/* GO was sent and no STARTED came: invariant 1. */
static void judge_unknown(struct scene *sc, bool go_arrived)
{
	enum tern_outcome outcome = tern_session_outcome(sc->s);
	bool d_runs = go_arrived && sc->plot != SCENE_RESUME_FAILS;
	const char *text = outcome == TERN_OUTCOME_UNKNOWN ? "outcome unknown: GO was sent"
							   : "may be resumed here";
	struct tern_error e;

	tern_session_error(sc->s, &e);
	if (outcome != TERN_OUTCOME_UNKNOWN && outcome != TERN_OUTCOME_NEITHER)
		scene_problem(sc, "after GO the outcome is %s", tern_outcome_name(outcome));
	if (!strstr(e.message, text))
		scene_problem(sc, "the source says '%s'", e.message);
	if (sc->src.resumes || sc->src.is_running)
		scene_problem(sc, "the source resumed after GO");
	if (sc->dst.is_running != d_runs)
		scene_problem(sc, "GO %s, and the destination %s",
			      go_arrived ? "arrived" : "was lost",
			      sc->dst.is_running ? "runs" : "does not run");
	if (outcome == TERN_OUTCOME_NEITHER && sc->dst.is_running)
		scene_problem(sc, "neither side runs, says the source, but one does");
	if (d_runs)
		judge_destination_runs(sc);
	else
		judge_error(sc, sc->d, "destination");
}

bool scene_completed(const struct scene *sc)
{
	return tern_session_state(sc->s) == TERN_STATE_COMPLETED &&
	       tern_session_state(sc->d) == TERN_STATE_COMPLETED;
}

static void judge_completed(struct scene *sc)
{
	if (!scene_completed(sc)) {
		struct tern_error s, d;

		tern_session_error(sc->s, &s);
		tern_session_error(sc->d, &d);
		scene_problem(sc, "not completed: source '%s', destination '%s'", s.message,
			      d.message);
	} else if (sc->src.is_running) {
		scene_problem(sc, "the source runs after completion");
	} else {
		judge_destination_runs(sc);
	}
}

/* Postcopy, and GO was sent: invariants 1 and 6. */
static void judge_postcopy(struct scene *sc, bool go_arrived)
{
	if (sc->src.is_running || sc->src.resumes)
		scene_problem(sc, "the source resumed after GO");
	if (tern_session_state(sc->s) != TERN_STATE_COMPLETED && !is_paused(sc->s))
		scene_problem(sc, "after GO the source is %s",
			      tern_state_name(tern_session_state(sc->s)));
	if (tern_session_state(sc->s) == TERN_STATE_COMPLETED && !go_arrived)
		scene_problem(sc, "GO was lost, and the source completed");
	if (go_arrived) {
		if (tern_session_state(sc->d) != TERN_STATE_COMPLETED)
			scene_problem(sc, "the destination is %s",
				      tern_state_name(tern_session_state(sc->d)));
		judge_destination_runs(sc);
		return;
	}
	if (sc->dst.is_running || sc->dst.resumes)
		scene_problem(sc, "the destination ran without GO");
	if (tern_session_outcome(sc->d) != TERN_OUTCOME_SOURCE)
		scene_problem(sc, "without GO the destination's outcome is %s",
			      tern_outcome_name(tern_session_outcome(sc->d)));
	judge_error(sc, sc->d, "destination");
}

/* Did either side lose the other only because this machine is slow? */
static bool was_slow(struct scene *sc)
{
	struct tern_error s, d;

	tern_session_error(sc->s, &s);
	tern_session_error(sc->d, &d);
	return !scene_completed(sc) && (s.code == -ETIMEDOUT || d.code == -ETIMEDOUT ||
					tern_session_state(sc->d) == TERN_STATE_SETUP);
}

/* Does the plot end the migration, after the handshake, whatever the fault does? */
static bool fails_by_itself(const struct scene *sc)
{
	return sc->plot == SCENE_SOURCE_CANCELS || sc->plot == SCENE_SAVE_FAILS ||
	       sc->plot == SCENE_LOAD_FAILS || sc->plot == SCENE_RESUME_FAILS;
}

/* The second attempt, without a fault. */
static void try_again(struct scene *sc)
{
	struct tern_session *first = sc->s;

	sc->s = new_session(sc, &sc->src, TERN_SOURCE);
	tern_session_delete(&first);
	atomic_store(&sc->strangers, 0);
	attempt(sc);
	(void)still_listening(sc);
	sc->missed = was_slow(sc);
	if (!sc->missed)
		judge_completed(sc);
}

void scene_play(struct scene *sc)
{
	if (tern_session_listen(sc->d, sc->listen_uri)) {
		scene_problem(sc, "listen() failed");
		return;
	}
	if (sc->on_listening)
		sc->on_listening(sc->hook_opaque);
	testvm_start(&sc->src);
	attempt(sc);

	bool listening = still_listening(sc);
	bool go = fault_net_messages(sc->net, FAULT_SOURCE, FAULT_SEND, WIRE_GO);
	bool go_arrived = fault_net_messages(sc->net, FAULT_DESTINATION, FAULT_RECV, WIRE_GO);

	if (!go)
		judge_source_runs(sc, !listening);
	else if (listening)
		scene_problem(sc, "the destination listens after GO");
	else if (sc->plot == SCENE_POSTCOPY)
		judge_postcopy(sc, go_arrived);
	else if (fault_net_messages(sc->net, FAULT_SOURCE, FAULT_RECV, WIRE_STARTED))
		judge_completed(sc);
	else
		judge_unknown(sc, go_arrived);
	sc->missed =
		!fault_net_fired(sc->net) && !(sc->fired && sc->fired()) && !scene_completed(sc);
	if (listening && fails_by_itself(sc)) /* it did not get as far as that */
		sc->missed = true;
	if (listening && !sc->missed)
		try_again(sc);
	if (atomic_load(&sc->pair.both_ran))
		scene_problem(sc, "BOTH SIDES RAN");
}

struct crowd {
	atomic_uint next;
	unsigned nr;
	void (*fn)(void *opaque, unsigned i);
	void *opaque;
};

static void *crowd_main(void *arg)
{
	struct crowd *c = arg;
	unsigned i;

	while ((i = atomic_fetch_add(&c->next, 1)) < c->nr)
		c->fn(c->opaque, i);
	return NULL;
}

void scene_crowd(unsigned nr, void (*fn)(void *opaque, unsigned i), void *opaque)
{
	struct crowd c = { .nr = nr, .fn = fn, .opaque = opaque };
	pthread_t threads[CROWD_WIDTH];

	for (unsigned i = 0; i < CROWD_WIDTH; i++)
		if (pthread_create(&threads[i], NULL, crowd_main, &c))
			abort();
	for (unsigned i = 0; i < CROWD_WIDTH; i++)
		pthread_join(threads[i], NULL);
}
