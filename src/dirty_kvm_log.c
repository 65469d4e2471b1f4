/* SPDX-License-Identifier: BSD-2-Clause */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include "bitmap.h"
#include "dirty.h"
#include "error.h"
#include "kvm_vm.h"
#include "marks.h"
#include "region.h"

/*
 * Dirty tracking by KVM's bitmaps, one per memory slot.
 *
 *	start	turn on the logs; forget what is set already
 *	begin	KVM_GET_DIRTY_LOG of each slot, into the marks, where the VMM's own writes
 *		are (tern_session_mark_dirty())
 *	sync	report the marks
 *	clear	take the marks of the pages to be read; KVM_CLEAR_DIRTY_LOG for them
 *	stop	turn the logs off
 *
 * KVM gives the log of a slot as a whole, and sync() is asked for pieces, by several threads:
 * so it is fetched once before each series, by one thread.
 *
 * With manual clearing KVM's bits stay until clear(), which takes a bit and write-protects
 * its page in one step: a write is before it and can be read, or after it and is logged
 * again.  Without it, KVM_GET_DIRTY_LOG takes the bits and protects; nothing is lost, since
 * they are in the marks before anything is read, but what the guest writes between begin()
 * and the read is sent twice.  KVM_CLEAR_DIRTY_LOG works in either case and helps in both.
 * The provider need not know which one it is, and KVM would not tell.
 *
 * Turning a log on write-protects all of its slot, with KVM's lock of the page tables held,
 * which vCPUs need for their faults: 13 ms per GiB with shadow page tables.  With
 * KVM_DIRTY_LOG_INITIALLY_SET all bits are set instead, and clearing them protects.  So
 * start() clears them, in pieces between which a vCPU gets the lock.  Nothing is lost by
 * that: all pages that exist afterwards are sent in the first round, and a write before the
 * clearing made its page exist.  (Leaving the bits to clear() would do as well, but for holes:
 * their bits are set, too, and who reads a hole may allocate it.)
 *
 * Writes that the processor has noted but KVM has not yet seen (Intel's PML) are with KVM
 * once the vCPU has left the guest, and KVM_GET_DIRTY_LOG makes it do so.
 */

/* Pages of a log that start() clears at once: some 0.2 ms for a vCPU that needs the lock. */
#define FORGET_PAGES 4096u

struct kvm_log {
	struct kvm_vm *vm;
	struct marks *marks;
	uint64_t *scratch; /* the log of a slot */
	bool can_clear;
	bool started;
	struct tern_error why;
};

/* get_log - the log of slot @s into the scratch map.  0 or -errno. */
static int get_log(const struct kvm_log *l, const struct tern_kvm_slot *s)
{
	struct kvm_dirty_log d = { .slot = s->slot, .dirty_bitmap = l->scratch };

	return ioctl(l->vm->vm_fd, KVM_GET_DIRTY_LOG, &d) ? -errno : 0;
}

/*
 * clear_log - clear the bits of @map in the log of slot @s.
 *
 * Bit 0 of @map is page @first of the slot, a multiple of 64; @nr is one too, unless the
 * slot ends there.  0 or -errno.
 */
static int clear_log(const struct kvm_log *l, const struct tern_kvm_slot *s, uint64_t first,
		     uint64_t nr, uint64_t *map)
{
	uint64_t set = bitmap_next_set(map, nr, 0);
	uint64_t begin = set / BITMAP_WORD_BITS, end = bitmap_words(nr);

	if (set == nr)
		return 0;
	while (!map[end - 1])
		end--;

	uint64_t last = end * BITMAP_WORD_BITS < nr ? end * BITMAP_WORD_BITS : nr;
	struct kvm_clear_dirty_log d = {
		.slot = s->slot,
		.first_page = first + begin * BITMAP_WORD_BITS,
		.num_pages = (uint32_t)(last - begin * BITMAP_WORD_BITS),
		.dirty_bitmap = map + begin,
	};

	return ioctl(l->vm->vm_fd, KVM_CLEAR_DIRTY_LOG, &d) ? -errno : 0;
}

/* kvm_log_why - the sentence for a log that cannot be read. */
static int kvm_log_why(struct kvm_log *l, const struct tern_kvm_slot *s, int code)
{
	return error_session(&l->why, code,
			     "cannot read the dirty log of slot %u of address space %u: "
			     "KVM_GET_DIRTY_LOG gave %s; slots must not change while a session "
			     "is active",
			     s->slot & 0xffff, s->slot >> 16, error_name(code));
}

/* forget_all - what is set in the logs now is not news.  0 or -errno with l->why. */
static int forget_all(struct kvm_log *l)
{
	for (unsigned i = 0; i < l->vm->nr_slots; i++) {
		const struct tern_kvm_slot *s = &l->vm->slots[i];
		uint64_t pages = s->size / TERN_PAGE_SIZE;
		int r = get_log(l, s);

		for (uint64_t at = 0; !r && l->can_clear && at < pages; at += FORGET_PAGES)
			r = clear_log(l, s, at,
				      pages - at < FORGET_PAGES ? pages - at : FORGET_PAGES,
				      l->scratch + at / BITMAP_WORD_BITS);
		if (r)
			return kvm_log_why(l, s, r);
	}
	return 0;
}

