/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * Registration: registrars per NUMA node, the lock budget, memory that runs out, over
 * the fake verbs device; and a peer that answers wrongly.
 */

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "verbs.h"
#include "verbs_fake.h"
#include "verbs_pair.h"

#define MIB (1ull << 20)

static int setup(void **state)
{
	*state = pair_new();
	return 0;
}

static int setup_without_windows(void **state)
{
	struct verbs_pair *p = pair_new();

	p->src_env.no_windows = true;
	*state = p;
	return 0;
}

static int teardown(void **state)
{
	pair_delete(*state);
	return 0;
}

static int64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* Threads of this process that are called @name. */
static unsigned threads_named(const char *name)
{
	DIR *dir = opendir("/proc/self/task");
	struct dirent *d;
	unsigned nr = 0;

	assert_non_null(dir);
	while ((d = readdir(dir))) {
		char path[300], comm[32] = "";
		FILE *f;

		snprintf(path, sizeof(path), "/proc/self/task/%s/comm", d->d_name);
		f = fopen(path, "r");
		if (!f)
			continue;
		if (fgets(comm, sizeof(comm), f))
			comm[strcspn(comm, "\n")] = 0;
		fclose(f);
		nr += !strcmp(comm, name);
	}
	closedir(dir);
	return nr;
}

/* Every byte of all regions is at the destination. */
static void assert_all_landed(const struct verbs_pair *p)
{
	for (unsigned i = 0; i < p->nr_regions; i++)
		assert_memory_equal(p->smem[i], p->dmem[i], p->size);
}

static uint64_t locked_peak(const struct verbs_pair *p, const struct transport_conn *c)
{
	struct transport_conn_stats st = { 0 };

	p->t->conn_stats(c, &st);
	return st.locked_peak_bytes;
}

/* One channel's part of all regions, as the engine sends it: prepare, write, at the end a fence. */
struct sender {
	struct verbs_pair *p;
	unsigned ch;
	uint64_t stripe; /* bytes prepared at once */
	pthread_t thread;
	int rc;
	struct tern_error err;
};

static void *sender_run(void *opaque)
{
	struct sender *s = opaque;
	struct verbs_pair *p = s->p;
	unsigned nr = 0;

	for (unsigned i = 0; i < p->nr_regions && !s->rc; i++) {
		for (uint64_t at = 0; at < p->size && !s->rc; at += s->stripe, nr++) {
			const struct transport_range all = { i, at, s->stripe };
			uint64_t half = s->stripe / 2;
			const struct transport_range v[2] = { { i, at, half },
							      { i, at + half, half } };

			if (nr % PAIR_CHANNELS != s->ch)
				continue;
			s->rc = p->t->prepare(p->sc[s->ch], &all, 1, &s->err);
			if (!s->rc)
				s->rc = p->t->write(p->sc[s->ch], v, 2, &s->err);
		}
	}
	if (!s->rc)
		s->rc = p->t->fence(p->sc[s->ch], &s->err);
	return NULL;
}

/* Send everything on both channels at once.  The first error. */
static int send_all(struct verbs_pair *p, uint64_t stripe)
{
	struct sender s[PAIR_CHANNELS] = { { p, 0, stripe }, { p, 1, stripe } };
	pthread_t server[PAIR_CHANNELS];

	pair_serve(p, server);
	for (unsigned i = 0; i < PAIR_CHANNELS; i++)
		assert_int_equal(pthread_create(&s[i].thread, NULL, sender_run, &s[i]), 0);
	for (unsigned i = 0; i < PAIR_CHANNELS; i++) {
		pthread_join(s[i].thread, NULL);
		if (s[i].rc && !p->err.code)
			p->err = s[i].err;
	}
	p->t->close(p->src);
	p->src = NULL;
	for (unsigned i = 0; i < PAIR_CHANNELS; i++)
		pthread_join(server[i], NULL);
	return p->err.code;
}

static void must_send_all(struct verbs_pair *p, uint64_t stripe)
{
	if (send_all(p, stripe))
		fail_msg("%s", p->err.message);
	assert_all_landed(p);
}

