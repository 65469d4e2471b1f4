/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Whole migrations of a guest in KVM that writes while it moves, with a device of the VMM that
 * marks what it writes: log and ring, over each transport that lane_run() knows.  argv[1], if
 * given, is a filter ("tcp: *log*").
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>

#include "lane.h"

#include "kvm_rig.h"

enum {
	BANDWIDTH = 200 << 20, /* so that the first round takes a while */
	DOWNTIME_MS = 3000, /* guests that write all they have, also where CPUs are emulated */
	DEVICE_WORD = 28, /* of a page; vCPUs write others */
};

static const struct kvm_rig_variant log_variant = { "log", KVM_RIG_MANUAL, 0, 2 };
static const struct kvm_rig_variant ring_variant = { "ring", KVM_RIG_RING, 4096, 2 };

/* A guest, its device, and both sides of its move; the replica is the destination's RAM. */
struct move {
	const struct lane *lane;
	struct kvm_rig *rig;
	struct tern_session *s, *d;
	pthread_t device;
	atomic_bool device_stop;
	bool device_runs, guest_runs;
	int pauses, resumes, starts;
};

static void on_full(void *opaque, unsigned vcpu)
{
	struct move *m = opaque;

	tern_session_ring_full(m->s, vcpu);
}

/* put - what ThreadSanitizer is not to judge: a channel may read it meanwhile. */
__attribute__((no_sanitize("thread"), noinline)) static void put(uint32_t *word, uint32_t value)
{
	__atomic_store_n(word, value, __ATOMIC_RELAXED);
}

static void *device_main(void *opaque)
{
	struct move *m = opaque;
	unsigned seed = 1;
	uint32_t stamp = 0;

	while (!atomic_load(&m->device_stop)) {
		unsigned region = (unsigned)rand_r(&seed) % 2;
		uint64_t page = (uint64_t)rand_r(&seed) % KVM_RIG_MORE_PAGES;
		struct timespec pause = { .tv_nsec = 20000 };

		put((uint32_t *)(m->rig->hva[region] + page * TERN_PAGE_SIZE) + DEVICE_WORD,
		    ++stamp);
		tern_session_mark_dirty(m->s, region, page * TERN_PAGE_SIZE + 4 * DEVICE_WORD, 4);
		nanosleep(&pause, NULL);
	}
	return NULL;
}

/* stop_all - the guest and its device, if they run. */
static void stop_all(struct move *m)
{
	atomic_store(&m->device_stop, true);
	if (m->device_runs)
		pthread_join(m->device, NULL);
	if (m->guest_runs)
		kvm_guest_halt(m->rig->g);
	m->device_runs = m->guest_runs = false;
}

static int on_pause(void *opaque)
{
	struct move *m = opaque;

	m->pauses++;
	stop_all(m);
	return 0;
}

static int on_resume(void *opaque)
{
	((struct move *)opaque)->resumes++;
	return 0;
}

static int on_start(void *opaque)
{
	((struct move *)opaque)->starts++;
	return 0;
}

/* session_of - a session with the regions of the rig, at @ram. */
static struct tern_session *session_of(const struct kvm_rig *rig, enum tern_role role,
				       uint8_t *const *ram)
{
	struct tern_session *s;

	assert_int_equal(tern_session_new(role, &s), 0);
	for (unsigned i = 0; i < KVM_RIG_REGIONS; i++) {
		const struct region *r = &rig->list.v[i];
		struct tern_region_desc desc = {
			.name = r->name,
			.hva = ram[i],
			.size = r->size,
			.gpa = r->gpa,
			.fd = -1,
		};

		assert_int_equal(tern_session_add_region(s, &desc), i);
	}
	return s;
}

