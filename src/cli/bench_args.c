/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * The command line of `tern bench`.
 *
 * One table row per option: its name, what kind of value it takes, its limits
 * and where the value goes.  Rows are read in the order they were typed; what
 * depends on two options is checked afterwards, so order does not matter.
 */

#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include "bench_args.h"
#include "cli.h"
#include "parse.h"

#define ARGS_SIZE_MAX (1ull << 46) /* 64 TiB of RAM */
#define ARGS_RATE_MAX (1ull << 44)
#define ARGS_MS_MAX PARSE_MS_MAX
#define MIB (1ull << 20)

enum kind {
	KIND_NUMBER, /* min … max */
	KIND_SIZE, /* bytes, min … max */
	KIND_PAGES, /* bytes, min … max, a multiple of 4096 */
	KIND_TOUCHED, /* PCT% or as KIND_PAGES */
	KIND_SECONDS, /* "10" or "0.5", min … max ms; stored in ms */
	KIND_WORD, /* one of words */
	KIND_TEXT,
	KIND_FLAG,
	KIND_HELP,
};

/* Where a value goes. */
enum slot {
	SLOT_LISTEN,
	SLOT_CONNECT,
	SLOT_RECOVER,
	SLOT_CONTROL,
	SLOT_TRANSPORT,
	SLOT_SIZE,
	SLOT_REGIONS,
	SLOT_BACKING,
	SLOT_FILL,
	SLOT_TOUCHED,
	SLOT_PREALLOC,
	SLOT_NUMA_SPLIT,
	SLOT_VCPUS,
	SLOT_DIRTY_RATE,
	SLOT_WORKING_SET,
	SLOT_PATTERN,
	SLOT_MODE,
	SLOT_PRECOPY_ROUNDS,
	SLOT_MAX_POSTCOPY_BANDWIDTH,
	SLOT_FAULT_THREADS,
	SLOT_CHANNELS,
	SLOT_CHUNK,
	SLOT_PIN,
	SLOT_LOCK_BUDGET,
	SLOT_NO_WINDOWS,
	SLOT_RDMA_DEVICE,
	SLOT_CPUS,
	SLOT_DOWNTIME_LIMIT,
	SLOT_MAX_BANDWIDTH,
	SLOT_TIMEOUT,
	SLOT_JSON,
	SLOT_ZEROCOPY,
	SLOT_DIRTY_PROVIDER,
	SLOT_PEER_TIMEOUT,
	SLOT_SEED,
	SLOT_RUN_BEFORE,
	SLOT_RUN_AFTER,
	SLOT_HELP,
	SLOT_NR,
};

struct option_row {
	const char *name;
	enum kind kind;
	uint64_t min, max;
	const char *words; /* KIND_WORD: "a|b|c", in the order of the enum behind it */
};

