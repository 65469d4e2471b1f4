/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * The RDMA transport when work requests fail, get lost or are late, when queues break,
 * and when the device goes away in the middle: over the fake verbs device.  The error
 * names device and queue pair and says the completion's status in words.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include "error.h"
#include "verbs.h"
#include "verbs_fake.h"
#include "verbs_pair.h"

#define MIB (1ull << 20)

/* The whole test's state: a pair, with somebody who serves at the destination. */
struct transfer {
	struct verbs_pair *p;
	pthread_t servers[PAIR_CHANNELS];
	bool serving;
};

static int setup(void **state)
{
	struct transfer *t = calloc(1, sizeof(*t));

	t->p = pair_new();
	t->p->src_env.peer_timeout_ms = t->p->dst_env.peer_timeout_ms = 5000;
	*state = t;
	return 0;
}

static void stop_serving(struct transfer *t)
{
	if (!t->serving)
		return;
	t->p->t->abort(t->p->dst);
	for (unsigned i = 0; i < PAIR_CHANNELS; i++)
		pthread_join(t->servers[i], NULL);
	t->serving = false;
}

static int teardown(void **state)
{
	struct transfer *t = *state;

	verbs_fake_reset(); /* closing has no faults */
	stop_serving(t);
	pair_delete(t->p);
	free(t);
	return 0;
}

/* Open everything. */
static struct verbs_pair *open_pair(struct transfer *t)
{
	if (pair_open(t->p))
		fail_msg("%s", t->p->err.message);
	pair_serve(t->p, t->servers);
	t->serving = true;
	return t->p;
}

/* From here on the source waits for 3 times 100 ms where nothing comes. */
static void hurry(struct verbs_pair *p)
{
	((struct verbs_conn *)p->src)->env.peer_timeout_ms = 100;
}

/* Write everything, then a fence.  0 or the first error. */
static int write_all(struct verbs_pair *p)
{
	int rc = pair_write(p, 0, 0, 0, p->size, MIB);

	return rc ? rc : p->t->fence(p->sc[0], &p->err);
}

/* Writing everything fails with @code on channel 0, and says @what. */
static void assert_channel_dies(struct verbs_pair *p, int code, const char *what)
{
	assert_int_equal(write_all(p), code);
	pair_assert_says(&p->err, what);
	pair_assert_says(&p->err, "device fake0, queue pair ");
	assert_int_equal(p->err.scope, TERN_SCOPE_CHANNEL);
	assert_int_equal(p->err.channel, 0);
	assert_true(verbs_fake_fired() > 0);
	/* It stays so. */
	assert_int_equal(p->t->fence(p->sc[0], NULL), code);
}

/* The control queue of the source fails with @code, and says @what; all calls know it. */
static void assert_control_dies(struct verbs_pair *p, int code, const char *what)
{
	char buf[16];

	assert_int_equal(p->t->recv(p->src, buf, sizeof(buf), 5000, &p->err), code);
	pair_assert_says(&p->err, what);
	pair_assert_says(&p->err, "device fake0, queue pair ");
	assert_int_equal(p->t->send(p->src, "x", 1, 5000, NULL), code);
	assert_int_equal(write_all(p), code);
}

/* --- failed work requests --- */

static void retry_exceeded(void **state)
{
	struct verbs_pair *p = open_pair(*state);

	verbs_fake_wc(FAKE_WR_WRITE, 3, IBV_WC_RETRY_EXC_ERR);
	assert_channel_dies(p, -ETIMEDOUT, "transport retry counter exceeded (status 12)");
}

static void rnr_exceeded(void **state)
{
	struct verbs_pair *p = open_pair(*state);

	verbs_fake_wc(FAKE_WR_WRITE, 2, IBV_WC_RNR_RETRY_EXC_ERR);
	assert_channel_dies(p, -ETIMEDOUT, "RNR retry counter exceeded");
}

static void remote_access_error(void **state)
{
	struct verbs_pair *p = open_pair(*state);

	verbs_fake_wc(FAKE_WR_WRITE, 1, IBV_WC_REM_ACCESS_ERR);
	assert_channel_dies(p, -EIO, "remote access error");
}

