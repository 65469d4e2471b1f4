/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A source over RDMA that fits, is given memory, writes to it, and goes away before the end of
 * the handshake; the device is a fake one.  The destination goes on listening, and nothing of
 * what was written may be in the guest of the source that comes next.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "bad_source.h"
#include "leave_out.h"
#include "peer.h"
#include "raw_peer.h"
#include "session.h"
#include "testvm.h"
#include "uffd.h"
#include "verbs_fake.h"

#define WAIT_MS 30000
#define TIMEOUT_MS 20000 /* nobody falls silent for so long */
#define HELLO_TIMEOUT_AT 88 /* of peer_timeout_ms; see docs/protocol.md */
#define WRITTEN (2 * TERN_PAGE_SIZE)
#define NR_REGIONS 2u

static const uint64_t region_pages[NR_REGIONS] = { 64, 4 };

/* What the destination is like, and the modes of its two sources. */
struct kind {
	enum testvm_backing backing;
	enum tern_mode mode; /* the stranger's */
	enum tern_mode next; /* the good source's */
	bool zeroed; /* its VMM vouches for the memory */
};

struct fix {
	const struct kind *kind;
	struct testvm_pair pair;
	struct testvm src, dst;
	struct tern_session *d;
	struct raw_peer control, data;
	char problems[SCENE_PROBLEMS_MAX];
};

static void fix_init(struct fix *f, const struct kind *kind)
{
	memset(f, 0, sizeof(*f));
	verbs_fake_reset();
	f->kind = kind;
	testvm_init(&f->src, &f->pair, kind->backing, NR_REGIONS, region_pages);
	testvm_init(&f->dst, &f->pair, kind->backing, NR_REGIONS, region_pages);
	f->d = testvm_session(&f->dst, TERN_DESTINATION);
	for (unsigned i = 0; kind->zeroed && i < NR_REGIONS; i++)
		f->d->regions.v[i].flags |= TERN_REGION_ZEROED;
	tern_session_set(f->d, TERN_PARAM_CHANNELS, PEER_CHANNELS);
	tern_session_set(f->d, TERN_PARAM_PEER_TIMEOUT_MS, TIMEOUT_MS);
	assert_int_equal(tern_session_listen(f->d, "rdma:127.0.0.1:0"), 0);
}

static void fix_fini(struct fix *f)
{
	tern_session_delete(&f->d);
	testvm_fini(&f->src);
	testvm_fini(&f->dst);
	assert_int_equal(verbs_fake_objects(), 0);
}

/* The bad source says @type. */
static void say(struct fix *f, struct peer *p, enum wire_type type)
{
	uint8_t buf[TRANSPORT_MSG_MAX];
	struct ctl_header h = { .type = CTL_MSG };

	h.len = (uint32_t)peer_message(p, type, buf);
	if (type == WIRE_HELLO)
		bytes_patch(buf, HELLO_TIMEOUT_AT, 4, TIMEOUT_MS);
	assert_int_equal(raw_control(&f->control, &h, buf, h.len), IBV_WC_SUCCESS);
}

/* The key of the first pages, which is given once the memory is exposed. */
static struct key_granted get_key(struct fix *f)
{
	const struct key_wanted want = { .len = WRITTEN, .channel = KEYS_ANY_CHANNEL };
	struct ctl_header h = { .type = CTL_KEYS_WANTED };
	uint8_t buf[KEYS_HEAD_LEN + KEYS_WANTED_LEN];
	struct key_granted v[KEYS_BATCH];
	const uint8_t *frame;

	h.len = (uint32_t)keys_wanted_put(buf, &want, 1);
	assert_int_equal(raw_control(&f->control, &h, buf, h.len), IBV_WC_SUCCESS);
	do {
		assert_true(raw_recv(&f->control, &frame) >= (long)CTL_HEADER_LEN);
		ctl_header_get(frame, &h);
	} while (h.type != CTL_KEYS);
	assert_int_equal(keys_get(frame + CTL_HEADER_LEN, h.len, v), 1);
	assert_int_equal(v[0].status, 0);
	return v[0];
}

/* A source that fits writes on one of its two channels; it never connects the other. */
static void write_as_stranger(struct fix *f)
{
	struct greeting control = raw_greeting(GREETING_CONTROL),
			data = raw_greeting(GREETING_DATA);
	struct tern_error err = { 0 };
	struct key_granted k;
	char text[320];
	struct uri uri;
	struct peer p;

	tern_session_uri(f->d, text, sizeof(text));
	assert_int_equal(uri_parse(text, &uri, &err), 0);
	peer_init(&p, &f->dst, f->problems);
	memcpy(p.id, control.session_id, sizeof(p.id));
	p.postcopy = f->kind->mode != TERN_MODE_PRECOPY;
	assert_true(raw_greet(&f->control, &uri, &control));
	say(f, &p, WIRE_HELLO);
	say(f, &p, WIRE_REGIONS);
	k = get_key(f);
	data.count = PEER_CHANNELS;
	assert_true(raw_greet(&f->data, &uri, &data));
	assert_int_equal(raw_write(&f->data, k.remote_va, k.rkey, WRITTEN), IBV_WC_SUCCESS);
}

