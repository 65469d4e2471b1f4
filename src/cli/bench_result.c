/* SPDX-License-Identifier: BSD-2-Clause */

/* What one side of a benchmark measured, as JSON: for the other process and the report. */

#include <stdlib.h>
#include <tern/tern.h>
#include "bench_side.h"

/*
 * A first access that took so long waited for somebody.  The kernel maps a page that is
 * there in about one microsecond; by way of another thread it is seven, and more.
 */
#define WAITED_NS 5000u

/* An error as an object, or null. */
static json_t *error_json(const struct tern_error *e)
{
	if (!e->code)
		return json_null();
	return json_pack("{s:i, s:s, s:s, s:i, s:s}", "code", e->code, "scope",
			 tern_error_scope_name(e->scope), "phase",
			 tern_state_name((enum tern_state)e->phase), "channel", e->channel,
			 "message", e->message);
}

/* What verification found, or null. */
static json_t *verify_json(const struct side *side)
{
	json_t *notes;

	if (!side->verified)
		return json_null();
	notes = json_array();
	for (unsigned i = 0; i < side->verify.nr_notes; i++)
		json_array_append_new(notes, json_string(side->verify.note[i]));
	return json_pack("{s:I, s:I, s:o, s:b}", "pages", (json_int_t)side->verify.pages, "bad",
			 (json_int_t)side->verify.bad, "first_bad", notes, "guest_ran",
			 (int)side->ran_on);
}

/* CPU seconds between start and end, without and of the vCPU threads. */
static void add_cpu(json_t *o, const struct side *side)
{
	uint64_t guest = side->end_guest_cpu_ns - side->begin_guest_cpu_ns;
	uint64_t all = side->end.cpu_ns - side->begin.cpu_ns;

	json_object_set_new(o, "cpu_s", json_real((double)(all > guest ? all - guest : 0) / 1e9));
	json_object_set_new(o, "guest_cpu_s", json_real((double)guest / 1e9));
}

/* Memory: peak, growth from start to end, and what the session says it holds. */
static void add_memory(json_t *o, const struct side *side)
{
	const struct procstat *a = &side->begin, *b = &side->end;
	struct tern_stats st = { 0 };

	tern_session_stats(side->session, &st, sizeof(st));
	json_object_set_new(o, "peak_rss_bytes", json_integer((json_int_t)b->peak_rss_bytes));
	json_object_set_new(o, "rss_growth_bytes",
			    json_integer((json_int_t)b->rss_bytes - (json_int_t)a->rss_bytes));
	json_object_set_new(
		o, "anon_growth_bytes",
		json_integer((json_int_t)b->rss_anon_bytes - (json_int_t)a->rss_anon_bytes));
	json_object_set_new(o, "engine_bytes", json_integer((json_int_t)st.engine_bytes));
}

/*
 * How long the guest's first access to a page took, microseconds, of those that took at
 * least @least_ns; null if there are none.
 */
static json_t *first_touch_json(const struct side *side, uint64_t least_ns)
{
	struct histogram *h = malloc(sizeof(*h));
	json_t *o = json_null();

	/* Who was verified is paused. */
	if (h && side->verified) {
		guest_first_touch(side->guest, least_ns, h);
		if (h->nr)
			o = json_pack("{s:I, s:f, s:f, s:f, s:f}", "nr", (json_int_t)h->nr, "p50",
				      (double)histogram_percentile(h, 500) / 1e3, "p99",
				      (double)histogram_percentile(h, 990) / 1e3, "p999",
				      (double)histogram_percentile(h, 999) / 1e3, "max",
				      (double)h->max_ns / 1e3);
	}
	free(h);
	return o;
}

/* What the guest did. */
static void add_guest(json_t *o, const struct side *side)
{
	bool ran =
		guest_is_busy(side->guest) && (side->role == TERN_SOURCE || side_completed(side));

	json_object_set_new(o, "guest_writes", json_integer((json_int_t)side->end_writes));
	json_object_set_new(o, "longest_gap_us",
			    ran ? json_real((double)guest_longest_gap_ns(side->guest) / 1e3)
				: json_null());
	json_object_set_new(o, "first_touch_us", first_touch_json(side, 0));
	json_object_set_new(o, "waited_us", first_touch_json(side, WAITED_NS));
}

/* The library's own statistics, or null. */
static json_t *stats_json(const struct side *side)
{
	json_t *stats;
	char *text;

	if (tern_session_stats_json(side->session, &text))
		return json_null();
	stats = json_loads(text, 0, NULL);
	free(text);
	return stats ? stats : json_null();
}

/* Everything; see bench_side.h. */
json_t *side_result(const struct side *side)
{
	json_t *o = json_object();

	if (!o)
		return NULL;
	json_object_set_new(o, "error", error_json(&side->error));
	json_object_set_new(o, "refusal",
			    side->refusal.code ? json_string(side->refusal.message) : json_null());
	json_object_set_new(o, "verify", verify_json(side));
	if (!side->session || !side->started)
		return o;
	json_object_set_new(o, "state",
			    json_string(tern_state_name(tern_session_state(side->session))));
	json_object_set_new(o, "outcome",
			    json_string(tern_outcome_name(tern_session_outcome(side->session))));
	json_object_set_new(o, "gave_up", json_boolean(side->gave_up));
	add_cpu(o, side);
	add_memory(o, side);
	add_guest(o, side);
	json_object_set_new(o, "stats", stats_json(side));
	return o;
}
