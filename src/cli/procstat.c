/* SPDX-License-Identifier: BSD-2-Clause */

#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include "procstat.h"

/* The value in bytes of a "Name:   123 kB" line, if @line is the one of @name. */
static void take_kib(const char *line, const char *name, uint64_t *out)
{
	size_t n = strlen(name);
	unsigned long long kib;

	if (!strncmp(line, name, n) && line[n] == ':' && sscanf(line + n + 1, "%llu", &kib) == 1)
		*out = kib * 1024;
}

/* A timeval in nanoseconds. */
static uint64_t tv_ns(struct timeval tv)
{
	return (uint64_t)tv.tv_sec * 1000000000u + (uint64_t)tv.tv_usec * 1000u;
}

/* What this process uses; see procstat.h. */
void procstat_read(struct procstat *out)
{
	struct rusage ru;
	char line[256];
	FILE *f;

	memset(out, 0, sizeof(*out));
	if (!getrusage(RUSAGE_SELF, &ru))
		out->cpu_ns = tv_ns(ru.ru_utime) + tv_ns(ru.ru_stime);
	f = fopen("/proc/self/status", "re");
	if (!f)
		return;
	while (fgets(line, sizeof(line), f)) {
		take_kib(line, "VmRSS", &out->rss_bytes);
		take_kib(line, "RssAnon", &out->rss_anon_bytes);
		take_kib(line, "VmHWM", &out->peak_rss_bytes);
	}
	fclose(f);
}

/* MemAvailable; see procstat.h. */
uint64_t procstat_available_bytes(void)
{
	uint64_t bytes = 0;
	char line[256];
	FILE *f = fopen("/proc/meminfo", "re");

	if (!f)
		return 0;
	while (fgets(line, sizeof(line), f))
		take_kib(line, "MemAvailable", &bytes);
	fclose(f);
	return bytes;
}
