/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_SRC_PLACEMENT_H
#define TERN_SRC_PLACEMENT_H

/*
 * Placement: how pages that arrive after the switchover become the guest's.
 *
 * The destination guest runs while pages are missing.  What it touches and is not there
 * yet makes its thread wait in a userfaultfd.  There are two ways to give it a page:
 *
 *	shared memory	The session writes through a second mapping of the same file (the
 *			alias); the guest's mapping is empty and registered for missing and
 *			minor faults.  A page that has arrived is in the page cache, and
 *			UFFDIO_CONTINUE puts it into the guest's page table.  Zero copy, and
 *			stale contents need not be discarded: nobody can see them, and the
 *			new ones are written over them.
 *	private memory	The guest's mapping is registered for missing faults, stale pages are
 *			discarded, contents come as messages, and UFFDIO_COPY places them.
 *
 * Three sets of pages per region say where each page is (words are atomics):
 *
 *	missing		set at the switchover; cleared once, when the page is there
 *	claimed		somebody places it: nobody else may (invariant 5)
 *	asked		by host page: a thread waits for it, or did
 *
 * A fault and the page it waits for may come at the same moment, so
 *
 *	fault thread			thread of a channel
 *	set asked			clear missing
 *	look at missing			look at asked
 *
 * are sequentially consistent, and at least one of them sees the other and resolves the
 * fault.  If both do, the second ioctl finds the page there, and only wakes.
 *
 * A host page of hugetlbfs is given to the guest when none of its pages is missing.
 * Memory is unregistered block by block as blocks become complete; from then on the
 * kernel serves faults there by itself.
 */

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "region.h"
#include "runs.h"
#include "transport.h"
#include "uffd.h"

struct tern_error;

#define PLACEMENT_BLOCK_BYTES (1ull << 20) /* a block, unless a host page is larger; as much as
					     * the source sends at once */

enum placement_kind {
	PLACEMENT_SHARED, /* alias, UFFDIO_CONTINUE */
	PLACEMENT_COPY, /* contents in messages, UFFDIO_COPY */
};

/* One region; constant once made, but for what the atomics hold. */
struct placement_region {
	const struct region *region;
	enum placement_kind kind;
	uint8_t *alias; /* SHARED: the second mapping */
	uint64_t host_pages; /* pages in a host page */
	uint64_t block_pages, nr_blocks;
	uint64_t nr_missing; /* when armed; session thread */
	uint64_t *missing, *claimed; /* a bit per page */
	uint64_t *asked; /* a bit per host page */
	_Atomic uint32_t *left; /* per block: missing pages */
};

struct mapper;

#define PLACEMENT_MAPPERS_MAX 16u /* other processes */

struct placement {
	struct uffd uffd;
	struct placement_region *v; /* by region id */
	unsigned nr;
	/* Written by the session thread, before it registers anything: who reads a fault sees
	 * what was missing. */
	atomic_bool armed;
	/* Other processes; entries are only ever added, under the session's lock. */
	struct mapper *mappers[PLACEMENT_MAPPERS_MAX];
	_Atomic unsigned nr_mappers;
	_Atomic uint64_t left; /* missing pages */
	_Atomic uint64_t stale; /* bytes discarded when armed; figures */

	/*
	 * Called by whoever resolves a fault that was asked for, just before and after
	 * the ioctl, and when nothing is missing any more.  Set, if anybody wants to know,
	 * before placement_arm().
	 */
	void (*resolving)(void *fault_opaque, uint32_t region, uint64_t host_page);
	void (*resolved)(void *fault_opaque, uint32_t region, uint64_t host_page);
	void *fault_opaque;
	void (*complete)(void *opaque);
	/* Nothing is missing there any more; in units of TRANSPORT_RETIRE_BYTES at least. */
	void (*retire)(void *opaque, uint32_t region, uint64_t offset, uint64_t len);
	void *opaque;
};

/* Where a fault is. */
struct placement_fault {
	uint32_t region;
	uint64_t host_page; /* its number in the region */
	uint64_t page, nr_pages; /* what it covers, in pages */
};

