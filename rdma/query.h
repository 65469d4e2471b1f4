/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_RDMA_QUERY_H
#define TERN_RDMA_QUERY_H

/* What RDMA devices this host has, in words and numbers; no type of verbs. */

#include <stdbool.h>
#include <stdint.h>
#include "transport.h"

#define RDMA_QUERY_PORTS_MAX 4u
#define RDMA_QUERY_GIDS_MAX 32u

/* One entry of a port's GID table; empty entries are left out. */
struct rdma_gid_info {
	unsigned index;
	char type[16]; /* "RoCE v2", "RoCE v1", "IB"; "" if the kernel does not say */
	char gid[48]; /* as an IPv6 address */
	char address[48]; /* RoCE: the IP address it stands for; "": none */
	bool link_local;
	char netdev[20]; /* "" if there is none */
};

struct rdma_port_info {
	unsigned port;
	bool active;
	char state[32]; /* "PORT_ACTIVE" */
	bool ethernet; /* RoCE; else InfiniBand */
	double gbps; /* 0: not known */
	unsigned mtu; /* active, bytes */
	unsigned mtu_max;
	unsigned nr_gids;
	struct rdma_gid_info gid[RDMA_QUERY_GIDS_MAX];
};

struct rdma_device_info {
	struct transport_device place; /* name, node, near CPUs; port is 0 */
	char error[160]; /* it could not be asked, this is why; the rest is empty */
	char driver[32]; /* "mlx5_core"; "" for a software device */
	char parent[20]; /* network interface below a software device */
	char firmware[64];
	bool window_1, window_2a, window_2b; /* memory windows */
	bool odp, odp_send, odp_recv, odp_write, odp_read; /* on-demand paging, RC */
	uint64_t max_mr_size;
	uint32_t max_qp, max_qp_wr, max_cqe, max_mr, max_mw;
	uint32_t vectors; /* completion vectors */
	unsigned nr_ports;
	struct rdma_port_info port[RDMA_QUERY_PORTS_MAX];
};

/*
 * rdma_query - ask all devices.
 *
 * Returns how many there are, with *out for free() (NULL if there are none), or
 * -ENOMEM, or what the kernel gave instead of a list.  Any thread.
 */
int rdma_query(struct rdma_device_info **out);

#endif
