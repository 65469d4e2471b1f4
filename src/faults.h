/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_SRC_FAULTS_H
#define TERN_SRC_FAULTS_H

/*
 * The destination's fault threads: they read the userfaultfd, resolve what is here, and
 * ask the source for what is not.
 *
 *	read() up to 64 faults ─┬─ page is here ──► resolve
 *	                        ├─ asked before ──► wait
 *	                        └─ first to ask ──► one PAGES_WANTED for all of the batch
 *
 * They take no lock that a thread holds while it touches guest memory, and touch none
 * themselves.  A request that cannot be sent is not lost: what was asked for and is not
 * here is asked for again when the link is back (faults_ask_again()).
 *
 * Times of a fault:
 *
 *	notice    from the moment at which its thread could have looked at it to when it did
 *	request   until the request was on its way
 *	transfer  until the page was here
 *	place     until the guest could go on
 *
 * When the kernel queued the fault cannot be seen from here; that time, some
 * microseconds, is in none of them.
 */

#include <stdint.h>
#include <tern/stats.h>

#include "placement.h"
#include "wire.h"

struct faults;
struct tern_error;

#define FAULTS_THREADS_MAX 16u

struct faults_config {
	struct placement *placement;
	unsigned nr_threads;
	/* Ask the source for pages; may fail.  Fault threads. */
	int (*request)(void *opaque, const struct wire_page_range *v, unsigned nr);
	/* A fault that cannot be resolved: the guest's thread hangs.  Fault threads. */
	void (*fail)(void *opaque, const struct tern_error *why);
	void *opaque;
};

/* faults_start - start the threads; the placement tells them what is resolved.  0 or -errno. */
int faults_start(const struct faults_config *config, struct faults **out, struct tern_error *err);

/* faults_stop - end the threads and free. */
void faults_stop(struct faults **f);

/* faults_mappers_changed - the placement has one more.  Any thread. */
void faults_mappers_changed(struct faults *f);

/* faults_forsake - nothing will come: let go on who waits, soon (placement_forsake()).  Any thread. */
void faults_forsake(struct faults *f);

/* faults_ask_again - all that threads wait for, after the link was lost.  0 or -errno. */
int faults_ask_again(struct faults *f);

/* For the placement, whose opaque is the struct faults. */
void faults_resolving(void *faults, uint32_t region, uint64_t host_page);
void faults_resolved(void *faults, uint32_t region, uint64_t host_page);

/* faults_stats - figures so far.  Any thread. */
void faults_stats(struct faults *f, struct tern_postcopy_stats *out);

#endif
