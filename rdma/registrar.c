/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * Registrars: the threads that register guest memory, and how they do it.
 *
 *	region ──► of_region[] ──► registrar of its node ──► ibv_reg_mr()
 *
 * Registering pins pages, and the first time allocates them, so it runs on the CPUs of
 * the node whose memory it is.  A region of no known node is served by the first
 * registrar.  Both sides have them; what they do is in keys.c (source) and grants.c
 * (destination).  All share keys.lock and one lock budget.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "error.h"
#include "verbs.h"

/* The registrar of @node, made if there is none. */
static struct registrar *registrar_of(struct verbs_conn *c, int node)
{
	struct keys *k = &c->keys;
	struct registrar *r;

	for (unsigned i = 0; i < k->nr_registrars; i++)
		if (k->registrars[i].node == node)
			return &k->registrars[i];
	r = &k->registrars[k->nr_registrars++];
	r->conn = c;
	r->node = node;
	r->queue_tail = &r->queue;
	r->jobs_tail = &r->jobs;
	verbs_cond_init(&r->work);
	return r;
}

/* One registrar per known node; one of no node if none is known.  keys.lock is held. */
static void registrars_make(struct verbs_conn *c)
{
	struct keys *k = &c->keys;

	for (unsigned i = 0; i < c->nr_mem; i++)
		if (c->mem[i].numa_node >= 0)
			k->of_region[i] = registrar_of(c, c->mem[i].numa_node);
	if (!k->nr_registrars)
		(void)registrar_of(c, -1);
	for (unsigned i = 0; i < c->nr_mem; i++)
		if (!k->of_region[i])
			k->of_region[i] = &k->registrars[0];
}

/* registrars_start - a thread per node, in @main with its struct registrar.  0 or -errno. */
int registrars_start(struct verbs_conn *c, void *(*main)(void *), struct tern_error *err)
{
	unsigned nr = c->nr_mem ? c->nr_mem : 1;
	struct keys *k = &c->keys;
	int rc;

	k->registrars = calloc(nr, sizeof(*k->registrars));
	k->of_region = calloc(nr, sizeof(struct registrar *));
	if (!k->registrars || !k->of_region)
		return error_session(err, -ENOMEM, "No memory for the registration threads");
	pthread_mutex_lock(&k->lock); /* the pump may be handling a frame that came early */
	registrars_make(c);
	rc = grants_exposed(c, err);
	pthread_mutex_unlock(&k->lock);
	for (unsigned i = 0; i < k->nr_registrars && !rc; i++) {
		rc = pthread_create(&k->registrars[i].thread, NULL, main, &k->registrars[i]);

		if (rc)
			return error_session(err, -rc, "Starting a registration thread failed: %s",
					     error_name(-rc));
		k->registrars[i].running = true;
	}
	return rc;
}

void registrars_stop(struct verbs_conn *c)
{
	struct keys *k = &c->keys;

	pthread_mutex_lock(&k->lock);
	k->stop = true;
	for (unsigned i = 0; i < k->nr_registrars; i++)
		pthread_cond_broadcast(&k->registrars[i].work);
	pthread_mutex_unlock(&k->lock);
	for (unsigned i = 0; i < k->nr_registrars; i++) {
		if (k->registrars[i].running)
			pthread_join(k->registrars[i].thread, NULL);
		k->registrars[i].running = false;
	}
}

/* registrars_free - no thread runs any more. */
void registrars_free(struct verbs_conn *c)
{
	struct keys *k = &c->keys;

	for (unsigned i = 0; i < k->nr_registrars; i++) {
		struct registrar *r = &k->registrars[i];

		while (r->jobs) {
			struct grant_job *job = r->jobs;

			r->jobs = job->next;
			free(job);
		}
		pthread_cond_destroy(&r->work);
	}
	free(k->registrars);
	free(k->of_region);
}

/*
 * registrar_no_room - the errno of a device's object that could not be made.
 *
 * A limit on the number of objects (rdma.max) answers with EAGAIN.  What helps is what
 * helps against ENOMEM, to let go of others; trying again without that is in vain.
 */
int registrar_no_room(int code)
{
	return code && code != EAGAIN ? code : ENOMEM;
}

/*
 * Register a range of exposed memory; NULL with errno.  Counts time and bytes.
 *
 * The device may order its accesses to memory as it likes (an optional flag: ignored
 * where there is no such thing).  Nobody looks for arrival in memory, and a completion
 * is never reordered before the data that it is about.
 */
struct ibv_mr *registrar_register(struct verbs_conn *c, uint32_t region, uint64_t offset,
				  uint64_t len, int access)
{
	int flags = access | IBV_ACCESS_RELAXED_ORDERING |
		    (c->paging ? IBV_ACCESS_ON_DEMAND : 0);
	struct keys *k = &c->keys;
	uint64_t begin = verbs_now_ns();
	struct ibv_mr *mr =
		ibv_reg_mr(c->pd_data, (uint8_t *)c->mem[region].hva + offset, len, flags);
	int code = errno;
	uint64_t ns = verbs_now_ns() - begin;

	atomic_fetch_add_explicit(&k->reg_ns, ns, memory_order_relaxed);
	if (mr)
		atomic_fetch_add_explicit(&k->reg_bytes, len, memory_order_relaxed);
	if (mr && c->paging)
		paging_prefetch(c, mr);
	errno = registrar_no_room(code);
	return mr;
}

void registrar_peak_locked(struct verbs_conn *c)
{
	struct keys *k = &c->keys;

	if (c->paging) /* it is not locked */
		return;
	if (k->here > atomic_load_explicit(&k->reg_peak, memory_order_relaxed))
		atomic_store_explicit(&k->reg_peak, k->here, memory_order_relaxed);
}
