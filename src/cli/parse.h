/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_CLI_PARSE_H
#define TERN_CLI_PARSE_H

/* Numbers as users type them.  None of these accepts a sign or blanks. */

#include <stdint.h>

#define PARSE_MS_MAX 86400000u /* a day */

/*
 * parse_digits - read leading decimal digits; *@end is behind them.
 *
 * Returns 0, -EINVAL if there are none, -ERANGE if they do not fit.
 */
int parse_digits(const char *text, uint64_t *out, const char **end);

/*
 * parse_size - read "4096", "512M", "2G" … (K M G T, powers of 1024) as bytes.
 *
 * Returns 0, -EINVAL for anything else, -ERANGE if it does not fit.
 */
int parse_size(const char *text, uint64_t *out);

/*
 * parse_seconds - read "10" or "0.5" as milliseconds; further decimals are cut.
 *
 * Returns 0, -EINVAL for anything else, -ERANGE above a day.
 */
int parse_seconds(const char *text, uint64_t *out);

#endif
