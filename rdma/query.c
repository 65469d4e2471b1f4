/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * Asking the RDMA devices of this host, for `tern info`.
 *
 * Limits, ports and GIDs come from verbs.  What verbs do not tell is read from the
 * device's folder in /sys: driver, speed in words, type and interface of a GID.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <infiniband/verbs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "place.h"
#include "query.h"

/* The first line of @dir/@file into @buf; "" if there is none. */
static void read_fact(const char *dir, const char *file, char *buf, size_t size)
{
	char path[512];
	FILE *f = NULL;

	buf[0] = '\0';
	if (dir[0] && snprintf(path, sizeof(path), "%s/%s", dir, file) < (int)sizeof(path))
		f = fopen(path, "re");
	if (!f)
		return;
	if (fgets(buf, (int)size, f))
		buf[strcspn(buf, "\n")] = '\0';
	fclose(f);
}

/* The last part of what the link @dir/@file points to. */
static void read_link(const char *dir, const char *file, char *buf, size_t size)
{
	char path[512], target[512];
	ssize_t n = -1;

	if (dir[0] && snprintf(path, sizeof(path), "%s/%s", dir, file) < (int)sizeof(path))
		n = readlink(path, target, sizeof(target) - 1);
	if (n < 0) {
		buf[0] = '\0';
		return;
	}
	target[n] = '\0';
	snprintf(buf, size, "%.*s", (int)size - 1,
		 strrchr(target, '/') ? strrchr(target, '/') + 1 : target);
}

/* The IP address that a RoCE GID stands for, if any. */
static void gid_address(const union ibv_gid *gid, struct rdma_gid_info *out)
{
	static const uint8_t mapped[12] = { [10] = 0xff, [11] = 0xff };

	out->link_local = gid->raw[0] == 0xfe && (gid->raw[1] & 0xc0) == 0x80;
	if (!memcmp(gid->raw, mapped, sizeof(mapped)))
		inet_ntop(AF_INET, gid->raw + 12, out->address, sizeof(out->address));
	else
		snprintf(out->address, sizeof(out->address), "%s", out->gid);
}

/* Entry @index of the table of @p.  False if it is empty. */
static bool query_gid(struct ibv_context *ctx, const char *dir, const struct rdma_port_info *p,
		      unsigned index, struct rdma_gid_info *out)
{
	static const union ibv_gid none;
	union ibv_gid gid;
	char file[64], type[32];

	if (ibv_query_gid(ctx, (uint8_t)p->port, (int)index, &gid) ||
	    !memcmp(&gid, &none, sizeof(gid)))
		return false;
	memset(out, 0, sizeof(*out));
	out->index = index;
	inet_ntop(AF_INET6, gid.raw, out->gid, sizeof(out->gid));
	snprintf(file, sizeof(file), "ports/%u/gid_attrs/types/%u", p->port, index);
	read_fact(dir, file, type, sizeof(type));
	/* The kernel calls version 1 what InfiniBand has, too. */
	if (!strncmp(type, "IB/", 3))
		snprintf(type, sizeof(type), "%s", p->ethernet ? "RoCE v1" : "IB");
	snprintf(out->type, sizeof(out->type), "%.15s", type);
	snprintf(file, sizeof(file), "ports/%u/gid_attrs/ndevs/%u", p->port, index);
	read_fact(dir, file, out->netdev, sizeof(out->netdev));
	if (p->ethernet)
		gid_address(&gid, out);
	return true;
}

/* Port @port of the device. */
static void query_port(struct ibv_context *ctx, const char *dir, unsigned port,
		       struct rdma_port_info *out)
{
	struct ibv_port_attr attr = { 0 };
	struct rdma_gid_info gid;
	char file[32], rate[64];

	out->port = port;
	snprintf(out->state, sizeof(out->state), "not readable");
	if (ibv_query_port(ctx, (uint8_t)port, &attr))
		return;
	out->active = attr.state == IBV_PORT_ACTIVE;
	snprintf(out->state, sizeof(out->state), "%s", ibv_port_state_str(attr.state));
	out->ethernet = attr.link_layer == IBV_LINK_LAYER_ETHERNET;
	out->mtu = attr.active_mtu ? 128u << attr.active_mtu : 0;
	out->mtu_max = attr.max_mtu ? 128u << attr.max_mtu : 0;
	snprintf(file, sizeof(file), "ports/%u/rate", port);
	read_fact(dir, file, rate, sizeof(rate));
	out->gbps = strtod(rate, NULL);
	for (int i = 0; i < attr.gid_tbl_len && out->nr_gids < RDMA_QUERY_GIDS_MAX; i++)
		if (query_gid(ctx, dir, out, (unsigned)i, &gid))
			out->gid[out->nr_gids++] = gid;
}

/* Limits and abilities. */
static void query_limits(const struct ibv_device_attr_ex *ex, struct rdma_device_info *out)
{
	const struct ibv_device_attr *a = &ex->orig_attr;
	uint32_t odp = ex->odp_caps.per_transport_caps.rc_odp_caps;

	snprintf(out->firmware, sizeof(out->firmware), "%.63s", a->fw_ver);
	out->window_1 = a->device_cap_flags & IBV_DEVICE_MEM_WINDOW;
	out->window_2a = a->device_cap_flags & IBV_DEVICE_MEM_WINDOW_TYPE_2A;
	out->window_2b = a->device_cap_flags & IBV_DEVICE_MEM_WINDOW_TYPE_2B;
	out->odp = ex->odp_caps.general_caps & IBV_ODP_SUPPORT;
	out->odp_send = out->odp && odp & IBV_ODP_SUPPORT_SEND;
	out->odp_recv = out->odp && odp & IBV_ODP_SUPPORT_RECV;
	out->odp_write = out->odp && odp & IBV_ODP_SUPPORT_WRITE;
	out->odp_read = out->odp && odp & IBV_ODP_SUPPORT_READ;
	out->max_mr_size = a->max_mr_size;
	out->max_qp = (uint32_t)a->max_qp;
	out->max_qp_wr = (uint32_t)a->max_qp_wr;
	out->max_cqe = (uint32_t)a->max_cqe;
	out->max_mr = (uint32_t)a->max_mr;
	out->max_mw = (uint32_t)a->max_mw;
}

/* One device; what cannot be asked is said in ->error. */
static void query_device(struct ibv_device *device, struct rdma_device_info *out)
{
	const char *dir = device->ibdev_path;
	struct ibv_device_attr_ex attr = { 0 };
	struct ibv_context *ctx;
	int code;

	verbs_device_facts(ibv_get_device_name(device), dir, 0, &out->place);
	read_link(dir, "device/driver", out->driver, sizeof(out->driver));
	read_fact(dir, "parent", out->parent, sizeof(out->parent));
	ctx = ibv_open_device(device);
	if (!ctx) {
		snprintf(out->error, sizeof(out->error), "it cannot be opened: %s",
			 strerror(errno ? errno : EIO));
		return;
	}
	code = ibv_query_device_ex(ctx, NULL, &attr);
	if (code) {
		snprintf(out->error, sizeof(out->error), "it does not tell its limits: %s",
			 strerror(code < 0 ? -code : code));
	} else {
		query_limits(&attr, out);
		out->vectors = (uint32_t)ctx->num_comp_vectors;
		for (unsigned i = 1; i <= attr.orig_attr.phys_port_cnt; i++)
			if (out->nr_ports < RDMA_QUERY_PORTS_MAX)
				query_port(ctx, dir, i, &out->port[out->nr_ports++]);
	}
	ibv_close_device(ctx);
}

int rdma_query(struct rdma_device_info **out)
{
	int nr = 0, code;
	struct ibv_device **list = ibv_get_device_list(&nr);
	struct rdma_device_info *v;

	*out = NULL;
	if (!list) {
		code = errno ? -errno : -ENOMEM;
		return code == -ENOSYS ? 0 : code; /* no RDMA in this kernel */
	}
	v = nr ? calloc((size_t)nr, sizeof(*v)) : NULL;
	for (int i = 0; v && i < nr; i++)
		query_device(list[i], &v[i]);
	ibv_free_device_list(list);
	if (nr && !v)
		return -ENOMEM;
	*out = v;
	return nr;
}
