/* The program begins here; whoever unwinds a stack ends here. */
	.cfi_sections .debug_frame		/* for debuggers; nothing unwinds at run time */
	.text
	.globl start
	.type start, @function
start:
	.cfi_startproc
	.cfi_undefined %rip
	call	work
	hlt
	.cfi_endproc
	.size start, . - start
	.section .note.GNU-stack, "", @progbits
