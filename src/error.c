/* SPDX-License-Identifier: BSD-2-Clause */
#define _GNU_SOURCE
#include "error.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "utf8.h"

const char *tern_error_scope_name(enum tern_error_scope scope)
{
	static const char *const names[] = {
		[TERN_SCOPE_NONE] = "none",
		[TERN_SCOPE_PAGE] = "page",
		[TERN_SCOPE_CHANNEL] = "channel",
		[TERN_SCOPE_SESSION] = "session",
	};

	if ((size_t)scope >= sizeof(names) / sizeof(names[0]))
		return "unknown";
	return names[scope];
}

static int error_vset(struct tern_error *err, int code, enum tern_error_scope scope, int channel,
		      const char *fmt, va_list ap)
{
	assert(code < 0);
	if (!err || err->code)
		return code;
	err->code = code;
	err->scope = scope;
	err->channel = channel;
	vsnprintf(err->message, sizeof(err->message), fmt, ap);
	utf8_clean(err->message); /* a peer's text may be in it, and it may have been cut */
	return code;
}

int error_set(struct tern_error *err, int code, enum tern_error_scope scope, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	error_vset(err, code, scope, -1, fmt, ap);
	va_end(ap);
	return code;
}

int error_channel(struct tern_error *err, int code, unsigned channel, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	error_vset(err, code, TERN_SCOPE_CHANNEL, (int)channel, fmt, ap);
	va_end(ap);
	return code;
}

void error_clear(struct tern_error *err)
{
	memset(err, 0, sizeof(*err));
	err->channel = -1;
}

const char *error_name(int code)
{
	const char *s = strerrordesc_np(code < 0 ? -code : code);

	return s ? s : "unknown error";
}
