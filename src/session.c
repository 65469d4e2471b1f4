/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The public face of a session: configuration, start, cancel, wait; and the small
 * services that both roles use (state, events, first error, waiting for messages).
 */
#define _GNU_SOURCE
#include "session.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "blockers.h"
#include "error.h"
#include "faults.h"
#include "kvm_vm.h"
#include "params.h"
#include "state.h"

int session_new_with(enum tern_role role, struct topology *topology, struct tern_session **out)
{
	if (role != TERN_SOURCE && role != TERN_DESTINATION)
		return -EINVAL;
	struct tern_session *s = calloc(1, sizeof(*s));

	if (!s)
		return -ENOMEM;
	s->role = role;
	for (int i = 0; i < TERN_PARAM_NR; i++)
		s->params[i] = tern_param_info((enum tern_param)i)->def;
	s->zero = zero_ops_best();
	error_clear(&s->error);
	s->topology = topology;
	s->stats.device_node = TERN_NODE_ANY;
	s->postcopy_stats = calloc(1, sizeof(*s->postcopy_stats));
	int r = s->postcopy_stats && role == TERN_SOURCE ? source_new(s) : 0;

	if (!s->postcopy_stats || r) {
		free(s->postcopy_stats);
		free(s);
		return -ENOMEM;
	}
	for (unsigned i = 0; i < TRANSPORT_CHANNELS_MAX; i++) {
		s->final_channels[i].buffer_node = TERN_NODE_ANY;
		s->final_channels[i].completion_vector = -1;
	}
	s->cancel_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (s->cancel_fd < 0) {
		r = -errno;
		goto free_session;
	}
	r = -pthread_mutex_init(&s->event_lock, NULL);
	if (r)
		goto close_cancel;
	r = monitor_init(&s->mon);
	if (r)
		goto fini_event_lock;
	*out = s;
	return 0;

fini_event_lock:
	pthread_mutex_destroy(&s->event_lock);
close_cancel:
	close(s->cancel_fd);
free_session:
	source_delete(s);
	free(s->postcopy_stats);
	free(s);
	return r;
}

int tern_uri_check(const char *text, struct tern_error *err)
{
	struct tern_error scratch;
	const struct transport *ops;
	struct uri uri;

	if (!err)
		err = &scratch;
	error_clear(err);
	int r = uri_parse(text, &uri, err);

	return r ? r : transport_find(&uri, &ops, err);
}

int tern_session_new(enum tern_role role, struct tern_session **out)
{
	struct topology *topology;
	int r = topology_new(&topology);

	if (r)
		return r;
	r = session_new_with(role, topology, out);
	if (r)
		topology_delete(&topology);
	else
		(*out)->owns_topology = true;
	return r;
}

void tern_session_delete(struct tern_session **sp)
{
	if (!sp || !*sp)
		return;
	struct tern_session *s = *sp;

	tern_session_cancel(s);
	monitor_lock(&s->mon);
	s->abandoned = true; /* heeded while postcopy is paused only */
	monitor_broadcast(&s->mon);
	monitor_unlock(&s->mon);
	if (s->started)
		pthread_join(s->thread, NULL);
	session_announce_end(s);
	source_delete(s);
	if (s->listener)
		s->listener->ops->listener_close(s->listener);
	region_list_fini(&s->regions);
	session_place_fini(s);
	kvm_vm_delete(&s->kvm);
	free(s->rounds);
	free(s->postcopy_stats);
	monitor_fini(&s->mon);
	pthread_mutex_destroy(&s->event_lock);
	close(s->cancel_fd);
	if (s->owns_topology)
		topology_delete(&s->topology);
	free(s);
	*sp = NULL;
}

bool session_is_started(struct tern_session *s)
{
	monitor_lock(&s->mon);
	bool started = s->started;

	monitor_unlock(&s->mon);
	return started;
}

int tern_session_set(struct tern_session *s, enum tern_param param, uint64_t value)
{
	int r = param_check(param, value);

	if (r)
		return r;
	if (param != TERN_PARAM_MAX_BANDWIDTH && param != TERN_PARAM_MAX_POSTCOPY_BANDWIDTH &&
	    param != TERN_PARAM_DOWNTIME_LIMIT_MS && param != TERN_PARAM_VCPU_DIRTY_LIMIT &&
	    session_is_started(s))
		return -EBUSY;
	atomic_store(&s->params[param], value);
	if (param == TERN_PARAM_MAX_BANDWIDTH)
		limiter_set(&s->limiter, &s->mon, value);
	if (param == TERN_PARAM_MAX_POSTCOPY_BANDWIDTH)
		limiter_set(&s->postcopy_limiter, &s->mon, value);
	return 0;
}

