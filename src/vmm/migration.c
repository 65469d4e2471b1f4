/* SPDX-License-Identifier: BSD-2-Clause */

/*
 * Migrations; see migration.h, and vmm.h for the run states.
 *
 *	source		pause()    running → finish-migrate
 *			save()
 *			resume()   finish-migrate → running: it failed before GO
 *			completed  finish-migrate → postmigrate
 *	destination	load()
 *			resume()   inmigrate → running (or paused, if it came paused)
 *			announce() a few times, on a thread of its own
 */

#include "migration.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <tern/kvm.h>
#include "blockers.h"
#include "state.h"
#include "vmm.h"
#include "../cli/cli.h"
#include "../utf8.h"

static const char *const notice_names[] = { "setup", "switchover", "done", "failed" };
_Static_assert(sizeof(notice_names) / sizeof(notice_names[0]) == TERN_NOTICE_NR,
	       "one name per notice");

void migration_init(struct migration *g, struct vmm *v)
{
	pthread_rwlockattr_t attr;

	*g = (struct migration){ .vmm = v };
	/* vCPUs whose dirty limit holds them back have the lock nearly all the time. */
	pthread_rwlockattr_init(&attr);
	pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&g->vcpu_lock, &attr);
	pthread_rwlockattr_destroy(&attr);
}

/* From now on vCPUs' threads use @s; NULL: none. */
static void lend_session(struct migration *g, struct tern_session *s)
{
	pthread_rwlock_wrlock(&g->vcpu_lock);
	g->vcpu_session = s;
	pthread_rwlock_unlock(&g->vcpu_lock);
}

void migration_fini(struct migration *g)
{
	if (g->session)
		(void)tern_session_cancel(g->session); /* at once, whatever vCPUs do */
	lend_session(g, NULL);
	tern_session_delete(&g->session);
}

void migration_ring_full(struct migration *g, unsigned index)
{
	pthread_rwlock_rdlock(&g->vcpu_lock);
	if (g->vcpu_session)
		(void)tern_session_ring_full(g->vcpu_session, index);
	pthread_rwlock_unlock(&g->vcpu_lock);
}

bool migration_runs(const struct migration *g)
{
	switch (g->session ? tern_session_state(g->session) : TERN_STATE_NONE) {
	case TERN_STATE_NONE:
	case TERN_STATE_COMPLETED:
	case TERN_STATE_FAILED:
	case TERN_STATE_CANCELLED:
		return false;
	default:
		return true;
	}
}

bool migration_must_stay(const struct migration *g)
{
	switch (g->session ? tern_session_state(g->session) : TERN_STATE_NONE) {
	case TERN_STATE_POSTCOPY_ACTIVE:
	case TERN_STATE_POSTCOPY_PAUSED:
	case TERN_STATE_POSTCOPY_RECOVER:
		return true;
	default:
		return false;
	}
}

bool migration_in_doubt(const struct migration *g)
{
	return g->session && g->role == TERN_SOURCE && !atomic_load(&g->ran_there) &&
	       tern_session_state(g->session) == TERN_STATE_POSTCOPY_PAUSED;
}

/* --------------------------------------------- callbacks, on the session's thread */

/* A callback fails: say why on stderr, and to the operators of both sides. */
static void explain(struct migration *g, int code, const struct tern_error *err)
{
	const char *why = err->code ? err->message : strerror(-code);

	vmm_complain("%s", why);
	tern_session_explain(g->session, why);
}

/* Source: stop the guest, and remember whether it ran. */
static int vm_pause(void *opaque)
{
	struct migration *g = opaque;
	struct vmm *v = g->vmm;

	pthread_mutex_lock(&v->lock);
	bool crashed = v->state == RUN_INTERNAL_ERROR;

	g->wants_to_run = v->state == RUN_RUNNING;
	if (!crashed)
		v->state = RUN_FINISH_MIGRATE;
	pthread_mutex_unlock(&v->lock);
	if (crashed) {
		tern_session_explain(g->session, "the guest has crashed");
		return -EIO;
	}
	machine_pause(v->machine, -1);
	if (g->wants_to_run)
		events_post(&v->events, "STOP", NULL);
	return 0;
}

