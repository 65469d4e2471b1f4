/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * Listening sockets: binding, and the life of a listener.
 *
 * A host name is bound on all its addresses, so that a peer that resolves it to
 * any of them gets through; no host means one IPv6 socket that takes IPv4 too,
 * or IPv4 alone where IPv6 is off.  With port 0 the first address chooses and
 * the others follow.
 *
 * A UNIX socket file is left behind by a process that died.  If nobody listens
 * on it, it is replaced; if somebody does, the address is in use.
 */

#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include "error.h"
#include "listener.h"
#include "sock.h"

/* What to do about a bind() that failed with @code. */
static const char *bind_remedy(int code)
{
	switch (code) {
	case -EADDRINUSE:
		return "another program listens there; choose another port or path, or 0 for any "
		       "free port";
	case -EADDRNOTAVAIL:
		return "this host does not have that address; listen on one of its own, or give no "
		       "host for all of them";
	case -EACCES:
	case -EPERM:
		return "it is not permitted; choose a port from 1024 on, or a directory that is "
		       "writable";
	case -ENOENT:
		return "the directory does not exist";
	case -EAFNOSUPPORT:
		return "this host has that kind of address switched off";
	default:
		return "check the address";
	}
}

/* One listening socket.  Returns the fd or -errno with *err. */
static int listen_on(const struct sockaddr *sa, socklen_t len, bool dual_stack,
		     struct tern_error *err)
{
	int one = 1, v6only = !dual_stack, rc;
	char text[SOCK_TEXT_MAX];
	int fd = socket(sa->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd >= 0 && sa->sa_family != AF_UNIX)
		(void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (fd >= 0 && sa->sa_family == AF_INET6)
		(void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &v6only, sizeof(v6only));
	if (fd >= 0 && !bind(fd, sa, len) && !listen(fd, SOMAXCONN))
		return fd;
	rc = -errno;
	if (fd >= 0)
		close(fd);
	sock_text(sa, len, text, sizeof(text));
	return error_session(err, rc, "Listening on %s failed: %s; %s", text, error_name(rc),
			     bind_remedy(rc));
}

/* Port of a bound socket, network byte order. */
static in_port_t bound_port(int fd)
{
	struct sockaddr_storage sa = { 0 };
	socklen_t len = sizeof(sa);

	(void)getsockname(fd, (struct sockaddr *)&sa, &len);
	return sa.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&sa)->sin6_port
					: ((struct sockaddr_in *)&sa)->sin_port;
}

static void set_port(struct sockaddr *sa, in_port_t port)
{
	if (sa->sa_family == AF_INET6)
		((struct sockaddr_in6 *)sa)->sin6_port = port;
	else
		((struct sockaddr_in *)sa)->sin_port = port;
}

/* All addresses, on one port if none was asked for. */
static int listen_any(struct tcp_listener *l, const struct uri *uri, struct tern_error *err)
{
	in_port_t port = htons((uint16_t)atoi(uri->port));
	struct sockaddr_in6 v6 = { .sin6_family = AF_INET6, .sin6_port = port };
	struct sockaddr_in v4 = { .sin_family = AF_INET, .sin_port = port };
	int fd = listen_on((struct sockaddr *)&v6, sizeof(v6), true, NULL);

	if (fd == -EAFNOSUPPORT || fd == -EADDRNOTAVAIL)
		fd = listen_on((struct sockaddr *)&v4, sizeof(v4), false, err);
	else if (fd < 0)
		fd = listen_on((struct sockaddr *)&v6, sizeof(v6), true, err); /* for the words */
	if (fd < 0)
		return fd;
	l->fds[l->nr_fds++] = fd;
	return 0;
}

/*
 * All addresses of a name.  One that this host lacks is passed over if another
 * can be had (a name with an IPv6 address on a host without IPv6).
 */
static int listen_name(struct tcp_listener *l, const struct uri *uri, struct tern_error *err)
{
	struct tern_error why = { 0 };
	struct addrinfo *list;
	in_port_t port = 0;
	int rc = sock_resolve(uri, AI_PASSIVE, &list, err);

	if (rc)
		return rc;
	for (const struct addrinfo *a = list; a && l->nr_fds < LISTENER_FDS_MAX; a = a->ai_next) {
		if (port)
			set_port(a->ai_addr, port);
		rc = listen_on(a->ai_addr, a->ai_addrlen, false, &why);
		if (rc >= 0) {
			l->fds[l->nr_fds++] = rc;
			port = bound_port(rc);
		} else if (rc != -EADDRNOTAVAIL && rc != -EAFNOSUPPORT) {
			break;
		}
	}
	freeaddrinfo(list);
	/* A port that was chosen for the first address may be taken on another one. */
	if (l->nr_fds &&
	    (rc >= 0 || rc == -EADDRNOTAVAIL || rc == -EAFNOSUPPORT || !strcmp(uri->port, "0")))
		return 0;
	return error_session(err, rc, "%s", why.message);
}

