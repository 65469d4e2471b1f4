/* SPDX-License-Identifier: BSD-2-Clause */
#include "runs.h"

#include <errno.h>

#include "bitmap.h"

#define NUMBER_MAX 10u /* bytes of a number */

static uint8_t *put_number(uint8_t *p, uint64_t v)
{
	while (v >= 0x80) {
		*p++ = (uint8_t)(v | 0x80);
		v >>= 7;
	}
	*p++ = (uint8_t)v;
	return p;
}

uint64_t runs_put(const uint64_t *map, uint64_t at, uint64_t end, uint8_t *buf, size_t cap,
		  size_t *len)
{
	uint8_t *p = buf;

	while ((size_t)(p - buf) + 2 * NUMBER_MAX <= cap) {
		uint64_t first = bitmap_next_set(map, end, at);
		uint64_t behind = bitmap_next_clear(map, end, first);

		if (first >= end) {
			at = end;
			break;
		}
		p = put_number(p, first - at);
		p = put_number(p, behind - first);
		at = behind;
	}
	*len = (size_t)(p - buf);
	return at;
}

/* Take a number.  0 or -EPROTO. */
static int take_number(struct runs *r, uint64_t *out)
{
	uint64_t v = 0;

	for (unsigned shift = 0; r->left && shift < 63; shift += 7) {
		uint8_t b = *r->p++;

		r->left--;
		v |= (uint64_t)(b & 0x7f) << shift;
		if (!(b & 0x80)) {
			*out = v;
			return 0;
		}
	}
	return -EPROTO;
}

int runs_next(struct runs *r, uint64_t *first, uint64_t *nr)
{
	uint64_t skip, n;

	if (!r->left)
		return 0;
	if (take_number(r, &skip) || take_number(r, &n))
		return -EPROTO;
	if (!n || skip > r->end - r->at || n > r->end - r->at - skip)
		return -EPROTO;
	*first = r->at + skip;
	*nr = n;
	r->at += skip + n;
	return 1;
}
