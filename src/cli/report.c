/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * Putting the report together.
 *
 * The source's library statistics are the base, since it keeps the clock and the
 * ledger; a process that was only the destination has its own instead.  What
 * only the two processes know (CPU, memory, verification) is added.  The summary
 * is printed from the same object, so the two cannot disagree.
 */

#include <errno.h>
#include <string.h>
#include "cli.h"
#include "report.h"

/* Keys of the contract; all of them are present in every report. */
static const char *const keys[] = {
	"status",      "transport",          "mode",
	"total_ms",    "setup_ms",           "first_byte_ms",
	"downtime_ms", "downtime_ledger_us", "ram_bytes",
	"sent_bytes",  "throughput_mib_s",   "rounds",
	"pages",       "registration",       "channels",
	"cpu",         "postcopy",           "verify",
	"error",
};

/* @o[key], or NULL; tolerates NULL. */
static json_t *get(const json_t *o, const char *key)
{
	json_t *v = o ? json_object_get(o, key) : NULL;

	return v && !json_is_null(v) ? v : NULL;
}

/* A copy of @o[key], or null. */
static json_t *copy(const json_t *o, const char *key)
{
	json_t *v = get(o, key);

	return v ? json_deep_copy(v) : json_null();
}

/* CPU time of both processes, and how much of it per GiB of guest RAM. */
static json_t *cpu_json(const json_t *source, const json_t *destination, const json_t *ram)
{
	json_t *s = get(source, "cpu_s"), *d = get(destination, "cpu_s");
	double gib = json_number_value(ram) / (1u << 30);

	return json_pack("{s:o, s:o, s:o}", "source_s", copy(source, "cpu_s"), "destination_s",
			 copy(destination, "cpu_s"), "total_s_per_gib",
			 s && d && gib > 0
				 ? json_real((json_number_value(s) + json_number_value(d)) / gib)
				 : json_null());
}

/* Memory of both processes. */
static json_t *memory_json(const json_t *source, const json_t *destination)
{
	static const char *const names[] = { "peak_rss_bytes", "engine_bytes", "rss_growth_bytes",
					     "anon_growth_bytes" };
	json_t *o = json_object();
	char key[64];

	for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		snprintf(key, sizeof(key), "source_%s", names[i]);
		json_object_set_new(o, key, copy(source, names[i]));
		snprintf(key, sizeof(key), "destination_%s", names[i]);
		json_object_set_new(o, key, copy(destination, names[i]));
	}
	json_object_set_new(o, "note",
			    json_string("growth is from before connect or listen to the end; the "
					"destination's includes guest RAM that arrived, unless it "
					"was populated before"));
	return o;
}

/* What the guest was and did. */
static json_t *guest_json(const struct bench_args *args, const json_t *source,
			  const json_t *destination)
{
	const struct guest_config *g = &args->guest;
	json_t *o = json_object();

	json_object_set_new(o, "size", json_integer((json_int_t)g->size));
	json_object_set_new(o, "regions", json_integer((json_int_t)g->nr_regions));
	json_object_set_new(o, "backing", json_string(guest_backing_name(g->backing)));
	json_object_set_new(o, "numa_split", json_boolean(g->numa_split));
	json_object_set_new(o, "prealloc", json_boolean(args->prealloc));
	if (args->role != BENCH_DESTINATION) {
		/* A destination takes these from the device state. */
		json_object_set_new(o, "touched", json_integer((json_int_t)g->touched));
		json_object_set_new(o, "fill", json_string(content_fill_name(g->fill)));
		json_object_set_new(o, "vcpus", json_integer((json_int_t)g->vcpus));
		json_object_set_new(o, "dirty_rate", json_integer((json_int_t)g->dirty_rate));
		json_object_set_new(o, "working_set", json_integer((json_int_t)g->working_set));
		json_object_set_new(o, "pattern", json_string(guest_pattern_name(g->pattern)));
		json_object_set_new(o, "seed", json_integer((json_int_t)g->seed));
	}
	json_object_set_new(o, "source_writes", copy(source, "guest_writes"));
	json_object_set_new(o, "source_longest_gap_us", copy(source, "longest_gap_us"));
	json_object_set_new(o, "destination_longest_gap_us", copy(destination, "longest_gap_us"));
	json_object_set_new(o, "first_touch_us", copy(destination, "first_touch_us"));
	json_object_set_new(o, "waited_us", copy(destination, "waited_us"));
	json_object_set_new(o, "source_cpu_s", copy(source, "guest_cpu_s"));
	json_object_set_new(o, "destination_cpu_s", copy(destination, "guest_cpu_s"));
	return o;
}

/* The first error, of the source if it has one. */
static json_t *first_error(const json_t *source, const json_t *destination)
{
	return get(source, "error") ? copy(source, "error") : copy(destination, "error");
}

/* Faults are the destination's matter; what the source has to add goes beside them. */
static void merge_postcopy(json_t *o, const json_t *source, const json_t *destination)
{
	const json_t *there = get(get(source, "stats"), "postcopy");
	json_t *here = copy(get(destination, "stats"), "postcopy");

	if (!source || !json_is_object(here) || !there) {
		json_decref(here);
		return;
	}
	json_object_set_new(here, "read_ahead_hits", copy(there, "read_ahead_hits"));
	json_object_set_new(here, "source_duplicates", copy(there, "duplicates"));
	json_object_set_new(o, "postcopy", here);
}

/* Put the report together; see report.h. */
json_t *report_make(const struct bench_args *args, json_t *source, json_t *destination)
{
	const json_t *own = source ? source : destination;
	json_t *o = copy(own, "stats");

	if (!json_is_object(o)) {
		json_decref(o);
		o = json_object();
		json_object_set_new(o, "status", json_string("failed"));
	}
	/* RAM over time says nothing if the RAM did not arrive. */
	if (strcmp(json_string_value(json_object_get(o, "status")), "completed"))
		json_object_set_new(o, "throughput_mib_s", json_null());
	json_object_set_new(o, "cpu", cpu_json(source, destination, get(o, "ram_bytes")));
	json_object_set_new(o, "memory", memory_json(source, destination));
	json_object_set_new(o, "guest", guest_json(args, source, destination));
	json_object_set_new(o, "verify", copy(destination, "verify"));
	if (source)
		json_object_set_new(o, "destination_channels",
				    copy(get(destination, "stats"), "channels"));
	json_object_set_new(o, "source_verify", copy(source, "verify"));
	merge_postcopy(o, source, destination);
	json_object_set_new(o, "error", first_error(source, destination));
	json_object_set_new(o, "destination_error", copy(destination, "error"));
	json_object_set_new(o, "destination_refusal", copy(destination, "refusal"));
	for (unsigned i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
		if (!json_object_get(o, keys[i]))
			json_object_set_new(o, keys[i], json_null());
	return o;
}

/* Write the JSON; see report.h. */
int report_write(const char *path, const json_t *report, struct tern_error *err)
{
	const size_t flags = JSON_INDENT(2) | JSON_REAL_PRECISION(9);
	bool to_stdout = !strcmp(path, "-");
	FILE *f = to_stdout ? stdout : fopen(path, "we");
	int ret = 0;

	if (!f)
		return cli_fail(err, -errno, "cannot write %s: %s", path, strerror(errno));
	if (json_dumpf(report, f, flags) || fputc('\n', f) == EOF || fflush(f))
		ret = cli_fail(err, -EIO, "cannot write %s: %s", path, strerror(errno));
	if (!to_stdout && fclose(f) && !ret)
		ret = cli_fail(err, -EIO, "cannot write %s: %s", path, strerror(errno));
	return ret;
}
