/* SPDX-License-Identifier: BSD-2-Clause */
#include "bad_source.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *const stage_names[] = {
	[BEFORE_HELLO] = "before HELLO",
	[BEFORE_REGIONS] = "before REGIONS",
	[BEFORE_CHANNELS] = "before channels",
	[BEFORE_ROUND] = "before ROUND",
	[BEFORE_STATE] = "before STATE",
	[BEFORE_STATE_END] = "before STATE_END",
	[BEFORE_GO] = "before GO",
	[BEFORE_BYE] = "before BYE",
};

_Static_assert(sizeof(stage_names) / sizeof(stage_names[0]) == STAGE_NR, "a name per stage");

/* The victim's address. */
void bad_source_uri(struct victim *v, char *uri)
{
	tern_session_uri(v->s, uri, 320);
}

/* Behave up to @stage.  False, and noted, if the destination does not play along. */
bool bad_source_behave(struct peer *p, struct victim *v, enum stage stage)
{
	char uri[320];

	bad_source_uri(v, uri);
	bool ok = peer_connect(p, uri);

	if (ok && stage > BEFORE_HELLO)
		ok = peer_say(p, WIRE_HELLO) && peer_hear(p, WIRE_HELLO_ACK, NULL, false);
	if (ok && stage > BEFORE_REGIONS)
		ok = peer_say(p, WIRE_REGIONS) && peer_hear(p, WIRE_REGIONS_ACK, NULL, false);
	if (ok && stage > BEFORE_CHANNELS)
		ok = peer_attach(p, uri) && peer_hear(p, WIRE_SETUP_DONE, NULL, false);
	if (ok && stage > BEFORE_ROUND)
		ok = peer_say(p, WIRE_ROUND);
	if (ok && stage > BEFORE_STATE)
		ok = peer_say(p, WIRE_STATE);
	if (ok && stage > BEFORE_STATE_END)
		ok = peer_say(p, WIRE_STATE_END) && peer_hear(p, WIRE_READY, NULL, false);
	if (ok && stage > BEFORE_GO)
		ok = peer_say(p, WIRE_GO) && peer_hear(p, WIRE_STARTED, NULL, false);
	if (!ok)
		problem_add(v->problems, "the destination does not let a good source get to '%s'",
			    stage_names[stage]);
	return ok;
}

/* The offence was committed at @stage: what became of the destination? */
void bad_source_judge(struct victim *v, struct peer *p, enum stage stage, uint8_t first,
		      const char *text)
{
	if (stage < BEFORE_ROUND) {
		victim_await_word(v, text);
		victim_expect_ram(v, first);
		victim_good_migration(v);
	} else if (victim_end(v) && stage < BEFORE_BYE) {
		victim_expect_error(v, text);
		victim_expect_ram(v, first);
		if (v->vm.is_running || v->vm.resumes)
			problem_add(v->problems, "the guest ran");
		if (tern_session_outcome(v->s) != TERN_OUTCOME_SOURCE)
			problem_add(v->problems, "the outcome is %s",
				    tern_outcome_name(tern_session_outcome(v->s)));
	} else if (tern_session_state(v->s) != TERN_STATE_COMPLETED || !v->vm.is_running) {
		problem_add(v->problems, "the guest that was started does not run");
	}
	if (p->error[0] && !word_found(p->error, text))
		problem_add(v->problems, "the peer was told '%s', due is '%s'", p->error, text);
}

/* Set @size bytes at @at of @buf, little-endian. */
void bytes_patch(uint8_t *buf, unsigned at, unsigned size, uint64_t value)
{
	for (unsigned i = 0; i < size; i++)
		buf[at + i] = (uint8_t)(value >> (8 * i));
}

/* Tell which cases had problems. */
bool problems_tell(char (*problems)[SCENE_PROBLEMS_MAX], unsigned nr,
		   void (*name)(unsigned i, char *buf, size_t size))
{
	bool good = true;

	for (unsigned i = 0; i < nr; i++) {
		char buf[128];

		if (!problems[i][0])
			continue;
		name(i, buf, sizeof(buf));
		fprintf(stderr, "%s: %s\n", buf, problems[i]);
		good = false;
	}
	free(problems);
	return good;
}
