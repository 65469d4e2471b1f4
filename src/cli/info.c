/* SPDX-License-Identifier: BSD-2-Clause */
#define _GNU_SOURCE
#include "info.h"

#include <getopt.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include "cli.h"

/*
 * tern info: what this host can do, and what is in the way.
 *
 * The collectors (info_kernel.c, info_host.c, info_rdma.c) ask the machine and add facts;
 * this file prints them.  Asking changes nothing on the host.
 */

/* fact_text - member @name of a fact; "" if it has none. */
static const char *fact_text(const json_t *fact, const char *name)
{
	const char *s = json_string_value(json_object_get(fact, name));

	return s ? s : "";
}

/* info_print_human - a line per fact, sections apart, advice below what it concerns. */
static void info_print_human(const struct info *info)
{
	const char *section = "", *key = "";
	json_t *fact;
	size_t i;

	json_array_foreach(info->facts, i, fact)
	{
		bool same = !strcmp(section, fact_text(fact, "section"));
		bool again = same && !strcmp(key, fact_text(fact, "key"));

		section = fact_text(fact, "section");
		key = fact_text(fact, "key");
		printf("%-12s  %-18s  %s\n", same ? "" : section, again ? "" : key,
		       fact_text(fact, "text"));
		if (*fact_text(fact, "todo"))
			printf("%-12s  %-18s    -> %s\n", "", "", fact_text(fact, "todo"));
	}
}

/*
 * info_to_json - { section: { key: value, … }, …, "todo": [{ "fact", "do" }, …] }.
 *
 * NULL: no memory.
 */
static json_t *info_to_json(const struct info *info)
{
	json_t *root = json_object(), *todo = json_array(), *fact;
	size_t i;

	json_array_foreach(info->facts, i, fact)
	{
		const char *section = fact_text(fact, "section"), *key = fact_text(fact, "key");
		json_t *group = json_object_get(root, section);

		if (!group) {
			json_object_set_new(root, section, json_object());
			group = json_object_get(root, section);
		}
		if (json_is_true(json_object_get(fact, "is_fact")))
			json_object_set(group, key, json_object_get(fact, "value"));
		if (*fact_text(fact, "todo"))
			json_array_append_new(todo, json_pack("{ss++, ss}", "fact", section, ".",
							      key, "do", fact_text(fact, "todo")));
	}
	if (json_object_set_new(root, "todo", todo)) {
		json_decref(root);
		return NULL;
	}
	return root;
}

/* info_print_json - to stdout.  An exit code. */
static int info_print_json(const struct info *info)
{
	json_t *root = info_to_json(info);
	int ret = root ? json_dumpf(root, stdout, JSON_INDENT(2)) : -1;

	json_decref(root);
	if (ret) {
		cli_complain("cannot print the facts as JSON: out of memory");
		return CLI_EXIT_FAILED;
	}
	putchar('\n');
	return CLI_EXIT_OK;
}

/* info_usage - `tern info --help`. */
static void info_usage(void)
{
	printf("usage: tern info [--json]\n\n"
	       "Tells what this host can do for live migration, and what is in the way.\n\n"
	       "  --json  print JSON\n"
	       "  --help  this text\n");
}

/* info_options - parse the arguments.  -1: go on; else an exit code. */
static int info_options(int argc, char **argv, bool *json)
{
	static const struct option options[] = {
		{ "json", no_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	int c;

	*json = false;
	opterr = 0;
	optind = 0;
	while ((c = getopt_long(argc, argv, "h", options, NULL)) != -1)
		switch (c) {
		case 'j':
			*json = true;
			break;
		case 'h':
			info_usage();
			return CLI_EXIT_OK;
		default:
			cli_complain("info: unknown option \"%s\"; tern info --help lists them",
				     argv[optind - 1]);
			return CLI_EXIT_USAGE;
		}
	if (optind < argc) {
		cli_complain("info: unexpected argument \"%s\"; it takes options only",
			     argv[optind]);
		return CLI_EXIT_USAGE;
	}
	return -1;
}

int cmd_info(int argc, char **argv)
{
	struct info info;
	bool json;
	int ret = info_options(argc, argv, &json);

	if (ret >= 0)
		return ret;
	info.facts = json_array();
	if (!info.facts) {
		cli_complain("cannot collect facts: out of memory");
		return CLI_EXIT_FAILED;
	}
	info_kernel(&info);
	info_userfaultfd(&info);
	info_kvm(&info);
	info_cpus(&info);
	info_memory(&info);
	info_transports(&info);
	info_rdma(&info);
	ret = CLI_EXIT_OK;
	if (json)
		ret = info_print_json(&info);
	else
		info_print_human(&info);
	json_decref(info.facts);
	return ret;
}
