/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * The synthetic guest must find every kind of damage, or `tern bench` proves
 * nothing.  The tests move a guest by hand (memcpy of its pages and its device
 * state), damage the copy, and look at what verification says.
 */

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <cmocka.h>
#include "cli.h"
#include "guest.h"

#define MIB (1ull << 20)
#define PAGE 4096u

/* A source guest that has run, and a destination it was copied to. */
struct pair {
	struct guest *src, *dst;
};

/* A small guest with holes, unequal regions and some load. */
static struct guest_config small_config(void)
{
	return (struct guest_config){
		.size = 33 * MIB + 5 * PAGE,
		.touched = 16 * MIB,
		.working_set = 2 * MIB + 3 * PAGE,
		.dirty_rate = 400 * MIB,
		.seed = 42,
		.nr_regions = 3,
		.vcpus = 3,
		.backing = GUEST_MEMFD,
		.pattern = GUEST_UNIFORM,
		.fill = CONTENT_MIXED,
	};
}

static struct guest *make(const struct guest_config *cfg)
{
	struct tern_error err = { 0 };
	struct guest *g = NULL;

	if (guest_new(cfg, &g, &err))
		fail_msg("%s", err.message);
	return g;
}

/* Sleep; only to let vCPU threads do some work, never to wait for a condition. */
static void nap_ms(unsigned ms)
{
	nanosleep(&(struct timespec){ .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000l }, NULL);
}

/* Wait until the guest has written @n more pages. */
static void wait_writes(struct guest *g, uint64_t n)
{
	uint64_t want = guest_writes(g) + n, end = cli_now_ns() + 20000000000u;

	while (guest_writes(g) < want) {
		assert_true(cli_now_ns() < end);
		nap_ms(1);
	}
}

/* Copy what is not zero from one guest's RAM to the other's. */
static void copy_ram(struct guest *from, struct guest *to)
{
	for (uint64_t p = 0; p < guest_layout(from)->nr_pages; p++)
		if (!content_all_zero(guest_page(from, p)))
			memcpy(guest_page(to, p), guest_page(from, p), PAGE);
}

/* Hand the device state over. */
static void copy_state(struct guest *from, struct guest *to)
{
	uint8_t buf[GUEST_STATE_MAX];
	struct tern_error err = { 0 };

	if (guest_load(to, buf, guest_save(from, buf), &err))
		fail_msg("%s", err.message);
}

/* Run a guest of @cfg for @writes pages and move it. */
static struct pair moved(const struct guest_config *cfg, uint64_t writes)
{
	struct pair p = { make(cfg), make(cfg) };

	guest_fill(p.src);
	assert_int_equal(guest_start_vcpus(p.src, NULL), 0);
	guest_resume(p.src);
	wait_writes(p.src, writes);
	guest_pause(p.src);
	copy_ram(p.src, p.dst);
	copy_state(p.src, p.dst);
	return p;
}

static void done(struct pair *p)
{
	guest_delete(&p->src);
	guest_delete(&p->dst);
	assert_null(p->src);
}

/* Verify and return the number of bad pages. */
static uint64_t bad_pages(struct guest *g, struct guest_verify *v)
{
	struct guest_verify local;

	v = v ? v : &local;
	assert_int_equal(guest_verify(g, v, NULL), 0);
	assert_int_equal(v->pages, guest_layout(g)->nr_pages);
	assert_int_equal(v->nr_notes, v->bad < GUEST_NOTES_MAX ? v->bad : GUEST_NOTES_MAX);
	return v->bad;
}

/* A page of the working set that has been written. */
static uint64_t written_page(struct guest *g)
{
	for (uint64_t i = 0; i < guest_layout(g)->ws_pages; i++) {
		uint64_t stamp[2], page = layout_ws_page(guest_layout(g), i);

		memcpy(stamp, guest_page(g, page), sizeof(stamp));
		if (stamp[0] == page && stamp[1])
			return page;
	}
	fail_msg("no page was written");
	return 0;
}

