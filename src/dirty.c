/* SPDX-License-Identifier: BSD-2-Clause */
#define _GNU_SOURCE
#include "dirty.h"

#include <errno.h>
#include <string.h>
#include "error.h"
#include "kvm_vm.h"

/*
 * Choosing the dirty provider.  Each is probed by doing on scratch memory what
 * it will have to do later, so that a migration does not find out half way that
 * the kernel cannot.
 */

/* dirty_none_start - the paused guest's start(). */
static int dirty_none_start(void *opaque)
{
	return 0;
}

/* dirty_none_stop - the paused guest's stop(). */
static void dirty_none_stop(void *opaque)
{
}

/* dirty_none_sync - the paused guest writes nothing. */
static int dirty_none_sync(void *opaque, unsigned region, uint64_t first, uint64_t nr,
			   uint64_t *bitmap)
{
	return 0;
}

/* dirty_init_none - nothing is ever dirty. */
static int dirty_init_none(struct dirty *d)
{
	*d = (struct dirty){
		.kind = TERN_DIRTY_NONE,
		.ops = {
			.start = dirty_none_start,
			.stop = dirty_none_stop,
			.sync = dirty_none_sync,
		},
	};
	return 0;
}

/* dirty_init_user - the VMM's own callbacks.  0 or -EINVAL. */
static int dirty_init_user(struct dirty *d, const struct tern_dirty_ops *user, void *user_opaque,
			   struct tern_error *err)
{
	if (!user || !user->start || !user->stop || !user->sync)
		return error_session(
			err, -EINVAL,
			"cannot use dirty callbacks: %s; set start, stop and sync with "
			"tern_session_set_dirty_ops()",
			user ? "one of start, stop and sync is NULL" : "there are none");
	*d = (struct dirty){
		.kind = TERN_DIRTY_CALLBACKS,
		.ops = *user,
		.opaque = user_opaque,
	};
	return 0;
}

/* dirty_init_best - the best userfaultfd provider that works, or both reasons. */
static int dirty_init_best(struct dirty *d, const struct region_list *regions,
			   const struct populated *populated, struct tern_error *err)
{
	struct tern_error first, second;
	int ret;

	error_clear(&first);
	error_clear(&second);
	*d = (struct dirty){ .kind = TERN_DIRTY_AUTO };
	if (!dirty_wp_async_new(d, regions, populated, &first))
		return 0;
	ret = dirty_wp_sync_new(d, regions, populated, &second);
	if (!ret)
		return 0;
	if (!strcmp(first.message, second.message))
		return error_session(err, ret, "%s", first.message);
	return error_session(err, ret, "%.240s.  As to the older way: %.240s", first.message,
			     second.message);
}

/* dirty_init_kvm - KVM's log or ring of the VM that was described. */
static int dirty_init_kvm(struct dirty *d, enum tern_dirty_provider kind, struct kvm_vm *kvm,
			  const struct region_list *regions, struct tern_error *err)
{
	if (!kvm)
		return error_session(err, -EINVAL,
				     "cannot use dirty provider %s: the VM was not described; call "
				     "tern_session_set_kvm()",
				     tern_dirty_provider_name(kind));
	return kind == TERN_DIRTY_KVM_RING ? dirty_kvm_ring_new(d, kvm, regions, err)
					   : dirty_kvm_log_new(d, kvm, regions, err);
}

/* dirty_init_auto - whatever suits what the VMM has told. */
static int dirty_init_auto(struct dirty *d, const struct tern_dirty_ops *user, void *user_opaque,
			   struct kvm_vm *kvm, const struct region_list *regions,
			   const struct populated *populated, struct tern_error *err)
{
	if (user)
		return dirty_init_user(d, user, user_opaque, err);
	if (kvm)
		return dirty_init_kvm(d,
				      kvm_vm_has_ring(kvm) ? TERN_DIRTY_KVM_RING :
							     TERN_DIRTY_KVM_LOG,
				      kvm, regions, err);
	return dirty_init_best(d, regions, populated, err);
}

int dirty_init(struct dirty *d, enum tern_dirty_provider kind, const struct tern_dirty_ops *user,
	       void *user_opaque, struct kvm_vm *kvm, const struct region_list *regions,
	       const struct populated *populated, struct tern_error *err)
{
	*d = (struct dirty){ .kind = kind };
	switch (kind) {
	case TERN_DIRTY_NONE:
		return dirty_init_none(d);
	case TERN_DIRTY_UFFD_WP_ASYNC:
		return dirty_wp_async_new(d, regions, populated, err);
	case TERN_DIRTY_UFFD_WP_SYNC:
		return dirty_wp_sync_new(d, regions, populated, err);
	case TERN_DIRTY_CALLBACKS:
		return dirty_init_user(d, user, user_opaque, err);
	case TERN_DIRTY_AUTO:
		return dirty_init_auto(d, user, user_opaque, kvm, regions, populated, err);
	case TERN_DIRTY_KVM_LOG:
	case TERN_DIRTY_KVM_RING:
		return dirty_init_kvm(d, kind, kvm, regions, err);
	case TERN_DIRTY_NR:
		break;
	}
	return error_session(err, -EINVAL, "cannot use dirty provider %d: there is none",
			     (int)kind);
}

void dirty_fini(struct dirty *d)
{
	if (d->destroy)
		d->destroy(d->opaque);
	memset(d, 0, sizeof(*d));
}

int dirty_failed(const struct dirty *d, int code, const char *what, struct tern_error *err)
{
	if (d->why && d->why->code)
		return error_session(err, code, "%s", d->why->message);
	return error_session(err, code, "cannot %s (%s): %s", what,
			     tern_dirty_provider_name(d->kind), error_name(code));
}
