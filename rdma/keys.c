/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * The source's registrars.
 *
 *	keys_hold()   key QUEUED ─────┐
 *	                              ▼ registrar, up to KEYS_BATCH at a time:
 *	               make room (keys_room.c)
 *	               register here ─► PINNED ─► KEYS_WANTED ──► destination
 *	pump:          KEYS ◄──────────────────────────────────── registers
 *	               key READY, channels woken
 *
 * ENOMEM, here or there, puts the key back into the queue until something was freed; it
 * ends the connection only when nothing can be.
 *
 * An extent goes away in this order: deregistered here, KEYS_RELEASE queued, number
 * free.  The control queue is in order, so the destination knows that a number, and its
 * bytes, are free before it is asked to use them again.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "error.h"
#include "verbs.h"

#define TOUCHES_MAX 3u /* registrations tried again after -EFAULT */

int keys_init(struct verbs_conn *c, struct tern_error *err)
{
	struct keys *k = &c->keys;

	k->budget = c->env.lock_budget ? c->env.lock_budget : UINT64_MAX;
	if (c->peer_budget && c->peer_budget < k->budget)
		k->budget = c->peer_budget;
	if (k->budget < 2 * PIECE_BYTES)
		return error_session(
			err, -EINVAL,
			"The lock budget of %llu bytes is too small for RDMA; at least "
			"%llu are needed",
			(unsigned long long)k->budget, 2 * PIECE_BYTES);
	k->here_max = k->there_max = k->budget;
	k->max_ids = KEYS_EXTENTS_MAX;
	if (c->attr.max_mr > 0 && (uint32_t)c->attr.max_mr < KEYS_EXTENTS_MAX + KEYS_MR_SPARE)
		k->max_ids = (uint32_t)c->attr.max_mr > 2 * KEYS_MR_SPARE
				     ? (uint32_t)c->attr.max_mr - KEYS_MR_SPARE
				     : ((uint32_t)c->attr.max_mr + 1) / 2;
	if (!c->source)
		return 0;
	k->pieces = calloc(c->nr_mem ? c->nr_mem : 1, sizeof(*k->pieces));
	for (unsigned i = 0; k->pieces && i < c->nr_mem; i++) {
		k->pieces[i] = calloc((c->mem[i].size + PIECE_BYTES - 1) / PIECE_BYTES + 1,
				      sizeof(**k->pieces));
		if (!k->pieces[i])
			return error_session(err, -ENOMEM,
					     "No memory for the list of registrations");
	}
	if (!k->pieces)
		return error_session(err, -ENOMEM, "No memory for the list of registrations");
	return 0;
}

/* Deregister and free the extents of a piece. */
static void extents_free(struct extent *e)
{
	while (e) {
		struct extent *next = e->next;

		if (e->mr)
			ibv_dereg_mr(e->mr);
		keys_free_extent(e);
		e = next;
	}
}

/* keys_fini - deregister and free everything of the source. */
void keys_fini(struct verbs_conn *c)
{
	struct keys *k = &c->keys;

	for (unsigned i = 0; k->pieces && i < c->nr_mem; i++) {
		for (uint64_t p = 0; k->pieces[i] && p * PIECE_BYTES < c->mem[i].size; p++)
			extents_free(k->pieces[i][p]);
		free(k->pieces[i]);
	}
	free(k->pieces);
	free(k->by_id);
	free(k->free_ids);
}

/* Registering @len bytes failed for good.  -errno. */
static int register_failed(struct verbs_conn *c, int code, uint64_t len, struct tern_error *err)
{
	uint64_t here;
	char hint[240];

	pthread_mutex_lock(&c->keys.lock);
	here = c->keys.here;
	pthread_mutex_unlock(&c->keys.lock);
	verbs_memlock_hint(hint, sizeof(hint));
	if (code != -ENOMEM)
		return error_session(err, code,
				     "Registering %llu KiB of guest memory with device %s failed: "
				     "%s",
				     (unsigned long long)len >> 10, c->device, error_name(code));
	return error_session(err, code,
			     "Registering %llu KiB of guest memory with device %s failed: %s, "
			     "with %llu KiB registered and none of it free to release; %s",
			     (unsigned long long)len >> 10, c->device, error_name(code),
			     (unsigned long long)here >> 10, hint);
}