/*
 * placement_new - get ready to place pages of @regions.
 *
 * Looks what the kernel can do, maps the aliases, and empties the guest's mappings.
 * @regions must read as zero, must outlive the placement and must not grow.  Returns 0;
 * -ENOSYS (a feature of userfaultfd is missing), -EPERM, -EOPNOTSUPP (memory that cannot
 * be placed), -ENOMEM and what mmap() gives, with a sentence that names the region.
 */
int placement_new(const struct region_list *regions, struct placement **out,
		  struct tern_error *err);

/* placement_delete - unregister everything (who waits looks again) and free. */
void placement_delete(struct placement **p);

/*
 * placement_forsake - nothing will come any more: unregister all, so that who waits goes on.
 *
 * It then reads zeros or old contents.  Fault threads, after placement_arm(); threads of
 * channels may still be at work, and fail.
 */
void placement_forsake(struct placement *p);

/* placement_hva - where the session writes region @id. */
uint8_t *placement_hva(const struct placement *p, uint32_t id);

/* placement_missing - the pages of a piece are missing.  Before placement_arm().  0, -EPROTO. */
int placement_missing(struct placement *p, uint32_t region, struct runs *runs);

/*
 * placement_arm - from now on missing pages fault.  Session thread; the guest does not run.
 *
 * 0 or -errno with *err.
 */
int placement_arm(struct placement *p, struct tern_error *err);

/* placement_settle - unregister, and retire, what is complete.  Any time after placement_arm(). */
void placement_settle(struct placement *p);

/* placement_again - after a lost link: nobody places anything, what is missing may come anew. */
void placement_again(struct placement *p);

/* placement_find - which fault is at @hva?  False: none of ours. */
bool placement_find(const struct placement *p, uint64_t hva, struct placement_fault *f);

/* placement_at - the fault that page @page of @region, which exists, would be. */
void placement_at(const struct placement *p, uint32_t region, uint64_t page,
		  struct placement_fault *f);

/* placement_is_here - are the pages of @f all here? */
bool placement_is_here(const struct placement *p, const struct placement_fault *f);

/*
 * placement_ask - a thread waits for @f, which was not here.
 *
 * 1: the first to ask; 0: others did; the fault stays.  placement_is_here() has to be
 * asked again afterwards.
 */
int placement_ask(struct placement *p, const struct placement_fault *f);

/* placement_resolve - give the guest the pages of @f, which are here.  0 or -errno. */
int placement_resolve(struct placement *p, const struct placement_fault *f);

/*
 * placement_map_shared - map @f of shared memory at @hva of the process of @u, and wake who
 * waits there.  0 or -errno.
 */
int placement_map_shared(const struct placement *p, const struct uffd *u,
			 const struct placement_fault *f, uint8_t *hva);

/*
 * placement_next_asked - the next host page, from @f on, that is asked for and not here.
 *
 * Begin with *f all 0; true: *f is it, go on with f->host_page + 1.
 */
bool placement_next_asked(const struct placement *p, struct placement_fault *f);

/*
 * What arrives; threads of channels.  All return 0, or -EPROTO with *err if the peer may
 * not do that (a page that is not missing, or comes twice, or is outside of memory), or
 * another -errno of the kernel's.
 *
 * placement_admit - as transport_env.admit: a write is about to be placed.
 * placement_placed - pages were written through the alias.
 * placement_contents - @nr pages at @buf.
 * placement_zero - pages that had contents are zero now.
 * placement_empty - pages that never had any; may come more than once.
 */
int placement_admit(struct placement *p, const struct transport_range *ranges, unsigned nr,
		    struct tern_error *err);
int placement_placed(struct placement *p, uint32_t region, uint64_t first, uint64_t nr,
		     struct tern_error *err);
int placement_contents(struct placement *p, uint32_t region, uint64_t first, uint64_t nr,
		       const uint8_t *buf, struct tern_error *err);
int placement_zero(struct placement *p, uint32_t region, uint64_t first, uint64_t nr,
		   struct tern_error *err);
int placement_empty(struct placement *p, uint32_t region, uint64_t first, uint64_t nr,
		    struct tern_error *err);

/* placement_overhead_bytes - memory held. */
uint64_t placement_overhead_bytes(const struct placement *p);

#endif