/* Either side: let it run, if it ran. */
static int vm_resume(void *opaque)
{
	struct migration *g = opaque;
	struct vmm *v = g->vmm;
	int ret = 0;

	pthread_mutex_lock(&v->lock);
	if (v->state == RUN_INTERNAL_ERROR) /* it crashed before it was to be paused */
		ret = -EIO;
	else
		v->state = g->wants_to_run ? RUN_RUNNING : RUN_PAUSED;
	if (g->wants_to_run)
		ret = machine_resume(v->machine);
	if (g->wants_to_run && !ret)
		tern_session_resumed_at(g->session, machine_resumed_ns(v->machine));
	if (ret)
		v->state = RUN_INTERNAL_ERROR;
	pthread_mutex_unlock(&v->lock);
	if (g->wants_to_run && !ret)
		events_post(&v->events, "RESUME", NULL);
	if (ret)
		tern_session_explain(g->session, "the guest has crashed");
	return ret;
}

/* Source: device state. */
static int vm_save(void *opaque, struct tern_state_writer *w)
{
	struct migration *g = opaque;
	struct section_buf b = { 0 };
	struct tern_error err = { 0 };
	int ret = state_save(g->vmm->machine, g->wants_to_run, &b, &err);

	if (!ret)
		ret = tern_state_write(w, b.p, b.len);
	if (ret)
		explain(g, ret, &err);
	free(b.p);
	return ret;
}

/* Destination: device state. */
static int vm_load(void *opaque, struct tern_state_reader *r)
{
	struct migration *g = opaque;
	size_t len = tern_state_remaining(r);
	struct tern_error err = { 0 };
	uint8_t *p = malloc(len + 1);
	int ret = p ? tern_state_read(r, p, len) : -ENOMEM;

	if (!ret)
		ret = state_load(g->vmm->machine, p, len, &g->wants_to_run, &err);
	if (ret)
		explain(g, ret, &err);
	else if (g->wants_to_run)
		machine_make_ready(g->vmm->machine);
	free(p);
	return ret;
}

/* Source: auto-converge. */
static int vm_throttle(void *opaque, unsigned percent)
{
	struct migration *g = opaque;

	return machine_throttle(g->vmm->machine, percent);
}

/*
 * Destination: tell the network where the guest is.  There is no network device here; one
 * with a MAC address would send a gratuitous ARP now.
 */
static int vm_announce(void *opaque, unsigned round)
{
	struct migration *g = opaque;

	events_post(&g->vmm->events, "ANNOUNCE", json_pack("{s:i}", "round", (int)round));
	return 0;
}

/* Either side: a part of the VMM that has something to prepare or to clean up. */
static int on_notice(void *opaque, enum tern_notice notice)
{
	struct migration *g = opaque;

	events_post(
		&g->vmm->events, "MIGRATION_NOTICE",
		json_pack("{s:s}", "notice",
			  (unsigned)notice < TERN_NOTICE_NR ? notice_names[notice] : "unknown"));
	return 0;
}

/* A migration has ended: what becomes of the guest here? */
static void on_end(struct migration *g)
{
	enum tern_outcome outcome = tern_session_outcome(g->session);
	struct vmm *v = g->vmm;

	pthread_mutex_lock(&v->lock);
	if (g->role == TERN_SOURCE && v->state == RUN_FINISH_MIGRATE) {
		if (outcome == TERN_OUTCOME_DESTINATION) {
			v->state = RUN_POSTMIGRATE;
		} else {
			v->state = RUN_PAUSED;
			v->in_doubt = outcome == TERN_OUTCOME_UNKNOWN;
		}
	}
	pthread_mutex_unlock(&v->lock);
}

static void on_event(void *opaque, const struct tern_event *e)
{
	struct migration *g = opaque;
	struct vmm *v = g->vmm;

	if (e->error)
		vmm_complain("%s", e->error->message);
	if (e->type != TERN_EVENT_STATE)
		return;
	if (e->state == TERN_STATE_POSTCOPY_ACTIVE)
		atomic_store(&g->ran_there, true);
	if (e->state == TERN_STATE_COMPLETED || e->state == TERN_STATE_FAILED ||
	    e->state == TERN_STATE_CANCELLED)
		on_end(g);
	events_post(&v->events, "MIGRATION",
		    json_pack("{s:s}", "status", tern_state_name(e->state)));
}

/* ----------------------------------------------------------------- main thread */

/* Tell the library of the virtual machine, whose log or rings it reads. */
static int describe_kvm(struct tern_session *s, const struct machine *m, struct tern_error *err)
{
	struct tern_kvm_slot slots[RAM_REGIONS] = { { 0 } };
	struct tern_kvm_desc desc = {
		.vm_fd = m->fd,
		.slots = slots,
		.nr_slots = RAM_REGIONS,
		.nr_vcpus = m->nr_vcpus,
	};
	int *fds = calloc(m->nr_vcpus, sizeof(*fds)), ret;

	if (!fds)
		return cli_fail(err, -ENOMEM, "cannot describe the machine: out of memory");
	for (unsigned i = 0; i < m->nr_vcpus; i++)
		fds[i] = m->vcpus[i].fd;
	for (unsigned i = 0; i < RAM_REGIONS; i++)
		slots[i] = (struct tern_kvm_slot){
			.slot = i,
			.region = i,
			.size = m->ram.region[i].size,
			.gpa = m->ram.region[i].gpa,
			.hva = (uintptr_t)m->ram.region[i].hva,
		};
	desc.vcpu_fds = fds;
	ret = tern_session_set_kvm(s, &desc);
	free(fds);
	if (ret)
		tern_session_error(s, err);
	return ret ? cli_fail(err, ret, "the library refuses the machine: %s", strerror(-ret)) : 0;
}