/* Nodes 0 and 1, on both sides; a region of no known node needs no thread of its own. */
static void a_registrar_per_node(void **state)
{
	struct verbs_pair *p = *state;

	p->nr_regions = 4;
	p->size = 2 * MIB;
	p->node[0] = p->node[2] = 0;
	p->node[1] = 1;
	assert_int_equal(pair_open(p), 0);
	for (int64_t end = now_ms() + 5000; threads_named("tern-rdma-reg") != 4 && now_ms() < end;)
		sched_yield(); /* threads name themselves */
	assert_int_equal(threads_named("tern-rdma-reg"), 4);
	must_send_all(p, MIB);
}

/* One budget for all nodes, less than what two channels want to hold at once. */
static void budget_is_shared_by_nodes(void **state)
{
	struct verbs_pair *p = *state;

	p->nr_regions = 4;
	p->size = 8 * MIB;
	for (int i = 0; i < 4; i++)
		p->node[i] = i % 2;
	p->src_env.lock_budget = 4 * MIB;
	assert_int_equal(pair_open(p), 0);
	must_send_all(p, 4 * MIB);
	assert_in_range(locked_peak(p, p->dst), 2 * MIB, 4 * MIB);
}

/* A stripe that is larger than the budget can never be prepared. */
static void prepare_above_the_budget(void **state)
{
	struct verbs_pair *p = *state;
	int64_t begin;

	p->src_env.lock_budget = 4 * MIB;
	assert_int_equal(pair_open(p), 0);
	begin = now_ms();
	assert_int_equal(send_all(p, 8 * MIB), -ENOMEM);
	assert_true(now_ms() - begin < 2500); /* not by a timeout */
	pair_assert_says(&p->err, "The lock budget of 4096 KiB is too small");
	pair_assert_says(&p->err, "--lock-budget");
}

/* Every other page exists: many more extents than the device has registrations. */
static void more_extents_than_registrations(void **state)
{
	struct verbs_pair *p = *state;
	const struct keys *k;
	pthread_t server[PAIR_CHANNELS];

	verbs_fake_device_attr()->max_mr = 600;
	assert_int_equal(pair_open(p), 0);
	k = &((struct verbs_conn *)p->src)->keys;
	assert_in_range(k->max_ids, 64, 599);
	pair_serve(p, server);
	for (uint64_t at = 0; at < p->size; at += 128 * PAIR_PAGE) {
		struct transport_range v[64];

		for (unsigned i = 0; i < 64; i++)
			v[i] = (struct transport_range){ 0, at + 2 * i * PAIR_PAGE, PAIR_PAGE };
		assert_int_equal(p->t->prepare(p->sc[0], v, 64, &p->err), 0);
		assert_int_equal(p->t->write(p->sc[0], v, 64, &p->err), 0);
	}
	assert_int_equal(p->t->fence(p->sc[0], &p->err), 0);
	assert_true(p->size / (2 * PAIR_PAGE) > k->max_ids);
	assert_in_range(k->nr_ids, 64, k->max_ids);
	p->t->close(p->src);
	p->src = NULL;
	for (unsigned i = 0; i < PAIR_CHANNELS; i++)
		pthread_join(server[i], NULL);
	for (uint64_t at = 0; at < p->size; at += 2 * PAIR_PAGE)
		assert_memory_equal(p->smem[0] + at, p->dmem[0] + at, PAIR_PAGE);
}

/* One prepare() names more ranges than that: nothing can help. */
static void registrations_run_out(void **state)
{
	struct verbs_pair *p = *state;
	struct transport_range v[64];

	verbs_fake_device_attr()->max_mr = 60;
	assert_int_equal(pair_open(p), 0);
	for (unsigned i = 0; i < 64; i++)
		v[i] = (struct transport_range){ 0, 2 * i * PAIR_PAGE, PAIR_PAGE };
	assert_int_equal(p->t->prepare(p->sc[0], v, 64, &p->err), -ENOMEM);
	pair_assert_says(&p->err, "registrations that device fake0 can have at once are in use");
}

/* The source may lock less than it wants: it goes on within that. */
static void source_memlock_is_worked_with(void **state)
{
	struct verbs_pair *p = *state;

	verbs_fake_memlock(5 * MIB, 0);
	assert_int_equal(pair_open(p), 0);
	must_send_all(p, 4 * MIB);
}

static void destination_memlock_is_worked_with(void **state)
{
	struct verbs_pair *p = *state;

	verbs_fake_memlock(0, 5 * MIB);
	assert_int_equal(pair_open(p), 0);
	must_send_all(p, 4 * MIB);
}

