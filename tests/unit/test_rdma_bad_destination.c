/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * A hostile destination, made of bare verbs, against a real source: refusals, greetings,
 * keys and answers that must not be.  Each has to end in one sentence that names what
 * was wrong, soon, with nothing left behind.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "error.h"
#include "raw_peer.h"
#include "verbs.h"
#include "verbs_fake.h"
#include "verbs_pair.h"

#define NR(a) (sizeof(a) / sizeof((a)[0]))
#define SIZE (4ull << 20)

/* A source, and the queue pairs it has to the peer. */
struct fix {
	const struct transport *t;
	struct transport_env env;
	struct raw_listener l;
	struct raw_peer control, data;
	struct transport_conn *src;
	struct transport_channel *sc;
	uint8_t *mem;
	pthread_t thread;
	bool busy; /* the thread runs */
	int rc; /* of the thread */
	struct tern_error err;
};

static int setup(void **state)
{
	struct fix *f = calloc(1, sizeof(*f));

	verbs_fake_reset();
	f->t = &rdma_transport;
	f->env = (struct transport_env){ .peer_timeout_ms = 5000, .chunk_bytes = 1 << 20 };
	raw_listen(&f->l);
	*state = f;
	return 0;
}

/* The source's call on the thread is over; its result. */
static int finished(struct fix *f)
{
	pthread_join(f->thread, NULL);
	f->busy = false;
	return f->rc;
}

static int teardown(void **state)
{
	struct fix *f = *state;

	raw_close(&f->data);
	raw_close(&f->control);
	if (f->busy)
		(void)finished(f);
	if (f->src)
		f->t->close(f->src);
	raw_unlisten(&f->l);
	assert_int_equal(verbs_fake_objects(), 0);
	free(f->mem);
	free(f);
	return 0;
}

static void start(struct fix *f, void *(*call)(void *))
{
	assert_int_equal(pthread_create(&f->thread, NULL, call, f), 0);
	f->busy = true;
}

/* ---- what the source does meanwhile, on its thread ---- */

static void *connect_run(void *opaque)
{
	const uint8_t id[TRANSPORT_SESSION_ID_LEN] = "raw peer";
	struct fix *f = opaque;

	f->rc = f->t->connect(f->t, &f->env, &f->l.uri, id, -1, &f->src, &f->err);
	return NULL;
}

static void *open_run(void *opaque)
{
	struct fix *f = opaque;

	f->rc = f->t->open_channels(f->src, 1, &f->sc, &f->err);
	return NULL;
}

/* One page, and a fence. */
static void *write_run(void *opaque)
{
	const struct transport_range r = { 0, 0, 4096 };
	struct fix *f = opaque;

	f->rc = f->t->write(f->sc, &r, 1, &f->err);
	if (!f->rc)
		f->rc = f->t->fence(f->sc, &f->err);
	return NULL;
}

/* ---- steps of a good destination ---- */

static void take_control(struct fix *f)
{
	const struct greeting g = raw_greeting(GREETING_CONTROL);

	start(f, connect_run);
	raw_welcome(&f->control, &f->l, &g);
	assert_int_equal(finished(f), 0);
}

/* With memory, and a channel on its way. */
static void take_memory(struct fix *f)
{
	struct transport_memory m = { .size = SIZE, .fd = -1, .numa_node = -1 };

	take_control(f);
	f->mem = aligned_alloc(4096, SIZE);
	memset(f->mem, 0x33, SIZE);
	m.hva = f->mem;
	assert_int_equal(f->t->expose(f->src, &m, 1, &f->err), 0);
	start(f, open_run);
}

/* With a channel that is open. */
static void take_channel(struct fix *f)
{
	const struct greeting g = raw_greeting(GREETING_DATA);

	take_memory(f);
	raw_welcome(&f->data, &f->l, &g);
	assert_int_equal(finished(f), 0);
}

/* The source writes a page: the range it wants a key for. */
static struct key_wanted take_wanted(struct fix *f)
{
	struct key_wanted v[KEYS_BATCH];
	struct ctl_header h;
	const uint8_t *frame;
	long n;

	take_channel(f);
	start(f, write_run);
	do {
		n = raw_recv(&f->control, &frame);
		assert_true(n >= (long)CTL_HEADER_LEN);
		ctl_header_get(frame, &h);
	} while (h.type != CTL_KEYS_WANTED);
	assert_int_equal(keys_wanted_get(frame + CTL_HEADER_LEN, h.len, v), 1);
	return v[0];
}

static void send_key(struct fix *f, const struct key_granted *k)
{
	uint8_t buf[KEYS_HEAD_LEN + KEYS_LEN];
	struct ctl_header h = { .type = CTL_KEYS };

	h.len = (uint32_t)keys_put(buf, k, 1);
	assert_int_equal(raw_control(&f->control, &h, buf, h.len), IBV_WC_SUCCESS);
}

