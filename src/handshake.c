/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The handshake: everything both ends must agree on before a byte of RAM moves
 * (invariant 9).
 *
 *	source                               destination
 *	HELLO  version range, features,
 *	       sizes, session id      ---->  checks; picks version, channels, chunk
 *	                              <----  HELLO_ACK
 *	REGIONS (in parts of 64)      ---->  compares with its own list
 *	                              <----  REGIONS_ACK
 *	opens N channels              ---->  takes them in
 *	                              <----  SETUP_DONE
 *
 * A disagreement is found by the side that can compare, mostly the destination.
 * It answers ERROR with one sentence that names the item and both values, so that
 * both sides report the same.
 */
#include "session.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/random.h>

#include "agree.h"
#include "destination.h"
#include "error.h"
#include "placement.h"

/* How many channels the source asks for when the caller leaves it to us. */
static unsigned default_channels(const struct tern_session *s)
{
	unsigned cpus = session_nr_cpus(s), nodes;
	int ignored[TRANSPORT_CHANNELS_MAX];

	cpus = cpus < 1 ? 1 : cpus > 4 ? 4 : cpus;
	nodes = region_nodes(&s->regions, ignored, TRANSPORT_CHANNELS_MAX);
	return nodes > cpus ? nodes : cpus; /* no node's memory is sent from another */
}

/* Source: does the migration end in postcopy? */
static bool wants_postcopy(const struct tern_session *s)
{
	return session_param(s, TERN_PARAM_MODE) != TERN_MODE_PRECOPY;
}

/* How many channels the source asks for. */
static unsigned wanted_channels(const struct tern_session *s)
{
	uint64_t channels = session_param(s, TERN_PARAM_CHANNELS);

	unsigned n = channels ? (unsigned)channels : default_channels(s);

	/* In postcopy there is one more, for what the guest waits for. */
	if (wants_postcopy(s) && n == TRANSPORT_CHANNELS_MAX)
		n--;
	return n;
}

/* ------------------------------------------------------------------ source */

/* Features that this source needs. */
static uint64_t wanted_features(const struct tern_session *s)
{
	return (wants_postcopy(s) ? WIRE_FEATURE_POSTCOPY : 0) |
	       (session_param(s, TERN_PARAM_SWITCHOVER_ACK) ? WIRE_FEATURE_SWITCHOVER_ACK : 0);
}

static int send_hello(struct tern_session *s, struct tern_error *err)
{
	struct wire_msg msg = {
		.type = WIRE_HELLO,
		.hello = {
			.version_min = WIRE_VERSION_MIN,
			.version_max = WIRE_VERSION_MAX,
			.channels = wanted_channels(s),
			.features = wanted_features(s),
			.features_required = wanted_features(s),
			.page_size = TERN_PAGE_SIZE,
			.nr_regions = s->regions.nr,
			.ram_bytes = region_bytes(&s->regions),
			.stripe_bytes = session_param(s, TERN_PARAM_STRIPE_BYTES),
			.chunk_bytes = session_param(s, TERN_PARAM_CHUNK_BYTES),
			.state_max = session_param(s, TERN_PARAM_STATE_MAX),
			.peer_timeout_ms = (uint32_t)session_param(s, TERN_PARAM_PEER_TIMEOUT_MS),
		},
	};

	memcpy(msg.hello.session_id, s->conn->session_id, sizeof(msg.hello.session_id));
	return link_send(&s->link, &msg, err);
}

/* Take what the destination agreed to; it may only lower what was asked for. */
static int take_hello_ack(struct tern_session *s, const struct wire_hello_ack *ack,
			  struct tern_error *err)
{
	uint64_t offered = wanted_features(s);

	if (ack->version < WIRE_VERSION_MIN || ack->version > WIRE_VERSION_MAX)
		return error_session(err, -EPROTO,
				     "the destination chose protocol version %u, this source "
				     "speaks %u to %u",
				     ack->version, WIRE_VERSION_MIN, WIRE_VERSION_MAX);
	if (ack->features != offered)
		return error_session(err, -EPROTO,
				     "the destination chose features 0x%" PRIx64
				     ", this source offered 0x%" PRIx64 " and needs them",
				     ack->features, offered);
	struct agreement chosen = { ack->channels, ack->chunk_bytes, ack->peer_timeout_ms };
	int r = agree_take(s, &chosen, wanted_channels(s), wants_postcopy(s), "HELLO_ACK", err);