/* A page outside the touched blocks, or outside the working set. */
static uint64_t other_page(struct guest *g, bool touched, bool zero)
{
	const struct layout *l = guest_layout(g);

	for (uint64_t b = 0; b < l->nr_blocks; b++) {
		if (layout_block_touched(l, b) != touched || layout_ws_first(l, b) != LAYOUT_NONE)
			continue;
		for (unsigned i = 0; i < layout_block_pages(l, b); i++)
			if (content_all_zero(guest_page(g, b * LAYOUT_BLOCK_PAGES + i)) == zero)
				return b * LAYOUT_BLOCK_PAGES + i;
	}
	fail_msg("no such page");
	return 0;
}

/* ---- content ---- */

static void content_is_a_pure_function(void **state)
{
	static uint8_t a[PAGE] __attribute__((aligned(4096))),
		b[PAGE] __attribute__((aligned(4096)));

	for (unsigned fill = 0; fill < CONTENT_NR; fill++)
		for (uint64_t page = 0; page < 64; page++)
			for (uint64_t version = 0; version < 3; version++) {
				struct content c = { .seed = 7, .fill = (enum content_fill)fill };

				content_write(&c, a, page, version);
				memset(b, 0xaa, sizeof(b));
				content_write(&c, b, page, version);
				assert_memory_equal(a, b, PAGE);
				assert_true(content_check(&c, a, page, version));
				assert_int_equal(content_all_zero(a),
						 content_is_zero(&c, page, version));
			}
}

static void content_check_finds_any_flipped_bit(void **state)
{
	static uint8_t a[PAGE] __attribute__((aligned(4096)));

	for (unsigned fill = 0; fill < CONTENT_NR; fill++)
		for (uint64_t version = 0; version < 2; version++) {
			struct content c = { .seed = 9, .fill = (enum content_fill)fill };

			content_write(&c, a, 5, version);
			for (unsigned bit = 0; bit < 8 * PAGE; bit += 3) {
				a[bit / 8] ^= (uint8_t)(1u << bit % 8);
				assert_false(content_check(&c, a, 5, version));
				a[bit / 8] ^= (uint8_t)(1u << bit % 8);
			}
			assert_true(content_check(&c, a, 5, version));
		}
}

static void content_differs_by_seed_page_and_version(void **state)
{
	static uint8_t a[PAGE] __attribute__((aligned(4096)));
	struct content c = { .seed = 1, .fill = CONTENT_RANDOM };
	struct content other = { .seed = 2, .fill = CONTENT_RANDOM };
	uint64_t version = 99;

	content_write(&c, a, 10, 3);
	assert_false(content_check(&other, a, 10, 3));
	assert_false(content_check(&c, a, 11, 3));
	assert_false(content_check(&c, a, 10, 4));
	assert_true(content_observe(&c, a, 10, &version));
	assert_int_equal(version, 3);
	content_write(&c, a, 10, 0);
	assert_true(content_observe(&c, a, 10, &version));
	assert_int_equal(version, 0);
	a[4095] ^= 1;
	assert_false(content_observe(&c, a, 10, &version));
}

/* ---- layout ---- */

/* All that must hold for one layout. */
static void check_layout(uint64_t pages, uint64_t touched, uint64_t ws, bool ws_first)
{
	uint64_t in_blocks = 0, seen = 0, previous = 0;
	struct layout l;

	layout_init(&l, pages, touched, ws);
	l.ws_first = ws_first;
	for (uint64_t b = 0; b < l.nr_blocks; b++)
		if (layout_block_touched(&l, b))
			in_blocks += layout_block_pages(&l, b);
	assert_int_equal(in_blocks, l.touched_pages);
	assert_true(l.touched_pages >= touched && l.touched_pages <= pages);
	assert_true(l.touched_pages < touched + 2 * LAYOUT_BLOCK_PAGES);
	for (uint64_t i = 0; i < ws; i++) {
		uint64_t page = layout_ws_page(&l, i), b = page / LAYOUT_BLOCK_PAGES;

		assert_true(page < pages && (!i || page > previous));
		assert_true(layout_block_touched(&l, b));
		assert_int_equal(layout_ws_first(&l, b) + page % LAYOUT_BLOCK_PAGES, i);
		previous = page;
	}
	for (uint64_t b = 0; b < l.nr_blocks; b++)
		if (layout_ws_first(&l, b) != LAYOUT_NONE)
			seen++;
	assert_int_equal(seen, l.ws_blocks);
}

