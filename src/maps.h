/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_SRC_MAPS_H
#define TERN_SRC_MAPS_H

/*
 * The process's mappings, from /proc/self/maps: what lies at an address,
 * without touching it.
 *
 * Since Linux 6.11 the kernel is asked for single mappings (PROCMAP_QUERY).  Before
 * that the whole list is read, which takes a while in a process with thousands of them.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MAPS_PATH_MAX 255

/* One mapping. */
struct maps_vma {
	uint64_t start, end; /* addresses, [start, end) */
	uint64_t offset; /* of start in the file, bytes */
	uint64_t inode; /* 0: private anonymous memory */
	unsigned major, minor; /* device of the file */
	bool readable, writable, shared;
	char path[MAPS_PATH_MAX + 1]; /* cut to fit; empty: anonymous */
};

/* Called for one mapping; anything but 0 ends the walk and is its result. */
typedef int maps_fn(const struct maps_vma *vma, void *opaque);

/*
 * maps_walk - call @fn for each mapping that overlaps [start, end), in order.
 *
 * Returns 0, what @fn returned, or -errno if /proc/self/maps cannot be read.
 */
int maps_walk(uint64_t start, uint64_t end, maps_fn *fn, void *opaque);

/* maps_walk_text - the same as it works before Linux 6.11. */
int maps_walk_text(uint64_t start, uint64_t end, maps_fn *fn, void *opaque);

/*
 * maps_parse - read one line of maps, or a header line of smaps.
 *
 * The line may lack its newline.  True if it is such a line.
 */
bool maps_parse(const char *line, struct maps_vma *v);

/*
 * maps_open_file - open the file behind @vma anew, read-only.
 *
 * Goes through /proc/self/map_files, which needs CAP_CHECKPOINT_RESTORE or
 * CAP_SYS_ADMIN.  A descriptor, or -errno.
 */
int maps_open_file(const struct maps_vma *vma);

/*
 * maps_page_size - the kernel's page size in the mapping that holds @addr.
 *
 * Before Linux 6.11, and for pages that are not of the usual size, reads
 * /proc/self/smaps, for which the kernel walks page tables: slow in a large process.  *hugetlb tells whether it is a hugetlb mapping.  Bytes, or 0
 * if it is not known.
 */
uint64_t maps_page_size(uint64_t addr, bool *hugetlb);

#endif
