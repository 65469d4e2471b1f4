/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_SRC_RUNS_H
#define TERN_SRC_RUNS_H

/*
 * Sets of pages as run lengths, for messages.
 *
 * A piece covers consecutive pages from some first page on.  It is a list of numbers,
 * each an unsigned LEB128 (seven bits a byte, low ones first, the top bit says that more
 * follow): how many pages are not in the set, how many then are, how many then are not,
 * and so on.  Pages that are not in the set may be 0, those that are may not.  What lies behind a piece, or between two,
 * is not in the set.
 *
 *	pages   ....XX.XXX      numbers   4 2 1 3
 *
 * A page set at random costs two bytes, a region as a whole a few.
 */

#include <stddef.h>
#include <stdint.h>

/*
 * runs_put - the set bits of @map, from @at on, below @end, as one piece.
 *
 * Writes at most @cap bytes (at least 20) to @buf, and their number to *len; 0: no bit
 * is set from @at on.  Returns the page where the next piece has to begin, @end if there
 * is none.
 */
uint64_t runs_put(const uint64_t *map, uint64_t at, uint64_t end, uint8_t *buf, size_t cap,
		  size_t *len);

/* A piece that is being read. */
struct runs {
	const uint8_t *p;
	size_t left; /* bytes */
	uint64_t at; /* next page */
	uint64_t end; /* pages that there are */
};

/*
 * runs_next - the next run of pages in the set.
 *
 * 1 with *first and *nr (not 0, below .end); 0: there is no more; -EPROTO: a number is
 * cut short, too large, or 0 where it may not be.
 */
int runs_next(struct runs *r, uint64_t *first, uint64_t *nr);

#endif
