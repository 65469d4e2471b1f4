/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * A connection: its life, its ends, and why it died.
 *
 *	vconn_make()            memory, eventfds, CM channel
 *	vconn_attach_device()   the device is known: domains, control queue, receives
 *	vconn_start()           established: pump and registrar run
 *	abort()                flag, eventfd, disconnect; nothing is freed
 *	vconn_destroy()         no other call runs: threads, queue pairs, registrations
 *
 * What kills a connection is written down once, in control.error under its
 * lock; whoever waits for anything is woken and finds it there.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "error.h"
#include "verbs.h"

int vconn_make(const struct transport *ops, const struct transport_env *env, bool source,
	       const uint8_t *session_id, struct verbs_conn **out, struct tern_error *err)
{
	struct verbs_conn *c = calloc(1, sizeof(*c));
	int rc;

	if (!c)
		return error_session(err, -ENOMEM, "No memory for a connection");
	c->base.ops = ops;
	c->env = *env;
	c->source = source;
	c->listener_fd = -1;
	memcpy(c->base.session_id, session_id, TRANSPORT_SESSION_ID_LEN);
	pthread_mutex_init(&c->lock, NULL);
	verbs_cond_init(&c->changed);
	pthread_mutex_init(&c->ctl.poll_lock, NULL);
	pthread_mutex_init(&c->ctl.lock, NULL);
	verbs_cond_init(&c->ctl.cond);
	c->ctl.frames_tail = &c->ctl.frames;
	c->ctl.inbox_tail = &c->ctl.inbox;
	pthread_mutex_init(&c->keys.lock, NULL);
	verbs_cond_init(&c->keys.done);
	c->cancel_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	c->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	c->ctl.recv_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (c->cancel_fd < 0 || c->kick_fd < 0 || c->ctl.recv_fd < 0) {
		rc = error_session(err, -errno, "Making an eventfd for a connection failed: %s",
				   error_name(-errno));
		vconn_destroy(c);
		return rc;
	}
	rc = verbs_cm_channel(&c->cm, err);
	if (rc) {
		vconn_destroy(c);
		return rc;
	}
	*out = c;
	return 0;
}

/* vconn_attach_device - @id, which becomes the connection's, has a device now. */
int vconn_attach_device(struct verbs_conn *c, struct rdma_cm_id *id, struct tern_error *err)
{
	struct ibv_port_attr port;
	int rc;

	c->id = id;
	id->context = c;
	verbs_address_text(rdma_get_peer_addr(id), c->peer, sizeof(c->peer));
	snprintf(c->device, sizeof(c->device), "%s", ibv_get_device_name(id->verbs->device));
	verbs_device_facts(c->device, id->verbs->device->ibdev_path, id->port_num, &c->place);
	place_vectors_read(id->verbs->device->ibdev_path, "/proc/irq", id->verbs->num_comp_vectors,
			   &c->vectors);
	if (c->env.device)
		c->env.device(c->env.opaque, &c->place);
	rc = ibv_query_device(id->verbs, &c->attr);
	if (!rc)
		rc = ibv_query_port(id->verbs, id->port_num, &port);
	if (rc)
		return error_session(err, -rc, "Asking device %s for its limits failed: %s",
				     c->device, error_name(-rc));
	if (port.state != IBV_PORT_ACTIVE)
		return error_session(
			err, -ENETDOWN,
			"Connecting to %s over RDMA failed: port %u of device %s is not "
			"active (%s); bring its network interface up (ip link), or use "
			"tcp:",
			c->peer, id->port_num, c->device, ibv_port_state_str(port.state));
	c->max_msg = port.max_msg_sz ? port.max_msg_sz : PIECE_BYTES;
	c->pd_control = ibv_alloc_pd(id->verbs);
	c->pd_data = c->pd_control ? ibv_alloc_pd(id->verbs) : NULL;
	if (!c->pd_data)
		return error_session(err, errno ? -errno : -ENOMEM,
				     "Device %s gave no protection domain: %s", c->device,
				     error_name(errno ? -errno : -ENOMEM));
	rc = paging_start(c, err);
	if (!rc)
		rc = control_open(c, err);
	return rc ? rc : control_post_receives(c, err);
}

int vconn_start(struct verbs_conn *c, struct tern_error *err)
{
	int rc = pthread_create(&c->pump, NULL, control_pump, c);

	if (rc)
		return error_session(err, -rc, "Starting a thread for the control queue failed: %s",
				     error_name(-rc));
	c->pumping = true;
	return 0;
}

