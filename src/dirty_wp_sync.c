/* SPDX-License-Identifier: BSD-2-Clause */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "bitmap.h"
#include "dirty.h"
#include "dirty_walk.h"
#include "error.h"
#include "populated.h"
#include "region.h"
#include "uffd.h"

/*
 * Dirty tracking by synchronous write-protect, for kernels before 6.7.
 *
 * A write to a protected page stops its thread and sends us a message.  One
 * thread of ours reads the messages and takes the protection from the page,
 * which wakes the writer.
 *
 * The page table is the log here too (dirty_walk.c): a page that exists and is
 * not protected counts as written.  A bitmap that the fault thread fills in
 * would not do.  Whether it sets the bit before or after it releases the page,
 * there is an interleaving that loses a write:
 *
 *	bit, then release:	fault thread: bit    clear(): takes bit, protects
 *				fault thread: release     writer: writes     no bit
 *	release, then bit:	fault thread: release     another vCPU: writes, is
 *				paused      last sync(): no bit yet
 *
 * With the page table there is no second step.  Let W be a write to page P that
 * has finished, and consider the last clear() of P.  If W came before P was
 * protected, the engine reads P after that, and sees W.  If it came after, some
 * fault released P after clear() and before W; nothing has protected it since,
 * so P is unprotected and every later sync() reports it.  How many vCPUs faulted
 * on P, and in which order their messages were handled, plays no part.  A
 * message that is handled late releases P once more than needed: P is sent once
 * more than needed.
 *
 * Protecting must not allocate, so clear() protects only the pages that it was
 * given, which exist.  Holes are not protected; written later they exist without
 * protection, and count as written.
 *
 * A release costs two switches between threads and a flush of the TLBs of all CPUs
 * that run the guest.  So a writer that goes through memory in order is given a
 * growing run of pages at once, up to STREAM_BYTES.  Pages released and not written
 * after all are sent once more than needed; at most one run per writer.
 *
 * The fault thread never touches guest memory, and takes no lock, so it cannot
 * wait for a vCPU that waits for it.  If it meets an error that it does not
 * understand it unregisters all memory, so that the guest runs on unhindered,
 * and from then on sync() and clear() fail.
 */

enum {
	FAULT_BATCH = 64, /* messages per read */
	STREAMS = 8, /* writers in order that are remembered */
	STREAM_BYTES = 128 << 10, /* released at once, unless a host page is larger */
};

/* A writer that goes through memory in order; belongs to the fault thread. */
struct wp_stream {
	uint64_t next; /* address that would go on with it */
	unsigned run; /* host pages released last */
};

struct wp_sync {
	struct uffd uffd;
	const struct region_list *regions;
	const struct populated *populated;
	int stop_fd; /* eventfd: the fault thread shall end */
	pthread_t thread; /* session thread; valid while started */
	bool started; /* session thread */
	_Atomic int error; /* -errno; set once by the fault thread, read by all */
	struct wp_stream streams[STREAMS]; /* fault thread */
	unsigned next_stream; /* the one to be replaced; fault thread */
};

/* wp_sync_region_of - the region that holds @hva, or NULL. */
static const struct region *wp_sync_region_of(const struct wp_sync *s, uint64_t hva)
{
	for (unsigned i = 0; i < s->regions->nr; i++) {
		const struct region *r = &s->regions->v[i];

		if (hva - (uintptr_t)r->hva < r->size)
			return r;
	}
	return NULL;
}

/*
 * wp_sync_run - how many host pages to release for a write to the one at @page of @r.
 *
 * Twice as many as last time if the write goes on where a released run ended.
 */
static unsigned wp_sync_run(struct wp_sync *s, const struct region *r, const uint8_t *page)
{
	uint64_t left = (uint64_t)(r->hva + r->size - page) / r->host_page_size;
	unsigned most = STREAM_BYTES > r->host_page_size ? STREAM_BYTES / r->host_page_size : 1;
	struct wp_stream *st = NULL;
	unsigned run = 1;

	for (unsigned i = 0; i < STREAMS && !st; i++)
		if (s->streams[i].run && s->streams[i].next == (uintptr_t)page)
			st = &s->streams[i];
	if (st) {
		run = 2 * st->run < most ? 2 * st->run : most;
	} else {
		st = &s->streams[s->next_stream];
		s->next_stream = (s->next_stream + 1) % STREAMS;
	}
	if (run > left)
		run = (unsigned)left;
	st->run = run;
	st->next = (uintptr_t)page + run * r->host_page_size;
	return run;
}

