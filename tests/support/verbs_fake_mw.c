/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * Locked memory, and memory windows of type 2B: a window is bound once, to a part of a
 * registration and to the queue pair that the binding was posted to.
 */

#include <errno.h>
#include <stdlib.h>
#include "verbs_fake_private.h"

/* Which side registers with @access: 0 source, 1 destination, -1: no guest memory. */
static int side_of(int access)
{
	if (access == IBV_ACCESS_LOCAL_WRITE) /* a buffer of the transport */
		return -1;
	return access & IBV_ACCESS_LOCAL_WRITE ? 1 : 0;
}

bool fake_lock(int access, uint64_t len)
{
	int side = side_of(access);

	if (side < 0)
		return true;
	if (fake.memlock[side].limit && fake.memlock[side].used + len > fake.memlock[side].limit)
		return false;
	fake.memlock[side].used += len;
	return true;
}

void fake_unlock(int access, uint64_t len)
{
	int side = side_of(access);

	if (side >= 0)
		fake.memlock[side].used -= len;
}

void verbs_fake_memlock(uint64_t source, uint64_t destination)
{
	pthread_mutex_lock(&fake.lock);
	fake.memlock[0].limit = source;
	fake.memlock[1].limit = destination;
	pthread_mutex_unlock(&fake.lock);
}

struct ibv_mw *fake_alloc_mw(struct ibv_pd *pd, enum ibv_mw_type type)
{
	struct fake_mw *mw = calloc(1, sizeof(*mw));
	bool good;

	if (!mw)
		abort();
	pthread_mutex_lock(&fake.lock);
	good = fake_object(FAKE_MW);
	if (good) {
		mw->base.context = pd->context;
		mw->base.pd = pd;
		mw->base.type = type;
		mw->base.rkey = 1u << 31 | fake.next_key++ << 8; /* no registration's */
		mw->next = fake.mws;
		fake.mws = mw;
		((struct fake_pd *)pd)->users++;
	}
	pthread_mutex_unlock(&fake.lock);
	if (good)
		return &mw->base;
	free(mw);
	return NULL;
}

int fake_dealloc_mw(struct ibv_mw *base)
{
	struct fake_mw **at;

	pthread_mutex_lock(&fake.lock);
	for (at = &fake.mws; *at && *at != (struct fake_mw *)base; at = &(*at)->next)
		;
	if (!*at)
		fake_misuse("a memory window is freed that does not exist");
	*at = (*at)->next;
	((struct fake_pd *)base->pd)->users--;
	fake.objects--;
	pthread_mutex_unlock(&fake.lock);
	free(base);
	return 0;
}

/* Does @mr, which is registered in @pd, allow a writable window over the range? */
static bool may_bind(const struct ibv_pd *pd, const struct ibv_mw_bind_info *info)
{
	return info->mr->pd == pd && info->length &&
	       fake_covered(pd, info->mr->lkey, info->addr, info->length,
			    IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_MW_BIND);
}

enum ibv_wc_status fake_bind(struct fake_qp *qp, const struct ibv_send_wr *wr)
{
	const struct ibv_mw_bind_info *info = &wr->bind_mw.bind_info;
	struct fake_mw *mw = (struct fake_mw *)wr->bind_mw.mw;

	if (mw->qp || mw->base.type != IBV_MW_TYPE_2 || mw->base.pd != qp->base.pd ||
	    wr->bind_mw.rkey == mw->base.rkey || (wr->bind_mw.rkey ^ mw->base.rkey) & 0xffffff00u ||
	    !may_bind(qp->base.pd, info) || info->mw_access_flags != IBV_ACCESS_REMOTE_WRITE)
		return IBV_WC_MW_BIND_ERR;
	mw->qp = qp;
	mw->mr = info->mr;
	mw->addr = info->addr;
	mw->length = info->length;
	mw->base.rkey = wr->bind_mw.rkey;
	return IBV_WC_SUCCESS;
}

bool fake_window_covers(const struct fake_qp *qp, uint32_t key, uint64_t addr, uint64_t len)
{
	for (const struct fake_mw *mw = fake.mws; mw; mw = mw->next)
		if (mw->qp == qp && mw->base.rkey == key)
			return addr >= mw->addr && len <= mw->length &&
			       addr - mw->addr <= mw->length - len;
	return false;
}

bool fake_is_bound(const struct ibv_mr *mr, const struct fake_qp *qp)
{
	for (const struct fake_mw *mw = fake.mws; mw; mw = mw->next)
		if (mw->qp && (mw->mr == mr || mw->qp == qp))
			return true;
	return false;
}

unsigned verbs_fake_mws(void)
{
	unsigned nr = 0;

	pthread_mutex_lock(&fake.lock);
	for (const struct fake_mw *mw = fake.mws; mw; mw = mw->next)
		nr += mw->qp != NULL;
	pthread_mutex_unlock(&fake.lock);
	return nr;
}
