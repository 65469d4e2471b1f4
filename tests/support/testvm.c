/* SPDX-License-Identifier: BSD-2-Clause */
#define _GNU_SOURCE
#include "testvm.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* Setup failures are not what is being tested: say so and stop. */
static void die(const char *what)
{
	perror(what);
	abort();
}

static void *map_region(struct testvm *vm, unsigned i)
{
	size_t size = vm->pages[i] * TERN_PAGE_SIZE;
	void *p;

	vm->fd[i] = -1;
	if (vm->backing == TESTVM_ANON) {
		p = mmap(NULL, size, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	} else {
		bool huge = vm->backing == TESTVM_HUGETLB;

		vm->fd[i] = memfd_create("testvm", MFD_CLOEXEC | (huge ? MFD_HUGETLB : 0));
		if (vm->fd[i] < 0 || ftruncate(vm->fd[i], (off_t)size))
			die("memfd_create");
		p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vm->fd[i], 0);
	}
	if (p == MAP_FAILED)
		die("mmap");
	/* Where huge pages come by themselves, what is touched is not what is resident. */
	if (vm->backing == TESTVM_ANON)
		(void)madvise(p, size, MADV_NOHUGEPAGE); /* -EINVAL: there are none */
	return p;
}

void testvm_init(struct testvm *vm, struct testvm_pair *pair, enum testvm_backing backing,
		 unsigned nr_regions, const uint64_t *pages)
{
	memset(vm, 0, sizeof(*vm));
	vm->pair = pair;
	vm->backing = backing;
	vm->nr_regions = nr_regions;
	vm->state_bytes = 8;
	vm->pages = calloc(nr_regions, sizeof(*vm->pages));
	vm->ram = calloc(nr_regions, sizeof(*vm->ram));
	vm->fd = calloc(nr_regions, sizeof(*vm->fd));
	if (!vm->pages || !vm->ram || !vm->fd)
		die("calloc");
	memcpy(vm->pages, pages, nr_regions * sizeof(*pages));
	for (unsigned i = 0; i < nr_regions; i++)
		vm->ram[i] = map_region(vm, i);
}

void testvm_fini(struct testvm *vm)
{
	testvm_stop(vm);
	for (unsigned i = 0; i < vm->nr_regions; i++) {
		munmap(vm->ram[i], vm->pages[i] * TERN_PAGE_SIZE);
		if (vm->fd[i] >= 0)
			close(vm->fd[i]);
	}
	free(vm->pages);
	free(vm->ram);
	free(vm->fd);
}

static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15ull;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ x >> 27) * 0x94d049bb133111ebull;
	return x ^ x >> 31;
}

/*
 * A page of something that depends on @key, and is zero for one key in eight.
 *
 * The engine reads RAM while the guest writes it: that is what live migration is,
 * and not for ThreadSanitizer to judge.
 */
__attribute__((no_sanitize("thread"))) static void write_page(uint8_t *page, uint64_t key)
{
	volatile uint64_t *word = (volatile uint64_t *)page;
	uint64_t v = mix(key);

	for (unsigned i = 0; i < TERN_PAGE_SIZE / 8; i++)
		word[i] = v % 8 ? v + i * 0x2545f4914f6cdd1dull : 0;
}

void testvm_fill(struct testvm *vm, unsigned step, uint64_t seed)
{
	for (unsigned i = 0; i < vm->nr_regions; i++)
		for (uint64_t p = 0; p < vm->pages[i]; p += step)
			write_page(vm->ram[i] + p * TERN_PAGE_SIZE, mix(seed + i) + p);
}

/* Where the guest's write number @t goes, in memory at @ram. */
static uint8_t *written_page(const struct testvm *vm, uint8_t *ram, uint64_t t)
{
	return ram + (vm->working_first + mix(t) % vm->working_set) * TERN_PAGE_SIZE;
}

static uint64_t now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000u + (uint64_t)ts.tv_nsec / 1000u;
}

/* Sleep so much that the writer has run for 100 - throttle percent of the time since @begin. */
static void keep_to_throttle(const struct testvm *vm, uint64_t *begin)
{
	unsigned percent = atomic_load(&vm->throttle);

	if (percent)
		usleep((unsigned)((now_us() - *begin) * percent / (100 - percent)));
	*begin = now_us();
}

/* A guest that was started has run, however soon it is stopped: it ticks once at least. */
static void *writer(void *arg)
{
	struct testvm *vm = arg;
	uint64_t begin = now_us();

	do {
		uint64_t t = vm->ticks++;

		write_page(written_page(vm, vm->ram[0], t), t);
		if (vm->pause_us)
			usleep(vm->pause_us);
		if (t % 64 == 0)
			keep_to_throttle(vm, &begin);
	} while (atomic_load(&vm->run));
	return NULL;
}

void testvm_start(struct testvm *vm)
{
	if (vm->is_running)
		return;
	vm->is_running = true;
	if (atomic_fetch_add(&vm->pair->running, 1) > 0)
		atomic_store(&vm->pair->both_ran, true);
	atomic_store(&vm->run, true);
	if (!vm->working_set)
		return;
	if (pthread_create(&vm->thread, NULL, writer, vm))
		die("pthread_create");
	vm->thread_started = true;
}

void testvm_stop(struct testvm *vm)
{
	if (!vm->is_running)
		return;
	atomic_store(&vm->run, false);
	if (vm->thread_started)
		pthread_join(vm->thread, NULL);
	vm->thread_started = false;
	vm->is_running = false;
	atomic_fetch_sub(&vm->pair->running, 1);
}

/* A callback that fails as it shall. */
static int fails(struct testvm *vm, int code)
{
	if (vm->explain)
		tern_session_explain(vm->session, vm->explain);
	return code;
}

