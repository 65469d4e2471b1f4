/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * The stream transports' receiving side, from the first byte of two sockets on: one
 * for the control queue, one for a data channel.
 *
 *	byte 0     bits 0-1  1: a valid control preamble goes first; 2: a data preamble
 *	           bits 2-7  not 0: bytes arrive in pieces of 4 times this
 *	           bit 7     besides: pushes are not welcome
 *	byte 1-2   length of the control stream, little-endian
 *	rest       control stream, then data stream
 *
 * Both sockets come in as strangers; what becomes of them is up to the code.  A
 * model reads the same streams by docs/protocol.md: at the end guest RAM must be
 * as the model says, byte for byte, and the control messages and notifies must be
 * those that the model found.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "error.h"
#include "fuzz.h"
#include "listener.h"
#include "tcp.h"

#define STREAM_MAX (16u << 10)

/* One socket: what the peer sends and has sent. */
struct stream {
	uint8_t bytes[FRAME_PREAMBLE_LEN + STREAM_MAX];
	size_t len;
	int ours, theirs; /* ends of a socketpair; ours is handed to the listener */
};

struct harness {
	struct stream control, data;
	size_t piece; /* bytes that arrive at a time; 0: all at once */
	struct fuzz_ram ram, model;
	size_t control_at, data_at; /* what the model has read */
	size_t contents; /* of what the model found last */
	bool data_ended; /* the model found END */
	unsigned fences;
	bool push; /* pushes are welcome */
};

/* ---------------------------------------------------------------- the model */

/* A range descriptor at @p lies within the guest's RAM, and behind the one before it. */
static bool range_is_valid(const struct fuzz_ram *ram, const uint8_t *p, uint64_t *end)
{
	uint64_t region = fuzz_read_int(p, 4), len = fuzz_read_int(p + 4, 4);
	uint64_t offset = fuzz_read_int(p + 8, 8);
	uint64_t size = region < FUZZ_REGIONS ? ram->nr_pages[region] * TERN_PAGE_SIZE : 0;

	if (!len || len > size || offset > size - len || (region << 32 | offset) < *end)
		return false;
	*end = region << 32 | (offset + len);
	return true;
}

/* The WRITE of @nr ranges at data_at: place what there is of it.  False: the stream ends here. */
static bool model_write(struct harness *h, unsigned nr)
{
	const uint8_t *head = h->data.bytes + h->data_at;
	size_t left = h->data.len - h->data_at, head_len = 16 + nr * 16ul;
	uint64_t end = 0;

	if (left < head_len)
		return false;
	left -= head_len;
	for (unsigned i = 0; i < nr; i++)
		if (!range_is_valid(&h->model, head + 16 + i * 16, &end))
			return false;
	h->data_at += head_len;
	for (unsigned i = 0; i < nr; i++) {
		const uint8_t *p = head + 16 + i * 16;
		uint64_t len = fuzz_read_int(p + 4, 4), n = len < left ? len : left;

		memcpy(h->model.hva[fuzz_read_int(p, 4)] + fuzz_read_int(p + 8, 8),
		       h->data.bytes + h->data_at, n);
		h->data_at += n;
		left -= n;
		if (n < len)
			return false;
	}
	return true;
}

/* As model_serve(): the PUSH at data_at, with @len bytes of message. */
static long model_push(struct harness *h, uint64_t len, uint64_t contents, const uint8_t **msg)
{
	size_t left = h->data.len - h->data_at - 16;

	if (!h->push || len < 1 || len > 256 || contents < 1 || contents > 65536 ||
	    left < len + contents)
		return -1;
	*msg = h->data.bytes + h->data_at + 16;
	h->contents = contents;
	h->data_at += 16 + len + contents;
	return (long)(len + contents);
}

