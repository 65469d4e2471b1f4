/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_SRC_MARKS_H
#define TERN_SRC_MARKS_H

/*
 * Marks: one atomic bit per page of all regions, set by whoever learns of a write and taken
 * away just before the page is read.
 *
 * Setting and taking are both read-modify-write operations, also where the bit has the right
 * value already: so of a write that was marked and a read that takes the mark, one sees the
 * other.  A plain look first would save the operation and lose that.
 */

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct region_list;

struct marks_region {
	_Atomic uint64_t *map;
	uint64_t nr_pages;
};

struct marks {
	struct marks_region *v; /* by region id */
	unsigned nr;
};

/* marks_new - for all @regions, none set; NULL: no memory.  marks_delete - tolerates NULL. */
struct marks *marks_new(const struct region_list *regions);
void marks_delete(struct marks **m);

/* marks_set_word - set @bits of the 64 pages from page 64 * @word on.  Any thread. */
static inline void marks_set_word(struct marks *m, unsigned region, uint64_t word, uint64_t bits)
{
	atomic_fetch_or(&m->v[region].map[word], bits);
}

/* marks_set - set pages [first, first + nr); they exist.  Any thread. */
void marks_set(struct marks *m, unsigned region, uint64_t first, uint64_t nr);

/* marks_get - OR those of [first, first + nr) into @bitmap; @first is a multiple of 64. */
void marks_get(const struct marks *m, unsigned region, uint64_t first, uint64_t nr,
	       uint64_t *bitmap);

/* marks_take - take away those that are set in @bitmap; writes marked until now can be read. */
void marks_take(struct marks *m, unsigned region, uint64_t first, uint64_t nr,
		const uint64_t *bitmap);

/* marks_overhead_bytes - memory held. */
uint64_t marks_overhead_bytes(const struct marks *m);

#endif
