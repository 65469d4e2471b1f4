/* SPDX-License-Identifier: BSD-2-Clause */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/utsname.h>
#include <unistd.h>
#include "error.h"
#include "info.h"
#include "pagemap.h"
#include "uffd.h"

/*
 * Facts about the kernel: what it offers for tracking writes (precopy), for
 * placing pages on demand (postcopy), and KVM.
 */

#ifndef KVM_CAP_DIRTY_LOG_RING_ACQ_REL
#define KVM_CAP_DIRTY_LOG_RING_ACQ_REL 223
#endif

#define GRANT_UFFD                                                         \
	"run as root, give access to /dev/userfaultfd, or set the sysctl " \
	"vm.unprivileged_userfaultfd to 1"

/* The features that matter, since when, and what for. */
static const struct {
	uint64_t bit;
	const char *todo; /* if it is missing */
} wanted_features[] = {
	{ UFFD_CAN_WP, "use Linux 5.14 or newer to track writes of a running guest" },
	{ UFFD_CAN_WP_SHARED, "use Linux 5.19 or newer to track writes to memfd and hugetlbfs" },
	{ UFFD_CAN_WP_ASYNC, "use Linux 6.7 or newer to track writes without a fault each" },
	{ UFFD_CAN_MINOR_SHMEM, "use Linux 5.14 or newer for postcopy without copying (memfd)" },
	{ UFFD_CAN_MINOR_HUGETLB,
	  "use Linux 5.13 or newer for postcopy without copying (hugetlbfs)" },
	{ UFFD_CAN_MOVE, "use Linux 6.8 or newer to move received pages into place" },
};

/* pagemap_has_scan - is there PAGEMAP_SCAN? */
static bool pagemap_has_scan(void)
{
	int fd = pagemap_open();
	bool has;

	if (fd < 0)
		return false;
	has = pagemap_can_scan(fd);
	close(fd);
	return has;
}

void info_kernel(struct info *info)
{
	struct utsname un;
	bool scan = pagemap_has_scan();

	if (!uname(&un))
		info_add(info, "kernel", "release", json_string(un.release), NULL, "%s (%s)",
			 un.release, un.machine);
	info_add(info, "kernel", "pagemap-scan", json_boolean(scan),
		 scan ? NULL : "use Linux 6.7 or newer to find written and populated pages quickly",
		 "%s", scan ? "yes" : "no");
}

/* info_feature - one userfaultfd feature, by its index in uffd_feature(). */
static void info_feature(struct info *info, uint64_t has, uint64_t bit, const char *name)
{
	const char *todo = NULL;

	for (size_t i = 0; i < sizeof(wanted_features) / sizeof(wanted_features[0]); i++)
		if (wanted_features[i].bit == bit && !(has & bit))
			todo = wanted_features[i].todo;
	info_add(info, "userfaultfd", name, json_boolean((has & bit) != 0), todo, "%s",
		 has & bit ? "yes" : "no");
}

/* info_tracking - which dirty provider a session would take for guest RAM in a memfd. */
static void info_tracking(struct info *info, const struct uffd *u)
{
	bool async = u->features & UFFD_CAN_WP_ASYNC && pagemap_has_scan();
	bool sync = u->features & UFFD_CAN_WP_SHARED && u->how != UFFD_USER_ONLY;
	const char *name = async ? "uffd-wp-async" : sync ? "uffd-wp-sync" : "none";

	info_add(info, "userfaultfd", "tracking", json_string(name),
		 async || sync ? NULL : "use dirty callbacks of the VMM, or do as said above", "%s",
		 name);
}

void info_userfaultfd(struct info *info)
{
	struct tern_error err;
	struct uffd u = { .fd = -1 };
	const char *name;
	uint64_t bit;

	error_clear(&err);
	if (uffd_open(&u, 0, &err)) {
		info_add(info, "userfaultfd", "open", json_string("no"), err.message, "no");
		return;
	}
	info_add(info, "userfaultfd", "open", json_string(uffd_how_name(u.how)),
		 u.how == UFFD_USER_ONLY ? GRANT_UFFD ", so that faults inside KVM are served too"
					 : NULL,
		 "by %s", uffd_how_name(u.how));
	for (unsigned i = 0; (bit = uffd_feature(i, &name)); i++)
		info_feature(info, u.features, bit, name);
	info_tracking(info, &u);
	uffd_close(&u);
}

/* info_kvm_cap - one capability; its number is 0 where it is missing. */
static void info_kvm_cap(struct info *info, int kvm, const char *key, long cap, const char *todo)
{
	int value = ioctl(kvm, KVM_CHECK_EXTENSION, cap);
	bool has = value > 0;

	info_add(info, "kvm", key, json_boolean(has), has ? NULL : todo, "%s", has ? "yes" : "no");
}

/* info_kvm_open - /dev/kvm, or -1 with the fact that says why not. */
static int info_kvm_open(struct info *info)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	const char *todo = "load the kvm_intel or kvm_amd module, and enable virtualization in the "
			   "firmware (in a VM: nested virtualization)";
	const char *state = "absent";

	if (kvm >= 0)
		return kvm;
	if (errno == EACCES || errno == EPERM) {
		todo = "add this user to the group that owns /dev/kvm";
		state = "no permission";
	}
	info_add(info, "kvm", "device", json_string(state), todo, "%s", state);
	return -1;
}

void info_kvm(struct info *info)
{
	int kvm = info_kvm_open(info), version;

	if (kvm < 0)
		return;
	version = ioctl(kvm, KVM_GET_API_VERSION, 0);
	info_add(info, "kvm", "device", json_string("accessible"), NULL, "accessible");
	info_add(info, "kvm", "api-version", json_integer(version),
		 version == KVM_API_VERSION ? NULL : "use a kernel whose KVM has API version 12",
		 "%d", version);
	info_kvm_cap(info, kvm, "manual-clear", KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
		     "use Linux 5.2 or newer to clear the dirty log piece by piece");
#if defined(__x86_64__)
	info_kvm_cap(info, kvm, "dirty-ring", KVM_CAP_DIRTY_LOG_RING,
		     "use Linux 5.11 or newer on a CPU with hardware dirty logging for the ring");
#else
	info_kvm_cap(info, kvm, "dirty-ring", KVM_CAP_DIRTY_LOG_RING_ACQ_REL,
		     "use Linux 6.2 or newer for the dirty ring");
#endif
	close(kvm);
}