int tern_session_get(const struct tern_session *s, enum tern_param param, uint64_t *value)
{
	if (!tern_param_info(param))
		return -EINVAL;
	*value = session_param(s, param);
	return 0;
}

int tern_session_add_region(struct tern_session *s, const struct tern_region_desc *desc)
{
	struct tern_error err;

	if (session_is_started(s))
		return -EBUSY;
	error_clear(&err);
	int r = region_add(&s->regions, desc, &err);

	session_set_up(s, &err);
	return r;
}

int tern_session_set_vm_ops(struct tern_session *s, const struct tern_vm_ops *ops, void *opaque)
{
	if (session_is_started(s))
		return -EBUSY;
	s->vm = *ops;
	s->vm_opaque = opaque;
	return 0;
}

int tern_session_set_dirty_ops(struct tern_session *s, const struct tern_dirty_ops *ops,
			       void *opaque)
{
	if (session_is_started(s))
		return -EBUSY;
	s->user_dirty = *ops;
	s->has_user_dirty = true;
	s->dirty_opaque = opaque;
	return 0;
}

int tern_session_set_event_handler(struct tern_session *s, tern_event_fn *fn, void *opaque)
{
	if (session_is_started(s))
		return -EBUSY;
	s->event = fn;
	s->event_opaque = opaque;
	return 0;
}

void session_use_transport(struct tern_session *s, const struct transport *ops)
{
	s->transport = ops;
	s->transport_is_given = true;
}

/* The session thread: all signals are the caller's business, not ours. */
static void *session_main(void *arg)
{
	struct tern_session *s = arg;

	session_home(s);
	pthread_setname_np(pthread_self(), "tern-session"); /* who sees the name sees it at home */
	session_event(s, TERN_EVENT_STATE, NULL);
	if (s->role == TERN_SOURCE)
		source_run(s);
	else
		destination_run(s);
	return NULL;
}

/*
 * The signals to block in the session's threads: all but those that a thread brings on
 * itself.  The kernel kills the process for one of these that is blocked, and the
 * caller's handler (of SIGBUS for poisoned memory, say) would not see it.
 */
static void blocked_signals(sigset_t *set)
{
	static const int own[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS };

	sigfillset(set);
	for (size_t i = 0; i < sizeof(own) / sizeof(own[0]); i++)
		sigdelset(set, own[i]);
}

/* Start the session thread with signals blocked; threads it makes inherit that. */
static int start_thread(struct tern_session *s, struct tern_error *err)
{
	sigset_t all, old;

	blocked_signals(&all);
	monitor_lock(&s->mon);
	s->started = true;
	s->state = TERN_STATE_SETUP;
	pthread_sigmask(SIG_SETMASK, &all, &old);
	int r = pthread_create(&s->thread, NULL, session_main, s);

	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (r) {
		s->started = false;
		s->state = TERN_STATE_NONE;
	}
	monitor_unlock(&s->mon);
	if (r)
		return error_session(err, -r, "cannot start the session's thread: %s",
				     error_name(r));
	return 0;
}

/* What connect and listen have in common: checks, URI, transport. */
static int prepare(struct tern_session *s, enum tern_role role, const char *uri,
		   struct tern_error *err)
{
	if (s->role != role)
		return error_session(err, -EINVAL,
				     "the session's role is %s: it cannot %s",
				     s->role == TERN_SOURCE ? "source" : "destination",
				     role == TERN_SOURCE ? "connect" : "listen");
	if (!s->regions.nr)
		return error_session(err, -EINVAL,
				     "no region to migrate: call tern_session_add_region() first");
	int r = uri_parse(uri, &s->uri, err);

	if (!r && !s->transport_is_given) /* an earlier attempt's may be of another scheme */
		r = transport_choose(&s->uri, s->texts[TERN_TEXT_RDMA_DEVICE], &s->transport,
				     s->transport_why,
				     sizeof(s->transport_why), err);
	if (!r)
		r = session_place_start(s, err);
	if (!r)
		uri_format(&s->uri, s->uri_text, sizeof(s->uri_text));
	return r;
}

