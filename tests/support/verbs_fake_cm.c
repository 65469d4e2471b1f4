/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * The connection manager of the fake.
 *
 *	rdma_connect()   a child identifier at the listener, and CONNECT_REQUEST
 *	rdma_accept()    both queue pairs are joined, and both sides ESTABLISHED
 *	disconnection    own queue pair in error; DISCONNECTED for both sides
 *
 *	destruction      of one that was asked to accept: the peer is rejected
 *
 * As with a real device the peer's queue pair stays as it is until the peer itself
 * disconnects.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "greeting.h"
#include "verbs_fake_private.h"

/* CM rejection reasons. */
#define REJ_INVALID_SERVICE_ID 8
#define REJ_CONSUMER_DEFINED 28

void fake_push(struct fake_id *id, enum rdma_cm_event_type type, int status, const void *data,
	       size_t len)
{
	struct fake_channel *ch = (struct fake_channel *)id->base.channel;
	struct fake_event *e = calloc(1, sizeof(*e)), **at;

	if (!e)
		abort();
	e->base.id = &id->base;
	e->base.event = type;
	e->base.status = status;
	if (len) {
		memcpy(e->data, data, len);
		e->base.param.conn.private_data = e->data;
		e->base.param.conn.private_data_len = (uint8_t)len;
	}
	for (at = &ch->events; *at; at = &(*at)->next)
		;
	*at = e;
	(void)eventfd_write(ch->base.fd, 1);
}

struct rdma_event_channel *rdma_create_event_channel(void)
{
	struct fake_channel *ch = NULL;
	bool good;

	pthread_mutex_lock(&fake.lock);
	good = fake_object(FAKE_EVENT_CHANNEL);
	pthread_mutex_unlock(&fake.lock);
	if (!good)
		return NULL;
	ch = calloc(1, sizeof(*ch));
	if (!ch)
		abort();
	ch->base.fd = eventfd(0, EFD_SEMAPHORE | EFD_NONBLOCK | EFD_CLOEXEC);
	return &ch->base;
}

int rdma_get_cm_event(struct rdma_event_channel *channel, struct rdma_cm_event **out)
{
	struct fake_channel *ch = (struct fake_channel *)channel;
	struct fake_event *e;
	eventfd_t ignored;

	pthread_mutex_lock(&fake.lock);
	e = ch->events;
	if (e) {
		ch->events = e->next;
		(void)eventfd_read(ch->base.fd, &ignored);
	}
	pthread_mutex_unlock(&fake.lock);
	if (!e) {
		errno = EAGAIN;
		return -1;
	}
	*out = &e->base;
	return 0;
}

int rdma_ack_cm_event(struct rdma_cm_event *event)
{
	free(event);
	return 0;
}

/* A new identifier; the lock is held. */
static struct fake_id *id_new(struct rdma_event_channel *channel, void *context)
{
	struct fake_id *id = calloc(1, sizeof(*id));

	if (!id)
		abort();
	id->base.channel = channel;
	id->base.context = context;
	id->base.port_num = 1;
	id->next = fake.ids;
	fake.ids = id;
	return id;
}

int rdma_create_id(struct rdma_event_channel *channel, struct rdma_cm_id **out, void *context,
		   enum rdma_port_space ps)
{
	int rc = -1;

	(void)ps;
	pthread_mutex_lock(&fake.lock);
	if (fake_object(FAKE_CM_ID)) {
		*out = &id_new(channel, context)->base;
		rc = 0;
	}
	pthread_mutex_unlock(&fake.lock);
	return rc;
}

/* Take the events of @id out of @ch and give them to @to (or free them). */
static void move_events(struct fake_id *id, struct fake_channel *ch, struct fake_channel *to)
{
	struct fake_event **at = &ch->events, **end;
	eventfd_t ignored;

	while (*at) {
		struct fake_event *e = *at;

		if (e->base.id != &id->base) {
			at = &e->next;
			continue;
		}
		*at = e->next;
		(void)eventfd_read(ch->base.fd, &ignored);
		if (!to) {
			free(e);
			continue;
		}
		e->next = NULL;
		for (end = &to->events; *end; end = &(*end)->next)
			;
		*end = e;
		(void)eventfd_write(to->base.fd, 1);
	}
}

int rdma_migrate_id(struct rdma_cm_id *base, struct rdma_event_channel *channel)
{
	int rc = -1;

	pthread_mutex_lock(&fake.lock);
	if (!fake_fails(FAKE_MIGRATE_ID)) {
		move_events((struct fake_id *)base, (struct fake_channel *)base->channel,
			    (struct fake_channel *)channel);
		base->channel = channel;
		rc = 0;
	}
	pthread_mutex_unlock(&fake.lock);
	return rc;
}

/* Both ends are told that the connection is gone.  The lock is held. */
static void disconnect(struct fake_id *id, bool tell_self)
{
	struct fake_id *peer = id->peer;

	if (id->base.qp)
		fake_qp_error((struct fake_qp *)id->base.qp);
	if (!id->connected)
		return;
	id->connected = false;
	if (tell_self)
		fake_push(id, RDMA_CM_EVENT_DISCONNECTED, 0, NULL, 0);
	if (peer && peer->connected) {
		peer->connected = false;
		fake_push(peer, RDMA_CM_EVENT_DISCONNECTED, 0, NULL, 0);
	}
}

/* The lock is held. */
static void id_destroy(struct fake_id *id)
{
	struct fake_id **at;

	if (id->base.qp)
		fake_misuse("an identifier is destroyed that has a queue pair");
	disconnect(id, false);
	move_events(id, (struct fake_channel *)id->base.channel, NULL);
	if (id->peer && id->passive && !id->answered)
		fake_push(id->peer, RDMA_CM_EVENT_REJECTED, REJ_CONSUMER_DEFINED, NULL, 0);
	if (id->peer)
		id->peer->peer = NULL;
	for (at = &fake.ids; *at != id; at = &(*at)->next)
		;
	*at = id->next;
	fake.objects--;
	free(id);
}

int rdma_destroy_id(struct rdma_cm_id *base)
{
	pthread_mutex_lock(&fake.lock);
	id_destroy((struct fake_id *)base);
	pthread_mutex_unlock(&fake.lock);
	return 0;
}

void rdma_destroy_event_channel(struct rdma_event_channel *channel)
{
	struct fake_channel *ch = (struct fake_channel *)channel;

	pthread_mutex_lock(&fake.lock);
	/* Requests that nobody has looked at are turned away. */
	while (ch->events && ch->events->base.event == RDMA_CM_EVENT_CONNECT_REQUEST)
		id_destroy((struct fake_id *)ch->events->base.id);
	for (struct fake_id *id = fake.ids; id; id = id->next)
		if (id->base.channel == channel)
			fake_misuse("an event channel is destroyed that has identifiers");
	fake.objects--;
	pthread_mutex_unlock(&fake.lock);
	close(ch->base.fd);
	free(ch);
}

static in_port_t port_of(const struct sockaddr *sa)
{
	return ((const struct sockaddr_in *)sa)->sin_port; /* at the same place for IPv6 */
}

/* Does the device serve @sa?  Loopback, and "any". */
static bool served(const struct sockaddr *sa)
{
	const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)sa;
	in_addr_t v4 = ntohl(((const struct sockaddr_in *)sa)->sin_addr.s_addr);

	if (sa->sa_family == AF_INET6)
		return IN6_IS_ADDR_LOOPBACK(&in6->sin6_addr) ||
		       IN6_IS_ADDR_UNSPECIFIED(&in6->sin6_addr);
	return (v4 >> 24 == IN_LOOPBACKNET && !fake.no_ipv4) || v4 == INADDR_ANY;
}

/* "Any" address? */
static bool is_any(const struct sockaddr *sa)
{
	if (sa->sa_family == AF_INET6)
		return IN6_IS_ADDR_UNSPECIFIED(&((const struct sockaddr_in6 *)sa)->sin6_addr);
	return ((const struct sockaddr_in *)sa)->sin_addr.s_addr == INADDR_ANY;
}

/* Who listens at @port, or NULL. */
static struct fake_id *listener_at(in_port_t port)
{
	for (struct fake_id *id = fake.ids; id; id = id->next)
		if (id->listening && id->port == port)
			return id;
	return NULL;
}

