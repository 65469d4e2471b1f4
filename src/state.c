/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The state machine of both sides, as one table.
 *
 * state             source                                destination
 * ----------------  ------------------------------------  -----------------------------
 * none              configured, not started               the same
 * setup             connecting, handshake; guest runs     listening, handshake
 * active            precopy rounds; guest runs            RAM arrives; guest not running
 * pre-switchover    guest paused, the VMM may still act   (not used)
 * device            guest paused; last pages, state, GO   state loads, READY, waits for GO
 * postcopy-active   guest is the destination's; pages go   guest runs, pages missing
 * postcopy-paused   link lost; waits for recover()         link lost; waits for the source
 * postcopy-recover  a new link is being set up             the same
 * completed         STARTED seen; guest stays paused      guest runs
 * failed            see tern_session_outcome()            guest never ran, or see outcome
 * cancelling        cancel asked for, being carried out   the same
 * cancelled         guest runs on                         guest never ran
 *
 * Only the session's own thread changes the state, except for cancelling, which
 * tern_session_cancel() sets under the session's lock, and only before GO.
 */
#include "state.h"

#include <stddef.h>

enum {
	S = 1 << TERN_SOURCE,
	D = 1 << TERN_DESTINATION,
	SD = S | D,
};

static const struct {
	enum tern_state from, to;
	unsigned roles;
} transitions[] = {
	{ TERN_STATE_NONE, TERN_STATE_SETUP, SD },
	{ TERN_STATE_SETUP, TERN_STATE_ACTIVE, SD },
	{ TERN_STATE_SETUP, TERN_STATE_FAILED, SD },
	{ TERN_STATE_SETUP, TERN_STATE_CANCELLING, SD },
	{ TERN_STATE_ACTIVE, TERN_STATE_PRE_SWITCHOVER, S },
	{ TERN_STATE_ACTIVE, TERN_STATE_DEVICE, SD },
	{ TERN_STATE_ACTIVE, TERN_STATE_FAILED, SD },
	{ TERN_STATE_ACTIVE, TERN_STATE_CANCELLING, SD },
	{ TERN_STATE_PRE_SWITCHOVER, TERN_STATE_DEVICE, S },
	{ TERN_STATE_PRE_SWITCHOVER, TERN_STATE_FAILED, S },
	{ TERN_STATE_PRE_SWITCHOVER, TERN_STATE_CANCELLING, S },
	{ TERN_STATE_DEVICE, TERN_STATE_COMPLETED, SD },
	{ TERN_STATE_DEVICE, TERN_STATE_FAILED, SD },
	{ TERN_STATE_DEVICE, TERN_STATE_CANCELLING, SD },
	{ TERN_STATE_DEVICE, TERN_STATE_POSTCOPY_ACTIVE, SD },
	{ TERN_STATE_DEVICE, TERN_STATE_POSTCOPY_PAUSED, SD },
	{ TERN_STATE_POSTCOPY_ACTIVE, TERN_STATE_POSTCOPY_PAUSED, SD },
	{ TERN_STATE_POSTCOPY_ACTIVE, TERN_STATE_COMPLETED, SD },
	{ TERN_STATE_POSTCOPY_PAUSED, TERN_STATE_POSTCOPY_RECOVER, SD },
	{ TERN_STATE_POSTCOPY_PAUSED, TERN_STATE_FAILED, SD },
	{ TERN_STATE_POSTCOPY_RECOVER, TERN_STATE_POSTCOPY_ACTIVE, SD },
	{ TERN_STATE_POSTCOPY_RECOVER, TERN_STATE_POSTCOPY_PAUSED, SD },
	{ TERN_STATE_CANCELLING, TERN_STATE_CANCELLED, SD },
};

static const char *const names[] = {
	[TERN_STATE_NONE] = "none",
	[TERN_STATE_SETUP] = "setup",
	[TERN_STATE_ACTIVE] = "active",
	[TERN_STATE_PRE_SWITCHOVER] = "pre-switchover",
	[TERN_STATE_DEVICE] = "device",
	[TERN_STATE_POSTCOPY_ACTIVE] = "postcopy-active",
	[TERN_STATE_POSTCOPY_PAUSED] = "postcopy-paused",
	[TERN_STATE_POSTCOPY_RECOVER] = "postcopy-recover",
	[TERN_STATE_COMPLETED] = "completed",
	[TERN_STATE_FAILED] = "failed",
	[TERN_STATE_CANCELLING] = "cancelling",
	[TERN_STATE_CANCELLED] = "cancelled",
};

_Static_assert(sizeof(names) / sizeof(names[0]) == TERN_STATE_NR, "one name per state");

bool state_allowed(enum tern_role role, enum tern_state from, enum tern_state to)
{
	for (size_t i = 0; i < sizeof(transitions) / sizeof(transitions[0]); i++)
		if (transitions[i].from == from && transitions[i].to == to)
			return transitions[i].roles & 1u << role;
	return false;
}

bool state_ended(enum tern_state state)
{
	return state == TERN_STATE_COMPLETED || state == TERN_STATE_FAILED ||
	       state == TERN_STATE_CANCELLED;
}

const char *tern_state_name(enum tern_state state)
{
	if ((unsigned)state >= TERN_STATE_NR)
		return "unknown";
	return names[state];
}