/* There is no thread: give back what was taken for it, so that the call may be repeated. */
static void undo_start(struct tern_session *s)
{
	if (s->role == TERN_SOURCE) {
		blockers_end(s->blockers);
		return;
	}
	monitor_lock(&s->mon);
	struct transport_listener *l = s->listener;

	s->listener = NULL;
	monitor_unlock(&s->mon);
	l->ops->listener_close(l);
}

/* Start in @role; the session's error says why not. */
static int start(struct tern_session *s, enum tern_role role, const char *uri)
{
	struct tern_error err;

	if (session_is_started(s))
		return -EBUSY;
	error_clear(&err);
	monitor_lock(&s->mon);
	error_clear(&s->error); /* of an earlier attempt */
	s->times.begin = now_ns();
	monitor_unlock(&s->mon);
	int r = prepare(s, role, uri, &err);

	if (!r && role == TERN_DESTINATION)
		r = destination_listen(s, &err);
	if (!r && role == TERN_SOURCE)
		r = blockers_begin(s->blockers, &err);
	if (!r) {
		r = start_thread(s, &err);
		if (r)
			undo_start(s);
	}
	if (r)
		session_fail(s, &err);
	return r;
}

int tern_session_connect(struct tern_session *s, const char *uri)
{
	return start(s, TERN_SOURCE, uri);
}

int tern_session_listen(struct tern_session *s, const char *uri)
{
	return start(s, TERN_DESTINATION, uri);
}

int tern_session_uri(const struct tern_session *cs, char *buf, size_t size)
{
	struct tern_session *s = (struct tern_session *)cs;

	monitor_lock(&s->mon); /* a recovery changes it */
	int n = snprintf(buf, size, "%s", s->uri_text);

	monitor_unlock(&s->mon);
	return n;
}

int tern_session_cancel(struct tern_session *s)
{
	int r = 0;

	monitor_lock(&s->mon);
	if (!s->started || state_ended(s->state)) {
		r = -ESRCH;
	} else if (s->point_of_no_return) {
		r = -EBUSY;
	} else if (!s->cancel_requested) {
		uint64_t one = 1;

		s->cancel_requested = true;
		if (!s->error.code)
			error_session(&s->error, -ECANCELED, "the migration was cancelled");
		s->error.phase = s->state;
		if (write(s->cancel_fd, &one, sizeof(one)) < 0)
			assert(errno == EAGAIN);
		if (s->listener)
			s->listener->ops->listener_stop(s->listener);
		session_forsake_load(s);
		monitor_broadcast(&s->mon);
	}
	monitor_unlock(&s->mon);
	return r;
}

int tern_session_recover(struct tern_session *s, const char *uri)
{
	const struct transport *ops = NULL;
	struct tern_error err;
	struct uri parsed;
	int r = 0;

	if (s->role != TERN_SOURCE)
		return -EINVAL;
	error_clear(&err);
	if (uri)
		r = uri_parse(uri, &parsed, &err);
	if (uri && !r)
		r = transport_choose(&parsed, s->texts[TERN_TEXT_RDMA_DEVICE], &ops, NULL, 0, &err);
	if (r)
		return r;
	monitor_lock(&s->mon);
	if (s->state != TERN_STATE_POSTCOPY_PAUSED || s->recover_requested) {
		r = -EBUSY;
	} else {
		s->recover_uri = uri ? parsed : s->uri;
		s->recover_transport = uri ? ops : s->transport;
		s->recover_requested = true;
		monitor_broadcast(&s->mon);
	}
	monitor_unlock(&s->mon);
	return r;
}

int tern_session_wait(struct tern_session *s, int timeout_ms)
{
	uint64_t until = deadline_ns(timeout_ms);
	int r;

	monitor_lock(&s->mon);
	while (s->started && !s->ended && monitor_wait(&s->mon, until))
		;
	if (!s->started)
		r = -ESRCH;
	else if (!s->ended)
		r = -EINPROGRESS;
	else if (s->state == TERN_STATE_COMPLETED)
		r = 0;
	else if (s->state == TERN_STATE_CANCELLED)
		r = -ECANCELED;
	else if (s->error.code == -EINPROGRESS) /* a callback's or the peer's; it has ended */
		r = -EIO;
	else
		r = s->error.code;
	monitor_unlock(&s->mon);
	return r;
}

