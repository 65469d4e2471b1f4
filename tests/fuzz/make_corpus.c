/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * Makes the seeds of the fuzz targets from valid messages:
 *
 *	make_corpus DIRECTORY      writes DIRECTORY/{wire,uri,stream,destination,source,vmstate,
 *	                           rdma,rdma_frames}/…
 *
 * Seeds called full-* are valid to their end, and replay.c insists on that.  The
 * files are in git; run this again after a change of the protocol.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "error.h"
#include "frame.h"
#include "fuzz.h"
#include "make_corpus.h"
#include "script.h"
#include "uri.h"
#include "wire.h"

static const char *const region_names[FUZZ_REGIONS] = { "ram0", "ram1" };
static const uint64_t region_pages[FUZZ_REGIONS] = { 16, 4 };
#define RAM_BYTES ((16 + 4) * (uint64_t)TERN_PAGE_SIZE)

void seed_add(struct seed *s, const void *p, size_t len)
{
	FUZZ_CHECK(len <= sizeof(s->bytes) - s->len, "a seed is too large");
	memcpy(s->bytes + s->len, p, len);
	s->len += len;
}

void seed_write(struct seed *s, const char *dir, const char *target, const char *name)
{
	char path[4096];

	snprintf(path, sizeof(path), "%s/%s", dir, target);
	mkdir(path, 0777);
	snprintf(path, sizeof(path), "%s/%s/%s", dir, target, name);
	FILE *f = fopen(path, "wb");

	FUZZ_CHECK(f && fwrite(s->bytes, 1, s->len, f) == s->len && !fclose(f), "cannot write %s",
		   path);
	s->len = 0;
}

/* A valid message of @type about the RAM of the session targets. */
static struct wire_msg *sample(enum wire_type type)
{
	static struct wire_msg m; /* the result; too large to pass around */

	memset(&m, 0, sizeof(m));
	m.type = type;
	switch (type) {
	case WIRE_HELLO:
		m.hello = (struct wire_hello){ 1,
					       1,
					       2,
					       0,
					       0,
					       { 0 },
					       TERN_PAGE_SIZE,
					       FUZZ_REGIONS,
					       RAM_BYTES,
					       4 << 20,
					       1 << 20,
					       16384,
					       5000 };
		memset(m.hello.session_id, 0x5e, sizeof(m.hello.session_id));
		break;
	case WIRE_HELLO_ACK:
		m.hello_ack = (struct wire_hello_ack){ 1, 2, 0, 1 << 20, 5000 };
		break;
	case WIRE_REGIONS:
		m.regions.count = FUZZ_REGIONS;
		for (unsigned i = 0; i < FUZZ_REGIONS; i++) {
			struct wire_region *r = &m.regions.v[i];

			*r = (struct wire_region){ i, region_pages[i] * TERN_PAGE_SIZE,
						   (uint64_t)i << 20, TERN_PAGE_SIZE, "" };
			snprintf(r->name, sizeof(r->name), "%s", region_names[i]);
		}
		break;
	case WIRE_REGIONS_ACK:
		m.regions_ack = (struct wire_regions_ack){ FUZZ_REGIONS, RAM_BYTES };
		break;
	case WIRE_SETUP_DONE:
		m.setup_done.channels = 2;
		break;
	case WIRE_ROUND:
		m.round = (struct wire_round){ 1, 0, 12, 3, 5, 49152 };
		break;
	case WIRE_STATE:
		m.state.len = 32;
		memset(m.state.data, 0x42, 32);
		break;
	case WIRE_STATE_END:
		m.state_end.total = 32;
		break;
	case WIRE_READY:
		m.ready.load_ns = 1000;
		break;
	case WIRE_STARTED:
		m.started.resume_ns = 1000;
		break;
	case WIRE_ERROR:
		m.error.code = -5;
		m.error.scope = TERN_SCOPE_SESSION;
		m.error.len = 9;
		memcpy(m.error.text, "it failed", 9);
		break;
	case WIRE_MISSING:
		m.missing.region = 1;
		m.missing.len = 4;
		memcpy(m.missing.runs, "\0\1\1\2", 4);
		break;
	case WIRE_POSTCOPY:
		m.postcopy.missing_pages = 3;
		break;
	case WIRE_PAGES_WANTED:
		m.wanted.count = 2;
		m.wanted.v[0] = (struct wire_page_range){ 0, 15, 1 };
		m.wanted.v[1] = (struct wire_page_range){ 1, 0, 1 };
		break;
	case WIRE_RECOVER:
		m.recover = (struct wire_recover){ 1, 2, 1 << 20, 5000, { 0 } };
		memset(m.recover.session_id, 0x5e, sizeof(m.recover.session_id));
		break;
	case WIRE_RECOVER_ACK:
		m.recover_ack = (struct wire_recover_ack){ 2, 1 << 20, 5000, 3 };
		break;
	default:
		break;
	}
	return &m;
}

