/* SPDX-License-Identifier: BSD-2-Clause */

/* What tern-vm's vCPUs say that they can do, and what a destination makes of it. */

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "cpuid.h"

#define BIT(n) (1u << (n))

/* Leaves with feature bits, and two that say which vCPU it is. */
static const uint32_t leaves[][2] = {
	{ 0x0, 0 },        { 0x1, 0 },        { 0x7, 0 },        { 0x7, 1 },
	{ 0xb, 0 },        { 0xd, 0 },        { 0xd, 1 },        { 0x40000001, 0 },
	{ 0x80000001, 0 }, { 0x80000007, 0 }, { 0x80000008, 0 }, { 0x8000001e, 0 },
	{ 0x80000021, 0 },
};
#define NR_LEAVES (sizeof(leaves) / sizeof(leaves[0]))

/* A table with all of them, each register @fill; for free(). */
static struct kvm_cpuid2 *table(uint32_t fill)
{
	struct kvm_cpuid2 *t = calloc(1, cpuid_bytes(NR_LEAVES));

	assert_non_null(t);
	t->nent = NR_LEAVES;
	for (unsigned i = 0; i < NR_LEAVES; i++)
		t->entries[i] = (struct kvm_cpuid_entry2){
			.function = leaves[i][0],
			.index = leaves[i][1],
			.flags = leaves[i][0] == 0x7 || leaves[i][0] == 0xb || leaves[i][0] == 0xd
					 ? KVM_CPUID_FLAG_SIGNIFCANT_INDEX
					 : 0,
			.eax = fill,
			.ebx = fill,
			.ecx = fill,
			.edx = fill,
		};
	memcpy(&t->entries[0].ebx, "Tern", 4);
	memcpy(&t->entries[0].edx, "Tern", 4);
	memcpy(&t->entries[0].ecx, "Tern", 4);
	return t;
}

static struct kvm_cpuid_entry2 *leaf(struct kvm_cpuid2 *t, uint32_t function, uint32_t index)
{
	for (unsigned i = 0; i < t->nent; i++)
		if (t->entries[i].function == function && t->entries[i].index == index)
			return &t->entries[i];
	fail_msg("no leaf 0x%x.%u", function, index);
	return NULL;
}

/* Nested virtualization, and shadow stacks, whose pointer is in no register that is saved. */
static void what_cannot_migrate_is_not_offered(void **state)
{
	struct kvm_cpuid2 *t = table(UINT32_MAX), *want = table(UINT32_MAX);

	cpuid_adjust(t, true);
	leaf(want, 0x1, 0)->ecx &= ~BIT(5);
	leaf(want, 0x80000001, 0)->ecx &= ~BIT(2);
	leaf(want, 0x7, 0)->ecx &= ~BIT(7);
	assert_memory_equal(t, want, cpuid_bytes(NR_LEAVES));
	free(want);
	free(t);
}

static void what_the_vmm_adds(void **state)
{
	for (int deadline = 0; deadline < 2; deadline++) {
		struct kvm_cpuid2 *t = table(0), *want = table(0);

		cpuid_adjust(t, deadline);
		leaf(want, 0x1, 0)->ecx = BIT(31) | (deadline ? BIT(24) : 0);
		assert_memory_equal(t, want, cpuid_bytes(NR_LEAVES));
		free(want);
		free(t);
	}
}

static void each_vcpu_has_its_number(void **state)
{
	for (unsigned nr = 1; nr <= 3; nr += 2)
		for (unsigned i = 0; i < nr; i++) {
			struct kvm_cpuid2 *base = table(0), *t, *want = table(0);
			struct tern_error err = { 0 };

			assert_int_equal(cpuid_for_vcpu(base, i, nr, &t, &err), 0);
			leaf(want, 0x1, 0)->ebx = nr << 16 | i << 24;
			leaf(want, 0x1, 0)->edx = nr > 1 ? BIT(28) : 0;
			leaf(want, 0xb, 0)->edx = i;
			leaf(want, 0x8000001e, 0)->eax = i;
			assert_memory_equal(t, want, cpuid_bytes(NR_LEAVES));
			free(want);
			free(t);
			free(base);
		}
}

static void same_features(void **state)
{
	struct kvm_cpuid2 *guest = table(0x0f0f0f0f), *here = table(0x0f0f0f0f);
	struct tern_error err = { 0 };

	assert_int_equal(cpuid_check(guest, here, &err), 0);
	assert_int_equal(err.code, 0);
	free(here);
	free(guest);
}

