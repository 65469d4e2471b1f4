/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Placement on real memory and a real userfaultfd: who gets which page, once, and that no
 * thread that waits for one is forgotten.
 *
 * The fault threads are those of the product; what they ask for is brought by the test.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cmocka.h>

#include "bitmap.h"
#include "error.h"
#include "faults.h"
#include "hugepages.h"
#include "leave_out.h"
#include "mapper.h"
#include "monitor.h"
#include "placement.h"

#define PAGE ((size_t)TERN_PAGE_SIZE)
#define HUGE 512u /* pages of a huge page */
#define BLOCK (PLACEMENT_BLOCK_BYTES / TERN_PAGE_SIZE)
#define STALE 0xee
#define WAIT_MS 20000

enum memory { MEMFD, ANON, HUGETLB, NR_KINDS };

struct rig {
	enum memory kind;
	uint64_t pages;
	struct hugepages hp;
	uint8_t *mem;
	int fd;
	struct region_list list;
	struct placement *p;
	struct faults *f;
	struct tern_error err;
	atomic_uint requests, failures, completes;
};

/* ------------------------------------------------------------------------ rig */

static int on_request(void *opaque, const struct wire_page_range *v, unsigned nr)
{
	struct rig *r = opaque;

	atomic_fetch_add(&r->requests, nr);
	return 0;
}

static void on_failure(void *opaque, const struct tern_error *why)
{
	struct rig *r = opaque;

	atomic_fetch_add(&r->failures, 1);
}

static void on_complete(void *opaque)
{
	struct rig *r = opaque;

	atomic_fetch_add(&r->completes, 1);
}

static void map_memory(struct rig *r)
{
	size_t size = r->pages * PAGE;

	r->fd = -1;
	if (r->kind != ANON) {
		r->fd = memfd_create("placement",
				     MFD_CLOEXEC | (r->kind == HUGETLB ? MFD_HUGETLB : 0));
		assert_true(r->fd >= 0 && !ftruncate(r->fd, (off_t)size));
	}
	r->mem = mmap(NULL, size, PROT_READ | PROT_WRITE,
		      r->kind == ANON ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED, r->fd, 0);
	assert_ptr_not_equal(r->mem, MAP_FAILED);
}

/* Memory of @pages, and a placement of it. */
static void rig_init(struct rig *r, enum memory kind, uint64_t pages)
{
	memset(r, 0, sizeof(*r));
	r->kind = kind;
	r->pages = pages;
	if (kind == HUGETLB && hugepages_get(&r->hp, (long)(pages / HUGE)))
		leave_out("hugetlb", "cannot reserve huge pages of 2 MiB");
	map_memory(r);

	const struct tern_region_desc desc = { .name = "ram",
					       .hva = r->mem,
					       .size = pages * PAGE,
					       .numa_node = TERN_NODE_ANY,
					       .fd = r->fd };

	error_clear(&r->err);
	assert_int_equal(region_add(&r->list, &desc, &r->err), 0);
	int e = placement_new(&r->list, &r->p, &r->err);

	if (e == -ENOSYS || e == -EPERM)
		leave_out("userfaultfd", r->err.message);
	if (e)
		fail_msg("%s", r->err.message);
	r->p->complete = on_complete;
	r->p->opaque = r;
}

/* Where the session writes, before the switchover: something stale in page @page. */
static void put_stale(struct rig *r, uint64_t page)
{
	memset(placement_hva(r->p, 0) + page * PAGE, STALE, PAGE);
}

/* Pages [first, first + nr) are missing. */
static void lack(struct rig *r, uint64_t first, uint64_t nr)
{
	uint64_t *map = calloc(bitmap_words(r->pages), 8);
	uint8_t buf[64];
	size_t len;

	bitmap_set_range(map, first, nr);
	runs_put(map, 0, r->pages, buf, sizeof(buf), &len);
	struct runs runs = { .p = buf, .left = len, .end = r->pages };

	assert_int_equal(placement_missing(r->p, 0, &runs), 0);
	free(map);
}

static void arm(struct rig *r)
{
	const struct faults_config config = { .placement = r->p,
					      .nr_threads = 2,
					      .request = on_request,
					      .fail = on_failure,
					      .opaque = r };

	assert_int_equal(faults_start(&config, &r->f, &r->err), 0);
	if (placement_arm(r->p, &r->err))
		fail_msg("%s", r->err.message);
}

