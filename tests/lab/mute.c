/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A destination that greets as it should and then posts no receive: whatever is sent to
 * it finds none, for ever.  Real RDMA hardware answers such a sender with RNR NAKs.
 *
 *	lab_mute ADDRESS PORT
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <rdma/rdma_cma.h>

#include "greeting.h"

/* A call failed: nothing of this is being tested. */
__attribute__((noreturn)) static void die(const char *what)
{
	fprintf(stderr, "mute: %s: %s\n", what, strerror(errno));
	exit(1);
}

/* Accept @id with a greeting that promises receives. */
static void accept_peer(struct rdma_cm_id *id, const void *data, size_t len)
{
	struct ibv_qp_init_attr attr = {
		.qp_type = IBV_QPT_RC,
		.cap = { .max_send_wr = 1, .max_recv_wr = 1, .max_send_sge = 1, .max_recv_sge = 1 },
	};
	uint8_t buf[GREETING_LEN];
	struct rdma_conn_param param = { .private_data = buf, .private_data_len = sizeof(buf) };
	struct greeting g;

	if (!greeting_get(data, len, &g)) {
		errno = EPROTO;
		die("greeting");
	}
	g.ring = 32;
	g.msg_window = 16;
	greeting_put(buf, &g);
	if (rdma_create_qp(id, NULL, &attr))
		die("rdma_create_qp");
	if (rdma_accept(id, &param))
		die("rdma_accept");
}

/* Take what the connection manager says, for ever. */
static void serve(struct rdma_event_channel *cm)
{
	struct rdma_cm_event *e;

	while (!rdma_get_cm_event(cm, &e)) {
		if (e->event == RDMA_CM_EVENT_CONNECT_REQUEST)
			accept_peer(e->id, e->param.conn.private_data,
				    e->param.conn.private_data_len);
		rdma_ack_cm_event(e);
	}
	die("rdma_get_cm_event");
}

int main(int argc, char **argv)
{
	struct rdma_event_channel *cm = rdma_create_event_channel();
	struct sockaddr_in address = { .sin_family = AF_INET };
	struct rdma_cm_id *id;

	if (argc != 3 || inet_pton(AF_INET, argv[1], &address.sin_addr) != 1)
		return 2;
	address.sin_port = htons((uint16_t)atoi(argv[2]));
	if (!cm || rdma_create_id(cm, &id, NULL, RDMA_PS_TCP))
		die("rdma_create_id");
	if (rdma_bind_addr(id, (struct sockaddr *)&address) || rdma_listen(id, 8))
		die("rdma_listen");
	puts("listening");
	fflush(stdout);
	serve(cm);
	return 0;
}
