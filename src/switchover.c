/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The switchover, as seen by the source.  Two phases, so that at most one side
 * ever runs the guest (invariant 1):
 *
 *	source                                   destination
 *	pause the guest; with pause-before-switchover wait until the VMM says so
 *	last look at the dirty log
 *	last round, fence; with postcopy instead: MISSING (without a round everything
 *	is missing, and it went before the pause), POSTCOPY
 *	save state      ---- STATE, STATE_END -->  load state
 *	                <--- READY -------------   could run, does not
 *	point of no return
 *	                ---- GO ---------------->  from now on the guest is its own
 *	                                           revoke access, resume
 *	                <--- STARTED -----------
 *	                ---- BYE --------------->  with postcopy: when nothing is missing
 *
 * Whatever fails before the point of no return lets the source guest run again.
 * From there on the source never resumes by itself: if no STARTED comes, the
 * outcome is unknown, and only somebody who can see both hosts can tell.
 *
 * The ledger gives each step its time.  The two clocks are never compared: the
 * destination reports durations (load, resume, and how long the guest ran before STARTED),
 * and what remains of a round trip is the wire's.  GO's way is taken as half of what READY
 * and GO took, which the destination has measured; not as half of GO and STARTED, because
 * STARTED may be late: the guest has the CPU by then.
 */
#include "source.h"

#include <errno.h>
#include <string.h>

#include "error.h"
#include "kvm_vm.h"
#include "vmstate.h"

/* A lap timer: each call charges the time since the last one to @step. */
struct lap {
	struct tern_session *s;
	uint64_t last;
};

static uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static void charge(struct tern_session *s, enum tern_ledger_step step, uint64_t ns)
{
	monitor_lock(&s->mon);
	s->stats.ledger_ns[step] += ns;
	s->stats.downtime_ns += ns;
	monitor_unlock(&s->mon);
}

static void lap(struct lap *l, enum tern_ledger_step step)
{
	uint64_t now = now_ns();

	charge(l->s, step, now - l->last);
	l->last = now;
}

static uint64_t patience(struct tern_session *s)
{
	return deadline_ns(SOURCE_PATIENCE *
			   (int64_t)session_param(s, TERN_PARAM_PEER_TIMEOUT_MS));
}

static int pause_guest(struct source *src, struct tern_error *err)
{
	struct tern_session *s = src->s;

	src->paused = true;
	if (s->kvm) /* nobody waits there while the VMM waits for its vCPUs */
		kvm_gate_pausing(&s->kvm->gate);
	session_ask(s);
	int r = s->vm.pause ? s->vm.pause(s->vm_opaque) : 0;

	if (r < 0)
		return error_session(err, r, "the VMM could not pause the guest: %s",
				     session_reason(s, r));
	return 0;
}

/* Dirty pages of the paused guest. */
static int last_sync(struct source *src, struct tern_error *err)
{
	struct sender_result result;
	int r = source_phase(src, SENDER_SYNC, true, err);

	if (r)
		return r;
	sender_result(src->s->sender, &result);
	src->remaining_pages = result.dirty_pages;
	return 0;
}

static int send_state(struct tern_session *s, const struct tern_state_writer *w,
		      struct tern_error *err)
{
	struct wire_msg msg;

	for (size_t at = 0; at < w->len;) {
		size_t n = min_u64(w->len - at, WIRE_STATE_DATA_MAX);

		msg.type = WIRE_STATE;
		msg.state.offset = at;
		msg.state.len = (uint16_t)n;
		memcpy(msg.state.data, w->buf + at, n);
		int r = link_send(&s->link, &msg, err);

		if (r)
			return r;
		at += n;
	}
	monitor_lock(&s->mon);
	s->stats.state_bytes = w->len;
	monitor_unlock(&s->mon);
	msg.type = WIRE_STATE_END;
	msg.state_end.total = w->len;
	int r = link_expect_silence(&s->link, "STATE_END", err);

	return r ? r : link_send(&s->link, &msg, err);
}

