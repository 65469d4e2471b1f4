/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Two processes, one of which dies (SIGKILL) or stops (SIGSTOP) at a chosen message.
 *
 *	test process          maps guest RAM of both sides, forks, watches, judges
 *	 ├─ destination       listens, says where
 *	 └─ source            connects; a second one if the first died as a stranger
 *
 * Guest RAM is a memfd mapped before the fork, so the test can compare it whoever
 * died.  What each process did is in shared memory; one that was killed leaves no
 * report, and runs no guest.  A stopped process goes on when the other has ended.
 *
 * With postcopy whoever survives a kill after GO stays paused: nobody comes back with
 * what it needs.  Then it reports that.
 *
 *	test_kill LANE [FILTER]
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "monitor.h"
#include "scene.h"
#include "session.h"
#include "uri.h"
#include "victim.h"
#include "wire.h"

/* Only a stopped process is noticed by it. */
#define KILL_PEER_TIMEOUT_MS (2 * SCENE_PEER_TIMEOUT_MS)

/* Bytes per second in the background: so slow that the guest has to ask for pages. */
#define POSTCOPY_RATE (8u << 20)

/* What is in the RAM before the guest runs: see testvm_fill(). */
#define FILL_STEP 1
#define FILL_SEED 42

/* What one process has to say at its end. */
struct report {
	bool filed; /* the rest is valid */
	enum tern_state state;
	enum tern_outcome outcome;
	bool is_running, state_was_good;
	int pauses, resumes;
	unsigned go, started; /* GO sent or received; STARTED received or sent */
	uint64_t ticks; /* of the destination's guest, at its end */
	struct tern_error error;
};

/* Shared by all processes of a scenario. */
struct stage {
	struct testvm_pair pair;
	atomic_bool listening, peer_gone, again;
	atomic_bool killed; /* the victim, whoever it is */
	atomic_uint strangers;
	char uri[320];
	struct report source, destination;
};

struct scenario {
	const char *name;
	enum wire_type type;
	enum fault_side side; /* that dies or stops */
	enum fault_op op;
	enum fault_action action;
	unsigned nth;
	bool postcopy;
};

