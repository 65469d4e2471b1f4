/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A hostile destination and a real source.
 *
 * Each case is a good destination up to some stage, then one offence.  Before GO the
 * source's guest must run on, after it the guest must stay paused; in both cases the
 * error names what was wrong.
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
#include "frame.h"
#include "victim.h"

/* What the destination has heard, and not yet done. */
enum owes {
	OWES_HELLO_ACK,
	OWES_REGIONS_ACK,
	OWES_CHANNELS,
	OWES_SETUP_DONE,
	OWES_FENCES, /* in a round */
	OWES_READY,
	OWES_STARTED,
	OWES_NR,
};

static const char *const owes_names[] = {
	[OWES_HELLO_ACK] = "owes HELLO_ACK", [OWES_REGIONS_ACK] = "owes REGIONS_ACK",
	[OWES_CHANNELS] = "owes channels",   [OWES_SETUP_DONE] = "owes SETUP_DONE",
	[OWES_FENCES] = "owes fences",       [OWES_READY] = "owes READY",
	[OWES_STARTED] = "owes STARTED",
};

_Static_assert(sizeof(owes_names) / sizeof(owes_names[0]) == OWES_NR, "a name per stage");

/* Behave until @stage.  False, and noted, if the source does not play along. */
static bool behave(struct peer *p, struct victim *v, enum owes stage)
{
	char uri[64];
	bool ok = peer_listen(p, uri) && !tern_session_connect(v->s, uri) && peer_accept(p) &&
		  peer_hear(p, WIRE_HELLO, NULL, false);

	if (ok && stage > OWES_HELLO_ACK)
		ok = peer_say(p, WIRE_HELLO_ACK) && peer_hear(p, WIRE_REGIONS, NULL, false);
	if (ok && stage > OWES_REGIONS_ACK)
		ok = peer_say(p, WIRE_REGIONS_ACK);
	if (ok && stage > OWES_CHANNELS)
		ok = peer_take_channels(p, 0);
	if (ok && stage > OWES_SETUP_DONE)
		ok = peer_say(p, WIRE_SETUP_DONE);
	if (ok && stage > OWES_FENCES)
		ok = peer_hear(p, WIRE_STATE_END, NULL, true);
	if (ok && stage > OWES_READY)
		ok = peer_say(p, WIRE_READY) && peer_hear(p, WIRE_GO, NULL, true);
	if (!ok)
		problem_add(v->problems, "the source does not let a good destination get to '%s'",
			    owes_names[stage]);
	return ok;
}

/* Before GO: all as if nothing had happened. */
static void judge_runs(struct victim *v)
{
	if (tern_session_outcome(v->s) != TERN_OUTCOME_SOURCE)
		problem_add(v->problems, "the outcome is %s",
			    tern_outcome_name(tern_session_outcome(v->s)));
	if (!v->vm.is_running || v->vm.pauses != v->vm.resumes)
		problem_add(v->problems, "the guest does not run on");
}

/* After GO: paused for good. */
static void judge_paused(struct victim *v, enum tern_outcome outcome)
{
	if (tern_session_outcome(v->s) != outcome)
		problem_add(v->problems, "the outcome is %s, due is %s",
			    tern_outcome_name(tern_session_outcome(v->s)),
			    tern_outcome_name(outcome));
	if (v->vm.is_running || v->vm.resumes)
		problem_add(v->problems, "the guest was resumed after GO");
}

/* The offence was committed at @stage; @text: what the source must say, NULL: nothing. */
static void judge(struct victim *v, struct peer *p, enum owes stage, enum tern_outcome outcome,
		  const char *text)
{
	if (!victim_end(v))
		return;
	if (!text) {
		if (tern_session_state(v->s) != TERN_STATE_COMPLETED)
			victim_expect_error(v, "none");
		judge_paused(v, TERN_OUTCOME_DESTINATION);
		return;
	}
	victim_expect_error(v, text);
	if (stage < OWES_STARTED)
		judge_runs(v);
	else
		judge_paused(v, outcome);
	if (p->error[0] && !word_found(p->error, text))
		problem_add(v->problems, "the peer was told '%s', due is '%s'", p->error, text);
}

