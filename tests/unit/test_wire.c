/* SPDX-License-Identifier: BSD-2-Clause */
/* Every message there and back, and every way to get one wrong. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "error.h"
#include "wire.h"

/* One valid message of each type, every field with a value of its own. */
static void sample(enum wire_type type, struct wire_msg *m)
{
	memset(m, 0, sizeof(*m));
	m->type = type;
	m->seq = 0x01020304;
	switch (type) {
	case WIRE_HELLO:
		m->hello = (struct wire_hello){
			.version_min = 1,
			.version_max = 7,
			.channels = 3,
			.features = 0x1122334455667788,
			.features_required = 0x8877665544332211,
			.session_id = "0123456789abcde",
			.page_size = 4096,
			.nr_regions = 2,
			.ram_bytes = 1 << 30,
			.stripe_bytes = 4 << 20,
			.chunk_bytes = 1 << 20,
			.state_max = 1 << 26,
			.peer_timeout_ms = 5000,
		};
		break;
	case WIRE_HELLO_ACK:
		m->hello_ack = (struct wire_hello_ack){ 1, 2, 0, 65536, 4000 };
		break;
	case WIRE_REGIONS:
		m->regions.first = 5;
		m->regions.count = 2;
		m->regions.v[0] = (struct wire_region){ 5, 8192, 0x100000, 4096, "low" };
		m->regions.v[1] = (struct wire_region){ 6, 1 << 21, 1ull << 32, 1 << 21, "high" };
		break;
	case WIRE_REGIONS_ACK:
		m->regions_ack = (struct wire_regions_ack){ 7, 123 * 4096, 2, { 0x81, 0x7f } };
		break;
	case WIRE_SETUP_DONE:
		m->setup_done.channels = 4;
		break;
	case WIRE_ROUND:
		m->round = (struct wire_round){ 3, 1, 11, 22, 33, 44 };
		break;
	case WIRE_STATE:
		m->state.offset = 77;
		m->state.len = 3;
		memcpy(m->state.data, "\x00\xff\x55", 3);
		break;
	case WIRE_STATE_END:
		m->state_end.total = 80;
		break;
	case WIRE_READY:
		m->ready.load_ns = 1234567;
		break;
	case WIRE_STARTED:
		m->started.resume_ns = 89;
		m->started.since_ns = 97;
		m->started.waited_ns = 101;
		break;
	case WIRE_ERROR:
		m->error = (struct wire_error){ -EPROTO, TERN_SCOPE_CHANNEL, 1, 5, "oops!" };
		break;
	case WIRE_MISSING:
		m->missing.region = 4095;
		m->missing.first_page = 1ull << 33;
		m->missing.len = 4;
		memcpy(m->missing.runs, "\x80\x01\x00\xff", 4);
		break;
	case WIRE_POSTCOPY:
		m->postcopy.missing_pages = 1ull << 39;
		break;
	case WIRE_PAGES_WANTED:
		m->wanted.count = 2;
		m->wanted.v[0] = (struct wire_page_range){ 3, 1ull << 38, 512 };
		m->wanted.v[1] = (struct wire_page_range){ 4, 0, 1 };
		break;
	case WIRE_RECOVER:
		m->recover = (struct wire_recover){
			.version = 1,
			.channels = 5,
			.chunk_bytes = 1 << 20,
			.peer_timeout_ms = 5000,
			.session_id = "fedcba987654321",
		};
		break;
	case WIRE_RECOVER_ACK:
		m->recover_ack = (struct wire_recover_ack){ 6, 65536, 4000, 1234567 };
		break;
	default:
		break;
	}
}

static void round_trip(void **state)
{
	uint8_t buf[TRANSPORT_MSG_MAX], again[TRANSPORT_MSG_MAX];
	struct wire_msg in, out;
	struct tern_error err;

	for (int t = 1; t < WIRE_TYPE_NR; t++) {
		sample((enum wire_type)t, &in);
		size_t len = wire_encode(&in, buf);

		memset(&out, 0, sizeof(out));
		error_clear(&err);
		assert_int_equal(wire_decode(buf, len, &out, &err), 0);
		assert_memory_equal(&in, &out, sizeof(in));
		assert_int_equal(wire_encode(&out, again), len);
		assert_memory_equal(buf, again, len);
	}
}

