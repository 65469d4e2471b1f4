/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A device in a process of its own (vhost-user style) that works on guest memory while the
 * guest is being moved by postcopy, with the public API only.
 *
 *	02-other-process
 *
 * Three processes: the source, whose memory holds known words; the destination; and the
 * destination's device, which maps the same memfd.  The device reads all of the memory as
 * soon as the guest runs at the destination, long before most of it has arrived.
 *
 *	destination                              device
 *	load()      "register" ----------------> empties its mapping, registers it with a
 *	                                         userfaultfd of its own
 *	            <-------- the descriptor --- (SCM_RIGHTS)
 *	            tern_session_add_mapper()
 *	resume()    "run" ---------------------> adds up all words; each new page faults
 *	            <-------- the sum ----------
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <tern/tern.h>

#define RAM_BYTES (32ull << 20)
#define WORDS (RAM_BYTES / sizeof(uint64_t))
#define SLOW (8ull << 20) /* bytes per second for what nobody asks for: the device is faster */

struct vmm {
	struct tern_session *s;
	int device; /* socket to it */
	uint64_t *ram;
};

/* What word @i of the guest's memory holds. */
static uint64_t word(uint64_t i)
{
	return (i + 1) * 0x9e3779b97f4a7c15ull;
}

/* ------------------------------------------------------------------- device */

/* Have faults of [ram, ram + RAM_BYTES) reported; the descriptor, or -1. */
static int register_memory(void *ram)
{
	struct uffdio_api api = { .api = UFFD_API,
				  .features =
					  UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM };
	struct uffdio_register reg = {
		.range = { .start = (uintptr_t)ram, .len = RAM_BYTES },
		.mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR,
	};
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) || madvise(ram, RAM_BYTES, MADV_DONTNEED) ||
	    ioctl(fd, UFFDIO_REGISTER, &reg))
		return -1;
	return fd;
}

/* Send where the memory is mapped, and the descriptor, along with it. */
static int send_descriptor(int to, int fd, void *ram)
{
	uint64_t hva = (uintptr_t)ram;
	struct iovec iov = { .iov_base = &hva, .iov_len = sizeof(hva) };
	union {
		struct cmsghdr h;
		char buf[CMSG_SPACE(sizeof(int))];
	} c = { 0 };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = c.buf,
			      .msg_controllen = sizeof(c.buf) };

	c.h = (struct cmsghdr){ .cmsg_level = SOL_SOCKET,
				.cmsg_type = SCM_RIGHTS,
				.cmsg_len = CMSG_LEN(sizeof(int)) };
	memcpy(CMSG_DATA(&c.h), &fd, sizeof(fd));
	return sendmsg(to, &msg, 0) == sizeof(hva) ? 0 : -errno;
}

/* The device's process. */
static int device_main(int vmm, int memfd)
{
	uint64_t *ram = mmap(NULL, RAM_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	uint64_t sum = 0;
	char order;
	int fd;

	if (ram == MAP_FAILED || read(vmm, &order, 1) != 1 || order != 'r')
		return 1;
	fd = register_memory(ram);
	if (fd < 0 || send_descriptor(vmm, fd, ram)) {
		perror("device: userfaultfd");
		return 1;
	}
	if (read(vmm, &order, 1) != 1 || order != 'g')
		return 1;
	for (uint64_t i = 0; i < WORDS; i++)
		sum += ram[i];
	return write(vmm, &sum, sizeof(sum)) == sizeof(sum) ? 0 : 1;
}

/* -------------------------------------------------------------- destination */

/* Receive what send_descriptor() sent. */
static int receive_descriptor(int from, uint64_t *hva)
{
	struct iovec iov = { .iov_base = hva, .iov_len = sizeof(*hva) };
	union {
		struct cmsghdr h;
		char buf[CMSG_SPACE(sizeof(int))];
	} c;
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = c.buf,
			      .msg_controllen = sizeof(c.buf) };
	int fd = -1;

	if (recvmsg(from, &msg, MSG_CMSG_CLOEXEC) == sizeof(*hva) && CMSG_FIRSTHDR(&msg))
		memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(fd));
	return fd;
}

/* The memory faults from now on: so must the device's. */
static int vm_load(void *opaque, struct tern_state_reader *r)
{
	struct tern_mapping map = { .region = 0, .size = RAM_BYTES };
	struct vmm *vm = opaque;
	struct tern_error err = { 0 };
	int fd, ret;

	(void)r;
	if (write(vm->device, "r", 1) != 1)
		return -errno;
	fd = receive_descriptor(vm->device, &map.hva);
	ret = tern_session_add_mapper(vm->s, fd, &map, 1, &err);
	if (ret)
		fprintf(stderr, "destination: %s\n", err.message);
	close(fd);
	return ret;
}

