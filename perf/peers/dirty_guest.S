/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A bare guest that dirties its memory at a given pace, for migrations of a
 * machine that cannot boot an operating system quickly.  A multiboot image in
 * 32-bit protected mode without paging; needs a PIT and a PIC.
 *
 * Assembled with --defsym FILL_MIB=… WORKING_MIB=… RATE=… (bytes per second):
 *
 *   1 MiB   this code
 *   2 MiB   status page, read by the harness through the RAM's backing file
 *             +0   u64  pages rewritten so far
 *             +8   u32  phase: 1 filling, 2 rewriting
 *             +12  u32  magic 0x6e726574
 *             +16  u64  most time-stamp ticks between two looks at the clock, of which
 *                       there is one before each page and one at every wake-up; the
 *                       harness may set it to 0
 *             +24  u32  ticks of 20 ms
 *   16 MiB  FILL_MIB of pseudo-random words, of which the first WORKING_MIB are
 *           then rewritten page by page in order, over and over; each page gets
 *           the low word of its count as a stamp in every word.
 *
 * Pace: time-stamp ticks gone by become credit; one batch of 64 pages costs what
 * RATE says, the length of a tick being measured once against the PIT.  Without
 * credit the guest halts until the PIT's next interrupt (1 kHz), so that between
 * batches it leaves the CPU to the migration.  Credit is capped at 40 ms: a guest
 * that was held up does not answer with a long burst.
 */
	.set PIT_HZ, 1193182
	.set CALIBRATE_TICKS, PIT_HZ / 50	/* 20 ms */
	.set BATCH_PAGES, 64
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
	movl	$0, STATUS + 16
	movl	$0, STATUS + 20
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

	/* time-stamp ticks of 20 ms, with PIT channel 0 in mode 2, full period */
	movb	$0x34, %al
	outb	%al, $0x43
	xorb	%al, %al
	outb	%al, $0x40
	outb	%al, $0x40
	call	pit_read
	movl	%eax, %esi
	rdtsc
	movl	%eax, %edi
calibrate:
	call	pit_read
	movl	%esi, %ecx
	subl	%eax, %ecx
	andl	$0xffff, %ecx
	cmpl	$CALIBRATE_TICKS, %ecx
	jb	calibrate
	rdtsc
	subl	%edi, %eax
	movl	%eax, STATUS + 24
	movl	%eax, credit_max
	shll	$1, credit_max
	movl	$(BATCH_PAGES * 4096), %ecx
	mull	%ecx
	movl	$(RATE / 50), %ecx
	divl	%ecx
	movl	%eax, batch_cost

	call	timer_start
	movl	$2, STATUS + 8
	movl	$FILL_BASE, %edi
	rdtsc
	movl	%eax, looked
	movl	%edx, looked + 4
	movl	%eax, %esi			/* last time stamp seen */
	xorl	%ebp, %ebp			/* credit */

pace:
	call	look
	movl	%eax, %ecx
	subl	%esi, %ecx
	movl	%eax, %esi
	addl	%ecx, %ebp
	jc	1f
	cmpl	credit_max, %ebp
	jbe	2f
1:	movl	credit_max, %ebp
2:	cmpl	batch_cost, %ebp
	jae	batch
	sti
	hlt
	cli
	jmp	pace
batch:
	subl	batch_cost, %ebp
	movl	$BATCH_PAGES, %ebx
page:
	call	look
	movl	STATUS, %eax
	movl	$1024, %ecx
	rep stosl
	addl	$1, STATUS
	adcl	$0, STATUS + 4
	cmpl	$WORKING_END, %edi
	jb	3f
	movl	$FILL_BASE, %edi
3:	decl	%ebx
	jnz	page
	jmp	pace

/* look - the time stamp in %edx:%eax, after keeping the longest gap; spoils %ecx. */
look:
	rdtsc
	pushl	%ebx
	movl	%eax, %ecx
	movl	%edx, %ebx
	subl	looked, %ecx
	sbbl	looked + 4, %ebx		/* %ebx:%ecx since the last look */
	movl	%eax, looked
	movl	%edx, looked + 4
	cmpl	STATUS + 20, %ebx
	jb	2f
	ja	1f
	cmpl	STATUS + 16, %ecx
	jbe	2f
1:	movl	%ecx, STATUS + 16
	movl	%ebx, STATUS + 20
2:	popl	%ebx
	ret

/* timer_start - interrupt 0x20 a thousand times a second; spoils %eax. */
timer_start:
	lgdt	gdt_pointer
	ljmp	$8, $1f
1:	movw	$16, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	movl	$timer_tick, %eax
	movw	%ax, idt + 0x20 * 8
	movw	$8, idt + 0x20 * 8 + 2
	movw	$0x8e00, idt + 0x20 * 8 + 4
	shrl	$16, %eax
	movw	%ax, idt + 0x20 * 8 + 6
	lidt	idt_pointer
	movb	$0x11, %al			/* master PIC: vectors from 0x20, timer only */
	outb	%al, $0x20
	movb	$0x20, %al
	outb	%al, $0x21
	movb	$4, %al
	outb	%al, $0x21
	movb	$1, %al
	outb	%al, $0x21
	movb	$0xfe, %al
	outb	%al, $0x21
	movb	$0xff, %al			/* slave PIC: nothing */
	outb	%al, $0xa1
	movb	$0x34, %al
	outb	%al, $0x43
	movb	$((PIT_HZ / 1000) & 0xff), %al
	outb	%al, $0x40
	movb	$((PIT_HZ / 1000) >> 8), %al
	outb	%al, $0x40
	ret

/* timer_tick - only wakes the processor. */
timer_tick:
	pushl	%eax
	movb	$0x20, %al
	outb	%al, $0x20
	popl	%eax
	iret

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

	.balign 8
gdt:
	.quad 0, 0x00cf9a000000ffff, 0x00cf92000000ffff
gdt_pointer:
	.word 23
	.long gdt
idt_pointer:
	.word 0x21 * 8 - 1
	.long idt

	.section .bss
	.balign 16
idt:
	.skip 0x21 * 8
credit_max:
	.skip 4
batch_cost:
	.skip 4
looked:
	.skip 8
	.balign 16
	.skip 4096
stack_top:
