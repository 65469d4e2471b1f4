/* SPDX-License-Identifier: BSD-2-Clause */

/* Guest images; see image.h. */

#define _GNU_SOURCE
#include "image.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "bootinfo.h"
#include "../cli/cli.h"

#define FILE_MAX (256u << 20)

/* In guests/embedded.S. */
extern const uint8_t guest_image_counter[], guest_image_counter_end[];
extern const uint8_t guest_image_dirty[], guest_image_dirty_end[];
extern const uint8_t guest_image_check[], guest_image_check_end[];

static const struct {
	const char *name;
	const uint8_t *begin, *end;
} built_in[] = {
	{ "counter", guest_image_counter, guest_image_counter_end },
	{ "dirty", guest_image_dirty, guest_image_dirty_end },
	{ "check", guest_image_check, guest_image_check_end },
};

const char *image_names(void)
{
	return "counter, dirty, check";
}

/* Copy one segment; @file has @size bytes. */
static int segment_load(const char *name, const uint8_t *file, size_t size, const Elf64_Phdr *p,
			const struct ram *ram, struct tern_error *err)
{
	uint8_t *to;

	if (p->p_offset > size || p->p_filesz > size - p->p_offset || p->p_filesz > p->p_memsz)
		return cli_fail(err, -ENOEXEC,
				"guest %s: a segment of its ELF file lies outside of the file",
				name);
	to = p->p_paddr >= BOOT_IMAGE_GPA ? ram_at(ram, p->p_paddr, p->p_memsz) : NULL;
	if (!to)
		return cli_fail(
			err, -EFBIG,
			"guest %s: a segment at 0x%llx of %llu bytes lies outside of RAM, which "
			"begins for images at 0x%x; use a larger --mem",
			name, (unsigned long long)p->p_paddr, (unsigned long long)p->p_memsz,
			BOOT_IMAGE_GPA);
	memcpy(to, file + p->p_offset, p->p_filesz);
	return 0;
}

/* Load an ELF file. */
static int elf_load(const char *name, const uint8_t *file, size_t size, const struct ram *ram,
		    struct image *out, struct tern_error *err)
{
	Elf64_Ehdr e;
	Elf64_Phdr p;
	int ret = 0;

	if (size < sizeof(e))
		return cli_fail(err, -ENOEXEC, "guest %s: its ELF header is cut short", name);
	memcpy(&e, file, sizeof(e));
	if (e.e_ident[EI_CLASS] != ELFCLASS64 || e.e_machine != EM_X86_64 || e.e_type != ET_EXEC)
		return cli_fail(
			err, -ENOEXEC,
			"guest %s: is no static x86-64 ELF executable; link it with -static "
			"-no-pie",
			name);
	if (e.e_phentsize != sizeof(p) || e.e_phoff > size ||
	    (size - e.e_phoff) / sizeof(p) < e.e_phnum)
		return cli_fail(err, -ENOEXEC, "guest %s: its program headers are cut short", name);
	*out = (struct image){ .entry = e.e_entry };
	for (unsigned i = 0; i < e.e_phnum && !ret; i++) {
		memcpy(&p, file + e.e_phoff + i * sizeof(p), sizeof(p));
		if (p.p_type != PT_LOAD || !p.p_memsz)
			continue;
		ret = segment_load(name, file, size, &p, ram, err);
		if (p.p_paddr < BOOT_HIGH_GPA && p.p_paddr + p.p_memsz > out->end)
			out->end = p.p_paddr + p.p_memsz;
	}
	return ret;
}

/* Load ELF or flat bytes. */
static int bytes_load(const char *name, const uint8_t *file, size_t size, const struct ram *ram,
		      struct image *out, struct tern_error *err)
{
	void *to;

	if (size >= SELFMAG && !memcmp(file, ELFMAG, SELFMAG))
		return elf_load(name, file, size, ram, out, err);
	to = ram_at(ram, BOOT_IMAGE_GPA, size);
	if (!to || !size)
		return cli_fail(err, to ? -ENOEXEC : -EFBIG,
				"guest %s: %zu bytes of flat binary do not fit into low RAM", name,
				size);
	memcpy(to, file, size);
	*out = (struct image){ .entry = BOOT_IMAGE_GPA, .end = BOOT_IMAGE_GPA + size };
	return 0;
}

/* Read a whole file; *@bytes is for free(). */
static int file_read(const char *path, uint8_t **bytes, size_t *size, struct tern_error *err)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC), ret = 0;
	struct stat st;
	uint8_t *p = NULL;
	ssize_t n;

	if (fd < 0)
		return cli_fail(err, -errno,
				"cannot open guest %s: %s; it is a file, or one of: %s", path,
				strerror(errno), image_names());
	if (fstat(fd, &st) || !S_ISREG(st.st_mode) || st.st_size > FILE_MAX) {
		ret = cli_fail(err, -EINVAL, "guest %s: is no regular file of at most %u MiB", path,
			       FILE_MAX >> 20);
		goto close;
	}
	p = malloc((size_t)st.st_size + 1);
	n = p ? read(fd, p, (size_t)st.st_size) : -1;
	if (n != st.st_size)
		ret = cli_fail(err, -EIO, "cannot read guest %s: %s", path,
			       n < 0 ? strerror(errno) : "it became shorter meanwhile");
close:
	close(fd);
	if (ret) {
		free(p);
		return ret;
	}
	*bytes = p;
	*size = (size_t)st.st_size;
	return 0;
}

int image_load(const char *name, const struct ram *ram, struct image *out, struct tern_error *err)
{
	uint8_t *bytes = NULL;
	size_t size = 0;
	int ret;

	for (unsigned i = 0; i < sizeof(built_in) / sizeof(built_in[0]); i++)
		if (!strcmp(name, built_in[i].name))
			return bytes_load(name, built_in[i].begin,
					  (size_t)(built_in[i].end - built_in[i].begin), ram, out,
					  err);
	ret = file_read(name, &bytes, &size, err);
	if (ret)
		return ret;
	ret = bytes_load(name, bytes, size, ram, out, err);
	free(bytes);
	return ret;
}
