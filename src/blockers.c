/* SPDX-License-Identifier: BSD-2-Clause */
/* Reasons not to migrate.  A list under a lock; see <tern/blockers.h>. */
#include "blockers.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"

struct blocker {
	struct blocker *next;
	int id;
	char reason[TERN_BLOCKER_REASON_MAX + 1];
};

struct tern_blockers {
	pthread_mutex_t lock; /* leaf; all that follows */
	struct blocker *first;
	int last_id;
	unsigned running; /* migrations */
};

int tern_blockers_new(struct tern_blockers **out)
{
	struct tern_blockers *b = calloc(1, sizeof(*b));

	if (!b)
		return -ENOMEM;
	pthread_mutex_init(&b->lock, NULL);
	*out = b;
	return 0;
}

void tern_blockers_delete(struct tern_blockers **bp)
{
	struct tern_blockers *b = bp ? *bp : NULL;

	if (!b)
		return;
	while (b->first) {
		struct blocker *next = b->first->next;

		free(b->first);
		b->first = next;
	}
	pthread_mutex_destroy(&b->lock);
	free(b);
	*bp = NULL;
}

/* A number that no reason has.  The lock is held. */
static int next_id(struct tern_blockers *b)
{
	const struct blocker *at;

	do {
		b->last_id = b->last_id == INT_MAX ? 1 : b->last_id + 1;
		for (at = b->first; at && at->id != b->last_id; at = at->next)
			;
	} while (at);
	return b->last_id;
}

int tern_blockers_add(struct tern_blockers *b, const char *reason)
{
	struct blocker *new, **at;
	int r;

	if (!reason || !*reason || strlen(reason) > TERN_BLOCKER_REASON_MAX)
		return -EINVAL;
	new = calloc(1, sizeof(*new));
	if (!new)
		return -ENOMEM;
	snprintf(new->reason, sizeof(new->reason), "%s", reason);
	pthread_mutex_lock(&b->lock);
	if (b->running) {
		r = -EBUSY;
	} else {
		for (at = &b->first; *at; at = &(*at)->next)
			;
		*at = new;
		r = new->id = next_id(b);
		new = NULL;
	}
	pthread_mutex_unlock(&b->lock);
	free(new);
	return r;
}

int tern_blockers_remove(struct tern_blockers *b, int id)
{
	struct blocker **at, *found;

	pthread_mutex_lock(&b->lock);
	for (at = &b->first; *at && (*at)->id != id; at = &(*at)->next)
		;
	found = *at;
	if (found)
		*at = found->next;
	pthread_mutex_unlock(&b->lock);
	free(found);
	return found ? 0 : -ENOENT;
}

int tern_blockers_get(struct tern_blockers *b, unsigned index, char *buf, size_t size)
{
	const struct blocker *at;
	int r = -ENOENT;

	pthread_mutex_lock(&b->lock);
	for (at = b->first; at && index; at = at->next)
		index--;
	if (at) {
		snprintf(buf, size, "%s", at->reason);
		r = at->id;
	}
	pthread_mutex_unlock(&b->lock);
	return r;
}

int blockers_begin(struct tern_blockers *b, struct tern_error *err)
{
	char reasons[300] = "";
	size_t len = 0;
	int r = 0;

	if (!b)
		return 0;
	pthread_mutex_lock(&b->lock);
	for (const struct blocker *at = b->first; at && len < sizeof(reasons); at = at->next)
		len += (size_t)snprintf(reasons + len, sizeof(reasons) - len, "%s%s",
					len ? "; " : "", at->reason);
	if (b->first)
		r = error_session(err, -EPERM, "the guest cannot migrate now: %s", reasons);
	else
		b->running++;
	pthread_mutex_unlock(&b->lock);
	return r;
}

void blockers_end(struct tern_blockers *b)
{
	if (!b)
		return;
	pthread_mutex_lock(&b->lock);
	b->running--;
	pthread_mutex_unlock(&b->lock);
}