/* The host may have more than the guest knows of. */
static void fewer_features(void **state)
{
	struct kvm_cpuid2 *guest = table(0), *here = table(UINT32_MAX);
	struct tern_error err = { 0 };

	assert_int_equal(cpuid_check(guest, here, &err), 0);
	assert_int_equal(cpuid_check(guest, guest, &err), 0);
	free(here);
	free(guest);
}

/* One bit that the host has not, in each of the registers that hold features. */
static void more_features(void **state)
{
	static const struct {
		uint32_t function, index;
		size_t reg;
		const char *name;
	} regs[] = {
#define REG(r) offsetof(struct kvm_cpuid_entry2, r), #r
		{ 0x1, 0, REG(ecx) },        { 0x1, 0, REG(edx) },
		{ 0x7, 0, REG(ebx) },        { 0x7, 0, REG(ecx) },
		{ 0x7, 0, REG(edx) },        { 0x7, 1, REG(eax) },
		{ 0x7, 1, REG(edx) },        { 0xd, 0, REG(eax) },
		{ 0xd, 0, REG(edx) },        { 0xd, 1, REG(eax) },
		{ 0xd, 1, REG(ecx) },        { 0x40000001, 0, REG(eax) },
		{ 0x80000001, 0, REG(ecx) }, { 0x80000001, 0, REG(edx) },
		{ 0x80000007, 0, REG(edx) }, { 0x80000008, 0, REG(ebx) },
		{ 0x80000021, 0, REG(eax) },
#undef REG
	};

	for (unsigned i = 0; i < sizeof(regs) / sizeof(regs[0]); i++) {
		struct kvm_cpuid2 *guest = table(0), *here = table(0);
		struct tern_error err = { 0 };
		uint32_t bit = BIT(30);
		char words[96];

		memcpy((char *)leaf(guest, regs[i].function, regs[i].index) + regs[i].reg, &bit, 4);
		snprintf(words, sizeof(words), "CPUID leaf 0x%x.%u %s", regs[i].function,
			 regs[i].index, regs[i].name);
		assert_int_equal(cpuid_check(guest, here, &err), -ENOTSUP);
		if (!strstr(err.message, words) || !strstr(err.message, "bits 0x40000000;"))
			fail_msg("\"%s\" does not say \"%s\"", err.message, words);
		assert_int_equal(cpuid_check(guest, guest, &err), 0);
		free(here);
		free(guest);
	}
}

/* A leaf that the host has not at all. */
static void more_leaves(void **state)
{
	struct kvm_cpuid2 *guest = table(0), *here = table(0);
	struct tern_error err = { 0 };

	here->nent--;
	assert_int_equal(cpuid_check(guest, here, &err), 0);
	leaf(guest, 0x80000021, 0)->eax = BIT(0);
	assert_int_equal(cpuid_check(guest, here, &err), -ENOTSUP);
	assert_non_null(strstr(err.message, "CPUID leaf 0x80000021.0 eax"));
	free(here);
	free(guest);
}

/* They follow the control registers, and the number of vCPUs. */
static void bits_that_say_nothing(void **state)
{
	struct kvm_cpuid2 *guest = table(0), *here = table(0);
	struct tern_error err = { 0 };

	leaf(guest, 0x1, 0)->ecx = BIT(27);
	leaf(guest, 0x1, 0)->edx = BIT(28);
	leaf(guest, 0x7, 0)->ecx = BIT(4);
	assert_int_equal(cpuid_check(guest, here, &err), 0);
	free(here);
	free(guest);
}

static void another_vendor(void **state)
{
	struct kvm_cpuid2 *guest = table(0), *here = table(0);
	struct tern_error err = { 0 };

	memcpy(&leaf(guest, 0, 0)->ebx, "S\nag", 4);
	assert_int_equal(cpuid_check(guest, here, &err), -ENOTSUP);
	assert_non_null(strstr(err.message, "of vendor S?agTernTern, this host's of TernTernTern"));
	free(here);
	free(guest);
}

static void no_vendor(void **state)
{
	struct kvm_cpuid2 *guest = table(0), *here = table(0);
	struct tern_error err = { 0 };

	guest->nent = 0;
	assert_int_equal(cpuid_check(guest, here, &err), -ENOTSUP);
	assert_non_null(strstr(err.message, "no leaf 0"));
	free(here);
	free(guest);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_cannot_migrate_is_not_offered),
		cmocka_unit_test(what_the_vmm_adds),
		cmocka_unit_test(each_vcpu_has_its_number),
		cmocka_unit_test(same_features),
		cmocka_unit_test(fewer_features),
		cmocka_unit_test(more_features),
		cmocka_unit_test(more_leaves),
		cmocka_unit_test(bits_that_say_nothing),
		cmocka_unit_test(another_vendor),
		cmocka_unit_test(no_vendor),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