#define AT(type_, side_, nth_)                                                                     \
	{ #type_ " " #nth_ ", killed before", WIRE_##type_, side_, FAULT_SEND, FAULT_KILL, nth_ }, \
	{                                                                                          \
#type_ " " #nth_ ", killed after", WIRE_##type_, side_, FAULT_SEND,                \
			FAULT_KILL_AFTER, nth_                                                     \
	}
#define ARRIVED(type_, side_, action_, how_)                                            \
	{                                                                               \
#type_ " 1 arrived, " how_, WIRE_##type_, side_, FAULT_RECV, action_, 1 \
	}
#define STOP(type_, side_, nth_)                                                                  \
	{                                                                                         \
#type_ " " #nth_ ", stopped before", WIRE_##type_, side_, FAULT_SEND, FAULT_STOP, \
			nth_                                                                      \
	}

#define POSTCOPY_AT(type_, side_)                                                               \
	{ "postcopy, " #type_ ", killed before", WIRE_##type_, side_, FAULT_SEND,               \
	  FAULT_KILL, 1, true },                                                                \
	{                                                                                       \
		"postcopy, " #type_ ", killed after", WIRE_##type_, side_, FAULT_SEND,          \
			FAULT_KILL_AFTER, 1, true                                               \
	}

static const struct scenario scenarios[] = {
	AT(HELLO, FAULT_SOURCE, 1),
	AT(HELLO_ACK, FAULT_DESTINATION, 1),
	AT(REGIONS, FAULT_SOURCE, 1),
	AT(REGIONS_ACK, FAULT_DESTINATION, 1),
	AT(SETUP_DONE, FAULT_DESTINATION, 1),
	AT(ROUND, FAULT_SOURCE, 1),
	AT(ROUND, FAULT_SOURCE, 2),
	AT(STATE, FAULT_SOURCE, 1),
	AT(STATE_END, FAULT_SOURCE, 1),
	AT(READY, FAULT_DESTINATION, 1),
	AT(GO, FAULT_SOURCE, 1),
	AT(STARTED, FAULT_DESTINATION, 1),
	AT(BYE, FAULT_SOURCE, 1),
	ARRIVED(ROUND, FAULT_DESTINATION, FAULT_KILL, "killed"),
	ARRIVED(STATE_END, FAULT_DESTINATION, FAULT_KILL, "killed"),
	ARRIVED(READY, FAULT_SOURCE, FAULT_KILL, "killed"),
	ARRIVED(GO, FAULT_DESTINATION, FAULT_KILL, "killed"),
	ARRIVED(STARTED, FAULT_SOURCE, FAULT_KILL, "killed"),
	STOP(HELLO_ACK, FAULT_DESTINATION, 1),
	STOP(SETUP_DONE, FAULT_DESTINATION, 1),
	STOP(ROUND, FAULT_SOURCE, 1),
	STOP(ROUND, FAULT_SOURCE, 2),
	STOP(READY, FAULT_DESTINATION, 1),
	STOP(GO, FAULT_SOURCE, 1),
	STOP(STARTED, FAULT_DESTINATION, 1),
	ARRIVED(ROUND, FAULT_DESTINATION, FAULT_STOP, "stopped"),
	ARRIVED(GO, FAULT_DESTINATION, FAULT_STOP, "stopped"),
	ARRIVED(STARTED, FAULT_SOURCE, FAULT_STOP, "stopped"),
	POSTCOPY_AT(MISSING, FAULT_SOURCE),
	POSTCOPY_AT(POSTCOPY, FAULT_SOURCE),
	POSTCOPY_AT(STATE_END, FAULT_SOURCE),
	POSTCOPY_AT(READY, FAULT_DESTINATION),
	POSTCOPY_AT(GO, FAULT_SOURCE),
	POSTCOPY_AT(STARTED, FAULT_DESTINATION),
	POSTCOPY_AT(PAGES_WANTED, FAULT_DESTINATION),
	POSTCOPY_AT(COMPLETE, FAULT_DESTINATION),
	POSTCOPY_AT(BYE, FAULT_SOURCE),
};

#define NR_SCENARIOS (sizeof(scenarios) / sizeof(scenarios[0]))

/* A scenario in the test process. */
struct play {
	const char *lane;
	const struct scenario *sc;
	struct stage *stage;
	struct testvm src, dst;
	pid_t source, destination; /* 0: gone */
	uint64_t survivor_ended_ns, hit_ns;
	char problems[SCENE_PROBLEMS_MAX];
};

/* ---------------------------------------------------------- in the processes */

static void on_stranger(void *opaque, const struct tern_event *e)
{
	struct stage *st = opaque;

	if (e->type == TERN_EVENT_STRANGER)
		atomic_fetch_add(&st->strangers, 1);
}

/* The fault layer over the lane's transport, with the scenario's rule if @faulty. */
static struct fault_net *open_net(const struct play *pl, bool faulty)
{
	const struct transport *ops;
	struct tern_error err = { 0 };
	struct uri uri;

	if (uri_parse(pl->lane, &uri, &err) || transport_find(&uri, &ops, &err))
		abort();
	struct fault_net *net = fault_net_new(ops);

	if (faulty)
		fault_net_add(net, &(struct fault_rule){ .side = pl->sc->side,
							 .op = pl->sc->op,
							 .msg_type = (int)pl->sc->type,
							 .nth = pl->sc->nth,
							 .action = pl->sc->action });
	return net;
}

static void file_report(struct report *r, struct tern_session *s, const struct testvm *vm,
			struct fault_net *net, enum fault_side side)
{
	bool source = side == FAULT_SOURCE;

	r->state = tern_session_state(s);
	r->outcome = tern_session_outcome(s);
	r->is_running = vm->is_running;
	r->state_was_good = vm->state_was_good;
	r->pauses = vm->pauses;
	r->resumes = vm->resumes;
	r->go = fault_net_messages(net, side, source ? FAULT_SEND : FAULT_RECV, WIRE_GO);
	r->started = fault_net_messages(net, side, source ? FAULT_RECV : FAULT_SEND, WIRE_STARTED);
	tern_session_error(s, &r->error);
	r->filed = true;
}

/* True if @s is in a state that it does not leave. */
static bool has_ended(struct tern_session *s)
{
	enum tern_state state = tern_session_state(s);

	return (state == TERN_STATE_COMPLETED || state == TERN_STATE_FAILED ||
		state == TERN_STATE_CANCELLED);
}

/* Postcopy, and the other side was killed: nothing will come of it any more. */
static bool is_left_alone(struct tern_session *s, struct stage *st)
{
	return tern_session_state(s) == TERN_STATE_POSTCOPY_PAUSED && atomic_load(&st->killed);
}

/* The destination's process. */
static void be_destination(struct play *pl)
{
	struct stage *st = pl->stage;
	struct fault_net *net = open_net(pl, pl->sc->side == FAULT_DESTINATION);
	struct tern_session *s = testvm_session(&pl->dst, TERN_DESTINATION);

	session_use_transport(s, fault_net_transport(net));
	tern_session_set(s, TERN_PARAM_PEER_TIMEOUT_MS, KILL_PEER_TIMEOUT_MS);
	tern_session_set_event_handler(s, on_stranger, st);
	if (tern_session_listen(s, pl->lane))
		abort();
	tern_session_uri(s, st->uri, sizeof(st->uri));
	atomic_store(&st->listening, true);
	while (!has_ended(s) && !is_left_alone(s, st)) {
		/* The source died as a stranger: ask for another one. */
		if (atomic_load(&st->peer_gone) && atomic_load(&st->strangers))
			atomic_store(&st->again, true);
		usleep(1000);
	}
	if (!is_left_alone(s, st))
		tern_session_wait(s, -1);
	file_report(&st->destination, s, &pl->dst, net, FAULT_DESTINATION);
	tern_session_delete(&s);
	testvm_stop(&pl->dst);
	st->destination.ticks = pl->dst.ticks;
	testvm_fini(&pl->dst);
	testvm_fini(&pl->src);
	fault_net_delete(net);
	exit(0);
}

/* The source's process. */
static void be_source(struct play *pl, bool faulty)
{
	struct stage *st = pl->stage;
	struct fault_net *net = open_net(pl, faulty && pl->sc->side == FAULT_SOURCE);
	struct tern_session *s = testvm_session(&pl->src, TERN_SOURCE);

	session_use_transport(s, fault_net_transport(net));
	tern_session_set(s, TERN_PARAM_CHANNELS, 2);
	tern_session_set(s, TERN_PARAM_PEER_TIMEOUT_MS, KILL_PEER_TIMEOUT_MS);
	if (pl->sc->postcopy) {
		tern_session_set(s, TERN_PARAM_MODE, TERN_MODE_POSTCOPY);
		tern_session_set(s, TERN_PARAM_MAX_POSTCOPY_BANDWIDTH, POSTCOPY_RATE);
	}
	testvm_start(&pl->src);
	if (tern_session_connect(s, st->uri))
		abort();
	while (!has_ended(s) && !is_left_alone(s, st))
		usleep(1000);
	if (!is_left_alone(s, st))
		tern_session_wait(s, -1);
	file_report(&st->source, s, &pl->src, net, FAULT_SOURCE);
	tern_session_delete(&s);
	testvm_fini(&pl->src);
	testvm_fini(&pl->dst);
	fault_net_delete(net);
	exit(0);
}

/* ------------------------------------------------------- in the test process */

static pid_t spawn_source(struct play *pl, bool faulty)
{
	pid_t pid = fork();

	if (!pid)
		be_source(pl, faulty);
	return pid;
}

/* The process *pid ended or stopped with @status; it is @who. */
static void notice(struct play *pl, pid_t *pid, const char *who, int status)
{
	enum fault_side side = pid == &pl->source ? FAULT_SOURCE : FAULT_DESTINATION;
	bool victim = side == pl->sc->side && !pl->hit_ns;

	if (WIFSTOPPED(status)) {
		pl->hit_ns = now_ns();
		return;
	}
	if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL && victim) {
		pl->hit_ns = now_ns();
		atomic_store(&pl->stage->killed, true);
		if (side == FAULT_SOURCE) {
			/* Its guest is gone with it; the RAM may be taken for a second try. */
			atomic_store(&pl->stage->peer_gone, true);
		}
	} else if (!WIFEXITED(status) || WEXITSTATUS(status)) {
		problem_add(pl->problems, "the %s ended with status 0x%x", who, status);
	}
	if (side != pl->sc->side && !pl->survivor_ended_ns)
		pl->survivor_ended_ns = now_ns();
	*pid = 0;
}