static void local_protection_error(void **state)
{
	struct verbs_pair *p = open_pair(*state);

	verbs_fake_wc(FAKE_WR_WRITE, 4, IBV_WC_LOC_PROT_ERR);
	assert_channel_dies(p, -EIO, "local protection error");
}

static void fence_is_not_delivered(void **state)
{
	struct verbs_pair *p = open_pair(*state);

	assert_int_equal(write_all(p), 0);
	verbs_fake_wc(FAKE_WR_FRAME, 1, IBV_WC_RETRY_EXC_ERR);
	assert_channel_dies(p, -ETIMEDOUT, "transport retry counter exceeded");
}

/* The destination's answer fails: its serve() says why, and the source does not hang. */
static void answer_is_not_delivered(void **state)
{
	struct transfer *t = *state;
	struct verbs_pair *p = t->p;
	struct tern_error err = { 0 };
	char buf[TRANSPORT_SERVE_MAX];
	size_t contents;

	assert_int_equal(pair_open(p), 0);
	hurry(p);
	verbs_fake_wc(FAKE_WR_ANSWER, 1, IBV_WC_RETRY_EXC_ERR);
	assert_int_equal(p->t->notify(p->sc[0], "n", 1, &p->err), 0);
	assert_int_equal(p->t->serve(p->dc[0], buf, &contents, &err), 1);
	pair_serve(p, t->servers);
	t->serving = true;
	assert_int_equal(p->t->fence(p->sc[0], &p->err), -ETIMEDOUT);
	pair_assert_says(&p->err, "took nothing on channel 0 for 300 ms");
	pthread_join(t->servers[0], NULL);
	assert_int_equal(p->t->serve(p->dc[0], buf, &contents, &err), -ETIMEDOUT);
	pair_assert_says(&err, "transport retry counter exceeded");
	p->t->abort(p->dst);
	pthread_join(t->servers[1], NULL);
	t->serving = false;
}

static void control_retry_exceeded(void **state)
{
	struct verbs_pair *p = open_pair(*state);

	verbs_fake_wc(FAKE_WR_CONTROL, 1, IBV_WC_RETRY_EXC_ERR);
	assert_int_equal(p->t->send(p->src, "x", 1, 5000, NULL), 0);
	assert_control_dies(p, -ECONNRESET, "transport retry counter exceeded (status 12)");
}

static void control_rnr_exceeded(void **state)
{
	struct verbs_pair *p = open_pair(*state);

	verbs_fake_wc(FAKE_WR_CONTROL, 1, IBV_WC_RNR_RETRY_EXC_ERR);
	assert_int_equal(p->t->send(p->src, "x", 1, 5000, NULL), 0);
	assert_control_dies(p, -ECONNRESET, "RNR retry counter exceeded");
}

/* --- completions that never come, or late --- */

/* One in the middle: those after it tell as much. */
static void completion_lost_in_the_middle(void **state)
{
	struct verbs_pair *p = open_pair(*state);

	verbs_fake_wc(FAKE_WR_WRITE, 5, FAKE_WC_LOST);
	assert_int_equal(write_all(p), 0);
	assert_int_equal(verbs_fake_fired(), 1);
	assert_memory_equal(p->dmem[0], p->smem[0], p->size);
}

static void last_completion_lost(void **state)
{
	struct verbs_pair *p = open_pair(*state);

	assert_int_equal(write_all(p), 0);
	hurry(p);
	verbs_fake_wc(FAKE_WR_FRAME, 1, FAKE_WC_LOST);
	assert_int_equal(p->t->fence(p->sc[0], &p->err), -ETIMEDOUT);
	pair_assert_says(&p->err, "took nothing on channel 0 for 300 ms");
	pair_assert_says(&p->err, "device fake0, queue pair ");
}

/* The destination never hears of the fence. */
static void fence_unheard(void **state)
{
	struct verbs_pair *p = open_pair(*state);

	assert_int_equal(write_all(p), 0);
	hurry(p);
	verbs_fake_wc(FAKE_WR_FRAME, 1, FAKE_WC_UNHEARD);
	assert_int_equal(p->t->fence(p->sc[0], &p->err), -ETIMEDOUT);
	pair_assert_says(&p->err, "device fake0, queue pair ");
}

