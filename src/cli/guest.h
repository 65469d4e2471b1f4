/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_CLI_GUEST_H
#define TERN_CLI_GUEST_H

/*
 * The synthetic guest: RAM, vCPU threads that write it by a deterministic
 * generator, device state, and the proof that every page is right.
 *
 *	source                              destination
 *	guest_new()                         guest_new()
 *	guest_fill()                        guest_populate()	(--prealloc)
 *	guest_start_vcpus()                 guest_start_vcpus()
 *	guest_resume()
 *	   … migration: pause, save         load, resume …
 *	                                    guest_pause()
 *	                                    guest_verify()
 *	guest_delete()                      guest_delete()
 *
 * The device state is how many pages each vCPU has written.  Since the k-th
 * write of a vCPU is a pure function of (seed, vCPU, k), the destination can
 * replay the writes and knows which version each page must hold; see
 * guest_verify.c.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <tern/error.h>
#include "../histogram.h"
#include "content.h"
#include "layout.h"

#define GUEST_PAGE_SIZE CONTENT_PAGE_SIZE
#define GUEST_HUGE_PAGE (2u << 20)
#define GUEST_VCPUS_MAX 256u
#define GUEST_STATE_MAX (72u + 8u * GUEST_VCPUS_MAX) /* bytes of device state */
#define GUEST_WRITES_MAX (1ull << 34) /* page writes of all vCPUs that can be replayed */
#define GUEST_NOTES_MAX 8u

enum guest_backing { GUEST_MEMFD, GUEST_ANON, GUEST_HUGETLB, GUEST_BACKING_NR };
enum guest_pattern {
	GUEST_UNIFORM,
	GUEST_SEQUENTIAL,
	GUEST_HOT,
	GUEST_ALTERNATE,
	GUEST_PATTERN_NR
};

/* What a guest is; sizes in bytes, multiples of 4096. */
struct guest_config {
	uint64_t size;
	uint64_t touched; /* ≤ size */
	uint64_t working_set; /* ≤ touched */
	uint64_t dirty_rate; /* bytes per second, all vCPUs together; 0: idle */
	uint64_t seed;
	unsigned nr_regions; /* ≤ size / host page size */
	unsigned vcpus; /* 1 … GUEST_VCPUS_MAX */
	enum guest_backing backing;
	enum guest_pattern pattern;
	enum content_fill fill;
	bool numa_split; /* region i on the i-th NUMA node, and vCPUs at their pages */
};

/* One region of its RAM. */
struct guest_region {
	char name[16];
	uint8_t *hva;
	uint64_t first_page; /* index of its first page in guest RAM */
	uint64_t nr_pages;
	uint64_t gpa;
	uint64_t host_page_size;
	int fd; /* memfd, or -1 */
	int node; /* NUMA node asked for; -1: none */
	_Atomic uint64_t *log; /* dirty log, a bit per page, or NULL; see guest_log.c */
};

/* What verification found. */
struct guest_verify {
	uint64_t pages; /* compared */
	uint64_t bad;
	unsigned nr_notes;
	char note[GUEST_NOTES_MAX][192]; /* one sentence for each of the first bad pages */
};

struct guest;

/* Names as on the command line; "unknown" for other values. */
const char *guest_backing_name(enum guest_backing backing);
const char *guest_pattern_name(enum guest_pattern pattern);

/* guest_nr_nodes - NUMA nodes with memory that this process may use; at least 1. */
unsigned guest_nr_nodes(void);

/* guest_host_page - host page size of a backing, bytes. */
uint64_t guest_host_page(enum guest_backing backing);

/*
 * guest_new - allocate the RAM of a guest; none of it is touched.
 *
 * *@cfg must be sound (bench_args.c checks what a user typed).  Returns 0, or
 * -ENOMEM and what mmap() or memfd_create() gave, with a sentence in *err.
 */
int guest_new(const struct guest_config *cfg, struct guest **out, struct tern_error *err);

/* guest_delete - end the vCPU threads, free everything.  Tolerates NULL. */
void guest_delete(struct guest **g);