static void rig_fini(struct rig *r)
{
	faults_stop(&r->f);
	placement_delete(&r->p);
	region_list_fini(&r->list);
	munmap(r->mem, r->pages * PAGE);
	if (r->fd >= 0)
		close(r->fd);
	if (r->kind == HUGETLB)
		hugepages_put(&r->hp);
	assert_int_equal(atomic_load(&r->failures), 0);
}

/* The byte that page @page shall be full of. */
static uint8_t byte_of(uint64_t page)
{
	return (uint8_t)(page * 7 % 251 + 1);
}

/* Pages [first, first + nr) come as contents of those bytes, or of @byte if that is not 0. */
static int contents(struct rig *r, uint64_t first, uint64_t nr, uint8_t byte)
{
	uint8_t *buf = malloc(nr * PAGE);

	for (uint64_t i = 0; i < nr; i++)
		memset(buf + i * PAGE, byte ? byte : byte_of(first + i), PAGE);
	error_clear(&r->err);
	int e = placement_contents(r->p, 0, first, nr, buf, &r->err);

	free(buf);
	return e;
}

static int admit(struct rig *r, uint64_t first, uint64_t nr)
{
	const struct transport_range range = { 0, first * PAGE, nr * PAGE };

	error_clear(&r->err);
	return placement_admit(r->p, &range, 1, &r->err);
}

static int placed(struct rig *r, uint64_t first, uint64_t nr)
{
	error_clear(&r->err);
	return placement_placed(r->p, 0, first, nr, &r->err);
}

static int zero(struct rig *r, uint64_t first, uint64_t nr)
{
	error_clear(&r->err);
	return placement_zero(r->p, 0, first, nr, &r->err);
}

static int empty(struct rig *r, uint64_t first, uint64_t nr)
{
	error_clear(&r->err);
	return placement_empty(r->p, 0, first, nr, &r->err);
}

/* Pages [first, first + nr) come in the way that is usual for the memory. */
static int bring(struct rig *r, uint64_t first, uint64_t nr)
{
	if (r->kind == ANON)
		return contents(r, first, nr, 0);
	int e = admit(r, first, nr);

	for (uint64_t i = 0; !e && i < nr; i++)
		memset(placement_hva(r->p, 0) + (first + i) * PAGE, byte_of(first + i), PAGE);
	return e ? e : placed(r, first, nr);
}

/* Is page @page full of @byte, as the guest sees it? */
static bool holds(const struct rig *r, uint64_t page, uint8_t byte)
{
	const uint8_t *p = r->mem + page * PAGE;

	return p[0] == byte && !memcmp(p, p + 1, PAGE - 1);
}

/* A thread of the guest that reads pages. */
struct guest {
	struct rig *r;
	pthread_t thread;
	uint64_t first, nr, step; /* (first + i * step) % pages */
	atomic_uint done, wrong;
	atomic_bool ended;
};

static void *guest_main(void *arg)
{
	struct guest *g = arg;

	for (uint64_t i = 0; i < g->nr; i++) {
		uint64_t page = (g->first + i * g->step) % g->r->pages;

		if (!holds(g->r, page, byte_of(page)))
			atomic_fetch_add(&g->wrong, 1);
		atomic_fetch_add(&g->done, 1);
	}
	atomic_store(&g->ended, true);
	return NULL;
}

static void guest_start(struct guest *g, struct rig *r, uint64_t first, uint64_t nr, uint64_t step)
{
	memset(g, 0, sizeof(*g));
	g->r = r;
	g->first = first;
	g->nr = nr;
	g->step = step;
	assert_int_equal(pthread_create(&g->thread, NULL, guest_main, g), 0);
}

static void guest_join(struct guest *g)
{
	uint64_t until = deadline_ns(WAIT_MS);

	while (!atomic_load(&g->ended)) {
		if (now_ns() > until)
			fail_msg("a thread hangs at page %llu",
				 (unsigned long long)((g->first + atomic_load(&g->done) * g->step) %
						      g->r->pages));
		usleep(200);
	}
	pthread_join(g->thread, NULL);
	assert_int_equal(atomic_load(&g->wrong), 0);
}

static void await_requests(struct rig *r, unsigned nr)
{
	uint64_t until = deadline_ns(WAIT_MS);

	while (atomic_load(&r->requests) < nr) {
		if (now_ns() > until)
			fail_msg("%u requests, due are %u", atomic_load(&r->requests), nr);
		usleep(200);
	}
}

/* ---------------------------------------------------------------------- arrival */