/* Does @id, which listens, take connections to @to? */
static bool takes(const struct fake_id *id, const struct sockaddr *to)
{
	const struct sockaddr *sa = (const struct sockaddr *)&id->bound;
	const struct sockaddr_in6 *a = (const struct sockaddr_in6 *)sa;
	const struct sockaddr_in6 *b = (const struct sockaddr_in6 *)to;

	if (is_any(sa) && sa->sa_family == AF_INET6 && id->both)
		return true;
	if (sa->sa_family != to->sa_family)
		return false;
	if (is_any(sa))
		return true;
	if (sa->sa_family == AF_INET6)
		return IN6_ARE_ADDR_EQUAL(&a->sin6_addr, &b->sin6_addr);
	return ((const struct sockaddr_in *)sa)->sin_addr.s_addr ==
	       ((const struct sockaddr_in *)to)->sin_addr.s_addr;
}

int rdma_bind_addr(struct rdma_cm_id *base, struct sockaddr *addr)
{
	struct fake_id *id = (struct fake_id *)base;
	int code = 0;

	pthread_mutex_lock(&fake.lock);
	if (fake_fails(FAKE_BIND))
		code = errno;
	else if (fake.absent || !served(addr))
		code = ENODEV;
	else if (port_of(addr) && listener_at(port_of(addr)))
		code = EADDRNOTAVAIL; /* as the kernel does */
	else
		id->port = port_of(addr) ? port_of(addr) : htons(fake.next_port++);
	if (!code && !is_any(addr))
		base->verbs = fake_context();
	if (!code)
		memcpy(&id->bound, addr,
		       addr->sa_family == AF_INET6 ? sizeof(struct sockaddr_in6)
						   : sizeof(struct sockaddr_in));
	pthread_mutex_unlock(&fake.lock);
	errno = code;
	return code ? -1 : 0;
}

int rdma_listen(struct rdma_cm_id *base, int backlog)
{
	int rc = -1;

	(void)backlog;
	pthread_mutex_lock(&fake.lock);
	if (!fake_fails(FAKE_LISTEN)) {
		((struct fake_id *)base)->listening = true;
		rc = 0;
	}
	pthread_mutex_unlock(&fake.lock);
	return rc;
}

uint16_t rdma_get_src_port(struct rdma_cm_id *base)
{
	return ((struct fake_id *)base)->port;
}

int rdma_resolve_addr(struct rdma_cm_id *base, struct sockaddr *src, struct sockaddr *dst, int ms)
{
	struct fake_id *id = (struct fake_id *)base;
	size_t len = dst->sa_family == AF_INET6 ? sizeof(struct sockaddr_in6)
						: sizeof(struct sockaddr_in);
	int rc = 0;

	(void)src;
	(void)ms;
	pthread_mutex_lock(&fake.lock);
	memcpy(&base->route.addr.dst_storage, dst, len);
	if (fake_fails(FAKE_RESOLVE)) {
		rc = -1;
	} else if (fake.absent || !served(dst) || fake_fires(&fake.answer[FAKE_ADDR_ERROR])) {
		fake_push(id, RDMA_CM_EVENT_ADDR_ERROR, -ENODEV, NULL, 0);
	} else if (fake_fires(&fake.answer[FAKE_ADDR_TIMEOUT])) {
		fake_push(id, RDMA_CM_EVENT_ADDR_ERROR, -ETIMEDOUT, NULL, 0);
	} else {
		base->verbs = fake_context();
		fake_push(id, RDMA_CM_EVENT_ADDR_RESOLVED, 0, NULL, 0);
	}
	pthread_mutex_unlock(&fake.lock);
	return rc;
}

/* Without it one family is taken, as where net.ipv6.bindv6only is set. */
int rdma_set_option(struct rdma_cm_id *base, int level, int name, void *value, size_t len)
{
	if (level != RDMA_OPTION_ID || name != RDMA_OPTION_ID_AFONLY)
		return 0;
	if (len != sizeof(int)) {
		errno = EINVAL;
		return -1;
	}
	pthread_mutex_lock(&fake.lock);
	((struct fake_id *)base)->both = !*(int *)value;
	pthread_mutex_unlock(&fake.lock);
	return 0;
}

int rdma_resolve_route(struct rdma_cm_id *base, int ms)
{
	struct fake_id *id = (struct fake_id *)base;

	(void)ms;
	pthread_mutex_lock(&fake.lock);
	if (fake_fires(&fake.answer[FAKE_ROUTE_ERROR]))
		fake_push(id, RDMA_CM_EVENT_ROUTE_ERROR, -ETIMEDOUT, NULL, 0);
	else
		fake_push(id, RDMA_CM_EVENT_ROUTE_RESOLVED, 0, NULL, 0);
	pthread_mutex_unlock(&fake.lock);
	return 0;
}

