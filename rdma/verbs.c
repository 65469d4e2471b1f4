/* SPDX-License-Identifier: BSD-2-Clause */

/* The table of the RDMA transport. */

#include <errno.h>
#include <stdio.h>
#include "rdma_transport.h"
#include "uri.h"
#include "verbs.h"

#define ROUTE_TIMEOUT_MS 1000

const struct transport rdma_transport = {
	.name = "rdma",
	.one_sided = true,
	.listen = verbs_listener_listen,
	.listener_uri = verbs_listener_uri,
	.accept = verbs_listener_accept,
	.listener_stop = verbs_listener_stop,
	.listener_close = verbs_listener_close,
	.connect = verbs_connect,
	.expose = vconn_expose,
	.request_channels = vconn_request_channels,
	.open_channels = vconn_open_channels,
	.send = control_send,
	.recv = control_recv,
	.prepare = vchan_prepare,
	.write = vchan_write,
	.notify = vchan_notify,
	.push = vchan_push,
	.fence = vchan_fence,
	.serve = vchan_serve,
	.retire = vconn_retire,
	.revoke = vconn_revoke,
	.abort = vconn_abort,
	.close = vconn_close,
	.channel_stats = vchan_stats,
	.conn_stats = vconn_stats,
};

int rdma_available(char *address, size_t size, char *why, size_t why_size)
{
	return verbs_local_address(AF_UNSPEC, address, size, why, why_size);
}

/* Resolve the first address of @uri's host to a device. */
static int route_to(const struct uri *uri, char *why, size_t size, struct tern_error *err)
{
	struct rdma_event_channel *cm = NULL;
	struct rdma_cm_id *id = NULL;
	struct addrinfo *list = NULL;
	char peer[VERBS_TEXT_MAX];
	int rc = verbs_resolve(uri, 0, &list, err);

	if (!rc)
		rc = verbs_cm_channel(&cm, err);
	if (!rc && rdma_create_id(cm, &id, NULL, RDMA_PS_TCP))
		rc = -ENODEV;
	if (!rc) {
		verbs_address_text(list->ai_addr, peer, sizeof(peer));
		rc = verbs_cm_resolve(cm, id, NULL, list->ai_addr, peer, -1,
				      verbs_deadline(ROUTE_TIMEOUT_MS), err);
	}
	if (!rc)
		snprintf(why, size, "device %s leads to %s", ibv_get_device_name(id->verbs->device),
			 uri->host);
	if (id)
		rdma_destroy_id(id);
	if (cm)
		rdma_destroy_event_channel(cm);
	if (list)
		freeaddrinfo(list);
	return rc;
}

int rdma_route(const struct uri *uri, char *why, size_t size)
{
	struct tern_error err = { 0 };
	char address[64];
	int rc = verbs_local_address(AF_UNSPEC, address, sizeof(address), why, size);

	if (rc)
		return rc;
	rc = route_to(uri, why, size, &err);
	if (rc)
		snprintf(why, size, "no RDMA device here leads to %s", uri->host);
	return rc;
}
