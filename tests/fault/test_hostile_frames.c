/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A hostile source and a real destination, on the data channels: frames and ZERO
 * notifies that must not be.  The source first writes page 0 as it should; after the
 * offence that page, and no other byte, must be there.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "bad_source.h"
#include "frame.h"

#define FIRST_BYTE 0x5a
#define PAGE TERN_PAGE_SIZE
#define SIZE_0 (16ull * PAGE) /* of region 0 */

/* A frame: header, bytes patched in it, ranges, and so many bytes of payload. */
struct bad_frame {
	const char *name;
	struct frame_header h;
	unsigned at, size;
	uint64_t value;
	struct transport_range ranges[2];
	unsigned nr, payload;
	const char *text;
};

#define WRITE_1(region_, offset_, len_)                                         \
	.h = { .type = FRAME_WRITE, .nr_ranges = 1 }, .nr = 1, .payload = PAGE, \
	.ranges = { { .region = region_, .offset = offset_, .len = len_ } }

static const struct bad_frame frames[] = {
	{ .name = "type 0", .text = "bad type" },
	{ .name = "type 7", .h.type = 7, .text = "bad type" },
	{ .name = "type 255", .h.type = 255, .text = "bad type" },
	{ .name = "FENCE_ACK", .h = { .type = FRAME_FENCE_ACK, .seq = 2 }, .text = "bad type" },
	{ .name = "WRITE, reserved",
	  WRITE_1(0, PAGE, PAGE),
	  .at = 2,
	  .size = 2,
	  .value = 1,
	  .text = "bad reserved" },
	{ .name = "WRITE of no range", .h.type = FRAME_WRITE, .text = "bad ranges" },
	{ .name = "WRITE of 65 ranges",
	  WRITE_1(0, PAGE, PAGE),
	  .at = 1,
	  .size = 1,
	  .value = 65,
	  .text = "bad ranges" },
	{ .name = "WRITE, length",
	  WRITE_1(0, PAGE, PAGE),
	  .at = 4,
	  .size = 4,
	  .value = 1,
	  .text = "bad length" },
	{ .name = "WRITE, sequence",
	  WRITE_1(0, PAGE, PAGE),
	  .at = 8,
	  .size = 8,
	  .value = 1,
	  .text = "bad sequence" },
	{ .name = "NOTIFY of 0", .h.type = FRAME_NOTIFY, .text = "bad length" },
	{ .name = "NOTIFY of 4097",
	  .h = { .type = FRAME_NOTIFY, .length = 4097 },
	  .text = "bad length" },
	{ .name = "NOTIFY of 2^32 - 1",
	  .h = { .type = FRAME_NOTIFY, .length = UINT32_MAX },
	  .text = "bad length" },
	{ .name = "NOTIFY, ranges",
	  .h = { .type = FRAME_NOTIFY, .length = 4, .nr_ranges = 1 },
	  .text = "bad ranges" },
	{ .name = "PUSH without a message",
	  .h = { .type = FRAME_PUSH, .contents = PAGE },
	  .text = "bad length" },
	{ .name = "PUSH with 257 bytes of message",
	  .h = { .type = FRAME_PUSH, .length = 257, .contents = PAGE },
	  .text = "bad length" },
	{ .name = "PUSH with 2^32 - 1 bytes of message",
	  .h = { .type = FRAME_PUSH, .length = UINT32_MAX, .contents = PAGE },
	  .text = "bad length" },
	{ .name = "PUSH without contents",
	  .h = { .type = FRAME_PUSH, .length = 8 },
	  .text = "bad contents" },
	{ .name = "PUSH of 65537 bytes",
	  .h = { .type = FRAME_PUSH, .length = 8, .contents = 65537 },
	  .text = "bad contents" },
	{ .name = "PUSH of 2^64 - 1 bytes",
	  .h = { .type = FRAME_PUSH, .length = 8, .contents = UINT64_MAX },
	  .text = "bad contents" },
	{ .name = "PUSH, ranges",
	  .h = { .type = FRAME_PUSH, .length = 8, .contents = PAGE, .nr_ranges = 1 },
	  .text = "bad ranges" },
	{ .name = "PUSH of a message that is none",
	  .h = { .type = FRAME_PUSH, .length = 8, .contents = PAGE },
	  .payload = 8 + PAGE,
	  .text = "unknown type 61166" },
	{ .name = "FENCE, length",
	  .h = { .type = FRAME_FENCE, .seq = 2, .length = 1 },
	  .text = "bad length" },
	{ .name = "FENCE 0", .h = { .type = FRAME_FENCE, .seq = 0 }, .text = "bad sequence" },
	{ .name = "FENCE 1 again", .h = { .type = FRAME_FENCE, .seq = 1 }, .text = "bad sequence" },
	{ .name = "FENCE 3 after 1",
	  .h = { .type = FRAME_FENCE, .seq = 3 },
	  .text = "bad sequence" },
	{ .name = "END, sequence", .h = { .type = FRAME_END, .seq = 1 }, .text = "bad sequence" },
	{ .name = "END too early",
	  .h = { .type = FRAME_END },
	  .text = "the source closed channel 1" },
	{ .name = "region 2 of 2", WRITE_1(2, 0, PAGE), .text = "write region 2 offset 0" },
	{ .name = "region 2^32 - 1",
	  WRITE_1(UINT32_MAX, 0, PAGE),
	  .text = "write region 4294967295" },
	{ .name = "no bytes", WRITE_1(0, PAGE, 0), .text = "offset 4096 length 0" },
	{ .name = "at the end", WRITE_1(0, SIZE_0, PAGE), .text = "offset 65536 length 4096" },
	{ .name = "a byte over the end",
	  WRITE_1(0, SIZE_0 - PAGE + 1, PAGE),
	  .text = "offset 61441 length 4096" },
	{ .name = "longer than the region",
	  WRITE_1(0, 0, SIZE_0 + 1),
	  .text = "offset 0 length 65537" },
	{ .name = "2^32 - 1 bytes", WRITE_1(0, 0, UINT32_MAX), .text = "length 4294967295" },
	{ .name = "offset 2^64 - 1",
	  WRITE_1(0, UINT64_MAX, 1),
	  .text = "offset 18446744073709551615" },
	{ .name = "offset + length overflows",
	  WRITE_1(0, UINT64_MAX - PAGE + 1, 2 * PAGE),
	  .text = "offset 18446744073709547520" },
	{ .name = "second range bad",
	  .h = { .type = FRAME_WRITE, .nr_ranges = 2 },
	  .nr = 2,
	  .payload = 2 * PAGE,
	  .ranges = { { 0, 2 * PAGE, PAGE }, { 1, 5 * PAGE, PAGE } },
	  .text = "write region 1 offset 20480" },
	{ .name = "descending ranges",
	  .h = { .type = FRAME_WRITE, .nr_ranges = 2 },
	  .nr = 2,
	  .payload = 2 * PAGE,
	  .ranges = { { 0, 3 * PAGE, PAGE }, { 0, 2 * PAGE, PAGE } },
	  .text = "descending or overlapping ranges" },
	{ .name = "overlapping ranges",
	  .h = { .type = FRAME_WRITE, .nr_ranges = 2 },
	  .nr = 2,
	  .payload = 3 * PAGE,
	  .ranges = { { 0, 2 * PAGE, 2 * PAGE }, { 0, 3 * PAGE, PAGE } },
	  .text = "descending or overlapping ranges" },
	{ .name = "descending regions",
	  .h = { .type = FRAME_WRITE, .nr_ranges = 2 },
	  .nr = 2,
	  .payload = 2 * PAGE,
	  .ranges = { { 1, 0, PAGE }, { 0, 2 * PAGE, PAGE } },
	  .text = "descending or overlapping ranges" },
};

