/* SPDX-License-Identifier: BSD-2-Clause */

/* What devices there are: which addresses they serve, and the limits around them. */

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include "error.h"
#include "verbs.h"

uint64_t verbs_memlock_limit(void)
{
	struct rlimit l;

	if (getrlimit(RLIMIT_MEMLOCK, &l) || l.rlim_cur == RLIM_INFINITY)
		return 0;
	return l.rlim_cur ? l.rlim_cur : 1; /* 0 stands for unlimited */
}

void verbs_memlock_hint(char *buf, size_t size)
{
	uint64_t limit = verbs_memlock_limit();

	if (!limit)
		snprintf(buf, size,
			 "the memlock limit is unlimited, so look at the cgroup's limits "
			 "(memory.max, rdma.max) and at free memory, or lower --lock-budget");
	else
		snprintf(buf, size,
			 "the memlock limit (ulimit -l) is %llu KiB; raise it (LimitMEMLOCK= in "
			 "systemd, limits.conf), or lower --lock-budget",
			 (unsigned long long)limit / 1024);
}

/* The IP address that a RoCE GID stands for; false for those of no use here. */
static bool gid_address(const union ibv_gid *gid, char *buf, size_t size)
{
	static const uint8_t mapped[12] = { [10] = 0xff, [11] = 0xff };

	if (!memcmp(gid->raw, mapped, sizeof(mapped)))
		return inet_ntop(AF_INET, gid->raw + 12, buf, (socklen_t)size);
	if (gid->raw[0] == 0xfe || !gid->global.interface_id) /* link-local needs a zone */
		return false;
	return inet_ntop(AF_INET6, gid->raw, buf, (socklen_t)size);
}

/* An address of an active port of @ctx; IPv4 before IPv6, which is for @family AF_UNSPEC only. */
static bool device_address(struct ibv_context *ctx, int family, bool *active, char *buf,
			   size_t size)
{
	struct ibv_device_attr attr;
	char text[INET6_ADDRSTRLEN];
	bool found = false;

	if (ibv_query_device(ctx, &attr))
		return false;
	for (uint8_t port = 1; port <= attr.phys_port_cnt; port++) {
		struct ibv_port_attr pa;

		if (ibv_query_port(ctx, port, &pa) || pa.state != IBV_PORT_ACTIVE)
			continue;
		*active = true;
		for (int i = 0; i < pa.gid_tbl_len; i++) {
			union ibv_gid gid;

			if (ibv_query_gid(ctx, port, i, &gid) ||
			    !gid_address(&gid, text, sizeof(text)))
				continue;
			if ((found || family == AF_INET) && strchr(text, ':'))
				continue;
			snprintf(buf, size, "%s", text);
			found = true;
			if (!strchr(text, ':'))
				return true;
		}
	}
	return found;
}

int verbs_local_address(int family, char *buf, size_t size, char *why, size_t why_size)
{
	struct ibv_device **list;
	bool active = false, found = false;
	int nr = 0;

	list = ibv_get_device_list(&nr);
	for (int i = 0; list && i < nr && !found; i++) {
		struct ibv_context *ctx = ibv_open_device(list[i]);

		if (!ctx)
			continue;
		found = device_address(ctx, family, &active, buf, size);
		if (found && why)
			snprintf(why, why_size, "device %s serves %s", ibv_get_device_name(list[i]),
				 buf);
		ibv_close_device(ctx);
	}
	if (list)
		ibv_free_device_list(list);
	if (found)
		return 0;
	if (why)
		snprintf(why, why_size, "%s",
			 !nr       ? "this host has no RDMA device"
			 : !active ? "no RDMA device here has an active port"
				   : "no RDMA device here has an IP address");
	return -ENODEV;
}
