/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_VMM_QMP_H
#define TERN_VMM_QMP_H

/*
 * The control socket: commands and events as JSON lines, in the manner of QMP.
 *
 *	{"execute": "migrate", "arguments": {"uri": "tcp:b:4444"}, "id": 1}
 *	{"return": {}, "id": 1}
 *	{"error": {"class": "GenericError", "desc": "…"}, "id": 1}
 *	{"timestamp": {…}, "event": "MIGRATION", "data": {"status": "active"}}
 *
 * A client is greeted as by QEMU, and may send qmp_capabilities but need not.  There may
 * be several; all get all events.  Everything here runs on the main thread.
 */

#include <jansson.h>
#include "vmm.h"

#define QMP_CLIENTS_MAX 8u
#define QMP_LINE_MAX 65536u

struct qmp_client {
	int fd; /* -1: free */
	size_t len;
	char *line; /* QMP_LINE_MAX bytes: what came, up to now without a newline */
};

struct qmp {
	struct vmm *vmm;
	const char *path; /* NULL: no socket */
	int fd;
	int signal_fd; /* SIGINT and SIGTERM, which are blocked */
	struct qmp_client clients[QMP_CLIENTS_MAX];
};

/* qmp_open - listen at @path (NULL: do not).  0, or -errno with *@err. */
int qmp_open(struct qmp *q, struct vmm *v, const char *path, struct tern_error *err);

/* qmp_close - end all connections and remove the socket. */
void qmp_close(struct qmp *q);

/* qmp_serve - serve until `quit`, SIGINT or SIGTERM.  0, or -errno with *@err. */
int qmp_serve(struct qmp *q, struct tern_error *err);

/*
 * command_run - carry out one request, a JSON object; see commands.c.
 * Always gives an answer, for json_decref().
 */
json_t *command_run(struct vmm *v, const json_t *request);

#endif
