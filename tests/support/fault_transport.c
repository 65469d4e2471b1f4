/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * The fault-injecting layer.
 *
 * Each object of the inner transport is wrapped by one of ours.  A call first
 * asks fault_net_match() whether a rule wants to act, under the one lock; acting
 * itself happens outside of it, except that a stall waits on the condition.
 *
 * A cut is an abort() of the inner connection, which the peer sees as a lost
 * link.  On our own side the inner transport then says -ECANCELED, as if the
 * engine had aborted; unless it really did, that is turned into -ECONNRESET, so
 * both sides see a link that broke.
 */

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "error.h"
#include "fault_private.h"

struct fault_listener {
	struct transport_listener base;
	struct fault_net *net;
	struct transport_listener *inner;
	unsigned peer_timeout_ms;
};

struct fault_channel {
	struct transport_channel base;
	struct fault_conn *conn;
	struct transport_channel *inner;
};

struct fault_conn {
	struct transport_conn base;
	struct fault_net *net;
	struct transport_conn *inner;
	enum fault_side side;
	/* Under net->lock.  ended is set after the inner abort(), and ends stalls. */
	bool cut, aborted, ended; /* cut by a rule; aborted by the engine */
	unsigned peer_timeout_ms; /* constant */
	bool rx_stuck; /* control receiver: its messages never come */
	struct fault_channel channels[TRANSPORT_CHANNELS_MAX];
};

static struct fault_conn *to_fault_conn(struct transport_conn *c)
{
	return (struct fault_conn *)c;
}

static struct fault_channel *to_fault_channel(struct transport_channel *ch)
{
	return (struct fault_channel *)ch;
}

/* The type of a control message: its first two bytes; -2 if it has none. */
static int type_of(const void *msg, size_t len)
{
	const uint8_t *p = msg;

	return len < 2 ? -2 : p[0] | p[1] << 8;
}

/* Abort the inner connection; *why (cut or aborted) is set first, stalls end last. */
static void fault_end(struct fault_conn *c, bool *why)
{
	pthread_mutex_lock(&c->net->lock);
	*why = true;
	pthread_mutex_unlock(&c->net->lock);
	c->net->inner->abort(c->inner);
	pthread_mutex_lock(&c->net->lock);
	c->ended = true;
	pthread_cond_broadcast(&c->net->changed);
	pthread_mutex_unlock(&c->net->lock);
}

/* The link of @c is dead from now on. */
static void fault_cut(struct fault_conn *c)
{
	fault_end(c, &c->cut);
}

/*
 * Wait until the connection ends or stalls are released: false.  True if @limit_ms
 * (< 0: none) passed first.
 */
static bool fault_stall(struct fault_conn *c, int limit_ms)
{
	struct timespec until;
	bool late = false;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += limit_ms / 1000;
	until.tv_nsec += limit_ms % 1000 * 1000000l;
	if (until.tv_nsec >= 1000000000) {
		until.tv_nsec -= 1000000000;
		until.tv_sec++;
	}
	pthread_mutex_lock(&c->net->lock);
	while (!c->ended && !c->net->released && !late) {
		if (limit_ms < 0)
			pthread_cond_wait(&c->net->changed, &c->net->lock);
		else
			late = pthread_cond_timedwait(&c->net->changed, &c->net->lock, &until);
	}
	pthread_mutex_unlock(&c->net->lock);
	return late;
}

/* This process dies here and now. */
static void fault_kill(void)
{
	raise(SIGKILL);
}

/* The result @rc of an inner call as the engine is to see it; see the top. */
static long fault_result(struct fault_conn *c, long rc, struct tern_error *err)
{
	bool ours;

	if (rc != -ECANCELED)
		return rc;
	pthread_mutex_lock(&c->net->lock);
	ours = c->cut && !c->aborted;
	pthread_mutex_unlock(&c->net->lock);
	if (!ours)
		return rc;
	if (err && err->code == -ECANCELED)
		error_clear(err);
	return error_session(err, -ECONNRESET, "The link was cut (injected fault)");
}

/* What to do around a call that is about to be made. */
struct fault_plan {
	bool skip; /* do not make the call: return rc */
	bool cut_after, kill_after;
	bool shorten;
	void (*fn)(void *opaque); /* to call afterwards, or NULL */
	void *opaque;
	long rc;
};

