/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Peers that break the rules of postcopy.
 *
 *	source, before GO	the destination's session fails, its guest never runs
 *	source, after GO	the destination's guest runs on, and waits for its source
 *	source, recovering	turned away; the right one is taken afterwards
 *	destination, before GO	the source's guest runs on
 *	destination, after GO	the source is paused with all its pages, and does not run
 *
 * In each case the victim says what was wrong, by message and field.  The victim's memory
 * is private, so pages come in CONTENTS.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bad_source.h"
#include "frame.h"
#include "leave_out.h"
#include "monitor.h"
#include "uffd.h"
#include "victim.h"

#define PAGE ((size_t)TERN_PAGE_SIZE)
#define ALL_PAGES (16 + 4) /* of the victim's two regions */

/* Wait for a state; false, and noted, if it does not come. */
static bool await_state(struct victim *v, enum tern_state state)
{
	uint64_t until = deadline_ns(SCENE_BOUND_MS);

	while (tern_session_state(v->s) != state) {
		if (now_ns() > until) {
			problem_add(v->problems, "the state is %s, due is %s",
				    tern_state_name(tern_session_state(v->s)),
				    tern_state_name(state));
			return false;
		}
		usleep(500);
	}
	return true;
}

/* ------------------------------------------------------------- hostile sources */

/* How far the source behaves. */
enum reach {
	LACKS_NOTHING, /* channels are there, no MISSING yet */
	LACKS_FIRST, /* MISSING of region 0 */
	LACKS_ALL,
	ARMED, /* POSTCOPY */
	READY, /* state was loaded */
	RUNNING, /* STARTED came */
};

static const char *const reach_names[] = {
	[LACKS_NOTHING] = "before MISSING",
	[LACKS_FIRST] = "within MISSING",
	[LACKS_ALL] = "before POSTCOPY",
	[ARMED] = "after POSTCOPY",
	[READY] = "before GO",
	[RUNNING] = "after GO",
};

/* MISSING with @runs for @region from page @first on. */
static bool say_missing(struct peer *p, uint32_t region, uint64_t first, const void *runs,
			size_t len)
{
	struct wire_msg m = { .type = WIRE_MISSING, .seq = p->tx_seq++ };
	uint8_t buf[TRANSPORT_MSG_MAX];

	m.missing.region = region;
	m.missing.first_page = first;
	m.missing.len = (uint16_t)len;
	memcpy(m.missing.runs, runs, len);
	return peer_record(p, buf, wire_encode(&m, buf));
}

static bool say_postcopy(struct peer *p, uint64_t pages)
{
	struct wire_msg m = { .type = WIRE_POSTCOPY,
			      .seq = p->tx_seq++,
			      .postcopy = { .missing_pages = pages } };
	uint8_t buf[TRANSPORT_MSG_MAX];

	return peer_record(p, buf, wire_encode(&m, buf));
}

static bool behave(struct peer *p, struct victim *v, enum reach reach)
{
	bool ok = bad_source_behave(p, v, BEFORE_ROUND);

	if (ok && reach > LACKS_NOTHING)
		ok = say_missing(p, 0, 0, "\0\x10", 2);
	if (ok && reach > LACKS_FIRST)
		ok = say_missing(p, 1, 0, "\0\4", 2);
	if (ok && reach > LACKS_ALL)
		ok = say_postcopy(p, ALL_PAGES);
	if (ok && reach > ARMED)
		ok = peer_say(p, WIRE_STATE) && peer_say(p, WIRE_STATE_END) &&
		     peer_hear(p, WIRE_READY, NULL, false);
	if (ok && reach > READY)
		ok = peer_say(p, WIRE_GO) && peer_hear(p, WIRE_STARTED, NULL, false);
	if (!ok)
		problem_add(v->problems, "the destination does not let a good source get to '%s'",
			    reach_names[reach]);
	return ok;
}

