/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_SRC_DIRTY_H
#define TERN_SRC_DIRTY_H

/*
 * Dirty providers: who tells which pages were written.
 *
 * A provider is a struct tern_dirty_ops (see include/tern/vm.h for the contract
 * of start, sync, clear, stop) and its opaque pointer.  The engine uses it so:
 *
 *	start()                      track from now on
 *	round 1: dirty = populated pages
 *	each stripe, just before it is read:   clear(stripe)  may add bits
 *	after each round:            begin(), sync(everything)  dirty |= written
 *	guest paused:                begin(), sync(everything), last round without clear()
 *	stop()
 *
 * A page that was a hole at start() and is written later must be reported.
 */

#include <stdbool.h>
#include <tern/session.h>
#include <tern/vm.h>

struct kvm_vm;
struct region_list;
struct populated;
struct tern_error;

struct dirty {
	enum tern_dirty_provider kind;
	struct tern_dirty_ops ops; /* all callable except clear and begin, which may be NULL */
	void *opaque;
	void (*destroy)(void *opaque); /* NULL: caller's own callbacks */
	const struct tern_error *why; /* the provider's own sentence on why start() or begin()
				       * failed, if its code is not 0; NULL: it has none */
	bool stop_can_wait; /* it keeps a CPU for long, 13 ms per GiB maybe, and need not be
			     * soon once nobody writes any more; on any thread */
};

/*
 * dirty_init - make the provider @kind.
 *
 * TERN_DIRTY_AUTO takes @user if set, else KVM if there is a @kvm (its rings if it has
 * some, else its logs), else the best userfaultfd provider that works on every region
 * (probed, not guessed from versions).  What was chosen must work: there is no second
 * choice after KVM.  TERN_DIRTY_NONE reports nothing.  @kvm, @regions and @populated must
 * outlive it.  Returns 0; -ENOSYS or -EPERM with a sentence that says what the kernel
 * lacks and what to do; -EINVAL and others if something that the VMM set does not work.
 */
int dirty_init(struct dirty *d, enum tern_dirty_provider kind, const struct tern_dirty_ops *user,
	       void *user_opaque, struct kvm_vm *kvm, const struct region_list *regions,
	       const struct populated *populated, struct tern_error *err);

/* dirty_failed - start() or begin() gave @code when trying to @what: the sentence in *err. */
int dirty_failed(const struct dirty *d, int code, const char *what, struct tern_error *err);

/* dirty_fini - after stop() if started; frees. */
void dirty_fini(struct dirty *d);

/* One file per provider. */
int dirty_wp_async_new(struct dirty *d, const struct region_list *regions,
		       const struct populated *populated, struct tern_error *err);
int dirty_wp_sync_new(struct dirty *d, const struct region_list *regions,
		      const struct populated *populated, struct tern_error *err);
int dirty_kvm_log_new(struct dirty *d, struct kvm_vm *vm, const struct region_list *regions,
		      struct tern_error *err);
int dirty_kvm_ring_new(struct dirty *d, struct kvm_vm *vm, const struct region_list *regions,
		       struct tern_error *err);

#endif
