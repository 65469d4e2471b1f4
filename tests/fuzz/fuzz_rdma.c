/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * The RDMA framing's decoders.  Whatever decodes must decode to the same again after
 * encoding, and a list that is accepted must have exactly the length it has.
 */

#include <string.h>

#include "fuzz.h"
#include "greeting.h"

static bool try_greeting(const uint8_t *data, size_t size)
{
	struct greeting g, again;
	uint8_t out[GREETING_LEN];
	char why[128] = "";

	memset(&g, 0, sizeof(g));
	memset(&again, 0, sizeof(again));
	if (!greeting_get(data, size, &g))
		return false;
	FUZZ_CHECK(size >= GREETING_LEN, "a greeting of %zu bytes is accepted", size);
	greeting_put(out, &g);
	FUZZ_CHECK(greeting_get(out, sizeof(out), &again) && !memcmp(&g, &again, sizeof(g)),
		   "a greeting decodes differently again");
	if (!greeting_check(&g, why, sizeof(why)))
		return true;
	FUZZ_CHECK(why[0], "a greeting is impossible without a reason");
	return false;
}

static bool try_refusal(const uint8_t *data, size_t size)
{
	struct refusal r, again;
	uint8_t out[REFUSAL_LEN];

	memset(&r, 0, sizeof(r));
	memset(&again, 0, sizeof(again));
	if (!refusal_get(data, size, &r))
		return false;
	refusal_put(out, &r);
	FUZZ_CHECK(refusal_get(out, sizeof(out), &again) && !memcmp(&r, &again, sizeof(r)),
		   "a refusal decodes differently again");
	return true;
}

static void try_headers(const uint8_t *data, size_t size)
{
	uint8_t out[DATA_HEADER_LEN];
	struct ctl_header c, c_again;
	struct data_header d, d_again;

	memset(&c, 0, sizeof(c));
	memset(&c_again, 0, sizeof(c_again));
	memset(&d, 0, sizeof(d));
	memset(&d_again, 0, sizeof(d_again));
	if (size >= CTL_HEADER_LEN) {
		ctl_header_get(data, &c);
		ctl_header_put(out, &c);
		ctl_header_get(out, &c_again);
		FUZZ_CHECK(!memcmp(&c, &c_again, sizeof(c)), "a control header differs");
	}
	if (size >= DATA_HEADER_LEN) {
		data_header_get(data, &d);
		data_header_put(out, &d);
		data_header_get(out, &d_again);
		FUZZ_CHECK(!memcmp(&d, &d_again, sizeof(d)), "a data header differs");
	}
}

static bool try_wanted(const uint8_t *data, size_t size)
{
	struct key_wanted v[KEYS_BATCH], again[KEYS_BATCH];
	uint8_t out[KEYS_HEAD_LEN + KEYS_BATCH * KEYS_WANTED_LEN];
	int nr;

	memset(v, 0, sizeof(v));
	memset(again, 0, sizeof(again));
	nr = keys_wanted_get(data, size, v);
	if (nr < 0)
		return false;
	FUZZ_CHECK(nr >= 1 && nr <= (int)KEYS_BATCH, "%d keys are wanted at once", nr);
	FUZZ_CHECK(keys_wanted_put(out, v, (unsigned)nr) == size, "%d wanted keys: length", nr);
	FUZZ_CHECK(keys_wanted_get(out, size, again) == nr && !memcmp(v, again, sizeof(v)),
		   "wanted keys decode differently again");
	return true;
}

static bool try_granted(const uint8_t *data, size_t size)
{
	struct key_granted v[KEYS_BATCH], again[KEYS_BATCH];
	uint8_t out[KEYS_HEAD_LEN + KEYS_BATCH * KEYS_LEN];
	int nr;

	memset(v, 0, sizeof(v));
	memset(again, 0, sizeof(again));
	nr = keys_get(data, size, v);
	if (nr < 0)
		return false;
	FUZZ_CHECK(nr >= 1 && nr <= (int)KEYS_BATCH, "%d keys are granted at once", nr);
	FUZZ_CHECK(keys_put(out, v, (unsigned)nr) == size, "%d granted keys: length", nr);
	FUZZ_CHECK(keys_get(out, size, again) == nr && !memcmp(v, again, sizeof(v)),
		   "granted keys decode differently again");
	return true;
}

static bool try_release(const uint8_t *data, size_t size)
{
	uint8_t out[KEYS_HEAD_LEN + KEYS_BATCH * KEYS_RELEASE_LEN];
	uint32_t v[KEYS_BATCH] = { 0 }, again[KEYS_BATCH] = { 0 };
	int nr = keys_release_get(data, size, v);

	if (nr < 0)
		return false;
	FUZZ_CHECK(nr >= 1 && nr <= (int)KEYS_BATCH, "%d keys are released at once", nr);
	FUZZ_CHECK(keys_release_put(out, v, (unsigned)nr) == size, "%d released keys: length", nr);
	FUZZ_CHECK(keys_release_get(out, size, again) == nr && !memcmp(v, again, sizeof(v)),
		   "released keys decode differently again");
	return true;
}

enum fuzz_reach fuzz_one(const uint8_t *data, size_t size, unsigned patience_ms)
{
	bool any = try_greeting(data, size);

	(void)patience_ms;
	try_headers(data, size);
	any |= try_refusal(data, size);
	any |= try_wanted(data, size);
	any |= try_granted(data, size);
	any |= try_release(data, size);
	return any ? FUZZ_FULL : FUZZ_PARTLY;
}
