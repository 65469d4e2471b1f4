/* SPDX-License-Identifier: BSD-2-Clause */

/* CPUID; see cpuid.h. */

#include "cpuid.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include "../cli/cli.h"

#define BIT(n) (1u << (n))

enum { EAX, EBX, ECX, EDX };
static const char *const reg_names[] = { "eax", "ebx", "ecx", "edx" };

/*
 * The words of CPUID in which a bit that is set means something the guest may use.
 * @volatile_bits follow a vCPU's control registers and say nothing.
 */
static const struct feature_word {
	uint32_t function, index;
	unsigned reg;
	uint32_t volatile_bits;
	const char *name;
} words[] = {
	{ 0x1, 0, ECX, BIT(27), "SSE3 and later" },
	{ 0x1, 0, EDX, 0, "basic features" },
	{ 0x7, 0, EBX, 0, "AVX2 and later" },
	{ 0x7, 0, ECX, BIT(4), "extended features" },
	{ 0x7, 0, EDX, 0, "extended features" },
	{ 0x7, 1, EAX, 0, "extended features" },
	{ 0x7, 1, EDX, 0, "extended features" },
	{ 0xd, 0, EAX, 0, "XSAVE components" },
	{ 0xd, 0, EDX, 0, "XSAVE components" },
	{ 0xd, 1, EAX, 0, "XSAVE instructions" },
	{ 0xd, 1, ECX, 0, "supervisor XSAVE components" },
	{ 0x40000001, 0, EAX, 0, "KVM features" },
	{ 0x80000001, 0, ECX, 0, "AMD features" },
	{ 0x80000001, 0, EDX, 0, "AMD features" },
	{ 0x80000007, 0, EDX, 0, "power management" },
	{ 0x80000008, 0, EBX, 0, "AMD extended features" },
	{ 0x80000021, 0, EAX, 0, "AMD extended features" },
};

size_t cpuid_bytes(unsigned nr)
{
	return sizeof(struct kvm_cpuid2) + nr * sizeof(struct kvm_cpuid_entry2);
}

/* The entry of a leaf, or NULL. */
static struct kvm_cpuid_entry2 *find(const struct kvm_cpuid2 *t, uint32_t function, uint32_t index)
{
	for (uint32_t i = 0; i < t->nent; i++) {
		const struct kvm_cpuid_entry2 *e = &t->entries[i];
		bool indexed = e->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX;

		if (e->function == function && (indexed ? e->index == index : !index))
			return (struct kvm_cpuid_entry2 *)e;
	}
	return NULL;
}

static uint32_t reg_get(const struct kvm_cpuid_entry2 *e, unsigned reg)
{
	return reg == EAX ? e->eax : reg == EBX ? e->ebx : reg == ECX ? e->ecx : e->edx;
}

void cpuid_adjust(struct kvm_cpuid2 *t, bool tsc_deadline)
{
	struct kvm_cpuid_entry2 *e = find(t, 1, 0);

	if (e) {
		e->ecx &= ~BIT(5); /* VMX */
		e->ecx |= BIT(31); /* there is a hypervisor */
		if (tsc_deadline)
			e->ecx |= BIT(24);
	}
	e = find(t, 7, 0);
	if (e)
		e->ecx &= ~BIT(7); /* shadow stacks: the pointer is no MSR, and is not saved */
	e = find(t, 0x80000001, 0);
	if (e)
		e->ecx &= ~BIT(2); /* SVM */
}

int cpuid_supported(int kvm_fd, struct kvm_cpuid2 **out, struct tern_error *err)
{
	struct kvm_cpuid2 *t = calloc(1, cpuid_bytes(CPUID_ENTRIES_MAX));

	if (!t)
		return cli_fail(err, -ENOMEM, "cannot ask for CPUID: out of memory");
	t->nent = CPUID_ENTRIES_MAX;
	if (ioctl(kvm_fd, KVM_GET_SUPPORTED_CPUID, t)) {
		free(t);
		return cli_fail(err, -errno, "cannot ask KVM which CPU features it supports: %s",
				strerror(errno));
	}
	cpuid_adjust(t, ioctl(kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_TSC_DEADLINE_TIMER) > 0);
	*out = t;
	return 0;
}

