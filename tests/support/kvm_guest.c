/* SPDX-License-Identifier: BSD-2-Clause */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include "kvm_guest.h"
#include "leave_out.h"

#if !defined(__x86_64__)
#error "the guest's code is for x86"
#endif

enum {
	CODE_BYTES = 65536,
	MAILBOX_AT = 0x1000, /* in the code's slot */
	MAILBOX_BYTES = 64,
	ZONE_BYTES = 2 << 20,
};

/* Words of a mailbox. */
enum { BOX_STOP, BOX_WRITES, BOX_ZONES, BOX_PAGES, BOX_WORD };

/*
 * The guest's code; it runs with flat segments, without paging and without interrupts.
 *
 * guest_write: %edi gpa, %ecx pages, %eax value.
 *
 * guest_roam: %ebx gpa, %edi not 0, %edx 0, %esp mailbox.  %edi is a random number (xorshift),
 * %ecx the zone, %esi the writes left in it, %edx the stamp.
 */
extern const char guest_write[], guest_roam[], guest_end[];
asm(".pushsection .rodata\n"
    ".code32\n"
    ".macro next_random\n"
    "	movl %edi, %eax\n	shll $13, %eax\n	xorl %eax, %edi\n"
    "	movl %edi, %eax\n	shrl $17, %eax\n	xorl %eax, %edi\n"
    "	movl %edi, %eax\n	shll $5, %eax\n	xorl %eax, %edi\n"
    ".endm\n"
    "guest_write:\n"
    "1:	movl %eax, (%edi)\n"
    "	addl $4096, %edi\n"
    "	decl %ecx\n"
    "	jnz 1b\n"
    "	hlt\n"
    "guest_roam:\n"
    "1:	next_random\n" /* another zone, for 1 to 1024 writes */
    "	movl %edi, %ecx\n"
    "	andl 8(%esp), %ecx\n"
    "	addl %ebx, %ecx\n"
    "	movl %edi, %esi\n"
    "	andl $0x3ff, %esi\n"
    "	incl %esi\n"
    "2:	next_random\n" /* another page of it; every other time one of eight */
    "	movl %edi, %eax\n"
    "	andl 12(%esp), %eax\n"
    "	testl %edi, %edi\n"
    "	jns 3f\n"
    "	andl $0x7000, %eax\n"
    "3:	movl %edi, %ebp\n" /* one of 32 words there that are this vCPU's */
    "	andl $0xf80, %ebp\n"
    "	addl 16(%esp), %ebp\n"
    "	addl %ecx, %eax\n"
    "	addl %ebp, %eax\n"
    "	incl %edx\n"
    "	movl %edx, (%eax)\n"
    "	movl %edx, 4(%esp)\n"
    "	cmpl $0, (%esp)\n"
    "	jne 4f\n"
    "	decl %esi\n"
    "	jnz 2b\n"
    "	jmp 1b\n"
    "4:	hlt\n"
    "guest_end:\n"
    ".code64\n"
    ".popsection\n");

void kvm_guest_available(void)
{
	int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	if (fd < 0)
		leave_out("kvm", "there is no /dev/kvm that may be opened");
	close(fd);
}

struct kvm_guest *kvm_guest_new_vm(void)
{
	struct kvm_guest *g = calloc(1, sizeof(*g));

	assert_non_null(g);
	g->code = MAP_FAILED;
	g->kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	assert_true(g->kvm_fd >= 0);
	g->vm_fd = ioctl(g->kvm_fd, KVM_CREATE_VM, 0ul);
	assert_true(g->vm_fd >= 0);
	return g;
}

int kvm_guest_slot(struct kvm_guest *g, uint32_t slot, uint32_t flags, uint64_t gpa, uint64_t size,
		   void *hva)
{
	struct kvm_userspace_memory_region m = {
		.slot = slot,
		.flags = flags,
		.guest_phys_addr = gpa,
		.memory_size = size,
		.userspace_addr = (uintptr_t)hva,
	};

	return ioctl(g->vm_fd, KVM_SET_USER_MEMORY_REGION, &m) ? -errno : 0;
}

/* flat - a segment of all 4 GiB. */
static void flat(struct kvm_segment *s, uint16_t selector, uint8_t type)
{
	*s = (struct kvm_segment){
		.limit = 0xffffffff,
		.selector = selector,
		.type = type,
		.present = 1,
		.db = 1,
		.s = 1,
		.g = 1,
	};
}

/* set_mode - protected mode without paging. */
static void set_mode(struct kvm_guest_vcpu *v)
{
	struct kvm_sregs s;

	assert_int_equal(ioctl(v->fd, KVM_GET_SREGS, &s), 0);
	flat(&s.cs, 8, 11);
	flat(&s.ds, 16, 3);
	s.es = s.fs = s.gs = s.ss = s.ds;
	s.cr0 |= 1;
	assert_int_equal(ioctl(v->fd, KVM_SET_SREGS, &s), 0);
}