static void look_at(struct play *pl, pid_t *pid, const char *who)
{
	int status;

	if (*pid && waitpid(*pid, &status, WNOHANG | WUNTRACED) == *pid)
		notice(pl, pid, who, status);
}

/* Is the killed source to be followed by another?  Its guest, if it ran, died with it. */
static void send_another(struct play *pl)
{
	if (pl->source || !atomic_exchange(&pl->stage->again, false))
		return;
	atomic_store(&pl->stage->peer_gone, false);
	atomic_store(&pl->stage->pair.running, 0);
	pl->source = spawn_source(pl, false);
}

/* Once the other side has ended, a stopped process goes on. */
static void let_go_on(struct play *pl, bool *continued)
{
	pid_t stopped = pl->sc->side == FAULT_SOURCE ? pl->source : pl->destination;

	if (pl->sc->action != FAULT_STOP || !pl->hit_ns || *continued)
		return;
	bool listens = pl->sc->side == FAULT_SOURCE && atomic_load(&pl->stage->strangers);

	if (!pl->survivor_ended_ns && !listens)
		return;
	kill(stopped, SIGCONT);
	*continued = true;
}

/* Watch until both processes are gone.  A destination that still listens gets another source. */
static void watch(struct play *pl)
{
	uint64_t until = deadline_ns(SCENE_BOUND_MS);
	bool continued = false;

	while (pl->source || pl->destination) {
		look_at(pl, &pl->source, "source");
		look_at(pl, &pl->destination, "destination");
		send_another(pl);
		let_go_on(pl, &continued);
		/* Nobody comes any more: the stopped or surviving source was turned away. */
		if (!pl->source && pl->destination && pl->sc->action == FAULT_STOP && continued &&
		    atomic_load(&pl->stage->strangers) && !pl->stage->destination.filed) {
			atomic_store(&pl->stage->pair.running, 0);
			pl->stage->source.filed = false;
			pl->source = spawn_source(pl, false);
			atomic_store(&pl->stage->strangers, 0);
		}
		if (now_ns() > until) {
			problem_add(pl->problems, "hangs: source %d, destination %d", pl->source,
				    pl->destination);
			if (pl->source)
				kill(pl->source, SIGKILL);
			if (pl->destination)
				kill(pl->destination, SIGKILL);
			return;
		}
		usleep(1000);
	}
}

