/* SPDX-License-Identifier: BSD-2-Clause */
#define _GNU_SOURCE
#include "maps.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* maps_parse - read one line of maps (or a header line of smaps).  True if it is one. */
static bool maps_parse(const char *line, struct maps_vma *v)
{
	char perms[5] = "";
	int path = 0;

	memset(v, 0, sizeof(*v));
	if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s %" SCNx64 " %x:%x %" SCNu64 " %n", &v->start,
		   &v->end, perms, &v->offset, &v->major, &v->minor, &v->inode, &path) < 7)
		return false;
	v->readable = perms[0] == 'r';
	v->writable = perms[1] == 'w';
	v->shared = perms[3] == 's';
	if (path > 0)
		snprintf(v->path, sizeof(v->path), "%s", line + path);
	v->path[strcspn(v->path, "\n")] = '\0';
	return true;
}

int maps_walk(uint64_t start, uint64_t end, maps_fn *fn, void *opaque)
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

uint64_t maps_page_size(uint64_t addr, bool *hugetlb)
{
	FILE *f = fopen("/proc/self/smaps", "re");
	uint64_t page_size = 0;
	bool inside = false;
	struct maps_vma v;
	char *line = NULL;
	size_t cap = 0;

	*hugetlb = false;
	if (!f)
		return 0;
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
