/* SPDX-License-Identifier: BSD-2-Clause */

/* Reasons not to migrate; see blockers.h. */

#include "blockers.h"

#include <errno.h>
#include <string.h>
#include <tern/blockers.h>
#include "vmm.h"
#include "../cli/cli.h"

int blockers_add(struct vmm *v, const char *reason, int *id, struct tern_error *err)
{
	struct migration *g = &v->migration;
	int ret = tern_blockers_add(v->blockers, reason);

	/* One that has ended forbids it until its threads have, which is a moment later. */
	if (ret == -EBUSY && !migration_runs(g)) {
		tern_session_wait(g->session, -1);
		ret = tern_blockers_add(v->blockers, reason);
	}
	if (ret == -EBUSY)
		return cli_fail(
			err, ret,
			"cannot block migration: one is under way (%s); wait for its end, or "
			"cancel it",
			tern_state_name(tern_session_state(g->session)));
	if (ret == -EINVAL)
		return cli_fail(err, ret,
				"a reason must be text of 1 to %u bytes, this one has %zu",
				TERN_BLOCKER_REASON_MAX, strlen(reason));
	if (ret < 0)
		return cli_fail(err, ret, "cannot block migration: %s", strerror(-ret));
	*id = ret;
	return 0;
}

int blockers_remove(struct vmm *v, int id, struct tern_error *err)
{
	if (!tern_blockers_remove(v->blockers, id))
		return 0;
	return cli_fail(err, -ENOENT, "migration is not blocked by a reason with id %d", id);
}

json_t *blockers_json(const struct vmm *v)
{
	char reason[TERN_BLOCKER_REASON_MAX + 1];
	json_t *list = NULL;

	for (unsigned i = 0; tern_blockers_get(v->blockers, i, reason, sizeof(reason)) > 0; i++) {
		list = list ? list : json_array();
		json_array_append_new(list, json_string(reason));
	}
	return list;
}
