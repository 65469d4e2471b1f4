/* SPDX-License-Identifier: BSD-2-Clause */
#include "vmstate.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int tern_state_write(struct tern_state_writer *w, const void *buf, size_t len)
{
	if (len > w->max || w->len > w->max - len)
		return -EFBIG;
	if (len > w->cap - w->len) {
		size_t cap = w->cap ? w->cap : 4096;

		while (cap - w->len < len)
			cap *= 2;
		uint8_t *p = realloc(w->buf, cap);

		if (!p)
			return -ENOMEM;
		w->buf = p;
		w->cap = cap;
	}
	if (len)
		memcpy(w->buf + w->len, buf, len);
	w->len += len;
	return 0;
}

int tern_state_read(struct tern_state_reader *r, void *buf, size_t len)
{
	if (len > r->len - r->at)
		return -ENODATA;
	if (len)
		memcpy(buf, r->buf + r->at, len);
	r->at += len;
	return 0;
}

size_t tern_state_remaining(const struct tern_state_reader *r)
{
	return r->len - r->at;
}

void vmstate_fini(struct tern_state_writer *w)
{
	free(w->buf);
	memset(w, 0, sizeof(*w));
}
