/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * The commands of the control socket: one table, a row and a function for each.
 *
 * A function gets the arguments (an object, perhaps empty), and gives what goes behind
 * "return" (NULL: an empty object), or fails with a sentence.
 */

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include "blockers.h"
#include "qmp.h"
#include "../cli/cli.h"

/* An argument that is text; fails if it is not there. */
static const char *text_argument(const json_t *args, const char *name, struct tern_error *err)
{
	const char *text = json_string_value(json_object_get(args, name));

	if (!text)
		cli_fail(err, -EINVAL, "argument \"%s\" is missing, or no text", name);
	return text;
}

/* An argument that is a number from 1 on; 0 with *err if it is none. */
static int number_argument(const json_t *args, const char *name, struct tern_error *err)
{
	const json_t *v = json_object_get(args, name);
	json_int_t n = json_integer_value(v);

	if (json_is_integer(v) && n > 0 && n <= INT_MAX)
		return (int)n;
	cli_fail(err, -EINVAL, "argument \"%s\" is missing, or no number from 1 to %d", name,
		 INT_MAX);
	return 0;
}

static int cmd_capabilities(struct vmm *v, const json_t *args, json_t **out, struct tern_error *err)
{
	return 0;
}

static int cmd_stop(struct vmm *v, const json_t *args, json_t **out, struct tern_error *err)
{
	return vmm_stop(v, err);
}

static int cmd_cont(struct vmm *v, const json_t *args, json_t **out, struct tern_error *err)
{
	return vmm_cont(v, json_is_true(json_object_get(args, "force")), err);
}

static int cmd_quit(struct vmm *v, const json_t *args, json_t **out, struct tern_error *err)
{
	v->quit = true;
	return 0;
}

static int cmd_query_status(struct vmm *v, const json_t *args, json_t **out, struct tern_error *err)
{
	enum run_state state = vmm_state(v);

	*out = json_pack("{s:s, s:b}", "status", vmm_state_name(state), "running",
			 state == RUN_RUNNING);
	return 0;
}

static int cmd_migrate(struct vmm *v, const json_t *args, json_t **out, struct tern_error *err)
{
	const char *uri = text_argument(args, "uri", err);

	if (!uri)
		return -EINVAL;
	if (json_is_true(json_object_get(args, "resume")))
		return migration_recover(&v->migration, uri, err);
	return migration_start(&v->migration, uri, err);
}

static int cmd_migrate_incoming(struct vmm *v, const json_t *args, json_t **out,
				struct tern_error *err)
{
	const char *uri = text_argument(args, "uri", err);
	enum run_state state = vmm_state(v);
	int ret;

	if (!uri)
		return -EINVAL;
	if (migration_runs(&v->migration))
		return cli_fail(err, -EBUSY, "a migration is under way already");
	if (state != RUN_INMIGRATE && state != RUN_POSTMIGRATE)
		return cli_fail(
			err, -EBUSY,
			"there is a guest here (%s): only a tern-vm started with --incoming, or "
			"one whose guest has moved away, can take one in",
			vmm_state_name(state));
	ret = tern_uri_check(uri, err);
	if (ret)
		return ret;
	/* The session goes before the RAM that it knows. */
	migration_fini(&v->migration);
	ret = vmm_renew(v, err);
	return ret ? ret : migration_listen(&v->migration, uri, err);
}

static int cmd_migrate_recover(struct vmm *v, const json_t *args, json_t **out,
			       struct tern_error *err)
{
	const char *uri = text_argument(args, "uri", err);

	return uri ? migration_recover(&v->migration, uri, err) : -EINVAL;
}

static int cmd_migrate_cancel(struct vmm *v, const json_t *args, json_t **out,
			      struct tern_error *err)
{
	return migration_cancel(&v->migration, err);
}

/* QEMU's takes the state that is to be left: then a command that comes late does no harm. */
static int cmd_migrate_continue(struct vmm *v, const json_t *args, json_t **out,
				struct tern_error *err)
{
	const char *state = text_argument(args, "state", err);

	if (!state)
		return -EINVAL;
	if (strcmp(state, "pre-switchover"))
		return cli_fail(err, -EINVAL, "migrate-continue: from pre-switchover only, not %s",
				state);
	return migration_continue(&v->migration, err);
}

static int cmd_start_postcopy(struct vmm *v, const json_t *args, json_t **out,
			      struct tern_error *err)
{
	return migration_start_postcopy(&v->migration, err);
}

static int cmd_set_parameters(struct vmm *v, const json_t *args, json_t **out,
			      struct tern_error *err)
{
	struct migration *g = &v->migration;

	return params_set(&g->params, args, migration_runs(g) ? g->session : NULL, err);
}

static int cmd_query_parameters(struct vmm *v, const json_t *args, json_t **out,
				struct tern_error *err)
{
	*out = params_json(&v->migration.params);
	return 0;
}

