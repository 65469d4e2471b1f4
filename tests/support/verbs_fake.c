/* SPDX-License-Identifier: BSD-2-Clause */

/* The state of the fake device, and the faults that tests inject.  See verbs_fake.h. */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "verbs_fake_private.h"

#define USUAL_DEVICE                                                                      \
	{                                                                                 \
		.phys_port_cnt = 1, .max_qp_wr = 128, .max_cqe = 4096, .max_mr = 1 << 16, \
		.max_mw = 1 << 16, .device_cap_flags = IBV_DEVICE_MEM_WINDOW_TYPE_2B,     \
	}
#define USUAL_PORT                                                                  \
	{                                                                           \
		.state = IBV_PORT_ACTIVE, .gid_tbl_len = 2, .max_msg_sz = 1u << 20, \
	}

struct fake fake = {
	.lock = PTHREAD_MUTEX_INITIALIZER,
	.next_key = 1,
	.next_port = 20000,
	.held_tail = &fake.held,
	.device = USUAL_DEVICE,
	.port = USUAL_PORT,
};

void fake_misuse(const char *what)
{
	fprintf(stderr, "verbs fake: %s\n", what);
	abort();
}

bool fake_fires(struct fake_fault *f)
{
	if (!f->n)
		return false;
	if (f->n > 1) {
		f->n--;
		return false;
	}
	if (!f->on)
		f->n = 0;
	fake.fired++;
	return true;
}

bool fake_fails(enum verbs_fake_call which)
{
	if (fake.at.n && fake.at.which == which && !--fake.at.n) {
		pthread_mutex_unlock(&fake.lock);
		fake.at.fn(fake.at.opaque);
		pthread_mutex_lock(&fake.lock);
	}
	if (!fake_fires(&fake.call[which]))
		return false;
	errno = fake.call[which].code;
	return true;
}

bool fake_object(enum verbs_fake_call which)
{
	if (fake_fails(FAKE_OBJECT) || fake_fails(which))
		return false;
	fake.objects++;
	return true;
}

/* Arm @f. */
static void arm(struct fake_fault *f, unsigned n, int code, bool on)
{
	pthread_mutex_lock(&fake.lock);
	*f = (struct fake_fault){ .n = n, .code = code, .on = on };
	pthread_mutex_unlock(&fake.lock);
}

void verbs_fake_fail(enum verbs_fake_call which, unsigned n, int code)
{
	arm(&fake.call[which], n, code, false);
}

void verbs_fake_fail_from(enum verbs_fake_call which, unsigned n, int code)
{
	arm(&fake.call[which], n, code, true);
}

void verbs_fake_answer(enum verbs_fake_answer which, unsigned n)
{
	arm(&fake.answer[which], n, 0, false);
}

void verbs_fake_wc(enum verbs_fake_wr which, unsigned n, int status)
{
	arm(&fake.wr[which], n, status, false);
}

void verbs_fake_at(enum verbs_fake_call which, unsigned n, void (*fn)(void *), void *opaque)
{
	pthread_mutex_lock(&fake.lock);
	fake.at.which = which;
	fake.at.n = n;
	fake.at.fn = fn;
	fake.at.opaque = opaque;
	pthread_mutex_unlock(&fake.lock);
}

unsigned verbs_fake_fired(void)
{
	unsigned n;

	pthread_mutex_lock(&fake.lock);
	n = fake.fired;
	pthread_mutex_unlock(&fake.lock);
	return n;
}

void verbs_fake_hold(bool hold)
{
	pthread_mutex_lock(&fake.lock);
	fake.hold = hold;
	if (!hold)
		fake_release_held();
	pthread_mutex_unlock(&fake.lock);
}

void verbs_fake_hold_answers(bool hold)
{
	pthread_mutex_lock(&fake.lock);
	fake.hold_answers = hold;
	if (!hold)
		fake_release_held();
	pthread_mutex_unlock(&fake.lock);
}

unsigned verbs_fake_held(void)
{
	unsigned n = 0;

	pthread_mutex_lock(&fake.lock);
	for (struct fake_held *h = fake.held; h; h = h->next)
		n++;
	pthread_mutex_unlock(&fake.lock);
	return n;
}

void verbs_fake_qp_error(bool data)
{
	pthread_mutex_lock(&fake.lock);
	for (struct fake_qp *qp = fake.qps; qp; qp = qp->next)
		if (qp->id->data == data)
			fake_qp_error(qp);
	pthread_mutex_unlock(&fake.lock);
}

void verbs_fake_remove_device(void)
{
	pthread_mutex_lock(&fake.lock);
	for (struct fake_id *id = fake.ids; id; id = id->next)
		fake_push(id, RDMA_CM_EVENT_DEVICE_REMOVAL, 0, NULL, 0);
	pthread_mutex_unlock(&fake.lock);
}

void verbs_fake_no_ipv4(void)
{
	pthread_mutex_lock(&fake.lock);
	fake.no_ipv4 = true;
	pthread_mutex_unlock(&fake.lock);
}

void verbs_fake_absent(void)
{
	pthread_mutex_lock(&fake.lock);
	fake.absent = true;
	pthread_mutex_unlock(&fake.lock);
}

struct ibv_device_attr *verbs_fake_device_attr(void)
{
	return &fake.device;
}

struct ibv_port_attr *verbs_fake_port_attr(void)
{
	return &fake.port;
}

unsigned verbs_fake_objects(void)
{
	unsigned n;

	pthread_mutex_lock(&fake.lock);
	n = fake.objects;
	pthread_mutex_unlock(&fake.lock);
	return n;
}

void verbs_fake_reset(void)
{
	pthread_mutex_lock(&fake.lock);
	fake.memlock[0].limit = fake.memlock[1].limit = 0;
	fake.paging = false;
	fake.prefetched[0] = fake.prefetched[1] = 0;
	memset(fake.call, 0, sizeof(fake.call));
	memset(fake.answer, 0, sizeof(fake.answer));
	memset(fake.wr, 0, sizeof(fake.wr));
	fake.fired = 0;
	fake.at.n = 0;
	fake.absent = fake.no_ipv4 = false;
	fake.hold = fake.hold_answers = false;
	fake_take_environment();
	fake_release_held();
	fake.device = (struct ibv_device_attr)USUAL_DEVICE;
	fake.port = (struct ibv_port_attr)USUAL_PORT;
	pthread_mutex_unlock(&fake.lock);
}

__attribute__((constructor)) static void begin(void)
{
	fake_take_environment();
}

/* Whatever the program tested: at its end nothing of the device may be left. */
__attribute__((destructor)) static void check_leaks(void)
{
	if (verbs_fake_objects())
		fake_misuse("objects are left behind at exit");
}
