/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * Device state of the synthetic guest, little-endian:
 *
 *	offset size
 *	     0    4  magic "TGST"
 *	     4    4  version, 1
 *	     8    8  seed
 *	    16    4  fill
 *	    20    4  pattern
 *	    24    4  vcpus
 *	    28    4  reserved, 0
 *	    32    8  size of RAM, bytes
 *	    40    8  touched, bytes
 *	    48    8  working set, bytes
 *	    56    8  dirty rate, bytes per second
 *	    64    8  reserved, 0
 *	    72    8  per vCPU: pages it has written
 *
 * The destination takes everything but the size of RAM from here; so only the
 * size and the regions have to be the same on both command lines.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "cli.h"
#include "guest_impl.h"

#define STATE_MAGIC 0x54534754u /* "TGST" */
#define STATE_VERSION 1u
#define STATE_HEAD 72u
#define RATE_MAX (1ull << 44) /* bytes per second; beyond any memory */

/* Append @v as 4 bytes. */
static void put32(uint8_t **p, uint32_t v)
{
	for (unsigned i = 0; i < 4; i++)
		*(*p)++ = (uint8_t)(v >> 8 * i);
}

/* Append @v as 8 bytes. */
static void put64(uint8_t **p, uint64_t v)
{
	put32(p, (uint32_t)v);
	put32(p, (uint32_t)(v >> 32));
}

/* Take 4 bytes. */
static uint32_t get32(const uint8_t **p)
{
	uint32_t v = 0;

	for (unsigned i = 0; i < 4; i++)
		v |= (uint32_t) * (*p)++ << 8 * i;
	return v;
}

/* Take 8 bytes. */
static uint64_t get64(const uint8_t **p)
{
	uint64_t low = get32(p);

	return low | (uint64_t)get32(p) << 32;
}

/* Encode; see guest.h. */
size_t guest_save(const struct guest *g, uint8_t buf[GUEST_STATE_MAX])
{
	const struct guest_config *c = &g->cfg;
	uint8_t *p = buf;

	put32(&p, STATE_MAGIC);
	put32(&p, STATE_VERSION);
	put64(&p, c->seed);
	put32(&p, (uint32_t)c->fill);
	put32(&p, (uint32_t)c->pattern);
	put32(&p, c->vcpus);
	put32(&p, 0);
	put64(&p, c->size);
	put64(&p, c->touched);
	put64(&p, c->working_set);
	put64(&p, c->dirty_rate);
	put64(&p, 0);
	for (unsigned i = 0; i < c->vcpus; i++)
		put64(&p, atomic_load(&g->vcpus[i].k));
	return (size_t)(p - buf);
}

/* -EPROTO with the field's name and value. */
static int bad_field(struct tern_error *err, const char *field, uint64_t value, const char *want)
{
	return cli_fail(err, -EPROTO, "device state of the guest: field %s is %llu, must be %s",
			field, (unsigned long long)value, want);
}

/* Decode the head into *c (its own size is in there) and check every field. */
static int head_decode(const uint8_t *p, size_t len, struct guest_config *c, struct tern_error *err)
{
	uint64_t own = c->size;
	uint32_t magic, version, fill, pattern;

	if (len < STATE_HEAD)
		return bad_field(err, "length", len, "at least 72");
	magic = get32(&p);
	version = get32(&p);
	c->seed = get64(&p);
	fill = get32(&p);
	pattern = get32(&p);
	c->vcpus = get32(&p);
	p += 4;
	c->size = get64(&p);
	c->touched = get64(&p);
	c->working_set = get64(&p);
	c->dirty_rate = get64(&p);
	if (magic != STATE_MAGIC)
		return bad_field(err, "magic", magic, "1414743892");
	if (version != STATE_VERSION)
		return bad_field(err, "version", version, "1");
	if (fill >= CONTENT_NR)
		return bad_field(err, "fill", fill, "0 to 3");
	if (pattern >= GUEST_PATTERN_NR)
		return bad_field(err, "pattern", pattern, "0 to 3");
	if (!c->vcpus || c->vcpus > GUEST_VCPUS_MAX)
		return bad_field(err, "vcpus", c->vcpus, "1 to 256");
	if (c->size != own)
		return bad_field(err, "size", c->size, "the size of RAM here");
	if (c->touched > own || c->touched % GUEST_PAGE_SIZE)
		return bad_field(err, "touched", c->touched, "whole pages within RAM");
	if (c->working_set > c->touched || c->working_set % GUEST_PAGE_SIZE)
		return bad_field(err, "working set", c->working_set, "whole touched pages");
	if (c->dirty_rate > RATE_MAX)
		return bad_field(err, "dirty rate", c->dirty_rate, "at most 2^44");
	c->fill = (enum content_fill)fill;
	c->pattern = (enum guest_pattern)pattern;
	return 0;
}

/* Decode and check the write counters into @k. */
static int counters_decode(const uint8_t *p, size_t len, const struct guest_config *c, uint64_t *k,
			   struct tern_error *err)
{
	uint64_t sum = 0, pages = c->working_set / GUEST_PAGE_SIZE;

	if (len != STATE_HEAD + 8ull * c->vcpus)
		return bad_field(err, "length", len, "72 and 8 for each vCPU");
	p += STATE_HEAD;
	for (unsigned i = 0; i < c->vcpus; i++) {
		k[i] = get64(&p);
		if (k[i] > GUEST_WRITES_MAX || (sum += k[i]) > GUEST_WRITES_MAX)
			return bad_field(err, "writes", k[i], "at most 2^34 for all vCPUs");
		if (k[i] && (i >= pages || !c->dirty_rate))
			return bad_field(err, "writes", k[i], "0 for a vCPU that writes nothing");
	}
	return 0;
}

/* Become the guest that the state describes; see guest.h. */
int guest_load(struct guest *g, const uint8_t *buf, size_t len, struct tern_error *err)
{
	struct guest_config cfg = g->cfg;
	uint64_t k[GUEST_VCPUS_MAX], *observed;
	struct histogram *touch;
	int ret = head_decode(buf, len, &cfg, err);

	if (!ret)
		ret = counters_decode(buf, len, &cfg, k, err);
	if (ret)
		return ret;
	observed = calloc(cfg.working_set / GUEST_PAGE_SIZE + 1, sizeof(*observed));
	touch = calloc(cfg.vcpus, sizeof(*touch));
	if (!observed || !touch) {
		free(observed);
		free(touch);
		return cli_fail(err, -ENOMEM,
				"cannot allocate the record of working-set pages: out of memory");
	}
	/* The threads look at all this only after guest_resume(), under the lock. */
	pthread_mutex_lock(&g->lock);
	free(g->observed);
	free(g->touch);
	g->observed = observed;
	g->touch = touch;
	g->cfg = cfg;
	g->content = (struct content){ .seed = cfg.seed, .fill = cfg.fill };
	guest_lay_out(g);
	guest_slice(g);
	for (unsigned i = 0; i < GUEST_VCPUS_MAX; i++)
		g->vcpus[i].touch = i < cfg.vcpus ? &touch[i] : NULL;
	for (unsigned i = 0; i < cfg.vcpus; i++) {
		g->vcpus[i].handover = k[i];
		atomic_store(&g->vcpus[i].k, k[i]);
	}
	pthread_mutex_unlock(&g->lock);
	return guest_start_vcpus(g, err);
}
