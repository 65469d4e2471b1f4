/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * The device state; see state.h.
 *
 * One table says what there is, in the order in which it has to be loaded: CPUID before
 * anything else about a vCPU; interrupt controllers and clock before vCPUs; of a vCPU the
 * special registers (which hold the LAPIC's base) before the LAPIC, the time stamp
 * counter before what compares with it (LAPIC timer, deadline MSR), and pending events
 * last.  The PIT comes behind them all: it ticks from then on, and one whose tick finds no
 * LAPIC to take it waits for ever for the guest's acknowledgement.
 *
 * Saving goes by the same table, but asks for the MP states once before: that makes a vCPU
 * take an INIT or SIPI that waits for it, which changes its registers.
 */

#include "state.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include "../cli/cli.h"

#define MACHINE "machine"
#define MACHINE_BYTES 16u

/* A section that is one structure of KVM's. */
#define VCPU_STRUCT(name, type, get, set)                                \
	{                                                                \
		name, 1, 0, sizeof(struct type), 0, get, set, NULL, NULL \
	}

static const struct state_row rows[] = {
	{ "vcpu-cpuid", 1, 0, sizeof(struct kvm_cpuid_entry2), sizeof(struct kvm_cpuid_entry2), 0,
	  0, state_cpuid_save, state_cpuid_load },
	{ "irqchip", 1, 3, sizeof(struct kvm_irqchip), 0, 0, 0, state_irqchip_save,
	  state_irqchip_load },
	{ "clock", 1, 1, STATE_CLOCK_BYTES, 0, 0, 0, state_clock_save, state_clock_load },
	{ "serial", 1, 1, STATE_SERIAL_BYTES, 0, 0, 0, state_serial_save, state_serial_load },
	VCPU_STRUCT("vcpu-regs", kvm_regs, KVM_GET_REGS, KVM_SET_REGS),
	VCPU_STRUCT("vcpu-sregs", kvm_sregs, KVM_GET_SREGS, KVM_SET_SREGS),
	{ "vcpu-xsave", 1, 0, 0, 0, KVM_GET_XSAVE2, KVM_SET_XSAVE, NULL, NULL },
	VCPU_STRUCT("vcpu-xcrs", kvm_xcrs, KVM_GET_XCRS, KVM_SET_XCRS),
	VCPU_STRUCT("vcpu-debugregs", kvm_debugregs, KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS),
	{ "vcpu-tsc", 1, 0, STATE_TSC_BYTES, 0, 0, 0, state_tsc_save, state_tsc_load },
	VCPU_STRUCT("vcpu-lapic", kvm_lapic_state, KVM_GET_LAPIC, KVM_SET_LAPIC),
	{ "vcpu-msrs", 1, 0, 0, STATE_MSR_BYTES, 0, 0, state_msrs_save, state_msrs_load },
	VCPU_STRUCT("vcpu-mp-state", kvm_mp_state, KVM_GET_MP_STATE, KVM_SET_MP_STATE),
	VCPU_STRUCT("vcpu-events", kvm_vcpu_events, KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS),
	{ "pit", 1, 1, sizeof(struct kvm_pit_state2), 0, KVM_GET_PIT2, KVM_SET_PIT2, NULL, NULL },
};
#define NR_ROWS (sizeof(rows) / sizeof(rows[0]))

static uint64_t row_len(const struct machine *m, const struct state_row *r)
{
	return r->len || r->unit ? r->len : m->xsave_size;
}

static unsigned row_instances(const struct machine *m, const struct state_row *r)
{
	return r->instances ? r->instances : m->nr_vcpus;
}

/* The descriptor that a row's ioctl()s go to. */
static int row_fd(const struct machine *m, const struct state_row *r, unsigned instance)
{
	return r->instances ? m->fd : m->vcpus[instance].fd;
}

/* The contents are what an ioctl() gives. */
static int struct_save(struct machine *m, const struct state_row *r, unsigned instance,
		       struct section_buf *b, struct tern_error *err)
{
	uint64_t len = row_len(m, r);
	unsigned long get = r->get;
	uint8_t *p = calloc(1, len);
	int ret;

	if (!p)
		return -ENOMEM;
	/* Kernels before 5.17 have only this one. */
	if (get == KVM_GET_XSAVE2 && len == sizeof(struct kvm_xsave))
		get = KVM_GET_XSAVE;
	if (ioctl(row_fd(m, r, instance), get, p))
		ret = cli_fail(err, -errno, "device state: cannot read section %s number %u: %s",
			       r->name, instance, strerror(errno));
	else
		ret = section_put(b, p, len);
	free(p);
	return ret;
}

static int struct_load(struct machine *m, const struct state_row *r, unsigned instance,
		       const struct section *s, struct tern_error *err)
{
	uint8_t *p = malloc(s->len);
	int ret = 0;

	/* A copy, because the structure wants its alignment. */
	if (!p)
		return cli_fail(err, -ENOMEM, "device state: out of memory");
	memcpy(p, s->data, s->len);
	if (ioctl(row_fd(m, r, instance), r->set, p))
		ret = cli_fail(err, -errno, "device state: KVM refuses section %s number %u: %s",
			       r->name, instance, strerror(errno));
	free(p);
	return ret;
}

/* What both sides must agree on before all else. */
static int machine_save(struct machine *m, bool running, struct section_buf *b)
{
	size_t at;
	int ret = section_open(b, MACHINE, 1, 0, &at);

	if (!ret)
		ret = section_put_u32(b, m->nr_vcpus);
	if (!ret)
		ret = section_put_u32(b, m->tsc_khz);
	if (!ret)
		ret = section_put_u32(b, running);
	if (!ret)
		ret = section_put_u32(b, 0);
	if (!ret)
		section_close(b, at);
	return ret;
}

/* A vCPU's time stamp counter has to go on at the speed the guest knows. */
static int tsc_speed(struct machine *m, uint32_t khz, struct tern_error *err)
{
	uint64_t diff = khz > m->tsc_khz ? khz - m->tsc_khz : m->tsc_khz - khz;

	/* As much as clocks may be adjusted by: no guest can tell. */
	if (diff * 1000000 <= (uint64_t)m->tsc_khz * 250)
		return 0;
	for (unsigned i = 0; i < m->nr_vcpus; i++)
		if (ioctl(m->vcpus[i].fd, KVM_SET_TSC_KHZ, (unsigned long)khz))
			return cli_fail(
				err, -ENOTSUP,
				"device state: the guest's time stamp counter runs at %u kHz, "
				"here it would at %u kHz, and this CPU cannot scale it",
				khz, m->tsc_khz);
	m->tsc_khz = khz;
	return 0;
}

/* Has the guest as many vCPUs as this machine? */
static int vcpus_check(const struct machine *m, const struct section *s, struct tern_error *err)
{
	uint32_t vcpus = section_get_u32(s->data);

	if (vcpus == m->nr_vcpus)
		return 0;
	return cli_fail(err, -EPROTO,
			"device state: the guest has %u vCPUs, this machine %u; start tern-vm with "
			"--vcpus %u",
			vcpus, m->nr_vcpus, vcpus);
}

/* One section of a row. */
static int row_save(struct machine *m, const struct state_row *r, unsigned instance,
		    struct section_buf *b, struct tern_error *err)
{
	size_t at;
	int ret = section_open(b, r->name, r->version, instance, &at);

	if (!ret)
		ret = r->get ? struct_save(m, r, instance, b, err) : r->save(m, instance, b, err);
	if (ret)
		return cli_fail(err, ret, "device state: cannot save section %s: %s", r->name,
				strerror(-ret));
	section_close(b, at);
	return 0;
}

/* See above. */
static int take_pending(struct machine *m, struct tern_error *err)
{
	struct kvm_mp_state ignored;

	for (unsigned i = 0; i < m->nr_vcpus; i++)
		if (ioctl(m->vcpus[i].fd, KVM_GET_MP_STATE, &ignored))
			return cli_fail(err, -errno,
					"device state: cannot read the MP state of vCPU %u: %s", i,
					strerror(errno));
	return 0;
}

int state_save(struct machine *m, bool running, struct section_buf *out, struct tern_error *err)
{
	unsigned nr = 1;
	int ret = section_begin(out);

	if (!ret)
		ret = machine_save(m, running, out);
	if (ret)
		return cli_fail(err, ret, "device state: out of memory");
	ret = take_pending(m, err);
	for (unsigned i = 0; i < NR_ROWS && !ret; i++)
		for (unsigned k = 0; k < row_instances(m, &rows[i]) && !ret; k++, nr++)
			ret = row_save(m, &rows[i], k, out, err);
	if (!ret)
		section_count(out, nr);
	return ret;
}

/* What is expected of the sections; the machine's own has been looked at before. */
static void rules_fill(const struct machine *m, struct section_rule *rules)
{
	for (unsigned i = 0; i < NR_ROWS; i++)
		rules[i] = (struct section_rule){
			.name = rows[i].name,
			.version = rows[i].version,
			.nr_instances = row_instances(m, &rows[i]),
			.len = row_len(m, &rows[i]),
			.unit = rows[i].unit,
		};
	rules[NR_ROWS] = (struct section_rule){
		.name = MACHINE, .version = 1, .nr_instances = 1, .len = MACHINE_BYTES
	};
}

/* Load them, in the table's order. */
static int sections_load(struct machine *m, const struct section *s, unsigned nr,
			 struct tern_error *err)
{
	int ret = 0;

	for (unsigned i = 0; i < NR_ROWS && !ret; i++) {
		const struct state_row *r = &rows[i];

		for (unsigned k = 0; k < row_instances(m, r) && !ret; k++) {
			const struct section *found = section_find(s, nr, r->name, k);

			ret = r->set ? struct_load(m, r, k, found, err)
				     : r->load(m, k, found->data, found->len, err);
		}
	}
	return ret;
}

int state_load(struct machine *m, const uint8_t *p, size_t len, bool *running,
	       struct tern_error *err)
{
	struct section_rule rules[NR_ROWS + 1];
	const struct section *own;
	struct section *s = NULL;
	unsigned nr = 0;
	int ret = section_parse(p, len, &s, &nr, err);

	if (ret)
		return ret;
	rules_fill(m, rules);
	/* Another number of vCPUs is said in so many words, before what follows from it. */
	own = section_find(s, nr, MACHINE, 0);
	if (own)
		ret = section_match(own, 1, &rules[NR_ROWS], 1, err);
	if (own && !ret)
		ret = vcpus_check(m, own, err);
	if (!ret)
		ret = section_match(s, nr, rules, NR_ROWS + 1, err);
	if (!ret) {
		*running = section_get_u32(own->data + 8);
		ret = tsc_speed(m, section_get_u32(own->data + 4), err);
	}
	if (!ret)
		ret = sections_load(m, s, nr, err);
	free(s);
	return ret;
}
