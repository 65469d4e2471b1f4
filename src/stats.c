/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Statistics: snapshots of what the session, its workers and its channels count,
 * and the same as JSON.
 */
#define _GNU_SOURCE
#include "session.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "faults.h"
#include "placement.h"
#include "pusher.h"
#include "receiver.h"
#include "sender.h"

/* Copy what both the caller and this library know of a structure. */
static int copy_out(void *out, size_t size, const void *in, size_t known)
{
	if (!out || !size)
		return -EINVAL;
	memset(out, 0, size);
	memcpy(out, in, size < known ? size : known);
	return 0;
}

/* From connect() to @at, which a channel gave; 0 if it was not yet. */
static uint64_t since_begin(const struct tern_session *s, uint64_t at)
{
	return at && at != TRANSPORT_NO_WRITE_YET ? at - s->times.begin : 0;
}

/* Figures of channel @i now; first_write_ns on the monotonic clock; mon.lock is held. */
static void channel_now(struct tern_session *s, unsigned i, struct tern_channel_stats *out)
{
	*out = s->final_channels[i];
	if (s->sender)
		sender_channel_stats(s->sender, i, out);
	if (s->receiver)
		receiver_channel_stats(s->receiver, i, out);
	if (s->conn && s->channels[i])
		s->conn->ops->channel_stats(s->channels[i], out);
}

/*
 * What the channels know together.  Where they know when their first write left, that
 * is the session's first byte, not the moment in which the engine handed it over.
 * mon.lock is held.
 */
static void sum_channels(struct tern_session *s, struct tern_stats *st)
{
	uint64_t first = 0;

	st->sent_bytes = 0;
	for (unsigned i = 0; i < s->nr_channels; i++) {
		struct tern_channel_stats c;

		channel_now(s, i, &c);
		st->sent_bytes += c.bytes;
		if (c.first_write_ns && (!first || c.first_write_ns < first))
			first = c.first_write_ns;
	}
	if (first)
		st->first_byte_ns = since_begin(s, first);
}

uint64_t session_first_byte_ns(const struct tern_session *s)
{
	uint64_t first = s->sender ? sender_first_byte_ns(s->sender) : 0;

	return !first && s->pusher ? pusher_first_byte_ns(s->pusher) : first;
}

/* mon.lock is held. */
static void stats_now(struct tern_session *s, struct tern_stats *st)
{
	uint64_t end = s->times.end ? s->times.end : now_ns();

	*st = s->stats;
	session_conn_stats(s, st);
	st->state = s->state;
	st->outcome = s->outcome;
	snprintf(st->transport, sizeof(st->transport), "%s",
		 s->transport ? s->transport->name : "");
	st->nr_channels = s->nr_channels;
	st->nr_regions = s->regions.nr;
	st->mode = s->role == TERN_SOURCE ? (uint32_t)session_param(s, TERN_PARAM_MODE) :
		   s->postcopy		  ? TERN_MODE_POSTCOPY :
					    TERN_MODE_PRECOPY;
	session_cpus_text(s, st->cpus, sizeof(st->cpus));
	st->ram_bytes = region_bytes(&s->regions);
	if (s->times.begin)
		st->total_ns = end - s->times.begin;
	if (s->times.setup_done)
		st->setup_ns = s->times.setup_done - s->times.begin;
	if (s->times.connected)
		st->connected_ns = s->times.connected - s->times.begin;
	if (!st->first_byte_ns)
		st->first_byte_ns = since_begin(s, session_first_byte_ns(s));
	sum_channels(s, st);
}

void session_postcopy_now(struct tern_session *s, struct tern_postcopy_stats *out)
{
	struct tern_postcopy_stats st = *s->postcopy_stats;

	if (s->placement) {
		st.missing_pages = atomic_load(&s->placement->left);
		st.discarded_bytes = atomic_load(&s->placement->stale);
	}
	if (s->faults) {
		memset(st.log2_us, 0, sizeof(st.log2_us));
		st.blocked_ns = 0;
		faults_stats(s->faults, &st);
	}
	if (s->pusher)
		pusher_stats(s->pusher, &st);
	*out = st;
}