/* Without prepare(), a piece at a time is enough. */
static void both_memlocks_and_plain_writes(void **state)
{
	struct verbs_pair *p = *state;
	pthread_t server[PAIR_CHANNELS];

	verbs_fake_memlock(3 * MIB, 2 * MIB);
	assert_int_equal(pair_open(p), 0);
	pair_serve(p, server);
	assert_int_equal(pair_write(p, 0, 0, 0, p->size / 2, MIB), 0);
	assert_int_equal(pair_write(p, 1, 0, p->size / 2, p->size / 2, MIB), 0);
	assert_int_equal(p->t->fence(p->sc[0], &p->err), 0);
	assert_int_equal(p->t->fence(p->sc[1], &p->err), 0);
	assert_all_landed(p);
	p->t->close(p->src);
	p->src = NULL;
	for (unsigned i = 0; i < PAIR_CHANNELS; i++)
		pthread_join(server[i], NULL);
}

/* Nothing to let go of: at once, with the limit. */
static void source_memlock_too_small(void **state)
{
	struct verbs_pair *p = *state;
	int64_t begin;

	verbs_fake_memlock(MIB, 0);
	assert_int_equal(pair_open(p), 0);
	begin = now_ms();
	assert_int_equal(send_all(p, 2 * MIB), -ENOMEM);
	assert_true(now_ms() - begin < 2500);
	pair_assert_says(&p->err, "KiB of guest memory with device fake0 failed: Cannot allocate");
	pair_assert_says(&p->err, "memlock limit");
}

static void destination_memlock_too_small(void **state)
{
	struct verbs_pair *p = *state;
	int64_t begin;

	verbs_fake_memlock(0, MIB);
	assert_int_equal(pair_open(p), 0);
	begin = now_ms();
	assert_int_equal(send_all(p, 2 * MIB), -ENOMEM);
	assert_true(now_ms() - begin < 2500);
	pair_assert_says(&p->err, "The destination 127.0.0.1:");
	pair_assert_says(&p->err, "KiB of guest memory for RDMA: Cannot allocate");
	pair_assert_says(&p->err, "its memlock limit");
}

/* With all pinned nothing may be let go of. */
static void pin_all_and_memlock(void **state)
{
	struct verbs_pair *p = *state;
	int rc;

	p->src_env.pin_all = p->dst_env.pin_all = true;
	p->src_env.peer_timeout_ms = 10000; /* on a busy machine it takes its time */
	verbs_fake_memlock(0, 9 * MIB);
	rc = pair_open(p);
	pair_assert_says(&p->err, "could not register 2048 KiB");
	assert_int_equal(rc, -ENOMEM);
	pair_assert_says(&p->err, "with 8192 KiB registered");
}

/* A limit on the number of registrations (rdma.max) says EAGAIN: room is short then as well. */
static void limits_are_worked_with(void **state)
{
	struct verbs_pair *p = *state;

	assert_int_equal(pair_open(p), 0);
	verbs_fake_fail(FAKE_REG_SOURCE, 6, EAGAIN);
	verbs_fake_fail(FAKE_REG_DESTINATION, 4, EAGAIN);
	must_send_all(p, MIB);
	assert_int_equal(verbs_fake_fired(), 2);
}

static void source_limit_too_small(void **state)
{
	struct verbs_pair *p = *state;

	assert_int_equal(pair_open(p), 0);
	verbs_fake_fail_from(FAKE_REG_SOURCE, 3, EAGAIN);
	assert_int_equal(send_all(p, 2 * MIB), -ENOMEM);
	pair_assert_says(&p->err, "KiB of guest memory with device fake0 failed: Cannot allocate");
}

static void destination_limit_too_small(void **state)
{
	struct verbs_pair *p = *state;

	assert_int_equal(pair_open(p), 0);
	verbs_fake_fail_from(FAKE_REG_DESTINATION, 3, EAGAIN);
	assert_int_equal(send_all(p, 2 * MIB), -ENOMEM);
	pair_assert_says(&p->err, "KiB of guest memory for RDMA: Cannot allocate");
}

/* ---- a destination that is slower than its source ---- */

struct preparer {
	struct verbs_pair *p;
	struct transport_range *v;
	unsigned nr;
	pthread_t thread;
	int rc;
};

static void *preparer_run(void *opaque)
{
	struct preparer *a = opaque;

	a->rc = a->p->t->prepare(a->p->sc[0], a->v, a->nr, &a->p->err);
	return NULL;
}

