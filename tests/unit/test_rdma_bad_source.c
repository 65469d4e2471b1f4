/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * A hostile source, made of bare verbs, against a real destination: greetings, frames
 * and writes that must not be.  Each has to end in one sentence that names what was
 * wrong, soon, without a byte of memory changed and with nothing left behind.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include "error.h"
#include "raw_peer.h"
#include "verbs.h"
#include "verbs_fake.h"
#include "verbs_pair.h"

#define NR(a) (sizeof(a) / sizeof((a)[0]))

/* A destination that listens, and up to two queue pairs to it. */
struct fix {
	struct verbs_pair *p;
	struct raw_peer control, data;
	uint8_t *mem;
	struct tern_error err; /* the destination's */
	int rc; /* of what it did in the middle of something */
	pthread_t revoker;
};

/* @push: the destination is set up for pushes. */
static int setup_with(void **state, bool push)
{
	struct fix *f = calloc(1, sizeof(*f));

	f->p = pair_new();
	f->p->dst_env.push = push;
	f->p->src_env.peer_timeout_ms = f->p->dst_env.peer_timeout_ms = 5000;
	pair_listen(f->p);
	*state = f;
	return 0;
}

static int setup(void **state)
{
	return setup_with(state, false);
}

static int setup_push(void **state)
{
	return setup_with(state, true);
}

static int teardown(void **state)
{
	struct fix *f = *state;
	uint64_t size = f->p->size;

	raw_close(&f->data);
	raw_close(&f->control);
	pair_delete(f->p);
	for (uint64_t i = 0; f->mem && i < size; i++)
		if (f->mem[i] != 0x11)
			fail_msg("byte %llu of memory changed", (unsigned long long)i);
	free(f->mem);
	free(f);
	return 0;
}

/* Connect as a good source does, up to the first message. */
static void say_hello(struct fix *f)
{
	const struct greeting g = raw_greeting(GREETING_CONTROL);
	const struct ctl_header hello = { .type = CTL_MSG, .len = 5 };
	char buf[16];

	assert_true(raw_greet(&f->control, &f->p->uri, &g));
	assert_int_equal(raw_control(&f->control, &hello, "hello", 5), IBV_WC_SUCCESS);
	while (!__atomic_load_n(&f->p->dst, __ATOMIC_ACQUIRE))
		sched_yield();
	assert_int_equal(f->p->t->recv(f->p->dst, buf, sizeof(buf), 5000, &f->err), 5);
}

/* The destination exposes its memory, and one channel comes, for which @flags were asked. */
static void attach_channel(struct fix *f, uint32_t flags)
{
	struct greeting g = raw_greeting(GREETING_DATA);
	struct transport_memory m = { .size = f->p->size, .fd = -1, .numa_node = -1 };

	say_hello(f);
	f->mem = aligned_alloc(4096, f->p->size);
	memset(f->mem, 0x11, f->p->size);
	m.hva = f->mem;
	g.flags = flags;
	assert_int_equal(f->p->t->expose(f->p->dst, &m, 1, &f->err), 0);
	assert_true(raw_greet(&f->data, &f->p->uri, &g));
}

/* The same, and it has that one channel. */
static void open_channel_with(struct fix *f, uint32_t flags)
{
	attach_channel(f, flags);
	assert_int_equal(f->p->t->open_channels(f->p->dst, 1, f->p->dc, &f->err), 0);
}

static void open_channel(struct fix *f)
{
	open_channel_with(f, 0);
}

/* The flags of the destination's answer to the channel's greeting, and its ring. */
static void assert_answered(const struct fix *f, uint32_t flags, unsigned ring)
{
	struct greeting answer;

	assert_true(greeting_get(f->data.words, f->data.nr_words, &answer));
	assert_int_equal(answer.flags, flags);
	assert_int_equal(answer.ring, ring);
}

