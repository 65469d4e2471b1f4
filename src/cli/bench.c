/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * tern bench: migrate a synthetic guest and prove every byte.
 *
 *	both roles	parent = source, child = destination (fork before any thread).
 *			The child reports {"listening": URI} and then its result;
 *			the parent merges, prints and decides the exit code.
 *	--connect	the source alone
 *	--listen	the destination alone, which verifies
 *
 * SIGINT and SIGTERM are blocked from the start and read from a signalfd by
 * whoever waits, so no handler and no global flag is needed.
 */

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>
#include <tern/tern.h>
#include "bench_side.h"
#include "cli.h"
#include "peer.h"
#include "report.h"

/* How long the destination may take to report after a migration that failed. */
#define RESULT_WAIT_MS 5000
/* … and if nobody here knows whether it runs the guest: it may be verifying. */
#define UNKNOWN_WAIT_MS 60000
/* How long it may take to exit after its result: it frees the guest's RAM. */
#define EXIT_WAIT_MS 5000

/* Both sides of a benchmark on this machine, as the parent sees it. */
struct bench {
	const struct bench_args *args;
	int signal_fd;
	struct peer peer;
	struct side source;
	json_t *destination; /* the child's result, or NULL */
	bool interrupted; /* by a signal while waiting for the child */
};