/* What serve() should return next; a notify's bytes are at *msg.  -1: an error. */
static long model_serve(struct harness *h, const uint8_t **msg)
{
	h->contents = 0;
	for (;;) {
		const uint8_t *p = h->data.bytes + h->data_at;
		size_t left = h->data.len - h->data_at;

		if (left < 16)
			return -1;
		uint64_t type = p[0], ranges = p[1], len = fuzz_read_int(p + 4, 4);
		uint64_t seq = fuzz_read_int(p + 8, 8);

		if (fuzz_read_int(p + 2, 2) || (type != 1 && ranges) ||
		    (type != 2 && type != 6 && len) || (type != 3 && type != 6 && seq))
			return -1;
		if (type == 6)
			return model_push(h, len, seq, msg);
		if (type == 1 && ranges >= 1 && ranges <= 64) {
			if (!model_write(h, (unsigned)ranges))
				return -1;
		} else if (type == 2 && len >= 1 && len <= 4096 && left - 16 >= len) {
			h->data_at += 16 + len;
			*msg = p + 16;
			return (long)len;
		} else if (type == 3 && seq == h->fences + 1) {
			h->data_at += 16;
			h->fences++;
		} else {
			h->data_ended = type == 4;
			return type == 4 ? 0 : -1;
		}
	}
}

/* The same for recv(). */
static long model_recv(struct harness *h, const uint8_t **msg)
{
	const uint8_t *p = h->control.bytes + h->control_at;
	size_t left = h->control.len - h->control_at;

	if (left < 4)
		return -1;
	uint64_t len = fuzz_read_int(p, 4);

	if (!len)
		return 0;
	if (len > 8192 || left - 4 < len)
		return -1;
	h->control_at += 4 + len;
	*msg = p + 4;
	return (long)len;
}

/* ------------------------------------------------------------------ feeding */

/*
 * Send all of @s, @piece bytes at a time, and shut it down.  Ends early if the other
 * end closes, as it does at the latest when the session is through.
 */
static void feed_stream(const struct stream *s, size_t piece)
{
	for (size_t at = 0; at < s->len;) {
		size_t n = s->len - at;
		ssize_t sent = send(s->theirs, s->bytes + at, piece && n > piece ? piece : n,
				    MSG_NOSIGNAL);

		if (sent < 0)
			break;
		at += (size_t)sent;
	}
	shutdown(s->theirs, SHUT_WR);
}

/* The control stream goes first: a data channel needs a session to belong to. */
static void *feeder(void *arg)
{
	struct harness *h = arg;

	feed_stream(&h->control, h->piece);
	feed_stream(&h->data, h->piece);
	return NULL;
}

static void stream_open(struct stream *s)
{
	int fds[2];

	FUZZ_CHECK(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), "no sockets");
	s->ours = fds[0];
	s->theirs = fds[1];
	fcntl(s->ours, F_SETFL, O_NONBLOCK);
	sock_tune(s->ours); /* room for all fence answers */
	sock_tune(s->theirs);
}

static void stream_set(struct stream *s, enum frame_kind kind, bool preamble, const uint8_t *p,
		       size_t len)
{
	struct frame_preamble pre = {
		.version = FRAME_VERSION,
		.kind = (uint8_t)kind,
		.count = kind == FRAME_KIND_DATA,
	};

	if (preamble) {
		frame_preamble_put(s->bytes, &pre);
		s->len = FRAME_PREAMBLE_LEN;
	}
	if (len)
		memcpy(s->bytes + s->len, p, len);
	s->len += len;
}

/* --------------------------------------------------------------- the session */

/* A listener that listens to nobody; the strangers are put in by hand. */
static struct tcp_listener *make_listener(struct harness *h)
{
	struct tcp_listener *l = calloc(1, sizeof(*l));
	struct stream *s[2] = { &h->control, &h->data };