int tern_session_postcopy_stats(const struct tern_session *cs, struct tern_postcopy_stats *out,
				size_t size)
{
	struct tern_session *s = (struct tern_session *)cs;
	struct tern_postcopy_stats *st = malloc(sizeof(*st));
	int r;

	if (!st)
		return -ENOMEM;
	monitor_lock(&s->mon);
	session_postcopy_now(s, st);
	monitor_unlock(&s->mon);
	r = copy_out(out, size, st, sizeof(*st));
	free(st);
	return r;
}

int tern_session_stats(const struct tern_session *cs, struct tern_stats *out, size_t size)
{
	struct tern_session *s = (struct tern_session *)cs;
	struct tern_stats st;

	monitor_lock(&s->mon);
	stats_now(s, &st);
	monitor_unlock(&s->mon);
	return copy_out(out, size, &st, sizeof(st));
}

int tern_session_round_stats(const struct tern_session *cs, unsigned index,
			     struct tern_round_stats *out, size_t size)
{
	struct tern_session *s = (struct tern_session *)cs;
	struct tern_round_stats round;
	int r = -ENOENT;

	monitor_lock(&s->mon);
	if (index < s->nr_rounds) {
		round = s->rounds[index];
		r = 0;
	}
	monitor_unlock(&s->mon);
	return r ? r : copy_out(out, size, &round, sizeof(round));
}

int tern_session_channel_stats(const struct tern_session *cs, unsigned index,
			       struct tern_channel_stats *out, size_t size)
{
	struct tern_session *s = (struct tern_session *)cs;
	struct tern_channel_stats c;
	int r = -ENOENT;

	monitor_lock(&s->mon);
	if (index < s->nr_channels) {
		channel_now(s, index, &c);
		c.first_write_ns = since_begin(s, c.first_write_ns);
		r = 0;
	}
	monitor_unlock(&s->mon);
	return r ? r : copy_out(out, size, &c, sizeof(c));
}

/* ---------------------------------------------------------------------- JSON */

static double ms(uint64_t ns)
{
	return (double)ns / 1e6;
}

static json_t *ledger_json(const struct tern_stats *st)
{
	json_t *o = json_object();

	for (int i = 0; i < TERN_LEDGER_NR; i++)
		json_object_set_new(o, tern_ledger_step_name((enum tern_ledger_step)i),
				    json_real((double)st->ledger_ns[i] / 1e3));
	return o;
}

static json_t *rounds_json(const struct tern_session *s)
{
	struct tern_round_stats r;
	json_t *a = json_array();

	for (unsigned i = 0; !tern_session_round_stats(s, i, &r, sizeof(r)); i++)
		json_array_append_new(a, json_pack("{s:I, s:b, s:f, s:I, s:I, s:I, s:I}", "round",
						   (json_int_t)r.round, "final", (int)r.final,
						   "duration_ms", ms(r.duration_ns), "dirty_pages",
						   (json_int_t)r.dirty_pages, "normal_pages",
						   (json_int_t)r.normal_pages, "zero_pages",
						   (json_int_t)r.zero_pages, "sent_bytes",
						   (json_int_t)r.sent_bytes));
	return a;
}

static json_t *channels_json(const struct tern_session *s)
{
	struct tern_channel_stats c;
	json_t *a = json_array();

	for (unsigned i = 0; !tern_session_channel_stats(s, i, &c, sizeof(c)); i++)
		json_array_append_new(
			a,
			json_pack(
				"{s:I, s:i, s:i, s:s, s:i, s:i, s:I, s:I, s:I, s:f, s:I, s:I, s:f}",
				"channel", (json_int_t)i, "node", (int)c.numa_node, "cpu",
				(int)c.cpu, "cpus", c.cpus, "buffer_node", (int)c.buffer_node,
				"completion_vector", (int)c.completion_vector, "bytes",
				(json_int_t)c.bytes, "writes", (json_int_t)c.writes, "stalls",
				(json_int_t)c.stalls, "cpu_ms", ms(c.cpu_ns), "zerocopy_bytes",
				(json_int_t)c.zerocopy_bytes, "zerocopy_copied",
				(json_int_t)c.zerocopy_copied, "first_write_ms",
				ms(c.first_write_ns)));
	return a;
}

