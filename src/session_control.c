/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What a VMM can say to a session that runs, and who else is told about it: the
 * switchover's conditions, and notifiers.
 *
 * The functions here leave a note under the session's lock and wake the session's
 * thread, which looks at it where it matters (precopy.c, switchover.c, session.c).
 */
#include "session.h"

#include <errno.h>
#include <stdio.h>

#include "error.h"
#include "state.h"

int tern_session_start_postcopy(struct tern_session *s)
{
	int r = 0;

	if (s->role != TERN_SOURCE || session_param(s, TERN_PARAM_MODE) != TERN_MODE_HYBRID)
		return -EINVAL;
	monitor_lock(&s->mon);
	if (!s->started || state_ended(s->state))
		r = -ESRCH;
	else if (s->state != TERN_STATE_SETUP && s->state != TERN_STATE_ACTIVE)
		r = -EBUSY;
	else
		s->postcopy_requested = true;
	monitor_broadcast(&s->mon);
	monitor_unlock(&s->mon);
	return r;
}

int tern_session_continue(struct tern_session *s)
{
	int r = 0;

	if (s->role != TERN_SOURCE)
		return -EINVAL;
	monitor_lock(&s->mon);
	/* What has begun to end may have given the guest back already: see hold(). */
	if (s->state != TERN_STATE_PRE_SWITCHOVER || session_check(s, NULL))
		r = -EBUSY;
	else
		s->continue_requested = true;
	monitor_broadcast(&s->mon);
	monitor_unlock(&s->mon);
	return r;
}

int tern_session_switchover_ack(struct tern_session *s)
{
	if (s->role != TERN_DESTINATION)
		return -EINVAL;
	monitor_lock(&s->mon);
	s->ack_given = true;
	monitor_broadcast(&s->mon);
	monitor_unlock(&s->mon);
	return 0;
}

int tern_session_add_notifier(struct tern_session *s, tern_notifier_fn *fn, void *opaque)
{
	if (!fn)
		return -EINVAL;
	if (session_is_started(s))
		return -EBUSY;
	if (s->nr_notifiers == TERN_NOTIFIERS_MAX)
		return -ENOSPC;
	s->notifiers[s->nr_notifiers].fn = fn;
	s->notifiers[s->nr_notifiers++].opaque = opaque;
	return 0;
}

void tern_session_resumed_at(struct tern_session *s, uint64_t monotonic_ns)
{
	s->resumed_at_ns = monotonic_ns;
}

void tern_session_explain(struct tern_session *s, const char *reason)
{
	snprintf(s->reason, sizeof(s->reason), "%s", reason ? reason : "");
}

void session_ask(struct tern_session *s)
{
	s->reason[0] = 0;
}

const char *session_reason(const struct tern_session *s, int code)
{
	return s->reason[0] ? s->reason : error_name(code);
}

int session_notify(struct tern_session *s, enum tern_notice notice, struct tern_error *err)
{
	static const char *const names[] = {
		[TERN_NOTICE_SETUP] = "setup",
		[TERN_NOTICE_SWITCHOVER] = "switchover",
		[TERN_NOTICE_DONE] = "done",
		[TERN_NOTICE_FAILED] = "failed",
	};
	bool may_refuse = notice == TERN_NOTICE_SETUP || notice == TERN_NOTICE_SWITCHOVER;

	_Static_assert(sizeof(names) / sizeof(names[0]) == TERN_NOTICE_NR, "one name per notice");
	for (unsigned i = 0; i < s->nr_notifiers; i++) {
		session_ask(s);
		int r = s->notifiers[i].fn(s->notifiers[i].opaque, notice);

		if (r < 0 && may_refuse)
			return error_session(
				err, r,
				"a part of the VMM (notifier %u) refused the %s of the "
				"migration: %s",
				i, names[notice], session_reason(s, r));
	}
	return 0;
}

int tern_session_set_blockers(struct tern_session *s, struct tern_blockers *b)
{
	if (session_is_started(s))
		return -EBUSY;
	s->blockers = b;
	return 0;
}