/* The bytes are the protocol's, whatever this machine's order and alignment. */
static void known_bytes(void **state)
{
	static const uint8_t round[] = {
		6, 0, 0, 0, 4, 3, 2, 1, /* type, flags, seq */
		3, 0, 0, 0, 1, /* round, final */
		11, 0, 0, 0, 0, 0, 0, 0, 22, 0, 0, 0, 0, 0, 0, 0,
		33, 0, 0, 0, 0, 0, 0, 0, 44, 0, 0, 0, 0, 0, 0, 0,
	};
	uint8_t buf[TRANSPORT_MSG_MAX];
	struct wire_msg m;

	sample(WIRE_ROUND, &m);
	assert_int_equal(wire_encode(&m, buf), sizeof(round));
	assert_memory_equal(buf, round, sizeof(round));
}

static void known_bytes_of_postcopy(void **state)
{
	static const uint8_t missing[] = {
		16, 0, 0, 0, 4, 3, 2, 1, 0xff, 0x0f, 0, 0, /* region */
		0, 0, 0, 0, 2, 0, 0, 0, /* first_page */
		4, 0, 0x80, 1, 0, 0xff, /* runs */
	};
	static const uint8_t recover_ack[] = {
		21, 0, 0, 0, 4, 3, 2, 1, 6, 0, 0, 0, /* channels */
		0, 0, 1, 0, 0, 0, 0, 0, 0xa0, 0x0f, 0, 0, /* chunk_bytes, peer_timeout_ms */
		0x87, 0xd6, 0x12, 0, 0, 0, 0, 0, /* missing_pages */
	};
	uint8_t buf[TRANSPORT_MSG_MAX];
	struct wire_msg m;

	sample(WIRE_MISSING, &m);
	assert_int_equal(wire_encode(&m, buf), sizeof(missing));
	assert_memory_equal(buf, missing, sizeof(missing));
	sample(WIRE_RECOVER_ACK, &m);
	assert_int_equal(wire_encode(&m, buf), sizeof(recover_ack));
	assert_memory_equal(buf, recover_ack, sizeof(recover_ack));
}

/* Messages as full as they may be fit, and come back. */
static void full_messages(void **state)
{
	static const enum wire_type types[] = { WIRE_MISSING, WIRE_PAGES_WANTED, WIRE_REGIONS_ACK };
	uint8_t buf[TRANSPORT_MSG_MAX];
	struct tern_error err;

	for (int i = 0; i < 3; i++) {
		struct wire_msg in, out;

		sample(types[i], &in);
		memset(&out, 0, sizeof(out));
		if (types[i] == WIRE_MISSING) {
			in.missing.len = WIRE_RUNS_MAX;
			memset(in.missing.runs, 1, WIRE_RUNS_MAX);
		} else if (types[i] == WIRE_PAGES_WANTED) {
			in.wanted.count = WIRE_WANTED_PER_MSG;
			for (unsigned k = 0; k < WIRE_WANTED_PER_MSG; k++)
				in.wanted.v[k] = (struct wire_page_range){ k, k * 100ull, k + 1 };
		} else {
			in.regions_ack.by_contents_len = WIRE_BY_CONTENTS_MAX;
			memset(in.regions_ack.by_contents, 0xa5, WIRE_BY_CONTENTS_MAX);
		}
		error_clear(&err);
		assert_int_equal(wire_decode(buf, wire_encode(&in, buf), &out, &err), 0);
		assert_memory_equal(&in, &out, sizeof(in));
	}
}

static void truncated(void **state)
{
	uint8_t buf[TRANSPORT_MSG_MAX];
	struct wire_msg in, out;
	struct tern_error err;

	for (int t = 1; t < WIRE_TYPE_NR; t++) {
		sample((enum wire_type)t, &in);
		size_t len = wire_encode(&in, buf);

		for (size_t n = 0; n < len; n++) {
			uint8_t *exact = malloc(n ? n : 1); /* ASan sees a read behind it */

			memcpy(exact, buf, n);
			error_clear(&err);
			assert_int_equal(wire_decode(exact, n, &out, &err), -EBADMSG);
			assert_int_equal(err.code, -EBADMSG);
			if (n >= WIRE_HEADER_LEN)
				assert_non_null(strstr(err.message, wire_type_name((unsigned)t)));
			free(exact);
		}
	}
}

