/* SPDX-License-Identifier: BSD-2-Clause */

#include <stdarg.h>
#include <stdio.h>
#include <time.h>
#include "cli.h"
#include "../utf8.h"

/* Fills *err unless it is set already; see cli.h. */
int cli_fail(struct tern_error *err, int code, const char *fmt, ...)
{
	va_list ap;

	if (!err || err->code)
		return code;
	err->code = code;
	err->scope = TERN_SCOPE_SESSION;
	err->phase = 0;
	err->channel = -1;
	va_start(ap, fmt);
	vsnprintf(err->message, sizeof(err->message), fmt, ap);
	va_end(ap);
	utf8_clean(err->message);
	return code;
}

/* One line on stderr, prefixed with the command's name. */
void cli_complain(const char *fmt, ...)
{
	char line[1024];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	fprintf(stderr, "tern: %s\n", line);
}

/* Monotonic clock, nanoseconds. */
uint64_t cli_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}
