/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * Memory windows: whose key opens what, who has windows at all, and what happens when
 * they fail, over the fake verbs device.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "verbs.h"
#include "verbs_fake.h"
#include "verbs_pair.h"

#define MIB (1ull << 20)

static int setup(void **state)
{
	*state = pair_new();
	return 0;
}

static int teardown(void **state)
{
	verbs_fake_reset();
	pair_delete(*state);
	return 0;
}

/* Write @len bytes at 0 on channel @ch and wait until they are complete here. */
static void must_write(struct verbs_pair *p, unsigned ch, uint64_t len)
{
	struct verbs_channel *c = to_channel(p->sc[ch]);
	int64_t deadline = vchan_patience(c);

	assert_int_equal(pair_write(p, ch, 0, 0, len, len), 0);
	for (;;) {
		int rc = vchan_advance(c, &p->err);

		if (!rc && !c->nr_pending && c->sq_head == c->sq_tail)
			return;
		if (rc || vchan_wait(c, &deadline, &p->err))
			fail_msg("%s", p->err.message);
	}
}

static uint64_t registered(const struct verbs_pair *p, const struct transport_conn *c)
{
	struct transport_conn_stats st = { 0 };

	p->t->conn_stats(c, &st);
	return st.registration_bytes;
}

/* Each channel has a window of its own over one registration. */
static void a_window_per_channel(void **state)
{
	struct verbs_pair *p = *state;

	assert_int_equal(pair_open(p), 0);
	assert_int_equal(verbs_fake_mws(), 0);
	must_write(p, 0, MIB);
	assert_int_equal(verbs_fake_mws(),
			 2); /* of the first extent, which is small, and the rest */
	must_write(p, 0, MIB);
	assert_int_equal(verbs_fake_mws(), 2);
	must_write(p, 1, MIB);
	assert_int_equal(verbs_fake_mws(), 4);
	assert_int_equal(registered(p, p->dst), MIB);
	assert_int_equal(registered(p, p->src), MIB);
	assert_memory_equal(p->smem[0], p->dmem[0], MIB);
}

/* Post a write of one page with @key on @ch, behind the transport's back.  The completion. */
static enum ibv_wc_status write_with(struct verbs_channel *ch, const struct extent_key *key)
{
	const struct verbs_write v = {
		.local = (uintptr_t)key->extent->mr->addr,
		.len = PAIR_PAGE,
		.lkey = key->extent->mr->lkey,
		.remote = key->remote_va,
		.rkey = key->rkey,
	};
	struct ibv_wc wc;
	unsigned taken;

	assert_int_equal(vqp_write(&ch->q, 1, &v, 1, &taken), 0);
	assert_int_equal(ibv_poll_cq(ch->cq, 1, &wc), 1);
	return wc.status;
}

static const struct extent_key *first_key(struct verbs_pair *p)
{
	const struct extent_key *key = &to_conn(p->src)->keys.by_id[0]->key;

	assert_int_equal(atomic_load(&key->state), KEY_READY);
	return key;
}

/* The key that one channel was given is worth nothing on the other. */
static void key_of_another_channel(void **state)
{
	struct verbs_pair *p = *state;

	assert_int_equal(pair_open(p), 0);
	must_write(p, 0, MIB);
	memset(p->dmem[0], 0x11, MIB);
	assert_int_equal(write_with(to_channel(p->sc[1]), first_key(p)), IBV_WC_REM_ACCESS_ERR);
	assert_int_equal(p->dmem[0][0], 0x11);
	assert_int_equal(write_with(to_channel(p->sc[0]), first_key(p)), IBV_WC_SUCCESS);
	assert_memory_equal(p->dmem[0], p->smem[0], PAIR_PAGE);
}

/* Without windows it opens the memory to all data channels, but not to the control queue. */
static void key_without_windows(void **state)
{
	struct verbs_pair *p = *state;
	const struct extent_key *key;
	struct verbs_conn *c;
	struct verbs_write v;
	unsigned taken;
	char buf[16];

	p->dst_env.no_windows = true;
	assert_int_equal(pair_open(p), 0);
	must_write(p, 0, MIB);
	assert_int_equal(verbs_fake_mws(), 0);
	key = first_key(p);
	memset(p->dmem[0], 0x11, MIB);
	assert_int_equal(write_with(to_channel(p->sc[1]), key), IBV_WC_SUCCESS);
	assert_memory_equal(p->dmem[0], p->smem[0], PAIR_PAGE);
	memset(p->dmem[0], 0x11, MIB);
	c = to_conn(p->src);
	v = (struct verbs_write){ (uintptr_t)c->ctl.buf, key->remote_va, 64, c->ctl.mr->lkey,
				  key->rkey };
	assert_int_equal(vqp_write(&c->ctl.q, 1, &v, 1, &taken), 0);
	assert_true(p->t->recv(p->src, buf, sizeof(buf), 5000, &p->err) < 0);
	assert_int_equal(p->dmem[0][0], 0x11);
}

