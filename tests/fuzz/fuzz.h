/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_TESTS_FUZZ_H
#define TERN_TESTS_FUZZ_H

/*
 * What the fuzz targets share.
 *
 * A target is one function, fuzz_one().  entry.c makes it libFuzzer's, replay.c a
 * plain program that feeds it files, so that every build tests the corpus.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <tern/tern.h>

/* What fuzz_one() returns. */
enum fuzz_reach {
	FUZZ_PARTLY = 0, /* the input was refused somewhere */
	FUZZ_FULL = 1, /* it was valid to its end: decoded, placed, migrated */
};

/*
 * fuzz_one - run one input; aborts with a sentence if the code under test does what it must not.
 *
 * @patience_ms: how long a scripted peer waits for an answer it expects.
 */
enum fuzz_reach fuzz_one(const uint8_t *data, size_t size, unsigned patience_ms);

/* fuzz_fail - print what went wrong and abort. */
void fuzz_fail(const char *fmt, ...) __attribute__((noreturn, format(printf, 1, 2)));

#define FUZZ_CHECK(cond, ...)                   \
	do {                                    \
		if (!(cond))                    \
			fuzz_fail(__VA_ARGS__); \
	} while (0)

/*
 * Guest RAM of the session targets: FUZZ_REGIONS blocks with pages around them that
 * cannot be touched.
 */
#define FUZZ_REGIONS 2u
#define FUZZ_PATTERN 0xa5 /* what untouched guest RAM holds */

struct fuzz_ram {
	uint8_t *hva[FUZZ_REGIONS];
	uint64_t nr_pages[FUZZ_REGIONS];
};

/* fuzz_ram_map - map the blocks, full of the pattern. */
void fuzz_ram_map(struct fuzz_ram *ram);
void fuzz_ram_unmap(struct fuzz_ram *ram);

/* fuzz_page_is - are all bytes of page @page of region @region @byte? */
bool fuzz_page_is(const struct fuzz_ram *ram, unsigned region, uint64_t page, uint8_t byte);

/* fuzz_session - a session of @role with the blocks of @ram as regions; never fails. */
struct tern_session *fuzz_session(enum tern_role role, const struct fuzz_ram *ram);

/*
 * fuzz_session_at_rest - do all threads of *s wait, the control thread apart?
 *
 * @others: threads of the caller in tern_session_wait(); @busy: a channel has work,
 * which only a failed one does not do.  A guess, for speed.
 */
bool fuzz_session_at_rest(struct tern_session *s, unsigned others, bool busy);

/* fuzz_read_int - the little-endian integer of @n bytes at @p; independent of src/wire.c. */
uint64_t fuzz_read_int(const uint8_t *p, unsigned n);

#endif
