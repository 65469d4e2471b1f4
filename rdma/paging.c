/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * On-demand paging: registrations that pin nothing.
 *
 * The device faults pages in when it meets them, so such memory counts for no memlock
 * limit and no lock budget, and stays swappable and migratable.  A fault of the device
 * costs far more than one of a CPU (the peer is told to wait and to send again), so what
 * is registered, which is what is about to be sent, is prefetched at once; never more,
 * because prefetching allocates (invariant 10).  Prefetching is advice: if it is
 * refused, the device faults.
 *
 * Used only when asked for (--pin odp).  It trades throughput and predictable latency,
 * which depend on the device and could be measured on none for this release, for
 * memory that is not locked; so it is no default.
 *
 * Windows are not bound to such registrations: devices differ in whether they can.
 */

#include <errno.h>
#include "error.h"
#include "verbs.h"

int paging_start(struct verbs_conn *c, struct tern_error *err)
{
	struct ibv_device_attr_ex attr = { .comp_mask = 0 };
	int rc;

	if (!c->env.on_demand)
		return 0;
	rc = -ibv_query_device_ex(c->id->verbs, NULL, &attr);
	if (rc)
		return error_session(err, rc, "Asking device %s for on-demand paging failed: %s",
				     c->device, error_name(rc));
	if (!(attr.odp_caps.general_caps & IBV_ODP_SUPPORT) ||
	    !(attr.odp_caps.per_transport_caps.rc_odp_caps & IBV_ODP_SUPPORT_WRITE))
		return error_session(err, -EOPNOTSUPP,
				     "Device %s has no on-demand paging for RDMA writes; use --pin "
				     "pipelined",
				     c->device);
	c->paging = true;
	c->env.lock_budget = 0; /* nothing is locked */
	return 0;
}

void paging_prefetch(const struct verbs_conn *c, const struct ibv_mr *mr)
{
	struct ibv_sge sge = {
		.addr = (uintptr_t)mr->addr,
		.length = (uint32_t)mr->length,
		.lkey = mr->lkey,
	};

	(void)ibv_advise_mr(c->pd_data,
			    c->source ? IBV_ADVISE_MR_ADVICE_PREFETCH
				      : IBV_ADVISE_MR_ADVICE_PREFETCH_WRITE,
			    0, &sge, 1);
}