/*
 * Write to every page of @e without changing it.
 *
 * On Linux before 6.2 registering takes a write fault, which a userfaultfd that
 * write-protects cannot answer inside the kernel: registering fails with EFAULT.  A
 * page that was prepared is not protected, but one that was all zero then, and was
 * written before its dirty bit was cleared, may be.  Our write takes the fault in user
 * mode, where it is answered; the page counts as dirty and is sent once more.
 */
static void touch(struct verbs_conn *c, const struct extent *e)
{
	uint8_t *p = (uint8_t *)c->mem[e->region].hva + e->offset;

	for (uint64_t i = 0; i < e->len; i += 4096) {
		uint8_t v = *(volatile uint8_t *)(p + i);

		/* A real write even if somebody was faster; an "or" with 0 might become a load. */
		(void)__atomic_compare_exchange_n(p + i, &v, v, false, __ATOMIC_SEQ_CST,
						  __ATOMIC_SEQ_CST);
	}
}

/* Register @e here.  0 or -errno. */
static int pin(struct verbs_conn *c, struct extent *e)
{
	int rc = 0;

	for (unsigned touched = 0; !e->mr; touched++) {
		e->mr = registrar_register(c, e->region, e->offset, e->len, 0);
		rc = e->mr ? 0 : -errno;
		if (rc && (rc != -EFAULT || touched == TOUCHES_MAX))
			return rc;
		if (rc)
			touch(c, e);
	}
	return rc;
}

/* @v are registered here: say so, and ask the destination.  0 or -errno with *err. */
static int ask(struct verbs_conn *c, struct extent_key **v, unsigned nr, struct tern_error *err)
{
	uint8_t buf[KEYS_HEAD_LEN + KEYS_BATCH * KEYS_WANTED_LEN];
	struct key_wanted want[KEYS_BATCH];
	struct keys *k = &c->keys;
	int rc;

	pthread_mutex_lock(&k->lock);
	for (unsigned i = 0; i < nr; i++) {
		const struct extent *e = v[i]->extent;

		if (atomic_load(&v[i]->state) == KEY_QUEUED)
			atomic_store(&v[i]->state, KEY_PINNED);
		want[i] = (struct key_wanted){ .id = e->id,
					       .region = e->region,
					       .offset = e->offset,
					       .len = e->len,
					       .channel = v[i]->channel };
	}
	if (k->here > k->here_max) /* a last try went well */
		k->here_max = k->here;
	pthread_cond_broadcast(&k->done);
	pthread_mutex_unlock(&k->lock);
	vconn_wake_channels(c);
	rc = control_queue(c, CTL_KEYS_WANTED, buf, (uint32_t)keys_wanted_put(buf, want, nr));
	return rc ? error_session(err, rc, "No memory for a request of keys") : 0;
}

/* There was no memory for @v: they wait until something is freed.  False: nothing can be. */
static bool put_back(struct registrar *r, struct extent_key **v, unsigned nr)
{
	struct keys *k = &r->conn->keys;
	bool hope = !v[0]->last_try;

	pthread_mutex_lock(&k->lock);
	while (nr--) {
		room_unask_locked(k, v[nr]);
		room_return_locked(r, v[nr]);
	}
	hope = hope && k->here;
	if (k->here_max > k->here)
		k->here_max = k->here;
	pthread_mutex_unlock(&k->lock);
	return hope;
}

/* Register a batch here and ask for its keys.  0 or -errno with *err. */
static int request(struct registrar *r, struct extent_key **v, unsigned nr, struct tern_error *err)
{
	unsigned pinned = 0;
	uint64_t len = 0;
	int rc = 0, code;

	while (pinned < nr && !rc) {
		len = v[pinned]->extent->len;
		rc = pin(r->conn, v[pinned]->extent);
		pinned += !rc;
	}
	if (pinned) {
		code = ask(r->conn, v, pinned, err);
		if (code)
			return code;
	}
	if (!rc || (rc == -ENOMEM && put_back(r, v + pinned, nr - pinned)))
		return 0;
	return register_failed(r->conn, rc, len, err);
}

