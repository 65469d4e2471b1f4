/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * Starting a guest; see boot.h and bootinfo.h.
 *
 * All vCPUs are set to the entry here and made runnable, the others like the first:
 * there is no firmware that INIT and SIPI would have to come from, and no guest needs
 * 16-bit code.
 */

#include "boot.h"

#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include "bootinfo.h"
#include "image.h"
#include "../cli/cli.h"

#define GIB (1ull << 30)
#define PTE_TABLE 7u /* present, writable, for users too */
#define PTE_LARGE 0x87u /* and 2 MiB */

#define CR0_BITS 0x80050033u /* PG AM WP NE ET MP PE */
#define CR4_BITS 0x620u /* OSXMMEXCPT OSFXSR PAE */
#define EFER_BITS 0x501u /* LMA LME SCE */

/* Identity map with pages of 2 MiB: the first 4 GiB, and high RAM. */
static void page_tables_write(const struct ram *ram)
{
	const struct ram_region *high = &ram->region[RAM_REGIONS - 1];
	uint64_t nr_gib = (high->gpa + high->size + GIB - 1) / GIB;
	uint64_t *pml4 = ram_at(ram, BOOT_PAGE_TABLES_GPA, (nr_gib + 2) * 4096);
	uint64_t *pdpt = pml4 + 512, *pd = pdpt + 512;

	pml4[0] = (BOOT_PAGE_TABLES_GPA + 4096) | PTE_TABLE;
	for (uint64_t g = 0; g < nr_gib; g++)
		pdpt[g] = (BOOT_PAGE_TABLES_GPA + (g + 2) * 4096) | PTE_TABLE;
	for (uint64_t i = 0; i < nr_gib * 512; i++)
		pd[i] = i * RAM_ALIGN | PTE_LARGE;
}

/* What the guest wants to know. */
static int info_write(const struct machine *m, const struct image *image, const char *args,
		      struct tern_error *err)
{
	struct boot_info *info = ram_at(&m->ram, BOOT_INFO_GPA, sizeof(*info));

	if (strlen(args) >= sizeof(info->args))
		return cli_fail(err, -E2BIG, "--guest-args: longer than %zu bytes",
				sizeof(info->args) - 1);
	*info = (struct boot_info){
		.magic = BOOT_MAGIC,
		.nr_vcpus = m->nr_vcpus,
		.nr_ranges = RAM_REGIONS,
		.tsc_khz = m->tsc_khz,
		.image_end = image->end,
	};
	for (unsigned i = 0; i < RAM_REGIONS; i++)
		info->ranges[i] = (struct boot_range){ .gpa = m->ram.region[i].gpa,
						       .size = m->ram.region[i].size };
	strcpy(info->args, args);
	return 0;
}

/* 64-bit mode, flat segments. */
static void sregs_fill(struct kvm_sregs *s)
{
	struct kvm_segment code = {
		.limit = 0xffffffff,
		.selector = 8,
		.type = 11,
		.present = 1,
		.s = 1,
		.l = 1,
		.g = 1,
	};
	struct kvm_segment data = {
		.limit = 0xffffffff,
		.selector = 16,
		.type = 3,
		.present = 1,
		.s = 1,
		.db = 1,
		.g = 1,
	};

	s->cs = code;
	s->ds = s->es = s->fs = s->gs = s->ss = data;
	s->cr0 = CR0_BITS;
	s->cr3 = BOOT_PAGE_TABLES_GPA;
	s->cr4 = CR4_BITS;
	s->efer = EFER_BITS;
}

/* Set a vCPU to the entry. */
static int vcpu_boot(const struct vcpu *v, uint64_t entry, struct tern_error *err)
{
	struct kvm_regs regs = { .rip = entry, .rdi = BOOT_INFO_GPA, .rsi = v->index, .rflags = 2 };
	struct kvm_mp_state mp = { .mp_state = KVM_MP_STATE_RUNNABLE };
	struct kvm_fpu fpu = { .fcw = 0x37f, .mxcsr = 0x1f80 };
	struct kvm_sregs sregs;

	if (ioctl(v->fd, KVM_GET_SREGS, &sregs))
		goto fail;
	sregs_fill(&sregs);
	if (ioctl(v->fd, KVM_SET_SREGS, &sregs) || ioctl(v->fd, KVM_SET_REGS, &regs) ||
	    ioctl(v->fd, KVM_SET_FPU, &fpu) || ioctl(v->fd, KVM_SET_MP_STATE, &mp))
		goto fail;
	return 0;
fail:
	return cli_fail(err, -errno, "cannot set the registers of vCPU %u: %s", v->index,
			strerror(errno));
}

int boot(struct machine *m, const char *name, const char *args, struct tern_error *err)
{
	struct image image;
	int ret = image_load(name, &m->ram, &image, err);

	if (!ret)
		ret = info_write(m, &image, args, err);
	if (ret)
		return ret;
	page_tables_write(&m->ram);
	for (unsigned i = 0; i < m->nr_vcpus && !ret; i++)
		ret = vcpu_boot(&m->vcpus[i], image.entry, err);
	return ret;
}