/* Every other page, of more than may be asked for at once. */
static struct preparer many_extents(struct verbs_pair *p)
{
	struct preparer a = { .p = p, .nr = KEYS_ASKING_MAX + 100 };

	p->size = 2 * a.nr * PAIR_PAGE;
	p->src_env.peer_timeout_ms = p->dst_env.peer_timeout_ms = 20000;
	a.v = calloc(a.nr, sizeof(*a.v));
	for (unsigned i = 0; i < a.nr; i++)
		a.v[i] = (struct transport_range){ 0, 2 * i * PAIR_PAGE, PAIR_PAGE };
	return a;
}

/*
 * Wait until the source's registrar does.  What it has asked for; *more: and would like to,
 * which the preparer may be slower to say than the registrar is to ask.
 */
static unsigned asked_for(struct verbs_pair *p, bool *more)
{
	struct keys *k = &to_conn(p->src)->keys;
	int64_t end = now_ms() + 20000;
	unsigned nr;
	bool waits;

	do {
		sched_yield();
		pthread_mutex_lock(&k->lock);
		nr = k->nr_asking;
		*more = k->registrars[0].queue;
		waits = nr >= KEYS_ASKING_MAX && *more && !k->registrars[0].busy;
		pthread_mutex_unlock(&k->lock);
	} while (!waits && now_ms() < end);
	return nr;
}

/* The source asks for a number of keys and goes on as they are answered. */
static void unanswered_requests_are_bounded(void **state)
{
	struct verbs_pair *p = *state;
	struct preparer a = many_extents(p);
	pthread_t server[PAIR_CHANNELS];
	struct keys *dst;
	unsigned nr;
	bool more;

	assert_int_equal(pair_open(p), 0);
	dst = &to_conn(p->dst)->keys;
	pthread_mutex_lock(&dst->lock); /* the destination stands still */
	assert_int_equal(pthread_create(&a.thread, NULL, preparer_run, &a), 0);
	nr = asked_for(p, &more);
	pthread_mutex_unlock(&dst->lock);
	pthread_join(a.thread, NULL);
	assert_int_equal(nr, KEYS_ASKING_MAX);
	assert_true(more);
	assert_int_equal(a.rc, 0);
	pair_serve(p, server);
	assert_int_equal(p->t->write(p->sc[0], a.v, a.nr, &p->err), 0);
	assert_int_equal(p->t->fence(p->sc[0], &p->err), 0);
	p->t->close(p->src);
	p->src = NULL;
	for (unsigned i = 0; i < PAIR_CHANNELS; i++)
		pthread_join(server[i], NULL);
	for (unsigned i = 0; i < a.nr; i++)
		assert_memory_equal(p->smem[0] + a.v[i].offset, p->dmem[0] + a.v[i].offset,
				    PAIR_PAGE);
	free(a.v);
}

/* ---- a peer that breaks the rules ---- */

/* The source's next recv() says why the connection died. */
static void assert_source_dies(struct verbs_pair *p, int code, const char *what)
{
	char buf[16];

	assert_int_equal(p->t->recv(p->src, buf, sizeof(buf), 5000, &p->err), code);
	pair_assert_says(&p->err, what);
}

static void assert_destination_dies(struct verbs_pair *p, const char *what)
{
	struct tern_error err = { 0 };
	char buf[16];

	assert_int_equal(p->t->recv(p->dst, buf, sizeof(buf), 5000, &err), -EPROTO);
	pair_assert_says(&err, what);
}

/* The destination sends a key as if the source had asked. */
static void send_key(struct verbs_pair *p, const struct key_granted *g)
{
	uint8_t buf[KEYS_HEAD_LEN + KEYS_LEN];

	assert_int_equal(
		control_queue(to_conn(p->dst), CTL_KEYS, buf, (uint32_t)keys_put(buf, g, 1)), 0);
}

static void send_wanted(struct verbs_pair *p, const struct key_wanted *w)
{
	uint8_t buf[KEYS_HEAD_LEN + KEYS_WANTED_LEN];

	assert_int_equal(control_queue(to_conn(p->src), CTL_KEYS_WANTED, buf,
				       (uint32_t)keys_wanted_put(buf, w, 1)),
			 0);
}

static void send_release(struct verbs_pair *p, uint32_t id)
{
	uint8_t buf[KEYS_HEAD_LEN + KEYS_RELEASE_LEN];

	assert_int_equal(control_queue(to_conn(p->src), CTL_KEYS_RELEASE, buf,
				       (uint32_t)keys_release_put(buf, &id, 1)),
			 0);
}

