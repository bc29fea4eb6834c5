package nested

import (
	"bytes"
	"fmt"
	"slices"

	"nestdbg/internal/arch"
	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/paging"
	"nestdbg/internal/svm"
)

// svmTechnology is AMD SVM with nested paging.
type svmTechnology struct{}

func (svmTechnology) name() string { return "VMCB" }

// executing uses HF_GUEST: vm_vmcb alone stays set after the exit
// (QEMU 7.2 target/i386/tcg/sysemu/svm_helper.c, do_vmexit).
func (svmTechnology) executing(cpu *arch.Registers) (mem.Phys, bool) {
	guest, _ := cpu.Get("guest_mode")
	at, ok := cpu.Get("vm_vmcb")
	return mem.Phys(at), ok && guest == 1
}

func (svmTechnology) lastUsed(cpu *arch.Registers) (mem.Phys, bool) {
	at, ok := cpu.Get("vm_vmcb")
	return mem.Phys(at), ok && at != 0 && at%pageSize == 0
}

func (svmTechnology) current(cpu *arch.Registers) (*paging.Format, mem.Phys, error) {
	root, ok := cpu.Get("nested_cr3")
	if page := cpu.ControlBlock(); !ok && page != nil {
		return currentOfKVM(page)
	}
	if !ok {
		return nil, 0, fmt.Errorf("it runs without nested paging, or the nested CR3 is not in the device state")
	}
	mode, ok := cpu.Get("nested_pg_mode")
	if !ok {
		return nil, 0, fmt.Errorf("the mode of its nested paging is not in the device state")
	}
	f, err := paging.NPTForMode(mode)
	if err != nil {
		return nil, 0, err
	}
	return f, f.Root(root), nil
}

func (svmTechnology) host(parent *machine.Machine, cpu *arch.Registers) (*arch.Registers, string, error) {
	if page := cpu.ControlBlock(); page != nil {
		return hostOfKVM(page)
	}
	at, ok := cpu.Get("vm_hsave")
	if !ok {
		return nil, "", fmt.Errorf("VM_HSAVE_PA is not known")
	}
	page := make([]byte, pageSize)
	if _, err := parent.Phys.ReadPhys(page, mem.Phys(at)); err != nil {
		return nil, "", fmt.Errorf("host save area: %w", err)
	}
	regs, err := svm.HostRegisters(page)
	if err != nil {
		return nil, "", err
	}
	return regs, fmt.Sprintf("host save area at %#x", at), nil
}

func (svmTechnology) quickReject(page []byte) bool { return svm.QuickReject(page) }

func (t svmTechnology) parse(parent *machine.Machine, page []byte) (controlBlock, bool) {
	assessment := svm.Assess(page, ramOf(parent))
	if !assessment.Plausible {
		return controlBlock{}, false
	}
	block, err := t.block(parent, page, assessment)
	return block, err == nil
}

func (t svmTechnology) take(parent *machine.Machine, page []byte) (controlBlock, error) {
	if !slices.ContainsFunc(page, func(b byte) bool { return b != 0 }) {
		return controlBlock{}, fmt.Errorf("the page in %s is empty", parent.Name)
	}
	return t.block(parent, page, svm.Assess(page, ramOf(parent)))
}

func (svmTechnology) block(parent *machine.Machine, page []byte, a svm.Assessment) (controlBlock, error) {
	vmcb, err := svm.Parse(page)
	if err != nil {
		return controlBlock{}, err
	}
	if !vmcb.NestedPaging() {
		return controlBlock{}, fmt.Errorf("nested paging is off in it (NP_ENABLE): there is no second stage to follow")
	}
	format, err := nptFormat(parent)
	if err != nil {
		return controlBlock{}, err
	}
	why, _ := svm.ExitName(vmcb.ExitCode())
	return controlBlock{
		regs: vmcb.Registers(), second: format.WithPhysBits(parent.PhysBits), root: format.Root(vmcb.NCR3()), why: why,
		evidence: a.Evidence, against: a.Against, score: a.Score, of: a.Score + len(a.Against),
		fault: svmStageFault(vmcb), refused: vmcb.Refused(),
	}, nil
}

// split: KVM executes VMLOAD and VMSAVE on the guest's own VMCB alone (Linux 6.1
// arch/x86/kvm/svm/vmenter.S, svm.c:svm_vcpu_run).
func (svmTechnology) split(own, inner *arch.Registers) {
	for _, name := range svm.LoadedRegisters() {
		if v, ok := own.Get(name); ok && inner != nil {
			inner.Set(name, v)
		}
		own.Forget(name)
	}
}

// nptFormat is the format of the nested page tables that a hypervisor's VMRUN
// uses: that of its own mode (AMD APM Vol. 2, "Nested Paging": the nested
// table is walked in the host's paging mode).
func nptFormat(parent *machine.Machine) (*paging.Format, error) {
	mode, err := hostMode(parent)
	if err == nil {
		return paging.NPTForMode(mode)
	}
	return nil, fmt.Errorf("mode of the hypervisor's paging: %w", err)
}

