/* SPDX-License-Identifier: BSD-2-Clause */

/* The connecting side: the control queue.  connect_channels.c has the channels. */

#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "error.h"
#include "uri.h"
#include "verbs.h"

/* verbs_resolve - addresses of an rdma: URI; as getaddrinfo().  0 or -errno with *err. */
int verbs_resolve(const struct uri *uri, int flags, struct addrinfo **out, struct tern_error *err)
{
	struct addrinfo hints = { .ai_flags = flags | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM };
	int rc = getaddrinfo(uri->host[0] ? uri->host : NULL, uri->port, &hints, out);

	if (!rc)
		return 0;
	return error_session(
		err,
		rc == EAI_AGAIN    ? -EAGAIN
		: rc == EAI_MEMORY ? -ENOMEM
				   : -ENOENT,
		"The host name \"%s\" does not resolve: %s; check the spelling and the "
		"resolver",
		uri->host, gai_strerror(rc));
}

int verbs_check_device(struct verbs_conn *c, struct rdma_cm_id *id, const char *peer,
		       struct tern_error *err)
{
	if (!c->src.ss_family || verbs_device_is(c->env.rdma_device, id))
		return 0;
	return error_session(err, -EXDEV,
			     "The route to %s goes through RDMA device %s, not through %s; change "
			     "the route (ip route get), or the device",
			     peer, ibv_get_device_name(id->verbs->device), c->env.rdma_device);
}

/* An identifier that is resolved to @dst, on @c's device.  0 or -errno with *err. */
static int open_id(struct verbs_conn *c, struct rdma_event_channel *cm, struct sockaddr *dst,
		   const char *peer, int cancel_fd, int64_t deadline, struct rdma_cm_id **out,
		   struct tern_error *err)
{
	struct sockaddr *src = c->src.ss_family ? (struct sockaddr *)&c->src : NULL;
	struct rdma_cm_id *id;
	int rc;

	if (rdma_create_id(cm, &id, NULL, RDMA_PS_TCP))
		return error_session(err, -errno, "Making an RDMA connection identifier failed: %s",
				     error_name(-errno));
	verbs_cm_ack_timeout(id, c->env.peer_timeout_ms);
	rc = verbs_cm_resolve(cm, id, src, dst, peer, cancel_fd, deadline, err);
	if (!rc)
		rc = verbs_check_device(c, id, peer, err);
	if (rc) {
		rdma_destroy_id(id);
		return rc;
	}
	*out = id;
	return 0;
}

/* Control queue of @c to @dst.  0 or -errno with *err; what was made is @c's. */
static int open_control(struct verbs_conn *c, struct sockaddr *dst, int cancel_fd, int64_t deadline,
			struct tern_error *err)
{
	struct greeting hello = {
		.version = GREETING_VERSION,
		.kind = GREETING_CONTROL,
		.ring = CTL_RING,
		.msg_window = CTL_MSG_WINDOW,
		.piece_bytes = PIECE_BYTES,
		.flags = c->env.no_windows ? 0 : GREETING_WINDOWS,
	};
	struct greeting answer;
	struct rdma_cm_id *id = NULL;
	char peer[VERBS_TEXT_MAX];
	int rc = 0;

	memcpy(hello.session_id, c->base.session_id, TRANSPORT_SESSION_ID_LEN);
	verbs_address_text(dst, peer, sizeof(peer));
	if (c->env.rdma_device && *c->env.rdma_device)
		rc = verbs_device_address(c->cm, c->env.rdma_device, dst, &c->src, err);
	if (!rc)
		rc = open_id(c, c->cm, dst, peer, cancel_fd, deadline, &id, err);
	if (!rc)
		rc = vconn_attach_device(c, id, err);
	hello.lock_budget = c->env.lock_budget; /* none if nothing is locked */
	if (!rc)
		rc = verbs_cm_request(id, &hello, peer, err);
	if (!rc && c->env.channels) /* meanwhile; what fails is tried again, and reported, later */
		(void)vconn_make_channels(c, c->env.channels, NULL);
	if (!rc)
		rc = verbs_cm_await_answer(c->cm, &hello, peer, cancel_fd, deadline, &answer, err);
	if (rc)
		return rc;
	c->windows = answer.flags & GREETING_WINDOWS;
	control_begin(c, &answer);
	return vconn_start(c, err);
}

/* One address; a new connection for each, because nothing of a failed one can be used. */
static int try_address(const struct transport *ops, const struct transport_env *env,
		       const uint8_t *session_id, struct sockaddr *dst, int cancel_fd,
		       int64_t deadline, struct transport_conn **out, struct tern_error *err)
{
	struct verbs_conn *c;
	int rc = vconn_make(ops, env, true, session_id, &c, err);

	if (rc)
		return rc;
	rc = open_control(c, dst, cancel_fd, deadline, err);
	if (rc) {
		vconn_destroy(c);
		return rc;
	}
	*out = &c->base;
	return 0;
}

/* See struct transport. */
int verbs_connect(const struct transport *ops, const struct transport_env *env,
		  const struct uri *uri, const uint8_t session_id[TRANSPORT_SESSION_ID_LEN],
		  int cancel_fd, struct transport_conn **out, struct tern_error *err)
{
	int64_t deadline = verbs_deadline((int)verbs_cm_patience_ms(env));
	struct tern_error why = { 0 };
	struct addrinfo *list;
	int rc, left = 0;

	if (!uri->host[0] || !strcmp(uri->port, "0"))
		return error_session(err, -EINVAL,
				     "Cannot connect to \"rdma:%s:%s\": it needs a host and a port "
				     "that is not 0",
				     uri->host, uri->port);
	rc = verbs_resolve(uri, 0, &list, err);
	if (rc)
		return rc;
	for (struct addrinfo *a = list; a; a = a->ai_next)
		left++;
	for (struct addrinfo *a = list; a; a = a->ai_next) {
		int64_t share = verbs_deadline(verbs_remaining(deadline) / left--);

		error_clear(&why);
		rc = try_address(ops, env, session_id, a->ai_addr, cancel_fd, share, out, &why);
		if (!rc || rc == -ECANCELED)
			break;
	}
	freeaddrinfo(list);
	return rc ? error_session(err, rc, "%s", why.message) : 0;
}
