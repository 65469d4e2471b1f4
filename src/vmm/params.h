/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_VMM_PARAMS_H
#define TERN_VMM_PARAMS_H

/*
 * Migration parameters, as `migrate-set-parameters` sets them.  They are kept from one
 * migration to the next; names and limits are the library's (tern_param_info()), those
 * that name one of several things take its name.
 */

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <tern/tern.h>

#define PARAMS_TEXT_MAX 256u

struct params {
	bool set[TERN_PARAM_NR]; /* else the library's default counts */
	uint64_t value[TERN_PARAM_NR];
	char text[TERN_TEXT_NR][PARAMS_TEXT_MAX]; /* "": default */
};

/*
 * params_set - take over what @wanted, a JSON object, says; all of it or nothing.
 *
 * @s: the session that is running, whose parameters change along where they can, or NULL.
 * 0, or -errno with *@err: -EINVAL (name, kind, limits), -EBUSY (not while it runs).
 */
int params_set(struct params *p, const json_t *wanted, struct tern_session *s,
	       struct tern_error *err);

/* params_apply - give them to a session that has not started.  0, or -errno with *@err. */
int params_apply(const struct params *p, struct tern_session *s, struct tern_error *err);

/* params_json - all of them, as `query-migrate-parameters` answers. */
json_t *params_json(const struct params *p);

#endif
