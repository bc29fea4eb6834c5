package vmstate

import (
	"encoding/binary"
	"fmt"

	"nestdbg/internal/arch"
	"nestdbg/internal/mem"
)

// Bits of hflags and hflags2 (QEMU 7.2 target/i386/cpu.h: HF_GUEST_MASK,
// HF2_VINTR_MASK).
const (
	hfGuest  = 1 << 21 // the CPU runs a nested guest
	hf2VIntr = 1 << 3  // the guest has a TPR of its own (V_INTR_MASKING)
)

// decodeX86 fills in the CPUs from the sections "cpu", "cpu_common", "apic".
func decodeX86(s *State, a *arch.Arch) error {
	var last error
	for i := range s.Sections {
		sec := &s.Sections[i]
		if sec.Name != "cpu" {
			continue
		}
		if sec.Instance >= maxCPUs {
			return fmt.Errorf("%w: section cpu at offset %#x is for CPU %d", ErrCorrupt, sec.Offset, sec.Instance)
		}
		cpu := int(sec.Instance)
		for len(s.CPUs) <= cpu {
			s.CPUs = append(s.CPUs, nil)
		}
		c := x86CPU{state: s, index: cpu, sec: sec, regs: arch.NewRegisters(a)}
		if err := c.decode(); err != nil {
			last = fmt.Errorf("CPU %d (section at offset %#x): %w", cpu, sec.Offset, err)
			s.problem("%v", last)
			continue
		}
		s.CPUs[cpu] = c.regs
	}
	for _, r := range s.CPUs {
		if r != nil {
			x86APICs(s)
			return nil
		}
	}
	if last == nil {
		last = fmt.Errorf("%w: the stream has no section cpu", ErrCorrupt)
	}
	return last
}

// x86CPU is one CPU while it is decoded.
type x86CPU struct {
	state *State
	index int
	sec   *Section
	regs  *arch.Registers
	kvm   bool
}

func (c *x86CPU) decode() error {
	if c.sec.Version != x86Version {
		return fmt.Errorf("%w: version %d of section cpu, known is %d", ErrUnsupported, c.sec.Version, x86Version)
	}
	if n := len(c.sec.Payload); n < x86MainSize {
		return fmt.Errorf("%w: section cpu has %d bytes, its fixed part alone %d", ErrCorrupt, n, x86MainSize)
	}
	subs, unknown, err := x86Split(c.sec.Payload[x86MainSize:])
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	for _, name := range unknown {
		c.state.problem("CPU %d: subsection %q is not known, its content is ignored", c.index, name)
	}
	nested, err := nestedState(subs)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if nested != nil {
		c.state.Nested[c.index] = nested
	}
	c.kvm = nested != nil || find(subs, "cpu/tsc_khz") != nil || c.state.section("kvmclock", 0) != nil
	c.plain()
	c.segments()
	c.vectors()
	c.x87(find(subs, "cpu/fpop_ip_dp"))
	c.nesting(find(subs, "cpu/svn_npt"))
	c.vmcs(nested)
	c.vmcb(nested)
	c.common()
	return nil
}

// bytes returns element i of a field of the fixed part, whose size was checked.
func (c *x86CPU) bytes(field string, i, size int) []byte {
	at := x86Offsets[field] + i*size
	return c.sec.Payload[at : at+size]
}

// plain copies the registers that are numbers in the table.
func (c *x86CPU) plain() {
	at := 0
	for _, f := range x86Main {
		for i, name := range f.names() {
			if name != "-" {
				c.regs.Set(name, number(c.sec.Payload[at+i*f.size:at+(i+1)*f.size]))
			}
		}
		at += f.count * f.size
	}
}

