/* SPDX-License-Identifier: BSD-2-Clause */

/* The fault layer does what its rules say, and tells the two sides apart. */

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>
#include "fault_transport.h"
#include "loop.h"
#include "transport.h"
#include "uri.h"

#define WAIT_MS 5000

struct fix {
	struct loop_net *loop;
	struct fault_net *net;
	const struct transport *t;
	struct transport_listener *listener;
	struct transport_conn *src, *dst;
	struct transport_channel *sc, *dc;
	uint8_t smem[8192], dmem[8192];
};

static void *open_run(void *opaque)
{
	struct fix *f = opaque;

	return (void *)(intptr_t)f->t->open_channels(f->dst, 1, &f->dc, NULL);
}

/* What the loop transport does not have; the results show that the arguments came through. */
static int marked_prepare(struct transport_channel *ch, const struct transport_range *ranges,
			  unsigned nr, struct tern_error *err)
{
	return ch->index == 0 && ranges[nr - 1].len == 8192 ? -(int)nr : -EINVAL;
}

static void marked_conn_stats(const struct transport_conn *conn, struct transport_conn_stats *out)
{
	out->registration_bytes += 77;
}

/* A connected pair with one channel over the layer; the inner transport has all @optional calls. */
static void fix_start_with(struct fix *f, bool optional)
{
	const struct transport_env env = {
		.peer_timeout_ms = WAIT_MS,
		.chunk_bytes = 8192,
		.push = true,
	};
	const struct uri uri = { .scheme = URI_UNIX, .path = "fault" };
	const uint8_t id[TRANSPORT_SESSION_ID_LEN] = "id";
	struct transport_memory s = { .hva = f->smem, .size = sizeof(f->smem), .fd = -1 };
	struct transport_memory d = { .hva = f->dmem, .size = sizeof(f->dmem), .fd = -1 };
	pthread_t thread;
	char buf[16];

	memset(f->smem, 1, sizeof(f->smem));
	memset(f->dmem, 0, sizeof(f->dmem));
	f->loop = loop_net_new();
	if (optional) {
		struct transport *inner = (struct transport *)loop_net_transport(f->loop);

		inner->prepare = marked_prepare;
		inner->conn_stats = marked_conn_stats;
	}
	f->net = fault_net_new(loop_net_transport(f->loop));
	f->t = fault_net_transport(f->net);
	assert_int_equal(f->t->listen(f->t, &env, &uri, &f->listener, NULL), 0);
	assert_int_equal(f->t->connect(f->t, &env, &uri, id, -1, &f->src, NULL), 0);
	assert_int_equal(f->t->send(f->src, "hi", 2, WAIT_MS, NULL), 0);
	assert_int_equal(f->t->accept(f->listener, WAIT_MS, &f->dst, NULL), 0);
	assert_int_equal(f->t->recv(f->dst, buf, sizeof(buf), WAIT_MS, NULL), 2);
	assert_int_equal(f->t->expose(f->src, &s, 1, NULL), 0);
	assert_int_equal(f->t->expose(f->dst, &d, 1, NULL), 0);
	assert_int_equal(pthread_create(&thread, NULL, open_run, f), 0);
	assert_int_equal(f->t->open_channels(f->src, 1, &f->sc, NULL), 0);
	pthread_join(thread, NULL);
}

static void fix_start(struct fix *f)
{
	fix_start_with(f, false);
}

static void fix_stop(struct fix *f)
{
	f->t->close(f->src);
	f->t->close(f->dst);
	f->t->listener_close(f->listener);
	fault_net_delete(f->net);
	loop_net_delete(f->loop);
}

static void add(struct fix *f, enum fault_side side, enum fault_op op, int type, unsigned nth,
		enum fault_action action)
{
	const struct fault_rule r = { side, op, type, nth, action, 1 };

	assert_int_equal(fault_net_add(f->net, &r), 0);
}