static const struct option_row rows[] = {
	[SLOT_LISTEN] = { "listen", KIND_TEXT },
	[SLOT_CONNECT] = { "connect", KIND_TEXT },
	[SLOT_RECOVER] = { "recover", KIND_FLAG },
	[SLOT_CONTROL] = { "control", KIND_TEXT },
	[SLOT_TRANSPORT] = { "transport", KIND_WORD, .words = "auto|rdma|tcp" },
	[SLOT_SIZE] = { "size", KIND_PAGES, GUEST_PAGE_SIZE, ARGS_SIZE_MAX },
	[SLOT_REGIONS] = { "regions", KIND_NUMBER, 1, TERN_REGIONS_MAX },
	[SLOT_BACKING] = { "backing", KIND_WORD, .words = "memfd|anon|hugetlb" },
	[SLOT_FILL] = { "fill", KIND_WORD, .words = "random|zero|text|mixed" },
	[SLOT_TOUCHED] = { "touched", KIND_TOUCHED, 0, ARGS_SIZE_MAX },
	[SLOT_PREALLOC] = { "prealloc", KIND_FLAG },
	[SLOT_NUMA_SPLIT] = { "numa-split", KIND_FLAG },
	[SLOT_VCPUS] = { "vcpus", KIND_NUMBER, 1, GUEST_VCPUS_MAX },
	[SLOT_DIRTY_RATE] = { "dirty-rate", KIND_SIZE, 0, ARGS_RATE_MAX },
	[SLOT_WORKING_SET] = { "working-set", KIND_PAGES, 0, ARGS_SIZE_MAX },
	[SLOT_PATTERN] = { "pattern", KIND_WORD, .words = "uniform|sequential|hot|alternate" },
	[SLOT_MODE] = { "mode", KIND_WORD, .words = "precopy|postcopy|hybrid" },
	[SLOT_PRECOPY_ROUNDS] = { "precopy-rounds", KIND_NUMBER, 1, UINT32_MAX },
	[SLOT_MAX_POSTCOPY_BANDWIDTH] = { "max-postcopy-bandwidth", KIND_SIZE, 0, ARGS_RATE_MAX },
	[SLOT_FAULT_THREADS] = { "fault-threads", KIND_NUMBER, 0, UINT32_MAX },
	[SLOT_CHANNELS] = { "channels", KIND_NUMBER, 1, 64 },
	[SLOT_CHUNK] = { "chunk", KIND_PAGES, GUEST_PAGE_SIZE, ARGS_SIZE_MAX },
	[SLOT_PIN] = { "pin", KIND_WORD, .words = "pipelined|all|odp" },
	[SLOT_LOCK_BUDGET] = { "lock-budget", KIND_SIZE, 0, ARGS_SIZE_MAX },
	[SLOT_NO_WINDOWS] = { "no-windows", KIND_FLAG },
	[SLOT_RDMA_DEVICE] = { "rdma-device", KIND_TEXT },
	[SLOT_CPUS] = { "cpus", KIND_TEXT },
	[SLOT_DOWNTIME_LIMIT] = { "downtime-limit", KIND_NUMBER, 0, ARGS_MS_MAX },
	[SLOT_MAX_BANDWIDTH] = { "max-bandwidth", KIND_SIZE, 0, ARGS_RATE_MAX },
	[SLOT_TIMEOUT] = { "timeout", KIND_SECONDS, 1, ARGS_MS_MAX },
	[SLOT_JSON] = { "json", KIND_TEXT },
	[SLOT_ZEROCOPY] = { "zerocopy", KIND_FLAG },
	[SLOT_DIRTY_PROVIDER] = { "dirty-provider", KIND_TEXT },
	[SLOT_PEER_TIMEOUT] = { "peer-timeout", KIND_NUMBER, 1, ARGS_MS_MAX },
	[SLOT_SEED] = { "seed", KIND_NUMBER, 0, UINT64_MAX },
	[SLOT_RUN_BEFORE] = { "run-before", KIND_NUMBER, 0, ARGS_MS_MAX },
	[SLOT_RUN_AFTER] = { "run-after", KIND_NUMBER, 0, ARGS_MS_MAX },
	[SLOT_HELP] = { "help", KIND_HELP },
};
_Static_assert(sizeof(rows) / sizeof(rows[0]) == SLOT_NR, "a row per slot");

/* What was typed, before it is put together. */
struct typed {
	bool given[SLOT_NR];
	uint64_t value[SLOT_NR];
	const char *text[SLOT_NR];
	bool touched_is_percent;
};

