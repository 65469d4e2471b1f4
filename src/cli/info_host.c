/* SPDX-License-Identifier: BSD-2-Clause */
#define _GNU_SOURCE
#include <inttypes.h>
#include <dirent.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
#include "info.h"
#include "info_rdma.h"
#include "topology.h"
#include "zero.h"

/*
 * Facts about the machine: CPUs, memory, and what carries the bytes.
 */

#define HUGE_DIR "/sys/kernel/mm/hugepages/"
#define THP_DIR "/sys/kernel/mm/transparent_hugepage/"

#define GIB ((double)(1 << 30))
#define MEMLOCK_ENOUGH (64ull << 20) /* bytes; below it zero-copy sends soon fail */

enum {
	CAP_IPC_LOCK_BIT = 14, /* lifts RLIMIT_MEMLOCK */
};

/* read_line - first line of a file without its newline.  False if there is none. */
static bool read_line(const char *path, char *buf, int size)
{
	FILE *f = fopen(path, "re");
	bool ok;

	if (!f)
		return false;
	ok = fgets(buf, size, f) != NULL;
	fclose(f);
	if (ok)
		buf[strcspn(buf, "\n")] = '\0';
	return ok;
}

/* info_nodes - the NUMA nodes of @t. */
static void info_nodes(struct info *info, const struct topology *t)
{
	for (unsigned i = 0; i < topology_nr_nodes(t); i++) {
		char cpus[128] = "", key[24];
		uint64_t bytes = topology_node_bytes(t, i);

		topology_node_cpus(t, i, cpus, sizeof(cpus));
		snprintf(key, sizeof(key), "node%d", topology_node_id(t, i));
		info_add(info, "numa", key,
			 json_pack("{sI, ss}", "bytes", (json_int_t)bytes, "cpus", cpus), NULL,
			 "%.1f GiB, CPUs %s", (double)bytes / GIB, *cpus ? cpus : "none");
	}
}

void info_cpus(struct info *info)
{
	long online = sysconf(_SC_NPROCESSORS_ONLN);
	const char *zero = zero_ops_best()->name;
	struct topology *t;

	info_add(info, "cpu", "zero-test", json_string(zero), NULL, "%s", zero);
	if (!topology_new(&t)) {
		unsigned usable = topology_nr_cpus(t);

		info_add(info, "cpu", "usable", json_integer(usable),
			 (long)usable < online
				 ? "widen the affinity (taskset, cpuset) if tern may use them all"
				 : NULL,
			 "%u of %ld online", usable, online);
		info_nodes(info, t);
		topology_delete(&t);
	} else {
		info_add(info, "cpu", "usable", json_integer(online),
			 "mount /sys, so that NUMA nodes can be read", "%ld online", online);
	}
}

/* may_lock_all - does the process have CAP_IPC_LOCK? */
static bool may_lock_all(void)
{
	FILE *f = fopen("/proc/self/status", "re");
	uint64_t caps = 0;
	char line[128];

	if (!f)
		return false;
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "CapEff: %" SCNx64, &caps) == 1)
			break;
	fclose(f);
	return caps >> CAP_IPC_LOCK_BIT & 1;
}

/* info_memlock - how much memory may be locked, and so registered. */
static void info_memlock(struct info *info)
{
	static const char todo[] = "raise the limit (ulimit -l unlimited, or LimitMEMLOCK= of the "
				   "service): RDMA registration and zero-copy sends count";
	struct rlimit lim;
	bool all = may_lock_all();

	if (getrlimit(RLIMIT_MEMLOCK, &lim))
		return;
	if (lim.rlim_cur == RLIM_INFINITY)
		info_add(info, "memory", "memlock-limit", json_null(), NULL, "unlimited");
	else
		info_add(info, "memory", "memlock-limit", json_integer((json_int_t)lim.rlim_cur),
			 !all && lim.rlim_cur < MEMLOCK_ENOUGH ? todo : NULL, "%" PRIu64 " KiB%s",
			 (uint64_t)lim.rlim_cur / 1024,
			 all ? " (does not bind: CAP_IPC_LOCK)" : "");
}