static void layout_working_set_is_touched_and_invertible(void **state)
{
	static const uint64_t sizes[] = { 1, 5, 511, 512, 513, 1000, 4096, 9999, 20000 };

	for (unsigned s = 0; s < sizeof(sizes) / sizeof(sizes[0]); s++)
		for (uint64_t t = 0; t <= 10; t++)
			for (uint64_t w = 0; w <= 4; w++)
				for (unsigned first = 0; first < 2; first++)
					check_layout(sizes[s], sizes[s] * t / 10,
						     sizes[s] * t / 10 * w / 4, first);
}

/* ---- guest ---- */

static void regions_cover_ram_and_are_unequal(void **state)
{
	struct guest_config cfg = small_config();
	struct guest *g;
	uint64_t next = 0, gpa = 0;

	cfg.nr_regions = 5;
	g = make(&cfg);
	for (unsigned i = 0; i < guest_nr_regions(g); i++) {
		const struct guest_region *r = guest_region(g, i);

		assert_int_equal(r->first_page, next);
		assert_true(r->nr_pages > 0 && r->gpa >= gpa);
		assert_ptr_equal(guest_page(g, next), r->hva);
		assert_ptr_equal(guest_page(g, next + r->nr_pages - 1),
				 r->hva + (r->nr_pages - 1) * PAGE);
		next += r->nr_pages;
		gpa = r->gpa + r->nr_pages * PAGE;
	}
	assert_int_equal(next * PAGE, cfg.size);
	assert_int_not_equal(guest_region(g, 0)->nr_pages, guest_region(g, 1)->nr_pages);
	guest_delete(&g);
}

static void as_many_regions_as_pages(void **state)
{
	struct guest_config cfg = small_config();
	struct guest *g;

	cfg.size = cfg.touched = cfg.working_set = 16 * PAGE;
	cfg.nr_regions = 16;
	g = make(&cfg);
	for (unsigned i = 0; i < 16; i++)
		assert_int_equal(guest_region(g, i)->nr_pages, 1);
	guest_fill(g);
	assert_int_equal(bad_pages(g, NULL), 0);
	guest_delete(&g);
}

static void source_verifies_after_running(void **state)
{
	struct pair p;

	for (unsigned pattern = 0; pattern < GUEST_PATTERN_NR; pattern++) {
		struct guest_config cfg = small_config();

		cfg.pattern = (enum guest_pattern)pattern;
		p = moved(&cfg, 5000);
		assert_int_equal(bad_pages(p.src, NULL), 0);
		done(&p);
	}
}

static void moved_guest_verifies(void **state)
{
	for (unsigned fill = 0; fill < CONTENT_NR; fill++)
		for (unsigned backing = GUEST_MEMFD; backing <= GUEST_ANON; backing++) {
			struct guest_config cfg = small_config();
			struct pair p;

			cfg.fill = (enum content_fill)fill;
			cfg.backing = (enum guest_backing)backing;
			p = moved(&cfg, 2000);
			assert_int_equal(bad_pages(p.dst, NULL), 0);
			done(&p);
		}
}

static void moved_guest_runs_on_and_verifies(void **state)
{
	struct guest_config cfg = small_config();
	struct pair p = moved(&cfg, 3000);

	guest_resume(p.dst);
	wait_writes(p.dst, 10000);
	guest_pause(p.dst);
	assert_int_equal(bad_pages(p.dst, NULL), 0);
	done(&p);
}

