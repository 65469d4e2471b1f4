/* SPDX-License-Identifier: BSD-2-Clause */

/* Which transport serves which URI scheme in this build, and which one "auto" means. */

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <tern/session.h>
#include "error.h"
#include "tcp.h"
#include "transport.h"
#include "uri.h"
#ifdef HAVE_RDMA
#include "rdma_transport.h"
#endif

#define WHY_MAX 200

static const struct transport *const transports[] = {
	[URI_TCP] = &tcp_transport,
	[URI_UNIX] = &unix_transport,
#ifdef HAVE_RDMA
	[URI_RDMA] = &rdma_transport,
#else
	[URI_RDMA] = NULL,
#endif
	[URI_AUTO] = &tcp_transport, /* unless transport_choose() finds better */
};

_Static_assert(sizeof(transports) / sizeof(transports[0]) == URI_SCHEME_NR, "a scheme has no row");

/* "auto": is there an RDMA device here with a way to the host of @uri?  @why says so. */
static bool auto_means_rdma(const struct uri *uri, char *why, size_t size)
{
#ifdef HAVE_RDMA
	char address[64];

	if (uri->host[0])
		return !rdma_route(uri, why, size);
	return !rdma_available(address, sizeof(address), why, size);
#else
	(void)uri;
	snprintf(why, size, "this build has no RDMA");
	return false;
#endif
}

int transport_choose(const struct uri *uri, const char *rdma_device, const struct transport **out,
		     char *why, size_t size, struct tern_error *err)
{
	char reason[WHY_MAX] = "the URI says so";
	int rc = transport_find(uri, out, err);

	if (rc)
		return rc;
	if (uri->scheme == URI_AUTO && *rdma_device) {
		struct uri named = *uri;

		named.scheme = URI_RDMA;
		snprintf(reason, sizeof(reason), "the user named RDMA device %.64s", rdma_device);
		rc = transport_find(&named, out, err);
		if (rc)
			return rc;
	} else if (uri->scheme == URI_AUTO && auto_means_rdma(uri, reason, sizeof(reason))) {
		*out = transports[URI_RDMA];
	}
	if (why)
		snprintf(why, size, "%s", reason);
	return 0;
}

int transport_find(const struct uri *uri, const struct transport **out, struct tern_error *err)
{
	const struct transport *t = NULL;

	if ((unsigned)uri->scheme < URI_SCHEME_NR)
		t = transports[uri->scheme];
	if (!t)
		return error_session(err, -EPROTONOSUPPORT,
				     "RDMA is not in this build; use tcp:%s:%s, or build with "
				     "libibverbs and librdmacm",
				     uri->host[0] ? uri->host : "HOST", uri->port);
	*out = t;
	return 0;
}

int tern_transport_available(const char *scheme, char *why, size_t size)
{
	char reason[WHY_MAX] = "sockets are always there";
	int rc = 0;

	if (scheme && !strcmp(scheme, "rdma")) {
#ifdef HAVE_RDMA
		char address[64];

		rc = rdma_available(address, sizeof(address), reason, sizeof(reason));
#else
		rc = -EPROTONOSUPPORT;
		snprintf(reason, sizeof(reason), "the RDMA transport is not in this build");
#endif
	} else if (!scheme || (strcmp(scheme, "tcp") && strcmp(scheme, "unix"))) {
		rc = -EINVAL;
		snprintf(reason, sizeof(reason), "there is no such transport");
	}
	if (why && size)
		snprintf(why, size, "%s", reason);
	return rc;
}

int transport_push_check(const struct transport_env *env, unsigned channel, size_t len,
			 uint64_t contents, struct tern_error *err)
{
	if (!env->push)
		return error_channel(err, -EINVAL, channel,
				     "Contents cannot be pushed on channel %u: its connection was "
				     "made without (env.push)",
				     channel);
	if (len < 1 || len > TRANSPORT_PUSH_MSG_MAX)
		return error_channel(err, -EMSGSIZE, channel,
				     "A push with a message of %zu bytes cannot be sent; 1 to %u "
				     "can",
				     len, TRANSPORT_PUSH_MSG_MAX);
	if (contents > TRANSPORT_PUSH_MAX)
		return error_channel(err, -EMSGSIZE, channel,
				     "A push of %llu bytes of contents cannot be sent; 1 to %u can",
				     (unsigned long long)contents, TRANSPORT_PUSH_MAX);
	return 0;
}
