/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * What a page fault over TCP cannot be quicker than, in three measurements:
 *
 *	minor	resolving a fault of a page that is there: a memfd is mapped twice, pages
 *		are written through one mapping, the other one is empty and registered
 *		with userfaultfd; one thread touches it, page by page in random order, and
 *		another one polls, reads and maps the page (UFFDIO_CONTINUE)
 *	tcp	a round trip over 127.0.0.1 between two processes: a request of 32 bytes,
 *		an answer of 4,096; TCP_NODELAY, blocking calls, nothing else
 *	both	one after the other, with nothing that a protocol would need: the page is not
 *		there; who reads the fault asks for it, and a thread that receives the
 *		answers copies it to its place and maps it
 *
 * A touch is timed by the thread that touches, a round trip by the process that asks, so
 * the wake-ups of both are in it.  Prints one line of JSON, times in microseconds.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/userfaultfd.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef UFFDIO_REGISTER_MODE_MINOR
#define UFFDIO_REGISTER_MODE_MINOR (1ull << 2)
#endif
#ifndef UFFD_FEATURE_MINOR_SHMEM
#define UFFD_FEATURE_MINOR_SHMEM (1ull << 10)
#endif
#ifndef UFFDIO_CONTINUE
struct uffdio_continue {
	struct uffdio_range range;
	uint64_t mode;
	int64_t mapped;
};
#define UFFDIO_CONTINUE _IOWR(UFFDIO, 7, struct uffdio_continue)
#endif

#define PAGE_BYTES 4096UL
#define REQUEST_BYTES 32UL
#define PAGES_DEFAULT 16384UL
#define WARM_UP 256UL /* touches and round trips that are not counted */

/* Two mappings of a memfd, and who resolves the faults of one of them. */
struct rig {
	unsigned char *alias; /* written beforehand */
	unsigned char *guest; /* empty, registered */
	size_t pages;
	int uffd;
	int stop[2]; /* a pipe: readable when the handler has to end */
	int fd; /* whom to ask for a page that is touched; -1: all are there */
	pthread_t handler;
};

/* die - print "faults: @what: the reason" and end this process with status 1. */
static void __attribute__((noreturn)) die(const char *what, int error)
{
	fprintf(stderr, "faults: %s: %s\n", what, strerror(error));
	exit(1);
}

/* clock_ns - CLOCK_MONOTONIC in nanoseconds. */
static uint64_t clock_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000U + (uint64_t)ts.tv_nsec;
}

/* send_all - all of @len bytes; ends the process on failure. */
static void send_all(int fd, const unsigned char *p, size_t len)
{
	while (len) {
		ssize_t n = send(fd, p, len, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			die("send", errno);
		p += n;
		len -= (size_t)n;
	}
}

/* recv_all - exactly @len bytes; false at the end of the stream; else ends the process. */
static bool recv_all(int fd, unsigned char *p, size_t len)
{
	while (len) {
		ssize_t n = recv(fd, p, len, 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			die("receive", errno);
		if (n == 0)
			return false;
		p += n;
		len -= (size_t)n;
	}
	return true;
}

/* ------------------------------------------------------------- minor faults */

/* mapping - @bytes of @fd; ends the process on failure. */
static unsigned char *mapping(int fd, size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (p == MAP_FAILED)
		die("map the memory", errno);
	return p;
}

/* uffd_open - a userfaultfd that reports minor faults of @mem; ends the process on failure. */
static int uffd_open(void *mem, size_t bytes)
{
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_MISSING_SHMEM,
	};
	struct uffdio_register reg = {
		.range = { (uintptr_t)mem, bytes },
		.mode = UFFDIO_REGISTER_MODE_MINOR | UFFDIO_REGISTER_MODE_MISSING,
	};
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd < 0)
		die("open a userfaultfd (root, or vm.unprivileged_userfaultfd = 1?)", errno);
	if (ioctl(fd, UFFDIO_API, &api))
		die("have minor faults of shared memory reported (Linux 5.14?)", errno);
	if (ioctl(fd, UFFDIO_REGISTER, &reg))
		die("register the memory", errno);
	return fd;
}

/* rig_map - map the page at @address, which is there; ends the process on failure. */
static void rig_map(const struct rig *r, uint64_t address)
{
	struct uffdio_continue go = { .range = { address, PAGE_BYTES } };

	if (ioctl(r->uffd, UFFDIO_CONTINUE, &go) && errno != EEXIST)
		die("resolve a fault", errno);
}

/* ask - request the page at @address. */
static void ask(int fd, uint64_t address)
{
	unsigned char request[REQUEST_BYTES] = { 0 };

	memcpy(request, &address, sizeof(address));
	send_all(fd, request, sizeof(request));
}

