/* SPDX-License-Identifier: BSD-2-Clause */

/* Migration URIs, and which transport serves them. */

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>
#include "transport.h"
#include "uri.h"

struct good {
	const char *text;
	enum uri_scheme scheme;
	const char *host, *port, *path;
	const char *canonical; /* NULL: text */
};

static const struct good goods[] = {
	{ "tcp:host:4444", URI_TCP, "host", "4444", "", NULL },
	{ "tcp://host:4444", URI_TCP, "host", "4444", "", "tcp:host:4444" },
	{ "TCP:host:4444", URI_TCP, "host", "4444", "", "tcp:host:4444" },
	{ "rdma:192.0.2.1:1", URI_RDMA, "192.0.2.1", "1", "", NULL },
	{ "auto:a.example:65535", URI_AUTO, "a.example", "65535", "", NULL },
	{ "tcp:[::1]:4444", URI_TCP, "::1", "4444", "", NULL },
	{ "tcp://[fe80::1%eth0]:7", URI_TCP, "fe80::1%eth0", "7", "", "tcp:[fe80::1%eth0]:7" },
	{ "tcp::4444", URI_TCP, "", "4444", "", NULL },
	{ "tcp:host:0", URI_TCP, "host", "0", "", NULL },
	{ "tcp:host:000080", URI_TCP, "host", "80", "", "tcp:host:80" },
	{ "unix:/run/x.sock", URI_UNIX, "", "", "/run/x.sock", NULL },
	{ "unix:///run/x.sock", URI_UNIX, "", "", "/run/x.sock", "unix:/run/x.sock" },
	{ "unix:relative", URI_UNIX, "", "", "relative", NULL },
};

static void good_uris_parse(void **state)
{
	for (unsigned i = 0; i < sizeof(goods) / sizeof(goods[0]); i++) {
		const struct good *g = &goods[i];
		const char *canonical = g->canonical ? g->canonical : g->text;
		struct tern_error err = { 0 };
		struct uri u;
		char buf[400];

		if (uri_parse(g->text, &u, &err))
			fail_msg("%s", err.message);
		assert_int_equal(u.scheme, g->scheme);
		assert_string_equal(u.host, g->host);
		assert_string_equal(u.port, g->port);
		assert_string_equal(u.path, g->path);
		assert_int_equal(uri_format(&u, buf, sizeof(buf)), strlen(canonical));
		assert_string_equal(buf, canonical);
	}
}

static void bad_uris_say_why(void **state)
{
	static const struct {
		const char *text, *why;
	} bads[] = {
		{ "", "it is empty" },
		{ "host:4444", "no known scheme" },
		{ "tcp", "no known scheme" },
		{ "http://x:1", "no known scheme" },
		{ "tcp:host", "the port is missing" },
		{ "tcp:host:", "the port is missing" },
		{ "tcp:", "the port is missing" },
		{ "tcp:host:port", "the port is not a number" },
		{ "tcp:host:-1", "the port is not a number" },
		{ "tcp:host:+1", "the port is not a number" },
		{ "tcp:host:80 ", "the port is not a number" },
		{ "tcp:host:80/", "the port is not a number" },
		{ "tcp:host:65536", "above 65535" },
		{ "tcp:host:99999999999999999999", "above 65535" },
		{ "tcp:::1:4444", "belongs in brackets" },
		{ "tcp:[::1:4444", "the ] is missing" },
		{ "tcp:[::1]", "the port is missing" },
		{ "tcp:[::1]x:1", "the port is missing" },
		{ "tcp:[host]:1", "not an IPv6 address" },
		{ "tcp:[]:1", "not an IPv6 address" },
		{ "tcp:[::1%]:1", "not an IPv6 address" },
		{ "tcp:a b:1", "no host has" },
		{ "tcp:a\n:1", "no host has" },
		{ "tcp:user@host:1", "no host has" },
		{ "unix:", "the path is missing" },
		{ "unix://", "the path is missing" },
	};

	for (unsigned i = 0; i < sizeof(bads) / sizeof(bads[0]); i++) {
		struct tern_error err = { 0 };
		struct uri u = { .scheme = URI_SCHEME_NR };

		assert_int_equal(uri_parse(bads[i].text, &u, &err), -EINVAL);
		if (!strstr(err.message, bads[i].why))
			fail_msg("\"%s\": %s", bads[i].text, err.message);
		assert_non_null(strstr(err.message, "expected tcp:HOST:PORT"));
		assert_int_equal(u.scheme, URI_SCHEME_NR); /* untouched */
	}
}

static void limits_are_exact(void **state)
{
	char text[400];
	struct uri u;

	snprintf(text, sizeof(text), "unix:%0*d", URI_PATH_MAX, 0);
	assert_int_equal(uri_parse(text, &u, NULL), 0);
	snprintf(text, sizeof(text), "unix:%0*d", URI_PATH_MAX + 1, 0);
	assert_int_equal(uri_parse(text, &u, NULL), -EINVAL);
	snprintf(text, sizeof(text), "tcp:%0*d:1", URI_HOST_MAX, 0);
	assert_int_equal(uri_parse(text, &u, NULL), 0);
	snprintf(text, sizeof(text), "tcp:%0*d:1", URI_HOST_MAX + 1, 0);
	assert_int_equal(uri_parse(text, &u, NULL), -EINVAL);
}

static void schemes_find_their_transport(void **state)
{
	struct tern_error err = { 0 };
	const struct transport *t;
	struct uri u;

	assert_int_equal(uri_parse("tcp:h:1", &u, NULL), 0);
	assert_int_equal(transport_find(&u, &t, &err), 0);
	assert_string_equal(t->name, "tcp");
	assert_int_equal(uri_parse("auto:h:1", &u, NULL), 0);
	assert_int_equal(transport_find(&u, &t, &err), 0);
	assert_int_equal(uri_parse("unix:/x", &u, NULL), 0);
	assert_int_equal(transport_find(&u, &t, &err), 0);
	assert_string_equal(t->name, "unix");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(good_uris_parse),
		cmocka_unit_test(bad_uris_say_why),
		cmocka_unit_test(limits_are_exact),
		cmocka_unit_test(schemes_find_their_transport),
	};

	return cmocka_run_group_tests_name("uri", tests, NULL, NULL);
}
