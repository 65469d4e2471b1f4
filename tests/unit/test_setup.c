/* SPDX-License-Identifier: BSD-2-Clause */
/* A session before it runs: configuration and starts that fail, and what is left of them. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>
#include <sys/mman.h>
#include <tern/kvm.h>
#include <tern/tern.h>

#define SIZE (1u << 20)

static uint8_t *ram;

static struct tern_region_desc region(const char *name)
{
	return (struct tern_region_desc){
		.name = name, .hva = ram, .size = SIZE, .numa_node = TERN_NODE_ANY, .fd = -1
	};
}

static struct tern_session *new_session(enum tern_role role)
{
	const struct tern_region_desc good = region("ram");
	struct tern_session *s;

	assert_int_equal(tern_session_new(role, &s), 0);
	assert_int_equal(tern_session_add_region(s, &good), 0);
	return s;
}

static void assert_says(const struct tern_session *s, int code, const char *what)
{
	struct tern_error err;

	assert_int_equal(tern_session_error(s, &err), code);
	if (!strstr(err.message, what))
		fail_msg("'%s' lacks '%s'", err.message, what);
}

static void assert_transport(const struct tern_session *s, const char *name)
{
	struct tern_stats st;
	char uri[320];

	assert_int_equal(tern_session_stats(s, &st, sizeof(st)), 0);
	assert_string_equal(st.transport, name);
	tern_session_uri(s, uri, sizeof(uri));
	assert_int_equal(strncmp(uri, name, strlen(name)), 0);
}

/* Of two calls that fail each has a sentence of its own, and one that succeeds has none. */
static void errors_are_the_last_calls(void **state)
{
	struct tern_session *s = new_session(TERN_DESTINATION);
	struct tern_region_desc desc = region("ram");
	const struct tern_kvm_desc kvm = { 0 };

	assert_int_equal(tern_session_add_region(s, &desc), -EEXIST);
	assert_says(s, -EEXIST, "ram");
	desc = region("other");
	desc.size = 1;
	assert_int_equal(tern_session_add_region(s, &desc), -EINVAL);
	assert_says(s, -EINVAL, "other");
	assert_int_equal(tern_session_set_kvm(s, &kvm), -EINVAL);
	assert_says(s, -EINVAL, "cannot describe the VM to a destination");
	desc = region("good");
	desc.hva = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	desc.gpa = SIZE;
	assert_ptr_not_equal(desc.hva, MAP_FAILED);
	assert_int_equal(tern_session_add_region(s, &desc), 1);
	assert_says(s, 0, "");
	tern_session_delete(&s);
	munmap(desc.hva, SIZE);
}

/* Where one transport cannot listen, another one can. */
static void listens_elsewhere(void **state)
{
	static const char *const bad[] = { "rdma:192.0.2.1:0", "unix:/nowhere/at/all" };

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct tern_session *s = new_session(TERN_DESTINATION);

		assert_true(tern_session_listen(s, bad[i]) < 0);
		if (tern_session_listen(s, "tcp:127.0.0.1:0")) {
			struct tern_error err;

			tern_session_error(s, &err);
			fail_msg("after %s: %s", bad[i], err.message);
		}
		assert_transport(s, "tcp");
		tern_session_delete(&s);
	}
}

/* A source whose configuration was wrong the first time goes where the second call says. */
static void connects_elsewhere(void **state)
{
	struct tern_session *s = new_session(TERN_SOURCE);

	assert_int_equal(tern_session_set_text(s, TERN_TEXT_CPUS, "4000-4000"), 0);
	assert_int_equal(tern_session_connect(s, "unix:/nowhere/at/all"), -EINVAL);
	assert_int_equal(tern_session_set_text(s, TERN_TEXT_CPUS, NULL), 0);
	assert_int_equal(tern_session_connect(s, "tcp:127.0.0.1:1"), 0);
	assert_transport(s, "tcp");
	tern_session_delete(&s);
}

/* No thread: the address is free again, and listening there works the next time. */
static void listens_again_where_there_was_no_thread(void **state)
{
	struct tern_session *s = new_session(TERN_DESTINATION), *other;
	pthread_attr_t before, endless;
	char uri[320];

	assert_int_equal(pthread_getattr_default_np(&before), 0);
	assert_int_equal(pthread_attr_init(&endless), 0);
	assert_int_equal(pthread_attr_setstacksize(&endless, (size_t)1 << 50), 0);
	assert_int_equal(pthread_setattr_default_np(&endless), 0);
	int r = tern_session_listen(s, "tcp:127.0.0.1:0");

	assert_int_equal(pthread_setattr_default_np(&before), 0);
	pthread_attr_destroy(&before);
	pthread_attr_destroy(&endless);
	assert_int_equal(r, -EAGAIN);
	assert_says(s, -EAGAIN, "cannot start the session's thread");
	tern_session_uri(s, uri, sizeof(uri));
	other = new_session(TERN_DESTINATION);
	assert_int_equal(tern_session_listen(other, uri), 0);
	tern_session_delete(&other);
	assert_int_equal(tern_session_listen(s, uri), 0);
	tern_session_delete(&s);
}

static int map_ram(void **state)
{
	ram = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return ram == MAP_FAILED ? -1 : 0;
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(errors_are_the_last_calls),
		cmocka_unit_test(listens_elsewhere),
		cmocka_unit_test(connects_elsewhere),
		cmocka_unit_test(listens_again_where_there_was_no_thread),
	};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests_name("setup", tests, map_ram, NULL);
}
