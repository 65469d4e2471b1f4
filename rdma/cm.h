/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_RDMA_CM_H
#define TERN_RDMA_CM_H

/*
 * The connection manager, which device it uses, and small helpers of time and text.
 *
 * Private to the RDMA transport.
 */

#include <infiniband/verbs.h>
#include <netdb.h>
#include <pthread.h>
#include <rdma/rdma_cma.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <tern/error.h>
#include "greeting.h"

/* cm.c: the connection manager, and small helpers of time and text. */
int64_t verbs_now_ms(void);
uint64_t verbs_now_ns(void);
int64_t verbs_deadline(int timeout_ms);
int verbs_remaining(int64_t deadline);
void verbs_timespec(int64_t deadline_ms, struct timespec *out);
void verbs_cond_init(pthread_cond_t *cond);
void verbs_address_text(const struct sockaddr *sa, char *buf, size_t size);

/* Nothing listens (InfiniBand architecture, table of REJ reasons). */
#define REJ_INVALID_SERVICE_ID 8

/* What verbs_cm_wait() found. */
struct cm_event {
	enum rdma_cm_event_type type;
	int status;
	struct rdma_cm_id *id;
	uint8_t private_data[GREETING_LEN];
	size_t private_len;
};

/*
 * verbs_cm_next - take an event from @cm and acknowledge it.
 *
 * Waits until @deadline.  0; -ETIMEDOUT; -ECANCELED if @cancel_fd is readable.
 */
int verbs_cm_next(struct rdma_event_channel *cm, int cancel_fd, int64_t deadline,
		  struct cm_event *ev);

/* verbs_cm_channel - a non-blocking event channel.  0 or -errno with *err. */
int verbs_cm_channel(struct rdma_event_channel **out, struct tern_error *err);

/* verbs_cm_wait - verbs_cm_next() with a sentence in *err. */
int verbs_cm_wait(struct rdma_event_channel *cm, const char *peer, int cancel_fd, int64_t deadline,
		  struct cm_event *ev, struct tern_error *err);

/* verbs_cm_wrong - the sentence for @ev, which was not the event waited for.  -errno. */
int verbs_cm_wrong(const struct cm_event *ev, const char *peer, struct tern_error *err);

/*
 * verbs_cm_resolve - address and route of @id to @dst, from @src unless that is NULL;
 * it has a device then.  The two steps alone only begin: an event tells the end.
 */
int verbs_cm_resolve(struct rdma_event_channel *cm, struct rdma_cm_id *id, struct sockaddr *src,
		     struct sockaddr *dst, const char *peer, int cancel_fd, int64_t deadline,
		     struct tern_error *err);
/*
 * verbs_cm_addr_again - is @ev a reason to call verbs_cm_resolve_addr() again, before @deadline?
 */
bool verbs_cm_addr_again(const struct cm_event *ev, int64_t deadline);
/*
 * verbs_cm_patience_ms - how long to wait for the answer to a connection request.
 *
 * The peer timeout, but no less than a second try of the kernel's connection manager takes.
 */
unsigned verbs_cm_patience_ms(const struct transport_env *env);

/*
 * verbs_cm_ack_timeout - let the queue pair notice a dead peer or wire within @peer_timeout_ms.
 *
 * Then the error is that of a transfer, with its status, and not just silence.  Before the
 * route is resolved; both sides take it from there.
 */
void verbs_cm_ack_timeout(struct rdma_cm_id *id, unsigned peer_timeout_ms);
int verbs_cm_resolve_addr(struct rdma_cm_id *id, struct sockaddr *src, struct sockaddr *dst,
			  const char *peer, int64_t deadline, struct tern_error *err);
int verbs_cm_resolve_route(struct rdma_cm_id *id, const char *peer, int64_t deadline,
			   struct tern_error *err);

/*
 * verbs_cm_request - ask @peer to connect @id, whose queue pair exists.
 *
 * Only begins.  verbs_cm_await_answer() waits for the event ESTABLISHED, and
 * verbs_cm_answer() takes the peer's greeting out of it.  -ECONNREFUSED: nothing
 * listens, or refused.
 */
int verbs_cm_request(struct rdma_cm_id *id, const struct greeting *hello, const char *peer,
		     struct tern_error *err);
int verbs_cm_await_answer(struct rdma_event_channel *cm, const struct greeting *hello,
			  const char *peer, int cancel_fd, int64_t deadline,
			  struct greeting *answer, struct tern_error *err);
int verbs_cm_answer(const struct cm_event *ev, const struct greeting *hello, const char *peer,
		    struct greeting *answer, struct tern_error *err);

/* device.c */
/* verbs_memlock_hint - what to do about a registration that failed for want of memory. */
void verbs_memlock_hint(char *buf, size_t size);
/* verbs_memlock_limit - RLIMIT_MEMLOCK in bytes; 0: unlimited. */
uint64_t verbs_memlock_limit(void);
/*
 * verbs_local_address - an address of an RDMA device that is up.  0 or -ENODEV.
 *
 * @family: AF_INET, or AF_UNSPEC: IPv4 before IPv6 of the first device that has any.
 */
int verbs_local_address(int family, char *buf, size_t size, char *why, size_t why_size);

/* choose.c */
/* verbs_device_is - is the device of @id the one that @want, "NAME" or "NAME/PORT", names? */
bool verbs_device_is(const char *want, const struct rdma_cm_id *id);
/*
 * verbs_device_address - an address of the device @want, to reach @peer from (NULL: any;
 * IPv4 before IPv6).  0 with *out; -ENODEV (no such device or port), -ENETDOWN,
 * -EADDRNOTAVAIL (no address of that family), with *err.
 */
int verbs_device_address(struct rdma_event_channel *cm, const char *want,
			 const struct sockaddr *peer, struct sockaddr_storage *out,
			 struct tern_error *err);

#endif