/* Control messages that are not welcome. */
static const struct {
	const char *name;
	enum reach reach;
	enum wire_type type; /* 0: MISSING of what follows */
	uint32_t region;
	uint64_t first; /* or POSTCOPY: pages */
	const char *runs;
	size_t len;
	const char *text;
} messages[] = {
	{ "region 2 of 2", LACKS_NOTHING, 0, 2, 0, "\0\1", 2,
	  "MISSING from the peer has region = 2, there are 2" },
	{ "a page twice", LACKS_FIRST, 0, 0, 0, "\7\1", 2,
	  "MISSING from the peer has runs that do not fit region 'ram0'" },
	{ "a run beyond the end", LACKS_NOTHING, 0, 0, 0, "\0\x11", 2,
	  "MISSING from the peer has runs that do not fit region 'ram0' of 16 pages" },
	{ "a gap beyond the end", LACKS_FIRST, 0, 1, 0, "\5\1", 2, "do not fit region 'ram1'" },
	{ "first_page at the end", LACKS_FIRST, 0, 1, 4, "\0\1", 2,
	  "do not fit region 'ram1' of 4 pages, from page 4 on" },
	{ "first_page far behind it", LACKS_FIRST, 0, 1, 1ull << 39, "\0\1", 2,
	  "MISSING from the peer has runs" },
	{ "an empty run", LACKS_NOTHING, 0, 0, 0, "\1\0", 2, "do not fit region 'ram0'" },
	{ "half a run", LACKS_NOTHING, 0, 0, 0, "\1", 1, "do not fit region 'ram0'" },
	{ "a number of ten bytes", LACKS_NOTHING, 0, 0, 0,
	  "\0\x80\x80\x80\x80\x80\x80\x80\x80\x80\1", 11, "do not fit region 'ram0'" },
	{ "MISSING", ARMED, 0, 1, 0, "\0\1", 2, "MISSING from the peer came after POSTCOPY" },
	{ "a page too many", LACKS_ALL, WIRE_POSTCOPY, 0, ALL_PAGES + 1, "", 0,
	  "POSTCOPY from the peer has missing_pages = 21, its MISSING list 20" },
	{ "no pages", LACKS_ALL, WIRE_POSTCOPY, 0, 0, "", 0, "missing_pages = 0" },
	{ "POSTCOPY of pages that were not listed", LACKS_NOTHING, WIRE_POSTCOPY, 0, ALL_PAGES, "",
	  0, "missing_pages = 20, its MISSING list 0" },
	{ "POSTCOPY", ARMED, WIRE_POSTCOPY, 0, ALL_PAGES, "", 0,
	  "POSTCOPY from the peer came twice" },
	{ "a final ROUND", LACKS_NOTHING, WIRE_ROUND, 0, 0, "", 0,
	  "ROUND from the peer is final, POSTCOPY was agreed on" },
	{ "STATE", LACKS_ALL, WIRE_STATE, 0, 0, "", 0, "STATE from the peer before the final" },
	{ "GO", LACKS_ALL, WIRE_GO, 0, 0, "", 0, "message GO from the peer" },
	{ "GO", ARMED, WIRE_GO, 0, 0, "", 0, "message GO from the peer" },
	{ "RECOVER", READY, WIRE_RECOVER, 0, 0, "", 0, "message RECOVER from the peer" },
	{ "COMPLETE", READY, WIRE_COMPLETE, 0, 0, "", 0, "only the destination sends it" },
	{ "STATE", RUNNING, WIRE_STATE, 0, 0, "", 0,
	  "message STATE from the peer came while pages are missing" },
	{ "GO again", RUNNING, WIRE_GO, 0, 0, "", 0, "message GO from the peer" },
	{ "POSTCOPY", RUNNING, WIRE_POSTCOPY, 0, ALL_PAGES, "", 0, "message POSTCOPY" },
	{ "BYE", RUNNING, WIRE_BYE, 0, 0, "", 0, "message BYE from the peer" },
	{ "CANCEL", RUNNING, WIRE_CANCEL, 0, 0, "", 0, "the source cancelled" },
	{ "ERROR", RUNNING, WIRE_ERROR, 0, 0, "", 0, "the source says: something broke" },
	{ "PAGES_WANTED", RUNNING, WIRE_PAGES_WANTED, 0, 0, "", 0, "only the destination sends" },
};

#define NR_MESSAGES (sizeof(messages) / sizeof(messages[0]))

/* What became of the destination that was offended at @reach? */
static void judge_destination(struct victim *v, enum reach reach, const char *text)
{
	if (reach < RUNNING) {
		if (!victim_end(v))
			return;
		victim_expect_error(v, text);
		if (tern_session_outcome(v->s) != TERN_OUTCOME_SOURCE || v->vm.resumes)
			problem_add(v->problems, "the guest ran before GO");
		return;
	}
	victim_await_word(v, text);
	await_state(v, TERN_STATE_POSTCOPY_PAUSED);
	if (!v->vm.is_running || tern_session_outcome(v->s) != TERN_OUTCOME_NONE)
		problem_add(v->problems, "the guest that was started was lost");
}

static void send_message(void *opaque, unsigned i)
{
	char(*problems)[SCENE_PROBLEMS_MAX] = opaque;
	struct victim v;
	struct peer p;

	victim_open(&v, TERN_DESTINATION, problems[i]);
	peer_init(&p, &v.vm, problems[i]);
	p.postcopy = true;
	if (behave(&p, &v, messages[i].reach)) {
		if (!messages[i].type)
			say_missing(&p, messages[i].region, messages[i].first, messages[i].runs,
				    messages[i].len);
		else if (messages[i].type == WIRE_POSTCOPY)
			say_postcopy(&p, messages[i].first);
		else
			peer_say(&p, messages[i].type);
		peer_hear_end(&p);
		judge_destination(&v, messages[i].reach, messages[i].text);
	}
	peer_close(&p);
	victim_close(&v);
}