static void request_of_keys_unheard(void **state)
{
	struct verbs_pair *p = open_pair(*state);

	hurry(p);
	verbs_fake_wc(FAKE_WR_CONTROL, 1, FAKE_WC_UNHEARD);
	assert_int_equal(write_all(p), -ETIMEDOUT);
	assert_true(p->err.message[0]);
}

static void keys_unheard(void **state)
{
	struct verbs_pair *p = open_pair(*state);

	hurry(p);
	verbs_fake_wc(FAKE_WR_CONTROL_BACK, 1, FAKE_WC_UNHEARD);
	assert_int_equal(write_all(p), -ETIMEDOUT);
	assert_true(p->err.message[0]);
}

/* A slot of the control queue is gone for ever, and nothing else. */
static void control_completion_lost(void **state)
{
	struct verbs_pair *p = open_pair(*state);
	char buf[16];

	verbs_fake_wc(FAKE_WR_CONTROL, 1, FAKE_WC_LOST);
	for (unsigned i = 0; i < 200; i++) {
		assert_int_equal(p->t->send(p->src, "x", 1, 5000, &p->err), 0);
		assert_int_equal(p->t->recv(p->dst, buf, sizeof(buf), 5000, &p->err), 1);
	}
	assert_int_equal(write_all(p), 0);
	assert_int_equal(verbs_fake_fired(), 1);
}

struct fencer {
	struct verbs_pair *p;
	pthread_t thread;
	atomic_bool done;
	int rc;
};

static void *fencer_run(void *opaque)
{
	struct fencer *f = opaque;

	f->rc = f->p->t->fence(f->p->sc[0], &f->p->err);
	atomic_store(&f->done, true);
	return NULL;
}

/* A fence is not over before every write is complete, whoever answered it. */
static void late_completions(void **state)
{
	struct verbs_pair *p = open_pair(*state);
	struct fencer f = { .p = p };

	assert_int_equal(pair_write(p, 0, 0, 0, MIB, MIB), 0);
	assert_int_equal(p->t->fence(p->sc[0], &p->err), 0);
	verbs_fake_hold(true);
	assert_int_equal(pair_write(p, 0, 0, 0, MIB, MIB), 0);
	assert_int_equal(pthread_create(&f.thread, NULL, fencer_run, &f), 0);
	while (verbs_fake_held() < 3) /* the write, the fence, and the answer to it */
		sched_yield();
	assert_false(atomic_load(&f.done));
	verbs_fake_hold(false);
	pthread_join(f.thread, NULL);
	assert_int_equal(f.rc, 0);
	assert_memory_equal(p->dmem[0], p->smem[0], MIB);
}

struct notifier {
	struct verbs_pair *p;
	pthread_t thread;
	atomic_uint sent;
	int rc;
};

#define NOTIFIES 600u

static void *notifier_run(void *opaque)
{
	struct notifier *n = opaque;

	for (unsigned i = 0; i < NOTIFIES && !n->rc; i++) {
		n->rc = n->p->t->notify(n->p->sc[0], "x", 1, &n->p->err);
		atomic_fetch_add(&n->sent, 1);
	}
	if (!n->rc)
		n->rc = n->p->t->fence(n->p->sc[0], &n->p->err);
	return NULL;
}

/*
 * The destination owes credits and has no send slot for them, because completions are
 * late: they go when it has one.
 */
static void credits_wait_for_a_slot(void **state)
{
	struct verbs_pair *p = open_pair(*state);
	struct notifier n = { .p = p };

	verbs_fake_hold_answers(true);
	assert_int_equal(pthread_create(&n.thread, NULL, notifier_run, &n), 0);
	/* All slots hold half a ring of credits, and what those allow was sent. */
	while (verbs_fake_held() < CHAN_SLOTS ||
	       atomic_load(&n.sent) < CHAN_RING + CHAN_SLOTS * CHAN_RING / 2)
		sched_yield();
	assert_int_equal(verbs_fake_held(), CHAN_SLOTS);
	verbs_fake_hold_answers(false);
	pthread_join(n.thread, NULL);
	if (n.rc)
		fail_msg("%s", p->err.message);
}

