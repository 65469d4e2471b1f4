/* SPDX-License-Identifier: BSD-2-Clause */

/* Where the destination listens, and what it tells the user of that; over the fake device. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include "raw_peer.h"
#include "verbs.h"
#include "verbs_fake.h"
#include "verbs_pair.h"

/* Names that resolve here only, and to what.  The device serves loopback addresses. */
static const struct {
	const char *name, *address[2];
} names[] = {
	{ "second.test", { "192.0.2.1", "127.0.0.1" } },
	{ "neither.test", { "192.0.2.1", "192.0.2.2" } },
	{ "both.test", { "127.0.0.1", "::1" } },
};

/* In the place of libc's. */
int getaddrinfo(const char *restrict node, const char *restrict service,
		const struct addrinfo *restrict hints, struct addrinfo **restrict out)
{
	int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **);
	int rc;

	*(void **)&real = dlsym(RTLD_NEXT, "getaddrinfo");
	for (size_t i = 0; node && i < sizeof(names) / sizeof(names[0]); i++) {
		if (strcmp(node, names[i].name))
			continue;
		rc = real(names[i].address[0], service, hints, out);
		return rc ? rc : real(names[i].address[1], service, hints, &(*out)->ai_next);
	}
	return real(node, service, hints, out);
}

static int setup(void **state)
{
	*state = pair_new();
	return 0;
}

static int teardown(void **state)
{
	pair_delete(*state);
	return 0;
}

/* A peer that names @host gets through to the listener of @p. */
static bool can_reach(const struct verbs_pair *p, const char *host)
{
	struct greeting g = raw_greeting(GREETING_CONTROL);
	struct uri uri = p->uri;
	struct raw_peer r;
	bool yes;

	snprintf(uri.host, sizeof(uri.host), "%s", host);
	yes = raw_greet(&r, &uri, &g);
	raw_close(&r);
	return yes;
}

/* Listening at @host fails with @code and says @what. */
static void assert_no_listener(struct verbs_pair *p, const char *host, const char *port, int code,
			       const char *what)
{
	struct uri uri = { .scheme = URI_RDMA };
	struct transport_listener *l;

	snprintf(uri.host, sizeof(uri.host), "%s", host);
	snprintf(uri.port, sizeof(uri.port), "%s", port);
	assert_int_equal(p->t->listen(p->t, &p->dst_env, &uri, &l, &p->err), code);
	pair_assert_says(&p->err, what);
}

static void no_host_is_both_families(void **state)
{
	struct verbs_pair *p = *state;

	pair_listen(p);
	assert_string_equal(p->uri.host, "127.0.0.1");
	assert_true(can_reach(p, "127.0.0.1"));
	assert_true(can_reach(p, "::1"));
}

/* What is announced works. */
static void no_host_and_no_ipv4(void **state)
{
	struct verbs_pair *p = *state;

	verbs_fake_no_ipv4();
	assert_int_equal(pair_connect(p), 0);
	assert_string_equal(p->uri.host, "::1");
}

static void no_host_and_no_ipv6(void **state)
{
	struct verbs_pair *p = *state;

	verbs_fake_fail(FAKE_BIND, 1, EAFNOSUPPORT);
	pair_listen(p);
	assert_string_equal(p->uri.host, "127.0.0.1");
	assert_true(can_reach(p, "127.0.0.1"));
	assert_false(can_reach(p, "::1"));
}

/* An address that does not work is not announced, even if there is no other. */
static void no_host_and_neither(void **state)
{
	struct uri uri = { .scheme = URI_RDMA, .port = "4444" };
	struct verbs_pair *p = *state;
	char text[128];

	verbs_fake_no_ipv4();
	verbs_fake_fail(FAKE_BIND, 1, EAFNOSUPPORT);
	assert_int_equal(p->t->listen(p->t, &p->dst_env, &uri, &p->listener, &p->err), 0);
	p->t->listener_uri(p->listener, text, sizeof(text));
	assert_string_equal(text, "rdma::4444");
}

/* Another reason than that there is no IPv6 is told. */
static void no_host_and_no_permission(void **state)
{
	verbs_fake_fail(FAKE_BIND, 1, EACCES);
	assert_no_listener(*state, "", "4444", -EACCES, "Listening on [::]:4444 for RDMA failed");
}

static void no_host_and_the_port_is_taken(void **state)
{
	struct verbs_pair *p = *state;

	pair_listen(p);
	assert_no_listener(p, "", p->uri.port, -EADDRINUSE, "another program listens there");
}

/* The source that is given the name finds the one that is listened on. */
static void name_whose_second_address_is_ours(void **state)
{
	struct uri uri = { .scheme = URI_RDMA, .host = "second.test", .port = "4444" };
	const uint8_t id[TRANSPORT_SESSION_ID_LEN] = "name";
	struct verbs_pair *p = *state;
	struct transport_conn *ignored;
	char text[128];

	assert_int_equal(p->t->listen(p->t, &p->dst_env, &uri, &p->listener, &p->err), 0);
	p->t->listener_uri(p->listener, text, sizeof(text));
	assert_string_equal(text, "rdma:second.test:4444");
	p->uri = uri;
	verbs_fake_answer(FAKE_REJECT, 1); /* as far as that is enough */
	assert_int_equal(p->t->connect(p->t, &p->src_env, &uri, id, -1, &ignored, &p->err),
			 -ECONNREFUSED);
	pair_assert_says(&p->err, "The peer 127.0.0.1:4444 rejected");
}

static void name_without_an_address_of_ours(void **state)
{
	assert_no_listener(*state, "neither.test", "4444", -ENODEV,
			   "Listening on 192.0.2.2:4444 for RDMA failed");
}

/* The next address would do, but is not what the user can expect. */
static void name_whose_port_is_taken(void **state)
{
	struct verbs_pair *p = *state;

	pair_listen(p);
	assert_no_listener(p, "both.test", p->uri.port, -EADDRINUSE, "Listening on 127.0.0.1:");
}

static void assert_text(const char *address, const char *expected)
{
	struct sockaddr_in6 sa = { .sin6_family = AF_INET6, .sin6_port = htons(4444) };
	char text[VERBS_TEXT_MAX];

	assert_int_equal(inet_pton(AF_INET6, address, &sa.sin6_addr), 1);
	verbs_address_text((struct sockaddr *)&sa, text, sizeof(text));
	assert_string_equal(text, expected);
}

static void mapped_addresses_look_like_what_they_are(void **state)
{
	(void)state;
	assert_text("::ffff:192.0.2.1", "192.0.2.1:4444");
	assert_text("fd77::1", "[fd77::1]:4444");
	assert_text("::", "[::]:4444");
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		T(no_host_is_both_families),
		T(no_host_and_no_ipv4),
		T(no_host_and_no_ipv6),
		T(no_host_and_neither),
		T(no_host_and_no_permission),
		T(no_host_and_the_port_is_taken),
		T(name_whose_second_address_is_ours),
		T(name_without_an_address_of_ours),
		T(name_whose_port_is_taken),
		cmocka_unit_test(mapped_addresses_look_like_what_they_are),
	};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
