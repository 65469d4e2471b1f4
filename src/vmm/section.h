/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_VMM_SECTION_H
#define TERN_VMM_SECTION_H

/*
 * The form of the device state: typed sections, each with a version and a length.
 *
 *	"TERNVMST"   u32 format (1)   u32 number of sections
 *	then each:   name, at most 15 printable bytes, up to 16 all 0
 *	             u32 version   u32 instance (of vcpu-*: which vCPU)
 *	             u64 length    the contents
 *
 * All numbers little-endian.  Every section that a reader knows must be there, once for
 * each instance, and no others; their order does not matter.  All this is checked before
 * anything is loaded.  What the contents are is state.c's business.
 */

#include <stddef.h>
#include <stdint.h>
#include <tern/error.h>

#define SECTION_NAME_MAX 15u
#define SECTION_FORMAT 1u
#define SECTIONS_MAX 4096u

/* Bytes that grow. */
struct section_buf {
	uint8_t *p;
	size_t len, cap;
};

/* section_put - append bytes; 0 or -ENOMEM. */
int section_put(struct section_buf *b, const void *data, size_t len);

/* Numbers, as they are on the wire. */
int section_put_u32(struct section_buf *b, uint32_t v);
int section_put_u64(struct section_buf *b, uint64_t v);
uint32_t section_get_u32(const uint8_t *p);
uint64_t section_get_u64(const uint8_t *p);

/* section_begin - the stream's head; section_count() completes it.  0 or -ENOMEM. */
int section_begin(struct section_buf *b);
void section_count(struct section_buf *b, uint32_t nr);

/* section_open - begin a section; section_close() completes it with its length. */
int section_open(struct section_buf *b, const char *name, uint32_t version, uint32_t instance,
		 size_t *at);
void section_close(struct section_buf *b, size_t at);

/* A section that was found. */
struct section {
	char name[SECTION_NAME_MAX + 1]; /* printable, not empty */
	uint32_t version, instance;
	const uint8_t *data;
	uint64_t len;
};

/* A section that is wanted. */
struct section_rule {
	const char *name;
	uint32_t version;
	uint32_t nr_instances;
	uint64_t len, unit; /* exactly len, or, if unit is not 0, len + any multiple of it */
};

/*
 * section_parse - find the sections of @len bytes at @p.
 *
 * 0, or -errno with *@err: -EPROTO for another form, name or bytes behind the last section,
 * -ENODATA if it ends too early, -ENOMEM.  *@out is for free() and points into @p.
 */
int section_parse(const uint8_t *p, size_t len, struct section **out, unsigned *nr,
		  struct tern_error *err);

/* section_find - one of them, or NULL. */
const struct section *section_find(const struct section *s, unsigned nr, const char *name,
				   uint32_t instance);

/*
 * section_match - are they what the @nr_rules rules want?
 *
 * 0, or -EPROTO with *@err: unknown, another version or length, an instance that there is
 * not, twice the same, or one that is missing.
 */
int section_match(const struct section *s, unsigned nr, const struct section_rule *rules,
		  unsigned nr_rules, struct tern_error *err);

#endif
