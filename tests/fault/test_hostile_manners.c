/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A source whose bytes are right and whose manners are not, and a real destination:
 * silent, half-said, flooding, never going on.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bad_source.h"
#include "frame.h"

/* One case: what it does, and the word that must be heard about it. */
struct manner {
	const char *name;
	enum stage stage; /* before the act */
	void (*act)(struct peer *p, struct victim *v);
	const char *text; /* NULL: the migration completes */
};

static const enum wire_type due[STAGE_NR] = {
	[BEFORE_HELLO] = WIRE_HELLO, [BEFORE_REGIONS] = WIRE_REGIONS,
	[BEFORE_ROUND] = WIRE_ROUND, [BEFORE_STATE] = WIRE_STATE,
	[BEFORE_GO] = WIRE_GO,       [BEFORE_STATE_END] = WIRE_STATE_END,
	[BEFORE_BYE] = WIRE_BYE,
};

/* The first half of the record that is due. */
static void say_half(struct peer *p, enum stage stage)
{
	uint8_t buf[FRAME_CONTROL_LEN + TRANSPORT_MSG_MAX];
	size_t len = peer_message(p, due[stage], buf + FRAME_CONTROL_LEN);

	frame_put_u32(buf, (uint32_t)len);
	peer_bytes(p, buf, FRAME_CONTROL_LEN + len / 2);
}

static void fall_silent(struct peer *p, struct victim *v)
{
	peer_hear_end(p);
}

static void hang_up(struct peer *p, struct victim *v)
{
	peer_close(p);
}

static void only_ping(struct peer *p, struct victim *v)
{
	peer_ping_to_end(p, true);
}

/* A bare connection that never says who it is. */
static void be_nobody(struct peer *p, struct victim *v)
{
	char uri[320];

	peer_close(p);
	bad_source_uri(v, uri);
	p->fd = peer_socket(p, uri);
	victim_await_word(v, "it stayed silent");
}

/* A record of a length that no message has. */
static void announce(struct peer *p, uint32_t len)
{
	uint8_t buf[FRAME_CONTROL_LEN];

	frame_put_u32(buf, len);
	peer_bytes(p, buf, sizeof(buf));
	peer_hear_end(p);
}

static void announce_8193(struct peer *p, struct victim *v)
{
	announce(p, 8193);
}

static void announce_4_gib(struct peer *p, struct victim *v)
{
	announce(p, 0xfffffffeu);
}

/* Length 0 is the orderly close. */
static void close_in_order(struct peer *p, struct victim *v)
{
	announce(p, 0);
}

/* HELLO in order, then one of two channels. */
static void attach_half(struct peer *p, struct victim *v)
{
	struct frame_preamble pre = { .version = FRAME_VERSION,
				      .kind = FRAME_KIND_DATA,
				      .count = PEER_CHANNELS };
	uint8_t buf[FRAME_PREAMBLE_LEN];
	char uri[320];

	memcpy(pre.session_id, p->id, sizeof(p->id));
	frame_preamble_put(buf, &pre);
	bad_source_uri(v, uri);
	p->data[0] = peer_socket(p, uri);
	peer_frame(p, 0, buf, sizeof(buf));
	peer_ping_to_end(p, false);
}

/* A WRITE whose payload stops half-way, on a link that is kept alive. */
static void write_half(struct peer *p, struct victim *v)
{
	const struct transport_range range = { .region = 1, .offset = 0, .len = TERN_PAGE_SIZE };
	static const struct frame_header h = { .type = FRAME_WRITE, .nr_ranges = 1 };
	uint8_t buf[FRAME_HEADER_LEN + FRAME_RANGE_LEN] = { 0 };

	frame_header_put(buf, &h);
	frame_range_put(buf + FRAME_HEADER_LEN, &range);
	peer_frame(p, 0, buf, sizeof(buf));
	peer_ping_to_end(p, true);
}