/* A message with bytes patched; as in test_hostile_source.c. */
struct offence {
	const char *name;
	enum owes stage;
	enum wire_type type;
	unsigned at, size;
	uint64_t value;
	int stretch;
	const char *text; /* NULL: nothing wrong with it */
};

static const struct offence offences[] = {
	{ "type 99", OWES_HELLO_ACK, WIRE_HELLO_ACK, 0, 2, 99, 0, "unknown type 99" },
	{ "flags", OWES_HELLO_ACK, WIRE_HELLO_ACK, 2, 2, 2, 0,
	  "HELLO_ACK from the peer has flags 0x2" },
	{ "seq", OWES_HELLO_ACK, WIRE_HELLO_ACK, 4, 4, 1, 0, "sequence number 1, expected was 0" },
	{ "in part", OWES_HELLO_ACK, WIRE_HELLO_ACK, 0, 0, 0, -1,
	  "truncated in field peer_timeout_ms" },
	{ "too long", OWES_HELLO_ACK, WIRE_HELLO_ACK, 0, 0, 0, 3, "3 bytes too many" },
	{ "version 0", OWES_HELLO_ACK, WIRE_HELLO_ACK, 8, 2, 0, 0, "version = 0" },
	{ "version 2", OWES_HELLO_ACK, WIRE_HELLO_ACK, 8, 2, 2, 0, "chose protocol version 2" },
	{ "version 9", OWES_HELLO_ACK, WIRE_HELLO_ACK, 8, 2, 9, 0, "chose protocol version 9" },
	{ "no channels", OWES_HELLO_ACK, WIRE_HELLO_ACK, 10, 4, 0, 0, "channels = 0" },
	{ "3 channels of 2", OWES_HELLO_ACK, WIRE_HELLO_ACK, 10, 4, 3, 0, "chose 3 channels" },
	{ "65 channels", OWES_HELLO_ACK, WIRE_HELLO_ACK, 10, 4, 65, 0, "channels = 65" },
	{ "feature", OWES_HELLO_ACK, WIRE_HELLO_ACK, 14, 8, 1, 0, "chose features 0x1" },
	{ "chunk 0", OWES_HELLO_ACK, WIRE_HELLO_ACK, 22, 8, 0, 0, "chunk_bytes = 0" },
	{ "chunk 100000", OWES_HELLO_ACK, WIRE_HELLO_ACK, 22, 8, 100000, 0,
	  "chunk_bytes = 100000" },
	{ "chunk above ours", OWES_HELLO_ACK, WIRE_HELLO_ACK, 22, 8, 1 << 19, 0,
	  "chose chunks of 524288" },
	{ "timeout 99", OWES_HELLO_ACK, WIRE_HELLO_ACK, 30, 4, 99, 0, "peer_timeout_ms = 99" },
	{ "timeout above ours", OWES_HELLO_ACK, WIRE_HELLO_ACK, 30, 4, PEER_TIMEOUT_MS + 1, 0,
	  "chose a peer timeout of" },
	{ "no regions", OWES_REGIONS_ACK, WIRE_REGIONS_ACK, 8, 4, 0, 0, "nr_regions = 0" },
	{ "3 regions of 2", OWES_REGIONS_ACK, WIRE_REGIONS_ACK, 8, 4, 3, 0, "confirmed 3 regions" },
	{ "other size", OWES_REGIONS_ACK, WIRE_REGIONS_ACK, 12, 8, 4096, 0,
	  "confirmed 2 regions of 4096" },
	{ "1 channel of 2", OWES_SETUP_DONE, WIRE_SETUP_DONE, 8, 4, 1, 0,
	  "channels = 1, agreed were 2" },
	{ "0 channels", OWES_SETUP_DONE, WIRE_SETUP_DONE, 8, 4, 0, 0, "channels = 0" },
	{ "READY in part", OWES_READY, WIRE_READY, 0, 0, 0, -1, "truncated in field load_ns" },
	{ "READY, seq", OWES_READY, WIRE_READY, 4, 4, 1, 0,
	  "READY from the peer has sequence number 1" },
	{ "STARTED in part", OWES_STARTED, WIRE_STARTED, 0, 0, 0, -8,
	  "truncated in field waited_ns" },
	{ "STARTED, flags", OWES_STARTED, WIRE_STARTED, 2, 2, 1, 0,
	  "STARTED from the peer has flags" },
	{ "STARTED, seq", OWES_STARTED, WIRE_STARTED, 4, 4, 0, 0,
	  "STARTED from the peer has sequence" },
	{ "STARTED, resume_ns", OWES_STARTED, WIRE_STARTED, 8, 8, UINT64_MAX, 0, NULL },
	{ "STARTED, since_ns", OWES_STARTED, WIRE_STARTED, 16, 8, UINT64_MAX, 0, NULL },
	{ "STARTED, waited_ns", OWES_STARTED, WIRE_STARTED, 24, 8, UINT64_MAX, 0, NULL },
	{ "STARTED", OWES_STARTED, WIRE_STARTED, 0, 0, 0, 0, NULL },
	{ "ERROR, code 0", OWES_FENCES, WIRE_ERROR, 8, 4, 0, 0, "the destination says: something" },
	{ "ERROR, code 7", OWES_READY, WIRE_ERROR, 8, 4, 7, 0, "the destination says: something" },
	{ "ERROR, code -2^31", OWES_HELLO_ACK, WIRE_ERROR, 8, 4, 1u << 31, 0,
	  "the destination says: something" },
	{ "ERROR, control bytes", OWES_READY, WIRE_ERROR, 16, 2, 0x0a1b, 0, "says: ??mething" },
	{ "ERROR, scope 4", OWES_READY, WIRE_ERROR, 12, 1, 4, 0, "scope = 4" },
	{ "ERROR, started 2", OWES_STARTED, WIRE_ERROR, 13, 1, 2, 0, "started = 2" },
	{ "ERROR, started 1", OWES_STARTED, WIRE_ERROR, 13, 1, 1, 0,
	  "the destination says: something" },
	{ "ERROR of 401", OWES_READY, WIRE_ERROR, 14, 2, 401, 0, "len = 401" },
};

