/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * Facts about RDMA: devices, ports, GIDs, limits, and what is in the way.
 *
 * In JSON a device is one object that holds all; for people it is several lines.
 */

#define _GNU_SOURCE
#include "info_rdma.h"

#include <errno.h>
#include <glob.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "topology.h"

#define MTU_GOOD 4096u
#define MTU_LOW 1024u
#define QP_ENOUGH 130u /* both sides' control queue and 64 channels each */

static json_t *gid_json(const struct rdma_gid_info *g)
{
	return json_pack("{sI, ss, ss, ss, sb, ss}", "index", (json_int_t)g->index, "type", g->type,
			 "gid", g->gid, "address", g->address, "link_local", (int)g->link_local,
			 "netdev", g->netdev);
}

static json_t *port_json(const struct rdma_port_info *p)
{
	json_t *gids = json_array();

	for (unsigned i = 0; i < p->nr_gids; i++)
		json_array_append_new(gids, gid_json(&p->gid[i]));
	return json_pack("{sI, ss, sb, ss, sf, sI, sI, so}", "port", (json_int_t)p->port, "state",
			 p->state, "active", (int)p->active, "link_layer",
			 p->ethernet ? "Ethernet" : "InfiniBand", "gbps", p->gbps, "mtu",
			 (json_int_t)p->mtu, "mtu_max", (json_int_t)p->mtu_max, "gids", gids);
}

/* An array of the names whose flag is set. */
static json_t *names_json(const bool *flags, const char *const *names, unsigned nr)
{
	json_t *a = json_array();

	for (unsigned i = 0; i < nr; i++)
		if (flags[i])
			json_array_append_new(a, json_string(names[i]));
	return a;
}

/* The same as a phrase. */
static const char *names_text(const bool *flags, const char *const *names, unsigned nr, char *buf,
			      size_t size)
{
	size_t at = 0;

	snprintf(buf, size, "none");
	for (unsigned i = 0; i < nr && at < size; i++)
		if (flags[i])
			at += (size_t)snprintf(buf + at, size - at, "%s%s", at ? ", " : "",
					       names[i]);
	return buf;
}

static const char *const window_names[] = { "1", "2A", "2B" };
static const char *const odp_names[] = { "send", "receive", "write", "read" };

static json_t *limits_json(const struct rdma_device_info *d)
{
	/* Some devices have no bound and say so with all bits. */
	json_int_t mr = d->max_mr_size > INT64_MAX ? INT64_MAX : (json_int_t)d->max_mr_size;

	return json_pack("{sI, sI, sI, sI, sI, sI, sI}", "max_qp", (json_int_t)d->max_qp,
			 "max_qp_wr", (json_int_t)d->max_qp_wr, "max_cqe", (json_int_t)d->max_cqe,
			 "max_mr", (json_int_t)d->max_mr, "max_mr_size", mr, "max_mw",
			 (json_int_t)d->max_mw, "completion_vectors", (json_int_t)d->vectors);
}

static json_t *device_json(const struct rdma_device_info *d)
{
	const bool windows[] = { d->window_1, d->window_2a, d->window_2b };
	const bool odp[] = { d->odp_send, d->odp_recv, d->odp_write, d->odp_read };
	json_t *ports = json_array();

	for (unsigned i = 0; i < d->nr_ports; i++)
		json_array_append_new(ports, port_json(&d->port[i]));
	return json_pack("{ss, ss, ss, sI, ss, so, sb, so, so, so, ss?}", "driver", d->driver,
			 "parent", d->parent, "firmware", d->firmware, "node",
			 (json_int_t)d->place.numa_node, "cpus", d->place.cpus, "windows",
			 names_json(windows, window_names, 3), "on_demand_paging", (int)d->odp,
			 "on_demand_paging_ops", names_json(odp, odp_names, 4), "limits",
			 limits_json(d), "ports", ports, "error", d->error[0] ? d->error : NULL);
}

/* What it is and where it is. */
static void device_facts(struct info *info, const struct rdma_device_info *d, int memory_node)
{
	const char *name = d->place.name;
	char what[64], where[320] = "no NUMA node known", todo[200] = "";

	if (d->driver[0])
		snprintf(what, sizeof(what), "%s", d->driver);
	else if (d->parent[0])
		snprintf(what, sizeof(what), "software, over %s", d->parent);
	else
		snprintf(what, sizeof(what), "software");
	if (d->place.numa_node >= 0)
		snprintf(where, sizeof(where), "node %d, CPUs %s", d->place.numa_node,
			 d->place.cpus[0] ? d->place.cpus : "unknown");
	if (d->error[0])
		snprintf(todo, sizeof(todo),
			 "check the permissions of /dev/infiniband/uverbs* and that the device's "
			 "user-space driver is installed (ibverbs-providers)");
	else if (memory_node >= 0 && d->place.numa_node >= 0 && d->place.numa_node != memory_node)
		snprintf(todo, sizeof(todo),
			 "most memory is on node %d, the device on node %d: put guests on node %d "
			 "where you can, or move the card",
			 memory_node, d->place.numa_node, d->place.numa_node);
	info_add(info, "rdma", name, device_json(d), todo[0] ? todo : NULL, "%s; %s%s%s", what,
		 where,
		 d->error[0]      ? "; "
		 : d->firmware[0] ? "; firmware "
				  : "",
		 d->error[0] ? d->error : d->firmware);
}

