/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A hostile source and a real destination.
 *
 * Each case is a good source up to some stage, then one offence.  Before the end of
 * the handshake the offender is a stranger: turned away by name, and a good source
 * succeeds afterwards.  Later the session fails with an error that names the field.
 * In all cases memory is as it was and the guest does not run.
 *
 * Cases are messages with patched bytes; offsets are those of docs/protocol.md, so
 * that a disagreement between the document and the code shows.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bad_source.h"
#include "peer.h"
#include "scene.h"
#include "victim.h"

/* A message with @size bytes at @at replaced by @value, and cut (< 0) or stretched. */
struct offence {
	const char *name;
	enum stage stage;
	enum wire_type type;
	unsigned at, size;
	uint64_t value;
	int stretch;
	const char *text; /* what the destination must say */
};

static const struct offence offences[] = {
	{ "type 0", BEFORE_HELLO, WIRE_HELLO, 0, 2, 0, 0, "unknown type 0" },
	{ "type 23", BEFORE_HELLO, WIRE_HELLO, 0, 2, 23, 0, "unknown type 23" },
	{ "type 65535", BEFORE_GO, WIRE_GO, 0, 2, 65535, 0, "unknown type 65535" },
	{ "flags", BEFORE_HELLO, WIRE_HELLO, 2, 2, 1, 0, "HELLO from the peer has flags 0x1" },
	{ "flags of GO", BEFORE_GO, WIRE_GO, 2, 2, 0x8000, 0, "GO from the peer has flags 0x8000" },
	{ "seq 1 first", BEFORE_HELLO, WIRE_HELLO, 4, 4, 1, 0,
	  "sequence number 1, expected was 0" },
	{ "seq repeated", BEFORE_REGIONS, WIRE_REGIONS, 4, 4, 0, 0, "sequence number 0" },
	{ "seq of GO", BEFORE_GO, WIRE_GO, 4, 4, 77, 0, "GO from the peer has sequence number 77" },
	{ "HELLO in part", BEFORE_HELLO, WIRE_HELLO, 0, 0, 0, -1,
	  "HELLO from the peer is truncated in field peer_timeout_ms" },
	{ "HELLO of a header", BEFORE_HELLO, WIRE_HELLO, 0, 0, 0, -84,
	  "truncated in field version_min" },
	{ "half a header", BEFORE_HELLO, WIRE_HELLO, 0, 0, 0, -88, "message of 4 bytes" },
	{ "HELLO too long", BEFORE_HELLO, WIRE_HELLO, 0, 0, 0, 1,
	  "HELLO from the peer has 1 bytes too many" },
	{ "version 0", BEFORE_HELLO, WIRE_HELLO, 8, 2, 0, 0, "version_min = 0" },
	{ "versions 2 to 9", BEFORE_HELLO, WIRE_HELLO, 8, 4, 9 << 16 | 2, 0,
	  "the source speaks 2 to 9, the destination 1 to 1" },
	{ "versions 3 to 2", BEFORE_HELLO, WIRE_HELLO, 8, 4, 2 << 16 | 3, 0,
	  "version_min 3 above version_max 2" },
	{ "no channels", BEFORE_HELLO, WIRE_HELLO, 12, 4, 0, 0, "channels = 0" },
	{ "65 channels", BEFORE_HELLO, WIRE_HELLO, 12, 4, 65, 0, "channels = 65" },
	{ "required feature", BEFORE_HELLO, WIRE_HELLO, 24, 8, 1ull << 63, 0,
	  "the source requires 0x8000000000000000" },
	{ "session id", BEFORE_HELLO, WIRE_HELLO, 32, 1, 0, 0, "names another session" },
	{ "page size", BEFORE_HELLO, WIRE_HELLO, 48, 4, 65536, 0,
	  "page size differs: 65536 bytes" },
	{ "3 regions", BEFORE_HELLO, WIRE_HELLO, 52, 4, 3, 0, "number of regions differs: 3" },
	{ "no regions", BEFORE_HELLO, WIRE_HELLO, 52, 4, 0, 0, "nr_regions = 0" },
	{ "4097 regions", BEFORE_HELLO, WIRE_HELLO, 52, 4, 4097, 0, "nr_regions = 4097" },
	{ "other RAM size", BEFORE_HELLO, WIRE_HELLO, 56, 8, 4096, 0,
	  "RAM size differs: 4096 bytes" },
	{ "huge RAM size", BEFORE_HELLO, WIRE_HELLO, 56, 8, UINT64_MAX, 0,
	  "ram_bytes = 18446744073709551615" },
	{ "stripe 0", BEFORE_HELLO, WIRE_HELLO, 64, 8, 0, 0, "stripe_bytes = 0" },
	{ "chunk 100000", BEFORE_HELLO, WIRE_HELLO, 72, 8, 100000, 0, "chunk_bytes = 100000" },
	{ "chunk 4096", BEFORE_HELLO, WIRE_HELLO, 72, 8, 4096, 0, "chunk_bytes = 4096" },
	{ "chunk 2^27", BEFORE_HELLO, WIRE_HELLO, 72, 8, 1 << 27, 0, "chunk_bytes = 134217728" },
	{ "timeout 0", BEFORE_HELLO, WIRE_HELLO, 88, 4, 0, 0, "peer_timeout_ms = 0" },
	{ "timeout 99", BEFORE_HELLO, WIRE_HELLO, 88, 4, 99, 0, "peer_timeout_ms = 99" },
	{ "timeout 2^32 - 1", BEFORE_HELLO, WIRE_HELLO, 88, 4, UINT32_MAX, 0,
	  "peer_timeout_ms = 4294967295" },
	{ "first 1", BEFORE_REGIONS, WIRE_REGIONS, 8, 4, 1, 0,
	  "lists regions 1 to 2, due are 0 to 1" },
	{ "first 2^32 - 1", BEFORE_REGIONS, WIRE_REGIONS, 8, 4, UINT32_MAX, 0,
	  "first = 4294967295" },
	{ "count 0", BEFORE_REGIONS, WIRE_REGIONS, 12, 2, 0, 0, "count = 0" },
	{ "count 1 of 2", BEFORE_REGIONS, WIRE_REGIONS, 12, 2, 1, 0, "bytes too many" },
	{ "count 3 of 2", BEFORE_REGIONS, WIRE_REGIONS, 12, 2, 3, 0, "truncated in field id" },
	{ "count 65", BEFORE_REGIONS, WIRE_REGIONS, 12, 2, 65, 0, "count = 65" },
	{ "id 1 first", BEFORE_REGIONS, WIRE_REGIONS, 14, 4, 1, 0, "id 1 where 0 is due" },
	{ "id twice", BEFORE_REGIONS, WIRE_REGIONS, 47, 4, 0, 0, "id 0 where 1 is due" },
	{ "size", BEFORE_REGIONS, WIRE_REGIONS, 18, 8, 8192, 0,
	  "size of region 'ram0' differs: 8192" },
	{ "size 0", BEFORE_REGIONS, WIRE_REGIONS, 18, 8, 0, 0, "size = 0" },
	{ "gpa", BEFORE_REGIONS, WIRE_REGIONS, 26, 8, 0x1000, 0,
	  "guest address of region 'ram0' differs" },
	{ "gpa overlaps", BEFORE_REGIONS, WIRE_REGIONS, 59, 8, 0, 0,
	  "guest address of region 'ram1' differs" },
	{ "host page", BEFORE_REGIONS, WIRE_REGIONS, 34, 8, 1 << 21, 0,
	  "host page size of region 'ram0' differs" },
	{ "no name", BEFORE_REGIONS, WIRE_REGIONS, 42, 1, 0, 0, "name = 0" },
	{ "name of 64", BEFORE_REGIONS, WIRE_REGIONS, 42, 1, 64, 0, "name = 64" },
	{ "name in part", BEFORE_REGIONS, WIRE_REGIONS, 75, 1, 63, 0, "truncated in field name" },
	{ "name not ASCII", BEFORE_REGIONS, WIRE_REGIONS, 43, 1, 0x1b, 0,
	  "the byte 0x1b in field name" },
	{ "other name", BEFORE_REGIONS, WIRE_REGIONS, 43, 1, 'R', 0,
	  "name of region 0 differs: 'Ram0'" },
	{ "round 0", BEFORE_ROUND, WIRE_ROUND, 8, 4, 0, 0, "round = 0" },
	{ "round 2 first", BEFORE_ROUND, WIRE_ROUND, 8, 4, 2, 0, "round = 2, due is 1" },
	{ "final 2", BEFORE_ROUND, WIRE_ROUND, 12, 1, 2, 0, "final = 2" },
	{ "ROUND in part", BEFORE_ROUND, WIRE_ROUND, 0, 0, 0, -4,
	  "ROUND from the peer is truncated in field bytes" },
	{ "round after the final", BEFORE_STATE, WIRE_ROUND, 8, 4, 2, 0, "after the final round" },
	{ "offset 1", BEFORE_STATE, WIRE_STATE, 8, 8, 1, 0, "offset = 1, due is 0" },
	{ "offset 2^64 - 1", BEFORE_STATE, WIRE_STATE, 8, 8, UINT64_MAX, 0,
	  "offset = 18446744073709551615" },
	{ "offset again", BEFORE_STATE_END, WIRE_STATE, 8, 8, 0, 0, "offset = 0, due is 8" },
	{ "len 0", BEFORE_STATE, WIRE_STATE, 16, 2, 0, 0, "len = 0" },
	{ "len 8161", BEFORE_STATE, WIRE_STATE, 16, 2, 8161, 0, "len = 8161" },
	{ "len 9 of 8", BEFORE_STATE, WIRE_STATE, 16, 2, 9, 0, "truncated in field len" },
	{ "len 7 of 8", BEFORE_STATE, WIRE_STATE, 16, 2, 7, 0, "1 bytes too many" },
	{ "total 9 of 8", BEFORE_STATE_END, WIRE_STATE_END, 8, 8, 9, 0,
	  "total = 9, 8 bytes arrived" },
	{ "total 2^64 - 1", BEFORE_STATE_END, WIRE_STATE_END, 8, 8, UINT64_MAX, 0,
	  "total = 18446744073709551615" },
	{ "GO of 9 bytes", BEFORE_GO, WIRE_GO, 0, 0, 0, 1,
	  "GO from the peer has 1 bytes too many" },
	{ "ERROR of scope 4", BEFORE_ROUND, WIRE_ERROR, 12, 1, 4, 0, "scope = 4" },
	{ "ERROR, started 2", BEFORE_GO, WIRE_ERROR, 13, 1, 2, 0, "started = 2" },
	{ "ERROR of 401", BEFORE_ROUND, WIRE_ERROR, 14, 2, 401, 0, "len = 401" },
	{ "ERROR, code 0", BEFORE_ROUND, WIRE_ERROR, 8, 4, 0, 0,
	  "the source says: something broke" },
	{ "ERROR, code 5", BEFORE_GO, WIRE_ERROR, 8, 4, 5, 0, "the source says: something broke" },
	{ "ERROR, code -2^31", BEFORE_HELLO, WIRE_ERROR, 8, 4, 0x80000000u, 0,
	  "the source says: something" },
	{ "ERROR, control bytes", BEFORE_ROUND, WIRE_ERROR, 16, 2, 0x0a1b, 0,
	  "the source says: ??mething" },
	{ "PING of 9 bytes", BEFORE_ROUND, WIRE_PING, 0, 0, 0, 1,
	  "PING from the peer has 1 bytes" },
	{ "CANCEL in setup", BEFORE_HELLO, WIRE_CANCEL, 0, 0, 0, 0, "the source cancelled" },
};

