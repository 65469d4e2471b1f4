/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * The connection manager: waiting for its events, resolving, connecting.
 *
 * An event is copied and acknowledged at once, because an identifier cannot be
 * destroyed or moved to another channel while one of its events is not.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include "error.h"
#include "verbs.h"

/* CM rejection reasons (InfiniBand architecture, table of REJ reasons). */
#define REJ_CONSUMER_DEFINED 28
/*
 * A request that gets no answer is sent so many times more, at intervals of 4.096 us * 2^t.
 * (Not 7: rxe takes that for "for ever".)
 */
#define CONNECT_RETRIES 6
#define RNR_RETRIES 7 /* for ever; credits make it rare */
#define ACK_TIMEOUT_MIN 14 /* 67 ms: a peer may be as slow as that */
#define ACK_TIMEOUT_MAX 31
/*
 * How long the answer to a connection request may take at least.  The kernel repeats a
 * request or answer that was lost after 4.6 s (CMA_CM_RESPONSE_TIMEOUT and twice
 * CMA_IBOE_PACKET_LIFETIME, drivers/infiniband/core/cma.c), and no program can change
 * that: with a shorter limit one datagram that was lost would be a failure.
 */
#define ANSWER_MS 10000u

/*
 * How long the kernel looks for an address before it is asked again.  It looks when it is
 * asked, when a neighbour answers, and at the end of this time (addr_resolve() in
 * drivers/infiniband/core/addr.c); an answer that comes while it still notes the request
 * goes unnoticed until then.
 */
#define ADDR_TRY_MS 1000

/* CLOCK_MONOTONIC in nanoseconds. */
uint64_t verbs_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* The same in milliseconds. */
int64_t verbs_now_ms(void)
{
	return (int64_t)(verbs_now_ns() / 1000000u);
}

/* @timeout_ms from now; -1 (never) if it is negative. */
int64_t verbs_deadline(int timeout_ms)
{
	return timeout_ms < 0 ? -1 : verbs_now_ms() + timeout_ms;
}

unsigned verbs_cm_patience_ms(const struct transport_env *env)
{
	unsigned least = env->answer_ms ? env->answer_ms : ANSWER_MS;

	return env->peer_timeout_ms < least ? least : env->peer_timeout_ms;
}

/* Milliseconds until @deadline as poll() wants them. */
int verbs_remaining(int64_t deadline)
{
	int64_t left;

	if (deadline < 0)
		return -1;
	left = deadline - verbs_now_ms();
	return left <= 0 ? 0 : left > 3600000 ? 3600000 : (int)left;
}

/* @deadline_ms for pthread_cond_timedwait(); never is an hour from now. */
void verbs_timespec(int64_t deadline_ms, struct timespec *out)
{
	if (deadline_ms < 0)
		deadline_ms = verbs_now_ms() + 3600000;
	out->tv_sec = deadline_ms / 1000;
	out->tv_nsec = deadline_ms % 1000 * 1000000;
}

/* A condition whose waits are measured by CLOCK_MONOTONIC. */
void verbs_cond_init(pthread_cond_t *cond)
{
	pthread_condattr_t attr;

	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(cond, &attr);
	pthread_condattr_destroy(&attr);
}

/* "192.0.2.1:4444", also if it is IPv4 mapped to IPv6, or "[::1]:4444". */
void verbs_address_text(const struct sockaddr *sa, char *buf, size_t size)
{
	const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)sa;
	char host[INET6_ADDRSTRLEN] = "?";

	if (sa->sa_family == AF_INET6 && IN6_IS_ADDR_V4MAPPED(&in6->sin6_addr)) {
		inet_ntop(AF_INET, &in6->sin6_addr.s6_addr[12], host, sizeof(host));
		snprintf(buf, size, "%s:%u", host, ntohs(in6->sin6_port));
	} else if (sa->sa_family == AF_INET6) {
		inet_ntop(AF_INET6, &in6->sin6_addr, host, sizeof(host));
		snprintf(buf, size, "[%s]:%u", host, ntohs(in6->sin6_port));
	} else {
		const struct sockaddr_in *in = (const struct sockaddr_in *)sa;

		inet_ntop(AF_INET, &in->sin_addr, host, sizeof(host));
		snprintf(buf, size, "%s:%u", host, ntohs(in->sin_port));
	}
}