/* The destination's control queue ends with @code and says @what. */
static void assert_control_ends(struct fix *f, int code, const char *what)
{
	char buf[TRANSPORT_MSG_MAX];
	long n;

	do
		n = f->p->t->recv(f->p->dst, buf, sizeof(buf), 5000, &f->err);
	while (n > 0);
	assert_int_equal(n, code);
	pair_assert_says(&f->err, what);
	assert_int_equal(f->p->t->send(f->p->dst, "x", 1, 5000, NULL), code);
}

/* The destination's channel ends with @code and says @what. */
static void assert_channel_ends(struct fix *f, int code, const char *what)
{
	char buf[TRANSPORT_SERVE_MAX];
	size_t contents;
	long n;

	do
		n = f->p->t->serve(f->p->dc[0], buf, &contents, &f->err);
	while (n > 0);
	assert_int_equal(n, code);
	pair_assert_says(&f->err, what);
}

/* Ask for the key of the first page, as a good source does. */
static struct key_granted get_key(struct fix *f)
{
	const struct key_wanted want = { .len = 4096, .channel = KEYS_ANY_CHANNEL };
	struct ctl_header h = { .type = CTL_KEYS_WANTED };
	uint8_t buf[KEYS_HEAD_LEN + KEYS_WANTED_LEN];
	struct key_granted v[KEYS_BATCH];
	const uint8_t *frame;
	long n;

	h.len = (uint32_t)keys_wanted_put(buf, &want, 1);
	assert_int_equal(raw_control(&f->control, &h, buf, h.len), IBV_WC_SUCCESS);
	do {
		n = raw_recv(&f->control, &frame);
		assert_true(n >= (long)CTL_HEADER_LEN);
		ctl_header_get(frame, &h);
	} while (h.type != CTL_KEYS);
	assert_int_equal(keys_get(frame + CTL_HEADER_LEN, h.len, v), 1);
	assert_int_equal(v[0].status, 0);
	return v[0];
}

/* ---- greetings ---- */

/* The destination refuses @hello with @code and tells its handler @what; then a good one. */
static void assert_refused(struct fix *f, const void *hello, size_t len, unsigned code,
			   const char *what)
{
	struct raw_peer r;
	struct refusal answer;

	assert_false(raw_connect(&r, &f->p->uri, hello, len, RAW_SLOTS));
	assert_true(refusal_get(r.words, r.nr_words, &answer));
	assert_int_equal(answer.version, GREETING_VERSION);
	assert_int_equal(answer.code, code);
	raw_close(&r);
	/* The handler runs after the refusal, in the same thread as the next one's. */
	say_hello(f);
	pair_assert_says(&f->p->stranger, what);
	pair_assert_says(&f->p->stranger, "A connection from 127.0.0.1:");
}

static void greeting_of_another_program(void **state)
{
	assert_refused(*state, "GET / HTTP/1.1\r\n\r\n the rest of it is long enough to be one", 56,
		       REFUSAL_GREETING, "it does not speak this protocol");
}

static void greeting_cut_short(void **state)
{
	const struct greeting g = raw_greeting(GREETING_CONTROL);
	uint8_t buf[GREETING_LEN];

	greeting_put(buf, &g);
	assert_refused(*state, buf, GREETING_LEN - 1, REFUSAL_GREETING,
		       "it does not speak this protocol");
}

static void no_greeting(void **state)
{
	assert_refused(*state, NULL, 0, REFUSAL_GREETING, "it does not speak this protocol");
}

