/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * A whole destination session against a scripted source (script.h).
 *
 * The first byte of the input says what the VMM does; the rest is the script.
 * Whatever the source says:
 *
 *	- guest RAM changes only where a valid ZERO says so, and is not touched
 *	  outside the regions;
 *	- the guest is resumed at most once, after READY was sent and GO came, with
 *	  the source's access taken away and nothing being placed;
 *	- a GO that came before the device state was loaded never counts;
 *	- state and outcome of the session tell what happened.
 *
 * Guest RAM is full of a pattern instead of zeros, to see what is cleared.
 */

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "fuzz.h"
#include "script.h"
#include "session.h"

#define PAGES_MAX 16u

enum behaviour {
	LOAD_FAILS = 0x01,
	LOAD_LEAVES_SOME = 0x02,
	RESUME_FAILS = 0x04,
	CANCEL_IN_ROUND = 0x08,
};

struct harness {
	struct script script;
	struct fuzz_ram ram;
	struct tern_session *session;
	unsigned behaviour; /* bits */

	/* Session thread; read when it has ended. */
	unsigned loads, resumes;
	bool early_go;

	/* Script's lock. */
	bool may_be_zero[FUZZ_REGIONS][PAGES_MAX];
	bool must_be_zero[FUZZ_REGIONS][PAGES_MAX];
};

/* One range of a ZERO message, of 20 bytes at @p, follows *@end within the guest's RAM. */
static bool range_is_valid(const struct fuzz_ram *ram, const uint8_t *p, uint64_t *end)
{
	uint64_t region = fuzz_read_int(p, 4);
	uint64_t first = fuzz_read_int(p + 4, 8);
	uint64_t nr = fuzz_read_int(p + 12, 8);

	if (region >= FUZZ_REGIONS || !nr || first > ram->nr_pages[region] ||
	    nr > ram->nr_pages[region] - first)
		return false;
	if ((region << 32 | first) < *end)
		return false;
	*end = region << 32 | (first + nr);
	return true;
}

/* Is this what docs/protocol.md calls a ZERO message?  Independent of the code under test. */
static bool zero_is_valid(const struct fuzz_ram *ram, const uint8_t *msg, size_t len)
{
	uint64_t end = 0;

	if (len < 4 || fuzz_read_int(msg, 2) != 1)
		return false;
	uint64_t count = fuzz_read_int(msg + 2, 2);

	if (count < 1 || count > 200 || len != 4 + count * 20)
		return false;
	for (uint64_t i = 0; i < count; i++)
		if (!range_is_valid(ram, msg + 4 + i * 20, &end))
			return false;
	return true;
}

/* A ZERO message goes to the session, or came back from it. */
static void on_notify(void *opaque, const uint8_t *msg, size_t len, bool handled)
{
	struct harness *h = opaque;
	bool valid = zero_is_valid(&h->ram, msg, len);

	FUZZ_CHECK(valid || !handled, "the session goes on after a ZERO message that is not valid");
	for (size_t at = 4; valid && at < len; at += 20) {
		uint64_t region = fuzz_read_int(msg + at, 4);
		uint64_t first = fuzz_read_int(msg + at + 4, 8);
		uint64_t nr = fuzz_read_int(msg + at + 12, 8);

		for (uint64_t p = first; p < first + nr; p++) {
			h->may_be_zero[region][p] = true;
			h->must_be_zero[region][p] |= handled;
		}
	}
}

static int vm_load(void *opaque, struct tern_state_reader *r)
{
	struct harness *h = opaque;
	uint8_t byte;

	FUZZ_CHECK(!h->loads++, "the device state is loaded twice");
	FUZZ_CHECK(tern_state_remaining(r) <= 16384, "%zu bytes of device state, above state-max",
		   tern_state_remaining(r));
	while (tern_state_remaining(r) > (h->behaviour & LOAD_LEAVES_SOME ? 1 : 0))
		FUZZ_CHECK(!tern_state_read(r, &byte, 1), "device state ends early");
	h->early_go = script_handled(&h->script, WIRE_GO);
	return h->behaviour & LOAD_FAILS ? -EIO : 0;
}

