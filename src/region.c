/* SPDX-License-Identifier: BSD-2-Clause */
#define _GNU_SOURCE
#include "region.h"

#include <errno.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>
#include "bitmap.h"
#include "error.h"
#include "maps.h"
#include "topology.h"

/*
 * Adopting guest RAM.
 *
 * A region is checked in two steps.  First what the description says by itself
 * and against the regions that are there already.  Then what the kernel says
 * lies at that address: it must be mapped from end to end, readable and
 * writable, and be one kind of memory throughout (the kernel splits mappings
 * for many reasons, so neighbours of one kind count as one, as long as a file
 * behind them goes on where it stopped).
 *
 * The kind of memory decides how holes are found, how writes are tracked and
 * how pages are placed, so it is asked from the kernel and not from the caller:
 * no inode is private anonymous memory; else the file system of the file, asked
 * through the caller's descriptor or the mapping itself.  Only where neither
 * can be had does smaps decide, which is slow.
 */

#define GIB (1ull << 30)
#define MIB (1ull << 20)

/* What the walk over the mappings of one region found. */
struct region_probe {
	const struct region *r;
	struct tern_error *err;
	uint64_t next; /* address up to which all is well */
	struct maps_vma first; /* the first mapping */
	bool any;
};

/* region_name_check - 1..63 bytes of printable ASCII.  0 or -EINVAL. */
static int region_name_check(const char *name, struct tern_error *err)
{
	size_t len = name ? strnlen(name, TERN_REGION_NAME_MAX + 1) : 0;

	if (!len)
		return error_session(err, -EINVAL,
				     "cannot add a region without a name; give it one of 1 to %u "
				     "bytes",
				     TERN_REGION_NAME_MAX);
	if (len > TERN_REGION_NAME_MAX)
		return error_session(err, -EINVAL,
				     "cannot add region \"%.32s...\": its name is longer than %u "
				     "bytes",
				     name, TERN_REGION_NAME_MAX);
	for (size_t i = 0; i < len; i++)
		if (name[i] < 0x20 || name[i] > 0x7e)
			return error_session(err, -EINVAL,
					     "cannot add region \"%s\": byte %zu of its name is "
					     "0x%02x, which is not printable ASCII",
					     name, i, (unsigned char)name[i]);
	return 0;
}

/* region_fields_check - the numbers of the description that need no kernel.  0 or -EINVAL. */
static int region_fields_check(const struct tern_region_desc *d, struct tern_error *err)
{
	uint64_t hva = (uintptr_t)d->hva;

	if (!d->hva || hva % TERN_PAGE_SIZE)
		return error_session(err, -EINVAL,
				     "cannot add region \"%s\": its address 0x%" PRIx64
				     " is not a multiple of %u",
				     d->name, hva, TERN_PAGE_SIZE);
	if (!d->size || d->size % TERN_PAGE_SIZE)
		return error_session(err, -EINVAL,
				     "cannot add region \"%s\": its size of %" PRIu64
				     " bytes is not a multiple of %u above 0",
				     d->name, d->size, TERN_PAGE_SIZE);
	if (hva + d->size - 1 < hva || hva + d->size - 1 > UINTPTR_MAX)
		return error_session(err, -EINVAL,
				     "cannot add region \"%s\": address 0x%" PRIx64
				     " and size 0x%" PRIx64 " go beyond the address space",
				     d->name, hva, d->size);
	if (d->gpa % TERN_PAGE_SIZE || d->gpa + d->size - 1 < d->gpa)
		return error_session(err, -EINVAL,
				     "cannot add region \"%s\": guest address 0x%" PRIx64
				     " with size 0x%" PRIx64
				     " is no multiple of %u or goes beyond 64 bits",
				     d->name, d->gpa, d->size, TERN_PAGE_SIZE);
	return 0;
}

