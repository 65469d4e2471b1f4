/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * pump - the ceiling: how fast plain sockets move memory on this machine.
 *
 * Two processes, N TCP loopback sockets, one thread per socket and side.  Each
 * socket carries one contiguous slice of the memory, from place to place, with
 * plain send() and recv() of at most CHUNK bytes.  There is no protocol beyond
 * a slice number at the start of each socket and one byte back at its end, no
 * dirty tracking and no zero detection: whatever moves memory over sockets with
 * one copy in and one copy out can come near this figure and not pass it by much.
 *
 *   source (parent)                          destination (child)
 *   map, fill                                map, populate if --prealloc
 *                              <- pipe: 'R'
 *   clock starts
 *   connect N sockets, send slices   ---->   recv slices into place
 *   last acknowledgement came        <----   one byte per socket
 *   clock stops
 *                         <- pipe: report    recompute the fill, compare every word
 *
 * The fill is a function of the position, so the destination can check all of
 * its memory; filling, populating and checking are outside the clock.  A figure
 * is printed only when every word was right.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

#define SOCKETS_MAX 64
#define PAGE_BYTES 4096UL

enum fill {
	FILL_RANDOM,
	FILL_ZERO,
};

struct config {
	size_t size;
	size_t chunk; /* most bytes per send() and recv() */
	unsigned sockets;
	bool prealloc; /* destination memory populated before the clock */
	bool anon; /* private anonymous memory instead of a memfd */
	bool best; /* try several chunk sizes */
	enum fill fill;
};

/* What the destination reports through the pipe. */
struct report {
	uint64_t cpu_ns;
	uint64_t bad_words;
};

struct trial {
	size_t chunk;
	uint64_t total_ns;
	uint64_t cpu_ns; /* both processes */
};

/* One thread's work: the bytes [begin, end) over @fd. */
struct lane {
	pthread_t thread;
	const struct config *cfg;
	unsigned char *mem;
	size_t begin;
	size_t end;
	uint32_t index;
	int fd;
	int error; /* 0 or -errno; set by the thread, read after pthread_join() */
};

/* die - print "pump: @what: the reason" and end this process with status 1. */
static void __attribute__((noreturn)) die(const char *what, int error)
{
	fprintf(stderr, "pump: %s: %s\n", what, strerror(error < 0 ? -error : error));
	exit(1);
}

/* clock_ns - time of clock @id in nanoseconds. */
static uint64_t clock_ns(clockid_t id)
{
	struct timespec ts;

	clock_gettime(id, &ts);
	return (uint64_t)ts.tv_sec * 1000000000U + (uint64_t)ts.tv_nsec;
}

/* fill_word - the 64-bit word that belongs at word index @i. */
static inline uint64_t fill_word(enum fill fill, uint64_t i)
{
	uint64_t z = (i + 1) * 0x9e3779b97f4a7c15U;

	if (fill == FILL_ZERO)
		return 0;
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
	return z ^ (z >> 31);
}

/* memory_fill - write the fill over all of @mem, touching every page. */
static void memory_fill(const struct config *cfg, void *mem)
{
	uint64_t *words = mem;

	for (size_t i = 0; i < cfg->size / sizeof(*words); i++)
		words[i] = fill_word(cfg->fill, i);
}

/* memory_check - number of words of @mem that differ from the fill. */
static uint64_t memory_check(const struct config *cfg, const void *mem)
{
	const uint64_t *words = mem;
	uint64_t bad = 0;

	for (size_t i = 0; i < cfg->size / sizeof(*words); i++)
		bad += words[i] != fill_word(cfg->fill, i);
	return bad;
}

/* memory_map - fresh memory of the configured kind; ends the process on failure. */
static void *memory_map(const struct config *cfg)
{
	int flags = cfg->anon ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
	int fd = -1;
	void *mem;

	if (!cfg->anon) {
		fd = memfd_create("pump", MFD_CLOEXEC);
		if (fd < 0 || ftruncate(fd, (off_t)cfg->size))
			die("create a memfd", errno);
	}
	mem = mmap(NULL, cfg->size, PROT_READ | PROT_WRITE, flags, fd, 0);
	if (mem == MAP_FAILED)
		die("map the memory", errno);
	if (fd >= 0)
		close(fd);
	return mem;
}