/* info_hugepages - the pool of one page size. */
static void info_hugepages(struct info *info, const char *key, const char *dir)
{
	char path[128], line[32], todo[200];
	long total = 0, free_pages = 0;

	snprintf(path, sizeof(path), HUGE_DIR "%s/nr_hugepages", dir);
	if (!read_line(path, line, sizeof(line)) || sscanf(line, "%ld", &total) != 1) {
		info_add(info, "memory", key, json_null(), NULL, "not offered by this kernel");
		return;
	}
	snprintf(todo, sizeof(todo), "to back guests with them, write their number into %s", path);
	snprintf(path, sizeof(path), HUGE_DIR "%s/free_hugepages", dir);
	if (!read_line(path, line, sizeof(line)) || sscanf(line, "%ld", &free_pages) != 1)
		free_pages = 0;
	info_add(info, "memory", key,
		 json_pack("{sI, sI}", "total", (json_int_t)total, "free", (json_int_t)free_pages),
		 total ? NULL : todo, "%ld, %ld free", total, free_pages);
}

/* info_thp - the chosen word of a setting such as "always [madvise] never". */
static void info_thp(struct info *info, const char *key, const char *file, const char *todo)
{
	char path[128], line[128], *word;

	snprintf(path, sizeof(path), THP_DIR "%s", file);
	if (!read_line(path, line, sizeof(line)) || !(word = strchr(line, '['))) {
		info_add(info, "memory", key, json_null(),
			 "use a kernel built with CONFIG_TRANSPARENT_HUGEPAGE", "not offered");
		return;
	}
	word++;
	word[strcspn(word, "]")] = '\0';
	info_add(info, "memory", key, json_string(word), !strcmp(word, "never") ? todo : NULL, "%s",
		 word);
}

void info_memory(struct info *info)
{
	info_memlock(info);
	info_hugepages(info, "hugepages-2M", "hugepages-2048kB");
	info_hugepages(info, "hugepages-1G", "hugepages-1048576kB");
	info_thp(info, "thp-anon", "enabled",
		 "write madvise into " THP_DIR "enabled for fewer faults in anonymous guest RAM");
	info_thp(info, "thp-shmem", "shmem_enabled",
		 "write advise into " THP_DIR "shmem_enabled for fewer faults in memfd guest RAM");
}

void info_transports(struct info *info)
{
	info_add(info, "transports", "tcp", json_true(), NULL, "yes");
	info_add(info, "transports", "unix", json_true(), NULL, "yes");
#ifdef HAVE_RDMA
	info_add(info, "transports", "rdma", json_true(), NULL, "yes");
#else
	info_add(info, "transports", "rdma", json_false(),
		 "install libibverbs-dev and librdmacm-dev and build with -Drdma=enabled",
		 "not in this build");
#endif
}

#define NO_DEVICE                                                                               \
	"load the driver of an RDMA NIC, or try soft-RoCE: rdma link add rxe0 type rxe netdev " \
	"INTERFACE"

/* kernel_devices - RDMA devices that the kernel has. */
static int kernel_devices(void)
{
	DIR *dir = opendir("/sys/class/infiniband");
	int nr = 0;

	for (struct dirent *d; dir && (d = readdir(dir));)
		nr += d->d_name[0] != '.';
	if (dir)
		closedir(dir);
	return nr;
}

#ifdef HAVE_RDMA
/* memory_node - the node with most of the memory; -1 if none has clearly more than others. */
static int memory_node(void)
{
	struct topology *t;
	uint64_t best = 0, second = 0;
	int node = -1;

	if (topology_new(&t))
		return -1;
	for (unsigned i = 0; i < topology_nr_nodes(t); i++) {
		uint64_t bytes = topology_node_bytes(t, i);

		if (bytes > best) {
			second = best;
			best = bytes;
			node = topology_node_id(t, i);
		} else if (bytes > second) {
			second = bytes;
		}
	}
	topology_delete(&t);
	return second && best < second + second / 4 ? -1 : node;
}

/* Those that verbs show; how many, or -errno. */
static int info_rdma_devices(struct info *info)
{
	struct rdma_device_info *v;
	int nr = rdma_query(&v), node = nr > 0 ? memory_node() : -1;

	for (int i = 0; i < nr; i++)
		info_rdma_device(info, &v[i], node);
	free(v);
	return nr;
}
#else
static int info_rdma_devices(struct info *info)
{
	(void)info;
	return 0;
}
#endif

void info_rdma(struct info *info)
{
	int there = kernel_devices(), shown;
	const char *todo = NULL;

	if (there)
		info_rdma_files(info, "/dev");
	shown = info_rdma_devices(info);
	if (!there)
		todo = NO_DEVICE;
	else if (shown < there)
		todo = "verbs do not show all devices of the kernel: install their user-space "
		       "drivers (ibverbs-providers), and load ib_uverbs";
	info_add(info, "rdma", "devices", json_integer(there), todo, "%d", there);
}