/* Spoilt in one field each. */
static void impossible_greetings(void **state)
{
	static const struct {
		enum greeting_kind kind;
		size_t at; /* of a u16 in struct greeting */
		uint16_t value;
		unsigned code;
		const char *what;
	} bad[] = {
#define BAD(kind_, field_, value_, code_, what_) \
	{ kind_, offsetof(struct greeting, field_), value_, code_, what_ }
		BAD(GREETING_CONTROL, version, 0, REFUSAL_VERSION, "speaks version 0"),
		BAD(GREETING_CONTROL, version, 99, REFUSAL_VERSION, "speaks version 99"),
		BAD(GREETING_CONTROL, kind, 0, REFUSAL_GREETING, "kind is 0"),
		BAD(GREETING_CONTROL, kind, 3, REFUSAL_GREETING, "kind is 3"),
		BAD(GREETING_CONTROL, ring, 0, REFUSAL_GREETING, "ring is 0"),
		BAD(GREETING_CONTROL, ring, 4, REFUSAL_GREETING, "ring is 4"),
		BAD(GREETING_CONTROL, ring, 65535, REFUSAL_GREETING, "ring is 65535"),
		BAD(GREETING_CONTROL, msg_window, 0, REFUSAL_GREETING, "message window is 0"),
		BAD(GREETING_CONTROL, msg_window, 5000, REFUSAL_GREETING, "message window is 5000"),
		BAD(GREETING_CONTROL, piece_bytes, 1, REFUSAL_PIECE, "in pieces of "),
		BAD(GREETING_DATA, ring, 2, REFUSAL_GREETING, "ring is 2"),
		BAD(GREETING_DATA, count, 0, REFUSAL_GREETING, "channel count is 0"),
		BAD(GREETING_DATA, count, 65, REFUSAL_GREETING, "channel count is 65"),
		BAD(GREETING_DATA, index, 1, REFUSAL_GREETING, "channel is 1"),
		BAD(GREETING_DATA, index, 65535, REFUSAL_GREETING, "channel is 65535"),
		BAD(GREETING_DATA, session_id, 1, REFUSAL_SESSION, "belongs to no session here"),
	};

	for (size_t i = 0; i < NR(bad); i++) {
		struct greeting g = raw_greeting(bad[i].kind);
		uint8_t buf[GREETING_LEN];

		memcpy((char *)&g + bad[i].at, &bad[i].value, sizeof(uint16_t));
		greeting_put(buf, &g);
		assert_refused(*state, buf, sizeof(buf), bad[i].code, bad[i].what);
		teardown(state);
		setup(state);
	}
}

/* A channel of a session that is there, but not so. */
static void misfit_channels(void **state)
{
	struct greeting g = raw_greeting(GREETING_DATA);
	struct fix *f = *state;
	struct refusal answer;
	struct raw_peer r;

	open_channel(f);
	assert_false(raw_greet(&r, &f->p->uri, &g));
	assert_true(refusal_get(r.words, r.nr_words, &answer));
	assert_int_equal(answer.code, REFUSAL_TAKEN);
	raw_close(&r);
	g.count = 2;
	g.index = 1;
	assert_false(raw_greet(&r, &f->p->uri, &g));
	assert_true(refusal_get(r.words, r.nr_words, &answer));
	assert_int_equal(answer.code, REFUSAL_COUNT);
	assert_int_equal(answer.value, 1);
	raw_close(&r);
}

/* What the destination's session may do while the acceptor makes a channel. */
static void it_opens_one(void *opaque)
{
	struct fix *f = opaque;

	f->rc = f->p->t->open_channels(f->p->dst, 1, f->p->dc, &f->err);
}

static void it_revokes(void *opaque)
{
	struct fix *f = opaque;

	it_opens_one(f);
	f->p->t->revoke(f->p->dst);
}

static void it_aborts(void *opaque)
{
	struct fix *f = opaque;

	f->p->t->abort(f->p->dst);
}

