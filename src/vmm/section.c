/* SPDX-License-Identifier: BSD-2-Clause */

/* The form of the device state; see section.h. */

#include "section.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include "../cli/cli.h"

#define MAGIC "TERNVMST"
#define HEAD_BYTES 16u
#define COUNT_AT 12u
#define NAME_BYTES (SECTION_NAME_MAX + 1)
#define SECTION_HEAD_BYTES 32u
#define LENGTH_AT 24u

int section_put(struct section_buf *b, const void *data, size_t len)
{
	if (len > b->cap - b->len) {
		size_t cap = (b->cap + len) * 2;
		uint8_t *p = realloc(b->p, cap);

		if (!p)
			return -ENOMEM;
		b->p = p;
		b->cap = cap;
	}
	if (len)
		memcpy(b->p + b->len, data, len);
	b->len += len;
	return 0;
}

static void encode(uint8_t *p, uint64_t v, unsigned bytes)
{
	for (unsigned i = 0; i < bytes; i++)
		p[i] = (uint8_t)(v >> 8 * i);
}

int section_put_u32(struct section_buf *b, uint32_t v)
{
	uint8_t p[4];

	encode(p, v, sizeof(p));
	return section_put(b, p, sizeof(p));
}

int section_put_u64(struct section_buf *b, uint64_t v)
{
	uint8_t p[8];

	encode(p, v, sizeof(p));
	return section_put(b, p, sizeof(p));
}

