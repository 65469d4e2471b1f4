/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * A destination over the fake verbs device, and a source that greets well and then
 * sends any frames on its two queue pairs:
 *
 *	input    records of u8 where (bit 0: data channel), u16 length, bytes of a frame
 *
 * The source posts no writes, so guest memory must stay as it is; the destination must
 * end soon after the source has hung up, with a sentence unless it was in order; and
 * nothing of the device may be left.
 */

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "fuzz.h"
#include "raw_peer.h"
#include "rdma_transport.h"
#include "verbs_fake.h"

#define SIZE (64u << 10)
#define BOUND_MS 10000
#define RECORDS_MAX 60u /* fewer than receives, so that none has to be waited for */

struct run {
	const struct transport *t;
	struct transport_env env;
	struct transport_listener *listener;
	struct transport_conn *dst;
	struct transport_channel *channel;
	struct raw_peer control, data;
	struct uri uri;
	uint8_t *mem;
	long served;
	struct tern_error serve_err;
};

/* Take the connection, then its channel. */
static void *acceptor_run(void *opaque)
{
	struct run *r = opaque;
	struct transport_conn *c;

	if (r->t->accept(r->listener, BOUND_MS, &c, NULL))
		return NULL;
	__atomic_store_n(&r->dst, c, __ATOMIC_RELEASE);
	while (!r->t->accept(r->listener, -1, &c, NULL))
		r->t->close(c);
	return NULL;
}

static void *server_run(void *opaque)
{
	struct run *r = opaque;
	char buf[TRANSPORT_SERVE_MAX];
	size_t contents;

	do {
		r->served = r->t->serve(r->channel, buf, &contents, &r->serve_err);
		FUZZ_CHECK(r->served <= 0 || contents < (size_t)r->served,
			   "%zu bytes of contents in %ld", contents, r->served);
	} while (r->served > 0);
	return NULL;
}

/* Both sides up to where the input begins. */
static void begin(struct run *r)
{
	struct transport_memory m = { .hva = r->mem, .size = SIZE, .fd = -1, .numa_node = -1 };
	const struct greeting control = raw_greeting(GREETING_CONTROL);
	struct greeting data = raw_greeting(GREETING_DATA);
	const struct ctl_header hello = { .type = CTL_MSG, .len = 5 };
	struct tern_error err = { 0 };
	char buf[16];

	FUZZ_CHECK(raw_greet(&r->control, &r->uri, &control), "a good greeting is refused");
	(void)raw_control(&r->control, &hello, "hello", 5);
	while (!__atomic_load_n(&r->dst, __ATOMIC_ACQUIRE))
		sched_yield();
	FUZZ_CHECK(r->t->recv(r->dst, buf, sizeof(buf), BOUND_MS, &err) == 5, "%s", err.message);
	FUZZ_CHECK(!r->t->expose(r->dst, &m, 1, &err), "%s", err.message);
	data.flags = GREETING_PUSH;
	FUZZ_CHECK(raw_greet(&r->data, &r->uri, &data), "a good channel is refused");
	FUZZ_CHECK(!r->t->open_channels(r->dst, 1, &r->channel, &err), "%s", err.message);
}

/* Send what the input says, until the device refuses. */
static void feed(struct run *r, const uint8_t *data, size_t size)
{
	for (unsigned i = 0; i < RECORDS_MAX && size >= 3; i++) {
		struct raw_peer *to = data[0] & 1 ? &r->data : &r->control;
		size_t len = (size_t)fuzz_read_int(data + 1, 2);

		data += 3;
		size -= 3;
		len = len < size ? len : size;
		len = len < RAW_SLOT ? len : RAW_SLOT;
		if (!len || raw_send(to, data, len) != IBV_WC_SUCCESS)
			return;
		data += len;
		size -= len;
	}
}

/* The destination's end.  True if the source closed in order, by its judgement. */
static bool finish(struct run *r)
{
	struct tern_error err = { 0 };
	char buf[TRANSPORT_MSG_MAX];
	long n;

	do
		n = r->t->recv(r->dst, buf, sizeof(buf), BOUND_MS, &err);
	while (n > 0);
	FUZZ_CHECK(!n || err.message[0], "the connection ended with %ld and without a sentence", n);
	FUZZ_CHECK(!n || !strstr(err.message, "No control message came"),
		   "the connection does not end");
	return !n;
}

enum fuzz_reach fuzz_one(const uint8_t *data, size_t size, unsigned patience_ms)
{
	struct run r = {
		.t = &rdma_transport,
		.env = { .peer_timeout_ms = BOUND_MS, .chunk_bytes = SIZE, .push = true },
		.uri = { .scheme = URI_RDMA, .host = "127.0.0.1", .port = "0" },
		.mem = aligned_alloc(4096, SIZE),
	};
	struct tern_error err = { 0 };
	pthread_t acceptor, server;
	char text[128];
	bool orderly;

	(void)patience_ms;
	memset(r.mem, FUZZ_PATTERN, SIZE);
	FUZZ_CHECK(!r.t->listen(r.t, &r.env, &r.uri, &r.listener, &err), "%s", err.message);
	r.t->listener_uri(r.listener, text, sizeof(text));
	FUZZ_CHECK(!uri_parse(text, &r.uri, &err), "%s", err.message);
	FUZZ_CHECK(!pthread_create(&acceptor, NULL, acceptor_run, &r), "no thread");
	begin(&r);
	FUZZ_CHECK(!pthread_create(&server, NULL, server_run, &r), "no thread");
	feed(&r, data, size);
	raw_close(&r.data);
	raw_close(&r.control);
	orderly = finish(&r);
	r.t->abort(r.dst);
	pthread_join(server, NULL);
	r.t->listener_stop(r.listener);
	pthread_join(acceptor, NULL);
	r.t->close(r.dst);
	r.t->listener_close(r.listener);
	FUZZ_CHECK(r.served >= 0 || r.serve_err.message[0], "serve() failed without a sentence");
	FUZZ_CHECK(!verbs_fake_objects(), "%u objects are left", verbs_fake_objects());
	for (unsigned i = 0; i < SIZE; i++)
		FUZZ_CHECK(r.mem[i] == FUZZ_PATTERN, "byte %u of memory changed", i);
	free(r.mem);
	return orderly ? FUZZ_FULL : FUZZ_PARTLY;
}
