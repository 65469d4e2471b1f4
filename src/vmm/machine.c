/* SPDX-License-Identifier: BSD-2-Clause */

/* The machine; see machine.h. */

#define _GNU_SOURCE
#include "machine.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>
#include <tern/kvm.h>
#include "cpuid.h"
#include "vcpu.h"
#include "../cli/cli.h"

/* Where KVM on Intel CPUs may keep what it needs for itself: in the hole. */
#define IDENTITY_MAP_GPA 0xfeffc000ull
#define TSS_GPA 0xfeffd000ul

/* Have KVM tell of writes; before there are vCPUs. */
static int dirty_enable(struct machine *m, struct tern_error *err)
{
	int ret = 0;

	if (m->cfg.dirty == MACHINE_DIRTY_RING)
		ret = tern_kvm_enable_dirty_ring(m->fd, m->cfg.ring_entries, err);
	if (m->cfg.dirty == MACHINE_DIRTY_LOG)
		ret = tern_kvm_enable_dirty_log(m->fd, NULL);
	/* An older kernel has the log all the same. */
	return ret == -ENOSYS && m->cfg.dirty == MACHINE_DIRTY_LOG ? 0 : ret;
}

/* Open /dev/kvm and make a virtual machine. */
static int kvm_open(struct machine *m, struct tern_error *err)
{
	int version, size, ret;

	m->kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (m->kvm_fd < 0)
		return cli_fail(
			err, -errno,
			"cannot open /dev/kvm: %s; tern-vm needs KVM, and the right to use it "
			"(group kvm)",
			strerror(errno));
	version = ioctl(m->kvm_fd, KVM_GET_API_VERSION, 0);
	if (version != KVM_API_VERSION)
		return cli_fail(err, -ENOTSUP, "/dev/kvm has API version %d; tern-vm needs %d",
				version, KVM_API_VERSION);
	m->fd = ioctl(m->kvm_fd, KVM_CREATE_VM, 0);
	if (m->fd < 0)
		return cli_fail(err, -errno, "cannot make a virtual machine: %s", strerror(errno));
	ret = dirty_enable(m, err);
	if (ret)
		return ret;
	m->run_size = (size_t)ioctl(m->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
	size = ioctl(m->fd, KVM_CHECK_EXTENSION, KVM_CAP_XSAVE2);
	m->xsave_size =
		size > (int)sizeof(struct kvm_xsave) ? (unsigned)size : sizeof(struct kvm_xsave);
	return cpuid_supported(m->kvm_fd, &m->supported, err);
}

/* The devices that KVM has. */
static int devices_make(struct machine *m, struct tern_error *err)
{
	struct kvm_pit_config pit = { .flags = KVM_PIT_SPEAKER_DUMMY };
	uint64_t identity = IDENTITY_MAP_GPA;

	if (ioctl(m->fd, KVM_SET_IDENTITY_MAP_ADDR, &identity) ||
	    ioctl(m->fd, KVM_SET_TSS_ADDR, TSS_GPA))
		return cli_fail(err, -errno, "cannot give KVM its own guest memory: %s",
				strerror(errno));
	if (ioctl(m->fd, KVM_CREATE_IRQCHIP, 0))
		return cli_fail(err, -errno, "cannot make the interrupt controllers: %s",
				strerror(errno));
	if (ioctl(m->fd, KVM_CREATE_PIT2, &pit))
		return cli_fail(err, -errno, "cannot make the PIT: %s", strerror(errno));
	return 0;
}

/* Give the virtual machine its RAM. */
static int slots_set(struct machine *m, struct tern_error *err)
{
	for (unsigned i = 0; i < RAM_REGIONS; i++) {
		const struct ram_region *r = &m->ram.region[i];
		struct kvm_userspace_memory_region slot = {
			.slot = i,
			.guest_phys_addr = r->gpa,
			.memory_size = r->size,
			.userspace_addr = (uintptr_t)r->hva,
		};

		if (ioctl(m->fd, KVM_SET_USER_MEMORY_REGION, &slot))
			return cli_fail(err, -errno, "KVM refuses %llu MiB of RAM at 0x%llx: %s",
					(unsigned long long)r->size >> 20,
					(unsigned long long)r->gpa, strerror(errno));
	}
	return 0;
}

/* Make all vCPUs. */
static int vcpus_make(struct machine *m, struct tern_error *err)
{
	int most = ioctl(m->fd, KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPUS), khz, ret;

	if ((int)m->cfg.nr_vcpus > most)
		return cli_fail(err, -EINVAL, "--vcpus %u: KVM can do %d here", m->cfg.nr_vcpus,
				most);
	m->vcpus = calloc(m->cfg.nr_vcpus, sizeof(*m->vcpus));
	if (!m->vcpus)
		return cli_fail(err, -ENOMEM, "cannot make %u vCPUs: out of memory",
				m->cfg.nr_vcpus);
	while (m->nr_vcpus < m->cfg.nr_vcpus) {
		struct vcpu *v = &m->vcpus[m->nr_vcpus];

		ret = vcpu_init(v, m, m->nr_vcpus++, err);
		if (ret)
			return ret;
	}
	khz = ioctl(m->vcpus[0].fd, KVM_GET_TSC_KHZ, 0);
	if (khz <= 0)
		return cli_fail(err, -ENOTSUP,
				"cannot read the frequency of the vCPUs' time stamp counter: %s",
				strerror(errno));
	m->tsc_khz = (uint32_t)khz;
	return 0;
}

int machine_new(const struct machine_config *cfg, struct machine **out, struct tern_error *err)
{
	struct machine *m = calloc(1, sizeof(*m));
	pthread_condattr_t attr;
	int ret;

	if (!m)
		return cli_fail(err, -ENOMEM, "cannot make a machine: out of memory");
	m->cfg = *cfg;
	m->kvm_fd = m->fd = -1;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_mutex_init(&m->lock, NULL);
	pthread_cond_init(&m->wake, &attr);
	pthread_cond_init(&m->moved, &attr);
	pthread_cond_init(&m->throttled, &attr);
	pthread_condattr_destroy(&attr);
	serial_init(&m->serial, cfg->serial_fd);
	ret = ram_init(&m->ram, cfg->mem, cfg->backing, err);
	if (!ret)
		ret = kvm_open(m, err);
	if (!ret)
		ret = devices_make(m, err);
	if (!ret)
		ret = slots_set(m, err);
	if (!ret)
		ret = vcpus_make(m, err);
	if (ret) {
		machine_delete(&m);
		return ret;
	}
	*out = m;
	return 0;
}

int machine_start(struct machine *m, struct tern_error *err)
{
	int ret = 0;

	for (unsigned i = 0; i < m->nr_vcpus && !ret; i++)
		ret = vcpu_start(&m->vcpus[i], err);
	return ret;
}

void machine_delete(struct machine **mp)
{
	struct machine *m = mp ? *mp : NULL;

	if (!m)
		return;
	pthread_mutex_lock(&m->lock);
	m->quit = true;
	m->running = false;
	serial_end(&m->serial);
	for (unsigned i = 0; i < m->nr_vcpus; i++)
		vcpu_kick(&m->vcpus[i]);
	pthread_cond_broadcast(&m->wake);
	pthread_mutex_unlock(&m->lock);
	throttle_end(m);
	for (unsigned i = 0; i < m->nr_vcpus; i++)
		vcpu_fini(&m->vcpus[i]);
	if (m->fd >= 0)
		close(m->fd);
	if (m->kvm_fd >= 0)
		close(m->kvm_fd);
	serial_fini(&m->serial);
	ram_fini(&m->ram);
	pthread_cond_destroy(&m->wake);
	pthread_cond_destroy(&m->moved);
	pthread_cond_destroy(&m->throttled);
	pthread_mutex_destroy(&m->lock);
	free(m->supported);
	free(m->msrs);
	free(m->vcpus);
	free(m);
	*mp = NULL;
}

/* Is a vCPU still in or about KVM_RUN?  m->lock is held. */
static bool any_inside(const struct machine *m)
{
	for (unsigned i = 0; i < m->nr_vcpus; i++)
		if (m->vcpus[i].inside)
			return true;
	return false;
}

bool machine_pause(struct machine *m, int timeout_ms)
{
	struct timespec until;
	bool stopped;
	int late = 0;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += timeout_ms / 1000;
	until.tv_nsec += timeout_ms % 1000 * 1000000l;
	if (until.tv_nsec >= 1000000000l) {
		until.tv_sec++;
		until.tv_nsec -= 1000000000l;
	}
	pthread_mutex_lock(&m->lock);
	m->running = false;
	for (unsigned i = 0; i < m->nr_vcpus; i++)
		vcpu_kick(&m->vcpus[i]);
	pthread_cond_broadcast(&m->wake); /* for those that the throttle lets sleep */
	while (any_inside(m) && !late) {
		if (timeout_ms < 0)
			pthread_cond_wait(&m->moved, &m->lock);
		else
			late = pthread_cond_timedwait(&m->moved, &m->lock, &until);
	}
	stopped = !any_inside(m);
	pthread_mutex_unlock(&m->lock);
	if (stopped)
		serial_flush(&m->serial);
	return stopped;
}

/* Are all vCPUs in or about KVM_RUN, unless a throttle lets them sleep?  m->lock is held. */
static bool all_inside(const struct machine *m)
{
	for (unsigned i = 0; i < m->nr_vcpus; i++)
		if (!m->vcpus[i].inside && !m->throttle)
			return false;
	return true;
}

void machine_make_ready(struct machine *m)
{
	pthread_mutex_lock(&m->lock);
	m->ready++;
	pthread_cond_broadcast(&m->wake);
	pthread_mutex_unlock(&m->lock);
}

int machine_resume(struct machine *m)
{
	pthread_mutex_lock(&m->lock);
	m->running = !m->crashed;
	pthread_cond_broadcast(&m->wake);
	while (m->running && !all_inside(m))
		pthread_cond_wait(&m->moved, &m->lock);
	int ret = m->crashed ? -EIO : 0;

	pthread_mutex_unlock(&m->lock);
	return ret;
}

uint64_t machine_resumed_ns(struct machine *m)
{
	pthread_mutex_lock(&m->lock);
	uint64_t ns = m->resumed_ns;

	pthread_mutex_unlock(&m->lock);
	return ns;
}

bool machine_is_running(struct machine *m)
{
	pthread_mutex_lock(&m->lock);
	bool running = m->running;

	pthread_mutex_unlock(&m->lock);
	return running;
}

void machine_crash(struct machine *m, const char *why)
{
	pthread_mutex_lock(&m->lock);
	bool first = !m->crashed;

	m->crashed = true;
	m->running = false;
	for (unsigned i = 0; i < m->nr_vcpus; i++)
		vcpu_kick(&m->vcpus[i]);
	pthread_cond_broadcast(&m->wake); /* for those that the throttle lets sleep */
	pthread_cond_broadcast(&m->moved); /* for machine_resume(), whose caller has locks */
	pthread_mutex_unlock(&m->lock);
	if (first && m->cfg.crashed)
		m->cfg.crashed(m->cfg.opaque, why);
}