#define NR_OFFENCES (sizeof(offences) / sizeof(offences[0]))

static void commit(void *opaque, unsigned i)
{
	char(*problems)[SCENE_PROBLEMS_MAX] = opaque;
	const struct offence *o = &offences[i];
	uint8_t buf[TRANSPORT_MSG_MAX + 64] = { 0 };
	struct victim v;
	struct peer p;

	victim_open(&v, TERN_SOURCE, problems[i]);
	peer_init(&p, &v.vm, problems[i]);
	if (behave(&p, &v, o->stage)) {
		size_t len = peer_message(&p, o->type, buf);

		bytes_patch(buf, o->at, o->size, o->value);
		peer_record(&p, buf, (size_t)((long)len + o->stretch));
		peer_hear_end(&p);
		judge(&v, &p, o->stage, TERN_OUTCOME_UNKNOWN, o->text);
	}
	peer_close(&p);
	victim_close(&v);
}

static void offence_name(unsigned i, char *buf, size_t size)
{
	snprintf(buf, size, "%s, %s", owes_names[offences[i].stage], offences[i].name);
}

static void patched_messages(void **state)
{
	char(*problems)[SCENE_PROBLEMS_MAX] = calloc(NR_OFFENCES, sizeof(*problems));

	assert_non_null(problems);
	scene_crowd(NR_OFFENCES, commit, problems);
	assert_true(problems_tell(problems, NR_OFFENCES, offence_name));
}

/* Every well-formed message at every stage where it is not due. */
#define NR_MATRIX (OWES_NR * (unsigned)WIRE_TYPE_NR)

static bool is_due(enum owes stage, enum wire_type type)
{
	static const enum wire_type due[] = {
		[OWES_HELLO_ACK] = WIRE_HELLO_ACK,   [OWES_REGIONS_ACK] = WIRE_REGIONS_ACK,
		[OWES_CHANNELS] = WIRE_SETUP_DONE, /* the source cannot know that it is early */
		[OWES_SETUP_DONE] = WIRE_SETUP_DONE, [OWES_FENCES] = WIRE_PING,
		[OWES_READY] = WIRE_READY,           [OWES_STARTED] = WIRE_STARTED,
	};

	return !type || type == WIRE_PING || due[stage] == type;
}

