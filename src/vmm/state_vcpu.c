/* SPDX-License-Identifier: BSD-2-Clause */

/* Device state of a vCPU that is more than one structure: CPUID, MSRs, time stamp counter. */

#include "state.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include "cpuid.h"
#include "../cli/cli.h"

#define MSR_TSC 0x10u
#define MSRS_MAX 1024u
#define MSRS_AT_ONCE 64u

/* ------------------------------------------------------------------------ CPUID */

int state_cpuid_save(struct machine *m, unsigned i, struct section_buf *b, struct tern_error *err)
{
	const struct kvm_cpuid2 *t = m->vcpus[i].cpuid;

	return section_put(b, t->entries, t->nent * sizeof(t->entries[0]));
}

int state_cpuid_load(struct machine *m, unsigned i, const uint8_t *data, uint64_t len,
		     struct tern_error *err)
{
	uint64_t nr = len / sizeof(struct kvm_cpuid_entry2);
	struct vcpu *v = &m->vcpus[i];
	struct kvm_cpuid2 *t;
	int ret;

	if (nr > CPUID_ENTRIES_MAX)
		return cli_fail(err, -EPROTO,
				"device state: CPUID of vCPU %u has %llu entries, at most %u are "
				"possible",
				i, (unsigned long long)nr, CPUID_ENTRIES_MAX);
	/* Two hosts of one kind; setting it takes a while. */
	if (nr == v->cpuid->nent && !memcmp(data, v->cpuid->entries, len))
		return 0;
	t = calloc(1, cpuid_bytes((unsigned)nr));
	if (!t)
		return cli_fail(err, -ENOMEM, "device state: out of memory");
	t->nent = (uint32_t)nr;
	memcpy(t->entries, data, len);
	ret = cpuid_check(t, m->supported, err);
	if (!ret)
		ret = cpuid_set(v, t, err);
	if (ret) {
		free(t);
		return ret;
	}
	free(v->cpuid);
	v->cpuid = t;
	return 0;
}

/* ---------------------------------------------------------- time stamp counter */

/* Read or write @nr MSRs, MSRS_AT_ONCE at most.  How many it were before KVM stopped, or -1. */
static int msrs_access(const struct vcpu *v, unsigned long request, struct kvm_msr_entry *e,
		       uint32_t nr)
{
	union {
		struct kvm_msrs head;
		uint8_t bytes[sizeof(struct kvm_msrs) +
			      MSRS_AT_ONCE * sizeof(struct kvm_msr_entry)];
	} m = { .head = { .nmsrs = nr } };
	int ret;

	memcpy(m.head.entries, e, nr * sizeof(*e));
	ret = ioctl(v->fd, request, &m);
	memcpy(e, m.head.entries, nr * sizeof(*e));
	return ret;
}

/* Read or write one MSR.  True: done. */
static bool msr_access(const struct vcpu *v, unsigned long request, uint32_t index, uint64_t *value)
{
	struct kvm_msr_entry e = { .index = index, .data = *value };

	if (msrs_access(v, request, &e, 1) != 1)
		return false;
	*value = e.data;
	return true;
}

int state_tsc_save(struct machine *m, unsigned i, struct section_buf *b, struct tern_error *err)
{
	uint64_t tsc = 0;
	int ret;

	if (!msr_access(&m->vcpus[i], KVM_GET_MSRS, MSR_TSC, &tsc))
		return cli_fail(err, -EIO,
				"device state: cannot read the time stamp counter of vCPU %u", i);
	ret = section_put_u64(b, tsc);
	return ret ? ret : section_put_u64(b, state_real_ns());
}

/*
 * KVM gives vCPUs whose counters are set to what they would be if they were in step the
 * same offset, so that they are in step again, to the tick.
 */
int state_tsc_load(struct machine *m, unsigned i, const uint8_t *data, uint64_t len,
		   struct tern_error *err)
{
	uint64_t tsc = section_get_u64(data);
	uint64_t ns = state_elapsed_ns(section_get_u64(data + 8));

	/* In two steps, because the product does not fit. */
	tsc += ns / 1000000 * m->tsc_khz + ns % 1000000 * m->tsc_khz / 1000000;
	if (!msr_access(&m->vcpus[i], KVM_SET_MSRS, MSR_TSC, &tsc))
		return cli_fail(err, -EIO,
				"device state: KVM refuses the time stamp counter of vCPU %u", i);
	return 0;
}