/* Invariant 4: a write that is posted after revoke() fails, whatever keys there are. */
static void write_after_revoke(void **state, bool windows)
{
	struct verbs_pair *p = *state;

	p->src_env.no_windows = !windows;
	assert_int_equal(pair_open(p), 0);
	must_write(p, 0, MIB);
	p->t->revoke(p->dst);
	memset(p->dmem[0], 0x11, MIB);
	assert_int_not_equal(write_with(to_channel(p->sc[0]), first_key(p)), IBV_WC_SUCCESS);
	assert_true(pair_write(p, 0, 0, 0, MIB, MIB) || p->t->fence(p->sc[0], &p->err));
	for (uint64_t i = 0; i < MIB; i++)
		if (p->dmem[0][i] != 0x11)
			fail_msg("byte %llu changed", (unsigned long long)i);
}

static void write_after_revoke_with_windows(void **state)
{
	write_after_revoke(state, true);
}

static void write_after_revoke_without_windows(void **state)
{
	write_after_revoke(state, false);
}

/* Windows go with what they are bound to, when room is needed. */
static void windows_are_released(void **state)
{
	struct verbs_pair *p = *state;

	p->src_env.lock_budget = 4 * MIB;
	assert_int_equal(pair_open(p), 0);
	assert_int_equal(pair_write(p, 0, 0, 0, 16 * MIB, MIB), 0);
	assert_int_equal(p->t->notify(p->sc[0], "n", 1, &p->err), 0);
	assert_in_range(verbs_fake_mws(), 1, 4);
	assert_memory_equal(p->smem[0], p->dmem[0], 16 * MIB);
}

static void device_without_windows(void **state)
{
	struct verbs_pair *p = *state;

	verbs_fake_device_attr()->device_cap_flags = 0;
	assert_int_equal(pair_open(p), 0);
	must_write(p, 0, MIB);
	assert_int_equal(verbs_fake_mws(), 0);
}

static void source_without_windows(void **state)
{
	struct verbs_pair *p = *state;

	p->src_env.no_windows = true;
	assert_int_equal(pair_open(p), 0);
	must_write(p, 0, MIB);
	assert_int_equal(verbs_fake_mws(), 0);
}

/* Windows that run out are like memory that runs out: others are released. */
static void windows_run_out_once(void **state)
{
	struct verbs_pair *p = *state;

	assert_int_equal(pair_open(p), 0);
	must_write(p, 0, MIB);
	verbs_fake_fail(FAKE_MW, 1, ENOMEM);
	assert_int_equal(pair_write(p, 0, 0, 4 * MIB, MIB, MIB), 0);
	assert_int_equal(p->t->notify(p->sc[0], "n", 1, &p->err), 0);
	assert_int_equal(verbs_fake_fired(), 1);
	assert_int_equal(verbs_fake_mws(), 1);
	assert_memory_equal(p->smem[0] + 4 * MIB, p->dmem[0] + 4 * MIB, MIB);
}

static void windows_run_out_for_good(void **state)
{
	struct verbs_pair *p = *state;
	int rc;

	assert_int_equal(pair_open(p), 0);
	verbs_fake_fail_from(FAKE_MW, 1, ENOMEM);
	rc = pair_write(p, 0, 0, 0, MIB, MIB);
	if (!rc)
		rc = p->t->notify(p->sc[0], "n", 1, &p->err);
	assert_int_equal(rc, -ENOMEM);
	pair_assert_says(&p->err, "KiB of guest memory for RDMA: Cannot allocate");
}

/* The same with EAGAIN, which a limit on objects of the device (rdma.max) gives. */
static void windows_meet_a_limit_once(void **state)
{
	struct verbs_pair *p = *state;

	assert_int_equal(pair_open(p), 0);
	must_write(p, 0, MIB);
	verbs_fake_fail(FAKE_MW, 1, EAGAIN);
	assert_int_equal(pair_write(p, 0, 0, 4 * MIB, MIB, MIB), 0);
	assert_int_equal(p->t->notify(p->sc[0], "n", 1, &p->err), 0);
	assert_int_equal(verbs_fake_fired(), 1);
	assert_memory_equal(p->smem[0] + 4 * MIB, p->dmem[0] + 4 * MIB, MIB);
}

#define FIRST (16 * PAIR_PAGE) /* what the first extent covers */

