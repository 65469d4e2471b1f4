/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The other way in: PVH, by which QEMU's -kernel and other VMMs start an ELF file.
 *
 * It begins in 32-bit mode without paging, with EBX = struct hvm_start_info.  Here the
 * CPU is brought to what bootinfo.h promises, with an identity map of the first 4 GiB,
 * and pvh_info() makes the boot information out of what the loader tells.  One vCPU:
 * nobody starts the others.
 */
#define PTE_TABLE 7 /* present, writable, for users too */
#define PTE_LARGE 0x87 /* and 2 MiB */
#define PD_PAGES 4 /* of 1 GiB each */
#define XEN_ELFNOTE_PHYS32_ENTRY 18
#define STACK_BYTES 16384 /* as in start.S */

	.section .note.pvh, "a", @note
	.balign	4
	.long	4, 4, XEN_ELFNOTE_PHYS32_ENTRY
	.asciz	"Xen"
	.long	pvh_start

	.section .text.pvh, "ax"
	.code32
pvh_start:
	cli
	cld
	lgdt	pvh_gdt_pointer
	movl	$pvh_pml4, %edi
	leal	4096 + PTE_TABLE(%edi), %eax
	movl	%eax, (%edi)
	movl	$pvh_pml4 + 2 * 4096 + PTE_TABLE, %eax
	movl	$pvh_pml4 + 4096, %edi
	movl	$PD_PAGES, %ecx
1:	movl	%eax, (%edi)
	addl	$4096, %eax
	addl	$8, %edi
	decl	%ecx
	jnz	1b
	movl	$pvh_pml4 + 2 * 4096, %edi
	movl	$PTE_LARGE, %eax
	movl	$PD_PAGES * 512, %ecx
2:	movl	%eax, (%edi)
	addl	$0x200000, %eax
	addl	$8, %edi
	decl	%ecx
	jnz	2b

	/* CR4, EFER and CR0 as tern-vm sets them (boot.c). */
	movl	$0x620, %eax
	movl	%eax, %cr4
	movl	$pvh_pml4, %eax
	movl	%eax, %cr3
	movl	$0xc0000080, %ecx
	movl	$0x101, %eax
	xorl	%edx, %edx
	wrmsr
	movl	$0x80050033, %eax
	movl	%eax, %cr0
	ljmp	$0x08, $3f

	.code64
3:	mov	$0x10, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %ss
	fninit
	lea	stacks + STACK_BYTES(%rip), %rsp
	mov	%ebx, %edi
	xor	%ebp, %ebp
	call	pvh_info
	mov	%rax, %rdi
	xor	%esi, %esi
	jmp	_start

	.section .data
	.balign	8
pvh_gdt_pointer:
	.word	3 * 8 - 1
	.long	gdt

	.section .bss
	.balign	4096
pvh_pml4:
	.skip	4096 * (2 + PD_PAGES)

	.section .note.GNU-stack, "", @progbits
