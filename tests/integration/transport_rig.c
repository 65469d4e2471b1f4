/* SPDX-License-Identifier: BSD-2-Clause */

#define _GNU_SOURCE
#include "transport_rig.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "error.h"
#include "fault_transport.h"
#include "loop.h"

bool rig_is_rdma(const struct rig *f)
{
	return !strncmp(f->backend->name, "rdma", 4);
}

int64_t rig_now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* env.stranger: count. */
static void count_stranger(void *opaque, const struct tern_error *why)
{
	struct rig *f = opaque;

	assert_true(why->code < 0);
	assert_non_null(strstr(why->message, "turned away"));
	atomic_fetch_add(&f->strangers, 1);
}

/* The destination's acceptor, which takes in data channels; no further peer is expected. */
static void *acceptor_run(void *opaque)
{
	struct rig *f = opaque;
	struct transport_conn *extra;

	return (void *)(intptr_t)f->ops->accept(f->listener, -1, &extra, NULL);
}

void rig_acceptor_start(struct rig *f)
{
	assert_int_equal(pthread_create(&f->acceptor, NULL, acceptor_run, f), 0);
	f->accepting = true;
}

void rig_acceptor_stop(struct rig *f)
{
	void *rc;

	if (!f->accepting)
		return;
	f->ops->listener_stop(f->listener);
	pthread_join(f->acceptor, &rc);
	assert_int_equal((intptr_t)rc, -ECANCELED);
	f->accepting = false;
}

/* Listen for the backend of @f. */
void rig_listen(struct rig *f)
{
	const char *own = getenv("TERN_TEST_RDMA6");
	char text[256];
	struct uri uri;
	int rc;

	if (own && !strcmp(f->backend->name, "rdma6"))
		snprintf(text, sizeof(text), "%s", own);
	else
		snprintf(text, sizeof(text), f->backend->uri, (int)getpid());
	assert_int_equal(uri_parse(text, &uri, &f->err), 0);
	if (!strcmp(f->backend->name, "loop")) {
		f->net = loop_net_new();
		assert_non_null(f->net);
		f->ops = loop_net_transport(f->net);
	} else {
		assert_int_equal(transport_find(&uri, &f->ops, &f->err), 0);
	}
	if (f->backend->faults) {
		f->faults = fault_net_new(f->ops);
		assert_non_null(f->faults);
		f->ops = fault_net_transport(f->faults);
	}
	rc = f->ops->listen(f->ops, &f->env, &uri, &f->listener, &f->err);
	if (rc)
		fail_msg("%s", f->err.message);
	assert_true(f->ops->listener_uri(f->listener, text, sizeof(text)) < (int)sizeof(text));
	assert_int_equal(uri_parse(text, &f->uri, &f->err), 0);
}

/* The destination's side of rig_connect(). */
static void *accept_run(void *opaque)
{
	struct rig *f = opaque;

	return (void *)(intptr_t)f->ops->accept(f->listener, LONG_MS, &f->dst, NULL);
}

void rig_connect(struct rig *f)
{
	const uint8_t id[TRANSPORT_SESSION_ID_LEN] = "session 1";
	char buf[TRANSPORT_MSG_MAX];
	pthread_t thread;
	void *rc;

	assert_int_equal(pthread_create(&thread, NULL, accept_run, f), 0);
	if (f->ops->connect(f->ops, &f->env, &f->uri, id, -1, &f->src, &f->err))
		fail_msg("%s", f->err.message);
	assert_int_equal(f->ops->send(f->src, "hello", 5, LONG_MS, &f->err), 0);
	pthread_join(thread, &rc);
	assert_int_equal((intptr_t)rc, 0);
	assert_memory_equal(f->dst->session_id, id, sizeof(id));
	assert_int_equal(f->ops->recv(f->dst, buf, sizeof(buf), 0, &f->err), 5);
	assert_memory_equal(buf, "hello", 5);
}

static void *opener_run(void *opaque)
{
	struct rig *f = opaque;

	f->open_rc = f->ops->open_channels(f->dst, NR_CHANNELS, f->dc, NULL);
	return NULL;
}