	if (r)
		return r;
	atomic_store(&s->params[TERN_PARAM_CHUNK_BYTES], ack->chunk_bytes);
	monitor_lock(&s->mon);
	s->link.expects_ack = offered & WIRE_FEATURE_SWITCHOVER_ACK;
	monitor_unlock(&s->mon);
	return 0;
}

static int send_regions(struct tern_session *s, struct tern_error *err)
{
	struct wire_msg msg;

	for (unsigned first = 0; first < s->regions.nr; first += WIRE_REGIONS_PER_MSG) {
		unsigned n = s->regions.nr - first;

		memset(&msg, 0, sizeof(msg));
		msg.type = WIRE_REGIONS;
		msg.regions.first = first;
		msg.regions.count = (uint16_t)(n < WIRE_REGIONS_PER_MSG ? n : WIRE_REGIONS_PER_MSG);
		for (unsigned i = 0; i < msg.regions.count; i++) {
			const struct region *r = &s->regions.v[first + i];
			struct wire_region *w = &msg.regions.v[i];

			w->id = r->id;
			w->size = r->size;
			w->gpa = r->gpa;
			w->host_page_size = r->host_page_size;
			memcpy(w->name, r->name, sizeof(w->name));
		}
		int e = link_expect_silence(&s->link, "REGIONS", err);

		if (!e)
			e = link_send(&s->link, &msg, err);
		if (e)
			return e;
	}
	return 0;
}

/* REGIONS_ACK repeats what was compared; a difference means a broken peer. */
static int take_regions_ack(struct tern_session *s, const struct wire_regions_ack *ack,
			    struct tern_error *err)
{
	unsigned due = s->postcopy ? (s->regions.nr + 7) / 8 : 0;

	if (ack->by_contents_len != due)
		return error_session(
			err, -EPROTO,
			"message REGIONS_ACK from the peer has %u bytes of by_contents, "
			"due are %u",
			ack->by_contents_len, due);
	memcpy(s->by_contents, ack->by_contents, due);
	s->by_contents_len = due;
	if (ack->nr_regions == s->regions.nr && ack->ram_bytes == region_bytes(&s->regions))
		return 0;
	return error_session(err, -EPROTO,
			     "the destination confirmed %u regions of %" PRIu64
			     " bytes, this source has %u of %" PRIu64,
			     ack->nr_regions, ack->ram_bytes, s->regions.nr,
			     region_bytes(&s->regions));
}

/* Connect and publish the connection. */
static int connect_control(struct tern_session *s, struct tern_error *err)
{
	struct transport_env env;
	struct transport_conn *conn;
	uint8_t id[TRANSPORT_SESSION_ID_LEN];

	if (getrandom(id, sizeof(id), 0) != (ssize_t)sizeof(id))
		return error_session(err, -EIO, "cannot draw a session id: %s", error_name(errno));
	session_env(s, &env);
	env.channels = wanted_channels(s) + (wants_postcopy(s) ? 1 : 0);
	int r = s->transport->connect(s->transport, &env, &s->uri, id, s->cancel_fd, &conn, err);

	if (r)
		return r;
	memcpy(conn->session_id, id, sizeof(id));
	memcpy(s->session_id, id, sizeof(id));
	monitor_lock(&s->mon);
	s->conn = conn;
	s->times.connected = now_ns();
	monitor_unlock(&s->mon);
	return link_start(&s->link, &s->mon, conn, TERN_SOURCE, env.peer_timeout_ms, err);
}

int handshake_source_begin(struct tern_session *s, struct tern_error *err)
{
	struct wire_msg msg;
	int r = connect_control(s, err);

	if (!r)
		r = send_hello(s, err);
	if (!r) /* while the destination looks at it */
		r = session_expose(s, s->conn, err);
	if (!r)
		r = session_expect(s, WIRE_HELLO_ACK, &msg, agree_deadline(s), err);
	if (!r)
		r = take_hello_ack(s, &msg.hello_ack, err);
	if (!r)
		r = send_regions(s, err);
	if (!r && s->conn->ops->request_channels) /* while the destination compares them */
		r = s->conn->ops->request_channels(s->conn, s->nr_channels, err);
	return r;
}