/* handler_main - thread: map every page that is touched, or ask for it, until told to end. */
static void *handler_main(void *arg)
{
	struct rig *r = arg;
	struct pollfd p[2] = {
		{ .fd = r->uffd, .events = POLLIN },
		{ .fd = r->stop[0], .events = POLLIN },
	};
	struct uffd_msg msg;

	for (;;) {
		if (poll(p, 2, -1) < 0 && errno != EINTR)
			die("poll the userfaultfd", errno);
		if (p[1].revents)
			return NULL;
		if (read(r->uffd, &msg, sizeof(msg)) != sizeof(msg)) {
			if (errno == EAGAIN || errno == EINTR)
				continue;
			die("read the userfaultfd", errno);
		}
		uint64_t address = msg.arg.pagefault.address & ~(PAGE_BYTES - 1);

		if (r->fd < 0)
			rig_map(r, address);
		else
			ask(r->fd, address);
	}
}

/*
 * rig_make - memory that faults, and that is there, unless pages come from @from (else -1);
 * ends the process on failure.
 */
static void rig_make(struct rig *r, size_t pages, int from)
{
	size_t bytes = pages * PAGE_BYTES;
	int fd = memfd_create("faults", MFD_CLOEXEC);

	if (fd < 0 || ftruncate(fd, (off_t)bytes))
		die("create a memfd", errno);
	r->pages = pages;
	r->alias = mapping(fd, bytes);
	r->guest = mapping(fd, bytes);
	close(fd);
	r->fd = from;
	if (from < 0)
		memset(r->alias, 1, bytes);
	r->uffd = uffd_open(r->guest, bytes);
	if (pipe2(r->stop, O_CLOEXEC))
		die("create a pipe", errno);
	if ((errno = pthread_create(&r->handler, NULL, handler_main, r)))
		die("start a thread", errno);
}

/* rig_end - end the handler and free. */
static void rig_end(struct rig *r)
{
	if (write(r->stop[1], "E", 1) != 1)
		die("end the handler", errno);
	pthread_join(r->handler, NULL);
	close(r->stop[0]);
	close(r->stop[1]);
	close(r->uffd);
	munmap(r->alias, r->pages * PAGE_BYTES);
	munmap(r->guest, r->pages * PAGE_BYTES);
}

/* shuffled - 0 … @nr - 1 in an order that is random, and the same every time. */
static size_t *shuffled(size_t nr)
{
	size_t *v = malloc(nr * sizeof(*v));
	uint64_t state = 0x9e3779b97f4a7c15U;

	if (!v)
		die("allocate the order of pages", ENOMEM);
	for (size_t i = 0; i < nr; i++) {
		state = state * 6364136223846793005U + 1442695040888963407U;

		size_t k = (size_t)((state >> 33) % (i + 1));

		v[i] = v[k];
		v[k] = i;
	}
	return v;
}

/* rig_touch - time the touch of each of @nr pages, and some before, into @ns. */
static void rig_touch(const struct rig *r, size_t nr, uint64_t *ns)
{
	size_t *order = shuffled(nr + WARM_UP);

	for (size_t i = 0; i < nr + WARM_UP; i++) {
		const volatile unsigned char *p = r->guest + order[i] * PAGE_BYTES;
		uint64_t begin = clock_ns();

		(void)*p;
		if (i >= WARM_UP)
			ns[i - WARM_UP] = clock_ns() - begin;
	}
	free(order);
}

/* measure_minor - time the touch of each of @nr pages, which are there, into @ns. */
static void measure_minor(size_t nr, uint64_t *ns)
{
	struct rig r;

	rig_make(&r, nr + WARM_UP, -1);
	rig_touch(&r, nr, ns);
	rig_end(&r);
}

/* -------------------------------------------------------------- round trips */

/* socket_nodelay - small messages at once. */
static void socket_nodelay(int fd)
{
	int one = 1;

	if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)))
		die("set TCP_NODELAY", errno);
}

/* answer_main - the child: answer every request until the stream ends. */
static void __attribute__((noreturn)) answer_main(int listen_fd)
{
	unsigned char request[REQUEST_BYTES], page[PAGE_BYTES];
	int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC);

	if (fd < 0)
		die("accept a connection", errno);
	socket_nodelay(fd);
	memset(page, 1, sizeof(page));
	while (recv_all(fd, request, sizeof(request))) {
		memcpy(page, request, sizeof(request)); /* which page it is */
		send_all(fd, page, sizeof(page));
	}
	exit(0);
}

/* listen_loopback - a listening socket on 127.0.0.1; *@sin gets the port the kernel chose. */
static int listen_loopback(struct sockaddr_in *sin)
{
	socklen_t len = sizeof(*sin);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	memset(sin, 0, sizeof(*sin));
	sin->sin_family = AF_INET;
	sin->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (fd < 0 || bind(fd, (struct sockaddr *)sin, sizeof(*sin)) || listen(fd, 1) ||
	    getsockname(fd, (struct sockaddr *)sin, &len))
		die("listen on 127.0.0.1", errno);
	return fd;
}

