/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * The source's registrar.
 *
 *	keys_hold()   extent QUEUED ──┐
 *	                              ▼ registrar, up to KEYS_BATCH at a time:
 *	               evict idle extents while the budget is short
 *	               register here ─► PINNED ─► KEYS_WANTED ──► destination
 *	pump:          KEYS ◄──────────────────────────────────── registers
 *	               extent READY, channels woken
 *
 * The extent goes away in this order: deregistered here, KEYS_RELEASE queued,
 * number free.  The control queue is in order, so the destination has let go of
 * a number, and of its bytes, before it is asked to use them again.
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
	if (c->source && c->peer_budget && c->peer_budget < k->budget)
		k->budget = c->peer_budget;
	if (k->budget < 2 * PIECE_BYTES)
		return error_session(
			err, -EINVAL,
			"The lock budget of %llu bytes is too small for RDMA; at least "
			"%llu are needed",
			(unsigned long long)k->budget, 2 * PIECE_BYTES);
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

/* keys_fini - deregister and free everything of the source. */
void keys_fini(struct verbs_conn *c)
{
	struct keys *k = &c->keys;

	for (uint32_t i = 0; i < k->nr_ids; i++) {
		struct extent *e = k->by_id[i];

		if (e && e->mr)
			ibv_dereg_mr(e->mr);
		free(e);
	}
	for (unsigned i = 0; k->pieces && i < c->nr_mem; i++)
		free(k->pieces[i]);
	free(k->pieces);
	free(k->by_id);
	free(k->free_ids);
}

/* Register a range of exposed memory; NULL with errno.  Counts time and bytes. */
struct ibv_mr *keys_register(struct verbs_conn *c, uint32_t region, uint64_t offset, uint64_t len,
			     int access)
{
	struct keys *k = &c->keys;
	uint64_t begin = verbs_now_ns();
	struct ibv_mr *mr =
		ibv_reg_mr(c->pd_data, (uint8_t *)c->mem[region].hva + offset, len, access);
	uint64_t ns = verbs_now_ns() - begin;

	atomic_fetch_add_explicit(&k->reg_ns, ns, memory_order_relaxed);
	if (mr)
		atomic_fetch_add_explicit(&k->reg_bytes, len, memory_order_relaxed);
	return mr;
}

/* keys_register_failed - the sentence. */
void keys_register_failed(struct verbs_conn *c, int code, uint64_t len, struct tern_error *err)
{
	uint64_t have = atomic_load_explicit(&c->keys.reg_peak, memory_order_relaxed);
	char hint[240];

	verbs_memlock_hint(hint, sizeof(hint));
	error_session(err, code,
		      "Registering %llu KiB of guest memory with device %s failed: %s; about %llu "
		      "MiB are registered%s%s",
		      (unsigned long long)len >> 10, c->device, error_name(code),
		      (unsigned long long)have >> 20, code == -ENOMEM ? "; " : "",
		      code == -ENOMEM ? hint : "");
}

/* Let go of extent @e on both sides.  keys.lock is held, and dropped meanwhile. */
static int release(struct verbs_conn *c, struct extent *e)
{
	uint8_t buf[KEYS_HEAD_LEN + KEYS_RELEASE_LEN];
	int rc;

	pthread_mutex_unlock(&c->keys.lock);
	if (e->mr)
		ibv_dereg_mr(e->mr);
	rc = control_queue(c, CTL_KEYS_RELEASE, buf, (uint32_t)keys_release_put(buf, &e->id, 1));
	pthread_mutex_lock(&c->keys.lock);
	keys_forget_locked(&c->keys, e);
	return rc;
}

/*
 * Take extents off the queue as far as the budget goes.  keys.lock is held.
 *
 * Returns how many; 0 only if the budget is used up by extents that are not idle.
 */
