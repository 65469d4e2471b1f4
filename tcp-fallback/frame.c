/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * Encoding and decoding of the stream transport's records.
 *
 *            0      1      2      3      4      5      6      7
 * preamble   89     'T'    'E'    'R'    'N'    0d     0a     1a
 *        8   version       kind   0      index         count
 *       16   session id, 16 bytes
 *
 * status     ff     ff     ff     ff     code          value
 *
 * header     type   ranges 0      0      length
 *        8   sequence number, or a PUSH's contents
 *
 * range      region                      length
 *        8   offset
 *
 * The magic has a byte above 0x7f, CR LF and ^Z, so that a connection that goes
 * through something that alters text fails at its first bytes.
 */

#include <string.h>
#include "frame.h"

static const uint8_t frame_magic[FRAME_MAGIC_LEN] = {
	0x89, 'T', 'E', 'R', 'N', '\r', '\n', 0x1a,
};

/* Little-endian 16 bits. */
static void put_u16(uint8_t *p, uint16_t v)
{
	p[0] = (uint8_t)v;
	p[1] = (uint8_t)(v >> 8);
}

static uint16_t get_u16(const uint8_t *p)
{
	return (uint16_t)(p[0] | p[1] << 8);
}

void frame_put_u32(uint8_t *p, uint32_t v)
{
	put_u16(p, (uint16_t)v);
	put_u16(p + 2, (uint16_t)(v >> 16));
}

uint32_t frame_get_u32(const uint8_t *p)
{
	return get_u16(p) | (uint32_t)get_u16(p + 2) << 16;
}

/* Little-endian 64 bits. */
static void put_u64(uint8_t *p, uint64_t v)
{
	frame_put_u32(p, (uint32_t)v);
	frame_put_u32(p + 4, (uint32_t)(v >> 32));
}

static uint64_t get_u64(const uint8_t *p)
{
	return frame_get_u32(p) | (uint64_t)frame_get_u32(p + 4) << 32;
}

bool frame_is_magic(const uint8_t *p, size_t len)
{
	return !memcmp(p, frame_magic, len < FRAME_MAGIC_LEN ? len : FRAME_MAGIC_LEN);
}

void frame_preamble_put(uint8_t *p, const struct frame_preamble *pre)
{
	memcpy(p, frame_magic, FRAME_MAGIC_LEN);
	put_u16(p + 8, pre->version);
	p[10] = pre->kind;
	p[11] = 0;
	put_u16(p + 12, pre->index);
	put_u16(p + 14, pre->count);
	memcpy(p + 16, pre->session_id, TRANSPORT_SESSION_ID_LEN);
}

const char *frame_preamble_get(const uint8_t *p, struct frame_preamble *pre)
{
	*pre = (struct frame_preamble){ .version = get_u16(p + 8) };
	if (pre->version != FRAME_VERSION)
		return NULL;
	pre->kind = p[10];
	pre->index = get_u16(p + 12);
	pre->count = get_u16(p + 14);
	memcpy(pre->session_id, p + 16, TRANSPORT_SESSION_ID_LEN);
	if (p[11])
		return "its reserved byte is not 0";
	if (pre->kind == FRAME_KIND_CONTROL)
		return pre->index || pre->count ? "a control connection has a channel" : NULL;
	if (pre->kind != FRAME_KIND_DATA)
		return "its kind is neither control nor data";
	if (pre->count < 1 || pre->count > TRANSPORT_CHANNELS_MAX)
		return "its channel count is out of range";
	if (pre->index >= pre->count)
		return "its channel index is not below its count";
	return NULL;
}

void frame_status_put(uint8_t *p, const struct frame_status *st)
{
	frame_put_u32(p, FRAME_STATUS_MARK);
	put_u16(p + 4, st->code);
	put_u16(p + 6, st->value);
}

bool frame_status_get(const uint8_t *p, struct frame_status *st)
{
	st->code = get_u16(p + 4);
	st->value = get_u16(p + 6);
	return frame_get_u32(p) == FRAME_STATUS_MARK;
}

void frame_header_put(uint8_t *p, const struct frame_header *h)
{
	p[0] = h->type;
	p[1] = h->nr_ranges;
	put_u16(p + 2, 0);
	frame_put_u32(p + 4, h->length);
	put_u64(p + 8, h->type == FRAME_PUSH ? h->contents : h->seq);
}

/* Is the length of @h's message possible? */
static bool length_ok(const struct frame_header *h)
{
	if (h->type == FRAME_NOTIFY)
		return h->length >= 1 && h->length <= TRANSPORT_NOTIFY_MAX;
	if (h->type == FRAME_PUSH)
		return h->length >= 1 && h->length <= TRANSPORT_PUSH_MSG_MAX;
	return !h->length;
}

const char *frame_header_get(const uint8_t *p, struct frame_header *h)
{
	bool is_write, is_push, is_fence;

	*h = (struct frame_header){
		.type = p[0],
		.nr_ranges = p[1],
		.length = frame_get_u32(p + 4),
	};
	is_write = h->type == FRAME_WRITE;
	is_push = h->type == FRAME_PUSH;
	is_fence = h->type == FRAME_FENCE || h->type == FRAME_FENCE_ACK;
	*(is_push ? &h->contents : &h->seq) = get_u64(p + 8);
	if (h->type < FRAME_WRITE || h->type > FRAME_PUSH)
		return "type";
	if (get_u16(p + 2))
		return "reserved";
	if (is_write ? !h->nr_ranges || h->nr_ranges > TRANSPORT_WRITE_RANGES_MAX : h->nr_ranges)
		return "ranges";
	if (!length_ok(h))
		return "length";
	if (is_push && (!h->contents || h->contents > TRANSPORT_PUSH_MAX))
		return "contents";
	if (!is_fence && h->seq)
		return "sequence";
	return NULL;
}

void frame_range_put(uint8_t *p, const struct transport_range *r)
{
	frame_put_u32(p, r->region);
	frame_put_u32(p + 4, (uint32_t)r->len);
	put_u64(p + 8, r->offset);
}

void frame_range_get(const uint8_t *p, struct transport_range *r)
{
	r->region = frame_get_u32(p);
	r->len = frame_get_u32(p + 4);
	r->offset = get_u64(p + 8);
}
