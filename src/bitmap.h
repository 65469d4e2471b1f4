/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_SRC_BITMAP_H
#define TERN_SRC_BITMAP_H

/*
 * Page bitmaps: one bit per 4 KiB page, bit 0 of word 0 first.
 *
 * None of these is atomic.  During a phase each word has one owner: stripes are
 * multiples of 64 pages, so the owner of a stripe owns its words.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BITMAP_WORD_BITS 64u

static inline uint64_t bitmap_words(uint64_t bits)
{
	return (bits + BITMAP_WORD_BITS - 1) / BITMAP_WORD_BITS;
}

static inline bool bitmap_test(const uint64_t *map, uint64_t bit)
{
	return map[bit / 64] >> (bit % 64) & 1;
}

static inline void bitmap_set(uint64_t *map, uint64_t bit)
{
	map[bit / 64] |= 1ull << (bit % 64);
}

static inline void bitmap_clear(uint64_t *map, uint64_t bit)
{
	map[bit / 64] &= ~(1ull << (bit % 64));
}

/* Mask of bits [from, from + n) of one word; from + n ≤ 64, n ≥ 1. */
static inline uint64_t bitmap_mask(unsigned from, unsigned n)
{
	return (n == 64 ? ~0ull : (1ull << n) - 1) << from;
}

/* Set bits [from, from + n). */
static inline void bitmap_set_range(uint64_t *map, uint64_t from, uint64_t n)
{
	while (n) {
		unsigned off = from % 64;
		unsigned k = n < 64 - off ? (unsigned)n : 64 - off;

		map[from / 64] |= bitmap_mask(off, k);
		from += k;
		n -= k;
	}
}

/* Clear bits [from, from + n). */
static inline void bitmap_clear_range(uint64_t *map, uint64_t from, uint64_t n)
{
	while (n) {
		unsigned off = from % 64;
		unsigned k = n < 64 - off ? (unsigned)n : 64 - off;

		map[from / 64] &= ~bitmap_mask(off, k);
		from += k;
		n -= k;
	}
}

/* Number of set bits in the first @bits bits. */
static inline uint64_t bitmap_count(const uint64_t *map, uint64_t bits)
{
	uint64_t n = 0;

	for (uint64_t w = 0; w < bits / 64; w++)
		n += (uint64_t)__builtin_popcountll(map[w]);
	if (bits % 64)
		n += (uint64_t)__builtin_popcountll(map[bits / 64] & ((1ull << bits % 64) - 1));
	return n;
}

/* First set bit at or after @from, or @bits. */
static inline uint64_t bitmap_next_set(const uint64_t *map, uint64_t bits, uint64_t from)
{
	if (from >= bits)
		return bits;
	uint64_t w = from / 64;
	uint64_t word = map[w] & (~0ull << from % 64);

	while (!word) {
		if (++w >= bitmap_words(bits))
			return bits;
		word = map[w];
	}
	uint64_t bit = w * 64 + (uint64_t)__builtin_ctzll(word);
	return bit < bits ? bit : bits;
}

/* First clear bit at or after @from, or @bits. */
static inline uint64_t bitmap_next_clear(const uint64_t *map, uint64_t bits, uint64_t from)
{
	if (from >= bits)
		return bits;
	uint64_t w = from / 64;
	uint64_t word = ~map[w] & (~0ull << from % 64);

	while (!word) {
		if (++w >= bitmap_words(bits))
			return bits;
		word = ~map[w];
	}
	uint64_t bit = w * 64 + (uint64_t)__builtin_ctzll(word);
	return bit < bits ? bit : bits;
}

/* Walk the runs [begin, end) of set bits. */
#define bitmap_for_each_run(map, bits, begin, end)                                                 \
	for (uint64_t begin = bitmap_next_set(map, bits, 0),                                       \
		      end = bitmap_next_clear(map, bits, begin);                                   \
	     begin < (bits); begin = bitmap_next_set(map, bits, end),                              \
		      end = bitmap_next_clear(map, bits, begin))

#endif
