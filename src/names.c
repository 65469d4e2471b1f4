/* SPDX-License-Identifier: BSD-2-Clause */
/* Names of public enums, the parameter table and the version. */
#include <errno.h>
#include <stddef.h>
#include <tern/session.h>
#include <tern/stats.h>

#include "faults.h"
#include "params.h"
#include "transport.h"

static const char *const outcome_names[] = {
	[TERN_OUTCOME_NONE] = "none",
	[TERN_OUTCOME_SOURCE] = "source",
	[TERN_OUTCOME_DESTINATION] = "destination",
	[TERN_OUTCOME_UNKNOWN] = "unknown",
	[TERN_OUTCOME_NEITHER] = "neither",
};

static const char *const provider_names[] = {
	[TERN_DIRTY_AUTO] = "auto",
	[TERN_DIRTY_NONE] = "none",
	[TERN_DIRTY_UFFD_WP_ASYNC] = "uffd-wp-async",
	[TERN_DIRTY_UFFD_WP_SYNC] = "uffd-wp-sync",
	[TERN_DIRTY_CALLBACKS] = "callbacks",
	[TERN_DIRTY_KVM_LOG] = "kvm-log",
	[TERN_DIRTY_KVM_RING] = "kvm-ring",
};

static const char *const mode_names[] = {
	[TERN_MODE_PRECOPY] = "precopy",
	[TERN_MODE_POSTCOPY] = "postcopy",
	[TERN_MODE_HYBRID] = "hybrid",
};

static const char *const ledger_names[] = {
	[TERN_LEDGER_PAUSE] = "pause",
	[TERN_LEDGER_PRE_SWITCHOVER] = "pre_switchover",
	[TERN_LEDGER_LAST_SYNC] = "last_sync",
	[TERN_LEDGER_LAST_PAGES] = "last_pages",
	[TERN_LEDGER_STATE_SAVE] = "state_save",
	[TERN_LEDGER_STATE_TRANSFER] = "state_transfer",
	[TERN_LEDGER_STATE_LOAD] = "state_load",
	[TERN_LEDGER_READY_GO] = "ready_go",
	[TERN_LEDGER_RESUME] = "resume",
};