static void thread_waits_until_its_page_comes(void **state)
{
	for (int k = 0; k < NR_KINDS; k++) {
		uint64_t unit = k == HUGETLB ? HUGE : 1, page = 3 * unit;
		struct guest g;
		struct rig r;

		rig_init(&r, k, 4 * HUGE);
		put_stale(&r, page);
		lack(&r, 0, r.pages);
		arm(&r);
		guest_start(&g, &r, page, 1, 1);
		await_requests(&r, 1);
		assert_int_equal(atomic_load(&g.done), 0);
		assert_int_equal(bring(&r, page, unit), 0);
		guest_join(&g);
		assert_int_equal(atomic_load(&r.p->left), r.pages - unit);
		assert_int_equal(atomic_load(&r.completes), 0);
		rig_fini(&r);
	}
}

static void page_that_came_first_is_just_there(void **state)
{
	for (int k = 0; k < NR_KINDS; k++) {
		struct guest g;
		struct rig r;

		rig_init(&r, k, 4 * HUGE);
		lack(&r, 0, r.pages);
		arm(&r);
		assert_int_equal(bring(&r, 0, HUGE), 0);
		guest_start(&g, &r, 0, HUGE, 1);
		guest_join(&g);
		assert_int_equal(atomic_load(&r.requests), 0);
		rig_fini(&r);
	}
}

/* What is not missing stays as it is, and needs nobody. */
static void page_that_is_not_missing_is_kept(void **state)
{
	for (int k = 0; k < NR_KINDS; k++) {
		struct rig r;

		rig_init(&r, k, 4 * HUGE);
		put_stale(&r, 0);
		put_stale(&r, 2 * HUGE);
		lack(&r, HUGE, HUGE);
		arm(&r);
		assert_true(holds(&r, 0, STALE));
		assert_true(holds(&r, 2 * HUGE, STALE));
		assert_int_equal(atomic_load(&r.requests), 0);
		rig_fini(&r);
	}
}

/* A huge page is the guest's when all of it is here, not earlier. */
static void huge_page_comes_in_parts(void **state)
{
	struct guest g;
	struct rig r;

	rig_init(&r, HUGETLB, 2 * HUGE);
	lack(&r, 0, r.pages);
	arm(&r);
	guest_start(&g, &r, HUGE, HUGE, 1);
	await_requests(&r, 1);
	for (uint64_t i = 0; i < HUGE; i++) {
		assert_int_equal(atomic_load(&g.done), 0);
		assert_int_equal(i % 2 ? contents(&r, HUGE + i, 1, 0) : bring(&r, HUGE + i, 1), 0);
	}
	guest_join(&g);
	rig_fini(&r);
}

static void zero_discards_what_was_there(void **state)
{
	for (int k = 0; k < NR_KINDS; k++) {
		struct rig r;

		rig_init(&r, k, 2 * HUGE);
		for (uint64_t i = 0; i < HUGE; i++)
			put_stale(&r, i);
		lack(&r, 0, HUGE);
		arm(&r);
		assert_int_equal(zero(&r, 0, HUGE), 0);
		for (uint64_t i = 0; i < HUGE; i++)
			assert_true(holds(&r, i, 0));
		assert_int_equal(atomic_load(&r.completes), 1);
		rig_fini(&r);
	}
}

static void *read_first_byte(void *arg)
{
	struct guest *g = arg;

	if (g->r->mem[g->first * PAGE])
		atomic_fetch_add(&g->wrong, 1);
	atomic_store(&g->ended, true);
	return NULL;
}

/* A thread that finds a zero there, sooner or later. */
static void start_zero_reader(struct guest *g, struct rig *r, uint64_t page)
{
	memset(g, 0, sizeof(*g));
	g->r = r;
	g->first = page;
	assert_int_equal(pthread_create(&g->thread, NULL, read_first_byte, g), 0);
}

/* Zeros for a thread that waits, by either message, of memory that nobody has touched. */
static void thread_waits_for_zeros(void **state)
{
	for (int k = 0; k < 2 * NR_KINDS; k++) {
		struct guest g;
		struct rig r;

		rig_init(&r, k / 2, 2 * HUGE);
		lack(&r, 0, r.pages);
		arm(&r);
		start_zero_reader(&g, &r, HUGE);
		await_requests(&r, 1);
		assert_int_equal(k % 2 ? zero(&r, HUGE, HUGE) : empty(&r, HUGE, HUGE), 0);
		guest_join(&g);
		rig_fini(&r);
	}
}

