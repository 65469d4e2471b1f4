/* SPDX-License-Identifier: BSD-2-Clause */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include "dirty.h"
#include "error.h"
#include "kvm_ring.h"
#include "kvm_vm.h"
#include "marks.h"
#include "region.h"

/*
 * Dirty tracking by KVM's dirty rings, one per vCPU.
 *
 *	start	turn on the logs of the slots: KVM write-protects them; start the harvester
 *	begin	harvest all rings
 *	sync	report the marks: what was harvested, and what the VMM wrote by itself
 *	clear	take the marks of the pages to be read
 *	stop	turn the logs off, harvest once more so that no ring stays full
 *
 * A harvest has three steps: take the entries out of the rings, into a list of our own;
 * KVM_RESET_DIRTY_RINGS, upon which KVM write-protects their pages; mark them.  Marking last
 * is what makes clear() right while the harvester is at work.  A page that is marked is
 * protected already: whoever takes its mark and reads it misses no later write, since that
 * makes a new entry.  Were it marked first, clear() could take the mark, the page be read and
 * then written again, all before the reset: KVM would not tell of that write, because for
 * KVM the page is dirty still, and the mark would be gone.  Between the two steps the pages
 * are in the list only; whoever reads one of them meanwhile will read it again.
 *
 * The harvester looks every TICK_NS at rings that are half full, and harvests all of them
 * every HARVEST_NS.  Not more often: each reset protects pages that the guest may be about
 * to write again, and between two rounds nobody wants to know.  A vCPU whose ring is full
 * asks for a harvest and waits (kvm_gate.h), and one that dirties more than it may
 * (TERN_PARAM_VCPU_DIRTY_LIMIT) gets none but from begin().
 *
 * What rings say is checked: an entry of a slot that was not described, or of a page that it
 * has not, is an error which the next begin() returns.  Harvesting goes on even then, because
 * the guest must.
 */

enum {
	BATCH = 16384, /* entries between two resets */
	TICK_NS = 10 * 1000000,
	HARVEST_NS = 1000 * 1000000,
};

struct kvm_rings {
	struct kvm_vm *vm;
	struct marks *marks;
	bool started;
	pthread_t harvester;
	struct tern_error why; /* session thread */

	pthread_mutex_t lock; /* guards the rest; held during a harvest */
	struct kvm_ring *rings;
	unsigned nr_open;
	const struct tern_kvm_slot *last; /* slot of the last entry, likely of the next */
	struct kvm_ring_entry *batch;
	uint32_t nr_batch;
	struct tern_error bad; /* the first */
};

/* slot_of - the slot an entry is of, or NULL if it has no such page. */
static const struct tern_kvm_slot *slot_of(struct kvm_rings *k, const struct kvm_ring_entry *e)
{
	const struct tern_kvm_slot *s = k->last;

	if (!s || s->slot != e->slot)
		s = kvm_vm_find(k->vm, e->slot);
	if (!s || e->page >= s->size / TERN_PAGE_SIZE)
		return NULL;
	k->last = s;
	return s;
}

/* bad_entry - note that vCPU @vcpu has reported nonsense. */
static void bad_entry(struct kvm_rings *k, unsigned vcpu, const struct kvm_ring_entry *e)
{
	error_session(&k->bad, -ERANGE,
		      "the dirty ring of vCPU %u names page %#llx of slot %u of address space %u, "
		      "which was not described; describe all slots that have "
		      "KVM_MEM_LOG_DIRTY_PAGES, and leave them alone while a session is active",
		      vcpu, (unsigned long long)e->page, e->slot & 0xffff, e->slot >> 16);
}

