/* SPDX-License-Identifier: BSD-2-Clause */

/* The control socket; see qmp.h. */

#define _GNU_SOURCE
#include "qmp.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>
#include "../cli/cli.h"

#define SEND_SECONDS 5 /* a client that does not read for so long is let go */

/* Does nobody listen at @un any more? */
static bool is_stale(const struct sockaddr_un *un)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	bool stale = fd >= 0 && connect(fd, (const struct sockaddr *)un, sizeof(*un)) &&
		     errno == ECONNREFUSED;

	if (fd >= 0)
		close(fd);
	return stale;
}

/* Listen at a path. */
static int socket_open(struct qmp *q, const char *path, struct tern_error *err)
{
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	mode_t mask;
	int ret;

	if (strlen(path) >= sizeof(un.sun_path))
		return cli_fail(err, -ENAMETOOLONG, "--control %s: longer than %zu bytes", path,
				sizeof(un.sun_path) - 1);
	strcpy(un.sun_path, path);
	q->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (q->fd < 0)
		return cli_fail(err, -errno, "cannot make a control socket: %s", strerror(errno));
	if (is_stale(&un))
		unlink(path);
	/* Whoever may connect may move the guest anywhere. */
	mask = umask(0177);
	ret = bind(q->fd, (struct sockaddr *)&un, sizeof(un)) ? -errno : 0;
	umask(mask);
	if (!ret && listen(q->fd, QMP_CLIENTS_MAX))
		ret = -errno;
	if (ret)
		return cli_fail(err, ret, "cannot listen at --control %s: %s; choose another path",
				path, strerror(-ret));
	q->path = path;
	return 0;
}

int qmp_open(struct qmp *q, struct vmm *v, const char *path, struct tern_error *err)
{
	sigset_t set;

	*q = (struct qmp){ .vmm = v, .fd = -1, .signal_fd = -1 };
	for (unsigned i = 0; i < QMP_CLIENTS_MAX; i++)
		q->clients[i].fd = -1;
	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	q->signal_fd = signalfd(-1, &set, SFD_CLOEXEC);
	if (q->signal_fd < 0)
		return cli_fail(err, -errno, "cannot make a signalfd: %s", strerror(errno));
	return path ? socket_open(q, path, err) : 0;
}

/* Let a client go. */
static void client_close(struct qmp_client *c)
{
	close(c->fd);
	free(c->line);
	*c = (struct qmp_client){ .fd = -1 };
}

void qmp_close(struct qmp *q)
{
	for (unsigned i = 0; i < QMP_CLIENTS_MAX; i++)
		if (q->clients[i].fd >= 0)
			client_close(&q->clients[i]);
	if (q->path)
		unlink(q->path);
	if (q->fd >= 0)
		close(q->fd);
	if (q->signal_fd >= 0)
		close(q->signal_fd);
	q->fd = q->signal_fd = -1;
}

/* Send one object as a line; the client is let go if that fails. */
static void client_send(struct qmp_client *c, const json_t *o)
{
	char *text = json_dumps(o, JSON_COMPACT);
	size_t len = text ? strlen(text) : 0, done = 0;

	if (text)
		text[len++] = '\n'; /* in the place of the 0 */
	while (done < len) {
		ssize_t n = send(c->fd, text + done, len - done, MSG_NOSIGNAL);

		if (n <= 0 && errno != EINTR)
			break;
		done += n > 0 ? (size_t)n : 0;
	}
	free(text);
	if (done < len || !len)
		client_close(c);
}

/* A new connection. */
static void client_accept(struct qmp *q)
{
	const struct timeval limit = { .tv_sec = SEND_SECONDS };
	int fd = accept4(q->fd, NULL, NULL, SOCK_CLOEXEC);
	struct qmp_client *c = NULL;
	json_t *hello;

	for (unsigned i = 0; i < QMP_CLIENTS_MAX && !c; i++)
		if (q->clients[i].fd < 0)
			c = &q->clients[i];
	if (fd < 0)
		return;
	if (!c || !(c->line = malloc(QMP_LINE_MAX))) {
		close(fd);
		return;
	}
	c->fd = fd;
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	hello = json_pack("{s:{s:{s:s}, s:[]}}", "QMP", "version", "package", tern_version(),
			  "capabilities");
	client_send(c, hello);
	json_decref(hello);
}

/* One line from a client. */
static void client_line(struct qmp *q, struct qmp_client *c, const char *line, size_t len)
{
	json_error_t why;
	json_t *request, *answer;

	if (strspn(line, " \t\r") >= len)
		return;
	request = json_loadb(line, len, 0, &why);
	if (request)
		answer = command_run(q->vmm, request);
	else
		answer = json_pack("{s:{s:s, s:s+}}", "error", "class", "GenericError", "desc",
				   "not a line of JSON: ", why.text);
	client_send(c, answer);
	json_decref(request);
	json_decref(answer);
}

/* A client has sent something, or hung up. */
static void client_read(struct qmp *q, struct qmp_client *c)
{
	ssize_t n = recv(c->fd, c->line + c->len, QMP_LINE_MAX - c->len, 0);
	char *begin = c->line, *end;

	if (n <= 0) {
		client_close(c);
		return;
	}
	c->len += (size_t)n;
	while (c->fd >= 0 && (end = memchr(begin, '\n', c->len))) {
		size_t len = (size_t)(end - begin);

		*end = 0;
		client_line(q, c, begin, len);
		if (c->fd < 0)
			return;
		c->len -= len + 1;
		begin = end + 1;
	}
	if (c->len == QMP_LINE_MAX) {
		client_close(c); /* no command is that long */
		return;
	}
	memmove(c->line, begin, c->len);
}

/* Hand out events. */
static void events_send(struct qmp *q)
{
	json_t *list = events_take(&q->vmm->events), *event;
	size_t i;

	json_array_foreach(list, i, event) for (unsigned k = 0; k < QMP_CLIENTS_MAX;
						k++) if (q->clients[k].fd >= 0)
		client_send(&q->clients[k], event);
	json_decref(list);
}

int qmp_serve(struct qmp *q, struct tern_error *err)
{
	struct pollfd p[3 + QMP_CLIENTS_MAX];

	while (!q->vmm->quit) {
		p[0] = (struct pollfd){ .fd = q->signal_fd, .events = POLLIN };
		p[1] = (struct pollfd){ .fd = q->vmm->events.fd, .events = POLLIN };
		p[2] = (struct pollfd){ .fd = q->fd, .events = POLLIN };
		for (unsigned i = 0; i < QMP_CLIENTS_MAX; i++)
			p[3 + i] = (struct pollfd){ .fd = q->clients[i].fd, .events = POLLIN };
		if (poll(p, 3 + QMP_CLIENTS_MAX, -1) < 0 && errno != EINTR)
			return cli_fail(err, -errno, "cannot wait for commands: %s",
					strerror(errno));
		if (p[0].revents)
			break;
		if (p[1].revents)
			events_send(q);
		for (unsigned i = 0; i < QMP_CLIENTS_MAX; i++)
			if (p[3 + i].revents && q->clients[i].fd >= 0)
				client_read(q, &q->clients[i]);
		if (p[2].revents)
			client_accept(q);
	}
	events_post(&q->vmm->events, "SHUTDOWN", NULL);
	events_send(q);
	return 0;
}