/* wp_sync_release - let the writer of the host page at @hva go on.  0 or -errno. */
static int wp_sync_release(struct wp_sync *s, uint64_t hva)
{
	const struct region *r = wp_sync_region_of(s, hva);
	uint8_t *page;
	uint64_t len;
	int ret;

	if (!r)
		return -EFAULT;
	page = r->hva + (hva - (uintptr_t)r->hva) / r->host_page_size * r->host_page_size;
	len = wp_sync_run(s, r, page) * r->host_page_size;
	ret = uffd_protect(&s->uffd, page, len, false);
	/* Whatever happened to the page: the writer looks again by itself. */
	if (ret && uffd_benign(ret))
		uffd_wake(&s->uffd, page, len);
	return uffd_benign(ret) ? 0 : ret;
}

/* wp_sync_handle - read and answer the messages that are there.  0 or -errno. */
static int wp_sync_handle(struct wp_sync *s)
{
	struct uffd_msg msg[FAULT_BATCH];
	ssize_t n = read(s->uffd.fd, msg, sizeof(msg));

	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	for (size_t i = 0; i < (size_t)n / sizeof(msg[0]); i++) {
		int ret = 0;

		if (msg[i].event == UFFD_EVENT_PAGEFAULT)
			ret = wp_sync_release(s, msg[i].arg.pagefault.address);
		if (ret)
			return ret;
	}
	return 0;
}

/* wp_sync_thread - the fault thread. */
static void *wp_sync_thread(void *opaque)
{
	struct wp_sync *s = opaque;
	struct pollfd fds[2] = {
		{ .fd = s->uffd.fd, .events = POLLIN },
		{ .fd = s->stop_fd, .events = POLLIN },
	};
	int ret = 0;

	while (!ret) {
		if (poll(fds, 2, -1) < 0 && errno != EINTR)
			ret = -errno;
		else if (fds[1].revents)
			return NULL;
		else if (fds[0].revents & (POLLERR | POLLNVAL))
			ret = -EIO;
		else if (fds[0].revents)
			ret = wp_sync_handle(s);
	}
	atomic_store(&s->error, ret);
	dirty_walk_unregister(&s->uffd, s->regions);
	return NULL;
}

/* wp_sync_start_thread - with all signals blocked: they belong to the VMM.  0 or -errno. */
static int wp_sync_start_thread(struct wp_sync *s)
{
	sigset_t all, old;
	uint64_t count;
	int ret;

	/* An earlier stop() may have left its count there. */
	if (read(s->stop_fd, &count, sizeof(count)) < 0 && errno != EAGAIN)
		return -errno;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	ret = -pthread_create(&s->thread, NULL, wp_sync_thread, s);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (!ret)
		pthread_setname_np(s->thread, "tern-wp");
	return ret;
}

/* wp_sync_start - see struct tern_dirty_ops. */
static int wp_sync_start(void *opaque)
{
	struct wp_sync *s = opaque;
	int ret = s->started ? -EBUSY : dirty_walk_register(&s->uffd, s->regions);

	if (ret)
		return ret;
	atomic_store(&s->error, 0);
	ret = wp_sync_start_thread(s);
	if (ret) {
		dirty_walk_unregister(&s->uffd, s->regions);
		return ret;
	}
	s->started = true;
	return 0;
}

/*
 * wp_sync_stop - see struct tern_dirty_ops.
 *
 * Unregistering first takes all protection away and wakes all writers; only then
 * may the thread go that would have released them.
 */