int handshake_source_end(struct tern_session *s, struct tern_error *err)
{
	struct wire_msg msg;
	int r;

	r = session_expect(s, WIRE_REGIONS_ACK, &msg, agree_deadline(s), err);
	if (!r)
		r = take_regions_ack(s, &msg.regions_ack, err);
	if (!r && !s->conn->ops->request_channels) /* else they may all be connected there */
		r = link_expect_silence(&s->link, "the channels' greeting", err);
	if (!r)
		r = session_open_channels(s, err);
	if (!r)
		r = agree_await_channels(s, err);
	if (r)
		return r;
	monitor_lock(&s->mon);
	s->times.setup_done = now_ns();
	monitor_unlock(&s->mon);
	return 0;
}

/* ------------------------------------------------------------- destination */

static int check_versions(const struct wire_hello *h, struct tern_error *err)
{
	if (h->version_min > h->version_max)
		return error_session(err, -EPROTO,
				     "message HELLO has version_min %u above version_max %u",
				     h->version_min, h->version_max);
	if (h->version_max < WIRE_VERSION_MIN || h->version_min > WIRE_VERSION_MAX)
		return error_session(err, -EPROTONOSUPPORT,
				     "protocol version differs: the source speaks %u to %u, the "
				     "destination %u to %u",
				     h->version_min, h->version_max, WIRE_VERSION_MIN,
				     WIRE_VERSION_MAX);
	if (h->features_required & ~WIRE_FEATURES_KNOWN)
		return error_session(err, -EPROTONOSUPPORT,
				     "features differ: the source requires 0x%" PRIx64
				     ", the destination has 0x%llx",
				     h->features_required, WIRE_FEATURES_KNOWN);
	return 0;
}

static int check_hello(struct tern_session *s, const struct wire_hello *h, struct tern_error *err)
{
	struct agreement asked = { h->channels, h->chunk_bytes, h->peer_timeout_ms };
	int r = check_versions(h, err);

	if (!r)
		r = agree_check(&asked, "HELLO", err);
	if (r)
		return r;
	if (memcmp(h->session_id, s->conn->session_id, sizeof(h->session_id)) != 0)
		return error_session(err, -EPROTO,
				     "message HELLO names another session than its connection");
	if (h->page_size != TERN_PAGE_SIZE)
		return error_session(err, -EINVAL,
				     "page size differs: %u bytes at the source, %u at the "
				     "destination",
				     h->page_size, TERN_PAGE_SIZE);
	if (h->nr_regions != s->regions.nr)
		return error_session(err, -EINVAL,
				     "number of regions differs: %u at the source, %u at the "
				     "destination",
				     h->nr_regions, s->regions.nr);
	if (h->ram_bytes != region_bytes(&s->regions))
		return error_session(err, -EINVAL,
				     "RAM size differs: %" PRIu64 " bytes at the source, %" PRIu64
				     " at the destination",
				     h->ram_bytes, region_bytes(&s->regions));
	return 0;
}

/* Choose what this session will use and tell the source. */
static int answer_hello(struct tern_session *s, const struct wire_hello *h, struct tern_error *err)
{
	bool postcopy = h->features & WIRE_FEATURE_POSTCOPY;
	struct agreement asked = { h->channels, h->chunk_bytes, h->peer_timeout_ms };
	struct agreement a = agree_answer(s, &asked, postcopy);
	struct wire_msg msg = {
		.type = WIRE_HELLO_ACK,
		.hello_ack = {
			.version = WIRE_VERSION_MAX < h->version_max ? WIRE_VERSION_MAX :
								       h->version_max,
			.channels = a.channels,
			.features = h->features & WIRE_FEATURES_KNOWN,
			.chunk_bytes = a.chunk_bytes,
			.peer_timeout_ms = a.peer_timeout_ms,
		},
	};

	return link_send(&s->link, &msg, err);
}