/* One more channel is asked for, and @meanwhile happens: it is refused with @code. */
static void assert_late_channel_refused(struct fix *f, void (*meanwhile)(void *), unsigned code)
{
	struct greeting g = raw_greeting(GREETING_DATA);
	struct refusal answer;
	struct raw_peer r;
	unsigned before;

	attach_channel(f, 0);
	g.count = 2;
	g.index = 1;
	before = verbs_fake_objects();
	verbs_fake_at(FAKE_QP, 2, meanwhile, f); /* the first one is the source's own */
	assert_false(raw_greet(&r, &f->p->uri, &g));
	assert_int_equal(f->rc, 0);
	assert_true(refusal_get(r.words, r.nr_words, &answer));
	assert_int_equal(answer.code, code);
	if (code == REFUSAL_COUNT)
		assert_int_equal(answer.value, 1);
	raw_close(&r);
	f->p->t->listener_stop(f->p->listener); /* whose thread destroys what it refused */
	pthread_join(f->p->acceptor, NULL);
	f->p->accepting = false;
	assert_true(verbs_fake_objects() <= before);
}

static void channel_that_is_late_for_the_count(void **state)
{
	assert_late_channel_refused(*state, it_opens_one, REFUSAL_COUNT);
}

/* Invariant 4: the guest may run by the time that the channel is made. */
static void channel_that_is_late_for_the_memory(void **state)
{
	assert_late_channel_refused(*state, it_revokes, REFUSAL_SESSION);
}

static void channel_that_is_late_for_the_session(void **state)
{
	assert_late_channel_refused(*state, it_aborts, REFUSAL_SESSION);
}

static void *revoker_run(void *opaque)
{
	struct fix *f = opaque;

	f->p->t->revoke(f->p->dst);
	return NULL;
}

/* The memory is taken back by another thread; give it time to do that. */
static void it_begins_to_revoke(void *opaque)
{
	struct fix *f = opaque;

	f->rc = pthread_create(&f->revoker, NULL, revoker_run, f);
	(void)poll(NULL, 0, 100);
}

/* The same while it is accepted: that comes first, and then the end of its queue pair. */
static void memory_is_taken_back_during_the_acceptance(void **state)
{
	struct greeting g = raw_greeting(GREETING_DATA);
	struct key_granted k;
	struct fix *f = *state;
	struct raw_peer r;

	attach_channel(f, 0);
	k = get_key(f);
	g.count = 2;
	g.index = 1;
	verbs_fake_at(FAKE_ACCEPT, 1, it_begins_to_revoke, f);
	assert_true(raw_greet(&r, &f->p->uri, &g));
	assert_int_equal(f->rc, 0);
	pthread_join(f->revoker, NULL);
	assert_int_not_equal(raw_write(&r, k.remote_va, k.rkey, 4096), IBV_WC_SUCCESS);
	raw_close(&r);
}

/* More candidates than there is room for: one is told so, and places are free again. */
static void crowd_of_silent_candidates(void **state)
{
	struct fix *f = *state;
	struct raw_peer crowd[16], r;
	struct greeting g = raw_greeting(GREETING_CONTROL);
	struct refusal answer;

	for (unsigned i = 0; i < NR(crowd); i++) {
		g.session_id[15] = (uint8_t)i;
		assert_true(raw_greet(&crowd[i], &f->p->uri, &g));
	}
	assert_false(raw_greet(&r, &f->p->uri, &g));
	assert_true(refusal_get(r.words, r.nr_words, &answer));
	assert_int_equal(answer.code, REFUSAL_BUSY);
	raw_close(&r);
	for (unsigned i = 0; i < NR(crowd); i++)
		raw_close(&crowd[i]);
	do { /* until the listener has seen one of them go */
		raw_close(&r);
	} while (!raw_greet(&r, &f->p->uri, &g));
	raw_close(&r);
}

/* ---- control frames ---- */

