/* SPDX-License-Identifier: BSD-2-Clause */
#include "victim.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "monitor.h"
#include "peer.h"
#include "scene.h"
#include "session.h"

#define NR_REGIONS 2u
static const uint64_t region_pages[NR_REGIONS] = { 16, 4 };

static void on_event(void *opaque, const struct tern_event *e)
{
	struct victim *v = opaque;

	if (e->type != TERN_EVENT_STRANGER && e->type != TERN_EVENT_WARNING)
		return;
	pthread_mutex_lock(&v->lock);
	strncat(v->heard, e->error->message, sizeof(v->heard) - strlen(v->heard) - 1);
	strncat(v->heard, "\n", sizeof(v->heard) - strlen(v->heard) - 1);
	pthread_mutex_unlock(&v->lock);
}

static void configure(struct tern_session *s)
{
	tern_session_set(s, TERN_PARAM_CHANNELS, PEER_CHANNELS);
	tern_session_set(s, TERN_PARAM_PEER_TIMEOUT_MS, PEER_TIMEOUT_MS);
	tern_session_set(s, TERN_PARAM_STATE_MAX, 65536);
	tern_session_set(s, TERN_PARAM_CHUNK_BYTES, 1 << 18);
}

/* Inside load(). */
static void on_load(void *opaque)
{
	struct victim *v = opaque;
	uint64_t until = deadline_ns(5000);

	if (!atomic_load(&v->slow_load))
		return;
	monitor_lock(&v->s->mon);
	while (!v->s->link.count && monitor_wait(&v->s->mon, until))
		;
	monitor_unlock(&v->s->mon);
}

void victim_open(struct victim *v, enum tern_role role, char *problems)
{
	memset(v, 0, sizeof(*v));
	v->problems = problems;
	problems[0] = 0;
	pthread_mutex_init(&v->lock, NULL);
	testvm_init(&v->vm, &v->pair, TESTVM_ANON, NR_REGIONS, region_pages);
	if (role == TERN_SOURCE) {
		testvm_fill(&v->vm, 1, 5);
		v->vm.working_set = 4;
		v->vm.pause_us = 1000;
	}
	v->vm.on_load = on_load;
	v->vm.hook_opaque = v;
	v->s = testvm_session(&v->vm, role);
	configure(v->s);
	tern_session_set_event_handler(v->s, on_event, v);
	if (role == TERN_SOURCE)
		testvm_start(&v->vm);
	else if (tern_session_listen(v->s, "tcp:127.0.0.1:0"))
		problem_add(problems, "listen() failed");
}

void victim_close(struct victim *v)
{
	tern_session_delete(&v->s);
	testvm_fini(&v->vm);
	pthread_mutex_destroy(&v->lock);
}

bool victim_end(struct victim *v)
{
	if (tern_session_wait(v->s, SCENE_BOUND_MS) != -EINPROGRESS)
		return true;
	problem_add(v->problems, "the session does not end");
	return false;
}

bool word_found(const char *heard, const char *text)
{
	char word[256];

	for (;;) {
		size_t n = strcspn(text, "|");

		n = n < sizeof(word) - 1 ? n : sizeof(word) - 1;
		memcpy(word, text, n);
		word[n] = 0;
		if (strstr(heard, word))
			return true;
		text += n;
		if (!*text++)
			return false;
	}
}

void victim_await_word(struct victim *v, const char *text)
{
	uint64_t until = deadline_ns(10 * PEER_TIMEOUT_MS + 5000);
	bool found = false;

	while (!found && now_ns() < until) {
		pthread_mutex_lock(&v->lock);
		found = word_found(v->heard, text);
		pthread_mutex_unlock(&v->lock);
		if (!found)
			usleep(1000);
	}
	if (found)
		return;
	pthread_mutex_lock(&v->lock);
	problem_add(v->problems, "no word of '%s', but of '%s'", text, v->heard);
	pthread_mutex_unlock(&v->lock);
}

void victim_expect_error(struct victim *v, const char *text)
{
	struct tern_error e;

	tern_session_error(v->s, &e);
	if (!e.code || !word_found(e.message, text))
		problem_add(v->problems, "the error is %d '%s', due is '%s'", e.code, e.message,
			    text);
}

void victim_expect_ram(struct victim *v, uint8_t first)
{
	for (unsigned r = 0; r < NR_REGIONS; r++)
		for (uint64_t i = 0; i < region_pages[r] * TERN_PAGE_SIZE; i++) {
			uint8_t due = !r && i < TERN_PAGE_SIZE ? first : 0;

			if (v->vm.ram[r][i] == due)
				continue;
			problem_add(v->problems, "memory was touched: region %u, byte %llu", r,
				    (unsigned long long)i);
			return;
		}
}

void victim_good_migration(struct victim *v)
{
	struct testvm src;
	char uri[320];

	testvm_init(&src, &v->pair, TESTVM_ANON, NR_REGIONS, region_pages);
	testvm_fill(&src, 1, 6);
	struct tern_session *s = testvm_session(&src, TERN_SOURCE);

	configure(s);
	testvm_start(&src);
	tern_session_uri(v->s, uri, sizeof(uri));
	tern_session_connect(s, uri);
	tern_session_wait(s, SCENE_BOUND_MS);
	victim_end(v);
	if (tern_session_state(s) != TERN_STATE_COMPLETED ||
	    tern_session_state(v->s) != TERN_STATE_COMPLETED || !v->vm.is_running) {
		struct tern_error e;

		tern_session_error(s, &e);
		problem_add(v->problems, "a good migration failed: %s", e.message);
	} else {
		testvm_stop(&v->vm);
		if (!testvm_equal(&src, &v->vm))
			problem_add(v->problems, "RAM differs after a good migration");
	}
	tern_session_delete(&s);
	testvm_fini(&src);
}
