/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_SRC_BLOCKERS_H
#define TERN_SRC_BLOCKERS_H

#include <tern/blockers.h>
#include <tern/error.h>

/*
 * blockers_begin - a migration is about to begin.
 *
 * 0, and until blockers_end() no reason can be added; -EPERM with the reasons in *err.
 * NULL is a list without reasons, for both.
 */
int blockers_begin(struct tern_blockers *b, struct tern_error *err);
void blockers_end(struct tern_blockers *b);

#endif
