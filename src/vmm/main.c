/* SPDX-License-Identifier: BSD-2-Clause */

/* tern-vm: a small VMM on KVM whose guests migrate with libtern. */

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <tern/session.h>
#include "args.h"
#include "qmp.h"
#include "vmm.h"
#include "../cli/cli.h"

/* Wait for a guest, or run ours. */
static int begin(struct vmm *v, struct tern_error *err)
{
	if (!v->args.incoming)
		return vmm_cont(v, false, err);
	if (!strcmp(v->args.incoming, ARGS_INCOMING_DEFER))
		return 0;
	return migration_listen(&v->migration, v->args.incoming, err);
}

/* Run a machine until the end. */
static int run(const struct args *args, struct tern_error *err)
{
	struct vmm v;
	struct qmp q;
	int ret = vmm_init(&v, args, err);

	if (ret) {
		vmm_fini(&v);
		return ret;
	}
	ret = qmp_open(&q, &v, args->control, err);
	if (!ret)
		ret = begin(&v, err);
	if (!ret)
		ret = qmp_serve(&q, err);
	qmp_close(&q);
	if (migration_must_stay(&v.migration)) {
		/* The other side might never answer, and a vCPU may wait for its pages. */
		vmm_complain("ended in the middle of postcopy: the guest is lost");
		_exit(CLI_EXIT_FAILED);
	}
	vmm_fini(&v);
	return ret;
}

/* `tern-vm run`. */
static int cmd_run(int argc, char **argv)
{
	struct tern_error err = { 0 };
	struct args args;
	sigset_t set;

	if (args_parse(argc, argv, &args, &err)) {
		vmm_complain("%s", err.message);
		return CLI_EXIT_USAGE;
	}
	if (args.help) {
		args_usage();
		return CLI_EXIT_OK;
	}
	/* Before any thread is there: all of them inherit it. */
	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigprocmask(SIG_BLOCK, &set, NULL);
	/* A guest does not end because nobody looks at its console any more. */
	signal(SIGPIPE, SIG_IGN);
	if (run(&args, &err)) {
		vmm_complain("%s", err.message);
		return CLI_EXIT_FAILED;
	}
	return CLI_EXIT_OK;
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
		vmm_complain("unknown command \"%s\"; tern-vm help tells more", argv[1]);
	else
		vmm_complain("no command; tern-vm help tells more");
	return CLI_EXIT_USAGE;
}
