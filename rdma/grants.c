/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * What the destination grants: it registers what the source is about to write.
 *
 *	pump        frame arrives: every value is checked, in order of arrival;
 *	            what is promised is counted; a job per range goes to
 *	registrar   of the range's node: registers, answers; or deregisters.
 *	            With memory windows it has one bound, and the pump answers
 *	            when that is done (windows.c).
 *
 * Every value comes from the peer.  A range must lie in a piece of an exposed region
 * and be page-aligned; its number must be free; the sum must fit the lock budget.
 * A request that breaks the rules ends the connection; one that fails for want of
 * memory is answered with the reason and this side's limit.  With windows each channel
 * asks for a key of its own, the first one for the memory as well.
 *
 * The source may count on a release before what it asks for next, so a registrar that
 * finds the budget full waits for releases that arrived earlier and are still in other
 * registrars' queues.  Jobs wait for earlier ones only: there is always one that goes on.
 *
 * A source may ask as soon as its channels are connected, which may be before the
 * engine has exposed memory here: such frames wait for that.
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

/* grants_init - memory was exposed.  0 or -ENOMEM with *err. */
int grants_init(struct verbs_conn *c, struct tern_error *err)
{
	struct grant ***v = calloc(c->nr_mem ? c->nr_mem : 1, sizeof(*v));

	c->keys.granted_in = v;
	for (unsigned i = 0; v && i < c->nr_mem; i++) {
		v[i] = calloc((c->mem[i].size + PIECE_BYTES - 1) / PIECE_BYTES + 1, sizeof(**v));
		if (!v[i])
			v = NULL;
	}
	return v ? 0 : error_session(err, -ENOMEM, "No memory for the list of granted keys");
}

/* Find @g by its number, and by where it is, from now on.  keys.lock is held. */
static void grant_link(struct keys *k, struct grant *g)
{
	struct grant **list = &k->granted_in[g->region][g->offset / PIECE_BYTES];

	k->granted[g->id] = g;
	g->piece_next = *list;
	g->piece_at = list;
	if (g->piece_next)
		g->piece_next->piece_at = &g->piece_next;
	*list = g;
}

/* The opposite: its number is free.  keys.lock is held. */
static void grant_unlink(struct keys *k, struct grant *g)
{
	k->granted[g->id] = NULL;
	*g->piece_at = g->piece_next;
	if (g->piece_next)
		g->piece_next->piece_at = g->piece_at;
}

/* The peer asked for what it may not.  -EPROTO. */
static int bad_request(const struct verbs_conn *c, const struct key_wanted *w, const char *what,
		       struct tern_error *err)
{
	return error_session(
		err, -EPROTO,
		"The peer %s asked for the key of region %u offset %llu length %llu (number "
		"%u): %s",
		c->peer, w->region, (unsigned long long)w->offset, (unsigned long long)w->len,
		w->id, what);
}

/* Room in granted[] for number @id.  0 or -ENOMEM. */
static int grow(struct keys *k, uint32_t id)
{
	uint32_t nr = k->nr_granted ? k->nr_granted : 1024;
	struct grant **v;

	if (id < k->nr_granted)
		return 0;
	while (nr <= id)
		nr *= 2;
	v = realloc(k->granted, nr * sizeof(struct grant *));
	if (!v)
		return -ENOMEM;
	memset(v + k->nr_granted, 0, (nr - k->nr_granted) * sizeof(struct grant *));
	k->granted = v;
	k->nr_granted = nr;
	return 0;
}

/*
 * Channel @w->channel asks for a key to @g, which is another's already.  0 or -EPROTO with
 * *err.  keys.lock is held.
 */
static int check_second(const struct verbs_conn *c, const struct grant *g,
			const struct key_wanted *w, struct tern_error *err)
{
	if (!c->windows)
		return bad_request(c, w, "the number is out of range or in use", err);
	if (g->region != w->region || g->offset != w->offset || g->len != w->len)
		return bad_request(c, w, "the number is in use for another range", err);
	if (w->channel == KEYS_ANY_CHANNEL || g->channels & 1ull << w->channel)
		return bad_request(c, w, "its channel has that key", err);
	return 0;
}

