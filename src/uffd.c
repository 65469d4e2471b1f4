/* SPDX-License-Identifier: BSD-2-Clause */
#define _GNU_SOURCE
#include "uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>
#include "error.h"

/*
 * There are three doors to userfaultfd.  The system call gives everything to the
 * privileged, or to all if a sysctl says so; the device gives everything to whom
 * its file mode lets in; and anyone may have the third, which does not resolve
 * faults that happen inside the kernel.  A VMM needs the kernel's faults: KVM
 * writes guest memory from there.
 *
 * The kernel answers UFFDIO_API once per descriptor, and refuses features that
 * it lacks, so its features are asked first on a descriptor of their own.
 */

#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

/* The features by name. */
static const struct {
	uint64_t bit;
	const char *name;
} uffd_features[] = {
	{ UFFD_CAN_WP, "wp" },
	{ UFFD_CAN_WP_SHARED, "wp-shmem-hugetlbfs" },
	{ UFFD_CAN_WP_UNPOPULATED, "wp-unpopulated" },
	{ UFFD_CAN_WP_ASYNC, "wp-async" },
	{ UFFD_CAN_MISSING_SHMEM, "missing-shmem" },
	{ UFFD_CAN_MISSING_HUGETLB, "missing-hugetlbfs" },
	{ UFFD_CAN_MINOR_SHMEM, "minor-shmem" },
	{ UFFD_CAN_MINOR_HUGETLB, "minor-hugetlbfs" },
	{ UFFD_CAN_THREAD_ID, "thread-id" },
	{ UFFD_CAN_EXACT_ADDRESS, "exact-address" },
	{ UFFD_CAN_POISON, "poison" },
	{ UFFD_CAN_MOVE, "move" },
};

uint64_t uffd_feature(unsigned i, const char **name)
{
	if (i >= sizeof(uffd_features) / sizeof(uffd_features[0]))
		return 0;
	*name = uffd_features[i].name;
	return uffd_features[i].bit;
}

const char *uffd_how_name(enum uffd_how how)
{
	switch (how) {
	case UFFD_BY_SYSCALL:
		return "syscall";
	case UFFD_BY_DEVICE:
		return "/dev/userfaultfd";
	case UFFD_USER_ONLY:
		return "user mode only";
	}
	return "unknown";
}

/* uffd_new_from_device - a descriptor by /dev/userfaultfd, or -errno. */
static int uffd_new_from_device(void)
{
	int dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	int fd, ret;

	if (dev < 0)
		return -errno;
	fd = ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	ret = fd < 0 ? -errno : fd;
	close(dev);
	return ret;
}

/* uffd_new - a descriptor by the first door that opens, or -errno of the last. */
static int uffd_new(enum uffd_how *how)
{
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	*how = UFFD_BY_SYSCALL;
	if (fd >= 0 || errno == ENOSYS || errno == EMFILE || errno == ENFILE)
		return fd < 0 ? -errno : fd;
	*how = UFFD_BY_DEVICE;
	fd = uffd_new_from_device();
	if (fd >= 0)
		return fd;
	*how = UFFD_USER_ONLY;
	fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	return fd < 0 ? -errno : fd;
}

/* uffd_api - enable @features on @fd; *has: all that the kernel has.  0 or -errno. */
static int uffd_api(int fd, uint64_t features, uint64_t *has)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };

	if (ioctl(fd, UFFDIO_API, &api))
		return -errno;
	*has = api.features;
	return 0;
}

/* uffd_cannot_open - the sentence for a descriptor that could not be had. */
static int uffd_cannot_open(int code, struct tern_error *err)
{
	if (code == -ENOSYS)
		return error_session(err, code,
				     "cannot open userfaultfd: this kernel has none; use one built "
				     "with CONFIG_USERFAULTFD");
	if (code == -EPERM || code == -EACCES)
		return error_session(err, -EPERM,
				     "cannot open userfaultfd: %s; run as root, give access to "
				     "/dev/userfaultfd, or set the sysctl "
				     "vm.unprivileged_userfaultfd to 1 (in a container, check its "
				     "seccomp profile)",
				     error_name(code));
	return error_session(err, code, "cannot open userfaultfd: %s", error_name(code));
}

/* uffd_lacks - the sentence for features in @missing that the kernel does not have. */
static int uffd_lacks(uint64_t missing, struct tern_error *err)
{
	struct utsname un = { .release = "unknown" };
	const char *name = "unknown";
	uint64_t bit;

	for (unsigned i = 0; (bit = uffd_feature(i, &name)); i++)
		if (missing & bit)
			break;
	uname(&un);
	return error_session(err, -ENOSYS,
			     "userfaultfd of kernel %s lacks feature \"%s\"; use a newer kernel "
			     "(6.7 has all that precopy can use)",
			     un.release, bit ? name : "unknown");
}

