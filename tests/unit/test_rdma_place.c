/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * The RDMA transport's places and devices, over the fake verbs device: which threads go
 * to which node, where buffers lie, and a device that is named.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <tern/region.h>
#include <unistd.h>
#include "verbs.h"
#include "verbs_fake.h"
#include "verbs_pair.h"

#define NOTES_MAX 64u

/* What the transport asked of one side. */
struct notes {
	pthread_mutex_t lock;
	unsigned nr, devices;
	int node[NOTES_MAX]; /* of each run_on() */
	pid_t thread[NOTES_MAX];
	struct transport_device device;
};

struct place {
	struct verbs_pair *p;
	struct notes src, dst;
};

/* Channel 0 serves node 0; channel 1 memory of no node. */
static int channel_node(void *opaque, unsigned index)
{
	(void)opaque;
	return index ? TERN_NODE_ANY : 0;
}

/* Note it, and move to one CPU, so that coming back can be seen. */
static void run_on(void *opaque, int node)
{
	struct notes *n = opaque;
	cpu_set_t one;

	pthread_mutex_lock(&n->lock);
	assert_true(n->nr < NOTES_MAX);
	n->thread[n->nr] = gettid();
	n->node[n->nr++] = node;
	pthread_mutex_unlock(&n->lock);
	CPU_ZERO(&one);
	CPU_SET(sched_getcpu(), &one);
	sched_setaffinity(0, sizeof(one), &one);
}

static void on_device(void *opaque, const struct transport_device *device)
{
	struct notes *n = opaque;

	pthread_mutex_lock(&n->lock);
	n->devices++;
	n->device = *device;
	pthread_mutex_unlock(&n->lock);
}

static void watch(struct transport_env *env, struct notes *n)
{
	pthread_mutex_init(&n->lock, NULL);
	env->channel_node = channel_node;
	env->run_on = run_on;
	env->device = on_device;
	env->opaque = n;
	env->stranger = NULL;
}

static int setup(void **state)
{
	struct place *s = calloc(1, sizeof(*s));

	s->p = pair_new();
	watch(&s->p->src_env, &s->src);
	watch(&s->p->dst_env, &s->dst);
	*state = s;
	return 0;
}

static int teardown(void **state)
{
	struct place *s = *state;

	pair_delete(s->p);
	verbs_fake_reset();
	free(s);
	return 0;
}

/* How often run_on() was called for @node by @self, or by others. */
static unsigned count(struct notes *n, int node, bool self)
{
	unsigned nr = 0;

	pthread_mutex_lock(&n->lock);
	for (unsigned i = 0; i < n->nr; i++)
		nr += n->node[i] == node && (n->thread[i] == gettid()) == self;
	pthread_mutex_unlock(&n->lock);
	return nr;
}

static void test_queues_are_made_on_the_channels_node(void **state)
{
	struct place *s = *state;
	cpu_set_t before, after;

	assert_int_equal(sched_getaffinity(0, sizeof(before), &before), 0);
	assert_int_equal(pair_open(s->p), 0);
	assert_int_equal(count(&s->src, 0, true), 1);
	/* Where memory and device have no node, the maker is near the device. */
	assert_int_equal(count(&s->src, TERN_NODE_ANY, true), 1);
	assert_int_equal(sched_getaffinity(0, sizeof(after), &after), 0);
	assert_true(CPU_EQUAL(&before, &after));
}

/* Wait until threads of the transport's own called run_on() for @node @nr times. */
static void expect_others(struct notes *n, int node, unsigned nr)
{
	for (unsigned i = 0; i < 5000 && count(n, node, false) < nr; i++)
		usleep(1000);
	assert_int_equal(count(n, node, false), nr);
}

static void test_own_threads_go_to_their_places(void **state)
{
	struct place *s = *state;

	s->p->node[0] = 0;
	assert_int_equal(pair_open(s->p), 0);
	/* The source's pump is near the device, its registrar at the memory. */
	expect_others(&s->src, TERN_NODE_ANY, 1);
	expect_others(&s->src, 0, 1);
	/* The destination's too; besides, its acceptor makes a channel for each. */
	expect_others(&s->dst, TERN_NODE_ANY, 2);
	expect_others(&s->dst, 0, 2);
}

static void test_buffers_are_on_the_channels_node(void **state)
{
	struct tern_channel_stats st = { .buffer_node = -1 };
	struct place *s = *state;

	assert_int_equal(pair_open(s->p), 0);
	s->p->t->channel_stats(s->p->sc[0], &st);
	assert_int_equal(st.buffer_node, 0);
	memset(&st, 0xff, sizeof(st));
	s->p->t->channel_stats(s->p->dc[0], &st);
	assert_int_equal(st.buffer_node, 0);
}

