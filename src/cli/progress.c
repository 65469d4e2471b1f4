/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * Progress on stderr.
 *
 * The main thread redraws; the session's threads report states and rounds, so
 * all output goes through one lock.  A message erases the live line first and
 * the next redraw brings it back.  Where stderr is no terminal (or a dumb one)
 * no escape code is ever written, and rounds are told a few times per second at
 * most.
 */

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include "cli.h"
#include "progress.h"

#define ROUND_LINE_MIN_NS 250000000u
#define MIB 1048576.0

/* Begin; nothing is printed yet. */
void progress_init(struct progress *p, bool quiet, bool receiving)
{
	const char *term = getenv("TERM");

	*p = (struct progress){ .quiet = quiet, .receiving = receiving };
	p->tty = !quiet && isatty(STDERR_FILENO) && term && strcmp(term, "dumb");
	pthread_mutex_init(&p->lock, NULL);
}

/* Erase the live line.  The lock is held. */
static void erase(struct progress *p)
{
	if (p->drawn)
		fputs("\r\033[K", stderr);
	p->drawn = false;
}

/* End; the screen is left at the begin of an empty line. */
void progress_fini(struct progress *p)
{
	pthread_mutex_lock(&p->lock);
	erase(p);
	pthread_mutex_unlock(&p->lock);
	pthread_mutex_destroy(&p->lock);
}

/* Another text in place of the live line. */
void progress_text(struct progress *p, const char *text)
{
	if (!p->tty)
		return;
	pthread_mutex_lock(&p->lock);
	erase(p);
	if (text) {
		fprintf(stderr, "%s", text);
		p->drawn = true;
	}
	pthread_mutex_unlock(&p->lock);
}

/* A line of its own. */
void progress_message(struct progress *p, const char *fmt, ...)
{
	char line[1024];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	pthread_mutex_lock(&p->lock);
	erase(p);
	fprintf(stderr, "tern: %s\n", line);
	pthread_mutex_unlock(&p->lock);
}

/* A change of state; on a terminal the live line shows it. */
void progress_state(struct progress *p, enum tern_state state)
{
	if (p->quiet || p->tty)
		return;
	pthread_mutex_lock(&p->lock);
	fprintf(stderr, "state %s\n", tern_state_name(state));
	pthread_mutex_unlock(&p->lock);
}

/* The end of a round. */
void progress_round(struct progress *p, const struct tern_session *s)
{
	uint64_t now = cli_now_ns();
	struct tern_stats st;

	if (p->quiet || p->tty || tern_session_stats(s, &st, sizeof(st)))
		return;
	pthread_mutex_lock(&p->lock);
	if (now - p->last_round_ns >= ROUND_LINE_MIN_NS) {
		p->last_round_ns = now;
		fprintf(stderr, "round %u  %s %.1f MiB", st.nr_rounds,
			p->receiving ? "received" : "sent", (double)st.sent_bytes / MIB);
		if (!p->receiving)
			fprintf(stderr, "  %.0f MiB/s  dirty %.0f MiB/s  remaining %.1f MiB",
				(double)st.bandwidth / MIB, (double)st.dirty_rate / MIB,
				(double)st.remaining_bytes / MIB);
		fputc('\n', stderr);
	}
	pthread_mutex_unlock(&p->lock);
}

/*
 * Bytes of RAM that are through: in the first round what was scanned or at least
 * sent (the library counts pages per round), later, when a round has given a
 * bandwidth, what is clean.
 */
static uint64_t done_bytes(const struct tern_stats *st)
{
	uint64_t scanned = (st->normal_pages + st->zero_pages + st->skipped_pages) * TERN_PAGE_SIZE;

	if (st->state == TERN_STATE_COMPLETED)
		return st->ram_bytes;
	if (st->bandwidth)
		return st->remaining_bytes < st->ram_bytes ? st->ram_bytes - st->remaining_bytes
							   : 0;
	if (scanned < st->sent_bytes)
		scanned = st->sent_bytes;
	return scanned < st->ram_bytes ? scanned : st->ram_bytes;
}

/* Append to a line of at most @columns characters, whole fields only. */
static void add_field(char *buf, size_t size, unsigned columns, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));
static void add_field(char *buf, size_t size, unsigned columns, const char *fmt, ...)
{
	size_t used = strlen(buf), n;
	char field[64];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(field, sizeof(field), fmt, ap);
	va_end(ap);
	n = strlen(field);
	if (used + n <= columns && used + n < size)
		memcpy(buf + used, field, n + 1);
}

/* The live line; see progress.h. */
void progress_format(char *buf, size_t size, unsigned columns, const struct tern_stats *st,
		     uint64_t done, double sent_rate, double done_rate)
{
	double left = (double)(st->ram_bytes - done), speed = done_rate;

	if (st->bandwidth)
		speed = (double)st->bandwidth - (double)st->dirty_rate;
	buf[0] = 0;
	add_field(buf, size, columns, "%-8s", tern_state_name(st->state));
	if (!st->ram_bytes)
		return;
	add_field(buf, size, columns, " %3u%%", (unsigned)(done * 100 / st->ram_bytes));
	add_field(buf, size, columns, "  %.0f/%.0f MiB", (double)done / MIB,
		  (double)st->ram_bytes / MIB);
	add_field(buf, size, columns, "  %.0f MiB/s", sent_rate / MIB);
	add_field(buf, size, columns, "  dirty %.0f MiB/s", (double)st->dirty_rate / MIB);
	add_field(buf, size, columns, "  round %u", st->nr_rounds ? st->nr_rounds : 1);
	if (speed > 0)
		add_field(buf, size, columns, "  rest %.1f s", left / speed);
	else
		add_field(buf, size, columns, "  rest ?");
}

/* Measure the rates since the last redraw.  The lock is held. */
static void measure(struct progress *p, const struct tern_stats *st, uint64_t done)
{
	uint64_t now = cli_now_ns();
	double s = (double)(now - p->seen_ns) / 1e9;

	if (p->seen_ns && s > 0) {
		p->sent_rate = st->sent_bytes > p->seen_sent
				       ? (double)(st->sent_bytes - p->seen_sent) / s
				       : 0;
		p->done_rate = done > p->seen_done ? (double)(done - p->seen_done) / s : 0;
	}
	p->seen_ns = now;
	p->seen_sent = st->sent_bytes;
	p->seen_done = done;
}

/* Width of the terminal, or 80. */
static unsigned terminal_columns(void)
{
	struct winsize ws;

	if (ioctl(STDERR_FILENO, TIOCGWINSZ, &ws) || !ws.ws_col)
		return 80;
	return ws.ws_col;
}

/* Redraw the live line in place. */
void progress_draw(struct progress *p, const struct tern_session *s)
{
	struct tern_stats st;
	char line[256];
	uint64_t done;

	if (!p->tty || tern_session_stats(s, &st, sizeof(st)))
		return;
	done = done_bytes(&st);
	pthread_mutex_lock(&p->lock);
	measure(p, &st, done);
	/* One column less: some terminals wrap when the last one is written. */
	progress_format(line, sizeof(line), terminal_columns() - 1, &st, done, p->sent_rate,
			p->done_rate);
	fprintf(stderr, "\r%s\033[K", line);
	fflush(stderr);
	p->drawn = true;
	pthread_mutex_unlock(&p->lock);
}