/* send_all - send @len bytes in pieces of at most @chunk; 0 or -errno. */
static int send_all(int fd, const unsigned char *p, size_t len, size_t chunk)
{
	while (len) {
		ssize_t n = send(fd, p, len < chunk ? len : chunk, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		p += n;
		len -= (size_t)n;
	}
	return 0;
}

/* recv_all - receive exactly @len bytes in pieces of at most @chunk; 0 or -errno. */
static int recv_all(int fd, unsigned char *p, size_t len, size_t chunk)
{
	while (len) {
		ssize_t n = recv(fd, p, len < chunk ? len : chunk, 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			return -ECONNRESET;
		p += n;
		len -= (size_t)n;
	}
	return 0;
}

/* lane_slice - set the byte range of lane @index: whole pages, the last lane takes the rest. */
static void lane_slice(struct lane *lane, uint32_t index)
{
	size_t pages = lane->cfg->size / PAGE_BYTES;
	size_t n = lane->cfg->sockets;

	lane->index = index;
	lane->begin = pages * index / n * PAGE_BYTES;
	lane->end = index + 1 == n ? lane->cfg->size : pages * (index + 1) / n * PAGE_BYTES;
}

/* lane_source - thread: send the slice and wait for its acknowledgement. */
static void *lane_source(void *arg)
{
	struct lane *lane = arg;
	unsigned char ack;

	lane->error = send_all(lane->fd, (unsigned char *)&lane->index, sizeof(lane->index), 4);
	if (!lane->error)
		lane->error = send_all(lane->fd, lane->mem + lane->begin, lane->end - lane->begin,
				       lane->cfg->chunk);
	if (!lane->error)
		lane->error = recv_all(lane->fd, &ack, 1, 1);
	return NULL;
}

/* lane_destination - thread: receive a slice into place and acknowledge it. */
static void *lane_destination(void *arg)
{
	struct lane *lane = arg;
	unsigned char ack = 'A';
	uint32_t index;

	lane->error = recv_all(lane->fd, (unsigned char *)&index, sizeof(index), 4);
	if (lane->error)
		return NULL;
	if (index >= lane->cfg->sockets) {
		lane->error = -EPROTO;
		return NULL;
	}
	lane_slice(lane, index);
	lane->error = recv_all(lane->fd, lane->mem + lane->begin, lane->end - lane->begin,
			       lane->cfg->chunk);
	if (!lane->error)
		lane->error = send_all(lane->fd, &ack, 1, 1);
	return NULL;
}

/* lanes_run - start @fn once per lane and wait for all; ends the process on any error. */
static void lanes_run(struct lane *lanes, unsigned nr, void *(*fn)(void *), const char *what)
{
	int error;

	for (unsigned i = 0; i < nr; i++) {
		error = pthread_create(&lanes[i].thread, NULL, fn, &lanes[i]);
		if (error)
			die("start a thread", error);
	}
	for (unsigned i = 0; i < nr; i++)
		pthread_join(lanes[i].thread, NULL);
	for (unsigned i = 0; i < nr; i++)
		if (lanes[i].error)
			die(what, lanes[i].error);
}

/* listen_loopback - a listening socket on 127.0.0.1; *@sin gets the port the kernel chose. */
static int listen_loopback(struct sockaddr_in *sin, int backlog)
{
	socklen_t len = sizeof(*sin);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	memset(sin, 0, sizeof(*sin));
	sin->sin_family = AF_INET;
	sin->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (fd < 0 || bind(fd, (struct sockaddr *)sin, sizeof(*sin)) || listen(fd, backlog) ||
	    getsockname(fd, (struct sockaddr *)sin, &len))
		die("listen on 127.0.0.1", errno);
	return fd;
}

/* socket_nodelay - the acknowledgement byte must not wait for more. */
static void socket_nodelay(int fd)
{
	int one = 1;

	if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)))
		die("set TCP_NODELAY", errno);
}

/* destination_main - all of the child process; does not return. */
static void __attribute__((noreturn))
destination_main(const struct config *cfg, int listen_fd, int pipe_fd)
{
	struct lane lanes[SOCKETS_MAX] = { 0 };
	struct report report;
	uint64_t cpu0;
	void *mem = memory_map(cfg);

	if (cfg->prealloc && madvise(mem, cfg->size, MADV_POPULATE_WRITE))
		die("populate the destination's memory", errno);
	if (write(pipe_fd, "R", 1) != 1)
		die("tell the source to begin", errno);
	cpu0 = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
	for (unsigned i = 0; i < cfg->sockets; i++) {
		lanes[i].cfg = cfg;
		lanes[i].mem = mem;
		lanes[i].fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC);
		if (lanes[i].fd < 0)
			die("accept a connection", errno);
		socket_nodelay(lanes[i].fd);
	}
	lanes_run(lanes, cfg->sockets, lane_destination, "receive");
	report.cpu_ns = clock_ns(CLOCK_PROCESS_CPUTIME_ID) - cpu0;
	report.bad_words = memory_check(cfg, mem);
	if (write(pipe_fd, &report, sizeof(report)) != sizeof(report))
		die("report to the source", errno);
	exit(0);
}