/* What it can do. */
static void ability_facts(struct info *info, const struct rdma_device_info *d)
{
	const bool windows[] = { d->window_1, d->window_2a, d->window_2b };
	const bool odp[] = { d->odp_send, d->odp_recv, d->odp_write, d->odp_read };
	const char *name = d->place.name;
	char text[64];

	info_line(info, "rdma", name, NULL, "memory windows: %s",
		  names_text(windows, window_names, 3, text, sizeof(text)));
	info_line(info, "rdma", name, NULL, "on-demand paging: %s",
		  d->odp ? names_text(odp, odp_names, 4, text, sizeof(text)) : "no");
	info_line(info, "rdma", name,
		  d->max_qp && d->max_qp < QP_ENOUGH
			  ? "few queue pairs: use fewer channels or sessions at a time"
			  : NULL,
		  "limits: %u queue pairs of %u entries, completion queues of %u, %u "
		  "registrations, %u windows, %u completion vectors",
		  d->max_qp, d->max_qp_wr, d->max_cqe, d->max_mr, d->max_mw, d->vectors);
}

/* What to do about a port's MTU, or NULL. */
static const char *mtu_advice(const struct rdma_port_info *p, char *buf, size_t size)
{
	if (!p->active || !p->mtu || p->mtu >= MTU_GOOD || p->mtu >= p->mtu_max)
		return NULL;
	if (p->ethernet)
		snprintf(buf, size,
			 "%sraise the network interface's MTU to 4200 or 9000 on both hosts and "
			 "the switches, for an RDMA MTU of 4096",
			 p->mtu < MTU_LOW ? "this MTU costs much speed: " : "");
	else
		snprintf(buf, size, "have the subnet manager give the port an MTU of 4096");
	return buf;
}

/* What to do about a port's addresses, or NULL. */
static const char *gid_advice(const struct rdma_port_info *p, char *buf, size_t size)
{
	const char *netdev = "its network interface";
	bool v2 = false, routable = false;

	if (!p->active || !p->ethernet)
		return NULL;
	for (unsigned i = 0; i < p->nr_gids; i++) {
		const struct rdma_gid_info *g = &p->gid[i];

		if (g->netdev[0])
			netdev = g->netdev;
		if (g->type[0] && strcmp(g->type, "RoCE v2"))
			continue;
		v2 = true;
		routable |= g->address[0] && !g->link_local;
	}
	if (routable)
		return NULL;
	if (!v2)
		snprintf(buf, size,
			 "there is no RoCE v2 GID: give %s an IP address, and see that RoCE v2 is "
			 "enabled (cma_roce_mode)",
			 netdev);
	else
		snprintf(buf, size,
			 "there is only a link-local GID: give %s an IP address, or use "
			 "rdma:[fe80::…%%%s]:PORT",
			 netdev, netdev);
	return buf;
}

/* A port and its GIDs. */
static void port_facts(struct info *info, const struct rdma_device_info *d,
		       const struct rdma_port_info *p)
{
	char key[80], todo[240];

	snprintf(key, sizeof(key), "%s/%u", d->place.name, p->port);
	info_line(info, "rdma", key,
		  p->active ? mtu_advice(p, todo, sizeof(todo))
			    : "connect the port and bring its network interface up",
		  "%s, %s, %g Gb/s, MTU %u of %u", p->state,
		  p->ethernet ? "Ethernet (RoCE)" : "InfiniBand", p->gbps, p->mtu, p->mtu_max);
	for (unsigned i = 0; i < p->nr_gids; i++) {
		const struct rdma_gid_info *g = &p->gid[i];

		info_line(info, "rdma", key, NULL, "GID %u: %s%s%s%s%s%s", g->index,
			  g->address[0] ? g->address : g->gid, g->type[0] ? ", " : "", g->type,
			  g->netdev[0] ? ", " : "", g->netdev, g->link_local ? ", link-local" : "");
	}
	if (gid_advice(p, todo, sizeof(todo)))
		info_line(info, "rdma", key, todo, "no address to connect to");
}

void info_rdma_device(struct info *info, const struct rdma_device_info *d, int memory_node)
{
	device_facts(info, d, memory_node);
	if (d->error[0])
		return;
	ability_facts(info, d);
	for (unsigned i = 0; i < d->nr_ports; i++)
		port_facts(info, d, &d->port[i]);
}

/* One device file: is it there, and may it be used?  @pattern as for glob(). */
static void file_fact(struct info *info, const char *dev, const char *pattern, const char *module)
{
	char path[300], todo[400];
	const char *state = "absent";
	glob_t g = { 0 };

	snprintf(path, sizeof(path), "%s/infiniband/%s", dev, pattern);
	if (!glob(path, 0, NULL, &g) && g.gl_pathc) {
		if (!access(g.gl_pathv[0], R_OK | W_OK))
			state = "accessible";
		else
			state = errno == EACCES || errno == EPERM ? "no permission" : "absent";
	}
	globfree(&g);
	if (!strcmp(state, "absent"))
		snprintf(todo, sizeof(todo), "load the module %s (modprobe %s)", module, module);
	else
		snprintf(todo, sizeof(todo), "give this user read and write access to %s", path);
	info_add(info, "rdma", module, json_string(state),
		 strcmp(state, "accessible") ? todo : NULL, "%s %s", path, state);
}

void info_rdma_files(struct info *info, const char *dev)
{
	file_fact(info, dev, "uverbs*", "ib_uverbs");
	file_fact(info, dev, "rdma_cm", "rdma_ucm");
}