static void add_record(struct seed *s, unsigned head, const uint8_t *p, size_t len)
{
	uint8_t h[SCRIPT_HEAD_LEN] = { (uint8_t)head, (uint8_t)len, (uint8_t)(len >> 8) };

	seed_add(s, h, sizeof(h));
	seed_add(s, p, len);
}

static void add_msg(struct seed *s, unsigned flags, const struct wire_msg *m)
{
	uint8_t buf[TRANSPORT_MSG_MAX];

	add_record(s, SCRIPT_CONTROL | flags, buf, wire_encode(m, buf));
}

/* Messages of @types, ended by 0, one after the other. */
static void add_msgs(struct seed *s, unsigned flags, const uint8_t *types)
{
	for (; *types; types++)
		add_msg(s, flags, sample((enum wire_type) * types));
}

/* ROUND, and the final one. */
static void add_rounds(struct seed *s, unsigned flags)
{
	struct wire_msg *m = sample(WIRE_ROUND);

	add_msg(s, flags, m);
	m->round.final = 1;
	add_msg(s, flags, m);
}

static size_t zero_msg(uint8_t *buf)
{
	struct wire_ranges z = { 3, { { 0, 2, 3 }, { 0, 10, 6 }, { 1, 0, 1 } } };

	return wire_ranges_encode(WIRE_NOTIFY_ZERO, &z, buf);
}

static void add_zero(struct seed *s, unsigned channel)
{
	uint8_t buf[TRANSPORT_NOTIFY_MAX];

	add_record(s, SCRIPT_NOTIFY | channel << 4, buf, zero_msg(buf));
}

/* ------------------------------------------------------------------ targets */

static void make_wire(struct seed *s, const char *dir)
{
	uint8_t buf[TRANSPORT_MSG_MAX];
	char name[64];

	for (unsigned t = WIRE_HELLO; t < WIRE_TYPE_NR; t++) {
		seed_add(s, buf, wire_encode(sample((enum wire_type)t), buf));
		snprintf(name, sizeof(name), "full-%s", wire_type_name(t));
		seed_write(s, dir, "wire", name);
	}
	for (unsigned t = WIRE_NOTIFY_ZERO; t < WIRE_NOTIFY_NR; t++) {
		struct wire_contents contents = { 1, 2 };
		struct wire_notify n = { .type = (enum wire_notify_type)t };

		if (t == WIRE_NOTIFY_CONTENTS)
			n.contents = contents;
		else
			n.ranges = (struct wire_ranges){ 2, { { 0, 2, 3 }, { 1, 0, 4 } } };
		seed_add(s, buf, wire_notify_encode(&n, buf));
		snprintf(name, sizeof(name), "full-%s", wire_notify_name(t));
		seed_write(s, dir, "wire", name);
	}
	/* REGIONS_ACK of a session that agreed on postcopy. */
	struct wire_msg *ack = sample(WIRE_REGIONS_ACK);

	ack->regions_ack.by_contents_len = 1;
	ack->regions_ack.by_contents[0] = 2;
	seed_add(s, buf, wire_encode(ack, buf));
	seed_write(s, dir, "wire", "full-REGIONS_ACK-postcopy");
}

