/* SPDX-License-Identifier: BSD-2-Clause */

/* Which transport serves which URI scheme in this build. */

#include <errno.h>
#include "error.h"
#include "tcp.h"
#include "transport.h"
#include "uri.h"

static const struct transport *const transports[] = {
	[URI_TCP] = &tcp_transport,
	[URI_UNIX] = &unix_transport,
	[URI_RDMA] = NULL,
	[URI_AUTO] = &tcp_transport,
};

_Static_assert(sizeof(transports) / sizeof(transports[0]) == URI_SCHEME_NR, "a scheme has no row");

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
