/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_CLI_INFO_H
#define TERN_CLI_INFO_H

/*
 * The facts that `tern info` prints.
 *
 * A fact belongs to a section and has a value twice: as JSON for programs and as
 * a short text for people.  A fact that is in the way of something has advice:
 * one imperative sentence.
 */

#include <jansson.h>

struct info {
	json_t *facts; /* array of { section, key, value, text, todo } */
};

/*
 * info_add - add a fact; takes over the reference to @value.
 *
 * @section and @key name it in JSON.  @todo: what to do about it, or NULL.
 */
void info_add(struct info *info, const char *section, const char *key, json_t *value,
	      const char *todo, const char *text, ...) __attribute__((format(printf, 6, 7)));

/*
 * info_line - a line more about the fact @key, for people; its advice is in JSON too.
 *
 * Not a fact of its own: @key must be one, or begin with one.
 */
void info_line(struct info *info, const char *section, const char *key, const char *todo,
	       const char *text, ...) __attribute__((format(printf, 5, 6)));

/* The collectors, one per subject. */
void info_kernel(struct info *info);
void info_userfaultfd(struct info *info);
void info_kvm(struct info *info);
void info_cpus(struct info *info);
void info_memory(struct info *info);
void info_transports(struct info *info);
void info_rdma(struct info *info);

#endif