/* Is the request one that may be granted?  0 or -errno with *err.  keys.lock is held. */
static int check(const struct verbs_conn *c, const struct key_wanted *w, struct tern_error *err)
{
	const struct keys *k = &c->keys;

	if (!vconn_range_ok(c, w->region, w->offset, w->len))
		return bad_request(c, w, "it is outside what was exposed", err);
	if (w->len > PIECE_BYTES || w->offset % PAGE ||
	    (w->len % PAGE && w->offset + w->len != c->mem[w->region].size))
		return bad_request(c, w, "it is no run of whole pages of at most 2 MiB", err);
	/* Pieces are retired one by one, and it would be in none of them. */
	if (w->offset / PIECE_BYTES != (w->offset + w->len - 1) / PIECE_BYTES)
		return bad_request(c, w, "it crosses a boundary of 2 MiB", err);
	if (w->channel != KEYS_ANY_CHANNEL && (!c->windows || w->channel >= TRANSPORT_CHANNELS_MAX))
		return bad_request(c, w, "its channel is out of range", err);
	if (w->id >= KEYS_EXTENTS_MAX)
		return bad_request(c, w, "the number is out of range or in use", err);
	if (w->id < k->nr_granted && k->granted[w->id])
		return check_second(c, k->granted[w->id], w, err);
	if (w->len > k->budget || k->there > k->budget - w->len)
		return bad_request(c, w, "it would exceed the lock budget", err);
	return 0;
}

/* Leave @grant to its registrar.  keys.lock is held.  0 or -errno with *err. */
static int queue_job(struct verbs_conn *c, struct grant *g, enum grant_work work,
		     uint32_t channel, struct tern_error *err)
{
	struct registrar *r = c->keys.of_region[g->region];
	struct grant_job *job = calloc(1, sizeof(*job));

	if (!job)
		return error_session(err, -ENOMEM, "No memory for a request of keys from %s",
				     c->peer);
	job->grant = g;
	job->work = work;
	job->channel = channel;
	job->seq = c->keys.next_seq++;
	job->frame = c->keys.next_frame;
	*r->jobs_tail = job;
	r->jobs_tail = &job->next;
	/* Only those: a release is of what was granted, and retiring is our own wish. */
	c->keys.nr_jobs += work == GRANT_WANTED;
	pthread_cond_signal(&r->work);
	return 0;
}

/* What @w asks for, promised.  NULL: no memory.  keys.lock is held. */
static struct grant *grant_new(struct keys *k, const struct key_wanted *w)
{
	struct grant *g = calloc(1, sizeof(*g));

	if (!g)
		return NULL;
	g->id = w->id;
	g->region = w->region;
	g->offset = w->offset;
	g->len = w->len;
	grant_link(k, g);
	k->there += w->len;
	return g;
}

/* One wanted range.  0 or -errno with *err.  keys.lock is held. */
static int take_wanted(struct verbs_conn *c, const struct key_wanted *w, struct tern_error *err)
{
	struct grant *g = NULL;
	int rc = check(c, w, err);

	if (rc)
		return rc;
	if (!grow(&c->keys, w->id))
		g = c->keys.granted[w->id] ? c->keys.granted[w->id] : grant_new(&c->keys, w);
	if (!g)
		return error_session(err, -ENOMEM, "No memory for a request of keys from %s",
				     c->peer);
	g->unanswered++;
	if (w->channel != KEYS_ANY_CHANNEL)
		g->channels |= 1ull << w->channel;
	return queue_job(c, g, GRANT_WANTED, w->channel, err);
}

/* One released number.  0 or -errno with *err.  keys.lock is held. */
static int take_release(struct verbs_conn *c, uint32_t id, struct tern_error *err)
{
	struct keys *k = &c->keys;
	struct grant *g = id < k->nr_granted ? k->granted[id] : NULL;
	int rc;

	if (!g || g->unanswered)
		return error_session(err, -EPROTO,
				     "The peer %s released the key with number %u, which it does "
				     "not have",
				     c->peer, id);
	rc = queue_job(c, g, GRANT_RELEASE, 0, err);
	if (rc)
		return rc;
	grant_unlink(k, g);
	k->there -= g->len;
	return 0;
}

/* The ranges or numbers of a frame.  0 or -errno with *err.  keys.lock is held. */
static int take_frame(struct verbs_conn *c, uint16_t type, const uint8_t *payload, size_t len,
		      struct tern_error *err)
{
	struct key_wanted want[KEYS_BATCH];
	uint32_t ids[KEYS_BATCH];
	int rc = 0, nr;

	if (c->keys.nr_jobs >= KEYS_JOBS_MAX)
		return error_session(err, -EPROTO,
				     "The peer %s asks for keys without waiting for answers",
				     c->peer);
	nr = type == CTL_KEYS_WANTED ? keys_wanted_get(payload, len, want)
				     : keys_release_get(payload, len, ids);
	if (nr < 0)
		return error_session(err, -EPROTO,
				     "The peer %s sent a frame of type %u and %zu bytes, whose "
				     "count of keys does not fit its length",
				     c->peer, type, len);
	c->keys.next_frame++;
	for (int i = 0; i < nr && !rc; i++)
		rc = type == CTL_KEYS_WANTED ? take_wanted(c, &want[i], err)
					     : take_release(c, ids[i], err);
	return rc;
}