static int vm_resume(void *opaque)
{
	struct harness *h = opaque;
	struct script *s = &h->script;

	FUZZ_CHECK(!h->resumes++, "the guest is resumed twice");
	FUZZ_CHECK(!h->early_go, "the guest is resumed for a GO that came before READY");
	pthread_mutex_lock(&s->lock);
	const struct script_conn *c = s->conn;

	FUZZ_CHECK(c && c->sent[WIRE_READY], "the guest is resumed without READY");
	FUZZ_CHECK(c->delivered[WIRE_GO], "the guest is resumed without GO");
	FUZZ_CHECK(c->revoked, "the guest is resumed while the source may write");
	for (unsigned i = 0; i < c->nr_channels; i++)
		FUZZ_CHECK(!c->channels[i].handed_out ||
				   !zero_is_valid(&h->ram, c->channels[i].out.msg,
						  c->channels[i].out.len),
			   "the guest is resumed while pages are cleared on channel %u", i);
	pthread_mutex_unlock(&s->lock);
	return h->behaviour & RESUME_FAILS ? -EIO : 0;
}

static void on_event(void *opaque, const struct tern_event *e)
{
	struct harness *h = opaque;

	if (e->type == TERN_EVENT_ROUND && h->behaviour & CANCEL_IN_ROUND)
		tern_session_cancel(h->session);
}

/* Every page holds the pattern, or zeros where it may or must. */
static void check_ram(const struct harness *h)
{
	for (unsigned i = 0; i < FUZZ_REGIONS; i++)
		for (uint64_t p = 0; p < h->ram.nr_pages[i]; p++) {
			bool zero = fuzz_page_is(&h->ram, i, p, 0);

			FUZZ_CHECK(zero || fuzz_page_is(&h->ram, i, p, FUZZ_PATTERN),
				   "page %u of region %u holds something else", (unsigned)p, i);
			FUZZ_CHECK(!zero || h->may_be_zero[i][p],
				   "page %u of region %u was cleared", (unsigned)p, i);
			FUZZ_CHECK(zero || !h->must_be_zero[i][p],
				   "page %u of region %u was not cleared", (unsigned)p, i);
		}
}

/* State and outcome against what was seen. */
static void check_end(const struct harness *h)
{
	enum tern_state state = tern_session_state(h->session);
	enum tern_outcome outcome = tern_session_outcome(h->session);
	bool runs = h->resumes && !(h->behaviour & RESUME_FAILS);

	FUZZ_CHECK(runs == (state == TERN_STATE_COMPLETED), "the guest %s, the session is %s",
		   runs ? "runs" : "does not run", tern_state_name(state));
	FUZZ_CHECK(runs == (outcome == TERN_OUTCOME_DESTINATION), "the guest %s, the outcome is %s",
		   runs ? "runs" : "does not run", tern_outcome_name(outcome));
	FUZZ_CHECK(outcome != TERN_OUTCOME_SOURCE || !h->resumes,
		   "the guest was resumed, the outcome is that the source runs it");
	FUZZ_CHECK(runs || outcome == TERN_OUTCOME_SOURCE || outcome == TERN_OUTCOME_NEITHER,
		   "the outcome is %s", tern_outcome_name(outcome));
}

static bool at_rest(void *opaque, bool busy)
{
	struct harness *h = opaque;

	return fuzz_session_at_rest(h->session, 0, busy);
}

static void harness_start(struct harness *h)
{
	static const struct tern_vm_ops ops = { .load = vm_load, .resume = vm_resume };

	h->session = fuzz_session(TERN_DESTINATION, &h->ram);
	tern_session_set_vm_ops(h->session, &ops, h);
	tern_session_set_event_handler(h->session, on_event, h);
	session_use_transport(h->session, &h->script.ops);
	FUZZ_CHECK(!tern_session_listen(h->session, "unix:script"), "cannot listen");
}

enum fuzz_reach fuzz_one(const uint8_t *data, size_t size, unsigned patience_ms)
{
	static const struct script_hooks hooks = { .notify = on_notify, .at_rest = at_rest };
	struct harness h = { .behaviour = size ? data[0] : 0 };

	if (!size)
		return FUZZ_PARTLY;
	fuzz_ram_map(&h.ram);
	script_init(&h.script, TERN_DESTINATION, data + 1, size - 1, patience_ms, &hooks, &h);
	harness_start(&h);
	script_wait(&h.script);
	tern_session_cancel(h.session);
	FUZZ_CHECK(tern_session_wait(h.session, 30000) != -EINPROGRESS, "the session does not end");
	check_end(&h);
	check_ram(&h);
	bool full = tern_session_state(h.session) == TERN_STATE_COMPLETED;

	tern_session_delete(&h.session);
	script_fini(&h.script);
	fuzz_ram_unmap(&h.ram);
	return full ? FUZZ_FULL : FUZZ_PARTLY;
}
