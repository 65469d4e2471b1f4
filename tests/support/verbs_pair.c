/* SPDX-License-Identifier: BSD-2-Clause */

#define _GNU_SOURCE
#include "verbs_pair.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "verbs_fake.h"

/* Called inside accept(). */
static void on_stranger(void *opaque, const struct tern_error *why)
{
	struct verbs_pair *p = opaque;

	p->stranger = *why;
}

struct verbs_pair *pair_new(void)
{
	struct verbs_pair *p = calloc(1, sizeof(*p));

	verbs_fake_reset();
	p->t = &rdma_transport;
	p->src_env = (struct transport_env){ .peer_timeout_ms = 1000,
					     .answer_ms = 1,
					     .chunk_bytes = 1 << 20 };
	p->dst_env = p->src_env;
	p->dst_env.stranger = on_stranger;
	p->dst_env.opaque = p;
	p->nr_regions = 1;
	p->size = 16 << 20;
	for (unsigned i = 0; i < PAIR_REGIONS_MAX; i++)
		p->node[i] = -1;
	return p;
}

/* The destination: accept, then stay in accept() for the channels. */
static void *acceptor_run(void *opaque)
{
	struct verbs_pair *p = opaque;
	struct transport_conn *extra, *conn;

	usleep(p->accept_after_ms * 1000);
	if (!p->t->accept(p->listener, -1, &conn, NULL)) {
		__atomic_store_n(&p->dst, conn, __ATOMIC_RELEASE);
		(void)p->t->accept(p->listener, -1, &extra, NULL);
	}
	return NULL;
}

void pair_listen(struct verbs_pair *p)
{
	struct tern_error err = { 0 };
	char text[128];

	p->uri = (struct uri){ .scheme = URI_RDMA, .port = "0" };
	if (p->t->listen(p->t, &p->dst_env, &p->uri, &p->listener, &err))
		fail_msg("%s", err.message);
	p->t->listener_uri(p->listener, text, sizeof(text));
	assert_int_equal(uri_parse(text, &p->uri, &err), 0);
	assert_int_equal(pthread_create(&p->acceptor, NULL, acceptor_run, p), 0);
	p->accepting = true;
}

int pair_connect(struct verbs_pair *p)
{
	const uint8_t id[TRANSPORT_SESSION_ID_LEN] = "pair";
	char buf[TRANSPORT_MSG_MAX];
	int rc;

	pair_listen(p);
	rc = p->t->connect(p->t, &p->src_env, &p->uri, id, -1, &p->src, &p->err);
	if (rc)
		return rc;
	assert_int_equal(p->t->send(p->src, "hello", 5, 5000, &p->err), 0);
	while (!__atomic_load_n(&p->dst, __ATOMIC_ACQUIRE))
		sched_yield();
	assert_int_equal(p->t->recv(p->dst, buf, sizeof(buf), 5000, &p->err), 5);
	return 0;
}

/* The memory of one side. */
static void make_memory(struct verbs_pair *p, bool source, struct transport_memory *m)
{
	for (unsigned i = 0; i < p->nr_regions; i++) {
		uint8_t **at = source ? &p->smem[i] : &p->dmem[i];

		*at = aligned_alloc(PAIR_PAGE, p->size);
		for (uint64_t j = 0; j < p->size; j += 8)
			*(uint64_t *)(*at + j) = source ? j * 0x9e3779b97f4a7c15ull + i + 1 : 0;
		m[i] = (struct transport_memory){
			.region = i, .hva = *at, .size = p->size, .fd = -1, .numa_node = p->node[i]
		};
	}
}

static void *opener_run(void *opaque)
{
	struct verbs_pair *p = opaque;
	struct transport_memory m[PAIR_REGIONS_MAX];

	make_memory(p, false, m);
	p->dst_rc = p->t->expose(p->dst, m, p->nr_regions, NULL);
	if (!p->dst_rc)
		p->dst_rc = p->t->open_channels(p->dst, PAIR_CHANNELS, p->dc, NULL);
	return NULL;
}

int pair_open(struct verbs_pair *p)
{
	struct transport_memory m[PAIR_REGIONS_MAX];
	pthread_t opener;
	int rc = pair_connect(p);

	if (rc)
		return rc;
	make_memory(p, true, m);
	assert_int_equal(pthread_create(&opener, NULL, opener_run, p), 0);
	rc = p->t->expose(p->src, m, p->nr_regions, &p->err);
	if (!rc)
		rc = p->t->open_channels(p->src, PAIR_CHANNELS, p->sc, &p->err);
	pthread_join(opener, NULL);
	return rc;
}

int pair_write(struct verbs_pair *p, unsigned ch, unsigned r, uint64_t from, uint64_t len,
	       uint64_t step)
{
	int rc = 0;

	for (uint64_t at = from; at < from + len && !rc; at += step) {
		struct transport_range range = { r, at, step };

		rc = p->t->write(p->sc[ch], &range, 1, &p->err);
	}
	return rc;
}

struct serve_arg {
	struct verbs_pair *p;
	unsigned ch;
};

static void *serve_run(void *opaque)
{
	struct serve_arg *a = opaque;
	char buf[TRANSPORT_SERVE_MAX];
	size_t contents;

	while (a->p->t->serve(a->p->dc[a->ch], buf, &contents, NULL) > 0)
		;
	free(a);
	return NULL;
}

void pair_serve(struct verbs_pair *p, pthread_t threads[PAIR_CHANNELS])
{
	for (unsigned i = 0; i < PAIR_CHANNELS; i++) {
		struct serve_arg *a = malloc(sizeof(*a));

		*a = (struct serve_arg){ p, i };
		assert_int_equal(pthread_create(&threads[i], NULL, serve_run, a), 0);
	}
}

void pair_delete(struct verbs_pair *p)
{
	if (p->accepting) {
		p->t->listener_stop(p->listener);
		pthread_join(p->acceptor, NULL);
	}
	if (p->src)
		p->t->close(p->src);
	if (p->dst)
		p->t->close(p->dst);
	if (p->listener)
		p->t->listener_close(p->listener);
	assert_int_equal(verbs_fake_objects(), 0);
	for (unsigned i = 0; i < PAIR_REGIONS_MAX; i++) {
		free(p->smem[i]);
		free(p->dmem[i]);
	}
	free(p);
}

void pair_assert_says(const struct tern_error *err, const char *what)
{
	if (!strstr(err->message, what))
		fail_msg("\"%s\" does not say \"%s\"", err->message, what);
}
