/* SPDX-License-Identifier: BSD-2-Clause */
#include "limiter.h"

void limiter_set(struct limiter *l, struct monitor *mon, uint64_t rate)
{
	monitor_lock(mon);
	atomic_store(&l->rate, rate);
	l->next_ns = 0;
	monitor_broadcast(mon);
	monitor_unlock(mon);
}

void limiter_take(struct limiter *l, struct monitor *mon, uint64_t bytes, const atomic_bool *stop)
{
	if (!atomic_load_explicit(&l->rate, memory_order_relaxed))
		return;
	monitor_lock(mon);

	uint64_t rate = atomic_load(&l->rate);
	uint64_t now = now_ns();
	uint64_t begin = l->next_ns > now ? l->next_ns : now;

	if (rate)
		l->next_ns = begin + (uint64_t)((double)bytes * 1e9 / (double)rate);
	while (rate && now < begin && !atomic_load(stop)) {
		monitor_wait(mon, begin);
		now = now_ns();
		if (atomic_load(&l->rate) != rate)
			break;
	}
	monitor_unlock(mon);
}