/* The text of --help. */
const char *bench_args_usage(void)
{
	return "usage: tern bench [OPTIONS]\n"
	       "\n"
	       "Moves a running synthetic guest between two processes and verifies every page.\n"
	       "\n"
	       "  --listen URI | --connect URI  be only the destination / only the source\n"
	       "  --recover                     with --connect: tell a source that is paused in\n"
	       "                                postcopy to go on, at that URI\n"
	       "  --control PATH                socket by which --recover reaches the source\n"
	       "  --transport auto|rdma|tcp     when both roles run here (auto)\n"
	       "  --size SIZE                   guest RAM (1G)\n"
	       "  --regions N                   regions it is cut into (1)\n"
	       "  --backing memfd|anon|hugetlb  memory behind it (memfd)\n"
	       "  --fill random|zero|text|mixed what is in it (mixed)\n"
	       "  --touched PCT%|SIZE           how much was ever touched (100%)\n"
	       "  --prealloc                    the destination populates its RAM beforehand\n"
	       "  --numa-split                  spread regions and vCPUs over the NUMA nodes\n"
	       "  --vcpus N                     vCPU threads (1)\n"
	       "  --dirty-rate SIZE             bytes dirtied per second; 0: idle (100M)\n"
	       "  --working-set SIZE            RAM they write to (64M)\n"
	       "  --pattern uniform|sequential|hot|alternate  (uniform)\n"
	       "  --seed N                      seed of all contents (1)\n"
	       "  --mode precopy|postcopy|hybrid\n"
	       "  --precopy-rounds N            hybrid: rounds before the switchover (1)\n"
	       "  --max-postcopy-bandwidth SIZE bytes per second that nobody waits for; 0: no limit\n"
	       "  --fault-threads N             postcopy: threads that serve page faults (1)\n"
	       "  --channels N                  data channels (2)\n"
	       "  --chunk SIZE                  largest single write\n"
	       "  --pin pipelined|all|odp       RDMA: memory registration\n"
	       "  --lock-budget SIZE            RDMA: locked memory\n"
	       "  --no-windows                  RDMA: no memory windows\n"
	       "  --rdma-device NAME[/PORT]     RDMA: device to use (by route)\n"
	       "  --cpus N|LIST                 CPUs tern may use, as 4 or 0-3,8 (all)\n"
	       "  --zerocopy                    TCP: send with MSG_ZEROCOPY\n"
	       "  --dirty-provider NAME         auto, none, … (auto)\n"
	       "  --downtime-limit MS           (300)\n"
	       "  --max-bandwidth SIZE          bytes per second; 0: no limit (0)\n"
	       "  --peer-timeout MS             a peer silent for so long is lost\n"
	       "  --timeout SEC                 give up after that long\n"
	       "  --run-before MS               source guest runs so long before it is moved (0)\n"
	       "  --run-after MS                destination guest runs on before verification "
	       "(100)\n"
	       "  --json FILE                   statistics as JSON (- for stdout)\n"
	       "\n"
	       "URI: tcp:HOST:PORT, unix:PATH, rdma:HOST:PORT, auto:HOST:PORT.\n"
	       "SIZE: bytes, or with K M G T (powers of 1024).\n"
	       "Exit: 0 done and verified, 1 failed, 2 usage, 3 timed out or cancelled,\n"
	       "4 verification failed.\n";
}

/* Index of @text among "a|b|c", or -1. */
static int find_word(const char *words, const char *text)
{
	size_t len = strlen(text);

	for (int i = 0; *words; i++) {
		size_t n = strcspn(words, "|");

		if (n == len && !strncmp(words, text, n))
			return i;
		words += n + (words[n] == '|');
	}
	return -1;
}

/* -EINVAL: the value is no such thing. */
static int bad_value(const struct option_row *row, const char *text, const char *want,
		     struct tern_error *err)
{
	return cli_fail(err, -EINVAL, "--%s %s: must be %s", row->name, text, want);
}

/* -EINVAL: the value is outside the row's limits. */
static int out_of_range(const struct option_row *row, const char *text, struct tern_error *err)
{
	const char *unit = row->kind == KIND_NUMBER ? "" : " bytes";

	if (row->kind == KIND_SECONDS)
		return cli_fail(err, -EINVAL, "--%s %s: must be from 0.001 to %llu seconds",
				row->name, text, (unsigned long long)row->max / 1000);
	return cli_fail(err, -EINVAL, "--%s %s: must be from %llu to %llu%s", row->name, text,
			(unsigned long long)row->min, (unsigned long long)row->max, unit);
}

/* Read a word. */
static int take_word(const struct option_row *row, const char *text, uint64_t *out,
		     struct tern_error *err)
{
	int i = find_word(row->words, text);

	if (i < 0)
		return cli_fail(err, -EINVAL, "--%s %s: must be one of %s", row->name, text,
				row->words);
	*out = (uint64_t)i;
	return 0;
}

/* Read a number, a size or seconds, and hold it against the limits. */
static int take_number(const struct option_row *row, const char *text, uint64_t *out,
		       struct tern_error *err)
{
	const char *want = "a size: bytes, or digits with K, M, G or T", *end = "";
	int ret;