static void too_long(void **state)
{
	uint8_t buf[TRANSPORT_MSG_MAX + 1] = { 0 };
	struct wire_msg in, out;
	struct tern_error err;

	for (int t = 1; t < WIRE_TYPE_NR; t++) {
		sample((enum wire_type)t, &in);
		size_t len = wire_encode(&in, buf);

		error_clear(&err);
		assert_int_equal(wire_decode(buf, len + 1, &out, &err), -EBADMSG);
		assert_non_null(strstr(err.message, "1 bytes too many"));
	}
}

static void bad_header(void **state)
{
	uint8_t buf[TRANSPORT_MSG_MAX];
	struct wire_msg m;
	struct tern_error err;

	sample(WIRE_GO, &m);
	size_t len = wire_encode(&m, buf);

	buf[2] = 1;
	error_clear(&err);
	assert_int_equal(wire_decode(buf, len, &m, &err), -EPROTO);
	assert_non_null(strstr(err.message, "flags 0x1"));
	buf[2] = 0;
	for (unsigned type = 0; type < 65536; type = type == 0 ? WIRE_TYPE_NR : type * 2 + 1) {
		buf[0] = (uint8_t)type;
		buf[1] = (uint8_t)(type >> 8);
		error_clear(&err);
		assert_int_equal(wire_decode(buf, len, &m, &err), -EPROTO);
		assert_non_null(strstr(err.message, "unknown type"));
	}
}

