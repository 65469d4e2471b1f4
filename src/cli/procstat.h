/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_CLI_PROCSTAT_H
#define TERN_CLI_PROCSTAT_H

#include <stdint.h>

/* What this process uses, from getrusage() and /proc/self/status. */
struct procstat {
	uint64_t cpu_ns; /* user and system, all threads */
	uint64_t rss_bytes; /* resident: everything */
	uint64_t rss_anon_bytes; /* resident: private anonymous memory only */
	uint64_t peak_rss_bytes;
};

/* procstat_read - now.  What cannot be read is 0. */
void procstat_read(struct procstat *out);

/* procstat_available_bytes - memory the machine could give without swapping; 0: not known. */
uint64_t procstat_available_bytes(void);

#endif