#define NR_OFFENCES (sizeof(offences) / sizeof(offences[0]))

static void commit(void *opaque, unsigned i)
{
	char(*problems)[SCENE_PROBLEMS_MAX] = opaque;
	const struct offence *o = &offences[i];
	uint8_t buf[TRANSPORT_MSG_MAX + 64] = { 0 };
	struct victim v;
	struct peer p;

	victim_open(&v, TERN_DESTINATION, problems[i]);
	peer_init(&p, &v.vm, problems[i]);
	if (bad_source_behave(&p, &v, o->stage)) {
		size_t len = peer_message(&p, o->type, buf);

		bytes_patch(buf, o->at, o->size, o->value);
		peer_record(&p, buf, (size_t)((long)len + o->stretch));
		peer_hear_end(&p);
		peer_close(&p);
		bad_source_judge(&v, &p, o->stage, 0, o->text);
	}
	peer_close(&p);
	victim_close(&v);
}

static void offence_name(unsigned i, char *buf, size_t size)
{
	snprintf(buf, size, "%s, %s", stage_names[offences[i].stage], offences[i].name);
}

static void patched_messages(void **state)
{
	char(*problems)[SCENE_PROBLEMS_MAX] = calloc(NR_OFFENCES, sizeof(*problems));

	assert_non_null(problems);
	scene_crowd(NR_OFFENCES, commit, problems);
	assert_true(problems_tell(problems, NR_OFFENCES, offence_name));
}