static void commit_out_of_order(void *opaque, unsigned i)
{
	char(*problems)[SCENE_PROBLEMS_MAX] = opaque;
	enum owes stage = i / WIRE_TYPE_NR;
	enum wire_type type = i % WIRE_TYPE_NR;
	char text[64];
	struct victim v;
	struct peer p;

	if (is_due(stage, type))
		return;
	snprintf(text, sizeof(text), "message %s ", wire_type_name(type));
	if (type == WIRE_ERROR)
		snprintf(text, sizeof(text), "the destination says: something broke");
	victim_open(&v, TERN_SOURCE, problems[i]);
	peer_init(&p, &v.vm, problems[i]);
	if (behave(&p, &v, stage)) {
		peer_say(&p, type);
		if (stage == OWES_CHANNELS && wire_from_destination(type) && type != WIRE_ERROR)
			peer_take_channels(&p, 0);
		peer_hear_end(&p);
		judge(&v, &p, stage,
		      type == WIRE_ERROR ? TERN_OUTCOME_NEITHER : TERN_OUTCOME_UNKNOWN, text);
	}
	peer_close(&p);
	victim_close(&v);
}

static void matrix_name(unsigned i, char *buf, size_t size)
{
	snprintf(buf, size, "%s, message %s", owes_names[i / WIRE_TYPE_NR],
		 wire_type_name(i % WIRE_TYPE_NR));
}

static void messages_out_of_order(void **state)
{
	char(*problems)[SCENE_PROBLEMS_MAX] = calloc(NR_MATRIX, sizeof(*problems));

	assert_non_null(problems);
	scene_crowd(NR_MATRIX, commit_out_of_order, problems);
	assert_true(problems_tell(problems, NR_MATRIX, matrix_name));
}

/* ------------------------------------------------------------------- manners */

static void fall_silent(struct peer *p)
{
	peer_hear_end(p);
}

/* Keep alive, serve the channels, and do not go on. */
static void only_ping(struct peer *p)
{
	peer_ping_to_end(p, true);
}

/* Keep alive, and leave the channels alone. */
static void ignore_channels(struct peer *p)
{
	peer_ping_to_end(p, false);
}

static void hang_up(struct peer *p)
{
	peer_close(p);
}

static void say_half(struct peer *p)
{
	uint8_t buf[FRAME_CONTROL_LEN + TRANSPORT_MSG_MAX];
	size_t len = peer_message(p, WIRE_PING, buf + FRAME_CONTROL_LEN);

	frame_put_u32(buf, (uint32_t)len);
	peer_bytes(p, buf, FRAME_CONTROL_LEN + len / 2);
	peer_hear_end(p);
}

static void speak_http(struct peer *p)
{
	peer_bytes(p, "HTTP/1.1 400 Bad Request\r\n\r\n", 28);
	peer_hear_end(p);
}

static void other_framing(struct peer *p)
{
	peer_bytes(p, "\xff\xff\xff\xff\1\0\2\0", 8);
	peer_hear_end(p);
}

static void flood_pings(struct peer *p)
{
	for (unsigned i = 0; i < 20000; i++)
		peer_say(p, WIRE_PING);
	if (peer_say(p, WIRE_READY) && peer_hear(p, WIRE_GO, NULL, true))
		peer_say(p, WIRE_STARTED);
	peer_hear_end(p);
}

/* Many messages that are not due, at once: the queue holds 8. */
static void flood_ready(struct peer *p)
{
	for (unsigned i = 0; i < 1000; i++)
		peer_say(p, WIRE_READY);
	peer_hear_end(p);
}

static void unknown_session(struct peer *p)
{
	peer_take_channels(p, FRAME_STATUS_SESSION);
	peer_hear_end(p);
}

static void unknown_status(struct peer *p)
{
	peer_take_channels(p, 999);
	peer_hear_end(p);
}

/* An answer to a fence that is none; both channels, since either may be asked first. */
static void answer_fence(struct peer *p, uint8_t type, uint64_t seq)
{
	uint8_t buf[FRAME_HEADER_LEN];

	frame_header_put(buf, &(struct frame_header){ .type = type, .seq = seq });
	for (unsigned i = 0; i < PEER_CHANNELS; i++)
		peer_frame(p, i, buf, sizeof(buf));
	peer_ping_to_end(p, true);
}