/* A value outside its limits: where it stands, what to write there, what the error says. */
static const struct {
	enum wire_type type;
	size_t at, len;
	uint64_t value;
	const char *field;
} out_of_range[] = {
	{ WIRE_HELLO, 8, 2, 0, "version_min" },
	{ WIRE_HELLO, 10, 2, 0, "version_max" },
	{ WIRE_HELLO, 12, 4, 0, "channels" },
	{ WIRE_HELLO, 12, 4, TRANSPORT_CHANNELS_MAX + 1, "channels" },
	{ WIRE_HELLO, 48, 4, 0, "page_size" },
	{ WIRE_HELLO, 52, 4, 0, "nr_regions" },
	{ WIRE_HELLO, 52, 4, TERN_REGIONS_MAX + 1, "nr_regions" },
	{ WIRE_HELLO, 56, 8, 0, "ram_bytes" },
	{ WIRE_HELLO, 56, 8, UINT64_MAX, "ram_bytes" },
	{ WIRE_HELLO, 64, 8, 0, "stripe_bytes" },
	{ WIRE_HELLO, 72, 8, UINT64_MAX, "chunk_bytes" },
	{ WIRE_HELLO, 88, 4, 0, "peer_timeout_ms" },
	{ WIRE_HELLO_ACK, 8, 2, 0, "version" },
	{ WIRE_HELLO_ACK, 10, 4, 0, "channels" },
	{ WIRE_REGIONS, 8, 4, TERN_REGIONS_MAX, "first" },
	{ WIRE_REGIONS, 12, 2, 0, "count" },
	{ WIRE_REGIONS, 12, 2, WIRE_REGIONS_PER_MSG + 1, "count" },
	{ WIRE_REGIONS, 14, 4, UINT32_MAX, "id" },
	{ WIRE_REGIONS, 18, 8, 0, "size" },
	{ WIRE_REGIONS, 34, 8, 1, "host_page_size" },
	{ WIRE_REGIONS, 42, 1, 0, "name" },
	{ WIRE_REGIONS, 42, 1, TERN_REGION_NAME_MAX + 1, "name" },
	{ WIRE_REGIONS, 43, 1, '\n', "name" },
	{ WIRE_REGIONS_ACK, 8, 4, 0, "nr_regions" },
	{ WIRE_REGIONS_ACK, 20, 2, WIRE_BY_CONTENTS_MAX + 1, "by_contents" },
	{ WIRE_SETUP_DONE, 8, 4, 0, "channels" },
	{ WIRE_ROUND, 8, 4, 0, "round" },
	{ WIRE_ROUND, 12, 1, 2, "final" },
	{ WIRE_STATE, 16, 2, 0, "len" },
	{ WIRE_STATE, 16, 2, WIRE_STATE_DATA_MAX + 1, "len" },
	{ WIRE_ERROR, 12, 1, TERN_SCOPE_SESSION + 1, "scope" },
	{ WIRE_ERROR, 13, 1, 2, "started" },
	{ WIRE_ERROR, 14, 2, WIRE_ERROR_TEXT_MAX + 1, "len" },
	{ WIRE_MISSING, 8, 4, TERN_REGIONS_MAX, "region" },
	{ WIRE_MISSING, 12, 8, UINT64_MAX, "first_page" },
	{ WIRE_MISSING, 20, 2, 0, "runs" },
	{ WIRE_MISSING, 20, 2, WIRE_RUNS_MAX + 1, "runs" },
	{ WIRE_POSTCOPY, 8, 8, UINT64_MAX, "missing_pages" },
	{ WIRE_PAGES_WANTED, 8, 2, 0, "count" },
	{ WIRE_PAGES_WANTED, 8, 2, WIRE_WANTED_PER_MSG + 1, "count" },
	{ WIRE_PAGES_WANTED, 10, 4, TERN_REGIONS_MAX, "region" },
	{ WIRE_PAGES_WANTED, 14, 8, UINT64_MAX, "first_page" },
	{ WIRE_PAGES_WANTED, 22, 8, 0, "nr_pages" },
	{ WIRE_PAGES_WANTED, 42, 8, UINT64_MAX, "nr_pages" },
	{ WIRE_RECOVER, 8, 2, 0, "version" },
	{ WIRE_RECOVER, 10, 4, 0, "channels" },
	{ WIRE_RECOVER, 10, 4, TRANSPORT_CHANNELS_MAX + 1, "channels" },
	{ WIRE_RECOVER, 14, 8, 1, "chunk_bytes" },
	{ WIRE_RECOVER, 22, 4, 0, "peer_timeout_ms" },
	{ WIRE_RECOVER_ACK, 8, 4, TRANSPORT_CHANNELS_MAX + 1, "channels" },
	{ WIRE_RECOVER_ACK, 12, 8, UINT64_MAX, "chunk_bytes" },
	{ WIRE_RECOVER_ACK, 20, 4, 0, "peer_timeout_ms" },
	{ WIRE_RECOVER_ACK, 24, 8, UINT64_MAX, "missing_pages" },
};

static void limits(void **state)
{
	uint8_t buf[TRANSPORT_MSG_MAX];
	struct wire_msg m;
	struct tern_error err;

	for (size_t i = 0; i < sizeof(out_of_range) / sizeof(out_of_range[0]); i++) {
		sample(out_of_range[i].type, &m);
		size_t len = wire_encode(&m, buf);

		for (size_t b = 0; b < out_of_range[i].len; b++)
			buf[out_of_range[i].at + b] = (uint8_t)(out_of_range[i].value >> (8 * b));
		error_clear(&err);
		int r = wire_decode(buf, len, &m, &err);

		if (r != -EPROTO || !strstr(err.message, out_of_range[i].field))
			fail_msg("case %zu (%s): %d, '%s'", i, out_of_range[i].field, r,
				 err.message);
		assert_non_null(strstr(err.message, wire_type_name(out_of_range[i].type)));
	}
}

/* Random damage never does more than fail. */
static void damaged(void **state)
{
	uint8_t buf[TRANSPORT_MSG_MAX];
	struct wire_msg m;
	struct tern_error err;

	srand(1);
	for (int i = 0; i < 200000; i++) {
		sample((enum wire_type)(1 + i % (WIRE_TYPE_NR - 1)), &m);
		size_t len = wire_encode(&m, buf);

		for (int k = rand() % 4; k >= 0; k--)
			buf[(size_t)rand() % len] = (uint8_t)rand();
		error_clear(&err);
		int r = wire_decode(buf, (size_t)rand() % (len + 1), &m, &err);

		assert_true(r == 0 || r == -EPROTO || r == -EBADMSG);
		assert_int_equal(err.code, r);
	}
}