static void make_uri(struct seed *s, const char *dir)
{
	static const char *const uris[] = {
		"tcp:host:4444",
		"tcp:[::1]:4444",
		"tcp:[fe80::1%eth0]:1",
		"tcp::0",
		"rdma://node-1.example:65535",
		"auto:192.0.2.1:1",
		"unix:/run/tern.sock",
		"unix:////run/tern.sock",
		"unix://relative",
		"TCP:host:00080",
	};
	char name[16];

	for (unsigned i = 0; i < sizeof(uris) / sizeof(uris[0]); i++) {
		seed_add(s, uris[i], strlen(uris[i]));
		snprintf(name, sizeof(name), "full-%u", i);
		seed_write(s, dir, "uri", name);
	}
	seed_add(s, "tcp:::1:4444", 12);
	seed_write(s, dir, "uri", "no-brackets");
	seed_add(s, "tcp:host", 8);
	seed_write(s, dir, "uri", "no-port");
}

static void add_header(struct seed *s, uint8_t type, uint8_t ranges, uint32_t length, uint64_t seq)
{
	uint8_t buf[FRAME_HEADER_LEN];

	frame_header_put(buf, &(struct frame_header){ type, ranges, length, seq, 0 });
	seed_add(s, buf, sizeof(buf));
}

/* A WRITE of @nr ranges of @len bytes, 1000 bytes apart; the second half in region 1. */
static void add_write(struct seed *s, uint8_t nr, uint32_t len)
{
	uint8_t buf[FRAME_RANGE_LEN];

	add_header(s, FRAME_WRITE, nr, 0, 0);
	for (unsigned i = 0; i < nr; i++) {
		frame_range_put(buf, &(struct transport_range){ i >= nr / 2u, i * 1000, len });
		seed_add(s, buf, sizeof(buf));
	}
	memset(buf, 0x31, sizeof(buf));
	for (size_t left = (size_t)nr * len; left;) {
		size_t n = left < sizeof(buf) ? left : sizeof(buf);

		seed_add(s, buf, n);
		left -= n;
	}
}

/* A stream seed: mode, control records, then frames. */
static void make_stream_of(struct seed *s, uint8_t mode, uint8_t writes, uint8_t ranges)
{
	uint8_t buf[TRANSPORT_MSG_MAX];
	size_t hello = wire_encode(sample(WIRE_HELLO), buf);
	size_t control = 4 + hello + 4 + 8 + 4;
	uint8_t head[3] = { mode, (uint8_t)control, (uint8_t)(control >> 8) };
	uint8_t len[4];

	seed_add(s, head, sizeof(head));
	frame_put_u32(len, (uint32_t)hello);
	seed_add(s, len, 4);
	seed_add(s, buf, hello);
	frame_put_u32(len, 8);
	seed_add(s, len, 4);
	seed_add(s, buf, wire_encode(sample(WIRE_PING), buf));
	frame_put_u32(len, 0);
	seed_add(s, len, 4);
	for (unsigned i = 0; i < writes; i++)
		add_write(s, ranges, 90 + i);
	size_t zero = zero_msg(buf);

	add_header(s, FRAME_NOTIFY, 0, (uint32_t)zero, 0);
	seed_add(s, buf, zero);
	add_header(s, FRAME_FENCE, 0, 0, 1);
	add_write(s, 1, 8);
	add_header(s, FRAME_FENCE, 0, 0, 2);
	add_header(s, FRAME_END, 0, 0, 0);
}

