/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * The connection manager of the fake, and its faults; verbs_fake_dev.c is the device.
 *
 * The functions that are replaced have no argument for a context, so the fake's state
 * is one file-scope object, under one lock that every entry takes.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "verbs_fake_private.h"

struct fake fake = { .lock = PTHREAD_MUTEX_INITIALIZER, .next_key = 1, .next_port = 20000 };

bool fake_fires(enum verbs_fake_fault which)
{
	if (!fake.fault[which])
		return false;
	if (fake.fault[which] > 1) {
		fake.fault[which]--;
		return false;
	}
	if (which != FAKE_REG_ENOMEM)
		fake.fault[which] = 0;
	return true;
}

void verbs_fake_fault(enum verbs_fake_fault which, unsigned n)
{
	pthread_mutex_lock(&fake.lock);
	fake.fault[which] = n;
	pthread_mutex_unlock(&fake.lock);
}

void verbs_fake_wc(unsigned n, enum ibv_wc_status status)
{
	pthread_mutex_lock(&fake.lock);
	fake.wc_at = n;
	fake.wc_status = status;
	pthread_mutex_unlock(&fake.lock);
}

void verbs_fake_absent(void)
{
	pthread_mutex_lock(&fake.lock);
	fake.absent = true;
	pthread_mutex_unlock(&fake.lock);
}

void verbs_fake_reset(void)
{
	pthread_mutex_lock(&fake.lock);
	memset(fake.fault, 0, sizeof(fake.fault));
	fake.wc_at = 0;
	fake.absent = false;
	pthread_mutex_unlock(&fake.lock);
}

unsigned verbs_fake_objects(void)
{
	unsigned n;

	pthread_mutex_lock(&fake.lock);
	n = fake.objects;
	pthread_mutex_unlock(&fake.lock);
	return n;
}