static void sender_of_each(void **state)
{
	assert_true(wire_from_source(WIRE_GO));
	assert_false(wire_from_destination(WIRE_GO));
	assert_true(wire_from_destination(WIRE_STARTED));
	assert_false(wire_from_source(WIRE_STARTED));
	assert_true(wire_from_source(WIRE_MISSING) && wire_from_destination(WIRE_MISSING));
	assert_false(wire_from_destination(WIRE_POSTCOPY) || wire_from_destination(WIRE_RECOVER));
	assert_false(wire_from_source(WIRE_PAGES_WANTED) || wire_from_source(WIRE_COMPLETE));
	assert_true(wire_from_destination(WIRE_RECOVER_ACK));
	assert_true(wire_from_source(WIRE_ERROR) && wire_from_destination(WIRE_ERROR));
	assert_string_equal(wire_type_name(WIRE_TYPE_NR), "unknown");
}

/* A message of channels: there and back, cut short at every byte, too long. */
static void check_notify(const struct wire_notify *in)
{
	uint8_t buf[TRANSPORT_NOTIFY_MAX + 1] = { 0 };
	struct wire_notify out;
	struct tern_error err;

	memset(&out, 0, sizeof(out));
	size_t len = wire_notify_encode(in, buf);

	error_clear(&err);
	assert_int_equal(wire_notify_decode(buf, len, &out, &err), 0);
	assert_memory_equal(in, &out, sizeof(*in));
	for (size_t n = 0; n < len; n++) {
		error_clear(&err);
		assert_true(wire_notify_decode(buf, n, &out, &err) < 0);
	}
	error_clear(&err);
	assert_int_equal(wire_notify_decode(buf, len + 1, &out, &err), -EBADMSG);
}

static void zero_round_trip(void **state)
{
	struct wire_notify in;
	uint8_t buf[TRANSPORT_NOTIFY_MAX];
	struct tern_error err;

	memset(&in, 0, sizeof(in));
	in.ranges.count = WIRE_RANGES_MAX;
	for (unsigned i = 0; i < in.ranges.count; i++)
		in.ranges.v[i] = (struct wire_page_range){ i, 1000ull * i, i + 1 };
	in.type = WIRE_NOTIFY_ZERO;
	check_notify(&in);
	size_t len = wire_notify_encode(&in, buf);

	buf[0] = 9;
	error_clear(&err);
	assert_int_equal(wire_notify_decode(buf, len, &in, &err), -EPROTO);
	assert_non_null(strstr(err.message, "unknown type 9"));
}

static void placed_and_empty_round_trip(void **state)
{
	struct wire_notify in;

	memset(&in, 0, sizeof(in));
	in.ranges.count = 1;
	in.ranges.v[0] = (struct wire_page_range){ 3, 1ull << 39, 77 };
	in.type = WIRE_NOTIFY_PLACED;
	check_notify(&in);
	in.type = WIRE_NOTIFY_EMPTY;
	check_notify(&in);
}

static void contents_round_trip(void **state)
{
	struct wire_notify in;

	memset(&in, 0, sizeof(in));
	in.type = WIRE_NOTIFY_CONTENTS;
	in.contents.region = 4095;
	in.contents.first_page = 12345678901;
	check_notify(&in);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(round_trip),     cmocka_unit_test(known_bytes),
		cmocka_unit_test(truncated),      cmocka_unit_test(too_long),
		cmocka_unit_test(known_bytes_of_postcopy),
		cmocka_unit_test(full_messages),
		cmocka_unit_test(bad_header),     cmocka_unit_test(limits),
		cmocka_unit_test(damaged),        cmocka_unit_test(sender_of_each),
		cmocka_unit_test(zero_round_trip),
		cmocka_unit_test(placed_and_empty_round_trip),
		cmocka_unit_test(contents_round_trip),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
