/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_REGION_H
#define TERN_REGION_H

/*
 * Regions: the contiguous blocks of guest RAM that a session moves.
 *
 * Both sides add the same regions (name, size and order); the handshake
 * compares them and a difference ends it with a sentence that names the item
 * and both values.  libtern adopts memory, it never allocates guest RAM.
 *
 * While a session is active, guest RAM stays where it is: no MADV_DONTNEED or
 * MADV_REMOVE, no FALLOC_FL_PUNCH_HOLE, no mremap() by the VMM.  A registered RDMA memory
 * region goes on showing the page that was there, whatever is written later.  So balloons
 * and free page reporting rest during a migration.
 */

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

#define TERN_PAGE_SIZE 4096u      /* unit of dirty tracking on every host */
#define TERN_REGION_NAME_MAX 63u  /* bytes without the terminating 0 */
#define TERN_REGIONS_MAX 4096u    /* regions in one session */
#define TERN_NODE_ANY (-1)

/* Flags of struct tern_region_desc. */
enum {
	/*
	 * Destination only: the caller guarantees that every byte of the region
	 * reads as zero now (freshly mapped, or populated and never written).
	 * Without it libtern looks at the populated pages itself, and clears
	 * those that are not zero, before it accepts a connection.  (With it too, after
	 * a peer that could have written to them was turned away.)
	 */
	TERN_REGION_ZEROED = 1u << 0,
};

/*
 * Describes one region; fields that are not used must be 0, the reserved ones too, but fd
 * (-1) and numa_node (TERN_NODE_ANY): 0 is a descriptor and a node there.
 */
struct tern_region_desc {
	const char *name;        /* unique in the session, 1..63 bytes, printable ASCII */
	void *hva;               /* host virtual address, aligned to host_page_size */
	uint64_t size;           /* bytes, a multiple of host_page_size, not 0 */
	uint64_t gpa;            /* guest physical address; compared by the handshake */
	uint64_t host_page_size; /* 4096, 2 MiB or 1 GiB; 0: ask the kernel */
	int numa_node;           /* node, or TERN_NODE_ANY to ask the kernel */
	int fd;                  /* memfd/hugetlbfs file behind a shared mapping; -1: none.
				  * Not closed by the library; must stay open. */
	uint64_t fd_offset;      /* where in fd the region begins, bytes */
	uint32_t flags;          /* TERN_REGION_* */
	uint32_t reserved[7];
};

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif

#endif