/* vCPUs with a dirty ring. */
static json_t *vcpus_json(const struct tern_session *s)
{
	struct tern_vcpu_stats v;
	json_t *a = json_array();

	for (unsigned i = 0; !tern_session_vcpu_stats(s, i, &v, sizeof(v)); i++)
		json_array_append_new(a, json_pack("{s:I, s:I, s:I, s:I, s:f}", "vcpu",
						   (json_int_t)i, "dirty_pages",
						   (json_int_t)v.dirty_pages, "dirty_rate_bytes_s",
						   (json_int_t)v.dirty_rate, "ring_full",
						   (json_int_t)v.ring_full, "throttled_ms",
						   ms(v.throttled_ns)));
	return a;
}

static json_t *error_json(const struct tern_session *s)
{
	struct tern_error e;

	if (!tern_session_error(s, &e))
		return json_null();
	return json_pack("{s:i, s:s, s:s, s:i, s:s}", "code", e.code, "scope",
			 tern_error_scope_name(e.scope), "phase",
			 tern_state_name((enum tern_state)e.phase), "channel", e.channel, "message",
			 e.message);
}

/* The plain figures. */
static json_t *figures_json(const struct tern_stats *st)
{
	double seconds = (double)st->total_ns / 1e9;
	double rate = seconds > 0 ? (double)st->ram_bytes / (1 << 20) / seconds : 0;
	json_t *o = json_object();
	const struct {
		const char *key;
		json_t *value;
	} rows[] = {
		{ "status", json_string(tern_state_name(st->state)) },
		{ "outcome", json_string(tern_outcome_name(st->outcome)) },
		{ "transport", json_string(st->transport) },
		{ "device", st->device[0] ? json_string(st->device) : json_null() },
		{ "device_port", json_integer(st->device_port) },
		{ "device_node", json_integer(st->device_node) },
		{ "cpus", json_string(st->cpus) },
		{ "throttle_percent", json_integer((json_int_t)st->throttle_percent) },
		{ "mode", json_string(tern_mode_name((enum tern_mode)st->mode)) },
		{ "total_ms", json_real(ms(st->total_ns)) },
		{ "connected_ms",
		  st->connected_ns ? json_real(ms(st->connected_ns)) : json_null() },
		{ "setup_ms", json_real(ms(st->setup_ns)) },
		{ "first_byte_ms",
		  st->first_byte_ns ? json_real(ms(st->first_byte_ns)) : json_null() },
		{ "downtime_ms", json_real(ms(st->downtime_ns)) },
		{ "expected_downtime_ms", json_real(ms(st->expected_downtime_ns)) },
		{ "downtime_ledger_us", ledger_json(st) },
		{ "ram_bytes", json_integer((json_int_t)st->ram_bytes) },
		{ "sent_bytes", json_integer((json_int_t)st->sent_bytes) },
		{ "remaining_bytes", json_integer((json_int_t)st->remaining_bytes) },
		{ "throughput_mib_s", json_real(rate) },
		{ "bandwidth_bytes_s", json_integer((json_int_t)st->bandwidth) },
		{ "dirty_rate_bytes_s", json_integer((json_int_t)st->dirty_rate) },
		{ "dirty_provider", json_string(tern_dirty_provider_name(
					    (enum tern_dirty_provider)st->dirty_provider)) },
		{ "rounds", json_integer((json_int_t)st->nr_rounds) },
		{ "pages",
		  json_pack("{s:I, s:I, s:I}", "normal", (json_int_t)st->normal_pages, "zero",
			    (json_int_t)st->zero_pages, "skipped", (json_int_t)st->skipped_pages) },
		{ "registration",
		  json_pack("{s:f, s:I, s:I}", "ms", ms(st->registration_ns), "bytes",
			    (json_int_t)st->registration_bytes, "locked_peak_bytes",
			    (json_int_t)st->locked_peak_bytes) },
		{ "engine_bytes", json_integer((json_int_t)st->engine_bytes) },
		{ "state_bytes", json_integer((json_int_t)st->state_bytes) },
		{ "strangers", json_integer((json_int_t)st->strangers) },
	};

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
		json_object_set_new(o, rows[i].key, rows[i].value);
	return o;
}