/* One bad frame after a good message. */
static void bad_control_frames(void **state)
{
	static const struct {
		struct ctl_header h;
		size_t len; /* bytes of payload that are sent */
		const char *what;
	} bad[] = {
		{ { .type = 0 }, 0, "the type of a frame is 0" },
		{ { .type = 7 }, 0, "the type of a frame is 7" },
		{ { .type = 65535 }, 0, "the type of a frame is 65535" },
		{ { .type = CTL_MSG }, 0, "the type of a frame is 1" },
		{ { .type = CTL_MSG, .len = 5 }, 4, "the payload length of a frame is 5" },
		{ { .type = CTL_MSG, .len = UINT32_MAX }, 8, "length of a frame is 4294967295" },
		{ { .type = CTL_MSG, .len = 4 }, 5, "the payload length of a frame is 4" },
		{ { .type = CTL_KEYS, .len = 8 }, 8, "which this side cannot take" },
		{ { .type = CTL_KEYS_WANTED, .len = 8 }, 8, "does not fit its length" },
		{ { .type = CTL_KEYS_RELEASE, .len = 9 }, 9, "does not fit its length" },
		{ { .type = CTL_CREDIT, .credits = 65535 }, 0, "credits outstanding" },
		{ { .type = CTL_CREDIT, .msg_credits = 65535 }, 0, "credits outstanding" },
	};

	for (size_t i = 0; i < NR(bad); i++) {
		const uint8_t zeros[16] = { 0 };
		struct fix *f = *state;

		open_channel(f);
		(void)raw_control(&f->control, &bad[i].h, zeros, bad[i].len);
		assert_control_ends(f, -EPROTO, bad[i].what);
		pair_assert_says(&f->err, "The peer 127.0.0.1:");
		teardown(state);
		setup(state);
	}
}

static void control_frame_without_header(void **state)
{
	struct fix *f = *state;

	say_hello(f);
	assert_int_equal(raw_send(&f->control, "12345678", 8), IBV_WC_SUCCESS);
	assert_control_ends(f, -EPROTO, "the length of a frame is 8");
}

/* Larger than a receive: the device refuses it, and the queue pairs are done for. */
static void control_frame_too_large(void **state)
{
	static const uint8_t large[CTL_SLOT + 1];
	struct fix *f = *state;

	say_hello(f);
	assert_int_equal(raw_send(&f->control, large, sizeof(large)), IBV_WC_REM_INV_REQ_ERR);
	assert_control_ends(f, -ECONNRESET, "The control queue to 127.0.0.1:");
	pair_assert_says(&f->err, "device fake0, queue pair ");
}

/* What the destination owes of credits, or -1: it has had enough. */
static int owed(struct fix *f)
{
	struct control *q = &((struct verbs_conn *)f->p->dst)->ctl;
	int n;

	pthread_mutex_lock(&q->lock);
	n = q->error.code ? -1 : (int)q->owe;
	pthread_mutex_unlock(&q->lock);
	return n;
}

/* More messages than the window allows, while nobody takes them. */
static void messages_beyond_the_window(void **state)
{
	const struct ctl_header h = { .type = CTL_MSG, .len = 1 };
	struct fix *f = *state;

	say_hello(f);
	for (unsigned i = 0; i < CTL_MSG_WINDOW + 1; i++)
		(void)raw_control(&f->control, &h, "x", 1);
	for (unsigned i = 0; i < 5000 && owed(f) >= 0; i++)
		(void)poll(NULL, 0, 1); /* until it has seen them */
	assert_control_ends(f, -EPROTO, "messages or credits outstanding");
}

/* Frames without end, and no credits for the answers: no memory may pile up. */
static void frames_beyond_the_credits(void **state)
{
	const struct ctl_header h = { .type = CTL_CREDIT };
	struct greeting g = raw_greeting(GREETING_CONTROL);
	const struct ctl_header hello = { .type = CTL_MSG, .len = 5 };
	struct fix *f = *state;
	unsigned sent = 0;

	g.ring = GREETING_RING_MIN + 1; /* the destination can answer a few times */
	assert_true(raw_greet(&f->control, &f->p->uri, &g));
	assert_int_equal(raw_control(&f->control, &hello, "hello", 5), IBV_WC_SUCCESS);
	while (!__atomic_load_n(&f->p->dst, __ATOMIC_ACQUIRE))
		sched_yield();
	while (owed(f) >= 0) {
		int before = owed(f);

		assert_int_equal(raw_control(&f->control, &h, NULL, 0), IBV_WC_SUCCESS);
		assert_true(++sent < 1000);
		while (owed(f) == before) /* until the frame was taken */
			sched_yield();
	}
	assert_control_ends(f, -EPROTO, "messages or credits outstanding");
}

