/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_VMM_BOOTINFO_H
#define TERN_VMM_BOOTINFO_H

/*
 * What the VMM and its guests agree on.  Both sides include this file.
 *
 *	guest physical memory
 *	0x00007000  struct boot_info
 *	0x00010000  page tables: identity map of all RAM and of the first 4 GiB
 *	0x00100000  the image
 *	…           low RAM ends; hole with IOAPIC and LAPICs
 *	4 GiB       high RAM
 *
 * Every vCPU begins at the image's entry, in 64-bit mode with interrupts off,
 * with RDI = BOOT_INFO_GPA and RSI = its index.  The VMM starts them all: a guest
 * sends no INIT and no SIPI.  It has to bring a stack, a GDT and an IDT.
 *
 * The guests in guests/ also start under other VMMs: guests/pvh.S.
 */

#include <stdint.h>

#define BOOT_INFO_GPA 0x7000u
#define BOOT_PAGE_TABLES_GPA 0x10000u
#define BOOT_IMAGE_GPA 0x100000u
#define BOOT_HIGH_GPA 0x100000000ull
#define BOOT_MAGIC 0x544f4f424e524554ull /* "TERNBOOT" */
#define BOOT_RANGES_MAX 4
#define BOOT_ARGS_MAX 1024
#define BOOT_VCPUS_MAX 64

#define BOOT_SERIAL_PORT 0x3f8u /* a 16550, always ready to send */

struct boot_range {
	uint64_t gpa, size; /* bytes */
};

struct boot_info {
	uint64_t magic;
	uint32_t nr_vcpus;
	uint32_t nr_ranges;
	uint64_t tsc_khz;
	uint64_t image_end; /* gpa behind the image, its zeroed part included */
	struct boot_range ranges[BOOT_RANGES_MAX]; /* RAM */
	char args[BOOT_ARGS_MAX]; /* of --guest-args, terminated */
};

#endif