	if (row->kind == KIND_NUMBER) {
		want = "a whole number";
		ret = parse_digits(text, out, &end);
		if (!ret && *end)
			ret = -EINVAL;
	} else if (row->kind == KIND_SECONDS) {
		want = "seconds, as 10 or 0.5";
		ret = parse_seconds(text, out);
	} else {
		ret = parse_size(text, out);
	}
	if (ret == -EINVAL)
		return bad_value(row, text, want, err);
	if (ret || *out < row->min || *out > row->max)
		return out_of_range(row, text, err);
	if ((row->kind == KIND_PAGES || row->kind == KIND_TOUCHED) && *out % GUEST_PAGE_SIZE)
		return bad_value(row, text, "a multiple of the page size, 4096 bytes", err);
	return 0;
}

/* Read --touched: a share or a size. */
static int take_touched(const struct option_row *row, const char *text, struct typed *t,
			struct tern_error *err)
{
	const char *end;
	uint64_t v;

	t->touched_is_percent = false;
	if (!parse_digits(text, &v, &end) && !strcmp(end, "%")) {
		if (v > 100)
			return bad_value(row, text, "from 0% to 100%", err);
		t->touched_is_percent = true;
		t->value[SLOT_TOUCHED] = v;
		return 0;
	}
	return take_number(row, text, &t->value[SLOT_TOUCHED], err);
}

/* Read one option. */
static int take(enum slot slot, const char *text, struct typed *t, struct tern_error *err)
{
	const struct option_row *row = &rows[slot];

	t->given[slot] = true;
	t->text[slot] = text;
	switch (row->kind) {
	case KIND_HELP:
		return BENCH_ARGS_HELP;
	case KIND_FLAG:
		return 0;
	case KIND_TEXT:
		return *text ? 0 : bad_value(row, "\"\"", "something", err);
	case KIND_WORD:
		return take_word(row, text, &t->value[slot], err);
	case KIND_TOUCHED:
		return take_touched(row, text, t, err);
	default:
		return take_number(row, text, &t->value[slot], err);
	}
}

/* getopt_long() over the table.  0, BENCH_ARGS_HELP or -EINVAL. */
static int read_options(int argc, char **argv, struct typed *t, struct tern_error *err)
{
	struct option longopts[SLOT_NR + 1] = { 0 };
	int c, ret;

	for (int i = 0; i < SLOT_NR; i++) {
		bool bare = rows[i].kind == KIND_FLAG || rows[i].kind == KIND_HELP;

		longopts[i] = (struct option){ rows[i].name, bare ? no_argument : required_argument,
					       NULL, 256 + i };
	}
	optind = 0; /* glibc: start over */
	opterr = 0;
	while ((c = getopt_long(argc, argv, ":h", longopts, NULL)) != -1) {
		if (c == ':')
			return cli_fail(err, -EINVAL, "option %s needs a value", argv[optind - 1]);
		if (c == '?')
			return cli_fail(
				err, -EINVAL,
				"unknown option or unwanted value: %s; see tern bench --help",
				argv[optind - 1]);
		ret = take(c == 'h' ? SLOT_HELP : (enum slot)(c - 256), optarg, t, err);
		if (ret)
			return ret;
	}
	if (optind < argc)
		return cli_fail(err, -EINVAL, "unexpected argument \"%s\"; see tern bench --help",
				argv[optind]);
	return 0;
}

/* Role, URI and transport, and what contradicts them. */
static int settle_role(const struct typed *t, struct bench_args *a, struct tern_error *err)
{
	static const char *const names[] = { "auto", "rdma", "tcp" };
	const char *transport = names[t->value[SLOT_TRANSPORT]];
	size_t n;

	if (t->given[SLOT_LISTEN] && t->given[SLOT_CONNECT])
		return cli_fail(err, -EINVAL,
				"--listen and --connect exclude each other: a process "
				"is the destination or the source (neither: both)");
	a->transport = transport;
	a->role = t->given[SLOT_LISTEN]    ? BENCH_DESTINATION
		  : t->given[SLOT_CONNECT] ? BENCH_SOURCE
					   : BENCH_BOTH;
	if (a->role != BENCH_BOTH) {
		a->uri = t->text[a->role == BENCH_SOURCE ? SLOT_CONNECT : SLOT_LISTEN];
		n = strcspn(a->uri, ":");
		if (t->value[SLOT_TRANSPORT] &&
		    (strlen(transport) != n || strncmp(a->uri, transport, n)))
			return cli_fail(err, -EINVAL, "--transport %s contradicts the URI %s",
					transport, a->uri);
	}
	return 0;
}