static void wp_sync_stop(void *opaque)
{
	struct wp_sync *s = opaque;
	uint64_t one = 1;

	if (!s->started)
		return;
	dirty_walk_unregister(&s->uffd, s->regions);
	while (write(s->stop_fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
	pthread_join(s->thread, NULL);
	s->started = false;
}

/* wp_sync_sync - see struct tern_dirty_ops. */
static int wp_sync_sync(void *opaque, unsigned region, uint64_t first, uint64_t nr,
			uint64_t *bitmap)
{
	struct wp_sync *s = opaque;
	int ret = dirty_walk_sync(s->populated, &s->regions->v[region], first, nr, bitmap);

	/* Asked last: memory that was unregistered meanwhile looks all written or all clean. */
	return ret ? ret : atomic_load(&s->error);
}

/*
 * wp_sync_clear - see struct tern_dirty_ops.
 *
 * A host page is protected as a whole, so all of it must be sent.
 */
static int wp_sync_clear(void *opaque, unsigned region, uint64_t first, uint64_t nr,
			 uint64_t *bitmap)
{
	struct wp_sync *s = opaque;
	const struct region *r = &s->regions->v[region];
	uint64_t unit = r->host_page_size / TERN_PAGE_SIZE;
	uint64_t begin = bitmap_next_set(bitmap, nr, 0);

	if (first % unit || nr % unit)
		return -EINVAL;
	while (begin < nr) {
		uint64_t end = bitmap_next_clear(bitmap, nr, begin);
		int ret;

		begin -= begin % unit;
		end = (end + unit - 1) / unit * unit;
		if (unit > 1)
			bitmap_set_range(bitmap, begin, end - begin);
		ret = uffd_protect(&s->uffd, r->hva + (first + begin) * TERN_PAGE_SIZE,
				   (end - begin) * TERN_PAGE_SIZE, true);
		if (ret)
			return ret;
		begin = bitmap_next_set(bitmap, nr, end);
	}
	return atomic_load(&s->error);
}

/* wp_sync_destroy - after stop(). */
static void wp_sync_destroy(void *opaque)
{
	struct wp_sync *s = opaque;

	uffd_close(&s->uffd);
	if (s->stop_fd >= 0)
		close(s->stop_fd);
	free(s);
}

/* wp_sync_protect_page - dirty_walk_protect_fn. */
static int wp_sync_protect_page(const struct uffd *u, const struct populated *pop, uint8_t *p,
				uint64_t len)
{
	return uffd_protect(u, p, len, true);
}

/* wp_sync_check_regions - *features: what all regions need.  0 or -ENOSYS. */
static int wp_sync_check_regions(const struct region_list *regions, uint64_t *features,
				 struct tern_error *err)
{
	*features = UFFD_CAN_WP;
	for (unsigned i = 0; i < regions->nr; i++) {
		const struct region *r = &regions->v[i];

		if (r->backing == REGION_FILE_PRIVATE || r->backing == REGION_FILE_SHARED)
			return error_session(
				err, -ENOSYS,
				"cannot track writes to region \"%s\" by write-protect "
				"faults: it maps a file; use a memfd, or Linux 6.7 or "
				"newer",
				r->name);
		if (r->backing != REGION_ANON_PRIVATE)
			*features |= UFFD_CAN_WP_SHARED;
	}
	return 0;
}

int dirty_wp_sync_new(struct dirty *d, const struct region_list *regions,
		      const struct populated *populated, struct tern_error *err)
{
	struct wp_sync *s = calloc(1, sizeof(*s));
	uint64_t features = 0;
	int ret;

	if (!s)
		return error_session(err, -ENOMEM, "cannot allocate the dirty provider");
	s->regions = regions;
	s->populated = populated;
	s->uffd.fd = -1;
	s->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	ret = s->stop_fd < 0 ? error_session(err, -errno, "cannot create an eventfd: %s",
					     error_name(-errno))
			     : wp_sync_check_regions(regions, &features, err);
	if (!ret)
		ret = uffd_open(&s->uffd, features, err);
	if (!ret && s->uffd.how == UFFD_USER_ONLY && d->kind == TERN_DIRTY_AUTO)
		ret = error_session(
			err, -EPERM,
			"write-protect faults would break writes by KVM and system "
			"calls, because userfaultfd is limited to user mode here; run as "
			"root, give access to /dev/userfaultfd, or set the sysctl "
			"vm.unprivileged_userfaultfd to 1");
	if (!ret)
		ret = dirty_walk_probe(&s->uffd, populated, regions, wp_sync_protect_page, err);
	if (ret) {
		wp_sync_destroy(s);
		return ret;
	}
	d->kind = TERN_DIRTY_UFFD_WP_SYNC;
	d->stop_can_wait = true;
	d->ops = (struct tern_dirty_ops){
		.start = wp_sync_start,
		.stop = wp_sync_stop,
		.sync = wp_sync_sync,
		.clear = wp_sync_clear,
	};
	d->opaque = s;
	d->destroy = wp_sync_destroy;
	return 0;
}
