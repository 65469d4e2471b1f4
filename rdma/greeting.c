/* SPDX-License-Identifier: BSD-2-Clause */

/* Encoding and decoding of greeting.h, field by field. */

#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include "greeting.h"

static const char magic[8] = { 'T', 'E', 'R', 'N', 'R', 'D', 'M', 'A' };

static void put16(uint8_t *p, uint16_t v)
{
	v = htole16(v);
	memcpy(p, &v, sizeof(v));
}

static void put32(uint8_t *p, uint32_t v)
{
	v = htole32(v);
	memcpy(p, &v, sizeof(v));
}

static void put64(uint8_t *p, uint64_t v)
{
	v = htole64(v);
	memcpy(p, &v, sizeof(v));
}

static uint16_t get16(const uint8_t *p)
{
	uint16_t v;

	memcpy(&v, p, sizeof(v));
	return le16toh(v);
}

static uint32_t get32(const uint8_t *p)
{
	uint32_t v;

	memcpy(&v, p, sizeof(v));
	return le32toh(v);
}

static uint64_t get64(const uint8_t *p)
{
	uint64_t v;

	memcpy(&v, p, sizeof(v));
	return le64toh(v);
}

void greeting_put(uint8_t buf[GREETING_LEN], const struct greeting *g)
{
	memset(buf, 0, GREETING_LEN);
	memcpy(buf, magic, sizeof(magic));
	put16(buf + 8, g->version);
	put16(buf + 10, g->kind);
	put16(buf + 12, g->index);
	put16(buf + 14, g->count);
	memcpy(buf + 16, g->session_id, TRANSPORT_SESSION_ID_LEN);
	put16(buf + 32, g->ring);
	put16(buf + 34, g->msg_window);
	put32(buf + 36, g->piece_bytes);
	put64(buf + 40, g->lock_budget);
	put32(buf + 48, g->flags);
}

bool greeting_get(const void *p, size_t len, struct greeting *g)
{
	const uint8_t *buf = p;

	if (!buf || len < GREETING_LEN || memcmp(buf, magic, sizeof(magic)))
		return false;
	g->version = get16(buf + 8);
	g->kind = get16(buf + 10);
	g->index = get16(buf + 12);
	g->count = get16(buf + 14);
	memcpy(g->session_id, buf + 16, TRANSPORT_SESSION_ID_LEN);
	g->ring = get16(buf + 32);
	g->msg_window = get16(buf + 34);
	g->piece_bytes = get32(buf + 36);
	g->lock_budget = get64(buf + 40);
	g->flags = get32(buf + 48);
	return true;
}

/* @name is @value, which has to be in @min … @max. */
static int range_check(const char *name, uint32_t value, uint32_t min, uint32_t max, char *why,
		       size_t size)
{
	if (value >= min && value <= max)
		return 0;
	snprintf(why, size, "%s is %u, possible is %u to %u", name, value, min, max);
	return -EPROTO;
}

int greeting_check(const struct greeting *g, char *why, size_t size)
{
	int rc = range_check("kind", g->kind, GREETING_CONTROL, GREETING_DATA, why, size);

	if (!rc)
		rc = range_check("ring", g->ring, GREETING_RING_MIN + 1, GREETING_RING_MAX, why,
				 size);
	if (!rc && g->kind == GREETING_CONTROL)
		return range_check("message window", g->msg_window, 1, GREETING_RING_MAX, why,
				   size);
	if (!rc)
		rc = range_check("channel count", g->count, 1, TRANSPORT_CHANNELS_MAX, why, size);
	if (!rc)
		rc = range_check("channel", g->index, 0, g->count - 1u, why, size);
	return rc;
}

void refusal_put(uint8_t buf[REFUSAL_LEN], const struct refusal *r)
{
	memset(buf, 0, REFUSAL_LEN);
	memcpy(buf, magic, sizeof(magic));
	put16(buf + 8, r->version);
	put16(buf + 10, r->code);
	put32(buf + 12, r->value);
}

bool refusal_get(const void *p, size_t len, struct refusal *r)
{
	const uint8_t *buf = p;

	if (!buf || len < REFUSAL_LEN || memcmp(buf, magic, sizeof(magic)))
		return false;
	r->version = get16(buf + 8);
	r->code = get16(buf + 10);
	r->value = get32(buf + 12);
	return true;
}

