/* SPDX-License-Identifier: BSD-2-Clause */

#include "layout.h"

/* a * b / c; c is not 0.  Counts of blocks are below 2^32, so nothing overflows. */
static uint64_t scale(uint64_t a, uint64_t b, uint64_t c)
{
	return a * b / c;
}

/* a * b / c, rounded up. */
static uint64_t scale_up(uint64_t a, uint64_t b, uint64_t c)
{
	return (a * b + c - 1) / c;
}

/* Blocks that hold @pages pages. */
static uint64_t blocks_of(uint64_t pages)
{
	return (pages + LAYOUT_BLOCK_PAGES - 1) / LAYOUT_BLOCK_PAGES;
}

/* Pages in block @b; see layout.h. */
unsigned layout_block_pages(const struct layout *l, uint64_t b)
{
	uint64_t left = l->nr_pages - b * LAYOUT_BLOCK_PAGES;

	return left < LAYOUT_BLOCK_PAGES ? (unsigned)left : LAYOUT_BLOCK_PAGES;
}

/* Touched pages: the last block is touched whenever any is, and may be short. */
static uint64_t touched_pages(const struct layout *l)
{
	if (!l->touched_blocks)
		return 0;
	return (l->touched_blocks - 1) * LAYOUT_BLOCK_PAGES +
	       layout_block_pages(l, l->nr_blocks - 1);
}

/* Sizes in pages; see layout.h. */
void layout_init(struct layout *l, uint64_t pages, uint64_t touched, uint64_t ws)
{
	*l = (struct layout){
		.nr_pages = pages,
		.nr_blocks = blocks_of(pages),
		.touched_blocks = blocks_of(touched),
		.ws_pages = ws,
		.ws_blocks = blocks_of(ws),
	};
	if (touched_pages(l) < touched)
		l->touched_blocks++;
	l->touched_pages = touched_pages(l);
}

/* Evenly spread: block b is touched where the running share steps up. */
bool layout_block_touched(const struct layout *l, uint64_t b)
{
	return scale(b + 1, l->touched_blocks, l->nr_blocks) >
	       scale(b, l->touched_blocks, l->nr_blocks);
}

/* The block that is number @t of the touched ones. */
static uint64_t touched_to_block(const struct layout *l, uint64_t t)
{
	return scale_up(t + 1, l->nr_blocks, l->touched_blocks) - 1;
}

/* The page that is number @i of the working set. */
uint64_t layout_ws_page(const struct layout *l, uint64_t i)
{
	uint64_t w = i / LAYOUT_BLOCK_PAGES;
	uint64_t t = l->ws_first ? w : scale(w, l->touched_blocks, l->ws_blocks);

	return touched_to_block(l, t) * LAYOUT_BLOCK_PAGES + i % LAYOUT_BLOCK_PAGES;
}

/* The inverse of layout_ws_page(), by block. */
uint64_t layout_ws_first(const struct layout *l, uint64_t b)
{
	uint64_t t, w;

	if (!l->ws_blocks || !layout_block_touched(l, b))
		return LAYOUT_NONE;
	t = scale(b, l->touched_blocks, l->nr_blocks);
	if (l->ws_first)
		return t < l->ws_blocks ? t * LAYOUT_BLOCK_PAGES : LAYOUT_NONE;
	w = scale_up(t, l->ws_blocks, l->touched_blocks);
	if (w >= l->ws_blocks || scale(w, l->touched_blocks, l->ws_blocks) != t)
		return LAYOUT_NONE;
	return w * LAYOUT_BLOCK_PAGES;
}
