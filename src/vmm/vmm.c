/* SPDX-License-Identifier: BSD-2-Clause */

/* The process; see vmm.h. */

#include "vmm.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "boot.h"
#include "state.h"
#include "../cli/cli.h"

#define STOP_MS 1000 /* longest that `stop` waits for vCPUs */

static const char *const state_names[] = {
	"running", "paused", "inmigrate", "finish-migrate", "postmigrate", "internal-error",
};
_Static_assert(sizeof(state_names) / sizeof(state_names[0]) == RUN_NR, "one name per state");

const char *vmm_state_name(enum run_state state)
{
	return (unsigned)state < RUN_NR ? state_names[state] : "unknown";
}

void vmm_complain(const char *fmt, ...)
{
	char line[1024];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	fprintf(stderr, "tern-vm: %s\n", line);
}

/* The guest cannot go on; a vCPU's thread. */
static void on_crash(void *opaque, const char *why)
{
	struct vmm *v = opaque;

	pthread_mutex_lock(&v->lock);
	if (v->state == RUN_RUNNING)
		v->state = RUN_INTERNAL_ERROR;
	pthread_mutex_unlock(&v->lock);
	vmm_complain("%s", why);
	events_post(&v->events, "STOP", NULL);
}

/* A vCPU's thread. */
static void on_ring_full(void *opaque, unsigned index)
{
	struct vmm *v = opaque;

	migration_ring_full(&v->migration, index);
}

/* Make a machine, ready to be booted or loaded. */
static int machine_make(struct vmm *v, struct tern_error *err)
{
	const struct machine_config cfg = {
		.mem = v->args.mem,
		.nr_vcpus = v->args.vcpus,
		.backing = v->args.backing,
		.dirty = v->args.dirty,
		.ring_entries = v->args.ring_entries,
		.serial_fd = STDOUT_FILENO,
		.crashed = on_crash,
		.ring_full = on_ring_full,
		.opaque = v,
	};
	int ret = machine_new(&cfg, &v->machine, err);

	if (!ret)
		ret = state_prepare(v->machine, err);
	if (!ret)
		ret = machine_start(v->machine, err);
	return ret;
}

int vmm_init(struct vmm *v, const struct args *args, struct tern_error *err)
{
	int ret;

	*v = (struct vmm){ .args = *args, .state = RUN_PAUSED };
	pthread_mutex_init(&v->lock, NULL);
	migration_init(&v->migration, v);
	ret = events_init(&v->events);
	if (ret)
		return cli_fail(err, ret, "cannot make an eventfd: %s", strerror(-ret));
	ret = tern_blockers_new(&v->blockers);
	if (ret)
		return cli_fail(err, ret, "cannot make a list of migration blockers: %s",
				strerror(-ret));
	if (args->incoming)
		v->state = RUN_INMIGRATE;
	ret = machine_make(v, err);
	if (!ret && !args->incoming)
		ret = boot(v->machine, args->guest, args->guest_args, err);
	return ret;
}

void vmm_fini(struct vmm *v)
{
	if (v->machine) /* lest pausing it waits for whoever should read its console */
		serial_end(&v->machine->serial);
	migration_fini(&v->migration);
	tern_blockers_delete(&v->blockers);
	machine_delete(&v->machine);
	if (v->events.list)
		events_fini(&v->events);
	pthread_mutex_destroy(&v->lock);
}

int vmm_renew(struct vmm *v, struct tern_error *err)
{
	machine_delete(&v->machine);
	pthread_mutex_lock(&v->lock);
	v->state = RUN_INMIGRATE;
	v->in_doubt = false;
	pthread_mutex_unlock(&v->lock);
	return machine_make(v, err);
}

enum run_state vmm_state(struct vmm *v)
{
	pthread_mutex_lock(&v->lock);
	enum run_state state = v->state;

	pthread_mutex_unlock(&v->lock);
	return state;
}

/* What an operator has to know before a guest in doubt may run here. */
static int doubt(struct tern_error *err)
{
	return cli_fail(err, -EBUSY,
			"the destination was told to run the guest and did not answer; if you know "
			"that it does not run there, continue it with \"force\": true");
}

bool vmm_in_doubt(struct vmm *v, struct tern_error *err)
{
	pthread_mutex_lock(&v->lock);
	bool in_doubt = v->in_doubt;

	pthread_mutex_unlock(&v->lock);
	if (in_doubt)
		doubt(err);
	return in_doubt;
}

int vmm_stop(struct vmm *v, struct tern_error *err)
{
	enum run_state before;

	pthread_mutex_lock(&v->lock);
	before = v->state;
	if (before == RUN_RUNNING)
		v->state = RUN_PAUSED;
	pthread_mutex_unlock(&v->lock);
	if (before == RUN_INMIGRATE || before == RUN_FINISH_MIGRATE)
		return cli_fail(err, -EBUSY, "the guest is being moved (%s); wait for the end",
				vmm_state_name(before));
	if (before != RUN_RUNNING)
		return 0;
	if (!machine_pause(v->machine, STOP_MS))
		vmm_complain("stop: a vCPU waits for a page, and stops when it has it");
	events_post(&v->events, "STOP", NULL);
	return 0;
}

int vmm_cont(struct vmm *v, bool force, struct tern_error *err)
{
	/* Postcopy that waits for a destination of which nobody knows whether it runs the guest. */
	bool in_doubt = migration_in_doubt(&v->migration), resumed = false;
	int ret = 0;

	if (in_doubt && force)
		migration_fini(&v->migration);
	pthread_mutex_lock(&v->lock);
	switch (v->state) {
	case RUN_RUNNING:
		break;
	case RUN_PAUSED:
		if (v->in_doubt && !force) {
			ret = doubt(err);
			break;
		}
		ret = machine_resume(v->machine);
		resumed = !ret;
		v->state = resumed ? RUN_RUNNING : RUN_INTERNAL_ERROR;
		if (resumed)
			v->in_doubt = false;
		break;
	default:
		if (in_doubt) {
			ret = doubt(err);
			break;
		}
		ret = cli_fail(err, -EBUSY, "the guest cannot be continued here: its state is %s",
			       vmm_state_name(v->state));
	}
	pthread_mutex_unlock(&v->lock);
	if (resumed)
		events_post(&v->events, "RESUME", NULL);
	return cli_fail(ret ? err : NULL, ret, "the guest has crashed");
}
