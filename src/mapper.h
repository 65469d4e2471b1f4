/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_SRC_MAPPER_H
#define TERN_SRC_MAPPER_H

/*
 * Other processes that map guest RAM (vhost-user style).
 *
 * Such a process has page tables of its own, so it has faults of its own: it registers its
 * mappings of the same memory with a userfaultfd that it makes, and hands that over.  Its
 * faults are read by the fault threads, and count as the guest's; what they wait for is
 * mapped in that process as well when it is there.
 *
 * A mapper is made under the session's lock and lives until the placement goes.  Its
 * asked sets are atomics; the order in which they are set is that of placement.h.
 */

#include <stdbool.h>
#include <stdint.h>
#include <tern/session.h>

#include "placement.h"

struct mapper;
struct tern_error;

/*
 * mapper_new - @uffd is duplicated; *@maps copied and checked against the regions.
 *
 * 0; -EINVAL (a mapping outside its region, not in whole host pages, of private memory,
 * overlapping another), -ENOMEM, -EBADF, with *err.
 */
int mapper_new(const struct placement *p, int uffd, const struct tern_mapping *maps, unsigned nr,
	       struct mapper **out, struct tern_error *err);

/* mapper_delete - unregister its mappings, which wakes who waits, and free. */
void mapper_delete(struct mapper **m);

/* mapper_forsake - unregister its mappings, which wakes who waits; it stays. */
void mapper_forsake(struct mapper *m);

/* mapper_fd - its userfaultfd. */
int mapper_fd(const struct mapper *m);

/* mapper_find - which page of guest RAM is at address @hva of that process?  False: none. */
bool mapper_find(const struct placement *p, const struct mapper *m, uint64_t hva,
		 struct placement_fault *f);

/* mapper_ask - a thread of that process waits for @f. */
void mapper_ask(struct mapper *m, const struct placement_fault *f);

/* mapper_resolve - map @f, which is here, if somebody there has asked.  0 or -errno. */
int mapper_resolve(const struct placement *p, struct mapper *m, const struct placement_fault *f);

#endif
