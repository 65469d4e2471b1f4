/* SPDX-License-Identifier: BSD-2-Clause */
/* Parameters that are text: checking, setting, reading. */
#define _GNU_SOURCE
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "cpus.h"
#include "error.h"
#include "session.h"

/* NAME or NAME/PORT, as the kernel names RDMA devices.  0 or -EINVAL with *err. */
static int check_device(const char *text, struct tern_error *err)
{
	size_t n = 0;
	unsigned port = 1;
	char end = '\0';

	while (isalnum((unsigned char)text[n]) || (text[n] && strchr("_.-:", text[n])))
		n++;
	if (n >= 1 && n < 64 &&
	    (!text[n] || (sscanf(text + n, "/%3u%c", &port, &end) == 1 && port >= 1 &&
			  port <= 255 && text[n + 1] != '+' && text[n + 1] != '-')))
		return 0;
	return error_session(err, -EINVAL,
			     "\"%.80s\" is no name of an RDMA device; give NAME or NAME/PORT, such "
			     "as mlx5_0 or mlx5_0/1 (tern info lists them)",
			     text);
}

int tern_text_check(enum tern_text text, const char *value, struct tern_error *err)
{
	struct tern_error scratch;

	if (!err)
		err = &scratch;
	error_clear(err);
	if ((unsigned)text >= TERN_TEXT_NR)
		return error_session(err, -EINVAL, "there is no parameter of text number %d",
				     (int)text);
	if (!value || !*value)
		return 0;
	if (strlen(value) >= SESSION_TEXT_MAX)
		return error_session(err, -EINVAL,
				     "a text of %zu bytes is too long, %u are possible",
				     strlen(value), SESSION_TEXT_MAX - 1);
	return text == TERN_TEXT_CPUS ? cpus_budget_check(value, err) : check_device(value, err);
}

int tern_session_set_text(struct tern_session *s, enum tern_text text, const char *value)
{
	struct tern_error err;
	int r = tern_text_check(text, value, &err);

	if (r)
		return r;
	monitor_lock(&s->mon);
	if (s->started)
		r = -EBUSY;
	else
		snprintf(s->texts[text], sizeof(s->texts[text]), "%s", value ? value : "");
	monitor_unlock(&s->mon);
	return r;
}
