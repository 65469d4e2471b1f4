/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Encoding and decoding by table.
 *
 * Each message is a list of fields: a name for errors, a kind, where it lives in
 * the internal structure, and the values allowed.  One loop encodes, one
 * decodes.  Two kinds have a variable length: text (a length field of one byte
 * and that many bytes) and data (a length field of two bytes); an array of
 * records (REGIONS) is a count followed by records that have a table of their
 * own.  Every read checks the bytes left first; after the last field nothing may
 * be left.
 */
#include "wire.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <string.h>

#include "error.h"

enum kind {
	U8,
	U16,
	U32,
	U64,
	BYTES,   /* fixed: .size bytes */
	TEXT,    /* u8 length, then bytes; becomes a C string; .size is the buffer */
	DATA,    /* u16 length (stored at .count_at), then bytes; .size is the buffer */
	RECORDS, /* u16 count (stored at .count_at), then records of .sub; .size each */
};

struct field {
	const char *name;
	enum kind kind;
	size_t at;       /* offset in the body structure */
	size_t size;     /* see enum kind */
	uint64_t min, max; /* limits of an integer, of a length or of a count */
	size_t count_at; /* DATA, RECORDS: where the uint16_t count lives */
	const struct field *sub; /* RECORDS: ends with .name == NULL */
};