/* region_options_check - flags, node, descriptor and reserved fields.  0 or -EINVAL. */
static int region_options_check(const struct tern_region_desc *d, struct tern_error *err)
{
	if (d->flags & ~(uint32_t)TERN_REGION_ZEROED)
		return error_session(err, -EINVAL,
				     "cannot add region \"%s\": flags 0x%x has bits that this "
				     "version does not know (it knows 0x%x)",
				     d->name, d->flags, TERN_REGION_ZEROED);
	if (d->numa_node < TERN_NODE_ANY)
		return error_session(err, -EINVAL,
				     "cannot add region \"%s\": %d is no NUMA node; use "
				     "TERN_NODE_ANY (-1) to ask the kernel",
				     d->name, d->numa_node);
	if (d->fd < -1 || (d->fd < 0 && d->fd_offset) || d->fd_offset % TERN_PAGE_SIZE ||
	    d->fd_offset + d->size < d->size)
		return error_session(err, -EINVAL,
				     "cannot add region \"%s\": fd %d with offset 0x%" PRIx64
				     " is no place in a file; use -1 and 0 if there is no file",
				     d->name, d->fd, d->fd_offset);
	if (d->host_page_size && d->host_page_size != TERN_PAGE_SIZE &&
	    d->host_page_size != 2 * MIB && d->host_page_size != GIB)
		return error_session(err, -EINVAL,
				     "cannot add region \"%s\": host page size %" PRIu64
				     " is none of 4096, 2097152, 1073741824, or 0 to ask the "
				     "kernel",
				     d->name, d->host_page_size);
	for (size_t i = 0; i < sizeof(d->reserved) / sizeof(d->reserved[0]); i++)
		if (d->reserved[i])
			return error_session(err, -EINVAL,
					     "cannot add region \"%s\": reserved[%zu] is 0x%x and "
					     "must be 0; clear the description before filling it",
					     d->name, i, d->reserved[i]);
	return 0;
}

/* region_overlaps - do [a, a + na) and [b, b + nb) share a byte?  Neither wraps. */
static bool region_overlaps(uint64_t a, uint64_t na, uint64_t b, uint64_t nb)
{
	return a <= b + (nb - 1) && b <= a + (na - 1);
}

/* region_list_check - @d against the regions already there.  0, -EEXIST or -EINVAL. */
static int region_list_check(const struct region_list *list, const struct tern_region_desc *d,
			     struct tern_error *err)
{
	uint64_t hva = (uintptr_t)d->hva;

	for (unsigned i = 0; i < list->nr; i++) {
		const struct region *o = &list->v[i];
		uint64_t o_hva = (uintptr_t)o->hva;

		if (!strcmp(o->name, d->name))
			return error_session(err, -EEXIST,
					     "cannot add region \"%s\": region %u has this name "
					     "already; names must be unique",
					     d->name, o->id);
		if (region_overlaps(hva, d->size, o_hva, o->size))
			return error_session(err, -EINVAL,
					     "cannot add region \"%s\": its memory 0x%" PRIx64
					     "-0x%" PRIx64 " overlaps region \"%s\" at 0x%" PRIx64
					     "-0x%" PRIx64,
					     d->name, hva, hva + (d->size - 1), o->name, o_hva,
					     o_hva + (o->size - 1));
		if (region_overlaps(d->gpa, d->size, o->gpa, o->size))
			return error_session(err, -EINVAL,
					     "cannot add region \"%s\": its guest addresses "
					     "0x%" PRIx64 "-0x%" PRIx64
					     " overlap region \"%s\" at 0x%" PRIx64 "-0x%" PRIx64,
					     d->name, d->gpa, d->gpa + (d->size - 1), o->name,
					     o->gpa, o->gpa + (o->size - 1));
	}
	return 0;
}

/* region_same_kind - does @b go on where the mapping @a (up to @b's start) stopped? */
static bool region_same_kind(const struct maps_vma *a, const struct maps_vma *b)
{
	if (a->shared != b->shared || a->major != b->major || a->minor != b->minor ||
	    a->inode != b->inode)
		return false;
	return !a->inode || b->offset - a->offset == b->start - a->start;
}

