/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * A whole source session against a scripted destination (script.h).
 *
 * The first byte of the input says what the VMM does and how often the guest
 * writes; the rest is the script.  Whatever the destination says:
 *
 *	- GO goes out at most once, with the guest paused, after a READY that came
 *	  when it was due;
 *	- after GO the guest is never resumed; without GO it runs in the end;
 *	- guest RAM is only read; what was written and cleared adds up to it;
 *	- state and outcome of the session tell what happened.
 */

#include <errno.h>
#include <stdatomic.h>
#include <string.h>

#include "fuzz.h"
#include "script.h"
#include "session.h"

enum behaviour {
	PAUSE_FAILS = 0x01,
	SAVE_FAILS = 0x02,
	CANCEL_IN_ROUND = 0x04,
	CANCEL_IN_SAVE = 0x08,
	/* bits 4-5: how many looks at the dirty log find something */
	STATE_IS_LARGE = 0x40, /* more than one message */
};

struct harness {
	struct script script;
	struct fuzz_ram ram; /* the guest's */
	struct fuzz_ram copy; /* what the destination was given */
	struct tern_session *session;
	unsigned behaviour; /* bits */
	atomic_uint writes_left;

	/* Session thread; read when it has ended. */
	unsigned pauses, resumes, saves;

	/* Script's lock. */
	bool go_sent, early;
};

/* The session is about to send @type. */
static void on_sending(void *opaque, struct script_conn *c, enum wire_type type)
{
	struct harness *h = opaque;

	if (type == WIRE_STATE_END) /* nothing that answers it may have come already */
		h->early = c->handled[WIRE_READY] || c->handled[WIRE_STARTED];
	if (type != WIRE_GO)
		return;
	FUZZ_CHECK(!h->go_sent, "GO is sent twice");
	FUZZ_CHECK(c->sent[WIRE_STATE_END] && c->delivered[WIRE_READY], "GO is sent without READY");
	FUZZ_CHECK(!h->early, "GO is sent for a READY that came before STATE_END");
	FUZZ_CHECK(h->pauses == 1 && !h->resumes, "GO is sent and the guest runs");
	h->go_sent = true;
}

/* Page @page of region @region at the destination; it must exist. */
static uint8_t *copy_page(struct harness *h, uint64_t region, uint64_t page)
{
	FUZZ_CHECK(region < FUZZ_REGIONS && page < h->copy.nr_pages[region],
		   "page %llu of region %llu is sent: there is none", (unsigned long long)page,
		   (unsigned long long)region);
	return h->copy.hva[region] + page * TERN_PAGE_SIZE;
}

static void on_write(void *opaque, const struct transport_range *v, unsigned nr)
{
	struct harness *h = opaque;

	for (unsigned i = 0; i < nr; i++) {
		FUZZ_CHECK(v[i].len && !(v[i].offset % TERN_PAGE_SIZE) &&
				   !(v[i].len % TERN_PAGE_SIZE),
			   "a part of a page is sent");
		for (uint64_t at = 0; at < v[i].len; at += TERN_PAGE_SIZE) {
			uint8_t *to =
				copy_page(h, v[i].region, (v[i].offset + at) / TERN_PAGE_SIZE);

			memcpy(to, h->ram.hva[v[i].region] + v[i].offset + at, TERN_PAGE_SIZE);
		}
	}
}

static void on_notify(void *opaque, const uint8_t *msg, size_t len, bool handled)
{
	struct harness *h = opaque;

	for (size_t at = 4; at + 20 <= len; at += 20) {
		uint64_t first = fuzz_read_int(msg + at + 4, 8);
		uint64_t nr = fuzz_read_int(msg + at + 12, 8);

		for (uint64_t p = first; p < first + nr; p++)
			memset(copy_page(h, fuzz_read_int(msg + at, 4), p), 0, TERN_PAGE_SIZE);
	}
}

static int vm_pause(void *opaque)
{
	struct harness *h = opaque;

	FUZZ_CHECK(!h->pauses++, "the guest is paused twice");
	return h->behaviour & PAUSE_FAILS ? -EIO : 0;
}

static int vm_resume(void *opaque)
{
	struct harness *h = opaque;

	FUZZ_CHECK(h->pauses == 1 && !h->resumes++, "the guest is resumed and was not paused");
	pthread_mutex_lock(&h->script.lock);
	FUZZ_CHECK(!h->go_sent, "the guest is resumed after GO");
	pthread_mutex_unlock(&h->script.lock);
	return 0;
}

static int vm_save(void *opaque, struct tern_state_writer *w)
{
	static const uint8_t state[10000] = { 1, 2, 3 };
	struct harness *h = opaque;

	FUZZ_CHECK(!h->saves++, "the device state is saved twice");
	if (h->behaviour & CANCEL_IN_SAVE)
		tern_session_cancel(h->session);
	if (h->behaviour & SAVE_FAILS)
		return -EIO;
	return tern_state_write(w, state, h->behaviour & STATE_IS_LARGE ? sizeof(state) : 100);
}