/* --- queues that break --- */

static void channel_queue_in_error(void **state)
{
	struct verbs_pair *p = open_pair(*state);

	assert_int_equal(write_all(p), 0);
	verbs_fake_qp_error(true);
	assert_int_equal(write_all(p), -ECONNRESET);
	pair_assert_says(&p->err, "Work Request Flushed Error");
	pair_assert_says(&p->err, "device fake0, queue pair ");
}

static void control_queue_in_error(void **state)
{
	struct verbs_pair *p = open_pair(*state);

	verbs_fake_qp_error(false);
	assert_control_dies(p, -ECONNRESET, "Work Request Flushed Error");
}

static void polling_a_channel_fails(void **state)
{
	struct transfer *t = *state;
	struct verbs_pair *p = t->p;

	assert_int_equal(pair_open(p), 0); /* nobody serves: the source alone polls */
	verbs_fake_fail(FAKE_POLL_CHANNEL, 5, EIO);
	assert_channel_dies(p, -EIO, "Polling the completions of channel 0 failed");
}

static void arming_a_channel_fails(void **state)
{
	struct transfer *t = *state;
	struct verbs_pair *p = t->p;

	assert_int_equal(pair_open(p), 0);
	verbs_fake_fail(FAKE_NOTIFY_CHANNEL, 1, EIO);
	assert_int_equal(write_all(p), -EIO);
	pair_assert_says(
		&p->err,
		"Arming the completion queue of channel 0 failed (device fake0, queue pair ");
}

/* Whose pump meets it first is chance; the other side is then told by the end. */
static void polling_the_control_queue_fails(void **state)
{
	struct verbs_pair *p = open_pair(*state);
	char buf[16];

	verbs_fake_fail_from(FAKE_POLL_CONTROL, 1, EIO);
	assert_int_equal(p->t->send(p->dst, "x", 1, 5000, NULL), 0); /* wakes both pumps */
	assert_int_equal(p->t->recv(p->src, buf, sizeof(buf), 5000, &p->err), -EIO);
	pair_assert_says(&p->err, "Polling the completions of the control queue to 127.0.0.1");
	pair_assert_says(&p->err, "device fake0, queue pair ");
}

static void arming_the_control_queue_fails(void **state)
{
	struct verbs_pair *p = open_pair(*state);
	char buf[16];

	long n;

	verbs_fake_fail_from(FAKE_NOTIFY_CONTROL, 1, EIO);
	assert_int_equal(p->t->send(p->dst, "x", 1, 5000, NULL), 0);
	do /* the message itself may come first */
		n = p->t->recv(p->src, buf, sizeof(buf), 5000, &p->err);
	while (n > 0);
	assert_int_equal(n, -EIO);
	pair_assert_says(&p->err, "Arming the completions of the control queue to 127.0.0.1");
}

/* --- posting --- */

static void posting_a_write_fails(void **state)
{
	struct verbs_pair *p = open_pair(*state);

	verbs_fake_fail(FAKE_POST_WRITE, 1, ENOMEM);
	assert_channel_dies(p, -ENOMEM, "Posting writes on channel 0");
}

static void posting_a_frame_fails(void **state)
{
	struct transfer *t = *state;
	struct verbs_pair *p = t->p;

	assert_int_equal(pair_open(p), 0);
	verbs_fake_fail(FAKE_POST_FRAME, 1, EIO);
	assert_channel_dies(p, -EIO, "Sending on channel 0");
}

static void posting_a_message_fails(void **state)
{
	struct verbs_pair *p = open_pair(*state);

	verbs_fake_fail(FAKE_POST_CONTROL, 1, EIO);
	assert_int_equal(p->t->send(p->src, "x", 1, 5000, NULL), -EIO);
	assert_control_dies(p, -EIO, "Sending on the control queue to 127.0.0.1");
}

