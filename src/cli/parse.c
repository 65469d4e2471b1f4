/* SPDX-License-Identifier: BSD-2-Clause */

#include <errno.h>
#include <string.h>
#include "parse.h"

/* Digits only; see parse.h. */
int parse_digits(const char *text, uint64_t *out, const char **end)
{
	uint64_t v = 0;

	if (*text < '0' || *text > '9')
		return -EINVAL;
	for (; *text >= '0' && *text <= '9'; text++)
		if (__builtin_mul_overflow(v, 10u, &v) ||
		    __builtin_add_overflow(v, (uint64_t)(*text - '0'), &v))
			return -ERANGE;
	*out = v;
	*end = text;
	return 0;
}

/* A size; see parse.h. */
int parse_size(const char *text, uint64_t *out)
{
	static const char units[] = "KMGT";
	const char *end, *unit;
	uint64_t v;
	int ret = parse_digits(text, &v, &end);

	if (ret)
		return ret;
	if (*end) {
		unit = strchr(units, *end);
		if (!unit || end[1])
			return -EINVAL;
		for (const char *u = units; u <= unit; u++)
			if (__builtin_mul_overflow(v, 1024u, &v))
				return -ERANGE;
	}
	*out = v;
	return 0;
}

/* Seconds, stored as milliseconds; see parse.h. */
int parse_seconds(const char *text, uint64_t *out)
{
	uint64_t seconds, ms = 0;
	const char *end;
	int ret = parse_digits(text, &seconds, &end);

	if (ret)
		return ret;
	if (seconds > PARSE_MS_MAX / 1000)
		return -ERANGE;
	if (*end == '.') {
		unsigned scale = 100;

		if (!end[1])
			return -EINVAL;
		for (end++; *end >= '0' && *end <= '9'; end++, scale /= 10)
			ms += (uint64_t)(*end - '0') * scale;
	}
	*out = seconds * 1000 + ms;
	return *end ? -EINVAL : 0;
}
