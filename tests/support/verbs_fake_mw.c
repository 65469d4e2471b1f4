/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * Locked memory, on-demand paging, and memory windows of type 2B: a window is bound once, to a part
 * of a registration and to the queue pair that the binding was posted to.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "verbs_fake_private.h"

/* Which side locks guest memory with @access: 0 source, 1 destination, -1: none. */
static int side_of(int access)
{
	if (access == IBV_ACCESS_LOCAL_WRITE || access & IBV_ACCESS_ON_DEMAND)
		return -1; /* a buffer of the transport, or not locked */
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

void verbs_fake_paging(void)
{
	pthread_mutex_lock(&fake.lock);
	fake.paging = true;
	pthread_mutex_unlock(&fake.lock);
}

uint64_t verbs_fake_prefetched(bool write)
{
	uint64_t n;

	pthread_mutex_lock(&fake.lock);
	n = fake.prefetched[write];
	pthread_mutex_unlock(&fake.lock);
	return n;
}

bool fake_pages(int access)
{
	return fake.paging || !(access & IBV_ACCESS_ON_DEMAND);
}

int fake_query_device_ex(struct ibv_context *c, const struct ibv_query_device_ex_input *in,
			 struct ibv_device_attr_ex *attr, size_t size)
{
	int rc;

	(void)in;
	memset(attr, 0, size);
	rc = ibv_query_device(c, &attr->orig_attr);
	pthread_mutex_lock(&fake.lock);
	if (fake.paging) {
		attr->odp_caps.general_caps = IBV_ODP_SUPPORT;
		attr->odp_caps.per_transport_caps.rc_odp_caps =
			IBV_ODP_SUPPORT_SEND | IBV_ODP_SUPPORT_WRITE;
	}
	pthread_mutex_unlock(&fake.lock);
	return rc;
}

int fake_advise_mr(struct ibv_pd *pd, enum ibv_advise_mr_advice advice, uint32_t flags,
		   struct ibv_sge *list, uint32_t nr)
{
	bool write = advice == IBV_ADVISE_MR_ADVICE_PREFETCH_WRITE;
	int need = IBV_ACCESS_ON_DEMAND | (write ? IBV_ACCESS_LOCAL_WRITE : 0), rc = 0;

	(void)flags;
	pthread_mutex_lock(&fake.lock);
	for (uint32_t i = 0; i < nr && !rc; i++) {
		if (!fake_covered(pd, list[i].lkey, list[i].addr, list[i].length, need))
			rc = EINVAL;
		else
			fake.prefetched[write] += list[i].length;
	}
	pthread_mutex_unlock(&fake.lock);
	return rc;
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
