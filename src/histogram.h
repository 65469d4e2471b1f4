/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_SRC_HISTOGRAM_H
#define TERN_SRC_HISTOGRAM_H

/*
 * Times in nanoseconds, counted in buckets that are a sixteenth of their octave wide, so
 * a percentile is known within 6 %.  Not atomic: whoever owns it has a lock.
 */

#include <stdint.h>

#define HISTOGRAM_PARTS 16u /* of an octave */
#define HISTOGRAM_OCTAVES 44u /* up to 2^44 ns, which is 4 hours */

struct histogram {
	uint64_t counts[HISTOGRAM_OCTAVES * HISTOGRAM_PARTS];
	uint64_t nr, sum_ns, max_ns;
};

/* Bucket of @ns. */
static inline unsigned histogram_bucket(uint64_t ns)
{
	unsigned octave, most = HISTOGRAM_OCTAVES * HISTOGRAM_PARTS - 1, b;

	if (ns < HISTOGRAM_PARTS)
		return (unsigned)ns;
	octave = 63u - (unsigned)__builtin_clzll(ns); /* at least 4 */
	b = (octave - 3) * HISTOGRAM_PARTS + (unsigned)(ns >> (octave - 4)) % HISTOGRAM_PARTS;
	return b < most ? b : most;
}

/* The smallest time of bucket @b. */
static inline uint64_t histogram_floor(unsigned b)
{
	unsigned octave = b / HISTOGRAM_PARTS + 3;

	if (b < HISTOGRAM_PARTS)
		return b;
	return (uint64_t)(HISTOGRAM_PARTS + b % HISTOGRAM_PARTS) << (octave - 4);
}

static inline void histogram_add(struct histogram *h, uint64_t ns)
{
	h->counts[histogram_bucket(ns)]++;
	h->nr++;
	h->sum_ns += ns;
	if (ns > h->max_ns)
		h->max_ns = ns;
}

/*
 * Add what @from has counted to @to, leaving out what is in buckets below that of
 * @least_ns.  Those still count in sum_ns.
 */
static inline void histogram_merge(struct histogram *to, const struct histogram *from,
				   uint64_t least_ns)
{
	for (unsigned b = histogram_bucket(least_ns); b < HISTOGRAM_OCTAVES * HISTOGRAM_PARTS;
	     b++) {
		to->counts[b] += from->counts[b];
		to->nr += from->counts[b];
	}
	to->sum_ns += from->sum_ns;
	if (from->max_ns > to->max_ns)
		to->max_ns = from->max_ns;
}

/*
 * The time that @permille of 1000 do not exceed, within a sixteenth, as if the times in a bucket were evenly
 * spread over it; 0 if there are none.
 */
static inline uint64_t histogram_percentile(const struct histogram *h, unsigned permille)
{
	uint64_t rank = (h->nr * permille + 999) / 1000, seen = 0;

	rank = rank ? rank : 1;
	for (unsigned b = 0; h->nr && b < HISTOGRAM_OCTAVES * HISTOGRAM_PARTS; b++) {
		if (seen + h->counts[b] >= rank) {
			uint64_t floor = histogram_floor(b), last = histogram_floor(b + 1) - 1 - floor;
			uint64_t at = floor + (uint64_t)((double)last * (double)(rank - seen) /
							 (double)h->counts[b]);

			return at < h->max_ns ? at : h->max_ns;
		}
		seen += h->counts[b];
	}
	return h->max_ns;
}

#endif