/* Queue an event for @id. */
static void push(struct fake_id *id, enum rdma_cm_event_type type, int status, const void *data,
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

void verbs_fake_remove_device(void)
{
	pthread_mutex_lock(&fake.lock);
	for (struct fake_id *id = fake.ids; id; id = id->next)
		push(id, RDMA_CM_EVENT_DEVICE_REMOVAL, 0, NULL, 0);
	pthread_mutex_unlock(&fake.lock);
}

struct rdma_event_channel *rdma_create_event_channel(void)
{
	struct fake_channel *ch = calloc(1, sizeof(*ch));

	if (!ch)
		return NULL;
	ch->base.fd = eventfd(0, EFD_SEMAPHORE | EFD_NONBLOCK | EFD_CLOEXEC);
	fake_count(1);
	return &ch->base;
}

void rdma_destroy_event_channel(struct rdma_event_channel *channel)
{
	struct fake_channel *ch = (struct fake_channel *)channel;

	while (ch->events) {
		struct fake_event *e = ch->events;

		ch->events = e->next;
		free(e);
	}
	close(ch->base.fd);
	free(ch);
	fake_count(-1);
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
	fake.objects++;
	return id;
}

int rdma_create_id(struct rdma_event_channel *channel, struct rdma_cm_id **out, void *context,
		   enum rdma_port_space ps)
{
	(void)ps;
	pthread_mutex_lock(&fake.lock);
	*out = &id_new(channel, context)->base;
	pthread_mutex_unlock(&fake.lock);
	return 0;
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
	pthread_mutex_lock(&fake.lock);
	move_events((struct fake_id *)base, (struct fake_channel *)base->channel,
		    (struct fake_channel *)channel);
	base->channel = channel;
	pthread_mutex_unlock(&fake.lock);
	return 0;
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
		push(id, RDMA_CM_EVENT_DISCONNECTED, 0, NULL, 0);
	if (peer && peer->connected) {
		peer->connected = false;
		push(peer, RDMA_CM_EVENT_DISCONNECTED, 0, NULL, 0);
	}
}

int rdma_destroy_id(struct rdma_cm_id *base)
{
	struct fake_id *id = (struct fake_id *)base, **at;

	pthread_mutex_lock(&fake.lock);
	disconnect(id, false);
	move_events(id, (struct fake_channel *)base->channel, NULL);
	if (id->peer)
		id->peer->peer = NULL;
	for (at = &fake.ids; *at != id; at = &(*at)->next)
		;
	*at = id->next;
	fake.objects--;
	pthread_mutex_unlock(&fake.lock);
	free(id);
	return 0;
}

static in_port_t port_of(const struct sockaddr *sa)
{
	return ((const struct sockaddr_in *)sa)->sin_port; /* at the same place for IPv6 */
}

/* Who listens at @port, or NULL. */
static struct fake_id *listener_at(in_port_t port)
{
	for (struct fake_id *id = fake.ids; id; id = id->next)
		if (id->listening && id->port == port)
			return id;
	return NULL;
}

int rdma_bind_addr(struct rdma_cm_id *base, struct sockaddr *addr)
{
	struct fake_id *id = (struct fake_id *)base;
	int rc = 0;

	pthread_mutex_lock(&fake.lock);
	if (port_of(addr) && listener_at(port_of(addr))) {
		errno = EADDRNOTAVAIL; /* as the kernel does */
		rc = -1;
	} else {
		id->port = port_of(addr) ? port_of(addr) : htons(fake.next_port++);
	}
	pthread_mutex_unlock(&fake.lock);
	return rc;
}

int rdma_listen(struct rdma_cm_id *base, int backlog)
{
	(void)backlog;
	((struct fake_id *)base)->listening = true;
	return 0;
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

	(void)src;
	(void)ms;
	pthread_mutex_lock(&fake.lock);
	memcpy(&base->route.addr.dst_storage, dst, len);
	if (fake.absent || fake_fires(FAKE_ADDR_ERROR)) {
		push(id, RDMA_CM_EVENT_ADDR_ERROR, -ENODEV, NULL, 0);
	} else {
		base->verbs = fake_context();
		push(id, RDMA_CM_EVENT_ADDR_RESOLVED, 0, NULL, 0);
	}
	pthread_mutex_unlock(&fake.lock);
	return 0;
}

int rdma_resolve_route(struct rdma_cm_id *base, int ms)
{
	(void)ms;
	pthread_mutex_lock(&fake.lock);
	if (fake_fires(FAKE_ROUTE_ERROR))
		push((struct fake_id *)base, RDMA_CM_EVENT_ROUTE_ERROR, -ETIMEDOUT, NULL, 0);
	else
		push((struct fake_id *)base, RDMA_CM_EVENT_ROUTE_RESOLVED, 0, NULL, 0);
	pthread_mutex_unlock(&fake.lock);
	return 0;
}

int rdma_connect(struct rdma_cm_id *base, struct rdma_conn_param *param)
{
	struct fake_id *id = (struct fake_id *)base, *l, *child;

	pthread_mutex_lock(&fake.lock);
	l = listener_at(port_of(rdma_get_peer_addr(base)));
	if (!l) {
		push(id, RDMA_CM_EVENT_REJECTED, 8, NULL, 0);
	} else if (fake_fires(FAKE_REJECT)) {
		push(id, RDMA_CM_EVENT_REJECTED, 28, NULL, 0);
	} else {
		child = id_new(l->base.channel, l->base.context);
		child->base.verbs = fake_context();
		child->base.route.addr.dst_storage = base->route.addr.dst_storage;
		child->peer = id;
		id->peer = child;
		push(child, RDMA_CM_EVENT_CONNECT_REQUEST, 0, param->private_data,
		     param->private_data_len);
	}
	pthread_mutex_unlock(&fake.lock);
	return 0;
}

int rdma_accept(struct rdma_cm_id *base, struct rdma_conn_param *param)
{
	struct fake_id *id = (struct fake_id *)base, *peer;
	int rc = 0;

	pthread_mutex_lock(&fake.lock);
	peer = id->peer;
	if (!peer) {
		errno = ECONNRESET;
		rc = -1;
	} else {
		fake_qp_pair((struct fake_qp *)base->qp, (struct fake_qp *)peer->base.qp);
		id->connected = peer->connected = true;
		push(id, RDMA_CM_EVENT_ESTABLISHED, 0, NULL, 0);
		push(peer, RDMA_CM_EVENT_ESTABLISHED, 0, param->private_data,
		     param->private_data_len);
	}
	pthread_mutex_unlock(&fake.lock);
	return rc;
}

int rdma_reject(struct rdma_cm_id *base, const void *data, uint8_t len)
{
	struct fake_id *id = (struct fake_id *)base;

	pthread_mutex_lock(&fake.lock);
	if (id->peer)
		push(id->peer, RDMA_CM_EVENT_REJECTED, 28, data, len);
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
