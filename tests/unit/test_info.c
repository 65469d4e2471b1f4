/* SPDX-License-Identifier: BSD-2-Clause */
/* Unit tests of what `tern info` says about RDMA: devices made up here, and the fake one. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "info_rdma.h"
#include "place.h"
#include "verbs_fake.h"

/* A card without fault. */
static struct rdma_device_info card(void)
{
	return (struct rdma_device_info){
		.place = { .name = "mlx5_0", .numa_node = 0, .cpus = "0-7" },
		.driver = "mlx5_core",
		.firmware = "16.35.1012",
		.window_1 = true,
		.window_2b = true,
		.odp = true,
		.odp_write = true,
		.max_mr_size = UINT64_MAX,
		.max_qp = 131072,
		.max_qp_wr = 32768,
		.nr_ports = 1,
		.port = { {
			.port = 1,
			.active = true,
			.state = "PORT_ACTIVE",
			.ethernet = true,
			.gbps = 100,
			.mtu = 4096,
			.mtu_max = 4096,
			.nr_gids = 2,
			.gid = { { .index = 0,
				   .type = "RoCE v1",
				   .gid = "fe80::1",
				   .address = "fe80::1",
				   .link_local = true,
				   .netdev = "eth2" },
				 { .index = 3,
				   .type = "RoCE v2",
				   .gid = "::ffff:192.0.2.1",
				   .address = "192.0.2.1",
				   .netdev = "eth2" } },
		} },
	};
}

/* All advice about @d in one text, free() it. */
static char *advice(const struct rdma_device_info *d, int memory_node)
{
	struct info info = { .facts = json_array() };
	char *text = NULL;
	size_t size, i;
	FILE *f = open_memstream(&text, &size);
	json_t *fact;

	info_rdma_device(&info, d, memory_node);
	json_array_foreach(info.facts, i, fact)
	{
		const char *todo = json_string_value(json_object_get(fact, "todo"));

		if (todo)
			fprintf(f, "%s: %s\n", json_string_value(json_object_get(fact, "key")),
				todo);
	}
	fclose(f);
	json_decref(info.facts);
	return text;
}

/* @d must have advice that contains @want. */
static void expect(const struct rdma_device_info *d, int memory_node, const char *want)
{
	char *text = advice(d, memory_node);

	if (!strstr(text, want))
		fail_msg("\"%s\" is not in \"%s\"", want, text);
	free(text);
}

static void test_a_good_card_needs_nothing(void **state)
{
	struct rdma_device_info d = card();
	char *text = advice(&d, 0);

	(void)state;
	assert_string_equal(text, "");
	free(text);
}

static void test_all_is_in_the_object(void **state)
{
	struct rdma_device_info d = card();
	struct info info = { .facts = json_array() };
	const json_t *o, *gid;

	(void)state;
	info_rdma_device(&info, &d, -1);
	o = json_object_get(json_array_get(info.facts, 0), "value");
	assert_string_equal(json_string_value(json_object_get(o, "driver")), "mlx5_core");
	assert_int_equal(json_array_size(json_object_get(o, "windows")), 2);
	assert_true(json_is_true(json_object_get(o, "on_demand_paging")));
	o = json_array_get(json_object_get(o, "ports"), 0);
	assert_int_equal(json_integer_value(json_object_get(o, "mtu")), 4096);
	gid = json_array_get(json_object_get(o, "gids"), 1);
	assert_int_equal(json_integer_value(json_object_get(gid, "index")), 3);
	assert_string_equal(json_string_value(json_object_get(gid, "address")), "192.0.2.1");
	json_decref(info.facts);
}

static void test_port_down(void **state)
{
	struct rdma_device_info d = card();

	(void)state;
	d.port[0].active = false;
	expect(&d, -1, "mlx5_0/1: connect the port");
}

static void test_small_mtu(void **state)
{
	struct rdma_device_info d = card();

	(void)state;
	d.port[0].mtu = 1024;
	expect(&d, -1, "mlx5_0/1: raise the network interface's MTU");
	d.port[0].mtu = 512;
	expect(&d, -1, "costs much speed");
	d.port[0].ethernet = false;
	expect(&d, -1, "subnet manager");
}

static void test_mtu_that_the_device_cannot_raise(void **state)
{
	struct rdma_device_info d = card();
	char *text;

	(void)state;
	d.port[0].mtu = d.port[0].mtu_max = 2048;
	text = advice(&d, -1);
	assert_string_equal(text, "");
	free(text);
}

static void test_only_link_local(void **state)
{
	struct rdma_device_info d = card();

	(void)state;
	d.port[0].gid[1].link_local = true;
	expect(&d, -1, "only a link-local GID: give eth2 an IP address");
}

static void test_only_roce_v1(void **state)
{
	struct rdma_device_info d = card();

	(void)state;
	d.port[0].nr_gids = 1;
	expect(&d, -1, "no RoCE v2 GID: give eth2 an IP address");
}

static void test_memory_elsewhere(void **state)
{
	struct rdma_device_info d = card();

	(void)state;
	expect(&d, 1, "most memory is on node 1, the device on node 0");
}

static void test_few_queue_pairs(void **state)
{
	struct rdma_device_info d = card();

	(void)state;
	d.max_qp = 64;
	expect(&d, -1, "few queue pairs");
}

static void test_device_that_cannot_be_opened(void **state)
{
	struct rdma_device_info d = { .place = { .name = "x0", .numa_node = -1 },
				      .error = "it cannot be opened: Permission denied" };

	(void)state;
	expect(&d, -1, "x0: check the permissions");
}

