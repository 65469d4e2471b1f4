/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * Playing the script: recv() walks through the records, gives control messages to
 * its caller and notifies to the channels, where serve() finds them.
 */

#include <errno.h>
#include <string.h>

#include "error.h"
#include "fuzz.h"
#include "script_private.h"

#define REST_US 200 /* how often to look whether the session is at rest */

struct record {
	enum script_kind kind;
	unsigned flags, channel;
	const uint8_t *payload;
	size_t len;
};

/* Take the next record off the script.  False: there is none. */
static bool next_record(struct script *s, struct record *rec)
{
	if (s->size - s->at < SCRIPT_HEAD_LEN) {
		s->at = s->size;
		return false;
	}
	const uint8_t *p = s->data + s->at;
	size_t left = s->size - s->at - SCRIPT_HEAD_LEN;
	size_t len = fuzz_read_int(p + 1, 2);

	rec->kind = (enum script_kind)(p[0] & 3);
	rec->flags = p[0] & (SCRIPT_RAW | SCRIPT_HASTY);
	rec->channel = p[0] >> 4;
	rec->payload = p + SCRIPT_HEAD_LEN;
	rec->len = len < left ? len : left;
	s->at += SCRIPT_HEAD_LEN + rec->len;
	return true;
}

/* Put a notify into its channel, if that is open and has room. */
static void play_notify(struct script_conn *c, const struct record *rec)
{
	if (!c->nr_channels || !rec->len || rec->len > TRANSPORT_NOTIFY_MAX)
		return;
	struct script_channel *ch = &c->channels[rec->channel % c->nr_channels];

	if (ch->nr == SCRIPT_INBOX)
		return;
	ch->inbox[ch->nr++] = (struct script_notify){ rec->payload, rec->len };
	pthread_cond_broadcast(&c->script->changed);
}

/* All notifies were handed out and came back. */
static bool channels_idle(const struct script_conn *c)
{
	for (unsigned i = 0; i < c->nr_channels; i++)
		if (c->channels[i].nr || c->channels[i].handed_out)
			return false;
	return true;
}

/* May a patient peer send @type now? */
static bool is_due(const struct script_conn *c, unsigned type)
{
	static const uint8_t answers[WIRE_TYPE_NR] = {
		[WIRE_HELLO_ACK] = WIRE_HELLO,
		[WIRE_REGIONS] = WIRE_HELLO_ACK,
		[WIRE_REGIONS_ACK] = WIRE_REGIONS,
		[WIRE_SETUP_DONE] = SCRIPT_OPENED,
		[WIRE_ROUND] = WIRE_SETUP_DONE,
		[WIRE_STATE] = WIRE_SETUP_DONE,
		[WIRE_STATE_END] = WIRE_SETUP_DONE,
		[WIRE_READY] = WIRE_STATE_END,
		[WIRE_GO] = WIRE_READY,
		[WIRE_STARTED] = WIRE_GO,
		[WIRE_BYE] = WIRE_STARTED,
	};

	if (type >= WIRE_TYPE_NR || c->sent[WIRE_ERROR] || c->sent[WIRE_CANCEL])
		return true;
	if (type == WIRE_ROUND && !channels_idle(c))
		return false;
	return (!answers[type] && type != WIRE_SETUP_DONE) || c->sent[answers[type]];
}

/* Is nothing going on that could make a message due?  Gives the lock away for a moment. */
static bool all_at_rest(struct script_conn *c)
{
	struct script *s = c->script;
	bool busy = !channels_idle(c);

	if (!s->hooks.at_rest || s->patience_ms >= SCRIPT_PATIENT_MS)
		return false;
	pthread_mutex_unlock(&s->lock);
	bool at_rest = s->hooks.at_rest(s->opaque, busy);

	pthread_mutex_lock(&s->lock);
	return at_rest;
}

/* Wait until @type is due.  False: it will not be, it seems. */
static bool await_due(struct script_conn *c, unsigned type)
{
	struct script *s = c->script;
	struct timespec until = script_time_us(s->patience_ms * 1000);
	bool at_rest = false;

	while (!at_rest && !c->aborted && !is_due(c, type)) {
		struct timespec soon = script_time_us(REST_US);

		if (soon.tv_sec > until.tv_sec ||
		    (soon.tv_sec == until.tv_sec && soon.tv_nsec >= until.tv_nsec))
			break;
		if (pthread_cond_timedwait(&s->changed, &s->lock, &soon))
			at_rest = all_at_rest(c);
	}
	return !c->aborted && is_due(c, type);
}

static void put(uint8_t *p, uint64_t v, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		p[i] = (uint8_t)(v >> (8 * i));
}

/* Put right what counts up; see SCRIPT_RAW. */
static void put_right(const struct script_conn *c, uint8_t *msg, size_t len)
{
	unsigned type = (unsigned)fuzz_read_int(msg, 2);

	put(msg + 2, 0, 2);
	put(msg + 4, c->rx_seq, 4);
	if (type == WIRE_ROUND && len >= 12)
		put(msg + 8, c->rounds + 1, 4);
	if ((type == WIRE_STATE || type == WIRE_STATE_END) && len >= 16)
		put(msg + 8, c->state_bytes, 8);
	if (type == WIRE_STATE && len >= 18)
		put(msg + 16, len - 18, 2);
}

/*
 * Where HELLO has its features, of which scripts have all but postcopy: in that, memory
 * changes, access stays, and sessions do not end by the rules that the targets check.
 * tests/fault/test_hostile_postcopy.c has peers that break its rules.
 */
#define HELLO_FEATURES 16u

