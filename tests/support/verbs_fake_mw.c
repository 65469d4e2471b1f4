/* SPDX-License-Identifier: BSD-2-Clause */

/* Capabilities of the fake device, and how much memory may be locked.  See verbs_fake.c. */

#include <string.h>
#include "verbs_fake_private.h"

/* Which side registers with @access: 0 source, 1 destination, -1: no guest memory. */
static int side_of(int access)
{
	if (access == IBV_ACCESS_LOCAL_WRITE) /* a buffer of the transport */
		return -1;
	return access & IBV_ACCESS_LOCAL_WRITE ? 1 : 0;
}

bool fake_lock(int access, uint64_t len)
{
	int side = side_of(access);

	if (side < 0)
		return true;
	if (fake.memlock[side].limit && fake.memlock[side].used + len > fake.memlock[side].limit)
		return false;
	fake.memlock[side].used += len;
	return true;
}

void fake_unlock(int access, uint64_t len)
{
	int side = side_of(access);

	if (side >= 0)
		fake.memlock[side].used -= len;
}

void verbs_fake_memlock(uint64_t source, uint64_t destination)
{
	pthread_mutex_lock(&fake.lock);
	fake.memlock[0].limit = source;
	fake.memlock[1].limit = destination;
	pthread_mutex_unlock(&fake.lock);
}