	FUZZ_CHECK(l, "no memory");
	l->base.ops = &unix_transport;
	l->env.peer_timeout_ms = 5000;
	l->env.chunk_bytes = 1 << 20;
	l->env.push = h->push;
	l->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	l->hub = hub_new();
	FUZZ_CHECK(l->stop_fd >= 0 && l->hub, "no listener");
	for (unsigned i = 0; i < LISTENER_STRANGERS_MAX; i++)
		l->strangers[i].fd = -1;
	for (unsigned i = 0; i < 2; i++) {
		l->strangers[i].fd = s[i]->ours;
		l->strangers[i].arrival = l->arrivals++;
		l->strangers[i].deadline = sock_deadline(5000);
	}
	return l;
}

/* Wait for more from the strangers, or a signal; false if none is left. */
static bool strangers_wait(const struct tcp_listener *l)
{
	struct pollfd p[2] = {
		{ .fd = l->strangers[0].fd, .events = POLLIN },
		{ .fd = l->strangers[1].fd, .events = POLLIN },
	};

	if (p[0].fd < 0 && p[1].fd < 0)
		return false;
	int n = poll(p, 2, 30000);

	FUZZ_CHECK(n > 0 || (n < 0 && errno == EINTR), "a stranger is kept for ever");
	return true;
}

/* Receive control messages to the end and compare.  The last result. */
static long receive_all(struct harness *h, struct transport_conn *conn)
{
	uint8_t buf[TRANSPORT_MSG_MAX];
	long n;

	do {
		const uint8_t *msg = NULL;
		struct tern_error err = { 0 };
		long want = model_recv(h, &msg);

		n = conn->ops->recv(conn, buf, sizeof(buf), 5000, &err);
		FUZZ_CHECK(want < 0 ? n < 0 : n == want, "recv() returns %ld (%s), due is %ld", n,
			   err.message, want);
		FUZZ_CHECK(n >= 0 || err.code == n, "recv() returns %ld, the error is %d", n,
			   err.code);
		FUZZ_CHECK(n <= 0 || !memcmp(buf, msg, (size_t)n), "recv() returns other bytes");
	} while (n > 0);
	return n;
}

/* Serve the data channel to the end and compare.  The last result. */
static long serve_all(struct harness *h, struct transport_channel *ch)
{
	uint8_t *buf = malloc(TRANSPORT_SERVE_MAX);
	size_t contents;
	long n;

	FUZZ_CHECK(buf, "no memory");
	do {
		const uint8_t *msg = NULL;
		struct tern_error err = { 0 };
		long want = model_serve(h, &msg);

		n = ch->ops->serve(ch, buf, &contents, &err);
		FUZZ_CHECK(want < 0 ? n < 0 : n == want, "serve() returns %ld (%s), due is %ld", n,
			   err.message, want);
		FUZZ_CHECK(n >= 0 || err.code == n, "serve() returns %ld, the error is %d", n,
			   err.code);
		FUZZ_CHECK(n <= 0 || !memcmp(buf, msg, (size_t)n), "serve() returns other bytes");
		FUZZ_CHECK(n <= 0 || contents == h->contents, "%zu bytes of contents, due are %zu",
			   contents, h->contents);
	} while (n > 0);
	free(buf);
	return n;
}

/* The fences found by the model were answered: a status, then so many FENCE_ACKs. */
static void check_answers(struct harness *h)
{
	size_t want = 8 + h->fences * 16ul, have = 0;
	uint8_t *buf = malloc(want + 1);
	ssize_t n;

	FUZZ_CHECK(buf, "no memory");
	while (have <= want &&
	       (n = recv(h->data.theirs, buf + have, want + 1 - have, MSG_DONTWAIT)) > 0)
		have += (size_t)n;
	FUZZ_CHECK(have == want, "%zu bytes of answers for %u fences", have, h->fences);
	for (size_t at = 8; at < have; at += 16)
		FUZZ_CHECK(buf[at] == FRAME_FENCE_ACK, "a fence is answered with type %u", buf[at]);
	free(buf);
}