/* WRITEs at the borders of what is allowed; those called full-* are allowed. */
static void make_stream_borders(struct seed *s, const char *dir)
{
	static const struct {
		const char *name;
		uint8_t nr;
		struct transport_range v[2];
	} seeds[] = {
		{ "full-write-to-end", 1, { { 0, 16 * 4096 - 24, 24 } } },
		{ "full-write-adjacent", 2, { { 0, 0, 8 }, { 0, 8, 8 } } },
		{ "write-past-end", 1, { { 0, 16 * 4096 - 23, 24 } } },
		{ "write-at-end", 1, { { 0, 16 * 4096, 1 } } },
		{ "write-overflows", 1, { { 0, UINT64_MAX - 7, 24 } } },
		{ "write-no-region", 1, { { 2, 0, 8 } } },
		{ "write-nothing", 1, { { 1, 0, 0 } } },
		{ "write-overlaps", 2, { { 0, 0, 8 }, { 0, 7, 8 } } },
		{ "write-second-past-end", 2, { { 0, 0, 8 }, { 1, 4 * 4096 - 7, 8 } } },
	};
	uint8_t range[FRAME_RANGE_LEN];

	for (unsigned i = 0; i < sizeof(seeds) / sizeof(seeds[0]); i++) {
		seed_add(s, (uint8_t[]){ 3, 4 + 8 + 4, 0, 8, 0, 0, 0 }, 7);
		seed_add(s, (uint8_t[]){ WIRE_PING, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }, 12);
		add_header(s, FRAME_WRITE, seeds[i].nr, 0, 0);
		for (unsigned k = 0; k < seeds[i].nr; k++) {
			frame_range_put(range, &seeds[i].v[k]);
			seed_add(s, range, sizeof(range));
		}
		for (unsigned k = 0; k < seeds[i].nr; k++)
			seed_add(s, "abcdefghijklmnopqrstuvwx", seeds[i].v[k].len);
		add_header(s, FRAME_FENCE, 0, 0, 1);
		add_header(s, FRAME_END, 0, 0, 0);
		seed_write(s, dir, "stream", seeds[i].name);
	}
}

/* A PUSH of @len bytes of message and @contents bytes behind them, all of which are sent. */
static void add_push(struct seed *s, uint32_t len, uint32_t contents)
{
	const struct frame_header h = { .type = FRAME_PUSH, .length = len, .contents = contents };
	uint8_t buf[FRAME_HEADER_LEN];

	frame_header_put(buf, &h);
	seed_add(s, buf, sizeof(buf));
	for (uint32_t i = 0; i < len + contents; i++)
		seed_add(s, (uint8_t[]){ (uint8_t)i }, 1);
}

/* PUSHes; those called full-* are allowed. */
static void make_stream_pushes(struct seed *s, const char *dir)
{
	static const struct {
		const char *name;
		uint8_t mode;
		struct {
			uint32_t len, contents;
		} v[3];
	} seeds[] = {
		{ "full-pushes", 3, { { 1, 1 }, { 24, 4096 }, { 256, 9000 } } },
		{ "full-pushes-in-pieces", 3 | 7 << 2, { { 24, 4096 }, { 256, 300 }, { 1, 1 } } },
		{ "push-not-welcome", 3 | 32 << 2, { { 24, 100 }, { 1, 1 }, { 1, 1 } } },
		{ "push-of-no-message", 3, { { 0, 100 }, { 1, 1 }, { 1, 1 } } },
		{ "push-of-long-message", 3, { { 257, 100 }, { 1, 1 }, { 1, 1 } } },
		{ "push-of-nothing", 3, { { 24, 0 }, { 1, 1 }, { 1, 1 } } },
	};

	for (unsigned i = 0; i < sizeof(seeds) / sizeof(seeds[0]); i++) {
		seed_add(s, (uint8_t[]){ seeds[i].mode, 4 + 8 + 4, 0, 8, 0, 0, 0 }, 7);
		seed_add(s, (uint8_t[]){ WIRE_PING, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }, 12);
		for (unsigned k = 0; k < 3; k++) {
			add_push(s, seeds[i].v[k].len, seeds[i].v[k].contents);
			add_write(s, 1, 8);
		}
		add_header(s, FRAME_FENCE, 0, 0, 1);
		add_header(s, FRAME_END, 0, 0, 0);
		seed_write(s, dir, "stream", seeds[i].name);
	}
}

static void make_stream(struct seed *s, const char *dir)
{
	uint8_t buf[FRAME_PREAMBLE_LEN];
	struct frame_preamble pre = { .version = 1, .kind = FRAME_KIND_CONTROL };

	make_stream_of(s, 3, 1, 1);
	seed_write(s, dir, "stream", "full-one-write");
	make_stream_of(s, 3, 3, 4);
	seed_write(s, dir, "stream", "full-writes");
	make_stream_of(s, 3 | 5 << 2, 2, 5);
	seed_write(s, dir, "stream", "full-in-pieces");
	make_stream_of(s, 3 | 1 << 2, 1, 9);
	seed_write(s, dir, "stream", "full-in-small-pieces");
	make_stream_of(s, 3, 0, 0);
	seed_write(s, dir, "stream", "full-no-write");
	/* Preambles that come from the input, and one of another version. */
	frame_preamble_put(buf, &pre);
	seed_add(s, (uint8_t[]){ 0, FRAME_PREAMBLE_LEN, 0 }, 3);
	seed_add(s, buf, sizeof(buf));
	pre.kind = FRAME_KIND_DATA;
	pre.count = 1;
	frame_preamble_put(buf, &pre);
	seed_add(s, buf, sizeof(buf));
	seed_write(s, dir, "stream", "preambles");
	pre.version = 2;
	frame_preamble_put(buf, &pre);
	seed_add(s, (uint8_t[]){ 0, FRAME_PREAMBLE_LEN, 0 }, 3);
	seed_add(s, buf, sizeof(buf));
	seed_write(s, dir, "stream", "version-2");
}