#define NR_FRAMES (sizeof(frames) / sizeof(frames[0]))

/* A ZERO with bytes patched; the first range is good unless patched. */
struct bad_zero {
	const char *name;
	struct wire_ranges z;
	unsigned at, size;
	uint64_t value;
	int stretch;
	const char *text;
};

#define GOOD                                                \
	{                                                   \
		.region = 0, .first_page = 0, .nr_pages = 1 \
	}

static const struct bad_zero zeros[] = {
	{ "type 0", { 1, { GOOD } }, 0, 2, 0, 0, "unknown type 0" },
	{ "type 5", { 1, { GOOD } }, 0, 2, 5, 0, "unknown type 5" },
	{ "PLACED", { 1, { GOOD } }, 0, 2, 2, 0,
	  "PLACED from the peer came on channel 1 before the switchover to postcopy" },
	{ "EMPTY", { 1, { GOOD } }, 0, 2, 3, 0,
	  "EMPTY from the peer came on channel 1 before the switchover to postcopy" },
	{ "CONTENTS", { 1, { GOOD } }, 0, 2, 4, 0, "CONTENTS from the peer" },
	{ "one byte", { 1, { GOOD } }, 0, 0, 0, -23, "(1 bytes)" },
	{ "no count", { 1, { GOOD } }, 0, 0, 0, -22, "truncated in field count" },
	{ "count 0", { 1, { GOOD } }, 2, 2, 0, 0, "count = 0" },
	{ "count 201", { 1, { GOOD } }, 2, 2, 201, 0, "count = 201" },
	{ "count 2 of 1", { 1, { GOOD } }, 2, 2, 2, 0, "truncated in field region" },
	{ "count 1 of 2", { 2, { GOOD, { 0, 2, 1 } } }, 2, 2, 1, 0, "20 bytes too many" },
	{ "in part", { 1, { GOOD } }, 0, 0, 0, -1, "truncated in field nr_pages" },
	{ "region 4096", { 2, { GOOD, { 1, 0, 1 } } }, 24, 4, 4096, 0, "region = 4096" },
	{ "region 2 of 2", { 2, { GOOD, { 2, 0, 1 } } }, 0, 0, 0, 0, "region = 2, there are 2" },
	{ "no pages", { 2, { GOOD, { 1, 0, 1 } } }, 36, 8, 0, 0, "nr_pages = 0" },
	{ "past the end",
	  { 2, { GOOD, { 1, 4, 1 } } },
	  0,
	  0,
	  0,
	  0,
	  "pages 4 + 1 of region 'ram1'" },
	{ "over the end",
	  { 2, { GOOD, { 1, 3, 2 } } },
	  0,
	  0,
	  0,
	  0,
	  "pages 3 + 2 of region 'ram1'" },
	{ "first_page 2^64 - 1",
	  { 2, { GOOD, { 1, 0, 1 } } },
	  28,
	  8,
	  UINT64_MAX,
	  0,
	  "first_page = 18446744073709551615" },
	{ "nr_pages 2^40",
	  { 2, { GOOD, { 1, 0, 1 } } },
	  36,
	  8,
	  1ull << 40,
	  0,
	  "pages 0 + 1099511627776" },
	{ "overlapping", { 2, { GOOD, { 0, 0, 2 } } }, 0, 0, 0, 0, "overlapping or descending" },
	{ "the same twice", { 2, { GOOD, GOOD } }, 0, 0, 0, 0, "overlapping or descending" },
	{ "descending pages",
	  { 2, { { 0, 1, 1 }, GOOD } },
	  0,
	  0,
	  0,
	  0,
	  "overlapping or descending" },
	{ "descending regions",
	  { 2, { { 1, 0, 1 }, GOOD } },
	  0,
	  0,
	  0,
	  0,
	  "overlapping or descending" },
};

