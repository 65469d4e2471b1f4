/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_TESTS_POSTCOPY_RIG_H
#define TERN_TESTS_POSTCOPY_RIG_H

/*
 * Two guests, a session on each side, and threads of the destination's guest that read
 * its RAM while pages of it are missing.
 *
 *	testvm's writer		writes pages [0, working_set) of region 0; the copy of the
 *				guest that runs goes on where the other one ended, so what
 *				must be there in the end is known (testvm_intact())
 *	readers			begin inside resume(), read pages of the last region that
 *				nobody writes, and compare them with the source's
 *
 * Functions assert; waits are bounded by RIG_WAIT_MS.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <tern/stats.h>
#include <tern/tern.h>

#include "fault_transport.h"
#include "lane.h"
#include "testvm.h"

#define RIG_WAIT_MS 60000
#define RIG_READERS_MAX 64u
#define RIG_TEXT_MAX 512u

/* What was heard from one session. */
struct rig_heard {
	atomic_uint warnings, strangers;
	atomic_uint paused; /* times it went to POSTCOPY_PAUSED */
	atomic_int last_state, last_outcome;
	pthread_mutex_t lock;
	char warning[RIG_TEXT_MAX], stranger[RIG_TEXT_MAX]; /* under lock: the last ones */
};

struct rig;

struct rig_reader {
	struct rig *rig;
	pthread_t thread;
	uint64_t first, nr; /* pages to choose from … */
	unsigned reads; /* … so many times; 0: each once, in order */
	uint64_t seed;
	atomic_uint done; /* pages read so far */
	atomic_bool ended;
};

struct rig {
	struct testvm_pair pair;
	struct testvm src, dst;
	struct tern_session *s, *d;
	struct lane lane;
	struct fault_net *net; /* or NULL */
	struct rig_heard src_heard, dst_heard;
	unsigned step; /* of testvm_fill() */
	struct rig_reader readers[RIG_READERS_MAX];
	unsigned nr_readers;
	bool late; /* readers wait until the source knows that the guest runs */
	atomic_uint nr_begun;
	atomic_uint wrong; /* pages that a reader found to differ */
};

/*
 * rig_init - guests of @nr regions; the source's filled at every @step-th page.
 *
 * Skips or fails if this machine has no userfaultfd for all kinds of memory.
 */
void rig_init(struct rig *r, void **state, enum testvm_backing backing, unsigned nr,
	      const uint64_t *pages, unsigned step);

/* rig_cuttable - a fault layer over the lane's transport.  Before rig_sessions(). */
void rig_cuttable(struct rig *r);

/* rig_cut - one more rule that cuts the link: at the @nth call of @op, message @type. */
void rig_cut(struct rig *r, enum fault_side side, enum fault_op op, int type, unsigned nth);

/* rig_sessions - both sessions; the source's in @mode. */
void rig_sessions(struct rig *r, enum tern_mode mode);

/* rig_all_dirty - a dirty log of the source that knows only "everything may have changed". */
void rig_all_dirty(struct rig *r);

/* rig_throttle - next to nothing is pushed in the background; rig_unthrottle - all at once. */
void rig_throttle(struct rig *r);
void rig_unthrottle(struct rig *r);

/* rig_add_reader - a thread that reads pages [first, first + nr) of the last region. */
void rig_add_reader(struct rig *r, uint64_t first, uint64_t nr, unsigned reads);

/* rig_start - listen, run the source guest, connect. */
void rig_start(struct rig *r);

/* rig_wait - until both sides have ended. */
void rig_wait(struct rig *r);

/* rig_await_state - until @s is in @state.  It fails if it ends in another one. */
void rig_await_state(struct rig *r, struct tern_session *s, enum tern_state state);

/* rig_await_paused - until both sides are. */
void rig_await_paused(struct rig *r);

/* rig_await_requests - until the destination has asked for @nr pages and met @duplicates. */
void rig_await_faults(struct rig *r, uint64_t nr, uint64_t duplicates);

/* rig_await - until @*counter is at least @nr. */
void rig_await(atomic_uint *counter, unsigned nr, const char *what);

/* rig_join_readers - wait until all have read all they wanted, and found it right. */
void rig_join_readers(struct rig *r);

/* rig_end_readers - wait until the first @nr have ended, whatever they found. */
void rig_end_readers(struct rig *r, unsigned nr);

/* rig_recover_until_done - recover, as often as it takes, until both sides have ended. */
void rig_recover_until_done(struct rig *r);

/* rig_assert_moved - both completed, and every byte of the destination is right. */
void rig_assert_moved(struct rig *r);

/* rig_assert_source_runs - it ended before GO: the source runs on, the destination never ran. */
void rig_assert_source_runs(struct rig *r);

/* rig_assert_error, rig_assert_text - @text is in the session's error; in @heard, the last one. */
void rig_assert_error(struct tern_session *s, int code, const char *text);
void rig_assert_text(struct rig_heard *heard, const char *in, const char *text);
/* rig_await_text - wait until it is; a warning comes after the state that it explains. */
void rig_await_text(struct rig_heard *heard, const char *in, const char *text);

/* rig_postcopy - the session's figures of postcopy. */
struct tern_postcopy_stats *rig_postcopy(const struct tern_session *s,
					 struct tern_postcopy_stats *st);

void rig_fini(struct rig *r);

#endif