/* A session with the machine's RAM, the callbacks and the parameters. */
static int session_make(struct migration *g, enum tern_role role, struct tern_error *err)
{
	static const struct tern_vm_ops ops = {
		.pause = vm_pause,
		.resume = vm_resume,
		.save = vm_save,
		.load = vm_load,
		.throttle = vm_throttle,
		.announce = vm_announce,
	};
	const struct machine *m = g->vmm->machine;
	int ret;

	migration_fini(g);
	ret = tern_session_new(role, &g->session);
	if (ret)
		return cli_fail(err, ret, "cannot make a session: %s", strerror(-ret));
	g->role = role;
	atomic_store(&g->ran_there, false);
	for (unsigned i = 0; i < RAM_REGIONS; i++) {
		const struct ram_region *r = &m->ram.region[i];
		const struct tern_region_desc desc = {
			.name = r->name,
			.hva = r->hva,
			.size = r->size,
			.gpa = r->gpa,
			.numa_node = TERN_NODE_ANY,
			.fd = r->fd,
			.flags = role == TERN_DESTINATION ? TERN_REGION_ZEROED : 0,
		};

		ret = tern_session_add_region(g->session, &desc);
		if (ret < 0) {
			tern_session_error(g->session, err);
			return cli_fail(err, ret, "region %s: %s", r->name, strerror(-ret));
		}
	}
	tern_session_set_vm_ops(g->session, &ops, g);
	tern_session_set_event_handler(g->session, on_event, g);
	tern_session_add_notifier(g->session, on_notice, g);
	tern_session_set_blockers(g->session, g->vmm->blockers);
	if (role == TERN_SOURCE && m->cfg.dirty != MACHINE_DIRTY_NONE) {
		ret = describe_kvm(g->session, m, err);
		if (ret)
			return ret;
		lend_session(g, g->session);
	}
	if (role == TERN_DESTINATION) /* its devices need no time to get ready */
		tern_session_switchover_ack(g->session);
	return params_apply(&g->params, g->session, err);
}

/* What connecting or listening gave. */
static int started(struct migration *g, int ret, const char *what, const char *uri,
		   struct tern_error *err)
{
	if (!ret)
		return 0;
	tern_session_error(g->session, err);
	cli_fail(err, ret, "cannot %s %s: %s", what, uri, strerror(-ret));
	migration_fini(g);
	return ret;
}

int migration_start(struct migration *g, const char *uri, struct tern_error *err)
{
	enum run_state state = vmm_state(g->vmm);
	int ret;

	if (vmm_in_doubt(g->vmm, err))
		return -EBUSY;
	if (migration_runs(g))
		return cli_fail(err, -EBUSY, "a migration is under way: %s",
				tern_state_name(tern_session_state(g->session)));
	if (state != RUN_RUNNING && state != RUN_PAUSED)
		return cli_fail(err, -EBUSY, "there is no guest to be moved: the state is %s",
				vmm_state_name(state));
	ret = session_make(g, TERN_SOURCE, err);
	if (ret) {
		migration_fini(g);
		return ret;
	}
	return started(g, tern_session_connect(g->session, uri), "connect to", uri, err);
}

int migration_listen(struct migration *g, const char *uri, struct tern_error *err)
{
	char at[256];
	int ret;

	if (migration_runs(g))
		return cli_fail(err, -EBUSY, "a migration is under way: %s",
				tern_state_name(tern_session_state(g->session)));
	ret = session_make(g, TERN_DESTINATION, err);
	if (ret) {
		migration_fini(g);
		return ret;
	}
	ret = started(g, tern_session_listen(g->session, uri), "listen at", uri, err);
	if (ret)
		return ret;
	tern_session_uri(g->session, at, sizeof(at));
	vmm_complain("listening on %s", at);
	return 0;
}

int migration_cancel(struct migration *g, struct tern_error *err)
{
	int ret = g->session ? tern_session_cancel(g->session) : -ESRCH;

	if (ret == -EBUSY)
		return cli_fail(
			err, ret,
			"the migration cannot be cancelled any more: the guest belongs to the "
			"destination");
	return 0;
}

