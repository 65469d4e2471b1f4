/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_VMM_VCPU_H
#define TERN_VMM_VCPU_H

/* One vCPU: its descriptor, its thread, and what it exits for. */

#include "machine.h"

/* vcpu_init - make vCPU @index of @m.  0 or -errno with *@err; vcpu_fini() is due. */
int vcpu_init(struct vcpu *v, struct machine *m, unsigned index, struct tern_error *err);

/* vcpu_fini - end its thread, which must be able to end (m->quit), and free it. */
void vcpu_fini(struct vcpu *v);

/* vcpu_start - start its thread. */
int vcpu_start(struct vcpu *v, struct tern_error *err);

/* vcpu_kick - have its thread leave KVM_RUN.  m->lock is held. */
void vcpu_kick(struct vcpu *v);

#endif