static int vm_resume(void *opaque)
{
	struct vmm *vm = opaque;

	return write(vm->device, "g", 1) == 1 ? 0 : -errno;
}

/* A session with its one region. */
static int open_session(struct vmm *vm, enum tern_role role, int memfd)
{
	static const struct tern_vm_ops ops = { .load = vm_load, .resume = vm_resume };
	struct tern_region_desc ram = {
		.name = "ram",
		.size = RAM_BYTES,
		.numa_node = TERN_NODE_ANY,
		.fd = memfd,
	};
	int r = tern_session_new(role, &vm->s);

	vm->ram = mmap(NULL, RAM_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	ram.hva = vm->ram;
	if (!r)
		r = tern_session_add_region(vm->s, &ram);
	if (r >= 0 && role == TERN_DESTINATION)
		r = tern_session_set_vm_ops(vm->s, &ops, vm);
	return r < 0 ? r : 0;
}

/* The end of a session; says why if it failed. */
static int finish(struct vmm *vm, const char *who)
{
	struct tern_error err;
	int r = tern_session_wait(vm->s, -1);

	if (tern_session_error(vm->s, &err))
		fprintf(stderr, "%s: %s\n", who, err.message);
	return r;
}

static int destination_main(int device, int source, int memfd)
{
	struct vmm vm = { .device = device };
	struct tern_postcopy_stats st;
	uint64_t sum = 0, want = 0;
	char uri[256];
	int r = open_session(&vm, TERN_DESTINATION, memfd);

	if (!r)
		r = tern_session_listen(vm.s, "tcp:127.0.0.1:0");
	if (r)
		return 1;
	tern_session_uri(vm.s, uri, sizeof(uri));
	if (write(source, uri, sizeof(uri)) != sizeof(uri))
		return 1;
	r = finish(&vm, "destination");
	if (!r && read(device, &sum, sizeof(sum)) != sizeof(sum))
		r = -EPIPE;
	for (uint64_t i = 0; i < WORDS; i++)
		want += word(i);
	tern_session_postcopy_stats(vm.s, &st, sizeof(st));
	printf("the device added up %llu words, %s; it asked for %llu pages before they came\n",
	       (unsigned long long)WORDS, sum == want ? "all of them right" : "and is wrong",
	       (unsigned long long)st.requests);
	tern_session_delete(&vm.s);
	return r || sum != want || !st.requests;
}

/* ------------------------------------------------------------------- source */

static int source_main(int destination, int memfd)
{
	struct vmm vm = { 0 };
	char uri[256];
	int r = open_session(&vm, TERN_SOURCE, memfd);

	for (uint64_t i = 0; i < WORDS && !r; i++)
		vm.ram[i] = word(i);
	if (r || read(destination, uri, sizeof(uri)) != sizeof(uri))
		return 1;
	tern_session_set(vm.s, TERN_PARAM_MODE, TERN_MODE_POSTCOPY);
	tern_session_set(vm.s, TERN_PARAM_MAX_POSTCOPY_BANDWIDTH, SLOW);
	r = tern_session_connect(vm.s, uri);
	if (!r)
		r = finish(&vm, "source");
	tern_session_delete(&vm.s);
	return r ? 1 : 0;
}

/* Memory that several processes can map. */
static int make_memory(void)
{
	int fd = memfd_create("ram", MFD_CLOEXEC);

	return fd >= 0 && !ftruncate(fd, (off_t)RAM_BYTES) ? fd : -1;
}

int main(void)
{
	int device[2], source[2], memory = make_memory(), other = make_memory(), status, code;
	pid_t pid[2];

	if (memory < 0 || other < 0 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, device) ||
	    socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, source))
		return 1;
	pid[0] = fork();
	if (!pid[0]) {
		close(device[0]);
		_exit(device_main(device[1], memory));
	}
	pid[1] = fork();
	if (!pid[1]) {
		close(source[0]);
		_exit(source_main(source[1], other));
	}
	close(device[1]);
	close(source[1]);
	code = destination_main(device[0], source[0], memory);
	close(device[0]); /* whoever still waits for a word gives up */
	close(source[0]);
	for (int i = 0; i < 2; i++)
		if (waitpid(pid[i], &status, 0) != pid[i] || status)
			code = 1;
	return code;
}