static void first_touches_are_timed_once_per_page(void **state)
{
	struct guest_config cfg = small_config();
	struct pair p;
	struct histogram h;

	cfg.pattern = GUEST_SEQUENTIAL;
	p = moved(&cfg, 3000);
	guest_first_touch(p.src, 0, &h);
	assert_int_equal(h.nr, 0); /* it never came from anywhere */
	/* Each vCPU has a part of its own, and may get less of the machine than the others. */
	for (unsigned rounds = 0; rounds < 20; rounds++) {
		guest_resume(p.dst);
		wait_writes(p.dst, 10000);
		guest_pause(p.dst);
		guest_first_touch(p.dst, 0, &h);
		if (h.nr >= cfg.working_set / PAGE)
			break;
	}
	assert_int_equal(h.nr, cfg.working_set / PAGE);
	assert_true(h.max_ns && histogram_percentile(&h, 500) <= h.max_ns);
	guest_first_touch(p.dst, h.max_ns + h.max_ns / 8, &h);
	assert_int_equal(h.nr, 0);
	done(&p);
}

static void merged_histograms_count_all(void **state)
{
	struct histogram a = { .nr = 0 }, b = { .nr = 0 };

	for (uint64_t ns = 1; ns <= 1000; ns++)
		histogram_add(ns % 2 ? &a : &b, ns * 1000);
	histogram_merge(&a, &b, 0);
	assert_int_equal(a.nr, 1000);
	assert_int_equal(a.max_ns, 1000000);
	assert_int_equal(a.sum_ns, 500500000);
	assert_in_range(histogram_percentile(&a, 500), 495000, 505000);
	assert_in_range(histogram_percentile(&a, 990), 985000, 1000000);
	assert_int_equal(histogram_percentile(&a, 1000), 1000000);
}

static void merged_histograms_leave_out_what_is_short(void **state)
{
	struct histogram a = { .nr = 0 }, b = { .nr = 0 };

	histogram_add(&b, 300);
	histogram_add(&b, 8192);
	histogram_add(&b, 90000);
	histogram_merge(&a, &b, 8192);
	assert_int_equal(a.nr, 2);
	assert_in_range(histogram_percentile(&a, 1), 8192, 9000);
	assert_int_equal(histogram_percentile(&a, 1000), 90000);
}

static void destination_takes_load_from_the_state(void **state)
{
	struct guest_config cfg = small_config(), other = small_config();
	struct pair p;

	other.vcpus = 1;
	other.touched = other.working_set = other.dirty_rate = 0;
	other.seed = 1;
	other.fill = CONTENT_ZERO;
	p = (struct pair){ make(&cfg), make(&other) };
	guest_fill(p.src);
	assert_int_equal(guest_start_vcpus(p.src, NULL), 0);
	assert_int_equal(guest_start_vcpus(p.dst, NULL), 0);
	guest_resume(p.src);
	wait_writes(p.src, 1000);
	guest_pause(p.src);
	copy_ram(p.src, p.dst);
	copy_state(p.src, p.dst);
	guest_resume(p.dst);
	wait_writes(p.dst, 3000);
	guest_pause(p.dst);
	assert_int_equal(bad_pages(p.dst, NULL), 0);
	assert_int_equal(guest_config(p.dst)->vcpus, cfg.vcpus);
	done(&p);
}

/* Damage that a guest at rest must show; @note is part of the sentence. */
static void expect_bad(struct guest *g, uint64_t nr, const char *note)
{
	struct guest_verify v;

	assert_int_equal(bad_pages(g, &v), nr);
	if (!strstr(v.note[0], note))
		fail_msg("\"%s\" does not say \"%s\"", v.note[0], note);
}

static void flipped_byte_is_found(void **state)
{
	struct guest_config cfg = small_config();
	struct pair p = moved(&cfg, 2000);

	guest_page(p.dst, written_page(p.dst))[2345] ^= 0x10;
	expect_bad(p.dst, 1, "corrupt");
	guest_page(p.dst, other_page(p.dst, true, false))[4095] ^= 1;
	expect_bad(p.dst, 2, "corrupt");
	done(&p);
}

