/* SPDX-License-Identifier: BSD-2-Clause */
#define _GNU_SOURCE
#include "fuzz.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "session.h"
#include "topology.h"

void fuzz_fail(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	fputs("fuzz: ", stderr);
	vfprintf(stderr, fmt, ap);
	fputc('\n', stderr);
	va_end(ap);
	abort();
}

void fuzz_ram_map(struct fuzz_ram *ram)
{
	static const uint64_t nr_pages[FUZZ_REGIONS] = { 16, 4 };

	for (unsigned i = 0; i < FUZZ_REGIONS; i++) {
		size_t size = nr_pages[i] * TERN_PAGE_SIZE;
		uint8_t *p = mmap(NULL, size + 2 * TERN_PAGE_SIZE, PROT_NONE,
				  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		FUZZ_CHECK(p != MAP_FAILED, "cannot map guest RAM");
		p += TERN_PAGE_SIZE;
		FUZZ_CHECK(!mprotect(p, size, PROT_READ | PROT_WRITE), "cannot open guest RAM");
		memset(p, FUZZ_PATTERN, size);
		ram->hva[i] = p;
		ram->nr_pages[i] = nr_pages[i];
	}
}

void fuzz_ram_unmap(struct fuzz_ram *ram)
{
	for (unsigned i = 0; i < FUZZ_REGIONS; i++)
		munmap(ram->hva[i] - TERN_PAGE_SIZE, (ram->nr_pages[i] + 2) * TERN_PAGE_SIZE);
}

bool fuzz_page_is(const struct fuzz_ram *ram, unsigned region, uint64_t page, uint8_t byte)
{
	const uint8_t *p = ram->hva[region] + page * TERN_PAGE_SIZE;

	return p[0] == byte && !memcmp(p, p + 1, TERN_PAGE_SIZE - 1);
}

/* The machine's topology, read once: it takes longer than a whole scripted migration. */
static struct topology *shared_topology(void)
{
	static struct topology *topology; /* constant after the first call, in one thread */

	if (!topology)
		FUZZ_CHECK(!topology_new(&topology), "cannot read the topology");
	return topology;
}

struct tern_session *fuzz_session(enum tern_role role, const struct fuzz_ram *ram)
{
	struct tern_session *s;

	FUZZ_CHECK(!session_new_with(role, shared_topology(), &s), "cannot make a session");
	for (unsigned i = 0; i < FUZZ_REGIONS; i++) {
		char name[16];
		struct tern_region_desc d = {
			.name = name,
			.hva = ram->hva[i],
			.size = ram->nr_pages[i] * TERN_PAGE_SIZE,
			.gpa = (uint64_t)i << 20,
			.host_page_size = TERN_PAGE_SIZE,
			.numa_node = TERN_NODE_ANY,
			.fd = -1,
			/* Not true, so that what is cleared can be told from what is not. */
			.flags = role == TERN_DESTINATION ? TERN_REGION_ZEROED : 0,
		};

		snprintf(name, sizeof(name), "ram%u", i);
		FUZZ_CHECK(tern_session_add_region(s, &d) == (int)i, "cannot add a region");
	}
	tern_session_set(s, TERN_PARAM_STATE_MAX, 16384);
	tern_session_set(s, TERN_PARAM_CHANNELS, 2);
	return s;
}

bool fuzz_session_at_rest(struct tern_session *s, unsigned others, bool busy)
{
	monitor_lock(&s->mon);
	unsigned workers = s->sender ? s->nr_channels : 0;
	bool at_rest = !s->link.count && s->mon.nr_waiting == 1 + workers + others &&
		       (!busy || s->worker_failed_ns);

	monitor_unlock(&s->mon);
	return at_rest;
}

uint64_t fuzz_read_int(const uint8_t *p, unsigned n)
{
	uint64_t v = 0;

	for (unsigned i = n; i-- > 0;)
		v = v << 8 | p[i];
	return v;
}