static void message_name(unsigned i, char *buf, size_t size)
{
	snprintf(buf, size, "%s: %s", reach_names[messages[i].reach], messages[i].name);
}

static void need_userfaultfd(void)
{
	struct tern_error err = { 0 };
	struct uffd u;

	if (uffd_open(&u, 0, &err))
		leave_out("userfaultfd", err.message);
	uffd_close(&u);
}

static void messages_of_a_source(void **state)
{
	char(*problems)[SCENE_PROBLEMS_MAX] = calloc(NR_MESSAGES, sizeof(*problems));

	need_userfaultfd();
	assert_non_null(problems);
	scene_crowd(NR_MESSAGES, send_message, problems);
	assert_true(problems_tell(problems, NR_MESSAGES, message_name));
}

/* --------------------------------------------------------------------- channels */

/* A notify about one range on channel @i. */
static void notify(struct peer *p, unsigned i, enum wire_notify_type type, uint32_t region,
		   uint64_t first, uint64_t nr)
{
	const struct wire_ranges ranges = { 1, { { region, first, nr } } };
	uint8_t buf[FRAME_HEADER_LEN + TRANSPORT_NOTIFY_MAX];
	size_t len = wire_ranges_encode(type, &ranges, buf + FRAME_HEADER_LEN);

	frame_header_put(buf,
			 &(struct frame_header){ .type = FRAME_NOTIFY, .length = (uint32_t)len });
	peer_frame(p, i, buf, FRAME_HEADER_LEN + len);
}

/* CONTENTS of @bytes, all of them @byte, for pages from @first on, on channel @i. */
static void contents(struct peer *p, unsigned i, uint32_t region, uint64_t first, size_t bytes,
		     uint8_t byte)
{
	const struct wire_notify n = { .type = WIRE_NOTIFY_CONTENTS,
				       .contents = { region, first } };
	uint8_t buf[FRAME_HEADER_LEN + TRANSPORT_NOTIFY_MAX + 3 * TERN_PAGE_SIZE];
	size_t len = wire_notify_encode(&n, buf + FRAME_HEADER_LEN);

	frame_header_put(buf, &(struct frame_header){ .type = bytes ? FRAME_PUSH : FRAME_NOTIFY,
						      .length = (uint32_t)len,
						      .contents = bytes });
	memset(buf + FRAME_HEADER_LEN + len, byte, bytes);
	peer_frame(p, i, buf, FRAME_HEADER_LEN + len + bytes);
}

static void contents_twice(struct peer *p)
{
	contents(p, 0, 0, 3, PAGE, 0x11);
	contents(p, 0, 0, 3, PAGE, 0x22);
}

static void contents_on_both_channels(struct peer *p)
{
	contents(p, 0, 0, 3, PAGE, 0x11);
	contents(p, 1, 0, 3, PAGE, 0x11);
}

static void contents_over_contents(struct peer *p)
{
	contents(p, 0, 0, 4, PAGE, 0x11);
	contents(p, 0, 0, 3, 3 * PAGE, 0x22);
}

static void contents_after_empty(struct peer *p)
{
	notify(p, 0, WIRE_NOTIFY_EMPTY, 0, 3, 1);
	contents(p, 0, 0, 3, PAGE, 0x22);
}

static void zero_after_contents(struct peer *p)
{
	contents(p, 0, 0, 3, PAGE, 0x11);
	notify(p, 0, WIRE_NOTIFY_ZERO, 0, 3, 1);
}

static void contents_of_no_region(struct peer *p)
{
	contents(p, 0, 2, 0, PAGE, 0x11);
}

static void contents_over_the_end(struct peer *p)
{
	contents(p, 0, 1, 3, 2 * PAGE, 0x11);
}

static void contents_far_behind_the_end(struct peer *p)
{
	contents(p, 0, 1, 1ull << 40, PAGE, 0x11);
}

static void contents_of_half_a_page(struct peer *p)
{
	contents(p, 0, 0, 0, PAGE / 2, 0x11);
}

static void contents_without_any(struct peer *p)
{
	contents(p, 0, 0, 0, 0, 0);
}

static void placed_of_private_memory(struct peer *p)
{
	notify(p, 0, WIRE_NOTIFY_PLACED, 0, 0, 1);
}

static void placed_over_the_end(struct peer *p)
{
	notify(p, 1, WIRE_NOTIFY_PLACED, 1, 0, 5);
}

static void empty_over_the_end(struct peer *p)
{
	notify(p, 1, WIRE_NOTIFY_EMPTY, 1, 4, 1);
}

