/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Stress tests of KVM's dirty providers: a guest's vCPUs, and a device of the VMM that marks
 * what it writes, write all over RAM while a migrator copies what is reported, round after
 * round.  When they have stopped, one last look and copy must give an exact replica: one lost
 * write is one wrong page.  And the limit of a vCPU that writes too much.
 *
 * argv[1], if given, is a filter ("*:ring*").  TERN_TEST_SLOWNESS, if set, divides the work.
 */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>
#include "kvm_rig.h"

enum {
#ifdef __SANITIZE_THREAD__
	ROUNDS = 8,
	RUNS = 1,
#else
	ROUNDS = 40,
	RUNS = 3,
#endif
	MIN_WRITES = 200, /* of all vCPUs before a round may end */
	DEVICE_WORD = 28, /* of a page; vCPUs write others */
	PERIOD_S = 2,
	PERIODS_MAX = 15, /* on a machine that hardly runs the guest */
	THROTTLED_NS = 100000000,
	LIMIT = 8 << 20,
};

static const struct kvm_rig_variant log_plain = { "plain", KVM_RIG_PLAIN, 0, 2 };
static const struct kvm_rig_variant log_manual = { "manual", KVM_RIG_MANUAL, 0, 3 };
static const struct kvm_rig_variant log_initially_set = { "initially set", KVM_RIG_INITIALLY_SET, 0,
							  3 };
static const struct kvm_rig_variant ring = { "ring", KVM_RIG_RING, 4096, 3 };
static const struct kvm_rig_variant ring_small = { "small ring", KVM_RIG_RING, 1024, 2 };
static const struct kvm_rig_variant ring_smallest = { "smallest ring", KVM_RIG_RING, 256, 2 };

/* A device: a thread that writes through the VMM's mapping, and says so. */
struct device {
	pthread_t thread;
	struct kvm_rig *rig;
	atomic_bool stop;
};

/* slowness - how many times slower than usual this machine is. */
static unsigned slowness(void)
{
	const char *text = getenv("TERN_TEST_SLOWNESS");
	int n = text ? atoi(text) : 1;

	return n > 1 ? (unsigned)n : 1;
}

/* put - what ThreadSanitizer is not to judge: the copy may run meanwhile. */
__attribute__((no_sanitize("thread"), noinline)) static void put(uint32_t *word, uint32_t value)
{
	__atomic_store_n(word, value, __ATOMIC_RELAXED);
}

static void *device_main(void *opaque)
{
	struct device *d = opaque;
	unsigned seed = 1;
	uint32_t stamp = 0;

	while (!atomic_load_explicit(&d->stop, memory_order_relaxed)) {
		unsigned region = (unsigned)rand_r(&seed) % 2;
		uint64_t pages = d->rig->list.v[region].nr_pages;
		uint64_t page = (uint64_t)rand_r(&seed) % (stamp & 1 ? 16 : pages);

		put((uint32_t *)(d->rig->hva[region] + page * TERN_PAGE_SIZE) + DEVICE_WORD,
		    ++stamp);
		kvm_rig_mark(d->rig, region, page);
		if (!(stamp % 64))
			sched_yield();
	}
	return NULL;
}

/* wait_for_writes - until the vCPUs have made MIN_WRITES more. */
static void wait_for_writes(const struct kvm_guest *g)
{
	uint64_t seen = kvm_guest_writes(g);

	while (kvm_guest_writes(g) < seen + MIN_WRITES)
		sched_yield();
}

/* migrate - one run; @limit bytes/s for each vCPU. */
static void migrate(const struct kvm_rig_variant *v, uint64_t limit)
{
	struct kvm_rig *rig = kvm_rig_new(v);
	struct device device = { .rig = rig };
	uint64_t bad;

	atomic_store(&rig->limit, limit);
	for (uint64_t i = 0; i < KVM_RIG_PAGES; i += 2)
		kvm_rig_write(rig, 0, 0, i, 1);
	kvm_guest_roam(rig->g, KVM_GUEST_RAM, KVM_RIG_PAGES * TERN_PAGE_SIZE);
	assert_int_equal(pthread_create(&device.thread, NULL, device_main, &device), 0);
	kvm_rig_start(rig);
	for (unsigned round = 0; round < ROUNDS / slowness(); round++) {
		kvm_rig_copy_round(rig, true);
		wait_for_writes(rig->g);
		kvm_rig_sync(rig);
	}
	atomic_store(&device.stop, true);
	pthread_join(device.thread, NULL);
	kvm_gate_pausing(&rig->kvm->gate);
	kvm_guest_halt(rig->g);
	kvm_rig_sync(rig);
	kvm_rig_copy_round(rig, false);
	rig->d.ops.stop(rig->d.opaque);
	bad = kvm_rig_differing(rig);
	kvm_rig_delete(rig);
	if (bad)
		fail_msg("%s: %lu pages differ", v->name, (unsigned long)bad);
}