/* Keep a frame until memory is exposed.  0 or -errno with *err.  keys.lock is held. */
static int keep_frame(struct verbs_conn *c, uint16_t type, const uint8_t *payload, size_t len,
		      struct tern_error *err)
{
	struct early_frame **at = &c->keys.early, *f;
	unsigned nr = 0;

	for (; *at; at = &(*at)->next)
		nr++;
	f = nr < KEYS_EARLY_MAX ? malloc(sizeof(*f) + len) : NULL;
	if (!f)
		return error_session(err, nr < KEYS_EARLY_MAX ? -ENOMEM : -EPROTO,
				     "The peer %s asked for too many keys before memory was "
				     "exposed: %u frames",
				     c->peer, nr);
	f->next = NULL;
	f->type = type;
	f->len = len;
	memcpy(f->payload, payload, len);
	*at = f;
	return 0;
}

/* grants_take - a key frame arrived.  Pump. */
void grants_take(struct verbs_conn *c, uint16_t type, const uint8_t *payload, size_t len)
{
	struct tern_error why = { 0 };
	int rc;

	pthread_mutex_lock(&c->keys.lock);
	rc = c->keys.nr_registrars ? take_frame(c, type, payload, len, &why)
				   : keep_frame(c, type, payload, len, &why);
	pthread_mutex_unlock(&c->keys.lock);
	if (rc)
		vconn_fail(c, &why);
}

/* grants_exposed - there are registrars: hand them what came before.  keys.lock is held. */
int grants_exposed(struct verbs_conn *c, struct tern_error *err)
{
	int rc = 0;

	while (c->keys.early) {
		struct early_frame *f = c->keys.early;

		c->keys.early = f->next;
		if (!rc)
			rc = take_frame(c, f->type, f->payload, f->len, err);
		free(f);
	}
	return rc;
}

/*
 * What is not done of what arrived before @seq: is there a release, and how many bytes
 * are going to be registered (*wanted, unless NULL)?  keys.lock is held.
 */
static bool earlier_release(const struct keys *k, uint64_t seq, uint64_t *wanted)
{
	bool any = false;

	for (unsigned i = 0; i < k->nr_registrars; i++) {
		const struct grant_job *job = k->registrars[i].jobs;

		for (; job && job->seq < seq; job = job->next) {
			any |= job->work != GRANT_WANTED;
			if (wanted && job->work == GRANT_WANTED && job->grant &&
			    !job->grant->counted)
				*wanted += job->grant->len;
		}
	}
	return any;
}

/*
 * Does @job's range fit, with all that came before it?  If it does not, something that
 * came before it is going to be released.  keys.lock is held.
 */
static bool fits(const struct keys *k, const struct grant_job *job)
{
	uint64_t wanted = job->grant->len; /* and what comes before; one asked for twice: twice */
	bool released = earlier_release(k, job->seq, &wanted);

	return !released || (k->here <= k->budget && wanted <= k->budget - k->here);
}

/*
 * Count the bytes of @job's range as registered, once there is room.
 *
 * False: it will never be needed.  keys.lock is held, and dropped while waiting.
 */
static bool count_here(struct registrar *r, struct grant_job *job)
{
	struct keys *k = &r->conn->keys;

	while (!k->stop && !job->grant->counted && !fits(k, job))
		pthread_cond_wait(&r->work, &k->lock);
	if (k->stop || atomic_load(&r->conn->revoked))
		return false;
	if (!job->grant->counted) {
		job->grant->counted = true;
		k->here += job->grant->len;
		registrar_peak_locked(r->conn);
	}
	return true;
}

/* Wait for a release that came before @seq.  False: there is none.  keys.lock is held. */
static bool await_release(struct registrar *r, uint64_t seq)
{
	struct keys *k = &r->conn->keys;
	uint64_t before = k->here;
	bool any = false;

	while (!k->stop && k->here >= before && earlier_release(k, seq, NULL)) {
		any = true;
		pthread_cond_wait(&r->work, &k->lock);
	}
	return any && !k->stop;
}

