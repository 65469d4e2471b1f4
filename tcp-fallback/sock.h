/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_TCP_FALLBACK_SOCK_H
#define TERN_TCP_FALLBACK_SOCK_H

/* Sockets: waiting, addresses as text, options.  Every socket is non-blocking and CLOEXEC. */

#include <netdb.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <tern/error.h>

struct uri;

#define SOCK_TEXT_MAX 160 /* an address or a path in words */

/* sock_now_ms - CLOCK_MONOTONIC in milliseconds. */
int64_t sock_now_ms(void);

/* sock_now_ns - CLOCK_MONOTONIC in nanoseconds. */
uint64_t sock_now_ns(void);

/* sock_deadline - @timeout_ms from now, or -1 for never if it is negative. */
int64_t sock_deadline(int timeout_ms);

/* sock_remaining - milliseconds until @deadline as poll() wants it: ≥ 0, or -1 for never. */
int sock_remaining(int64_t deadline);

/*
 * sock_wait - wait until @fd is ready for @events (also ERR, HUP).
 *
 * Returns the revents (> 0); -ETIMEDOUT at @deadline; -ECANCELED if @cancel_fd
 * (or -1) is readable, which goes before readiness.
 */
int sock_wait(int fd, short events, int cancel_fd, int64_t deadline);

/* sock_iov_advance - drop the first @n bytes; returns the first iovec that is left. */
struct iovec *sock_iov_advance(struct iovec *iov, unsigned *nr, size_t n);

/* sock_iov_bytes - what @iov has in all. */
size_t sock_iov_bytes(const struct iovec *iov, unsigned nr);

/* What sock_limit() made shorter. */
struct sock_limit {
	struct iovec *last; /* NULL: none */
	size_t len; /* as it was */
};

/*
 * sock_limit - the first @most bytes of @iov, @most > 0.
 *
 * Returns how many of the @nr iovecs they take.  The last of these is made shorter, until
 * sock_limit_undo() is called.
 */
unsigned sock_limit(struct iovec *iov, unsigned nr, size_t most, struct sock_limit *l);
void sock_limit_undo(const struct sock_limit *l);

/*
 * sock_send_all, sock_recv_all - move all of @iov or exactly @len bytes by @deadline.
 *
 * 0, -ETIMEDOUT, -ECANCELED, -ECONNRESET (also for the end of the stream), or what the
 * kernel gave.
 */
int sock_send_all(int fd, struct iovec *iov, unsigned nr, int cancel_fd, int64_t deadline);
int sock_recv_all(int fd, void *buf, size_t len, int cancel_fd, int64_t deadline);

/* sock_text - an address in words: "192.0.2.1:4444", "[::1]:4444", "/run/x.sock". */
void sock_text(const struct sockaddr *sa, socklen_t len, char *buf, size_t size);

/* sock_peer_text - who is at the other end; for UNIX sockets its process id. */
void sock_peer_text(int fd, char *buf, size_t size);

/* sock_tune - options of a connected socket; failures do no harm and are ignored. */
void sock_tune(int fd);

/*
 * sock_resolve - addresses of a tcp: URI.
 *
 * @flags as ai_flags (AI_PASSIVE to listen).  0 with *out for freeaddrinfo(); -ENOENT (the name
 * does not resolve), -EAGAIN, -ENOMEM with the sentence.
 */
int sock_resolve(const struct uri *uri, int flags, struct addrinfo **out, struct tern_error *err);

/*
 * sock_connect - a connected socket, tuned; returns the fd.
 *
 * @what names the address in errors.  -ETIMEDOUT, -ECANCELED, -ECONNREFUSED and so on with the
 * sentence and the remedy.
 */
int sock_connect(const struct sockaddr *sa, socklen_t len, const char *what, int cancel_fd,
		 int64_t deadline, struct tern_error *err);

/* sock_unix_address - sockaddr of a path that is known to fit; returns its length. */
socklen_t sock_unix_address(const char *path, struct sockaddr_storage *out);

#endif