/* Finish from where ROUND is due. */
static void finish_well(struct peer *p)
{
	if (peer_say(p, WIRE_ROUND) && peer_say(p, WIRE_STATE) && peer_say(p, WIRE_STATE_END) &&
	    peer_hear(p, WIRE_READY, NULL, false) && peer_say(p, WIRE_GO) &&
	    peer_hear(p, WIRE_STARTED, NULL, false))
		peer_say(p, WIRE_BYE);
	peer_hear_end(p);
}

static void flood_pings(struct peer *p, struct victim *v)
{
	for (unsigned i = 0; i < 20000; i++)
		if (!peer_say(p, WIRE_PING))
			problem_add(v->problems, "PING %u was not taken", i);
	finish_well(p);
}

/* Rounds without end, much faster than they can be taken. */
static void flood_rounds(struct peer *p, struct victim *v)
{
	uint8_t buf[TRANSPORT_MSG_MAX];

	for (unsigned i = 1; i <= 3000; i++) {
		size_t len = peer_message(p, WIRE_ROUND, buf);

		bytes_patch(buf, 8, 4, i);
		bytes_patch(buf, 12, 1, 0);
		peer_record(p, buf, len);
	}
	size_t len = peer_message(p, WIRE_ROUND, buf);

	bytes_patch(buf, 8, 4, 3001);
	peer_record(p, buf, len);
	if (peer_say(p, WIRE_STATE) && peer_say(p, WIRE_STATE_END) &&
	    peer_hear(p, WIRE_READY, NULL, false) && peer_say(p, WIRE_GO))
		peer_hear(p, WIRE_STARTED, NULL, false);
	peer_hear_end(p);
}

/* More device state than the destination accepts (65536 bytes). */
static void flood_state(struct peer *p, struct victim *v)
{
	uint8_t buf[TRANSPORT_MSG_MAX];
	struct wire_msg m;

	for (uint64_t at = 0; at <= 65536; at += WIRE_STATE_DATA_MAX) {
		memset(&m, 0, sizeof(m));
		m.type = WIRE_STATE;
		m.seq = p->tx_seq++;
		m.state.offset = at;
		m.state.len = WIRE_STATE_DATA_MAX;
		peer_record(p, buf, wire_encode(&m, buf));
	}
	peer_hear_end(p);
}

/* GO at once behind STATE_END, without waiting for READY. */
static void go_ahead(struct peer *p, struct victim *v)
{
	atomic_store(&v->slow_load, true);
	peer_say(p, WIRE_STATE_END);
	peer_say(p, WIRE_GO);
	peer_hear_end(p);
}

/* CANCEL behind GO is too late: the guest runs. */
static void cancel_too_late(struct peer *p, struct victim *v)
{
	peer_say(p, WIRE_CANCEL);
	peer_hear_end(p);
}

static const struct manner manners[] = {
	{ "says nothing at all", BEFORE_HELLO, be_nobody, "it stayed silent" },
	{ "says HELLO and no more", BEFORE_REGIONS, fall_silent,
	  "silent for|REGIONS did not arrive in time" },
	{ "keeps alive, but sends no REGIONS", BEFORE_REGIONS, only_ping,
	  "REGIONS did not arrive" },
	{ "opens no channels", BEFORE_CHANNELS, only_ping, "channels" },
	{ "opens one of two channels", BEFORE_CHANNELS, attach_half, "channels" },
	{ "silent in a round", BEFORE_ROUND, fall_silent, "silent for" },
	{ "silent before STATE", BEFORE_STATE, fall_silent, "silent for" },
	{ "silent before STATE_END", BEFORE_STATE_END, fall_silent, "silent for" },
	{ "silent before GO", BEFORE_GO, fall_silent, "silent for" },
	{ "keeps alive, but sends no GO", BEFORE_GO, only_ping, "GO did not arrive in time" },
	{ "silent instead of BYE", BEFORE_BYE, fall_silent, NULL },
	{ "hangs up before REGIONS", BEFORE_REGIONS, hang_up,
	  "closed the connection without a word" },
	{ "hangs up before channels", BEFORE_CHANNELS, hang_up, "without a word" },
	{ "hangs up in a round", BEFORE_ROUND, hang_up, "without a word" },
	{ "hangs up before GO", BEFORE_GO, hang_up, "without a word" },
	{ "hangs up instead of BYE", BEFORE_BYE, hang_up, NULL },
	{ "closes in a round", BEFORE_ROUND, close_in_order, "the peer closed the connection" },
	{ "closes before GO", BEFORE_GO, close_in_order, "the peer closed the connection" },
	{ "announces 8193 bytes", BEFORE_REGIONS, announce_8193, "control message of 8193 bytes" },
	{ "announces 4 GiB", BEFORE_ROUND, announce_4_gib, "control message of 4294967294 bytes" },
	{ "announces 8193 bytes before GO", BEFORE_GO, announce_8193, "of 8193 bytes" },
	{ "half a WRITE", BEFORE_ROUND, write_half, "No byte moved on channel 0" },
	{ "a flood of PING", BEFORE_ROUND, flood_pings, NULL },
	{ "a flood of ROUND", BEFORE_ROUND, flood_rounds, NULL },
	{ "a flood of STATE", BEFORE_STATE, flood_state, "larger than 65536 bytes" },
	{ "GO before READY", BEFORE_STATE_END, go_ahead,
	  "message GO from the peer came before READY" },
	{ "CANCEL after GO", BEFORE_BYE, cancel_too_late, NULL },
};

