/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_VMM_BLOCKERS_H
#define TERN_VMM_BLOCKERS_H

/*
 * Why the guest must not migrate now, as an operator says (`x-blocker-add`).
 *
 * All devices of tern-vm can migrate, so it has no reasons of its own; a VMM with one that
 * cannot adds its reason where the device is plugged in.  The library refuses to begin a
 * migration while there are some.  Main thread.
 */

#include <jansson.h>
#include <tern/error.h>

struct vmm;

/*
 * blockers_add - one more reason; its number is in *@id.
 *
 * 0, or -errno with *@err: -EBUSY (a migration runs), -EINVAL (empty, or too long), -ENOMEM.
 */
int blockers_add(struct vmm *v, const char *reason, int *id, struct tern_error *err);

/* blockers_remove - reason @id is gone.  0, or -ENOENT with *@err. */
int blockers_remove(struct vmm *v, int id, struct tern_error *err);

/* blockers_json - all reasons, an array of texts; NULL: there is none. */
json_t *blockers_json(const struct vmm *v);

#endif