/* A good key for @w into the peer's own memory. */
static struct ibv_mr *send_good_key(struct fix *f, const struct key_wanted *w, uint8_t *mem)
{
	struct ibv_mr *mr = ibv_reg_mr(f->data.pd, mem, w->len,
				       IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE);
	struct key_granted k = { .id = w->id, .channel = w->channel };

	assert_non_null(mr);
	k.remote_va = (uintptr_t)mem;
	k.rkey = mr->rkey;
	send_key(f, &k);
	return mr;
}

/* The source's control queue ends with @code and says @what. */
static void assert_control_ends(struct fix *f, int code, const char *what)
{
	struct tern_error err = { 0 };
	char buf[TRANSPORT_MSG_MAX];
	long n;

	do
		n = f->t->recv(f->src, buf, sizeof(buf), 5000, &err);
	while (n > 0);
	assert_int_equal(n, code);
	pair_assert_says(&err, what);
	pair_assert_says(&err, "127.0.0.1:");
}

/* ---- refusals ---- */

static void refusals(void **state)
{
	static const struct {
		unsigned code, value;
		int rc;
		const char *what;
	} bad[] = {
		{ REFUSAL_VERSION, 7, -EPROTONOSUPPORT, "speaks version 7 of the RDMA framing" },
		{ REFUSAL_SESSION, 0, -ENOENT, "does not know the session" },
		{ REFUSAL_TAKEN, 0, -EBUSY, "has that data channel already" },
		{ REFUSAL_COUNT, 3, -EPROTO, "it expects 3 channels" },
		{ REFUSAL_BUSY, 0, -EBUSY, "no room for another connection" },
		{ REFUSAL_GREETING, 0, -EPROTO, "found impossible values" },
		{ REFUSAL_PIECE, 4096, -EPROTO, "in pieces of 4096 bytes" },
		{ 65535, 1, -EBUSY, "(code 65535)" },
	};

	for (size_t i = 0; i < NR(bad); i++) {
		const struct refusal r = { .version = GREETING_VERSION,
					   .code = (uint16_t)bad[i].code,
					   .value = bad[i].value };
		uint8_t buf[REFUSAL_LEN];
		struct fix *f = *state;

		refusal_put(buf, &r);
		start(f, connect_run);
		raw_reject(&f->l, buf, sizeof(buf));
		assert_int_equal(finished(f), bad[i].rc);
		pair_assert_says(&f->err, bad[i].what);
		error_clear(&f->err);
	}
}

static void refusal_cut_short(void **state)
{
	struct fix *f = *state;

	start(f, connect_run);
	raw_reject(&f->l, "TERNRDMA", 8);
	assert_int_equal(finished(f), -ECONNREFUSED);
	pair_assert_says(&f->err, "rejected the RDMA connection (reason 28)");
}

/* ---- greetings ---- */

static void accepts_without_greeting(void **state)
{
	struct fix *f = *state;

	start(f, connect_run);
	raw_accept(&f->control, &f->l, NULL, 0, RAW_SLOTS);
	assert_int_equal(finished(f), -EPROTO);
	pair_assert_says(&f->err, "without a greeting");
}

static void impossible_greetings(void **state)
{
	static const struct {
		size_t at; /* of a u16 in struct greeting */
		uint16_t value;
		int rc;
		const char *what;
	} bad[] = {
#define BAD(field_, value_, rc_, what_) { offsetof(struct greeting, field_), value_, rc_, what_ }
		BAD(version, 2, -EPROTONOSUPPORT, "speaks version 2"),
		BAD(kind, 9, -EPROTO, "kind is 9"),
		BAD(ring, 0, -EPROTO, "ring is 0"),
		BAD(ring, 4, -EPROTO, "ring is 4"),
		BAD(ring, 65535, -EPROTO, "ring is 65535"),
		BAD(msg_window, 0, -EPROTO, "message window is 0"),
		BAD(msg_window, 4097, -EPROTO, "message window is 4097"),
		BAD(piece_bytes, 4096, -EPROTO, "in pieces of 2101248 bytes, this side of 2097152"),
		BAD(flags, 2, -EPROTO, "wants features 0x2 of the RDMA framing, this side offered"),
	};

	for (size_t i = 0; i < NR(bad); i++) {
		struct greeting g = raw_greeting(GREETING_CONTROL);
		struct fix *f = *state;

		memcpy((char *)&g + bad[i].at, &bad[i].value, sizeof(uint16_t));
		start(f, connect_run);
		raw_welcome(&f->control, &f->l, &g);
		assert_int_equal(finished(f), bad[i].rc);
		pair_assert_says(&f->err, bad[i].what);
		teardown(state);
		setup(state);
	}
}