#define NR_MANNERS (sizeof(manners) / sizeof(manners[0]))

static void behave_badly(void *opaque, unsigned i)
{
	char(*problems)[SCENE_PROBLEMS_MAX] = opaque;
	const struct manner *m = &manners[i];
	struct victim v;
	struct peer p;

	victim_open(&v, TERN_DESTINATION, problems[i]);
	peer_init(&p, &v.vm, problems[i]);
	if (bad_source_behave(&p, &v, m->stage)) {
		m->act(&p, &v);
		peer_close(&p);
		bad_source_judge(&v, &p, m->text ? m->stage : BEFORE_BYE, 0,
				 m->text ? m->text : "");
	}
	peer_close(&p);
	victim_close(&v);
}

static void manner_name(unsigned i, char *buf, size_t size)
{
	snprintf(buf, size, "%s", manners[i].name);
}

static void bad_manners(void **state)
{
	char(*problems)[SCENE_PROBLEMS_MAX] = calloc(NR_MANNERS, sizeof(*problems));

	assert_non_null(problems);
	scene_crowd(NR_MANNERS, behave_badly, problems);
	assert_true(problems_tell(problems, NR_MANNERS, manner_name));
}

/* Half a message at each stage, then silence (even) or the end of the line (odd). */
#define NR_HALVES (2u * STAGE_NR)

static void stop_half_way(void *opaque, unsigned i)
{
	char(*problems)[SCENE_PROBLEMS_MAX] = opaque;
	enum stage stage = i / 2;
	struct victim v;
	struct peer p;

	if (stage == BEFORE_CHANNELS)
		return;
	victim_open(&v, TERN_DESTINATION, problems[i]);
	peer_init(&p, &v.vm, problems[i]);
	if (bad_source_behave(&p, &v, stage)) {
		bool first = stage == BEFORE_HELLO;

		say_half(&p, stage);
		if (i % 2)
			peer_close(&p);
		else
			peer_hear_end(&p);
		bad_source_judge(
			&v, &p, stage, 0,
			i % 2 ? (first ? "closed before it had said who it is" : "without a word")
			      : (first ? "did not say in time"
				       : "silent for|did not arrive in time"));
	}
	peer_close(&p);
	victim_close(&v);
}

static void half_name(unsigned i, char *buf, size_t size)
{
	snprintf(buf, size, "half of %s, then %s", wire_type_name(due[i / 2]),
		 i % 2 ? "hangs up" : "silence");
}

static void half_messages(void **state)
{
	char(*problems)[SCENE_PROBLEMS_MAX] = calloc(NR_HALVES, sizeof(*problems));

	assert_non_null(problems);
	scene_crowd(NR_HALVES, stop_half_way, problems);
	assert_true(problems_tell(problems, NR_HALVES, half_name));
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(bad_manners),
		cmocka_unit_test(half_messages),
	};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests_name("hostile manners", tests, NULL, NULL);
}