static void zero_of_no_region(struct peer *p)
{
	notify(p, 1, WIRE_NOTIFY_ZERO, 7, 0, 1);
}

/* A WRITE, which only shared memory takes. */
static void write_to_private_memory(struct peer *p)
{
	const struct transport_range range = { .region = 0, .offset = 0, .len = PAGE };
	uint8_t buf[FRAME_HEADER_LEN + FRAME_RANGE_LEN + TERN_PAGE_SIZE];

	frame_header_put(buf, &(struct frame_header){ .type = FRAME_WRITE, .nr_ranges = 1 });
	frame_range_put(buf + FRAME_HEADER_LEN, &range);
	memset(buf + FRAME_HEADER_LEN + FRAME_RANGE_LEN, 0x33, PAGE);
	peer_frame(p, 0, buf, sizeof(buf));
}

static const struct {
	const char *name;
	void (*act)(struct peer *p);
	const char *text;
	uint8_t page3; /* what page 3 of region 0 holds afterwards; 0xff: no matter */
} pages[] = {
	{ "CONTENTS twice", contents_twice,
	  "message CONTENTS from the peer brings pages 3 + 1 of region 'ram0'", 0x11 },
	{ "CONTENTS on both channels", contents_on_both_channels, "a page is placed once", 0x11 },
	{ "CONTENTS over CONTENTS", contents_over_contents, "brings pages 3 + 3 of region 'ram0'",
	  0xff },
	{ "CONTENTS after EMPTY", contents_after_empty, "message CONTENTS from the peer brings",
	  0 },
	{ "ZERO after CONTENTS", zero_after_contents, "message ZERO from the peer brings", 0x11 },
	{ "CONTENTS of region 2", contents_of_no_region, "CONTENTS from the peer has region = 2",
	  0xff },
	{ "CONTENTS over the end", contents_over_the_end, "has pages 3 + 2 of region 'ram1'",
	  0xff },
	{ "CONTENTS far behind it", contents_far_behind_the_end, "CONTENTS from the peer has",
	  0xff },
	{ "half a page", contents_of_half_a_page, "brings 2048 bytes, which are no whole pages",
	  0xff },
	{ "no contents", contents_without_any, "came with 0 bytes of contents on channel 0", 0xff },
	{ "PLACED of private memory", placed_of_private_memory,
	  "message PLACED from the peer brings", 0xff },
	{ "PLACED over the end", placed_over_the_end, "PLACED from the peer has pages 0 + 5",
	  0xff },
	{ "EMPTY over the end", empty_over_the_end, "EMPTY from the peer has pages 4 + 1", 0xff },
	{ "ZERO of region 7", zero_of_no_region, "ZERO from the peer has region = 7", 0xff },
	{ "WRITE to private memory", write_to_private_memory,
	  "a write from the peer is for region 'ram0', whose pages have to come in messages",
	  0xff },
};

#define NR_PAGE_CASES (sizeof(pages) / sizeof(pages[0]))

/* Pages that may not come; with and without a guest that runs. */
static void send_pages(void *opaque, unsigned i)
{
	char(*problems)[SCENE_PROBLEMS_MAX] = opaque;
	enum reach reach = i % 2 ? RUNNING : READY;
	uint8_t due = pages[i / 2].page3;
	struct victim v;
	struct peer p;

	victim_open(&v, TERN_DESTINATION, problems[i]);
	peer_init(&p, &v.vm, problems[i]);
	p.postcopy = true;
	if (behave(&p, &v, reach)) {
		pages[i / 2].act(&p);
		peer_ping_to_end(&p, true);
		judge_destination(&v, reach, pages[i / 2].text);
		/* A page that is here is read without waiting. */
		if (due != 0xff && v.vm.ram[0][3 * PAGE + 7] != due)
			problem_add(problems[i], "page 3 holds 0x%x, due is 0x%x",
				    v.vm.ram[0][3 * PAGE + 7], due);
	}
	peer_close(&p);
	victim_close(&v);
}

static void page_name(unsigned i, char *buf, size_t size)
{
	snprintf(buf, size, "%s: %s", reach_names[i % 2 ? RUNNING : READY], pages[i / 2].name);
}

static void pages_of_a_source(void **state)
{
	char(*problems)[SCENE_PROBLEMS_MAX] = calloc(2 * NR_PAGE_CASES, sizeof(*problems));

	need_userfaultfd();
	assert_non_null(problems);
	scene_crowd(2 * NR_PAGE_CASES, send_pages, problems);
	assert_true(problems_tell(problems, 2 * NR_PAGE_CASES, page_name));
}

/* --------------------------------------------------------------------- recovery */

