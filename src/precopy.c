/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Precopy rounds.
 *
 *	round 1  FIRST   all pages that exist, while the guest runs
 *	         SYNC    which were written meanwhile
 *	round 2  SEND    those
 *	         …       until converge_decide() says that the rest fits the downtime limit,
 *	                 and the destination's VMM is ready, if that is asked for
 *
 * Every SEND ends with a fence on every channel, so a page of round n is placed
 * before round n + 1 touches it.
 */
#include "source.h"

#include <errno.h>

#include "error.h"

/* A round of fewer bytes says nothing about bandwidth. */
#define BANDWIDTH_MIN_BYTES (4u << 20)
/* With nothing to do but to wait for SWITCHOVER_ACK, a round begins so often. */
#define ACK_LOOK_MS 100

/* Let the provider fetch its log, before it is asked for the parts. */
static int begin_sync(struct source *src, struct tern_error *err)
{
	const struct dirty *d = &src->dirty;
	int r = d->ops.begin ? d->ops.begin(d->opaque) : 0;

	return r ? dirty_failed(d, r, "read the dirty log", err) : 0;
}

int source_phase(struct source *src, enum sender_phase phase, bool final, struct tern_error *err)
{
	struct tern_session *s = src->s;
	int r = phase == SENDER_SYNC ? begin_sync(src, err) : 0;

	if (r)
		return r;
	sender_begin(s->sender, phase, final);
	monitor_lock(&s->mon);
	while (!r && !sender_idle(s->sender)) {
		r = session_check(s, err);
		if (!r && s->link.count)
			r = error_session(err, -EPROTO,
					  "message %s from the peer came during a round",
					  wire_type_name(s->link.queue[s->link.head].type));
		if (!r)
			session_wait_until(s, NEVER_NS);
	}
	if (!r && s->worker_failed_ns) { /* idle because a worker gave up: wait for the reason */
		while (!(r = session_check(s, err)))
			session_wait_until(s, NEVER_NS);
	}
	monitor_unlock(&s->mon);
	if (r)
		sender_abandon(s->sender);
	return r;
}

/* Bytes per second, 0 if no time passed. */
static uint64_t per_second(uint64_t bytes, uint64_t ns)
{
	return ns ? (uint64_t)((double)bytes * 1e9 / (double)ns) : 0;
}

/* Tell the destination what the round was. */
static int send_round_message(struct source *src, const struct tern_round_stats *round,
			      struct tern_error *err)
{
	struct wire_msg msg = {
		.type = WIRE_ROUND,
		.round = {
			.round = round->round,
			.final = (uint8_t)round->final,
			.normal_pages = round->normal_pages,
			.zero_pages = round->zero_pages,
			.skipped_pages = round->round == 1 ? src->skipped_pages : 0,
			.bytes = round->sent_bytes,
		},
	};

	return link_send(&src->s->link, &msg, err);
}

/* How many pages FIRST found, and how many it skipped. */
static void take_scanned(struct source *src, const struct sender_result *result)
{
	struct tern_session *s = src->s;

	src->remaining_pages = result->dirty_pages;
	src->skipped_pages = src->total_pages - result->dirty_pages;
	monitor_lock(&s->mon);
	s->stats.skipped_pages = src->skipped_pages;
	monitor_unlock(&s->mon);
}

int source_send_round(struct source *src, bool final, struct tern_error *err)
{
	enum sender_phase phase = src->round ? SENDER_SEND : SENDER_FIRST;
	struct sender_result result;
	uint64_t begin = now_ns();
	int r = source_phase(src, phase, final, err);

	if (r)
		return r;
	sender_result(src->s->sender, &result);
	if (phase == SENDER_FIRST)
		take_scanned(src, &result);

	struct tern_round_stats round = {
		.round = ++src->round,
		.final = final,
		.duration_ns = now_ns() - begin,
		.dirty_pages = src->remaining_pages,
		.normal_pages = result.normal_pages,
		.zero_pages = result.zero_pages,
		.sent_bytes = result.bytes,
	};

	if (result.bytes >= BANDWIDTH_MIN_BYTES || !src->bandwidth)
		src->bandwidth = per_second(result.bytes, round.duration_ns);
	session_add_round(src->s, &round);
	return send_round_message(src, &round, err);
}

/* Slow the guest, or let go of it. */
static void set_throttle(struct source *src, unsigned percent)
{
	struct tern_session *s = src->s;

	src->throttle.percent = percent;
	monitor_lock(&s->mon);
	s->stats.throttle_percent = percent;
	monitor_unlock(&s->mon);
	int r = s->vm.throttle(s->vm_opaque, percent);

	if (r >= 0)
		return;
	struct tern_error err;

	error_clear(&err);
	error_session(&err, r, "the VMM could not slow its guest by %u %%: %s", percent,
		      error_name(r));
	session_event(s, TERN_EVENT_WARNING, &err);
}

void source_unthrottle(struct source *src)
{
	if (src->throttle.percent)
		set_throttle(src, 0);
}

