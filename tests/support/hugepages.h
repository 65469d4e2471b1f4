/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_TESTS_HUGEPAGES_H
#define TERN_TESTS_HUGEPAGES_H

/*
 * Huge pages of 2 MiB for tests, reserved in the system's pool for as long as
 * the test needs them.  Tests that run at the same time share the pool by a
 * lock file.
 */

struct hugepages {
	long before; /* size of the pool when we came */
	int lock_fd;
};

/* hugepages_get - @nr free huge pages.  0, or -1: not root, or no memory in one piece. */
int hugepages_get(struct hugepages *hp, long nr);

/* hugepages_put - give them back; all mappings must be gone. */
void hugepages_put(struct hugepages *hp);

#endif
