/* SPDX-License-Identifier: BSD-2-Clause */
#include "source.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "blockers.h"
#include "error.h"
#include "kvm_vm.h"
#include "marks.h"
#include "pusher.h"

/* What can fail without a peer comes first: the guest and the peer see nothing of it. */
static int prepare_local(struct source *src, struct tern_error *err)
{
	struct tern_session *s = src->s;
	int r = region_bitmaps_alloc(&s->regions, err);

	src->total_pages = region_bytes(&s->regions) / TERN_PAGE_SIZE;
	if (!r)
		r = populated_init(&src->populated, &s->regions, err);
	if (r)
		return r;
	src->has_populated = true;
	if (session_param(s, TERN_PARAM_MODE) == TERN_MODE_POSTCOPY)
		return 0; /* no round, no log */
	r = dirty_init(&src->dirty,
		       (enum tern_dirty_provider)session_param(s, TERN_PARAM_DIRTY_PROVIDER),
		       s->has_user_dirty ? &s->user_dirty : NULL, s->dirty_opaque, s->kvm,
		       &s->regions, &src->populated, err);
	if (r)
		return r;
	src->has_dirty = true;
	return 0;
}

/* A worker failed. */
static void on_worker_failure(void *opaque, const struct tern_error *why)
{
	session_worker_failed(opaque, why);
}

int source_start_workers(struct source *src, struct tern_error *err)
{
	struct tern_session *s = src->s;
	struct sender_config config = {
		.mon = &s->mon,
		.regions = &s->regions,
		.zero = s->zero,
		.populated = &src->populated,
		.dirty = &src->dirty,
		.limiter = &s->limiter,
		.stripe_bytes = session_param(s, TERN_PARAM_STRIPE_BYTES),
		.chunk_bytes = session_param(s, TERN_PARAM_CHUNK_BYTES),
		.fail = on_worker_failure,
		.run_on = session_run_on,
		.opaque = s,
	};
	struct sender *sender;
	int r = sender_start(&config, s->channels, session_bulk_channels(s), &sender, err);

	if (r)
		return r;
	monitor_lock(&s->mon);
	s->sender = sender;
	s->stats.dirty_provider = src->dirty.kind;
	monitor_unlock(&s->mon);
	return 0;
}

static int start_tracking(struct source *src, struct tern_error *err)
{
	if (!src->has_dirty)
		return 0;
	int r = src->dirty.ops.start(src->dirty.opaque);

	if (r)
		return dirty_failed(&src->dirty, r, "start dirty tracking", err);
	src->tracking = true;
	return 0;
}

/* The guest runs on here. */
static void resume_guest(struct source *src)
{
	struct tern_session *s = src->s;

	source_unthrottle(src);
	if (!src->paused || !s->vm.resume)
		return;
	session_ask(s);
	int r = s->vm.resume(s->vm_opaque);

	if (r < 0) {
		struct tern_error err;

		error_clear(&err);
		error_session(&err, r, "the VMM could not resume the source guest: %s",
			      session_reason(s, r));
		session_event(s, TERN_EVENT_WARNING, &err);
	}
}

/* Failed before GO: the guest runs on here, the peer is told why (invariant 7). */
static void back_out(struct source *src, const struct tern_error *err)
{
	struct tern_session *s = src->s;

	resume_guest(src);
	session_settle(s, err);
	monitor_lock(&s->mon);
	bool cancelled = s->cancel_requested;
	struct tern_error why = s->error;
	bool tell = s->link.running && !s->link.dead;

	monitor_unlock(&s->mon);
	if (cancelled)
		session_set_state(s, TERN_STATE_CANCELLING);
	if (tell && cancelled)
		link_send_empty(&s->link, WIRE_CANCEL, NULL);
	else if (tell)
		link_send_error(&s->link, &why, false);
	if (tell)
		link_drain(&s->link, SESSION_GRACE_MS);
	session_notify(s, TERN_NOTICE_FAILED, NULL);
	session_end(s, cancelled ? TERN_STATE_CANCELLED : TERN_STATE_FAILED, TERN_OUTCOME_SOURCE);
}

/* Failed after GO: the source never resumes by itself (invariant 1). */
static void stay_paused(struct source *src, const struct tern_error *err)
{
	struct tern_session *s = src->s;
	struct tern_error why;
	enum tern_outcome outcome = TERN_OUTCOME_UNKNOWN;

	error_clear(&why);
	monitor_lock(&s->mon);
	if (s->link.peer_error && !s->link.peer_started)
		outcome = TERN_OUTCOME_NEITHER;
	monitor_unlock(&s->mon);
	if (outcome == TERN_OUTCOME_NEITHER)
		error_session(&why, err->code,
			      "%s; it does not run the guest, and this side stays paused: it may be "
			      "resumed here",
			      err->message);
	else
		error_session(&why, err->code ? err->code : -EIO,
			      "outcome unknown: GO was sent to %s and no answer came (%s); the "
			      "source guest stays paused: see whether it runs at the destination, "
			      "and resume it here only if it does not and never will",
			      s->uri_text, err->message);
	monitor_lock(&s->mon);
	s->error = why; /* replaces what the channels met meanwhile */
	s->error.phase = s->state;
	monitor_unlock(&s->mon);
	session_notify(s, TERN_NOTICE_FAILED, NULL);
	session_end(s, TERN_STATE_FAILED, outcome);
}