/* answer_start - fork the process that answers; its pid, and a connection to it in *@fd. */
static pid_t answer_start(int *fd)
{
	struct sockaddr_in sin;
	int listen_fd = listen_loopback(&sin);
	pid_t parent = getpid(), pid;

	fflush(NULL);
	pid = fork();
	if (pid < 0)
		die("fork", errno);
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent)
			_exit(1);
		answer_main(listen_fd);
	}
	close(listen_fd);
	*fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (*fd < 0 || connect(*fd, (struct sockaddr *)&sin, sizeof(sin)))
		die("connect", errno);
	socket_nodelay(*fd);
	return pid;
}

/* answer_end - end the process at the other end of @fd. */
static void answer_end(pid_t pid, int fd)
{
	int status;

	shutdown(fd, SHUT_WR);
	close(fd);
	if (waitpid(pid, &status, 0) != pid || status)
		die("wait for the other process", ECHILD);
}

/* measure_tcp - time @nr round trips into @ns. */
static void measure_tcp(size_t nr, uint64_t *ns)
{
	unsigned char request[REQUEST_BYTES] = { 0 }, page[PAGE_BYTES];
	int fd;
	pid_t pid = answer_start(&fd);

	for (size_t i = 0; i < nr + WARM_UP; i++) {
		uint64_t begin = clock_ns();

		send_all(fd, request, sizeof(request));
		if (!recv_all(fd, page, sizeof(page)))
			die("receive an answer", ECONNRESET);
		if (i >= WARM_UP)
			ns[i - WARM_UP] = clock_ns() - begin;
	}
	answer_end(pid, fd);
}

/* --------------------------------------------------------------------- both */

/* place_main - thread: place what comes, until the stream ends. */
static void *place_main(void *arg)
{
	struct rig *r = arg;
	unsigned char page[PAGE_BYTES];
	uint64_t address;

	while (recv_all(r->fd, page, sizeof(page))) {
		memcpy(&address, page, sizeof(address));
		memcpy(r->alias + (address - (uintptr_t)r->guest), page, sizeof(page));
		rig_map(r, address);
	}
	return NULL;
}

/* measure_both - time the touch of each of @nr pages, which have to be asked for, into @ns. */
static void measure_both(size_t nr, uint64_t *ns)
{
	pthread_t placer;
	struct rig r;
	int fd;
	pid_t pid = answer_start(&fd);

	rig_make(&r, nr + WARM_UP, fd);
	if ((errno = pthread_create(&placer, NULL, place_main, &r)))
		die("start a thread", errno);
	rig_touch(&r, nr, ns);
	shutdown(fd, SHUT_WR);
	pthread_join(placer, NULL);
	rig_end(&r);
	answer_end(pid, fd);
}

/* ------------------------------------------------------------------- output */

/* by_time - for qsort(). */
static int by_time(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

/* print_times - "@name": {…} of @nr times, which get sorted. */
static void print_times(const char *name, uint64_t *ns, size_t nr, const char *end)
{
	qsort(ns, nr, sizeof(*ns), by_time);
	printf("\"%s\": {\"nr\": %zu, \"p50\": %.3f, \"p99\": %.3f, \"p999\": %.3f, "
	       "\"max\": %.3f}%s",
	       name, nr, (double)ns[nr / 2] / 1e3, (double)ns[nr * 99 / 100] / 1e3,
	       (double)ns[nr * 999 / 1000] / 1e3, (double)ns[nr - 1] / 1e3, end);
}

/* usage - how to call it; ends the process with status 2. */
static void __attribute__((noreturn)) usage(void)
{
	fputs("usage: faults [--pages N]\n"
	      "Measures the resolution of minor page faults, round trips over TCP loopback, and\n"
	      "faults that need both, N of each (default 16384); prints medians and percentiles\n"
	      "as JSON.\n",
	      stderr);
	exit(2);
}

/* parse_options - the number of pages. */
static size_t parse_options(int argc, char **argv)
{
	static const struct option options[] = {
		{ "pages", required_argument, NULL, 'p' },
		{ NULL, 0, NULL, 0 },
	};
	unsigned long pages = PAGES_DEFAULT;
	char *end;
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (c != 'p')
			usage();
		pages = strtoul(optarg, &end, 10);
		if (*end || !pages || pages > 1UL << 24)
			usage();
	}
	if (optind != argc)
		usage();
	return pages;
}

int main(int argc, char **argv)
{
	size_t nr = parse_options(argc, argv);
	uint64_t *ns = malloc(nr * sizeof(*ns));

	if (!ns)
		die("allocate room for the times", ENOMEM);
	printf("{");
	measure_minor(nr, ns);
	print_times("minor_us", ns, nr, ", ");
	measure_tcp(nr, ns);
	print_times("tcp_us", ns, nr, ", ");
	measure_both(nr, ns);
	print_times("both_us", ns, nr, "}\n");
	free(ns);
	return 0;
}