/* No window for a second channel, over memory that is registered: something idle goes. */
static void second_window_takes_room(void **state)
{
	struct verbs_pair *p = *state;

	assert_int_equal(pair_open(p), 0);
	must_write(p, 0, MIB);
	assert_int_equal(verbs_fake_mws(), 2);
	verbs_fake_fail(FAKE_MW, 1, ENOMEM);
	must_write(p, 1, FIRST);
	assert_int_equal(verbs_fake_fired(), 1);
	assert_int_equal(verbs_fake_mws(), 2);
	assert_int_equal(to_conn(p->src)->keys.here, FIRST);
}

/* There never is a window for the second channel: that is the end, and is said. */
static void second_window_is_refused(struct verbs_pair *p)
{
	int rc;

	assert_int_equal(pair_open(p), 0);
	must_write(p, 0, MIB);
	verbs_fake_fail_from(FAKE_MW, 1, ENOMEM);
	rc = pair_write(p, 1, 0, 0, MIB, MIB);
	if (!rc)
		rc = p->t->notify(p->sc[1], "n", 1, &p->err);
	assert_int_equal(rc, -ENOMEM);
	pair_assert_says(&p->err, "KiB of guest memory for RDMA: Cannot allocate");
}

/* Nothing is idle. */
static void no_second_window(void **state)
{
	second_window_is_refused(*state);
	assert_in_range(verbs_fake_fired(), 2, 6);
}

/* The same when nothing may be let go of. */
static void no_second_window_with_pin_all(void **state)
{
	struct verbs_pair *p = *state;

	p->src_env.pin_all = p->dst_env.pin_all = true;
	second_window_is_refused(p);
}

/* Is there nothing that a registrar does, or is going to?  keys.lock is held. */
static bool at_rest(const struct keys *k)
{
	bool rest = !k->nr_asking;

	for (unsigned i = 0; i < k->nr_registrars; i++)
		rest &= !k->registrars[i].busy && !k->registrars[i].queue;
	return rest;
}

/*
 * Bytes that the source has asked for, when it is at rest and as many windows are bound as
 * there are to be.  A release is counted after it was sent: the destination may be faster.
 */
static uint64_t there_with_windows(struct verbs_pair *p, unsigned nr)
{
	struct keys *k = &to_conn(p->src)->keys;
	uint64_t there;
	bool rest;

	do {
		sched_yield();
		pthread_mutex_lock(&k->lock);
		there = k->there;
		rest = at_rest(k);
		pthread_mutex_unlock(&k->lock);
	} while (!rest || verbs_fake_mws() != nr);
	return there;
}

/* Nobody wants the second window any more when it is refused: what it is for is let go of. */
static void second_window_nobody_wants(void **state)
{
	const struct transport_range first = { 0, 0, FIRST }, other = { 0, 4 * MIB, PAIR_PAGE };
	struct verbs_pair *p = *state;
	struct keys *dst;
	int rc;

	assert_int_equal(pair_open(p), 0);
	must_write(p, 0, FIRST);
	dst = &to_conn(p->dst)->keys;
	verbs_fake_fail(FAKE_MW, 1, ENOMEM);
	pthread_mutex_lock(&dst->lock); /* the refusal waits for what follows */
	rc = p->t->prepare(p->sc[1], &first, 1, &p->err);
	if (!rc)
		rc = p->t->prepare(p->sc[1], &other, 1, &p->err);
	pthread_mutex_unlock(&dst->lock);
	assert_int_equal(rc, 0);
	assert_int_equal(there_with_windows(p, 1), PAIR_PAGE);
	assert_int_equal(verbs_fake_fired(), 1);
}

static void assert_destination_dies(struct verbs_pair *p, int code, const char *what)
{
	struct tern_error err = { 0 };
	char buf[16];

	assert_int_equal(p->t->recv(p->dst, buf, sizeof(buf), 5000, &err), code);
	pair_assert_says(&err, what);
}

static void binding_is_not_posted(void **state)
{
	struct verbs_pair *p = *state;

	assert_int_equal(pair_open(p), 0);
	verbs_fake_fail(FAKE_POST_BIND, 1, EIO);
	assert_int_equal(pair_write(p, 0, 0, 0, MIB, MIB), 0);
	assert_destination_dies(p, -EIO,
				"Binding a memory window for channel 0 failed (device fake0");
}

static void binding_fails(void **state)
{
	struct verbs_pair *p = *state;

	assert_int_equal(pair_open(p), 0);
	verbs_fake_wc(FAKE_WR_BIND, 1, IBV_WC_MW_BIND_ERR);
	assert_int_equal(pair_write(p, 0, 0, 0, MIB, MIB), 0);
	assert_destination_dies(p, -EIO, "memory management operation error; try --no-windows");
}