/* A stall for as long as the contract allows. */
static void plan_stall(struct fault_conn *c, struct fault_plan *plan, int limit_ms,
		       struct tern_error *err)
{
	if (!fault_stall(c, limit_ms))
		return;
	plan->skip = true;
	plan->rc = error_session(err, -ETIMEDOUT, "No byte moved for %d ms (injected fault)",
				 limit_ms);
}

/* Act before a call of @c that may wait @limit_ms for the peer (< 0: for ever). */
static struct fault_plan fault_before(struct fault_conn *c, enum fault_op op, int type,
				      int limit_ms, struct tern_error *err)
{
	struct fault_plan plan = { 0 };
	struct fault_rule rule;

	if (!fault_net_match(c->net, c->side, op, type, true, &rule))
		return plan;
	switch (rule.action) {
	case FAULT_ERROR:
		plan.skip = true;
		plan.rc = error_session(err, -EIO, "The call failed (injected fault)");
		break;
	case FAULT_CUT:
		fault_cut(c);
		break;
	case FAULT_CUT_AFTER:
		plan.cut_after = true;
		break;
	case FAULT_DELAY:
		(void)poll(NULL, 0, (int)rule.delay_ms);
		break;
	case FAULT_SHORT:
		plan.shorten = true;
		break;
	case FAULT_SWALLOW:
		plan.skip = true;
		break;
	case FAULT_STALL:
		plan_stall(c, &plan, limit_ms, err);
		break;
	case FAULT_KILL:
		fault_kill();
		break;
	case FAULT_KILL_AFTER:
		plan.kill_after = true;
		break;
	case FAULT_STOP:
		raise(SIGSTOP);
		break;
	case FAULT_CALL:
		rule.fn(rule.opaque);
		break;
	case FAULT_CALL_AFTER:
		plan.fn = rule.fn;
		plan.opaque = rule.opaque;
		break;
	}
	return plan;
}

/* Act after a call that returned @rc. */
static long fault_after(struct fault_conn *c, const struct fault_plan *plan, long rc,
			struct tern_error *err)
{
	if (plan->kill_after)
		fault_kill();
	if (plan->cut_after)
		fault_cut(c);
	if (plan->fn)
		plan->fn(plan->opaque);
	return fault_result(c, rc, err);
}

/* Wrap connection @inner.  0 or -ENOMEM, having closed it. */
static int wrap_conn(struct fault_net *net, struct transport_conn *inner, enum fault_side side,
		     unsigned peer_timeout_ms, struct transport_conn **out, struct tern_error *err)
{
	struct fault_conn *c = calloc(1, sizeof(*c));

	if (!c) {
		net->inner->close(inner);
		return error_session(err, -ENOMEM, "No memory for a connection");
	}
	c->base = *inner;
	c->base.ops = &net->ops;
	c->net = net;
	c->inner = inner;
	c->side = side;
	c->peer_timeout_ms = peer_timeout_ms;
	*out = &c->base;
	return 0;
}

/* connect() or accept() done: a rule may spoil it.  There is no link to stall or cut before. */
static int fault_new_conn(struct fault_net *net, struct transport_conn *inner, enum fault_side side,
			  unsigned peer_timeout_ms, struct transport_conn **out,
			  struct tern_error *err)
{
	struct fault_rule rule = { 0 };
	bool hit = fault_net_match(net, side, side == FAULT_SOURCE ? FAULT_CONNECT : FAULT_ACCEPT,
				   FAULT_ANY_TYPE, true, &rule);
	int rc;

	if (hit && rule.action == FAULT_ERROR) {
		net->inner->close(inner);
		return error_session(err, -EIO, "The call failed (injected fault)");
	}
	if (hit && rule.action == FAULT_DELAY)
		(void)poll(NULL, 0, (int)rule.delay_ms);
	rc = wrap_conn(net, inner, side, peer_timeout_ms, out, err);
	if (!rc && hit && (rule.action == FAULT_CUT || rule.action == FAULT_CUT_AFTER))
		fault_cut(to_fault_conn(*out));
	return rc;
}

static int fault_listen(const struct transport *ops, const struct transport_env *env,
			const struct uri *uri, struct transport_listener **out,
			struct tern_error *err)
{
	struct fault_net *net = (struct fault_net *)ops;
	struct fault_listener *l = calloc(1, sizeof(*l));
	int rc;

