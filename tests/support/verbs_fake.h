/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_TESTS_VERBS_FAKE_H
#define TERN_TESTS_VERBS_FAKE_H

/*
 * An RDMA device that is not there.
 *
 * Linked into a test, it takes the place of the ibv_* and rdma_* functions that the
 * RDMA transport calls, so that both ends of a connection run in one process on any
 * machine.  It is strict: a SEND that meets an empty receive queue, a write with a
 * key of another protection domain or outside its registration, a buffer that is not
 * registered: each is the completion error that a device would give.
 *
 * Faults are injected by count; 0 is none, n is the n-th call from now.
 */

#include <infiniband/verbs.h>
#include <stdbool.h>

enum verbs_fake_fault {
	FAKE_REG_ENOMEM, /* the n-th and all later registrations of guest memory fail */
	FAKE_ADDR_ERROR, /* resolving an address fails */
	FAKE_ROUTE_ERROR,
	FAKE_REJECT, /* a connection is rejected, reason 28 without private data */
	FAKE_POST_ENOMEM, /* posting a list of RDMA writes fails */
	FAKE_NR,
};

/* verbs_fake_fault - the @n-th such call fails. */
void verbs_fake_fault(enum verbs_fake_fault which, unsigned n);

/* verbs_fake_wc - the @n-th RDMA write completes with @status, and its queue pair dies. */
void verbs_fake_wc(unsigned n, enum ibv_wc_status status);

/* verbs_fake_remove_device - every identifier gets a DEVICE_REMOVAL event. */
void verbs_fake_remove_device(void);

/* verbs_fake_absent - there is no device from now on (until reset). */
void verbs_fake_absent(void);

/* verbs_fake_objects - how many objects of any kind exist: 0 when nothing leaked. */
unsigned verbs_fake_objects(void);

/* verbs_fake_reset - no faults. */
void verbs_fake_reset(void);

#endif
