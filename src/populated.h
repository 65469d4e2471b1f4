/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_SRC_POPULATED_H
#define TERN_SRC_POPULATED_H

/*
 * Which pages of a region exist (invariant 10: untouched RAM costs nothing).
 *
 * A page is a hole if it was never touched: it reads as zero and has no memory.
 * The kernel is asked, the memory itself is not touched, on any backing:
 * pagemap for anonymous memory, SEEK_DATA/SEEK_HOLE for shmem (through the
 * region's fd, or /proc/self/map_files), pagemap against the file's block count
 * for hugetlbfs.  Where the kernel cannot tell, pages count as populated.
 */

#include <stdbool.h>
#include <stdint.h>

struct populated_file;
struct region;
struct region_list;
struct tern_error;

/* What the scans need; one per session, shared by its threads. */
struct populated {
	int pagemap_fd; /* /proc/self/pagemap */
	bool can_scan; /* it has PAGEMAP_SCAN; tests clear it to take the other way */
	const struct region_list *regions;
	struct populated_file *file; /* per region id */
	unsigned nr;
};

/*
 * populated_init / populated_fini - open and close what the scans need.
 *
 * @regions must outlive it and must not grow.  init returns 0, -ENOMEM, or
 * -errno if /proc/self cannot be read.
 */
int populated_init(struct populated *p, const struct region_list *regions, struct tern_error *err);
void populated_fini(struct populated *p);

/*
 * populated_scan - set in @bitmap the populated pages of [first, first + nr).
 *
 * Bit 0 of @bitmap is page @first, a multiple of 64.  Bits are only set.  May
 * report a hole as populated, never the reverse.  Returns 0 or -errno with
 * *err.  Any thread, concurrently.
 */
int populated_scan(const struct populated *p, const struct region *r, uint64_t first, uint64_t nr,
		   uint64_t *bitmap, struct tern_error *err);

/* populated_scan_at - the same, but bit 0 of @bitmap is page @base, not above @first. */
int populated_scan_at(const struct populated *p, const struct region *r, uint64_t base,
		      uint64_t first, uint64_t nr, uint64_t *bitmap, struct tern_error *err);

#endif