static const struct tern_param_info params[] = {
	[TERN_PARAM_CHANNELS] = { "channels", "", 0, TRANSPORT_CHANNELS_MAX, 0 },
	[TERN_PARAM_CHUNK_BYTES] = { "chunk", "bytes", 64 << 10, 64 << 20, 4 << 20 },
	[TERN_PARAM_STRIPE_BYTES] = { "stripe", "bytes", 256 << 10, 1 << 30, 4 << 20 },
	[TERN_PARAM_DOWNTIME_LIMIT_MS] = { "downtime-limit", "ms", 1, 2000000, 300 },
	[TERN_PARAM_MAX_BANDWIDTH] = { "max-bandwidth", "bytes/s", 0, UINT64_MAX, 0 },
	[TERN_PARAM_PEER_TIMEOUT_MS] = { "peer-timeout", "ms", 100, 3600000, 5000 },
	[TERN_PARAM_TIMEOUT_MS] = { "timeout", "ms", 0, 1000ull * 86400 * 365, 0 },
	[TERN_PARAM_ZEROCOPY] = { "zero-copy-send", "", 0, 1, 0 },
	[TERN_PARAM_DIRTY_PROVIDER] = { "dirty-provider", "", 0, TERN_DIRTY_NR - 1,
					TERN_DIRTY_AUTO },
	[TERN_PARAM_STATE_MAX] = { "state-max", "bytes", 0, 1ull << 32, 256 << 20 },
	[TERN_PARAM_PIN] = { "pin", "", 0, TERN_PIN_NR - 1, TERN_PIN_PIPELINED },
	[TERN_PARAM_LOCK_BUDGET] = { "lock-budget", "bytes", 0, UINT64_MAX, 0 },
	[TERN_PARAM_WINDOWS] = { "windows", "", 0, 1, 1 },
	[TERN_PARAM_MODE] = { "mode", "", 0, TERN_MODE_NR - 1, TERN_MODE_PRECOPY },
	[TERN_PARAM_PRECOPY_ROUNDS] = { "precopy-rounds", "", 0, 1000, 1 },
	[TERN_PARAM_MAX_POSTCOPY_BANDWIDTH] = { "max-postcopy-bandwidth", "bytes/s", 0,
						UINT64_MAX, 0 },
	[TERN_PARAM_FAULT_THREADS] = { "fault-threads", "", 1, FAULTS_THREADS_MAX, 1 },
	[TERN_PARAM_PAUSE_BEFORE_SWITCHOVER] = { "pause-before-switchover", "", 0, 1, 0 },
	[TERN_PARAM_SWITCHOVER_ACK] = { "switchover-ack", "", 0, 1, 0 },
	[TERN_PARAM_AUTO_CONVERGE] = { "auto-converge", "", 0, 1, 0 },
	[TERN_PARAM_THROTTLE_TRIGGER] = { "throttle-trigger-threshold", "%", 1, 100, 50 },
	[TERN_PARAM_THROTTLE_INITIAL] = { "cpu-throttle-initial", "%", 1, 99, 20 },
	[TERN_PARAM_THROTTLE_INCREMENT] = { "cpu-throttle-increment", "%", 1, 99, 10 },
	[TERN_PARAM_THROTTLE_MAX] = { "max-cpu-throttle", "%", 1, 99, 99 },
	[TERN_PARAM_ANNOUNCE_ROUNDS] = { "announce-rounds", "", 0, 1000, 5 },
	[TERN_PARAM_ANNOUNCE_INITIAL_MS] = { "announce-initial", "ms", 0, 100000, 50 },
	[TERN_PARAM_ANNOUNCE_STEP_MS] = { "announce-step", "ms", 0, 10000, 100 },
	[TERN_PARAM_ANNOUNCE_MAX_MS] = { "announce-max", "ms", 0, 100000, 550 },
	[TERN_PARAM_VCPU_DIRTY_LIMIT] = { "vcpu-dirty-limit", "bytes/s", 0, UINT64_MAX, 0 },
};

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

_Static_assert(COUNT(outcome_names) == TERN_OUTCOME_NR, "one name per outcome");
_Static_assert(COUNT(provider_names) == TERN_DIRTY_NR, "one name per provider");
_Static_assert(COUNT(mode_names) == TERN_MODE_NR, "one name per mode");
_Static_assert(COUNT(ledger_names) == TERN_LEDGER_NR, "one name per ledger step");
_Static_assert(COUNT(params) == TERN_PARAM_NR, "one row per parameter");

const char *tern_version(void)
{
	return TERN_VERSION;
}

const char *tern_outcome_name(enum tern_outcome outcome)
{
	return (size_t)outcome < COUNT(outcome_names) ? outcome_names[outcome] : "unknown";
}

const char *tern_dirty_provider_name(enum tern_dirty_provider provider)
{
	return (size_t)provider < COUNT(provider_names) ? provider_names[provider] : "unknown";
}

const char *tern_mode_name(enum tern_mode mode)
{
	return (size_t)mode < COUNT(mode_names) ? mode_names[mode] : "unknown";
}

const char *tern_ledger_step_name(enum tern_ledger_step step)
{
	return (size_t)step < COUNT(ledger_names) ? ledger_names[step] : "unknown";
}

const struct tern_param_info *tern_param_info(enum tern_param param)
{
	return (size_t)param < COUNT(params) ? &params[param] : NULL;
}

int param_check(enum tern_param param, uint64_t value)
{
	const struct tern_param_info *info = tern_param_info(param);

	if (!info)
		return -EINVAL;
	if (value < info->min || value > info->max)
		return -ERANGE;
	if ((param == TERN_PARAM_CHUNK_BYTES || param == TERN_PARAM_STRIPE_BYTES) &&
	    (value & (value - 1)))
		return -EINVAL;
	return 0;
}
