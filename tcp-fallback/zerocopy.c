/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * MSG_ZEROCOPY accounting of one channel.
 *
 * The kernel numbers the successful zero-copy sends of a socket 0, 1, … and
 * reports on the socket's error queue which numbers it is done with, as ranges,
 * together with whether it had to copy after all (SO_EE_CODE_ZEROCOPY_COPIED:
 * loopback, devices without scatter-gather).  Where it copies, asking costs more
 * than it gives, so the first such report switches the channel back to plain
 * sends.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <time.h>
#include <linux/errqueue.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include "conn.h"

#ifndef SO_EE_CODE_ZEROCOPY_COPIED
#define SO_EE_CODE_ZEROCOPY_COPIED 1
#endif

/* zerocopy_start - turn it on if the session wants it and the socket can. */
void zerocopy_start(struct tcp_channel *ch)
{
	int one = 1;

	ch->zc.on = ch->conn->env.zerocopy &&
		    !setsockopt(ch->fd, SOL_SOCKET, SO_ZEROCOPY, &one, sizeof(one));
}

/* zerocopy_room - false while the slot of the next send is still outstanding. */
bool zerocopy_room(const struct tcp_channel *ch)
{
	return !ch->zc.bytes[ch->zc.next % ZEROCOPY_MAX];
}

/* zerocopy_sent - a send of @bytes with MSG_ZEROCOPY succeeded. */
void zerocopy_sent(struct tcp_channel *ch, size_t bytes)
{
	struct zerocopy *z = &ch->zc;

	z->bytes[z->next++ % ZEROCOPY_MAX] = (uint32_t)bytes;
	z->pending++;
}

/* The kernel is done with the sends numbered lo … hi. */
static void zerocopy_done(struct tcp_channel *ch, uint32_t lo, uint32_t hi, bool copied)
{
	struct zerocopy *z = &ch->zc;

	/* Numbers wrap; only those that are outstanding can be meant. */
	for (uint32_t id = lo; hi - id < ZEROCOPY_MAX; id++) {
		uint32_t *bytes = &z->bytes[id % ZEROCOPY_MAX];

		if (z->next - id > ZEROCOPY_MAX || z->next == id || !*bytes)
			continue;
		figure_add(copied ? &ch->fig.zerocopy_copied : &ch->fig.zerocopy_bytes, *bytes);
		*bytes = 0;
		z->pending--;
	}
	if (copied)
		z->on = false;
}

/* The zero-copy report in @msg's ancillary data, or NULL. */
static const struct sock_extended_err *find_report(struct msghdr *msg)
{
	for (struct cmsghdr *cm = CMSG_FIRSTHDR(msg); cm; cm = CMSG_NXTHDR(msg, cm)) {
		const struct sock_extended_err *ee = (const void *)CMSG_DATA(cm);

		if ((cm->cmsg_level == SOL_IP && cm->cmsg_type == IP_RECVERR) ||
		    (cm->cmsg_level == SOL_IPV6 && cm->cmsg_type == IPV6_RECVERR))
			if (ee->ee_origin == SO_EE_ORIGIN_ZEROCOPY && !ee->ee_errno)
				return ee;
	}
	return NULL;
}

/*
 * zerocopy_drain - take in all reports that are there; never waits.  0 or -errno.
 *
 * Does not look if none is due: a UNIX socket does not know MSG_ERRQUEUE, and would
 * give what comes next in the stream instead, or its end, again and again.
 */
int zerocopy_drain(struct tcp_channel *ch)
{
	while (ch->zc.pending) {
		_Alignas(struct cmsghdr) char control[128];
		struct msghdr msg = { .msg_control = control, .msg_controllen = sizeof(control) };
		const struct sock_extended_err *ee;

		if (recvmsg(ch->fd, &msg, MSG_ERRQUEUE | MSG_DONTWAIT) < 0) {
			if (errno == EINTR)
				continue;
			return errno == EAGAIN ? 0 : -errno;
		}
		ee = find_report(&msg);
		if (ee)
			zerocopy_done(ch, ee->ee_info, ee->ee_data,
				      ee->ee_code & SO_EE_CODE_ZEROCOPY_COPIED);
	}
	return 0;
}
