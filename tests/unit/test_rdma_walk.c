/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * A walk along everything a connection asks of the device: the n-th call of a kind
 * fails, for n = 1, 2, 3, … until a run does not meet the fault.  After each run nothing
 * of the device and no descriptor may be left, somebody must have said the cause in a
 * sentence, and it all has to end soon.
 */

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "error.h"
#include "verbs_fake.h"
#include "verbs_pair.h"

#define SIZE (4ull << 20)
#define TIMEOUT_MS 10000
#define RUN_MAX_MS 8000 /* a run that waits for a timeout takes longer */
#define WALK_MAX 2000u
#define CHANNELS 2u

/* What is walked. */
struct walk {
	enum verbs_fake_call call;
	enum verbs_fake_wr wr;
	int code; /* errno, or a status of @wr */
	const char *says; /* what somebody has to say, if not the code in words */
	bool may_pass; /* the fault may come too late to matter, or be worked around */
	unsigned max; /* so many runs are enough; 0: until one does not meet it */
	bool is_wr;
};

struct run {
	const struct transport *t;
	struct transport_env src_env, dst_env;
	struct transport_listener *listener;
	struct transport_conn *src, *dst;
	struct transport_channel *sc[CHANNELS], *dc[CHANNELS];
	struct uri uri;
	uint8_t *smem, *dmem;
	struct tern_error src_err, dst_err, serve_err[CHANNELS], stranger;
	struct tern_error src_control_err, dst_control_err; /* heard when giving up */
	pthread_mutex_t listening; /* for who gives up: one at a time */
};

static int64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* Descriptors of this process. */
static unsigned nr_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	unsigned nr = 0;

	assert_non_null(dir);
	while (readdir(dir))
		nr++;
	closedir(dir);
	return nr;
}

static void on_stranger(void *opaque, const struct tern_error *why)
{
	struct run *r = opaque;

	if (!r->stranger.code)
		r->stranger = *why;
}

/*
 * Something of @conn failed: end it.  What befell the control queue, of which the failure may be
 * a consequence, is told only to who listens there, and to nobody after the abort.
 */
static void give_up(struct run *r, struct transport_conn *conn, struct tern_error *control_err)
{
	struct tern_error why = { 0 };
	char buf[256];
	long n;

	pthread_mutex_lock(&r->listening);
	do
		n = r->t->recv(conn, buf, sizeof(buf), 0, &why);
	while (n > 0);
	if (n < 0 && why.code != -ETIMEDOUT && !control_err->code)
		*control_err = why;
	pthread_mutex_unlock(&r->listening);
	r->t->abort(conn);
}

/* ---- the destination ---- */

struct server {
	struct run *r;
	unsigned i;
	pthread_t thread;
};

static void *server_run(void *opaque)
{
	struct server *s = opaque;
	char buf[TRANSPORT_SERVE_MAX];
	size_t contents;
	long n;

	do
		n = s->r->t->serve(s->r->dc[s->i], buf, &contents, &s->r->serve_err[s->i]);
	while (n > 0);
	if (n < 0)
		give_up(s->r, s->r->dst, &s->r->dst_control_err);
	return NULL;
}

static void *acceptor_run(void *opaque)
{
	struct run *r = opaque;
	struct transport_conn *extra;

	while (!r->t->accept(r->listener, -1, &extra, NULL))
		r->t->close(extra);
	return NULL;
}

/* Memory and channels, then serve until the source ends.  0 or -errno. */
static int receive_all(struct run *r)
{
	struct transport_memory m = { .hva = r->dmem, .size = SIZE, .fd = -1, .numa_node = -1 };
	struct server s[CHANNELS];
	char buf[16];
	long n = r->t->recv(r->dst, buf, sizeof(buf), TIMEOUT_MS, &r->dst_err);
	int rc = n < 0 ? (int)n : r->t->send(r->dst, "welcome", 7, TIMEOUT_MS, &r->dst_err);

	if (!rc)
		rc = r->t->expose(r->dst, &m, 1, &r->dst_err);

	if (!rc)
		rc = r->t->open_channels(r->dst, CHANNELS, r->dc, &r->dst_err);
	if (rc)
		return rc;
	for (unsigned i = 0; i < CHANNELS; i++) {
		s[i] = (struct server){ .r = r, .i = i };
		assert_int_equal(pthread_create(&s[i].thread, NULL, server_run, &s[i]), 0);
	}
	for (unsigned i = 0; i < CHANNELS; i++)
		pthread_join(s[i].thread, NULL);
	n = r->t->recv(r->dst, buf, sizeof(buf), TIMEOUT_MS, &r->dst_err);
	return n < 0 ? (int)n : 0;
}