static void test_channels_have_vectors_of_their_own(void **state)
{
	struct tern_channel_stats st[2] = { 0 };
	struct place *s = *state;

	assert_int_equal(pair_open(s->p), 0);
	for (unsigned i = 0; i < 2; i++)
		s->p->t->channel_stats(s->p->sc[i], &st[i]);
	assert_int_not_equal(st[0].completion_vector, st[1].completion_vector);
}

static void test_device_is_told(void **state)
{
	struct transport_conn_stats st = { 0 };
	struct place *s = *state;

	assert_int_equal(pair_open(s->p), 0);
	assert_int_equal(s->src.devices, 1);
	assert_int_equal(s->dst.devices, 1);
	assert_string_equal(s->src.device.name, "fake0");
	assert_int_equal(s->src.device.port, 1);
	assert_int_equal(s->src.device.numa_node, TERN_NODE_ANY);
	s->p->t->conn_stats(s->p->src, &st);
	assert_string_equal(st.device.name, "fake0");
}

static void test_named_device_is_used(void **state)
{
	struct place *s = *state;

	s->p->src_env.rdma_device = "fake0";
	s->p->dst_env.rdma_device = "fake0/1";
	assert_int_equal(pair_open(s->p), 0);
}

static void test_listener_takes_an_address_of_the_named_device(void **state)
{
	struct place *s = *state;
	struct transport_listener *l;
	struct tern_error err = { 0 };
	struct uri any = { .scheme = URI_RDMA, .port = "0" };
	char text[64];

	s->p->dst_env.rdma_device = "fake0";
	assert_int_equal(rdma_transport.listen(&rdma_transport, &s->p->dst_env, &any, &l, &err), 0);
	rdma_transport.listener_uri(l, text, sizeof(text));
	assert_non_null(strstr(text, "rdma:127."));
	rdma_transport.listener_close(l);
}

/* A source that names @device fails with @code and says @what. */
static void assert_refused(struct place *s, const char *device, int code, const char *what)
{
	s->p->src_env.rdma_device = device;
	assert_int_equal(pair_connect(s->p), code);
	pair_assert_says(&s->p->err, what);
}

static void test_device_that_is_not_there(void **state)
{
	assert_refused(*state, "mlx5_0", -ENODEV, "\"mlx5_0\" on this host; name one of: fake0");
}

static void test_device_whose_name_begins_like_another(void **state)
{
	assert_refused(*state, "fake", -ENODEV, "no RDMA device \"fake\"");
}

static void test_port_that_is_not_there(void **state)
{
	assert_refused(*state, "fake0/2", -ENODEV, "fake0 has no port 2, it has 1");
}

/* Listening with @device at @host fails with @code and says @what. */
static void assert_no_listener(struct place *s, const char *device, const char *host, int code,
			       const char *what)
{
	struct transport_listener *l;
	struct tern_error err = { 0 };
	struct uri uri = { .scheme = URI_RDMA, .port = "0" };

	strcpy(uri.host, host);
	s->p->dst_env.rdma_device = device;
	assert_int_equal(rdma_transport.listen(&rdma_transport, &s->p->dst_env, &uri, &l, &err),
			 code);
	pair_assert_says(&err, what);
}

static void test_listener_on_a_device_that_is_not_there(void **state)
{
	assert_no_listener(*state, "mlx5_0", "", -ENODEV, "name one of: fake0");
}

static void test_listener_on_an_address_of_another_device(void **state)
{
	assert_no_listener(*state, "mlx5_0", "127.0.0.1", -EADDRNOTAVAIL,
			   "fake0 serves that address, not mlx5_0");
}

static void test_listener_on_all_addresses_of_one_device(void **state)
{
	assert_no_listener(*state, "fake0", "0.0.0.0", -EADDRNOTAVAIL,
			   "no single device serves that address");
}

#define CASE(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		CASE(test_queues_are_made_on_the_channels_node),
		CASE(test_own_threads_go_to_their_places),
		CASE(test_buffers_are_on_the_channels_node),
		CASE(test_channels_have_vectors_of_their_own),
		CASE(test_device_is_told),
		CASE(test_named_device_is_used),
		CASE(test_listener_takes_an_address_of_the_named_device),
		CASE(test_device_that_is_not_there),
		CASE(test_device_whose_name_begins_like_another),
		CASE(test_port_that_is_not_there),
		CASE(test_listener_on_a_device_that_is_not_there),
		CASE(test_listener_on_an_address_of_another_device),
		CASE(test_listener_on_all_addresses_of_one_device),
	};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests_name("rdma_place", tests, NULL, NULL);
}