/* Register @g.  0 or -errno; counted in any case. */
static int register_grant(struct registrar *r, const struct grant_job *job)
{
	struct verbs_conn *c = r->conn;
	struct grant *g = job->grant;
	int access = IBV_ACCESS_LOCAL_WRITE;
	bool again = true;
	int rc = 0;

	access |= c->windows ? IBV_ACCESS_MW_BIND : IBV_ACCESS_REMOTE_WRITE;
	while (!g->mr && again) {
		g->mr = registrar_register(c, g->region, g->offset, g->len, access);
		rc = g->mr ? 0 : -errno;
		if (rc != -ENOMEM)
			break;
		pthread_mutex_lock(&c->keys.lock);
		again = await_release(r, job->seq);
		pthread_mutex_unlock(&c->keys.lock);
	}
	return rc;
}

/* grants_send - send what is in @a. */
void grants_send(struct verbs_conn *c, struct answers *a)
{
	uint8_t buf[KEYS_HEAD_LEN + KEYS_BATCH * KEYS_LEN];
	struct tern_error why = { 0 };
	int rc = 0;

	if (a->nr)
		rc = control_queue(c, CTL_KEYS, buf, (uint32_t)keys_put(buf, a->v, a->nr));
	a->nr = 0;
	if (!rc)
		return;
	error_session(&why, rc, "No memory for an answer to the keys that %s asked for", c->peer);
	vconn_fail(c, &why);
}

/* Deregister @g and free it. */
static void grant_free(struct grant *g)
{
	if (!g)
		return;
	windows_close(g);
	if (g->mr)
		ibv_dereg_mr(g->mr);
	free(g);
}

/* Add the answer to @channel's request for @g to @a: a key, or a status that says why not. */
static void answer_put(const struct verbs_conn *c, const struct grant *g, uint32_t channel,
		       int status, uint32_t rkey, struct answers *a)
{
	a->v[a->nr++] = (struct key_granted){
		.id = g->id,
		.status = status,
		.remote_va = (uintptr_t)c->mem[g->region].hva + g->offset,
		.limit = verbs_memlock_limit(),
		.rkey = rkey,
		.channel = channel,
	};
}

void grants_answer(struct verbs_conn *c, struct grant *g, uint32_t channel, uint32_t rkey,
		   struct answers *a)
{
	struct keys *k = &c->keys;

	answer_put(c, g, channel, 0, rkey, a);
	pthread_mutex_lock(&k->lock);
	g->unanswered--;
	g->nr_given++;
	pthread_mutex_unlock(&k->lock);
}

/*
 * Answer @job with @status, and forget its grant if nobody else has it, or is going to.
 *
 * It is forgotten in the moment in which it counts as answered: with the lock dropped in
 * between, the pump would take a release of the number, or another request for it, for a
 * grant that is about to be freed.
 */
static void refuse(struct verbs_conn *c, struct grant_job *job, int status, struct answers *a)
{
	struct grant *g = job->grant, *unused = NULL;
	struct keys *k = &c->keys;

	answer_put(c, g, job->channel, status, 0, a);
	pthread_mutex_lock(&k->lock);
	g->unanswered--;
	if (job->channel != KEYS_ANY_CHANNEL)
		g->channels &= ~(1ull << job->channel);
	if (!g->unanswered && !g->nr_given) {
		unused = g;
		job->grant = NULL; /* others look at the job until it is off the queue */
		grant_unlink(k, g);
		k->there -= g->len;
		k->here -= g->len;
	}
	pthread_mutex_unlock(&k->lock);
	grant_free(unused);
}

/* A request: register, and answer.  keys.lock is held, and dropped meanwhile. */
static void serve_wanted(struct registrar *r, struct grant_job *job, struct answers *a)
{
	struct verbs_conn *c = r->conn;
	struct grant *g = job->grant;
	bool wanted = count_here(r, job), bound = false;
	int rc;

	pthread_mutex_unlock(&c->keys.lock);
	if (wanted) {
		rc = register_grant(r, job);
		if (!rc && c->windows && job->channel != KEYS_ANY_CHANNEL) {
			rc = window_open(c, g, job->channel);
			bound = !rc;
		}
		if (rc)
			refuse(c, job, rc, a);
		else if (!bound) /* otherwise the pump answers */
			grants_answer(c, g, job->channel, c->windows ? 0 : g->mr->rkey, a);
	}
	pthread_mutex_lock(&c->keys.lock);
}

/* Deregister what the source let go of.  keys.lock is held, and dropped meanwhile. */
static void serve_release(struct registrar *r, const struct grant_job *job)
{
	struct keys *k = &r->conn->keys;
	uint64_t len = job->grant->counted ? job->grant->len : 0;

	pthread_mutex_unlock(&k->lock);
	grant_free(job->grant);
	pthread_mutex_lock(&k->lock);
	k->here -= len;
}