static void answer_other_fence(struct peer *p)
{
	answer_fence(p, FRAME_FENCE_ACK, 7);
}

static void answer_with_end(struct peer *p)
{
	answer_fence(p, FRAME_END, 0);
}

static const struct {
	const char *name;
	enum owes stage;
	void (*act)(struct peer *p);
	const char *text;
} manners[] = {
	{ "silent", OWES_HELLO_ACK, fall_silent, "silent for|HELLO_ACK did not arrive" },
	{ "silent", OWES_REGIONS_ACK, fall_silent, "silent for|REGIONS_ACK did not" },
	{ "silent", OWES_CHANNELS, fall_silent, "silent for|channel" },
	{ "silent", OWES_SETUP_DONE, fall_silent, "silent for|SETUP_DONE did not" },
	{ "silent", OWES_FENCES, fall_silent, "silent for" },
	{ "silent", OWES_READY, fall_silent, "silent for" },
	{ "silent", OWES_STARTED, fall_silent, "silent for" },
	{ "keeps alive only", OWES_HELLO_ACK, only_ping, "HELLO_ACK did not arrive in time" },
	{ "keeps alive only", OWES_SETUP_DONE, only_ping, "SETUP_DONE did not arrive in time" },
	{ "answers no fence", OWES_FENCES, ignore_channels, "No byte moved on channel" },
	{ "keeps alive only", OWES_READY, only_ping, "READY did not arrive in time" },
	{ "keeps alive only", OWES_STARTED, only_ping, "STARTED did not arrive in time" },
	{ "hangs up", OWES_HELLO_ACK, hang_up, "without a word|reset" },
	{ "hangs up", OWES_CHANNELS, hang_up, "without a word|reset|gone|refused" },
	{ "hangs up", OWES_FENCES, hang_up, "without a word|reset|gone|Broken pipe" },
	{ "hangs up", OWES_READY, hang_up, "without a word|reset" },
	{ "hangs up", OWES_STARTED, hang_up, "without a word|reset" },
	{ "half a message", OWES_READY, say_half, "silent for" },
	{ "half a message", OWES_STARTED, say_half, "silent for" },
	{ "HTTP", OWES_HELLO_ACK, speak_http, "control message of 1347703880 bytes" },
	{ "other framing", OWES_HELLO_ACK, other_framing,
	  "speaks version 2 of the stream framing" },
	{ "unknown session", OWES_CHANNELS, unknown_session, "does not know the session" },
	{ "unknown status", OWES_CHANNELS, unknown_status, "the unknown status 999" },
	{ "wrong fence", OWES_FENCES, answer_other_fence, "answered fence 1 of channel" },
	{ "END for a fence", OWES_FENCES, answer_with_end, "answered fence 1 of channel" },
	{ "flood of PING", OWES_READY, flood_pings, NULL },
	{ "flood of READY", OWES_FENCES, flood_ready, "message READY from the peer came" },
};

#define NR_MANNERS (sizeof(manners) / sizeof(manners[0]))

static void behave_badly(void *opaque, unsigned i)
{
	char(*problems)[SCENE_PROBLEMS_MAX] = opaque;
	struct victim v;
	struct peer p;

	victim_open(&v, TERN_SOURCE, problems[i]);
	peer_init(&p, &v.vm, problems[i]);
	if (behave(&p, &v, manners[i].stage)) {
		manners[i].act(&p);
		judge(&v, &p, manners[i].stage, TERN_OUTCOME_UNKNOWN, manners[i].text);
	}
	peer_close(&p);
	victim_close(&v);
}

static void manner_name(unsigned i, char *buf, size_t size)
{
	snprintf(buf, size, "%s, %s", owes_names[manners[i].stage], manners[i].name);
}

static void bad_manners(void **state)
{
	char(*problems)[SCENE_PROBLEMS_MAX] = calloc(NR_MANNERS, sizeof(*problems));

	assert_non_null(problems);
	scene_crowd(NR_MANNERS, behave_badly, problems);
	assert_true(problems_tell(problems, NR_MANNERS, manner_name));
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(patched_messages),
		cmocka_unit_test(messages_out_of_order),
		cmocka_unit_test(bad_manners),
	};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests_name("hostile destination", tests, NULL, NULL);
}
