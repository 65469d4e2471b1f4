/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * The engine's messages.  Whatever decodes must encode to the very bytes it came
 * from: the format has one encoding for each message.
 */

#include <string.h>

#include "error.h"
#include "fuzz.h"
#include "wire.h"

/* As a control message. */
static bool try_message(const uint8_t *data, size_t size)
{
	struct wire_msg msg, again;
	struct tern_error err;
	uint8_t out[TRANSPORT_MSG_MAX];

	memset(&msg, 0xee, sizeof(msg));
	error_clear(&err);
	int r = wire_decode(data, size, &msg, &err);

	FUZZ_CHECK(r == err.code, "decoding returned %d and the error %d", r, err.code);
	FUZZ_CHECK(!r || err.message[0], "decoding failed without a sentence");
	if (r)
		return false;
	size_t len = wire_encode(&msg, out);

	FUZZ_CHECK(len == size && !memcmp(out, data, len),
		   "message %s of %zu bytes encodes differently, to %zu bytes",
		   wire_type_name(msg.type), size, len);
	FUZZ_CHECK(!wire_decode(out, len, &again, &err), "message %s does not decode again: %s",
		   wire_type_name(msg.type), err.message);
	FUZZ_CHECK(wire_from_source(msg.type) || wire_from_destination(msg.type),
		   "nobody sends message %s", wire_type_name(msg.type));
	return true;
}

/* As a notify. */
static bool try_notify(const uint8_t *data, size_t size)
{
	struct wire_notify n;
	struct tern_error err;
	uint8_t out[TRANSPORT_NOTIFY_MAX];

	memset(&n, 0xee, sizeof(n));
	error_clear(&err);
	int r = wire_notify_decode(data, size, &n, &err);

	FUZZ_CHECK(r == err.code, "decoding a notify returned %d and the error %d", r, err.code);
	if (r)
		return false;
	size_t len = wire_notify_encode(&n, out);

	FUZZ_CHECK(len == size && !memcmp(out, data, len),
		   "a notify of %zu bytes encodes differently, to %zu bytes", size, len);
	return true;
}

enum fuzz_reach fuzz_one(const uint8_t *data, size_t size, unsigned patience_ms)
{
	bool message = size <= TRANSPORT_MSG_MAX && try_message(data, size);
	bool zero = size <= TRANSPORT_NOTIFY_MAX && try_notify(data, size);

	return message || zero ? FUZZ_FULL : FUZZ_PARTLY;
}
