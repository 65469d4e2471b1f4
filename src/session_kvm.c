/* SPDX-License-Identifier: BSD-2-Clause */
/* A session of a VMM that uses KVM: the description of its VM, and what its threads report. */
#include <errno.h>
#include <string.h>
#include <tern/kvm.h>

#include "error.h"
#include "kvm_vm.h"
#include "marks.h"
#include "session.h"

int tern_session_set_kvm(struct tern_session *s, const struct tern_kvm_desc *desc)
{
	struct tern_error err;
	struct kvm_vm *vm;
	int r;

	if (session_is_started(s))
		return -EBUSY;
	error_clear(&err);
	if (s->role != TERN_SOURCE)
		r = error_session(&err, -EINVAL,
				  "cannot describe the VM to a destination: only the source tracks "
				  "what its guest writes");
	else
		r = kvm_vm_new(desc, &s->regions, &s->params[TERN_PARAM_VCPU_DIRTY_LIMIT], &vm,
			       &err);
	session_set_up(s, &err);
	if (r)
		return r;
	kvm_vm_delete(&s->kvm);
	s->kvm = vm;
	return 0;
}

int tern_session_mark_dirty(struct tern_session *s, unsigned region, uint64_t offset, uint64_t len)
{
	struct marks *m =
		s->kvm ? atomic_load_explicit(&s->kvm->marks, memory_order_acquire) : NULL;

	if (region >= s->regions.nr)
		return -EINVAL;

	uint64_t size = s->regions.v[region].size;

	if (offset > size || len > size - offset)
		return -EINVAL;
	if (m && len) {
		uint64_t first = offset / TERN_PAGE_SIZE;

		marks_set(m, region, first, (offset + len - 1) / TERN_PAGE_SIZE - first + 1);
	}
	return 0;
}

int tern_session_ring_full(struct tern_session *s, unsigned vcpu)
{
	if (!s->kvm || vcpu >= s->kvm->nr_vcpus)
		return -EINVAL;
	kvm_gate_full(&s->kvm->gate, vcpu);
	return 0;
}

int tern_session_vcpu_stats(const struct tern_session *cs, unsigned index,
			    struct tern_vcpu_stats *out, size_t size)
{
	struct tern_session *s = (struct tern_session *)cs;
	struct tern_vcpu_stats st;

	if (!out || !size)
		return -EINVAL;
	monitor_lock(&s->mon);
	bool ring = s->stats.dirty_provider == TERN_DIRTY_KVM_RING;

	monitor_unlock(&s->mon);
	if (!ring || index >= s->kvm->nr_vcpus)
		return -ENOENT;
	kvm_gate_stats(&s->kvm->gate, index, &st);
	memset(out, 0, size);
	memcpy(out, &st, size < sizeof(st) ? size : sizeof(st));
	return 0;
}