/* A RECOVER with bytes patched, by offsets of docs/protocol.md; or another message. */
static const struct {
	const char *name;
	enum wire_type type;
	unsigned at, size;
	uint64_t value;
	int stretch;
	const char *text;
} recovers[] = {
	{ "version 9", WIRE_RECOVER, 8, 2, 9, 0, "the source speaks 9, the destination 1 to 1" },
	{ "version 0", WIRE_RECOVER, 8, 2, 0, 0, "version = 0" },
	{ "no channels", WIRE_RECOVER, 10, 4, 0, 0, "channels = 0" },
	{ "65 channels", WIRE_RECOVER, 10, 4, 65, 0, "channels = 65" },
	{ "chunk 100000", WIRE_RECOVER, 14, 8, 100000, 0, "RECOVER has chunk_bytes = 100000" },
	{ "timeout 99", WIRE_RECOVER, 22, 4, 99, 0, "RECOVER has peer_timeout_ms = 99" },
	{ "another session", WIRE_RECOVER, 26, 1, 0, 0, "RECOVER names another session" },
	{ "in part", WIRE_RECOVER, 0, 0, 0, -1, "truncated in field session_id" },
	{ "too long", WIRE_RECOVER, 0, 0, 0, 1, "1 bytes too many" },
	{ "HELLO", WIRE_HELLO, 0, 0, 0, 0, "HELLO from the peer came where RECOVER was expected" },
	{ "GO", WIRE_GO, 0, 0, 0, 0, "message GO from the peer came where RECOVER" },
	{ "STATE", WIRE_STATE, 0, 0, 0, 0, "message STATE from the peer came where RECOVER" },
	{ "RECOVER_ACK", WIRE_RECOVER_ACK, 0, 0, 0, 0, "only the destination sends it" },
	{ "ERROR", WIRE_ERROR, 0, 0, 0, 0, "the source says: something broke" },
};

#define NR_RECOVERS (sizeof(recovers) / sizeof(recovers[0]))

/* A new control connection, with the same session id. */
static bool connect_anew(struct peer *p, struct victim *v)
{
	char uri[320];

	peer_close(p);
	p->tx_seq = 0;
	p->error[0] = 0;
	bad_source_uri(v, uri);
	return peer_connect(p, uri);
}

/* The right source comes, and brings all pages. */
static void recover_well(struct peer *p, struct victim *v)
{
	struct wire_msg ack;
	char uri[320];

	bad_source_uri(v, uri);
	if (!connect_anew(p, v) || !peer_say(p, WIRE_RECOVER) ||
	    !peer_hear(p, WIRE_RECOVER_ACK, &ack, false) ||
	    !peer_hear(p, WIRE_MISSING, NULL, false) || !peer_hear(p, WIRE_MISSING, NULL, false) ||
	    !peer_attach(p, uri) || !peer_hear(p, WIRE_SETUP_DONE, NULL, false)) {
		problem_add(v->problems, "the right source cannot recover");
		return;
	}
	if (ack.recover_ack.missing_pages != ALL_PAGES)
		problem_add(v->problems, "%u pages are missing, due are %u",
			    (unsigned)ack.recover_ack.missing_pages, ALL_PAGES);
	contents(p, 0, 0, 0, PAGE, 0x44);
	notify(p, 0, WIRE_NOTIFY_EMPTY, 0, 1, 15);
	notify(p, 1, WIRE_NOTIFY_EMPTY, 1, 0, 4);
	if (peer_hear(p, WIRE_COMPLETE, NULL, false))
		peer_say(p, WIRE_BYE);
	if (victim_end(v) && tern_session_state(v->s) != TERN_STATE_COMPLETED)
		problem_add(v->problems, "it did not complete");
	victim_expect_ram(v, 0x44);
}

static void send_recover(void *opaque, unsigned i)
{
	char(*problems)[SCENE_PROBLEMS_MAX] = opaque;
	uint8_t buf[TRANSPORT_MSG_MAX + 64] = { 0 };
	struct victim v;
	struct peer p;

	victim_open(&v, TERN_DESTINATION, problems[i]);
	peer_init(&p, &v.vm, problems[i]);
	p.postcopy = true;
	if (behave(&p, &v, RUNNING)) {
		peer_close(&p);
		if (await_state(&v, TERN_STATE_POSTCOPY_PAUSED) && connect_anew(&p, &v)) {
			size_t len = peer_message(&p, recovers[i].type, buf);

			bytes_patch(buf, recovers[i].at, recovers[i].size, recovers[i].value);
			peer_record(&p, buf, (size_t)((long)len + recovers[i].stretch));
			peer_hear_end(&p);
			victim_await_word(&v, recovers[i].text);
			if (p.error[0] && !word_found(p.error, recovers[i].text))
				problem_add(problems[i], "the peer was told '%s'", p.error);
			await_state(&v, TERN_STATE_POSTCOPY_PAUSED);
			recover_well(&p, &v);
		}
	}
	peer_close(&p);
	victim_close(&v);
}

