/* SPDX-License-Identifier: BSD-2-Clause */

/* The command line; see args.h. */

#include "args.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>
#include <tern/session.h>
#include "bootinfo.h"
#include "image.h"
#include "../cli/cli.h"
#include "../cli/parse.h"

enum {
	OPT_MEM = 1,
	OPT_VCPUS,
	OPT_BACKING,
	OPT_DIRTY,
	OPT_GUEST,
	OPT_GUEST_ARGS,
	OPT_CONTROL,
	OPT_INCOMING,
	OPT_HELP,
};

static const struct option options[] = {
	{ "mem", required_argument, NULL, OPT_MEM },
	{ "vcpus", required_argument, NULL, OPT_VCPUS },
	{ "backing", required_argument, NULL, OPT_BACKING },
	{ "dirty", required_argument, NULL, OPT_DIRTY },
	{ "guest", required_argument, NULL, OPT_GUEST },
	{ "guest-args", required_argument, NULL, OPT_GUEST_ARGS },
	{ "control", required_argument, NULL, OPT_CONTROL },
	{ "incoming", required_argument, NULL, OPT_INCOMING },
	{ "help", no_argument, NULL, OPT_HELP },
	{ 0 },
};

void args_usage(void)
{
	printf("usage: tern-vm run [OPTIONS]\n\n"
	       "Run a small guest under KVM, and migrate it with tern.\n\n"
	       "  --mem SIZE                     guest RAM, a multiple of 2M (128M)\n"
	       "  --vcpus N                      1 to %u (1)\n"
	       "  --backing memfd|anon|hugetlb   what RAM is made of (memfd)\n"
	       "  --dirty log|ring[,N]|uffd      how writes are tracked: KVM's dirty log, its\n"
	       "                                 dirty rings of N entries (4096), userfaultfd "
	       "(log)\n"
	       "  --guest NAME|FILE              %s, or an image (counter)\n"
	       "  --guest-args TEXT              options for the guest: \"NAME=VALUE …\"\n"
	       "  --control PATH                 socket for commands, as QMP's\n"
	       "  --incoming URI|defer           wait for a guest instead of starting one\n\n"
	       "See tern-vm(1).\n",
	       BOOT_VCPUS_MAX, image_names());
}

static int parse_mem(const char *text, struct args *a, struct tern_error *err)
{
	int ret = parse_size(text, &a->mem);

	if (ret || a->mem < RAM_MIN || a->mem > RAM_MAX || a->mem % RAM_ALIGN)
		return cli_fail(err, -EINVAL,
				"--mem %s: must be a multiple of 2M from %lluM to %lluG", text,
				RAM_MIN >> 20, RAM_MAX >> 30);
	return 0;
}

static int parse_vcpus(const char *text, struct args *a, struct tern_error *err)
{
	const char *end;
	uint64_t n;

	if (parse_digits(text, &n, &end) || *end || !n || n > BOOT_VCPUS_MAX)
		return cli_fail(err, -EINVAL, "--vcpus %s: must be a number from 1 to %u", text,
				BOOT_VCPUS_MAX);
	a->vcpus = (unsigned)n;
	return 0;
}

static int parse_backing(const char *text, struct args *a, struct tern_error *err)
{
	for (int i = 0; i < RAM_BACKING_NR; i++)
		if (!strcmp(text, ram_backing_name((enum ram_backing)i))) {
			a->backing = (enum ram_backing)i;
			return 0;
		}
	return cli_fail(err, -EINVAL, "--backing %s: must be memfd, anon or hugetlb", text);
}

static int parse_dirty(const char *text, struct args *a, struct tern_error *err)
{
	const char *end = "";
	uint64_t n = MACHINE_RING_ENTRIES;

	if (!strcmp(text, "log")) {
		a->dirty = MACHINE_DIRTY_LOG;
	} else if (!strcmp(text, "uffd")) {
		a->dirty = MACHINE_DIRTY_NONE;
	} else if (!strcmp(text, "ring") ||
		   (!strncmp(text, "ring,", 5) && !parse_digits(text + 5, &n, &end) && !*end &&
		    n <= UINT32_MAX)) {
		a->dirty = MACHINE_DIRTY_RING;
		a->ring_entries = (unsigned)n;
	} else {
		return cli_fail(err, -EINVAL, "--dirty %s: must be log, ring, ring,ENTRIES or uffd",
				text);
	}
	return 0;
}

static int parse_incoming(const char *text, struct args *a, struct tern_error *err)
{
	a->incoming = text;
	return strcmp(text, ARGS_INCOMING_DEFER) ? tern_uri_check(text, err) : 0;
}

/* One option with its value. */
static int parse_option(int opt, const char *value, struct args *a, struct tern_error *err)
{
	switch (opt) {
	case OPT_MEM:
		return parse_mem(value, a, err);
	case OPT_VCPUS:
		return parse_vcpus(value, a, err);
	case OPT_BACKING:
		return parse_backing(value, a, err);
	case OPT_DIRTY:
		return parse_dirty(value, a, err);
	case OPT_GUEST:
		a->guest = value;
		return 0;
	case OPT_GUEST_ARGS:
		a->guest_args = value;
		return 0;
	case OPT_CONTROL:
		a->control = value;
		return 0;
	case OPT_INCOMING:
		return parse_incoming(value, a, err);
	default:
		a->help = true;
		return 0;
	}
}

int args_parse(int argc, char **argv, struct args *out, struct tern_error *err)
{
	struct args a = { .mem = 128u << 20, .vcpus = 1, .guest = "counter", .guest_args = "" };
	int opt, ret = 0;

	opterr = 0;
	optind = 1;
	while (!ret && (opt = getopt_long(argc, argv, ":", options, NULL)) != -1) {
		if (opt == '?')
			ret = cli_fail(err, -EINVAL,
				       "%s: unknown option; tern-vm run --help lists them",
				       argv[optind - 1]);
		else if (opt == ':')
			ret = cli_fail(err, -EINVAL, "%s: needs a value", argv[optind - 1]);
		else
			ret = parse_option(opt, optarg, &a, err);
	}
	if (!ret && optind < argc)
		ret = cli_fail(err, -EINVAL, "%s: is no option; tern-vm run --help lists them",
			       argv[optind]);
	if (!ret && !a.help && a.incoming && !strcmp(a.incoming, ARGS_INCOMING_DEFER) && !a.control)
		ret = cli_fail(err, -EINVAL,
			       "--incoming defer: needs --control, or no URI can ever come");
	if (!ret)
		*out = a;
	return ret;
}
