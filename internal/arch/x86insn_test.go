package arch

import (
	"testing"
)

func TestDisassembleX86(t *testing.T) {
	for _, c := range []struct {
		code string
		text string // as GNU objdump has it
		size int
	}{
		{"\x0f\x01\xd8", "vmrun", 3},
		{"\x0f\x01\xca\x90", "clac", 3},
		{"\xf3\x0f\x1e\xfa", "endbr64", 4},
		{"\x0f\x01\xc3", "vmresume", 3},
		{"\x48\x89\xe5", "mov %rsp,%rbp", 3},
		{"\x0f\x78\xc1", "vmread %rax,%rcx", 3},
		{"\x0f\x78\x18", "vmread %rbx,(%rax)", 3},
		{"\x44\x0f\x78\xc1", "vmread %r8,%rcx", 4},
		{"\x0f\x79\xc1", "vmwrite %rcx,%rax", 3},
		{"\x0f\xc7\x75\xf8", "vmptrld -0x8(%rbp)", 4},
		{"\x0f\xc7\x3c\x24", "vmptrst (%rsp)", 4},
		{"\x66\x0f\xc7\x30", "vmclear (%rax)", 4},
		{"\x66\x41\x0f\xc7\x30", "vmclear (%r8)", 5},
		{"\xf3\x0f\xc7\x30", "vmxon (%rax)", 4},
		{"\x66\x0f\x38\x80\x01", "invept (%rcx),%rax", 5},
		{"\x66\x0f\x38\x81\x01", "invvpid (%rcx),%rax", 5},
		{"\x0f\xc7\x35\x10\x00\x00\x00", "vmptrld 0x10(%rip)", 7},
	} {
		text, size, err := X86.Disassemble([]byte(c.code), 0x1000, nil)
		if err != nil || text != c.text || size != c.size {
			t.Errorf("% x is %q, %d bytes, %v; want %q, %d", c.code, text, size, err, c.text, c.size)
		}
	}
	for _, code := range []string{"", "\x0f", "\x66", "\x66\x0f\x38", "\x0f\x78", "\xf3\x0f\xc7", "\xc5\xfc\x77", "\xf3\x0f\xa7\xc0", "\x0f\xc7\xf8"} {
		if text, size, err := X86.Disassemble([]byte(code), 0, nil); err == nil {
			t.Errorf("% x is %q, %d bytes", code, text, size)
		}
	}
}

// FuzzDisassembleX86: an instruction is in the bytes that were given.
func FuzzDisassembleX86(f *testing.F) {
	for _, s := range []string{"\x0f\x01\xd8", "\x44\x0f\x78\xc1", "\x66\x41\x0f\xc7\x30", "\xc5\xfc\x77"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, code []byte) {
		text, size, err := X86.Disassemble(code, 0x1000, nil)
		if err == nil && (size <= 0 || size > len(code) || text == "") {
			t.Errorf("% x is %q, %d bytes", code, text, size)
		}
	})
}
