/* SPDX-License-Identifier: BSD-2-Clause */
#define _GNU_SOURCE
#include "hugepages.h"

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#define POOL "/sys/kernel/mm/hugepages/hugepages-2048kB/"

/* pool_read - a number from the pool's directory, or -1. */
static long pool_read(const char *path)
{
	FILE *f = fopen(path, "re");
	long value = -1;

	if (!f)
		return -1;
	if (fscanf(f, "%ld", &value) != 1)
		value = -1;
	fclose(f);
	return value;
}

/* pool_resize - ask for @nr pages.  0 or -1; the kernel may give fewer. */
static int pool_resize(long nr)
{
	FILE *f = fopen(POOL "nr_hugepages", "we");
	int ret;

	if (!f)
		return -1;
	ret = fprintf(f, "%ld\n", nr) < 0 ? -1 : 0;
	return fclose(f) ? -1 : ret;
}

int hugepages_get(struct hugepages *hp, long nr)
{
	/* A lock of the process: a failed test that kept it does not stop the next. */
	struct flock whole = { .l_type = F_WRLCK, .l_whence = SEEK_SET };

	hp->lock_fd = open("/tmp/tern-test-hugepages.lock", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (hp->lock_fd < 0 || fcntl(hp->lock_fd, F_SETLKW, &whole))
		goto close_lock;
	hp->before = pool_read(POOL "nr_hugepages");
	if (hp->before < 0)
		goto close_lock;
	long wanted = nr - pool_read(POOL "free_hugepages");

	if (wanted > 0 && pool_resize(hp->before + wanted))
		goto close_lock;
	if (pool_read(POOL "free_hugepages") >= nr)
		return 0;
	pool_resize(hp->before);
close_lock:
	if (hp->lock_fd >= 0)
		close(hp->lock_fd);
	return -1;
}

void hugepages_put(struct hugepages *hp)
{
	pool_resize(hp->before);
	close(hp->lock_fd);
}