	if (!l)
		return error_session(err, -ENOMEM, "No memory for a listener");
	rc = net->inner->listen(net->inner, env, uri, &l->inner, err);
	if (rc) {
		free(l);
		return rc;
	}
	l->base.ops = ops;
	l->net = net;
	l->peer_timeout_ms = env->peer_timeout_ms;
	*out = &l->base;
	return 0;
}

static int fault_listener_uri(const struct transport_listener *base, char *buf, size_t size)
{
	const struct fault_listener *l = (const struct fault_listener *)base;

	return l->net->inner->listener_uri(l->inner, buf, size);
}

static int fault_accept(struct transport_listener *base, int timeout_ms,
			struct transport_conn **out, struct tern_error *err)
{
	struct fault_listener *l = (struct fault_listener *)base;
	struct transport_conn *inner;
	int rc = l->net->inner->accept(l->inner, timeout_ms, &inner, err);

	return rc ? rc
		  : fault_new_conn(l->net, inner, FAULT_DESTINATION, l->peer_timeout_ms, out, err);
}

static void fault_listener_stop(struct transport_listener *base)
{
	struct fault_listener *l = (struct fault_listener *)base;

	l->net->inner->listener_stop(l->inner);
}

static void fault_listener_close(struct transport_listener *base)
{
	struct fault_listener *l = (struct fault_listener *)base;

	l->net->inner->listener_close(l->inner);
	free(l);
}

static int fault_connect(const struct transport *ops, const struct transport_env *env,
			 const struct uri *uri, const uint8_t session_id[TRANSPORT_SESSION_ID_LEN],
			 int cancel_fd, struct transport_conn **out, struct tern_error *err)
{
	struct fault_net *net = (struct fault_net *)ops;
	struct transport_conn *inner;
	int rc = net->inner->connect(net->inner, env, uri, session_id, cancel_fd, &inner, err);

	return rc ? rc : fault_new_conn(net, inner, FAULT_SOURCE, env->peer_timeout_ms, out, err);
}

static int fault_expose(struct transport_conn *conn, const struct transport_memory *mem,
			unsigned nr, struct tern_error *err)
{
	struct fault_conn *c = to_fault_conn(conn);

	return c->net->inner->expose(c->inner, mem, nr, err);
}

static int fault_request_channels(struct transport_conn *conn, unsigned nr, struct tern_error *err)
{
	struct fault_conn *c = to_fault_conn(conn);
	const struct transport *inner = c->net->inner;

	return inner->request_channels ? inner->request_channels(c->inner, nr, err) : 0;
}

static int fault_open_channels(struct transport_conn *conn, unsigned nr,
			       struct transport_channel **channels, struct tern_error *err)
{
	struct fault_conn *c = to_fault_conn(conn);
	struct transport_channel *inner[TRANSPORT_CHANNELS_MAX];
	struct fault_plan plan =
		fault_before(c, FAULT_OPEN_CHANNELS, FAULT_ANY_TYPE, (int)c->peer_timeout_ms, err);
	int rc = plan.skip ? (int)plan.rc : c->net->inner->open_channels(c->inner, nr, inner, err);

	for (unsigned i = 0; !rc && i < nr; i++) {
		c->channels[i].base.ops = conn->ops;
		c->channels[i].base.index = i;
		c->channels[i].conn = c;
		c->channels[i].inner = inner[i];
		channels[i] = &c->channels[i].base;
	}
	return (int)fault_after(c, &plan, rc, err);
}

static int fault_send(struct transport_conn *conn, const void *msg, size_t len, int timeout_ms,
		      struct tern_error *err)
{
	struct fault_conn *c = to_fault_conn(conn);
	struct fault_plan plan = fault_before(c, FAULT_SEND, type_of(msg, len), timeout_ms, err);

	if (plan.skip)
		return (int)plan.rc;
	return (int)fault_after(c, &plan, c->net->inner->send(c->inner, msg, len, timeout_ms, err),
				err);
}

/* What a rule does to a message that has arrived. */
enum fate {
	FATE_GIVE, /* to the engine */
	FATE_DROP, /* and wait for the next */
	FATE_FAIL, /* -EIO */
	FATE_NEVER, /* nothing will arrive any more */
};

/* Act on an arrived message of @type; recv() may wait @timeout_ms. */
static enum fate fault_arrived(struct fault_conn *c, int type, int timeout_ms,
			       struct fault_plan *plan)
{
	struct fault_rule rule;

