/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * One side of a benchmark, from an empty guest to figures.
 *
 * Threads: the main thread opens, waits and verifies; the session's threads call
 * the event handler and the callbacks of bench_vm.c.  The handler only prints
 * and wakes the main thread through an eventfd.  The main thread sleeps in poll()
 * on that, on signals, and on the end of the other process.
 *
 * Cancelling: on a signal, at the end of --timeout, or when the other process is
 * gone, the session is asked to cancel.  After GO it refuses; the guest then
 * belongs to the destination and the wait goes on until the outcome is known.
 */

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>
#include <tern/tern.h>
#include "bench_side.h"
#include "cli.h"

#define NS_PER_MS 1000000u
#define RUNS_ON_LIMIT_NS 5000000000u /* a guest that wrote nothing for so long does not run */
#define TIMEOUT_GRACE_MS 1000u /* the library ends it at --timeout; this is the second line */

/* The session's event handler; session threads. */
static void on_event(void *opaque, const struct tern_event *event)
{
	struct side *side = opaque;
	const char *text = event->error ? event->error->message : "";
	uint64_t one = 1;

	switch (event->type) {
	case TERN_EVENT_STATE:
		progress_state(&side->progress, event->state);
		control_state(&side->control, side->session, event->state);
		if (event->state == TERN_STATE_POSTCOPY_PAUSED && side->control.fd >= 0)
			progress_message(&side->progress,
					 "paused; to go on: tern bench --connect URI --recover "
					 "--control %s",
					 side->control.path);
		/* Cannot fail short of 2^64 events. */
		if (write(side->wake_fd, &one, sizeof(one)) < 0)
			return;
		break;
	case TERN_EVENT_ROUND:
		/* The rounds that send what it scattered are measured undisturbed. */
		if (side->role == TERN_SOURCE && side->args->guest.pattern == GUEST_ALTERNATE)
			guest_rest(side->guest, true);
		progress_round(&side->progress, side->session);
		break;
	case TERN_EVENT_STRANGER:
		progress_message(&side->progress, "turned away a connection: %s", text);
		break;
	case TERN_EVENT_WARNING:
		progress_message(&side->progress, "warning: %s", text);
		break;
	default:
		break;
	}
}

/* Give the session the guest's regions. */
static int add_regions(struct side *side)
{
	for (unsigned i = 0; i < guest_nr_regions(side->guest); i++) {
		const struct guest_region *r = guest_region(side->guest, i);
		struct tern_region_desc desc = {
			.name = r->name,
			.hva = r->hva,
			.size = r->nr_pages * GUEST_PAGE_SIZE,
			.gpa = r->gpa,
			.host_page_size = r->host_page_size,
			.numa_node = TERN_NODE_ANY,
			.fd = r->fd,
			.flags = side->role == TERN_DESTINATION ? TERN_REGION_ZEROED : 0,
		};
		int ret = tern_session_add_region(side->session, &desc);

		if (ret < 0) {
			tern_session_error(side->session, &side->error);
			return cli_fail(&side->error, ret, "cannot add region %s: %s", r->name,
					strerror(-ret));
		}
	}
	return 0;
}

/* --dirty-provider none: nobody tracks writes, so the source's guest never runs. */
static bool frozen(const struct side *side)
{
	const struct bench_param *p = &side->args->param[TERN_PARAM_DIRTY_PROVIDER];

	return side->role == TERN_SOURCE && p->set && p->value == TERN_DIRTY_NONE;
}

/* --dirty-provider callbacks: the source's guest keeps a log of its own, as a VMM does. */
static bool own_log(const struct side *side)
{
	const struct bench_param *p = &side->args->param[TERN_PARAM_DIRTY_PROVIDER];

	return side->role == TERN_SOURCE && p->set && p->value == TERN_DIRTY_CALLBACKS;
}

/* The guest in the state in which its migration begins. */
static int open_guest(struct side *side)
{
	int ret = guest_new(&side->args->guest, &side->guest, &side->error);

	if (ret)
		return ret;
	if (side->role == TERN_SOURCE)
		guest_fill(side->guest);
	else if (side->args->prealloc)
		guest_populate(side->guest);
	ret = guest_start_vcpus(side->guest, &side->error);
	if (!ret && side->role == TERN_SOURCE && !frozen(side))
		guest_resume(side->guest);
	return ret;
}