static void recover_name(unsigned i, char *buf, size_t size)
{
	snprintf(buf, size, "recovery: %s", recovers[i].name);
}

static void recoveries_of_a_source(void **state)
{
	char(*problems)[SCENE_PROBLEMS_MAX] = calloc(NR_RECOVERS, sizeof(*problems));

	need_userfaultfd();
	assert_non_null(problems);
	scene_crowd(NR_RECOVERS, send_recover, problems);
	assert_true(problems_tell(problems, NR_RECOVERS, recover_name));
}

/* --------------------------------------------------------- hostile destinations */

enum owes {
	OWES_SETUP_DONE,
	OWES_READY, /* MISSING, POSTCOPY and all state came */
	OWES_PAGES, /* nothing: the guest runs, and may ask */
	OWES_NR,
};

static const char *const owes_names[] = {
	[OWES_SETUP_DONE] = "owes SETUP_DONE",
	[OWES_READY] = "owes READY",
	[OWES_PAGES] = "runs",
};

static bool serve(struct peer *p, struct victim *v, enum owes stage)
{
	char uri[64];

	tern_session_set(v->s, TERN_PARAM_MODE, TERN_MODE_POSTCOPY);
	tern_session_set(v->s, TERN_PARAM_CHANNELS, PEER_CHANNELS - 1);
	tern_session_set(v->s, TERN_PARAM_MAX_POSTCOPY_BANDWIDTH, 1024);
	bool ok = peer_listen(p, uri) && !tern_session_connect(v->s, uri) && peer_accept(p) &&
		  peer_hear(p, WIRE_HELLO, NULL, false) && peer_say(p, WIRE_HELLO_ACK) &&
		  peer_hear(p, WIRE_REGIONS, NULL, false) && peer_say(p, WIRE_REGIONS_ACK) &&
		  peer_take_channels(p, 0);

	if (ok && stage > OWES_SETUP_DONE)
		ok = peer_say(p, WIRE_SETUP_DONE) && peer_hear(p, WIRE_MISSING, NULL, true) &&
		     peer_hear(p, WIRE_MISSING, NULL, true) &&
		     peer_hear(p, WIRE_POSTCOPY, NULL, true) &&
		     peer_hear(p, WIRE_STATE_END, NULL, true);
	if (ok && stage > OWES_READY)
		ok = peer_say(p, WIRE_READY) && peer_hear(p, WIRE_GO, NULL, true) &&
		     peer_say(p, WIRE_STARTED) && await_state(v, TERN_STATE_POSTCOPY_ACTIVE);
	if (!ok)
		problem_add(v->problems, "the source does not let a good destination get to '%s'",
			    owes_names[stage]);
	return ok;
}

/* PAGES_WANTED for pages that are not. */
static const struct {
	const char *name;
	struct wire_page_range range;
	const char *text;
} wanted[] = {
	{ "region 2 of 2", { 2, 0, 1 }, "PAGES_WANTED from the peer has region = 2, there are 2" },
	{ "behind the end", { 1, 4, 1 }, "has pages 4 + 1 of region 'ram1', it has 4" },
	{ "over the end", { 0, 15, 2 }, "has pages 15 + 2 of region 'ram0', it has 16" },
	{ "far behind", { 0, 1ull << 39, 1 }, "PAGES_WANTED from the peer has pages 549755813888" },
	{ "more than a host page",
	  { 0, 3, 2 },
	  "PAGES_WANTED from the peer has nr_pages = 2 for region 'ram0', whose host pages have "
	  "1" },
	{ "all", { 0, 0, 16 }, "nr_pages = 16 for region 'ram0'" },
};

#define NR_WANTED (sizeof(wanted) / sizeof(wanted[0]))

/* A good request, and the bad one behind it in one message. */
static bool say_wanted(struct peer *p, const struct wire_page_range *bad)
{
	struct wire_msg m = { .type = WIRE_PAGES_WANTED, .seq = p->tx_seq++ };
	uint8_t buf[TRANSPORT_MSG_MAX];

	m.wanted.count = bad ? 2 : 1;
	m.wanted.v[0] = (struct wire_page_range){ 0, 9, 1 };
	if (bad)
		m.wanted.v[1] = *bad;
	return peer_record(p, buf, wire_encode(&m, buf));
}

static void judge_source(struct victim *v, enum owes stage, const char *text)
{
	if (stage < OWES_PAGES) {
		if (!victim_end(v))
			return;
		victim_expect_error(v, text);
		if (tern_session_outcome(v->s) != TERN_OUTCOME_SOURCE || !v->vm.is_running ||
		    v->vm.pauses != v->vm.resumes)
			problem_add(v->problems, "the guest does not run on");
		return;
	}
	victim_await_word(v, text);
	await_state(v, TERN_STATE_POSTCOPY_PAUSED);
	if (v->vm.is_running || v->vm.resumes)
		problem_add(v->problems, "the guest was resumed after GO");
}