	if (!fault_net_match(c->net, c->side, FAULT_RECV, type, false, &rule))
		return FATE_GIVE;
	switch (rule.action) {
	case FAULT_ERROR:
		return FATE_FAIL;
	case FAULT_CUT:
		fault_cut(c); /* the message is lost: the next recv() fails */
		return FATE_DROP;
	case FAULT_SWALLOW:
		return FATE_DROP;
	case FAULT_STALL:
		c->rx_stuck = fault_stall(c, timeout_ms);
		return c->rx_stuck ? FATE_NEVER : FATE_GIVE;
	case FAULT_KILL:
		fault_kill();
		break;
	case FAULT_STOP:
		raise(SIGSTOP);
		break;
	case FAULT_CUT_AFTER:
		plan->cut_after = true;
		break;
	case FAULT_DELAY:
		(void)poll(NULL, 0, (int)rule.delay_ms);
		break;
	case FAULT_CALL:
		rule.fn(rule.opaque);
		break;
	case FAULT_CALL_AFTER:
		plan->fn = rule.fn;
		plan->opaque = rule.opaque;
		break;
	default:
		break;
	}
	return FATE_GIVE;
}

/* The result of a recv() to which nothing comes. */
static long never_came(int timeout_ms, struct tern_error *err)
{
	return error_session(err, -ETIMEDOUT, "No control message came within %d ms", timeout_ms);
}

static long fault_recv(struct transport_conn *conn, void *buf, size_t cap, int timeout_ms,
		       struct tern_error *err)
{
	struct fault_conn *c = to_fault_conn(conn);
	struct fault_plan plan = fault_before(c, FAULT_RECV, -2, timeout_ms, err);
	long n;

	if (plan.skip && plan.rc)
		return plan.rc;
	if (c->rx_stuck && fault_stall(c, timeout_ms))
		return never_came(timeout_ms, err);
	for (;;) {
		enum fate fate;

		n = c->net->inner->recv(c->inner, buf, cap, timeout_ms, err);
		if (n <= 0)
			break;
		if (plan.skip) { /* this one is swallowed */
			plan.skip = false;
			continue;
		}
		fate = fault_arrived(c, type_of(buf, (size_t)n), timeout_ms, &plan);
		if (fate == FATE_FAIL)
			return error_session(err, -EIO, "The call failed (injected fault)");
		if (fate == FATE_NEVER)
			return never_came(timeout_ms, err);
		if (fate == FATE_GIVE)
			break;
	}
	if (n > 0)
		fault_net_arrived(c->net, c->side, type_of(buf, (size_t)n));
	return fault_after(c, &plan, n, err);
}

/* How long a write, notify or fence may wait while nothing moves, ms. */
static int channel_limit_ms(const struct fault_channel *ch)
{
	return 3 * (int)ch->conn->peer_timeout_ms;
}

/* The first half of the bytes of a write, then the cut. */
static int write_short(struct fault_channel *ch, const struct transport_range *ranges, unsigned nr,
		       struct tern_error *err)
{
	struct transport_range part = ranges[0];
	const struct transport *inner = ch->conn->net->inner;
	int rc;

	if (nr > 1) {
		rc = inner->write(ch->inner, ranges, nr / 2, err);
	} else {
		part.len = (part.len + 1) / 2;
		rc = inner->write(ch->inner, &part, 1, err);
	}
	fault_cut(ch->conn);
	return rc ? rc
		  : error_channel(err, -ECONNRESET, ch->base.index,
				  "The link was cut within a write (injected fault)");
}

static int fault_prepare(struct transport_channel *base, const struct transport_range *ranges,
			 unsigned nr, struct tern_error *err)
{
	struct fault_channel *ch = to_fault_channel(base);
	struct fault_plan plan =
		fault_before(ch->conn, FAULT_PREPARE, FAULT_ANY_TYPE, channel_limit_ms(ch), err);

	if (plan.skip)
		return (int)plan.rc;
	return (int)fault_after(ch->conn, &plan,
				ch->conn->net->inner->prepare(ch->inner, ranges, nr, err), err);
}

static int fault_write(struct transport_channel *base, const struct transport_range *ranges,
		       unsigned nr, struct tern_error *err)
{
	struct fault_channel *ch = to_fault_channel(base);
	struct fault_plan plan =
		fault_before(ch->conn, FAULT_WRITE, FAULT_ANY_TYPE, channel_limit_ms(ch), err);

	if (plan.skip)
		return (int)plan.rc;
	if (plan.shorten)
		return write_short(ch, ranges, nr, err);
	return (int)fault_after(ch->conn, &plan,
				ch->conn->net->inner->write(ch->inner, ranges, nr, err), err);
}

