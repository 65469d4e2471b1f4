/* SPDX-License-Identifier: BSD-2-Clause */

/* What the library asks of the synthetic guest, and the session's parameters. */

#include <errno.h>
#include <string.h>
#include <tern/tern.h>
#include "bench_side.h"
#include "cli.h"

/* Stop the vCPUs. */
static int vm_pause(void *opaque)
{
	struct side *side = opaque;

	guest_pause(side->guest);
	return 0;
}

/* Run the vCPUs. */
static int vm_resume(void *opaque)
{
	struct side *side = opaque;

	guest_resume(side->guest);
	return 0;
}

/* Write the device state. */
static int vm_save(void *opaque, struct tern_state_writer *w)
{
	struct side *side = opaque;
	uint8_t buf[GUEST_STATE_MAX];

	return tern_state_write(w, buf, guest_save(side->guest, buf));
}

/* Read the device state; why it is refused goes to side->refusal. */
static int vm_load(void *opaque, struct tern_state_reader *r)
{
	struct side *side = opaque;
	size_t len = tern_state_remaining(r);
	uint8_t buf[GUEST_STATE_MAX];
	int ret;

	if (len > sizeof(buf))
		return cli_fail(&side->refusal, -EPROTO,
				"device state of the guest: %zu bytes, at most %zu are possible",
				len, sizeof(buf));
	ret = tern_state_read(r, buf, len);
	return ret ? ret : guest_load(side->guest, buf, len, &side->refusal);
}

/* The callbacks. */
const struct tern_vm_ops *bench_vm_ops(void)
{
	static const struct tern_vm_ops ops = {
		.pause = vm_pause,
		.resume = vm_resume,
		.save = vm_save,
		.load = vm_load,
	};

	return &ops;
}

/* The guest's dirty log. */
static int log_start(void *opaque)
{
	struct side *side = opaque;

	return guest_log_start(side->guest);
}

static void log_stop(void *opaque)
{
	struct side *side = opaque;

	guest_log_stop(side->guest);
}

static int log_sync(void *opaque, unsigned region, uint64_t first, uint64_t nr, uint64_t *bitmap)
{
	struct side *side = opaque;

	guest_log_sync(side->guest, region, first, nr, bitmap);
	return 0;
}

static int log_clear(void *opaque, unsigned region, uint64_t first, uint64_t nr, uint64_t *bitmap)
{
	struct side *side = opaque;

	guest_log_clear(side->guest, region, first, nr, bitmap);
	return 0;
}

const struct tern_dirty_ops *bench_dirty_ops(void)
{
	static const struct tern_dirty_ops ops = {
		.start = log_start,
		.stop = log_stop,
		.sync = log_sync,
		.clear = log_clear,
	};

	return &ops;
}

/* Whether @param means anything to @role. */
static bool param_applies(enum tern_param param, enum tern_role role)
{
	/* The destination's own --timeout is kept by side_wait(): listening is not migrating. */
	return param != TERN_PARAM_TIMEOUT_MS || role == TERN_SOURCE;
}

/* Check and set the parameters; see bench_side.h. */
int bench_apply_params(const struct bench_args *args, enum tern_role role, struct tern_session *s,
		       struct tern_error *err)
{
	for (int i = 0; i < TERN_PARAM_NR; i++) {
		const struct bench_param *p = &args->param[i];
		const struct tern_param_info *info = tern_param_info((enum tern_param)i);
		int ret;

		if (!p->set || !info || !param_applies((enum tern_param)i, role))
			continue;
		if (p->value < info->min || p->value > info->max)
			return cli_fail(
				err, -EINVAL, "--%s %llu: must be from %llu to %llu%s%s", p->option,
				(unsigned long long)p->value, (unsigned long long)info->min,
				(unsigned long long)info->max, *info->unit ? " " : "", info->unit);
		if (i == TERN_PARAM_CHUNK_BYTES && (p->value & (p->value - 1)))
			return cli_fail(err, -EINVAL, "--%s %llu: must be a power of two", p->option,
					(unsigned long long)p->value);
		ret = s ? tern_session_set(s, (enum tern_param)i, p->value) : 0;
		if (ret)
			return cli_fail(err, -EINVAL, "--%s %llu: the library refuses it: %s",
					p->option, (unsigned long long)p->value, strerror(-ret));
	}
	for (int i = 0; s && i < TERN_TEXT_NR; i++)
		if (args->text[i] && tern_session_set_text(s, (enum tern_text)i, args->text[i]))
			return cli_fail(err, -EINVAL, "\"%s\": the library refuses it",
					args->text[i]);
	return 0;
}