static void test_replica(void **state)
{
	for (unsigned run = 0; run < RUNS / slowness() + 1; run++)
		migrate(*state, 0);
}

static void test_replica_with_a_limit(void **state)
{
	migrate(*state, 64 << 20);
}

/* Has every vCPU been held back for a while? */
static bool all_throttled(struct kvm_rig *rig)
{
	struct tern_vcpu_stats st;

	for (unsigned i = 0; i < rig->g->nr_vcpus; i++) {
		kvm_gate_stats(&rig->kvm->gate, i, &st);
		if (st.throttled_ns <= THROTTLED_NS)
			return false;
	}
	return true;
}

/*
 * roam_for_a_while - let the guest write without anybody copying, until its limit is felt;
 * its pages per second.
 */
static double roam_for_a_while(struct kvm_rig *rig, struct tern_vcpu_stats *out)
{
	struct timespec sleep = { .tv_sec = PERIOD_S };
	uint64_t begin, ns;
	double pages = 0;

	kvm_rig_start(rig);
	begin = now_ns();
	kvm_guest_roam(rig->g, KVM_GUEST_RAM, KVM_RIG_PAGES * TERN_PAGE_SIZE);
	for (unsigned n = 0; n < PERIODS_MAX && (!n || !all_throttled(rig)); n++)
		nanosleep(&sleep, NULL);
	ns = now_ns() - begin;
	for (unsigned i = 0; i < rig->g->nr_vcpus; i++) {
		kvm_gate_stats(&rig->kvm->gate, i, &out[i]);
		pages += (double)out[i].dirty_pages;
	}
	kvm_gate_pausing(&rig->kvm->gate);
	kvm_guest_halt(rig->g);
	rig->d.ops.stop(rig->d.opaque);
	return pages / ((double)ns / 1e9);
}

/* Faster than rings are harvested unasked: there are exits, and the vCPU goes on after each. */
static void test_a_full_ring_is_emptied(void **state)
{
	struct kvm_rig *rig = kvm_rig_new(*state);
	struct tern_vcpu_stats st;
	uint32_t value = 1;

	kvm_rig_start(rig);
	do {
		kvm_guest_write(rig->g, 1, KVM_GUEST_RAM, KVM_RIG_PAGES, value++);
		kvm_gate_stats(&rig->kvm->gate, 1, &st);
	} while (!st.ring_full && value < 1000);
	assert_true(st.ring_full > 0);
	kvm_rig_sync(rig);
	kvm_rig_expect(rig, 0, 77, KVM_RIG_PAGES);
	kvm_gate_stats(&rig->kvm->gate, 1, &st);
	assert_true(st.dirty_pages >= KVM_RIG_PAGES);
	assert_int_equal(st.throttled_ns, 0);
	kvm_gate_stats(&rig->kvm->gate, 0, &st);
	assert_int_equal(st.dirty_pages, 0);
	rig->d.ops.stop(rig->d.opaque);
	kvm_rig_delete(rig);
}

/* With a limit each vCPU stays below it, but for what its ring holds; without, it does not. */
static void test_a_vcpu_is_held_to_its_limit(void **state)
{
	struct kvm_rig *rig = kvm_rig_new(*state);
	struct tern_vcpu_stats st[KVM_GUEST_VCPUS_MAX];
	uint64_t limit = LIMIT / slowness(); /* a slow vCPU has to reach it, too */
	double most = (double)limit / TERN_PAGE_SIZE, nr = rig->g->nr_vcpus;
	double rate, slack = 2.0 * rig->variant->ring_entries / PERIOD_S;

	atomic_store(&rig->limit, limit);
	rate = roam_for_a_while(rig, st);
	print_message("%.0f pages/s of %.0f allowed\n", rate, nr * most);
	assert_true(rate < nr * (most + slack));
	for (unsigned i = 0; i < rig->g->nr_vcpus; i++) {
		assert_true(st[i].throttled_ns > THROTTLED_NS);
		assert_true((double)st[i].dirty_rate < 1.5 * ((double)limit + slack * TERN_PAGE_SIZE));
	}
	kvm_rig_delete(rig);
}

#define T(test, variant)                                                          \
	{                                                                         \
#test ":" #variant, test, NULL, NULL, (void *)(uintptr_t)&variant \
	}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		T(test_replica, log_plain),
		T(test_replica, log_manual),
		T(test_replica, log_initially_set),
		T(test_replica, ring),
		T(test_replica, ring_small),
		T(test_replica_with_a_limit, ring),
		T(test_a_full_ring_is_emptied, ring_smallest),
		T(test_a_vcpu_is_held_to_its_limit, ring_small),
	};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests_name("dirty kvm stress", tests, NULL, NULL);
}