/* Deliver a control message into @buf.  Its length; 0: the peer gave up. */
static long play_control(struct script_conn *c, const struct record *rec, uint8_t *buf, size_t cap)
{
	size_t len = rec->len < cap ? rec->len : cap;
	unsigned type = len >= 2 ? (unsigned)fuzz_read_int(rec->payload, 2) : 0;

	if (!(rec->flags & SCRIPT_HASTY) && !await_due(c, type))
		return 0;
	memcpy(buf, rec->payload, len);
	if (!(rec->flags & SCRIPT_RAW) && len >= WIRE_HEADER_LEN)
		put_right(c, buf, len);
	if (type == WIRE_HELLO && len > HELLO_FEATURES)
		buf[HELLO_FEATURES] &= (uint8_t)~WIRE_FEATURE_POSTCOPY;
	c->rx_seq++;
	if (type >= WIRE_TYPE_NR)
		return (long)len;
	c->last = type;
	c->delivered[type] = true;
	c->rounds += type == WIRE_ROUND;
	if (type == WIRE_STATE && len >= 18)
		c->state_bytes += fuzz_read_int(buf + 16, 2);
	return (long)len;
}

/* Go on in the script.  A length; 0: this connection is over; -EAGAIN: go on. */
static long play(struct script_conn *c, uint8_t *buf, size_t cap)
{
	struct record rec;

	if (c->hollow || c->ended || !next_record(c->script, &rec))
		return 0;
	switch (rec.kind) {
	case SCRIPT_NOTIFY:
		play_notify(c, &rec);
		return -EAGAIN;
	case SCRIPT_LATECOMER:
		if (c->script->role == TERN_DESTINATION)
			c->script->latecomers++;
		pthread_cond_broadcast(&c->script->changed);
		return -EAGAIN;
	case SCRIPT_CLOSE:
		return 0;
	default:
		return rec.len ? play_control(c, &rec, buf, cap) : -EAGAIN;
	}
}

long script_recv(struct transport_conn *base, void *buf, size_t cap, int timeout_ms,
		 struct tern_error *err)
{
	struct script_conn *c = (struct script_conn *)base;
	long n = -EAGAIN;

	pthread_mutex_lock(&c->script->lock);
	if (c->last)
		c->handled[c->last] = true;
	c->last = 0;
	while (n == -EAGAIN && !c->aborted)
		n = play(c, buf, cap);
	if (c->aborted)
		n = -ECANCELED;
	if (!n) {
		c->ended = true;
		pthread_cond_broadcast(&c->script->changed);
	}
	pthread_mutex_unlock(&c->script->lock);
	return n;
}

static struct script_channel *to_channel(struct transport_channel *ch)
{
	return (struct script_channel *)ch;
}

long script_serve(struct transport_channel *base, void *buf, size_t *contents,
		  struct tern_error *err)
{
	struct script_channel *ch = to_channel(base);
	struct script_conn *c = ch->conn;
	struct script *s = c->script;
	long n;

	*contents = 0;
	pthread_mutex_lock(&s->lock);
	if (ch->handed_out && s->hooks.notify)
		s->hooks.notify(s->opaque, ch->out.msg, ch->out.len, true);
	ch->handed_out = false;
	pthread_cond_broadcast(&s->changed);
	while (!c->aborted && !c->revoked && !ch->nr && !c->ended)
		pthread_cond_wait(&s->changed, &s->lock);
	if (c->aborted || c->revoked) {
		n = -ECANCELED;
	} else if (ch->nr) {
		ch->out = ch->inbox[0];
		memmove(&ch->inbox[0], &ch->inbox[1], --ch->nr * sizeof(ch->inbox[0]));
		ch->handed_out = true;
		if (s->hooks.notify)
			s->hooks.notify(s->opaque, ch->out.msg, ch->out.len, false);
		memcpy(buf, ch->out.msg, ch->out.len);
		n = (long)ch->out.len;
	} else {
		n = 0;
	}
	pthread_mutex_unlock(&s->lock);
	return n;
}

void script_revoke(struct transport_conn *base)
{
	struct script_conn *c = (struct script_conn *)base;

	pthread_mutex_lock(&c->script->lock);
	c->revoked = true;
	pthread_cond_broadcast(&c->script->changed);
	pthread_mutex_unlock(&c->script->lock);
}

int script_write(struct transport_channel *base, const struct transport_range *ranges, unsigned nr,
		 struct tern_error *err)
{
	struct script_conn *c = to_channel(base)->conn;
	struct script *s = c->script;

	FUZZ_CHECK(nr >= 1 && nr <= TRANSPORT_WRITE_RANGES_MAX, "a write of %u ranges", nr);
	pthread_mutex_lock(&s->lock);
	if (s->hooks.write)
		s->hooks.write(s->opaque, ranges, nr);
	int r = c->aborted ? -ECANCELED : 0;

	pthread_mutex_unlock(&s->lock);
	return r;
}

int script_notify(struct transport_channel *base, const void *msg, size_t len,
		  struct tern_error *err)
{
	struct script_conn *c = to_channel(base)->conn;
	struct script *s = c->script;

	pthread_mutex_lock(&s->lock);
	if (s->hooks.notify)
		s->hooks.notify(s->opaque, msg, len, false);
	int r = c->aborted ? -ECANCELED : 0;

	pthread_mutex_unlock(&s->lock);
	return r;
}

int script_fence(struct transport_channel *base, struct tern_error *err)
{
	struct script_conn *c = to_channel(base)->conn;

	pthread_mutex_lock(&c->script->lock);
	int r = c->aborted ? -ECANCELED : 0;

	pthread_mutex_unlock(&c->script->lock);
	return r;
}