void rig_open(struct rig *f)
{
	struct transport_memory s[2] = {
		{ .region = 0, .hva = f->smem[0], .size = BIG, .fd = -1 },
		{ .region = 1, .hva = f->smem[1], .size = 2 * SMALL, .fd = -1 },
	};
	struct transport_memory d[2] = {
		{ .region = 0, .hva = f->dmem[0], .size = BIG, .fd = -1 },
		{ .region = 1, .hva = f->dmem[1], .size = SMALL, .fd = -1 },
	};

	/* RDMA asks for keys of whole pieces, so the sizes have to agree as in real life. */
	if (rig_is_rdma(f) && !f->uneven)
		s[1].size = SMALL;
	assert_int_equal(f->ops->expose(f->src, s, 2, &f->err), 0);
	assert_int_equal(f->ops->expose(f->dst, d, 2, &f->err), 0);
	rig_acceptor_start(f);
	assert_int_equal(pthread_create(&f->opener, NULL, opener_run, f), 0);
	if (f->ops->open_channels(f->src, NR_CHANNELS, f->sc, &f->err))
		fail_msg("%s", f->err.message);
	pthread_join(f->opener, NULL);
	assert_int_equal(f->open_rc, 0);
}

/* Source memory is noise, the destination's is 0xdd. */
static void fill(struct rig *f)
{
	uint32_t x = 1;

	for (unsigned i = 0; i < 2; i++) {
		size_t len = i ? 2 * SMALL : BIG;

		f->smem[i] = aligned_alloc(4096, len);
		f->dmem[i] = aligned_alloc(4096, len);
		for (size_t j = 0; j < len; j++)
			f->smem[i][j] = (uint8_t)((x = x * 1664525 + 1013904223) >> 24);
		memset(f->dmem[i], 0xdd, len);
	}
}

int rig_setup_listening(void **state)
{
	struct rig *f = calloc(1, sizeof(*f));

	f->backend = *state;
	f->env = (struct transport_env){ .peer_timeout_ms = TIMEOUT_MS,
					 .chunk_bytes = BIG,
					 .stranger = count_stranger,
					 .opaque = f };
	f->env.pin_all = f->backend->pin_all;
	f->env.no_windows = f->backend->no_windows;
	fill(f);
	rig_listen(f);
	*state = f;
	return 0;
}

int rig_setup_connected(void **state)
{
	rig_setup_listening(state);
	rig_connect(*state);
	return 0;
}

void rig_forget_nets(struct rig *f)
{
	loop_net_delete(f->net);
	fault_net_delete(f->faults);
	f->net = NULL;
	f->faults = NULL;
}

void rig_reopen(struct rig *f)
{
	f->ops->listener_close(f->listener);
	rig_forget_nets(f);
	rig_listen(f);
	rig_connect(f);
	rig_open(f);
}

int rig_setup_open(void **state)
{
	rig_setup_connected(state);
	rig_open(*state);
	return 0;
}

int rig_setup_zerocopy(void **state)
{
	struct rig *f;

	rig_setup_listening(state);
	f = *state;
	f->env.zerocopy = true;
	rig_connect(f);
	rig_open(f);
	return 0;
}

int rig_teardown(void **state)
{
	struct rig *f = *state;

	rig_acceptor_stop(f);
	if (f->src)
		f->ops->close(f->src);
	if (f->dst)
		f->ops->close(f->dst);
	f->ops->listener_close(f->listener);
	loop_net_delete(f->net);
	fault_net_delete(f->faults);
	for (unsigned i = 0; i < 2; i++) {
		free(f->smem[i]);
		free(f->dmem[i]);
	}
	free(f);
	return 0;
}

static void *server_run(void *opaque)
{
	struct rig_server *s = opaque;
	char buf[TRANSPORT_SERVE_MAX];
	size_t contents;

	while ((s->rc = s->f->ops->serve(s->f->dc[s->channel], buf, &contents, &s->err)) > 0)
		atomic_fetch_add(&s->notifies, 1);
	return NULL;
}

void rig_serve(struct rig_server *s, struct rig *f, unsigned channel)
{
	memset(s, 0, sizeof(*s));
	s->f = f;
	s->channel = channel;
	assert_int_equal(pthread_create(&s->thread, NULL, server_run, s), 0);
}

void rig_fence(struct rig *f, unsigned channel)
{
	if (f->ops->fence(f->sc[channel], &f->err))
		fail_msg("fence: %s", f->err.message);
}

void rig_finish(struct rig_server *s, unsigned nr)
{
	struct rig *f = s->f;

	if (f->src)
		f->ops->close(f->src);
	f->src = NULL;
	for (unsigned i = 0; i < nr; i++) {
		pthread_join(s[i].thread, NULL);
		if (s[i].rc)
			fail_msg("serve() returned %ld: %s", s[i].rc, s[i].err.message);
	}
}

void rig_check_region(const struct rig *f, unsigned r, const uint8_t *map, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (f->dmem[r][i] != (map[i] ? f->smem[r][i] : 0xdd))
			fail_msg("region %u byte %zu is wrong", r, i);
}
