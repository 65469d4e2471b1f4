/* SPDX-License-Identifier: BSD-2-Clause */

/* The report for people: a table on stdout, printed from the JSON object. */

#include <string.h>
#include "report.h"

#define MIB 1048576.0
#define LABEL "  %-11s "

/* A number at @o[key], 0 if it is none. */
static double num(const json_t *o, const char *key)
{
	return json_number_value(json_object_get(o, key));
}

/* A text at @o[key], "-" if it is none. */
static const char *text(const json_t *o, const char *key)
{
	const char *s = json_string_value(json_object_get(o, key));

	return s && *s ? s : "-";
}

/* Whether @o[key] is there and not null. */
static bool has(const json_t *o, const char *key)
{
	const json_t *v = json_object_get(o, key);

	return v && !json_is_null(v);
}

/* Bytes with a unit. */
static const char *bytes_text(double bytes, char buf[32])
{
	static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB" };
	unsigned u = 0;

	for (; (bytes >= 1024 || bytes <= -1024) && u < 4; u++)
		bytes /= 1024;
	snprintf(buf, 32, u ? "%.2f %s" : "%.0f %s", bytes, units[u]);
	return buf;
}

/* The line with the verdict. */
static void print_head(FILE *out, const json_t *r)
{
	const json_t *verify = json_object_get(r, "verify");

	fprintf(out, "tern bench: %s", text(r, "status"));
	if (json_is_object(verify)) {
		bool good = num(verify, "bad") == 0 &&
			    json_is_true(json_object_get(verify, "guest_ran"));

		fputs(good ? ", verified" : ", NOT verified", out);
	}
	if (has(r, "transport"))
		fprintf(out, " (%s%s%s, %s)", text(r, "transport"), has(r, "device") ? " by " : "",
			has(r, "device") ? text(r, "device") : "", text(r, "mode"));
	fputc('\n', out);
}

/* Which transport, and why: of interest where it was chosen. */
static void print_transport(FILE *out, const json_t *r)
{
	if (has(r, "transport_why"))
		fprintf(out, LABEL "%s: %s\n", "transport", text(r, "transport"),
			text(r, "transport_why"));
}

/* Guest RAM and its load. */
static void print_guest(FILE *out, const json_t *r)
{
	const json_t *g = json_object_get(r, "guest");
	char a[32], b[32], c[32];

	fprintf(out, LABEL "%s %s, %.0f region%s", "guest RAM", bytes_text(num(g, "size"), a),
		text(g, "backing"), num(g, "regions"), num(g, "regions") == 1 ? "" : "s");
	if (has(g, "touched"))
		fprintf(out, ", %s touched, fill %s", bytes_text(num(g, "touched"), b),
			text(g, "fill"));
	fputc('\n', out);
	if (!has(g, "vcpus"))
		return;
	fprintf(out, LABEL "%.0f vcpu%s, %s/s over %s, %s", "load", num(g, "vcpus"),
		num(g, "vcpus") == 1 ? "" : "s", bytes_text(num(g, "dirty_rate"), a),
		bytes_text(num(g, "working_set"), c), text(g, "pattern"));
	if (has(r, "dirty_provider"))
		fprintf(out, "; provider %s", text(r, "dirty_provider"));
	fputc('\n', out);
}

/* The downtime and its ledger: steps that took time, in the order they happened. */
static void print_downtime(FILE *out, const json_t *r)
{
	json_t *ledger = json_object_get(r, "downtime_ledger_us"), *value;
	const char *key, *separator = "";

	if (num(r, "downtime_ms") <= 0)
		return;
	fprintf(out, LABEL "%.2f ms = ", "downtime", num(r, "downtime_ms"));
	json_object_foreach(ledger, key, value)
	{
		fprintf(out, "%s%s %.2f", separator, key, json_number_value(value) / 1e3);
		separator = " + ";
	}
	fputc('\n', out);
}

/* Times, rates and pages. */
static void print_figures(FILE *out, const json_t *r)
{
	const json_t *pages = json_object_get(r, "pages");
	char a[32];

	fprintf(out, LABEL "%.1f ms", "total", num(r, "total_ms"));
	if (has(r, "throughput_mib_s"))
		fprintf(out, ", %.0f MiB/s", num(r, "throughput_mib_s"));
	fprintf(out, "\n" LABEL "%.1f ms", "setup", num(r, "setup_ms"));
	if (num(r, "first_byte_ms") > 0)
		fprintf(out, ", first byte after %.1f ms", num(r, "first_byte_ms"));
	fputc('\n', out);
	print_downtime(out, r);
	fprintf(out, LABEL "%.0f\n", "rounds", num(r, "rounds"));
	fprintf(out, LABEL "%.0f normal, %.0f zero, %.0f skipped\n", "pages", num(pages, "normal"),
		num(pages, "zero"), num(pages, "skipped"));
	fprintf(out, LABEL "%s over %zu channels\n",
		has(json_object_get(r, "guest"), "fill") ? "sent" : "received",
		bytes_text(num(r, "sent_bytes"), a),
		json_array_size(json_object_get(r, "channels")));
}