static unsigned take_queue(struct verbs_conn *c, struct extent **v)
{
	struct keys *k = &c->keys;
	unsigned nr = 0;

	while (k->queue && nr < KEYS_BATCH) {
		struct extent *e = k->queue, *old;

		if (k->locked + e->len > k->budget) {
			old = keys_evict_locked(k);
			if (!old || release(c, old))
				break;
			continue;
		}
		k->locked += e->len;
		if (k->locked > atomic_load_explicit(&k->reg_peak, memory_order_relaxed))
			atomic_store_explicit(&k->reg_peak, k->locked, memory_order_relaxed);
		k->queue = e->queue_next;
		if (!k->queue)
			k->queue_tail = &k->queue;
		v[nr++] = e;
		/* The first ones should be on their way soon. */
		if (nr >= 4 && k->locked < 64 * PIECE_BYTES)
			break;
	}
	return nr;
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

/* Register @e here; make room if the kernel says that there is none.  0 or -errno. */
static int pin(struct verbs_conn *c, struct extent *e)
{
	struct keys *k = &c->keys;
	struct extent *old;

	for (unsigned touched = 0;;) {
		int rc;

		e->mr = keys_register(c, e->region, e->offset, e->len, 0);
		if (e->mr)
			return 0;
		rc = errno ? -errno : -ENOMEM;
		if (rc == -EFAULT && touched++ < TOUCHES_MAX) {
			touch(c, e);
			continue;
		}
		if (rc != -ENOMEM)
			return rc;
		pthread_mutex_lock(&k->lock);
		old = keys_evict_locked(k);
		if (old)
			(void)release(c, old);
		pthread_mutex_unlock(&k->lock);
		if (!old)
			return rc;
	}
}

/* Register a batch here and ask for its keys.  0 or -errno with *err. */
static int request(struct verbs_conn *c, struct extent **v, unsigned nr, struct tern_error *err)
{
	uint8_t buf[KEYS_HEAD_LEN + KEYS_BATCH * KEYS_WANTED_LEN];
	struct key_wanted want[KEYS_BATCH];
	int rc;

	for (unsigned i = 0; i < nr; i++) {
		rc = pin(c, v[i]);
		if (rc) {
			keys_register_failed(c, rc, v[i]->len, err);
			return rc;
		}
		want[i] = (struct key_wanted){
			.id = v[i]->id,
			.region = v[i]->region,
			.offset = v[i]->offset,
			.len = v[i]->len,
		};
	}
	pthread_mutex_lock(&c->keys.lock);
	for (unsigned i = 0; i < nr; i++)
		atomic_store(&v[i]->state, EXTENT_PINNED);
	pthread_cond_broadcast(&c->keys.done);
	pthread_mutex_unlock(&c->keys.lock);
	vconn_wake_channels(c);
	rc = control_queue(c, CTL_KEYS_WANTED, buf, (uint32_t)keys_wanted_put(buf, want, nr));
	if (rc)
		error_session(err, rc, "No memory for a request of keys");
	return rc;
}

/* The registrar's thread at the source. */
static void *keys_main(void *conn)
{
	struct verbs_conn *c = conn;
	struct keys *k = &c->keys;
	struct extent *v[KEYS_BATCH];
	struct tern_error err = { 0 };

	pthread_setname_np(pthread_self(), "tern-rdma-reg");
	pthread_mutex_lock(&k->lock);
	while (!k->stop) {
		unsigned nr = vconn_check(c, NULL) ? 0 : take_queue(c, v);

		if (!nr) {
			pthread_cond_wait(&k->work, &k->lock);
			continue;
		}
		pthread_mutex_unlock(&k->lock);
		if (request(c, v, nr, &err))
			vconn_fail(c, &err);
		pthread_mutex_lock(&k->lock);
	}
	pthread_mutex_unlock(&k->lock);
	return NULL;
}

int keys_start(struct verbs_conn *c, struct tern_error *err)
{
	int rc = pthread_create(&c->keys.thread, NULL, c->source ? keys_main : grants_main, c);

	if (rc)
		return error_session(err, -rc, "Starting the registration thread failed: %s",
				     error_name(-rc));
	c->keys.running = true;
	return 0;
}

void keys_stop(struct verbs_conn *c)
{
	if (!c->keys.running)
		return;
	pthread_mutex_lock(&c->keys.lock);
	c->keys.stop = true;
	pthread_cond_broadcast(&c->keys.work);
	pthread_mutex_unlock(&c->keys.lock);
	pthread_join(c->keys.thread, NULL);
	c->keys.running = false;
}

int keys_wait(struct verbs_conn *c, struct extent *e, enum extent_state state,
	      struct tern_error *err)
{
	unsigned patience_ms = CHAN_IDLE_SLICES * c->env.peer_timeout_ms;
	struct keys *k = &c->keys;
	struct timespec ts;
	int rc = 0, waited = 0;

	if (atomic_load(&e->state) >= (int)state)
		return 0;
	verbs_timespec(verbs_deadline((int)patience_ms), &ts);
	pthread_mutex_lock(&k->lock);
	while (atomic_load(&e->state) < (int)state && !waited && !(rc = vconn_check(c, err)))
		waited = pthread_cond_timedwait(&k->done, &k->lock, &ts);
	pthread_mutex_unlock(&k->lock);
	if (rc || !waited)
		return rc;
	return error_session(err, -ETIMEDOUT,
			     "Registering memory for the peer %s took more than %u ms (device %s); "
			     "check that it is alive, and that the lock budget is not too small",
			     c->peer, patience_ms, c->device);
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
	for (unsigned pass = 0; pass < 2; pass++) { /* ask for all, then wait for all */
		for (unsigned i = 0; i < c->nr_mem; i++) {
			for (uint64_t at = 0; at < c->mem[i].size && !rc; at += PIECE_BYTES) {
				struct extent *e;

				if (keys_hold(c, i, at, 1, &e) < 0)
					return error_session(
						err, -ENOMEM,
						"No memory for the list of registrations");
				if (pass)
					rc = keys_wait(c, e, EXTENT_READY, err);
				keys_drop(c, e);
			}
		}
	}
	return rc;
}

/* One granted key.  0 or -errno with *err.  keys.lock is held. */
static int take_key(struct verbs_conn *c, const struct key_granted *g, struct tern_error *err)
{
	struct keys *k = &c->keys;
	struct extent *e = g->id < k->nr_ids ? k->by_id[g->id] : NULL;

	if (!e || atomic_load(&e->state) != EXTENT_PINNED)
		return error_session(
			err, -EPROTO,
			"The peer %s sent a key with number %u, which it was not asked "
			"for",
			c->peer, g->id);
	if (g->status)
		return error_session(
			err, g->status < 0 && g->status > -4096 ? g->status : -EPROTO,
			"The destination %s could not register %llu KiB of guest memory "
			"for RDMA: %s; raise its memlock limit, or lower --lock-budget",
			c->peer, (unsigned long long)e->len >> 10, error_name(g->status));
	e->remote_va = g->remote_va;
	e->rkey = g->rkey;
	atomic_store_explicit(&e->state, EXTENT_READY, memory_order_release);
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
	if (c->keys.queue)
		pthread_cond_signal(&c->keys.work);
	pthread_cond_broadcast(&c->keys.done);
	pthread_mutex_unlock(&c->keys.lock);
	if (rc)
		vconn_fail(c, &why);
	else
		vconn_wake_channels(c);
}