static int vm_pause(void *opaque)
{
	struct testvm *vm = opaque;

	atomic_fetch_add(&vm->pauses, 1);
	if (vm->fail_pause)
		return fails(vm, vm->fail_pause);
	testvm_stop(vm);
	return 0;
}

static int vm_resume(void *opaque)
{
	struct testvm *vm = opaque;

	atomic_fetch_add(&vm->resumes, 1);
	if (vm->on_resume)
		vm->on_resume(vm->hook_opaque);
	if (vm->fail_resume)
		return fails(vm, vm->fail_resume);
	testvm_start(vm);
	return 0;
}

static int vm_save(void *opaque, struct tern_state_writer *w)
{
	struct testvm *vm = opaque;

	atomic_fetch_add(&vm->saves, 1);
	if (vm->on_save)
		vm->on_save(vm->hook_opaque);
	if (vm->fail_save)
		return fails(vm, vm->fail_save);
	int r = tern_state_write(w, &vm->ticks, sizeof(vm->ticks));

	for (size_t i = sizeof(vm->ticks); !r && i < vm->state_bytes; i++) {
		uint8_t byte = (uint8_t)mix(i);

		r = tern_state_write(w, &byte, 1);
	}
	return r;
}

static int vm_load(void *opaque, struct tern_state_reader *rd)
{
	struct testvm *vm = opaque;
	size_t left = tern_state_remaining(rd);

	atomic_fetch_add(&vm->loads, 1);
	if (vm->on_load)
		vm->on_load(vm->hook_opaque);
	if (vm->fail_load)
		return fails(vm, vm->fail_load);
	vm->state_was_good = left == vm->state_bytes;
	int r = tern_state_read(rd, &vm->ticks, sizeof(vm->ticks));

	for (size_t i = sizeof(vm->ticks); !r && i < left - vm->leave_unread; i++) {
		uint8_t byte;

		r = tern_state_read(rd, &byte, 1);
		if (byte != (uint8_t)mix(i))
			vm->state_was_good = false;
	}
	return r;
}

static int vm_throttle(void *opaque, unsigned percent)
{
	struct testvm *vm = opaque;
	unsigned nr = atomic_load(&vm->nr_throttles);

	if (nr < TESTVM_THROTTLES_MAX)
		vm->throttles[nr] = percent;
	atomic_store(&vm->throttle, percent);
	atomic_store(&vm->nr_throttles, nr + 1);
	return 0;
}

static int vm_announce(void *opaque, unsigned round)
{
	struct testvm *vm = opaque;

	if (round == atomic_load(&vm->announces)) /* they count up */
		atomic_fetch_add(&vm->announces, 1);
	return -EIO; /* is of no consequence */
}

struct tern_session *testvm_session(struct testvm *vm, enum tern_role role)
{
	static const struct tern_vm_ops ops = {
		.pause = vm_pause,
		.resume = vm_resume,
		.save = vm_save,
		.load = vm_load,
		.throttle = vm_throttle,
		.announce = vm_announce,
	};
	struct tern_session *s;
	uint64_t gpa = 0;

	if (tern_session_new(role, &s))
		die("tern_session_new");
	for (unsigned i = 0; i < vm->nr_regions; i++) {
		char name[32];
		struct tern_region_desc d = {
			.name = name,
			.hva = vm->ram[i],
			.size = vm->pages[i] * TERN_PAGE_SIZE,
			.gpa = gpa,
			.numa_node = TERN_NODE_ANY,
			.fd = vm->fd[i],
		};

		snprintf(name, sizeof(name), "ram%u", i);
		gpa += d.size;
		if (tern_session_add_region(s, &d) != (int)i) {
			struct tern_error err;

			tern_session_error(s, &err);
			fprintf(stderr, "%s\n", err.message);
			abort();
		}
	}
	tern_session_set_vm_ops(s, &ops, vm);
	vm->session = s;
	return s;
}

bool testvm_equal(const struct testvm *a, const struct testvm *b)
{
	bool equal = a->nr_regions == b->nr_regions;

	for (unsigned i = 0; equal && i < a->nr_regions; i++)
		for (uint64_t p = 0; p < a->pages[i]; p++)
			if (memcmp(a->ram[i] + p * TERN_PAGE_SIZE, b->ram[i] + p * TERN_PAGE_SIZE,
				   TERN_PAGE_SIZE) != 0) {
				fprintf(stderr, "region %u, page %llu differs\n", i,
					(unsigned long long)p);
				equal = false;
				break;
			}
	return equal;
}

bool testvm_intact(const struct testvm *vm, unsigned step, uint64_t seed)
{
	struct testvm_pair pair = { 0 };
	struct testvm want;

	testvm_init(&want, &pair, TESTVM_ANON, vm->nr_regions, vm->pages);
	testvm_fill(&want, step, seed);
	for (uint64_t t = 0; vm->working_set && t < vm->ticks; t++)
		write_page(written_page(vm, want.ram[0], t), t);
	bool intact = testvm_equal(&want, vm);

	testvm_fini(&want);
	return intact;
}

uint64_t testvm_resident_pages(const struct testvm *vm)
{
	uint64_t n = 0;

	for (unsigned i = 0; i < vm->nr_regions; i++) {
		if (vm->fd[i] >= 0) {
			struct stat st;

			if (fstat(vm->fd[i], &st))
				die("fstat");
			n += (uint64_t)st.st_blocks * 512 / TERN_PAGE_SIZE;
			continue;
		}
		unsigned char *core = malloc(vm->pages[i]);

		if (!core || mincore(vm->ram[i], vm->pages[i] * TERN_PAGE_SIZE, core))
			die("mincore");
		for (uint64_t p = 0; p < vm->pages[i]; p++)
			n += core[p] & 1;
		free(core);
	}
	return n;
}
