/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_VMM_VMM_H
#define TERN_VMM_VMM_H

/*
 * The process: one machine, what it is doing, and at most one migration of it.
 *
 * Threads: the main one serves the control socket and alone makes and deletes machines
 * and sessions; vCPUs have threads; a session has its own, on which the callbacks of
 * migration.c run.  The run state is what all of them agree on.
 *
 *	  inmigrate ── destination: GO ──► running ◄─ cont ─ stop ─► paused
 *	      ▲                              │ ▲                       │ ▲
 *	      │              switchover begins │ failed before GO      │ │
 *	      │                              ▼ │                       ▼ │
 *	      └─ migrate-incoming ─ postmigrate ◄── completed ── finish-migrate
 *
 * After GO the guest belongs to the other side: a source whose migration has completed
 * cannot be continued.  If GO was sent and no answer came, the state is paused, and only
 * an operator who knows that the destination does not run it can continue it, by force.
 */

#include <pthread.h>
#include <stdbool.h>
#include <tern/blockers.h>
#include <tern/tern.h>
#include "args.h"
#include "events.h"
#include "machine.h"
#include "migration.h"

/* Names as in QEMU's query-status. */
enum run_state {
	RUN_RUNNING = 0,
	RUN_PAUSED,
	RUN_INMIGRATE, /* no guest yet */
	RUN_FINISH_MIGRATE, /* paused by a migration that has not ended */
	RUN_POSTMIGRATE, /* it has gone */
	RUN_INTERNAL_ERROR, /* it has crashed */
	RUN_NR,
};

struct vmm {
	struct args args;
	struct machine *machine; /* replaced by the main thread, while no session is there */
	struct migration migration;
	struct tern_blockers *blockers; /* see blockers.h */
	struct events events;
	bool quit; /* main thread */

	pthread_mutex_t lock; /* guards what follows; machine->lock nests inside */
	enum run_state state;
	bool in_doubt; /* paused, and perhaps running elsewhere: outcome unknown */
};

/*
 * vmm_init - make the machine; with no --incoming, put the guest in.  It does not run.
 * 0, or -errno with *@err; vmm_fini() is due in both cases.
 */
int vmm_init(struct vmm *v, const struct args *args, struct tern_error *err);
void vmm_fini(struct vmm *v);

/* vmm_renew - another machine, with empty RAM, to take a guest in.  Main thread. */
int vmm_renew(struct vmm *v, struct tern_error *err);

/* vmm_stop, vmm_cont - the operator wants so.  0, or -EBUSY … with *@err.  Main thread. */
int vmm_stop(struct vmm *v, struct tern_error *err);
int vmm_cont(struct vmm *v, bool force, struct tern_error *err);

/* vmm_in_doubt - may the guest be running elsewhere?  Then *@err says so. */
bool vmm_in_doubt(struct vmm *v, struct tern_error *err);

/* vmm_state - the run state; vmm_state_name - "running", "paused", ….  Any thread. */
enum run_state vmm_state(struct vmm *v);
const char *vmm_state_name(enum run_state state);

/* vmm_complain - "tern-vm: …" and a newline on stderr. */
void vmm_complain(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#endif