const struct guest_config *guest_config(const struct guest *g);
const struct layout *guest_layout(const struct guest *g);
unsigned guest_nr_regions(const struct guest *g);
const struct guest_region *guest_region(const struct guest *g, unsigned i);

/* guest_page - where page @page of guest RAM is. */
uint8_t *guest_page(const struct guest *g, uint64_t page);

/* guest_fill - write version 0 of all touched pages, on all CPUs. */
void guest_fill(struct guest *g);

/* guest_populate - allocate all touched pages without changing that they read as zero. */
void guest_populate(struct guest *g);

/*
 * guest_start_vcpus - start the vCPU threads, paused.  0, or -EAGAIN with *err.
 */
int guest_start_vcpus(struct guest *g, struct tern_error *err);

/*
 * guest_pause - stop all vCPU threads between two page writes; returns when they
 * have stopped.  A thread that sleeps counts as stopped: it cannot write before
 * guest_resume().  guest_resume - let them go on.  Both may be repeated.
 */
void guest_pause(struct guest *g);
void guest_resume(struct guest *g);

/*
 * guest_rest - a running guest that finds nothing to do: from soon after the call
 * until guest_rest(g, false) its vCPUs write nothing.  Does not wait for them, so it
 * may be called from an event handler.  Independent of pause and resume.
 */
void guest_rest(struct guest *g, bool rest);

/*
 * The guest's own dirty log.  guest_log_start() - from now on every page write is noted;
 * 0 or -ENOMEM; not while a log is on.  guest_log_stop() - no more.  guest_log_sync() -
 * set in @bitmap what was noted of pages [@first, @first + @nr) of @region; @first is a
 * multiple of 64.  guest_log_clear() - forget the pages set in @bitmap; whatever is
 * written after that is noted anew.  Those two from any thread, for disjoint pages.
 */
int guest_log_start(struct guest *g);
void guest_log_stop(struct guest *g);
void guest_log_sync(struct guest *g, unsigned region, uint64_t first, uint64_t nr,
		    uint64_t *bitmap);
void guest_log_clear(struct guest *g, unsigned region, uint64_t first, uint64_t nr,
		     const uint64_t *bitmap);

/* guest_is_busy - whether a running guest writes pages at all. */
bool guest_is_busy(const struct guest *g);

/* guest_writes - pages written by all vCPUs since the guest first ran anywhere. */
uint64_t guest_writes(const struct guest *g);

/* guest_cpu_ns - CPU time of the vCPU threads so far, nanoseconds. */
uint64_t guest_cpu_ns(const struct guest *g);

/*
 * guest_longest_gap_ns - the longest time by which a vCPU thread came late to its
 * next iteration since it was created (its own sleep and pauses are not counted).
 */
uint64_t guest_longest_gap_ns(const struct guest *g);

/*
 * guest_first_touch - at the destination: how long the vCPUs' first access to each page
 * of the working set took, a page fault included, whoever served it; those of at least
 * @least_ns.  While paused.
 */
void guest_first_touch(const struct guest *g, uint64_t least_ns, struct histogram *out);

/* guest_save - encode the device state of a paused guest; returns its length. */
size_t guest_save(const struct guest *g, uint8_t buf[GUEST_STATE_MAX]);

/*
 * guest_load - become the guest that @buf describes.  The guest is paused.
 *
 * Everything is checked: a wrong length, an unknown version, a value out of
 * limits or a RAM size other than the guest's own gives -EPROTO and a sentence
 * that names the field and the value.  From now on the vCPUs check each page
 * before they overwrite it for the first time.
 */
int guest_load(struct guest *g, const uint8_t *buf, size_t len, struct tern_error *err);

/*
 * guest_verify - compare all RAM of a paused guest with what it must hold.
 *
 * Does not allocate untouched RAM.  0, or -errno with *err if the check itself
 * could not be made (out of memory, /proc not readable).
 */
int guest_verify(struct guest *g, struct guest_verify *out, struct tern_error *err);

#endif