/*
 * Deregister what nobody writes to any more.  The source may ask for it again all the
 * same: then it is registered anew.  keys.lock is held, and dropped meanwhile.
 */
static void serve_retire(struct registrar *r, const struct grant_job *job)
{
	struct keys *k = &r->conn->keys;
	struct grant *g = job->grant;

	if (g->unanswered || !g->mr) {
		g->retired = false;
		return;
	}
	pthread_mutex_unlock(&k->lock);
	windows_close(g);
	ibv_dereg_mr(g->mr);
	pthread_mutex_lock(&k->lock);
	g->mr = NULL;
	g->counted = false;
	g->retired = false;
	k->here -= g->len;
}

/* The threads that resolve the guest's faults come here, so nothing else is looked at. */
void grants_retire(struct verbs_conn *c, uint32_t region, uint64_t offset, uint64_t len)
{
	struct keys *k = &c->keys;

	if (!len || !vconn_range_ok(c, region, offset, len))
		return;
	pthread_mutex_lock(&k->lock);
	for (uint64_t i = offset / PIECE_BYTES; i <= (offset + len - 1) / PIECE_BYTES; i++) {
		struct grant *g = k->nr_registrars ? k->granted_in[region][i] : NULL;

		for (; g; g = g->piece_next)
			if (g->offset >= offset && g->offset + g->len <= offset + len &&
			    !g->retired && !g->unanswered && g->mr)
				g->retired = !queue_job(c, g, GRANT_RETIRE, 0, NULL);
	}
	pthread_mutex_unlock(&k->lock);
}

/* Handle @r's first job, and take it off the queue.  keys.lock is held. */
static void serve(struct registrar *r, struct answers *a)
{
	struct keys *k = &r->conn->keys;
	struct grant_job *job = r->jobs;
	bool send;

	if (job->work == GRANT_RELEASE)
		serve_release(r, job);
	else if (job->work == GRANT_RETIRE)
		serve_retire(r, job);
	else
		serve_wanted(r, job, a);
	r->jobs = job->next;
	if (!r->jobs)
		r->jobs_tail = &r->jobs;
	k->nr_jobs -= job->work == GRANT_WANTED;
	if (job->work != GRANT_WANTED) /* others may wait for it */
		for (unsigned i = 0; i < k->nr_registrars; i++)
			pthread_cond_signal(&k->registrars[i].work);
	send = !r->jobs || r->jobs->work != GRANT_WANTED || r->jobs->frame != job->frame || a->nr == KEYS_BATCH;
	free(job);
	if (!send || !a->nr)
		return;
	pthread_mutex_unlock(&k->lock);
	grants_send(r->conn, a);
	pthread_mutex_lock(&k->lock);
}

/* A registrar's thread at the destination. */
void *grants_main(void *registrar)
{
	struct registrar *r = registrar;
	struct keys *k = &r->conn->keys;
	struct answers a = { .nr = 0 };

	pthread_setname_np(pthread_self(), "tern-rdma-reg");
	verbs_thread_on_node(r->conn, r->node);
	pthread_mutex_lock(&k->lock);
	while (!k->stop) {
		if (r->jobs)
			serve(r, &a);
		else
			pthread_cond_wait(&r->work, &k->lock);
	}
	pthread_mutex_unlock(&k->lock);
	return NULL;
}

/* grants_close_windows - before the queue pairs go.  No thread runs any more. */
void grants_close_windows(struct verbs_conn *c)
{
	struct keys *k = &c->keys;

	for (uint32_t i = 0; i < k->nr_granted; i++)
		if (k->granted[i])
			windows_close(k->granted[i]);
	for (unsigned i = 0; i < k->nr_registrars; i++)
		for (struct grant_job *job = k->registrars[i].jobs; job; job = job->next)
			windows_close(job->grant);
}

/* grants_fini - deregister everything the peer could write. */
void grants_fini(struct verbs_conn *c)
{
	struct keys *k = &c->keys;

	for (uint32_t i = 0; i < k->nr_granted; i++)
		grant_free(k->granted[i]);
	free(k->granted);
	for (unsigned i = 0; k->granted_in && i < c->nr_mem; i++)
		free(k->granted_in[i]);
	free(k->granted_in);
	while (k->early) {
		struct early_frame *f = k->early;

		k->early = f->next;
		free(f);
	}
	for (unsigned i = 0; i < k->nr_registrars; i++)
		for (struct grant_job *job = k->registrars[i].jobs; job; job = job->next)
			if (job->work == GRANT_RELEASE)
				grant_free(job->grant);
}