/* Make a side; see bench_side.h. */
int side_open(struct side *side, const struct bench_args *args, enum tern_role role, bool quiet)
{
	int ret;

	*side = (struct side){
		.args = args, .role = role, .wake_fd = -1, .signal_fd = -1, .life_fd = -1
	};
	progress_init(&side->progress, quiet, role == TERN_DESTINATION);
	control_init(&side->control);
	side->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (side->wake_fd < 0)
		return cli_fail(&side->error, -errno, "cannot make an eventfd: %s",
				strerror(errno));
	ret = open_guest(side);
	if (ret)
		return ret;
	ret = tern_session_new(role, &side->session);
	if (ret)
		return cli_fail(&side->error, ret, "cannot make a session: %s", strerror(-ret));
	ret = bench_apply_params(args, role, side->session, &side->error);
	if (!ret)
		ret = add_regions(side);
	if (ret)
		return ret;
	tern_session_set_vm_ops(side->session, bench_vm_ops(), side);
	if (own_log(side))
		tern_session_set_dirty_ops(side->session, bench_dirty_ops(), side);
	tern_session_set_event_handler(side->session, on_event, side);
	return 0;
}

/* Free everything; see bench_side.h. */
void side_close(struct side *side)
{
	tern_session_delete(&side->session);
	control_close(&side->control);
	guest_delete(&side->guest);
	if (side->wake_fd >= 0)
		close(side->wake_fd);
	progress_fini(&side->progress);
}

/* Does the migration end in postcopy, which may pause? */
static bool may_pause(const struct side *side)
{
	return side->args->param[TERN_PARAM_MODE].value != TERN_MODE_PRECOPY;
}

/* Let the guest run for so long; a signal or the other's end cuts it short. */
static void run_for(const struct side *side, uint64_t ms)
{
	uint64_t end = cli_now_ns() + ms * NS_PER_MS, now;
	struct pollfd fds[] = {
		{ .fd = side->signal_fd, .events = POLLIN },
		{ .fd = side->life_fd, .events = POLLIN },
	};

	while ((now = cli_now_ns()) < end)
		if (poll(fds, 2, (int)((end - now + NS_PER_MS - 1) / NS_PER_MS)) > 0)
			return;
}

/* Start the clock and the session. */
int side_start(struct side *side, const char *uri)
{
	int ret;

	ret = side->args->role == BENCH_SOURCE && may_pause(side) ?
		      control_open(&side->control, side->args->control, &side->error) :
		      0;
	if (ret)
		return ret;
	if (side->role == TERN_SOURCE)
		run_for(side, side->args->run_before_ms);
	procstat_read(&side->begin);
	side->begin_guest_cpu_ns = guest_cpu_ns(side->guest);
	side->started_ns = cli_now_ns();
	if (side->role == TERN_SOURCE)
		ret = tern_session_connect(side->session, uri);
	else
		ret = tern_session_listen(side->session, uri);
	side->started = !ret;
	if (ret) {
		tern_session_error(side->session, &side->error);
		return cli_fail(&side->error, ret, "cannot %s %s: %s",
				side->role == TERN_SOURCE ? "connect to" : "listen at", uri,
				strerror(-ret));
	}
	return 0;
}

/* Whether the session has ended. */
static bool ended(const struct side *side)
{
	enum tern_state state = tern_session_state(side->session);

	return state == TERN_STATE_COMPLETED || state == TERN_STATE_FAILED ||
	       state == TERN_STATE_CANCELLED;
}

/* Ask the session to cancel, once. */
static void give_up(struct side *side, const char *why)
{
	enum tern_state state = tern_session_state(side->session);

	if (side->gave_up)
		return;
	side->gave_up = true;
	if (state == TERN_STATE_POSTCOPY_PAUSED)
		progress_message(&side->progress,
				 "%s: giving up a paused migration, whose guest lacks pages", why);
	else if (tern_session_cancel(side->session) == -EBUSY)
		progress_message(&side->progress,
				 "%s: too late to cancel, the guest belongs to the destination "
				 "already; waiting for the outcome",
				 why);
	else
		progress_message(&side->progress, "%s: cancelling", why);
}

/* Has the user given up a migration that waits for --recover? */
static bool abandoned(const struct side *side)
{
	return side->gave_up && tern_session_state(side->session) == TERN_STATE_POSTCOPY_PAUSED;
}

/* Milliseconds until side_wait() has to look again; -1: only on events. */
static int wait_ms(const struct side *side, uint64_t deadline_ns)
{
	uint64_t now = cli_now_ns(), ms;

	if (side->progress.tty)
		return PROGRESS_REDRAW_MS;
	if (!deadline_ns || side->gave_up)
		return -1;
	ms = deadline_ns > now ? (deadline_ns - now) / NS_PER_MS + 1 : 0;
	return ms < 3600000 ? (int)ms : 3600000;
}

