/* SPDX-License-Identifier: BSD-2-Clause */
#define _GNU_SOURCE
#include "kvm_vm.h"

#include <errno.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "error.h"
#include "kvm_ring.h"
#include "marks.h"
#include "region.h"

/* What stands for a slot in sentences. */
#define SLOT_FMT "slot %u of address space %u"
#define SLOT_ARG(s) ((s)->slot & 0xffff), ((s)->slot >> 16)

/* Far more than KVM has. */
#define SLOTS_MAX (1u << 20)
#define VCPUS_MAX (1u << 20)

/* slot_check_place - does slot @s lie in its region?  NULL, or what is wrong. */
static const char *slot_check_place(const struct tern_kvm_slot *s,
				    const struct region_list *regions)
{
	if (s->region >= regions->nr)
		return "there is no region of that id: add the regions first";

	uint64_t size = regions->v[s->region].size;

	if (s->offset % TERN_KVM_SLOT_ALIGN)
		return "its offset in the region is no multiple of 256 KiB (64 pages): give the "
		       "memory behind it a region of its own";
	if (s->offset >= size || s->size > size - s->offset)
		return "it is not within the region";
	return NULL;
}

/* slot_check - slot @s by itself.  NULL, or what is wrong. */
static const char *slot_check(const struct tern_kvm_slot *s, const struct region_list *regions)
{
	if (s->flags & KVM_MEM_LOG_DIRTY_PAGES)
		return "it has KVM_MEM_LOG_DIRTY_PAGES: the library turns that on and off by "
		       "itself, and needs the log for itself";
	if (s->flags & ~KVM_MEM_READONLY)
		return "it has flags other than KVM_MEM_READONLY";
	if (s->reserved)
		return "its reserved field is not 0";
	if (!s->size || s->size % TERN_PAGE_SIZE)
		return "its size is 0 or no multiple of 4096";
	if (s->gpa % TERN_PAGE_SIZE || s->gpa + s->size < s->gpa)
		return "its gpa is no multiple of 4096, or the end is beyond 2^64";
	if (!s->hva || s->hva % TERN_PAGE_SIZE)
		return "its hva is 0 or no multiple of 4096";
	return slot_check_place(s, regions);
}

/* by_number - for qsort() and bsearch(). */
static int by_number(const void *a, const void *b)
{
	const struct tern_kvm_slot *x = a, *y = b;

	return x->slot < y->slot ? -1 : x->slot > y->slot;
}

/* slots_check - all of them, sorted.  0 or -EINVAL with *err. */
static int slots_check(const struct kvm_vm *vm, const struct region_list *regions,
		       struct tern_error *err)
{
	for (unsigned i = 0; i < vm->nr_slots; i++) {
		const struct tern_kvm_slot *s = &vm->slots[i];
		const char *why = slot_check(s, regions);

		if (!why && i && s[-1].slot == s->slot)
			why = "it is described twice";
		if (why)
			return error_session(err, -EINVAL,
					     "cannot use the description of the VM: " SLOT_FMT
					     " (region %u, offset %#llx, %#llx bytes): %s",
					     SLOT_ARG(s), s->region, (unsigned long long)s->offset,
					     (unsigned long long)s->size, why);
	}
	return 0;
}

/* covered_to - the first byte from @at on that no slot shows of region @id. */
static uint64_t covered_to(const struct kvm_vm *vm, unsigned id, uint64_t at)
{
	for (unsigned i = 0; i < vm->nr_slots; i++) {
		const struct tern_kvm_slot *s = &vm->slots[i];

		if (s->region != id || s->offset > at || at - s->offset >= s->size)
			continue;
		at = s->offset + s->size;
		i = (unsigned)-1; /* from the beginning: another one may go on here */
	}
	return at;
}

/* cover_check - has every page a slot, unless the VMM says otherwise?  0 or -EINVAL. */
static int cover_check(const struct kvm_vm *vm, const struct region_list *regions,
		       struct tern_error *err)
{
	for (unsigned i = 0; i < regions->nr && !(vm->flags & TERN_KVM_GAPS); i++) {
		const struct region *r = &regions->v[i];
		uint64_t at = covered_to(vm, i, 0);

		if (at < r->size)
			return error_session(err, -EINVAL,
					     "cannot use the description of the VM: no slot shows "
					     "region %s at offset %#llx, so writes there would be "
					     "missed; describe all slots, or set TERN_KVM_GAPS if "
					     "the guest cannot write there",
					     r->name, (unsigned long long)at);
	}
	return 0;
}

/* desc_check - the description's own fields.  NULL, or what is wrong. */
static const char *desc_check(const struct tern_kvm_desc *d)
{
	for (size_t i = 0; i < sizeof(d->reserved) / sizeof(d->reserved[0]); i++)
		if (d->reserved[i])
			return "a reserved field is not 0";
	if (d->flags & ~TERN_KVM_GAPS)
		return "there is no such flag";
	if (d->vm_fd < 0)
		return "vm_fd is no descriptor";
	if (!d->nr_slots || !d->slots || d->nr_slots > SLOTS_MAX)
		return "there are no memory slots, or too many";
	if ((d->nr_vcpus && !d->vcpu_fds) || d->nr_vcpus > VCPUS_MAX)
		return "there are vCPUs without descriptors, or too many";
	if (d->ring_entries & (d->ring_entries - 1))
		return "ring_entries is no power of two";
	return NULL;
}

