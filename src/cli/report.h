/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_CLI_REPORT_H
#define TERN_CLI_REPORT_H

/* The result of `tern bench`: one JSON object, and the same for people. */

#include <jansson.h>
#include <stdio.h>
#include "bench_args.h"

/*
 * report_make - put both sides' results together.
 *
 * @source and @destination are side_result() objects or NULL; references are
 * not taken.  All keys of docs/design.md section 8 are there, null where they
 * are not known.  Returns a new object.
 */
json_t *report_make(const struct bench_args *args, json_t *source, json_t *destination);

/* report_print - the summary, as a table of about 20 lines. */
void report_print(FILE *out, const json_t *report);

/*
 * report_write - write the JSON to @path ("-": stdout).  0 or -errno with *err.
 */
int report_write(const char *path, const json_t *report, struct tern_error *err);

#endif