/* region_vma_name - what a message calls the mapping. */
static const char *region_vma_name(const struct maps_vma *v)
{
	return v->path[0] ? v->path : "anonymous memory";
}

/* region_probe_vma - maps_walk() callback: check one mapping of the region. */
static int region_probe_vma(const struct maps_vma *v, void *opaque)
{
	struct region_probe *p = opaque;
	const struct region *r = p->r;

	if (v->start > p->next)
		return error_session(p->err, -EINVAL,
				     "cannot add region \"%s\": nothing is mapped at 0x%" PRIx64
				     "-0x%" PRIx64,
				     r->name, p->next, v->start);
	if (!v->readable || !v->writable)
		return error_session(p->err, -EINVAL,
				     "cannot add region \"%s\": its memory at 0x%" PRIx64
				     " is not both readable and writable",
				     r->name, v->start > p->next ? v->start : p->next);
	if (!p->any)
		p->first = *v;
	else if (!region_same_kind(&p->first, v))
		return error_session(p->err, -EINVAL,
				     "cannot add region \"%s\": its memory is backed by %s at "
				     "its start and by %s at 0x%" PRIx64
				     "; add what differs as regions of its own",
				     r->name, region_vma_name(&p->first), region_vma_name(v),
				     v->start);
	p->any = true;
	p->next = v->end;
	return 0;
}

/*
 * region_fd_check - is r->fd really the file mapped there?  0 or -EINVAL.
 *
 * Other file systems than the kernel's own may show another device in maps than
 * stat(2) does, so the device is compared only for shmem and hugetlbfs.
 */
static int region_fd_check(const struct region *r, const struct maps_vma *v, bool in_memory,
			   struct tern_error *err)
{
	uint64_t mapped = v->offset + ((uintptr_t)r->hva - v->start);
	struct stat st;

	if (fstat(r->fd, &st))
		return error_session(err, -EINVAL,
				     "cannot add region \"%s\": fstat of its fd %d failed: %s",
				     r->name, r->fd, error_name(-errno));
	if (!v->shared || st.st_ino != v->inode ||
	    (in_memory && (major(st.st_dev) != v->major || minor(st.st_dev) != v->minor)))
		return error_session(err, -EINVAL,
				     "cannot add region \"%s\": fd %d (inode %" PRIu64
				     ") is not what is mapped shared at %p (inode %" PRIu64
				     "); use -1 if there is no file behind it",
				     r->name, r->fd, (uint64_t)st.st_ino, (void *)r->hva, v->inode);
	if (mapped != r->fd_offset)
		return error_session(err, -EINVAL,
				     "cannot add region \"%s\": fd_offset is 0x%" PRIx64
				     ", but its memory begins at offset 0x%" PRIx64 " of the file",
				     r->name, r->fd_offset, mapped);
	return 0;
}

/* region_is_shmem_dev - is the mapping's device that of memfds and shared anonymous memory? */
static bool region_is_shmem_dev(const struct maps_vma *v)
{
	int fd = memfd_create("tern-probe", MFD_CLOEXEC);
	struct stat st;
	bool same;

	if (fd < 0)
		return false;
	same = !fstat(fd, &st) && major(st.st_dev) == v->major && minor(st.st_dev) == v->minor;
	close(fd);
	return same;
}

/*
 * region_fs - file system magic of the file behind @v, and its block size.
 *
 * Asked through @fd if >= 0, else through the mapping, else guessed from what
 * the kernel says about the mapping.  0: not known.
 */
