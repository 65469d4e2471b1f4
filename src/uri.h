/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_SRC_URI_H
#define TERN_SRC_URI_H

/*
 * Migration URIs as QEMU and libvirt users write them:
 *
 *   tcp:HOST:PORT   rdma:HOST:PORT   auto:HOST:PORT   unix:PATH
 *
 * each also with "//" after the scheme.  IPv6 addresses stand in brackets,
 * "tcp:[::1]:4444".  HOST may be empty when listening (all addresses).  PORT is
 * a number, 0 … 65535 (0 only when listening).
 */

#include <stddef.h>
#include <tern/error.h>

enum uri_scheme {
	URI_TCP,
	URI_UNIX,
	URI_RDMA,
	URI_AUTO,
	URI_SCHEME_NR,
};

#define URI_HOST_MAX 255
#define URI_PATH_MAX 107 /* sun_path less its 0 */

struct uri {
	enum uri_scheme scheme;
	char host[URI_HOST_MAX + 1]; /* without brackets; empty: any */
	char port[6];
	char path[URI_PATH_MAX + 1]; /* unix: only */
};

/*
 * uri_parse - take @text apart; no name is resolved.
 *
 * 0, or -EINVAL with a sentence that quotes @text and says what is wrong and
 * which form is expected.  *out is set only on success.
 */
int uri_parse(const char *text, struct uri *out, struct tern_error *err);

/* uri_format - the canonical text ("tcp:[::1]:4444"), as snprintf(). */
int uri_format(const struct uri *uri, char *buf, size_t size);

/* uri_scheme_name - "tcp", "unix", "rdma", "auto". */
const char *uri_scheme_name(enum uri_scheme scheme);

#endif
