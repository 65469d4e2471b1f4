/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_TESTS_TESTVM_H
#define TERN_TESTS_TESTVM_H

/*
 * A guest for tests: some regions, a thread that writes to them, and a byte of
 * device state, with the callbacks that a session wants.  Source and destination
 * live in one process, so a test can compare their RAM directly.
 *
 * A struct testvm_pair watches invariant 1: each side says when it begins and
 * ends to run, and more than one at a time is recorded for ever.
 */

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <tern/tern.h>

enum testvm_backing {
	TESTVM_ANON,
	TESTVM_MEMFD,
	TESTVM_HUGETLB, /* 2 MiB pages */
};

#define TESTVM_THROTTLES_MAX 64u

/* May live in memory shared between processes. */
struct testvm_pair {
	atomic_int running;      /* guests that run now */
	atomic_bool both_ran;    /* more than one did, at some time */
};

struct testvm {
	struct testvm_pair *pair;
	unsigned nr_regions;
	uint64_t *pages; /* per region */
	uint8_t **ram;
	int *fd;
	enum testvm_backing backing;

	/* The writer thread. */
	pthread_t thread;
	atomic_bool run;
	bool thread_started;
	struct tern_session *session; /* the last of testvm_session() */
	bool is_running;
	uint64_t working_set; /* pages of region 0 it writes; 0: it writes nothing */
	uint64_t working_first; /* the first of them */
	unsigned pause_us;    /* between two pages */
	uint64_t ticks;       /* device state: page writes so far */

	/* What the callbacks shall do; set by tests. */
	int fail_pause, fail_resume, fail_save, fail_load; /* 0 or -errno */
	const char *explain;   /* what those that fail say; NULL: nothing */
	size_t state_bytes;    /* size of the device state, at least 8 */
	size_t leave_unread;   /* load() leaves so many bytes */
	void (*on_save)(void *); /* called inside save() */
	void (*on_load)(void *);
	void (*on_resume)(void *);
	void *hook_opaque;

	atomic_uint throttle; /* percent; the writer keeps to it */
	unsigned throttles[TESTVM_THROTTLES_MAX]; /* what throttle() was told, in order … */
	atomic_uint nr_throttles; /* … and how often */
	atomic_uint announces;

	/* What happened. */
	atomic_int pauses, resumes, saves, loads;
	bool state_was_good;
};

/* testvm_init - map @nr_regions regions of @pages[i] pages each; holes all over. */
void testvm_init(struct testvm *vm, struct testvm_pair *pair, enum testvm_backing backing,
		 unsigned nr_regions, const uint64_t *pages);
void testvm_fini(struct testvm *vm);

/* testvm_fill - write something to each page whose number is a multiple of @step. */
void testvm_fill(struct testvm *vm, unsigned step, uint64_t seed);

/* testvm_start - the guest runs now (as a source). */
void testvm_start(struct testvm *vm);

/* testvm_stop - end the writer thread, if it runs. */
void testvm_stop(struct testvm *vm);

/* testvm_session - a session of @role with all regions and callbacks of @vm. */
struct tern_session *testvm_session(struct testvm *vm, enum tern_role role);

/* testvm_equal - do both have the same bytes?  Both must be stopped. */
bool testvm_equal(const struct testvm *a, const struct testvm *b);

/*
 * testvm_intact - does a stopped guest hold what testvm_fill(@step, @seed) and all its
 * page writes, on whatever side they were made, must have left?
 */
bool testvm_intact(const struct testvm *vm, unsigned step, uint64_t seed);

/* testvm_resident_pages - pages of RAM that exist, by the kernel's word. */
uint64_t testvm_resident_pages(const struct testvm *vm);

#endif
