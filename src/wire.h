/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_SRC_WIRE_H
#define TERN_SRC_WIRE_H

/*
 * The engine's messages: structures, limits, encoding and decoding.
 *
 * docs/protocol.md describes every byte.  All integers are little-endian; there
 * is no padding.  Encoding and decoding walk one constant table of fields per
 * message (wire.c), so that both directions, the limits and the names in error
 * messages cannot disagree.  Internal structures and enums never go on the wire.
 *
 * Decoding trusts nothing: unknown types, flags, lengths and values outside the
 * limits of the table are errors that name message and field (invariant 6).
 */

#include <stddef.h>
#include <stdint.h>
#include <tern/region.h>

#include "transport.h"

struct tern_error;

/* Protocol versions this code speaks. */
#define WIRE_VERSION_MIN 1u
#define WIRE_VERSION_MAX 1u

/* Optional features, bits of HELLO.features. */
#define WIRE_FEATURE_POSTCOPY 1ull /* the guest may run before all RAM is here */
#define WIRE_FEATURE_SWITCHOVER_ACK 2ull /* the source waits for the destination's VMM */
#define WIRE_FEATURES_KNOWN (WIRE_FEATURE_POSTCOPY | WIRE_FEATURE_SWITCHOVER_ACK)

/* Control messages.  The numbers are the protocol's. */
enum wire_type {
	WIRE_HELLO = 1,      /* source: what it wants to move and how */
	WIRE_HELLO_ACK = 2,  /* destination: what was agreed */
	WIRE_REGIONS = 3,    /* source: a part of the region list */
	WIRE_REGIONS_ACK = 4, /* destination: the list is the same here */
	WIRE_SETUP_DONE = 5, /* destination: channels attached, writes welcome */
	WIRE_ROUND = 6,      /* source: a round ended (all of it is placed) */
	WIRE_STATE = 7,      /* source: a piece of device state */
	WIRE_STATE_END = 8,  /* source: all device state was sent */
	WIRE_READY = 9,      /* destination: loaded, could run */
	WIRE_GO = 10,        /* source: run; from now on it is yours */
	WIRE_STARTED = 11,   /* destination: the guest runs here */
	WIRE_BYE = 12,       /* source: STARTED was seen */
	WIRE_CANCEL = 13,    /* source: the migration is off; before GO only */
	WIRE_ERROR = 14,     /* either: the session ends, and why */
	WIRE_PING = 15,      /* either: still alive */
	/* With WIRE_FEATURE_POSTCOPY: */
	WIRE_MISSING = 16,   /* either: pages that are not at the destination */
	WIRE_POSTCOPY = 17,  /* source: all MISSING were sent; the rest comes after GO */
	WIRE_PAGES_WANTED = 18, /* destination: its guest waits for these */
	WIRE_COMPLETE = 19,  /* destination: nothing is missing any more */
	WIRE_RECOVER = 20,   /* source, in place of HELLO: go on after a lost link */
	WIRE_RECOVER_ACK = 21, /* destination: what was agreed; MISSING follow */
	/* With WIRE_FEATURE_SWITCHOVER_ACK: */
	WIRE_SWITCHOVER_ACK = 22, /* destination: its VMM is ready for the switchover */
	WIRE_TYPE_NR,
};

#define WIRE_HEADER_LEN 8u
#define WIRE_REGIONS_PER_MSG 64u
#define WIRE_STATE_DATA_MAX 8160u /* device state bytes in one STATE message */
#define WIRE_ERROR_TEXT_MAX 400u
#define WIRE_RUNS_MAX 8160u /* bytes of run lengths in one MISSING */
#define WIRE_WANTED_PER_MSG 64u
#define WIRE_BY_CONTENTS_MAX (TERN_REGIONS_MAX / 8u)

struct wire_hello {
	uint16_t version_min, version_max;
	uint32_t channels;
	uint64_t features;          /* offered */
	uint64_t features_required; /* of those, needed */
	uint8_t session_id[TRANSPORT_SESSION_ID_LEN];
	uint32_t page_size;
	uint32_t nr_regions;
	uint64_t ram_bytes;
	uint64_t stripe_bytes;
	uint64_t chunk_bytes;
	uint64_t state_max;
	uint32_t peer_timeout_ms;
};

struct wire_hello_ack {
	uint16_t version;
	uint32_t channels;
	uint64_t features;
	uint64_t chunk_bytes;
	uint32_t peer_timeout_ms;
};

struct wire_region {
	uint32_t id;
	uint64_t size;
	uint64_t gpa;
	uint64_t host_page_size;
	char name[TERN_REGION_NAME_MAX + 1];
};

struct wire_regions {
	uint32_t first;
	uint16_t count;
	struct wire_region v[WIRE_REGIONS_PER_MSG];
};

struct wire_regions_ack {
	uint32_t nr_regions;
	uint64_t ram_bytes;
	/*
	 * A bit per region, low ones first: after the switchover its pages have to come in
	 * CONTENTS.  No bytes without WIRE_FEATURE_POSTCOPY.
	 */
	uint16_t by_contents_len;
	uint8_t by_contents[WIRE_BY_CONTENTS_MAX];
};

