/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_RDMA_TRANSPORT_H
#define TERN_RDMA_TRANSPORT_H

/* What src/ sees of the RDMA transport. */

#include <stddef.h>
#include "transport.h"

extern const struct transport rdma_transport;

/*
 * rdma_available - is there an RDMA device here that is up and has an IP address?
 *
 * 0 with the address in @address; -ENODEV.  @why says which device, or what is missing.
 */
int rdma_available(char *address, size_t size, char *why, size_t why_size);

/* rdma_route - does an RDMA device here lead to the host of @uri?  0 or -errno; @why as above. */
int rdma_route(const struct uri *uri, char *why, size_t size);

#endif
