/* SPDX-License-Identifier: BSD-2-Clause */

/* Seeds of the RDMA framing: greetings, lists of keys, and frames of a whole connection. */

#include <string.h>

#include "greeting.h"
#include "make_corpus.h"

/* Lists of keys, by their message. */
static size_t key_list(enum ctl_type type, uint8_t *buf)
{
	const struct key_wanted want[2] = {
		{ .id = 0, .len = 4096, .channel = KEYS_ANY_CHANNEL },
		{ .id = 1, .offset = 8192, .len = 8192, .channel = KEYS_ANY_CHANNEL },
	};
	const struct key_granted granted[2] = {
		{ .id = 0, .remote_va = 1ull << 40, .rkey = 7, .channel = KEYS_ANY_CHANNEL },
		{ .id = 1, .status = -12, .limit = 1 << 20, .channel = 3 },
	};
	const uint32_t ids[2] = { 0, 1 };

	return type == CTL_KEYS_WANTED ? keys_wanted_put(buf, want, 2)
	       : type == CTL_KEYS      ? keys_put(buf, granted, 2)
				       : keys_release_put(buf, ids, 2);
}

void make_rdma(struct seed *s, const char *dir)
{
	const struct greeting control = { .version = GREETING_VERSION,
					  .kind = GREETING_CONTROL,
					  .ring = 64,
					  .msg_window = 32,
					  .piece_bytes = 2 << 20 };
	const struct greeting data = { .version = GREETING_VERSION,
				       .kind = GREETING_DATA,
				       .count = 4,
				       .index = 3,
				       .ring = 16 };
	const struct refusal refusal = { .version = GREETING_VERSION, .code = REFUSAL_COUNT };
	uint8_t buf[4096];

	greeting_put(buf, &control);
	seed_add(s, buf, GREETING_LEN);
	seed_write(s, dir, "rdma", "full-control");
	greeting_put(buf, &data);
	seed_add(s, buf, GREETING_LEN);
	seed_write(s, dir, "rdma", "full-data");
	refusal_put(buf, &refusal);
	seed_add(s, buf, REFUSAL_LEN);
	seed_write(s, dir, "rdma", "full-refusal");
	seed_add(s, buf, key_list(CTL_KEYS_WANTED, buf));
	seed_write(s, dir, "rdma", "full-wanted");
	seed_add(s, buf, key_list(CTL_KEYS, buf));
	seed_write(s, dir, "rdma", "full-granted");
	seed_add(s, buf, key_list(CTL_KEYS_RELEASE, buf));
	seed_write(s, dir, "rdma", "full-release");
}

/* A record of @len bytes on the control queue or the data channel. */
static void add_rdma_record(struct seed *s, bool data, const uint8_t *frame, size_t len)
{
	const uint8_t head[3] = { data, (uint8_t)len, (uint8_t)(len >> 8) };

	seed_add(s, head, sizeof(head));
	seed_add(s, frame, len);
}

static void add_rdma_control(struct seed *s, enum ctl_type type, const void *payload, size_t len)
{
	const struct ctl_header h = { .type = (uint16_t)type, .len = (uint32_t)len };
	uint8_t buf[4096];

	ctl_header_put(buf, &h);
	if (len)
		memcpy(buf + CTL_HEADER_LEN, payload, len);
	add_rdma_record(s, false, buf, CTL_HEADER_LEN + len);
}

static void add_rdma_data(struct seed *s, enum data_type type, uint64_t seq, size_t len)
{
	const struct data_header h = { .type = (uint16_t)type, .len = (uint32_t)len, .seq = seq };
	uint8_t buf[4096] = { 0 };

	data_header_put(buf, &h);
	add_rdma_record(s, true, buf, DATA_HEADER_LEN + len);
}

void make_rdma_frames(struct seed *s, const char *dir)
{
	static const uint8_t zeros[64];
	uint8_t buf[4096];

	add_rdma_control(s, CTL_MSG, "message", 7);
	add_rdma_control(s, CTL_KEYS_WANTED, buf, key_list(CTL_KEYS_WANTED, buf));
	add_rdma_control(s, CTL_CREDIT, NULL, 0);
	add_rdma_data(s, DATA_NOTIFY, 0, 100);
	add_rdma_data(s, DATA_FENCE, 1, 0);
	add_rdma_data(s, DATA_TALLY, 0, 0);
	add_rdma_data(s, DATA_END, 0, 0);
	add_rdma_control(s, CTL_BYE, NULL, 0);
	seed_write(s, dir, "rdma_frames", "full-all");
	add_rdma_control(s, CTL_BYE, NULL, 0);
	seed_write(s, dir, "rdma_frames", "full-bye");
	add_rdma_data(s, DATA_PUSH, 4000, 4020);
	add_rdma_data(s, DATA_PUSH, 1, 2);
	add_rdma_data(s, DATA_FENCE, 1, 0);
	add_rdma_data(s, DATA_END, 0, 0);
	add_rdma_control(s, CTL_BYE, NULL, 0);
	seed_write(s, dir, "rdma_frames", "full-pushes");
	add_rdma_data(s, DATA_PUSH, 20, 20);
	seed_write(s, dir, "rdma_frames", "push-without-message");
	add_rdma_control(s, CTL_KEYS_RELEASE, buf, key_list(CTL_KEYS_RELEASE, buf));
	seed_write(s, dir, "rdma_frames", "release-of-nothing");
	add_rdma_control(s, CTL_KEYS, buf, key_list(CTL_KEYS, buf));
	seed_write(s, dir, "rdma_frames", "keys-to-the-destination");
	add_rdma_data(s, DATA_FENCE_ACK, 1, 0);
	seed_write(s, dir, "rdma_frames", "answer-to-the-destination");
	for (unsigned i = 0; i < 40; i++)
		add_rdma_control(s, CTL_MSG, zeros, sizeof(zeros));
	seed_write(s, dir, "rdma_frames", "many-messages");
	for (unsigned i = 0; i < 20; i++)
		add_rdma_data(s, DATA_FENCE, i, 0);
	seed_write(s, dir, "rdma_frames", "many-fences");
	add_rdma_record(s, false, zeros, 3);
	seed_write(s, dir, "rdma_frames", "short-control");
	add_rdma_record(s, true, zeros, 3);
	seed_write(s, dir, "rdma_frames", "short-data");
}