static int fault_notify(struct transport_channel *base, const void *msg, size_t len,
			struct tern_error *err)
{
	struct fault_channel *ch = to_fault_channel(base);
	struct fault_plan plan =
		fault_before(ch->conn, FAULT_NOTIFY, FAULT_ANY_TYPE, channel_limit_ms(ch), err);

	if (plan.skip)
		return (int)plan.rc;
	return (int)fault_after(ch->conn, &plan,
				ch->conn->net->inner->notify(ch->inner, msg, len, err), err);
}

static int fault_push(struct transport_channel *base, const void *msg, size_t len,
		      const struct transport_range *range, struct tern_error *err)
{
	struct fault_channel *ch = to_fault_channel(base);
	struct fault_plan plan =
		fault_before(ch->conn, FAULT_PUSH, FAULT_ANY_TYPE, channel_limit_ms(ch), err);

	if (plan.skip)
		return (int)plan.rc;
	if (plan.shorten)
		fault_cut(ch->conn);
	return (int)fault_after(ch->conn, &plan,
				ch->conn->net->inner->push(ch->inner, msg, len, range, err), err);
}

static int fault_fence(struct transport_channel *base, struct tern_error *err)
{
	struct fault_channel *ch = to_fault_channel(base);
	struct fault_plan plan =
		fault_before(ch->conn, FAULT_FENCE, FAULT_ANY_TYPE, channel_limit_ms(ch), err);

	if (plan.skip)
		return (int)plan.rc;
	return (int)fault_after(ch->conn, &plan, ch->conn->net->inner->fence(ch->inner, err), err);
}

static long fault_serve(struct transport_channel *base, void *buf, size_t *contents,
			struct tern_error *err)
{
	struct fault_channel *ch = to_fault_channel(base);
	struct fault_plan plan = fault_before(ch->conn, FAULT_SERVE, FAULT_ANY_TYPE, -1, err);

	if (plan.skip && plan.rc)
		return plan.rc;
	return fault_after(ch->conn, &plan,
			   ch->conn->net->inner->serve(ch->inner, buf, contents, err), err);
}

static void fault_retire(struct transport_conn *conn, uint32_t region, uint64_t offset,
			 uint64_t len)
{
	struct fault_conn *c = to_fault_conn(conn);

	c->net->inner->retire(c->inner, region, offset, len);
}

static void fault_revoke(struct transport_conn *conn)
{
	struct fault_conn *c = to_fault_conn(conn);

	c->net->inner->revoke(c->inner);
}

static void fault_abort(struct transport_conn *conn)
{
	struct fault_conn *c = to_fault_conn(conn);

	fault_end(c, &c->aborted);
}

static void fault_close(struct transport_conn *conn)
{
	struct fault_conn *c = to_fault_conn(conn);

	c->net->inner->close(c->inner);
	free(c);
}

static void fault_channel_stats(const struct transport_channel *base,
				struct tern_channel_stats *out)
{
	const struct fault_channel *ch = (const struct fault_channel *)base;

	ch->conn->net->inner->channel_stats(ch->inner, out);
}

static void fault_conn_stats(const struct transport_conn *conn, struct transport_conn_stats *out)
{
	const struct fault_conn *c = (const struct fault_conn *)conn;

	c->net->inner->conn_stats(c->inner, out);
}

const struct transport fault_transport_ops = {
	.listen = fault_listen,
	.listener_uri = fault_listener_uri,
	.accept = fault_accept,
	.listener_stop = fault_listener_stop,
	.listener_close = fault_listener_close,
	.connect = fault_connect,
	.expose = fault_expose,
	.request_channels = fault_request_channels,
	.open_channels = fault_open_channels,
	.send = fault_send,
	.recv = fault_recv,
	.prepare = fault_prepare,
	.write = fault_write,
	.notify = fault_notify,
	.push = fault_push,
	.fence = fault_fence,
	.serve = fault_serve,
	.retire = fault_retire,
	.revoke = fault_revoke,
	.abort = fault_abort,
	.close = fault_close,
	.channel_stats = fault_channel_stats,
	.conn_stats = fault_conn_stats,
};