/* True if @path is a socket file on which nobody listens. */
static bool is_stale(const char *path, const struct sockaddr *sa, socklen_t len)
{
	struct stat st;
	bool stale;
	int fd;

	if (lstat(path, &st) || !S_ISSOCK(st.st_mode))
		return false;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return false;
	stale = connect(fd, sa, len) && errno == ECONNREFUSED;
	close(fd);
	return stale;
}

/* A UNIX socket; remembers which file was made. */
static int listen_unix(struct tcp_listener *l, const struct uri *uri, struct tern_error *err)
{
	struct sockaddr_storage sa;
	socklen_t len = sock_unix_address(uri->path, &sa);
	struct stat st;
	int fd = listen_on((struct sockaddr *)&sa, len, false, NULL);

	if (fd == -EADDRINUSE && is_stale(uri->path, (struct sockaddr *)&sa, len))
		(void)unlink(uri->path);
	if (fd < 0)
		fd = listen_on((struct sockaddr *)&sa, len, false, err);
	if (fd < 0)
		return fd;
	l->fds[l->nr_fds++] = fd;
	if (!lstat(uri->path, &st)) {
		snprintf(l->path, sizeof(l->path), "%s", uri->path);
		l->path_dev = st.st_dev;
		l->path_ino = st.st_ino;
	}
	return 0;
}

/* See struct transport. */
int listener_listen(const struct transport *ops, const struct transport_env *env,
		    const struct uri *uri, struct transport_listener **out, struct tern_error *err)
{
	struct tcp_listener *l = calloc(1, sizeof(*l));
	int rc;

	if (!l)
		return error_session(err, -ENOMEM, "No memory for a listener");
	l->base.ops = ops;
	l->env = *env;
	for (unsigned i = 0; i < LISTENER_STRANGERS_MAX; i++)
		l->strangers[i].fd = -1;
	l->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	l->hub = hub_new();
	if (l->stop_fd < 0 || !l->hub)
		rc = error_session(err, -ENOMEM, "No memory or file descriptor for a listener");
	else if (uri->scheme == URI_UNIX)
		rc = listen_unix(l, uri, err);
	else if (!uri->host[0])
		rc = listen_any(l, uri, err);
	else
		rc = listen_name(l, uri, err);
	if (rc) {
		listener_close(&l->base);
		return rc;
	}
	*out = &l->base;
	return 0;
}

/* See struct transport. */
int listener_uri(const struct transport_listener *base, char *buf, size_t size)
{
	const struct tcp_listener *l = (const struct tcp_listener *)base;
	struct sockaddr_storage sa = { 0 };
	socklen_t len = sizeof(sa);
	char text[SOCK_TEXT_MAX];

	if (l->path[0]) {
		struct uri u = { .scheme = URI_UNIX };

		memcpy(u.path, l->path, sizeof(u.path));
		return uri_format(&u, buf, size);
	}
	(void)getsockname(l->fds[0], (struct sockaddr *)&sa, &len);
	sock_text((struct sockaddr *)&sa, len, text, sizeof(text));
	return snprintf(buf, size, "tcp:%s", text);
}

/* See struct transport. */
void listener_stop(struct transport_listener *base)
{
	(void)eventfd_write(to_listener(base)->stop_fd, 1);
}

/* Remove the socket file, unless it is another one by now. */
static void path_remove(const struct tcp_listener *l)
{
	struct stat st;

	if (l->path[0] && !lstat(l->path, &st) && st.st_dev == l->path_dev &&
	    st.st_ino == l->path_ino)
		(void)unlink(l->path);
}

/* See struct transport. */
void listener_close(struct transport_listener *base)
{
	struct tcp_listener *l = to_listener(base);

	path_remove(l);
	for (unsigned i = 0; i < l->nr_fds; i++)
		close(l->fds[i]);
	for (unsigned i = 0; i < LISTENER_STRANGERS_MAX; i++)
		if (l->strangers[i].fd >= 0)
			close(l->strangers[i].fd);
	if (l->stop_fd >= 0)
		close(l->stop_fd);
	if (l->hub)
		hub_put(l->hub);
	free(l);
}