int migration_continue(struct migration *g, struct tern_error *err)
{
	int ret = g->session ? tern_session_continue(g->session) : -EBUSY;
	struct tern_error why;

	if (!ret)
		return 0;
	if (ret == -EINVAL)
		return cli_fail(
			err, ret,
			"the destination of a migration has no state pre-switchover; continue "
			"the source");
	if (!g->session)
		return cli_fail(err, ret,
				"no migration is in state pre-switchover: there was none");
	if (tern_session_error(g->session, &why))
		return cli_fail(
			err, ret,
			"no migration is in state pre-switchover: the last one has ended (%s); "
			"the guest is %s",
			why.message, vmm_state_name(vmm_state(g->vmm)));
	return cli_fail(err, ret, "no migration is in state pre-switchover: its state is %s",
			tern_state_name(tern_session_state(g->session)));
}

int migration_start_postcopy(struct migration *g, struct tern_error *err)
{
	int ret = g->session ? tern_session_start_postcopy(g->session) : -ESRCH;

	if (ret == -EINVAL)
		return cli_fail(err, ret,
				"only a source whose parameter mode is \"hybrid\" can go on to "
				"postcopy");
	if (ret == -EBUSY)
		return cli_fail(err, ret, "the switchover has begun already");
	return ret ? cli_fail(err, ret, "no migration is under way") : 0;
}

int migration_recover(struct migration *g, const char *uri, struct tern_error *err)
{
	int ret = g->session ? tern_session_recover(g->session, uri) : -EBUSY;

	if (!ret)
		return 0;
	if (ret == -EBUSY)
		return cli_fail(err, ret, "no migration is in state postcopy-paused");
	if (g->role == TERN_DESTINATION)
		return cli_fail(
			err, ret,
			"the destination waits for its source by itself; recover the source");
	return cli_fail(err, ret, "cannot connect to %s: %s", uri, strerror(-ret));
}

/* What QEMU's users expect beside the library's own figures. */
static json_t *ram_json(const struct tern_stats *st)
{
	return json_pack(
		"{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:I}", "transferred",
		(json_int_t)st->sent_bytes, "remaining", (json_int_t)st->remaining_bytes, "total",
		(json_int_t)st->ram_bytes, "duplicate", (json_int_t)st->zero_pages, "skipped",
		(json_int_t)st->skipped_pages, "normal", (json_int_t)st->normal_pages,
		"normal-bytes", (json_int_t)(st->normal_pages * TERN_PAGE_SIZE), "dirty-pages-rate",
		(json_int_t)(st->dirty_rate / TERN_PAGE_SIZE), "mbps",
		(double)st->bandwidth * 8 / 1e6, "dirty-sync-count", (json_int_t)st->nr_rounds);
}

/* The library's statistics, downtime ledger and all. */
static json_t *tern_json(const struct tern_session *s)
{
	json_t *o = NULL;
	char *text;

	if (!tern_session_stats_json(s, &text)) {
		o = json_loads(text, 0, NULL);
		free(text);
	}
	return o ? o : json_null();
}

/* What there is to tell of a session that there was. */
static json_t *session_json(const struct migration *g)
{
	struct tern_error err;
	struct tern_stats st;
	char uri[256];
	json_t *o;

	if (!g->session || tern_session_stats(g->session, &st, sizeof(st)))
		return json_object();
	tern_session_uri(g->session, uri, sizeof(uri));
	utf8_clean(uri); /* a path may be anything */
	o = json_pack("{s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:o, s:o}", "status",
		      tern_state_name(st.state), "role",
		      g->role == TERN_SOURCE ? "source" : "destination", "uri", uri, "total-time",
		      (json_int_t)(st.total_ns / 1000000), "setup-time",
		      (json_int_t)(st.setup_ns / 1000000), "downtime",
		      (json_int_t)(st.downtime_ns / 1000000), "expected-downtime",
		      (json_int_t)(st.expected_downtime_ns / 1000000), "ram", ram_json(&st), "tern",
		      tern_json(g->session));
	if (st.throttle_percent)
		json_object_set_new(o, "cpu-throttle-percentage",
				    json_integer((json_int_t)st.throttle_percent));
	if (tern_session_error(g->session, &err))
		json_object_set_new(o, "error-desc", json_string(err.message));
	return o;
}

json_t *migration_json(const struct migration *g)
{
	json_t *o = session_json(g), *reasons = blockers_json(g->vmm);

	if (reasons)
		json_object_set_new(o, "blocked-reasons", reasons);
	return o;
}
