/* SPDX-License-Identifier: BSD-2-Clause */

/* Events; see events.h. */

#include "events.h"

#include <errno.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

int events_init(struct events *e)
{
	e->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (e->fd < 0)
		return -errno;
	e->list = json_array();
	pthread_mutex_init(&e->lock, NULL);
	return 0;
}

void events_fini(struct events *e)
{
	close(e->fd);
	json_decref(e->list);
	pthread_mutex_destroy(&e->lock);
}

void events_post(struct events *e, const char *name, json_t *data)
{
	const uint64_t one = 1;
	struct timespec ts;
	json_t *event;

	clock_gettime(CLOCK_REALTIME, &ts);
	event = json_pack("{s:{s:I, s:I}, s:s}", "timestamp", "seconds", (json_int_t)ts.tv_sec,
			  "microseconds", (json_int_t)ts.tv_nsec / 1000, "event", name);
	if (data)
		json_object_set_new(event, "data", data);
	pthread_mutex_lock(&e->lock);
	json_array_append_new(e->list, event);
	pthread_mutex_unlock(&e->lock);
	(void)!write(e->fd, &one, sizeof(one));
}

json_t *events_take(struct events *e)
{
	uint64_t nr;
	json_t *list;

	(void)!read(e->fd, &nr, sizeof(nr));
	pthread_mutex_lock(&e->lock);
	list = e->list;
	e->list = json_array();
	pthread_mutex_unlock(&e->lock);
	return list;
}
