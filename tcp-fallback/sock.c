/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * Socket helpers shared by the listener, the connecting side and the channels.
 *
 * Nothing here blocks in the kernel except poll(), and every poll() also watches
 * a "cancel" eventfd, so a thread stuck on a dead peer can always be woken.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include "error.h"
#include "sock.h"
#include "uri.h"

/* Buffer for UNIX sockets, which the kernel does not tune by itself, bytes. */
#define SOCK_UNIX_BUFFER (4 << 20)

uint64_t sock_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

int64_t sock_now_ms(void)
{
	return (int64_t)(sock_now_ns() / 1000000);
}

int64_t sock_deadline(int timeout_ms)
{
	return timeout_ms < 0 ? -1 : sock_now_ms() + timeout_ms;
}

int sock_remaining(int64_t deadline)
{
	int64_t left;

	if (deadline < 0)
		return -1;
	left = deadline - sock_now_ms();
	return left < 0 ? 0 : left > INT32_MAX ? INT32_MAX : (int)left;
}

int sock_wait(int fd, short events, int cancel_fd, int64_t deadline)
{
	struct pollfd p[2] = {
		{ .fd = fd, .events = events },
		{ .fd = cancel_fd, .events = POLLIN },
	};
	int n;

	do
		n = poll(p, 2, sock_remaining(deadline));
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	if (p[1].revents)
		return -ECANCELED;
	return n ? p[0].revents : -ETIMEDOUT;
}

struct iovec *sock_iov_advance(struct iovec *iov, unsigned *nr, size_t n)
{
	while (*nr && n >= iov->iov_len) {
		n -= iov->iov_len;
		iov++;
		--*nr;
	}
	if (*nr && n) {
		iov->iov_base = (char *)iov->iov_base + n;
		iov->iov_len -= n;
	}
	return iov;
}

size_t sock_iov_bytes(const struct iovec *iov, unsigned nr)
{
	size_t bytes = 0;

	for (unsigned i = 0; i < nr; i++)
		bytes += iov[i].iov_len;
	return bytes;
}

unsigned sock_limit(struct iovec *iov, unsigned nr, size_t most, struct sock_limit *l)
{
	unsigned n = 0;

	l->last = NULL;
	for (; n < nr && most; n++) {
		l->last = &iov[n];
		l->len = iov[n].iov_len;
		if (iov[n].iov_len > most)
			iov[n].iov_len = most;
		most -= iov[n].iov_len;
	}
	return n;
}

void sock_limit_undo(const struct sock_limit *l)
{
	if (l->last)
		l->last->iov_len = l->len;
}

/* The kernel's ways to say that the peer is gone, as one code. */
static int sock_errno(void)
{
	return errno == EPIPE || errno == ESHUTDOWN ? -ECONNRESET : -errno;
}

int sock_send_all(int fd, struct iovec *iov, unsigned nr, int cancel_fd, int64_t deadline)
{
	while (nr) {
		struct msghdr msg = { .msg_iov = iov, .msg_iovlen = nr };
		ssize_t n = sendmsg(fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
		int rc;

		if (n >= 0) {
			iov = sock_iov_advance(iov, &nr, (size_t)n);
			continue;
		}
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN)
			return sock_errno();
		rc = sock_wait(fd, POLLOUT, cancel_fd, deadline);
		if (rc < 0)
			return rc;
	}
	return 0;
}

int sock_recv_all(int fd, void *buf, size_t len, int cancel_fd, int64_t deadline)
{
	size_t have = 0;

	while (have < len) {
		ssize_t n = recv(fd, (char *)buf + have, len - have, MSG_DONTWAIT);
		int rc;

		if (n > 0) {
			have += (size_t)n;
			continue;
		}
		if (!n)
			return -ECONNRESET;
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN)
			return sock_errno();
		rc = sock_wait(fd, POLLIN, cancel_fd, deadline);
		if (rc < 0)
			return rc;
	}
	return 0;
}

void sock_text(const struct sockaddr *sa, socklen_t len, char *buf, size_t size)
{
	char host[INET6_ADDRSTRLEN + 20], port[8];

	if (sa->sa_family == AF_UNIX) {
		const struct sockaddr_un *un = (const void *)sa;
		size_t max = len > offsetof(struct sockaddr_un, sun_path)
				     ? len - offsetof(struct sockaddr_un, sun_path)
				     : 0;

		snprintf(buf, size, "%.*s", (int)strnlen(un->sun_path, max), un->sun_path);
		return;
	}
	if (getnameinfo(sa, len, host, sizeof(host), port, sizeof(port),
			NI_NUMERICHOST | NI_NUMERICSERV))
		snprintf(buf, size, "unknown address");
	else if (sa->sa_family == AF_INET6)
		snprintf(buf, size, "[%s]:%s", host, port);
	else
		snprintf(buf, size, "%s:%s", host, port);
}