/* Take one connection and what comes over it. */
static void *destination_run(void *opaque)
{
	struct run *r = opaque;
	pthread_t acceptor;

	if (r->t->accept(r->listener, -1, &r->dst, &r->dst_err))
		return NULL;
	assert_int_equal(pthread_create(&acceptor, NULL, acceptor_run, r), 0);
	if (receive_all(r))
		give_up(r, r->dst, &r->dst_control_err);
	pthread_join(acceptor, NULL);
	return NULL;
}

/* ---- the source ---- */

/* Write all memory on @ch, with a notify and a fence behind it. */
static int send_half(struct run *r, struct transport_channel *ch, uint64_t from)
{
	const struct transport_range all = { 0, from, SIZE / CHANNELS };
	int rc = r->t->prepare(ch, &all, 1, &r->src_err);

	for (uint64_t at = 0; at < SIZE / CHANNELS && !rc; at += 256 << 10) {
		struct transport_range range = { 0, from + at, 256 << 10 };

		rc = r->t->write(ch, &range, 1, &r->src_err);
	}
	if (!rc)
		rc = r->t->notify(ch, "n", 1, &r->src_err);
	return rc ? rc : r->t->fence(ch, &r->src_err);
}

/* Connect and send everything.  0 or the first error. */
static int send_all(struct run *r)
{
	const uint8_t id[TRANSPORT_SESSION_ID_LEN] = "walk";
	struct transport_memory m = { .hva = r->smem, .size = SIZE, .fd = -1, .numa_node = -1 };
	int rc = r->t->connect(r->t, &r->src_env, &r->uri, id, -1, &r->src, &r->src_err);

	char buf[16];

	if (!rc)
		rc = r->t->send(r->src, "hello", 5, TIMEOUT_MS, &r->src_err);
	if (!rc && r->t->recv(r->src, buf, sizeof(buf), TIMEOUT_MS, &r->src_err) <= 0)
		rc = r->src_err.code ? r->src_err.code : -ECONNRESET;
	if (!rc)
		rc = r->t->expose(r->src, &m, 1, &r->src_err);
	if (!rc)
		rc = r->t->open_channels(r->src, CHANNELS, r->sc, &r->src_err);
	for (unsigned i = 0; i < CHANNELS && !rc; i++)
		rc = send_half(r, r->sc[i], i * SIZE / CHANNELS);
	return rc;
}

/* ---- a run, and its verdict ---- */

/* Listen; 0 or -errno. */
static int start_listening(struct run *r)
{
	char text[128];
	int rc;

	r->uri = (struct uri){ .scheme = URI_RDMA, .host = "127.0.0.1", .port = "0" };
	rc = r->t->listen(r->t, &r->dst_env, &r->uri, &r->listener, &r->dst_err);
	if (rc)
		return rc;
	r->t->listener_uri(r->listener, text, sizeof(text));
	return uri_parse(text, &r->uri, NULL);
}

/* One run.  0 or the source's (or the listener's) error; *met: the fault came before the end. */
static int play(struct run *r, bool *met)
{
	pthread_t destination;
	int rc = start_listening(r);

	if (!rc) {
		assert_int_equal(pthread_create(&destination, NULL, destination_run, r), 0);
		rc = send_all(r);
	}
	*met = verbs_fake_fired() > 0;
	if (rc && r->src)
		give_up(r, r->src, &r->src_control_err);
	if (r->src)
		r->t->close(r->src);
	if (!r->listener)
		return rc;
	r->t->listener_stop(r->listener);
	pthread_join(destination, NULL);
	if (r->dst)
		r->t->close(r->dst);
	r->t->listener_close(r->listener);
	return rc;
}

/* Does any sentence of the run contain @what? */
static bool anybody_says(const struct run *r, const char *what)
{
	return strstr(r->src_err.message, what) || strstr(r->dst_err.message, what) ||
	       strstr(r->stranger.message, what) || strstr(r->serve_err[0].message, what) ||
	       strstr(r->serve_err[1].message, what) ||
	       strstr(r->src_control_err.message, what) ||
	       strstr(r->dst_control_err.message, what);
}

/* The fault in words. */
static const char *cause_of(const struct walk *w)
{
	return w->is_wr ? ibv_wc_status_str((enum ibv_wc_status)w->code) : strerror(w->code);
}