/* It claims 64 receives and has none. */
static void no_receives(void **state)
{
	const struct greeting g = raw_greeting(GREETING_CONTROL);
	const struct ctl_header hello = { .type = CTL_MSG, .len = 5 };
	struct fix *f = *state;
	uint8_t buf[GREETING_LEN];
	char word[16];

	greeting_put(buf, &g);
	assert_true(raw_connect(&f->control, &f->p->uri, buf, sizeof(buf), 0));
	assert_int_equal(raw_control(&f->control, &hello, "hello", 5), IBV_WC_SUCCESS);
	while (!__atomic_load_n(&f->p->dst, __ATOMIC_ACQUIRE))
		sched_yield();
	assert_int_equal(f->p->t->recv(f->p->dst, word, sizeof(word), 5000, &f->err), 5);
	assert_int_equal(f->p->t->send(f->p->dst, "x", 1, 5000, &f->err), 0);
	assert_control_ends(f, -ECONNRESET, "RNR retry counter exceeded");
	pair_assert_says(&f->err, "device fake0, queue pair ");
}

/* It has receives and never says that they are free again. */
static void no_credits(void **state)
{
	struct fix *f = *state;
	int rc = 0;

	say_hello(f);
	for (unsigned i = 0; i < 32; i++)
		assert_int_equal(f->p->t->send(f->p->dst, "x", 1, 5000, &f->err), 0);
	rc = f->p->t->send(f->p->dst, "x", 1, 50, &f->err);
	assert_int_equal(rc, -ETIMEDOUT);
	pair_assert_says(&f->err, "took no control message for 50 ms");
}

static void hangs_up_without_bye(void **state)
{
	struct fix *f = *state;

	say_hello(f);
	raw_close(&f->control);
	assert_control_ends(f, -ECONNRESET, "closed the connection without a word");
}

static void says_bye_at_once(void **state)
{
	const struct ctl_header bye = { .type = CTL_BYE };
	struct fix *f = *state;
	char buf[16];

	open_channel(f);
	assert_int_equal(raw_control(&f->control, &bye, NULL, 0), IBV_WC_SUCCESS);
	assert_int_equal(f->p->t->recv(f->p->dst, buf, sizeof(buf), 5000, &f->err), 0);
	assert_int_equal(f->p->t->send(f->p->dst, "x", 1, 100, &f->err), -ECONNRESET);
}

/* ---- data frames ---- */

static void bad_data_frames(void **state)
{
	static const struct {
		struct data_header h;
		size_t len;
		const char *what;
	} bad[] = {
		{ { .type = 0 }, 0, "type 0" },
		{ { .type = DATA_CREDIT }, 0, "type 5" },
		{ { .type = DATA_FENCE_ACK, .seq = 1 }, 0, "type 6" },
		{ { .type = DATA_PUSH, .len = 9, .seq = 8 }, 9, "type 7 and 9 bytes" },
		{ { .type = 8 }, 0, "type 8" },
		{ { .type = DATA_NOTIFY }, 0, "type 1 and 0 bytes" },
		{ { .type = DATA_NOTIFY, .len = 5 }, 4, "length field does not fit" },
		{ { .type = DATA_NOTIFY, .len = UINT32_MAX }, 4, "length field does not fit" },
		{ { .type = DATA_FENCE, .len = 1 }, 0, "length field does not fit" },
	};

	for (size_t i = 0; i < NR(bad); i++) {
		const uint8_t zeros[16] = { 0 };
		struct fix *f = *state;

		open_channel(f);
		(void)raw_data(&f->data, &bad[i].h, zeros, bad[i].len);
		assert_channel_ends(f, -EPROTO, bad[i].what);
		assert_int_equal(f->err.scope, TERN_SCOPE_CHANNEL);
		teardown(state);
		setup(state);
	}
}