void kvm_guest_add_vcpus(struct kvm_guest *g, unsigned nr)
{
	int size = ioctl(g->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0ul);

	assert_true(nr <= KVM_GUEST_VCPUS_MAX);
	g->code = mmap(NULL, CODE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(g->code, MAP_FAILED);
	memcpy(g->code, guest_write, (size_t)(guest_end - guest_write));
	assert_int_equal(kvm_guest_slot(g, KVM_GUEST_CODE_SLOT, 0, 0, CODE_BYTES, g->code), 0);
	for (; g->nr_vcpus < nr; g->nr_vcpus++) {
		struct kvm_guest_vcpu *v = &g->v[g->nr_vcpus];

		v->g = g;
		v->index = g->nr_vcpus;
		v->mailbox = (volatile uint32_t *)(g->code + MAILBOX_AT + v->index * MAILBOX_BYTES);
		v->fd = ioctl(g->vm_fd, KVM_CREATE_VCPU, (unsigned long)v->index);
		assert_true(v->fd >= 0);
		v->run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, v->fd, 0);
		assert_ptr_not_equal(v->run, MAP_FAILED);
		set_mode(v);
	}
}

void kvm_guest_delete(struct kvm_guest *g)
{
	int size = ioctl(g->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0ul);

	for (unsigned i = 0; i < g->nr_vcpus; i++) {
		munmap(g->v[i].run, (size_t)size);
		close(g->v[i].fd);
	}
	close(g->vm_fd);
	close(g->kvm_fd);
	if (g->code != MAP_FAILED)
		munmap(g->code, CODE_BYTES);
	free(g);
}

/* run_to_halt - until the code is done; 0, or the exit that should not have been. */
static uint32_t run_to_halt(struct kvm_guest_vcpu *v)
{
	struct kvm_guest *g = v->g;

	for (;;) {
		if (ioctl(v->fd, KVM_RUN, 0ul) && errno != EINTR)
			return 1000 + (uint32_t)errno;
		if (v->run->exit_reason == KVM_EXIT_HLT)
			return 0;
		if (v->run->exit_reason != KVM_EXIT_DIRTY_RING_FULL || !g->on_ring_full)
			return 2000 + v->run->exit_reason;
		atomic_fetch_add(&v->ring_full, 1);
		g->on_ring_full(g->opaque, v->index);
	}
}

void kvm_guest_write(struct kvm_guest *g, unsigned i, uint32_t gpa, uint32_t nr, uint32_t value)
{
	struct kvm_regs r = { .rip = 0, .rflags = 2, .rax = value, .rcx = nr, .rdi = gpa };

	assert_int_equal(ioctl(g->v[i].fd, KVM_SET_REGS, &r), 0);
	assert_int_equal(run_to_halt(&g->v[i]), 0);
}

/* roam_main - the thread of a vCPU; its result is that of run_to_halt(). */
static void *roam_main(void *opaque)
{
	return (void *)(uintptr_t)run_to_halt(opaque);
}

void kvm_guest_roam(struct kvm_guest *g, uint32_t gpa, uint32_t bytes)
{
	for (unsigned i = 0; i < g->nr_vcpus; i++) {
		struct kvm_guest_vcpu *v = &g->v[i];
		struct kvm_regs r = {
			.rip = (uint64_t)(guest_roam - guest_write),
			.rflags = 2,
			.rbx = gpa,
			.rdi = 0x9e3779b9u * (i + 1),
			.rsp = MAILBOX_AT + i * MAILBOX_BYTES,
		};
		uint32_t zone = bytes < ZONE_BYTES ? bytes : ZONE_BYTES;

		v->mailbox[BOX_STOP] = v->mailbox[BOX_WRITES] = 0;
		v->mailbox[BOX_ZONES] = (bytes - 1) & ~(zone - 1);
		v->mailbox[BOX_PAGES] = zone - 4096;
		v->mailbox[BOX_WORD] = 8 * i;
		assert_int_equal(ioctl(v->fd, KVM_SET_REGS, &r), 0);
		assert_int_equal(pthread_create(&v->thread, NULL, roam_main, v), 0);
	}
}

void kvm_guest_halt(struct kvm_guest *g)
{
	for (unsigned i = 0; i < g->nr_vcpus; i++)
		g->v[i].mailbox[BOX_STOP] = 1;
	for (unsigned i = 0; i < g->nr_vcpus; i++) {
		void *result;

		pthread_join(g->v[i].thread, &result);
		assert_int_equal((uintptr_t)result, 0);
	}
}

uint64_t kvm_guest_writes(const struct kvm_guest *g)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < g->nr_vcpus; i++)
		sum += g->v[i].mailbox[BOX_WRITES];
	return sum;
}