uint32_t section_get_u32(const uint8_t *p)
{
	return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

uint64_t section_get_u64(const uint8_t *p)
{
	return section_get_u32(p) | (uint64_t)section_get_u32(p + 4) << 32;
}

int section_begin(struct section_buf *b)
{
	int ret = section_put(b, MAGIC, 8);

	if (!ret)
		ret = section_put_u32(b, SECTION_FORMAT);
	return ret ? ret : section_put_u32(b, 0);
}

void section_count(struct section_buf *b, uint32_t nr)
{
	encode(b->p + COUNT_AT, nr, 4);
}

int section_open(struct section_buf *b, const char *name, uint32_t version, uint32_t instance,
		 size_t *at)
{
	char padded[NAME_BYTES] = "";
	int ret;

	*at = b->len;
	strncpy(padded, name, SECTION_NAME_MAX);
	ret = section_put(b, padded, sizeof(padded));
	if (!ret)
		ret = section_put_u32(b, version);
	if (!ret)
		ret = section_put_u32(b, instance);
	return ret ? ret : section_put_u64(b, 0);
}

void section_close(struct section_buf *b, size_t at)
{
	encode(b->p + at + LENGTH_AT, b->len - at - SECTION_HEAD_BYTES, 8);
}

/* The stream's head: how many sections follow. */
static int parse_head(const uint8_t *p, size_t len, uint32_t *nr, struct tern_error *err)
{
	if (len < HEAD_BYTES)
		return cli_fail(err, -ENODATA,
				"device state: cut short: %zu bytes, its head alone has %u", len,
				HEAD_BYTES);
	if (memcmp(p, MAGIC, 8))
		return cli_fail(err, -EPROTO,
				"device state: does not begin with " MAGIC
				": is none of tern-vm's");
	if (section_get_u32(p + 8) != SECTION_FORMAT)
		return cli_fail(
			err, -EPROTO,
			"device state: has format %u, this tern-vm reads format %u; use the "
			"same version on both hosts",
			section_get_u32(p + 8), SECTION_FORMAT);
	*nr = section_get_u32(p + COUNT_AT);
	if (*nr > SECTIONS_MAX)
		return cli_fail(err, -EPROTO, "device state: %u sections, at most %u are possible",
				*nr, SECTIONS_MAX);
	return 0;
}

/* The name of section @index: printable, and zeroes behind it. */
static int parse_name(const uint8_t *p, unsigned index, char *name, struct tern_error *err)
{
	unsigned len = 0;
	bool proper;

	while (len < SECTION_NAME_MAX && p[len] > ' ' && p[len] <= '~')
		len++;
	proper = len;
	for (unsigned i = len; i < NAME_BYTES; i++)
		proper = proper && !p[i];
	if (!proper)
		return cli_fail(err, -EPROTO,
				"device state: section %u has no proper name; it is damaged, or "
				"none of tern-vm's",
				index);
	memcpy(name, p, len);
	name[len] = 0;
	return 0;
}

/* Section @index of @nr, at @p; its length in *@taken. */
static int parse_one(const uint8_t *p, size_t left, unsigned index, unsigned nr, struct section *s,
		     size_t *taken, struct tern_error *err)
{
	int ret;

	if (left < SECTION_HEAD_BYTES)
		return cli_fail(err, -ENODATA,
				"device state: cut short: it ends in section %u of %u, whose head "
				"has %u bytes, %zu are left",
				index, nr, SECTION_HEAD_BYTES, left);
	ret = parse_name(p, index, s->name, err);
	if (ret)
		return ret;
	s->version = section_get_u32(p + NAME_BYTES);
	s->instance = section_get_u32(p + NAME_BYTES + 4);
	s->len = section_get_u64(p + LENGTH_AT);
	s->data = p + SECTION_HEAD_BYTES;
	if (s->len > left - SECTION_HEAD_BYTES)
		return cli_fail(
			err, -ENODATA,
			"device state: cut short: section %u (%s) wants %llu bytes, %zu are left",
			index, s->name, (unsigned long long)s->len, left - SECTION_HEAD_BYTES);
	*taken = SECTION_HEAD_BYTES + (size_t)s->len;
	return 0;
}

int section_parse(const uint8_t *p, size_t len, struct section **out, unsigned *nr,
		  struct tern_error *err)
{
	size_t at = HEAD_BYTES, taken = 0;
	struct section *s;
	uint32_t count = 0;
	int ret = parse_head(p, len, &count, err);

	if (ret)
		return ret;
	s = calloc(count + 1, sizeof(*s));
	if (!s)
		return cli_fail(err, -ENOMEM, "device state: out of memory");
	for (uint32_t i = 0; i < count && !ret; i++) {
		ret = parse_one(p + at, len - at, i, count, &s[i], &taken, err);
		at += ret ? 0 : taken;
	}
	if (!ret && at != len)
		ret = cli_fail(err, -EPROTO, "device state: %zu bytes follow its last section",
			       len - at);
	if (ret) {
		free(s);
		return ret;
	}
	*out = s;
	*nr = count;
	return 0;
}

const struct section *section_find(const struct section *s, unsigned nr, const char *name,
				   uint32_t instance)
{
	for (unsigned i = 0; i < nr; i++)
		if (s[i].instance == instance && !strcmp(s[i].name, name))
			return &s[i];
	return NULL;
}

/* One section against the rule of its name. */
static int match_one(const struct section *s, const struct section_rule *r, struct tern_error *err)
{
	bool fits = s->len == r->len;

	if (s->version != r->version)
		return cli_fail(
			err, -EPROTO,
			"device state: section %s number %u has version %u, this tern-vm reads "
			"version %u; use the same version on both hosts",
			s->name, s->instance, s->version, r->version);
	if (s->instance >= r->nr_instances)
		return cli_fail(err, -EPROTO,
				"device state: section %s number %u: there are %u here, from 0 on",
				s->name, s->instance, r->nr_instances);
	if (r->unit)
		fits = s->len >= r->len && (s->len - r->len) % r->unit == 0;
	if (!fits && r->unit)
		return cli_fail(
			err, -EPROTO,
			"device state: section %s number %u has %llu bytes, here it has %llu and "
			"any multiple of %llu more",
			s->name, s->instance, (unsigned long long)s->len,
			(unsigned long long)r->len, (unsigned long long)r->unit);
	if (!fits)
		return cli_fail(
			err, -EPROTO,
			"device state: section %s number %u has %llu bytes, here it has %llu",
			s->name, s->instance, (unsigned long long)s->len,
			(unsigned long long)r->len);
	return 0;
}

/* The rule of a name, or NULL. */
static const struct section_rule *rule_find(const struct section_rule *rules, unsigned nr,
					    const char *name)
{
	for (unsigned i = 0; i < nr; i++)
		if (!strcmp(rules[i].name, name))
			return &rules[i];
	return NULL;
}

int section_match(const struct section *s, unsigned nr, const struct section_rule *rules,
		  unsigned nr_rules, struct tern_error *err)
{
	int ret = 0;

	for (unsigned i = 0; i < nr && !ret; i++) {
		const struct section_rule *r = rule_find(rules, nr_rules, s[i].name);

		if (!r)
			return cli_fail(
				err, -EPROTO,
				"device state: unknown section %s (version %u); the source has "
				"a device that this tern-vm has not",
				s[i].name, s[i].version);
		ret = match_one(&s[i], r, err);
		if (!ret && section_find(s, i, s[i].name, s[i].instance))
			ret = cli_fail(err, -EPROTO,
				       "device state: section %s number %u is there twice",
				       s[i].name, s[i].instance);
	}
	for (unsigned i = 0; i < nr_rules && !ret; i++)
		for (uint32_t k = 0; k < rules[i].nr_instances && !ret; k++)
			if (!section_find(s, nr, rules[i].name, k))
				ret = cli_fail(err, -EPROTO,
					       "device state: section %s number %u is missing",
					       rules[i].name, k);
	return ret;
}