/* More bindings at once than a send queue takes: they follow one another. */
static void more_bindings_than_room(void **state)
{
	struct verbs_pair *p = *state;

	assert_int_equal(pair_open(p), 0);
	for (uint64_t i = 0; i < 500; i++)
		assert_int_equal(pair_write(p, 0, 0, i * 2 * PAIR_PAGE, PAIR_PAGE, PAIR_PAGE), 0);
	assert_int_equal(p->t->notify(p->sc[0], "n", 1, &p->err), 0);
	assert_int_equal(verbs_fake_mws(), 500);
	for (uint64_t i = 0; i < 500; i++)
		assert_memory_equal(p->smem[0] + i * 2 * PAIR_PAGE, p->dmem[0] + i * 2 * PAIR_PAGE,
				    PAIR_PAGE);
}

/* ---- requests of a source that breaks the rules ---- */

static void send_wanted(struct verbs_pair *p, const struct key_wanted *v, unsigned nr)
{
	uint8_t buf[KEYS_HEAD_LEN + KEYS_BATCH * KEYS_WANTED_LEN];

	assert_int_equal(control_queue(to_conn(p->src), CTL_KEYS_WANTED, buf,
				       (uint32_t)keys_wanted_put(buf, v, nr)),
			 0);
}

static void same_channel_twice(void **state)
{
	const struct key_wanted v[2] = { { 5, 0, 0, 4096, 1 }, { 5, 0, 0, 4096, 1 } };
	struct verbs_pair *p = *state;

	assert_int_equal(pair_open(p), 0);
	send_wanted(p, v, 2);
	assert_destination_dies(p, -EPROTO, "its channel has that key");
}

static void same_number_for_another_range(void **state)
{
	const struct key_wanted v[2] = { { 5, 0, 0, 4096, 0 }, { 5, 0, 4096, 4096, 1 } };
	struct verbs_pair *p = *state;

	assert_int_equal(pair_open(p), 0);
	send_wanted(p, v, 2);
	assert_destination_dies(p, -EPROTO, "the number is in use for another range");
}

static void channel_out_of_range(void **state)
{
	const struct key_wanted v = { 5, 0, 0, 4096, 64 };
	struct verbs_pair *p = *state;

	assert_int_equal(pair_open(p), 0);
	send_wanted(p, &v, 1);
	assert_destination_dies(p, -EPROTO, "its channel is out of range");
}

/* A channel's key where windows are off. */
static void channel_without_windows(void **state)
{
	const struct key_wanted v = { 5, 0, 0, 4096, 0 };
	struct verbs_pair *p = *state;

	p->dst_env.no_windows = true;
	assert_int_equal(pair_open(p), 0);
	send_wanted(p, &v, 1);
	assert_destination_dies(p, -EPROTO, "its channel is out of range");
}

/* A channel that is not connected gets no window; our source did not ask. */
static void channel_not_connected(void **state)
{
	const struct key_wanted v = { 5, 0, 0, 4096, 9 };
	struct verbs_pair *p = *state;
	char buf[16];

	assert_int_equal(pair_open(p), 0);
	send_wanted(p, &v, 1);
	assert_int_equal(p->t->recv(p->src, buf, sizeof(buf), 5000, &p->err), -EPROTO);
	pair_assert_says(&p->err, "number 5 for channel 9");
	assert_int_equal(verbs_fake_mws(), 0);
}

/* Released while its window is being bound. */
static void release_before_the_answer(void **state)
{
	uint8_t buf[KEYS_HEAD_LEN + KEYS_RELEASE_LEN];
	const struct key_wanted v = { 5, 0, 0, 4096, 0 };
	struct verbs_pair *p = *state;
	uint32_t id = 5;

	assert_int_equal(pair_open(p), 0);
	verbs_fake_wc(FAKE_WR_BIND, 1, FAKE_WC_LOST);
	send_wanted(p, &v, 1);
	assert_int_equal(control_queue(to_conn(p->src), CTL_KEYS_RELEASE, buf,
				       (uint32_t)keys_release_put(buf, &id, 1)),
			 0);
	assert_destination_dies(p, -EPROTO, "released the key with number 5");
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		T(a_window_per_channel),
		T(key_of_another_channel),
		T(key_without_windows),
		T(write_after_revoke_with_windows),
		T(write_after_revoke_without_windows),
		T(windows_are_released),
		T(device_without_windows),
		T(source_without_windows),
		T(windows_run_out_once),
		T(windows_run_out_for_good),
		T(windows_meet_a_limit_once),
		T(second_window_takes_room),
		T(no_second_window),
		T(no_second_window_with_pin_all),
		T(second_window_nobody_wants),
		T(binding_is_not_posted),
		T(binding_fails),
		T(more_bindings_than_room),
		T(same_channel_twice),
		T(same_number_for_another_range),
		T(channel_out_of_range),
		T(channel_without_windows),
		T(channel_not_connected),
		T(release_before_the_answer),
	};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
