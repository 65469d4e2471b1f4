/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_STATS_H
#define TERN_STATS_H

/*
 * Statistics of a session.  A copy may be taken at any time from any thread,
 * while it runs and after it ended; the structures only ever grow at the end,
 * and the caller passes the size it was compiled with.
 */

#include <stddef.h>
#include <stdint.h>
#include <tern/session.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/*
 * The downtime ledger: each microsecond between the source's pause and the
 * destination's resume belongs to one step.  Source side only.
 */
enum tern_ledger_step {
	TERN_LEDGER_PAUSE = 0,      /* pause() callback */
	TERN_LEDGER_PRE_SWITCHOVER, /* waiting for tern_session_continue() */
	TERN_LEDGER_LAST_SYNC,      /* last look at the dirty log */
	TERN_LEDGER_LAST_PAGES,     /* last dirty pages sent and placed; with postcopy: the list
				     * of missing pages sent */
	TERN_LEDGER_STATE_SAVE,     /* save() callback */
	TERN_LEDGER_STATE_TRANSFER, /* device state on the wire, READY's way back */
	TERN_LEDGER_STATE_LOAD,     /* destination: load() callback */
	TERN_LEDGER_READY_GO,       /* READY handled, GO sent, GO's way (half a round trip) */
	TERN_LEDGER_RESUME,         /* destination: access revoked, resume() callback */
	TERN_LEDGER_NR,
};

struct tern_stats {
	enum tern_state state;
	enum tern_outcome outcome;
	char transport[16];          /* "tcp", "unix", "rdma", … */
	uint32_t nr_channels;
	uint32_t nr_rounds;          /* ended */
	uint32_t nr_regions;
	uint32_t dirty_provider;     /* enum tern_dirty_provider in use */

	uint64_t ram_bytes;          /* all regions */
	uint64_t sent_bytes;         /* source: guest RAM and headers handed to the transport;
				      * destination: received */
	uint64_t normal_pages;       /* pages whose contents were sent (each time) */
	uint64_t zero_pages;         /* pages found to be zero (each time) */
	uint64_t skipped_pages;      /* pages never touched, first round */
	uint64_t remaining_bytes;    /* source: dirty at the last look */

	uint64_t total_ns;           /* from connect() to STARTED, or until now; in postcopy
				      * to COMPLETE */
	uint64_t setup_ns;           /* from connect() to the first round */
	uint64_t first_byte_ns;      /* from connect() to the first guest RAM sent; 0: none yet */
	uint64_t downtime_ns;        /* pause to resume; sum of the ledger */
	uint64_t ledger_ns[TERN_LEDGER_NR];
	uint64_t expected_downtime_ns;

	uint64_t bandwidth;          /* bytes/s of guest RAM, last round */
	uint64_t dirty_rate;         /* bytes/s dirtied, last round */

	uint64_t registration_ns;    /* memory registration (RDMA) */
	uint64_t registration_bytes;
	uint64_t engine_bytes;       /* memory the session holds beyond guest RAM */
	uint64_t strangers;          /* destination: connections turned away */
	uint64_t state_bytes;        /* device state */
	uint64_t locked_peak_bytes;  /* most guest RAM registered at once (RDMA) */
	char device[64];             /* RDMA device in use, "mlx5_0"; "" for sockets */
	int32_t device_port;         /* its port, 1, …; 0: none */
	int32_t device_node;         /* its NUMA node; -1: not known */
	char cpus[256];              /* CPUs that the session's threads may use, "0-3,8" */
	uint64_t connected_ns;       /* source: from connect() to the control connection; 0: none
				      * yet */
	uint32_t mode;               /* enum tern_mode; destination: PRECOPY or POSTCOPY */
	uint32_t throttle_percent;   /* source: the guest is slowed by so much now */
	uint64_t postcopy_ns;        /* from the destination's resume until nothing was missing,
				      * or until now */
};

/* A distribution of times. */
struct tern_latency {
	uint64_t nr, sum_ns;
	uint64_t p50_ns, p99_ns, p999_ns, max_ns; /* within 6 % */
};

/* A thread of the guest that has waited for pages. */
struct tern_blocked_thread {
	uint32_t tid;   /* of the kernel; 0: not known, all such threads together */
	uint32_t reserved;
	uint64_t faults;
	uint64_t blocked_ns;
};

#define TERN_POSTCOPY_BUCKETS 32u
#define TERN_POSTCOPY_THREADS_MAX 512u

