/*
 * From what the loader leaves (32-bit protected mode, no paging) to main() in 64-bit mode,
 * for the first CPU and, by way of real mode, for the others.
 */
	.cfi_sections .debug_frame		/* for debuggers; nothing unwinds at run time */
	.set CR0_PE, 1 << 0
	.set CR0_NE, 1 << 5
	.set CR0_WP, 1 << 16
	.set CR0_PG, 1 << 31
	.set CR4_PAE, 1 << 5
	.set EFER, 0xc0000080
	.set EFER_LME, 1 << 8
	.set EFER_NXE, 1 << 11
	.set STACK, 16384			/* STACK_SIZE of monitor.h */
	.set MAX_CPUS, 16			/* and its MAX_CPUS */

	/* QEMU's -kernel takes a 64-bit ELF with this note: "Xen", type 18, a 32-bit entry point. */
	.section .note.pvh, "a", @note
	.balign 4
	.long 4, 8, 18
	.asciz "Xen"
	.quad start32

	/* GRUB takes it with a Multiboot 2 header. (QEMU would refuse a Multiboot 1 header here.) */
	.section .boot, "ax"
	.balign 8
header:	.long 0xe85250d6, 0, header_end - header, -(0xe85250d6 + header_end - header)
	.word 0, 0
	.long 8
header_end:

	.code32
	.globl start32
start32:
	cli
	cld
	mov	%eax, magic			/* who loaded us, */
	mov	%ebx, info			/* and what it has to say */
	/* Identity, in 1 GiB pages: 512 GiB, which is all there is and then some. */
	mov	$tables + 4096, %edi
	mov	$0x83, %eax			/* present, writable, large */
	xor	%edx, %edx
	mov	$512, %ecx
1:	mov	%eax, (%edi)
	mov	%edx, 4(%edi)
	add	$8, %edi
	add	$1 << 30, %eax
	adc	$0, %edx
	loop	1b
	movl	$tables + 4096 + 3, tables
	mov	$1, %eax
	lock xadd %eax, cpus			/* 0: the first CPU */

common32:					/* %eax: the number of this CPU */
	mov	%eax, %esi
	mov	$CR4_PAE, %eax
	mov	%eax, %cr4
	mov	$tables, %eax
	mov	%eax, %cr3
	mov	$EFER, %ecx
	rdmsr
	or	$EFER_LME | EFER_NXE, %eax
	wrmsr
	mov	$CR0_PG | CR0_WP | CR0_NE | CR0_PE, %eax
	mov	%eax, %cr0
	lgdt	gdt_pointer
	ljmp	$8, $start64

	.code64
start64:
	.cfi_startproc
	.cfi_undefined %rip			/* nobody called: a stack ends here */
	mov	$16, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %ss
	xor	%eax, %eax
	mov	%eax, %fs
	mov	%eax, %gs
	lea	1(%rsi), %rax
	imul	$STACK, %rax
	lea	stacks(%rax), %rsp
	mov	%esi, %edi
	call	cpu_start			/* does not return */
	ud2
	.cfi_endproc

	/* The other CPUs begin here, in real mode, once cpu.c has copied it below 1 MiB. */
	.globl trampoline, trampoline_end
	.code16
trampoline:
	cli
	mov	%cs, %ax
	mov	%ax, %ds
	lgdtl	trampoline_gdt - trampoline
	mov	$CR0_PE, %eax
	mov	%eax, %cr0
	ljmpl	$24, $next32
trampoline_gdt:
	.word	gdt_end - gdt - 1
	.long	gdt
trampoline_end:

	.code32
next32:
	mov	$16, %eax
	mov	%eax, %ds
	mov	$1, %eax
	lock xadd %eax, cpus
	cmp	$MAX_CPUS, %eax
	jb	common32
2:	hlt					/* the wake-up call is for all, and there is a stack for so many */
	jmp	2b

	/*
	 * An exception in the monitor is a bug in the monitor: say so, with what the CPU pushed.
	 * Some vectors push an error code and some do not; unexpected() prints what is there.
	 */
	.code64
	.globl vectors
	.balign 16				/* the label, too: cpu.c counts from there */
vectors:
	.set n, 0
	.rept 32
	.balign 16
	mov	$n, %edi
	jmp	1f
	.set n, n + 1
	.endr
1:	mov	%rsp, %rsi
	and	$-16, %rsp
	call	unexpected

	.data
	.balign 16
gdt:	.quad 0
	.quad 0x00209b0000000000		/*  8: 64-bit code */
	.quad 0x00cf93000000ffff		/* 16: data */
	.quad 0x00cf9b000000ffff		/* 24: 32-bit code */
	.globl gdt_tss
gdt_tss: .fill 2 * 16, 8, 0			/* 32 and so on: a TSS for each CPU, made by cpu.c */
gdt_end:
	.globl gdt_pointer
gdt_pointer:
	.word	gdt_end - gdt - 1
	.quad	gdt
	.globl magic, info, cpus
magic:	.long 0
info:	.long 0
cpus:	.long 0

	.bss
	.balign 4096
	.globl tables
tables:	.skip 2 * 4096
	.section .note.GNU-stack, "", @progbits