/* The source asks for pushes, of a destination that was not set up for them. */
static void push_that_was_declined(void **state)
{
	const struct data_header h = { .type = DATA_PUSH, .len = 9, .seq = 8 };
	struct fix *f = *state;

	open_channel_with(f, GREETING_PUSH);
	assert_answered(f, 0, CHAN_RING);
	(void)raw_data(&f->data, &h, "123456789", 9);
	assert_channel_ends(f, -EPROTO, "type 7 and 9 bytes");
}

/* The destination is set up for pushes, and the source did not ask for them. */
static void push_that_was_not_asked_for(void **state)
{
	const struct data_header h = { .type = DATA_PUSH, .len = 9, .seq = 8 };
	struct fix *f = *state;

	open_channel(f);
	assert_answered(f, 0, CHAN_RING);
	(void)raw_data(&f->data, &h, "123456789", 9);
	assert_channel_ends(f, -EPROTO, "type 7 and 9 bytes");
}

static void bad_pushes(void **state)
{
	static const struct {
		struct data_header h;
		size_t len;
		const char *what;
	} bad[] = {
		{ { .len = 9, .seq = 0 }, 9, "contents = 0 of 9 bytes" },
		{ { .len = 9, .seq = 9 }, 9, "contents = 9 of 9 bytes" },
		{ { .len = 9, .seq = 10 }, 9, "contents = 10 of 9 bytes" },
		{ { .len = 9, .seq = UINT64_MAX }, 9, "contents = 18446744073709551615 of 9" },
		{ { .len = 9, .seq = 1ull << 32 | 8 }, 9, "contents = 4294967304 of 9 bytes" },
		{ { .len = 258, .seq = 1 }, 258, "contents = 1 of 258 bytes" },
		{ { .len = 0 }, 0, "contents = 0 of 0 bytes" },
		{ { .len = 65536 + 8, .seq = 65536 }, 9, "length field does not fit" },
	};

	for (size_t i = 0; i < NR(bad); i++) {
		struct data_header h = bad[i].h;
		const uint8_t zeros[512] = { 0 };
		struct fix *f = *state;

		h.type = DATA_PUSH;
		open_channel_with(f, GREETING_PUSH);
		assert_answered(f, GREETING_PUSH, CHAN_RING_PUSH);
		(void)raw_data(&f->data, &h, zeros, bad[i].len);
		assert_channel_ends(f, -EPROTO, bad[i].what);
		teardown(state);
		setup_push(state);
	}
}

static void data_frame_without_header(void **state)
{
	struct fix *f = *state;

	open_channel(f);
	assert_int_equal(raw_send(&f->data, "short", 5), IBV_WC_SUCCESS);
	assert_channel_ends(f, -EPROTO, "a frame of 5 bytes on channel 0");
}

static void never_says_end(void **state)
{
	struct fix *f = *state;

	open_channel(f);
	raw_close(&f->data);
	assert_channel_ends(f, -ECONNRESET, "closed channel 0 without a word");
}

static void goes_on_after_end(void **state)
{
	const struct data_header end = { .type = DATA_END },
				 more = { .type = DATA_FENCE, .seq = 9 };
	struct fix *f = *state;
	char buf[TRANSPORT_SERVE_MAX];
	size_t contents;

	open_channel(f);
	assert_int_equal(raw_data(&f->data, &end, NULL, 0), IBV_WC_SUCCESS);
	assert_int_equal(raw_data(&f->data, &more, NULL, 0), IBV_WC_SUCCESS);
	assert_int_equal(f->p->t->serve(f->p->dc[0], buf, &contents, &f->err), 0);
	assert_int_equal(f->p->t->serve(f->p->dc[0], buf, &contents, &f->err), 0);
}

/* ---- writes ---- */

