/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_VMM_ARGS_H
#define TERN_VMM_ARGS_H

/* The command line of `tern-vm run`. */

#include <stdbool.h>
#include <stdint.h>
#include <tern/error.h>
#include "machine.h"
#include "ram.h"

/* --incoming: wait for the URI by `migrate-incoming`. */
#define ARGS_INCOMING_DEFER "defer"

struct args {
	bool help;
	uint64_t mem; /* bytes */
	unsigned vcpus;
	enum ram_backing backing;
	enum machine_dirty dirty;
	unsigned ring_entries; /* of each vCPU's dirty ring */
	const char *guest, *guest_args;
	const char *control; /* path of the control socket; NULL: none */
	const char *incoming; /* URI or ARGS_INCOMING_DEFER; NULL: start the guest */
};

/*
 * args_parse - read what follows "run" (argv[0]).  Texts are not copied.
 *
 * 0, or -EINVAL with *@err, a sentence that begins with the option.
 */
int args_parse(int argc, char **argv, struct args *out, struct tern_error *err);

/* args_usage - print the options on stdout. */
void args_usage(void);

#endif
