/* SPDX-License-Identifier: BSD-2-Clause */
/* The guests' images inside tern-vm; image.c has the table of them. */
	.macro	image name
	.balign	16
	.globl	guest_image_\name
	.globl	guest_image_\name\()_end
guest_image_\name:
	.incbin	"\name\().elf"
guest_image_\name\()_end:
	.endm

	.section .rodata
	image	counter
	image	dirty
	image	check

	.section .note.GNU-stack, "", @progbits