/* source_connect - connect one socket per lane to @sin. */
static void source_connect(struct lane *lanes, const struct config *cfg,
			   const struct sockaddr_in *sin)
{
	for (unsigned i = 0; i < cfg->sockets; i++) {
		lanes[i].fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
		if (lanes[i].fd < 0 ||
		    connect(lanes[i].fd, (const struct sockaddr *)sin, sizeof(*sin)))
			die("connect to the destination", errno);
		socket_nodelay(lanes[i].fd);
	}
}

/* source_move - the timed part: connect, send everything, wait for every acknowledgement. */
static void source_move(const struct config *cfg, unsigned char *mem, const struct sockaddr_in *sin,
			struct trial *out)
{
	struct lane lanes[SOCKETS_MAX] = { 0 };
	uint64_t cpu0, t0;

	for (unsigned i = 0; i < cfg->sockets; i++) {
		lanes[i].cfg = cfg;
		lanes[i].mem = mem;
		lane_slice(&lanes[i], i);
	}
	cpu0 = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
	t0 = clock_ns(CLOCK_MONOTONIC);
	source_connect(lanes, cfg, sin);
	lanes_run(lanes, cfg->sockets, lane_source, "send");
	out->total_ns = clock_ns(CLOCK_MONOTONIC) - t0;
	out->cpu_ns = clock_ns(CLOCK_PROCESS_CPUTIME_ID) - cpu0;
	for (unsigned i = 0; i < cfg->sockets; i++)
		close(lanes[i].fd);
}

/* destination_start - fork the destination; *@pipe_fd is where it reports; returns its pid. */
static pid_t destination_start(const struct config *cfg, int listen_fd, int *pipe_fd)
{
	pid_t parent = getpid();
	int fds[2];
	pid_t pid;

	if (pipe2(fds, O_CLOEXEC))
		die("create a pipe", errno);
	fflush(NULL);
	pid = fork();
	if (pid < 0)
		die("fork the destination", errno);
	if (pid == 0) {
		close(fds[0]);
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent)
			_exit(1);
		destination_main(cfg, listen_fd, fds[1]);
	}
	close(fds[1]);
	*pipe_fd = fds[0];
	return pid;
}

/* trial_run - move the memory once; ends the process on any failure or wrong byte. */
static void trial_run(const struct config *cfg, unsigned char *mem, struct trial *out)
{
	struct sockaddr_in sin;
	struct report report;
	int listen_fd, pipe_fd, status;
	pid_t pid;
	char ready;

	listen_fd = listen_loopback(&sin, (int)cfg->sockets);
	pid = destination_start(cfg, listen_fd, &pipe_fd);
	close(listen_fd);
	if (read(pipe_fd, &ready, 1) != 1)
		die("wait for the destination", EPIPE);
	source_move(cfg, mem, &sin, out);
	if (read(pipe_fd, &report, sizeof(report)) != sizeof(report))
		die("wait for the destination's report", EPIPE);
	close(pipe_fd);
	if (waitpid(pid, &status, 0) != pid || status)
		die("wait for the destination's end", ECHILD);
	if (report.bad_words) {
		fprintf(stderr, "pump: %llu words arrived wrong\n",
			(unsigned long long)report.bad_words);
		exit(1);
	}
	out->chunk = cfg->chunk;
	out->cpu_ns += report.cpu_ns;
}

/* trial_mib_s - MiB per second of @size bytes. */
static double trial_mib_s(const struct trial *t, size_t size)
{
	return (double)size / 1048576.0 / ((double)t->total_ns / 1e9);
}