/* take_ring - entries of ring @i into the batch; at most @left.  Returns how many. */
static uint32_t take_ring(struct kvm_rings *k, unsigned i, uint32_t left)
{
	uint32_t room = BATCH - k->nr_batch, nr;
	struct kvm_ring_entry *e = k->batch + k->nr_batch;

	nr = kvm_ring_take(&k->rings[i], e, left < room ? left : room);
	for (uint32_t n = 0; n < nr; n++) {
		if (!slot_of(k, &e[n]))
			bad_entry(k, i, &e[n]);
		else
			k->batch[k->nr_batch++] = e[n];
	}
	if (nr)
		kvm_gate_harvested(&k->vm->gate, i, nr);
	return nr;
}

/* reset - give what was taken back to KVM, which protects the pages; then mark them. */
static void reset(struct kvm_rings *k)
{
	int r;

	do {
		r = ioctl(k->vm->vm_fd, KVM_RESET_DIRTY_RINGS, 0);
	} while (r < 0 && errno == EINTR);
	if (r < 0) {
		int e = -errno;

		error_session(&k->bad, e,
			      "cannot reset the dirty rings: KVM_RESET_DIRTY_RINGS on descriptor "
			      "%d gave %s",
			      k->vm->vm_fd, error_name(e));
	}
	for (uint32_t n = 0; n < k->nr_batch; n++) {
		const struct tern_kvm_slot *s = slot_of(k, &k->batch[n]);
		uint64_t page = s->offset / TERN_PAGE_SIZE + k->batch[n].page;

		marks_set_word(k->marks, s->region, page / 64, 1ull << page % 64);
	}
	k->nr_batch = 0;
}

/*
 * harvest - all rings, or without @all those of vCPUs that owe nothing; without @quiet_too ones
 * that are not half full are left alone.
 *
 * No ring is emptied more than once, however fast it fills again.  The lock is held.
 */
static void harvest(struct kvm_rings *k, bool all, bool quiet_too)
{
	bool taken = false;

	for (unsigned i = 0; i < k->vm->nr_vcpus; i++) {
		uint32_t left = k->rings[i].nr, nr;

		if (!quiet_too && !kvm_ring_busy(&k->rings[i]))
			continue;
		if (!all && kvm_gate_owes(&k->vm->gate, i))
			continue;
		do {
			nr = take_ring(k, i, left);
			left -= nr;
			taken = taken || nr;
			if (k->nr_batch == BATCH)
				reset(k);
		} while (nr && left);
	}
	if (taken)
		reset(k);
}

/* harvester_main - the thread: until tracking ends. */
static void *harvester_main(void *opaque)
{
	struct kvm_rings *k = opaque;
	uint64_t next = now_ns() + HARVEST_NS, turn, done = 0;

	pthread_setname_np(pthread_self(), "tern-kvm-ring");
	while (kvm_gate_wait(&k->vm->gate, now_ns() + TICK_NS, &turn)) {
		bool due = now_ns() >= next;

		pthread_mutex_lock(&k->lock);
		harvest(k, false, due || turn != done);
		pthread_mutex_unlock(&k->lock);
		kvm_gate_done(&k->vm->gate, turn);
		done = turn;
		if (!due)
			continue;
		kvm_gate_measure(&k->vm->gate);
		next = now_ns() + HARVEST_NS;
	}
	return NULL;
}

/* kvm_rings_start - see struct tern_dirty_ops. */
static int kvm_rings_start(void *opaque)
{
	struct kvm_rings *k = opaque;
	int r;

	if (k->started)
		return -EBUSY;
	error_clear(&k->why);
	kvm_gate_track(&k->vm->gate, true);
	r = -pthread_create(&k->harvester, NULL, harvester_main, k);
	if (r) {
		kvm_gate_track(&k->vm->gate, false);
		return error_session(&k->why, r,
				     "cannot start the thread that harvests dirty "
				     "rings: %s",
				     error_name(r));
	}
	r = kvm_vm_log_on(k->vm, &k->why);
	if (r) {
		kvm_gate_track(&k->vm->gate, false);
		pthread_join(k->harvester, NULL);
		return r;
	}
	k->started = true;
	return 0;
}