/* @code from the device: recv() fails with -EIO. */
static void assert_receive_fails(struct verbs_pair *p, int code)
{
	struct tern_error err = { 0 };
	char buf[16];

	assert_int_equal(pair_open(p), 0);
	verbs_fake_fail(FAKE_POST_RECV, 1, code);
	assert_int_equal(p->t->send(p->src, "x", 1, 5000, NULL), 0);
	assert_int_equal(p->t->recv(p->dst, buf, sizeof(buf), 5000, &err), 1);
	assert_int_equal(p->t->recv(p->dst, buf, sizeof(buf), 5000, &err), -EIO);
	pair_assert_says(&err, "Posting a receive of the control queue to 127.0.0.1");
	pair_assert_says(&err, "device fake0, queue pair ");
}

static void posting_a_receive_fails(void **state)
{
	assert_receive_fails(((struct transfer *)*state)->p, EIO);
}

/* A code that means to recv() that nothing has come yet: it has to end all the same. */
static void posting_a_receive_fails_for_now(void **state)
{
	assert_receive_fails(((struct transfer *)*state)->p, EAGAIN);
}

/* --- the device goes away --- */

static void device_removed(void **state)
{
	struct verbs_pair *p = open_pair(*state);
	char buf[16];

	verbs_fake_remove_device();
	assert_int_equal(p->t->recv(p->src, buf, sizeof(buf), 5000, &p->err), -ENODEV);
	pair_assert_says(&p->err, "The RDMA device fake0 was removed");
	assert_int_equal(write_all(p), -ENODEV);
	assert_int_equal(p->t->recv(p->dst, buf, sizeof(buf), 5000, NULL), -ENODEV);
}

static void device_removed_while_listening(void **state)
{
	struct transfer *t = *state;
	struct verbs_pair *p = t->p;
	struct uri uri = { .scheme = URI_RDMA, .port = "0" };
	struct transport_listener *l;
	struct transport_conn *c;

	assert_int_equal(p->t->listen(p->t, &p->dst_env, &uri, &l, &p->err), 0);
	verbs_fake_remove_device();
	assert_int_equal(p->t->accept(l, 5000, &c, &p->err), -ENODEV);
	pair_assert_says(&p->err, "The RDMA device was removed");
	p->t->listener_close(l);
}

/* Invariant 4: after revoke() a write fails, and the memory stays as it is. */
static void write_after_revoke_fails(void **state)
{
	const struct transport_range r = { 0, 0, MIB };
	struct verbs_pair *p = open_pair(*state);
	int rc;

	assert_int_equal(p->t->write(p->sc[0], &r, 1, &p->err), 0);
	p->t->revoke(p->dst);
	memset(p->dmem[0], 0x11, p->size);
	rc = p->t->write(p->sc[0], &r, 1, &p->err);
	if (!rc)
		rc = p->t->fence(p->sc[0], &p->err);
	assert_true(rc < 0);
	for (uint64_t i = 0; i < p->size; i++)
		if (p->dmem[0][i] != 0x11)
			fail_msg("byte %llu changed", (unsigned long long)i);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		T(retry_exceeded),
		T(rnr_exceeded),
		T(remote_access_error),
		T(local_protection_error),
		T(fence_is_not_delivered),
		T(answer_is_not_delivered),
		T(control_retry_exceeded),
		T(control_rnr_exceeded),
		T(completion_lost_in_the_middle),
		T(last_completion_lost),
		T(fence_unheard),
		T(request_of_keys_unheard),
		T(keys_unheard),
		T(control_completion_lost),
		T(late_completions),
		T(credits_wait_for_a_slot),
		T(channel_queue_in_error),
		T(control_queue_in_error),
		T(polling_a_channel_fails),
		T(arming_a_channel_fails),
		T(polling_the_control_queue_fails),
		T(arming_the_control_queue_fails),
		T(posting_a_write_fails),
		T(posting_a_frame_fails),
		T(posting_a_message_fails),
		T(posting_a_receive_fails),
		T(posting_a_receive_fails_for_now),
		T(device_removed),
		T(device_removed_while_listening),
		T(write_after_revoke_fails),
	};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