/* A registrar's thread at the source. */
void *keys_main(void *registrar)
{
	struct registrar *r = registrar;
	struct verbs_conn *c = r->conn;
	struct keys *k = &c->keys;
	struct extent_key *v[KEYS_BATCH];
	struct tern_error err = { 0 };

	pthread_setname_np(pthread_self(), "tern-rdma-reg");
	verbs_thread_on_node(c, r->node);
	pthread_mutex_lock(&k->lock);
	while (!k->stop) {
		unsigned nr = vconn_check(c, NULL) ? 0 : room_take(r, v, &err);

		if (!nr && !err.code) {
			pthread_cond_wait(&r->work, &k->lock);
			continue;
		}
		r->busy = true;
		pthread_mutex_unlock(&k->lock);
		if (err.code || request(r, v, nr, &err))
			vconn_fail_data(c, &err);
		error_clear(&err);
		pthread_mutex_lock(&k->lock);
		r->busy = false;
		room_wake_locked(k);
	}
	pthread_mutex_unlock(&k->lock);
	return NULL;
}

/* Wait until @key is READY.  0, -ECANCELED, or the connection's error. */
static int wait_ready(struct verbs_conn *c, struct extent_key *key, struct tern_error *err)
{
	unsigned patience_ms = CHAN_IDLE_SLICES * c->env.peer_timeout_ms;
	struct keys *k = &c->keys;
	struct timespec ts;
	int rc = 0, waited = 0;

	if (atomic_load(&key->state) == KEY_READY)
		return 0;
	verbs_timespec(verbs_deadline((int)patience_ms), &ts);
	pthread_mutex_lock(&k->lock);
	while (atomic_load(&key->state) != KEY_READY && !waited && !(rc = vconn_check(c, err)))
		waited = pthread_cond_timedwait(&k->done, &k->lock, &ts);
	pthread_mutex_unlock(&k->lock);
	if (rc || !waited)
		return rc;
	return error_session(err, -ETIMEDOUT,
			     "The peer %s granted no key for %u ms (device %s); check that it is "
			     "alive and reachable",
			     c->peer, patience_ms, c->device);
}

/* Hold and drop every piece of region @i, and wait for its key if @wait.  0 or -errno. */
static int pin_region(struct verbs_conn *c, unsigned i, bool wait, struct tern_error *err)
{
	int rc = 0;

	for (uint64_t at = 0; at < c->mem[i].size && !rc; at += PIECE_BYTES) {
		struct extent_key *key;

		if (keys_hold(c, KEYS_ANY_CHANNEL, i, at, 1, &key) < 0)
			return error_session(err, -ENOMEM,
					     "No memory for the list of registrations");
		if (wait)
			rc = wait_ready(c, key, err);
		keys_drop(c, key);
	}
	return rc;
}

/* keys_pin_all - with --pin all: register everything on both sides, then wait. */
int keys_pin_all(struct verbs_conn *c, struct tern_error *err)
{
	uint64_t total = 0;
	int rc = 0;

	for (unsigned i = 0; i < c->nr_mem; i++)
		total += c->mem[i].size;
	if (total > c->keys.budget)
		return error_session(
			err, -ENOMEM,
			"Pinning all of %llu MiB is more than the lock budget of %llu "
			"MiB; raise --lock-budget on both sides, or use --pin pipelined",
			(unsigned long long)total >> 20, (unsigned long long)c->keys.budget >> 20);
	for (unsigned pass = 0; pass < 2; pass++) /* ask for all, then wait for all */
		for (unsigned i = 0; i < c->nr_mem && !rc; i++)
			rc = pin_region(c, i, pass == 1, err);
	return rc;
}