static void empty_may_come_again(void **state)
{
	for (int k = 0; k < NR_KINDS; k++) {
		struct rig r;

		rig_init(&r, k, 2 * HUGE);
		lack(&r, 0, r.pages);
		arm(&r);
		assert_int_equal(empty(&r, 10, 100), 0);
		assert_int_equal(atomic_load(&r.p->left), r.pages - 100);
		assert_int_equal(empty(&r, 0, 200), 0);
		assert_int_equal(empty(&r, 10, 100), 0);
		assert_int_equal(atomic_load(&r.p->left), r.pages - 200);
		assert_int_equal(atomic_load(&r.completes), 0);
		assert_int_equal(empty(&r, 0, r.pages), 0);
		assert_int_equal(atomic_load(&r.completes), 1);
		assert_int_equal(empty(&r, 0, r.pages), 0);
		assert_int_equal(atomic_load(&r.completes), 1);
		rig_fini(&r);
	}
}

/* A page that arrived keeps its contents, whatever says that it was never there. */
static void empty_does_not_undo_contents(void **state)
{
	for (int k = 0; k < NR_KINDS; k++) {
		struct rig r;

		rig_init(&r, k, 2 * HUGE);
		lack(&r, 0, r.pages);
		arm(&r);
		assert_int_equal(bring(&r, 0, HUGE), 0);
		assert_int_equal(empty(&r, 0, HUGE), 0);
		for (uint64_t i = 0; i < HUGE; i++)
			assert_true(holds(&r, i, byte_of(i)));
		rig_fini(&r);
	}
}

/* ----------------------------------------------------------------------- refusals */

static void assert_refused(struct rig *r, int e, const char *text)
{
	if (e != -EPROTO || r->err.code != -EPROTO || !strstr(r->err.message, text))
		fail_msg("%d, '%s'; due is '%s'", e, r->err.message, text);
}

static void page_is_placed_once(void **state)
{
	for (int k = 0; k < NR_KINDS; k++) {
		struct rig r;

		rig_init(&r, k, 2 * HUGE);
		lack(&r, 0, r.pages);
		arm(&r);
		assert_int_equal(bring(&r, 0, HUGE), 0);
		assert_refused(&r, contents(&r, 7, 1, STALE), "message CONTENTS");
		assert_refused(&r, contents(&r, HUGE - 1, 2, STALE), "a page is placed once");
		assert_refused(&r, zero(&r, 7, 1), "message ZERO");
		assert_refused(&r, placed(&r, 7, 1), "message PLACED");
		assert_refused(&r, placed(&r, HUGE - 1, 2), "message PLACED");
		if (k != ANON) {
			assert_refused(&r, admit(&r, 7, 1), "a write");
			assert_refused(&r, admit(&r, HUGE - 1, 2), "a page is placed once");
		}
		for (uint64_t i = 0; i < HUGE; i++)
			assert_true(holds(&r, i, byte_of(i)));
		assert_int_equal(atomic_load(&r.p->left), r.pages - HUGE);
		rig_fini(&r);
	}
}

/* A write that was admitted and has not ended keeps others away. */
static void page_that_is_on_its_way_is_taken(void **state)
{
	for (int k = 0; k < NR_KINDS; k++) {
		struct rig r;

		if (k == ANON)
			continue;
		rig_init(&r, k, 2 * HUGE);
		lack(&r, 0, r.pages);
		arm(&r);
		assert_int_equal(admit(&r, 10, 5), 0);
		assert_refused(&r, admit(&r, 14, 5), "on their way");
		assert_refused(&r, contents(&r, 6, 5, STALE), "on their way");
		assert_refused(&r, zero(&r, 12, 1), "on their way");
		assert_int_equal(atomic_load(&r.p->left), r.pages);
		assert_int_equal(placed(&r, 10, 5), 0);
		assert_int_equal(atomic_load(&r.p->left), r.pages - 5);
		rig_fini(&r);
	}
}

static void page_that_is_not_missing_may_not_come(void **state)
{
	for (int k = 0; k < NR_KINDS; k++) {
		struct rig r;

		rig_init(&r, k, 2 * HUGE);
		put_stale(&r, 0);
		lack(&r, HUGE, HUGE);
		arm(&r);
		assert_refused(&r, contents(&r, 0, 1, 1), "message CONTENTS");
		assert_refused(&r, contents(&r, HUGE - 1, 2, 1), "message CONTENTS");
		assert_refused(&r, zero(&r, 0, 1), "message ZERO");
		assert_refused(&r, placed(&r, 0, 1), "message PLACED");
		if (k != ANON)
			assert_refused(&r, admit(&r, 0, 1), "a write");
		assert_true(holds(&r, 0, STALE));
		assert_int_equal(atomic_load(&r.p->left), HUGE);
		rig_fini(&r);
	}
}