static void send_wanted(void *opaque, unsigned i)
{
	char(*problems)[SCENE_PROBLEMS_MAX] = opaque;
	enum owes stage = i % 2 ? OWES_PAGES : OWES_READY;
	struct victim v;
	struct peer p;

	victim_open(&v, TERN_SOURCE, problems[i]);
	peer_init(&p, &v.vm, problems[i]);
	p.postcopy = true;
	if (serve(&p, &v, stage)) {
		say_wanted(&p, &wanted[i / 2].range);
		peer_hear_end(&p);
		judge_source(&v, stage, wanted[i / 2].text);
	}
	peer_close(&p);
	victim_close(&v);
}

static void wanted_name(unsigned i, char *buf, size_t size)
{
	snprintf(buf, size, "%s: %s", owes_names[i % 2 ? OWES_PAGES : OWES_READY],
		 wanted[i / 2].name);
}

static void requests_for_pages_that_are_not(void **state)
{
	char(*problems)[SCENE_PROBLEMS_MAX] = calloc(2 * NR_WANTED, sizeof(*problems));

	assert_non_null(problems);
	scene_crowd(2 * NR_WANTED, send_wanted, problems);
	assert_true(problems_tell(problems, 2 * NR_WANTED, wanted_name));
}

/* Messages at a moment where they are not welcome. */
static const struct {
	enum owes stage;
	enum wire_type type;
	const char *text;
} early[] = {
	{ OWES_SETUP_DONE, WIRE_PAGES_WANTED,
	  "PAGES_WANTED from the peer, whose guest was not told of missing pages" },
	{ OWES_SETUP_DONE, WIRE_COMPLETE, "message COMPLETE from the peer came where SETUP_DONE" },
	{ OWES_SETUP_DONE, WIRE_MISSING, "message MISSING from the peer came where SETUP_DONE" },
	{ OWES_READY, WIRE_COMPLETE, "message COMPLETE from the peer came where READY" },
	{ OWES_READY, WIRE_RECOVER_ACK, "message RECOVER_ACK from the peer came where READY" },
	{ OWES_READY, WIRE_STARTED, "message STARTED from the peer came where READY" },
	{ OWES_READY, WIRE_POSTCOPY, "only the source sends it" },
	{ OWES_PAGES, WIRE_MISSING, "message MISSING from the peer came where COMPLETE" },
	{ OWES_PAGES, WIRE_RECOVER_ACK, "message RECOVER_ACK from the peer came where COMPLETE" },
	{ OWES_PAGES, WIRE_STARTED, "message STARTED from the peer came where COMPLETE" },
	{ OWES_PAGES, WIRE_READY, "message READY from the peer came where COMPLETE" },
	{ OWES_PAGES, WIRE_RECOVER, "only the source sends it" },
	{ OWES_PAGES, WIRE_ERROR, "the destination says: something broke" },
};

#define NR_EARLY (sizeof(early) / sizeof(early[0]))

static void send_early(void *opaque, unsigned i)
{
	char(*problems)[SCENE_PROBLEMS_MAX] = opaque;
	struct victim v;
	struct peer p;

	victim_open(&v, TERN_SOURCE, problems[i]);
	peer_init(&p, &v.vm, problems[i]);
	p.postcopy = true;
	if (serve(&p, &v, early[i].stage)) {
		peer_say(&p, early[i].type);
		peer_hear_end(&p);
		judge_source(&v, early[i].stage, early[i].text);
	}
	peer_close(&p);
	victim_close(&v);
}

static void early_name(unsigned i, char *buf, size_t size)
{
	snprintf(buf, size, "%s: %s", owes_names[early[i].stage], wire_type_name(early[i].type));
}

static void messages_of_a_destination(void **state)
{
	char(*problems)[SCENE_PROBLEMS_MAX] = calloc(NR_EARLY, sizeof(*problems));

	assert_non_null(problems);
	scene_crowd(NR_EARLY, send_early, problems);
	assert_true(problems_tell(problems, NR_EARLY, early_name));
}

/* --------------------------------------------------- answers to RECOVER, and after */

static bool say_ack(struct peer *p, uint32_t channels, uint64_t chunk, uint32_t timeout_ms,
		    uint64_t missing)
{
	struct wire_msg m = { .type = WIRE_RECOVER_ACK,
			      .seq = p->tx_seq++,
			      .recover_ack = { channels, chunk, timeout_ms, missing } };
	uint8_t buf[TRANSPORT_MSG_MAX];

	return peer_record(p, buf, wire_encode(&m, buf));
}

static void ack_of_many_channels(struct peer *p)
{
	say_ack(p, 9, 1 << 18, PEER_TIMEOUT_MS, 1);
}

