/* SPDX-License-Identifier: BSD-2-Clause */
/* Unit tests of adopting guest RAM: what is accepted, what is refused, and in which words. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "error.h"
#include "hugepages.h"
#include "leave_out.h"
#include "region.h"

enum { MIB = 1 << 20, PAGE = 4096 };

struct fixture {
	struct region_list list;
	struct tern_error err;
	uint8_t *anon, *shmem; /* 4 MiB each */
	int fd; /* behind shmem */
	struct tern_region_desc d; /* valid, in anon */
};

/* map_or_die - mmap that fails the test. */
static uint8_t *map_or_die(size_t len, int flags, int fd, off_t off)
{
	uint8_t *p = mmap(NULL, len, PROT_READ | PROT_WRITE, flags, fd, off);

	assert_ptr_not_equal(p, MAP_FAILED);
	return p;
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	error_clear(&f->err);
	f->anon = map_or_die(4 * MIB, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	f->fd = memfd_create("test", MFD_CLOEXEC);
	assert_int_equal(ftruncate(f->fd, 4 * MIB), 0);
	f->shmem = map_or_die(4 * MIB, MAP_SHARED, f->fd, 0);
	f->d = (struct tern_region_desc){
		.name = "ram",
		.hva = f->anon,
		.size = MIB,
		.numa_node = TERN_NODE_ANY,
		.fd = -1,
	};
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	region_list_fini(&f->list);
	munmap(f->anon, 4 * MIB);
	munmap(f->shmem, 4 * MIB);
	close(f->fd);
	free(f);
	return 0;
}

/* refused - f->d is refused with @code and a message that has @word in it. */
static void refused(struct fixture *f, int code, const char *word)
{
	unsigned before = f->list.nr;

	error_clear(&f->err);
	assert_int_equal(region_add(&f->list, &f->d, &f->err), code);
	assert_int_equal(f->err.code, code);
	if (!strstr(f->err.message, word))
		fail_msg("\"%s\" is not in \"%s\"", word, f->err.message);
	assert_int_equal(f->list.nr, before);
}

/* accepted - f->d becomes region @id. */
static struct region *accepted(struct fixture *f, int id)
{
	error_clear(&f->err);
	if (region_add(&f->list, &f->d, &f->err) != id)
		fail_msg("%s", f->err.message);
	return &f->list.v[id];
}

static void test_anonymous_region_is_described(void **state)
{
	struct region *r = accepted(*state, 0);

	assert_string_equal(r->name, "ram");
	assert_int_equal(r->backing, REGION_ANON_PRIVATE);
	assert_int_equal(r->host_page_size, PAGE);
	assert_int_equal(r->nr_pages, MIB / PAGE);
	assert_false(r->shared);
	assert_int_equal(r->numa_node, TERN_NODE_ANY);
}

static void test_memory_is_not_touched(void **state)
{
	struct fixture *f = *state;
	unsigned char resident[MIB / PAGE];

	accepted(f, 0);
	assert_int_equal(mincore(f->anon, MIB, resident), 0);
	for (size_t i = 0; i < sizeof(resident); i++)
		assert_int_equal(resident[i] & 1, 0);
}

static void test_node_of_touched_memory_is_found(void **state)
{
	struct fixture *f = *state;

	f->anon[5 * PAGE] = 1;
	assert_true(accepted(f, 0)->numa_node >= 0);
}

static void test_given_node_is_kept(void **state)
{
	struct fixture *f = *state;

	f->anon[0] = 1;
	f->d.numa_node = 7;
	assert_int_equal(accepted(f, 0)->numa_node, 7);
}

static void test_memfd_with_fd_is_shmem(void **state)
{
	struct fixture *f = *state;

	f->d.hva = f->shmem;
	f->d.fd = f->fd;
	struct region *r = accepted(f, 0);

	assert_int_equal(r->backing, REGION_SHMEM);
	assert_true(r->shared);
}

static void test_memfd_without_fd_is_shmem(void **state)
{
	struct fixture *f = *state;

	f->d.hva = f->shmem;
	assert_int_equal(accepted(f, 0)->backing, REGION_SHMEM);
}

static void test_shared_anonymous_is_shmem(void **state)
{
	struct fixture *f = *state;

	f->d.hva = map_or_die(MIB, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_int_equal(accepted(f, 0)->backing, REGION_SHMEM);
	munmap(f->d.hva, MIB);
}

static void test_tmpfs_file_is_shmem(void **state)
{
	struct fixture *f = *state;
	char path[] = "/dev/shm/tern-test-XXXXXX";
	int fd = mkstemp(path);

	assert_true(fd >= 0);
	unlink(path);
	assert_int_equal(ftruncate(fd, MIB), 0);
	f->d.hva = map_or_die(MIB, MAP_SHARED, fd, 0);
	f->d.fd = fd;
	assert_int_equal(accepted(f, 0)->backing, REGION_SHMEM);
	munmap(f->d.hva, MIB);
	close(fd);
}

static void test_private_memfd_is_a_private_file(void **state)
{
	struct fixture *f = *state;

	f->d.hva = map_or_die(MIB, MAP_PRIVATE, f->fd, 0);
	assert_int_equal(accepted(f, 0)->backing, REGION_FILE_PRIVATE);
	munmap(f->d.hva, MIB);
}

static void test_split_mappings_of_one_kind_are_one_region(void **state)
{
	struct fixture *f = *state;

	/* Another advice splits the mapping in two. */
	assert_int_equal(madvise(f->anon, MIB / 2, MADV_DONTFORK), 0);
	accepted(f, 0);
	assert_int_equal(madvise(f->shmem, MIB / 2, MADV_DONTFORK), 0);
	f->d.hva = f->shmem;
	f->d.name = "two";
	f->d.gpa = MIB;
	assert_int_equal(accepted(f, 1)->backing, REGION_SHMEM);
}

static void test_two_kinds_in_one_region_are_refused(void **state)
{
	struct fixture *f = *state;

	assert_ptr_equal(mmap(f->anon + MIB / 2, MIB / 2, PROT_READ | PROT_WRITE,
			      MAP_SHARED | MAP_FIXED, f->fd, 0),
			 f->anon + MIB / 2);
	refused(f, -EINVAL, "memfd:test");
}

static void test_file_mapped_out_of_order_is_refused(void **state)
{
	struct fixture *f = *state;

	f->d.hva = f->shmem;
	assert_ptr_equal(mmap(f->shmem + MIB / 2, MIB / 2, PROT_READ | PROT_WRITE,
			      MAP_SHARED | MAP_FIXED, f->fd, 2 * MIB),
			 f->shmem + MIB / 2);
	refused(f, -EINVAL, "memfd:test");
}

static void test_gap_is_refused(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(munmap(f->anon + 16 * PAGE, PAGE), 0);
	refused(f, -EINVAL, "nothing is mapped");
}

static void test_unmapped_end_is_refused(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(munmap(f->anon + MIB - PAGE, PAGE), 0);
	refused(f, -EINVAL, "nothing is mapped");
}

static void test_read_only_memory_is_refused(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(mprotect(f->anon + PAGE, PAGE, PROT_READ), 0);
	refused(f, -EINVAL, "not both readable and writable");
}

static void test_wrong_fd_is_refused(void **state)
{
	struct fixture *f = *state;
	int other = memfd_create("other", MFD_CLOEXEC);

	f->d.hva = f->shmem;
	f->d.fd = other;
	refused(f, -EINVAL, "is not what is mapped");
	close(other);
}

static void test_fd_with_anonymous_memory_is_refused(void **state)
{
	struct fixture *f = *state;

	f->d.fd = f->fd;
	refused(f, -EINVAL, "use -1");
}

static void test_wrong_fd_offset_is_refused(void **state)
{
	struct fixture *f = *state;

	f->d.hva = f->shmem + MIB;
	f->d.fd = f->fd;
	f->d.fd_offset = 2 * MIB;
	refused(f, -EINVAL, "0x100000");
	f->d.fd_offset = MIB;
	accepted(f, 0);
}

static void test_offset_without_fd_is_refused(void **state)
{
	struct fixture *f = *state;

	f->d.fd_offset = PAGE;
	refused(f, -EINVAL, "fd -1");
}

static void test_bad_names_are_refused(void **state)
{
	struct fixture *f = *state;
	char name[66];

	f->d.name = NULL;
	refused(f, -EINVAL, "without a name");
	f->d.name = "";
	refused(f, -EINVAL, "without a name");
	f->d.name = "a\nb";
	refused(f, -EINVAL, "0x0a");
	f->d.name = "caf\xc3\xa9";
	refused(f, -EINVAL, "0xc3");
	memset(name, 'x', 65);
	name[64] = '\0';
	f->d.name = name;
	refused(f, -EINVAL, "longer than 63");
	name[63] = '\0';
	accepted(f, 0);
}

static void test_taken_name_is_refused(void **state)
{
	struct fixture *f = *state;

	accepted(f, 0);
	f->d.hva = f->anon + MIB;
	f->d.gpa = MIB;
	refused(f, -EEXIST, "region 0");
}

static void test_overlap_in_memory_is_refused(void **state)
{
	struct fixture *f = *state;

	f->d.hva = f->anon + MIB;
	accepted(f, 0);
	f->d.name = "two";
	f->d.gpa = 16 * MIB;
	f->d.hva = f->anon + PAGE;
	refused(f, -EINVAL, "overlaps region \"ram\"");
	f->d.hva = f->anon + 2 * MIB - PAGE;
	refused(f, -EINVAL, "overlaps region \"ram\"");
	f->d.hva = f->anon;
	accepted(f, 1);
	f->d.name = "three";
	f->d.gpa = 32 * MIB;
	f->d.hva = f->anon + 2 * MIB;
	accepted(f, 2);
}

static void test_overlap_in_guest_addresses_is_refused(void **state)
{
	struct fixture *f = *state;

	f->d.gpa = MIB;
	accepted(f, 0);
	f->d.name = "two";
	f->d.hva = f->anon + MIB;
	f->d.gpa = 2 * MIB - PAGE;
	refused(f, -EINVAL, "guest addresses");
	f->d.gpa = PAGE;
	refused(f, -EINVAL, "guest addresses");
	f->d.gpa = 0;
	accepted(f, 1);
}

static void test_bad_sizes_are_refused(void **state)
{
	struct fixture *f = *state;

	f->d.size = 0;
	refused(f, -EINVAL, "size of 0");
	f->d.size = 100;
	refused(f, -EINVAL, "size of 100");
	f->d.size = UINT64_MAX - PAGE + 1;
	refused(f, -EINVAL, "beyond the address space");
	f->d.size = MIB;
	f->d.gpa = UINT64_MAX - PAGE + 1;
	refused(f, -EINVAL, "beyond 64 bits");
}

static void test_last_guest_page_of_all_is_accepted(void **state)
{
	struct fixture *f = *state;

	f->d.gpa = UINT64_MAX - MIB + 1;
	accepted(f, 0);
	f->d.name = "two";
	f->d.hva = f->anon + MIB;
	f->d.gpa = UINT64_MAX - PAGE + 1;
	f->d.size = PAGE;
	refused(f, -EINVAL, "guest addresses");
}

static void test_unaligned_address_is_refused(void **state)
{
	struct fixture *f = *state;

	f->d.hva = f->anon + 8;
	refused(f, -EINVAL, "address");
	f->d.hva = NULL;
	refused(f, -EINVAL, "address");
	f->d.hva = f->anon;
	f->d.gpa = 1;
	refused(f, -EINVAL, "guest address 0x1");
}

static void test_unknown_flags_and_reserved_are_refused(void **state)
{
	struct fixture *f = *state;

	f->d.flags = TERN_REGION_ZEROED | 0x80;
	refused(f, -EINVAL, "flags 0x81");
	f->d.flags = TERN_REGION_ZEROED;
	f->d.reserved[6] = 3;
	refused(f, -EINVAL, "reserved[6] is 0x3");
	f->d.reserved[6] = 0;
	accepted(f, 0);
}

static void test_bad_node_is_refused(void **state)
{
	struct fixture *f = *state;

	f->d.numa_node = -2;
	refused(f, -EINVAL, "-2");
}

static void test_host_page_size_must_be_the_kernels(void **state)
{
	struct fixture *f = *state;

	f->d.host_page_size = 8192;
	refused(f, -EINVAL, "8192");
	f->d.host_page_size = 2 * MIB;
	refused(f, -EINVAL, "the kernel says 4096");
	f->d.host_page_size = PAGE;
	accepted(f, 0);
}

static void test_hugetlb_is_recognised(void **state)
{
	struct fixture *f = *state;
	struct hugepages hp;

	if (hugepages_get(&hp, 4))
		leave_out("hugetlb", "no huge pages can be reserved");
	int fd = memfd_create("huge", MFD_CLOEXEC | MFD_HUGETLB);
	uint8_t *shared, *private;

	assert_int_equal(ftruncate(fd, 4 * MIB), 0);
	shared = map_or_die(4 * MIB, MAP_SHARED, fd, 0);
	private = map_or_die(2 * MIB, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
	f->d.hva = shared;
	f->d.size = 4 * MIB;
	f->d.fd = fd;
	struct region *r = accepted(f, 0);

	assert_int_equal(r->backing, REGION_HUGETLB);
	assert_int_equal(r->host_page_size, 2 * MIB);
	assert_true(r->shared);
	f->d = (struct tern_region_desc){ .name = "private",
					  .hva = private,
					  .size = 2 * MIB,
					  .gpa = 8 * MIB,
					  .host_page_size = 2 * MIB,
					  .numa_node = -1,
					  .fd = -1 };
	r = accepted(f, 1);
	assert_int_equal(r->backing, REGION_HUGETLB);
	assert_false(r->shared);
	region_list_fini(&f->list);
	f->d.gpa = MIB;
	refused(f, -EINVAL, "multiples of its host page size 2097152");
	munmap(shared, 4 * MIB);
	munmap(private, 2 * MIB);
	close(fd);
	hugepages_put(&hp);
}

static void test_limit_of_regions(void **state)
{
	struct fixture *f = *state;
	char name[16];

	f->list.v = calloc(TERN_REGIONS_MAX, sizeof(*f->list.v));
	assert_non_null(f->list.v);
	f->list.nr = f->list.cap = TERN_REGIONS_MAX;
	for (unsigned i = 0; i < TERN_REGIONS_MAX; i++) {
		snprintf(name, sizeof(name), "r%u", i);
		memcpy(f->list.v[i].name, name, sizeof(name));
		f->list.v[i].hva = (uint8_t *)(uintptr_t)((i + 1) * PAGE);
		f->list.v[i].size = PAGE;
		f->list.v[i].gpa = (i + 1ull) << 40;
	}
	refused(f, -ENOSPC, "4096 regions");
}

static void test_bytes_and_overhead_add_up(void **state)
{
	struct fixture *f = *state;

	accepted(f, 0);
	f->d.name = "two";
	f->d.hva = f->anon + 2 * MIB;
	f->d.gpa = 2 * MIB;
	f->d.size = PAGE;
	accepted(f, 1);
	assert_int_equal(region_bytes(&f->list), MIB + PAGE);
	uint64_t without = region_overhead_bytes(&f->list);

	assert_int_equal(region_bitmaps_alloc(&f->list, &f->err), 0);
	/* 256 pages are 4 words, one page is one; two bitmaps each. */
	assert_int_equal(region_overhead_bytes(&f->list), without + 2 * (4 + 1) * 8);
	for (unsigned i = 0; i < 4; i++)
		assert_int_equal(f->list.v[0].dirty[i] | f->list.v[0].sent[i], 0);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_anonymous_region_is_described),
		T(test_memory_is_not_touched),
		T(test_node_of_touched_memory_is_found),
		T(test_given_node_is_kept),
		T(test_memfd_with_fd_is_shmem),
		T(test_memfd_without_fd_is_shmem),
		T(test_shared_anonymous_is_shmem),
		T(test_tmpfs_file_is_shmem),
		T(test_private_memfd_is_a_private_file),
		T(test_split_mappings_of_one_kind_are_one_region),
		T(test_two_kinds_in_one_region_are_refused),
		T(test_file_mapped_out_of_order_is_refused),
		T(test_gap_is_refused),
		T(test_unmapped_end_is_refused),
		T(test_read_only_memory_is_refused),
		T(test_wrong_fd_is_refused),
		T(test_fd_with_anonymous_memory_is_refused),
		T(test_wrong_fd_offset_is_refused),
		T(test_offset_without_fd_is_refused),
		T(test_bad_names_are_refused),
		T(test_taken_name_is_refused),
		T(test_overlap_in_memory_is_refused),
		T(test_overlap_in_guest_addresses_is_refused),
		T(test_bad_sizes_are_refused),
		T(test_last_guest_page_of_all_is_accepted),
		T(test_unaligned_address_is_refused),
		T(test_unknown_flags_and_reserved_are_refused),
		T(test_bad_node_is_refused),
		T(test_host_page_size_must_be_the_kernels),
		T(test_hugetlb_is_recognised),
		T(test_limit_of_regions),
		T(test_bytes_and_overhead_add_up),
	};

	return cmocka_run_group_tests_name("region", tests, NULL, NULL);
}
