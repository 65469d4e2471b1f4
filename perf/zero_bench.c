/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * zero_bench - speed of each zero test, in GB/s.
 *
 *	zero_bench [MIB]
 *
 * Three inputs: zero memory far larger than the caches (every byte is read from
 * DRAM), zero memory that fits into the second-level cache, and pages with data
 * (one cache line of each is read; the figure is pages per second).  The best of
 * several runs is printed.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include "zero.h"

enum { PAGE = 4096, RUNS = 7, CACHED_BYTES = 256 << 10 };

/* now_s - monotonic time in seconds. */
static double now_s(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* count_zero - pages of [p, p + len) that are zero, tested one by one. */
static size_t count_zero(const struct zero_ops *z, const uint8_t *p, size_t len)
{
	size_t n = 0;

	for (size_t off = 0; off < len; off += PAGE)
		n += z->is_zero(p + off, PAGE);
	return n;
}

/*
 * best_bytes_per_s - best of RUNS passes over [p, p + len), each @repeat times;
 * exits if the test does not find @expect zero pages.
 */
static double best_bytes_per_s(const struct zero_ops *z, const uint8_t *p, size_t len,
			       unsigned repeat, size_t expect)
{
	double best = 0;

	for (unsigned run = 0; run < RUNS; run++) {
		double begin = now_s();

		for (unsigned i = 0; i < repeat; i++)
			if (count_zero(z, p, len) != expect) {
				fprintf(stderr, "zero_bench: %s counted wrongly\n", z->name);
				exit(1);
			}
		double rate = (double)len * repeat / (now_s() - begin);

		if (rate > best)
			best = rate;
	}
	return best;
}

/* read_bandwidth - the wire to compare with: memchr() over the same memory, bytes/s. */
static double read_bandwidth(const uint8_t *p, size_t len)
{
	double best = 0;

	for (unsigned run = 0; run < RUNS; run++) {
		double begin = now_s();

		if (memchr(p, 1, len))
			exit(1);
		double rate = (double)len / (now_s() - begin);

		if (rate > best)
			best = rate;
	}
	return best;
}

int main(int argc, char **argv)
{
	size_t len = (argc > 1 ? strtoul(argv[1], NULL, 0) : 512) << 20;
	const struct zero_ops *z;

	if (!len) {
		fprintf(stderr, "usage: zero_bench [MIB]\n");
		return 2;
	}
	uint8_t *p = mmap(NULL, len, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (p == MAP_FAILED) {
		perror("zero_bench: mmap");
		return 1;
	}
	memset(p, 0, len);
	printf("memchr  %7.2f GB/s from memory\n", read_bandwidth(p, len) * 1e-9);
	for (unsigned i = 0; (z = zero_ops_get(i)); i++) {
		size_t cached = len < CACHED_BYTES ? len : CACHED_BYTES;
		double memory = best_bytes_per_s(z, p, len, 1, len / PAGE);
		double cache = best_bytes_per_s(z, p, cached, 400, cached / PAGE);

		for (size_t off = 0; off < len; off += PAGE)
			p[off] = 1;
		double data = best_bytes_per_s(z, p, len, 1, 0) / PAGE;

		for (size_t off = 0; off < len; off += PAGE)
			p[off] = 0;
		printf("%-7s %7.2f GB/s from memory %7.2f GB/s from cache %7.1f M data pages/s%s\n",
		       z->name, memory * 1e-9, cache * 1e-9, data * 1e-6,
		       z == zero_ops_best() ? "  (chosen)" : "");
	}
	munmap(p, len);
	return 0;
}