static uint64_t overhead_bytes(const struct source *src)
{
	const struct tern_session *s = src->s;
	const struct marks *marks = s->kvm ? atomic_load(&s->kvm->marks) : NULL;

	return sizeof(*s) + region_overhead_bytes(&s->regions) +
	       sender_overhead_bytes(s->sender) +
	       (s->pusher ? pusher_overhead_bytes(s->pusher) : 0) +
	       (marks ? marks_overhead_bytes(marks) : 0) + LINK_QUEUE * sizeof(struct wire_msg) +
	       s->regions.nr * (sizeof(int) + sizeof(bool)) +
	       s->nr_rounds * sizeof(struct tern_round_stats);
}

void source_stop_workers(struct source *src)
{
	struct tern_session *s = src->s;

	monitor_lock(&s->mon);
	struct sender *sender = s->sender;

	if (sender) {
		s->stats.sent_bytes = sender_bytes(sender);
		s->stats.engine_bytes = overhead_bytes(src);
		for (unsigned i = 0; i < session_bulk_channels(s); i++)
			sender_channel_stats(sender, i, &s->final_channels[i]);
		uint64_t first = session_first_byte_ns(s);

		if (first && !s->stats.first_byte_ns)
			s->stats.first_byte_ns = first - s->times.begin;
	}
	s->sender = NULL;
	monitor_unlock(&s->mon);
	sender_stop(&sender);
}

/* Track no more, if it was tracked. */
static void stop_tracking(struct source *src)
{
	if (src->tracking)
		src->dirty.ops.stop(src->dirty.opaque);
	if (src->has_dirty)
		dirty_fini(&src->dirty);
	if (src->has_populated)
		populated_fini(&src->populated);
	src->tracking = src->has_dirty = src->has_populated = false;
}

/* Stop threads and free what the migration made. */
static void tear_down(struct source *src)
{
	struct tern_session *s = src->s;

	if (s->link.running)
		s->conn->ops->abort(s->conn);
	source_stop_workers(src);
	session_close_link(s);
	monitor_lock(&s->mon);
	struct pusher *pusher = s->pusher;

	if (pusher && s->postcopy_stats)
		session_postcopy_now(s, s->postcopy_stats);
	s->pusher = NULL;
	monitor_unlock(&s->mon);
	pusher_delete(&pusher);
	/* A guest that has gone may run at a destination on this very host. */
	if (s->outcome != TERN_OUTCOME_DESTINATION || !src->dirty.stop_can_wait)
		stop_tracking(src);
	blockers_end(s->blockers);
	monitor_lock(&s->mon);
	s->ended = true;
	monitor_broadcast(&s->mon);
	monitor_unlock(&s->mon);
}

/* GO was sent, and the destination said that it does not run the guest. */
static bool peer_cannot_run(struct tern_session *s)
{
	monitor_lock(&s->mon);
	bool said = s->link.peer_error && !s->link.peer_started;

	monitor_unlock(&s->mon);
	return said;
}

/* All is at the destination, and the guest runs there. */
static void complete(struct tern_session *s)
{
	session_notify(s, TERN_NOTICE_DONE, NULL);
	session_end(s, TERN_STATE_COMPLETED, TERN_OUTCOME_DESTINATION);
}

int source_new(struct tern_session *s)
{
	s->source = calloc(1, sizeof(*s->source));
	if (!s->source)
		return -ENOMEM;
	s->source->s = s;
	return 0;
}

void source_delete(struct tern_session *s)
{
	if (!s->source)
		return;
	stop_tracking(s->source);
	free(s->source);
	s->source = NULL;
}

void source_run(struct tern_session *s)
{
	struct source *src = s->source;
	struct tern_error err;

	error_clear(&err);
	int r = session_notify(s, TERN_NOTICE_SETUP, &err);

	if (!r)
		r = prepare_local(src, &err);
	if (!r)
		r = handshake_source_begin(s, &err);
	if (!r) /* while the destination compares the regions */
		r = source_start_workers(src, &err);
	if (!r)
		r = start_tracking(src, &err);
	if (!r)
		r = handshake_source_end(s, &err);
	if (!r) {
		session_set_state(s, TERN_STATE_ACTIVE);
		r = precopy_run(src, &err);
	}
	if (!r)
		r = switchover_run(src, &err);
	if (s->point_of_no_return && s->postcopy && !(r && peer_cannot_run(s))) {
		struct tern_error lost = err;

		error_clear(&err);
		r = postcopy_run(src, r ? &lost : NULL, &err);
		if (r) {
			session_notify(s, TERN_NOTICE_FAILED, NULL);
			session_end(s, TERN_STATE_FAILED,
				    src->started ? TERN_OUTCOME_DESTINATION :
						  TERN_OUTCOME_UNKNOWN);
			tear_down(src);
			return;
		}
	}
	if (!r)
		complete(s);
	else if (s->point_of_no_return)
		stay_paused(src, &err);
	else
		back_out(src, &err);
	tear_down(src);
}
