/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * tern-vm's device state: sections are found inside the bytes they came in, and what is
 * written from them is found again, the same.
 */

#include <stdlib.h>
#include <string.h>

#include "../../src/vmm/section.h"
#include "fuzz.h"

static const struct section_rule rules[] = {
	{ "machine", 1, 1, 16, 0 },
	{ "vcpu-regs", 1, 2, 8, 0 },
	{ "vcpu-msrs", 1, 2, 0, 12 },
};
#define NR_RULES (sizeof(rules) / sizeof(rules[0]))

/* The sections written again are found again. */
static void round_trip(const struct section *s, unsigned nr)
{
	struct section_buf b = { 0 };
	struct section *again;
	struct tern_error err = { 0 };
	unsigned nr_again;
	size_t at;

	FUZZ_CHECK(!section_begin(&b), "no memory");
	for (unsigned i = 0; i < nr; i++) {
		FUZZ_CHECK(!section_open(&b, s[i].name, s[i].version, s[i].instance, &at) &&
				   !section_put(&b, s[i].data, s[i].len),
			   "no memory");
		section_close(&b, at);
	}
	section_count(&b, nr);
	FUZZ_CHECK(!section_parse(b.p, b.len, &again, &nr_again, &err), "written again: %s",
		   err.message);
	FUZZ_CHECK(nr == nr_again, "%u sections became %u", nr, nr_again);
	for (unsigned i = 0; i < nr; i++)
		FUZZ_CHECK(!strcmp(again[i].name, s[i].name) && again[i].version == s[i].version &&
				   again[i].instance == s[i].instance && again[i].len == s[i].len &&
				   !memcmp(again[i].data, s[i].data, s[i].len),
			   "section %u became another one", i);
	free(again);
	free(b.p);
}

enum fuzz_reach fuzz_one(const uint8_t *data, size_t size, unsigned patience_ms)
{
	struct tern_error err = { 0 };
	struct section *s;
	unsigned nr;
	int ret = section_parse(data, size, &s, &nr, &err);

	FUZZ_CHECK(ret == err.code, "parsing returned %d and the error %d", ret, err.code);
	if (ret)
		return FUZZ_PARTLY;
	for (unsigned i = 0; i < nr; i++)
		FUZZ_CHECK(s[i].data >= data && s[i].len <= size &&
				   s[i].data + s[i].len <= data + size,
			   "section %u lies outside", i);
	round_trip(s, nr);
	ret = section_match(s, nr, rules, NR_RULES, &err);
	FUZZ_CHECK(ret == err.code, "matching returned %d and the error %d", ret, err.code);
	free(s);
	return ret ? FUZZ_PARTLY : FUZZ_FULL;
}
