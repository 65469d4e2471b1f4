/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_VMM_BOOT_H
#define TERN_VMM_BOOT_H

/* Starting a guest from nothing, as bootinfo.h promises it. */

#include "machine.h"

/*
 * boot - load guest @name with arguments @args ("" for none), and set all vCPUs to
 * its entry.  The machine has not run yet.  0, or -errno with *@err.
 */
int boot(struct machine *m, const char *name, const char *args, struct tern_error *err);

#endif