/* Block SIGINT and SIGTERM and make a descriptor for them; -errno. */
static int signals_open(void)
{
	sigset_t set;
	int fd;

	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	if (sigprocmask(SIG_BLOCK, &set, NULL))
		return -errno;
	fd = signalfd(-1, &set, SFD_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

/* Refuse what this machine has no memory for, before the OOM killer does. */
static int check_memory(const struct bench_args *args, struct tern_error *err)
{
	uint64_t have = procstat_available_bytes();
	uint64_t need = args->guest.touched;

	if (args->role == BENCH_BOTH)
		need *= 2;
	if (args->role == BENCH_DESTINATION && !args->prealloc)
		need = 0; /* only the source knows */
	if (args->guest.backing == GUEST_HUGETLB || !have || need <= have)
		return 0;
	return cli_fail(err, -ENOMEM,
			"--size %llu: %llu MiB of touched RAM%s are needed, %llu MiB are "
			"available here; use a smaller --size or --touched",
			(unsigned long long)args->guest.size, (unsigned long long)(need >> 20),
			args->role == BENCH_BOTH ? " (on both sides)" : "",
			(unsigned long long)have >> 20);
}

/* Print what went wrong on one side, if anything. */
static void complain(const char *who, const json_t *result)
{
	const char *s =
		json_string_value(json_object_get(json_object_get(result, "error"), "message"));

	if (s)
		cli_complain("%s%s", who, s);
	s = json_string_value(json_object_get(result, "refusal"));
	if (s)
		cli_complain("%s%s", who, s);
}

/* Whether verification found nothing wrong. */
static bool verify_is_good(const json_t *verify)
{
	return !json_integer_value(json_object_get(verify, "bad")) &&
	       json_is_true(json_object_get(verify, "guest_ran"));
}

/* Print what verification of one side found, if it was made and found something. */
static void complain_verify(const char *who, const json_t *verify)
{
	if (!json_is_object(verify) || verify_is_good(verify))
		return;
	if (json_is_true(json_object_get(verify, "guest_ran")))
		cli_complain("%sverification failed: %lld bad pages", who,
			     (long long)json_integer_value(json_object_get(verify, "bad")));
	else
		cli_complain("%sverification failed: the guest does not run", who);
}

/* Write the report where it was asked for; the exit code changes if that fails. */
static int publish(const struct bench_args *args, json_t *source, json_t *destination, int code)
{
	bool json_on_stdout = args->json && !strcmp(args->json, "-");
	json_t *report = report_make(args, source, destination);
	struct tern_error err = { 0 };

	report_print(json_on_stdout ? stderr : stdout, report);
	if (args->json && report_write(args->json, report, &err)) {
		cli_complain("%s", err.message);
		code = code ? code : CLI_EXIT_FAILED;
	}
	json_decref(report);
	return code;
}

/* ---- the destination as a child process ---- */

/*
 * Where both roles on this machine meet: RDMA if asked for, or if it is there.  @why
 * gets the reason.
 */
static const char *local_uri(const struct bench_args *args, char *why, size_t size)
{
	snprintf(why, size, "--transport %s", args->transport);
	if (!strcmp(args->transport, "rdma"))
		return "rdma::0";
	if (strcmp(args->transport, "auto"))
		return "tcp:127.0.0.1:0";
	if (args->text[TERN_TEXT_RDMA_DEVICE]) {
		snprintf(why, size, "--rdma-device %s", args->text[TERN_TEXT_RDMA_DEVICE]);
		return "rdma::0";
	}
	return tern_transport_available("rdma", why, size) ? "tcp:127.0.0.1:0" : "rdma::0";
}

/* The session knows the URI that was made for it; the choice was made here. */
static void say_why(const struct bench_args *args, json_t *result)
{
	json_t *stats = json_object_get(result, "stats");
	char why[256];

	local_uri(args, why, sizeof(why));
	if (json_is_object(stats))
		json_object_set_new(stats, "transport_why", json_string(why));
}

/* The child of peer_start(): listen, report where, migrate, verify, report. */
static int destination_main(void *ctx, FILE *out, int life_fd)
{
	const struct bench_args *args = ctx;
	char uri[512], why[256];
	struct side side;
	int ret, code;

	ret = side_open(&side, args, TERN_DESTINATION, true);
	side.life_fd = life_fd;
	if (!ret)
		ret = side_start(&side, local_uri(args, why, sizeof(why)));
	if (!ret) {
		tern_session_uri(side.session, uri, sizeof(uri));
		peer_report(out, json_pack("{s:s}", "listening", uri));
		side_wait(&side);
		side_finish(&side);
	}
	code = side_exit_code(&side);
	peer_report(out, side_result(&side));
	side_close(&side);
	return code;
}

/* Wait for the child to listen; @uri gets where.  -errno with *err. */
static int wait_listening(struct bench *b, char *uri, size_t size, struct tern_error *err)
{
	json_t *report = NULL;
	const char *text;
	int ret = peer_read(&b->peer, b->signal_fd, -1, &report);

	if (ret == -EINTR) {
		b->interrupted = true;
		return cli_fail(err, ret, "interrupted before the migration began");
	}
	if (ret)
		return cli_fail(err, ret, "the destination process ended before it listened");
	text = json_string_value(json_object_get(report, "listening"));
	if (!text) {
		/* Its result already; it says why. */
		b->destination = report;
		return cli_fail(err, -EIO, "the destination could not listen");
	}
	snprintf(uri, size, "%s", text);
	json_decref(report);
	return 0;
}

/* Take the child's result.  After a failure it is told to end, and not waited for long. */
static void collect(struct bench *b)
{
	bool completed = side_completed(&b->source);
	int wait_ms = completed ? -1 : RESULT_WAIT_MS;
	char how[128];
	int ret = 0;

	if (b->source.started && tern_session_outcome(b->source.session) == TERN_OUTCOME_UNKNOWN)
		wait_ms = UNKNOWN_WAIT_MS;
	if (!completed)
		peer_hang_up(&b->peer);
	if (!b->destination)
		ret = peer_read(&b->peer, completed ? b->signal_fd : -1, wait_ms, &b->destination);
	b->interrupted |= ret == -EINTR;
	/* With a result or at the end of the pipe it is about to exit. */
	peer_end(&b->peer, ret && ret != -EPIPE ? 0 : EXIT_WAIT_MS, how, sizeof(how));
	if (how[0])
		cli_complain("%s", how);
	else if (ret == -EPIPE || ret == -EBADMSG)
		cli_complain("the destination process ended without a result");
	else if (ret == -ETIMEDOUT)
		cli_complain("the destination process did not answer and was ended");
}

/* Exit code of both sides together. */
static int both_exit_code(const struct bench *b, const json_t *source)
{
	const json_t *verify = json_object_get(b->destination, "verify");
	int code = side_exit_code(&b->source);

	complain_verify("source: ", json_object_get(source, "verify"));
	complain_verify("destination: ", verify);
	if (code != CLI_EXIT_OK)
		return code;
	if (b->interrupted) {
		cli_complain("interrupted before the destination had verified its RAM");
		return CLI_EXIT_CANCELLED;
	}
	if (!json_is_object(verify)) {
		cli_complain("the migration completed, but the destination did not verify its RAM");
		return CLI_EXIT_UNVERIFIED;
	}
	return verify_is_good(verify) ? CLI_EXIT_OK : CLI_EXIT_UNVERIFIED;
}

/* Open and run the source of two processes here. */
static int run_source(struct bench *b)
{
	char uri[512];
	int ret = side_open(&b->source, b->args, TERN_SOURCE, false);

	b->source.signal_fd = b->signal_fd;
	if (!ret)
		ret = wait_listening(b, uri, sizeof(uri), &b->source.error);
	if (!ret)
		ret = side_start(&b->source, uri);
	if (!ret)
		ret = side_wait(&b->source);
	return ret;
}

/* Both roles on this machine. */
static int bench_both(const struct bench_args *args, int signal_fd)
{
	struct bench b = { .args = args, .signal_fd = signal_fd };
	struct tern_error err = { 0 };
	json_t *result;
	int code;

	if (peer_start(&b.peer, destination_main, (void *)args, &err)) {
		cli_complain("%s", err.message);
		return CLI_EXIT_FAILED;
	}
	if (!run_source(&b))
		progress_text(&b.source.progress, "verifying");
	side_finish(&b.source);
	collect(&b);
	progress_text(&b.source.progress, NULL);
	result = side_result(&b.source);
	say_why(args, result);
	complain("", result);
	complain("destination: ", b.destination);
	code = b.interrupted && !b.source.started ? CLI_EXIT_CANCELLED : both_exit_code(&b, result);
	code = publish(args, result, b.destination, code);
	json_decref(result);
	json_decref(b.destination);
	side_close(&b.source);
	return code;
}

/* One role: --connect or --listen. */
static int bench_one(const struct bench_args *args, int signal_fd)
{
	enum tern_role role = args->role == BENCH_SOURCE ? TERN_SOURCE : TERN_DESTINATION;
	json_t *result;
	struct side side;
	char uri[512];
	int code, ret = side_open(&side, args, role, false);

	side.signal_fd = signal_fd;
	if (!ret)
		ret = side_start(&side, args->uri);
	if (!ret) {
		if (role == TERN_DESTINATION) {
			tern_session_uri(side.session, uri, sizeof(uri));
			progress_message(&side.progress, "listening on %s", uri);
		}
		side_wait(&side);
		progress_text(&side.progress, role == TERN_DESTINATION ? "verifying" : NULL);
		side_finish(&side);
		progress_text(&side.progress, NULL);
	}
	result = side_result(&side);
	complain("", result);
	complain_verify("", json_object_get(result, "verify"));
	code = side_exit_code(&side);
	code = publish(args, role == TERN_SOURCE ? result : NULL,
		       role == TERN_SOURCE ? NULL : result, code);
	json_decref(result);
	side_close(&side);
	return code;
}

/* `tern bench`. */
int cmd_bench(int argc, char **argv)
{
	struct tern_error err = { 0 };
	struct bench_args args;
	int code, signal_fd, ret = bench_args_parse(argc, argv, &args, &err);

	if (ret == BENCH_ARGS_HELP) {
		fputs(bench_args_usage(), stdout);
		return CLI_EXIT_OK;
	}
	if (!ret && args.recover) {
		ret = control_ask(args.control, args.uri, &err);
		if (ret)
			cli_complain("%s", err.message);
		return ret ? CLI_EXIT_FAILED : CLI_EXIT_OK;
	}
	if (!ret)
		ret = bench_apply_params(&args, TERN_SOURCE, NULL, &err);
	if (!ret)
		ret = check_memory(&args, &err);
	if (ret) {
		cli_complain("%s", err.message);
		return CLI_EXIT_USAGE;
	}
	signal_fd = signals_open();
	if (signal_fd < 0) {
		cli_complain("cannot make a signalfd: %s", strerror(-signal_fd));
		return CLI_EXIT_FAILED;
	}
	code = args.role == BENCH_BOTH ? bench_both(&args, signal_fd) : bench_one(&args, signal_fd);
	close(signal_fd);
	return code;
}