/* CPU of both processes. */
static void print_cpu(FILE *out, const json_t *r)
{
	const json_t *cpu = json_object_get(r, "cpu"), *g = json_object_get(r, "guest");

	fprintf(out, LABEL, "cpu");
	if (has(cpu, "source_s"))
		fprintf(out, "source %.3f s, ", num(cpu, "source_s"));
	if (has(cpu, "destination_s"))
		fprintf(out, "destination %.3f s, ", num(cpu, "destination_s"));
	if (has(cpu, "total_s_per_gib"))
		fprintf(out, "%.3f s per GiB of RAM; ", num(cpu, "total_s_per_gib"));
	fprintf(out, "guest %.3f s\n", num(g, "source_cpu_s") + num(g, "destination_cpu_s"));
}

/* Memory that one side needed beyond guest RAM; @before goes in front of it. */
static bool print_engine(FILE *out, const json_t *memory, const char *side, const char *before)
{
	char key[64], a[32], b[32];

	snprintf(key, sizeof(key), "%s_engine_bytes", side);
	if (!has(memory, key))
		return false;
	bytes_text(num(memory, key), a);
	snprintf(key, sizeof(key), "%s_anon_growth_bytes", side);
	fprintf(out, "%s%s %s (private memory grew by %s)", before, side, a,
		bytes_text(num(memory, key), b));
	return true;
}

/* Memory of both processes. */
static void print_memory(FILE *out, const json_t *r)
{
	const json_t *m = json_object_get(r, "memory");
	bool first;

	fprintf(out, LABEL, "engine");
	first = print_engine(out, m, "source", "");
	print_engine(out, m, "destination", first ? ", " : "");
	fputc('\n', out);
}

/* Longest gaps of the vCPU threads. */
static void print_gaps(FILE *out, const json_t *r)
{
	const json_t *g = json_object_get(r, "guest");
	bool source = has(g, "source_longest_gap_us");

	if (!source && !has(g, "destination_longest_gap_us"))
		return;
	fprintf(out, LABEL, "vcpu gap");
	if (source)
		fprintf(out, "source %.2f ms", num(g, "source_longest_gap_us") / 1e3);
	if (has(g, "destination_longest_gap_us"))
		fprintf(out, "%sdestination %.2f ms", source ? ", " : "",
			num(g, "destination_longest_gap_us") / 1e3);
	fputc('\n', out);
}

/* What the guest waited for its pages at the destination, if they came after it. */
static void print_first_touch(FILE *out, const json_t *r)
{
	const json_t *g = json_object_get(r, "guest"), *w = json_object_get(g, "waited_us");

	if (!json_is_object(w) || !json_is_object(json_object_get(r, "postcopy")))
		return;
	fprintf(out,
		LABEL "%.0f of %.0f pages waited for: p50 %.1f us, p99 %.1f us, longest %.2f ms\n",
		"first touch", num(w, "nr"), num(json_object_get(g, "first_touch_us"), "nr"),
		num(w, "p50"), num(w, "p99"), num(w, "max") / 1e3);
}

/* What verification of one side found. */
static void print_verify(FILE *out, const json_t *v, const char *label, const char *ran)
{
	const json_t *notes = json_object_get(v, "first_bad");

	if (!json_is_object(v))
		return;
	fprintf(out, LABEL "%.0f pages, %.0f bad; the guest %s\n", label, num(v, "pages"),
		num(v, "bad"),
		json_is_true(json_object_get(v, "guest_ran")) ? ran : "does NOT run");
	for (size_t i = 0; i < json_array_size(notes); i++)
		fprintf(out, LABEL "%s\n", "", json_string_value(json_array_get(notes, i)));
}

/* The summary; see report.h. */
void report_print(FILE *out, const json_t *r)
{
	print_head(out, r);
	print_transport(out, r);
	print_guest(out, r);
	if (has(r, "total_ms")) {
		print_figures(out, r);
		print_cpu(out, r);
		print_memory(out, r);
		print_gaps(out, r);
		print_first_touch(out, r);
	}
	print_verify(out, json_object_get(r, "verify"), "verify", "ran on");
	print_verify(out, json_object_get(r, "source_verify"), "source", "runs on at the source");
	fflush(out);
}
