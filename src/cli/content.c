/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * Page contents of the synthetic guest.
 *
 * Random pages come from eight xorshift generators side by side, seeded by a
 * hash of (seed, page, version); they are written in vectors of two words and
 * checked the same way, without generating a copy first.  The compiler turns
 * the vectors into whatever the machine has; 64 bytes per step leave enough
 * independent work to reach several GB/s on one core.
 *
 * Text pages are words of a small dictionary, chosen by a hash chain.  They are
 * built in a buffer and copied or compared, since words do not end at vector
 * boundaries.
 */

#include <string.h>
#include "content.h"

#define PAGE CONTENT_PAGE_SIZE
#define LANES 4u /* vectors side by side */
#define GOLDEN 0x9e3779b97f4a7c15u

/* Two words; may be laid over any memory. */
typedef uint64_t vec __attribute__((vector_size(16), may_alias));

#define WORD_BITS 7u
#define WORD_SLOT 12u /* bytes copied per word, whatever its length */

/* English words of up to 11 letters; the copy is WORD_SLOT bytes, the length is strlen(). */
static const char words[1u << WORD_BITS][WORD_SLOT] = {
	"the ",    "of ",     "and ",   "to ",   "a ",     "in ",     "is ",    "it ",
	"you ",    "that ",   "he ",    "was ",  "for ",   "on ",     "are ",   "with ",
	"as ",     "I ",      "his ",   "they ", "be ",    "at ",     "one ",   "have ",
	"this ",   "from ",   "or ",    "had ",  "by ",    "not ",    "word ",  "but ",
	"what ",   "some ",   "we ",    "can ",  "out ",   "other ",  "were ",  "all ",
	"there ",  "when ",   "up ",    "use ",  "your ",  "how ",    "said ",  "an ",
	"each ",   "she ",    "which ", "do ",   "their ", "time ",   "if ",    "will ",
	"way ",    "about ",  "many ",  "then ", "them ",  "write ",  "would ", "like ",
	"so ",     "these ",  "her ",   "long ", "make ",  "thing ",  "see ",   "him ",
	"two ",    "has ",    "look ",  "more ", "day ",   "could ",  "go ",    "come ",
	"did ",    "number ", "sound ", "no ",   "most ",  "people ", "my ",    "over ",
	"know ",   "water ",  "than ",  "call ", "first ", "who ",    "may ",   "down ",
	"side ",   "been ",   "now ",   "find ", "any ",   "new ",    "work ",  "part ",
	"take ",   "get ",    "place ", "made ", "live ",  "where ",  "after ", "back ",
	"little ", "only ",   "round ", "man ",  "year ",  "came ",   "show ",  "every ",
	"good, ",  "me ",     "give ",  "our ",  "under ", "coast. ", "north ", "winter.\n",
};

static const char *const fill_names[] = { "random", "zero", "text", "mixed" };
_Static_assert(sizeof(fill_names) / sizeof(fill_names[0]) == CONTENT_NR, "a name per fill");

/* Name of a fill, as on the command line. */
const char *content_fill_name(enum content_fill fill)
{
	return (unsigned)fill < CONTENT_NR ? fill_names[fill] : "unknown";
}

/* Hash that everything in one version of one page derives from. */
static uint64_t page_hash(const struct content *c, uint64_t page, uint64_t version)
{
	uint64_t h = content_mix(c->seed + GOLDEN * (page + 1));

	return content_mix(h ^ (version * 0xd1342543de82ef95u));
}

/* The kind of one version of one page; never CONTENT_MIXED. */
static enum content_fill page_kind(const struct content *c, uint64_t page, uint64_t version)
{
	enum content_fill kind = c->fill;

	if (kind == CONTENT_MIXED) {
		uint64_t h = page_hash(c, page, 0) >> 61;

		kind = h < 2 ? CONTENT_ZERO : h < 4 ? CONTENT_TEXT : CONTENT_RANDOM;
	}
	return kind == CONTENT_ZERO && version ? CONTENT_RANDOM : kind;
}

/* Seed the generators of one page; the state of xorshift must not be 0. */
static void lanes_seed(vec lanes[LANES], uint64_t hash)
{
	for (unsigned i = 0; i < LANES; i++)
		lanes[i] = (vec){ content_mix(hash + GOLDEN * (2 * i + 1)) | 1,
				  content_mix(hash + GOLDEN * (2 * i + 2)) | 1 };
}

/* Next value of two generators. */
static inline vec lane_next(vec x)
{
	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return x;
}