/* move_begin - both sides, not connected yet; the guest and its device run. */
static void move_begin(struct move *m, void **state, const struct kvm_rig_variant *v)
{
	static const struct tern_vm_ops source = { .pause = on_pause, .resume = on_resume };
	static const struct tern_vm_ops destination = { .resume = on_start };

	memset(m, 0, sizeof(*m));
	m->lane = *state;
	m->rig = kvm_rig_new_vm(v);
	m->s = session_of(m->rig, TERN_SOURCE, m->rig->hva);
	m->d = session_of(m->rig, TERN_DESTINATION, m->rig->replica);
	assert_int_equal(tern_session_set_kvm(m->s, &m->rig->desc), 0);
	assert_int_equal(tern_session_set(m->s, TERN_PARAM_DOWNTIME_LIMIT_MS, DOWNTIME_MS), 0);
	tern_session_set_vm_ops(m->s, &source, m);
	tern_session_set_vm_ops(m->d, &destination, m);
	m->rig->g->on_ring_full = on_full;
	m->rig->g->opaque = m;
	for (uint64_t i = 0; i < KVM_RIG_PAGES; i += 2)
		kvm_rig_write(m->rig, 0, 0, i, 1);
	kvm_guest_roam(m->rig->g, KVM_GUEST_RAM, KVM_RIG_PAGES * TERN_PAGE_SIZE);
	m->guest_runs = true;
	assert_int_equal(pthread_create(&m->device, NULL, device_main, m), 0);
	m->device_runs = true;
}

static void move_go(struct move *m)
{
	assert_int_equal(tern_session_set(m->s, TERN_PARAM_MAX_BANDWIDTH, BANDWIDTH), 0);
	assert_int_equal(lane_listen(m->lane, m->d), 0);
	assert_int_equal(lane_connect(m->lane, m->s, m->d), 0);
}

static void move_end(struct move *m)
{
	stop_all(m);
	tern_session_delete(&m->s);
	tern_session_delete(&m->d);
	kvm_rig_delete(m->rig);
}

/* finish - wait for both sides; the guest has moved, with all that it has written. */
static void finish(struct move *m, struct tern_stats *st)
{
	struct tern_error err;
	int r = tern_session_wait(m->s, 60000);

	tern_session_error(m->s, &err);
	assert_int_equal(tern_session_stats(m->s, st, sizeof(*st)), 0);
	if (r)
		fail_msg("%d: '%s'; %s, round %u, %llu bytes left, %llu bytes/s dirtied, %llu sent",
			 r, err.message, tern_state_name(st->state), st->nr_rounds,
			 (unsigned long long)st->remaining_bytes,
			 (unsigned long long)st->dirty_rate, (unsigned long long)st->bandwidth);
	assert_int_equal(tern_session_wait(m->d, 60000), 0);
	assert_int_equal(tern_session_stats(m->s, st, sizeof(*st)), 0);
	assert_int_equal(st->dirty_provider, kvm_rig_provider(m->rig->variant));
	assert_true(st->nr_rounds >= 2);
	assert_true(st->normal_pages > KVM_RIG_HALF);
	assert_int_equal(m->pauses, 1);
	assert_int_equal(m->resumes, 0);
	assert_int_equal(m->starts, 1);
	assert_int_equal(kvm_rig_differing(m->rig), 0);
}

/* log_is_on - does KVM keep a log of the guest's first slot? */
static bool log_is_on(const struct move *m)
{
	static uint64_t map[KVM_RIG_PAGES / 64 + 1];
	struct kvm_dirty_log log = { .slot = m->rig->slots[0].slot, .dirty_bitmap = map };

	return !ioctl(m->rig->g->vm_fd, KVM_GET_DIRTY_LOG, &log);
}

static void moves_with_log(void **state)
{
	struct tern_vcpu_stats v;
	struct tern_stats st;
	struct move m;

	move_begin(&m, state, &log_variant);
	move_go(&m);
	finish(&m, &st);
	assert_int_equal(tern_session_vcpu_stats(m.s, 0, &v, sizeof(v)), -ENOENT);
	/* Turning it off would take a CPU from the guest, if that is on this host now. */
	assert_true(log_is_on(&m));
	tern_session_delete(&m.s);
	assert_false(log_is_on(&m));
	move_end(&m);
}

static void moves_with_ring(void **state)
{
	struct tern_vcpu_stats v;
	struct tern_stats st;
	struct move m;

	move_begin(&m, state, &ring_variant);
	move_go(&m);
	assert_int_equal(tern_session_set(m.s, TERN_PARAM_VCPU_DIRTY_LIMIT, 100 << 20), 0);
	finish(&m, &st);
	for (unsigned i = 0; i < 2; i++) {
		assert_int_equal(tern_session_vcpu_stats(m.s, i, &v, sizeof(v)), 0);
		assert_true(v.dirty_pages > 0);
	}
	assert_int_equal(tern_session_vcpu_stats(m.s, 2, &v, sizeof(v)), -ENOENT);
	move_end(&m);
}

