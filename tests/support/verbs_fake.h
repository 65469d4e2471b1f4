/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_TESTS_VERBS_FAKE_H
#define TERN_TESTS_VERBS_FAKE_H

/*
 * An RDMA device that is not there.
 *
 * Linked into a test, it takes the place of the ibv_* and rdma_* functions that the
 * RDMA transport calls, so that both ends of a connection run in one process on any
 * machine.  The device serves the loopback addresses.
 *
 * It is strict: a SEND that meets an empty receive queue, a write with a key of
 * another protection domain or outside its registration, a buffer that is not
 * registered: each is the completion error that a device would give.  What no program
 * may do (free a domain that is in use, overrun a completion queue, free a queue whose
 * events are not acknowledged) ends the process with a sentence on stderr.
 *
 * Faults are injected by count: the n-th call of a kind from now, 1 is the next one.
 */

#include <infiniband/verbs.h>
#include <stdbool.h>

/* Calls that can be made to fail with an errno. */
enum verbs_fake_call {
	FAKE_OBJECT, /* the creation of any object: those marked with + */
	FAKE_EVENT_CHANNEL, /* + */
	FAKE_CM_ID, /* + */
	FAKE_PD, /* + */
	FAKE_COMP_CHANNEL, /* + */
	FAKE_CQ, /* + */
	FAKE_QP, /* + */
	FAKE_REG_BUFFER, /* + registration of the transport's own buffers */
	FAKE_REG_SOURCE, /* + of guest memory, without remote access */
	FAKE_REG_DESTINATION, /* + of guest memory that the peer may write */
	FAKE_MW, /* + a memory window */
	FAKE_MIGRATE_ID,
	FAKE_RESOLVE, /* rdma_resolve_addr() itself; for an event see below */
	FAKE_BIND, /* rdma_bind_addr() */
	FAKE_LISTEN,
	FAKE_CONNECT,
	FAKE_ACCEPT,
	FAKE_POST_WRITE, /* posting a list that begins with an RDMA write */
	FAKE_POST_FRAME, /* posting a SEND on a data channel */
	FAKE_POST_BIND, /* posting the binding of a memory window */
	FAKE_POST_CONTROL, /* posting a SEND on a control queue */
	FAKE_POST_RECV, /* posting a receive, of either kind */
	FAKE_POLL_CHANNEL, /* ibv_poll_cq() of a data channel */
	FAKE_POLL_CONTROL,
	FAKE_NOTIFY_CHANNEL, /* ibv_req_notify_cq() */
	FAKE_NOTIFY_CONTROL,
	FAKE_QUERY_DEVICE,
	FAKE_QUERY_PORT,
	FAKE_CALL_NR,
};

/* verbs_fake_fail - the @n-th such call fails with @code (ENOMEM…), once. */
void verbs_fake_fail(enum verbs_fake_call which, unsigned n, int code);

/* verbs_fake_fail_from - the @n-th such call fails with @code, and all later ones. */
void verbs_fake_fail_from(enum verbs_fake_call which, unsigned n, int code);

/*
 * verbs_fake_at - before the @n-th such call does anything @fn(@opaque) runs, once, in the
 * thread that calls: what others do in the middle of what that thread does.
 */
void verbs_fake_at(enum verbs_fake_call which, unsigned n, void (*fn)(void *), void *opaque);

/* verbs_fake_fired - how many faults of any kind have acted since reset. */
unsigned verbs_fake_fired(void);

/* What the connection manager can answer instead. */
enum verbs_fake_answer {
	FAKE_ADDR_ERROR, /* to resolving an address */
	FAKE_ADDR_TIMEOUT, /* the same: nobody answered within the time */
	FAKE_ROUTE_ERROR, /* to resolving a route */
	FAKE_REJECT, /* to a connect: rejected, reason 28, no private data */
	FAKE_REJECT_FOREIGN, /* the same with private data of another program */
	FAKE_UNREACHABLE, /* to a connect */
	FAKE_SILENCE, /* to a connect: nothing, ever */
	FAKE_ANSWER_NR,
};

/* verbs_fake_answer - so the @n-th such request is answered, once. */
void verbs_fake_answer(enum verbs_fake_answer which, unsigned n);

/* Work requests, by what they are for. */
enum verbs_fake_wr {
	FAKE_WR_WRITE, /* RDMA write */
	FAKE_WR_FRAME, /* SEND on a data channel, by the connecting side */
	FAKE_WR_ANSWER, /* SEND on a data channel, by the accepting side */
	FAKE_WR_CONTROL, /* SEND on a control queue, by the connecting side */
	FAKE_WR_CONTROL_BACK, /* SEND on a control queue, by the accepting side */
	FAKE_WR_BIND, /* of a memory window; never held back */
	FAKE_WR_NR,
};

#define FAKE_WC_LOST (-1) /* carried out, but no completion ever tells the sender */
#define FAKE_WC_UNHEARD (-2) /* a SEND that completes, but not at the receiver */

/*
 * verbs_fake_wc - the @n-th such work request completes with @status.
 *
 * An enum ibv_wc_status: it is not carried out, and its queue pair is in the error
 * state afterwards.  Or one of the FAKE_WC_*.
 */
void verbs_fake_wc(enum verbs_fake_wr which, unsigned n, int status);

/*
 * verbs_fake_hold - completions of what data channels send and write wait, from now on;
 * or all that wait are delivered, in order.  verbs_fake_held() is how many wait.
 */
void verbs_fake_hold(bool hold);
/* The same for what the accepting side sends only. */
void verbs_fake_hold_answers(bool hold);
unsigned verbs_fake_held(void);

/* verbs_fake_qp_error - all data (or control) queue pairs go to the error state. */
void verbs_fake_qp_error(bool data);

/*
 * verbs_fake_memlock - most bytes of guest memory that either side may have registered
 * at once; 0: no limit.  Until reset.
 */
void verbs_fake_memlock(uint64_t source, uint64_t destination);

/* verbs_fake_legacy - the device has no ibv_wr_* functions from now on. */
void verbs_fake_legacy(bool on);

/* verbs_fake_max_inline - most bytes that a send can carry inline; 0: none. */
void verbs_fake_max_inline(uint32_t bytes);

/* verbs_fake_paging - the device has on-demand paging from now on (until reset). */
void verbs_fake_paging(void);

/* verbs_fake_prefetched - bytes so advised: to be read by the device, or written. */
uint64_t verbs_fake_prefetched(bool write);

/* verbs_fake_mws - how many memory windows there are, bound to a queue pair. */
unsigned verbs_fake_mws(void);

/* verbs_fake_remove_device - every identifier gets a DEVICE_REMOVAL event. */
void verbs_fake_remove_device(void);

/* verbs_fake_no_ipv4 - the device serves ::1 only from now on (until reset). */
void verbs_fake_no_ipv4(void);

/* verbs_fake_absent - there is no device from now on (until reset). */
void verbs_fake_absent(void);

/* What the device says of itself; changes hold until reset. */
struct ibv_device_attr *verbs_fake_device_attr(void);
struct ibv_port_attr *verbs_fake_port_attr(void);

/* verbs_fake_objects - how many objects of any kind exist: 0 when nothing leaked. */
unsigned verbs_fake_objects(void);

/* verbs_fake_reset - no faults, device and port as they were. */
void verbs_fake_reset(void);

#endif