/* Postcopy.  The destination's side, except where it says otherwise. */
struct tern_postcopy_stats {
	uint64_t missing_pages;    /* now */
	uint64_t missing_at_start; /* when the guest was resumed */
	uint64_t discarded_bytes;  /* private memory given back at the switchover, holes too */
	uint64_t requests;         /* pages asked for; source: requests that came */
	uint64_t duplicates;       /* faults on a page that was asked for already; source:
				    * requests for pages that were on their way or sent */
	uint64_t read_ahead_hits;  /* source: of these, those on their way because they lie
				    * behind a page that was asked for */
	uint64_t local_faults;     /* resolved here, without waiting for the source */
	uint64_t recoveries;       /* both sides: links that were lost and replaced */
	/* From a fault to the thread's going on, for faults that had to ask; and its parts. */
	struct tern_latency fault;
	struct tern_latency notice, request, transfer, place;
	uint64_t log2_us[TERN_POSTCOPY_BUCKETS]; /* faults by their time: below 1 us, below 2,
						  * below 4, … */
	uint64_t blocked_ns;       /* of all threads together */
	uint64_t all_blocked_ns;   /* all threads that have ever waited were waiting */
	uint32_t nr_threads;       /* filled in below */
	struct tern_blocked_thread threads[TERN_POSTCOPY_THREADS_MAX];
};

struct tern_round_stats {
	uint32_t round;          /* 1, 2, …; the last one ran with the guest paused */
	uint32_t final;          /* 1: guest paused */
	uint64_t duration_ns;
	uint64_t dirty_pages;    /* pages to look at when it began */
	uint64_t normal_pages;
	uint64_t zero_pages;
	uint64_t sent_bytes;
};

struct tern_channel_stats {
	int32_t numa_node;         /* node of the memory it serves; -1: any */
	int32_t cpu;               /* CPU its thread was last seen on */
	uint64_t bytes;            /* on the wire, headers too */
	uint64_t writes;           /* ranges written (source) or placed (destination) */
	uint64_t stalls;           /* times it waited for the peer */
	uint64_t cpu_ns;           /* CPU time of its thread */
	uint64_t zerocopy_bytes;   /* sent with MSG_ZEROCOPY without a copy by the kernel */
	uint64_t zerocopy_copied;  /* asked for MSG_ZEROCOPY, copied by the kernel after all */
	char cpus[128];            /* CPUs its thread may run on, as the kernel says */
	int32_t buffer_node;       /* node its own buffers lie on; -1: not known (sockets) */
	int32_t completion_vector; /* of its completion queue; -1: none (sockets) */
	uint64_t first_write_ns;   /* source: from connect() until its first write was given to
				    * the device; 0: none yet, or not known (sockets) */
};

/* A vCPU with a dirty ring. */
struct tern_vcpu_stats {
	uint64_t dirty_pages;  /* harvested from its ring */
	uint64_t dirty_rate;   /* bytes/s dirtied, over the last second or so */
	uint64_t ring_full;    /* calls of tern_session_ring_full() */
	uint64_t throttled_ns; /* time spent there because of TERN_PARAM_VCPU_DIRTY_LIMIT */
};

/*
 * tern_session_stats - a snapshot.  @size is sizeof *@out.
 * Returns 0 or -EINVAL.  Any thread; may wait for a short lock.
 */
int tern_session_stats(const struct tern_session *s, struct tern_stats *out, size_t size);

/*
 * Figures of round @index or channel @index, counted from 0.
 * Returns 0, -ENOENT if there is none (the library keeps the first 1,024 rounds), -EINVAL.
 */
int tern_session_round_stats(const struct tern_session *s, unsigned index,
			     struct tern_round_stats *out, size_t size);
int tern_session_channel_stats(const struct tern_session *s, unsigned index,
			       struct tern_channel_stats *out, size_t size);

/*
 * tern_session_vcpu_stats - figures of vCPU @index of the description, provider kvm-ring.
 * They stay after the end.  Returns 0, -ENOENT if there is none, -EINVAL.
 */
int tern_session_vcpu_stats(const struct tern_session *s, unsigned index,
			    struct tern_vcpu_stats *out, size_t size);

/* tern_session_postcopy_stats - as tern_session_stats(); all 0 without postcopy. */
int tern_session_postcopy_stats(const struct tern_session *s, struct tern_postcopy_stats *out,
				size_t size);

/* tern_ledger_step_name - "pause", "last_sync", …; "unknown". */
const char *tern_ledger_step_name(enum tern_ledger_step step);

/*
 * tern_session_stats_json - the statistics as a JSON object.
 *
 * Keys as in docs/design.md section 8, as far as the library knows them; those
 * of the guest (verify, cpu of the process) are the caller's.  *@out is for
 * free().  Returns 0 or -ENOMEM.  Any thread.
 */
int tern_session_stats_json(const struct tern_session *s, char **out);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif

#endif
