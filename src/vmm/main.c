/* SPDX-License-Identifier: BSD-2-Clause */

/* tern-vm: a small VMM on KVM whose guests migrate with libtern. */

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <tern/session.h>
#include "args.h"
#include "boot.h"
#include "machine.h"
#include "../cli/cli.h"

/* `tern-vm run`. */
static int cmd_run(int argc, char **argv)
{
	struct tern_error err = { 0 };
	struct machine *m = NULL;
	struct args args;
	sigset_t set;
	int sig, ret;

	if (args_parse(argc, argv, &args, &err)) {
		fprintf(stderr, "tern-vm: %s\n", err.message);
		return CLI_EXIT_USAGE;
	}
	if (args.help) {
		args_usage();
		return CLI_EXIT_OK;
	}
	struct machine_config cfg = {
		.mem = args.mem,
		.nr_vcpus = args.vcpus,
		.backing = args.backing,
		.serial_fd = STDOUT_FILENO,
	};

	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigprocmask(SIG_BLOCK, &set, NULL);
	ret = machine_new(&cfg, &m, &err);
	if (!ret)
		ret = boot(m, args.guest, args.guest_args, &err);
	if (!ret)
		ret = machine_start(m, &err);
	if (!ret) {
		machine_resume(m);
		sigwait(&set, &sig);
		machine_pause(m, -1);
	} else {
		fprintf(stderr, "tern-vm: %s\n", err.message);
	}
	machine_delete(&m);
	return ret ? CLI_EXIT_FAILED : CLI_EXIT_OK;
}

/* `tern-vm help`. */
static int cmd_help(int argc, char **argv)
{
	args_usage();
	return CLI_EXIT_OK;
}

/* `tern-vm version`. */
static int cmd_version(int argc, char **argv)
{
	printf("tern-vm %s\n", tern_version());
	return CLI_EXIT_OK;
}

static const struct {
	const char *name, *alias;
	int (*run)(int argc, char **argv); /* argv[0] is the subcommand */
} subcommands[] = {
	{ "run", "run", cmd_run },
	{ "help", "--help", cmd_help },
	{ "version", "--version", cmd_version },
};

int main(int argc, char **argv)
{
	for (unsigned i = 0; argc > 1 && i < sizeof(subcommands) / sizeof(subcommands[0]); i++)
		if (!strcmp(argv[1], subcommands[i].name) || !strcmp(argv[1], subcommands[i].alias))
			return subcommands[i].run(argc - 1, argv + 1);
	if (argc > 1)
		fprintf(stderr, "tern-vm: unknown command \"%s\"; tern-vm help tells more\n",
			argv[1]);
	else
		fprintf(stderr, "tern-vm: no command; tern-vm help tells more\n");
	return CLI_EXIT_USAGE;
}
