# A call chain with every kind of frame that ORC describes. The names with a dot
# are where the rule changes; the table in unwind_test.go has one row for each.

	.text
	.globl	_start
_start:				# the outermost frame
	mov	$0x5afe, %ebx
	mov	$0x6bad, %ebp
	call	realign
	hlt

realign:			# aligns its stack as gcc does: the CFA is saved below rbp
	lea	8(%rsp), %r10
realign.r10:
	and	$-64, %rsp
	push	-8(%r10)
	push	%rbp
realign.bp:
	mov	%rsp, %rbp
realign.saved:
	push	%r10
realign.indirect:
	mov	$0xdead, %r10d
	sub	$120, %rsp
	call	switch
	hlt

switch:				# goes on on another stack, like call_on_irqstack
	mov	%rsp, top(%rip)
	lea	top(%rip), %rsp
switch.indirect:
	call	victim
	hlt

victim:				# is interrupted at the first instruction of fresh
	mov	$0xc0ffee, %r12d
	mov	%rsp, %rax
	pushq	$0x2b		# ss
	push	%rax		# rsp
	pushq	$0x246		# eflags
	pushq	$0x33		# cs
	pushq	$fresh		# rip
	jmp	entry

entry:				# what the CPU pushed is on the stack
	pushq	$-1		# orig_ax
entry.pushed:
	push	%rdi
	push	%rsi
	push	%rdx
	push	%rcx
	push	%rax
	push	%r8
	push	%r9
	push	%r10
	push	%r11
	push	%rbx
	push	%rbp
	push	%r12
	push	%r13
	push	%r14
	push	%r15
	xor	%ebp, %ebp
	xor	%r12d, %r12d
	mov	$-7, %edi
	mov	$0x1234, %esi
entry.regs:			# all of struct pt_regs is on the stack
	call	handler
	hlt

	.balign	16
unknown:			# no rule: a pc that is one too low ends up here
	nop
fresh:
	sub	$8, %rsp
fresh.8:
	hlt

handler:
	push	%rbp
handler.push:
	mov	$0xbad, %ebp
	int3
	hlt
end:

	.bss
	.balign	64
	.skip	4096
top:	.skip	8
