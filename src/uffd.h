/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_SRC_UFFD_H
#define TERN_SRC_UFFD_H

/*
 * userfaultfd: opening it, what it can do, and its calls as functions that
 * return 0 or -errno.
 *
 * Features and ioctls that the headers we build with may not know yet are given
 * here under names of our own, with the kernel's values.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct tern_error;

/* Features, as UFFDIO_API reports them. */
enum {
	UFFD_CAN_WP = 1u << 0, /* write-protect, private anonymous memory */
	UFFD_CAN_MISSING_HUGETLB = 1u << 4,
	UFFD_CAN_MISSING_SHMEM = 1u << 5,
	UFFD_CAN_THREAD_ID = 1u << 8,
	UFFD_CAN_MINOR_HUGETLB = 1u << 9,
	UFFD_CAN_MINOR_SHMEM = 1u << 10,
	UFFD_CAN_EXACT_ADDRESS = 1u << 11,
	UFFD_CAN_WP_SHARED = 1u << 12, /* write-protect, shmem and hugetlbfs */
	UFFD_CAN_WP_UNPOPULATED = 1u << 13,
	UFFD_CAN_POISON = 1u << 14,
	UFFD_CAN_WP_ASYNC = 1u << 15,
	UFFD_CAN_MOVE = 1u << 16,
};

/* uffd_feature - the @i-th of the features above; its name in *name.  0 behind the last. */
uint64_t uffd_feature(unsigned i, const char **name);

/* How it could be opened, best first. */
enum uffd_how {
	UFFD_BY_SYSCALL, /* privileged, or vm.unprivileged_userfaultfd is 1 */
	UFFD_BY_DEVICE, /* /dev/userfaultfd */
	UFFD_USER_ONLY, /* faults taken in the kernel (KVM, read(2)) get EFAULT instead */
};

/* uffd_how_name - "syscall", "/dev/userfaultfd" or "user mode only". */
const char *uffd_how_name(enum uffd_how how);

struct uffd {
	int fd; /* non-blocking; -1: closed */
	enum uffd_how how;
	uint64_t features; /* that the kernel has, not only those asked for */
};

/*
 * uffd_open - open it with all of @features enabled.
 *
 * Returns 0; -ENOSYS if the kernel has no userfaultfd or lacks a feature, -EPERM
 * if it may not be used, or another -errno; *err says what to do.
 */
int uffd_open(struct uffd *u, uint64_t features, struct tern_error *err);
void uffd_close(struct uffd *u);

/* uffd_register - @mode: UFFDIO_REGISTER_MODE_*; *ioctls (may be NULL): 1 << _UFFDIO_*. */
int uffd_register(const struct uffd *u, const void *p, uint64_t len, uint64_t mode,
		  uint64_t *ioctls);
int uffd_unregister(const struct uffd *u, const void *p, uint64_t len);

/*
 * uffd_protect - write-protect the pages of [p, p + len), or undo it and wake
 * those who wait there.  Tried again while the address space is being changed.
 */
int uffd_protect(const struct uffd *u, const void *p, uint64_t len, bool protect);

/*
 * Giving pages to those who wait, and waking them; [p, p + len) in whole host pages.
 * All are tried again while the address space is being changed.  0; -EEXIST: something
 * is there already (what came before it is done; nobody was woken there); -errno.
 *
 * uffd_continue - map what is in the page cache; -EFAULT: nothing is.
 * uffd_zero - map pages of zeros.  uffd_copy - map copies of what is at @from.
 */
int uffd_continue(const struct uffd *u, const void *p, uint64_t len);
int uffd_zero(const struct uffd *u, const void *p, uint64_t len);
int uffd_copy(const struct uffd *u, const void *p, const void *from, uint64_t len);

/* uffd_wake - wake those who wait in [p, p + len). */
int uffd_wake(const struct uffd *u, const void *p, uint64_t len);

/*
 * uffd_benign - is @ret (-errno) what a fault handler must expect?
 *
 * The page changed under it (-EEXIST, -EAGAIN), or its mapping went away
 * (-ENOENT), or its process (-ESRCH).
 */
bool uffd_benign(int ret);

#endif
