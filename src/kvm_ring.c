/* SPDX-License-Identifier: BSD-2-Clause */
#define _GNU_SOURCE
#include "kvm_ring.h"

#include <errno.h>
#include <linux/kvm.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "error.h"

/*
 * How large a ring is can be asked from the kernel, in a way: the pages behind its end can
 * be mapped but not read.  Reading them would be SIGBUS, so a system call reads them, which
 * says EFAULT instead.
 */

enum {
	RING_PAGE = 4096,
	RING_PAGES_MAX = 256, /* 65536 entries, the most that KVM allows */
};

/* readable - can the 8 bytes at @p be read?  @efd: an eventfd. */
static bool readable(int efd, const void *p)
{
	return write(efd, p, sizeof(uint64_t)) >= 0 || errno != EFAULT;
}

/* map_pages - the first @nr pages of where the ring is, or MAP_FAILED. */
static void *map_pages(int vcpu_fd, size_t nr)
{
	return mmap(NULL, nr * RING_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu_fd,
		    (off_t)KVM_DIRTY_LOG_PAGE_OFFSET * RING_PAGE);
}

/* ring_pages - how many pages the ring has; 0: there is none; -errno. */
static int ring_pages(int vcpu_fd)
{
	int efd, nr = 0;
	uint8_t *p;

	if (!KVM_DIRTY_LOG_PAGE_OFFSET)
		return 0; /* not on this architecture */
	efd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (efd < 0)
		return -errno;
	p = map_pages(vcpu_fd, RING_PAGES_MAX);
	if (p == MAP_FAILED) {
		close(efd);
		return 0;
	}
	if (readable(efd, p))
		for (nr = 1; nr < RING_PAGES_MAX && readable(efd, p + (size_t)nr * RING_PAGE);)
			nr *= 2;
	munmap(p, (size_t)RING_PAGES_MAX * RING_PAGE);
	close(efd);
	return nr;
}

bool kvm_ring_present(int vcpu_fd)
{
	return ring_pages(vcpu_fd) > 0;
}

int kvm_ring_open(struct kvm_ring *r, int vcpu_fd, unsigned index, uint32_t entries,
		  struct tern_error *err)
{
	int pages = ring_pages(vcpu_fd);
	void *p;

	memset(r, 0, sizeof(*r));
	if (pages < 0)
		return error_session(err, pages, "cannot look for the dirty ring of vCPU %u: %s",
				     index, error_name(pages));
	if (!pages)
		return error_session(err, -ENXIO,
				     "cannot harvest the dirty ring of vCPU %u: it has none; call "
				     "tern_kvm_enable_dirty_ring() before the first vCPU is made, "
				     "or use kvm-log",
				     index);
	r->nr = (uint32_t)pages * (RING_PAGE / sizeof(struct kvm_dirty_gfn));
	if (entries && entries != r->nr)
		return error_session(
			err, -EINVAL,
			"cannot harvest the dirty ring of vCPU %u: it has %u entries, "
			"and not the %u of the description; say what was enabled, or 0",
			index, r->nr, entries);
	p = map_pages(vcpu_fd, (size_t)pages);
	if (p == MAP_FAILED) {
		int e = -errno;

		return error_session(err, e, "cannot map the dirty ring of vCPU %u: %s", index,
				     error_name(e));
	}
	r->v = p;
	return 0;
}

void kvm_ring_close(struct kvm_ring *r)
{
	if (r->v)
		munmap(r->v, r->nr * sizeof(*r->v));
	memset(r, 0, sizeof(*r));
}

/* is_dirty - is entry @i waiting to be harvested?  What it says may be read then. */
static bool is_dirty(const struct kvm_ring *r, uint32_t i)
{
	return __atomic_load_n(&r->v[i].flags, __ATOMIC_ACQUIRE) & KVM_DIRTY_GFN_F_DIRTY;
}

/*
 * find_next - look where the DIRTY entries begin; false: there are none.
 *
 * KVM may be adding entries meanwhile, before the one that is found first, too, if it came
 * by just behind the search.  So the way back is made from there: what was added before it
 * can be seen now.  A ring that is full has no beginning, and needs none.
 */
static bool find_next(struct kvm_ring *r)
{
	uint32_t i = 0;

	while (i < r->nr && !is_dirty(r, i))
		i++;
	if (i == r->nr)
		return false;
	for (uint32_t k = 0; k < r->nr && is_dirty(r, (i - 1) & (r->nr - 1)); k++)
		i = (i - 1) & (r->nr - 1);
	r->next = i;
	r->found = true;
	return true;
}

bool kvm_ring_busy(const struct kvm_ring *r)
{
	return r->found && is_dirty(r, (r->next + r->nr / 2) & (r->nr - 1));
}

uint32_t kvm_ring_take(struct kvm_ring *r, struct kvm_ring_entry *out, uint32_t max)
{
	uint32_t n = 0;

	if (!r->found && !find_next(r))
		return 0;
	while (n < max && is_dirty(r, r->next)) {
		struct kvm_dirty_gfn *e = &r->v[r->next];

		out[n++] = (struct kvm_ring_entry){ e->slot, e->offset };
		__atomic_store_n(&e->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
		r->next = (r->next + 1) & (r->nr - 1);
	}
	return n;
}