static const uint8_t setup_msgs[] = { WIRE_HELLO, WIRE_REGIONS, 0 };
static const uint8_t state_msgs[] = { WIRE_STATE, WIRE_STATE, WIRE_STATE_END, 0 };
static const uint8_t go_msgs[] = { WIRE_GO, WIRE_BYE, 0 };

/* A whole migration as the source says it. */
static void add_migration(struct seed *s, bool zero)
{
	add_msgs(s, 0, setup_msgs);
	if (zero) {
		add_msg(s, 0, sample(WIRE_ROUND)); /* channels are open from here on */
		add_zero(s, 0);
		add_zero(s, 1);
	}
	add_rounds(s, 0);
	add_msgs(s, 0, state_msgs);
	add_msgs(s, 0, go_msgs);
}

/* ZERO messages at the borders of what is allowed; as for WRITEs. */
static void make_zero_borders(struct seed *s, const char *dir)
{
	static const struct {
		const char *name;
		struct wire_ranges z;
	} seeds[] = {
		{ "full-zero-all", { 2, { { 0, 0, 16 }, { 1, 0, 4 } } } },
		{ "full-zero-adjacent", { 2, { { 0, 3, 1 }, { 0, 4, 1 } } } },
		{ "zero-past-end", { 2, { { 0, 2, 2 }, { 0, 10, 7 } } } },
		{ "zero-at-end", { 2, { { 0, 2, 2 }, { 1, 4, 1 } } } },
		{ "zero-no-region", { 2, { { 0, 2, 2 }, { 2, 0, 1 } } } },
		{ "zero-overlaps", { 2, { { 0, 2, 2 }, { 0, 3, 1 } } } },
		{ "zero-descends", { 2, { { 1, 0, 1 }, { 0, 0, 1 } } } },
		{ "zero-far", { 2, { { 0, 2, 2 }, { 0, 1ull << 40, 1ull << 40 } } } },
	};
	uint8_t buf[TRANSPORT_NOTIFY_MAX];

	for (unsigned i = 0; i < sizeof(seeds) / sizeof(seeds[0]); i++) {
		seed_add(s, "", 1);
		add_msgs(s, 0, setup_msgs);
		add_msg(s, 0, sample(WIRE_ROUND)); /* channels are open from here on */
		add_record(s, SCRIPT_NOTIFY, buf, wire_ranges_encode(WIRE_NOTIFY_ZERO, &seeds[i].z, buf));
		add_rounds(s, 0);
		add_msgs(s, 0, state_msgs);
		add_msgs(s, 0, go_msgs);
		seed_write(s, dir, "destination", seeds[i].name);
	}
}

