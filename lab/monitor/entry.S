/*
 * Into a guest and out again. The processor switches what is in the VMCB or VMCS; the other
 * general registers are ours to switch: struct regs in monitor.h.
 */
	.set RBX, 8 * 1
	.set RCX, 8 * 2
	.set RDX, 8 * 3
	.set RSI, 8 * 4
	.set RDI, 8 * 5
	.set RBP, 8 * 6
	.set R8,  8 * 7				/* and R9 to R15 behind it */

	.macro save_host			/* what a function must not change */
	.irp	reg, rbx, rbp, r12, r13, r14, r15
	push	%\reg
	.cfi_adjust_cfa_offset 8
	.cfi_rel_offset \reg, 0
	.endr
	push	%rsi				/* struct regs: wanted again behind the exit */
	.cfi_adjust_cfa_offset 8
	.endm

	.macro restore_host
	.irp	reg, r15, r14, r13, r12, rbp, rbx
	pop	%\reg
	.cfi_adjust_cfa_offset -8
	.cfi_restore \reg
	.endr
	.endm

	.macro load_guest			/* from (%rsi); RSI itself last */
	mov	RBX(%rsi), %rbx
	mov	RCX(%rsi), %rcx
	mov	RDX(%rsi), %rdx
	mov	RDI(%rsi), %rdi
	mov	RBP(%rsi), %rbp
	.set	at, R8
	.irp	reg, r8, r9, r10, r11, r12, r13, r14, r15
	mov	at(%rsi), %\reg
	.set	at, at + 8
	.endr
	mov	RSI(%rsi), %rsi
	.endm

	/* Behind an exit every register is the guest's, and the stack is all we have. */
	.macro save_guest
	xchg	%rsi, (%rsp)
	mov	%rbx, RBX(%rsi)
	mov	%rcx, RCX(%rsi)
	mov	%rdx, RDX(%rsi)
	mov	%rdi, RDI(%rsi)
	mov	%rbp, RBP(%rsi)
	.set	at, R8
	.irp	reg, r8, r9, r10, r11, r12, r13, r14, r15
	mov	%\reg, at(%rsi)
	.set	at, at + 8
	.endr
	popq	RSI(%rsi)
	.cfi_adjust_cfa_offset -8
	.endm

	.cfi_sections .debug_frame		/* for debuggers; nothing unwinds at run time */
	.text
	.globl	svm_enter			/* void svm_enter(u64 vmcb, struct regs *) */
	.type	svm_enter, @function
svm_enter:
	.cfi_startproc
	save_host
	mov	%rdi, %rax
	load_guest
	clgi
	vmload	%rax				/* FS, GS, TR, LDTR, SYSCALL registers: the monitor uses none */
	vmrun	%rax				/* returns with our RAX again; the guest's is in the VMCB */
	vmsave	%rax
	stgi
	save_guest
	restore_host
	ret
	.cfi_endproc
	.size	svm_enter, . - svm_enter

	.globl	vmx_enter			/* bool vmx_enter(struct regs *, bool launched) */
	.type	vmx_enter, @function
vmx_enter:
	.cfi_startproc
	xchg	%rdi, %rsi			/* %edi: launched */
	save_host
	mov	$0x6c14, %eax			/* HOST_RSP: where the exit shall find us */
	vmwrite	%rsp, %rax
	test	%dil, %dil
	mov	(%rsi), %rax
	load_guest				/* no mov changes a flag */
	jnz	1f
	vmlaunch
	jmp	2f
1:	vmresume
2:	pop	%rsi				/* still here: the entry was refused */
	.cfi_remember_state
	.cfi_adjust_cfa_offset -8
	restore_host
	xor	%eax, %eax
	ret
	.cfi_restore_state
	.globl	vmx_exit			/* HOST_RIP */
vmx_exit:
	xchg	%rsi, (%rsp)
	mov	%rax, (%rsi)
	xchg	%rsi, (%rsp)
	save_guest
	restore_host
	mov	$1, %eax
	ret
	.cfi_endproc
	.size	vmx_enter, . - vmx_enter
	.section .note.GNU-stack, "", @progbits
