/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * Where the destination listens.
 *
 *	rdma:HOST:PORT    the first address of HOST that an RDMA device here serves
 *	rdma::PORT        all addresses, of both families; with --rdma-device one of its own
 *
 * An address that cannot be had is told with its reason: the kernel answers with the same
 * error to a port that is taken and to an address that no device serves.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "error.h"
#include "listening.h"
#include "verbs.h"

#define BACKLOG 16

/*
 * Why binding to @sa failed with -EADDRNOTAVAIL: a port that is taken on another
 * address (or on all) gives the same as an address that no device serves.
 */
static int bind_reason(struct verbs_listening *l, const struct sockaddr *sa)
{
	struct sockaddr_storage any = { 0 };
	struct rdma_cm_id *id;
	int rc = -EADDRNOTAVAIL;

	if (sa->sa_family == AF_INET6) {
		memcpy(&any, sa, sizeof(struct sockaddr_in6));
		((struct sockaddr_in6 *)&any)->sin6_port = 0;
	} else {
		memcpy(&any, sa, sizeof(struct sockaddr_in));
		((struct sockaddr_in *)&any)->sin_port = 0;
	}
	if (rdma_create_id(l->cm, &id, NULL, RDMA_PS_TCP))
		return rc;
	if (!rdma_bind_addr(id, (struct sockaddr *)&any))
		rc = -EADDRINUSE;
	rdma_destroy_id(id);
	return rc;
}

/* Is the bound address one of the device that the user named?  0 or -EADDRNOTAVAIL. */
static int check_bound(const struct verbs_listening *l, const char *text, struct tern_error *err)
{
	const char *device = l->device;

	if (!device || !*device || verbs_device_is(device, l->id))
		return 0;
	return error_session(
		err, -EADDRNOTAVAIL,
		"Listening on %s for RDMA failed: %s serves that address, not %s; give "
		"an address of that device, or no host",
		text, l->id->verbs ? ibv_get_device_name(l->id->verbs->device) : "no single device",
		device);
}

/* What to do about an address that cannot be had. */
static const char *bind_remedy(int rc)
{
	return rc == -EADDRINUSE ? "another program listens there"
				 : "check that an RDMA device serves that address (rdma link, ip "
				   "address)";
}

/* Bind to @sa and listen there.  0 or -errno with *err, and then nothing is left of it. */
static int listen_on(struct verbs_listening *l, struct sockaddr *sa, struct tern_error *err)
{
	char text[VERBS_TEXT_MAX];
	int rc = 0, one_family = 0;

	verbs_address_text(sa, text, sizeof(text));
	if (rdma_create_id(l->cm, &l->id, NULL, RDMA_PS_TCP)) {
		l->id = NULL;
		return error_session(err, -errno, "Making an RDMA connection identifier failed: %s",
				     error_name(-errno));
	}
	if (!l->host[0]) /* where that cannot be said both are taken unless net.ipv6.bindv6only */
		(void)rdma_set_option(l->id, RDMA_OPTION_ID, RDMA_OPTION_ID_AFONLY, &one_family,
				      sizeof(one_family));
	if (rdma_bind_addr(l->id, sa) || rdma_listen(l->id, BACKLOG)) {
		rc = -errno;
		if (rc == -EADDRNOTAVAIL)
			rc = bind_reason(l, sa);
		error_session(err, rc, "Listening on %s for RDMA failed: %s; %s", text,
			      error_name(rc), bind_remedy(rc));
	} else {
		rc = check_bound(l, text, err);
	}
	l->family = sa->sa_family;
	if (rc) {
		rdma_destroy_id(l->id);
		l->id = NULL;
	}
	return rc;
}

/* Does @rc mean that the address is not of this host, or of the device?  Another one may be. */
static bool is_elsewhere(int rc)
{
	return rc == -ENODEV || rc == -EADDRNOTAVAIL || rc == -EAFNOSUPPORT;
}

/* The first of @list that is an address of this host.  0 or -errno with *err. */
static int listen_first(struct verbs_listening *l, const struct addrinfo *list,
			struct tern_error *err)
{
	struct tern_error why = { 0 };
	int rc = -EADDRNOTAVAIL;

	for (const struct addrinfo *a = list; a && is_elsewhere(rc); a = a->ai_next) {
		error_clear(&why);
		rc = listen_on(l, a->ai_addr, &why);
	}
	return rc ? error_session(err, rc, "%s", why.message) : 0;
}

/* All addresses, of both families: with IPv6 that includes IPv4, without there is IPv4. */
static int listen_any(struct verbs_listening *l, const struct uri *uri, struct tern_error *err)
{
	in_port_t port = htons((uint16_t)atoi(uri->port));
	struct sockaddr_in6 v6 = { .sin6_family = AF_INET6, .sin6_port = port };
	struct sockaddr_in v4 = { .sin_family = AF_INET, .sin_port = port };
	struct addrinfo last = { .ai_addr = (struct sockaddr *)&v4 };
	struct addrinfo first = { .ai_addr = (struct sockaddr *)&v6, .ai_next = &last };

	return listen_first(l, &first, err);
}

/* An address of the device that the user named, who named no host. */
static int listen_device(struct verbs_listening *l, const struct uri *uri, struct tern_error *err)
{
	in_port_t port = htons((uint16_t)atoi(uri->port));
	struct sockaddr_storage addr = { 0 };
	struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&addr;
	struct sockaddr_in *v4 = (struct sockaddr_in *)&addr;
	int rc = verbs_device_address(l->cm, l->device, NULL, &addr, err);

	if (rc)
		return rc;
	if (addr.ss_family == AF_INET6) {
		v6->sin6_port = port;
		inet_ntop(AF_INET6, &v6->sin6_addr, l->host, sizeof(l->host));
	} else {
		v4->sin_port = port;
		inet_ntop(AF_INET, &v4->sin_addr, l->host, sizeof(l->host));
	}
	return listen_on(l, (struct sockaddr *)&addr, err);
}

/* One address of a name: a source that is given the name tries them all. */
static int listen_name(struct verbs_listening *l, const struct uri *uri, struct tern_error *err)
{
	struct addrinfo *list;
	int rc = verbs_resolve(uri, AI_PASSIVE, &list, err);

	if (rc)
		return rc;
	rc = listen_first(l, list, err);
	freeaddrinfo(list);
	return rc;
}

int verbs_listening_open(struct verbs_listening *l, const char *device, const struct uri *uri,
			 struct tern_error *err)
{
	int rc;

	l->device = device;
	snprintf(l->host, sizeof(l->host), "%s", uri->host);
	rc = verbs_cm_channel(&l->cm, err);
	if (rc)
		return rc;
	if (uri->host[0])
		return listen_name(l, uri, err);
	return l->device && *l->device ? listen_device(l, uri, err) : listen_any(l, uri, err);
}

void verbs_listening_close(struct verbs_listening *l)
{
	if (l->id)
		rdma_destroy_id(l->id);
	if (l->cm)
		rdma_destroy_event_channel(l->cm);
}

int verbs_listening_uri(const struct verbs_listening *l, char *buf, size_t size)
{
	struct uri uri = { .scheme = URI_RDMA };

	snprintf(uri.host, sizeof(uri.host), "%s", l->host);
	if (!uri.host[0]) /* any address: name one that works */
		(void)verbs_local_address(l->family == AF_INET ? AF_INET : AF_UNSPEC, uri.host,
					  sizeof(uri.host), NULL, 0);
	snprintf(uri.port, sizeof(uri.port), "%u", be16toh(rdma_get_src_port(l->id)));
	return uri_format(&uri, buf, size);
}
