/* SPDX-License-Identifier: BSD-2-Clause */

/* Collecting the facts of `tern info`. */

#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include "info.h"

/* A fact or, without @value, a line. */
static void add(struct info *info, const char *section, const char *key, json_t *value,
		const char *todo, const char *text, va_list ap)
{
	char buf[512];

	vsnprintf(buf, sizeof(buf), text, ap);
	json_array_append_new(info->facts,
			      json_pack("{ss, ss, sb, so, ss, ss?}", "section", section, "key",
					key, "is_fact", value != NULL, "value",
					value ? value : json_null(), "text", buf, "todo", todo));
}

void info_add(struct info *info, const char *section, const char *key, json_t *value,
	      const char *todo, const char *text, ...)
{
	va_list ap;

	va_start(ap, text);
	add(info, section, key, value ? value : json_null(), todo, text, ap);
	va_end(ap);
}

void info_line(struct info *info, const char *section, const char *key, const char *todo,
	       const char *text, ...)
{
	va_list ap;

	va_start(ap, text);
	add(info, section, key, NULL, todo, text, ap);
	va_end(ap);
}