/* The destination could not register what @key needs.  0: later; -errno with *err. */
static int take_refusal(struct verbs_conn *c, struct extent_key *key, const struct key_granted *g,
			struct tern_error *err)
{
	unsigned long long kib = key->extent->len >> 10;
	struct keys *k = &c->keys;
	struct registrar *r = k->of_region[key->extent->region];
	bool last = key->last_try;

	room_unask_locked(k, key);
	room_return_locked(r, key);
	if (g->status != -ENOMEM)
		return error_session(
			err, g->status < 0 && g->status > -4096 ? g->status : -EPROTO,
			"The destination %s could not register %llu KiB of guest memory for RDMA: "
			"%s",
			c->peer, kib, error_name(g->status));
	k->there_max = k->there;
	if (key->extent->nr_asked) /* others have the memory: it was the window */
		key->refused_at = k->nr_released + 1;
	pthread_cond_signal(&r->work);
	if (k->there && !last)
		return 0;
	if (!g->limit)
		return error_session(
			err, -ENOMEM,
			"The destination %s could not register %llu KiB of guest memory for RDMA: "
			"%s, with %llu KiB registered and none of it free to release; its memlock "
			"limit is unlimited, so look at the limits of its cgroup (memory.max, "
			"rdma.max) and at free memory, or lower --lock-budget",
			c->peer, kib, error_name(-ENOMEM), (unsigned long long)k->there >> 10);
	return error_session(err, -ENOMEM,
			     "The destination %s could not register %llu KiB of guest memory for "
			     "RDMA: %s, with %llu KiB registered and none of it free to release; "
			     "its memlock limit (ulimit -l) is %llu KiB: raise it, or lower "
			     "--lock-budget",
			     c->peer, kib, error_name(-ENOMEM), (unsigned long long)k->there >> 10,
			     (unsigned long long)g->limit >> 10);
}

/* The key that was asked for and is answered by @g; NULL: none. */
static struct extent_key *asked_key(struct keys *k, const struct key_granted *g)
{
	struct extent *e = g->id < k->nr_ids ? k->by_id[g->id] : NULL;
	struct extent_key *key = e ? &e->key : NULL;

	while (key && key->channel != g->channel)
		key = atomic_load(&key->next);
	if (!key || !key->asked || atomic_load(&key->state) != KEY_PINNED)
		return NULL;
	return key;
}

/* One granted key.  0 or -errno with *err.  keys.lock is held. */
static int take_key(struct verbs_conn *c, const struct key_granted *g, struct tern_error *err)
{
	struct keys *k = &c->keys;
	struct extent_key *key = asked_key(k, g);

	if (!key && g->channel != KEYS_ANY_CHANNEL)
		return error_session(err, -EPROTO,
				     "The peer %s sent a key with number %u for channel %u, which "
				     "it was not asked for",
				     c->peer, g->id, g->channel);
	if (!key)
		return error_session(
			err, -EPROTO,
			"The peer %s sent a key with number %u, which it was not asked "
			"for",
			c->peer, g->id);
	if (g->status)
		return take_refusal(c, key, g, err);
	key->remote_va = g->remote_va;
	key->rkey = g->rkey;
	room_granted_locked(k, key);
	atomic_store_explicit(&key->state, KEY_READY, memory_order_release);
	return 0;
}

/* keys_take - a KEYS frame arrived.  Pump. */
void keys_take(struct verbs_conn *c, const uint8_t *payload, size_t len)
{
	struct key_granted v[KEYS_BATCH];
	struct tern_error why = { 0 };
	int rc = 0, nr = keys_get(payload, len, v);

	if (nr < 0)
		rc = error_session(
			&why, -EPROTO,
			"The peer %s sent keys in a frame of %zu bytes, which does not fit",
			c->peer, len);
	pthread_mutex_lock(&c->keys.lock);
	for (int i = 0; i < nr && !rc; i++)
		rc = take_key(c, &v[i], &why);
	room_wake_locked(&c->keys);
	pthread_cond_broadcast(&c->keys.done);
	pthread_mutex_unlock(&c->keys.lock);
	if (rc == -EPROTO)
		vconn_fail(c, &why);
	else if (rc)
		vconn_fail_data(c, &why);
	else
		vconn_wake_channels(c);
}
