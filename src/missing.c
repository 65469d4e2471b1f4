/* SPDX-License-Identifier: BSD-2-Clause */
#include "missing.h"

#include <errno.h>
#include <inttypes.h>

#include "error.h"

int missing_send(struct tern_session *s, uint32_t id, const uint64_t *map, struct tern_error *err)
{
	uint64_t nr_pages = s->regions.v[id].nr_pages;
	struct wire_msg msg;
	int r = 0;

	for (uint64_t at = 0; at < nr_pages && !r;) {
		size_t len;

		msg.type = WIRE_MISSING;
		msg.missing.region = id;
		msg.missing.first_page = at;
		at = runs_put(map, at, nr_pages, msg.missing.runs, WIRE_RUNS_MAX, &len);
		msg.missing.len = (uint16_t)len;
		if (len)
			r = link_send(&s->link, &msg, err);
	}
	return r;
}

int missing_take(const struct tern_session *s, const struct wire_missing *m,
		 int (*take)(void *opaque, uint32_t region, struct runs *runs), void *opaque,
		 struct tern_error *err)
{
	if (m->region >= s->regions.nr)
		return error_session(err, -EPROTO,
				     "message MISSING from the peer has region = %u, there are %u",
				     m->region, s->regions.nr);
	const struct region *r = &s->regions.v[m->region];
	struct runs runs = {
		.p = m->runs,
		.left = m->len,
		.at = m->first_page,
		.end = r->nr_pages,
	};

	if (m->first_page < r->nr_pages && !take(opaque, m->region, &runs))
		return 0;
	return error_session(
		err, -EPROTO,
		"message MISSING from the peer has runs that do not fit region '%s' of "
		"%" PRIu64 " pages, from page %" PRIu64 " on",
		r->name, r->nr_pages, m->first_page);
}
