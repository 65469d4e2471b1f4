/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Where every vCPU begins (bootinfo.h), and the ways in for interrupts.
 *
 * A stub pushes an error code where the CPU has none, and the vector; common_entry
 * saves all general registers (struct frame of lib.h) and calls interrupt().
 */
#define STACK_BYTES 16384

	.section .text.start, "ax"
	.globl _start
_start:
	/* Index * size, above the stacks' base: the stack grows down. */
	lea	1(%rsi), %rax
	imul	$STACK_BYTES, %rax
	lea	stacks(%rip), %rsp
	add	%rax, %rsp
	lgdt	gdt_pointer(%rip)
	mov	$0x10, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %ss
	xor	%eax, %eax
	mov	%eax, %fs
	mov	%eax, %gs
	/* Reload CS by a far return. */
	push	$0x08
	lea	1f(%rip), %rax
	push	%rax
	lretq
1:	xor	%ebp, %ebp
	call	guest_start
2:	cli
	hlt
	jmp	2b

	/* One stub of 16 bytes for each vector. */
	.balign	16
	.globl	interrupt_stubs
interrupt_stubs:
	.set	i, 0
	.rept	64
	.if	!(i == 8 || (i >= 10 && i <= 14) || i == 17 || i == 21)
	push	$0
	.endif
	push	$i
	jmp	common_entry
	.balign	16
	.set	i, i + 1
	.endr

common_entry:
	push	%rax
	push	%rbx
	push	%rcx
	push	%rdx
	push	%rsi
	push	%rdi
	push	%rbp
	push	%r8
	push	%r9
	push	%r10
	push	%r11
	push	%r12
	push	%r13
	push	%r14
	push	%r15
	mov	%rsp, %rdi
	mov	%rsp, %rbp
	and	$-16, %rsp
	cld
	call	interrupt
	mov	%rbp, %rsp
	pop	%r15
	pop	%r14
	pop	%r13
	pop	%r12
	pop	%r11
	pop	%r10
	pop	%r9
	pop	%r8
	pop	%rbp
	pop	%rdi
	pop	%rsi
	pop	%rdx
	pop	%rcx
	pop	%rbx
	pop	%rax
	add	$16, %rsp
	iretq

	/* user_run(fn, cpu): fn(cpu) at the lowest privilege; never returns. */
	.globl	user_run
user_run:
	lea	1(%rsi), %rax
	imul	$STACK_BYTES, %rax
	lea	user_stacks(%rip), %rcx
	lea	-8(%rcx, %rax), %rax
	push	$0x1b
	push	%rax
	push	$0x2 /* interrupts off */
	push	$0x23
	push	%rdi
	mov	%rsi, %rdi
	iretq

	/*
	 * kernel_call(fn, argument): the result of fn(argument) at the highest privilege.
	 * By an exception: not every host passes software interrupts on to the guest.
	 */
	.globl	kernel_call
kernel_call:
	ud2
	ret

	.section .data
	.balign	16
	.globl	gdt
gdt:
	.quad	0
	.quad	0x00af9b000000ffff /* 0x08: 64-bit code */
	.quad	0x00cf93000000ffff /* 0x10: data */
	.quad	0x00cff3000000ffff /* 0x18: data of users */
	.quad	0x00affb000000ffff /* 0x20: 64-bit code of users */
	.skip	16 * 64            /* 0x28: a task state segment for each vCPU */
gdt_end:
gdt_pointer:
	.word	gdt_end - gdt - 1
	.quad	gdt

	.section .bss
	.balign	4096
	.globl	stacks
stacks:
	.skip	STACK_BYTES * 64
user_stacks:
	.skip	STACK_BYTES * 64

	.section .note.GNU-stack, "", @progbits
