/* SPDX-License-Identifier: BSD-2-Clause */
#define _GNU_SOURCE
#include "pagemap.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/ioctl.h>
#include <linux/types.h>
#include <sys/ioctl.h>
#include <tern/region.h>
#include <unistd.h>

/*
 * Both ways of reading the page table work in pieces that fit on the stack, so
 * that any number of threads may walk at once and the hot path never allocates.
 */

enum {
	SCAN_RUNS = 256, /* runs per PAGEMAP_SCAN */
	READ_ENTRIES = 512, /* entries per read */
};

/* One run as the kernel reports it (its struct page_region). */
struct pagemap_run {
	uint64_t start, end;
	uint64_t kind;
};

/* The argument of PAGEMAP_SCAN (the kernel's struct pm_scan_arg). */
struct pagemap_scan_arg {
	uint64_t size;
	uint64_t flags;
	uint64_t start, end;
	uint64_t walk_end; /* out: where the walk stopped */
	uint64_t vec; /* array of struct pagemap_run, or 0 */
	uint64_t vec_len;
	uint64_t max_pages;
	uint64_t inverted, all, any, wanted;
};

#define PAGEMAP_SCAN_IOCTL _IOWR('f', 16, struct pagemap_scan_arg)

/* Bits of a pagemap entry. */
#define ENTRY_UFFD_WP (1ull << 57)
#define ENTRY_SWAP (1ull << 62)
#define ENTRY_PRESENT (1ull << 63)

int pagemap_open(void)
{
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

bool pagemap_can_scan(int fd)
{
	struct pagemap_run run;
	uint64_t page = (uintptr_t)&run & ~(uint64_t)(TERN_PAGE_SIZE - 1);
	struct pagemap_scan_arg arg = {
		.size = sizeof(arg),
		.start = page,
		.end = page + TERN_PAGE_SIZE,
		.vec = (uintptr_t)&run,
		.vec_len = 1,
		.all = PAGEMAP_PRESENT,
		.wanted = PAGEMAP_PRESENT,
	};

	return ioctl(fd, PAGEMAP_SCAN_IOCTL, &arg) == 1 && run.kind == PAGEMAP_PRESENT;
}

/* pagemap_ioctl - PAGEMAP_SCAN, repeated if a signal came.  Number of runs or -errno. */
static int pagemap_ioctl(int fd, struct pagemap_scan_arg *arg)
{
	int n;

	do
		n = ioctl(fd, PAGEMAP_SCAN_IOCTL, arg);
	while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : n;
}

int pagemap_scan(int fd, const struct pagemap_query *q, uint64_t start, uint64_t end,
		 pagemap_fn *fn, void *opaque)
{
	struct pagemap_run run[SCAN_RUNS];

	while (start < end) {
		struct pagemap_scan_arg arg = {
			.size = sizeof(arg),
			.flags = q->flags,
			.start = start,
			.end = end,
			.vec = (uintptr_t)run,
			.vec_len = SCAN_RUNS,
			.inverted = q->inverted,
			.all = q->all,
			.any = q->any,
			.wanted = q->wanted,
		};
		int n = pagemap_ioctl(fd, &arg);

		if (n < 0)
			return n;
		for (int i = 0; i < n; i++) {
			int ret = fn(run[i].start, run[i].end, run[i].kind, opaque);

			if (ret)
				return ret;
		}
		if (arg.walk_end <= start)
			return -EIO;
		start = arg.walk_end;
	}
	return 0;
}

int pagemap_protect(int fd, uint64_t start, uint64_t end)
{
	struct pagemap_scan_arg arg = {
		.size = sizeof(arg),
		.flags = PAGEMAP_PROTECT | PAGEMAP_REQUIRE_ASYNC,
		.start = start,
		.end = end,
		.all = PAGEMAP_WRITTEN,
		.wanted = PAGEMAP_WRITTEN,
	};

	for (; arg.start < end; arg.start = arg.walk_end) {
		int n = pagemap_ioctl(fd, &arg);

		if (n < 0)
			return n;
		if (arg.walk_end <= arg.start)
			return -EIO;
	}
	return 0;
}

/* pagemap_entry_kind - PAGEMAP_* of one entry. */
static inline uint64_t pagemap_entry_kind(uint64_t entry)
{
	uint64_t kind = 0;

	if (entry & ENTRY_PRESENT)
		kind = PAGEMAP_PRESENT;
	else if (entry & ENTRY_SWAP)
		kind = PAGEMAP_SWAPPED;
	if (kind && !(entry & ENTRY_UFFD_WP))
		kind |= PAGEMAP_WRITTEN;
	return kind;
}

int pagemap_read(int fd, uint64_t start, uint64_t end, pagemap_fn *fn, void *opaque)
{
	uint64_t entry[READ_ENTRIES];
	uint64_t run_start = start, run_kind = 0;

	for (uint64_t at = start; at < end;) {
		uint64_t want = (end - at) / TERN_PAGE_SIZE;

		if (want > READ_ENTRIES)
			want = READ_ENTRIES;
		ssize_t n = pread(fd, entry, want * sizeof(entry[0]),
				  (off_t)(at / TERN_PAGE_SIZE * sizeof(entry[0])));
		if (n < 0 && errno == EINTR)
			continue;
		if (n < (ssize_t)sizeof(entry[0]))
			return n < 0 ? -errno : -EIO;
		for (size_t i = 0; i < (size_t)n / sizeof(entry[0]); i++, at += TERN_PAGE_SIZE) {
			uint64_t kind = pagemap_entry_kind(entry[i]);
			int ret;

			if (kind == run_kind)
				continue;
			ret = at > run_start ? fn(run_start, at, run_kind, opaque) : 0;
			if (ret)
				return ret;
			run_start = at;
			run_kind = kind;
		}
	}
	return end > run_start ? fn(run_start, end, run_kind, opaque) : 0;
}