// segments decodes the descriptor caches. The CPL is SS's DPL, which holds in
// every mode; the one in hflags was wrong in some versions of QEMU under KVM
// (QEMU 7.2 target/i386/machine.c:cpu_post_load).
func (c *x86CPU) segments() {
	for i, name := range []string{"es", "cs", "ss", "ds", "fs", "gs"} {
		d := c.bytes("env.segs", i, x86SegmentSize)
		c.regs.Set(name, number(d[:x86SegmentBase]))
		c.regs.Set(name+"_base", number(d[x86SegmentBase:x86SegmentLimit]))
		if name == "ss" {
			c.regs.Set("cpl", number(d[x86SegmentFlags:])>>13&3)
		}
	}
	for field, name := range map[string]string{"env.ldt": "ldtr", "env.tr": "tr"} {
		d := c.bytes(field, 0, x86SegmentSize)
		c.regs.Set(name, number(d[:x86SegmentBase]))
		c.regs.Set(name+"_base", number(d[x86SegmentBase:x86SegmentLimit]))
	}
	for field, name := range map[string]string{"env.gdt": "gdtr", "env.idt": "idtr"} {
		d := c.bytes(field, 0, x86SegmentSize)
		c.regs.Set(name+"_base", number(d[x86SegmentBase:x86SegmentLimit]))
		c.regs.Set(name+"_limit", number(d[x86SegmentLimit:x86SegmentFlags]))
	}
}

// set gives a wide register its little-endian bytes, which have its size.
func (c *x86CPU) set(name string, b []byte) {
	i, _ := c.regs.Arch().Index(name)
	if err := c.regs.SetBytes(i, b); err != nil {
		panic(err) // a size in this file is wrong
	}
}

// vectors decodes the low 128 bits of the vector registers.
func (c *x86CPU) vectors() {
	for i := range 16 {
		b := c.bytes("env.xmm_regs[0]", i, 16)
		var v [16]byte
		binary.LittleEndian.PutUint64(v[:], number(b[:8]))
		binary.LittleEndian.PutUint64(v[8:], number(b[8:]))
		c.set(fmt.Sprintf("xmm%d", i), v[:])
	}
}

// x87 decodes the floating point registers. TCG keeps them by physical number,
// so st(i) is register TOP+i; under KVM they are as in an FXSAVE image, st(i) at
// i (QEMU 7.2 target/i386/xsave_helper.c:x86_cpu_xrstor_all_areas copies them).
// QEMU's own gdbstub takes st(i) at i up to 7.2, at TOP+i in 10.0, and answers 0
// for ftag, fioff, fooff, fop; these are given here as gdb defines them.
//
// pointers is the subsection with fop u16, fip u64, fdp u64; QEMU leaves it out
// when all are 0.
func (c *x86CPU) x87(pointers []byte) {
	status := number(c.bytes("env.fpus_vmstate", 0, 2))
	valid := number(c.bytes("env.fptag_vmstate", 0, 2))
	top := int(status >> 11 & 7)
	first := top
	if c.kvm {
		first = 0
	}
	var tags uint64
	for i := range 8 {
		b := c.bytes("env.fpregs", (first+i)%8, 10)
		mantissa, exponent := number(b[:8]), number(b[8:])
		var v [10]byte
		binary.LittleEndian.PutUint64(v[:], mantissa)
		binary.LittleEndian.PutUint16(v[8:], uint16(exponent))
		c.set(fmt.Sprintf("st%d", i), v[:])

		physical := (top + i) % 8
		tag := uint64(arch.X87Empty)
		if valid>>physical&1 != 0 {
			tag = arch.X87Tag(mantissa, exponent)
		}
		tags |= tag << (2 * physical)
	}
	c.regs.Set("ftag", tags)
	r := reader{b: pointers}
	op, ip, dp := uint64(r.u16()), r.u64(), r.u64()
	c.regs.Set("fop", op)
	// gdb takes these from the 64-bit FXSAVE image: the selector's place holds
	// bits 47:32 of the pointer.
	c.regs.Set("fioff", ip)
	c.regs.Set("fiseg", ip>>32&0xffff)
	c.regs.Set("fooff", dp)
	c.regs.Set("foseg", dp>>32&0xffff)
}