static int dirty_start(void *opaque)
{
	return 0;
}

static void dirty_stop(void *opaque)
{
}

/* The guest's writes: page 0 and page 9 of region 0 change in turns, to zeros and back. */
static int dirty_sync(void *opaque, unsigned region, uint64_t first, uint64_t nr, uint64_t *bitmap)
{
	struct harness *h = opaque;

	if (region || !atomic_load(&h->writes_left))
		return 0;
	unsigned left = atomic_fetch_sub(&h->writes_left, 1);
	uint64_t page = left % 2 ? 0 : 9;
	uint8_t *p = h->ram.hva[0] + page * TERN_PAGE_SIZE;

	FUZZ_CHECK(first == 0 && nr == h->ram.nr_pages[0], "the dirty log is read in parts");
	memset(p, *p ? 0 : 0x77, TERN_PAGE_SIZE);
	bitmap[0] |= 1ull << page;
	return 0;
}

static void on_event(void *opaque, const struct tern_event *e)
{
	struct harness *h = opaque;

	if (e->type == TERN_EVENT_ROUND && h->behaviour & CANCEL_IN_ROUND)
		tern_session_cancel(h->session);
}

/* State and outcome against what was seen. */
static void check_end(const struct harness *h)
{
	enum tern_state state = tern_session_state(h->session);
	enum tern_outcome outcome = tern_session_outcome(h->session);

	FUZZ_CHECK(h->go_sent || h->pauses == h->resumes,
		   "there was no GO and the guest stays paused");
	FUZZ_CHECK(h->go_sent == (outcome != TERN_OUTCOME_SOURCE),
		   "GO was %ssent, the outcome is %s", h->go_sent ? "" : "not ",
		   tern_outcome_name(outcome));
	FUZZ_CHECK((state == TERN_STATE_COMPLETED) == (outcome == TERN_OUTCOME_DESTINATION),
		   "state %s, outcome %s", tern_state_name(state), tern_outcome_name(outcome));
	if (state != TERN_STATE_COMPLETED)
		return;
	for (unsigned i = 0; i < FUZZ_REGIONS; i++)
		FUZZ_CHECK(
			!memcmp(h->ram.hva[i], h->copy.hva[i], h->ram.nr_pages[i] * TERN_PAGE_SIZE),
			"what was sent of region %u is not what it holds", i);
}

static bool at_rest(void *opaque, bool busy)
{
	struct harness *h = opaque;

	return fuzz_session_at_rest(h->session, 1, busy);
}

static void harness_start(struct harness *h)
{
	static const struct tern_vm_ops ops = {
		.pause = vm_pause,
		.resume = vm_resume,
		.save = vm_save,
	};
	static const struct tern_dirty_ops dirty = {
		.start = dirty_start,
		.stop = dirty_stop,
		.sync = dirty_sync,
	};

	h->session = fuzz_session(TERN_SOURCE, &h->ram);
	tern_session_set_vm_ops(h->session, &ops, h);
	tern_session_set_dirty_ops(h->session, &dirty, h);
	tern_session_set_event_handler(h->session, on_event, h);
	session_use_transport(h->session, &h->script.ops);
	FUZZ_CHECK(!tern_session_connect(h->session, "unix:script"), "cannot connect");
}

enum fuzz_reach fuzz_one(const uint8_t *data, size_t size, unsigned patience_ms)
{
	static const struct script_hooks hooks = {
		.sending = on_sending,
		.notify = on_notify,
		.write = on_write,
		.at_rest = at_rest,
	};
	struct harness h = { .behaviour = size ? data[0] : 0 };

	if (!size)
		return FUZZ_PARTLY;
	atomic_store(&h.writes_left, h.behaviour >> 4 & 3);
	fuzz_ram_map(&h.ram);
	fuzz_ram_map(&h.copy);
	for (unsigned i = 0; i < FUZZ_REGIONS; i++)
		memset(h.copy.hva[i], 0, h.copy.nr_pages[i] * TERN_PAGE_SIZE);
	script_init(&h.script, TERN_SOURCE, data + 1, size - 1, patience_ms, &hooks, &h);
	harness_start(&h);
	FUZZ_CHECK(tern_session_wait(h.session, 30000) != -EINPROGRESS, "the session does not end");
	check_end(&h);
	bool full = tern_session_state(h.session) == TERN_STATE_COMPLETED;

	tern_session_delete(&h.session);
	script_fini(&h.script);
	fuzz_ram_unmap(&h.ram);
	fuzz_ram_unmap(&h.copy);
	return full ? FUZZ_FULL : FUZZ_PARTLY;
}