static void greets_as_a_channel(void **state)
{
	const struct greeting g = raw_greeting(GREETING_DATA);
	struct fix *f = *state;

	start(f, connect_run);
	raw_welcome(&f->control, &f->l, &g);
	assert_int_equal(finished(f), -EPROTO);
	pair_assert_says(&f->err, "127.0.0.1:");
	pair_assert_says(&f->err, "kind");
}

/* ---- control frames ---- */

static void bad_control_frames(void **state)
{
	static const struct {
		struct ctl_header h;
		size_t len;
		const char *what;
	} bad[] = {
		{ { .type = 0 }, 0, "the type of a frame is 0" },
		{ { .type = 7 }, 0, "the type of a frame is 7" },
		{ { .type = CTL_MSG, .len = 9 }, 8, "the payload length of a frame is 9" },
		{ { .type = CTL_KEYS_WANTED, .len = 8 }, 8, "which this side cannot take" },
		{ { .type = CTL_KEYS_RELEASE, .len = 8 }, 8, "which this side cannot take" },
		{ { .type = CTL_KEYS, .len = 8 }, 8, "keys in a frame of 8 bytes" },
		{ { .type = CTL_KEYS }, 0, "keys in a frame of 0 bytes" },
		{ { .type = CTL_CREDIT, .credits = 60000 }, 0, "credits outstanding" },
	};

	for (size_t i = 0; i < NR(bad); i++) {
		const uint8_t zeros[16] = { 0 };
		struct fix *f = *state;

		take_channel(f);
		(void)raw_control(&f->control, &bad[i].h, zeros, bad[i].len);
		assert_control_ends(f, -EPROTO, bad[i].what);
		teardown(state);
		setup(state);
	}
}

/* ---- keys ---- */

/* It never answers. */
static void keys_never_come(void **state)
{
	struct fix *f = *state;

	f->env.peer_timeout_ms = 300;
	(void)take_wanted(f);
	assert_int_equal(finished(f), -ETIMEDOUT);
	pair_assert_says(&f->err, "127.0.0.1:");
	pair_assert_says(&f->err, "device fake0");
}

static void key_is_refused(void **state)
{
	struct key_wanted w;
	struct fix *f = *state;

	w = take_wanted(f);
	send_key(f, &(struct key_granted){ .id = w.id, .status = -EPERM, .channel = w.channel });
	assert_int_equal(finished(f), -EPERM);
	pair_assert_says(&f->err, "The destination 127.0.0.1:");
	pair_assert_says(&f->err, "could not register");
}

/* A status that is no errno. */
static void key_status_is_nonsense(void **state)
{
	struct key_wanted w;
	struct fix *f = *state;

	w = take_wanted(f);
	send_key(f, &(struct key_granted){ .id = w.id, .status = 12345, .channel = w.channel });
	assert_int_equal(finished(f), -EPROTO);
	assert_true(f->err.message[0]);
}

/* A status that means "not yet" elsewhere: this is for good. */
static void key_is_refused_for_now(void **state)
{
	struct key_wanted w;
	struct fix *f = *state;

	w = take_wanted(f);
	send_key(f, &(struct key_granted){ .id = w.id, .status = -EAGAIN, .channel = w.channel });
	assert_int_equal(finished(f), -EIO);
	pair_assert_says(&f->err, "could not register");
}

static void key_of_nothing(void **state)
{
	struct key_wanted w;
	struct fix *f = *state;

	w = take_wanted(f);
	send_key(f, &(struct key_granted){
			    .id = w.id, .remote_va = 4096, .rkey = 77, .channel = w.channel });
	assert_int_equal(finished(f), -EIO);
	pair_assert_says(&f->err, "remote access error");
	pair_assert_says(&f->err, "device fake0, queue pair ");
}

/* ---- answers on the channel ---- */

/* The source wants to push, and the destination does not say that it takes pushes. */
static void takes_no_pushes(void **state)
{
	const struct greeting g = raw_greeting(GREETING_DATA);
	struct fix *f = *state;

	f->env.push = true;
	take_memory(f);
	raw_welcome(&f->data, &f->l, &g);
	assert_int_equal(finished(f), -EPROTONOSUPPORT);
	pair_assert_says(&f->err, "takes no contents with messages on channel 0");
}

