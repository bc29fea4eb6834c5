package dump

import (
	"encoding/binary"
	"fmt"

	"nestdbg/internal/arch"
)

// statusRegs are the registers of NT_PRSTATUS in its order, "" what is no register
// (Linux 6.1 arch/x86/include/asm/elf.h:ELF_CORE_COPY_REGS; QEMU 7.2
// target/i386/arch_dump.c:x86_64_user_regs_struct).
var statusRegs = []string{"r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx",
	"rsi", "rdi", "", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs"}

// struct elf_prstatus of x86-64: the registers begin at 112, all has 336 bytes.
const (
	statusRegsAt = 112
	statusSize   = 336
)

// unsaved are registers that a crashing kernel leaves zero in its own dump: zero is
// then no answer.
var unsaved = []string{"fs_base", "gs_base"}

func parseStatus(a *arch.Arch, data []byte) (*arch.Registers, error) {
	if a != arch.X86 {
		return nil, fmt.Errorf("of %s: %w", a.Name, ErrUnsupported)
	}
	if len(data) != statusSize {
		return nil, fmt.Errorf("NT_PRSTATUS of %d bytes, not %d: %w", len(data), statusSize, ErrCorrupt)
	}
	r := arch.NewRegisters(a)
	for i, name := range statusRegs {
		if name != "" {
			r.Set(name, binary.LittleEndian.Uint64(data[statusRegsAt+8*i:]))
		}
	}
	for _, name := range unsaved {
		if v, _ := r.Get(name); v == 0 {
			r.Forget(name)
		}
	}
	return r, nil
}

// struct QEMUCPUState (QEMU 7.2 target/i386/arch_dump.c; the same to 10.2), version 1:
//
//	0x000 uint32_t version, size;
//	0x008 uint64_t rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8..r15, rip, rflags;
//	0x098 QEMUCPUSegment cs, ds, es, fs, gs, ss, ldt, tr, gdt, idt;
//	      each uint32_t selector, limit, flags, pad; uint64_t base;
//	0x188 uint64_t cr[5];
//	0x1b0 uint64_t kernel_gs_base; only if size says so
const (
	qemuVersion    = 1
	qemuGeneralAt  = 0x08
	qemuSegmentsAt = 0x98
	qemuControlAt  = 0x188
	qemuKernelGSAt = 0x1b0
	qemuSegment    = 24
	segmentFlags   = 8
	segmentBase    = 16
)

var qemuGeneral = []string{"rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp",
	"r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "eflags"}

// qemuSegments name the selector and the base of each segment, and the limit where
// we have a register for it.
var qemuSegments = []struct{ selector, base, limit string }{
	{"cs", "cs_base", ""}, {"ds", "ds_base", ""}, {"es", "es_base", ""}, {"fs", "fs_base", ""}, {"gs", "gs_base", ""},
	{"ss", "ss_base", ""}, {"ldtr", "ldtr_base", ""}, {"tr", "tr_base", ""},
	{"", "gdtr_base", "gdtr_limit"}, {"", "idtr_base", "idtr_limit"},
}

// Bits of QEMU's segment flags, those of a descriptor's second word (AMD APM
// Vol. 2, "Code-Segment Descriptor"), and of control registers.
const (
	flagLong = 1 << 21
	cr0PG    = 1 << 31
	cr4PAE   = 1 << 5

	eferLong = 1<<8 | 1<<10 // LME, LMA
	eferNX   = 1 << 11
)

func parseQEMU(a *arch.Arch, data []byte) (*arch.Registers, error) {
	if a != arch.X86 {
		return nil, fmt.Errorf("of %s: %w", a.Name, ErrUnsupported)
	}
	if len(data) < qemuKernelGSAt {
		return nil, fmt.Errorf("%d bytes, at least %d: %w", len(data), qemuKernelGSAt, ErrCorrupt)
	}
	le := binary.LittleEndian
	if v := le.Uint32(data); v != qemuVersion {
		return nil, fmt.Errorf("version %d, version %d is understood: %w", v, qemuVersion, ErrUnsupported)
	}
	if n := le.Uint32(data[4:]); uint64(n) > uint64(len(data)) || n < qemuKernelGSAt {
		return nil, fmt.Errorf("it says %d bytes and has %d: %w", n, len(data), ErrCorrupt)
	}
	r := arch.NewRegisters(a)
	for i, name := range qemuGeneral {
		r.Set(name, le.Uint64(data[qemuGeneralAt+8*i:]))
	}
	for i, s := range qemuSegments {
		p := data[qemuSegmentsAt+qemuSegment*i:]
		if s.selector != "" {
			r.Set(s.selector, uint64(le.Uint32(p)))
		}
		if s.limit != "" {
			r.Set(s.limit, uint64(le.Uint32(p[4:])))
		}
		r.Set(s.base, le.Uint64(p[segmentBase:]))
	}
	for i, name := range []string{"cr0", "", "cr2", "cr3", "cr4"} {
		if name != "" {
			r.Set(name, le.Uint64(data[qemuControlAt+8*i:]))
		}
	}
	if le.Uint32(data[4:]) >= qemuKernelGSAt+8 {
		r.Set("k_gs_base", le.Uint64(data[qemuKernelGSAt:]))
	}
	cs, _ := r.Get("cs")
	r.Set("cpl", cs&3)
	setMode(r, le.Uint32(data[qemuSegmentsAt+segmentFlags:])&flagLong != 0)
	return r, nil
}

// setMode says what EFER, which is not in the note, must be as far as paging needs
// it: long mode is seen by a 64-bit code segment or by addresses that no other mode
// has, and a kernel that uses it is taken to use no-execute, which changes no
// translation.
func setMode(r *arch.Registers, long bool) {
	cr0, _ := r.Get("cr0")
	cr4, _ := r.Get("cr4")
	for _, name := range []string{"idtr_base", "gdtr_base", "tr_base"} {
		v, _ := r.Get(name)
		long = long || v>>32 != 0
	}
	efer := uint64(0)
	if long && cr0&cr0PG != 0 && cr4&cr4PAE != 0 {
		efer = eferLong | eferNX
	}
	r.Set("efer_mode", efer)
}
