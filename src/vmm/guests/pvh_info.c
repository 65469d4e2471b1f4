/* SPDX-License-Identifier: BSD-2-Clause */

/* The boot information of a guest that was started by PVH (pvh.S). */

#include "lib.h"

#define E820_RAM 1u

/* As in Xen's public/arch-x86/hvm/start_info.h, version 1. */
struct hvm_start_info {
	uint32_t magic, version, flags, nr_modules;
	uint64_t modules_gpa, cmdline_gpa, rsdp_gpa, memmap_gpa;
	uint32_t memmap_entries, reserved;
};

struct hvm_memmap_entry {
	uint64_t gpa, size;
	uint32_t type, reserved;
};

extern const char image_end[]; /* guest.ld */
static struct boot_info info;

const struct boot_info *pvh_info(const struct hvm_start_info *start);

/* RAM that begins behind the image's first byte and below what is mapped. */
static void ranges_fill(const struct hvm_start_info *start)
{
	const struct hvm_memmap_entry *e = (const void *)start->memmap_gpa;

	for (uint32_t i = 0; i < start->memmap_entries && info.nr_ranges < BOOT_RANGES_MAX; i++) {
		uint64_t begin = e[i].gpa, end = e[i].gpa + e[i].size;

		begin = (begin + PAGE_BYTES - 1) & -(uint64_t)PAGE_BYTES;
		end = (end < BOOT_HIGH_GPA ? end : BOOT_HIGH_GPA) & -(uint64_t)PAGE_BYTES;
		if (e[i].type != E820_RAM || begin < BOOT_IMAGE_GPA || begin >= end)
			continue;
		info.ranges[info.nr_ranges++] =
			(struct boot_range){ .gpa = begin, .size = end - begin };
	}
}

/* Called once, with all privileges and a stack; nothing else has been set up. */
const struct boot_info *pvh_info(const struct hvm_start_info *start)
{
	const char *from = (const char *)start->cmdline_gpa;

	info.magic = BOOT_MAGIC;
	info.nr_vcpus = 1;
	info.image_end = (uint64_t)image_end;
	if (start->version >= 1)
		ranges_fill(start);
	for (size_t i = 0; from && from[i] && i < sizeof(info.args) - 1; i++)
		info.args[i] = from[i];
	clock_start(0);
	info.tsc_khz = clock_tsc_khz(0);
	return &info;
}
