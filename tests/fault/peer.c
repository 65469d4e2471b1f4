/* SPDX-License-Identifier: BSD-2-Clause */
#define _GNU_SOURCE
#include "peer.h"

#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "frame.h"
#include "monitor.h"
#include "scene.h"
#include "strangers.h"
#include "uri.h"

/* Longer than anything the other side may take. */
#define PATIENCE_MS 20000

void peer_init(struct peer *p, const struct testvm *vm, char *problems)
{
	memset(p, 0, sizeof(*p));
	p->listen_fd = p->fd = -1;
	for (unsigned i = 0; i < PEER_CHANNELS; i++)
		p->data[i] = -1;
	memcpy(p->id, "a session's id..", sizeof(p->id));
	p->vm = vm;
	p->problems = problems;
}

static void shut(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

void peer_close(struct peer *p)
{
	shut(&p->listen_fd);
	shut(&p->fd);
	for (unsigned i = 0; i < PEER_CHANNELS; i++)
		shut(&p->data[i]);
}

/* No receive waits for ever. */
static int patient(int fd)
{
	struct timeval tv = { .tv_sec = PATIENCE_MS / 1000 };

	if (fd >= 0)
		(void)setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
	return fd;
}

int peer_socket(struct peer *p, const char *text)
{
	struct tern_error err = { 0 };
	struct uri uri;
	int fd = uri_parse(text, &uri, &err) ? -1 : patient(strangers_socket(&uri));

	if (fd < 0)
		problem_add(p->problems, "the peer cannot connect to %s", text);
	return fd;
}

/* All of @bytes; false if the connection is gone. */
static bool put_all(int fd, const void *bytes, size_t len)
{
	return fd >= 0 && send(fd, bytes, len, MSG_NOSIGNAL) == (ssize_t)len;
}

static bool get_all(int fd, void *bytes, size_t len)
{
	return fd >= 0 && recv(fd, bytes, len, MSG_WAITALL) == (ssize_t)len;
}

bool peer_connect(struct peer *p, const char *uri)
{
	struct frame_preamble pre = { .version = FRAME_VERSION, .kind = FRAME_KIND_CONTROL };
	uint8_t buf[FRAME_PREAMBLE_LEN];

	memcpy(pre.session_id, p->id, sizeof(p->id));
	frame_preamble_put(buf, &pre);
	p->fd = peer_socket(p, uri);
	return put_all(p->fd, buf, sizeof(buf));
}

bool peer_listen(struct peer *p, char *uri)
{
	struct sockaddr_in sa = { .sin_family = AF_INET,
				  .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(sa);

	p->listen_fd = patient(socket(AF_INET, SOCK_STREAM, 0));
	if (p->listen_fd < 0 || bind(p->listen_fd, (struct sockaddr *)&sa, sizeof(sa)) ||
	    listen(p->listen_fd, 16) || getsockname(p->listen_fd, (struct sockaddr *)&sa, &len)) {
		problem_add(p->problems, "the peer cannot listen");
		return false;
	}
	snprintf(uri, 64, "tcp:127.0.0.1:%u", ntohs(sa.sin_port));
	return true;
}

/* Take a connection and its preamble. */
static int take_connection(struct peer *p, struct frame_preamble *pre)
{
	uint8_t buf[FRAME_PREAMBLE_LEN];
	int fd = patient(accept(p->listen_fd, NULL, NULL));

	if (!get_all(fd, buf, sizeof(buf)) || !frame_is_magic(buf, FRAME_MAGIC_LEN) ||
	    frame_preamble_get(buf, pre)) {
		problem_add(p->problems, "the source did not say who it is");
		shut(&fd);
	}
	return fd;
}

bool peer_accept(struct peer *p)
{
	struct frame_preamble pre;

	p->fd = take_connection(p, &pre);
	if (p->fd >= 0)
		memcpy(p->id, pre.session_id, sizeof(p->id));
	return p->fd >= 0;
}

bool peer_attach(struct peer *p, const char *uri)
{
	struct frame_preamble pre = { .version = FRAME_VERSION, .kind = FRAME_KIND_DATA };
	uint8_t buf[FRAME_PREAMBLE_LEN], answer[FRAME_STATUS_LEN];
	struct frame_status st;

	memcpy(pre.session_id, p->id, sizeof(p->id));
	pre.count = PEER_CHANNELS;
	for (unsigned i = 0; i < PEER_CHANNELS; i++) {
		pre.index = (uint16_t)i;
		frame_preamble_put(buf, &pre);
		p->data[i] = peer_socket(p, uri);
		if (!put_all(p->data[i], buf, sizeof(buf)))
			return false;
	}
	for (unsigned i = 0; i < PEER_CHANNELS; i++)
		if (!get_all(p->data[i], answer, sizeof(answer)) ||
		    !frame_status_get(answer, &st) || st.code)
			return false;
	return true;
}

bool peer_take_channels(struct peer *p, uint16_t code)
{
	struct frame_status st = { .code = code };
	struct frame_preamble pre;
	uint8_t buf[FRAME_STATUS_LEN];

	frame_status_put(buf, &st);
	for (unsigned i = 0; i < PEER_CHANNELS; i++) {
		int fd = take_connection(p, &pre);

		if (fd < 0 || pre.index >= PEER_CHANNELS || p->data[pre.index] >= 0) {
			shut(&fd);
			return false;
		}
		p->data[pre.index] = fd;
		if (!put_all(fd, buf, sizeof(buf)))
			return false;
	}
	return true;
}

bool peer_bytes(struct peer *p, const void *bytes, size_t len)
{
	return put_all(p->fd, bytes, len);
}

bool peer_record(struct peer *p, const void *bytes, size_t len)
{
	uint8_t buf[FRAME_CONTROL_LEN + 2 * TRANSPORT_MSG_MAX];

	frame_put_u32(buf, (uint32_t)len);
	memcpy(buf + FRAME_CONTROL_LEN, bytes, len);
	return put_all(p->fd, buf, FRAME_CONTROL_LEN + len);
}

bool peer_frame(struct peer *p, unsigned i, const void *bytes, size_t len)
{
	return put_all(p->data[i], bytes, len);
}

/* A HELLO that fits. */
static void fill_hello(struct peer *p, struct wire_hello *h)
{
	h->version_min = h->version_max = 1;
	h->channels = PEER_CHANNELS - p->postcopy; /* the last one is not counted */
	h->features = h->features_required = p->postcopy ? WIRE_FEATURE_POSTCOPY : 0;
	memcpy(h->session_id, p->id, sizeof(p->id));
	h->page_size = TERN_PAGE_SIZE;
	h->nr_regions = p->vm->nr_regions;
	for (unsigned i = 0; i < p->vm->nr_regions; i++)
		h->ram_bytes += p->vm->pages[i] * TERN_PAGE_SIZE;
	h->stripe_bytes = 1 << 20;
	h->chunk_bytes = 1 << 18;
	h->peer_timeout_ms = PEER_TIMEOUT_MS;
}

/* The list of regions, as testvm_session() makes it. */
static void fill_regions(struct peer *p, struct wire_regions *r)
{
	uint64_t gpa = 0;

	r->count = (uint16_t)p->vm->nr_regions;
	for (unsigned i = 0; i < r->count; i++) {
		r->v[i].id = i;
		r->v[i].size = p->vm->pages[i] * TERN_PAGE_SIZE;
		r->v[i].gpa = gpa;
		r->v[i].host_page_size = TERN_PAGE_SIZE;
		snprintf(r->v[i].name, sizeof(r->v[i].name), "ram%u", i);
		gpa += r->v[i].size;
	}
}

/* The first @nr pages (below 128). */
static void fill_missing(struct wire_missing *m, uint64_t nr)
{
	m->runs[0] = 0;
	m->runs[1] = (uint8_t)nr;
	m->len = 2;
}

size_t peer_message(struct peer *p, enum wire_type type, uint8_t *buf)
{
	struct wire_msg m;

	memset(&m, 0, sizeof(m));
	m.type = type;
	m.seq = p->tx_seq++;
	switch (type) {
	case WIRE_HELLO:
		fill_hello(p, &m.hello);
		break;
	case WIRE_HELLO_ACK:
		m.hello_ack = (struct wire_hello_ack){ .version = 1,
						       .channels = PEER_CHANNELS - p->postcopy,
						       .features = p->postcopy,
						       .chunk_bytes = 1 << 18,
						       .peer_timeout_ms = PEER_TIMEOUT_MS };
		break;
	case WIRE_REGIONS:
		fill_regions(p, &m.regions);
		break;
	case WIRE_REGIONS_ACK:
		m.regions_ack.nr_regions = p->vm->nr_regions;
		for (unsigned i = 0; i < p->vm->nr_regions; i++)
			m.regions_ack.ram_bytes += p->vm->pages[i] * TERN_PAGE_SIZE;
		m.regions_ack.by_contents_len = p->postcopy;
		m.regions_ack.by_contents[0] = p->postcopy ? 3 : 0; /* both regions */
		break;
	case WIRE_SETUP_DONE:
		m.setup_done.channels = PEER_CHANNELS;
		break;
	case WIRE_ROUND:
		m.round.round = 1;
		m.round.final = 1;
		break;
	case WIRE_STATE:
		m.state.len = 8;
		break;
	case WIRE_STATE_END:
		m.state_end.total = 8;
		break;
	case WIRE_ERROR:
		m.error.code = -EIO;
		m.error.len = 15;
		memcpy(m.error.text, "something broke", 15);
		break;
	case WIRE_MISSING:
		m.missing.region = 0;
		fill_missing(&m.missing, p->vm->pages[0]);
		break;
	case WIRE_POSTCOPY:
		m.postcopy.missing_pages = p->vm->pages[0];
		break;
	case WIRE_PAGES_WANTED:
		m.wanted.count = 1;
		m.wanted.v[0] = (struct wire_page_range){ .nr_pages = 1 };
		break;
	case WIRE_RECOVER:
		m.recover = (struct wire_recover){ .version = 1,
						   .channels = PEER_CHANNELS - 1,
						   .chunk_bytes = 1 << 18,
						   .peer_timeout_ms = PEER_TIMEOUT_MS };
		memcpy(m.recover.session_id, p->id, sizeof(p->id));
		break;
	case WIRE_RECOVER_ACK:
		m.recover_ack = (struct wire_recover_ack){ .channels = PEER_CHANNELS - 1,
							   .chunk_bytes = 1 << 18,
							   .peer_timeout_ms = PEER_TIMEOUT_MS,
							   .missing_pages = p->vm->pages[0] };
		break;
	default:
		break;
	}
	return wire_encode(&m, buf);
}

bool peer_say(struct peer *p, enum wire_type type)
{
	uint8_t buf[TRANSPORT_MSG_MAX];
	size_t len = peer_message(p, type, buf);

	return peer_record(p, buf, len);
}

/* Answer what is on channel @i: its next frame, payload and all.  False: it is gone. */
static bool serve_channel(struct peer *p, unsigned i)
{
	uint8_t head[FRAME_HEADER_LEN], sink[4096];
	struct transport_range range;
	struct frame_header h;
	uint64_t left = 0;

	if (!get_all(p->data[i], head, sizeof(head)) || frame_header_get(head, &h))
		return false;
	for (unsigned k = 0; k < h.nr_ranges; k++) {
		if (!get_all(p->data[i], sink, FRAME_RANGE_LEN))
			return false;
		frame_range_get(sink, &range);
		left += range.len;
	}
	for (left += h.length; left;) {
		size_t n = left < sizeof(sink) ? left : sizeof(sink);

		if (!get_all(p->data[i], sink, n))
			return false;
		left -= n;
	}
	if (h.type != FRAME_FENCE)
		return true;
	frame_header_put(head, &(struct frame_header){ .type = FRAME_FENCE_ACK, .seq = h.seq });
	return put_all(p->data[i], head, sizeof(head));
}

/*
 * Wait at most @ms for the control connection, serving the channels if @fences.
 * False: time is up.
 */
static bool await_control(struct peer *p, bool fences, int ms)
{
	for (;;) {
		struct pollfd v[1 + PEER_CHANNELS] = { { .fd = p->fd, .events = POLLIN } };

		for (unsigned i = 0; i < PEER_CHANNELS; i++)
			v[1 + i] =
				(struct pollfd){ .fd = fences ? p->data[i] : -1, .events = POLLIN };
		int n = poll(v, 1 + PEER_CHANNELS, ms);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		if (v[0].revents)
			return true;
		for (unsigned i = 0; i < PEER_CHANNELS; i++)
			if (v[1 + i].revents && !serve_channel(p, i))
				shut(&p->data[i]);
	}
}

/* The next control message.  1; 0: the connection ended; -1: nonsense. */
static int hear_one(struct peer *p, struct wire_msg *msg, bool fences)
{
	uint8_t head[FRAME_CONTROL_LEN], buf[TRANSPORT_MSG_MAX];
	struct tern_error err = { 0 };
	uint32_t len;

	if (!await_control(p, fences, PATIENCE_MS) || !get_all(p->fd, head, sizeof(head)))
		return 0;
	len = frame_get_u32(head);
	if (!len)
		return 0;
	if (len > sizeof(buf) || !get_all(p->fd, buf, len) || wire_decode(buf, len, msg, &err)) {
		problem_add(p->problems, "a bad message came: %s", err.message);
		return -1;
	}
	if (msg->type == WIRE_ERROR)
		snprintf(p->error, sizeof(p->error), "%.*s", msg->error.len, msg->error.text);
	return 1;
}

bool peer_hear(struct peer *p, enum wire_type type, struct wire_msg *out, bool fences)
{
	struct wire_msg msg;

	while (hear_one(p, &msg, fences) > 0) {
		if (msg.type == type) {
			if (out)
				*out = msg;
			return true;
		}
		if (msg.type == WIRE_PING || (msg.type == WIRE_ROUND && !msg.round.final))
			continue;
		if (type == WIRE_STATE_END && (msg.type == WIRE_STATE || msg.type == WIRE_ROUND))
			continue;
		problem_add(p->problems, "%s came instead of %s (%s)", wire_type_name(msg.type),
			    wire_type_name(type), p->error);
		return false;
	}
	problem_add(p->problems, "the connection ended before %s", wire_type_name(type));
	return false;
}

void peer_hear_end(struct peer *p)
{
	struct wire_msg msg;

	while (hear_one(p, &msg, true) > 0)
		;
}

void peer_ping_to_end(struct peer *p, bool fences)
{
	uint64_t until = deadline_ns(PATIENCE_MS);
	struct wire_msg msg;

	while (now_ns() < until) {
		if (!await_control(p, fences, PEER_TIMEOUT_MS / 4)) {
			if (!peer_say(p, WIRE_PING))
				return;
		} else if (hear_one(p, &msg, fences) <= 0) {
			return;
		}
	}
}
