/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_VMM_SERIAL_H
#define TERN_VMM_SERIAL_H

/*
 * The serial port: a 16550 that is always ready to send, has nothing to receive and
 * raises no interrupt.  What the guest sends goes to a file descriptor, a line at a
 * time.  If nobody reads there, the vCPU that sends waits, until serial_end().
 */

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define SERIAL_PORTS 8u
#define SERIAL_LINE_MAX 512u

struct serial {
	int fd;
	atomic_bool ending;
	pthread_mutex_t lock; /* guards all below; taken by vCPU threads */
	uint8_t ier, lcr, mcr, scr, fcr, dll, dlm;
	unsigned len;
	char line[SERIAL_LINE_MAX]; /* sent by the guest, not yet written to fd */
};

/* serial_init, serial_fini - @fd is not closed. */
void serial_init(struct serial *s, int fd);
void serial_fini(struct serial *s);

/* serial_end - the process ends: who waits for a reader gives up soon.  Any thread. */
void serial_end(struct serial *s);

/* serial_out, serial_in - the guest writes or reads port @reg (0 to 7).  vCPU threads. */
void serial_out(struct serial *s, unsigned reg, uint8_t value);
uint8_t serial_in(struct serial *s, unsigned reg);

/* serial_flush - write out what is no whole line yet. */
void serial_flush(struct serial *s);

#endif