static void test_device_files(void **state)
{
	struct info info = { .facts = json_array() };
	char dir[] = "/tmp/tern-info-XXXXXX", path[64];
	FILE *f;

	(void)state;
	assert_non_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/infiniband", dir);
	assert_int_equal(mkdir(path, 0700), 0);
	snprintf(path, sizeof(path), "%s/infiniband/uverbs0", dir);
	f = fopen(path, "w");
	assert_non_null(f);
	fclose(f);
	info_rdma_files(&info, dir);
	assert_true(json_is_null(json_object_get(json_array_get(info.facts, 0), "todo")));
	assert_string_equal(
		json_string_value(json_object_get(json_array_get(info.facts, 1), "todo")),
		"load the module rdma_ucm (modprobe rdma_ucm)");
	json_decref(info.facts);
	unlink(path);
	snprintf(path, sizeof(path), "%s/infiniband", dir);
	rmdir(path);
	rmdir(dir);
}

static void test_query_of_the_fake_device(void **state)
{
	struct rdma_device_info *v;

	(void)state;
	assert_int_equal(rdma_query(&v), 1);
	assert_string_equal(v->place.name, "fake0");
	assert_string_equal(v->error, "");
	assert_int_equal(v->place.numa_node, -1);
	assert_int_equal(v->nr_ports, 1);
	assert_true(v->port[0].active);
	assert_true(v->max_qp_wr > 0);
	free(v);
}

static void test_query_without_a_device(void **state)
{
	struct rdma_device_info *v;

	(void)state;
	verbs_fake_absent();
	assert_int_equal(rdma_query(&v), 0);
	assert_null(v);
	verbs_fake_reset();
}

/* A device's folder and /proc/irq as a driver with named vectors makes them. */
static void make_irq(const char *root, int irq, const char *name, const char *cpus)
{
	char path[200];
	FILE *f;

	snprintf(path, sizeof(path), "%s/device/msi_irqs/%d", root, irq);
	f = fopen(path, "w");
	assert_non_null(f);
	fclose(f);
	snprintf(path, sizeof(path), "%s/irq/%d", root, irq);
	assert_int_equal(mkdir(path, 0700), 0);
	snprintf(path, sizeof(path), "%s/irq/%d/%s", root, irq, name);
	assert_int_equal(mkdir(path, 0700), 0);
	snprintf(path, sizeof(path), "%s/irq/%d/smp_affinity_list", root, irq);
	f = fopen(path, "w");
	assert_non_null(f);
	fprintf(f, "%s\n", cpus);
	fclose(f);
}

static void test_vectors_are_found_by_the_names_of_interrupts(void **state)
{
	char root[] = "/tmp/tern-irq-XXXXXX", path[64], command[80];
	struct place_vectors v;

	(void)state;
	assert_non_null(mkdtemp(root));
	snprintf(path, sizeof(path), "%s/device", root);
	assert_int_equal(mkdir(path, 0700), 0);
	snprintf(path, sizeof(path), "%s/device/msi_irqs", root);
	assert_int_equal(mkdir(path, 0700), 0);
	snprintf(path, sizeof(path), "%s/irq", root);
	assert_int_equal(mkdir(path, 0700), 0);
	make_irq(root, 40, "mlx5_async@pci:0000:3b:00.0", "0");
	make_irq(root, 41, "mlx5_comp0@pci:0000:3b:00.0", "0");
	make_irq(root, 43, "mlx5_comp2@pci:0000:3b:00.0", "0-99999");
	place_vectors_read(root, path, 3, &v);
	assert_int_equal(v.nr, 3);
	assert_int_equal(v.node[0], 0); /* CPU 0 is on node 0 everywhere */
	assert_int_equal(v.node[1], -1); /* has no interrupt */
	assert_int_equal(v.node[2], -1); /* CPUs that are not there */
	snprintf(command, sizeof(command), "rm -r %s", root);
	assert_int_equal(system(command), 0);
}

static void test_vectors_of_the_node_in_turn(void **state)
{
	struct place_vectors v = { .nr = 6, .node = { 0, 1, 0, 1, -1, 1 } };

	(void)state;
	assert_int_equal(place_vector_for(&v, 1, 0, 1), 1);
	assert_int_equal(place_vector_for(&v, 1, 1, 3), 3);
	assert_int_equal(place_vector_for(&v, 1, 2, 5), 5);
	assert_int_equal(place_vector_for(&v, 1, 3, 7), 1);
	assert_int_equal(place_vector_for(&v, 0, 1, 2), 2);
}

static void test_vectors_in_turn_where_no_node_is_known(void **state)
{
	struct place_vectors v = { .nr = 3, .node = { -1, -1, -1 } };

	(void)state;
	for (unsigned i = 0; i < 7; i++) {
		assert_int_equal(place_vector_for(&v, 0, i, i), i % 3);
		assert_int_equal(place_vector_for(&v, -1, i, i), i % 3);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_good_card_needs_nothing),
		cmocka_unit_test(test_all_is_in_the_object),
		cmocka_unit_test(test_port_down),
		cmocka_unit_test(test_small_mtu),
		cmocka_unit_test(test_mtu_that_the_device_cannot_raise),
		cmocka_unit_test(test_only_link_local),
		cmocka_unit_test(test_only_roce_v1),
		cmocka_unit_test(test_memory_elsewhere),
		cmocka_unit_test(test_few_queue_pairs),
		cmocka_unit_test(test_device_that_cannot_be_opened),
		cmocka_unit_test(test_device_files),
		cmocka_unit_test(test_query_of_the_fake_device),
		cmocka_unit_test(test_query_without_a_device),
		cmocka_unit_test(test_vectors_are_found_by_the_names_of_interrupts),
		cmocka_unit_test(test_vectors_of_the_node_in_turn),
		cmocka_unit_test(test_vectors_in_turn_where_no_node_is_known),
	};

	return cmocka_run_group_tests_name("info", tests, NULL, NULL);
}