/* A fault that is the answer to a connect, if one is due.  The lock is held. */
static bool answered_badly(struct fake_id *id)
{
	static const char foreign[32] = "some other program's words";

	if (fake_fires(&fake.answer[FAKE_REJECT]))
		fake_push(id, RDMA_CM_EVENT_REJECTED, REJ_CONSUMER_DEFINED, NULL, 0);
	else if (fake_fires(&fake.answer[FAKE_REJECT_FOREIGN]))
		fake_push(id, RDMA_CM_EVENT_REJECTED, REJ_CONSUMER_DEFINED, foreign,
			  sizeof(foreign));
	else if (fake_fires(&fake.answer[FAKE_UNREACHABLE]))
		fake_push(id, RDMA_CM_EVENT_UNREACHABLE, -ETIMEDOUT, NULL, 0);
	else
		return fake_fires(&fake.answer[FAKE_SILENCE]);
	return true;
}

/* A request reaches listener @l.  The lock is held. */
static void request(struct fake_id *id, struct fake_id *l, const struct rdma_conn_param *param)
{
	struct fake_id *child = id_new(l->base.channel, l->base.context);
	struct greeting g = { 0 };

	fake.objects++;
	child->base.verbs = fake_context();
	child->base.route.addr.dst_storage = id->base.route.addr.dst_storage;
	child->passive = true;
	(void)greeting_get(param->private_data, param->private_data_len, &g);
	id->data = child->data = g.kind == GREETING_DATA;
	child->peer = id;
	id->peer = child;
	fake_push(child, RDMA_CM_EVENT_CONNECT_REQUEST, 0, param->private_data,
		  param->private_data_len);
}

int rdma_connect(struct rdma_cm_id *base, struct rdma_conn_param *param)
{
	struct fake_id *id = (struct fake_id *)base, *l;
	int rc = 0;

	pthread_mutex_lock(&fake.lock);
	l = listener_at(port_of(rdma_get_peer_addr(base)));
	if (fake_fails(FAKE_CONNECT))
		rc = -1;
	else if (!l || !takes(l, rdma_get_peer_addr(base)))
		fake_push(id, RDMA_CM_EVENT_REJECTED, REJ_INVALID_SERVICE_ID, NULL, 0);
	else if (!answered_badly(id))
		request(id, l, param);
	pthread_mutex_unlock(&fake.lock);
	return rc;
}

int rdma_accept(struct rdma_cm_id *base, struct rdma_conn_param *param)
{
	struct fake_id *id = (struct fake_id *)base, *peer;
	bool fails;
	int rc = 0;

	pthread_mutex_lock(&fake.lock);
	fails = fake_fails(FAKE_ACCEPT);
	if (!base->qp)
		fake_misuse("a connection is accepted that has no queue pair");
	peer = id->peer;
	if (fails) {
		rc = -1;
	} else if (!peer || !peer->base.qp) { /* the peer gave up meanwhile */
		errno = ECONNRESET;
		rc = -1;
	} else {
		fake_qp_pair((struct fake_qp *)base->qp, (struct fake_qp *)peer->base.qp);
		id->connected = peer->connected = id->answered = true;
		fake_push(id, RDMA_CM_EVENT_ESTABLISHED, 0, NULL, 0);
		fake_push(peer, RDMA_CM_EVENT_ESTABLISHED, 0, param->private_data,
			  param->private_data_len);
	}
	pthread_mutex_unlock(&fake.lock);
	return rc;
}

int rdma_reject(struct rdma_cm_id *base, const void *data, uint8_t len)
{
	struct fake_id *id = (struct fake_id *)base;

	pthread_mutex_lock(&fake.lock);
	if (id->peer && !id->answered)
		fake_push(id->peer, RDMA_CM_EVENT_REJECTED, REJ_CONSUMER_DEFINED, data, len);
	id->answered = true;
	pthread_mutex_unlock(&fake.lock);
	return 0;
}

int rdma_disconnect(struct rdma_cm_id *base)
{
	pthread_mutex_lock(&fake.lock);
	disconnect((struct fake_id *)base, true);
	pthread_mutex_unlock(&fake.lock);
	return 0;
}