/* The n-th of its calls: true if the walk has to go on. */
static bool step(const struct walk *w, unsigned n, struct run *r)
{
	const char *cause = w->says ? w->says : cause_of(w);
	unsigned fds = nr_fds();
	int64_t begin = now_ms();
	bool met;
	int rc;

	verbs_fake_reset();
	if (w->is_wr)
		verbs_fake_wc(w->wr, n, w->code);
	else
		verbs_fake_fail(w->call, n, w->code);
	rc = play(r, &met);
	if (verbs_fake_objects())
		fail_msg("call %u: %u objects are left", n, verbs_fake_objects());
	if (nr_fds() != fds)
		fail_msg("call %u: %u descriptors before, %u after", n, fds, nr_fds());
	if (now_ms() - begin > RUN_MAX_MS)
		fail_msg("call %u took %lld ms (%s)", n, (long long)(now_ms() - begin),
			 r->src_err.message);
	if (!rc && memcmp(r->smem, r->dmem, SIZE))
		fail_msg("call %u: all is well, says the source, but memory differs", n);
	if (!met && rc)
		fail_msg("call %u: without a fault: source \"%s\", destination \"%s\", \"%s\", "
			 "\"%s\", at the door \"%s\"",
			 n, r->src_err.message, r->dst_err.message, r->serve_err[0].message,
			 r->serve_err[1].message, r->stranger.message);
	if (r->dst && r->stranger.code)
		fail_msg("call %u: of the session that was let in, this was told as of a stranger: "
			 "\"%s\"",
			 n, r->stranger.message);
	if (met && !rc && !w->may_pass)
		fail_msg("call %u failed and nobody noticed", n);
	if (rc && !anybody_says(r, cause))
		fail_msg("call %u: nobody says \"%s\": source \"%s\", destination \"%s\", at the "
			 "door \"%s\"",
			 n, cause, r->src_err.message, r->dst_err.message, r->stranger.message);
	return verbs_fake_fired() > 0;
}

/* Walk. */
static void walk(void **state)
{
	const struct walk *w = *state;
	uint8_t *smem = aligned_alloc(4096, SIZE), *dmem = aligned_alloc(4096, SIZE);
	bool more = true;
	unsigned n = 1;

	memset(smem, 0x5a, SIZE);
	for (; more && n <= (w->max ? w->max : WALK_MAX); n++) {
		struct run r = { .t = &rdma_transport,
				 .smem = smem,
				 .dmem = dmem,
				 .listening = PTHREAD_MUTEX_INITIALIZER };

		r.src_env = r.dst_env = (struct transport_env){ .peer_timeout_ms = TIMEOUT_MS,
								.answer_ms = 1,
								.chunk_bytes = 1 << 20 };
		r.dst_env.stranger = on_stranger;
		r.dst_env.opaque = &r;
		memset(dmem, 0, SIZE);
		more = step(w, n, &r);
	}
	verbs_fake_reset();
	assert_true(n > 2); /* it was met at least once */
	if (!w->max)
		assert_false(more);
	free(smem);
	free(dmem);
}

#define CALL(name_, ...)                                                           \
	{                                                                          \
		.name = #name_, .test_func = walk, .initial_state = &(struct walk) \
		{                                                                  \
			.call = FAKE_##name_, __VA_ARGS__                          \
		}                                                                  \
	}
#define WR(name_, ...)                                                                   \
	{                                                                                \
		.name = "WR_" #name_, .test_func = walk, .initial_state = &(struct walk) \
		{                                                                        \
			.wr = FAKE_WR_##name_, .is_wr = true, __VA_ARGS__                \
		}                                                                        \
	}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		CALL(OBJECT, .code = EPERM),
		CALL(MIGRATE_ID, .code = EPERM),
		CALL(RESOLVE, .code = ENETUNREACH),
		CALL(LISTEN, .code = EPERM),
		CALL(CONNECT, .code = EPERM),
		CALL(ACCEPT, .code = EPERM),
		CALL(QUERY_DEVICE, .code = EPERM, .may_pass = true),
		CALL(QUERY_PORT, .code = EPERM, .may_pass = true),
		CALL(POST_WRITE, .code = EPERM),
		CALL(POST_BIND, .code = EPERM),
		CALL(POST_FRAME, .code = EPERM, .may_pass = true),
		CALL(POST_CONTROL, .code = EPERM, .may_pass = true),
		CALL(POST_RECV, .code = EPERM, .may_pass = true),
		CALL(POLL_CHANNEL, .code = EIO, .says = "Polling the completions of",
		     .may_pass = true, .max = 12),
		CALL(POLL_CONTROL, .code = EIO, .may_pass = true, .max = 12),
		CALL(NOTIFY_CHANNEL, .code = EIO, .may_pass = true, .max = 6),
		CALL(NOTIFY_CONTROL, .code = EIO, .may_pass = true, .max = 12),
		WR(WRITE, .code = IBV_WC_RETRY_EXC_ERR),
		WR(BIND, .code = IBV_WC_MW_BIND_ERR),
		WR(FRAME, .code = IBV_WC_RNR_RETRY_EXC_ERR, .may_pass = true),
		WR(ANSWER, .code = IBV_WC_RETRY_EXC_ERR, .may_pass = true),
		WR(CONTROL, .code = IBV_WC_RETRY_EXC_ERR, .may_pass = true),
		WR(CONTROL_BACK, .code = IBV_WC_REM_OP_ERR, .may_pass = true),
	};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