/* -------------------------------------------------------------------------- MSRs */

/* By the first vCPU: KVM's list has entries for CPUs of other kinds; see state.h. */
int state_prepare(struct machine *m, struct tern_error *err)
{
	struct kvm_msr_list *all = calloc(1, sizeof(*all) + MSRS_MAX * sizeof(uint32_t));
	uint32_t nr = 0;

	if (!all)
		return cli_fail(err, -ENOMEM, "device state: out of memory");
	all->nmsrs = MSRS_MAX;
	if (ioctl(m->kvm_fd, KVM_GET_MSR_INDEX_LIST, all)) {
		free(all);
		return cli_fail(err, -errno,
				"device state: cannot ask KVM which MSRs there are: %s",
				strerror(errno));
	}
	for (uint32_t i = 0; i < all->nmsrs; i++) {
		uint64_t value = 0;

		if (all->indices[i] != MSR_TSC &&
		    msr_access(&m->vcpus[0], KVM_GET_MSRS, all->indices[i], &value))
			all->indices[nr++] = all->indices[i];
	}
	all->nmsrs = nr;
	m->msrs = all;
	return 0;
}

int state_msrs_save(struct machine *m, unsigned i, struct section_buf *b, struct tern_error *err)
{
	const struct vcpu *v = &m->vcpus[i];
	struct kvm_msr_entry e[MSRS_AT_ONCE];
	int ret = 0;

	for (uint32_t done = 0; done < m->msrs->nmsrs && !ret; done += MSRS_AT_ONCE) {
		uint32_t left = m->msrs->nmsrs - done;
		uint32_t part = left < MSRS_AT_ONCE ? left : MSRS_AT_ONCE;
		int got;

		for (uint32_t k = 0; k < part; k++)
			e[k] = (struct kvm_msr_entry){ .index = m->msrs->indices[done + k] };
		got = msrs_access(v, KVM_GET_MSRS, e, part);
		if (got != (int)part)
			return cli_fail(err, -EIO, "device state: cannot read MSR 0x%x of vCPU %u",
					e[got < 0 ? 0 : got].index, i);
		for (uint32_t k = 0; k < part && !ret; k++) {
			ret = section_put_u32(b, e[k].index);
			if (!ret)
				ret = section_put_u64(b, e[k].data);
		}
	}
	return ret;
}

/* KVM has stopped at an MSR: that is no matter if it is what it shall be (read-only ones). */
static int msr_refused(const struct vcpu *v, const struct kvm_msr_entry *e, struct tern_error *err)
{
	uint64_t here = 0;

	if (msr_access(v, KVM_GET_MSRS, e->index, &here) && here == e->data)
		return 0;
	return cli_fail(
		err, -ENOTSUP,
		"device state: MSR 0x%x of vCPU %u cannot be 0x%llx here; the hosts' CPUs or "
		"kernels differ too much",
		e->index, v->index, (unsigned long long)e->data);
}

int state_msrs_load(struct machine *m, unsigned i, const uint8_t *data, uint64_t len,
		    struct tern_error *err)
{
	const struct vcpu *v = &m->vcpus[i];
	uint32_t nr = (uint32_t)(len / STATE_MSR_BYTES), done = 0;
	struct kvm_msr_entry e[MSRS_AT_ONCE];
	int ret = 0;

	while (done < nr && !ret) {
		uint32_t part = nr - done < MSRS_AT_ONCE ? nr - done : MSRS_AT_ONCE;
		int set;

		for (uint32_t k = 0; k < part; k++) {
			const uint8_t *p = data + (done + k) * (uint64_t)STATE_MSR_BYTES;

			e[k] = (struct kvm_msr_entry){ .index = section_get_u32(p),
						       .data = section_get_u64(p + 4) };
		}
		set = msrs_access(v, KVM_SET_MSRS, e, part);
		if (set < (int)part) {
			set = set < 0 ? 0 : set;
			ret = msr_refused(v, &e[set], err);
			set++;
		}
		done += (uint32_t)set;
	}
	return ret;
}