/* vconn_destroy - free whatever there is; sends nothing. */
void vconn_destroy(struct verbs_conn *c)
{
	registrars_stop(c);
	vconn_forget_channels(c);
	if (c->pumping) {
		atomic_store(&c->pump_stop, true);
		vconn_kick(c);
		pthread_join(c->pump, NULL);
	}
	for (unsigned i = 0; c->windows && i < TRANSPORT_CHANNELS_MAX; i++)
		if (c->channels[i])
			vchan_stop_posting(c->channels[i]);
	grants_close_windows(c);
	for (unsigned i = 0; i < TRANSPORT_CHANNELS_MAX; i++)
		if (c->channels[i])
			vchan_free(c->channels[i]);
	keys_fini(c);
	grants_fini(c);
	registrars_free(c);
	control_close(c);
	if (c->pd_data)
		ibv_dealloc_pd(c->pd_data);
	if (c->pd_control)
		ibv_dealloc_pd(c->pd_control);
	if (c->id)
		rdma_destroy_id(c->id);
	if (c->cm)
		rdma_destroy_event_channel(c->cm);
	if (c->cancel_fd >= 0)
		close(c->cancel_fd);
	if (c->kick_fd >= 0)
		close(c->kick_fd);
	if (c->ctl.recv_fd >= 0)
		close(c->ctl.recv_fd);
	if (c->hub)
		vhub_put(c->hub);
	free(c->mem);
	pthread_cond_destroy(&c->keys.done);
	pthread_mutex_destroy(&c->keys.lock);
	pthread_cond_destroy(&c->ctl.cond);
	pthread_mutex_destroy(&c->ctl.lock);
	pthread_mutex_destroy(&c->ctl.poll_lock);
	pthread_cond_destroy(&c->changed);
	pthread_mutex_destroy(&c->lock);
	free(c);
}

/* True if [offset, offset + len) lies in @region of what was exposed; no overflow. */
bool vconn_range_ok(const struct verbs_conn *c, uint32_t region, uint64_t offset, uint64_t len)
{
	uint64_t size;

	if (region >= c->nr_mem || !len)
		return false;
	size = c->mem[region].size;
	return len <= size && offset <= size - len;
}

void vconn_kick(struct verbs_conn *c)
{
	atomic_store(&c->kicked, true);
	(void)eventfd_write(c->kick_fd, 1);
}

void vconn_wake_channels(struct verbs_conn *c)
{
	pthread_mutex_lock(&c->lock);
	for (unsigned i = 0; i < TRANSPORT_CHANNELS_MAX; i++)
		if (c->channels[i])
			(void)eventfd_write(c->channels[i]->wake_fd, 1);
	pthread_cond_broadcast(&c->changed);
	pthread_mutex_unlock(&c->lock);
}

/* Whoever waits for anything of @c looks again. */
void vconn_wake_all(struct verbs_conn *c)
{
	pthread_mutex_lock(&c->ctl.lock);
	control_tell_locked(&c->ctl);
	pthread_mutex_unlock(&c->ctl.lock);
	pthread_mutex_lock(&c->keys.lock);
	pthread_cond_broadcast(&c->keys.done);
	for (unsigned i = 0; i < c->keys.nr_registrars; i++)
		pthread_cond_broadcast(&c->keys.registrars[i].work);
	pthread_mutex_unlock(&c->keys.lock);
	vconn_wake_channels(c);
}

/* vconn_tell_listener - a first message, or the end: what accept() waits for. */
void vconn_tell_listener(struct verbs_conn *c)
{
	if (!atomic_exchange(&c->heard, true) && c->listener_fd >= 0)
		(void)eventfd_write(c->listener_fd, 1);
}

void vconn_fail(struct verbs_conn *c, const struct tern_error *why)
{
	pthread_mutex_lock(&c->ctl.lock);
	if (!c->ctl.error.code)
		c->ctl.error = *why;
	c->ctl.error.code = vconn_final(c->ctl.error.code);
	control_tell_locked(&c->ctl);
	pthread_mutex_unlock(&c->ctl.lock);
	vconn_wake_all(c);
	vconn_tell_listener(c);
}

void vconn_fail_data(struct verbs_conn *c, const struct tern_error *why)
{
	pthread_mutex_lock(&c->ctl.lock);
	if (!c->ctl.data_error.code)
		c->ctl.data_error = *why;
	c->ctl.data_error.code = vconn_final(c->ctl.data_error.code);
	pthread_mutex_unlock(&c->ctl.lock);
	vconn_wake_all(c);
}

int vconn_check(struct verbs_conn *c, struct tern_error *err)
{
	struct tern_error why;

	if (atomic_load(&c->aborted))
		return error_session(err, -ECANCELED, "The connection to %s was aborted", c->peer);
	pthread_mutex_lock(&c->ctl.lock);
	why = c->ctl.error.code ? c->ctl.error : c->ctl.data_error;
	pthread_mutex_unlock(&c->ctl.lock);
	if (!why.code)
		return 0;
	return error_session(err, why.code, "%s", why.message);
}

