/* SPDX-License-Identifier: BSD-2-Clause */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include "cli.h"
#include "peer.h"

/* The child's side of the fork; does not return. */
static void __attribute__((noreturn))
child(peer_main_fn *fn, void *ctx, pid_t parent, int report_fd, int life_fd)
{
	sigset_t term;
	FILE *out;
	int code;

	sigemptyset(&term);
	sigaddset(&term, SIGTERM);
	sigprocmask(SIG_UNBLOCK, &term, NULL);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent) /* it died before prctl() */
		_exit(CLI_EXIT_FAILED);
	out = fdopen(report_fd, "w");
	if (!out)
		_exit(CLI_EXIT_FAILED);
	code = fn(ctx, out, life_fd);
	fflush(out);
	_exit(code);
}

/* Two pipes; all four ends are closed on exec and on failure. */
static int make_pipes(int report[2], int life[2])
{
	int ret;

	if (pipe2(report, O_CLOEXEC))
		return -errno;
	if (!pipe2(life, O_CLOEXEC))
		return 0;
	ret = -errno;
	close(report[0]);
	close(report[1]);
	return ret;
}

/* Fork the child; see peer.h. */
int peer_start(struct peer *p, peer_main_fn *fn, void *ctx, struct tern_error *err)
{
	pid_t parent = getpid(), pid;
	int report[2], life[2];
	int ret = make_pipes(report, life);

	*p = (struct peer){ .life_fd = -1 };
	if (ret)
		return cli_fail(err, ret, "cannot make a pipe: %s", strerror(-ret));
	pid = fork();
	if (!pid) {
		close(report[0]);
		close(life[1]);
		child(fn, ctx, parent, report[1], life[0]);
	}
	close(report[1]);
	close(life[0]);
	if (pid > 0)
		p->from = fdopen(report[0], "r");
	if (!p->from) {
		ret = cli_fail(err, -errno, "cannot start the destination process: %s",
			       strerror(errno));
		close(report[0]);
		close(life[1]); /* a child that did start ends by this */
		if (pid > 0)
			waitpid(pid, NULL, 0);
		return ret;
	}
	/* Unbuffered: what a buffer holds, poll() in peer_read() would not see. */
	setvbuf(p->from, NULL, _IONBF, 0);
	p->pid = pid;
	p->life_fd = life[1];
	return 0;
}

/* The child's next report; see peer.h. */
int peer_read(struct peer *p, int signal_fd, int timeout_ms, json_t **out)
{
	struct pollfd fds[] = {
		{ .fd = fileno(p->from), .events = POLLIN },
		{ .fd = signal_fd, .events = POLLIN },
	};
	int n;

	do
		n = poll(fds, 2, timeout_ms);
	while (n < 0 && errno == EINTR);
	if (!n)
		return -ETIMEDOUT;
	if (!fds[0].revents)
		return -EINTR;
	/* A report is written at once; what poll() saw of it is followed by the rest. */
	*out = json_loadf(p->from, JSON_DISABLE_EOF_CHECK, NULL);
	if (*out)
		return getc(p->from) == '\n' ? 0 : -EBADMSG;
	return feof(p->from) ? -EPIPE : -EBADMSG;
}

/* Send one report and a newline. */
void peer_report(FILE *out, json_t *report)
{
	json_dumpf(report, out, JSON_COMPACT);
	fputc('\n', out);
	fflush(out);
	json_decref(report);
}

/* Close our end of the life pipe. */
void peer_hang_up(struct peer *p)
{
	if (p->life_fd >= 0)
		close(p->life_fd);
	p->life_fd = -1;
}

/* Wait up to @ms for the child to end by itself. */
static void await_exit(pid_t pid, int ms)
{
	struct pollfd pfd = { .fd = (int)syscall(SYS_pidfd_open, pid, 0), .events = POLLIN };

	if (pfd.fd < 0)
		return;
	while (poll(&pfd, 1, ms) < 0 && errno == EINTR)
		;
	close(pfd.fd);
}

/* Reap the child; see peer.h. */
void peer_end(struct peer *p, int grace_ms, char *how, size_t size)
{
	int status = 0;

	how[0] = 0;
	peer_hang_up(p);
	if (p->pid > 0) {
		await_exit(p->pid, grace_ms);
		if (!waitpid(p->pid, &status, WNOHANG)) {
			kill(p->pid, SIGKILL);
			waitpid(p->pid, &status, 0);
		} else if (WIFSIGNALED(status)) {
			snprintf(how, size, "the destination process was killed by signal %d (%s)",
				 WTERMSIG(status), strsignal(WTERMSIG(status)));
		}
	}
	p->pid = 0;
	if (p->from)
		fclose(p->from);
	p->from = NULL;
}
