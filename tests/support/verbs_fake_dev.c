/* SPDX-License-Identifier: BSD-2-Clause */

/* The device of the fake: what it says of itself, protection domains, registrations. */

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "verbs_fake_private.h"

/* The compatibility macros stand in the way of the definitions below. */
#undef ibv_reg_mr
#undef ibv_query_port

static struct ibv_device device = { .name = "fake0" };
static struct verbs_context context = {
	.sz = sizeof(context),
	.query_device_ex = fake_query_device_ex,
	.advise_mr = fake_advise_mr,
	.context = {
		.device = &device,
		.num_comp_vectors = 2,
		.abi_compat = __VERBS_ABI_IS_EXTENDED,
		.ops = { .poll_cq = fake_poll_cq,
			 .req_notify_cq = fake_req_notify,
			 .post_send = fake_post_send,
			 .post_recv = fake_post_recv,
			 .alloc_mw = fake_alloc_mw,
			 .dealloc_mw = fake_dealloc_mw },
	},
};

struct ibv_context *fake_context(void)
{
	return &context.context;
}

struct ibv_device **ibv_get_device_list(int *nr)
{
	struct ibv_device **v = calloc(2, sizeof(*v));

	if (!v)
		return NULL;
	pthread_mutex_lock(&fake.lock);
	v[0] = fake.absent ? NULL : &device;
	pthread_mutex_unlock(&fake.lock);
	if (nr)
		*nr = v[0] ? 1 : 0;
	return v;
}

void ibv_free_device_list(struct ibv_device **list)
{
	free(list);
}

const char *ibv_get_device_name(struct ibv_device *d)
{
	return d->name;
}

struct ibv_context *ibv_open_device(struct ibv_device *d)
{
	(void)d;
	return &context.context;
}

int ibv_close_device(struct ibv_context *c)
{
	(void)c;
	return 0;
}

int ibv_query_device(struct ibv_context *c, struct ibv_device_attr *attr)
{
	int rc = 0;

	(void)c;
	pthread_mutex_lock(&fake.lock);
	if (fake_fails(FAKE_QUERY_DEVICE))
		rc = errno;
	else
		*attr = fake.device;
	pthread_mutex_unlock(&fake.lock);
	return rc;
}

int ibv_query_port(struct ibv_context *c, uint8_t port, struct _compat_ibv_port_attr *compat)
{
	struct ibv_port_attr *attr = (struct ibv_port_attr *)compat;
	int rc = 0;

	(void)c;
	(void)port;
	pthread_mutex_lock(&fake.lock);
	if (fake_fails(FAKE_QUERY_PORT)) {
		rc = errno;
	} else {
		attr->state = fake.port.state;
		attr->gid_tbl_len = fake.port.gid_tbl_len;
		attr->max_msg_sz = fake.port.max_msg_sz;
	}
	pthread_mutex_unlock(&fake.lock);
	return rc;
}

/* The loopback addresses: 127.0.0.1 as an IPv4-mapped one, if there is IPv4, then ::1. */
int ibv_query_gid(struct ibv_context *c, uint8_t port, int index, union ibv_gid *gid)
{
	static const uint8_t loopback[2][16] = { { [10] = 0xff, 0xff, 127, 0, 0, 1 },
						 { [15] = 1 } };

	(void)c;
	(void)port;
	pthread_mutex_lock(&fake.lock);
	index += fake.no_ipv4;
	pthread_mutex_unlock(&fake.lock);
	if (index < 0 || index > 1)
		return -1;
	memcpy(gid->raw, loopback[index], sizeof(loopback[index]));
	return 0;
}

struct ibv_pd *ibv_alloc_pd(struct ibv_context *c)
{
	struct fake_pd *pd = calloc(1, sizeof(*pd));
	bool good;

	if (!pd)
		abort();
	pthread_mutex_lock(&fake.lock);
	good = fake_object(FAKE_PD);
	pthread_mutex_unlock(&fake.lock);
	if (!good) {
		free(pd);
		return NULL;
	}
	pd->base.context = c;
	return &pd->base;
}

int ibv_dealloc_pd(struct ibv_pd *base)
{
	struct fake_pd *pd = (struct fake_pd *)base;

	pthread_mutex_lock(&fake.lock);
	if (pd->users)
		fake_misuse("a protection domain is freed that is in use");
	fake.objects--;
	pthread_mutex_unlock(&fake.lock);
	free(pd);
	return 0;
}

/* The list in which a registration of @key is; there are many of them at a time. */
static struct fake_mr **mr_list(uint32_t key)
{
	return &fake.mrs[key % FAKE_MR_LISTS];
}

/* Whose registration is it?  Buffers are LOCAL_WRITE; guest memory is 0 or REMOTE_WRITE too. */
static enum verbs_fake_call reg_call(int access)
{
	if (access & (IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_MW_BIND))
		return FAKE_REG_DESTINATION;
	return access & IBV_ACCESS_LOCAL_WRITE ? FAKE_REG_BUFFER : FAKE_REG_SOURCE;
}

struct ibv_mr *ibv_reg_mr(struct ibv_pd *pd, void *addr, size_t length, int access)
{
	struct fake_mr *mr = calloc(1, sizeof(*mr));
	bool good;

	if (!mr)
		abort();
	pthread_mutex_lock(&fake.lock);
	good = fake_pages(access) && fake_lock(access, length);
	if (!fake_pages(access))
		errno = EOPNOTSUPP;
	else if (!good)
		errno = ENOMEM;
	else if (!fake_object(reg_call(access))) {
		fake_unlock(access, length);
		good = false;
	}
	if (good) {
		mr->base.context = pd->context;
		mr->base.pd = pd;
		mr->base.addr = addr;
		mr->base.length = length;
		mr->base.lkey = mr->base.rkey = fake.next_key++;
		mr->access = access;
		mr->next = *mr_list(mr->base.lkey);
		*mr_list(mr->base.lkey) = mr;
		((struct fake_pd *)pd)->users++;
	}
	pthread_mutex_unlock(&fake.lock);
	if (good)
		return &mr->base;
	free(mr);
	return NULL;
}

struct ibv_mr *ibv_reg_mr_iova2(struct ibv_pd *pd, void *addr, size_t length, uint64_t iova,
				unsigned int access)
{
	(void)iova;
	return ibv_reg_mr(pd, addr, length, (int)access);
}

int ibv_dereg_mr(struct ibv_mr *base)
{
	struct fake_mr **at;

	pthread_mutex_lock(&fake.lock);
	for (at = mr_list(base->lkey); *at && *at != (struct fake_mr *)base; at = &(*at)->next)
		;
	if (!*at)
		fake_misuse("a registration is ended that does not exist");
	if (fake_is_bound(base, NULL))
		fake_misuse("a registration is ended that a memory window is bound to");
	fake_unlock((*at)->access, base->length);
	*at = (*at)->next;
	((struct fake_pd *)base->pd)->users--;
	fake.objects--;
	pthread_mutex_unlock(&fake.lock);
	free(base);
	return 0;
}

bool fake_covered(const struct ibv_pd *pd, uint32_t key, uint64_t addr, uint64_t len, int access)
{
	for (struct fake_mr *mr = *mr_list(key); mr; mr = mr->next) {
		uint64_t base = (uintptr_t)mr->base.addr;

		if (mr->base.lkey == key)
			return mr->base.pd == pd && (mr->access & access) == access &&
			       addr >= base && len <= mr->base.length &&
			       addr - base <= mr->base.length - len;
	}
	return false;
}