/* Ops; see src/transport.h. */
int vconn_expose(struct transport_conn *conn, const struct transport_memory *mem, unsigned nr,
		 struct tern_error *err)
{
	struct verbs_conn *c = to_conn(conn);
	struct transport_memory *v = calloc(nr ? nr : 1, sizeof(*v));
	int rc;

	if (!v)
		return error_session(err, -ENOMEM, "No memory for a list of %u regions", nr);
	if (c->mem) {
		free(v);
		return error_session(err, -EINVAL, "Memory was exposed to %s before", c->peer);
	}
	memcpy(v, mem, nr * sizeof(*v));
	c->mem = v;
	c->nr_mem = nr;
	rc = keys_init(c, err);
	if (!rc && !c->source)
		rc = grants_init(c, err);
	return rc ? rc : registrars_start(c, c->source ? keys_main : grants_main, err);
}

int vconn_open_channels(struct transport_conn *conn, unsigned nr,
			struct transport_channel **channels, struct tern_error *err)
{
	struct verbs_conn *c = to_conn(conn);
	int rc;

	if (c->nr_channels || nr < 1 || nr > TRANSPORT_CHANNELS_MAX || (c->source && !c->mem))
		return error_session(err, -EINVAL,
				     "Cannot open %u channels to %s: 1 to %u are possible, once, "
				     "after memory was exposed",
				     nr, c->peer, TRANSPORT_CHANNELS_MAX);
	rc = c->source ? vconn_connect_channels(c, nr, err) : vhub_collect(c, nr, err);
	if (rc)
		return rc;
	for (unsigned i = 0; i < nr; i++)
		channels[i] = &c->channels[i]->base;
	return c->source && c->env.pin_all ? keys_pin_all(c, err) : 0;
}

void vconn_retire(struct transport_conn *conn, uint32_t region, uint64_t offset, uint64_t len)
{
	grants_retire(to_conn(conn), region, offset, len);
}

void vconn_revoke(struct transport_conn *conn)
{
	struct verbs_conn *c = to_conn(conn);

	atomic_store(&c->revoked, true);
	pthread_mutex_lock(&c->lock);
	for (unsigned i = 0; i < TRANSPORT_CHANNELS_MAX; i++)
		if (c->channels[i])
			vchan_stop_posting(c->channels[i]);
	pthread_mutex_unlock(&c->lock);
	vconn_wake_channels(c);
}

void vconn_abort(struct transport_conn *conn)
{
	struct verbs_conn *c = to_conn(conn);

	pthread_mutex_lock(&c->lock);
	if (!atomic_exchange(&c->aborted, true)) {
		(void)eventfd_write(c->cancel_fd, 1);
		if (c->id && c->pumping)
			(void)rdma_disconnect(c->id);
		for (unsigned i = 0; i < TRANSPORT_CHANNELS_MAX; i++)
			if (c->channels[i] && c->channels[i]->established)
				(void)rdma_disconnect(c->channels[i]->id);
	}
	pthread_mutex_unlock(&c->lock);
	vconn_wake_all(c);
}

/* Say goodbye and wait until the peer's device has it. */
static void vconn_goodbye(struct verbs_conn *c, int64_t deadline)
{
	struct timespec ts;

	if (control_queue(c, CTL_BYE, NULL, 0))
		return;
	control_hand_over(c);
	verbs_timespec(deadline, &ts);
	pthread_mutex_lock(&c->ctl.lock);
	while (!c->ctl.bye_sent && !c->ctl.error.code && !c->ctl.bye &&
	       pthread_cond_timedwait(&c->ctl.cond, &c->ctl.lock, &ts) != ETIMEDOUT)
		;
	pthread_mutex_unlock(&c->ctl.lock);
}

void vconn_close(struct transport_conn *conn)
{
	struct verbs_conn *c = to_conn(conn);
	int64_t deadline = verbs_deadline(CLOSE_LINGER_MS);

	if (c->hub)
		vhub_leave(c);
	if (!atomic_load(&c->aborted)) {
		for (unsigned i = 0; c->source && i < c->nr_channels; i++)
			vchan_end(c->channels[i], deadline);
		vconn_goodbye(c, deadline);
	}
	vconn_abort(conn);
	vconn_destroy(c);
}

void vconn_stats(const struct transport_conn *conn, struct transport_conn_stats *out)
{
	const struct verbs_conn *c = (const struct verbs_conn *)conn;

	out->registration_ns = atomic_load_explicit(&c->keys.reg_ns, memory_order_relaxed);
	out->registration_bytes = atomic_load_explicit(&c->keys.reg_bytes, memory_order_relaxed);
	out->device = c->place;
	out->locked_peak_bytes = atomic_load_explicit(&c->keys.reg_peak, memory_order_relaxed);
}