static void pages_outside_are_refused(void **state)
{
	static const struct {
		uint32_t region;
		uint64_t first, nr;
		const char *text;
	} cases[] = {
		{ 1, 0, 1, "has region = 1, there are 1" },
		{ UINT32_MAX, 0, 1, "has region = 4294967295" },
		{ 0, 2 * HUGE, 1, "it has 1024" },
		{ 0, 2 * HUGE - 1, 2, "pages 1023 + 2 of region 'ram'" },
		{ 0, 0, 2 * HUGE + 1, "pages 0 + 1025" },
		{ 0, UINT64_MAX, 1, "it has 1024" },
		{ 0, 1, UINT64_MAX, "it has 1024" },
		{ 0, UINT64_MAX, UINT64_MAX, "it has 1024" },
	};

	for (int k = 0; k < NR_KINDS; k++) {
		static uint8_t buf[2 * TERN_PAGE_SIZE];
		struct rig r;

		rig_init(&r, k, 2 * HUGE);
		lack(&r, 0, r.pages);
		arm(&r);
		for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
			uint32_t id = cases[i].region;
			uint64_t first = cases[i].first, nr = cases[i].nr;

			error_clear(&r.err);
			assert_refused(&r, placement_contents(r.p, id, first, nr, buf, &r.err),
				       cases[i].text);
			error_clear(&r.err);
			assert_refused(&r, placement_placed(r.p, id, first, nr, &r.err),
				       cases[i].text);
			error_clear(&r.err);
			assert_refused(&r, placement_zero(r.p, id, first, nr, &r.err),
				       cases[i].text);
			error_clear(&r.err);
			assert_refused(&r, placement_empty(r.p, id, first, nr, &r.err),
				       cases[i].text);
		}
		assert_int_equal(atomic_load(&r.p->left), r.pages);
		rig_fini(&r);
	}
}

/* Writes that the transport found to be inside, and that are not possible all the same. */
static void writes_that_may_not_be(void **state)
{
	const struct transport_range ranges[] = { { 0, 1, PAGE },
						  { 0, 0, PAGE - 1 },
						  { 0, PAGE / 2, PAGE / 2 } };
	struct rig r;

	rig_init(&r, MEMFD, 2 * HUGE);
	lack(&r, 0, r.pages);
	arm(&r);
	for (int i = 0; i < 3; i++) {
		error_clear(&r.err);
		assert_refused(&r, placement_admit(r.p, &ranges[i], 1, &r.err), "whole pages");
	}
	/* The second of two: the session ends, so the first may stay taken. */
	const struct transport_range two[] = { { 0, 0, PAGE }, { 0, 0, PAGE } };

	error_clear(&r.err);
	assert_refused(&r, placement_admit(r.p, two, 2, &r.err), "a page is placed once");
	rig_fini(&r);
	rig_init(&r, ANON, 2 * HUGE);
	lack(&r, 0, r.pages);
	arm(&r);
	assert_refused(&r, admit(&r, 0, 1), "come in messages");
	assert_refused(&r, placed(&r, 0, 1), "message PLACED");
	rig_fini(&r);
}

/* Mappings of another process that cannot be: each is refused, and said why. */
static void wrong_mappings_are_refused(void **state)
{
	const uint64_t base = 0x7f0000000000;
	const struct tern_mapping right = { .size = 4 * PAGE, .hva = base };
	static const struct {
		struct tern_mapping m;
		const char *words;
	} wrong[] = {
		{ { .region = 1, .size = PAGE, .hva = 1ull << 40 }, "region 1" },
		{ { .size = 0, .hva = 1ull << 40 }, "outside" },
		{ { .size = 17 * PAGE, .hva = 1ull << 40 }, "outside" },
		{ { .offset = 17 * PAGE, .size = PAGE, .hva = 1ull << 40 }, "outside" },
		{ { .size = PAGE, .hva = (1ull << 40) + 1 }, "whole host pages" },
		{ { .size = PAGE, .hva = 1ull << 40, .reserved = 7 }, "where 0 must be" },
		{ { .size = PAGE, .hva = 0x7f0000003000 }, "overlap" },
		{ { .size = 8 * PAGE, .hva = 0x7efffffff000 }, "overlap" },
	};
	struct mapper *m;
	struct uffd other;
	struct rig r;

	rig_init(&r, MEMFD, 16);
	assert_int_equal(uffd_open(&other, 0, &r.err), 0);
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		const struct tern_mapping both[] = { right, wrong[i].m };

		error_clear(&r.err);
		assert_int_equal(mapper_new(r.p, other.fd, both, 2, &m, &r.err), -EINVAL);
		if (!strstr(r.err.message, wrong[i].words))
			fail_msg("case %zu: '%s' lacks '%s'", i, r.err.message, wrong[i].words);
	}
	const struct tern_mapping apart[] = { right, { .size = PAGE, .hva = base + 4 * PAGE } };

	assert_int_equal(mapper_new(r.p, other.fd, apart, 2, &m, &r.err), 0);
	mapper_delete(&m);
	uffd_close(&other);
	rig_fini(&r);
}

