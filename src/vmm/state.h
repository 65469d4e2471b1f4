/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_VMM_STATE_H
#define TERN_VMM_STATE_H

/*
 * The device state of a machine: everything but RAM that a guest needs to go on.
 *
 * Contents of the sections (section.h) that hold one structure of KVM are that
 * structure, as <linux/kvm.h> defines it for x86: it is an ABI, which does not change.
 */

#include "machine.h"
#include "section.h"

/*
 * state_prepare - find out which MSRs have to be saved.  Before the vCPUs run, since
 * their registers cannot be read while they do.  0, or -errno with *@err.
 */
int state_prepare(struct machine *m, struct tern_error *err);

/*
 * state_save - write the state of a paused machine into @out (for free(), also on error).
 *
 * @running: is the guest to run on the other side?  0, or -errno with *@err.
 */
int state_save(struct machine *m, bool running, struct section_buf *out, struct tern_error *err);

/*
 * state_load - give a machine that has not run yet the state at @p.
 *
 * Checks all of it first: form, versions, lengths, vCPUs, CPU features.  0, or -errno
 * with *@err; if loading itself failed, the machine is of no use any more.
 */
int state_load(struct machine *m, const uint8_t *p, size_t len, bool *running,
	       struct tern_error *err);

/* One kind of section: how it is saved and loaded; rows of a table. */
struct state_row {
	const char *name;
	uint32_t version;
	uint32_t instances; /* 0: one for each vCPU */
	uint64_t len, unit; /* as in struct section_rule; len 0 and unit 0: xsave_size */
	/* ioctl()s that read and write the contents as they are; 0: the functions. */
	unsigned long get, set;
	/* Append the contents.  0 or -errno, with *@err unless out of memory. */
	int (*save)(struct machine *m, unsigned instance, struct section_buf *b,
		    struct tern_error *err);
	/* @data has been checked for its length.  0 or -errno with *@err. */
	int (*load)(struct machine *m, unsigned instance, const uint8_t *data, uint64_t len,
		    struct tern_error *err);
};

/* Of state_vm.c: what is there once; and of state_vcpu.c. */
int state_irqchip_save(struct machine *m, unsigned i, struct section_buf *b,
		       struct tern_error *err);
int state_irqchip_load(struct machine *m, unsigned i, const uint8_t *data, uint64_t len,
		       struct tern_error *err);
int state_clock_save(struct machine *m, unsigned i, struct section_buf *b, struct tern_error *err);
int state_clock_load(struct machine *m, unsigned i, const uint8_t *data, uint64_t len,
		     struct tern_error *err);
int state_serial_save(struct machine *m, unsigned i, struct section_buf *b, struct tern_error *err);
int state_serial_load(struct machine *m, unsigned i, const uint8_t *data, uint64_t len,
		      struct tern_error *err);
int state_cpuid_save(struct machine *m, unsigned i, struct section_buf *b, struct tern_error *err);
int state_cpuid_load(struct machine *m, unsigned i, const uint8_t *data, uint64_t len,
		     struct tern_error *err);
int state_tsc_save(struct machine *m, unsigned i, struct section_buf *b, struct tern_error *err);
int state_tsc_load(struct machine *m, unsigned i, const uint8_t *data, uint64_t len,
		   struct tern_error *err);
int state_msrs_save(struct machine *m, unsigned i, struct section_buf *b, struct tern_error *err);
int state_msrs_load(struct machine *m, unsigned i, const uint8_t *data, uint64_t len,
		    struct tern_error *err);

#define STATE_CLOCK_BYTES 16u
#define STATE_SERIAL_BYTES 8u
#define STATE_TSC_BYTES 16u
#define STATE_MSR_BYTES 12u

/* state_real_ns - CLOCK_REALTIME; state_elapsed_ns - since @then of another host, ≥ 0. */
uint64_t state_real_ns(void);
uint64_t state_elapsed_ns(uint64_t then);

#endif
