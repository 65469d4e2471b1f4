/* SPDX-License-Identifier: BSD-2-Clause */

/* Migration parameters; see params.h. */

#include "params.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include "../cli/cli.h"

static const char *const pin_names[] = { "pipelined", "all", "odp" };
_Static_assert(sizeof(pin_names) / sizeof(pin_names[0]) == TERN_PIN_NR, "one name per value");
static const char *const text_names[] = { "rdma-device", "cpus" };
_Static_assert(sizeof(text_names) / sizeof(text_names[0]) == TERN_TEXT_NR, "one name per text");

/* Names that QEMU's users know for ours. */
static const struct {
	const char *alias;
	enum tern_param param;
} aliases[] = {
	{ "multifd-channels", TERN_PARAM_CHANNELS },
};

/* May it change while a migration runs? */
static bool is_live(enum tern_param param)
{
	return param == TERN_PARAM_MAX_BANDWIDTH || param == TERN_PARAM_MAX_POSTCOPY_BANDWIDTH ||
	       param == TERN_PARAM_DOWNTIME_LIMIT_MS || param == TERN_PARAM_VCPU_DIRTY_LIMIT;
}

/* The name of a parameter's value, or NULL if it is a plain number. */
static const char *value_name(enum tern_param param, uint64_t value)
{
	switch (param) {
	case TERN_PARAM_MODE:
		return tern_mode_name((enum tern_mode)value);
	case TERN_PARAM_DIRTY_PROVIDER:
		return tern_dirty_provider_name((enum tern_dirty_provider)value);
	case TERN_PARAM_PIN:
		return value < TERN_PIN_NR ? pin_names[value] : "unknown";
	default:
		return NULL;
	}
}

/* Which parameter; -1: none. */
static int find_param(const char *name)
{
	for (unsigned i = 0; i < sizeof(aliases) / sizeof(aliases[0]); i++)
		if (!strcmp(name, aliases[i].alias))
			return (int)aliases[i].param;
	for (int i = 0; i < TERN_PARAM_NR; i++) {
		const struct tern_param_info *info = tern_param_info((enum tern_param)i);

		if (info && !strcmp(name, info->name))
			return i;
	}
	return -1;
}

/* A name of one of several things. */
static int parse_name(const char *name, enum tern_param param, const json_t *v, uint64_t *out,
		      struct tern_error *err)
{
	const struct tern_param_info *info = tern_param_info(param);
	const char *text = json_string_value(v);

	for (uint64_t i = info->min; text && i <= info->max; i++)
		if (!strcmp(text, value_name(param, i))) {
			*out = i;
			return 0;
		}
	return cli_fail(err, -EINVAL, "parameter %s: has no value \"%s\"", name,
			text ? text : "(no text)");
}

/* A number, or true and false. */
static int parse_number(const char *name, enum tern_param param, const json_t *v, uint64_t *out,
			struct tern_error *err)
{
	const struct tern_param_info *info = tern_param_info(param);
	json_int_t n = json_integer_value(v);

	if (json_is_boolean(v))
		n = json_is_true(v);
	else if (!json_is_integer(v))
		return cli_fail(err, -EINVAL, "parameter %s: must be a number", name);
	if (n < 0 || (uint64_t)n < info->min || (uint64_t)n > info->max)
		return cli_fail(err, -EINVAL, "parameter %s: must be from %llu to %llu%s%s", name,
				(unsigned long long)info->min, (unsigned long long)info->max,
				*info->unit ? " " : "", info->unit);
	if ((param == TERN_PARAM_CHUNK_BYTES || param == TERN_PARAM_STRIPE_BYTES) && (n & (n - 1)))
		return cli_fail(err, -EINVAL, "parameter %s: must be a power of two", name);
	*out = (uint64_t)n;
	return 0;
}

/* Take over one parameter that is text.  False: @name is none. */
static bool set_text(struct params *p, const char *name, const json_t *v, int *ret,
		     struct tern_error *err)
{
	const char *text = json_string_value(v);

	for (int i = 0; i < TERN_TEXT_NR; i++) {
		if (strcmp(name, text_names[i]))
			continue;
		if (!text || strlen(text) >= PARAMS_TEXT_MAX)
			*ret = cli_fail(err, -EINVAL,
					"parameter %s: must be text of at most %u bytes", name,
					PARAMS_TEXT_MAX - 1);
		else
			*ret = tern_text_check((enum tern_text)i, text, err);
		if (!*ret)
			snprintf(p->text[i], PARAMS_TEXT_MAX, "%s", text);
		return true;
	}
	return false;
}

/* Take over one parameter. */
static int set_one(struct params *p, const char *name, const json_t *v, bool running,
		   struct tern_error *err)
{
	int param = find_param(name), ret = 0;

	if (running && (param < 0 || !is_live((enum tern_param)param)))
		return cli_fail(err, -EBUSY, "parameter %s: cannot change while a migration runs",
				name);
	if (param < 0) {
		if (set_text(p, name, v, &ret, err))
			return ret;
		return cli_fail(err, -EINVAL, "parameter %s: there is none of that name", name);
	}
	if (value_name((enum tern_param)param, 0))
		ret = parse_name(name, (enum tern_param)param, v, &p->value[param], err);
	else
		ret = parse_number(name, (enum tern_param)param, v, &p->value[param], err);
	p->set[param] |= !ret;
	return ret;
}

int params_set(struct params *p, const json_t *wanted, struct tern_session *s,
	       struct tern_error *err)
{
	struct params next = *p;
	const char *name;
	json_t *v;
	int ret;

	json_object_foreach((json_t *)wanted, name, v)
	{
		ret = set_one(&next, name, v, s, err);
		if (ret)
			return ret;
	}
	for (int i = 0; s && i < TERN_PARAM_NR; i++)
		if (next.set[i] && is_live((enum tern_param)i))
			tern_session_set(s, (enum tern_param)i, next.value[i]);
	*p = next;
	return 0;
}

int params_apply(const struct params *p, struct tern_session *s, struct tern_error *err)
{
	int ret = 0;

	for (int i = 0; i < TERN_PARAM_NR; i++) {
		if (p->set[i])
			ret = tern_session_set(s, (enum tern_param)i, p->value[i]);
		if (ret)
			return cli_fail(err, ret, "parameter %s: the library refuses %llu: %s",
					tern_param_info((enum tern_param)i)->name,
					(unsigned long long)p->value[i], strerror(-ret));
	}
	for (int i = 0; i < TERN_TEXT_NR; i++) {
		ret = tern_session_set_text(s, (enum tern_text)i, p->text[i]);
		if (ret)
			return cli_fail(err, ret, "parameter %s: the library refuses \"%s\"",
					text_names[i], p->text[i]);
	}
	return 0;
}

json_t *params_json(const struct params *p)
{
	json_t *o = json_object();

	for (int i = 0; i < TERN_PARAM_NR; i++) {
		const struct tern_param_info *info = tern_param_info((enum tern_param)i);
		uint64_t value = p->set[i] ? p->value[i] : info->def;
		const char *name = value_name((enum tern_param)i, value);

		json_object_set_new(o, info->name,
				    name ? json_string(name) : json_integer((json_int_t)value));
	}
	for (int i = 0; i < TERN_TEXT_NR; i++)
		json_object_set_new(o, text_names[i], json_string(p->text[i]));
	return o;
}