/* Write a random page; @stamp replaces its first 16 bytes unless @version is 0. */
static void random_write(uint8_t *p, uint64_t hash, uint64_t page, uint64_t version)
{
	vec lanes[LANES], *out = (vec *)p;

	lanes_seed(lanes, hash);
	for (unsigned i = 0; i < PAGE / sizeof(vec); i += LANES)
		for (unsigned l = 0; l < LANES; l++) {
			lanes[l] = lane_next(lanes[l]);
			out[i + l] = lanes[l];
		}
	if (version)
		out[0] = (vec){ page, version };
}

/* Compare a random page with what it must be, generating it on the way. */
static bool random_check(const uint8_t *p, uint64_t hash, uint64_t page, uint64_t version)
{
	const vec *in = (const vec *)p;
	vec lanes[LANES], diff[LANES] = { 0 }, first;

	lanes_seed(lanes, hash);
	first = version ? (vec){ page, version } : lane_next(lanes[0]);
	diff[0] = in[0] ^ first;
	for (unsigned l = 0; l < LANES; l++) {
		lanes[l] = lane_next(lanes[l]);
		if (l)
			diff[l] |= in[l] ^ lanes[l];
	}
	for (unsigned i = LANES; i < PAGE / sizeof(vec); i += LANES)
		for (unsigned l = 0; l < LANES; l++) {
			lanes[l] = lane_next(lanes[l]);
			diff[l] |= in[i + l] ^ lanes[l];
		}
	diff[0] |= diff[1] | diff[2] | diff[3];
	return !(diff[0][0] | diff[0][1]);
}

/* Build a text page in @buf (PAGE + WORD_SLOT bytes); the stamp as in random_write(). */
static void text_build(uint8_t *buf, uint64_t hash, uint64_t page, uint64_t version)
{
	unsigned pos = 0;

	for (uint64_t n = 1; pos < PAGE; n++) {
		uint64_t h = content_mix(hash + GOLDEN * n);

		for (unsigned i = 0; i < 64 / WORD_BITS && pos < PAGE; i++, h >>= WORD_BITS) {
			const char *word = words[h & ((1u << WORD_BITS) - 1)];

			memcpy(buf + pos, word, WORD_SLOT);
			pos += (unsigned)strlen(word);
		}
	}
	if (version) {
		memcpy(buf, &page, sizeof(page));
		memcpy(buf + sizeof(page), &version, sizeof(version));
	}
}

/* Fill one page; see content.h. */
void content_write(const struct content *c, void *p, uint64_t page, uint64_t version)
{
	uint64_t hash = page_hash(c, page, version);
	uint8_t buf[PAGE + WORD_SLOT];

	switch (page_kind(c, page, version)) {
	case CONTENT_ZERO:
		memset(p, 0, PAGE);
		break;
	case CONTENT_TEXT:
		text_build(buf, hash, page, version);
		memcpy(p, buf, PAGE);
		break;
	default:
		random_write(p, hash, page, version);
	}
}

/* Compare one page; see content.h. */
bool content_check(const struct content *c, const void *p, uint64_t page, uint64_t version)
{
	uint64_t hash = page_hash(c, page, version);
	uint8_t buf[PAGE + WORD_SLOT];

	switch (page_kind(c, page, version)) {
	case CONTENT_ZERO:
		return content_all_zero(p);
	case CONTENT_TEXT:
		text_build(buf, hash, page, version);
		return !memcmp(p, buf, PAGE);
	default:
		return random_check(p, hash, page, version);
	}
}

/* Whether a version of a page is a zero page. */
bool content_is_zero(const struct content *c, uint64_t page, uint64_t version)
{
	return page_kind(c, page, version) == CONTENT_ZERO;
}

/* Whether a page in memory is all zeros. */
bool content_all_zero(const void *p)
{
	const vec *in = p;
	vec any[LANES] = { 0 };

	for (unsigned i = 0; i < PAGE / sizeof(vec); i += LANES)
		for (unsigned l = 0; l < LANES; l++)
			any[l] |= in[i + l];
	any[0] |= any[1] | any[2] | any[3];
	return !(any[0][0] | any[0][1]);
}

/* The version a page in memory holds; see content.h. */
bool content_observe(const struct content *c, const void *p, uint64_t page, uint64_t *version)
{
	uint64_t stamp[2];

	memcpy(stamp, p, sizeof(stamp));
	if (stamp[0] == page && stamp[1] && content_check(c, p, page, stamp[1])) {
		*version = stamp[1];
		return true;
	}
	if (!content_check(c, p, page, 0))
		return false;
	*version = 0;
	return true;
}
