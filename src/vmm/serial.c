/* SPDX-License-Identifier: BSD-2-Clause */

/* The serial port; see serial.h. */

#include "serial.h"

#include <errno.h>
#include <poll.h>
#include <unistd.h>

#define LCR_DLAB 0x80u
#define LSR_IDLE 0x60u /* holding register and transmitter are empty */
#define MSR_LINE 0xb0u /* carrier, data set ready, clear to send */
#define WAIT_MS 100 /* between two looks at whether to give up */
#define IIR_NONE 0x01u

void serial_init(struct serial *s, int fd)
{
	*s = (struct serial){ .fd = fd, .lcr = 3, .dll = 1 };
	pthread_mutex_init(&s->lock, NULL);
}

void serial_fini(struct serial *s)
{
	serial_flush(s);
	pthread_mutex_destroy(&s->lock);
}

void serial_end(struct serial *s)
{
	atomic_store(&s->ending, true);
}

/*
 * Write the line out.  An error drops it: a guest does not stop for its console.  A pipe
 * that poll() finds writable takes PIPE_BUF bytes without blocking (pipe(7)), a line is less.
 */
static void flush_locked(struct serial *s)
{
	unsigned done = 0;

	while (done < s->len) {
		struct pollfd p = { .fd = s->fd, .events = POLLOUT };
		ssize_t n;

		if (poll(&p, 1, WAIT_MS) <= 0) {
			if (atomic_load(&s->ending))
				break;
			continue;
		}
		n = write(s->fd, s->line + done, s->len - done);
		if (n > 0)
			done += (unsigned)n;
		else if (errno != EINTR && errno != EAGAIN)
			break;
	}
	s->len = 0;
}

void serial_flush(struct serial *s)
{
	pthread_mutex_lock(&s->lock);
	flush_locked(s);
	pthread_mutex_unlock(&s->lock);
}

void serial_out(struct serial *s, unsigned reg, uint8_t value)
{
	pthread_mutex_lock(&s->lock);
	switch (reg) {
	case 0:
		if (s->lcr & LCR_DLAB) {
			s->dll = value;
			break;
		}
		s->line[s->len++] = (char)value;
		if (value == '\n' || s->len == SERIAL_LINE_MAX)
			flush_locked(s);
		break;
	case 1:
		*(s->lcr & LCR_DLAB ? &s->dlm : &s->ier) = value;
		break;
	case 2:
		s->fcr = value;
		break;
	case 3:
		s->lcr = value;
		break;
	case 4:
		s->mcr = value;
		break;
	case 7:
		s->scr = value;
		break;
	}
	pthread_mutex_unlock(&s->lock);
}

uint8_t serial_in(struct serial *s, unsigned reg)
{
	uint8_t v = 0;

	pthread_mutex_lock(&s->lock);
	switch (reg) {
	case 0:
		v = s->lcr & LCR_DLAB ? s->dll : 0;
		break;
	case 1:
		v = s->lcr & LCR_DLAB ? s->dlm : s->ier;
		break;
	case 2:
		v = IIR_NONE | (s->fcr & 1 ? 0xc0 : 0);
		break;
	case 3:
		v = s->lcr;
		break;
	case 4:
		v = s->mcr;
		break;
	case 5:
		v = LSR_IDLE;
		break;
	case 6:
		v = MSR_LINE;
		break;
	case 7:
		v = s->scr;
		break;
	}
	pthread_mutex_unlock(&s->lock);
	return v;
}