/* A mapping that is refused changes nothing: the good one before it stays registered. */
static void refused_mappings_stay_registered(void **state)
{
	uint8_t *theirs =
		mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	const struct tern_mapping both[] = {
		{ .size = 4 * PAGE, .hva = (uintptr_t)theirs },
		{ .size = 17 * PAGE, .hva = 1ull << 40 },
	};
	struct mapper *m;
	struct uffd other;
	struct rig r;

	assert_ptr_not_equal(theirs, MAP_FAILED);
	rig_init(&r, MEMFD, 16);
	assert_int_equal(uffd_open(&other, 0, &r.err), 0);
	assert_int_equal(
		uffd_register(&other, theirs, 4 * PAGE, UFFDIO_REGISTER_MODE_MISSING, NULL), 0);
	assert_int_equal(mapper_new(r.p, other.fd, both, 2, &m, &r.err), -EINVAL);
	assert_int_equal(uffd_zero(&other, theirs, 4 * PAGE), 0);
	error_clear(&r.err);
	assert_int_equal(mapper_new(r.p, other.fd, both, 1, &m, &r.err), 0);
	mapper_delete(&m);
	assert_int_equal(uffd_zero(&other, theirs, 4 * PAGE), -ENOENT);
	uffd_close(&other);
	munmap(theirs, 4 * PAGE);
	rig_fini(&r);
}

static void missing_may_not_overlap(void **state)
{
	struct runs twice = { .p = (const uint8_t *)"\0\5", .left = 2, .at = 12, .end = 1024 };
	struct rig r;

	rig_init(&r, MEMFD, 2 * HUGE);
	lack(&r, 10, 5);
	assert_int_equal(placement_missing(r.p, 0, &twice), -EPROTO);
	rig_fini(&r);
}

/* ------------------------------------------------------------- blocks, and new links */

/* Does userfaultfd still look after page @page? */
static bool is_registered(struct rig *r, uint64_t page)
{
	return uffd_zero(&r->p->uffd, r->mem + page * PAGE, PAGE) != -ENOENT;
}

static void complete_blocks_are_the_kernels(void **state)
{
	for (int k = 0; k < NR_KINDS; k++) {
		struct rig r;

		if (k == HUGETLB)
			continue;
		rig_init(&r, k, 4 * BLOCK);
		lack(&r, 0, BLOCK);
		lack(&r, 2 * BLOCK, BLOCK);
		lack(&r, 3 * BLOCK + 7, 1);
		arm(&r);
		assert_true(is_registered(&r, BLOCK - 1));
		assert_false(is_registered(&r, BLOCK));
		assert_true(is_registered(&r, 2 * BLOCK));
		assert_int_equal(bring(&r, 1, BLOCK - 1), 0);
		placement_settle(r.p);
		assert_true(is_registered(&r, 0));
		assert_int_equal(bring(&r, 0, 1), 0);
		assert_false(is_registered(&r, 0));
		assert_int_equal(bring(&r, 3 * BLOCK + 7, 1), 0);
		assert_false(is_registered(&r, 4 * BLOCK - 1));
		placement_settle(r.p);
		assert_true(is_registered(&r, 3 * BLOCK - 1));
		rig_fini(&r);
	}
}

/* After a lost link all that is missing may come, also what was on its way; no more. */
static void again_allows_what_is_missing(void **state)
{
	struct rig r;

	rig_init(&r, MEMFD, 2 * HUGE);
	lack(&r, 0, r.pages);
	arm(&r);
	assert_int_equal(bring(&r, 0, 10), 0);
	assert_int_equal(admit(&r, 10, 10), 0);
	assert_refused(&r, contents(&r, 10, 10, 0), "on their way");
	placement_again(r.p);
	assert_refused(&r, contents(&r, 9, 1, STALE), "message CONTENTS");
	assert_refused(&r, admit(&r, 9, 2), "a write");
	assert_int_equal(bring(&r, 10, 10), 0);
	for (uint64_t i = 0; i < 20; i++)
		assert_true(holds(&r, i, byte_of(i)));
	rig_fini(&r);
}

