/* SPDX-License-Identifier: BSD-2-Clause */

/* URIs: what parses, prints; and what was printed means the same. */

#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "fuzz.h"
#include "uri.h"

/* @text parsed to @u: print and parse again. */
static void round_trip(const char *text, const struct uri *u)
{
	char out[URI_HOST_MAX + 32], twice[sizeof(out)];
	struct uri again;
	struct tern_error err;
	int n = uri_format(u, out, sizeof(out));

	error_clear(&err);
	FUZZ_CHECK(n > 0 && (size_t)n < sizeof(out), "\"%s\" prints as %d bytes", text, n);
	FUZZ_CHECK(!uri_parse(out, &again, &err), "\"%s\" prints as \"%s\", which is wrong: %s",
		   text, out, err.message);
	FUZZ_CHECK(again.scheme == u->scheme && !strcmp(again.host, u->host) &&
			   !strcmp(again.port, u->port) && !strcmp(again.path, u->path),
		   "\"%s\" prints as \"%s\", which means something else", text, out);
	uri_format(&again, twice, sizeof(twice));
	FUZZ_CHECK(!strcmp(out, twice), "\"%s\" prints as \"%s\" and then as \"%s\"", text, out,
		   twice);
}

enum fuzz_reach fuzz_one(const uint8_t *data, size_t size, unsigned patience_ms)
{
	struct uri u;
	struct tern_error err;
	char *text = malloc(size + 1);

	FUZZ_CHECK(text, "no memory");
	memcpy(text, data, size);
	text[size] = '\0';
	error_clear(&err);
	int r = uri_parse(text, &u, &err);

	FUZZ_CHECK(r == err.code, "parsing returned %d and the error %d", r, err.code);
	if (!r)
		round_trip(text, &u);
	free(text);
	return r ? FUZZ_PARTLY : FUZZ_FULL;
}