int verbs_cm_channel(struct rdma_event_channel **out, struct tern_error *err)
{
	struct rdma_event_channel *cm = rdma_create_event_channel();
	int rc;

	if (!cm) {
		rc = errno ? -errno : -ENODEV;
		return error_session(err, rc,
				     "Opening the RDMA connection manager failed: %s; load the "
				     "module rdma_ucm and check that an RDMA device is there (tern "
				     "info), or use tcp:",
				     error_name(rc));
	}
	if (fcntl(cm->fd, F_SETFL, fcntl(cm->fd, F_GETFL) | O_NONBLOCK) < 0) {
		rc = -errno;
		rdma_destroy_event_channel(cm);
		return error_session(err, rc, "Preparing the RDMA connection manager failed: %s",
				     error_name(rc));
	}
	*out = cm;
	return 0;
}

/* Copy the event that is there.  0, or -EAGAIN or another -errno. */
static int cm_take(struct rdma_event_channel *cm, struct cm_event *ev)
{
	struct rdma_cm_event *e;
	size_t n;

	if (rdma_get_cm_event(cm, &e))
		return errno ? -errno : -EIO;
	memset(ev, 0, sizeof(*ev));
	ev->type = e->event;
	ev->status = e->status;
	ev->id = e->id;
	n = e->param.conn.private_data ? e->param.conn.private_data_len : 0;
	if (e->event == RDMA_CM_EVENT_CONNECT_REQUEST || e->event == RDMA_CM_EVENT_ESTABLISHED ||
	    e->event == RDMA_CM_EVENT_REJECTED) {
		ev->private_len = n < sizeof(ev->private_data) ? n : sizeof(ev->private_data);
		if (ev->private_len)
			memcpy(ev->private_data, e->param.conn.private_data, ev->private_len);
	}
	rdma_ack_cm_event(e);
	return 0;
}

int verbs_cm_next(struct rdma_event_channel *cm, int cancel_fd, int64_t deadline,
		  struct cm_event *ev)
{
	for (;;) {
		struct pollfd p[2] = {
			{ .fd = cancel_fd, .events = POLLIN },
			{ .fd = cm->fd, .events = POLLIN },
		};
		int n = poll(p, 2, verbs_remaining(deadline));
		int rc;

		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0 && p[0].revents)
			return -ECANCELED;
		rc = cm_take(cm, ev);
		if (rc != -EAGAIN && rc != -EINTR)
			return rc;
		if (deadline >= 0 && !verbs_remaining(deadline))
			return -ETIMEDOUT;
	}
}

/* The sentence for an event that was not the one waited for. */
static int cm_unexpected(const struct cm_event *ev, const char *peer, struct tern_error *err)
{
	int code = ev->status < 0 ? ev->status : -EIO;

	switch (ev->type) {
	case RDMA_CM_EVENT_ADDR_ERROR:
		return error_session(err, code,
				     "The address %s is not reachable through an RDMA device: %s; "
				     "check the address and that a device serves that network "
				     "(rdma link), or use tcp:",
				     peer, error_name(code));
	case RDMA_CM_EVENT_ROUTE_ERROR:
		return error_session(
			err, code,
			"No RDMA route to %s was found: %s; check link and GIDs of the "
			"device, or use tcp:",
			peer, error_name(code));
	case RDMA_CM_EVENT_UNREACHABLE:
		return error_session(err, ev->status == -ETIMEDOUT ? -ETIMEDOUT : -EHOSTUNREACH,
				     "Connecting to %s over RDMA failed: the host did not answer; "
				     "check that it is up and UDP port 4791 is open (RoCE)",
				     peer);
	case RDMA_CM_EVENT_DEVICE_REMOVAL:
		return error_session(err, -ENODEV,
				     "The RDMA device was removed while connecting to %s", peer);
	case RDMA_CM_EVENT_DISCONNECTED:
		return error_session(
			err, -ECONNRESET,
			"The peer %s closed an RDMA connection while others were being "
			"made; look there for the reason",
			peer);
	default:
		return error_session(err, code, "Connecting to %s over RDMA failed: %s (%s)", peer,
				     rdma_event_str(ev->type), error_name(code));
	}
}

