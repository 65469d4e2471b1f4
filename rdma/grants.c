/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * The destination's registrar: it registers what the source is about to write.
 *
 * Every value comes from the peer.  A range must lie in an exposed region, be no
 * longer than a piece and page-aligned; its number must be free; the sum must fit
 * the lock budget.  A request that breaks the rules ends the connection; one that
 * fails for want of memory is answered with the reason.
 *
 * Nothing is registered any more once the memory was taken back: the guest runs.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "error.h"
#include "verbs.h"

#define PAGE 4096ull

/* The peer asked for what it may not.  -EPROTO. */
static int bad_request(struct verbs_conn *c, const struct key_wanted *w, const char *what)
{
	struct tern_error why = { 0 };

	error_session(&why, -EPROTO,
		      "The peer %s asked for the key of region %u offset %llu length %llu (number "
		      "%u): %s",
		      c->peer, w->region, (unsigned long long)w->offset, (unsigned long long)w->len,
		      w->id, what);
	vconn_fail(c, &why);
	return -EPROTO;
}

/* Room in granted[] for number @id.  0 or -ENOMEM. */
static int grow(struct keys *k, uint32_t id)
{
	uint32_t nr = k->nr_granted ? k->nr_granted : 1024;
	struct ibv_mr **v;

	if (id < k->nr_granted)
		return 0;
	while (nr <= id)
		nr *= 2;
	v = realloc(k->granted, nr * sizeof(struct ibv_mr *));
	if (!v)
		return -ENOMEM;
	memset(v + k->nr_granted, 0, (nr - k->nr_granted) * sizeof(struct ibv_mr *));
	k->granted = v;
	k->nr_granted = nr;
	return 0;
}

/* Is the request one that may be granted?  0 or -errno. */
static int check(struct verbs_conn *c, const struct key_wanted *w)
{
	struct keys *k = &c->keys;

	if (!vconn_range_ok(c, w->region, w->offset, w->len))
		return bad_request(c, w, "it is outside what was exposed");
	if (w->len > PIECE_BYTES || w->offset % PAGE ||
	    (w->len % PAGE && w->offset + w->len != c->mem[w->region].size))
		return bad_request(c, w, "it is no run of whole pages of at most 2 MiB");
	if (w->id >= KEYS_EXTENTS_MAX || (w->id < k->nr_granted && k->granted[w->id]))
		return bad_request(c, w, "the number is out of range or in use");
	if (w->len > k->budget || k->locked > k->budget - w->len)
		return bad_request(c, w, "it would exceed the lock budget");
	return 0;
}

/* Register one range and fill in the answer.  0, or -errno: the connection has ended. */
static int grant(struct verbs_conn *c, const struct key_wanted *w, struct key_granted *g)
{
	struct keys *k = &c->keys;
	struct ibv_mr *mr;
	int rc = check(c, w);

	memset(g, 0, sizeof(*g));
	g->id = w->id;
	if (rc)
		return rc;
	if (grow(k, w->id)) {
		g->status = -ENOMEM;
		return 0;
	}
	mr = keys_register(c, w->region, w->offset, w->len,
			   IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE);
	if (!mr) {
		g->status = errno ? -errno : -ENOMEM;
		return 0;
	}
	k->granted[w->id] = mr;
	k->locked += w->len;
	if (k->locked > atomic_load_explicit(&k->reg_peak, memory_order_relaxed))
		atomic_store_explicit(&k->reg_peak, k->locked, memory_order_relaxed);
	g->remote_va = (uintptr_t)c->mem[w->region].hva + w->offset;
	g->rkey = mr->rkey;
	return 0;
}

/* A request: register, answer.  */
static void serve_wanted(struct verbs_conn *c, const struct grant_job *job)
{
	uint8_t buf[KEYS_HEAD_LEN + KEYS_BATCH * KEYS_LEN];
	struct key_wanted want[KEYS_BATCH];
	struct key_granted v[KEYS_BATCH];
	int nr = keys_wanted_get(job->payload, job->len, want);

	if (nr < 0) {
		(void)bad_request(c, &(struct key_wanted){ .len = job->len },
				  "the length of the frame does not fit");
		return;
	}
	for (int i = 0; i < nr; i++) {
		if (atomic_load(&c->revoked) || grant(c, &want[i], &v[i]))
			return;
	}
	(void)control_queue(c, CTL_KEYS, buf, (uint32_t)keys_put(buf, v, (unsigned)nr));
}

/* The source lets go. */
static void serve_release(struct verbs_conn *c, const struct grant_job *job)
{
	struct keys *k = &c->keys;
	uint32_t ids[KEYS_BATCH];
	int nr = keys_release_get(job->payload, job->len, ids);

	for (int i = 0; i < nr; i++) {
		if (ids[i] >= k->nr_granted || !k->granted[ids[i]]) {
			nr = -1;
			break;
		}
		k->locked -= k->granted[ids[i]]->length;
		ibv_dereg_mr(k->granted[ids[i]]);
		k->granted[ids[i]] = NULL;
	}
	if (nr < 0)
		(void)bad_request(c, &(struct key_wanted){ .len = job->len },
				  "it released what it does not have");
}

void *grants_main(void *conn)
{
	struct verbs_conn *c = conn;
	struct keys *k = &c->keys;

	pthread_setname_np(pthread_self(), "tern-rdma-reg");
	pthread_mutex_lock(&k->lock);
	while (!k->stop) {
		struct grant_job *job = k->jobs;

		if (!job) {
			pthread_cond_wait(&k->work, &k->lock);
			continue;
		}
		k->jobs = job->next;
		k->nr_jobs--;
		if (!k->jobs)
			k->jobs_tail = &k->jobs;
		pthread_mutex_unlock(&k->lock);
		if (job->type == CTL_KEYS_WANTED)
			serve_wanted(c, job);
		else
			serve_release(c, job);
		free(job);
		pthread_mutex_lock(&k->lock);
	}
	pthread_mutex_unlock(&k->lock);
	return NULL;
}

/* grants_take - a key frame arrived: leave it to the registrar.  Pump. */
void grants_take(struct verbs_conn *c, uint16_t type, const uint8_t *payload, size_t len)
{
	struct keys *k = &c->keys;
	struct grant_job *job = malloc(sizeof(*job) + len);
	bool full;

	pthread_mutex_lock(&k->lock);
	full = k->nr_jobs >= KEYS_JOBS_MAX;
	pthread_mutex_unlock(&k->lock);
	if (!job || full) {
		struct tern_error why = { 0 };

		error_session(&why, full ? -EPROTO : -ENOMEM,
			      full ? "The peer %s asks for keys without waiting for answers"
				   : "No memory for a request of keys from %s",
			      c->peer);
		vconn_fail(c, &why);
		free(job);
		return;
	}
	job->next = NULL;
	job->type = type;
	job->len = (uint32_t)len;
	memcpy(job->payload, payload, len);
	pthread_mutex_lock(&k->lock);
	*k->jobs_tail = job;
	k->jobs_tail = &job->next;
	k->nr_jobs++;
	pthread_cond_signal(&k->work);
	pthread_mutex_unlock(&k->lock);
}

/* grants_fini - deregister everything the peer could write. */
void grants_fini(struct verbs_conn *c)
{
	struct keys *k = &c->keys;

	for (uint32_t i = 0; i < k->nr_granted; i++)
		if (k->granted[i])
			ibv_dereg_mr(k->granted[i]);
	free(k->granted);
	while (k->jobs) {
		struct grant_job *job = k->jobs;

		k->jobs = job->next;
		free(job);
	}
}