/* Private memory of which a first attempt, before the link was lost, placed one page. */
static void contents_come_again_after_a_part(void **state)
{
	uint8_t page[TERN_PAGE_SIZE];
	struct rig r;

	rig_init(&r, ANON, 2 * HUGE);
	lack(&r, 0, r.pages);
	arm(&r);
	memset(page, byte_of(5), PAGE);
	assert_int_equal(uffd_copy(&r.p->uffd, r.mem + 5 * PAGE, page, PAGE), 0);
	assert_int_equal(contents(&r, 0, 16, 0), 0);
	for (uint64_t i = 0; i < 16; i++)
		assert_true(holds(&r, i, byte_of(i)));
	rig_fini(&r);
}

/* What threads wait for is asked for again, once each, and only that. */
static void what_is_waited_for_is_asked_for_again(void **state)
{
	struct guest g[4];
	struct rig r;

	rig_init(&r, MEMFD, 4 * HUGE);
	lack(&r, 0, r.pages);
	arm(&r);
	for (unsigned i = 0; i < 4; i++)
		guest_start(&g[i], &r, 100 * i, 1, 1);
	await_requests(&r, 4);
	assert_int_equal(bring(&r, 100, 1), 0);
	guest_join(&g[1]);
	assert_int_equal(faults_ask_again(r.f), 0);
	assert_int_equal(atomic_load(&r.requests), 7);
	for (unsigned i = 0; i < 4; i++)
		if (i != 1) {
			assert_int_equal(bring(&r, 100 * i, 1), 0);
			guest_join(&g[i]);
		}
	assert_int_equal(faults_ask_again(r.f), 0);
	assert_int_equal(atomic_load(&r.requests), 7);
	rig_fini(&r);
}

static void deleting_wakes_who_waits(void **state)
{
	for (int k = 0; k < NR_KINDS; k++) {
		struct guest g;
		struct rig r;

		rig_init(&r, k, 2 * HUGE);
		lack(&r, 0, r.pages);
		arm(&r);
		start_zero_reader(&g, &r, HUGE + 1);
		await_requests(&r, 1);
		faults_stop(&r.f);
		placement_delete(&r.p);
		guest_join(&g);
		rig_fini(&r);
	}
}

/* ------------------------------------------------------------------------- races */

/* A thread that brings pages: every second piece, from one end. */
struct bringer {
	struct rig *r;
	pthread_t thread;
	unsigned index, piece;
	atomic_int error;
};

static void *bringer_main(void *arg)
{
	struct bringer *b = arg;
	int e = 0;

	for (uint64_t at = (uint64_t)b->index * b->piece; at < b->r->pages && !e;
	     at += 2ull * b->piece) {
		struct tern_error err = { 0 };
		uint8_t buf[16 * TERN_PAGE_SIZE];

		for (unsigned i = 0; i < b->piece; i++)
			memset(buf + i * PAGE, byte_of(at + i), PAGE);
		e = placement_contents(b->r->p, 0, at, b->piece, buf, &err);
	}
	atomic_store(&b->error, e);
	return NULL;
}

/* Threads touch every page in three orders while two others bring them. */
static void faults_race_with_arrival(void **state)
{
	static const unsigned pieces[] = { 1, 2, 16 };

	for (int k = 0; k < NR_KINDS * 6; k++) {
		struct bringer b[2];
		struct guest g[4];
		struct rig r;

		rig_init(&r, k % NR_KINDS, 8 * HUGE);
		lack(&r, 0, r.pages);
		arm(&r);
		for (unsigned i = 0; i < 4; i++)
			guest_start(&g[i], &r, 17 * i, r.pages, i % 2 ? 1 : 1025);
		for (unsigned i = 0; i < 2; i++) {
			b[i] = (struct bringer){ .r = &r,
						 .index = i,
						 .piece = pieces[k / NR_KINDS % 3] };
			pthread_create(&b[i].thread, NULL, bringer_main, &b[i]);
		}
		for (unsigned i = 0; i < 2; i++) {
			pthread_join(b[i].thread, NULL);
			assert_int_equal(atomic_load(&b[i].error), 0);
		}
		for (unsigned i = 0; i < 4; i++)
			guest_join(&g[i]);
		assert_int_equal(atomic_load(&r.p->left), 0);
		assert_int_equal(atomic_load(&r.completes), 1);
		rig_fini(&r);
	}
}