// hostMode is the mode of a hypervisor's own paging.
func hostMode(parent *machine.Machine) (mode uint64, err error) {
	if parent.Mode != nil {
		return nptMode(parent.Mode)
	}
	err = machine.ErrNoState
	for _, c := range parent.CPUs {
		if mode, err = nptMode(c.Regs); err == nil {
			return mode, nil
		}
	}
	return 0, err
}

// Bits of QEMU's nested_pg_mode (target/i386/tcg/sysemu/excp_helper.c, 7.2).
const (
	modePAE  = 1
	modeLMA  = 2
	modeNXE  = 4
	modePSE  = 8
	modeLA57 = 0x10
)

func nptMode(r *arch.Registers) (uint64, error) {
	cr4, ok4 := r.Get("cr4")
	efer, okE := r.Get("efer")
	if !okE {
		efer, okE = r.Get("efer_mode")
	}
	if !ok4 || !okE {
		return 0, fmt.Errorf("%w: cr4 and efer", machine.ErrNoState)
	}
	var mode uint64
	for _, b := range []struct{ from, bit, to uint64 }{
		{cr4, 1 << 5, modePAE}, {cr4, 1 << 4, modePSE}, {cr4, 1 << 12, modeLA57},
		{efer, 1 << 10, modeLMA}, {efer, 1 << 11, modeNXE},
	} {
		if b.from&b.bit != 0 {
			mode |= b.to
		}
	}
	return mode, nil
}

// entering: VMRUN takes the address of the VMCB in RAX (AMD APM Vol. 3, "VMRUN").
func (svmTechnology) entering(cpu *arch.Registers) (mem.Phys, bool) {
	at, ok := cpu.Get("rax")
	return mem.Phys(at), ok
}

// entries: VMRUN goes on behind itself.
func (svmTechnology) entries(code mem.VirtReader, behind uint64) []uint64 {
	vmrun := []byte{0x0f, 0x01, 0xd8}
	at := behind - uint64(len(vmrun))
	b := make([]byte, len(vmrun))
	if _, err := code.ReadVirt(b, mem.Virt(at)); err != nil || !bytes.Equal(b, vmrun) {
		return nil
	}
	return []uint64{at}
}

func (svmTechnology) afterEntry(_ *machine.CPU, next uint64) []uint64 { return []uint64{next} }

// delivering uses what QEMU's emulation leaves of EVENTINJ: delivery clears the
// valid bit only, and the exit clears the rest. The guest's own exceptions are
// written there too, over it, and end what an interrupt began (QEMU 7.2
// target/i386/tcg, seg_helper.c:handle_even_inj, do_interrupt_all,
// sysemu/svm_helper.c:do_vmexit).
func (svmTechnology) delivering(memory mem.PhysReader, control mem.Phys) bool {
	var b, intercepts [4]byte
	if _, err := memory.ReadPhys(intercepts[:], control+svm.InterceptsOffset); err != nil || intercepts[0]&1 == 0 {
		return false // gone, or of another technology
	}
	if _, err := memory.ReadPhys(b[:], control+svm.EventInjOffset); err != nil {
		return false
	}
	const kind = 7
	return b[0] != 0 && b[1]&kind == injectInterrupt
}

// Types of an injected event (AMD APM Vol. 2, "Event Injection").
const (
	injectInterrupt = 0
	injectNMI       = 2
)

// land follows an event that the entry injects: an interrupt will return to the
// saved RIP; an exception makes the guest continue in its handler.
func (svmTechnology) land(m *machine.Machine, c *machine.CPU, page []byte) (Landing, error) {
	vmcb, err := svm.Parse(page)
	if err != nil {
		return Landing{}, err
	}
	regs := vmcb.Registers()
	pc, ok := regs.PC()
	if !ok {
		return Landing{}, fmt.Errorf("the VMCB at %#x has no RIP", c.Control)
	}
	event := vmcb.EventInjection()
	if !event.Valid {
		return Landing{PC: pc}, nil
	}
	if event.Type == injectInterrupt || event.Type == injectNMI {
		sp, ok := regs.SP()
		if !ok {
			return Landing{}, fmt.Errorf("the VMCB at %#x has no RSP", c.Control)
		}
		return Landing{PC: pc, SP: &sp}, nil
	}
	handler, err := idtHandler(m, &machine.CPU{Regs: regs}, event.Vector)
	if err != nil {
		return Landing{}, fmt.Errorf("handler of exception %d of %s: %w", event.Vector, m.Name, err)
	}
	return Landing{PC: handler}, nil
}

// idtHandler reads a 64-bit interrupt gate (AMD APM Vol. 2, "Interrupt-Gate and
// Trap-Gate Descriptors").
func idtHandler(m *machine.Machine, c *machine.CPU, vector uint8) (uint64, error) {
	base, ok := c.Regs.Get("idtr_base")
	if !ok {
		return 0, fmt.Errorf("%w: IDTR", machine.ErrNoState)
	}
	space, err := m.Space(c)
	if err != nil {
		return 0, err
	}
	gate := mem.Virt(base + 16*uint64(vector))
	low, err := mem.VirtUint64(space, gate)
	if err != nil {
		return 0, err
	}
	high, err := mem.VirtUint32(space, gate+8)
	if err != nil {
		return 0, err
	}
	return low&0xffff | low>>48<<16 | uint64(high)<<32, nil
}