/* Options of a mode that is not the one, and the URI's form. */
static int settle_mode(const struct typed *t, const struct bench_args *a, struct tern_error *err)
{
	if (t->given[SLOT_RECOVER] && a->role != BENCH_SOURCE)
		return cli_fail(err, -EINVAL,
				"--recover: needs --connect URI, where the destination waits");
	if (t->given[SLOT_CONTROL] && a->role != BENCH_SOURCE)
		return cli_fail(err, -EINVAL,
				"--control %s: is a matter of the source alone (--connect)",
				t->text[SLOT_CONTROL]);
	if (t->given[SLOT_PRECOPY_ROUNDS] && t->value[SLOT_MODE] != TERN_MODE_HYBRID &&
	    a->role != BENCH_DESTINATION)
		return cli_fail(err, -EINVAL,
				"--precopy-rounds %s: is for --mode hybrid; precopy takes as many "
				"rounds as it needs, postcopy none",
				t->text[SLOT_PRECOPY_ROUNDS]);
	return a->uri ? tern_uri_check(a->uri, err) : 0;
}

/* Options for parts that this build does not have. */
static int settle_build(const struct typed *t, const struct bench_args *a, struct tern_error *err)
{
	bool tcp = t->value[SLOT_TRANSPORT] == 2 ||
		   (a->uri && (!strncmp(a->uri, "tcp:", 4) || !strncmp(a->uri, "unix:", 5)));

	for (enum slot s = SLOT_PIN; s <= SLOT_RDMA_DEVICE; s++) {
		if (t->given[s] && tcp)
			return cli_fail(err, -EINVAL,
					"--%s%s%s: %s a matter of RDMA and means nothing for tcp",
					rows[s].name, t->text[s] ? " " : "",
					t->text[s] ? t->text[s] : "",
					s == SLOT_RDMA_DEVICE ? "the device is"
							      : "memory registration is");
	}
	if (tern_transport_available("rdma", NULL, 0) != -EPROTONOSUPPORT)
		return settle_mode(t, a, err);
	if (t->value[SLOT_TRANSPORT] == 1 || (a->uri && !strncmp(a->uri, "rdma:", 5)))
		return cli_fail(err, -EINVAL,
				"%s: the RDMA transport is not in this build; use tcp",
				a->uri ? a->uri : "--transport rdma");
	for (enum slot s = SLOT_PIN; s <= SLOT_RDMA_DEVICE; s++) {
		if (t->given[s])
			return cli_fail(err, -EINVAL,
					"--%s%s%s: concerns RDMA, and the RDMA transport is not in "
					"this build",
					rows[s].name, t->text[s] ? " " : "",
					t->text[s] ? t->text[s] : "");
	}
	return settle_mode(t, a, err);
}

/* Sizes of the guest against each other. */
static int settle_sizes(const struct typed *t, struct guest_config *g, struct tern_error *err)
{
	uint64_t unit = guest_host_page(g->backing);

	if (g->size % unit)
		return cli_fail(err, -EINVAL,
				"--size %llu: with --backing hugetlb it must be a multiple of 2M",
				(unsigned long long)g->size);
	if (g->nr_regions > g->size / unit)
		return cli_fail(
			err, -EINVAL,
			"--regions %u: --size has room for %llu regions of one %llu-byte page",
			g->nr_regions, (unsigned long long)(g->size / unit),
			(unsigned long long)unit);
	if (t->touched_is_percent)
		g->touched =
			g->size * t->value[SLOT_TOUCHED] / 100 / GUEST_PAGE_SIZE * GUEST_PAGE_SIZE;
	else
		g->touched = t->given[SLOT_TOUCHED] ? t->value[SLOT_TOUCHED] : g->size;
	if (g->touched > g->size)
		return cli_fail(err, -EINVAL, "--touched %s: more than --size, %llu bytes",
				t->text[SLOT_TOUCHED], (unsigned long long)g->size);
	g->working_set = t->value[SLOT_WORKING_SET];
	if (g->working_set > g->touched && t->given[SLOT_WORKING_SET])
		return cli_fail(err, -EINVAL,
				"--working-set %s: more than the touched RAM, %llu bytes",
				t->text[SLOT_WORKING_SET], (unsigned long long)g->touched);
	if (g->working_set > g->touched)
		g->working_set = g->touched;
	if (t->given[SLOT_DIRTY_RATE] && g->dirty_rate && !g->working_set)
		return cli_fail(
			err, -EINVAL,
			"--dirty-rate %s: there is no RAM to dirty: the working set is empty",
			t->text[SLOT_DIRTY_RATE]);
	return 0;
}