/* After revoke() the channel serves nothing any more. */
static void check_revoked(struct transport_channel *ch)
{
	uint8_t buf[TRANSPORT_SERVE_MAX];
	size_t contents;

	FUZZ_CHECK(ch->ops->serve(ch, buf, &contents, NULL) == -ECANCELED,
		   "serve() goes on after revoke()");
}

/* The control connection was accepted: use it and whatever attached to it. */
static bool use_conn(struct harness *h, struct transport_conn *conn)
{
	struct tcp_conn *c = to_conn(conn);
	struct transport_memory mem[FUZZ_REGIONS];
	struct transport_channel *ch;
	struct tern_error err = { 0 };
	bool full = false;

	for (unsigned i = 0; i < FUZZ_REGIONS; i++)
		mem[i] = (struct transport_memory){
			.region = i,
			.hva = h->ram.hva[i],
			.size = h->ram.nr_pages[i] * TERN_PAGE_SIZE,
			.fd = -1,
		};
	h->control_at = h->data_at = FRAME_PREAMBLE_LEN;
	FUZZ_CHECK(!conn->ops->expose(conn, mem, FUZZ_REGIONS, &err), "%s", err.message);
	long last = receive_all(h, conn);

	if (c->attached[0] >= 0 && c->attached_count[0] == 1) {
		FUZZ_CHECK(!conn->ops->open_channels(conn, 1, &ch, &err), "%s", err.message);
		full = !serve_all(h, ch) && !last;
		check_answers(h);
		conn->ops->revoke(conn);
		check_revoked(ch);
	}
	return full;
}

static bool run(struct harness *h)
{
	struct tcp_listener *l = make_listener(h);
	struct transport_conn *conn = NULL, *next;
	struct tern_error err = { 0 };
	int r;

	while (strangers_wait(l)) {
		r = listener_accept(&l->base, 0, &next, &err); /* only takes what is there */
		FUZZ_CHECK(!r || r == -ETIMEDOUT, "accept() fails: %s", err.message);
		if (!r && to_conn(next)->fd == h->control.ours)
			conn = next;
		else if (!r)
			next->ops->close(next);
	}
	bool full = conn && use_conn(h, conn);

	if (conn)
		conn->ops->close(conn);
	listener_close(&l->base);
	return full;
}

enum fuzz_reach fuzz_one(const uint8_t *data, size_t size, unsigned patience_ms)
{
	struct harness *h;
	pthread_t thread;
	bool full;

	if (size < 3 || size > STREAM_MAX)
		return FUZZ_PARTLY;
	size_t control = fuzz_read_int(data + 1, 2);

	if (control > size - 3)
		control = size - 3;
	h = calloc(1, sizeof(*h));
	FUZZ_CHECK(h, "no memory");
	h->piece = data[0] >> 2 << 2;
	h->push = !(data[0] & 0x80);
	stream_set(&h->control, FRAME_KIND_CONTROL, data[0] & 1, data + 3, control);
	stream_set(&h->data, FRAME_KIND_DATA, data[0] & 2, data + 3 + control, size - 3 - control);
	stream_open(&h->control);
	stream_open(&h->data);
	fuzz_ram_map(&h->ram);
	fuzz_ram_map(&h->model);
	FUZZ_CHECK(!pthread_create(&thread, NULL, feeder, h), "no thread");
	full = run(h);
	pthread_join(thread, NULL);
	for (unsigned i = 0; i < FUZZ_REGIONS; i++)
		FUZZ_CHECK(!memcmp(h->ram.hva[i], h->model.hva[i],
				   h->ram.nr_pages[i] * TERN_PAGE_SIZE),
			   "region %u holds other bytes than were to be placed", i);
	fuzz_ram_unmap(&h->ram);
	fuzz_ram_unmap(&h->model);
	close(h->control.theirs);
	close(h->data.theirs);
	free(h);
	return full ? FUZZ_FULL : FUZZ_PARTLY;
}