static json_t *latency_json(const struct tern_latency *l)
{
	return json_pack("{s:I, s:f, s:f, s:f, s:f}", "nr", (json_int_t)l->nr, "p50",
			 (double)l->p50_ns / 1e3, "p99", (double)l->p99_ns / 1e3, "p999",
			 (double)l->p999_ns / 1e3, "max", (double)l->max_ns / 1e3);
}

/* The threads that have waited, and the times of faults by powers of two. */
static void add_lists(json_t *o, const struct tern_postcopy_stats *p)
{
	json_t *threads = json_array(), *buckets = json_array();

	for (unsigned i = 0; i < p->nr_threads; i++)
		json_array_append_new(threads,
				      json_pack("{s:I, s:I, s:f}", "tid",
						(json_int_t)p->threads[i].tid, "faults",
						(json_int_t)p->threads[i].faults, "blocked_ms",
						ms(p->threads[i].blocked_ns)));
	for (unsigned i = 0; i < TERN_POSTCOPY_BUCKETS; i++)
		json_array_append_new(buckets, json_integer((json_int_t)p->log2_us[i]));
	json_object_set_new(o, "threads", threads);
	json_object_set_new(o, "log2_us", buckets);
}

/* Figures of postcopy, or null. */
static json_t *postcopy_json(const struct tern_session *s, const struct tern_stats *st)
{
	struct tern_postcopy_stats *p = malloc(sizeof(*p));
	json_t *o;

	if (!p || st->mode == TERN_MODE_PRECOPY ||
	    tern_session_postcopy_stats(s, p, sizeof(*p))) {
		free(p);
		return json_null();
	}
	o = json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "missing_pages",
		      (json_int_t)p->missing_pages, "missing_at_start",
		      (json_int_t)p->missing_at_start, "discarded_bytes",
		      (json_int_t)p->discarded_bytes, "requests", (json_int_t)p->requests,
		      "duplicates", (json_int_t)p->duplicates, "read_ahead_hits",
		      (json_int_t)p->read_ahead_hits, "local_faults",
		      (json_int_t)p->local_faults, "recoveries", (json_int_t)p->recoveries);
	json_object_set_new(o, "fault_us", latency_json(&p->fault));
	json_object_set_new(o, "parts_us",
			    json_pack("{s:o, s:o, s:o, s:o}", "notice", latency_json(&p->notice),
				      "request", latency_json(&p->request), "transfer",
				      latency_json(&p->transfer), "place",
				      latency_json(&p->place)));
	json_object_set_new(o, "blocked_ms", json_real(ms(p->blocked_ns)));
	json_object_set_new(o, "all_blocked_ms", json_real(ms(p->all_blocked_ns)));
	json_object_set_new(o, "total_ms", json_real(ms(st->postcopy_ns)));
	add_lists(o, p);
	free(p);
	return o;
}

int tern_session_stats_json(const struct tern_session *s, char **out)
{
	struct tern_stats st;

	tern_session_stats(s, &st, sizeof(st));
	json_t *o = figures_json(&st);
	char why[sizeof(s->transport_why) + 100];

	snprintf(why, sizeof(why), "%s", s->transport_why);
	if (st.device[0])
		snprintf(why, sizeof(why), "%s; it goes through %s, port %d", s->transport_why,
			 st.device, (int)st.device_port);
	json_object_set_new(o, "transport_why", json_string(why));
	json_object_set_new(o, "round_list", rounds_json(s));
	json_object_set_new(o, "channels", channels_json(s));
	json_object_set_new(o, "vcpus", vcpus_json(s));
	json_object_set_new(o, "postcopy", postcopy_json(s, &st));
	json_object_set_new(o, "error", error_json(s));
	char *text = json_dumps(o, JSON_INDENT(2) | JSON_REAL_PRECISION(9));

	json_decref(o);
	if (!text)
		return -ENOMEM;
	*out = text;
	return 0;
}