/* Does the error name what happened? */
static void judge_error(struct play *pl, const struct report *r, const char *who)
{
	if (!r->error.code ||
	    !word_found(r->error.message, "without a word|reset|Broken pipe|is gone|silent for|"
					  "refused|no answer|did not arrive|closed|says:|"
					  "No such file|No byte moved"))
		problem_add(pl->problems, "the %s says %d '%s'", who, r->error.code,
			    r->error.message);
}

/* After GO, with postcopy: it keeps its pages for whoever comes for them. */
static void judge_source_of_postcopy(struct play *pl, const struct report *r)
{
	if (r->is_running || r->resumes)
		problem_add(pl->problems, "the source resumed after GO");
	if (r->state == TERN_STATE_POSTCOPY_PAUSED)
		judge_error(pl, r, "source");
	else if (r->state != TERN_STATE_COMPLETED || !r->started)
		problem_add(pl->problems, "after GO the source is %s", tern_state_name(r->state));
}

static void judge_source(struct play *pl)
{
	const struct report *r = &pl->stage->source;

	if (r->go && pl->sc->postcopy) {
		judge_source_of_postcopy(pl, r);
	} else if (!r->go) {
		if (r->outcome != TERN_OUTCOME_SOURCE || !r->is_running || r->pauses != r->resumes)
			problem_add(pl->problems, "before GO: outcome %s, %d pauses, %d resumes",
				    tern_outcome_name(r->outcome), r->pauses, r->resumes);
		judge_error(pl, r, "source");
	} else if (r->started) {
		if (r->state != TERN_STATE_COMPLETED || r->is_running)
			problem_add(pl->problems, "STARTED came, and the source %s",
				    r->is_running ? "runs" : tern_state_name(r->state));
	} else {
		if (r->outcome != TERN_OUTCOME_UNKNOWN && r->outcome != TERN_OUTCOME_NEITHER)
			problem_add(pl->problems, "after GO the outcome is %s",
				    tern_outcome_name(r->outcome));
		if (r->is_running || r->resumes)
			problem_add(pl->problems, "the source resumed after GO");
		judge_error(pl, r, "source");
	}
}

static void judge_destination(struct play *pl)
{
	const struct report *r = &pl->stage->destination;

	if (r->is_running != (r->go > 0) || r->resumes != (int)r->go)
		problem_add(pl->problems, "GO %s, and the destination %s",
			    r->go ? "arrived" : "did not arrive",
			    r->is_running ? "runs" : "does not run");
	if (!r->go) {
		if (r->outcome != TERN_OUTCOME_SOURCE)
			problem_add(pl->problems, "the destination's outcome is %s",
				    tern_outcome_name(r->outcome));
		judge_error(pl, r, "destination");
		return;
	}
	if (pl->sc->postcopy && r->state == TERN_STATE_POSTCOPY_PAUSED) {
		judge_error(pl, r, "destination");
		return;
	}
	if (r->state != TERN_STATE_COMPLETED || !r->state_was_good)
		problem_add(pl->problems, "the destination that runs is %s",
			    tern_state_name(r->state));
	pl->dst.ticks = r->ticks;
	if (pl->sc->postcopy ? !testvm_intact(&pl->dst, FILL_STEP, FILL_SEED)
			     : !testvm_equal(&pl->src, &pl->dst))
		problem_add(pl->problems, "RAM differs");
}