/* kvm_log_start - see struct tern_dirty_ops. */
static int kvm_log_start(void *opaque)
{
	struct kvm_log *l = opaque;
	int r;

	if (l->started)
		return -EBUSY;
	error_clear(&l->why);
	r = kvm_vm_log_on(l->vm, &l->why);
	if (r)
		return r;
	r = forget_all(l);
	if (r)
		kvm_vm_log_off(l->vm);
	else
		l->started = true;
	return r;
}

/* kvm_log_stop - see struct tern_dirty_ops. */
static void kvm_log_stop(void *opaque)
{
	struct kvm_log *l = opaque;

	if (l->started)
		kvm_vm_log_off(l->vm);
	l->started = false;
}

/* kvm_log_begin - see struct tern_dirty_ops. */
static int kvm_log_begin(void *opaque)
{
	struct kvm_log *l = opaque;

	for (unsigned i = 0; i < l->vm->nr_slots; i++) {
		const struct tern_kvm_slot *s = &l->vm->slots[i];
		uint64_t words = bitmap_words(s->size / TERN_PAGE_SIZE);
		uint64_t at = s->offset / TERN_PAGE_SIZE / BITMAP_WORD_BITS;
		int r = get_log(l, s);

		if (r)
			return kvm_log_why(l, s, r);
		for (uint64_t w = 0; w < words; w++)
			if (l->scratch[w])
				marks_set_word(l->marks, s->region, at + w, l->scratch[w]);
	}
	return 0;
}

/* kvm_log_sync - see struct tern_dirty_ops. */
static int kvm_log_sync(void *opaque, unsigned region, uint64_t first, uint64_t nr,
			uint64_t *bitmap)
{
	struct kvm_log *l = opaque;

	marks_get(l->marks, region, first, nr, bitmap);
	return 0;
}

/* kvm_log_clear - see struct tern_dirty_ops. */
static int kvm_log_clear(void *opaque, unsigned region, uint64_t first, uint64_t nr,
			 uint64_t *bitmap)
{
	struct kvm_log *l = opaque;

	marks_take(l->marks, region, first, nr, bitmap);
	for (unsigned i = 0; i < l->vm->nr_slots && l->can_clear; i++) {
		const struct tern_kvm_slot *s = &l->vm->slots[i];
		uint64_t begin = s->offset / TERN_PAGE_SIZE;
		uint64_t end = begin + s->size / TERN_PAGE_SIZE;
		uint64_t a = first > begin ? first : begin;
		uint64_t b = first + nr < end ? first + nr : end;

		if (s->region != region || a >= b)
			continue;
		int r = clear_log(l, s, a - begin, b - a, bitmap + (a - first) / BITMAP_WORD_BITS);

		if (r)
			return r;
	}
	return 0;
}

/* kvm_log_destroy - after stop(). */
static void kvm_log_destroy(void *opaque)
{
	struct kvm_log *l = opaque;

	free(l->scratch);
	free(l);
}

/* check_idle - are there logs, and are they off?  0 or -errno with *err. */
static int check_idle(const struct kvm_log *l, struct tern_error *err)
{
	const struct tern_kvm_slot *s = &l->vm->slots[0];
	int r = get_log(l, s);

	if (r == -ENOENT)
		return 0;
	if (!r)
		return error_session(err, -EBUSY,
				     "cannot use KVM's dirty log: that of slot %u of address space "
				     "%u is on already; the library needs it for itself",
				     s->slot & 0xffff, s->slot >> 16);
	if (r == -ENXIO)
		return error_session(
			err, r,
			"cannot use KVM's dirty log: the VM has dirty rings, and so no "
			"logs; use kvm-ring, and describe its vCPUs");
	return error_session(err, r,
			     "cannot use KVM's dirty log: KVM_GET_DIRTY_LOG on descriptor %d gave "
			     "%s; give the one of KVM_CREATE_VM",
			     l->vm->vm_fd, error_name(r));
}

int dirty_kvm_log_new(struct dirty *d, struct kvm_vm *vm, const struct region_list *regions,
		      struct tern_error *err)
{
	struct kvm_log *l;
	uint64_t most = 0;
	int r = kvm_vm_ready(vm, regions, err);

	if (r)
		return r;
	for (unsigned i = 0; i < vm->nr_slots; i++)
		most = vm->slots[i].size > most ? vm->slots[i].size : most;
	l = calloc(1, sizeof(*l));
	if (l)
		l->scratch = calloc(bitmap_words(most / TERN_PAGE_SIZE), sizeof(*l->scratch));
	if (!l || !l->scratch) {
		free(l);
		return error_session(err, -ENOMEM, "cannot allocate the dirty provider");
	}
	l->vm = vm;
	l->marks = atomic_load(&vm->marks);
	error_clear(&l->why);
	r = check_idle(l, err);
	if (r) {
		kvm_log_destroy(l);
		return r;
	}
	l->can_clear = ioctl(vm->vm_fd, KVM_CHECK_EXTENSION,
			     (unsigned long)KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2) > 0;
	*d = (struct dirty){
		.kind = TERN_DIRTY_KVM_LOG,
		.stop_can_wait = true,
		.ops = {
			.start = kvm_log_start,
			.stop = kvm_log_stop,
			.sync = kvm_log_sync,
			.clear = kvm_log_clear,
			.begin = kvm_log_begin,
		},
		.opaque = l,
		.destroy = kvm_log_destroy,
		.why = &l->why,
	};
	return 0;
}