#define INT(kind_, type, member, lo, hi)                                                           \
	{ .name = #member, .kind = kind_, .at = offsetof(type, member), .min = lo, .max = hi }
#define END                                                                                        \
	{                                                                                          \
		.name = NULL                                                                       \
	}

#define RAM_MAX (1ull << 52)

static const struct field hello_fields[] = {
	INT(U16, struct wire_hello, version_min, 1, UINT16_MAX),
	INT(U16, struct wire_hello, version_max, 1, UINT16_MAX),
	INT(U32, struct wire_hello, channels, 1, TRANSPORT_CHANNELS_MAX),
	INT(U64, struct wire_hello, features, 0, UINT64_MAX),
	INT(U64, struct wire_hello, features_required, 0, UINT64_MAX),
	{ .name = "session_id",
	  .kind = BYTES,
	  .at = offsetof(struct wire_hello, session_id),
	  .size = TRANSPORT_SESSION_ID_LEN },
	INT(U32, struct wire_hello, page_size, 1, UINT32_MAX),
	INT(U32, struct wire_hello, nr_regions, 1, TERN_REGIONS_MAX),
	INT(U64, struct wire_hello, ram_bytes, TERN_PAGE_SIZE, RAM_MAX),
	INT(U64, struct wire_hello, stripe_bytes, TERN_PAGE_SIZE, RAM_MAX),
	INT(U64, struct wire_hello, chunk_bytes, TERN_PAGE_SIZE, 1ull << 30),
	INT(U64, struct wire_hello, state_max, 0, UINT64_MAX),
	INT(U32, struct wire_hello, peer_timeout_ms, 1, UINT32_MAX),
	END,
};

static const struct field hello_ack_fields[] = {
	INT(U16, struct wire_hello_ack, version, 1, UINT16_MAX),
	INT(U32, struct wire_hello_ack, channels, 1, TRANSPORT_CHANNELS_MAX),
	INT(U64, struct wire_hello_ack, features, 0, UINT64_MAX),
	INT(U64, struct wire_hello_ack, chunk_bytes, TERN_PAGE_SIZE, 1ull << 30),
	INT(U32, struct wire_hello_ack, peer_timeout_ms, 1, UINT32_MAX),
	END,
};

static const struct field region_fields[] = {
	INT(U32, struct wire_region, id, 0, TERN_REGIONS_MAX - 1),
	INT(U64, struct wire_region, size, TERN_PAGE_SIZE, RAM_MAX),
	INT(U64, struct wire_region, gpa, 0, UINT64_MAX),
	INT(U64, struct wire_region, host_page_size, TERN_PAGE_SIZE, 1ull << 30),
	{ .name = "name",
	  .kind = TEXT,
	  .at = offsetof(struct wire_region, name),
	  .size = sizeof(((struct wire_region *)0)->name),
	  .min = 1,
	  .max = TERN_REGION_NAME_MAX },
	END,
};

static const struct field regions_fields[] = {
	INT(U32, struct wire_regions, first, 0, TERN_REGIONS_MAX - 1),
	{ .name = "count",
	  .kind = RECORDS,
	  .at = offsetof(struct wire_regions, v),
	  .size = sizeof(struct wire_region),
	  .min = 1,
	  .max = WIRE_REGIONS_PER_MSG,
	  .count_at = offsetof(struct wire_regions, count),
	  .sub = region_fields },
	END,
};

static const struct field regions_ack_fields[] = {
	INT(U32, struct wire_regions_ack, nr_regions, 1, TERN_REGIONS_MAX),
	INT(U64, struct wire_regions_ack, ram_bytes, TERN_PAGE_SIZE, RAM_MAX),
	{ .name = "by_contents",
	  .kind = DATA,
	  .at = offsetof(struct wire_regions_ack, by_contents),
	  .size = WIRE_BY_CONTENTS_MAX,
	  .min = 0,
	  .max = WIRE_BY_CONTENTS_MAX,
	  .count_at = offsetof(struct wire_regions_ack, by_contents_len) },
	END,
};

static const struct field setup_done_fields[] = {
	INT(U32, struct wire_setup_done, channels, 1, TRANSPORT_CHANNELS_MAX),
	END,
};

static const struct field round_fields[] = {
	INT(U32, struct wire_round, round, 1, UINT32_MAX),
	INT(U8, struct wire_round, final, 0, 1),
	INT(U64, struct wire_round, normal_pages, 0, UINT64_MAX),
	INT(U64, struct wire_round, zero_pages, 0, UINT64_MAX),
	INT(U64, struct wire_round, skipped_pages, 0, UINT64_MAX),
	INT(U64, struct wire_round, bytes, 0, UINT64_MAX),
	END,
};

static const struct field state_fields[] = {
	INT(U64, struct wire_state, offset, 0, UINT64_MAX),
	{ .name = "len",
	  .kind = DATA,
	  .at = offsetof(struct wire_state, data),
	  .size = WIRE_STATE_DATA_MAX,
	  .min = 1,
	  .max = WIRE_STATE_DATA_MAX,
	  .count_at = offsetof(struct wire_state, len) },
	END,
};

static const struct field state_end_fields[] = {
	INT(U64, struct wire_state_end, total, 0, UINT64_MAX),
	END,
};

static const struct field ready_fields[] = {
	INT(U64, struct wire_ready, load_ns, 0, UINT64_MAX),
	END,
};

static const struct field started_fields[] = {
	INT(U64, struct wire_started, resume_ns, 0, UINT64_MAX),
	INT(U64, struct wire_started, since_ns, 0, UINT64_MAX),
	INT(U64, struct wire_started, waited_ns, 0, UINT64_MAX),
	END,
};

static const struct field error_fields[] = {
	INT(U32, struct wire_error, code, 0, UINT32_MAX),
	INT(U8, struct wire_error, scope, 0, TERN_SCOPE_SESSION),
	INT(U8, struct wire_error, started, 0, 1),
	{ .name = "len",
	  .kind = DATA,
	  .at = offsetof(struct wire_error, text),
	  .size = WIRE_ERROR_TEXT_MAX,
	  .min = 0,
	  .max = WIRE_ERROR_TEXT_MAX,
	  .count_at = offsetof(struct wire_error, len) },
	END,
};

static const struct field range_fields[] = {
	INT(U32, struct wire_page_range, region, 0, TERN_REGIONS_MAX - 1),
	INT(U64, struct wire_page_range, first_page, 0, RAM_MAX / TERN_PAGE_SIZE),
	INT(U64, struct wire_page_range, nr_pages, 1, RAM_MAX / TERN_PAGE_SIZE),
	END,
};

static const struct field missing_fields[] = {
	INT(U32, struct wire_missing, region, 0, TERN_REGIONS_MAX - 1),
	INT(U64, struct wire_missing, first_page, 0, RAM_MAX / TERN_PAGE_SIZE),
	{ .name = "runs",
	  .kind = DATA,
	  .at = offsetof(struct wire_missing, runs),
	  .size = WIRE_RUNS_MAX,
	  .min = 1,
	  .max = WIRE_RUNS_MAX,
	  .count_at = offsetof(struct wire_missing, len) },
	END,
};

static const struct field postcopy_fields[] = {
	INT(U64, struct wire_postcopy, missing_pages, 0, RAM_MAX / TERN_PAGE_SIZE),
	END,
};

static const struct field wanted_fields[] = {
	{ .name = "count",
	  .kind = RECORDS,
	  .at = offsetof(struct wire_wanted, v),
	  .size = sizeof(struct wire_page_range),
	  .min = 1,
	  .max = WIRE_WANTED_PER_MSG,
	  .count_at = offsetof(struct wire_wanted, count),
	  .sub = range_fields },
	END,
};

static const struct field recover_fields[] = {
	INT(U16, struct wire_recover, version, 1, UINT16_MAX),
	INT(U32, struct wire_recover, channels, 1, TRANSPORT_CHANNELS_MAX),
	INT(U64, struct wire_recover, chunk_bytes, TERN_PAGE_SIZE, 1ull << 30),
	INT(U32, struct wire_recover, peer_timeout_ms, 1, UINT32_MAX),
	{ .name = "session_id",
	  .kind = BYTES,
	  .at = offsetof(struct wire_recover, session_id),
	  .size = TRANSPORT_SESSION_ID_LEN },
	END,
};

static const struct field recover_ack_fields[] = {
	INT(U32, struct wire_recover_ack, channels, 1, TRANSPORT_CHANNELS_MAX),
	INT(U64, struct wire_recover_ack, chunk_bytes, TERN_PAGE_SIZE, 1ull << 30),
	INT(U32, struct wire_recover_ack, peer_timeout_ms, 1, UINT32_MAX),
	INT(U64, struct wire_recover_ack, missing_pages, 0, RAM_MAX / TERN_PAGE_SIZE),
	END,
};

static const struct field no_fields[] = { END };

enum sender {
	SOURCE = 1,
	DESTINATION = 2,
	EITHER = 3,
};

struct message {
	const char *name;
	enum sender sender;
	const struct field *fields;
};

static const struct message messages[] = {
	[WIRE_HELLO] = { "HELLO", SOURCE, hello_fields },
	[WIRE_HELLO_ACK] = { "HELLO_ACK", DESTINATION, hello_ack_fields },
	[WIRE_REGIONS] = { "REGIONS", SOURCE, regions_fields },
	[WIRE_REGIONS_ACK] = { "REGIONS_ACK", DESTINATION, regions_ack_fields },
	[WIRE_SETUP_DONE] = { "SETUP_DONE", DESTINATION, setup_done_fields },
	[WIRE_ROUND] = { "ROUND", SOURCE, round_fields },
	[WIRE_STATE] = { "STATE", SOURCE, state_fields },
	[WIRE_STATE_END] = { "STATE_END", SOURCE, state_end_fields },
	[WIRE_READY] = { "READY", DESTINATION, ready_fields },
	[WIRE_GO] = { "GO", SOURCE, no_fields },
	[WIRE_STARTED] = { "STARTED", DESTINATION, started_fields },
	[WIRE_BYE] = { "BYE", SOURCE, no_fields },
	[WIRE_CANCEL] = { "CANCEL", SOURCE, no_fields },
	[WIRE_ERROR] = { "ERROR", EITHER, error_fields },
	[WIRE_PING] = { "PING", EITHER, no_fields },
	[WIRE_MISSING] = { "MISSING", EITHER, missing_fields },
	[WIRE_POSTCOPY] = { "POSTCOPY", SOURCE, postcopy_fields },
	[WIRE_PAGES_WANTED] = { "PAGES_WANTED", DESTINATION, wanted_fields },
	[WIRE_COMPLETE] = { "COMPLETE", DESTINATION, no_fields },
	[WIRE_RECOVER] = { "RECOVER", SOURCE, recover_fields },
	[WIRE_RECOVER_ACK] = { "RECOVER_ACK", DESTINATION, recover_ack_fields },
	[WIRE_SWITCHOVER_ACK] = { "SWITCHOVER_ACK", DESTINATION, no_fields },
};

_Static_assert(sizeof(messages) / sizeof(messages[0]) == WIRE_TYPE_NR,
	       "one row per control message");

const char *wire_type_name(unsigned type)
{
	if (type >= WIRE_TYPE_NR || !messages[type].name)
		return "unknown";
	return messages[type].name;
}

bool wire_from_source(enum wire_type type)
{
	return messages[type].sender & SOURCE;
}

bool wire_from_destination(enum wire_type type)
{
	return messages[type].sender & DESTINATION;
}

/* Write the low @n bytes of @v, little-endian; returns the place behind. */
static uint8_t *put(uint8_t *p, uint64_t v, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		p[i] = (uint8_t)(v >> (8 * i));
	return p + n;
}

/* Read @n little-endian bytes. */
static uint64_t get(const uint8_t *p, unsigned n)
{
	uint64_t v = 0;

	for (unsigned i = 0; i < n; i++)
		v |= (uint64_t)p[i] << (8 * i);
	return v;
}

static unsigned int_len(enum kind kind)
{
	return kind == U8 ? 1 : kind == U16 ? 2 : kind == U32 ? 4 : 8;
}

/* The integer of @kind stored at @p in host order. */
static uint64_t load_int(const void *p, enum kind kind)
{
	switch (kind) {
	case U8:
		return *(const uint8_t *)p;
	case U16:
		return *(const uint16_t *)p;
	case U32:
		return *(const uint32_t *)p;
	default:
		return *(const uint64_t *)p;
	}
}

static void store_int(void *p, enum kind kind, uint64_t v)
{
	switch (kind) {
	case U8:
		*(uint8_t *)p = (uint8_t)v;
		break;
	case U16:
		*(uint16_t *)p = (uint16_t)v;
		break;
	case U32:
		*(uint32_t *)p = (uint32_t)v;
		break;
	default:
		*(uint64_t *)p = v;
		break;
	}
}

/* Encode the body @base by @f; returns the place behind. */
static uint8_t *encode_fields(const struct field *f, const uint8_t *base, uint8_t *p)
{
	for (; f->name; f++) {
		const uint8_t *m = base + f->at;
		size_t n;

		switch (f->kind) {
		case BYTES:
			memcpy(p, m, f->size);
			p += f->size;
			break;
		case TEXT:
			n = strnlen((const char *)m, f->size);
			assert(n >= f->min && n <= f->max);
			p = put(p, n, 1);
			memcpy(p, m, n);
			p += n;
			break;
		case DATA:
			n = load_int(base + f->count_at, U16);
			assert(n >= f->min && n <= f->max);
			p = put(p, n, 2);
			memcpy(p, m, n);
			p += n;
			break;
		case RECORDS:
			n = load_int(base + f->count_at, U16);
			assert(n >= f->min && n <= f->max);
			p = put(p, n, 2);
			for (size_t i = 0; i < n; i++)
				p = encode_fields(f->sub, m + i * f->size, p);
			break;
		default:
			assert(load_int(m, f->kind) >= f->min && load_int(m, f->kind) <= f->max);
			p = put(p, load_int(m, f->kind), int_len(f->kind));
			break;
		}
	}
	return p;
}

/* What is left to decode, and of which message (for errors). */
struct cursor {
	const uint8_t *p;
	size_t left;
	const char *message;
};

static int too_short(const struct cursor *c, const struct field *f, size_t want,
		     struct tern_error *err)
{
	return error_session(err, -EBADMSG,
			     "message %s from the peer is truncated in field %s: %zu bytes are "
			     "needed, %zu are left; the peer does not speak this protocol",
			     c->message, f->name, want, c->left);
}

/* Take @n bytes as an integer within the limits of @f. */
static int take_int(struct cursor *c, const struct field *f, unsigned n, uint64_t *out,
		    struct tern_error *err)
{
	if (c->left < n)
		return too_short(c, f, n, err);
	uint64_t v = get(c->p, n);

	if (v < f->min || v > f->max)
		return error_session(err, -EPROTO,
				     "message %s from the peer has %s = %" PRIu64
				     ", allowed are %" PRIu64 " to %" PRIu64,
				     c->message, f->name, v, f->min, f->max);
	c->p += n;
	c->left -= n;
	*out = v;
	return 0;
}

static int take_bytes(struct cursor *c, const struct field *f, size_t n, uint8_t *to,
		      struct tern_error *err)
{
	if (c->left < n)
		return too_short(c, f, n, err);
	memcpy(to, c->p, n);
	c->p += n;
	c->left -= n;
	return 0;
}

static int take_text(struct cursor *c, const struct field *f, uint8_t *to, struct tern_error *err)
{
	uint64_t n = 0;
	int r = take_int(c, f, 1, &n, err);

	if (!r)
		r = take_bytes(c, f, n, to, err);
	if (r)
		return r;
	to[n] = 0;
	for (uint64_t i = 0; i < n; i++)
		if (to[i] < 0x20 || to[i] > 0x7e)
			return error_session(err, -EPROTO,
					     "message %s from the peer has the byte 0x%02x in "
					     "field %s, allowed is printable ASCII",
					     c->message, to[i], f->name);
	return 0;
}

static int decode_fields(struct cursor *c, const struct field *f, uint8_t *base,
			 struct tern_error *err)
{
	for (; f->name; f++) {
		uint8_t *m = base + f->at;
		uint64_t v = 0;
		int r;

		switch (f->kind) {
		case BYTES:
			r = take_bytes(c, f, f->size, m, err);
			break;
		case TEXT:
			r = take_text(c, f, m, err);
			break;
		case DATA:
			r = take_int(c, f, 2, &v, err);
			if (!r)
				r = take_bytes(c, f, v, m, err);
			if (!r)
				store_int(base + f->count_at, U16, v);
			break;
		case RECORDS:
			r = take_int(c, f, 2, &v, err);
			for (uint64_t i = 0; !r && i < v; i++)
				r = decode_fields(c, f->sub, m + i * f->size, err);
			if (!r)
				store_int(base + f->count_at, U16, v);
			break;
		default:
			r = take_int(c, f, int_len(f->kind), &v, err);
			if (!r)
				store_int(m, f->kind, v);
			break;
		}
		if (r)
			return r;
	}
	return 0;
}

size_t wire_encode(const struct wire_msg *msg, uint8_t *buf)
{
	uint8_t *p = buf;

	p = put(p, msg->type, 2);
	p = put(p, 0, 2);
	p = put(p, msg->seq, 4);
	p = encode_fields(messages[msg->type].fields, (const uint8_t *)&msg->hello, p);
	return (size_t)(p - buf);
}

int wire_decode(const uint8_t *buf, size_t len, struct wire_msg *msg, struct tern_error *err)
{
	struct cursor c = { .p = buf, .left = len, .message = "header" };

	if (len < WIRE_HEADER_LEN)
		return error_session(err, -EBADMSG,
				     "control message of %zu bytes from the peer, the header alone "
				     "has %u; the peer does not speak this protocol",
				     len, WIRE_HEADER_LEN);
	unsigned type = (unsigned)get(c.p, 2);
	unsigned flags = (unsigned)get(c.p + 2, 2);

	if (type >= WIRE_TYPE_NR || !messages[type].name)
		return error_session(err, -EPROTO,
				     "control message of unknown type %u from the peer", type);
	c.message = messages[type].name;
	if (flags)
		return error_session(err, -EPROTO,
				     "message %s from the peer has flags 0x%x, they must be 0",
				     c.message, flags);
	msg->type = (enum wire_type)type;
	msg->seq = (uint32_t)get(c.p + 4, 4);
	c.p += WIRE_HEADER_LEN;
	c.left -= WIRE_HEADER_LEN;

	int r = decode_fields(&c, messages[type].fields, (uint8_t *)&msg->hello, err);

	if (!r && c.left)
		r = error_session(err, -EBADMSG,
				  "message %s from the peer has %zu bytes too many", c.message,
				  c.left);
	return r;
}

static const struct field ranges_fields[] = {
	{ .name = "count",
	  .kind = RECORDS,
	  .at = offsetof(struct wire_ranges, v),
	  .size = sizeof(struct wire_page_range),
	  .min = 1,
	  .max = WIRE_RANGES_MAX,
	  .count_at = offsetof(struct wire_ranges, count),
	  .sub = range_fields },
	END,
};

static const struct field contents_fields[] = {
	INT(U32, struct wire_contents, region, 0, TERN_REGIONS_MAX - 1),
	INT(U64, struct wire_contents, first_page, 0, RAM_MAX / TERN_PAGE_SIZE),
	END,
};

static const struct {
	const char *name;
	const struct field *fields;
} notifies[] = {
	[WIRE_NOTIFY_ZERO] = { "ZERO", ranges_fields },
	[WIRE_NOTIFY_PLACED] = { "PLACED", ranges_fields },
	[WIRE_NOTIFY_EMPTY] = { "EMPTY", ranges_fields },
	[WIRE_NOTIFY_CONTENTS] = { "CONTENTS", contents_fields },
};

_Static_assert(sizeof(notifies) / sizeof(notifies[0]) == WIRE_NOTIFY_NR,
	       "one row per message of channels");
_Static_assert(2 + 2 + WIRE_RANGES_MAX * 20 <= TRANSPORT_NOTIFY_MAX, "ranges fit a notify");
_Static_assert(WIRE_HEADER_LEN + 8 + 2 + WIRE_STATE_DATA_MAX <= TRANSPORT_MSG_MAX,
	       "STATE fits a message");
_Static_assert(WIRE_HEADER_LEN + 12 + 2 + WIRE_RUNS_MAX <= TRANSPORT_MSG_MAX,
	       "MISSING fits a message");
_Static_assert(WIRE_HEADER_LEN + 4 + 2 + WIRE_REGIONS_PER_MSG * (4 + 8 + 8 + 8 + 1 + 63) <=
		       TRANSPORT_MSG_MAX,
	       "REGIONS fits a message");

const char *wire_notify_name(unsigned type)
{
	return type < WIRE_NOTIFY_NR && notifies[type].name ? notifies[type].name : "unknown";
}

/* The message @type with the body @body. */
static size_t notify_encode(enum wire_notify_type type, const void *body, uint8_t *buf)
{
	uint8_t *p = put(buf, type, 2);

	return (size_t)(encode_fields(notifies[type].fields, body, p) - buf);
}

size_t wire_notify_encode(const struct wire_notify *n, uint8_t *buf)
{
	return notify_encode(n->type, &n->ranges, buf);
}

size_t wire_ranges_encode(enum wire_notify_type type, const struct wire_ranges *r, uint8_t *buf)
{
	assert(notifies[type].fields == ranges_fields);
	return notify_encode(type, r, buf);
}

int wire_notify_decode(const uint8_t *buf, size_t len, struct wire_notify *n,
		       struct tern_error *err)
{
	unsigned type = len < 2 ? 0 : (unsigned)get(buf, 2);
	struct cursor c = { .p = buf + 2, .left = len - 2, .message = wire_notify_name(type) };

	if (type >= WIRE_NOTIFY_NR || !notifies[type].name)
		return error_session(err, -EPROTO,
				     "channel message of unknown type %u (%zu bytes) from the peer",
				     type, len);
	n->type = (enum wire_notify_type)type;
	int r = decode_fields(&c, notifies[type].fields, (uint8_t *)&n->ranges, err);

	if (!r && c.left)
		r = error_session(err, -EBADMSG,
				  "message %s from the peer has %zu bytes too many", c.message,
				  c.left);
	return r;
}