/* kvm_rings_stop - see struct tern_dirty_ops. */
static void kvm_rings_stop(void *opaque)
{
	struct kvm_rings *k = opaque;

	if (!k->started)
		return;
	kvm_vm_log_off(k->vm);
	pthread_mutex_lock(&k->lock);
	harvest(k, true, true); /* nobody will, and a vCPU with a full ring does not run */
	pthread_mutex_unlock(&k->lock);
	kvm_gate_track(&k->vm->gate, false);
	pthread_join(k->harvester, NULL);
	k->started = false;
}

/* kvm_rings_begin - see struct tern_dirty_ops. */
static int kvm_rings_begin(void *opaque)
{
	struct kvm_rings *k = opaque;

	pthread_mutex_lock(&k->lock);
	harvest(k, true, true);
	k->why = k->bad;
	pthread_mutex_unlock(&k->lock);
	return k->why.code;
}

/* kvm_rings_sync - see struct tern_dirty_ops. */
static int kvm_rings_sync(void *opaque, unsigned region, uint64_t first, uint64_t nr,
			  uint64_t *bitmap)
{
	struct kvm_rings *k = opaque;

	marks_get(k->marks, region, first, nr, bitmap);
	return 0;
}

/* kvm_rings_clear - see struct tern_dirty_ops. */
static int kvm_rings_clear(void *opaque, unsigned region, uint64_t first, uint64_t nr,
			   uint64_t *bitmap)
{
	struct kvm_rings *k = opaque;

	marks_take(k->marks, region, first, nr, bitmap);
	return 0;
}

/* kvm_rings_destroy - after stop(). */
static void kvm_rings_destroy(void *opaque)
{
	struct kvm_rings *k = opaque;

	for (unsigned i = 0; i < k->nr_open; i++)
		kvm_ring_close(&k->rings[i]);
	pthread_mutex_destroy(&k->lock);
	free(k->rings);
	free(k->batch);
	free(k);
}

/* open_rings - of all vCPUs.  0 or -errno with *err. */
static int open_rings(struct kvm_rings *k, struct tern_error *err)
{
	for (; k->nr_open < k->vm->nr_vcpus; k->nr_open++) {
		int r = kvm_ring_open(&k->rings[k->nr_open], k->vm->vcpu_fds[k->nr_open],
				      k->nr_open, k->vm->ring_entries, err);

		if (r)
			return r;
	}
	return 0;
}

int dirty_kvm_ring_new(struct dirty *d, struct kvm_vm *vm, const struct region_list *regions,
		       struct tern_error *err)
{
	struct kvm_rings *k;
	int r = kvm_vm_ready(vm, regions, err);

	if (!r && !vm->nr_vcpus)
		r = error_session(err, -EINVAL,
				  "cannot harvest dirty rings: no vCPU was described; set vcpu_fds "
				  "with tern_session_set_kvm()");
	if (r)
		return r;
	k = calloc(1, sizeof(*k));
	if (!k || pthread_mutex_init(&k->lock, NULL)) {
		free(k);
		return error_session(err, -ENOMEM, "cannot allocate the dirty provider");
	}
	k->vm = vm;
	k->marks = atomic_load(&vm->marks);
	error_clear(&k->why);
	error_clear(&k->bad);
	k->rings = calloc(vm->nr_vcpus, sizeof(*k->rings));
	k->batch = calloc(BATCH, sizeof(*k->batch));
	if (!k->rings || !k->batch)
		r = error_session(err, -ENOMEM, "cannot allocate the dirty provider");
	if (!r)
		r = open_rings(k, err);
	if (r) {
		kvm_rings_destroy(k);
		return r;
	}
	*d = (struct dirty){
		.kind = TERN_DIRTY_KVM_RING,
		.ops = {
			.start = kvm_rings_start,
			.stop = kvm_rings_stop,
			.sync = kvm_rings_sync,
			.clear = kvm_rings_clear,
			.begin = kvm_rings_begin,
		},
		.opaque = k,
		.destroy = kvm_rings_destroy,
		.why = &k->why,
	};
	return 0;
}
