/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_SRC_UTF8_H
#define TERN_SRC_UTF8_H

/*
 * Text that came from outside, or was cut to fit, made fit to be printed and to be put
 * into JSON, whose strings are UTF-8.
 */

#include <stddef.h>

/* utf8_length - bytes of the character at @p, a text that ends with 0; 0: there is none. */
static inline size_t utf8_length(const char *text)
{
	const unsigned char *p = (const unsigned char *)text;
	unsigned low = 0x80, high = 0xbf; /* of the second byte */
	size_t len;

	if (p[0] < 0x80)
		return p[0] ? 1 : 0;
	if (p[0] < 0xc2 || p[0] > 0xf4) /* goes on, is too long, or too large */
		return 0;
	len = p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : 4;
	if (p[0] == 0xe0)
		low = 0xa0; /* else too long */
	else if (p[0] == 0xed)
		high = 0x9f; /* else half of a surrogate pair */
	else if (p[0] == 0xf0)
		low = 0x90; /* else too long */
	else if (p[0] == 0xf4)
		high = 0x8f; /* else too large */
	if (p[1] < low || p[1] > high)
		return 0;
	for (size_t i = 2; i < len; i++)
		if (p[i] < 0x80 || p[i] > 0xbf)
			return 0;
	return len;
}

/* utf8_clean - put '?' in the place of control characters and of what is no UTF-8. */
static inline void utf8_clean(char *text)
{
	while (*text) {
		size_t len = utf8_length(text);

		if (!len || (unsigned char)*text < 0x20 || *text == 0x7f) {
			*text++ = '?';
			continue;
		}
		text += len;
	}
}

#endif