static void make_destination(struct seed *s, const char *dir)
{
	static const char *const behaviours[] = { "load-fails", "load-leaves-some", "resume-fails",
						  "cancel" };
	static const uint8_t early_go[] = { WIRE_GO, WIRE_GO, 0 };

	for (unsigned i = 0; i < 4; i++) {
		seed_add(s, (uint8_t[]){ (uint8_t)(1u << i) }, 1);
		add_migration(s, false);
		seed_write(s, dir, "destination", behaviours[i]);
	}
	seed_add(s, "", 1);
	add_migration(s, false);
	seed_write(s, dir, "destination", "full-plain");
	seed_add(s, "", 1);
	add_migration(s, true);
	seed_write(s, dir, "destination", "full-zero");
	seed_add(s, "", 1);
	add_record(s, SCRIPT_CLOSE, NULL, 0);
	add_msg(s, SCRIPT_HASTY, sample(WIRE_GO));
	add_record(s, SCRIPT_CLOSE, NULL, 0);
	add_migration(s, false);
	seed_write(s, dir, "destination", "full-after-strangers");
	seed_add(s, "", 1);
	add_msgs(s, 0, setup_msgs);
	add_rounds(s, 0);
	add_record(s, SCRIPT_LATECOMER, NULL, 0);
	add_msgs(s, 0, state_msgs);
	add_msgs(s, 0, go_msgs);
	seed_write(s, dir, "destination", "full-latecomer");
	/* Pages to clear come together with GO: they must not be cleared under the guest. */
	seed_add(s, "", 1);
	add_msgs(s, 0, setup_msgs);
	add_rounds(s, 0);
	add_msgs(s, 0, state_msgs);
	add_msg(s, 0, sample(WIRE_GO));
	for (unsigned i = 0; i < 12; i++)
		add_zero(s, i);
	add_msg(s, 0, sample(WIRE_BYE));
	seed_write(s, dir, "destination", "full-zero-after-go");
	seed_add(s, "", 1);
	add_msgs(s, 0, setup_msgs);
	add_rounds(s, SCRIPT_HASTY);
	add_msgs(s, SCRIPT_HASTY, state_msgs);
	add_msgs(s, SCRIPT_HASTY, early_go);
	seed_write(s, dir, "destination", "hasty");
	seed_add(s, "", 1);
	add_msgs(s, 0, setup_msgs);
	add_rounds(s, 0);
	add_msg(s, 0, sample(WIRE_CANCEL));
	seed_write(s, dir, "destination", "cancelled");
	seed_add(s, "", 1);
	add_msgs(s, 0, setup_msgs);
	add_msg(s, 0, sample(WIRE_ERROR));
	seed_write(s, dir, "destination", "error");
}

static void make_source(struct seed *s, const char *dir)
{
	static const uint8_t all[] = { WIRE_HELLO_ACK, WIRE_REGIONS_ACK, WIRE_SETUP_DONE,
				       WIRE_READY,     WIRE_STARTED,     0 };
	static const uint8_t error[] = { WIRE_HELLO_ACK,
					 WIRE_REGIONS_ACK,
					 WIRE_SETUP_DONE,
					 WIRE_READY,
					 WIRE_PING,
					 WIRE_ERROR,
					 0 };
	static const struct {
		const char *name;
		uint8_t behaviour;
	} seeds[] = {
		{ "full-plain", 0 },     { "full-one-write", 0x10 },   { "full-writes", 0x30 },
		{ "pause-fails", 1 },    { "save-fails", 2 },          { "cancel-in-round", 4 },
		{ "cancel-in-save", 8 }, { "full-large-state", 0x40 },
	};

	for (unsigned i = 0; i < sizeof(seeds) / sizeof(seeds[0]); i++) {
		seed_add(s, &seeds[i].behaviour, 1);
		add_msgs(s, 0, all);
		seed_write(s, dir, "source", seeds[i].name);
	}
	seed_add(s, "", 1);
	add_msgs(s, 0, error);
	seed_write(s, dir, "source", "error-after-ready");
	seed_add(s, "", 1);
	add_msgs(s, SCRIPT_HASTY, all);
	seed_write(s, dir, "source", "hasty");
	seed_add(s, "", 1);
	seed_write(s, dir, "source", "silent");
}

int main(int argc, char **argv)
{
	static struct seed s; /* too large for a stack */

	if (argc != 2) {
		fprintf(stderr, "usage: make_corpus DIRECTORY\n");
		return 2;
	}
	make_wire(&s, argv[1]);
	make_uri(&s, argv[1]);
	make_stream(&s, argv[1]);
	make_stream_borders(&s, argv[1]);
	make_stream_pushes(&s, argv[1]);
	make_destination(&s, argv[1]);
	make_zero_borders(&s, argv[1]);
	make_source(&s, argv[1]);
	make_vmstate(&s, argv[1]);
#ifdef HAVE_RDMA
	make_rdma(&s, argv[1]);
	make_rdma_frames(&s, argv[1]);
#endif
	return 0;
}
