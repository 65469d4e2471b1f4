/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_TESTS_FUZZ_MAKE_CORPUS_H
#define TERN_TESTS_FUZZ_MAKE_CORPUS_H

/* What the makers of seeds share. */

#include <stddef.h>
#include <stdint.h>

/* A seed in the making. */
struct seed {
	uint8_t bytes[65536];
	size_t len;
};

void seed_add(struct seed *s, const void *p, size_t len);

/* seed_write - write @s to @dir/@target/@name and empty it. */
void seed_write(struct seed *s, const char *dir, const char *target, const char *name);

/* make_corpus_vmstate.c */
void make_vmstate(struct seed *s, const char *dir);

/* make_corpus_rdma.c: seeds of the targets rdma and rdma_frames. */
void make_rdma(struct seed *s, const char *dir);
void make_rdma_frames(struct seed *s, const char *dir);

#endif