/* copy - calloc() and memcpy(); NULL: no memory. */
static void *copy(const void *v, size_t nr, size_t size)
{
	void *p = calloc(nr ? nr : 1, size);

	if (p && nr)
		memcpy(p, v, nr * size);
	return p;
}

int kvm_vm_new(const struct tern_kvm_desc *d, const struct region_list *regions,
	       const _Atomic uint64_t *limit, struct kvm_vm **out, struct tern_error *err)
{
	const char *why = desc_check(d);
	struct kvm_vm *vm;
	int r;

	if (why)
		return error_session(err, -EINVAL, "cannot use the description of the VM: %s", why);
	vm = calloc(1, sizeof(*vm));
	if (!vm || kvm_gate_init(&vm->gate, d->nr_vcpus, limit)) {
		free(vm);
		return error_session(err, -ENOMEM, "no memory for the description of the VM");
	}
	vm->vm_fd = d->vm_fd;
	vm->flags = d->flags;
	vm->nr_slots = d->nr_slots;
	vm->nr_vcpus = d->nr_vcpus;
	vm->ring_entries = d->ring_entries;
	vm->slots = copy(d->slots, d->nr_slots, sizeof(*d->slots));
	vm->vcpu_fds = copy(d->vcpu_fds, d->nr_vcpus, sizeof(*d->vcpu_fds));
	if (!vm->slots || !vm->vcpu_fds) {
		r = error_session(err, -ENOMEM, "no memory for the description of the VM");
	} else {
		qsort(vm->slots, vm->nr_slots, sizeof(*vm->slots), by_number);
		r = slots_check(vm, regions, err);
	}
	if (!r)
		r = cover_check(vm, regions, err);
	if (r)
		kvm_vm_delete(&vm);
	else
		*out = vm;
	return r;
}

void kvm_vm_delete(struct kvm_vm **vmp)
{
	struct kvm_vm *vm = *vmp;

	if (!vm)
		return;
	struct marks *m = atomic_load(&vm->marks);

	marks_delete(&m);
	kvm_gate_fini(&vm->gate);
	free(vm->slots);
	free(vm->vcpu_fds);
	free(vm);
	*vmp = NULL;
}

int kvm_vm_ready(struct kvm_vm *vm, const struct region_list *regions, struct tern_error *err)
{
	int r = cover_check(vm, regions, err);

	if (r || atomic_load(&vm->marks))
		return r;
	struct marks *m = marks_new(regions);

	if (!m)
		return error_session(err, -ENOMEM, "no memory for the marks of dirty pages");
	atomic_store(&vm->marks, m);
	return 0;
}

bool kvm_vm_has_ring(const struct kvm_vm *vm)
{
	return vm->nr_vcpus && kvm_ring_present(vm->vcpu_fds[0]);
}

/* slot_set - give slot @s to KVM again, with the log on or off.  0 or -errno. */
static int slot_set(const struct kvm_vm *vm, const struct tern_kvm_slot *s, bool on)
{
	struct kvm_userspace_memory_region m = {
		.slot = s->slot,
		.flags = s->flags | (on ? KVM_MEM_LOG_DIRTY_PAGES : 0),
		.guest_phys_addr = s->gpa,
		.memory_size = s->size,
		.userspace_addr = s->hva,
	};

	return ioctl(vm->vm_fd, KVM_SET_USER_MEMORY_REGION, &m) ? -errno : 0;
}

int kvm_vm_log_on(const struct kvm_vm *vm, struct tern_error *err)
{
	for (unsigned i = 0; i < vm->nr_slots; i++) {
		const struct tern_kvm_slot *s = &vm->slots[i];
		int r = slot_set(vm, s, true);

		if (!r)
			continue;
		while (i-- > 0)
			slot_set(vm, &vm->slots[i], false);
		return error_session(err, r,
				     "cannot turn on the dirty log of " SLOT_FMT
				     ": KVM_SET_USER_MEMORY_REGION gave %s; describe it just as it "
				     "was given to KVM",
				     SLOT_ARG(s), error_name(r));
	}
	return 0;
}

void kvm_vm_log_off(const struct kvm_vm *vm)
{
	for (unsigned i = 0; i < vm->nr_slots; i++)
		slot_set(vm, &vm->slots[i], false);
}

const struct tern_kvm_slot *kvm_vm_find(const struct kvm_vm *vm, uint32_t slot)
{
	struct tern_kvm_slot key = { .slot = slot };

	return bsearch(&key, vm->slots, vm->nr_slots, sizeof(key), by_number);
}