enum tern_state tern_session_state(const struct tern_session *cs)
{
	struct tern_session *s = (struct tern_session *)cs;

	monitor_lock(&s->mon);
	enum tern_state state = s->state;

	monitor_unlock(&s->mon);
	return state;
}

enum tern_outcome tern_session_outcome(const struct tern_session *cs)
{
	struct tern_session *s = (struct tern_session *)cs;

	monitor_lock(&s->mon);
	enum tern_outcome outcome = s->outcome;

	monitor_unlock(&s->mon);
	return outcome;
}

int tern_session_error(const struct tern_session *cs, struct tern_error *out)
{
	struct tern_session *s = (struct tern_session *)cs;

	monitor_lock(&s->mon);
	*out = s->error;
	monitor_unlock(&s->mon);
	return out->code;
}

void session_event(struct tern_session *s, enum tern_event_type type, const struct tern_error *err)
{
	if (!s->event)
		return;
	struct tern_event e = { .type = type, .error = err };

	pthread_mutex_lock(&s->event_lock);
	e.state = tern_session_state(s);
	s->event(s->event_opaque, &e);
	pthread_mutex_unlock(&s->event_lock);
}

void session_set_state(struct tern_session *s, enum tern_state to)
{
	monitor_lock(&s->mon);
	assert(state_allowed(s->role, s->state, to));
	s->state = to;
	monitor_broadcast(&s->mon);
	monitor_unlock(&s->mon);
	session_event(s, TERN_EVENT_STATE, NULL);
}

void session_fail(struct tern_session *s, const struct tern_error *why)
{
	monitor_lock(&s->mon);
	if (!s->error.code) {
		s->error = *why;
		s->error.phase = s->state;
	}
	monitor_broadcast(&s->mon);
	monitor_unlock(&s->mon);
}

void session_forsake_load(void *opaque)
{
	struct tern_session *s = opaque;

	if (!s->loading || s->forsaken)
		return;
	s->forsaken = true;
	faults_forsake(s->faults);
}

void session_set_up(struct tern_session *s, const struct tern_error *result)
{
	monitor_lock(&s->mon);
	s->error = *result;
	s->error.phase = s->state;
	monitor_unlock(&s->mon);
}

void session_worker_failed(struct tern_session *s, const struct tern_error *why)
{
	monitor_lock(&s->mon);
	if (!s->worker_failed_ns) {
		s->worker_failed_ns = now_ns();
		s->worker_error = *why;
		session_forsake_load(s);
	}
	monitor_broadcast(&s->mon);
	monitor_unlock(&s->mon);
}

/* When the failure of a worker begins to count, if one failed. */
static uint64_t grace_end(const struct tern_session *s)
{
	return s->worker_failed_ns ? s->worker_failed_ns + SESSION_GRACE_MS * 1000000ull : NEVER_NS;
}

/* Make the link's or a worker's error the session's, if it has none yet. */
static void adopt_error(struct tern_session *s)
{
	if (s->error.code)
		return;
	if (s->link.dead)
		s->error = s->link.error;
	else if (now_ns() >= grace_end(s))
		s->error = s->worker_error;
	else
		return;
	s->error.phase = s->state;
}

int session_check(struct tern_session *s, struct tern_error *err)
{
	uint64_t limit_ms = session_param(s, TERN_PARAM_TIMEOUT_MS);

	if (s->role == TERN_SOURCE && limit_ms && !s->cancel_requested && !s->error.code &&
	    now_ns() >= s->times.begin + limit_ms * 1000000u) {
		s->cancel_requested = true;
		error_session(&s->error, -ETIMEDOUT,
			      "the migration did not complete within %" PRIu64
			      " ms (timeout) and was cancelled",
			      limit_ms);
		s->error.phase = s->state;
	}
	if (s->role == TERN_SOURCE || s->state != TERN_STATE_SETUP)
		adopt_error(s);
	if (s->error.code && err && !err->code)
		*err = s->error;
	return s->error.code;
}