static void ack_of_large_chunks(struct peer *p)
{
	say_ack(p, 1, 1 << 20, PEER_TIMEOUT_MS, 1);
}

static void ack_of_odd_chunks(struct peer *p)
{
	say_ack(p, 1, 100000, PEER_TIMEOUT_MS, 1);
}

static void ack_of_long_timeout(struct peer *p)
{
	say_ack(p, 1, 1 << 18, PEER_TIMEOUT_MS + 1, 1);
}

static void fewer_than_listed(struct peer *p)
{
	say_ack(p, 1, 1 << 18, PEER_TIMEOUT_MS, 3);
	say_missing(p, 0, 0, "\0\x10", 2);
}

static void missing_of_no_region(struct peer *p)
{
	say_ack(p, 1, 1 << 18, PEER_TIMEOUT_MS, 3);
	say_missing(p, 2, 0, "\0\1", 2);
}

static void missing_twice(struct peer *p)
{
	say_ack(p, 1, 1 << 18, PEER_TIMEOUT_MS, 20);
	say_missing(p, 0, 0, "\0\4", 2);
	say_missing(p, 0, 0, "\3\1", 2);
}

static void missing_beyond_the_end(struct peer *p)
{
	say_ack(p, 1, 1 << 18, PEER_TIMEOUT_MS, 20);
	say_missing(p, 1, 1, "\0\4", 2);
}

static void hello_ack_instead(struct peer *p)
{
	peer_say(p, WIRE_HELLO_ACK);
}

static void asks_at_once(struct peer *p)
{
	say_ack(p, 1, 1 << 18, PEER_TIMEOUT_MS, 16);
	say_wanted(p, NULL);
}

static const struct {
	const char *name;
	void (*act)(struct peer *p);
	const char *text;
} answers[] = {
	{ "9 channels", ack_of_many_channels, "chose 9 channels, this source asked for 1" },
	{ "large chunks", ack_of_large_chunks, "chose chunks of 1048576" },
	{ "odd chunks", ack_of_odd_chunks, "chunk_bytes = 100000" },
	{ "long timeout", ack_of_long_timeout, "chose a peer timeout of" },
	{ "fewer pages than listed", fewer_than_listed,
	  "lists 16 missing pages and said that there are 3" },
	{ "region 2 of 2", missing_of_no_region, "MISSING from the peer has region = 2" },
	{ "a page twice", missing_twice, "MISSING from the peer has runs that do not fit" },
	{ "beyond the end", missing_beyond_the_end, "do not fit region 'ram1'" },
	{ "HELLO_ACK", hello_ack_instead, "HELLO_ACK from the peer came where RECOVER_ACK" },
	{ "asks before it is told", asks_at_once, "PAGES_WANTED from the peer, whose guest" },
};

#define NR_ANSWERS (sizeof(answers) / sizeof(answers[0]))

static void send_answer(void *opaque, unsigned i)
{
	char(*problems)[SCENE_PROBLEMS_MAX] = opaque;
	struct victim v;
	struct peer p;

	victim_open(&v, TERN_SOURCE, problems[i]);
	peer_init(&p, &v.vm, problems[i]);
	p.postcopy = true;
	if (serve(&p, &v, OWES_PAGES)) {
		int listener = p.listen_fd;

		p.listen_fd = -1;
		peer_close(&p);
		p.listen_fd = listener;
		p.tx_seq = 0;
		if (await_state(&v, TERN_STATE_POSTCOPY_PAUSED) &&
		    !tern_session_recover(v.s, NULL) && peer_accept(&p) &&
		    peer_hear(&p, WIRE_RECOVER, NULL, false)) {
			answers[i].act(&p);
			peer_hear_end(&p);
			judge_source(&v, OWES_PAGES, answers[i].text);
		} else {
			problem_add(problems[i], "the source does not recover");
		}
	}
	peer_close(&p);
	victim_close(&v);
}

static void answer_name(unsigned i, char *buf, size_t size)
{
	snprintf(buf, size, "answer to RECOVER: %s", answers[i].name);
}

static void answers_of_a_destination(void **state)
{
	char(*problems)[SCENE_PROBLEMS_MAX] = calloc(NR_ANSWERS, sizeof(*problems));

	assert_non_null(problems);
	scene_crowd(NR_ANSWERS, send_answer, problems);
	assert_true(problems_tell(problems, NR_ANSWERS, answer_name));
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(messages_of_a_source),
		cmocka_unit_test(pages_of_a_source),
		cmocka_unit_test(recoveries_of_a_source),
		cmocka_unit_test(requests_for_pages_that_are_not),
		cmocka_unit_test(messages_of_a_destination),
		cmocka_unit_test(answers_of_a_destination),
	};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests_name("hostile postcopy", tests, NULL, NULL);
}