static void error_at_nth_call_of_one_side(void **state)
{
	const struct transport_range r = { 0, 0, 8192 };
	struct fix f;

	fix_start(&f);
	add(&f, FAULT_SOURCE, FAULT_WRITE, FAULT_ANY_TYPE, 2, FAULT_ERROR);
	assert_int_equal(f.t->write(f.sc, &r, 1, NULL), 0);
	assert_int_equal(f.t->write(f.sc, &r, 1, NULL), -EIO);
	assert_int_equal(f.t->write(f.sc, &r, 1, NULL), 0);
	assert_int_equal(fault_net_fired(f.net), 1);
	assert_int_equal(fault_net_calls(f.net, FAULT_SOURCE, FAULT_WRITE), 3);
	assert_int_equal(fault_net_calls(f.net, FAULT_DESTINATION, FAULT_WRITE), 0);
	fix_stop(&f);
}

static void cut_before_message_type(void **state)
{
	struct fix f;
	char buf[16];

	fix_start(&f);
	add(&f, FAULT_SOURCE, FAULT_SEND, 0x0207, 1, FAULT_CUT);
	assert_int_equal(f.t->send(f.src, "\7\1", 2, WAIT_MS, NULL), 0);
	assert_int_equal(f.t->send(f.src, "\7\2", 2, WAIT_MS, NULL), -ECONNRESET);
	assert_int_equal(f.t->recv(f.dst, buf, sizeof(buf), WAIT_MS, NULL), 2);
	assert_int_equal(buf[1], 1);
	assert_int_equal(f.t->recv(f.dst, buf, sizeof(buf), WAIT_MS, NULL), -ECONNRESET);
	fix_stop(&f);
}

static void cut_after_message_type(void **state)
{
	struct fix f;
	char buf[16];

	fix_start(&f);
	add(&f, FAULT_SOURCE, FAULT_SEND, 0x0107, 1, FAULT_CUT_AFTER);
	assert_int_equal(f.t->send(f.src, "\7\1", 2, WAIT_MS, NULL), 0);
	assert_int_equal(f.t->send(f.src, "\7\1", 2, WAIT_MS, NULL), -ECONNRESET);
	assert_int_equal(f.t->recv(f.dst, buf, sizeof(buf), WAIT_MS, NULL), 2);
	assert_int_equal(f.t->recv(f.dst, buf, sizeof(buf), WAIT_MS, NULL), -ECONNRESET);
	fix_stop(&f);
}

static void swallow_on_either_side(void **state)
{
	struct fix f;
	char buf[16];

	fix_start(&f);
	add(&f, FAULT_SOURCE, FAULT_SEND, 'a' | 'a' << 8, 1, FAULT_SWALLOW);
	add(&f, FAULT_DESTINATION, FAULT_RECV, 'b' | 'b' << 8, 1, FAULT_SWALLOW);
	assert_int_equal(f.t->send(f.src, "aa", 2, WAIT_MS, NULL), 0);
	assert_int_equal(f.t->send(f.src, "bb", 2, WAIT_MS, NULL), 0);
	assert_int_equal(f.t->send(f.src, "cc", 2, WAIT_MS, NULL), 0);
	assert_int_equal(f.t->recv(f.dst, buf, sizeof(buf), WAIT_MS, NULL), 2);
	assert_int_equal(buf[0], 'c');
	assert_int_equal(fault_net_fired(f.net), 2);
	fix_stop(&f);
}

static void short_write_then_cut(void **state)
{
	const struct transport_range r = { 0, 0, 8192 };
	struct fix f;
	char buf[TRANSPORT_SERVE_MAX];
	size_t contents;

	fix_start(&f);
	add(&f, FAULT_SOURCE, FAULT_WRITE, FAULT_ANY_TYPE, 1, FAULT_SHORT);
	assert_int_equal(f.t->write(f.sc, &r, 1, NULL), -ECONNRESET);
	assert_int_equal(f.dmem[4095], 1);
	assert_int_equal(f.dmem[4096], 0);
	assert_int_equal(f.t->serve(f.dc, buf, &contents, NULL), -ECONNRESET);
	fix_stop(&f);
}