/* A rejection; our peer's own says why. */
static int cm_rejected(const struct cm_event *ev, const char *peer, struct tern_error *err)
{
	struct refusal r;

	if (ev->status == REJ_INVALID_SERVICE_ID)
		return error_session(
			err, -ECONNREFUSED,
			"Connecting to %s over RDMA failed: nothing is listening there; "
			"start the destination first, and use rdma: on both sides",
			peer);
	if (!refusal_get(ev->private_data, ev->private_len, &r))
		return error_session(err, -ECONNREFUSED,
				     "The peer %s rejected the RDMA connection (reason %d); check "
				     "that a tern destination listens there",
				     peer, ev->status);
	switch (r.code) {
	case REFUSAL_VERSION:
		return error_session(err, -EPROTONOSUPPORT,
				     "The peer %s speaks version %u of the RDMA framing, this side "
				     "version %u; use the same release on both sides",
				     peer, r.value, GREETING_VERSION);
	case REFUSAL_SESSION:
		return error_session(err, -ENOENT,
				     "The peer %s does not know the session of a data channel; it "
				     "may have ended there",
				     peer);
	case REFUSAL_COUNT:
		return error_session(err, -EPROTO,
				     "The peer %s refused a data channel: it expects %u channels",
				     peer, r.value);
	case REFUSAL_PIECE:
		return error_session(err, -EPROTO,
				     "The peer %s registers memory in pieces of %u bytes, this "
				     "side of %u; use the same release on both sides",
				     peer, r.value, (unsigned)PIECE_BYTES);
	case REFUSAL_GREETING:
		return error_session(err, -EPROTO,
				     "The peer %s found impossible values in the greeting of this "
				     "side; use the same release on both sides",
				     peer);
	case REFUSAL_TAKEN:
		return error_session(err, -EBUSY, "The peer %s has that data channel already",
				     peer);
	default:
		return error_session(
			err, -EBUSY,
			"The peer %s has no room for another connection, or its device "
			"gave no queues for it (code %u); look there for the reason",
			peer, r.code);
	}
}

int verbs_cm_wrong(const struct cm_event *ev, const char *peer, struct tern_error *err)
{
	return ev->type == RDMA_CM_EVENT_REJECTED ? cm_rejected(ev, peer, err)
						  : cm_unexpected(ev, peer, err);
}

int verbs_cm_wait(struct rdma_event_channel *cm, const char *peer, int cancel_fd, int64_t deadline,
		  struct cm_event *ev, struct tern_error *err)
{
	int rc = verbs_cm_next(cm, cancel_fd, deadline, ev);

	if (!rc)
		return 0;
	if (rc == -ECANCELED)
		return error_session(err, rc, "Connecting to %s was cancelled", peer);
	if (rc == -ETIMEDOUT)
		return error_session(err, rc,
				     "Connecting to %s over RDMA failed: no answer in time; check "
				     "that the host is up and UDP port 4791 is open (RoCE)",
				     peer);
	return error_session(err, rc, "Waiting for the RDMA connection manager failed: %s",
			     error_name(rc));
}

/* Wait for @want.  0 with *ev, or -errno with *err. */
static int cm_expect(struct rdma_event_channel *cm, enum rdma_cm_event_type want, const char *peer,
		     int cancel_fd, int64_t deadline, struct cm_event *ev, struct tern_error *err)
{
	int rc = verbs_cm_wait(cm, peer, cancel_fd, deadline, ev, err);

	if (rc)
		return rc;
	return ev->type == want ? 0 : verbs_cm_wrong(ev, peer, err);
}

void verbs_cm_ack_timeout(struct rdma_cm_id *id, unsigned peer_timeout_ms)
{
	uint64_t share_ns = peer_timeout_ms * 600000ull / (CONNECT_RETRIES + 1);
	uint8_t t = ACK_TIMEOUT_MIN;

	while (t < ACK_TIMEOUT_MAX && 4096ull << (t + 1) <= share_ns)
		t++;
	/* Without it the kernel's own time is good enough. */
	(void)rdma_set_option(id, RDMA_OPTION_ID, RDMA_OPTION_ID_ACK_TIMEOUT, &t, sizeof(t));
}

int verbs_cm_resolve_addr(struct rdma_cm_id *id, struct sockaddr *src, struct sockaddr *dst,
			  const char *peer, int64_t deadline, struct tern_error *err)
{
	struct cm_event ev = { .type = RDMA_CM_EVENT_ADDR_ERROR };
	int left = verbs_remaining(deadline);

	if (left < 0 || left > ADDR_TRY_MS)
		left = ADDR_TRY_MS;
	if (!rdma_resolve_addr(id, src, dst, left))
		return 0;
	ev.status = -errno;
	return cm_unexpected(&ev, peer, err);
}

bool verbs_cm_addr_again(const struct cm_event *ev, int64_t deadline)
{
	return ev->type == RDMA_CM_EVENT_ADDR_ERROR && ev->status == -ETIMEDOUT &&
	       verbs_remaining(deadline) != 0;
}