/* Find a dirty provider by the library's name for it; the guest here does not run in KVM. */
static int settle_provider(const struct typed *t, struct bench_args *a, struct tern_error *err)
{
	const char *name = t->text[SLOT_DIRTY_PROVIDER];

	if (!name)
		return 0;
	for (int i = 0; i <= TERN_DIRTY_CALLBACKS; i++) {
		if (strcmp(name, tern_dirty_provider_name((enum tern_dirty_provider)i)))
			continue;
		a->param[TERN_PARAM_DIRTY_PROVIDER].value = (uint64_t)i;
		return 0;
	}
	return cli_fail(err, -EINVAL, "--dirty-provider %s: must be one of %s, %s, %s, %s, %s", name,
			tern_dirty_provider_name(TERN_DIRTY_AUTO),
			tern_dirty_provider_name(TERN_DIRTY_NONE),
			tern_dirty_provider_name(TERN_DIRTY_UFFD_WP_ASYNC),
			tern_dirty_provider_name(TERN_DIRTY_UFFD_WP_SYNC),
			tern_dirty_provider_name(TERN_DIRTY_CALLBACKS));
}

/* Parameters that are text. */
static int settle_texts(const struct typed *t, struct bench_args *a, struct tern_error *err)
{
	static const enum slot slots[TERN_TEXT_NR] = {
		[TERN_TEXT_RDMA_DEVICE] = SLOT_RDMA_DEVICE,
		[TERN_TEXT_CPUS] = SLOT_CPUS,
	};

	for (int i = 0; i < TERN_TEXT_NR; i++) {
		struct tern_error why;

		a->text[i] = t->text[slots[i]];
		if (tern_text_check((enum tern_text)i, a->text[i], &why))
			return cli_fail(err, -EINVAL, "--%s %s: %s", rows[slots[i]].name,
					a->text[i], why.message);
	}
	return 0;
}

/* The session's parameters. */
static void settle_params(const struct typed *t, struct bench_args *a)
{
	static const struct {
		enum tern_param param;
		enum slot slot;
		bool always; /* bench has a default of its own */
	} map[] = {
		{ TERN_PARAM_CHANNELS, SLOT_CHANNELS, true },
		{ TERN_PARAM_CHUNK_BYTES, SLOT_CHUNK, false },
		{ TERN_PARAM_MODE, SLOT_MODE, false },
		{ TERN_PARAM_PRECOPY_ROUNDS, SLOT_PRECOPY_ROUNDS, false },
		{ TERN_PARAM_MAX_POSTCOPY_BANDWIDTH, SLOT_MAX_POSTCOPY_BANDWIDTH, false },
		{ TERN_PARAM_FAULT_THREADS, SLOT_FAULT_THREADS, false },
		{ TERN_PARAM_DOWNTIME_LIMIT_MS, SLOT_DOWNTIME_LIMIT, true },
		{ TERN_PARAM_MAX_BANDWIDTH, SLOT_MAX_BANDWIDTH, false },
		{ TERN_PARAM_PEER_TIMEOUT_MS, SLOT_PEER_TIMEOUT, false },
		{ TERN_PARAM_TIMEOUT_MS, SLOT_TIMEOUT, false },
		{ TERN_PARAM_ZEROCOPY, SLOT_ZEROCOPY, false },
		{ TERN_PARAM_PIN, SLOT_PIN, false },
		{ TERN_PARAM_LOCK_BUDGET, SLOT_LOCK_BUDGET, false },
		{ TERN_PARAM_WINDOWS, SLOT_NO_WINDOWS, false },
		{ TERN_PARAM_DIRTY_PROVIDER, SLOT_DIRTY_PROVIDER, false },
	};

	for (unsigned i = 0; i < sizeof(map) / sizeof(map[0]); i++) {
		struct bench_param *p = &a->param[map[i].param];

		p->set = map[i].always || t->given[map[i].slot];
		p->option = rows[map[i].slot].name;
		if (map[i].param == TERN_PARAM_DIRTY_PROVIDER)
			continue; /* has its value */
		if (rows[map[i].slot].kind == KIND_FLAG)
			p->value = map[i].param != TERN_PARAM_WINDOWS;
		else
			p->value = t->value[map[i].slot];
	}
}

