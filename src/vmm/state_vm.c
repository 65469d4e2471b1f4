/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * Device state that the machine has once: interrupt controllers, clock, serial port.
 *
 * Time goes on while a guest is moved: what both hosts' CLOCK_REALTIME say has passed is
 * added to kvmclock and to the time stamp counters (state_vcpu.c).  If their clocks
 * disagree so much that it would be negative, it is 0; time never goes back.
 */

#include "state.h"

#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include "../cli/cli.h"

uint64_t state_real_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

uint64_t state_elapsed_ns(uint64_t then)
{
	uint64_t now = state_real_ns();

	return now > then ? now - then : 0;
}

int state_irqchip_save(struct machine *m, unsigned i, struct section_buf *b, struct tern_error *err)
{
	struct kvm_irqchip chip = { .chip_id = i };

	if (ioctl(m->fd, KVM_GET_IRQCHIP, &chip))
		return cli_fail(err, -errno,
				"device state: cannot read interrupt controller %u: %s", i,
				strerror(errno));
	return section_put(b, &chip, sizeof(chip));
}

int state_irqchip_load(struct machine *m, unsigned i, const uint8_t *data, uint64_t len,
		       struct tern_error *err)
{
	struct kvm_irqchip chip;

	memcpy(&chip, data, sizeof(chip));
	if (chip.chip_id != i)
		return cli_fail(err, -EPROTO,
				"device state: section irqchip number %u is of controller %u", i,
				chip.chip_id);
	if (ioctl(m->fd, KVM_SET_IRQCHIP, &chip))
		return cli_fail(err, -errno,
				"device state: KVM refuses interrupt controller %u: %s", i,
				strerror(errno));
	return 0;
}

int state_clock_save(struct machine *m, unsigned i, struct section_buf *b, struct tern_error *err)
{
	struct kvm_clock_data clock = { 0 };
	int ret;

	if (ioctl(m->fd, KVM_GET_CLOCK, &clock))
		return cli_fail(err, -errno, "device state: cannot read kvmclock: %s",
				strerror(errno));
	ret = section_put_u64(b, clock.clock);
	return ret ? ret : section_put_u64(b, state_real_ns());
}

int state_clock_load(struct machine *m, unsigned i, const uint8_t *data, uint64_t len,
		     struct tern_error *err)
{
	struct kvm_clock_data clock = { .clock = section_get_u64(data) };

	clock.clock += state_elapsed_ns(section_get_u64(data + 8));
	if (ioctl(m->fd, KVM_SET_CLOCK, &clock))
		return cli_fail(err, -errno, "device state: KVM refuses kvmclock: %s",
				strerror(errno));
	return 0;
}

int state_serial_save(struct machine *m, unsigned i, struct section_buf *b, struct tern_error *err)
{
	const struct serial *s = &m->serial;
	const uint8_t regs[STATE_SERIAL_BYTES] = { s->ier, s->lcr, s->mcr, s->scr,
						   s->fcr, s->dll, s->dlm };

	return section_put(b, regs, sizeof(regs));
}

int state_serial_load(struct machine *m, unsigned i, const uint8_t *data, uint64_t len,
		      struct tern_error *err)
{
	struct serial *s = &m->serial;

	s->ier = data[0];
	s->lcr = data[1];
	s->mcr = data[2];
	s->scr = data[3];
	s->fcr = data[4];
	s->dll = data[5];
	s->dlm = data[6];
	return 0;
}
