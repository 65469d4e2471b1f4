/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_TESTS_FAULT_PEER_H
#define TERN_TESTS_FAULT_PEER_H

/*
 * A peer made of raw sockets, for either role: it can say anything at any time.
 *
 * Well-formed messages come from the product's encoder; a test then patches bytes
 * by the offsets of docs/protocol.md.  Nothing here asserts: functions return false
 * when the other side does not behave, and note why in ->problems.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "scene.h"
#include "testvm.h"
#include "wire.h"

#define PEER_CHANNELS 2u
/* That the victim's session uses, and the peer offers. */
#ifdef SCENE_SLOW
#define PEER_TIMEOUT_MS 1500u
#else
#define PEER_TIMEOUT_MS 1000u
#endif

struct peer {
	int listen_fd; /* a destination's, or -1 */
	int fd; /* control connection, or -1 */
	int data[PEER_CHANNELS]; /* or -1 */
	uint8_t id[TRANSPORT_SESSION_ID_LEN];
	uint32_t tx_seq;
	bool postcopy; /* it offers or agrees to postcopy; set before it says anything */
	const struct testvm *vm; /* whose regions it claims to have */
	char error[WIRE_ERROR_TEXT_MAX + 1]; /* of the last ERROR message received */
	char *problems;
};

void peer_init(struct peer *p, const struct testvm *vm, char *problems);
void peer_close(struct peer *p);

/* peer_connect - as a source: control connection and preamble to a listener's @uri. */
bool peer_connect(struct peer *p, const char *uri);

/* peer_socket - a bare connection to @uri; the descriptor or -1. */
int peer_socket(struct peer *p, const char *uri);

/* peer_listen - as a destination: listen somewhere; @uri (64 bytes) says where. */
bool peer_listen(struct peer *p, char *uri);

/* peer_accept - as a destination: take the control connection and its preamble. */
bool peer_accept(struct peer *p);

/* peer_attach - as a source: connect all channels and wait until they are taken in. */
bool peer_attach(struct peer *p, const char *uri);

/* peer_take_channels - as a destination: take in all channels, answer with status @code. */
bool peer_take_channels(struct peer *p, uint16_t code);

/* peer_bytes - raw bytes on the control connection; false if it is gone (no problem). */
bool peer_bytes(struct peer *p, const void *bytes, size_t len);

/* peer_record - one control record of any contents. */
bool peer_record(struct peer *p, const void *bytes, size_t len);

/* peer_frame - raw bytes on channel @i. */
bool peer_frame(struct peer *p, unsigned i, const void *bytes, size_t len);

/* peer_message - a good message of @type for this peer's regions, encoded; its length. */
size_t peer_message(struct peer *p, enum wire_type type, uint8_t *buf);

/* peer_say - peer_message() and peer_record(). */
bool peer_say(struct peer *p, enum wire_type type);

/*
 * peer_hear - take control messages until one of @type; *msg may be NULL.
 *
 * Answers fences on the channels meanwhile if @fences.  PINGs are skipped; false, and
 * noted, if another message or the end comes first.  An ERROR's text is kept.
 */
bool peer_hear(struct peer *p, enum wire_type type, struct wire_msg *msg, bool fences);

/* peer_hear_end - take messages until the connection ends; keeps an ERROR's text. */
void peer_hear_end(struct peer *p);

/*
 * peer_ping_to_end - send PING every now and then until the connection ends, and nothing
 * else; answer fences if @fences.
 */
void peer_ping_to_end(struct peer *p, bool fences);

#endif
