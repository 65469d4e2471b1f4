/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_SRC_STATE_H
#define TERN_SRC_STATE_H

#include <stdbool.h>
#include <tern/session.h>

/*
 * Session states and the transitions between them.
 *
 * state_allowed - may a session in role @role go from @from to @to?  Looks into
 * one constant table that serves both sides (state.c).
 */
bool state_allowed(enum tern_role role, enum tern_state from, enum tern_state to);

/* state_ended - COMPLETED, FAILED or CANCELLED: nothing follows. */
bool state_ended(enum tern_state state);

#endif