static void key_nobody_asked_for(void **state)
{
	struct verbs_pair *p = *state;

	assert_int_equal(pair_open(p), 0);
	send_key(p, &(struct key_granted){ .id = 7, .channel = KEYS_ANY_CHANNEL });
	assert_source_dies(p, -EPROTO, "sent a key with number 7, which it was not asked for");
}

/* A key that was granted may not come again. */
static void key_twice(void **state)
{
	const struct transport_range r = { 0, 0, PAIR_PAGE };
	struct verbs_pair *p = *state;

	assert_int_equal(pair_open(p), 0);
	assert_int_equal(p->t->write(p->sc[0], &r, 1, &p->err), 0);
	assert_int_equal(p->t->notify(p->sc[0], "n", 1, &p->err), 0);
	send_key(p, &(struct key_granted){ .id = 0, .channel = KEYS_ANY_CHANNEL });
	assert_source_dies(p, -EPROTO, "number 0");
}

static void key_for_another_channel(void **state)
{
	struct verbs_pair *p = *state;

	assert_int_equal(pair_open(p), 0);
	send_key(p, &(struct key_granted){ .id = 0, .channel = 63 });
	assert_source_dies(p, -EPROTO, "number 0 for channel 63");
}

static void keys_in_a_bad_frame(void **state)
{
	struct verbs_pair *p = *state;

	assert_int_equal(pair_open(p), 0);
	assert_int_equal(control_queue(to_conn(p->dst), CTL_KEYS, "123456789", 9), 0);
	assert_source_dies(p, -EPROTO, "keys in a frame of 9 bytes");
}

static void release_of_what_is_not_held(void **state)
{
	struct verbs_pair *p = *state;

	assert_int_equal(pair_open(p), 0);
	send_release(p, 4000000000u);
	assert_destination_dies(p, "released the key with number 4000000000");
}

/* A few are kept until memory is exposed; not any number. */
static void wanted_before_expose(void **state)
{
	struct verbs_pair *p = *state;
	const struct key_wanted w = { .len = PAIR_PAGE, .channel = KEYS_ANY_CHANNEL };

	assert_int_equal(pair_connect(p), 0);
	for (unsigned i = 0; i <= KEYS_EARLY_MAX; i++)
		send_wanted(p, &w);
	assert_destination_dies(p, "too many keys before memory was exposed");
}

/* What came before memory was exposed is looked at when it is: expose() says what was wrong. */
static void bad_wanted_before_expose(void **state)
{
	const struct key_wanted w = { .region = 1, .len = PAIR_PAGE, .channel = KEYS_ANY_CHANNEL };
	struct transport_memory m = { .size = PAIR_PAGE, .fd = -1, .numa_node = -1 };
	struct verbs_pair *p = *state;
	struct tern_error err = { 0 };
	struct keys *k;
	bool kept;

	assert_int_equal(pair_connect(p), 0);
	k = &to_conn(p->dst)->keys;
	send_wanted(p, &w);
	do {
		sched_yield();
		pthread_mutex_lock(&k->lock);
		kept = k->early;
		pthread_mutex_unlock(&k->lock);
	} while (!kept);
	m.hva = p->dmem[0] = aligned_alloc(PAIR_PAGE, PAIR_PAGE);
	assert_int_equal(p->t->expose(p->dst, &m, 1, &err), -EPROTO);
	pair_assert_says(&err, "asked for the key of region 1");
}

/* Requests that break the rules, one each. */
static void bad_wanted(void **state)
{
	static const struct {
		struct key_wanted w;
		const char *what;
	} bad[] = {
		{ { 0, 1, 0, 4096, KEYS_ANY_CHANNEL }, "region 1" },
		{ { 0, 0, 16 * MIB, 4096, KEYS_ANY_CHANNEL }, "outside what was exposed" },
		{ { 0, 0, UINT64_MAX - 4095, 8192, KEYS_ANY_CHANNEL }, "outside what was exposed" },
		{ { 0, 0, 0, 0, KEYS_ANY_CHANNEL }, "outside what was exposed" },
		{ { 0, 0, 1, 4096, KEYS_ANY_CHANNEL }, "no run of whole pages" },
		{ { 0, 0, 0, 4 * MIB, KEYS_ANY_CHANNEL }, "at most 2 MiB" },
		{ { 0, 0, MIB, 2 * MIB, KEYS_ANY_CHANNEL }, "crosses a boundary of 2 MiB" },
		{ { 1u << 20, 0, 0, 4096, KEYS_ANY_CHANNEL }, "number is out of range" },
		{ { 0, 0, 0, 4096, 64 }, "channel" },
	};

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct verbs_pair *p = *state;

		assert_int_equal(pair_open(p), 0);
		send_wanted(p, &bad[i].w);
		assert_destination_dies(p, bad[i].what);
		pair_delete(p);
		*state = pair_new();
	}
}

