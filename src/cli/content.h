/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_CLI_CONTENT_H
#define TERN_CLI_CONTENT_H

/*
 * What a page of the synthetic guest holds: a pure function of a seed, the kind
 * of fill, the page's index in guest RAM and a version.
 *
 * Version 0 is the first fill.  Version k + 1 is the k-th write of the vCPU that
 * owns the page; such a page begins with a stamp (page index, version).
 */

#include <stdbool.h>
#include <stdint.h>

#define CONTENT_PAGE_SIZE 4096u

enum content_fill {
	CONTENT_RANDOM, /* does not compress */
	CONTENT_ZERO, /* zeros; random once written by a vCPU */
	CONTENT_TEXT, /* English-like words, compresses about three times */
	CONTENT_MIXED, /* per page: a quarter zero, a quarter text, half random */
	CONTENT_NR,
};

/* The parameters that all pages of one guest share. */
struct content {
	uint64_t seed;
	enum content_fill fill;
};

/* content_fill_name - "random", "zero", "text", "mixed"; "unknown" for other values. */
const char *content_fill_name(enum content_fill fill);

/*
 * content_mix - a 64-bit hash of @x (one to one).
 */
static inline uint64_t content_mix(uint64_t x)
{
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
	return x ^ (x >> 31);
}

/* content_write - fill the page at @p (4096 bytes, aligned to 16). */
void content_write(const struct content *c, void *p, uint64_t page, uint64_t version);

/* content_check - true if the page at @p holds exactly that version. */
bool content_check(const struct content *c, const void *p, uint64_t page, uint64_t version);

/* content_is_zero - true if that version of the page is all zeros. */
bool content_is_zero(const struct content *c, uint64_t page, uint64_t version);

/* content_all_zero - true if the 4096 bytes at @p (aligned to 16) are all zero. */
bool content_all_zero(const void *p);

/*
 * content_observe - which version the page at @p holds.
 *
 * Looks at the stamp and compares the whole page with that version, then with
 * version 0.  Returns true with *@version, or false if it is neither (torn,
 * corrupt, or another page's content).
 */
bool content_observe(const struct content *c, const void *p, uint64_t page, uint64_t *version);

#endif