static void bad_data_frames(void **state)
{
	static const struct {
		struct data_header h;
		size_t len;
		const char *what;
	} bad[] = {
		{ { .type = 0 }, 0, "type 0" },
		{ { .type = DATA_NOTIFY, .len = 1 }, 1, "type 1" },
		{ { .type = DATA_FENCE, .seq = 1 }, 0, "type 2" },
		{ { .type = DATA_END }, 0, "type 4" },
		{ { .type = 99 }, 0, "type 99" },
		{ { .type = DATA_CREDIT, .len = 5 }, 0, "length field does not fit" },
		{ { .type = DATA_CREDIT, .credits = 5000 }, 0, "credits" },
		{ { .type = DATA_FENCE_ACK, .seq = 0 }, 0, "answered fence 0" },
		{ { .type = DATA_FENCE_ACK, .seq = 1 }, 0, "answered fence 1" },
		{ { .type = DATA_FENCE_ACK, .seq = UINT64_MAX }, 0, "answered fence 1844" },
	};

	for (size_t i = 0; i < NR(bad); i++) {
		const uint8_t zeros[16] = { 0 };
		struct fix *f = *state;

		(void)take_wanted(f); /* the source is at work, and waits for the key */
		(void)raw_data(&f->data, &bad[i].h, zeros, bad[i].len);
		assert_int_equal(finished(f), -EPROTO);
		pair_assert_says(&f->err, bad[i].what);
		pair_assert_says(&f->err, "The peer 127.0.0.1:");
		assert_int_equal(f->err.scope, TERN_SCOPE_CHANNEL);
		teardown(state);
		setup(state);
	}
}

/* Wait for the fence of the source's write. */
static void take_fence(struct fix *f)
{
	struct data_header h;
	const uint8_t *frame;

	do {
		assert_true(raw_recv(&f->data, &frame) >= (long)DATA_HEADER_LEN);
		data_header_get(frame, &h);
	} while (h.type != DATA_FENCE);
	assert_int_equal(h.seq, 1);
}

/* The write lands, and the fence is never answered; or twice. */
static void fence_never_answered(void **state)
{
	struct fix *f = *state;
	struct key_wanted w;
	struct ibv_mr *mr;
	uint8_t *mem = aligned_alloc(4096, 4096);

	f->env.peer_timeout_ms = 300;
	w = take_wanted(f);
	mr = send_good_key(f, &w, mem);
	take_fence(f);
	assert_int_equal(finished(f), -ETIMEDOUT);
	pair_assert_says(&f->err, "took nothing on channel 0 for 900 ms");
	assert_memory_equal(mem, f->mem, 4096);
	ibv_dereg_mr(mr);
	free(mem);
}

static void fence_answered_twice(void **state)
{
	const struct data_header ack = { .type = DATA_FENCE_ACK, .seq = 1 };
	struct fix *f = *state;
	struct key_wanted w;
	struct ibv_mr *mr;
	uint8_t *mem = aligned_alloc(4096, 4096);

	w = take_wanted(f);
	mr = send_good_key(f, &w, mem);
	take_fence(f);
	assert_int_equal(raw_data(&f->data, &ack, NULL, 0), IBV_WC_SUCCESS);
	assert_int_equal(finished(f), 0);
	assert_int_equal(raw_data(&f->data, &ack, NULL, 0), IBV_WC_SUCCESS);
	assert_int_equal(f->t->fence(f->sc, &f->err), -EPROTO);
	pair_assert_says(&f->err, "answered fence 1 on channel 0, due was 2");
	ibv_dereg_mr(mr);
	free(mem);
}

/* It has no receives for what the source sends. */
static void no_receives(void **state)
{
	const struct greeting g = raw_greeting(GREETING_CONTROL);
	struct fix *f = *state;
	uint8_t buf[GREETING_LEN];

	greeting_put(buf, &g);
	start(f, connect_run);
	raw_accept(&f->control, &f->l, buf, sizeof(buf), 0);
	assert_int_equal(finished(f), 0);
	assert_int_equal(f->t->send(f->src, "hello", 5, 5000, &f->err), 0);
	assert_control_ends(f, -ECONNRESET, "RNR retry counter exceeded");
}

static void hangs_up(void **state)
{
	struct fix *f = *state;

	(void)take_wanted(f);
	raw_close(&f->data);
	assert_int_equal(finished(f), -ECONNRESET);
	pair_assert_says(&f->err, "channel 0");
	raw_close(&f->control);
	assert_control_ends(f, -ECONNRESET, "closed the connection without a word");
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		T(refusals),
		T(refusal_cut_short),
		T(accepts_without_greeting),
		T(impossible_greetings),
		T(greets_as_a_channel),
		T(bad_control_frames),
		T(keys_never_come),
		T(key_is_refused),
		T(key_status_is_nonsense),
		T(key_is_refused_for_now),
		T(key_of_nothing),
		T(takes_no_pushes),
		T(bad_data_frames),
		T(fence_never_answered),
		T(fence_answered_twice),
		T(no_receives),
		T(hangs_up),
	};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
