/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_RDMA_GREETING_H
#define TERN_RDMA_GREETING_H

/*
 * What travels on an RDMA connection besides guest RAM.  All integers are
 * little-endian; fields without a name are 0.
 *
 * Greeting: private data of the CM request and of its acceptance (52 bytes).
 *
 *	0   magic "TERNRDMA"       8   u16 version      10  u16 kind
 *	12  u16 index              14  u16 count        16  session id
 *	32  u16 ring               34  u16 msg_window   36  u32 piece_bytes
 *	40  u64 lock_budget        48  u32 flags
 *
 * @ring is the number of receives that the sender of the greeting has posted,
 * @msg_window how many engine messages it keeps; lock_budget 0 is no limit.
 * piece_bytes has to be the same on both sides.  The request's flags say what the
 * source can do, the acceptance's which of that the destination will use.
 *
 * Refusal: private data of a CM rejection (16 bytes): magic, u16 version, u16
 * code, u32 value.
 *
 * Control frame: one SEND on the control queue pair, 16 bytes and a payload.
 *
 *	0   u16 type     2  u16 frame credits     4  u16 message credits
 *	8   u32 payload length
 *
 * Data frame: one SEND on the queue pair of a channel, 32 bytes and a payload.
 *
 *	0   u16 type     2  u16 credits           4  u32 payload length
 *	8   u64 sequence number of a fence, or a push's bytes of contents
 *	16  u64 bytes written so far              24  u64 ranges written so far
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "transport.h"

#define GREETING_LEN 52u
#define GREETING_VERSION 1u
#define REFUSAL_LEN 16u
#define GREETING_RING_MIN 4u /* receives; fewer could not carry the frames that answer */
#define GREETING_RING_MAX 4096u

enum greeting_flag {
	GREETING_WINDOWS = 1, /* control: keys are of memory windows, one per channel */
	GREETING_PUSH = 2, /* data: contents travel with messages */
};

enum greeting_kind {
	GREETING_CONTROL = 1,
	GREETING_DATA = 2,
};

struct greeting {
	uint16_t version;
	uint16_t kind; /* enum greeting_kind */
	uint16_t index, count; /* data: channel @index of @count */
	uint8_t session_id[TRANSPORT_SESSION_ID_LEN];
	uint16_t ring;
	uint16_t msg_window;
	uint32_t piece_bytes; /* control: grid that registrations do not cross */
	uint64_t lock_budget; /* bytes; 0: none */
	uint32_t flags; /* enum greeting_flag */
};

enum refusal_code {
	REFUSAL_VERSION = 1, /* value: the version spoken here */
	REFUSAL_SESSION = 2, /* no such session */
	REFUSAL_TAKEN = 3, /* that channel is attached already */
	REFUSAL_COUNT = 4, /* value: channels expected */
	REFUSAL_BUSY = 5, /* too many are waiting, or no resources */
	REFUSAL_GREETING = 6, /* not a greeting, or one with impossible values */
	REFUSAL_PIECE = 7, /* value: bytes of a piece here */
};

struct refusal {
	uint16_t version;
	uint16_t code; /* enum refusal_code */
	uint32_t value;
};

/* Control frames. */
#define CTL_HEADER_LEN 16u

enum ctl_type {
	CTL_MSG = 1, /* a message of the engine */
	CTL_CREDIT = 2, /* nothing but credits */
	CTL_KEYS_WANTED = 3, /* source: register these and tell me the keys */
	CTL_KEYS = 4, /* destination: the keys */
	CTL_KEYS_RELEASE = 5, /* source: these are not needed any more */
	CTL_BYE = 6, /* orderly close; the last frame */
};

struct ctl_header {
	uint16_t type;
	uint16_t credits, msg_credits;
	uint32_t len;
};

/* Payloads of key frames: u32 count, u32 0, then that many of these. */
#define KEYS_HEAD_LEN 8u
#define KEYS_WANTED_LEN 32u /* u32 id, u32 region, u64 offset, u64 len, u32 channel, u32 0 */
#define KEYS_LEN 24u /* u32 id, i32 status, u64 address or limit, u32 key, u32 channel */
#define KEYS_RELEASE_LEN 4u /* u32 id */
#define KEYS_BATCH 64u
#define KEYS_ANY_CHANNEL 0xffffffffu /* without windows a key serves all of them */

struct key_wanted {
	uint32_t id, region;
	uint64_t offset, len; /* bytes */
	uint32_t channel; /* that will write, or KEYS_ANY_CHANNEL */
};

struct key_granted {
	uint32_t id;
	int32_t status; /* 0 or -errno */
	uint64_t remote_va; /* if status is 0 */
	uint64_t limit; /* else: the destination's memlock limit in bytes; 0: it has none */
	uint32_t rkey;
	uint32_t channel; /* as in the request */
};

/* Data frames. */
#define DATA_HEADER_LEN 32u

enum data_type {
	DATA_NOTIFY = 1, /* source: for serve() */
	DATA_FENCE = 2, /* source: answer when you get here */
	DATA_TALLY = 3, /* source: figures only */
	DATA_END = 4, /* source: orderly end of the channel */
	DATA_CREDIT = 5, /* destination: credits */
	DATA_FENCE_ACK = 6, /* destination: answer to FENCE */
	DATA_PUSH = 7, /* source: a NOTIFY with contents; if both sides said GREETING_PUSH */
};

struct data_header {
	uint16_t type;
	uint16_t credits;
	uint32_t len;
	uint64_t seq; /* FENCE, FENCE_ACK: its number; PUSH: bytes of contents */
	uint64_t bytes, writes;
};

void greeting_put(uint8_t buf[GREETING_LEN], const struct greeting *g);

/* greeting_get - false if @len bytes at @buf are no greeting; the version is not checked. */
bool greeting_get(const void *buf, size_t len, struct greeting *g);

/*
 * greeting_check - the first impossible value of @g: "ring is 2, possible is 5 to 4096".
 *
 * 0, or -EPROTO with the words in @why.
 */
int greeting_check(const struct greeting *g, char *why, size_t size);

void refusal_put(uint8_t buf[REFUSAL_LEN], const struct refusal *r);
bool refusal_get(const void *buf, size_t len, struct refusal *r);

void ctl_header_put(uint8_t *buf, const struct ctl_header *h);
void ctl_header_get(const uint8_t *buf, struct ctl_header *h);
void data_header_put(uint8_t *buf, const struct data_header *h);
void data_header_get(const uint8_t *buf, struct data_header *h);

/* Payloads of key frames; *_put return the length. */
size_t keys_wanted_put(uint8_t *buf, const struct key_wanted *v, unsigned nr);
size_t keys_put(uint8_t *buf, const struct key_granted *v, unsigned nr);
size_t keys_release_put(uint8_t *buf, const uint32_t *ids, unsigned nr);

/* *_get return how many there are (at most KEYS_BATCH), or -1: lengths do not fit. */
int keys_wanted_get(const uint8_t *buf, size_t len, struct key_wanted *v);
int keys_get(const uint8_t *buf, size_t len, struct key_granted *v);
int keys_release_get(const uint8_t *buf, size_t len, uint32_t *ids);

#endif
