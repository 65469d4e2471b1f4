/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_VMM_IMAGE_H
#define TERN_VMM_IMAGE_H

/*
 * Guest images: those built in, by name, and files.
 *
 * A file is a 64-bit static ELF executable, or else a flat binary that is loaded at
 * BOOT_IMAGE_GPA and entered at its first byte.
 */

#include <stdint.h>
#include <tern/error.h>
#include "ram.h"

struct image {
	uint64_t entry; /* gpa */
	uint64_t end; /* gpa behind the last byte, zeroed ones too */
};

/*
 * image_load - put guest @name (a name from image_names(), or a path) into RAM.
 *
 * 0, or -errno with *@err: -ENOENT, -ENOEXEC for an ELF file that cannot be run here,
 * -EFBIG if it does not fit into low RAM, or what reading the file gave.
 */
int image_load(const char *name, const struct ram *ram, struct image *out, struct tern_error *err);

/* image_names - the guests built in, as "counter, dirty, check". */
const char *image_names(void);

#endif