/* trials_print - the quickest of @nr trials, and all of them when there are several. */
static void trials_print(const struct config *cfg, const struct trial *trials, unsigned nr)
{
	const struct trial *best = &trials[0];

	for (unsigned i = 1; i < nr; i++)
		if (trials[i].total_ns < best->total_ns)
			best = &trials[i];
	printf("{\"bytes\": %zu, \"total_ms\": %.3f, \"mib_s\": %.1f, \"cpu_s\": %.3f, "
	       "\"chunk\": %zu, \"sockets\": %u, \"prealloc\": %s",
	       cfg->size, (double)best->total_ns / 1e6, trial_mib_s(best, cfg->size),
	       (double)best->cpu_ns / 1e9, best->chunk, cfg->sockets,
	       cfg->prealloc ? "true" : "false");
	if (nr > 1) {
		printf(", \"tried\": [");
		for (unsigned i = 0; i < nr; i++)
			printf("%s{\"chunk\": %zu, \"mib_s\": %.1f}", i ? ", " : "",
			       trials[i].chunk, trial_mib_s(&trials[i], cfg->size));
		printf("]");
	}
	printf("}\n");
}

/* usage - how to call it; ends the process with status 2. */
static void __attribute__((noreturn)) usage(void)
{
	fputs("usage: pump [--size SIZE] [--sockets N] [--chunk SIZE] [--prealloc]\n"
	      "            [--backing memfd|anon] [--fill random|zero] [--best]\n"
	      "Moves memory over plain TCP loopback sockets and prints the speed as JSON.\n"
	      "SIZE takes K, M or G.  --best tries chunks of 256K, 1M and 4M and reports the\n"
	      "quickest.\n",
	      stderr);
	exit(2);
}

/* parse_size - bytes of "512M", "2G", …; 0 when @text is not such a size. */
static size_t parse_size(const char *text)
{
	char *end;
	unsigned shift = 0;
	unsigned long long v;

	errno = 0;
	v = strtoull(text, &end, 10);
	switch (*end) {
	case 'K':
		shift = 10;
		break;
	case 'M':
		shift = 20;
		break;
	case 'G':
		shift = 30;
		break;
	default:
		break;
	}
	if (shift)
		end++;
	if (errno || end == text || *end || text[0] == '-' || v > (SIZE_MAX >> shift))
		return 0;
	return (size_t)v << shift;
}

/* parse_choice - true if @text is @yes, false if it is @no; anything else is wrong usage. */
static bool parse_choice(const char *text, const char *yes, const char *no)
{
	if (strcmp(text, yes) && strcmp(text, no))
		usage();
	return !strcmp(text, yes);
}

/* parse_options - fill in @cfg from the command line; ends the process on wrong usage. */
static void parse_options(int argc, char **argv, struct config *cfg)
{
	static const struct option options[] = {
		{ "size", required_argument, NULL, 's' },
		{ "sockets", required_argument, NULL, 'n' },
		{ "chunk", required_argument, NULL, 'c' },
		{ "prealloc", no_argument, NULL, 'p' },
		{ "backing", required_argument, NULL, 'b' },
		{ "fill", required_argument, NULL, 'f' },
		{ "best", no_argument, NULL, 'B' },
		{ NULL, 0, NULL, 0 },
	};
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case 's':
			cfg->size = parse_size(optarg);
			break;
		case 'n':
			cfg->sockets = (unsigned)parse_size(optarg);
			break;
		case 'c':
			cfg->chunk = parse_size(optarg);
			break;
		case 'p':
			cfg->prealloc = true;
			break;
		case 'b':
			cfg->anon = parse_choice(optarg, "anon", "memfd");
			break;
		case 'f':
			cfg->fill =
				parse_choice(optarg, "zero", "random") ? FILL_ZERO : FILL_RANDOM;
			break;
		case 'B':
			cfg->best = true;
			break;
		default:
			usage();
		}
	}
	if (optind != argc || !cfg->size || cfg->size % PAGE_BYTES || !cfg->chunk ||
	    !cfg->sockets || cfg->sockets > SOCKETS_MAX)
		usage();
}

int main(int argc, char **argv)
{
	static const size_t chunks[] = { 256U << 10, 1U << 20, 4U << 20 };
	struct config cfg = { .size = 1UL << 30, .chunk = 1U << 20, .sockets = 2 };
	struct trial trials[sizeof(chunks) / sizeof(chunks[0])] = { 0 };
	unsigned nr = 1;
	void *mem;

	parse_options(argc, argv, &cfg);
	mem = memory_map(&cfg);
	memory_fill(&cfg, mem);
	if (cfg.best)
		nr = sizeof(chunks) / sizeof(chunks[0]);
	for (unsigned i = 0; i < nr; i++) {
		if (cfg.best)
			cfg.chunk = chunks[i];
		trial_run(&cfg, mem, &trials[i]);
	}
	trials_print(&cfg, trials, nr);
	munmap(mem, cfg.size);
	return 0;
}