int verbs_cm_resolve_route(struct rdma_cm_id *id, const char *peer, int64_t deadline,
			   struct tern_error *err)
{
	struct cm_event ev = { .type = RDMA_CM_EVENT_ROUTE_ERROR };

	if (!rdma_resolve_route(id, verbs_remaining(deadline)))
		return 0;
	ev.status = -errno;
	return cm_unexpected(&ev, peer, err);
}

int verbs_cm_resolve(struct rdma_event_channel *cm, struct rdma_cm_id *id, struct sockaddr *src,
		     struct sockaddr *dst, const char *peer, int cancel_fd, int64_t deadline,
		     struct tern_error *err)
{
	struct cm_event ev;
	int rc;

	do {
		rc = verbs_cm_resolve_addr(id, src, dst, peer, deadline, err);
		if (!rc)
			rc = verbs_cm_wait(cm, peer, cancel_fd, deadline, &ev, err);
	} while (!rc && verbs_cm_addr_again(&ev, deadline));
	if (!rc && ev.type != RDMA_CM_EVENT_ADDR_RESOLVED)
		rc = cm_unexpected(&ev, peer, err);
	if (!rc)
		rc = verbs_cm_resolve_route(id, peer, deadline, err);
	if (!rc)
		rc = cm_expect(cm, RDMA_CM_EVENT_ROUTE_RESOLVED, peer, cancel_fd, deadline, &ev,
			       err);
	return rc;
}

/* The greeting of the peer that accepted ours.  0 or -EPROTO… with *err. */
static int answer_check(const struct greeting *hello, const struct greeting *answer,
			const char *peer, struct tern_error *err)
{
	char why[128];

	if (answer->version != GREETING_VERSION)
		return error_session(err, -EPROTONOSUPPORT,
				     "The peer %s speaks version %u of the RDMA framing, this side "
				     "version %u; use the same release on both sides",
				     peer, answer->version, GREETING_VERSION);
	if (greeting_check(answer, why, sizeof(why)))
		return error_session(err, -EPROTO, "The greeting of the peer %s is impossible: %s",
				     peer, why);
	if (answer->kind != hello->kind)
		return error_session(err, -EPROTO,
				     "The peer %s answered a greeting of kind %u with kind %u",
				     peer, hello->kind, answer->kind);
	if (answer->piece_bytes != hello->piece_bytes)
		return error_session(err, -EPROTO,
				     "The peer %s registers memory in pieces of %u bytes, this "
				     "side of %u; use the same release on both sides",
				     peer, answer->piece_bytes, hello->piece_bytes);
	if (answer->flags & ~hello->flags)
		return error_session(err, -EPROTO,
				     "The peer %s wants features 0x%x of the RDMA framing, this "
				     "side offered 0x%x; use the same release on both sides",
				     peer, answer->flags, hello->flags);
	return 0;
}

int verbs_cm_request(struct rdma_cm_id *id, const struct greeting *hello, const char *peer,
		     struct tern_error *err)
{
	uint8_t buf[GREETING_LEN];
	struct rdma_conn_param param = {
		.private_data = buf,
		.private_data_len = sizeof(buf),
		.retry_count = CONNECT_RETRIES,
		.rnr_retry_count = RNR_RETRIES,
	};

	greeting_put(buf, hello);
	if (!rdma_connect(id, &param))
		return 0;
	return error_session(err, -errno, "Connecting to %s over RDMA failed: %s", peer,
			     error_name(-errno));
}

int verbs_cm_answer(const struct cm_event *ev, const struct greeting *hello, const char *peer,
		    struct greeting *answer, struct tern_error *err)
{
	if (!greeting_get(ev->private_data, ev->private_len, answer))
		return error_session(
			err, -EPROTO,
			"The peer %s accepted the RDMA connection without a greeting: it "
			"is no tern destination",
			peer);
	return answer_check(hello, answer, peer, err);
}

int verbs_cm_await_answer(struct rdma_event_channel *cm, const struct greeting *hello,
			  const char *peer, int cancel_fd, int64_t deadline,
			  struct greeting *answer, struct tern_error *err)
{
	struct cm_event ev;
	int rc = cm_expect(cm, RDMA_CM_EVENT_ESTABLISHED, peer, cancel_fd, deadline, &ev, err);

	return rc ? rc : verbs_cm_answer(&ev, hello, peer, answer, err);
}