/* Compare one region of the source's list with ours. */
static int compare_region(const struct region *own, const struct wire_region *w,
			  struct tern_error *err)
{
	if (w->id != own->id)
		return error_session(err, -EPROTO,
				     "message REGIONS has id %u where %u is due: the list is out "
				     "of order",
				     w->id, own->id);
	if (strcmp(w->name, own->name) != 0)
		return error_session(err, -EINVAL,
				     "name of region %u differs: '%s' at the source, '%s' at the "
				     "destination",
				     own->id, w->name, own->name);
	if (w->size != own->size)
		return error_session(err, -EINVAL,
				     "size of region '%s' differs: %" PRIu64
				     " bytes at the source, %" PRIu64 " at the destination",
				     own->name, w->size, own->size);
	if (w->gpa != own->gpa)
		return error_session(err, -EINVAL,
				     "guest address of region '%s' differs: 0x%" PRIx64
				     " at the source, 0x%" PRIx64 " at the destination",
				     own->name, w->gpa, own->gpa);
	if (w->host_page_size != own->host_page_size)
		return error_session(err, -EINVAL,
				     "host page size of region '%s' differs: %" PRIu64
				     " bytes at the source, %" PRIu64 " at the destination",
				     own->name, w->host_page_size, own->host_page_size);
	return 0;
}

static int receive_regions(struct tern_session *s, struct tern_error *err)
{
	struct wire_msg msg;
	unsigned done = 0;
	int r = 0;

	while (!r && done < s->regions.nr) {
		r = session_expect(s, WIRE_REGIONS, &msg, agree_deadline(s), err);
		if (r)
			break;
		if (msg.regions.first != done || msg.regions.count > s->regions.nr - done)
			return error_session(err, -EPROTO,
					     "message REGIONS lists regions %u to %u, due are %u "
					     "to %u: the list is out of order or overlaps",
					     msg.regions.first,
					     msg.regions.first + msg.regions.count - 1, done,
					     s->regions.nr - 1);
		for (unsigned i = 0; !r && i < msg.regions.count; i++)
			r = compare_region(&s->regions.v[done + i], &msg.regions.v[i], err);
		done += msg.regions.count;
	}
	if (r)
		return r;
	msg = (struct wire_msg){
		.type = WIRE_REGIONS_ACK,
		.regions_ack = { .nr_regions = done, .ram_bytes = region_bytes(&s->regions) },
	};
	if (s->placement)
		msg.regions_ack.by_contents_len = (uint16_t)((done + 7) / 8);
	for (unsigned i = 0; s->placement && i < done; i++)
		if (s->placement->v[i].kind == PLACEMENT_COPY)
			msg.regions_ack.by_contents[i / 8] |= (uint8_t)(1u << i % 8);
	return link_send(&s->link, &msg, err);
}

/* Postcopy is asked for: can pages be placed while the guest runs?  0 or -errno with *err. */
static int make_placement(struct tern_session *s, struct tern_error *err)
{
	struct placement *p;
	struct tern_error warning;
	int r = placement_new(&s->regions, &p, err);

	if (r)
		return r;
	monitor_lock(&s->mon);
	s->placement = p;
	monitor_unlock(&s->mon);
	r = postcopy_start_faults(s, err);
	if (r || p->uffd.how != UFFD_USER_ONLY)
		return r;
	error_clear(&warning);
	error_session(&warning, -EPERM,
		      "userfaultfd serves faults in user mode only here: a guest under KVM, or a "
		      "system call on guest memory, fails at a missing page; run as root, or set "
		      "the sysctl vm.unprivileged_userfaultfd to 1");
	session_event(s, TERN_EVENT_WARNING, &warning);
	return 0;
}

int handshake_destination(struct tern_session *s, struct tern_error *err)
{
	struct wire_msg msg;
	int r = session_expect(s, WIRE_HELLO, &msg, agree_deadline(s), err);

	if (!r)
		r = check_hello(s, &msg.hello, err);
	if (!r && (msg.hello.features & WIRE_FEATURE_POSTCOPY))
		r = make_placement(s, err);
	if (!r) {
		memcpy(s->session_id, msg.hello.session_id, sizeof(s->session_id));
		monitor_lock(&s->mon);
		s->ack_agreed = msg.hello.features & WIRE_FEATURE_SWITCHOVER_ACK;
		monitor_unlock(&s->mon);
	}
	if (!r)
		r = answer_hello(s, &msg.hello, err);
	if (!r)
		r = receive_regions(s, err);
	if (!r) {
		s->exposed = true;
		r = session_expose(s, s->conn, err);
	}
	if (!r)
		r = session_open_channels(s, err);
	if (!r)
		r = link_expect_silence(&s->link, "SETUP_DONE", err);
	return r ? r : agree_announce_channels(s, err);
}