/* The second push fails without having been made, the third dies with the link. */
static void push_fails_then_cut(void **state)
{
	const struct transport_range r = { 0, 4096, 100 };
	char buf[TRANSPORT_SERVE_MAX];
	size_t contents;
	struct fix f;

	fix_start(&f);
	add(&f, FAULT_SOURCE, FAULT_PUSH, FAULT_ANY_TYPE, 2, FAULT_ERROR);
	add(&f, FAULT_SOURCE, FAULT_PUSH, FAULT_ANY_TYPE, 3, FAULT_SHORT);
	assert_int_equal(f.t->push(f.sc, "one", 3, &r, NULL), 0);
	assert_int_equal(f.t->push(f.sc, "two", 3, &r, NULL), -EIO);
	assert_int_equal(f.t->serve(f.dc, buf, &contents, NULL), 103);
	assert_int_equal(contents, 100);
	assert_memory_equal(buf, "one\1", 4);
	assert_int_equal(f.t->push(f.sc, "three", 5, &r, NULL), -ECONNRESET);
	assert_int_equal(f.t->serve(f.dc, buf, &contents, NULL), -ECONNRESET);
	assert_int_equal(fault_net_calls(f.net, FAULT_SOURCE, FAULT_PUSH), 3);
	assert_int_equal(fault_net_calls(f.net, FAULT_SOURCE, FAULT_NOTIFY), 0);
	fix_stop(&f);
}

static void optional_calls_are_passed_on(void **state)
{
	const struct transport_range r[2] = { { 0, 0, 4096 }, { 0, 0, 8192 } };
	struct transport_conn_stats st = { .registration_bytes = 1 };
	struct fix f;

	fix_start_with(&f, true);
	add(&f, FAULT_SOURCE, FAULT_PREPARE, FAULT_ANY_TYPE, 2, FAULT_ERROR);
	add(&f, FAULT_SOURCE, FAULT_PREPARE, FAULT_ANY_TYPE, 3, FAULT_CUT);
	assert_int_equal(f.t->prepare(f.sc, r, 2, NULL), -2);
	assert_int_equal(f.t->prepare(f.sc, r, 2, NULL), -EIO);
	assert_int_equal(fault_net_fired(f.net), 1);
	f.t->conn_stats(f.src, &st);
	assert_int_equal(st.registration_bytes, 78);
	assert_int_equal(f.t->prepare(f.sc, r, 2, NULL), -2);
	assert_int_equal(fault_net_fired(f.net), 2);
	assert_int_equal(f.t->fence(f.sc, NULL), -ECONNRESET); /* it was cut */
	assert_int_equal(fault_net_calls(f.net, FAULT_SOURCE, FAULT_PREPARE), 3);
	fix_stop(&f);
}

static void optional_calls_stay_absent(void **state)
{
	struct fix f;

	fix_start(&f);
	assert_null(f.t->prepare);
	assert_null(f.t->conn_stats);
	fix_stop(&f);
}

static void *fence_run(void *opaque)
{
	struct fix *f = opaque;

	return (void *)(intptr_t)f->t->fence(f->sc, NULL);
}

static void stall_ends_with_abort(void **state)
{
	struct fix f;
	pthread_t thread;
	void *rc;

	fix_start(&f);
	add(&f, FAULT_SOURCE, FAULT_FENCE, FAULT_ANY_TYPE, 1, FAULT_STALL);
	assert_int_equal(pthread_create(&thread, NULL, fence_run, &f), 0);
	while (!fault_net_fired(f.net))
		;
	f.t->abort(f.src);
	pthread_join(thread, &rc);
	assert_int_equal((intptr_t)rc, -ECANCELED);
	fix_stop(&f);
}

static void stall_ends_with_release(void **state)
{
	struct fix f;
	pthread_t thread;
	void *rc;

	fix_start(&f);
	add(&f, FAULT_SOURCE, FAULT_FENCE, FAULT_ANY_TYPE, 1, FAULT_STALL);
	assert_int_equal(pthread_create(&thread, NULL, fence_run, &f), 0);
	while (!fault_net_fired(f.net))
		;
	fault_net_release(f.net);
	pthread_join(thread, &rc);
	assert_int_equal((intptr_t)rc, 0);
	fix_stop(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(error_at_nth_call_of_one_side),
		cmocka_unit_test(cut_before_message_type),
		cmocka_unit_test(cut_after_message_type),
		cmocka_unit_test(swallow_on_either_side),
		cmocka_unit_test(short_write_then_cut),
		cmocka_unit_test(push_fails_then_cut),
		cmocka_unit_test(optional_calls_are_passed_on),
		cmocka_unit_test(optional_calls_stay_absent),
		cmocka_unit_test(stall_ends_with_abort),
		cmocka_unit_test(stall_ends_with_release),
	};

	return cmocka_run_group_tests_name("fault_transport", tests, NULL, NULL);
}
