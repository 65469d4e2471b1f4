/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_BLOCKERS_H
#define TERN_BLOCKERS_H

/*
 * Migration blockers: reasons why a guest cannot migrate now (a device whose state
 * cannot be moved, say), each with a sentence for the operator.
 *
 * They belong to the guest and not to a migration, so they live in an object of
 * their own, which a VMM makes once and gives to each session
 * (tern_session_set_blockers()).  A session does not start while there is a reason, and
 * no reason can be added while a session runs.
 *
 * All functions may be called from any thread, and never block for long.
 */

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

#define TERN_BLOCKER_REASON_MAX 159u /* bytes without the terminating 0 */

struct tern_blockers;

/* tern_blockers_new - an empty list.  0 or -ENOMEM. */
int tern_blockers_new(struct tern_blockers **out);

/* tern_blockers_delete - free *@b, which no session may use, and set it to NULL. */
void tern_blockers_delete(struct tern_blockers **b);

/*
 * tern_blockers_add - from now on the guest does not migrate, because of @reason.
 *
 * @reason is copied.  Returns an id > 0 for tern_blockers_remove(); -EBUSY (a migration
 * runs: whatever would block it has to wait or to be refused), -EINVAL (empty, or longer
 * than TERN_BLOCKER_REASON_MAX), -ENOMEM.
 */
int tern_blockers_add(struct tern_blockers *b, const char *reason);

/* tern_blockers_remove - reason @id is gone.  0 or -ENOENT. */
int tern_blockers_remove(struct tern_blockers *b, int id);

/*
 * tern_blockers_get - reason number @index, counted from 0, in the order of adding.
 *
 * Into @buf of @size bytes.  Returns its id, or -ENOENT if there are fewer.
 */
int tern_blockers_get(struct tern_blockers *b, unsigned index, char *buf, size_t size);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif

#endif
