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

/* Read or write one MSR.  True: done. */
static bool msr_access(const struct vcpu *v, unsigned long request, uint32_t index, uint64_t *value)
{
	union {
		struct kvm_msrs head;
		uint8_t bytes[sizeof(struct kvm_msrs) + sizeof(struct kvm_msr_entry)];
	} m = { .head = { .nmsrs = 1 } };
	struct kvm_msr_entry *entry = m.head.entries;

	*entry = (struct kvm_msr_entry){ .index = index, .data = *value };
	if (ioctl(v->fd, request, &m) != 1)
		return false;
	*value = entry->data;
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
	struct kvm_msrs *msrs;
	int ret = 0, got;

	msrs = calloc(1, sizeof(*msrs) + m->msrs->nmsrs * sizeof(msrs->entries[0]));
	if (!msrs)
		return -ENOMEM;
	msrs->nmsrs = m->msrs->nmsrs;
	for (uint32_t k = 0; k < msrs->nmsrs; k++)
		msrs->entries[k].index = m->msrs->indices[k];
	got = ioctl(m->vcpus[i].fd, KVM_GET_MSRS, msrs);
	if (got != (int)msrs->nmsrs)
		ret = cli_fail(err, -EIO, "device state: cannot read MSR 0x%x of vCPU %u",
			       msrs->entries[got < 0 ? 0 : got].index, i);
	for (uint32_t k = 0; k < msrs->nmsrs && !ret; k++) {
		ret = section_put_u32(b, msrs->entries[k].index);
		if (!ret)
			ret = section_put_u64(b, msrs->entries[k].data);
	}
	free(msrs);
	return ret;
}

/* Set MSRs one after the other.  Those that are what they shall be may be read-only. */
int state_msrs_load(struct machine *m, unsigned i, const uint8_t *data, uint64_t len,
		    struct tern_error *err)
{
	const struct vcpu *v = &m->vcpus[i];

	for (uint64_t at = 0; at < len; at += STATE_MSR_BYTES) {
		uint32_t index = section_get_u32(data + at);
		uint64_t want = section_get_u64(data + at + 4), value = want, here = 0;

		if (msr_access(v, KVM_SET_MSRS, index, &value))
			continue;
		if (msr_access(v, KVM_GET_MSRS, index, &here) && here == want)
			continue;
		return cli_fail(
			err, -ENOTSUP,
			"device state: MSR 0x%x of vCPU %u cannot be 0x%llx here; the hosts' "
			"CPUs or kernels differ too much",
			index, i, (unsigned long long)want);
	}
	return 0;
}
