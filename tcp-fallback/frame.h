/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_TCP_FALLBACK_FRAME_H
#define TERN_TCP_FALLBACK_FRAME_H

/*
 * What goes over the sockets, byte by byte (docs/protocol.md has the same as a
 * specification).  All numbers are little-endian; every record is encoded and
 * decoded by fields.
 *
 *   preamble   32 bytes, connecting side, first thing on every connection
 *   status      8 bytes, listening side's answer to a data preamble, or its
 *               refusal of a control preamble in place of the first message
 *   control    u32 length, then the message; length 0: orderly close
 *   header     16 bytes, begins every frame of a data channel
 *   range      16 bytes each, behind the header of a WRITE, before the payload
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "transport.h"

#define FRAME_VERSION 1u
#define FRAME_MAGIC_LEN 8u
#define FRAME_PREAMBLE_LEN 32u
#define FRAME_STATUS_LEN 8u
#define FRAME_STATUS_MARK 0xffffffffu
#define FRAME_CONTROL_LEN 4u
#define FRAME_HEADER_LEN 16u
#define FRAME_RANGE_LEN 16u
#define FRAME_WRITE_HEAD_MAX (FRAME_HEADER_LEN + TRANSPORT_WRITE_RANGES_MAX * FRAME_RANGE_LEN)

enum frame_kind {
	FRAME_KIND_CONTROL = 1,
	FRAME_KIND_DATA = 2,
};

struct frame_preamble {
	uint16_t version;
	uint8_t kind; /* enum frame_kind */
	uint16_t index; /* data: channel, 0 … count - 1; control: 0 */
	uint16_t count; /* data: channels of the session; control: 0 */
	uint8_t session_id[TRANSPORT_SESSION_ID_LEN];
};

enum frame_status_code {
	FRAME_STATUS_OK = 0,
	FRAME_STATUS_VERSION = 1, /* value: the version the listener speaks */
	FRAME_STATUS_SESSION = 2, /* no such session here */
	FRAME_STATUS_TAKEN = 3, /* value: the index, attached already */
	FRAME_STATUS_INDEX = 4, /* value: number of channels expected */
	FRAME_STATUS_COUNT = 5, /* value: number of channels expected */
};

struct frame_status {
	uint16_t code; /* enum frame_status_code */
	uint16_t value;
};

enum frame_type {
	FRAME_WRITE = 1,
	FRAME_NOTIFY = 2,
	FRAME_FENCE = 3,
	FRAME_END = 4,
	FRAME_FENCE_ACK = 5,
	FRAME_PUSH = 6,
};

struct frame_header {
	uint8_t type; /* enum frame_type */
	uint8_t nr_ranges; /* WRITE: 1 … 64, else 0 */
	uint32_t length; /* bytes of the message; NOTIFY: 1 … 4096, PUSH: 1 … 256, else 0 */
	uint64_t seq; /* FENCE, FENCE_ACK: number of the fence, else 0 */
	uint64_t contents; /* PUSH: bytes of contents, 1 … 65536, else 0; in place of seq */
};

/* frame_put_u32, frame_get_u32 - little-endian. */
void frame_put_u32(uint8_t *p, uint32_t v);
uint32_t frame_get_u32(const uint8_t *p);

/* Encode into exactly FRAME_*_LEN bytes at @p. */
void frame_preamble_put(uint8_t *p, const struct frame_preamble *pre);
void frame_status_put(uint8_t *p, const struct frame_status *st);
void frame_header_put(uint8_t *p, const struct frame_header *h);
void frame_range_put(uint8_t *p, const struct transport_range *r);

/* frame_is_magic - true if the first @len bytes of a stream may be a preamble's. */
bool frame_is_magic(const uint8_t *p, size_t len);

/*
 * Decode.  frame_preamble_get expects the magic checked; it returns NULL if
 * the rest is well-formed, else what is wrong in words ("kind 7").  A preamble
 * of another version is well-formed: only its version is filled in.
 * frame_header_get returns NULL or the name of the bad field.
 */
const char *frame_preamble_get(const uint8_t *p, struct frame_preamble *pre);
bool frame_status_get(const uint8_t *p, struct frame_status *st);
const char *frame_header_get(const uint8_t *p, struct frame_header *h);
void frame_range_get(const uint8_t *p, struct transport_range *r);

#endif