/* Save, send, and wait for READY. */
static int move_state(struct source *src, struct lap *l, struct tern_error *err)
{
	struct tern_session *s = src->s;
	struct tern_state_writer w = { .max = session_param(s, TERN_PARAM_STATE_MAX) };
	struct wire_msg msg;

	session_ask(s);
	int r = s->vm.save ? s->vm.save(s->vm_opaque, &w) : 0;

	lap(l, TERN_LEDGER_STATE_SAVE);
	if (r < 0)
		error_session(err, r, "the VMM could not save the device state: %s",
			      session_reason(s, r));
	else
		r = send_state(s, &w, err);
	vmstate_fini(&w);
	if (!r)
		r = session_expect(s, WIRE_READY, &msg, patience(s), err);
	if (r)
		return r;

	uint64_t now = now_ns(), all = now - l->last;
	uint64_t load = min_u64(msg.ready.load_ns, all);

	charge(s, TERN_LEDGER_STATE_LOAD, load);
	charge(s, TERN_LEDGER_STATE_TRANSFER, all - load);
	l->last = now;
	return 0;
}

/* The last moment to turn back: after it, tern_session_cancel() is refused. */
static int pass_point_of_no_return(struct tern_session *s, struct tern_error *err)
{
	monitor_lock(&s->mon);
	int r = session_check(s, err);

	if (!r) /* dead and not adopted yet; or STARTED, which nobody can know yet */
		r = link_expect_silence_locked(&s->link, "GO", err);
	if (!r)
		s->point_of_no_return = true;
	monitor_unlock(&s->mon);
	return r;
}

static int hand_over(struct source *src, struct lap *l, struct tern_error *err)
{
	struct tern_session *s = src->s;
	struct wire_msg msg;
	int r = pass_point_of_no_return(s, err);

	if (r)
		return r;
	uint64_t think = now_ns() - l->last;

	r = link_send_empty(&s->link, WIRE_GO, err);
	if (!r)
		r = session_expect(s, WIRE_STARTED, &msg, patience(s), err);
	if (r)
		return r;

	uint64_t now = now_ns(), all = now - l->last;
	uint64_t resume = min_u64(msg.started.resume_ns, all);
	uint64_t since = min_u64(msg.started.since_ns, all - resume);
	uint64_t ways = msg.started.waited_ns > think ? msg.started.waited_ns - think : 0;

	charge(s, TERN_LEDGER_RESUME, resume);
	charge(s, TERN_LEDGER_READY_GO, min_u64(think + ways / 2, all - resume - since));
	if (s->postcopy) /* there is more to come */
		return 0;
	monitor_lock(&s->mon);
	s->times.end = now;
	monitor_unlock(&s->mon);
	link_send_empty(&s->link, WIRE_BYE, NULL);
	return 0;
}

/* The guest is paused: the VMM may do what it wants to do now, and says when it is done. */
static int hold(struct tern_session *s, struct tern_error *err)
{
	int r = 0;

	session_set_state(s, TERN_STATE_PRE_SWITCHOVER);
	monitor_lock(&s->mon);
	while (!r && !s->continue_requested) {
		r = session_check(s, err);
		if (!r)
			session_wait_until(s, NEVER_NS);
	}
	monitor_unlock(&s->mon);
	return r;
}

/* Pause the guest, and ask those in the VMM who may still refuse. */
static int stop_guest(struct source *src, struct lap *l, struct tern_error *err)
{
	struct tern_session *s = src->s;
	int r = pause_guest(src, err);

	if (!r)
		source_unthrottle(src);
	if (!r)
		r = session_notify(s, TERN_NOTICE_SWITCHOVER, err);
	lap(l, TERN_LEDGER_PAUSE);
	if (r || !session_param(s, TERN_PARAM_PAUSE_BEFORE_SWITCHOVER))
		return r;
	r = hold(s, err);
	lap(l, TERN_LEDGER_PRE_SWITCHOVER);
	return r;
}

int switchover_run(struct source *src, struct tern_error *err)
{
	struct tern_session *s = src->s;
	int r = s->postcopy ? postcopy_prepare(src, err) : 0;
	struct lap l = { .s = s, .last = now_ns() };

	if (!r)
		r = stop_guest(src, &l, err);
	if (r)
		return r;
	session_set_state(s, TERN_STATE_DEVICE);
	if (src->tracking)
		r = last_sync(src, err);
	lap(&l, TERN_LEDGER_LAST_SYNC);
	if (!r)
		r = s->postcopy ? postcopy_begin(src, err) : source_send_round(src, true, err);
	lap(&l, TERN_LEDGER_LAST_PAGES);
	if (!r)
		r = move_state(src, &l, err);
	if (!r)
		r = hand_over(src, &l, err);
	return r;
}