/* Sleep until something happens, and act on it. */
static void wait_once(struct side *side, uint64_t deadline_ns)
{
	struct pollfd fds[] = {
		{ .fd = side->wake_fd, .events = POLLIN },
		{ .fd = side->signal_fd, .events = POLLIN },
		{ .fd = side->gave_up ? -1 : side->life_fd, .events = POLLIN },
		{ .fd = side->control.fd, .events = POLLIN },
	};
	struct signalfd_siginfo info;
	uint64_t events;

	progress_draw(&side->progress, side->session);
	if (poll(fds, 4, wait_ms(side, deadline_ns)) < 0)
		return; /* EINTR */
	/* Only empties it; the state is looked at by the caller. */
	if (fds[0].revents && read(side->wake_fd, &events, sizeof(events)) < 0)
		return;
	if (fds[1].revents && read(side->signal_fd, &info, sizeof(info)) == sizeof(info))
		give_up(side, strsignal((int)info.ssi_signo));
	if (fds[2].revents)
		give_up(side, "the source process is gone");
	if (fds[3].revents)
		control_ready(&side->control, side->session);
	if (deadline_ns && cli_now_ns() >= deadline_ns)
		give_up(side, "--timeout is over");
}

/* Wait for the session's end and take what has to be measured right there. */
int side_wait(struct side *side)
{
	uint64_t timeout_ms = side->args->timeout_ms, deadline_ns = 0;
	int ret;

	if (side->role == TERN_SOURCE && timeout_ms)
		timeout_ms += TIMEOUT_GRACE_MS;
	/* The destination of two processes here is ended by the source. */
	if (timeout_ms && side->life_fd < 0)
		deadline_ns = side->started_ns + timeout_ms * NS_PER_MS;
	while (!ended(side) && !abandoned(side))
		wait_once(side, deadline_ns);
	ret = abandoned(side) ? -ECANCELED : tern_session_wait(side->session, -1);
	side->end_guest_cpu_ns = guest_cpu_ns(side->guest);
	procstat_read(&side->end);
	side->end_writes = guest_writes(side->guest);
	progress_draw(&side->progress, side->session);
	if (ret)
		tern_session_error(side->session, &side->error);
	return ret;
}

/* Whether it completed. */
bool side_completed(const struct side *side)
{
	return side->started && tern_session_state(side->session) == TERN_STATE_COMPLETED;
}

/* Whether it was cancelled, by a user, by a timeout or by the peer. */
bool side_cancelled(const struct side *side)
{
	return side->started && !side_completed(side) &&
	       (side->gave_up || tern_session_state(side->session) == TERN_STATE_CANCELLED);
}

/* See whether the guest writes on; an idle guest has nothing to show. */
static bool runs_on(const struct side *side)
{
	uint64_t before = guest_writes(side->guest), begin = cli_now_ns();

	if (!guest_is_busy(side->guest) || frozen(side))
		return true;
	while (guest_writes(side->guest) == before) {
		if (cli_now_ns() - begin > RUNS_ON_LIMIT_NS)
			return false;
		nanosleep(&(struct timespec){ .tv_nsec = NS_PER_MS }, NULL);
	}
	return true;
}

/* Look at the guest where it runs now; see bench_side.h. */
void side_finish(struct side *side)
{
	enum tern_outcome mine =
		side->role == TERN_SOURCE ? TERN_OUTCOME_SOURCE : TERN_OUTCOME_DESTINATION;

	if (!side->started || tern_session_outcome(side->session) != mine)
		return;
	if (side->role == TERN_DESTINATION)
		run_for(side, side->args->run_after_ms);
	guest_rest(side->guest, false);
	side->ran_on = runs_on(side);
	guest_pause(side->guest);
	side->verified = !guest_verify(side->guest, &side->verify, &side->error);
}

/* Exit code; see bench_side.h. */
int side_exit_code(const struct side *side)
{
	if (!side->started)
		return side->error.code == -EINVAL || side->error.code == -EPROTONOSUPPORT
			       ? CLI_EXIT_USAGE
			       : CLI_EXIT_FAILED;
	if (side->verified && (side->verify.bad || !side->ran_on))
		return CLI_EXIT_UNVERIFIED;
	if (side_completed(side))
		return side->role == TERN_SOURCE || side->verified ? CLI_EXIT_OK
								   : CLI_EXIT_UNVERIFIED;
	return side_cancelled(side) ? CLI_EXIT_CANCELLED : CLI_EXIT_FAILED;
}
