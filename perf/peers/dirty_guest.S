/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A bare guest that dirties its memory at a given pace, for migrations of a
 * machine that cannot boot an operating system quickly.  A multiboot image in
 * 32-bit protected mode without paging or interrupts; needs only a PIT.
 *
 * Assembled with --defsym FILL_MIB=… WORKING_MIB=… RATE=… (bytes per second):
 *
 *   1 MiB   this code
 *   2 MiB   status page, read by the harness through the RAM's backing file
 *             +0   u64  pages rewritten so far
 *             +8   u32  phase: 1 filling, 2 rewriting
 *             +12  u32  magic 0x6e726574
 *   16 MiB  FILL_MIB of pseudo-random words, of which the first WORKING_MIB are
 *           then rewritten page by page in order, over and over; each page gets
 *           the low word of its count as a stamp in every word.
 *
 * Pace: PIT channel 0 counts 1,193,182 ticks a second down from 65,536.  Ticks
 * gone by become credit; one batch of 64 pages costs BATCH_COST.  Credit is
 * capped at 50 ms, so a guest that was held up does not answer with a long
 * burst.  The PIT stands still while the machine is paused.
 */
	.set PIT_HZ, 1193182
	.set BATCH_PAGES, 64
	/* ticks a batch may take, 8 fractional bits */
	.set BATCH_COST, (BATCH_PAGES * 4096 * PIT_HZ * 256) / RATE
	.set CREDIT_MAX, (PIT_HZ / 20) * 256
	.set STATUS, 0x200000
	.set FILL_BASE, 0x1000000
	.set WORKING_END, FILL_BASE + (WORKING_MIB << 20)

	.section .text
	.code32
	.balign 4
multiboot:
	.long 0x1badb002, 0, -0x1badb002

	.globl _start
_start:
	cli
	cld
	movl	$stack_top, %esp
	movl	$0, STATUS
	movl	$0, STATUS + 4
	movl	$1, STATUS + 8
	movl	$0x6e726574, STATUS + 12

	/* xorshift32 over the fill */
	movl	$FILL_BASE, %edi
	movl	$(FILL_MIB << 18), %ecx
	movl	$0x9e3779b9, %eax
fill:
	movl	%eax, %edx
	shll	$13, %edx
	xorl	%edx, %eax
	movl	%eax, %edx
	shrl	$17, %edx
	xorl	%edx, %eax
	movl	%eax, %edx
	shll	$5, %edx
	xorl	%edx, %eax
	stosl
	decl	%ecx
	jnz	fill

	/* PIT channel 0: low and high byte, mode 2, full period */
	movb	$0x34, %al
	outb	%al, $0x43
	xorb	%al, %al
	outb	%al, $0x40
	outb	%al, $0x40
	movl	$2, STATUS + 8
	movl	$FILL_BASE, %edi
	call	pit_read
	movl	%eax, %esi			/* last count seen */
	xorl	%ebp, %ebp			/* credit */

pace:
	call	pit_read
	subl	%eax, %esi
	andl	$0xffff, %esi
	shll	$8, %esi
	addl	%esi, %ebp
	movl	%eax, %esi
	cmpl	$CREDIT_MAX, %ebp
	jbe	1f
	movl	$CREDIT_MAX, %ebp
1:	cmpl	$BATCH_COST, %ebp
	jb	pace
	subl	$BATCH_COST, %ebp

	movl	$BATCH_PAGES, %ebx
page:
	movl	STATUS, %eax
	movl	$1024, %ecx
	rep stosl
	addl	$1, STATUS
	adcl	$0, STATUS + 4
	cmpl	$WORKING_END, %edi
	jb	2f
	movl	$FILL_BASE, %edi
2:	decl	%ebx
	jnz	page
	jmp	pace

/* pit_read - the count of channel 0 in %eax; spoils %edx. */
pit_read:
	xorl	%eax, %eax
	outb	%al, $0x43			/* latch channel 0 */
	inb	$0x40, %al
	movzbl	%al, %edx
	inb	$0x40, %al
	movzbl	%al, %eax
	shll	$8, %eax
	orl	%edx, %eax
	ret

	.section .bss
	.balign 16
	.skip 4096
stack_top:
