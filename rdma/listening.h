/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_RDMA_LISTENING_H
#define TERN_RDMA_LISTENING_H

/*
 * An address where the destination listens.
 *
 * Private to the RDMA transport.
 */

#include <rdma/rdma_cma.h>
#include <stddef.h>
#include <tern/error.h>
#include "cm.h"
#include "uri.h"

struct verbs_listening {
	struct rdma_event_channel *cm;
	struct rdma_cm_id *id;
	const char *device; /* that the user named; NULL or "": none */
	char host[URI_HOST_MAX + 1]; /* as the user named it, or the device's; "": any */
	int family; /* of the address that id is bound to */
};

/* verbs_listening_open - listen at @uri; @l is zero.  0 or -errno with *err: close it then. */
int verbs_listening_open(struct verbs_listening *l, const char *device, const struct uri *uri,
			 struct tern_error *err);
void verbs_listening_close(struct verbs_listening *l);
/* verbs_listening_uri - where a source can reach it.  The length, as uri_format(). */
int verbs_listening_uri(const struct verbs_listening *l, char *buf, size_t size);

#endif
