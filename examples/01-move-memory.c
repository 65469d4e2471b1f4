/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Moves this program's own memory to another process, with the public API only.
 *
 *	01-move-memory listen  tcp:127.0.0.1:4444
 *	01-move-memory connect tcp:127.0.0.1:4444
 *
 * The "guest" is a thread that increments counters all over its memory; its
 * "device state" is one number.  It goes on counting at the other side.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <tern/tern.h>

#define RAM_BYTES (64u << 20)
#define WORDS (RAM_BYTES / sizeof(uint64_t))
#define STEP 4099u /* words between two increments: visits all of them in turn */

struct guest {
	uint64_t *ram;
	uint64_t ticks; /* the device state */
	pthread_t thread;
	atomic_bool run;
	bool started;
};

/* The only vCPU. */
static void *vcpu(void *arg)
{
	struct guest *g = arg;

	while (atomic_load(&g->run)) {
		g->ram[g->ticks * STEP % WORDS]++;
		g->ticks++;
		if (g->ticks % 1000 == 0)
			usleep(100);
	}
	return NULL;
}

static int guest_pause(void *opaque)
{
	struct guest *g = opaque;

	atomic_store(&g->run, false);
	if (g->started)
		pthread_join(g->thread, NULL);
	g->started = false;
	return 0;
}

static int guest_resume(void *opaque)
{
	struct guest *g = opaque;

	atomic_store(&g->run, true);
	int r = pthread_create(&g->thread, NULL, vcpu, g);

	g->started = r == 0;
	return -r;
}

static int guest_save(void *opaque, struct tern_state_writer *w)
{
	struct guest *g = opaque;

	return tern_state_write(w, &g->ticks, sizeof(g->ticks));
}

static int guest_load(void *opaque, struct tern_state_reader *r)
{
	struct guest *g = opaque;

	return tern_state_read(r, &g->ticks, sizeof(g->ticks));
}

/* Every increment must have arrived: word i was visited once in WORDS ticks. */
static bool guest_check(const struct guest *g)
{
	uint64_t sum = 0;

	for (uint64_t i = 0; i < WORDS; i++)
		sum += g->ram[i];
	return sum == g->ticks;
}

int main(int argc, char **argv)
{
	static const struct tern_vm_ops ops = {
		.pause = guest_pause,
		.resume = guest_resume,
		.save = guest_save,
		.load = guest_load,
	};
	struct guest g = { 0 };
	struct tern_session *s;
	struct tern_error err;
	bool source = argc == 3 && strcmp(argv[1], "connect") == 0;

	if (!source && !(argc == 3 && strcmp(argv[1], "listen") == 0)) {
		fprintf(stderr, "usage: %s listen|connect URI\n", argv[0]);
		return 2;
	}
	g.ram = mmap(NULL, RAM_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (g.ram == MAP_FAILED || tern_session_new(source ? TERN_SOURCE : TERN_DESTINATION, &s))
		return 1;

	struct tern_region_desc ram = {
		.name = "ram",
		.hva = g.ram,
		.size = RAM_BYTES,
		.numa_node = TERN_NODE_ANY,
		.fd = -1,
	};
	int r = tern_session_add_region(s, &ram);

	tern_session_set_vm_ops(s, &ops, &g);
	if (source)
		guest_resume(&g);
	if (r >= 0)
		r = source ? tern_session_connect(s, argv[2]) : tern_session_listen(s, argv[2]);
	if (r >= 0)
		r = tern_session_wait(s, -1);
	if (r) {
		tern_session_error(s, &err);
		fprintf(stderr, "migration failed: %s\n", err.message);
	} else if (!source) {
		sleep(1); /* the guest runs here now */
		guest_pause(&g);
		r = guest_check(&g) ? 0 : -1;
		printf("%llu increments, %s\n", (unsigned long long)g.ticks,
		       r ? "memory is wrong" : "all of them are here");
	}
	guest_pause(&g);
	tern_session_delete(&s);
	munmap(g.ram, RAM_BYTES);
	return r ? 1 : 0;
}