static long region_fs(const struct maps_vma *v, int fd, uint64_t *block_size)
{
	int opened = fd >= 0 ? -1 : maps_open_file(v);
	struct statfs fs = { 0 };
	long magic = 0;
	bool hugetlb;

	if (fd >= 0 || opened >= 0) {
		if (!fstatfs(fd >= 0 ? fd : opened, &fs))
			magic = (long)fs.f_type;
		*block_size = (uint64_t)fs.f_bsize;
		if (opened >= 0)
			close(opened);
		if (magic)
			return magic;
	}
	if (region_is_shmem_dev(v))
		return TMPFS_MAGIC;
	*block_size = maps_page_size(v->start, &hugetlb);
	if (hugetlb)
		return HUGETLBFS_MAGIC;
	return statfs(v->path, &fs) ? 0 : (long)fs.f_type;
}

/* region_classify - r->backing, r->shared and the kernel's page size there.  0 or -EINVAL. */
static int region_classify(struct region *r, const struct maps_vma *v, uint64_t *page_size,
			   struct tern_error *err)
{
	uint64_t block_size = 0;
	/* The file of a private mapping is not the memory; the caller's fd does not count. */
	long magic = v->inode ? region_fs(v, v->shared ? r->fd : -1, &block_size) : 0;

	r->shared = v->shared;
	*page_size = TERN_PAGE_SIZE;
	if (!v->inode)
		r->backing = REGION_ANON_PRIVATE;
	else if (magic == HUGETLBFS_MAGIC)
		r->backing = REGION_HUGETLB;
	else if (!v->shared)
		r->backing = REGION_FILE_PRIVATE;
	else
		r->backing = magic == TMPFS_MAGIC ? REGION_SHMEM : REGION_FILE_SHARED;
	if (r->backing == REGION_HUGETLB)
		*page_size = block_size;
	else if (sysconf(_SC_PAGESIZE) != TERN_PAGE_SIZE)
		*page_size = (uint64_t)sysconf(_SC_PAGESIZE);
	if (r->fd < 0)
		return 0;
	return region_fd_check(r, v, r->backing != REGION_FILE_SHARED, err);
}

/* region_page_size_check - settle r->host_page_size and what must be a multiple of it. */
static int region_page_size_check(struct region *r, uint64_t page_size, struct tern_error *err)
{
	if (page_size != TERN_PAGE_SIZE && page_size != 2 * MIB && page_size != GIB)
		return error_session(err, -EINVAL,
				     "cannot add region \"%s\": its memory has pages of %" PRIu64
				     " bytes; only 4096, 2097152 and 1073741824 are supported",
				     r->name, page_size);
	if (r->host_page_size && r->host_page_size != page_size)
		return error_session(err, -EINVAL,
				     "cannot add region \"%s\": its host page size is given as "
				     "%" PRIu64 ", but the kernel says %" PRIu64
				     "; use 0 to ask it",
				     r->name, r->host_page_size, page_size);
	r->host_page_size = page_size;
	if ((uintptr_t)r->hva % page_size || r->size % page_size || r->gpa % page_size)
		return error_session(err, -EINVAL,
				     "cannot add region \"%s\": address %p, size 0x%" PRIx64
				     " and guest address 0x%" PRIx64
				     " must be multiples of its host page size %" PRIu64,
				     r->name, (void *)r->hva, r->size, r->gpa, page_size);
	return 0;
}

/* region_ask_kernel - fill in what lies at r->hva.  0 or -errno. */
static int region_ask_kernel(struct region *r, struct tern_error *err)
{
	uint64_t start = (uintptr_t)r->hva, end = start + r->size, page_size;
	struct region_probe p = { .r = r, .err = err, .next = start };
	int ret = maps_walk(start, end, region_probe_vma, &p);

	if (ret)
		return error_session(err, ret,
				     "cannot add region \"%s\": reading /proc/self/maps failed: "
				     "%s; is /proc mounted?",
				     r->name, error_name(ret));
	if (p.next < end)
		return error_session(err, -EINVAL,
				     "cannot add region \"%s\": nothing is mapped at 0x%" PRIx64
				     "-0x%" PRIx64,
				     r->name, p.next, end);
	ret = region_classify(r, &p.first, &page_size, err);
	if (!ret)
		ret = region_page_size_check(r, page_size, err);
	if (!ret && r->numa_node == TERN_NODE_ANY)
		r->numa_node = topology_node_of(r->hva, r->size);
	return ret;
}

