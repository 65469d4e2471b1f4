/* SPDX-License-Identifier: BSD-2-Clause */
#include "stripe.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* The queue of @node, made if there is none yet. */
static struct stripe_queue *queue_get(struct stripe_map *map, int node)
{
	for (unsigned i = 0; i < map->nr_queues; i++)
		if (map->queues[i].node == node)
			return &map->queues[i];
	if (map->nr_queues == STRIPE_NODES_MAX)
		return &map->queues[0];
	struct stripe_queue *q = &map->queues[map->nr_queues++];

	q->node = node;
	return q;
}

static int queue_add(struct stripe_queue *q, struct region *r, uint64_t stripe_pages, unsigned max)
{
	if (!q->regions) {
		q->regions = calloc(max, sizeof(*q->regions));
		q->begin = calloc(max, sizeof(*q->begin));
		if (!q->regions || !q->begin)
			return -ENOMEM;
	}
	q->regions[q->nr_regions] = r;
	q->begin[q->nr_regions++] = q->nr;
	q->nr += (r->nr_pages + stripe_pages - 1) / stripe_pages;
	return 0;
}

int stripe_map_init(struct stripe_map *map, struct region_list *regions, uint64_t stripe_bytes)
{
	memset(map, 0, sizeof(*map));
	for (unsigned i = 0; i < regions->nr; i++)
		if (regions->v[i].host_page_size > stripe_bytes)
			stripe_bytes = regions->v[i].host_page_size;
	map->stripe_pages = stripe_bytes / TERN_PAGE_SIZE;
	map->queues = aligned_alloc(64, STRIPE_NODES_MAX * sizeof(*map->queues));
	if (!map->queues)
		return -ENOMEM;
	memset(map->queues, 0, STRIPE_NODES_MAX * sizeof(*map->queues));
	for (unsigned i = 0; i < regions->nr; i++) {
		struct region *r = &regions->v[i];
		int e = queue_add(queue_get(map, r->numa_node), r, map->stripe_pages, regions->nr);

		if (e) {
			stripe_map_fini(map);
			return e;
		}
	}
	return 0;
}

void stripe_map_fini(struct stripe_map *map)
{
	for (unsigned i = 0; map->queues && i < STRIPE_NODES_MAX; i++) {
		free(map->queues[i].regions);
		free(map->queues[i].begin);
	}
	free(map->queues);
	map->queues = NULL;
	map->nr_queues = 0;
}

void stripe_map_rewind(struct stripe_map *map)
{
	for (unsigned i = 0; i < map->nr_queues; i++)
		atomic_store_explicit(&map->queues[i].next, 0, memory_order_relaxed);
}

/* The region of @q that stripe number @n lies in. */
static unsigned queue_find(const struct stripe_queue *q, uint64_t n)
{
	unsigned lo = 0, hi = q->nr_regions - 1;

	while (lo < hi) {
		unsigned mid = (lo + hi + 1) / 2;

		if (q->begin[mid] <= n)
			lo = mid;
		else
			hi = mid - 1;
	}
	return lo;
}

static bool queue_claim(struct stripe_map *map, struct stripe_queue *q, struct stripe *out)
{
	if (atomic_load_explicit(&q->next, memory_order_relaxed) >= q->nr)
		return false;
	uint64_t n = atomic_fetch_add_explicit(&q->next, 1, memory_order_relaxed);

	if (n >= q->nr)
		return false;
	unsigned i = queue_find(q, n);
	struct region *r = q->regions[i];

	out->region = r;
	out->first_page = (n - q->begin[i]) * map->stripe_pages;
	out->nr_pages = r->nr_pages - out->first_page;
	if (out->nr_pages > map->stripe_pages)
		out->nr_pages = map->stripe_pages;
	return true;
}

bool stripe_claim(struct stripe_map *map, int node, struct stripe *out)
{
	unsigned own = 0;

	while (own < map->nr_queues && map->queues[own].node != node)
		own++;
	for (unsigned i = 0; i < map->nr_queues; i++)
		if (queue_claim(map, &map->queues[(own + i) % map->nr_queues], out))
			return true;
	return false;
}
