/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_VM_H
#define TERN_VM_H

/*
 * What a VMM gives the library: callbacks to pause and resume the guest, to
 * save and load device state, and, if it keeps one, its dirty log.
 *
 * All struct tern_vm_ops callbacks but announce() are called on the session's own
 * thread, one at a time, with no lock of the library held; they may block, and the time
 * they take is part of the downtime ledger.  They must not call
 * tern_session_delete() or tern_session_wait().  Each returns 0 or a negative
 * errno value.  If pause(), save() or load() fails, the migration ends with the source
 * guest running; if throttle(), or resume() at the source, fails, a WARNING says so.
 * tern_session_explain() gives a failure words, which the operator of the other side reads
 * too.
 *
 * The source gives up waiting for load() and for resume() at the destination after six
 * times TERN_PARAM_PEER_TIMEOUT_MS; after GO the outcome is unknown to it then.
 *
 * That thread has all signals blocked but those a thread brings on itself (SIGSEGV,
 * SIGBUS, ...), and CPUs as TERN_TEXT_CPUS says.  A thread made in a callback inherits both:
 * one that is to be kicked by a signal, as a vCPU's, unblocks it, or is made elsewhere.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

struct tern_state_writer;
struct tern_state_reader;

struct tern_vm_ops {
	/*
	 * Source.  Stop all vCPUs and everything else that writes guest RAM.
	 * When it returns 0, nothing writes guest RAM any more.  NULL for a
	 * guest that is already paused.
	 */
	int (*pause)(void *opaque);

	/*
	 * Destination: run the guest; called once, after GO.
	 * Source: run it again after a migration that failed or was cancelled
	 * before GO; called only if pause() had been called.
	 * NULL: nothing to do.
	 */
	int (*resume)(void *opaque);

	/* Source, guest paused: write device state with tern_state_write(). */
	int (*save)(void *opaque, struct tern_state_writer *w);

	/*
	 * Destination, guest not running, all RAM placed, or with postcopy fetched
	 * as it is touched: read device state with tern_state_read().  All of it has arrived before the call.
	 * State left unread is an error.
	 */
	int (*load)(void *opaque, struct tern_state_reader *r);

	/*
	 * Source, TERN_PARAM_AUTO_CONVERGE: let every vCPU run only 100 - @percent
	 * percent of the time; 0: at full speed again, which is also said after the
	 * guest was paused and before it is resumed.  NULL: it cannot be slowed.
	 */
	int (*throttle)(void *opaque, unsigned percent);

	/*
	 * Destination, the guest runs here: tell the network where it is now
	 * (gratuitous ARP, RARP, unsolicited neighbour advertisements).  Called
	 * TERN_PARAM_ANNOUNCE_ROUNDS times, @round counting from 0, because such
	 * packets get lost.  On a thread of its own, also after the session has
	 * completed; tern_session_delete() ends it.  The result is ignored.
	 */
	int (*announce)(void *opaque, unsigned round);
};

/*
 * tern_state_write - append @len bytes to the device state.
 *
 * Only inside save().  Buffers; does not block on the network.
 * Returns 0, -ENOMEM, or -EFBIG above TERN_PARAM_STATE_MAX.
 */
int tern_state_write(struct tern_state_writer *w, const void *buf, size_t len);

/*
 * tern_state_read - take the next @len bytes of the device state.
 *
 * Only inside load().  Never blocks.  Returns 0, or -ENODATA if fewer than
 * @len bytes are left (none is consumed then).
 */
int tern_state_read(struct tern_state_reader *r, void *buf, size_t len);

/* tern_state_remaining - bytes not yet read.  Only inside load(). */
size_t tern_state_remaining(const struct tern_state_reader *r);

/*
 * A VMM's own dirty log, instead of the library's providers
 * (tern_session_set_dirty_ops()).  Bitmaps have one bit per TERN_PAGE_SIZE,
 * bit 0 of word 0 first; callbacks only ever set bits.  Ranges given to the
 * callbacks begin at a multiple of 64 pages.
 */
struct tern_dirty_ops {
	/* Begin tracking all regions.  Session thread, before the first round. */
	int (*start)(void *opaque);

	/* End tracking; also after a failed migration.  Session thread. */
	void (*stop)(void *opaque);

	/*
	 * Set in @bitmap the pages of [first_page, first_page + nr_pages) of
	 * region @region written since start() or since they were last
	 * cleared.  Bit 0 of @bitmap is @first_page.  Must not miss a write
	 * that finished before the call.  Channel threads, concurrently for
	 * disjoint ranges.
	 */
	int (*sync)(void *opaque, unsigned region, uint64_t first_page, uint64_t nr_pages,
		    uint64_t *bitmap);

	/*
	 * The pages set in @bitmap are about to be read: clear them in the
	 * dirty log, so that any write from now on is reported by a later
	 * sync() (invariant 2: a dirty bit is cleared before its page is
	 * read).  May set more bits for further dirty pages of the range that
	 * it cleared too.  Same threads as sync().  NULL if sync() clears what
	 * it reports.
	 */
	int (*clear)(void *opaque, unsigned region, uint64_t first_page, uint64_t nr_pages,
		     uint64_t *bitmap);

	/*
	 * A series of sync() calls that covers all regions is about to begin, after a round
	 * or with the guest paused: the moment to fetch a log that comes as a whole.  Then
	 * sync() may report what was written before begin() only.  Session thread, while no
	 * channel thread is in sync() or clear().  NULL if there is nothing to do.
	 */
	int (*begin)(void *opaque);
};

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif

#endif