static void stale_version_is_found(void **state)
{
	struct guest_config cfg = small_config();
	struct pair p = moved(&cfg, 20000);
	struct content c = { .seed = cfg.seed, .fill = cfg.fill };
	uint64_t page = written_page(p.dst);

	content_write(&c, guest_page(p.dst, page), page, 0);
	expect_bad(p.dst, 1, "holds version 0");
	content_write(&c, guest_page(p.dst, page), page, 1);
	assert_int_equal(bad_pages(p.dst, NULL), 1);
	done(&p);
}

static void lost_page_is_found(void **state)
{
	struct guest_config cfg = small_config();
	struct pair p = moved(&cfg, 2000);

	memset(guest_page(p.dst, written_page(p.dst)), 0, PAGE);
	expect_bad(p.dst, 1, "all zeros");
	done(&p);
}

static void page_that_never_arrived_is_found(void **state)
{
	for (unsigned backing = GUEST_MEMFD; backing <= GUEST_ANON; backing++) {
		struct guest_config cfg = small_config();
		struct pair p;

		cfg.backing = (enum guest_backing)backing;
		cfg.fill = CONTENT_RANDOM;
		cfg.dirty_rate = 0;
		p = (struct pair){ make(&cfg), make(&cfg) };
		guest_fill(p.src);
		copy_state(p.src, p.dst);
		expect_bad(p.dst, guest_layout(p.dst)->touched_pages, "has no memory");
		done(&p);
	}
}

static void swapped_pages_are_found(void **state)
{
	struct guest_config cfg = small_config();
	struct pair p = moved(&cfg, 2000);
	uint64_t a = written_page(p.dst), b = other_page(p.dst, true, false);
	uint8_t buf[PAGE];

	memcpy(buf, guest_page(p.dst, a), PAGE);
	memcpy(guest_page(p.dst, a), guest_page(p.dst, b), PAGE);
	memcpy(guest_page(p.dst, b), buf, PAGE);
	assert_int_equal(bad_pages(p.dst, NULL), 2);
	done(&p);
}

static void byte_in_untouched_page_is_found(void **state)
{
	for (unsigned backing = GUEST_MEMFD; backing <= GUEST_ANON; backing++) {
		struct guest_config cfg = small_config();
		struct pair p;

		cfg.backing = (enum guest_backing)backing;
		p = moved(&cfg, 1000);
		guest_page(p.dst, other_page(p.dst, false, true))[100] = 1;
		expect_bad(p.dst, 1, "never touched");
		done(&p);
	}
}

static void zero_page_with_a_byte_is_found(void **state)
{
	struct guest_config cfg = small_config();
	struct pair p = moved(&cfg, 1000);

	guest_page(p.dst, other_page(p.dst, true, true))[0] = 1;
	expect_bad(p.dst, 1, "corrupt");
	done(&p);
}

/* Let the destination overwrite its whole working set (1 page in all cases below). */
static void overwrite(struct guest *g)
{
	guest_resume(g);
	wait_writes(g, 2);
	guest_pause(g);
}

/* A guest whose vCPU writes one page only. */
static struct guest_config one_page_config(void)
{
	struct guest_config cfg = small_config();

	cfg.working_set = PAGE;
	cfg.vcpus = 1;
	cfg.dirty_rate = 4 * MIB;
	return cfg;
}

static void stale_page_cannot_hide_behind_an_overwrite(void **state)
{
	struct guest_config cfg = one_page_config();
	struct pair p = moved(&cfg, 10);
	struct content c = { .seed = cfg.seed, .fill = cfg.fill };
	uint64_t page = written_page(p.dst);

	content_write(&c, guest_page(p.dst, page), page, guest_writes(p.dst) - 1);
	overwrite(p.dst);
	expect_bad(p.dst, 1, "after the handover");
	done(&p);
}

static void corrupt_page_cannot_hide_behind_an_overwrite(void **state)
{
	struct guest_config cfg = one_page_config();
	struct pair p = moved(&cfg, 10);

	guest_page(p.dst, written_page(p.dst))[4000] ^= 2;
	overwrite(p.dst);
	expect_bad(p.dst, 1, "was corrupt after the handover");
	done(&p);
}

