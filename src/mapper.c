/* SPDX-License-Identifier: BSD-2-Clause */
#define _GNU_SOURCE
#include "mapper.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bitmap.h"
#include "error.h"

struct mapper_range {
	struct tern_mapping m;
	uint64_t host_page_size;
	uint64_t *asked; /* a bit per host page */
};

struct mapper {
	struct uffd uffd;
	unsigned nr;
	struct mapper_range v[];
};

/* Is the mapping one of guest RAM that can be placed there?  0 or -EINVAL with *err. */
static int check(const struct placement *p, const struct tern_mapping *m, struct tern_error *err)
{
	const struct placement_region *v = m->region < p->nr ? &p->v[m->region] : NULL;
	uint64_t host = v ? v->region->host_page_size : 1;

	if (m->reserved)
		return error_session(err, -EINVAL,
				     "a mapping of another process has %u where 0 must be",
				     m->reserved);
	if (!v)
		return error_session(err, -EINVAL,
				     "a mapping of another process is of region %u, there are %u",
				     m->region, p->nr);
	if (v->kind != PLACEMENT_SHARED)
		return error_session(
			err, -EINVAL,
			"another process cannot map region '%s', which is private memory",
			v->region->name);
	if (!m->size || m->offset > v->region->size || m->size > v->region->size - m->offset)
		return error_session(
			err, -EINVAL,
			"a mapping of another process, offset %llu size %llu, is outside "
			"region '%s' of %llu bytes",
			(unsigned long long)m->offset, (unsigned long long)m->size, v->region->name,
			(unsigned long long)v->region->size);
	if (m->offset % host || m->size % host || m->hva % host)
		return error_session(
			err, -EINVAL,
			"a mapping of another process, offset %llu size %llu at 0x%llx, is "
			"not one of whole host pages of %llu bytes",
			(unsigned long long)m->offset, (unsigned long long)m->size,
			(unsigned long long)m->hva, (unsigned long long)host);
	return 0;
}

/* Do two of the mappings claim the same addresses of that process? */
static int check_apart(const struct tern_mapping *maps, unsigned nr, struct tern_error *err)
{
	for (unsigned i = 0; i < nr; i++)
		for (unsigned k = 0; k < i; k++)
			if (maps[i].hva - maps[k].hva < maps[k].size ||
			    maps[k].hva - maps[i].hva < maps[i].size)
				return error_session(
					err, -EINVAL,
					"two mappings of another process overlap, at 0x%llx and 0x%llx",
					(unsigned long long)maps[k].hva,
					(unsigned long long)maps[i].hva);
	return 0;
}

/* Free @m; the mappings stay registered. */
static void release(struct mapper *m)
{
	for (unsigned i = 0; i < m->nr; i++)
		free(m->v[i].asked);
	uffd_close(&m->uffd);
	free(m);
}

/* Room for what is asked for in @m, whose mappings are in order.  0 or -ENOMEM with *err. */
static int make_ranges(const struct placement *p, struct mapper *m, const struct tern_mapping *maps,
		       unsigned nr, struct tern_error *err)
{
	for (; m->nr < nr; m->nr++) {
		struct mapper_range *v = &m->v[m->nr];

		v->m = maps[m->nr];
		v->host_page_size = p->v[v->m.region].region->host_page_size;
		v->asked = calloc(bitmap_words(v->m.size / v->host_page_size), 8);
		if (!v->asked)
			return error_session(err, -ENOMEM, "no memory for a mapping");
	}
	return 0;
}

/* Until it succeeds the descriptor and what is registered with it are the caller's alone. */
int mapper_new(const struct placement *p, int uffd, const struct tern_mapping *maps, unsigned nr,
	       struct mapper **out, struct tern_error *err)
{
	struct mapper *m;
	int r = 0;

	for (unsigned i = 0; i < nr && !r; i++)
		r = check(p, &maps[i], err);
	if (!r)
		r = check_apart(maps, nr, err);
	if (r)
		return r;
	m = calloc(1, sizeof(*m) + nr * sizeof(m->v[0]));
	if (!m)
		return error_session(err, -ENOMEM, "no memory for %u mappings", nr);
	m->uffd.fd = -1;
	r = make_ranges(p, m, maps, nr, err);
	if (!r) {
		m->uffd.fd = fcntl(uffd, F_DUPFD_CLOEXEC, 0);
		if (m->uffd.fd < 0 || fcntl(m->uffd.fd, F_SETFL, O_NONBLOCK))
			r = error_session(err, -errno, "descriptor %d is no userfaultfd: %s", uffd,
					  error_name(-errno));
	}
	if (r)
		release(m);
	else
		*out = m;
	return r;
}

void mapper_delete(struct mapper **mp)
{
	struct mapper *m = *mp;

	if (!m)
		return;
	for (unsigned i = 0; i < m->nr; i++)
		(void)uffd_unregister(&m->uffd, (void *)(uintptr_t)m->v[i].m.hva, m->v[i].m.size);
	release(m);
	*mp = NULL;
}

void mapper_forsake(struct mapper *m)
{
	for (unsigned i = 0; i < m->nr; i++)
		(void)uffd_unregister(&m->uffd, (void *)(uintptr_t)m->v[i].m.hva, m->v[i].m.size);
}

int mapper_fd(const struct mapper *m)
{
	return m->uffd.fd;
}

bool mapper_find(const struct placement *p, const struct mapper *m, uint64_t hva,
		 struct placement_fault *f)
{
	for (unsigned i = 0; i < m->nr; i++) {
		const struct tern_mapping *v = &m->v[i].m;

		if (hva - v->hva >= v->size)
			continue;
		placement_at(p, v->region, (v->offset + (hva - v->hva)) / TERN_PAGE_SIZE, f);
		return true;
	}
	return false;
}

/* The host page of @f in range @v, by its number there; false: it is not in it. */
static bool in_range(const struct mapper_range *v, const struct placement_fault *f, uint64_t *n)
{
	uint64_t offset = f->page * TERN_PAGE_SIZE;

	if (f->region != v->m.region || offset < v->m.offset || offset - v->m.offset >= v->m.size)
		return false;
	*n = (offset - v->m.offset) / v->host_page_size;
	return true;
}

void mapper_ask(struct mapper *m, const struct placement_fault *f)
{
	uint64_t n;

	for (unsigned i = 0; i < m->nr; i++)
		if (in_range(&m->v[i], f, &n))
			__atomic_fetch_or(&m->v[i].asked[n / 64], 1ull << n % 64, __ATOMIC_SEQ_CST);
}

int mapper_resolve(const struct placement *p, struct mapper *m, const struct placement_fault *f)
{
	int r = 0;

	for (unsigned i = 0; i < m->nr && !r; i++) {
		struct mapper_range *v = &m->v[i];
		uint64_t n, hva;

		if (!in_range(v, f, &n) ||
		    !(__atomic_load_n(&v->asked[n / 64], __ATOMIC_SEQ_CST) >> n % 64 & 1))
			continue;
		hva = v->m.hva + n * v->host_page_size;
		r = placement_map_shared(p, &m->uffd, f, (uint8_t *)(uintptr_t)hva);
		if (r == -EBADF || r == -ESRCH) /* that process is gone */
			r = 0;
	}
	return r;
}