int cpuid_for_vcpu(const struct kvm_cpuid2 *base, unsigned index, unsigned nr,
		   struct kvm_cpuid2 **out, struct tern_error *err)
{
	struct kvm_cpuid2 *t = malloc(cpuid_bytes(base->nent));

	if (!t)
		return cli_fail(err, -ENOMEM, "cannot make CPUID of vCPU %u: out of memory", index);
	memcpy(t, base, cpuid_bytes(base->nent));
	for (uint32_t i = 0; i < t->nent; i++) {
		struct kvm_cpuid_entry2 *e = &t->entries[i];

		switch (e->function) {
		case 0x1:
			e->ebx = (e->ebx & 0xffff) | nr << 16 | index << 24;
			if (nr > 1)
				e->edx |= BIT(28);
			break;
		case 0xb:
		case 0x1f:
			e->edx = index;
			break;
		case 0x8000001e:
			e->eax = index;
			break;
		}
	}
	*out = t;
	return 0;
}

int cpuid_set(const struct vcpu *v, const struct kvm_cpuid2 *table, struct tern_error *err)
{
	if (ioctl(v->fd, KVM_SET_CPUID2, table))
		return cli_fail(err, -errno, "KVM refuses the CPUID of vCPU %u: %s", v->index,
				strerror(errno));
	return 0;
}

/* Are both from one vendor? */
static int vendor_check(const struct kvm_cpuid2 *guest, const struct kvm_cpuid2 *here,
			struct tern_error *err)
{
	const struct kvm_cpuid_entry2 *a = find(guest, 0, 0), *b = find(here, 0, 0);
	char va[13] = "", vb[13] = "";

	if (!a || !b)
		return cli_fail(err, -ENOTSUP, "device state: its CPUID has no leaf 0");
	memcpy(va, &a->ebx, 4);
	memcpy(va + 4, &a->edx, 4);
	memcpy(va + 8, &a->ecx, 4);
	memcpy(vb, &b->ebx, 4);
	memcpy(vb + 4, &b->edx, 4);
	memcpy(vb + 8, &b->ecx, 4);
	for (char *c = va; *c; c++)
		if (*c < 32 || *c > 126)
			*c = '?';
	if (strcmp(va, vb))
		return cli_fail(err, -ENOTSUP,
				"device state: the guest's CPU is of vendor %s, this host's of %s; "
				"migrate between hosts of one vendor",
				va, vb);
	return 0;
}

int cpuid_check(const struct kvm_cpuid2 *guest, const struct kvm_cpuid2 *here,
		struct tern_error *err)
{
	int ret = vendor_check(guest, here, err);

	for (unsigned i = 0; i < sizeof(words) / sizeof(words[0]) && !ret; i++) {
		const struct feature_word *w = &words[i];
		const struct kvm_cpuid_entry2 *a = find(guest, w->function, w->index);
		const struct kvm_cpuid_entry2 *b = find(here, w->function, w->index);
		uint32_t missing = a ? reg_get(a, w->reg) & ~w->volatile_bits : 0;

		missing &= b ? ~reg_get(b, w->reg) : ~0u;
		if (w->function == 0x1 && w->reg == EDX)
			missing &= ~BIT(28); /* several vCPUs: no matter of the host */
		if (missing)
			ret = cli_fail(
				err, -ENOTSUP,
				"device state: the guest uses CPU features that this host lacks: "
				"CPUID leaf 0x%x.%u %s (%s), bits 0x%08x; start the guest on the "
				"older host",
				w->function, w->index, reg_names[w->reg], w->name, missing);
	}
	return ret;
}
