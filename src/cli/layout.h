/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_CLI_LAYOUT_H
#define TERN_CLI_LAYOUT_H

/*
 * Which pages of the synthetic guest are touched, and which are its working set.
 *
 * Guest RAM is a line of 4 KiB pages cut into blocks of 2 MiB (the last one may
 * be short).  Touched blocks are spread evenly over all blocks, working-set
 * blocks evenly over the touched ones, so that both cross every region; or the
 * working set is the first of the touched blocks:
 *
 *	blocks       0 1 2 3 4 5 6 7 8 9
 *	touched 50%    #   #   #   #   #
 *	working set    w       w
 *	ws_first       w   w
 *
 * Everything is a pure function of few numbers, so that source and destination
 * agree without sending a map.
 */

#include <stdbool.h>
#include <stdint.h>

#define LAYOUT_BLOCK_PAGES 512u
#define LAYOUT_NONE UINT64_MAX

struct layout {
	uint64_t nr_pages;
	uint64_t nr_blocks;
	uint64_t touched_blocks;
	uint64_t touched_pages;
	uint64_t ws_pages; /* working set */
	uint64_t ws_blocks;
	bool ws_first; /* the working set comes first, not spread */
};

/*
 * layout_init - from sizes in pages.
 *
 * @touched is rounded up to whole blocks; @ws must not be above @touched, nor that
 * above @pages.  The working set is spread; to have it first, set ws_first.
 */
void layout_init(struct layout *l, uint64_t pages, uint64_t touched, uint64_t ws);

/* layout_block_touched - whether block @b is touched. */
bool layout_block_touched(const struct layout *l, uint64_t b);

/* layout_block_pages - pages in block @b: 512, fewer in the last one. */
unsigned layout_block_pages(const struct layout *l, uint64_t b);

/* layout_ws_page - the page that is number @i (< ws_pages) of the working set. */
uint64_t layout_ws_page(const struct layout *l, uint64_t i);

/*
 * layout_ws_first - number in the working set of the first page of block @b.
 *
 * LAYOUT_NONE if the block is not in the working set.  Page p of the block has
 * number first + p, and is in the working set if that is below ws_pages.
 */
uint64_t layout_ws_first(const struct layout *l, uint64_t b);

#endif