/* region_list_grow - room for one more.  0, -ENOSPC or -ENOMEM. */
static int region_list_grow(struct region_list *list, const char *name, struct tern_error *err)
{
	unsigned cap = list->cap ? list->cap * 2 : 8;
	struct region *v;

	if (list->nr >= TERN_REGIONS_MAX)
		return error_session(err, -ENOSPC,
				     "cannot add region \"%s\": the session has %u regions "
				     "already, which is the limit",
				     name, list->nr);
	if (list->nr < list->cap)
		return 0;
	v = realloc(list->v, cap * sizeof(*v));
	if (!v)
		return error_session(err, -ENOMEM, "cannot add region \"%s\": out of memory", name);
	list->v = v;
	list->cap = cap;
	return 0;
}

int region_add(struct region_list *list, const struct tern_region_desc *desc,
	       struct tern_error *err)
{
	struct region r = { 0 };
	int ret = region_name_check(desc->name, err);

	if (!ret)
		ret = region_fields_check(desc, err);
	if (!ret)
		ret = region_options_check(desc, err);
	if (!ret)
		ret = region_list_check(list, desc, err);
	if (!ret)
		ret = region_list_grow(list, desc->name, err);
	if (ret)
		return ret;
	r.id = list->nr;
	memcpy(r.name, desc->name, strlen(desc->name));
	r.hva = desc->hva;
	r.size = desc->size;
	r.nr_pages = desc->size / TERN_PAGE_SIZE;
	r.gpa = desc->gpa;
	r.host_page_size = desc->host_page_size;
	r.numa_node = desc->numa_node;
	r.fd = desc->fd;
	r.fd_offset = desc->fd_offset;
	r.flags = desc->flags;
	ret = region_ask_kernel(&r, err);
	if (ret)
		return ret;
	list->v[list->nr++] = r;
	return (int)r.id;
}

void region_list_fini(struct region_list *list)
{
	for (unsigned i = 0; i < list->nr; i++) {
		free(list->v[i].dirty);
		free(list->v[i].sent);
	}
	free(list->v);
	memset(list, 0, sizeof(*list));
}

int region_bitmaps_alloc(struct region_list *list, struct tern_error *err)
{
	for (unsigned i = 0; i < list->nr; i++) {
		struct region *r = &list->v[i];
		uint64_t words = bitmap_words(r->nr_pages);

		if (!r->dirty)
			r->dirty = calloc(words, sizeof(uint64_t));
		if (!r->sent)
			r->sent = calloc(words, sizeof(uint64_t));
		if (!r->dirty || !r->sent)
			return error_session(err, -ENOMEM,
					     "cannot allocate the page bitmaps of region \"%s\" (2 "
					     "times %" PRIu64 " bytes)",
					     r->name, words * sizeof(uint64_t));
	}
	return 0;
}

uint64_t region_bytes(const struct region_list *list)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < list->nr; i++)
		sum += list->v[i].size;
	return sum;
}

uint64_t region_overhead_bytes(const struct region_list *list)
{
	uint64_t sum = list->cap * sizeof(list->v[0]);

	for (unsigned i = 0; i < list->nr; i++) {
		uint64_t words = bitmap_words(list->v[i].nr_pages);

		sum += (list->v[i].dirty ? words * sizeof(uint64_t) : 0) +
		       (list->v[i].sent ? words * sizeof(uint64_t) : 0);
	}
	return sum;
}

unsigned region_nodes(const struct region_list *list, int *nodes, unsigned max)
{
	unsigned nr = 0;

	for (unsigned i = 0; i < list->nr; i++) {
		unsigned k = 0;

		while (k < nr && nodes[k] != list->v[i].numa_node)
			k++;
		if (k == nr && nr < max)
			nodes[nr++] = list->v[i].numa_node;
	}
	return nr;
}