static void overwrite_of_a_good_page_is_good(void **state)
{
	struct guest_config cfg = one_page_config();
	struct pair p = moved(&cfg, 10);

	overwrite(p.dst);
	assert_int_equal(bad_pages(p.dst, NULL), 0);
	done(&p);
}

static void lost_device_state_is_found(void **state)
{
	struct guest_config cfg = one_page_config();
	struct pair p = moved(&cfg, 10);
	uint8_t buf[GUEST_STATE_MAX];
	size_t len = guest_save(p.src, buf);

	/* The counter of vCPU 0 is one too low: RAM is ahead of the state. */
	buf[72]--;
	assert_int_equal(guest_load(p.dst, buf, len, NULL), 0);
	assert_int_equal(bad_pages(p.dst, NULL), 1);
	done(&p);
}

static void verification_allocates_nothing(void **state)
{
	struct guest_config cfg = small_config();
	struct guest *g;
	struct stat st;

	cfg.touched = cfg.working_set = 0;
	cfg.nr_regions = 1;
	g = make(&cfg);
	assert_int_equal(bad_pages(g, NULL), 0);
	assert_int_equal(fstat(guest_region(g, 0)->fd, &st), 0);
	assert_int_equal(st.st_blocks, 0);
	guest_delete(&g);
}

static void populate_allocates_touched_pages_only(void **state)
{
	struct guest_config cfg = small_config();
	struct guest *g;
	uint64_t blocks = 0;

	g = make(&cfg);
	guest_populate(g);
	for (unsigned i = 0; i < guest_nr_regions(g); i++) {
		struct stat st;

		assert_int_equal(fstat(guest_region(g, i)->fd, &st), 0);
		blocks += (uint64_t)st.st_blocks;
	}
	assert_int_equal(blocks * 512, guest_layout(g)->touched_pages * PAGE);
	guest_delete(&g);
}

static void hugetlb_works_or_says_what_is_missing(void **state)
{
	struct guest_config cfg = small_config();
	struct tern_error err = { 0 };
	struct guest *g = NULL;

	cfg.size = 32 * MIB;
	cfg.backing = GUEST_HUGETLB;
	if (guest_new(&cfg, &g, &err)) {
		assert_null(g);
		assert_non_null(strstr(err.message, "vm.nr_hugepages"));
		return;
	}
	guest_fill(g);
	assert_int_equal(bad_pages(g, NULL), 0);
	guest_page(g, other_page(g, false, true))[1] = 1;
	assert_int_equal(bad_pages(g, NULL), 1);
	guest_delete(&g);
}

/* ---- vCPUs ---- */

static void paused_guest_writes_nothing(void **state)
{
	struct guest_config cfg = small_config();
	struct guest *g = make(&cfg);

	guest_fill(g);
	assert_int_equal(guest_start_vcpus(g, NULL), 0);
	for (unsigned i = 0; i < 50; i++) {
		uint64_t writes;

		guest_resume(g);
		wait_writes(g, 20);
		guest_pause(g);
		writes = guest_writes(g);
		nap_ms(2);
		assert_int_equal(guest_writes(g), writes);
	}
	assert_int_equal(bad_pages(g, NULL), 0);
	guest_delete(&g);
}

static void resting_guest_writes_nothing(void **state)
{
	struct guest_config cfg = small_config();
	struct guest *g = make(&cfg);
	uint64_t writes;

	guest_fill(g);
	assert_int_equal(guest_start_vcpus(g, NULL), 0);
	guest_resume(g);
	wait_writes(g, 20);
	guest_rest(g, true);
	guest_pause(g); /* waits for those in the middle of a write */
	writes = guest_writes(g);
	guest_resume(g);
	nap_ms(20);
	assert_int_equal(guest_writes(g), writes);
	guest_rest(g, false);
	wait_writes(g, 20);
	guest_pause(g);
	guest_rest(g, true);
	guest_rest(g, false); /* does not end the pause */
	writes = guest_writes(g);
	nap_ms(20);
	assert_int_equal(guest_writes(g), writes);
	assert_int_equal(bad_pages(g, NULL), 0);
	guest_delete(&g);
}