static void go_away(struct fix *f)
{
	raw_close(&f->data);
	raw_close(&f->control);
}

/* A good source, whose first page is zero and whose second one is a hole. */
static void migrate(struct fix *f)
{
	struct tern_session *s = testvm_session(&f->src, TERN_SOURCE);
	struct tern_error err;
	char uri[320];

	testvm_fill(&f->src, 2, 3);
	memset(f->src.ram[0], 0, TERN_PAGE_SIZE);
	tern_session_set(s, TERN_PARAM_MODE, f->kind->next);
	tern_session_set(s, TERN_PARAM_CHANNELS, PEER_CHANNELS);
	tern_session_set(s, TERN_PARAM_PEER_TIMEOUT_MS, TIMEOUT_MS);
	testvm_start(&f->src);
	tern_session_uri(f->d, uri, sizeof(uri));
	assert_int_equal(tern_session_connect(s, uri), 0);
	tern_session_wait(s, WAIT_MS);
	tern_session_wait(f->d, WAIT_MS);
	if (tern_session_error(s, &err) || tern_session_error(f->d, &err))
		fail_msg("%s", err.message);
	assert_int_equal(tern_session_state(s), TERN_STATE_COMPLETED);
	assert_int_equal(tern_session_state(f->d), TERN_STATE_COMPLETED);
	tern_session_delete(&s);
	testvm_stop(&f->dst);
}

static void nothing_is_left_of_a_stranger(void **state)
{
	struct tern_stats st;
	struct fix f;

	fix_init(&f, *state);
	write_as_stranger(&f);
	go_away(&f);
	migrate(&f);
	for (size_t i = 0; i < WRITTEN; i++)
		if (f.dst.ram[0][i])
			fail_msg("byte %zu is 0x%02x", i, f.dst.ram[0][i]);
	assert_true(testvm_equal(&f.src, &f.dst));
	assert_int_equal(tern_session_stats(f.d, &st, sizeof(st)), 0);
	assert_int_equal(st.strangers, 1);
	fix_fini(&f);
}

static void nothing_is_left_in_postcopy(void **state)
{
	struct tern_error err = { 0 };
	struct uffd u;

	if (uffd_open(&u, 0, &err))
		leave_out("userfaultfd", err.message);
	uffd_close(&u);
	nothing_is_left_of_a_stranger(state);
}

/* Memory that cannot be cleared is given to nobody: the session ends and says why. */
static void memory_that_cannot_be_cleared(void **state)
{
	struct rlimit before, tight;
	int kept[16], nr = 0, last;
	struct tern_error err;
	struct fix f;

	do /* so that no descriptor below the limit becomes free */
		last = kept[nr++] = dup(0);
	while (last >= 0 && last < 14);
	assert_true(last >= 0);
	fix_init(&f, *state);
	write_as_stranger(&f);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
	tight = before;
	tight.rlim_cur = (rlim_t)kept[nr - 1] + 1;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &tight), 0);
	go_away(&f);
	int r = tern_session_wait(f.d, WAIT_MS);

	assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
	assert_int_equal(r, -EMFILE);
	assert_int_equal(tern_session_state(f.d), TERN_STATE_FAILED);
	assert_int_equal(tern_session_outcome(f.d), TERN_OUTCOME_SOURCE);
	tern_session_error(f.d, &err);
	assert_non_null(strstr(err.message, "cannot open /proc/self/pagemap"));
	fix_fini(&f);
	while (nr)
		close(kept[--nr]);
}

#define T(fn_, name_, ...)                                                                 \
	{                                                                                  \
		.name = #fn_ ": " name_, .test_func = fn_, .initial_state = &(struct kind) \
		{                                                                          \
			__VA_ARGS__                                                        \
		}                                                                          \
	}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		T(nothing_is_left_of_a_stranger, "anonymous", .backing = TESTVM_ANON),
		T(nothing_is_left_of_a_stranger, "memfd", .backing = TESTVM_MEMFD),
		T(nothing_is_left_of_a_stranger, "vouched for", .backing = TESTVM_ANON,
		  .zeroed = true),
		T(nothing_is_left_in_postcopy, "anonymous", .backing = TESTVM_ANON,
		  .mode = TERN_MODE_POSTCOPY),
		T(nothing_is_left_in_postcopy, "memfd", .backing = TESTVM_MEMFD,
		  .mode = TERN_MODE_POSTCOPY),
		T(nothing_is_left_in_postcopy, "memfd, twice", .backing = TESTVM_MEMFD,
		  .mode = TERN_MODE_POSTCOPY, .next = TERN_MODE_POSTCOPY),
		T(memory_that_cannot_be_cleared, "anonymous", .backing = TESTVM_ANON),
	};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests_name("hostile rdma", tests, NULL, NULL);
}