/* A limit that makes vCPUs sleep for long does not delay the pause. */
static void moves_with_ring_and_a_low_limit(void **state)
{
	struct tern_stats st;
	struct move m;

	move_begin(&m, state, &ring_variant);
	assert_int_equal(tern_session_set(m.s, TERN_PARAM_VCPU_DIRTY_LIMIT, 1), 0);
	move_go(&m);
	finish(&m, &st);
	assert_true(st.ledger_ns[TERN_LEDGER_PAUSE] < 2000000000u);
	move_end(&m);
}

/* cancelled - the guest runs on, and can be moved again by another session. */
static void cancelled(void **state, const struct kvm_rig_variant *v)
{
	struct tern_stats st;
	struct move m;

	move_begin(&m, state, v);
	assert_int_equal(tern_session_set(m.s, TERN_PARAM_DOWNTIME_LIMIT_MS, 1), 0);
	move_go(&m);
	do {
		assert_int_equal(tern_session_stats(m.s, &st, sizeof(st)), 0);
	} while (st.nr_rounds < 2 && st.state < TERN_STATE_COMPLETED);
	tern_session_cancel(m.s);
	tern_session_wait(m.s, -1);
	if (tern_session_state(m.s) != TERN_STATE_CANCELLED) { /* it was faster */
		move_end(&m);
		return;
	}
	assert_true(m.guest_runs);
	stop_all(&m);

	struct tern_session *again = session_of(m.rig, TERN_SOURCE, m.rig->hva);

	assert_int_equal(tern_session_set_kvm(again, &m.rig->desc), 0);
	kvm_rig_write(m.rig, 0, 1, 1000, 77);
	tern_session_delete(&again);
	move_end(&m);
}

static void cancelled_with_log(void **state)
{
	cancelled(state, &log_variant);
}

static void cancelled_with_ring(void **state)
{
	cancelled(state, &ring_variant);
}

static void expect_sentence(struct tern_session *s, const char *words)
{
	struct tern_error err;

	tern_session_error(s, &err);
	if (!strstr(err.message, words))
		fail_msg("no \"%s\" in: %s", words, err.message);
}

static void what_the_functions_refuse(void **state)
{
	struct kvm_rig *rig = kvm_rig_new_vm(&log_variant);
	struct tern_session *s = session_of(rig, TERN_SOURCE, rig->hva);
	struct tern_session *d = session_of(rig, TERN_DESTINATION, rig->replica);
	uint64_t size = KVM_RIG_MORE_PAGES * TERN_PAGE_SIZE;

	assert_int_equal(tern_session_set_kvm(d, &rig->desc), -EINVAL);
	expect_sentence(d, "only the source");
	assert_int_equal(tern_session_ring_full(s, 0), -EINVAL);
	rig->slots[0].offset = 4096;
	assert_int_equal(tern_session_set_kvm(s, &rig->desc), -EINVAL);
	expect_sentence(s, "64 pages");
	rig->slots[0].offset = 0;
	assert_int_equal(tern_session_set_kvm(s, &rig->desc), 0);
	assert_int_equal(tern_session_ring_full(s, 1), 0); /* nothing is tracked */
	assert_int_equal(tern_session_ring_full(s, 2), -EINVAL);
	assert_int_equal(tern_session_mark_dirty(s, 1, 0, size), 0);
	assert_int_equal(tern_session_mark_dirty(s, 1, size, 0), 0);
	assert_int_equal(tern_session_mark_dirty(s, 1, 1, size), -EINVAL);
	assert_int_equal(tern_session_mark_dirty(s, 1, UINT64_MAX, 2), -EINVAL);
	assert_int_equal(tern_session_mark_dirty(s, 2, 0, 1), -EINVAL);
	tern_session_delete(&s);
	tern_session_delete(&d);
	kvm_rig_delete(rig);
}

static const struct lane_case cases[] = {
	LANE_CASE(moves_with_log),
	LANE_CASE(cancelled_with_log),
	LANE_CASE(what_the_functions_refuse),
	LANE_CASE(moves_with_ring),
	LANE_CASE(moves_with_ring_and_a_low_limit),
	LANE_CASE(cancelled_with_ring),
};

int main(int argc, char **argv)
{
	return lane_run("kvm", cases, sizeof(cases) / sizeof(cases[0]), argc, argv);
}
