/* The program that the VMs run, as the file that gdb reads. */
	.section .rodata
	.balign 4096
	.globl program_file, program_file_end
program_file:
	.incbin "program.elf"
program_file_end:
	.section .note.GNU-stack, "", @progbits