static int cmd_query_migrate(struct vmm *v, const json_t *args, json_t **out,
			     struct tern_error *err)
{
	*out = migration_json(&v->migration);
	return 0;
}

static int cmd_blocker_add(struct vmm *v, const json_t *args, json_t **out, struct tern_error *err)
{
	const char *reason = text_argument(args, "reason", err);
	int id, ret = reason ? blockers_add(v, reason, &id, err) : -EINVAL;

	if (!ret)
		*out = json_pack("{s:i}", "id", id);
	return ret;
}

static int cmd_blocker_del(struct vmm *v, const json_t *args, json_t **out, struct tern_error *err)
{
	int id = number_argument(args, "id", err);

	return id ? blockers_remove(v, id, err) : -EINVAL;
}

static int cmd_query_commands(struct vmm *v, const json_t *args, json_t **out,
			      struct tern_error *err);

static const struct command {
	const char *name;
	const char *arguments; /* names that it takes, each between blanks; NULL: any */
	int (*run)(struct vmm *v, const json_t *args, json_t **out, struct tern_error *err);
} commands[] = {
	{ "qmp_capabilities", NULL, cmd_capabilities },
	{ "query-commands", "", cmd_query_commands },
	{ "query-status", "", cmd_query_status },
	{ "stop", "", cmd_stop },
	{ "cont", " force ", cmd_cont },
	{ "quit", "", cmd_quit },
	{ "migrate", " uri resume ", cmd_migrate },
	{ "migrate-incoming", " uri ", cmd_migrate_incoming },
	{ "migrate-recover", " uri ", cmd_migrate_recover },
	{ "migrate_cancel", "", cmd_migrate_cancel },
	{ "migrate-continue", " state ", cmd_migrate_continue },
	{ "migrate-start-postcopy", "", cmd_start_postcopy },
	{ "migrate-set-parameters", NULL, cmd_set_parameters },
	{ "query-migrate-parameters", "", cmd_query_parameters },
	{ "query-migrate", "", cmd_query_migrate },
	{ "x-blocker-add", " reason ", cmd_blocker_add },
	{ "x-blocker-del", " id ", cmd_blocker_del },
};
#define NR_COMMANDS (sizeof(commands) / sizeof(commands[0]))

static int cmd_query_commands(struct vmm *v, const json_t *args, json_t **out,
			      struct tern_error *err)
{
	*out = json_array();
	for (unsigned i = 0; i < NR_COMMANDS; i++)
		json_array_append_new(*out, json_pack("{s:s}", "name", commands[i].name));
	return 0;
}

static const struct command *find(const char *name)
{
	for (unsigned i = 0; i < NR_COMMANDS; i++)
		if (!strcmp(name, commands[i].name))
			return &commands[i];
	return NULL;
}

/* Are all arguments such as the command takes? */
static int check_arguments(const struct command *c, const json_t *args, struct tern_error *err)
{
	char padded[64];
	const char *name;
	json_t *v;

	if (!json_is_object(args))
		return cli_fail(err, -EINVAL, "\"arguments\" must be an object");
	json_object_foreach((json_t *)args, name, v)
	{
		snprintf(padded, sizeof(padded), " %s ", name);
		if (c->arguments && !strstr(c->arguments, padded))
			return cli_fail(err, -EINVAL, "%s takes no argument \"%s\"", c->name, name);
	}
	return 0;
}

/* Run it; what is returned, or NULL with *@err. */
static json_t *run(struct vmm *v, const struct command *c, const json_t *args,
		   struct tern_error *err)
{
	json_t *out = NULL, *none = args ? NULL : json_object();
	int ret = check_arguments(c, args ? args : none, err);

	if (!ret)
		ret = c->run(v, args ? args : none, &out, err);
	json_decref(none);
	if (!ret)
		return out ? out : json_object();
	cli_fail(err, ret, "%s failed: %s", c->name, strerror(-ret));
	json_decref(out);
	return NULL;
}

json_t *command_run(struct vmm *v, const json_t *request)
{
	const char *name = json_string_value(json_object_get(request, "execute"));
	const struct command *c = name ? find(name) : NULL;
	json_t *answer = json_object(), *id = json_object_get(request, "id"), *out = NULL;
	struct tern_error err = { 0 };
	const char *class = "GenericError";

	if (c) {
		out = run(v, c, json_object_get(request, "arguments"), &err);
	} else if (name) {
		class = "CommandNotFound";
		cli_fail(&err, -ENOENT, "The command %s has not been found", name);
	} else {
		cli_fail(&err, -EINVAL, "a request is an object with \"execute\"");
	}
	if (out)
		json_object_set_new(answer, "return", out);
	else
		json_object_set_new(answer, "error",
				    json_pack("{s:s, s:s}", "class", class, "desc", err.message));
	if (id)
		json_object_set(answer, "id", id);
	return answer;
}