/* Every well-formed message at every stage where it is not due. */
#define NR_MATRIX (STAGE_NR * (unsigned)WIRE_TYPE_NR)

static bool is_due(enum stage stage, enum wire_type type)
{
	static const enum wire_type due[] = {
		[BEFORE_HELLO] = WIRE_HELLO,     [BEFORE_REGIONS] = WIRE_REGIONS,
		[BEFORE_CHANNELS] = WIRE_PING,   [BEFORE_ROUND] = WIRE_ROUND,
		[BEFORE_STATE] = WIRE_STATE_END, [BEFORE_STATE_END] = WIRE_STATE_END,
		[BEFORE_GO] = WIRE_GO,           [BEFORE_BYE] = WIRE_BYE,
	};

	return !type || type == WIRE_PING || due[stage] == type ||
	       (stage == BEFORE_STATE && (type == WIRE_STATE || type == WIRE_STATE_END));
}

static void commit_out_of_order(void *opaque, unsigned i)
{
	char(*problems)[SCENE_PROBLEMS_MAX] = opaque;
	enum stage stage = i / WIRE_TYPE_NR;
	enum wire_type type = i % WIRE_TYPE_NR;
	char text[64], uri[320];
	struct victim v;
	struct peer p;

	if (is_due(stage, type) || (stage == BEFORE_STATE_END && type == WIRE_STATE))
		return;
	snprintf(text, sizeof(text), "message %s ", wire_type_name(type));
	if (type == WIRE_ERROR)
		snprintf(text, sizeof(text), "the source says: something broke");
	if (type == WIRE_CANCEL)
		snprintf(text, sizeof(text), "the source cancelled");
	victim_open(&v, TERN_DESTINATION, problems[i]);
	peer_init(&p, &v.vm, problems[i]);
	if (bad_source_behave(&p, &v, stage)) {
		peer_say(&p, type);
		bad_source_uri(&v, uri);
		/* Its PING shows that it has looked at what came before. */
		if (stage == BEFORE_CHANNELS && wire_from_source(type) && type != WIRE_ERROR &&
		    type != WIRE_CANCEL && peer_hear(&p, WIRE_PING, NULL, false))
			peer_attach(&p, uri);
		peer_hear_end(&p);
		peer_close(&p);
		bad_source_judge(&v, &p, stage, 0, text);
	}
	peer_close(&p);
	victim_close(&v);
}

static void matrix_name(unsigned i, char *buf, size_t size)
{
	snprintf(buf, size, "%s, message %s", stage_names[i / WIRE_TYPE_NR],
		 wire_type_name(i % WIRE_TYPE_NR));
}

static void messages_out_of_order(void **state)
{
	char(*problems)[SCENE_PROBLEMS_MAX] = calloc(NR_MATRIX, sizeof(*problems));

	assert_non_null(problems);
	scene_crowd(NR_MATRIX, commit_out_of_order, problems);
	assert_true(problems_tell(problems, NR_MATRIX, matrix_name));
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(patched_messages),
		cmocka_unit_test(messages_out_of_order),
	};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests_name("hostile source", tests, NULL, NULL);
}
