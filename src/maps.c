/* SPDX-License-Identifier: BSD-2-Clause */
#define _GNU_SOURCE
#include "maps.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/*
 * PROCMAP_QUERY of /proc/PID/maps, Linux 6.11 (include/uapi/linux/fs.h): one mapping by
 * its address.  Declared here, because headers may be older than the kernel.
 */
struct maps_query {
	uint64_t size; /* of this */
	uint64_t query_flags;
	uint64_t query_addr;
	uint64_t vma_start, vma_end;
	uint64_t vma_flags;
	uint64_t vma_page_size;
	uint64_t vma_offset;
	uint64_t inode;
	uint32_t dev_major, dev_minor;
	uint32_t vma_name_size; /* in: room; out: with the terminating 0, or 0 */
	uint32_t build_id_size;
	uint64_t vma_name_addr;
	uint64_t build_id_addr;
};
#define MAPS_QUERY _IOWR('f', 17, struct maps_query)
#define MAPS_READABLE 0x01u
#define MAPS_WRITABLE 0x02u
#define MAPS_SHARED 0x08u
#define MAPS_COVERING_OR_NEXT 0x10u

/* The mapping at @addr or the next one, with its name in @path.  0 or -errno, -ENOENT: none. */
static int maps_ask(int fd, uint64_t addr, struct maps_query *q, char path[PATH_MAX])
{
	*q = (struct maps_query){
		.size = sizeof(*q),
		.query_flags = MAPS_COVERING_OR_NEXT,
		.query_addr = addr,
		.vma_name_size = path ? PATH_MAX : 0,
		.vma_name_addr = (uintptr_t)path,
	};
	return ioctl(fd, MAPS_QUERY, q) ? -errno : 0;
}

/* maps_walk() with one question for each mapping.  -ENOTTY: it cannot be asked here. */
static int maps_walk_query(int fd, uint64_t start, uint64_t end, maps_fn *fn, void *opaque)
{
	char path[PATH_MAX];
	struct maps_query q;
	int ret = 0;

	for (uint64_t at = start; at < end && !ret; at = q.vma_end) {
		struct maps_vma v;

		ret = maps_ask(fd, at, &q, path);
		if (ret && ret != -ENOENT && at == start)
			return -ENOTTY; /* an older kernel, or a filter of system calls */
		if (ret || q.vma_start >= end)
			break;
		v = (struct maps_vma){
			.start = q.vma_start,
			.end = q.vma_end,
			.offset = q.vma_offset,
			.inode = q.inode,
			.major = q.dev_major,
			.minor = q.dev_minor,
			.readable = q.vma_flags & MAPS_READABLE,
			.writable = q.vma_flags & MAPS_WRITABLE,
			.shared = q.vma_flags & MAPS_SHARED,
		};
		if (q.vma_name_size)
			snprintf(v.path, sizeof(v.path), "%.*s", MAPS_PATH_MAX, path);
		ret = fn(&v, opaque);
	}
	return ret == -ENOENT ? 0 : ret;
}

/* The number in @base at *@at, which must be followed by @after; *@at is moved behind that. */
static bool maps_number(const char **at, int base, char after, uint64_t *out)
{
	const char *p = *at;
	uint64_t n = 0;

	for (;; p++) {
		int digit = *p >= '0' && *p <= '9'   ? *p - '0'
			    : *p >= 'a' && *p <= 'f' ? *p - 'a' + 10
						     : base;

		if (digit >= base)
			break;
		n = n * (unsigned)base + (unsigned)digit;
	}
	if (p == *at || *p != after)
		return false;
	*out = n;
	*at = p + 1;
	return true;
}

bool maps_parse(const char *line, struct maps_vma *v)
{
	const char *at = line, *perms;
	uint64_t major, minor;

	memset(v, 0, sizeof(*v));
	if (!maps_number(&at, 16, '-', &v->start) || !maps_number(&at, 16, ' ', &v->end))
		return false;
	perms = at;
	if (strnlen(at, 5) < 5 || at[4] != ' ')
		return false;
	at += 5;
	if (!maps_number(&at, 16, ' ', &v->offset) || !maps_number(&at, 16, ':', &major) ||
	    !maps_number(&at, 16, ' ', &minor) || !maps_number(&at, 10, ' ', &v->inode))
		return false;
	v->major = (unsigned)major;
	v->minor = (unsigned)minor;
	v->readable = perms[0] == 'r';
	v->writable = perms[1] == 'w';
	v->shared = perms[3] == 's';
	at += strspn(at, " ");
	snprintf(v->path, sizeof(v->path), "%.*s", (int)strcspn(at, "\n"), at);
	return true;
}

int maps_walk_text(uint64_t start, uint64_t end, maps_fn *fn, void *opaque)
{
	FILE *f = fopen("/proc/self/maps", "re");
	struct maps_vma v;
	char *line = NULL;
	size_t cap = 0;
	int ret = 0;

	if (!f)
		return -errno;
	while (!ret && getline(&line, &cap, f) > 0) {
		if (!maps_parse(line, &v) || v.end <= start)
			continue;
		if (v.start >= end)
			break;
		ret = fn(&v, opaque);
	}
	if (!ret && ferror(f))
		ret = -EIO;
	free(line);
	fclose(f);
	return ret;
}

int maps_walk(uint64_t start, uint64_t end, maps_fn *fn, void *opaque)
{
	int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
	int ret;

	if (fd < 0)
		return -errno;
	ret = maps_walk_query(fd, start, end, fn, opaque);
	close(fd);
	return ret == -ENOTTY ? maps_walk_text(start, end, fn, opaque) : ret;
}

int maps_open_file(const struct maps_vma *vma)
{
	char path[96];
	int fd;

	snprintf(path, sizeof(path), "/proc/self/map_files/%" PRIx64 "-%" PRIx64, vma->start,
		 vma->end);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

/*
 * maps_smaps_field - take what is needed from one line that follows a header.
 *
 * True at VmFlags, which is the last line of a mapping.
 */
static bool maps_smaps_field(const char *line, uint64_t *page_size, bool *hugetlb)
{
	uint64_t kib;

	if (sscanf(line, "KernelPageSize: %" SCNu64 " kB", &kib) == 1)
		*page_size = kib * 1024;
	if (strncmp(line, "VmFlags:", 8) != 0)
		return false;
	*hugetlb = strstr(line, " ht") != NULL;
	return true;
}

/* The page size in the mapping that holds @addr, as the kernel tells when asked; else 0. */
static uint64_t maps_page_size_query(uint64_t addr)
{
	int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
	struct maps_query q;
	int rc;

	if (fd < 0)
		return 0;
	rc = maps_ask(fd, addr, &q, NULL);
	close(fd);
	return rc || q.vma_start > addr ? 0 : q.vma_page_size;
}

uint64_t maps_page_size(uint64_t addr, bool *hugetlb)
{
	uint64_t page_size = maps_page_size_query(addr);
	bool inside = false;
	struct maps_vma v;
	char *line = NULL;
	size_t cap = 0;
	FILE *f;

	*hugetlb = false;
	if (page_size == (uint64_t)sysconf(_SC_PAGESIZE))
		return page_size;
	f = fopen("/proc/self/smaps", "re");
	if (!f)
		return 0;
	page_size = 0;
	while (getline(&line, &cap, f) > 0) {
		if (maps_parse(line, &v))
			inside = v.start <= addr && addr < v.end;
		else if (inside && maps_smaps_field(line, &page_size, hugetlb))
			break;
	}
	free(line);
	fclose(f);
	return page_size;
}
