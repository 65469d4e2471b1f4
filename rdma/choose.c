/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * A device that the user named.
 *
 * The connection manager knows addresses, not devices, so a device is chosen by
 * binding to an address that it serves.  Which device serves an address is asked
 * by binding an identifier to it: that is the kernel's own answer, for RoCE as for
 * IP over InfiniBand, whatever the GID table looks like.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "error.h"
#include "verbs.h"

/* "NAME" or "NAME/PORT"; port 0: any. */
struct wanted {
	char name[64];
	unsigned port;
};

/* Take @text, which tern_text_check() has seen, apart. */
static void wanted_read(const char *text, struct wanted *w)
{
	const char *slash = strchr(text, '/');
	size_t n = slash ? (size_t)(slash - text) : strlen(text);

	snprintf(w->name, sizeof(w->name), "%.*s", (int)n, text);
	w->port = slash ? (unsigned)strtoul(slash + 1, NULL, 10) : 0;
}

bool verbs_device_is(const char *want, const struct rdma_cm_id *id)
{
	struct wanted w;

	wanted_read(want, &w);
	return id->verbs && !strcmp(ibv_get_device_name(id->verbs->device), w.name) &&
	       (!w.port || w.port == id->port_num);
}

/* The sentence for a device that is not there. */
static int no_such_device(const struct wanted *w, struct ibv_device **list, int nr,
			  struct tern_error *err)
{
	char names[300] = "";
	size_t at = 0;

	for (int i = 0; i < nr && at < sizeof(names); i++)
		at += (size_t)snprintf(names + at, sizeof(names) - at, "%s%s", i ? ", " : "",
				       ibv_get_device_name(list[i]));
	return error_session(
		err, -ENODEV, "There is no RDMA device \"%s\" on this host; %s%s", w->name,
		nr ? "name one of: " : "it has none at all (tern info, or use tcp:)", names);
}

/* Is a port that is wanted up?  0 or -errno with *err. */
static int check_ports(const struct wanted *w, struct ibv_context *ctx, struct tern_error *err)
{
	struct ibv_device_attr attr;
	struct ibv_port_attr pa;
	const char *state = "not readable";
	unsigned first = w->port ? w->port : 1, last;

	if (ibv_query_device(ctx, &attr))
		attr.phys_port_cnt = 1;
	last = w->port ? w->port : attr.phys_port_cnt;
	if (w->port > attr.phys_port_cnt)
		return error_session(err, -ENODEV, "RDMA device %s has no port %u, it has %u",
				     w->name, w->port, attr.phys_port_cnt);
	for (unsigned i = first; i <= last; i++) {
		if (ibv_query_port(ctx, (uint8_t)i, &pa))
			continue;
		if (pa.state == IBV_PORT_ACTIVE)
			return 0;
		state = ibv_port_state_str(pa.state);
	}
	return error_session(
		err, -ENETDOWN,
		"Port %u of RDMA device %s is not active (%s); connect it and bring its "
		"network interface up (ip link)",
		first, w->name, state);
}

/* Find the device and see that it is up.  0 or -errno with *err. */
static int check_device(const struct wanted *w, struct tern_error *err)
{
	int nr = 0, rc = -ENODEV;
	struct ibv_device **list = ibv_get_device_list(&nr);
	struct ibv_context *ctx;
	int i = 0;

	while (list && i < nr && strcmp(ibv_get_device_name(list[i]), w->name))
		i++;
	if (!list || i == nr) {
		no_such_device(w, list, list ? nr : 0, err);
	} else {
		ctx = ibv_open_device(list[i]);
		if (ctx) {
			rc = check_ports(w, ctx, err);
			ibv_close_device(ctx);
		} else {
			rc = error_session(err, errno ? -errno : -EIO,
					   "Opening RDMA device %s failed: %s; check that "
					   "/dev/infiniband/uverbs* may be read and written",
					   w->name, error_name(errno ? -errno : -EIO));
		}
	}
	if (list)
		ibv_free_device_list(list);
	return rc;
}

/* IPv6 addresses that need a zone. */
static bool is_link_local(const struct sockaddr *sa)
{
	return sa->sa_family == AF_INET6 &&
	       IN6_IS_ADDR_LINKLOCAL(&((const struct sockaddr_in6 *)sa)->sin6_addr);
}

/* Could a connection from @own reach @peer (may be NULL: anybody)? */
static bool fits(const struct sockaddr *own, int family, const struct sockaddr *peer)
{
	if (!own || own->sa_family != family)
		return false;
	if (!peer || !is_link_local(peer))
		return !is_link_local(own);
	return is_link_local(own) && ((const struct sockaddr_in6 *)own)->sin6_scope_id ==
					     ((const struct sockaddr_in6 *)peer)->sin6_scope_id;
}

/* Is @sa an address of the device @want? */
static bool serves(struct rdma_event_channel *cm, const char *want, struct sockaddr *sa)
{
	struct rdma_cm_id *id;
	bool yes;

	if (rdma_create_id(cm, &id, NULL, RDMA_PS_TCP))
		return false;
	yes = !rdma_bind_addr(id, sa) && verbs_device_is(want, id);
	rdma_destroy_id(id);
	return yes;
}

/* An address of @want of @family into *out.  False if it has none. */
static bool find_address(struct rdma_event_channel *cm, const char *want, int family,
			 const struct sockaddr *peer, struct sockaddr_storage *out)
{
	size_t len = family == AF_INET6 ? sizeof(struct sockaddr_in6) : sizeof(struct sockaddr_in);
	struct ifaddrs *list;
	bool found = false;

	if (getifaddrs(&list))
		return false;
	for (struct ifaddrs *a = list; a && !found; a = a->ifa_next) {
		if (!fits(a->ifa_addr, family, peer) || !serves(cm, want, a->ifa_addr))
			continue;
		memset(out, 0, sizeof(*out));
		memcpy(out, a->ifa_addr, len);
		found = true;
	}
	freeifaddrs(list);
	return found;
}

int verbs_device_address(struct rdma_event_channel *cm, const char *want,
			 const struct sockaddr *peer, struct sockaddr_storage *out,
			 struct tern_error *err)
{
	struct wanted w;
	int rc;

	wanted_read(want, &w);
	rc = check_device(&w, err);
	if (rc)
		return rc;
	if (peer ? find_address(cm, want, peer->sa_family, peer, out)
		 : find_address(cm, want, AF_INET, NULL, out) ||
			    find_address(cm, want, AF_INET6, NULL, out))
		return 0;
	return error_session(err, -EADDRNOTAVAIL,
			     "RDMA device %s has no %s address%s; give its network interface one "
			     "(ip address), or name another device",
			     want,
			     !peer                         ? "IP"
			     : peer->sa_family == AF_INET6 ? "IPv6"
							   : "IPv4",
			     peer && is_link_local(peer) ? " in the zone of the peer's" : "");
}
