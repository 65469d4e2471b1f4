/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_VMM_RAM_H
#define TERN_VMM_RAM_H

/*
 * Guest RAM: two regions with a hole between them, whatever the size.
 *
 *	0 ──────── low ────────┐   hole: IOAPIC, LAPICs   ┌── high, from 4 GiB on
 *
 * Low RAM is three quarters of the whole, 3 GiB at most, and so every guest has RAM
 * above 4 GiB.  Both sizes are multiples of 2 MiB, whatever the backing.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <tern/error.h>

#define RAM_REGIONS 2u
#define RAM_ALIGN (2ull << 20)
#define RAM_MIN (16ull << 20)
#define RAM_MAX (64ull << 30) /* what the page tables of boot.c can map */

enum ram_backing {
	RAM_MEMFD = 0,
	RAM_ANON,
	RAM_HUGETLB,
	RAM_BACKING_NR,
};

struct ram_region {
	const char *name;
	uint64_t gpa, size; /* bytes */
	uint8_t *hva; /* aligned to 2 MiB; NULL: not mapped */
	int fd; /* memfd behind it, from offset 0; -1: private */
};

struct ram {
	enum ram_backing backing;
	struct ram_region region[RAM_REGIONS];
};

/* ram_backing_name - "memfd", "anon", "hugetlb". */
const char *ram_backing_name(enum ram_backing backing);

/*
 * ram_init - map @bytes of RAM, all of it zero and untouched.
 *
 * @bytes is a multiple of RAM_ALIGN from RAM_MIN to RAM_MAX.  0, or -errno with *@err;
 * ram_fini() is due in both cases.
 */
int ram_init(struct ram *r, uint64_t bytes, enum ram_backing backing, struct tern_error *err);

/* ram_fini - unmap it. */
void ram_fini(struct ram *r);

/* ram_at - where [gpa, gpa + size) is mapped; NULL if it is not all inside one region. */
void *ram_at(const struct ram *r, uint64_t gpa, uint64_t size);

#endif