struct wire_setup_done {
	uint32_t channels;
};

struct wire_round {
	uint32_t round;
	uint8_t final;
	uint64_t normal_pages;
	uint64_t zero_pages;
	uint64_t skipped_pages;
	uint64_t bytes;
};

struct wire_state {
	uint64_t offset;
	uint16_t len;
	uint8_t data[WIRE_STATE_DATA_MAX];
};

struct wire_state_end {
	uint64_t total;
};

struct wire_ready {
	uint64_t load_ns;
};

struct wire_started {
	uint64_t resume_ns;
	uint64_t since_ns;
	uint64_t waited_ns;
};

struct wire_error {
	int32_t code;      /* negative errno of Linux */
	uint8_t scope;     /* enum tern_error_scope */
	uint8_t started;   /* 1: sender says that the guest may be running at its side */
	uint16_t len;
	uint8_t text[WIRE_ERROR_TEXT_MAX];
};

/* Pages of @region from @first_page on; see runs.h. */
struct wire_missing {
	uint32_t region;
	uint64_t first_page;
	uint16_t len;
	uint8_t runs[WIRE_RUNS_MAX];
};

struct wire_postcopy {
	uint64_t missing_pages; /* in all MISSING together */
};

struct wire_page_range {
	uint32_t region;
	uint64_t first_page;
	uint64_t nr_pages;
};

struct wire_wanted {
	uint16_t count;
	struct wire_page_range v[WIRE_WANTED_PER_MSG];
};

struct wire_recover {
	uint16_t version;
	uint32_t channels;
	uint64_t chunk_bytes;
	uint32_t peer_timeout_ms;
	uint8_t session_id[TRANSPORT_SESSION_ID_LEN];
};

struct wire_recover_ack {
	uint32_t channels;
	uint64_t chunk_bytes;
	uint32_t peer_timeout_ms;
	uint64_t missing_pages; /* in the MISSING that follow */
};

struct wire_msg {
	enum wire_type type;
	uint32_t seq;
	union {
		struct wire_hello hello;
		struct wire_hello_ack hello_ack;
		struct wire_regions regions;
		struct wire_regions_ack regions_ack;
		struct wire_setup_done setup_done;
		struct wire_round round;
		struct wire_state state;
		struct wire_state_end state_end;
		struct wire_ready ready;
		struct wire_started started;
		struct wire_error error;
		struct wire_missing missing;
		struct wire_postcopy postcopy;
		struct wire_wanted wanted;
		struct wire_recover recover;
		struct wire_recover_ack recover_ack;
	};
};

/* wire_type_name - "HELLO", …; "unknown". */
const char *wire_type_name(unsigned type);

/*
 * wire_from_source, wire_from_destination - may this side send @type?
 */
bool wire_from_source(enum wire_type type);
bool wire_from_destination(enum wire_type type);

/*
 * wire_encode - write *msg into @buf (TRANSPORT_MSG_MAX bytes).
 *
 * Returns the length.  The caller guarantees values within the table's limits
 * (asserted).
 */
size_t wire_encode(const struct wire_msg *msg, uint8_t *buf);

/*
 * wire_decode - read one message.
 *
 * Returns 0, or -EPROTO/-EBADMSG with a sentence that names message and field.
 * *msg is undefined on failure.
 */
int wire_decode(const uint8_t *buf, size_t len, struct wire_msg *msg, struct tern_error *err);

/*
 * Messages that travel on channels, as a notify or at the begin of a push.
 */
#define WIRE_RANGES_MAX 200u

enum wire_notify_type {
	WIRE_NOTIFY_ZERO = 1, /* pages that were sent with contents earlier and are zero now */
	WIRE_NOTIFY_PLACED = 2, /* postcopy: pages that were written on this channel before */
	WIRE_NOTIFY_EMPTY = 3, /* postcopy: pages that were never sent and are zero */
	WIRE_NOTIFY_CONTENTS = 4, /* postcopy: pages, whose contents follow */
	WIRE_NOTIFY_NR,
};

struct wire_ranges {
	uint16_t count;
	struct wire_page_range v[WIRE_RANGES_MAX];
};

struct wire_contents {
	uint32_t region;
	uint64_t first_page; /* as many as there are contents */
};

struct wire_notify {
	enum wire_notify_type type;
	union {
		struct wire_ranges ranges; /* all but CONTENTS */
		struct wire_contents contents;
	};
};

/* wire_notify_name - "ZERO", …; "unknown". */
const char *wire_notify_name(unsigned type);

/* Encode and decode; as above, @buf of TRANSPORT_NOTIFY_MAX bytes. */
size_t wire_notify_encode(const struct wire_notify *n, uint8_t *buf);
size_t wire_ranges_encode(enum wire_notify_type type, const struct wire_ranges *r, uint8_t *buf);
int wire_notify_decode(const uint8_t *buf, size_t len, struct wire_notify *n,
		       struct tern_error *err);

#endif