void sock_peer_text(int fd, char *buf, size_t size)
{
	struct sockaddr_storage sa;
	socklen_t len = sizeof(sa);
	struct ucred cred;
	socklen_t cred_len = sizeof(cred);

	if (getpeername(fd, (struct sockaddr *)&sa, &len))
		snprintf(buf, size, "a peer that is gone");
	else if (sa.ss_family != AF_UNIX)
		sock_text((struct sockaddr *)&sa, len, buf, size);
	else if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &cred_len))
		snprintf(buf, size, "a local process");
	else
		snprintf(buf, size, "local process %d", (int)cred.pid);
}

void sock_tune(int fd)
{
	int one = 1, size = SOCK_UNIX_BUFFER, domain = 0;
	socklen_t len = sizeof(domain);

	if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) || domain != AF_UNIX) {
		/* Small messages at once; the buffers are left to the kernel's own tuning. */
		(void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		return;
	}
	/* FORCE goes beyond net.core.wmem_max, but needs CAP_NET_ADMIN. */
	if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size)))
		(void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
}

int sock_resolve(const struct uri *uri, int flags, struct addrinfo **out, struct tern_error *err)
{
	struct addrinfo hints = {
		.ai_flags = flags | AI_NUMERICSERV,
		.ai_family = AF_UNSPEC,
		.ai_socktype = SOCK_STREAM,
		.ai_protocol = IPPROTO_TCP,
	};
	int rc = getaddrinfo(uri->host[0] ? uri->host : NULL, uri->port, &hints, out);
	int code = rc == EAI_MEMORY ? -ENOMEM : rc == EAI_AGAIN ? -EAGAIN : -ENOENT;

	if (!rc)
		return 0;
	if (rc == EAI_SYSTEM && errno)
		code = -errno;
	return error_session(err, code,
			     "Looking up the host name \"%s\" failed: %s; check the name or give "
			     "an address",
			     uri->host, rc == EAI_SYSTEM ? error_name(code) : gai_strerror(rc));
}

/* What to do about a connect() that failed with @code. */
static const char *connect_remedy(int code)
{
	switch (code) {
	case -ECONNREFUSED:
		return "nothing is listening there; start the destination first and check the "
		       "address";
	case -ENOENT:
		return "nothing is listening there; start the destination first and check the "
		       "path";
	case -ETIMEDOUT:
		return "check that the host is up and that no firewall drops the connection";
	case -ENETUNREACH:
	case -EHOSTUNREACH:
		return "there is no route to the host; check the address and the network";
	case -EACCES:
	case -EPERM:
		return "check the permissions of the socket, or the firewall";
	case -EAFNOSUPPORT:
		return "this host has that kind of address switched off";
	default:
		return "check the address";
	}
}

/* Start and await connect() on @fd.  0 or -errno. */
static int connect_finish(int fd, const struct sockaddr *sa, socklen_t len, int cancel_fd,
			  int64_t deadline)
{
	int code = 0, rc;
	socklen_t code_len = sizeof(code);

	/* A full backlog of a UNIX socket is EAGAIN, and nothing wakes us: ask again. */
	while (connect(fd, sa, len)) {
		if (errno == EINPROGRESS || errno == EINTR)
			break;
		if (errno != EAGAIN)
			return -errno;
		if (!sock_remaining(deadline))
			return -ETIMEDOUT;
		rc = sock_wait(-1, 0, cancel_fd, sock_deadline(10));
		if (rc != -ETIMEDOUT)
			return rc;
	}
	rc = sock_wait(fd, POLLOUT, cancel_fd, deadline);
	if (rc < 0)
		return rc;
	if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &code, &code_len))
		return -errno;
	return -code;
}

int sock_connect(const struct sockaddr *sa, socklen_t len, const char *what, int cancel_fd,
		 int64_t deadline, struct tern_error *err)
{
	char text[SOCK_TEXT_MAX];
	int rc, fd = socket(sa->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	sock_text(sa, len, text, sizeof(text));
	if (fd < 0)
		return error_session(err, -errno, "Making a socket for %s failed: %s", text,
				     error_name(-errno));
	rc = connect_finish(fd, sa, len, cancel_fd, deadline);
	if (!rc) {
		sock_tune(fd);
		return fd;
	}
	close(fd);
	if (rc == -ECANCELED)
		return error_session(err, rc, "Connecting to %s was cancelled", text);
	return error_session(err, rc, "Connecting %s to %s failed: %s; %s", what, text,
			     error_name(rc), connect_remedy(rc));
}

socklen_t sock_unix_address(const char *path, struct sockaddr_storage *out)
{
	struct sockaddr_un *un = (struct sockaddr_un *)out;

	*un = (struct sockaddr_un){ .sun_family = AF_UNIX };
	snprintf(un->sun_path, sizeof(un->sun_path), "%s", path);
	return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path) + 1);
}
