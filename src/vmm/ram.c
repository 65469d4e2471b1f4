/* SPDX-License-Identifier: BSD-2-Clause */

/* Guest RAM; see ram.h. */

#define _GNU_SOURCE
#include "ram.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "bootinfo.h"
#include "../cli/cli.h"

#ifndef MFD_HUGE_2MB
#define MFD_HUGE_2MB (21u << 26)
#endif

#define LOW_MAX (3ull << 30)

static const char *const backing_names[] = { "memfd", "anon", "hugetlb" };
_Static_assert(sizeof(backing_names) / sizeof(backing_names[0]) == RAM_BACKING_NR, "names");

const char *ram_backing_name(enum ram_backing backing)
{
	return (unsigned)backing < RAM_BACKING_NR ? backing_names[backing] : "unknown";
}

/* Reserve @bytes of address space at a multiple of 2 MiB; NULL if there is none. */
static uint8_t *reserve(uint64_t bytes)
{
	uint64_t span = bytes + RAM_ALIGN;
	uint8_t *p, *begin;

	p = mmap(NULL, span, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		return NULL;
	begin = (uint8_t *)(((uintptr_t)p + RAM_ALIGN - 1) & ~(uintptr_t)(RAM_ALIGN - 1));
	if (begin > p)
		munmap(p, (size_t)(begin - p));
	munmap(begin + bytes, span - bytes - (size_t)(begin - p));
	return begin;
}

/* Say why @bytes could not be had. */
static int memory_error(enum ram_backing backing, uint64_t bytes, int code, struct tern_error *err)
{
	return cli_fail(
		err, code, "cannot allocate %llu MiB of %s memory for the guest: %s; %s",
		(unsigned long long)bytes >> 20, ram_backing_name(backing), strerror(-code),
		backing == RAM_HUGETLB
			? "reserve more 2 MiB pages with `sysctl vm.nr_hugepages=N`, or use "
			  "--backing memfd"
			: "use a smaller --mem");
}

/* Map one region. */
static int region_map(struct ram_region *r, enum ram_backing backing, struct tern_error *err)
{
	int flags = MAP_FIXED | MAP_NORESERVE | MAP_PRIVATE | MAP_ANONYMOUS;
	unsigned mfd = MFD_CLOEXEC;
	uint8_t *at;
	int ret;

	if (backing == RAM_HUGETLB)
		mfd |= MFD_HUGETLB | MFD_HUGE_2MB;
	if (backing != RAM_ANON) {
		/* Huge pages are reserved here: a fault must not find the pool empty. */
		flags = MAP_FIXED | MAP_SHARED;
		r->fd = memfd_create(r->name, mfd);
		if (r->fd < 0 || ftruncate(r->fd, (off_t)r->size))
			return memory_error(backing, r->size, -errno, err);
	}
	at = reserve(r->size);
	if (!at)
		return memory_error(backing, r->size, -errno, err);
	if (mmap(at, r->size, PROT_READ | PROT_WRITE, flags, r->fd, 0) == MAP_FAILED) {
		ret = memory_error(backing, r->size, -errno, err);
		munmap(at, r->size);
		return ret;
	}
	r->hva = at;
	return 0;
}

int ram_init(struct ram *r, uint64_t bytes, enum ram_backing backing, struct tern_error *err)
{
	uint64_t low = bytes / 4 * 3 & ~(RAM_ALIGN - 1);
	int ret = 0;

	if (low > LOW_MAX)
		low = LOW_MAX;
	*r = (struct ram){
		.backing = backing,
		.region = {
			{ .name = "ram-low", .gpa = 0, .size = low, .fd = -1 },
			{ .name = "ram-high", .gpa = BOOT_HIGH_GPA, .size = bytes - low, .fd = -1 },
		},
	};
	for (unsigned i = 0; i < RAM_REGIONS && !ret; i++)
		ret = region_map(&r->region[i], backing, err);
	return ret;
}

void ram_fini(struct ram *r)
{
	for (unsigned i = 0; i < RAM_REGIONS; i++) {
		if (r->region[i].hva)
			munmap(r->region[i].hva, r->region[i].size);
		if (r->region[i].fd >= 0)
			close(r->region[i].fd);
		r->region[i].hva = NULL;
		r->region[i].fd = -1;
	}
}

void *ram_at(const struct ram *r, uint64_t gpa, uint64_t size)
{
	for (unsigned i = 0; i < RAM_REGIONS; i++) {
		const struct ram_region *g = &r->region[i];

		if (gpa >= g->gpa && gpa - g->gpa <= g->size && size <= g->size - (gpa - g->gpa))
			return g->hva + (gpa - g->gpa);
	}
	return NULL;
}
