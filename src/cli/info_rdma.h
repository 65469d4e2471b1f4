/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_CLI_INFO_RDMA_H
#define TERN_CLI_INFO_RDMA_H

/* Facts about RDMA devices, between what asks them and what prints. */

#include "info.h"
#include "query.h"

/*
 * info_rdma_device - the facts of one device, and what is in its way.
 *
 * @memory_node: the NUMA node that has most of the host's memory, or -1 if none has
 * clearly more than the others.
 */
void info_rdma_device(struct info *info, const struct rdma_device_info *d, int memory_node);

/* info_rdma_files - the modules and device files that connecting needs, below @dev ("/dev"). */
void info_rdma_files(struct info *info, const char *dev);

#endif