/* @dirty_bytes were written since the last look: does the guest have to be slowed? */
static void look_at_throttle(struct source *src, uint64_t dirty_bytes)
{
	struct tern_session *s = src->s;
	const struct throttle_config config = {
		.trigger = (unsigned)session_param(s, TERN_PARAM_THROTTLE_TRIGGER),
		.initial = (unsigned)session_param(s, TERN_PARAM_THROTTLE_INITIAL),
		.increment = (unsigned)session_param(s, TERN_PARAM_THROTTLE_INCREMENT),
		.max = (unsigned)session_param(s, TERN_PARAM_THROTTLE_MAX),
	};
	unsigned before = src->throttle.percent;

	if (!s->vm.throttle || !session_param(s, TERN_PARAM_AUTO_CONVERGE))
		return;
	unsigned percent = throttle_look(&src->throttle, &config, now_ns(), dirty_bytes,
					 sender_bytes(s->sender));

	if (percent != before)
		set_throttle(src, percent);
}

/* Auto-converge was asked for, and this VMM cannot do it: say so. */
static void check_throttle(struct source *src)
{
	struct tern_session *s = src->s;
	struct tern_error err;

	if (s->vm.throttle || !session_param(s, TERN_PARAM_AUTO_CONVERGE))
		return;
	error_clear(&err);
	error_session(&err, -EOPNOTSUPP,
		      "auto-converge is on, and this VMM has no throttle(): its guest is not slowed; "
		      "let the migration time out, or change over to postcopy, if it does not end");
	session_event(s, TERN_EVENT_WARNING, &err);
}

/* How many pages the last SYNC left to send. */
static void take_remaining(struct source *src)
{
	struct sender_result result;

	sender_result(src->s->sender, &result);
	src->remaining_pages = result.dirty_pages;
}

/* Which pages were written since the last look, and what that means. */
static int sync(struct source *src, struct converge *c, bool *done, struct tern_error *err)
{
	struct tern_session *s = src->s;
	uint64_t since = src->last_sync_ns;
	int r = source_phase(src, SENDER_SYNC, false, err);

	if (r)
		return r;
	take_remaining(src);
	src->last_sync_ns = now_ns();

	uint64_t bytes = src->remaining_pages * TERN_PAGE_SIZE;
	uint64_t limit = session_param(s, TERN_PARAM_DOWNTIME_LIMIT_MS) * 1000000u;

	*done = converge_decide(c, bytes, src->bandwidth, limit);
	monitor_lock(&s->mon);
	s->stats.remaining_bytes = bytes;
	s->stats.bandwidth = src->bandwidth;
	s->stats.dirty_rate = per_second(bytes, src->last_sync_ns - since);
	s->stats.expected_downtime_ns = c->expected_ns;
	monitor_unlock(&s->mon);
	if (!*done)
		look_at_throttle(src, bytes);
	session_event(s, TERN_EVENT_ROUND, NULL);
	return 0;
}

/*
 * Wait for SWITCHOVER_ACK, if it is asked for, but not beyond @deadline.  0: has come, or is
 * not needed; -EAGAIN: not yet; or another -errno with *err.
 */
static int await_ack(struct tern_session *s, uint64_t deadline, struct tern_error *err)
{
	int r = 0;

	if (!session_param(s, TERN_PARAM_SWITCHOVER_ACK))
		return 0;
	monitor_lock(&s->mon);
	while (!r && !s->link.acked) {
		r = session_check(s, err);
		if (!r && now_ns() >= deadline)
			r = -EAGAIN;
		else if (!r)
			session_wait_until(s, deadline);
	}
	monitor_unlock(&s->mon);
	return r;
}

/* Is it time for postcopy, whether the rest fits or not? */
static bool enough_rounds(const struct source *src)
{
	const struct tern_session *s = src->s;

	uint64_t rounds = session_param(s, TERN_PARAM_PRECOPY_ROUNDS);

	if (session_param(s, TERN_PARAM_MODE) != TERN_MODE_HYBRID)
		return false;
	monitor_lock(&src->s->mon);
	bool requested = s->postcopy_requested;

	monitor_unlock(&src->s->mon);
	return requested || (rounds && src->round >= rounds);
}

int precopy_run(struct source *src, struct tern_error *err)
{
	bool done = session_param(src->s, TERN_PARAM_MODE) == TERN_MODE_POSTCOPY;
	struct converge c;
	int r = 0;

	monitor_lock(&src->s->mon);
	src->s->stats.remaining_bytes = src->total_pages * TERN_PAGE_SIZE;
	monitor_unlock(&src->s->mon);
	converge_init(&c);
	src->last_sync_ns = now_ns();
	throttle_begin(&src->throttle, src->last_sync_ns);
	if (!done)
		check_throttle(src);
	while (!r && !done) {
		r = source_send_round(src, false, err);
		if (!r && enough_rounds(src))
			break;
		if (!r)
			r = sync(src, &c, &done, err);
		if (r || !done)
			continue;
		/* Not ready there: go on with rounds, but not in a tight loop. */
		r = await_ack(src->s, deadline_ns(ACK_LOOK_MS), err);
		done = r != -EAGAIN;
		r = done ? r : 0;
	}
	return r ? r : await_ack(src->s, NEVER_NS, err);
}
