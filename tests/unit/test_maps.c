/* SPDX-License-Identifier: BSD-2-Clause */
/* The process's mappings: asked for one by one and read as a text, they are the same. */
#define _GNU_SOURCE
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>
#include <cmocka.h>

#include "maps.h"

#define PAGE 4096u
#define VMAS_MAX 4096u

struct list {
	unsigned nr;
	struct maps_vma v[VMAS_MAX];
};

static struct list asked, read_all; /* static: nothing is mapped while they are filled */

static int add(const struct maps_vma *v, void *opaque)
{
	struct list *list = opaque;

	if (list->nr == VMAS_MAX)
		return -ENOSPC;
	list->v[list->nr++] = *v;
	return 0;
}

static int stop_at_second(const struct maps_vma *v, void *opaque)
{
	unsigned *n = opaque;

	return ++*n == 2 ? 77 : 0;
}

/* Three pages of a file whose name has a space and is gone, the middle one read-only; a hole. */
static uint8_t *map_some(int *fd)
{
	uint8_t *p = mmap(NULL, 5 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	assert_true(p != MAP_FAILED);
	*fd = memfd_create("a name with spaces", MFD_CLOEXEC);
	assert_true(*fd >= 0 && !ftruncate(*fd, 8 * PAGE));
	assert_true(mmap(p, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, *fd,
			 2 * PAGE) == p);
	assert_int_equal(mprotect(p + PAGE, PAGE, PROT_READ), 0);
	assert_int_equal(munmap(p + 3 * PAGE, PAGE), 0);
	return p;
}

static void assert_some(const struct list *list, const uint8_t *p, int fd)
{
	struct stat st;

	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(list->nr, 4);
	for (unsigned i = 0; i < 3; i++) {
		const struct maps_vma *v = &list->v[i];

		assert_int_equal(v->start, (uintptr_t)p + i * PAGE);
		assert_int_equal(v->end - v->start, PAGE);
		assert_int_equal(v->offset, (2 + i) * PAGE);
		assert_int_equal(v->inode, st.st_ino);
		assert_int_equal(v->major, major(st.st_dev));
		assert_int_equal(v->minor, minor(st.st_dev));
		assert_true(v->readable && v->shared && v->writable == (i != 1));
		assert_string_equal(v->path, "/memfd:a name with spaces (deleted)");
	}
	assert_true(list->v[3].start <= (uintptr_t)p + 4 * PAGE);
	assert_false(list->v[3].readable || list->v[3].shared || list->v[3].inode);
	assert_string_equal(list->v[3].path, "");
}

static void both_ways(void **state)
{
	int fd;
	uint8_t *p = map_some(&fd);
	uint64_t from = (uintptr_t)p, to = from + 5 * PAGE;

	asked.nr = read_all.nr = 0;
	assert_int_equal(maps_walk(from, to, add, &asked), 0);
	assert_int_equal(maps_walk_text(from, to, add, &read_all), 0);
	assert_some(&asked, p, fd);
	assert_some(&read_all, p, fd);
	assert_int_equal(munmap(p, 5 * PAGE), 0);
	close(fd);
}

static void whole_process(void **state)
{
	uint64_t end = 1ull << 47;
	int fd;
	uint8_t *p = map_some(&fd);

	/* Once for what stdio and the heap map meanwhile. */
	for (unsigned i = 0; i < 2; i++) {
		asked.nr = read_all.nr = 0;
		assert_int_equal(maps_walk_text(0, end, add, &read_all), 0);
		assert_int_equal(maps_walk(0, end, add, &asked), 0);
	}
	assert_true(asked.nr > 10);
	assert_int_equal(asked.nr, read_all.nr);
	for (unsigned i = 0; i < asked.nr; i++)
		assert_memory_equal(&asked.v[i], &read_all.v[i], sizeof(asked.v[i]));
	assert_int_equal(munmap(p, 5 * PAGE), 0);
	close(fd);
}

static void walk_ends_early(void **state)
{
	unsigned n = 0;

	assert_int_equal(maps_walk(0, 1ull << 47, stop_at_second, &n), 77);
	assert_int_equal(n, 2);
	n = 0;
	assert_int_equal(maps_walk_text(0, 1ull << 47, stop_at_second, &n), 77);
	assert_int_equal(n, 2);
	/* Nothing lies there: an empty range, and the first page. */
	assert_int_equal(maps_walk(PAGE, PAGE, stop_at_second, &n), 0);
	assert_int_equal(maps_walk(0, PAGE, stop_at_second, &n), 0);
	assert_int_equal(n, 2);
}

static void lines(void **state)
{
	static const char *const no[] = {
		"",
		"\n",
		"7f00",
		"7f00-",
		"7f00-8000",
		"7f00-8000 rw",
		"7f00-8000 rw-p",
		"7f00-8000 rw-p 0 ",
		"7f00-8000 rw-p 00000000 00:00",
		"Size:   4 kB\n",
		"KernelPageSize:        4 kB\n",
		"VmFlags: rd ex mr mw me\n",
		"7f00-8000 rw-p 00000000 00:0x 12 /x\n",
		"-8000 rw-p 00000000 00:00 0 \n",
	};
	struct maps_vma v;

	for (unsigned i = 0; i < sizeof(no) / sizeof(*no); i++)
		assert_false(maps_parse(no[i], &v));
	assert_true(maps_parse("7ffffffff000-ffffffffff600000 r-xs 0001f000 fd:1a 4711 "
			       "   /usr/lib/x y\n",
			       &v));
	assert_int_equal(v.start, 0x7ffffffff000);
	assert_int_equal(v.end, 0xffffffffff600000);
	assert_int_equal(v.offset, 0x1f000);
	assert_int_equal(v.major, 0xfd);
	assert_int_equal(v.minor, 0x1a);
	assert_int_equal(v.inode, 4711);
	assert_true(v.readable && !v.writable && v.shared);
	assert_string_equal(v.path, "/usr/lib/x y");
	assert_true(maps_parse("1000-2000 ---p 00000000 00:00 0 ", &v));
	assert_string_equal(v.path, "");
}

/* A page of the usual size needs no look into smaps; a hole has none. */
static void page_size(void **state)
{
	uint8_t *p = mmap(NULL, 2 * PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	bool hugetlb = true;

	assert_true(p != MAP_FAILED);
	assert_int_equal(munmap(p + PAGE, PAGE), 0);
	assert_int_equal(maps_page_size((uintptr_t)p, &hugetlb), PAGE);
	assert_false(hugetlb);
	assert_int_equal(munmap(p, PAGE), 0);
	assert_int_equal(maps_page_size((uintptr_t)p, &hugetlb), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(both_ways),       cmocka_unit_test(whole_process),
		cmocka_unit_test(walk_ends_early), cmocka_unit_test(lines),
		cmocka_unit_test(page_size),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
