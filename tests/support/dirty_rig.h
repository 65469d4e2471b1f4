/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_TESTS_DIRTY_RIG_H
#define TERN_TESTS_DIRTY_RIG_H

/*
 * One region of some backing under a dirty provider, and a replica of it: what
 * the tests of the providers are made of.  Failures end the test.
 */

#include <stdbool.h>
#include <stdint.h>
#include "dirty.h"
#include "error.h"
#include "hugepages.h"
#include "populated.h"
#include "region.h"

enum rig_backing {
	RIG_ANON,
	RIG_MEMFD,
	RIG_HUGETLB, /* shared */
	RIG_HUGETLB_PRIVATE,
	RIG_FILE, /* MAP_SHARED of a file in the working directory */
};

/* One way of tracking. */
struct rig_variant {
	const char *name;
	enum tern_dirty_provider provider;
	enum rig_backing backing;
	bool can_scan; /* let it use PAGEMAP_SCAN */
};

struct rig {
	struct region_list list;
	struct region *r;
	struct populated p;
	struct dirty d;
	struct tern_error err;
	uint8_t *hva;
	uint64_t size;
	int fd; /* behind it, or -1 */
	uint64_t *bitmap; /* of the whole region */
	uint64_t unit; /* pages in a host page */
	uint8_t *replica;
	bool has_hugepages;
	struct hugepages hp;
};

/* rig_new - map @size bytes as @v says and make its provider.  NULL: cannot be had here. */
struct rig *rig_new(const struct rig_variant *v, uint64_t size);
void rig_delete(struct rig *rig);

/* rig_leave_out - rig_new() gave NULL: skip the test if that was asked for, else fail. */
void rig_leave_out(const struct rig_variant *v);

/* rig_start - start tracking; rig->bitmap is what is populated now. */
void rig_start(struct rig *rig);

/* rig_sync - rig->bitmap |= what the provider reports; number of bits set in all. */
uint64_t rig_sync(struct rig *rig);

/* rig_clear - clear() for the whole region, keeping rig->bitmap. */
void rig_clear(struct rig *rig);

/* rig_forget - rig->bitmap = 0. */
void rig_forget(struct rig *rig);

/*
 * rig_copy_round - for each stripe: clear() if @clear, then copy its dirty pages
 * into the replica; the bitmap is empty afterwards.
 */
void rig_copy_round(struct rig *rig, bool clear);

/* rig_page_tables_kib - VmPTE of the process. */
long rig_page_tables_kib(void);

#endif