/* A source that ignores the destination's budget. */
static void wanted_above_the_budget(void **state)
{
	struct verbs_pair *p = *state;

	p->dst_env.lock_budget = 4 * MIB;
	assert_int_equal(pair_open(p), 0);
	for (uint32_t i = 0; i < 3; i++)
		send_wanted(p,
			    &(struct key_wanted){ i, 0, i * 2 * MIB, 2 * MIB, KEYS_ANY_CHANNEL });
	/* Answers to the first two are not expected by our source either; the other side counts. */
	assert_destination_dies(p, "would exceed the lock budget");
}

/* Ask for a page @nr times, a full frame at a time, with a number of its own each. */
static void send_many_wanted(struct verbs_pair *p, uint32_t nr)
{
	uint8_t buf[KEYS_HEAD_LEN + KEYS_BATCH * KEYS_WANTED_LEN];
	struct key_wanted v[KEYS_BATCH];

	for (uint32_t id = 0; id < nr; id += KEYS_BATCH) {
		for (uint32_t i = 0; i < KEYS_BATCH; i++)
			v[i] = (struct key_wanted){ id + i, 0, 0, PAIR_PAGE, KEYS_ANY_CHANNEL };
		assert_int_equal(control_queue(to_conn(p->src), CTL_KEYS_WANTED, buf,
					       (uint32_t)keys_wanted_put(buf, v, KEYS_BATCH)),
				 0);
	}
}

/* Is there a grant for what is in hand, answered, and not with a key?  keys.lock is held. */
static bool refused_grant(const struct keys *k)
{
	const struct grant_job *job = k->registrars[0].jobs;

	return job && job->grant && !job->grant->unanswered && !job->grant->nr_given;
}

/* A number that is refused is free when that is counted: a release never finds it in between. */
static void refused_numbers_are_free(void **state)
{
	const uint32_t nr = 512 * KEYS_BATCH;
	struct verbs_pair *p = *state;
	uint64_t there, here;
	bool found, done;
	struct keys *k;

	assert_int_equal(pair_open(p), 0);
	k = &to_conn(p->dst)->keys;
	verbs_fake_fail_from(FAKE_REG_DESTINATION, 1, ENOMEM);
	send_many_wanted(p, nr);
	do {
		while (pthread_mutex_trylock(&k->lock)) /* who sleeps comes too late */
			;
		found = refused_grant(k);
		done = k->next_seq == nr && !k->registrars[0].jobs;
		there = k->there;
		here = k->here;
		pthread_mutex_unlock(&k->lock);
	} while (!found && !done);
	assert_false(found);
	assert_int_equal(there, 0);
	assert_int_equal(here, 0);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
#define BOTH(name)                                                                    \
	T(name),                                                                      \
	{                                                                             \
#name "_without_windows", name, setup_without_windows, teardown, NULL \
	}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		T(a_registrar_per_node),
		BOTH(budget_is_shared_by_nodes),
		BOTH(prepare_above_the_budget),
		BOTH(more_extents_than_registrations),
		BOTH(registrations_run_out),
		BOTH(source_memlock_is_worked_with),
		BOTH(destination_memlock_is_worked_with),
		BOTH(both_memlocks_and_plain_writes),
		BOTH(source_memlock_too_small),
		BOTH(destination_memlock_too_small),
		BOTH(pin_all_and_memlock),
		BOTH(limits_are_worked_with),
		BOTH(source_limit_too_small),
		BOTH(destination_limit_too_small),
		BOTH(unanswered_requests_are_bounded),
		T(key_nobody_asked_for),
		T(key_twice),
		T(key_for_another_channel),
		T(keys_in_a_bad_frame),
		T(release_of_what_is_not_held),
		T(wanted_before_expose),
		T(bad_wanted_before_expose),
		T(bad_wanted),
		T(wanted_above_the_budget),
		T(refused_numbers_are_free),
	};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