#define NR_ZEROS (sizeof(zeros) / sizeof(zeros[0]))

/* Write page 0 as a good source would, with a fence.  False if it is not answered. */
static bool write_first_page(struct peer *p)
{
	const struct transport_range range = { .region = 0, .offset = 0, .len = PAGE };
	static const struct frame_header write_h = { .type = FRAME_WRITE, .nr_ranges = 1 };
	static const struct frame_header fence_h = { .type = FRAME_FENCE, .seq = 1 };
	uint8_t buf[2 * FRAME_HEADER_LEN + FRAME_RANGE_LEN + PAGE];
	uint8_t *at = buf;
	struct frame_header ack;

	frame_header_put(at, &write_h);
	frame_range_put(at += FRAME_HEADER_LEN, &range);
	memset(at += FRAME_RANGE_LEN, FIRST_BYTE, PAGE);
	frame_header_put(at + PAGE, &fence_h);
	if (!peer_frame(p, 1, buf, sizeof(buf)) ||
	    recv(p->data[1], buf, FRAME_HEADER_LEN, MSG_WAITALL) != (ssize_t)FRAME_HEADER_LEN)
		return false;
	return !frame_header_get(buf, &ack) && ack.type == FRAME_FENCE_ACK && ack.seq == 1;
}

/* Up to the offence on channel 1, and what follows it. */
static void offend(char *problems, const uint8_t *bytes, size_t len, const char *text)
{
	struct victim v;
	struct peer p;

	victim_open(&v, TERN_DESTINATION, problems);
	peer_init(&p, &v.vm, problems);
	if (bad_source_behave(&p, &v, BEFORE_ROUND)) {
		if (!write_first_page(&p))
			problem_add(problems, "a good write was not placed");
		peer_frame(&p, 1, bytes, len);
		peer_ping_to_end(&p, true);
		if (!p.error[0])
			problem_add(problems, "the peer was not told");
		peer_close(&p);
		bad_source_judge(&v, &p, BEFORE_ROUND, FIRST_BYTE, text);
	}
	peer_close(&p);
	victim_close(&v);
}

