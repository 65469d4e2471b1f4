/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_CLI_PROGRESS_H
#define TERN_CLI_PROGRESS_H

/*
 * What a user sees on stderr while a migration runs: on a terminal one line that
 * is redrawn in place, elsewhere a plain line per change of state and per round.
 */

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <tern/stats.h>

#define PROGRESS_REDRAW_MS 200

struct progress {
	pthread_mutex_t lock; /* everything below, and the order of lines on stderr */
	bool quiet; /* only messages */
	bool receiving; /* this is the destination */
	bool tty; /* stderr is a terminal that can redraw a line */
	bool drawn; /* a live line stands on the screen */
	uint64_t last_round_ns;
	uint64_t seen_ns, seen_sent, seen_done; /* at the last redraw, for rates */
	double sent_rate, done_rate; /* bytes per second */
};

/* progress_init - @receiving: this is the destination. */
void progress_init(struct progress *p, bool quiet, bool receiving);

/* progress_fini - end the live line. */
void progress_fini(struct progress *p);

/* progress_state, progress_round - the session's state changed, a round ended. */
void progress_state(struct progress *p, enum tern_state state);
void progress_round(struct progress *p, const struct tern_session *s);

/* progress_draw - redraw the live line; does nothing elsewhere. */
void progress_draw(struct progress *p, const struct tern_session *s);

/* progress_text - show @text instead of the live line; NULL: nothing.  Terminals only. */
void progress_text(struct progress *p, const char *text);

/* progress_message - print "tern: …" as a line of its own. */
void progress_message(struct progress *p, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

/*
 * progress_format - the text of the live line, at most @columns characters.
 *
 * @done_bytes of st->ram_bytes are through; rates in bytes per second, as
 * measured by the caller.
 */
void progress_format(char *buf, size_t size, unsigned columns, const struct tern_stats *st,
		     uint64_t done_bytes, double sent_rate, double done_rate);

#endif