/* A write that must be refused, and after it: the channel is dead, the memory as it was. */
static void assert_write_refused(struct fix *f, struct raw_peer *r, uint64_t va, uint32_t rkey,
				 size_t len)
{
	assert_int_equal(raw_write(r, va, rkey, len), IBV_WC_REM_ACCESS_ERR);
	if (r == &f->data)
		assert_channel_ends(f, -ECONNRESET, "channel 0");
}

static void write_without_a_key(void **state)
{
	struct fix *f = *state;

	open_channel(f);
	assert_write_refused(f, &f->data, (uintptr_t)f->mem, 0x12345, 4096);
}

static void write_behind_what_was_granted(void **state)
{
	struct key_granted k;
	struct fix *f = *state;

	open_channel(f);
	k = get_key(f);
	assert_write_refused(f, &f->data, k.remote_va + 1, k.rkey, 4096);
}

static void write_before_what_was_granted(void **state)
{
	struct key_granted k;
	struct fix *f = *state;

	open_channel(f);
	k = get_key(f);
	assert_write_refused(f, &f->data, k.remote_va - 8, k.rkey, 8);
}

/* The keys of guest memory are worth nothing on the control queue. */
static void write_on_the_control_queue(void **state)
{
	struct key_granted k;
	struct fix *f = *state;

	open_channel(f);
	k = get_key(f);
	assert_write_refused(f, &f->control, k.remote_va, k.rkey, 4096);
	assert_control_ends(f, -ECONNRESET, "The control queue to 127.0.0.1:");
}

static void write_after_release(void **state)
{
	uint8_t buf[KEYS_HEAD_LEN + KEYS_RELEASE_LEN];
	struct ctl_header h = { .type = CTL_KEYS_RELEASE };
	unsigned before;
	struct key_granted k;
	struct fix *f = *state;

	open_channel(f);
	before = verbs_fake_objects();
	k = get_key(f);
	assert_true(verbs_fake_objects() > before);
	h.len = (uint32_t)keys_release_put(buf, &k.id, 1);
	assert_int_equal(raw_control(&f->control, &h, buf, h.len), IBV_WC_SUCCESS);
	while (verbs_fake_objects() != before) /* until the registrar has done it */
		sched_yield();
	assert_write_refused(f, &f->data, k.remote_va, k.rkey, 4096);
}

/* Invariant 4. */
static void write_after_revoke(void **state)
{
	struct key_granted k;
	struct fix *f = *state;

	open_channel(f);
	k = get_key(f);
	f->p->t->revoke(f->p->dst);
	assert_int_not_equal(raw_write(&f->data, k.remote_va, k.rkey, 4096), IBV_WC_SUCCESS);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		T(greeting_of_another_program),
		T(greeting_cut_short),
		T(no_greeting),
		T(impossible_greetings),
		T(misfit_channels),
		T(channel_that_is_late_for_the_count),
		T(channel_that_is_late_for_the_memory),
		T(channel_that_is_late_for_the_session),
		T(memory_is_taken_back_during_the_acceptance),
		T(crowd_of_silent_candidates),
		T(bad_control_frames),
		T(control_frame_without_header),
		T(control_frame_too_large),
		T(messages_beyond_the_window),
		T(frames_beyond_the_credits),
		T(no_receives),
		T(no_credits),
		T(hangs_up_without_bye),
		T(says_bye_at_once),
		T(bad_data_frames),
		T(push_that_was_declined),
		cmocka_unit_test_setup_teardown(push_that_was_not_asked_for, setup_push, teardown),
		cmocka_unit_test_setup_teardown(bad_pushes, setup_push, teardown),
		T(data_frame_without_header),
		T(never_says_end),
		T(goes_on_after_end),
		T(write_without_a_key),
		T(write_behind_what_was_granted),
		T(write_before_what_was_granted),
		T(write_on_the_control_queue),
		T(write_after_release),
		T(write_after_revoke),
	};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