void ctl_header_put(uint8_t *buf, const struct ctl_header *h)
{
	memset(buf, 0, CTL_HEADER_LEN);
	put16(buf, h->type);
	put16(buf + 2, h->credits);
	put16(buf + 4, h->msg_credits);
	put32(buf + 8, h->len);
}

void ctl_header_get(const uint8_t *buf, struct ctl_header *h)
{
	h->type = get16(buf);
	h->credits = get16(buf + 2);
	h->msg_credits = get16(buf + 4);
	h->len = get32(buf + 8);
}

void data_header_put(uint8_t *buf, const struct data_header *h)
{
	put16(buf, h->type);
	put16(buf + 2, h->credits);
	put32(buf + 4, h->len);
	put64(buf + 8, h->seq);
	put64(buf + 16, h->bytes);
	put64(buf + 24, h->writes);
}

void data_header_get(const uint8_t *buf, struct data_header *h)
{
	h->type = get16(buf);
	h->credits = get16(buf + 2);
	h->len = get32(buf + 4);
	h->seq = get64(buf + 8);
	h->bytes = get64(buf + 16);
	h->writes = get64(buf + 24);
}

/* The count in front of a list of @each bytes per entry; -1 if it does not fit @len. */
static int list_count(const uint8_t *buf, size_t len, size_t each)
{
	uint32_t nr;

	if (len < KEYS_HEAD_LEN)
		return -1;
	nr = get32(buf);
	if (!nr || nr > KEYS_BATCH || len != KEYS_HEAD_LEN + nr * each)
		return -1;
	return (int)nr;
}

size_t keys_wanted_put(uint8_t *buf, const struct key_wanted *v, unsigned nr)
{
	uint8_t *p = buf + KEYS_HEAD_LEN;

	put64(buf, nr);
	for (unsigned i = 0; i < nr; i++, p += KEYS_WANTED_LEN) {
		put32(p, v[i].id);
		put32(p + 4, v[i].region);
		put64(p + 8, v[i].offset);
		put64(p + 16, v[i].len);
		put32(p + 24, v[i].channel);
		put32(p + 28, 0);
	}
	return (size_t)(p - buf);
}

int keys_wanted_get(const uint8_t *buf, size_t len, struct key_wanted *v)
{
	int nr = list_count(buf, len, KEYS_WANTED_LEN);
	const uint8_t *p = buf + KEYS_HEAD_LEN;

	for (int i = 0; i < nr; i++, p += KEYS_WANTED_LEN)
		v[i] = (struct key_wanted){
			.id = get32(p),
			.region = get32(p + 4),
			.offset = get64(p + 8),
			.len = get64(p + 16),
			.channel = get32(p + 24),
		};
	return nr;
}

size_t keys_put(uint8_t *buf, const struct key_granted *v, unsigned nr)
{
	uint8_t *p = buf + KEYS_HEAD_LEN;

	put64(buf, nr);
	for (unsigned i = 0; i < nr; i++, p += KEYS_LEN) {
		put32(p, v[i].id);
		put32(p + 4, (uint32_t)v[i].status);
		put64(p + 8, v[i].status ? v[i].limit : v[i].remote_va);
		put32(p + 16, v[i].rkey);
		put32(p + 20, v[i].channel);
	}
	return (size_t)(p - buf);
}

int keys_get(const uint8_t *buf, size_t len, struct key_granted *v)
{
	int nr = list_count(buf, len, KEYS_LEN);
	const uint8_t *p = buf + KEYS_HEAD_LEN;

	for (int i = 0; i < nr; i++, p += KEYS_LEN)
		v[i] = (struct key_granted){
			.id = get32(p),
			.status = (int32_t)get32(p + 4),
			.remote_va = get64(p + 8),
			.limit = get64(p + 8),
			.rkey = get32(p + 16),
			.channel = get32(p + 20),
		};
	return nr;
}

size_t keys_release_put(uint8_t *buf, const uint32_t *ids, unsigned nr)
{
	put64(buf, nr);
	for (unsigned i = 0; i < nr; i++)
		put32(buf + KEYS_HEAD_LEN + i * KEYS_RELEASE_LEN, ids[i]);
	return KEYS_HEAD_LEN + nr * KEYS_RELEASE_LEN;
}

int keys_release_get(const uint8_t *buf, size_t len, uint32_t *ids)
{
	int nr = list_count(buf, len, KEYS_RELEASE_LEN);

	for (int i = 0; i < nr; i++)
		ids[i] = get32(buf + KEYS_HEAD_LEN + (unsigned)i * KEYS_RELEASE_LEN);
	return nr;
}