static void send_bad_frame(void *opaque, unsigned i)
{
	char(*problems)[SCENE_PROBLEMS_MAX] = opaque;
	const struct bad_frame *f = &frames[i];
	uint8_t buf[FRAME_HEADER_LEN + 2 * FRAME_RANGE_LEN + 3 * PAGE];
	uint8_t *at = buf + FRAME_HEADER_LEN;

	frame_header_put(buf, &f->h);
	bytes_patch(buf, f->at, f->size, f->value);
	for (unsigned k = 0; k < f->nr; k++, at += FRAME_RANGE_LEN)
		frame_range_put(at, &f->ranges[k]);
	memset(at, 0xee, f->payload);
	offend(problems[i], buf, (size_t)(at - buf) + f->payload, f->text);
}

static void send_bad_zero(void *opaque, unsigned i)
{
	char(*problems)[SCENE_PROBLEMS_MAX] = opaque;
	const struct bad_zero *z = &zeros[i];
	uint8_t buf[FRAME_HEADER_LEN + TRANSPORT_NOTIFY_MAX];
	size_t len = wire_ranges_encode(WIRE_NOTIFY_ZERO, &z->z, buf + FRAME_HEADER_LEN);

	bytes_patch(buf + FRAME_HEADER_LEN, z->at, z->size, z->value);
	len = (size_t)((long)len + z->stretch);
	frame_header_put(buf,
			 &(struct frame_header){ .type = FRAME_NOTIFY, .length = (uint32_t)len });
	offend(problems[i], buf, FRAME_HEADER_LEN + len, z->text);
}

static void frame_name(unsigned i, char *buf, size_t size)
{
	snprintf(buf, size, "frame: %s", frames[i].name);
}

static void zero_name(unsigned i, char *buf, size_t size)
{
	snprintf(buf, size, "ZERO: %s", zeros[i].name);
}

static void bad_frames(void **state)
{
	char(*problems)[SCENE_PROBLEMS_MAX] = calloc(NR_FRAMES, sizeof(*problems));

	assert_non_null(problems);
	scene_crowd(NR_FRAMES, send_bad_frame, problems);
	assert_true(problems_tell(problems, NR_FRAMES, frame_name));
}

static void bad_zeros(void **state)
{
	char(*problems)[SCENE_PROBLEMS_MAX] = calloc(NR_ZEROS, sizeof(*problems));

	assert_non_null(problems);
	scene_crowd(NR_ZEROS, send_bad_zero, problems);
	assert_true(problems_tell(problems, NR_ZEROS, zero_name));
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(bad_frames),
		cmocka_unit_test(bad_zeros),
	};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests_name("hostile frames", tests, NULL, NULL);
}
