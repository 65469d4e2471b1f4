/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * Raw sockets that are no tern peers.  The bytes are written out by hand, not
 * made by the product's encoder, so that an error there is not repeated here.
 */

#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include "strangers.h"
#include "uri.h"

#define PREAMBLE "\x89TERN\r\n\x1a"
#define CONTROL_1 PREAMBLE "\1\0\1\0\0\0\0\0"
#define SESSION "0123456789abcdef"

struct hello {
	const char *bytes;
	size_t len;
};

#define HELLO(s)                 \
	{                        \
		s, sizeof(s) - 1 \
	}

static const struct hello hellos[] = {
	HELLO("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
	HELLO("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
	HELLO("SSH-2.0-OpenSSH_9.2\r\n"),
	HELLO("\x89TERN\n\x1a"), /* CR lost on the way */
	HELLO("\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
	HELLO(""), /* silent */
	HELLO(PREAMBLE "\1\0"), /* a part */
	HELLO(CONTROL_1 SESSION "\xff\xff\xff\x7f"), /* huge first message */
	HELLO(CONTROL_1 SESSION "\0\0\0\0"), /* empty first message */
	HELLO(PREAMBLE "\2\0\1\0\0\0\0\0" SESSION), /* version 2 */
	HELLO(PREAMBLE "\1\0\3\0\0\0\0\0" SESSION), /* kind 3 */
	HELLO(PREAMBLE "\1\0\2\0\5\0\5\0" SESSION), /* index = count */
	HELLO(CONTROL_1 SESSION "\1\0\1\0zz"), /* 65537 bytes announced */
	HELLO(CONTROL_1 SESSION "\x10\0\0\0half"), /* first message in part */
};

#define NR_HELLOS (sizeof(hellos) / sizeof(hellos[0]))

struct strangers {
	int fd[NR_HELLOS + 1]; /* the last one trickles */
	unsigned trickled;
};

int strangers_socket(const struct uri *uri)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *list;
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	int fd;

	if (uri->scheme == URI_UNIX) {
		memcpy(un.sun_path, uri->path, sizeof(un.sun_path));
		fd = socket(AF_UNIX, SOCK_STREAM, 0);
		if (fd >= 0 && !connect(fd, (struct sockaddr *)&un, sizeof(un)))
			return fd;
	} else {
		if (getaddrinfo(uri->host, uri->port, &hints, &list))
			return -1;
		fd = socket(list->ai_family, SOCK_STREAM, 0);
		if (fd >= 0 && connect(fd, list->ai_addr, list->ai_addrlen)) {
			close(fd);
			fd = -1;
		}
		freeaddrinfo(list);
		return fd;
	}
	if (fd >= 0)
		close(fd);
	return -1;
}

struct strangers *strangers_come(const struct uri *uri)
{
	struct strangers *s = calloc(1, sizeof(*s));

	for (unsigned i = 0; s && i <= NR_HELLOS; i++) {
		s->fd[i] = strangers_socket(uri);
		if (s->fd[i] < 0)
			return NULL;
		if (i < NR_HELLOS && hellos[i].len &&
		    send(s->fd[i], hellos[i].bytes, hellos[i].len, MSG_NOSIGNAL) < 0)
			return NULL;
	}
	return s;
}

unsigned strangers_nr(const struct strangers *s)
{
	return sizeof(s->fd) / sizeof(s->fd[0]);
}

void strangers_trickle(struct strangers *s)
{
	static const char hello[] = CONTROL_1 SESSION "\0\x20\0\0";
	char c = s->trickled < sizeof(hello) - 1 ? hello[s->trickled] : 'x';

	if (send(s->fd[NR_HELLOS], &c, 1, MSG_NOSIGNAL | MSG_DONTWAIT) == 1)
		s->trickled++;
}

void strangers_go(struct strangers *s)
{
	for (unsigned i = 0; i <= NR_HELLOS; i++)
		close(s->fd[i]);
	free(s);
}

int strangers_attach(const struct uri *uri, const uint8_t *session_id, uint16_t index,
		     uint16_t count)
{
	uint8_t pre[32] = PREAMBLE "\1\0\2", status[8];
	int fd = strangers_socket(uri), code = -1;

	pre[12] = (uint8_t)index;
	pre[14] = (uint8_t)count;
	memcpy(pre + 16, session_id, 16);
	if (fd >= 0 && send(fd, pre, sizeof(pre), MSG_NOSIGNAL) == sizeof(pre) &&
	    recv(fd, status, sizeof(status), MSG_WAITALL) == sizeof(status) &&
	    !memcmp(status, "\xff\xff\xff\xff", 4))
		code = status[4] | status[5] << 8;
	if (fd >= 0)
		close(fd);
	return code;
}
