/* SPDX-License-Identifier: BSD-2-Clause */

/* Taking migration URIs apart and putting them together; see uri.h. */

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include "error.h"
#include "uri.h"

static const char *const scheme_names[] = {
	[URI_TCP] = "tcp",
	[URI_UNIX] = "unix",
	[URI_RDMA] = "rdma",
	[URI_AUTO] = "auto",
};

_Static_assert(sizeof(scheme_names) / sizeof(scheme_names[0]) == URI_SCHEME_NR,
	       "a scheme has no name");

const char *uri_scheme_name(enum uri_scheme scheme)
{
	return (unsigned)scheme < URI_SCHEME_NR ? scheme_names[scheme] : "unknown";
}

/* The sentence for a URI that is wrong.  Returns -EINVAL. */
static int uri_bad(const char *text, const char *what, struct tern_error *err)
{
	return error_session(err, -EINVAL,
			     "\"%.200s\" is not a migration URI: %s; expected tcp:HOST:PORT, "
			     "rdma:HOST:PORT, auto:HOST:PORT or unix:PATH",
			     text, what);
}

/* Scheme of @text up to the ':'; *rest is what follows it.  Its number or -1. */
static int parse_scheme(const char *text, const char **rest)
{
	for (int i = 0; i < URI_SCHEME_NR; i++) {
		size_t n = strlen(scheme_names[i]);

		if (!strncasecmp(text, scheme_names[i], n) && text[n] == ':') {
			*rest = text + n + 1;
			return i;
		}
	}
	return -1;
}

/* The port: digits, 0 … 65535, stored without leading zeros. */
static int parse_port(const char *text, const char *p, struct uri *u, struct tern_error *err)
{
	unsigned port = 0;

	if (!*p)
		return uri_bad(text, "the port is missing", err);
	for (; *p; p++) {
		if (!isdigit((unsigned char)*p))
			return uri_bad(text, "the port is not a number", err);
		port = port * 10 + (unsigned)(*p - '0');
		if (port > 65535)
			return uri_bad(text, "the port is above 65535", err);
	}
	snprintf(u->port, sizeof(u->port), "%u", port);
	return 0;
}

/* An IPv6 address, perhaps with a zone ("fe80::1%eth0"). */
static bool is_ipv6(const char *host)
{
	char addr[INET6_ADDRSTRLEN];
	struct in6_addr ignored;
	size_t n = strcspn(host, "%");

	if (n >= sizeof(addr) || (host[n] == '%' && !host[n + 1]))
		return false;
	memcpy(addr, host, n);
	addr[n] = '\0';
	return inet_pton(AF_INET6, addr, &ignored) == 1;
}

/* Host characters that no name and no address has. */
static bool host_is_clean(const char *host)
{
	for (; *host; host++)
		if ((unsigned char)*host <= ' ' || (unsigned char)*host == 0x7f ||
		    strchr("[]/?#@\"\\", *host))
			return false;
	return true;
}

/* "HOST:PORT", "[IPV6]:PORT" */
static int parse_inet(const char *text, const char *p, struct uri *u, struct tern_error *err)
{
	bool brackets = *p == '[';
	const char *end = brackets ? strchr(p, ']') : strchr(p, ':');
	size_t n;

	if (!end)
		return uri_bad(text, brackets ? "the ] is missing" : "the port is missing", err);
	if (brackets)
		p++;
	n = (size_t)(end - p);
	if (n > URI_HOST_MAX)
		return uri_bad(text, "the host is longer than 255 bytes", err);
	memcpy(u->host, p, n);
	u->host[n] = '\0';
	if (brackets && !is_ipv6(u->host))
		return uri_bad(text, "what is in the brackets is not an IPv6 address", err);
	if (!host_is_clean(u->host))
		return uri_bad(text, "the host has a character that no host has", err);
	if (brackets && *++end != ':')
		return uri_bad(text, "the port is missing", err);
	if (!brackets && strchr(end + 1, ':'))
		return uri_bad(text, "an IPv6 address belongs in brackets", err);
	return parse_port(text, end + 1, u, err);
}

/* A path; what the kernel takes, and nothing that could not be printed. */
static int parse_path(const char *text, const char *p, struct uri *u, struct tern_error *err)
{
	if (!*p)
		return uri_bad(text, "the path is missing", err);
	if (strlen(p) > URI_PATH_MAX)
		return uri_bad(text, "the path is longer than 107 bytes, the limit of UNIX sockets",
			       err);
	snprintf(u->path, sizeof(u->path), "%s", p);
	return 0;
}

int uri_parse(const char *text, struct uri *out, struct tern_error *err)
{
	struct uri u = { 0 };
	const char *p;
	int rc, scheme;

	if (!text || !*text)
		return uri_bad("", "it is empty", err);
	scheme = parse_scheme(text, &p);
	if (scheme < 0)
		return uri_bad(text, "it begins with no known scheme", err);
	u.scheme = (enum uri_scheme)scheme;
	if (!strncmp(p, "//", 2))
		p += 2;
	rc = u.scheme == URI_UNIX ? parse_path(text, p, &u, err) : parse_inet(text, p, &u, err);
	if (!rc)
		*out = u;
	return rc;
}

int uri_format(const struct uri *uri, char *buf, size_t size)
{
	const char *scheme = uri_scheme_name(uri->scheme);

	/* A path that begins with // would lose that as the // of the scheme. */
	if (uri->scheme == URI_UNIX)
		return snprintf(buf, size, "%s:%s%s", scheme,
				strncmp(uri->path, "//", 2) ? "" : "//", uri->path);
	if (strchr(uri->host, ':'))
		return snprintf(buf, size, "%s:[%s]:%s", scheme, uri->host, uri->port);
	return snprintf(buf, size, "%s:%s:%s", scheme, uri->host, uri->port);
}