/* One page at a time: the fault and its page at the same moment, thousands of times. */
static void fault_and_its_page_meet(void **state)
{
	for (int k = 0; k < NR_KINDS; k++) {
		struct guest g;
		struct rig r;

		rig_init(&r, k, 16 * HUGE);
		lack(&r, 0, r.pages);
		arm(&r);
		guest_start(&g, &r, 0, r.pages, 1);
		for (uint64_t at = 0; at < r.pages; at++) {
			uint64_t until = deadline_ns(WAIT_MS);
			uint64_t unit = k == HUGETLB ? HUGE : 1;

			/* The thread is about to touch it; of huge pages, all of one comes first.
			 */
			while (atomic_load(&g.done) < at / unit * unit)
				if (now_ns() > until)
					fail_msg("the thread hangs at page %u",
						 atomic_load(&g.done));
			assert_int_equal(at % 2 ? contents(&r, at, 1, 0) : bring(&r, at, 1), 0);
		}
		guest_join(&g);
		rig_fini(&r);
	}
}

/* --------------------------------------------------------------------- refused memory */

static void refuse(struct tern_region_desc *desc, const char *text)
{
	struct region_list list = { 0 };
	struct placement *p = NULL;
	struct tern_error err;

	desc->name = "odd";
	desc->numa_node = TERN_NODE_ANY;
	error_clear(&err);
	assert_int_equal(region_add(&list, desc, &err), 0);
	int e = placement_new(&list, &p, &err);

	if (e != -EOPNOTSUPP || !strstr(err.message, text) || !strstr(err.message, "'odd'"))
		fail_msg("%d: %s", e, err.message);
	assert_null(p);
	region_list_fini(&list);
}

static void private_huge_pages_are_refused(void **state)
{
	struct hugepages hp;

	if (hugepages_get(&hp, 1))
		leave_out("hugetlb", "cannot reserve a huge page of 2 MiB");
	void *mem = mmap(NULL, HUGE * PAGE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);

	assert_ptr_not_equal(mem, MAP_FAILED);
	refuse(&(struct tern_region_desc){ .hva = mem, .size = HUGE * PAGE, .fd = -1 },
	       "a private mapping of huge pages");
	munmap(mem, HUGE * PAGE);
	hugepages_put(&hp);
}

static void files_are_refused(void **state)
{
	char path[] = "tern-placement-XXXXXX"; /* where the test runs: no tmpfs */
	int fd = mkstemp(path);

	assert_true(fd >= 0 && !unlink(path) && !ftruncate(fd, 16 * (off_t)PAGE));
	for (int i = 0; i < 2; i++) {
		void *mem = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE,
				 i ? MAP_PRIVATE : MAP_SHARED, fd, 0);

		assert_ptr_not_equal(mem, MAP_FAILED);
		refuse(&(struct tern_region_desc){ .hva = mem, .size = 16 * PAGE, .fd = -1 },
		       "a mapping of a file");
		munmap(mem, 16 * PAGE);
	}
	close(fd);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(thread_waits_until_its_page_comes),
		cmocka_unit_test(page_that_came_first_is_just_there),
		cmocka_unit_test(page_that_is_not_missing_is_kept),
		cmocka_unit_test(huge_page_comes_in_parts),
		cmocka_unit_test(zero_discards_what_was_there),
		cmocka_unit_test(thread_waits_for_zeros),
		cmocka_unit_test(empty_may_come_again),
		cmocka_unit_test(empty_does_not_undo_contents),
		cmocka_unit_test(page_is_placed_once),
		cmocka_unit_test(page_that_is_on_its_way_is_taken),
		cmocka_unit_test(page_that_is_not_missing_may_not_come),
		cmocka_unit_test(pages_outside_are_refused),
		cmocka_unit_test(writes_that_may_not_be),
		cmocka_unit_test(wrong_mappings_are_refused),
		cmocka_unit_test(refused_mappings_stay_registered),
		cmocka_unit_test(missing_may_not_overlap),
		cmocka_unit_test(complete_blocks_are_the_kernels),
		cmocka_unit_test(again_allows_what_is_missing),
		cmocka_unit_test(contents_come_again_after_a_part),
		cmocka_unit_test(what_is_waited_for_is_asked_for_again),
		cmocka_unit_test(deleting_wakes_who_waits),
		cmocka_unit_test(faults_race_with_arrival),
		cmocka_unit_test(fault_and_its_page_meet),
		cmocka_unit_test(private_huge_pages_are_refused),
		cmocka_unit_test(files_are_refused),
	};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests_name("placement", tests, NULL, NULL);
}