/* Does page @page hold what it held before the guest ran? */
static bool is_unwritten(struct guest *g, uint64_t page)
{
	struct content content = { .seed = guest_config(g)->seed, .fill = guest_config(g)->fill };

	return content_check(&content, guest_page(g, page), page, 0);
}

static void alternate_writes_every_other_page_from_the_first(void **state)
{
	struct guest_config cfg = small_config();
	struct guest *g;

	cfg.pattern = GUEST_ALTERNATE;
	cfg.fill = CONTENT_RANDOM;
	cfg.vcpus = 1;
	g = make(&cfg);
	guest_fill(g);
	assert_int_equal(guest_start_vcpus(g, NULL), 0);
	guest_resume(g);
	wait_writes(g, cfg.working_set / PAGE / 2 + 1);
	guest_pause(g);
	for (uint64_t i = 0; i < cfg.working_set / PAGE; i++)
		assert_int_equal(is_unwritten(g, layout_ws_page(guest_layout(g), i)), i % 2);
	guest_delete(&g);
}

static void idle_guest_uses_no_cpu(void **state)
{
	struct guest_config cfg = small_config();
	struct guest *g;

	cfg.dirty_rate = 0;
	g = make(&cfg);
	assert_int_equal(guest_start_vcpus(g, NULL), 0);
	guest_resume(g);
	nap_ms(100);
	assert_false(guest_is_busy(g));
	assert_true(guest_cpu_ns(g) < 20000000);
	guest_pause(g);
	assert_int_equal(guest_writes(g), 0);
	guest_delete(&g);
}

static void dirty_rate_is_not_exceeded(void **state)
{
	struct guest_config cfg = small_config();
	uint64_t begin, ns, bytes;
	struct guest *g;

	cfg.dirty_rate = 40 * MIB;
	g = make(&cfg);
	guest_fill(g);
	assert_int_equal(guest_start_vcpus(g, NULL), 0);
	begin = cli_now_ns();
	guest_resume(g);
	nap_ms(500);
	guest_pause(g);
	ns = cli_now_ns() - begin;
	bytes = guest_writes(g) * PAGE;
	/* The lower bound only says that it runs: other processes may take the CPUs. */
	assert_true(bytes <= cfg.dirty_rate * ns / 1000000000 + 2 * cfg.vcpus * PAGE);
	assert_true(bytes > cfg.dirty_rate / 40);
	guest_delete(&g);
}

static void more_vcpus_than_pages(void **state)
{
	struct guest_config cfg = small_config();
	struct pair p;

	cfg.vcpus = 7;
	cfg.working_set = 3 * PAGE;
	p = moved(&cfg, 100);
	assert_int_equal(bad_pages(p.dst, NULL), 0);
	done(&p);
}

/* ---- device state ---- */

/* Overwrite @len bytes at @at of a good state and expect @field in the error. */
static void expect_refused(size_t at, const void *bytes, size_t len, long resize, const char *field)
{
	struct guest_config cfg = small_config();
	struct guest *g = make(&cfg);
	uint8_t buf[GUEST_STATE_MAX + 64] = { 0 };
	size_t total = guest_save(g, buf);
	struct tern_error err = { 0 };

	memcpy(buf + at, bytes, len);
	assert_int_equal(guest_load(g, buf, total + (size_t)resize, &err), -EPROTO);
	if (!strstr(err.message, field))
		fail_msg("\"%s\" does not name \"%s\"", err.message, field);
	assert_int_equal(guest_config(g)->seed, cfg.seed);
	assert_int_equal(guest_config(g)->vcpus, cfg.vcpus);
	guest_delete(&g);
}

