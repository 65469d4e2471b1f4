/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_SRC_REGION_H
#define TERN_SRC_REGION_H

/*
 * Regions as the engine keeps them: the description, what kind of memory it is,
 * and the page bitmaps of the source.
 */

#include <stdbool.h>
#include <stdint.h>
#include <tern/region.h>

struct tern_error;

/* What backs a region; decides how holes are found and (postcopy) how pages are placed. */
enum region_backing {
	REGION_ANON_PRIVATE,   /* private anonymous memory */
	REGION_SHMEM,          /* shared: memfd, shmem, tmpfs, shared anonymous */
	REGION_HUGETLB,        /* hugetlbfs, private or shared */
	REGION_FILE_PRIVATE,   /* private mapping of a file: holes cannot be told */
	REGION_FILE_SHARED,    /* shared mapping of another file system */
};

struct region {
	uint32_t id;
	char name[TERN_REGION_NAME_MAX + 1];
	uint8_t *hva;
	uint64_t size;           /* bytes */
	uint64_t nr_pages;       /* of TERN_PAGE_SIZE */
	uint64_t gpa;
	uint64_t host_page_size;
	int numa_node;           /* TERN_NODE_ANY: not known */
	int fd;                  /* caller's, or -1 */
	uint64_t fd_offset;
	uint32_t flags;
	enum region_backing backing;
	bool shared;             /* mapped MAP_SHARED */

	/* Source only, while a migration runs.  Words are owned by the stripe's owner. */
	uint64_t *dirty;         /* pages to send */
	uint64_t *sent;          /* pages whose contents were sent at least once */
};

struct region_list {
	struct region *v;
	unsigned nr, cap;
};

/*
 * region_add - check *desc and append it; returns the id or -errno with *err.
 *
 * Asks the kernel what backs the memory (/proc/self/smaps or statx), and for
 * the host page size and node if not given.  Does not touch the memory.
 */
int region_add(struct region_list *list, const struct tern_region_desc *desc,
	       struct tern_error *err);

/* region_list_fini - free the list and the bitmaps. */
void region_list_fini(struct region_list *list);

/* region_bitmaps_alloc - the source's bitmaps of all regions.  0 or -ENOMEM. */
int region_bitmaps_alloc(struct region_list *list, struct tern_error *err);

/*
 * region_nodes - the NUMA nodes of the regions, in order of first appearance.
 *
 * Channel i serves node i % n of them.  Regions whose node is not known count as one
 * with TERN_NODE_ANY.  Returns n, at most @max.
 */
unsigned region_nodes(const struct region_list *list, int *nodes, unsigned max);

/* region_bytes - size of all regions together. */
uint64_t region_bytes(const struct region_list *list);

/* region_overhead_bytes - memory held for the list and its bitmaps. */
uint64_t region_overhead_bytes(const struct region_list *list);

#endif
