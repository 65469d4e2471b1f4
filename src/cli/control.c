/* SPDX-License-Identifier: BSD-2-Clause */

#define _GNU_SOURCE
#include "control.h"

#include <errno.h>
#include <glob.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include "cli.h"

#define REQUEST_MAX 600u
#define REQUEST_MS 1000 /* a client has to say what it wants within that */

/* Where this user's sockets are. */
static void pattern(char *buf, size_t size, const char *pid)
{
	const char *dir = getenv("XDG_RUNTIME_DIR");

	snprintf(buf, size, "%s/tern-bench-%u-%s.sock", dir && *dir ? dir : "/tmp",
		 (unsigned)getuid(), pid);
}

static int address(const char *path, struct sockaddr_un *un, struct tern_error *err)
{
	*un = (struct sockaddr_un){ .sun_family = AF_UNIX };
	if (strlen(path) >= sizeof(un->sun_path))
		return cli_fail(err, -ENAMETOOLONG, "--control %s: longer than %zu bytes", path,
				sizeof(un->sun_path) - 1);
	strcpy(un->sun_path, path);
	return 0;
}

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

void control_init(struct control *c)
{
	c->fd = c->client = -1;
	c->tried = false;
	pthread_mutex_init(&c->lock, NULL);
}

int control_open(struct control *c, const char *path, struct tern_error *err)
{
	struct sockaddr_un un;
	char pid[16];
	int ret;

	snprintf(pid, sizeof(pid), "%d", (int)getpid());
	if (path)
		snprintf(c->path, sizeof(c->path), "%s", path);
	else
		pattern(c->path, sizeof(c->path), pid);
	ret = address(path ? path : c->path, &un, err);
	if (ret)
		return ret;
	c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (c->fd < 0)
		return cli_fail(err, -errno, "cannot make a control socket: %s", strerror(errno));
	if (is_stale(&un))
		unlink(c->path);
	if (bind(c->fd, (struct sockaddr *)&un, sizeof(un)) || listen(c->fd, 4)) {
		ret = cli_fail(err, -errno,
			       "cannot listen for --recover at %s: %s; choose another path with "
			       "--control",
			       c->path, strerror(errno));
		close(c->fd);
		c->fd = -1;
		return ret;
	}
	return 0;
}

void control_close(struct control *c)
{
	if (c->client >= 0)
		close(c->client);
	if (c->fd >= 0) {
		close(c->fd);
		unlink(c->path);
	}
	c->fd = c->client = -1;
	pthread_mutex_destroy(&c->lock);
}

/* Read up to a newline, at most @ms.  False: there is none. */
static bool read_line(int fd, char *buf, size_t size, int ms)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	size_t len = 0;

	while (len + 1 < size && poll(&p, 1, ms) > 0) {
		ssize_t n = read(fd, buf + len, size - 1 - len);

		if (n <= 0)
			break;
		len += (size_t)n;
		buf[len] = 0;
		char *end = strchr(buf, '\n');

		if (end) {
			*end = 0;
			return true;
		}
	}
	return false;
}

/* Tell a client how it went, and let it go. */
static void answer(int fd, const char *text)
{
	char line[TERN_ERROR_MESSAGE_MAX + 2];
	int len = snprintf(line, sizeof(line), "%s\n", text);

	(void)!send(fd, line, (size_t)len, MSG_NOSIGNAL);
	close(fd);
}

/* The client that waits, which is the caller's from now on; -1: none. */
static int take_client(struct control *c)
{
	pthread_mutex_lock(&c->lock);
	int fd = c->client;

	c->client = -1;
	pthread_mutex_unlock(&c->lock);
	return fd;
}

/* Have the session recover for client @fd. */
static void recover(struct control *c, struct tern_session *s, int fd, const char *uri)
{
	pthread_mutex_lock(&c->lock);
	c->client = fd;
	c->tried = false;
	pthread_mutex_unlock(&c->lock);
	int ret = tern_session_recover(s, uri);

	if (!ret)
		return; /* answered when it is known how it went */
	fd = take_client(c);
	if (fd >= 0)
		answer(fd, ret == -EBUSY
				   ? "the migration is not paused: there is nothing to recover"
				   : "the source cannot connect to that URI: its form is wrong, or "
				     "its transport is not in this build");
}

void control_ready(struct control *c, struct tern_session *s)
{
	char line[REQUEST_MAX];
	int fd = accept4(c->fd, NULL, NULL, SOCK_CLOEXEC);

	if (fd < 0)
		return;
	pthread_mutex_lock(&c->lock);
	bool busy = c->client >= 0;

	pthread_mutex_unlock(&c->lock);
	if (busy)
		answer(fd, "another --recover is under way");
	else if (read_line(fd, line, sizeof(line), REQUEST_MS) && !strncmp(line, "recover ", 8))
		recover(c, s, fd, line + 8);
	else
		answer(fd, "this is no request of `tern bench --recover`");
}

void control_state(struct control *c, struct tern_session *s, enum tern_state state)
{
	bool good = state == TERN_STATE_POSTCOPY_ACTIVE || state == TERN_STATE_COMPLETED;
	bool bad = state == TERN_STATE_POSTCOPY_PAUSED || state == TERN_STATE_FAILED;
	struct tern_error why;
	int fd;

	pthread_mutex_lock(&c->lock);
	c->tried |= state == TERN_STATE_POSTCOPY_RECOVER;
	bool due = c->client >= 0 && c->tried && (good || bad);

	pthread_mutex_unlock(&c->lock);
	fd = due ? take_client(c) : -1;
	if (fd < 0)
		return;
	tern_session_error(s, &why);
	answer(fd, good ? "ok" : why.message);
}

/* The only socket of this user.  0 or -errno with *err. */
static int find(char *buf, size_t size, struct tern_error *err)
{
	char all[CONTROL_PATH_MAX];
	glob_t g;
	int ret;

	pattern(all, sizeof(all), "*");
	ret = glob(all, 0, NULL, &g);
	if (ret || !g.gl_pathc)
		ret = cli_fail(
			err, -ENOENT,
			"--recover: no paused source of this user is here (%s); say where it "
			"is with --control",
			all);
	else if (g.gl_pathc > 1)
		ret = cli_fail(
			err, -EBUSY,
			"--recover: there are %zu sources of this user here (%s); choose one "
			"with --control",
			g.gl_pathc, all);
	else
		snprintf(buf, size, "%s", g.gl_pathv[0]);
	globfree(&g);
	return ret;
}

int control_ask(const char *path, const char *uri, struct tern_error *err)
{
	char found[CONTROL_PATH_MAX], line[REQUEST_MAX];
	struct sockaddr_un un;
	int ret = path ? 0 : find(found, sizeof(found), err);
	int fd;

	path = path ? path : found;
	if (!ret)
		ret = address(path, &un, err);
	if (ret)
		return ret;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *)&un, sizeof(un))) {
		ret = cli_fail(err, -errno,
			       "--recover: cannot reach the source at %s: %s; is it still there?",
			       path, strerror(errno));
	} else {
		int len = snprintf(line, sizeof(line), "recover %s\n", uri);

		if (len >= (int)sizeof(line) || send(fd, line, (size_t)len, MSG_NOSIGNAL) != len ||
		    !read_line(fd, line, sizeof(line), -1))
			ret = cli_fail(err, -EIO, "--recover: the source at %s gave no answer",
				       path);
		else if (strcmp(line, "ok"))
			ret = cli_fail(err, -EIO, "--recover: %s", line);
	}
	if (fd >= 0)
		close(fd);
	return ret;
}