// nesting decodes what the stub hides. npt is the subsection nested_cr3 u64,
// nested_pg_mode u32, which TCG sends while a nested guest with nested paging
// runs. Under KVM the root is in Nested.Page.
func (c *x86CPU) nesting(npt []byte) {
	guest := number(c.bytes("env.hflags", 0, 4))&hfGuest != 0
	if !guest {
		c.regs.Set("guest_mode", 0)
		return
	}
	c.regs.Set("guest_mode", 1)
	if npt != nil {
		c.regs.Set("nested_cr3", number(npt[:8]))
		c.regs.Set("nested_pg_mode", number(npt[8:]))
	}
	if number(c.bytes("env.hflags2", 0, 4))&hf2VIntr != 0 {
		c.regs.Set("cr8", uint64(c.bytes("env.v_tpr", 0, 1)[0]&0xf))
	}
}

// vmcs keeps the current VMCS, which KVM has in its own memory and writes to the guest's
// only when it is released (Linux 6.12 arch/x86/kvm/vmx/nested.c:
// vmx_get_nested_state, nested_release_vmcs12).
func (c *x86CPU) vmcs(n *Nested) {
	const none = ^mem.Phys(0)
	if n == nil || n.Kind != NestedVMX || n.VMCS12 == none || n.Page == nil {
		return
	}
	c.regs.Set("vmcs", uint64(n.VMCS12))
	c.regs.SetControlBlock(n.Page)
}

// vmcb keeps what KVM says of the VMCB that the CPU runs, which it does only while it does
// (Linux 6.12 arch/x86/kvm/svm/nested.c:svm_get_nested_state). QEMU's own vm_vmcb is 0 then.
func (c *x86CPU) vmcb(n *Nested) {
	if guest, _ := c.regs.Get("guest_mode"); n == nil || n.Kind != NestedSVM || n.Page == nil || guest == 0 {
		return
	}
	c.regs.Set("vm_vmcb", uint64(n.VMCB))
	c.regs.SetControlBlock(n.Page)
}

// common reads the section "cpu_common": halted u32, interrupt_request u32.
func (c *x86CPU) common() {
	sec := c.state.section("cpu_common", c.sec.Instance)
	if sec == nil || len(sec.Payload) < 8 {
		c.state.problem("CPU %d: no section cpu_common, so it is not known whether the CPU is halted", c.index)
		return
	}
	halted := uint64(0)
	if number(sec.Payload[:4]) != 0 {
		halted = 1
	}
	c.regs.Set("halted", halted)
	c.state.Interrupts[c.index] = uint32(number(sec.Payload[4:8]))
}

// The section "apic" begins with apicbase u32, id u8, arb_id u8, tpr u8 (QEMU
// 7.2 hw/intc/apic_common.c, version 3).
const (
	apicVersion = 3
	apicTPR     = 6
)

// x86APICs sets cr8 from the local APICs' task priority, where a nested guest
// does not have its own. The instance of "apic" is an APIC id, not a CPU index:
// which CPU it belongs to follows from the ids of the sections, which QEMU hands
// out as it makes a CPU and then its APIC (target/i386/cpu.c:x86_cpu_realizefn).
func x86APICs(s *State) {
	tpr := map[int]uint64{}
	for i := range s.Sections {
		sec := &s.Sections[i]
		if sec.Name != "apic" || sec.Version != apicVersion || len(sec.Payload) <= apicTPR {
			continue
		}
		cpu, ok := x86CPUBefore(s, sec.ID)
		if _, twice := tpr[cpu]; !ok || twice {
			s.problem("section apic %d at offset %#x belongs to no CPU, cr8 is not known", sec.Instance, sec.Offset)
			return
		}
		tpr[cpu] = uint64(sec.Payload[apicTPR])
	}
	for cpu, v := range tpr {
		if r := s.CPUs[cpu]; r != nil {
			if _, own := r.Get("cr8"); !own {
				r.Set("cr8", v>>4)
			}
		}
	}
}

// x86CPUBefore returns the CPU whose section has the highest id below id.
func x86CPUBefore(s *State, id uint32) (cpu int, ok bool) {
	best := uint32(0)
	for i := range s.Sections {
		sec := &s.Sections[i]
		if sec.Name == "cpu" && sec.ID < id && (!ok || sec.ID > best) {
			cpu, best, ok = int(sec.Instance), sec.ID, true
		}
	}
	return cpu, ok
}

// phys decodes a big-endian physical address.
func phys(b []byte) mem.Phys { return mem.Phys(number(b[:8])) }
