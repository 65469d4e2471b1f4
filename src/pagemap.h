/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_SRC_PAGEMAP_H
#define TERN_SRC_PAGEMAP_H

/*
 * The process's page table as /proc/self/pagemap shows it, in runs of pages of
 * one kind: by the PAGEMAP_SCAN ioctl (Linux 6.7), which is fast and can
 * write-protect what it reports, or by reading entries, which any kernel has.
 *
 * The constants are the kernel's; they are given here under names of our own,
 * because the headers that we must build with may be older than the kernel.
 */

#include <stdbool.h>
#include <stdint.h>

/* What is true of a page; values as in the kernel's interface. */
enum {
	PAGEMAP_WRITTEN = 1u << 1, /* not write-protected by userfaultfd */
	PAGEMAP_PRESENT = 1u << 3,
	PAGEMAP_SWAPPED = 1u << 4, /* an entry that is not present: swap, migration, marker */
	PAGEMAP_PFNZERO = 1u << 5, /* the shared zero page */
	PAGEMAP_EXISTS = PAGEMAP_PRESENT | PAGEMAP_SWAPPED,
};

/* What to do with what is reported. */
enum {
	PAGEMAP_PROTECT = 1u << 0, /* write-protect it */
	PAGEMAP_REQUIRE_ASYNC = 1u << 1, /* -EPERM unless registered for async write-protect */
};

/*
 * Which pages to report.  A page is reported if, after the bits in @inverted
 * were flipped, it has all of @all, and one of @any (unless @any is 0).
 */
struct pagemap_query {
	uint32_t flags; /* PAGEMAP_PROTECT, PAGEMAP_REQUIRE_ASYNC */
	uint32_t inverted;
	uint32_t all;
	uint32_t any;
	uint32_t wanted; /* bits of interest, not flipped, in what is reported */
};

/*
 * Called for a run [start, end) of addresses whose pages have @kind in common.
 * Anything but 0 ends the walk and is its result.
 */
typedef int pagemap_fn(uint64_t start, uint64_t end, uint64_t kind, void *opaque);

/* pagemap_open - a descriptor of /proc/self/pagemap, or -errno. */
int pagemap_open(void);

/* pagemap_can_scan - does the kernel have PAGEMAP_SCAN? */
bool pagemap_can_scan(int fd);

/*
 * pagemap_scan - walk [start, end) with PAGEMAP_SCAN.
 *
 * With PAGEMAP_PROTECT a page is reported and protected in one step; no write
 * falls between.  Returns 0, what @fn returned, or the ioctl's -errno.
 */
int pagemap_scan(int fd, const struct pagemap_query *q, uint64_t start, uint64_t end,
		 pagemap_fn *fn, void *opaque);

/*
 * pagemap_protect - write-protect all of [start, end), whatever its state.
 *
 * Where there is no page, a marker is left (this allocates page tables).  Needs
 * PAGEMAP_SCAN and memory registered for async write-protect.  0 or -errno.
 */
int pagemap_protect(int fd, uint64_t start, uint64_t end);

/*
 * pagemap_read - walk all of [start, end) by reading entries.
 *
 * @fn gets every run, also those where nothing exists (kind 0).  PAGEMAP_PFNZERO
 * is never told; PAGEMAP_WRITTEN needs Linux 5.14 (5.19 for shared memory).
 * Returns 0, what @fn returned, or -errno.
 */
int pagemap_read(int fd, uint64_t start, uint64_t end, pagemap_fn *fn, void *opaque);

#endif