void session_wait_until(struct tern_session *s, uint64_t deadline)
{
	uint64_t limit_ms = session_param(s, TERN_PARAM_TIMEOUT_MS);

	if (s->role == TERN_SOURCE && limit_ms && !s->point_of_no_return) {
		uint64_t own = s->times.begin + limit_ms * 1000000u;

		deadline = own < deadline ? own : deadline;
	}
	/* A grace that has passed was looked at by session_check(). */
	if (grace_end(s) < deadline && !s->point_of_no_return)
		deadline = grace_end(s);
	monitor_wait(&s->mon, deadline);
}

/* Is SWITCHOVER_ACK to be sent? */
static bool ack_is_due(const struct tern_session *s)
{
	return s->ack_agreed && s->ack_given && !s->ack_sent && s->state == TERN_STATE_ACTIVE;
}

int session_receive(struct tern_session *s, struct wire_msg *msg, uint64_t deadline,
		    const char *what, struct tern_error *err)
{
	int r;

	monitor_lock(&s->mon);
	for (;;) {
		/* What arrived before the link died still counts, but not after a cancel. */
		if (s->cancel_requested && !s->point_of_no_return) {
			r = session_check(s, err);
			break;
		}
		if (ack_is_due(s)) {
			s->ack_sent = true;
			monitor_unlock(&s->mon);
			/* If it fails the link is dead, which is found out below. */
			(void)link_send_empty(&s->link, WIRE_SWITCHOVER_ACK, NULL);
			monitor_lock(&s->mon);
			continue;
		}
		r = link_take(&s->link, msg, err);
		if (r > 0) {
			r = 0;
			break;
		}
		if (!s->point_of_no_return) {
			int checked = session_check(s, err);

			r = checked ? checked : r;
		}
		if (r)
			break;
		if (now_ns() >= deadline) {
			r = error_session(err, -ETIMEDOUT,
					  "message %s did not arrive in time although the link is "
					  "up: the peer does not go on",
					  what);
			break;
		}
		session_wait_until(s, deadline);
	}
	monitor_unlock(&s->mon);
	return r;
}

int session_expect(struct tern_session *s, enum wire_type type, struct wire_msg *msg,
		   uint64_t deadline, struct tern_error *err)
{
	int r = session_receive(s, msg, deadline, wire_type_name(type), err);

	if (!r && msg->type != type)
		r = error_session(err, -EPROTO,
				  "message %s from the peer came where %s was expected",
				  wire_type_name(msg->type), wire_type_name(type));
	return r;
}

/* Could the real reason still be on its way in the control queue? */
static bool may_be_consequence(int code)
{
	return code == -ECANCELED || code == -ECONNRESET || code == -EPIPE || code == -EIO ||
	       code == -ECONNREFUSED || code == -ECONNABORTED || code == -ENOENT;
}

int session_settle(struct tern_session *s, const struct tern_error *err)
{
	uint64_t until = deadline_ns(SESSION_GRACE_MS);

	monitor_lock(&s->mon);
	while (s->link.running && !s->link.dead && !s->error.code &&
	       may_be_consequence(err->code) && monitor_wait(&s->mon, until))
		;
	if (!s->error.code && s->link.running && s->link.dead &&
	    (s->link.peer_error || !err->code || err->code == -ECANCELED ||
	     err->code == -ENOENT)) /* a channel was refused because the session is gone */
		s->error = s->link.error;
	if (!s->error.code)
		s->error = *err;
	if (!s->error.code)
		error_session(&s->error, -ECONNABORTED, "the connection was aborted");
	s->error.phase = s->state;
	int code = s->error.code;

	monitor_unlock(&s->mon);
	return code;
}

void session_end(struct tern_session *s, enum tern_state state, enum tern_outcome outcome)
{
	monitor_lock(&s->mon);
	s->outcome = outcome;
	if (!s->times.end)
		s->times.end = now_ns();
	monitor_unlock(&s->mon);
	session_set_state(s, state);
}

void session_add_round(struct tern_session *s, const struct tern_round_stats *round)
{
	monitor_lock(&s->mon);
	s->stats.nr_rounds = round->round;
	s->stats.normal_pages += round->normal_pages;
	s->stats.zero_pages += round->zero_pages;
	if (s->nr_rounds < SESSION_ROUNDS_MAX) {
		struct tern_round_stats *v =
			realloc(s->rounds, (s->nr_rounds + 1) * sizeof(*s->rounds));

		if (v) {
			s->rounds = v;
			s->rounds[s->nr_rounds++] = *round;
		}
	}
	monitor_unlock(&s->mon);
}
