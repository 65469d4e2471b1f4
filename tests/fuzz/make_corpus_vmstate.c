/* SPDX-License-Identifier: BSD-2-Clause */

/* Seeds of the target vmstate: what its rules want, and what they do not. */

#include <stdlib.h>

#include "../../src/vmm/section.h"
#include "make_corpus.h"

/* One section with @len bytes that count up. */
static unsigned add(struct section_buf *b, const char *name, uint32_t version, uint32_t instance,
		    size_t len)
{
	uint8_t data[64];
	size_t at;

	for (size_t i = 0; i < sizeof(data); i++)
		data[i] = (uint8_t)i;
	section_open(b, name, version, instance, &at);
	section_put(b, data, len);
	section_close(b, at);
	return 1;
}

static void write_seed(struct seed *s, const char *dir, struct section_buf *b, unsigned nr,
		       size_t cut, const char *name)
{
	section_count(b, nr);
	seed_add(s, b->p, b->len - cut);
	seed_write(s, dir, "vmstate", name);
	b->len = 0;
}

/* All that the rules want. */
static unsigned add_all(struct section_buf *b)
{
	section_begin(b);
	return add(b, "machine", 1, 0, 16) + add(b, "vcpu-regs", 1, 0, 8) +
	       add(b, "vcpu-regs", 1, 1, 8) + add(b, "vcpu-msrs", 1, 0, 24) +
	       add(b, "vcpu-msrs", 1, 1, 0);
}

void make_vmstate(struct seed *s, const char *dir)
{
	struct section_buf b = { 0 };
	unsigned nr;

	write_seed(s, dir, &b, add_all(&b), 0, "full-all");
	write_seed(s, dir, &b, add_all(&b), 1, "cut-in-section");
	write_seed(s, dir, &b, add_all(&b), 40, "cut-in-head");
	write_seed(s, dir, &b, add_all(&b) + 1, 0, "one-too-few");
	nr = add_all(&b);
	nr += add(&b, "vcpu-tsc", 1, 0, 16);
	write_seed(s, dir, &b, nr, 0, "unknown");
	nr = add_all(&b);
	nr += add(&b, "machine", 2, 0, 16);
	write_seed(s, dir, &b, nr, 0, "version");
	nr = add_all(&b);
	nr += add(&b, "machine", 1, 0, 16);
	write_seed(s, dir, &b, nr, 0, "twice");
	nr = add_all(&b);
	nr += add(&b, "vcpu-regs", 1, 2, 8);
	write_seed(s, dir, &b, nr, 0, "instance");
	section_begin(&b);
	write_seed(s, dir, &b, 0, 0, "none");
	free(b.p);
}
