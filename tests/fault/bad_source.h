/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_TESTS_FAULT_BAD_SOURCE_H
#define TERN_TESTS_FAULT_BAD_SOURCE_H

/*
 * A source that behaves up to some stage and then offends, and the judgement on
 * the destination it offended.
 */

#include <stdbool.h>

#include "peer.h"
#include "scene.h"
#include "victim.h"

/* How far the source behaves. */
enum stage {
	BEFORE_HELLO,
	BEFORE_REGIONS,
	BEFORE_CHANNELS,
	BEFORE_ROUND,
	BEFORE_STATE, /* ROUND 1, final */
	BEFORE_STATE_END,
	BEFORE_GO, /* READY came */
	BEFORE_BYE, /* STARTED came */
	STAGE_NR,
};

extern const char *const stage_names[STAGE_NR];

/* bad_source_uri - the victim's address; @uri has 320 bytes. */
void bad_source_uri(struct victim *v, char *uri);

/* bad_source_behave - do so up to @stage.  False, and noted, if the destination does not. */
bool bad_source_behave(struct peer *p, struct victim *v, enum stage stage);

/*
 * bad_source_judge - the offence was committed at @stage: what became of the destination?
 *
 * @first: what page 0 must hold.  @text: what it must say.
 */
void bad_source_judge(struct victim *v, struct peer *p, enum stage stage, uint8_t first,
		      const char *text);

/* bytes_patch - set @size bytes at @at of @buf, little-endian. */
void bytes_patch(uint8_t *buf, unsigned at, unsigned size, uint64_t value);

/* problems_tell - print the cases that had problems, and free the array; true if none had. */
bool problems_tell(char (*problems)[SCENE_PROBLEMS_MAX], unsigned nr,
		   void (*name)(unsigned i, char *buf, size_t size));

#endif