static void judge(struct play *pl)
{
	bool killed = pl->sc->action != FAULT_STOP;

	if (!pl->hit_ns)
		problem_add(pl->problems, "nobody was hit");
	if (atomic_load(&pl->stage->pair.both_ran))
		problem_add(pl->problems, "BOTH SIDES RAN");
	if (!pl->stage->source.filed && !(killed && pl->sc->side == FAULT_SOURCE))
		problem_add(pl->problems, "no word from the source");
	if (!pl->stage->destination.filed && !(killed && pl->sc->side == FAULT_DESTINATION))
		problem_add(pl->problems, "no word from the destination");
	if (pl->stage->source.filed)
		judge_source(pl);
	if (pl->stage->destination.filed)
		judge_destination(pl);
	/* A dead process is noticed at once, a stopped one after the peer timeout. */
	if (pl->survivor_ended_ns > pl->hit_ns && pl->stage->source.filed &&
	    pl->survivor_ended_ns - pl->hit_ns > (KILL_PEER_TIMEOUT_MS + 5000ull) * 1000000)
		problem_add(pl->problems, "it took %llu ms to notice",
			    (unsigned long long)(pl->survivor_ended_ns - pl->hit_ns) / 1000000);
}

/* One scenario from the first fork to the verdict. */
static void play(struct play *pl)
{
	static const uint64_t pages[] = { 512, 3 };

	pl->stage = mmap(NULL, sizeof(*pl->stage), PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(pl->stage, MAP_FAILED);
	testvm_init(&pl->src, &pl->stage->pair, TESTVM_MEMFD, 2, pages);
	testvm_init(&pl->dst, &pl->stage->pair, TESTVM_MEMFD, 2, pages);
	testvm_fill(&pl->src, FILL_STEP, FILL_SEED);
	pl->src.working_set = 64;
	pl->src.pause_us = 100;
	pl->src.state_bytes = pl->dst.state_bytes = 100;
	if (pl->sc->postcopy) { /* it goes on to write, and waits for pages */
		pl->dst.working_set = pl->src.working_set;
		pl->src.working_first = pages[0] - pl->src.working_set; /* what comes last */
		pl->dst.working_first = pl->src.working_first;
		pl->dst.pause_us = pl->src.pause_us;
	}
	fflush(NULL);
	pl->destination = fork();
	if (!pl->destination)
		be_destination(pl);
	while (!atomic_load(&pl->stage->listening) && !waitpid(pl->destination, NULL, WNOHANG))
		usleep(1000);
	pl->source = spawn_source(pl, true);
	watch(pl);
	judge(pl);
	testvm_fini(&pl->src);
	testvm_fini(&pl->dst);
	munmap(pl->stage, sizeof(*pl->stage));
}

static void scenario(void **state)
{
	struct play pl;
	unsigned takes = 0;

	do { /* again if this machine was too slow to get to the message */
		pl = *(const struct play *)*state;
		play(&pl);
	} while (!strcmp(pl.problems, "nobody was hit; ") && ++takes < SCENE_TAKES);
	if (pl.problems[0])
		fail_msg("%s", pl.problems);
}

int main(int argc, char **argv)
{
	static const struct play empty;
	struct CMUnitTest tests[NR_SCENARIOS];
	struct play plays[NR_SCENARIOS];
	char unix_uri[64];

	if (argc < 2)
		return 2;
	snprintf(unix_uri, sizeof(unix_uri), "unix:/tmp/tern-kill-%d", (int)getpid());
	const char *uri = !strcmp(argv[1], "tcp")    ? "tcp:127.0.0.1:0"
			  : !strcmp(argv[1], "rdma") ? "rdma::0"
						     : unix_uri;

	for (size_t i = 0; i < NR_SCENARIOS; i++) {
		plays[i] = empty;
		plays[i].lane = uri;
		plays[i].sc = &scenarios[i];
		tests[i] = (struct CMUnitTest){
			.name = scenarios[i].name,
			.test_func = scenario,
			.initial_state = &plays[i],
		};
	}
	if (argc > 2)
		cmocka_set_test_filter(argv[2]);
	int r = cmocka_run_group_tests_name("kill", tests, NULL, NULL);

	unlink(unix_uri + 5);
	return r;
}