int uffd_open(struct uffd *u, uint64_t features, struct tern_error *err)
{
	struct uffd n = { .fd = -1 };
	uint64_t has = 0;
	int probe = uffd_new(&n.how), ret;

	u->fd = -1;
	if (probe < 0)
		return uffd_cannot_open(probe, err);
	ret = uffd_api(probe, 0, &has);
	close(probe);
	if (ret)
		return error_session(err, ret, "cannot ask userfaultfd for its features: %s",
				     error_name(ret));
	if (features & ~has)
		return uffd_lacks(features & ~has, err);
	n.fd = uffd_new(&n.how);
	if (n.fd < 0)
		return uffd_cannot_open(n.fd, err);
	ret = uffd_api(n.fd, features, &n.features);
	if (ret) {
		uffd_close(&n);
		return error_session(err, ret, "cannot enable userfaultfd features 0x%llx: %s",
				     (unsigned long long)features, error_name(ret));
	}
	*u = n;
	return 0;
}

void uffd_close(struct uffd *u)
{
	if (u->fd >= 0)
		close(u->fd);
	u->fd = -1;
}

int uffd_register(const struct uffd *u, const void *p, uint64_t len, uint64_t mode,
		  uint64_t *ioctls)
{
	struct uffdio_register reg = {
		.range = { .start = (uintptr_t)p, .len = len },
		.mode = mode,
	};

	if (ioctl(u->fd, UFFDIO_REGISTER, &reg))
		return -errno;
	if (ioctls)
		*ioctls = reg.ioctls;
	return 0;
}

int uffd_unregister(const struct uffd *u, const void *p, uint64_t len)
{
	struct uffdio_range range = { .start = (uintptr_t)p, .len = len };

	return ioctl(u->fd, UFFDIO_UNREGISTER, &range) ? -errno : 0;
}

int uffd_protect(const struct uffd *u, const void *p, uint64_t len, bool protect)
{
	struct uffdio_writeprotect wp = {
		.range = { .start = (uintptr_t)p, .len = len },
		.mode = protect ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};
	int ret;

	do
		ret = ioctl(u->fd, UFFDIO_WRITEPROTECT, &wp) ? -errno : 0;
	while (ret == -EAGAIN || ret == -EINTR);
	return ret;
}

/*
 * The ioctls below report in their last field how far they came, or -errno; with
 * -EAGAIN what was done stays done.
 */

int uffd_continue(const struct uffd *u, const void *p, uint64_t len)
{
	struct uffdio_continue c = { .range = { .start = (uintptr_t)p, .len = len } };

	while (ioctl(u->fd, UFFDIO_CONTINUE, &c)) {
		if (errno != EAGAIN)
			return -errno;
		if (c.mapped > 0) {
			c.range.start += (uint64_t)c.mapped;
			c.range.len -= (uint64_t)c.mapped;
		}
		c.mapped = 0;
	}
	return 0;
}

int uffd_zero(const struct uffd *u, const void *p, uint64_t len)
{
	struct uffdio_zeropage z = { .range = { .start = (uintptr_t)p, .len = len } };

	while (ioctl(u->fd, UFFDIO_ZEROPAGE, &z)) {
		if (errno != EAGAIN)
			return -errno;
		if (z.zeropage > 0) {
			z.range.start += (uint64_t)z.zeropage;
			z.range.len -= (uint64_t)z.zeropage;
		}
		z.zeropage = 0;
	}
	return 0;
}

int uffd_copy(const struct uffd *u, const void *p, const void *from, uint64_t len)
{
	struct uffdio_copy c = { .dst = (uintptr_t)p, .src = (uintptr_t)from, .len = len };

	while (ioctl(u->fd, UFFDIO_COPY, &c)) {
		if (errno != EAGAIN)
			return -errno;
		if (c.copy > 0) {
			c.dst += (uint64_t)c.copy;
			c.src += (uint64_t)c.copy;
			c.len -= (uint64_t)c.copy;
		}
		c.copy = 0;
	}
	return 0;
}

int uffd_wake(const struct uffd *u, const void *p, uint64_t len)
{
	struct uffdio_range range = { .start = (uintptr_t)p, .len = len };

	return ioctl(u->fd, UFFDIO_WAKE, &range) ? -errno : 0;
}

bool uffd_benign(int ret)
{
	return ret == 0 || ret == -EEXIST || ret == -EAGAIN || ret == -ENOENT || ret == -ESRCH;
}
