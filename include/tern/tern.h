/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_TERN_H
#define TERN_TERN_H

/* libtern: live migration of virtual machines over RDMA or TCP. */

#include <tern/blockers.h>
#include <tern/error.h>
#include <tern/kvm.h>
#include <tern/region.h>
#include <tern/session.h>
#include <tern/stats.h>
#include <tern/vm.h>

#endif