/* Regions of a guest that is split and for which no number was given: one for each node. */
static unsigned default_split(const struct guest_config *g)
{
	uint64_t pages = g->size / guest_host_page(g->backing);
	unsigned nr = guest_nr_nodes();

	return nr > pages ? (unsigned)pages : nr;
}

/* Values before anything was typed. */
static void set_defaults(struct typed *t)
{
	*t = (struct typed){ 0 };
	t->value[SLOT_SIZE] = 1024 * MIB;
	t->value[SLOT_REGIONS] = 1;
	t->value[SLOT_BACKING] = GUEST_MEMFD;
	t->value[SLOT_FILL] = CONTENT_MIXED;
	t->value[SLOT_VCPUS] = 1;
	t->value[SLOT_DIRTY_RATE] = 100 * MIB;
	t->value[SLOT_WORKING_SET] = 64 * MIB;
	t->value[SLOT_PATTERN] = GUEST_UNIFORM;
	t->value[SLOT_CHANNELS] = 2;
	t->value[SLOT_DOWNTIME_LIMIT] = 300;
	t->value[SLOT_SEED] = 1;
	t->value[SLOT_RUN_AFTER] = 100;
}

/* Read the command line; see bench_args.h. */
int bench_args_parse(int argc, char **argv, struct bench_args *out, struct tern_error *err)
{
	struct bench_args a = { 0 };
	struct typed t;
	int ret;

	set_defaults(&t);
	ret = read_options(argc, argv, &t, err);
	if (ret)
		return ret;
	a.guest = (struct guest_config){
		.size = t.value[SLOT_SIZE],
		.dirty_rate = t.value[SLOT_DIRTY_RATE],
		.seed = t.value[SLOT_SEED],
		.nr_regions = (unsigned)t.value[SLOT_REGIONS],
		.vcpus = (unsigned)t.value[SLOT_VCPUS],
		.backing = (enum guest_backing)t.value[SLOT_BACKING],
		.pattern = (enum guest_pattern)t.value[SLOT_PATTERN],
		.fill = (enum content_fill)t.value[SLOT_FILL],
		.numa_split = t.given[SLOT_NUMA_SPLIT],
	};
	if (a.guest.numa_split && !t.given[SLOT_REGIONS])
		a.guest.nr_regions = default_split(&a.guest);
	a.prealloc = t.given[SLOT_PREALLOC];
	a.run_before_ms = t.value[SLOT_RUN_BEFORE];
	a.run_after_ms = t.value[SLOT_RUN_AFTER];
	a.timeout_ms = t.value[SLOT_TIMEOUT];
	a.downtime_limit_ms = t.value[SLOT_DOWNTIME_LIMIT];
	a.json = t.text[SLOT_JSON];
	a.recover = t.given[SLOT_RECOVER];
	a.control = t.text[SLOT_CONTROL];
	ret = settle_role(&t, &a, err);
	if (!ret)
		ret = settle_build(&t, &a, err);
	if (!ret)
		ret = settle_sizes(&t, &a.guest, err);
	if (!ret)
		ret = settle_provider(&t, &a, err);
	if (!ret)
		ret = settle_texts(&t, &a, err);
	if (ret)
		return ret;
	settle_params(&t, &a);
	*out = a;
	return 0;
}
