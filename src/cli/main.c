/* SPDX-License-Identifier: BSD-2-Clause */

/* tern: the command.  A table of subcommands; each has a file of its own. */

#include <stdio.h>
#include <string.h>
#include <tern/session.h>
#include "cli.h"

struct subcommand {
	const char *name;
	int (*run)(int argc, char **argv); /* argv[0] is the subcommand */
	const char *summary;
};

static int cmd_help(int argc, char **argv);
static int cmd_version(int argc, char **argv);

static const struct subcommand subcommands[] = {
	{ "bench", cmd_bench, "migrate a synthetic guest and verify every page" },
	{ "info", cmd_info, "what this host can do, and what is in the way" },
	{ "help", cmd_help, "this text" },
	{ "version", cmd_version, "the version" },
};

#define NR_SUBCOMMANDS (sizeof(subcommands) / sizeof(subcommands[0]))

/* `tern help`. */
static int cmd_help(int argc, char **argv)
{
	printf("usage: tern COMMAND [OPTIONS]\n\nLive migration of virtual machines.\n\n");
	for (unsigned i = 0; i < NR_SUBCOMMANDS; i++)
		printf("  %-8s  %s\n", subcommands[i].name, subcommands[i].summary);
	printf("\n`tern COMMAND --help` tells more.  See tern(1).\n");
	return CLI_EXIT_OK;
}

/* `tern version`. */
static int cmd_version(int argc, char **argv)
{
	printf("tern %s\n", tern_version());
	return CLI_EXIT_OK;
}

/* Find the subcommand; "--help" and "--version" are accepted for two of them. */
static const struct subcommand *find(const char *name)
{
	if (!strcmp(name, "--help") || !strcmp(name, "-h"))
		name = "help";
	if (!strcmp(name, "--version") || !strcmp(name, "-V"))
		name = "version";
	for (unsigned i = 0; i < NR_SUBCOMMANDS; i++)
		if (!strcmp(name, subcommands[i].name))
			return &subcommands[i];
	return NULL;
}

/* Find the subcommand and run it. */
int main(int argc, char **argv)
{
	const struct subcommand *cmd;

	if (argc < 2) {
		cli_complain("no command; tern help lists them");
		return CLI_EXIT_USAGE;
	}
	cmd = find(argv[1]);
	if (!cmd) {
		cli_complain("unknown command \"%s\"; tern help lists them", argv[1]);
		return CLI_EXIT_USAGE;
	}
	return cmd->run(argc - 1, argv + 1);
}