static void hostile_state_is_refused(void **state)
{
	static const uint8_t ones[8] = { 255, 255, 255, 255, 255, 255, 255, 255 };
	static const uint8_t zeros[8], page[8] = { 0, 16 }, odd[8] = { 1 };

	expect_refused(0, ones, 4, 0, "magic");
	expect_refused(4, zeros, 4, 0, "version");
	expect_refused(16, ones, 4, 0, "fill");
	expect_refused(20, ones, 4, 0, "pattern");
	expect_refused(24, ones, 4, 0, "vcpus");
	expect_refused(24, zeros, 4, 0, "vcpus");
	expect_refused(24, (const uint8_t[4]){ 4 }, 4, 0, "length");
	expect_refused(32, page, 8, 0, "size");
	expect_refused(40, ones, 8, 0, "touched");
	expect_refused(40, odd, 8, 0, "touched");
	expect_refused(48, ones, 8, 0, "working set");
	expect_refused(56, ones, 8, 0, "dirty rate");
	expect_refused(72, ones, 8, 0, "writes");
	expect_refused(0, zeros, 0, -1, "length");
	expect_refused(0, zeros, 0, 8, "length");
	expect_refused(0, zeros, 0, -96, "length");
}

static void writes_of_an_idle_vcpu_are_refused(void **state)
{
	static const uint8_t one[8] = { 1 }, zeros[8];
	struct guest_config cfg = small_config();
	uint8_t buf[GUEST_STATE_MAX];
	struct tern_error err = { 0 };
	struct guest *g = make(&cfg);
	size_t len = guest_save(g, buf);

	memcpy(buf + 56, zeros, 8);
	memcpy(buf + 72, one, 8);
	assert_int_equal(guest_load(g, buf, len, &err), -EPROTO);
	assert_non_null(strstr(err.message, "writes"));
	guest_delete(&g);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(content_is_a_pure_function),
		cmocka_unit_test(content_check_finds_any_flipped_bit),
		cmocka_unit_test(content_differs_by_seed_page_and_version),
		cmocka_unit_test(layout_working_set_is_touched_and_invertible),
		cmocka_unit_test(regions_cover_ram_and_are_unequal),
		cmocka_unit_test(as_many_regions_as_pages),
		cmocka_unit_test(source_verifies_after_running),
		cmocka_unit_test(moved_guest_verifies),
		cmocka_unit_test(moved_guest_runs_on_and_verifies),
		cmocka_unit_test(first_touches_are_timed_once_per_page),
		cmocka_unit_test(merged_histograms_count_all),
		cmocka_unit_test(merged_histograms_leave_out_what_is_short),
		cmocka_unit_test(destination_takes_load_from_the_state),
		cmocka_unit_test(flipped_byte_is_found),
		cmocka_unit_test(stale_version_is_found),
		cmocka_unit_test(lost_page_is_found),
		cmocka_unit_test(page_that_never_arrived_is_found),
		cmocka_unit_test(swapped_pages_are_found),
		cmocka_unit_test(byte_in_untouched_page_is_found),
		cmocka_unit_test(zero_page_with_a_byte_is_found),
		cmocka_unit_test(stale_page_cannot_hide_behind_an_overwrite),
		cmocka_unit_test(corrupt_page_cannot_hide_behind_an_overwrite),
		cmocka_unit_test(overwrite_of_a_good_page_is_good),
		cmocka_unit_test(lost_device_state_is_found),
		cmocka_unit_test(verification_allocates_nothing),
		cmocka_unit_test(populate_allocates_touched_pages_only),
		cmocka_unit_test(hugetlb_works_or_says_what_is_missing),
		cmocka_unit_test(paused_guest_writes_nothing),
		cmocka_unit_test(resting_guest_writes_nothing),
		cmocka_unit_test(alternate_writes_every_other_page_from_the_first),
		cmocka_unit_test(idle_guest_uses_no_cpu),
		cmocka_unit_test(dirty_rate_is_not_exceeded),
		cmocka_unit_test(more_vcpus_than_pages),
		cmocka_unit_test(hostile_state_is_refused),
		cmocka_unit_test(writes_of_an_idle_vcpu_are_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
