package nested

import (
	"fmt"
	"slices"

	"nestdbg/internal/arch"
	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/paging"
	"nestdbg/internal/vmx"
)

// vmxTechnology is Intel VMX with EPT. A processor may keep an active VMCS in itself:
// under KVM as L0 what a CPU's device state has of it is the truth, and the page in
// memory is whatever was there before.
type vmxTechnology struct{}

func (vmxTechnology) name() string { return "VMCS" }

func (vmxTechnology) executing(cpu *arch.Registers) (mem.Phys, bool) {
	guest, _ := cpu.Get("guest_mode")
	at, ok := cpu.Get("vmcs")
	return mem.Phys(at), ok && guest == 1
}

// lastUsed is the current VMCS: that of the last VMPTRLD, entered or not.
func (vmxTechnology) lastUsed(cpu *arch.Registers) (mem.Phys, bool) {
	at, ok := cpu.Get("vmcs")
	return mem.Phys(at), ok && at%pageSize == 0
}

func (vmxTechnology) current(cpu *arch.Registers) (*paging.Format, mem.Phys, error) {
	page := cpu.ControlBlock()
	if page == nil {
		return nil, 0, fmt.Errorf("the VMCS is not in the device state")
	}
	v, err := recognise(page)
	if err != nil {
		return nil, 0, err
	}
	return secondStage(v)
}

// secondStage is the EPT that a VMCS selects.
func secondStage(v *vmx.VMCS) (*paging.Format, mem.Phys, error) {
	pointer, ok := v.EPT()
	if !ok {
		return nil, 0, fmt.Errorf("EPT is off in it, or its layout (%s) does not tell: there is no second stage to follow", v.Layout().Name)
	}
	f, root, err := paging.EPTForPointer(pointer)
	if err != nil {
		return nil, 0, err
	}
	if v.ModeBasedExecute() {
		f = paging.WithModeBasedExecute(f)
	}
	return f, root, nil
}

// recognise views a page by the layout that it fits. A page that fits none is an error.
func recognise(page []byte) (*vmx.VMCS, error) {
	a := vmx.Assess(page, nil)
	if !a.Plausible {
		return nil, fmt.Errorf("it does not look like a VMCS: %q", a.Against)
	}
	return a.VMCS, nil
}

// host uses the host-state area: what the CPU loads at the next exit. The program
// counter in it is the exit handler's.
func (t vmxTechnology) host(parent *machine.Machine, cpu *arch.Registers) (*arch.Registers, string, error) {
	at, ok := t.lastUsed(cpu)
	if !ok {
		return nil, "", fmt.Errorf("no VMCS is current")
	}
	page := cpu.ControlBlock()
	if page == nil {
		page = make([]byte, pageSize)
		if _, err := parent.Phys.ReadPhys(page, at); err != nil {
			return nil, "", fmt.Errorf("VMCS: %w", err)
		}
	}
	v, err := recognise(page)
	if err != nil {
		return nil, "", err
	}
	regs, err := v.HostRegisters()
	if err != nil {
		return nil, "", err
	}
	// Whoever asks for the control block later finds it with the hypervisor's own state.
	t.keep(regs, at, page)
	return regs, fmt.Sprintf("host-state area of the VMCS at %#x", at), nil
}

// saved reads the host-state area of the VMCS itself: there is no other place.
func (vmxTechnology) saved(m *machine.Machine, control, _ mem.Phys) (*arch.Registers, mem.Phys, error) {
	page, err := controlPage(m, control)
	if err != nil {
		return nil, 0, fmt.Errorf("VMCS: %w", err)
	}
	v, err := recognise(page)
	if err != nil {
		return nil, 0, fmt.Errorf("VMCS at %#x: %w", control, err)
	}
	regs, err := v.HostRegisters()
	if err != nil {
		return nil, 0, fmt.Errorf("VMCS at %#x: %w", control, err)
	}
	return regs, control, nil
}

func (vmxTechnology) enter(m *machine.Machine, cpu *arch.Registers, control, _ mem.Phys, _ *arch.Registers) error {
	page, err := controlPage(m, control)
	if err != nil {
		return fmt.Errorf("VMCS at %#x: %w", control, err)
	}
	cpu.Set("guest_mode", 1)
	vmxTechnology{}.keep(cpu, control, page)
	return nil
}

// keep implements keeper.
func (vmxTechnology) keep(cpu *arch.Registers, at mem.Phys, page []byte) {
	cpu.Set("vmcs", uint64(at))
	cpu.SetControlBlock(page)
}

// entering: VMLAUNCH and VMRESUME enter the current VMCS (Intel SDM Vol. 3C,
// "VMLAUNCH/VMRESUME").
func (t vmxTechnology) entering(cpu *arch.Registers) (mem.Phys, bool) { return t.lastUsed(cpu) }

// entryReach is how far from its exit handler a hypervisor's entry instructions are looked
// for, in bytes, a figure of ours: all are in a few lines of assembler, as in Linux 6.1
// arch/x86/kvm/vmx/vmenter.S:__vmx_vcpu_run.
const entryReach = 4096

// entries: an exit goes to HOST_RIP, which may be anywhere. Of VMLAUNCH and VMRESUME, of
// which a hypervisor uses the one or the other by the launch state, the closest each.
func (vmxTechnology) entries(code mem.VirtReader, behind uint64) (out []uint64) {
	found := make(map[byte]bool)
	for i := range uint64(2 * entryReach) {
		at := behind - i/2 - 1
		if i%2 != 0 {
			at = behind + i/2
		}
		var b [3]byte
		if _, err := code.ReadVirt(b[:], mem.Virt(at)); err != nil || b[0] != 0x0f || b[1] != 1 || b[2] != 0xc2 && b[2] != 0xc3 {
			continue // what lies beside the handler need not be mapped
		}
		if !found[b[2]] {
			found[b[2]] = true
			out = append(out, at)
		}
		if len(found) == 2 {
			break
		}
	}
	return out
}

// afterEntry: behind the instruction if the entry fails at once, else where an exit goes.
func (vmxTechnology) afterEntry(c *machine.CPU, next uint64) []uint64 {
	if c.EntryPC == 0 || c.EntryPC == next {
		return []uint64{next}
	}
	return []uint64{next, c.EntryPC}
}

// delivering: a processor clears the valid bit of an injected event at the next exit,
// not when the event is delivered; nothing depends on it, since VMX is not emulated by
// what loses guests that are stopped meanwhile (svm.go).
func (vmxTechnology) delivering(mem.PhysReader, mem.Phys) bool { return false }

func (vmxTechnology) quickReject(page []byte) bool { return vmx.QuickReject(page) }

func (vmxTechnology) parse(parent *machine.Machine, page []byte) (controlBlock, bool) {
	a := vmx.Assess(page, ramOf(parent))
	if !a.Plausible {
		return controlBlock{}, false
	}
	block, err := vmxBlock(parent, a)
	return block, err == nil
}

func (vmxTechnology) take(parent *machine.Machine, page []byte) (controlBlock, error) {
	if !slices.ContainsFunc(page, func(b byte) bool { return b != 0 }) {
		return controlBlock{}, fmt.Errorf("the page in %s is empty", parent.Name)
	}
	return vmxBlock(parent, vmx.Assess(page, ramOf(parent)))
}

func vmxBlock(parent *machine.Machine, a vmx.Assessment) (controlBlock, error) {
	if a.VMCS == nil {
		return controlBlock{}, fmt.Errorf("not a page")
	}
	format, root, err := secondStage(a.VMCS)
	if _, told := a.VMCS.Get(vmx.EPTPointer); !told {
		format, err = paging.EPTFourLevel, errStageUnknown
	}
	if err != nil && err != errStageUnknown {
		return controlBlock{}, err
	}
	block := controlBlock{
		regs: a.VMCS.GuestRegisters(), second: format.WithPhysBits(parent.PhysBits), root: root, plausible: a.Plausible,
		evidence: a.Evidence, against: a.Against, score: a.Score, of: a.Score + len(a.Against),
		fault: eptStageFault(a.VMCS), refused: a.VMCS.Refused(),
	}
	if reason, ok := a.VMCS.ExitReason(); ok {
		block.why, _ = vmx.ExitName(reason)
	}
	return block, err
}

// eptStageFault is the EPT violation or misconfiguration that the guest left with, nil if
// it was none.
func eptStageFault(v *vmx.VMCS) *StageFault {
	f, ok := v.EPTFault()
	if !ok {
		return nil
	}
	out := &StageFault{Addr: mem.Phys(f.Addr), Access: paging.Read, Code: f.Qualification,
		Present: f.Permitted != 0 || f.Misconfigured, Reserved: f.Misconfigured, Tables: f.Tables}
	if f.Write {
		out.Access = paging.Write
	}
	if f.Fetch {
		out.Access = paging.Exec
	}
	if f.User {
		out.Access = paging.UserExec
	}
	return out
}

// land follows an event that the entry injects: an interrupt, hardware's or software's,
// will return to the saved RIP (behind the instruction, if software's); an exception
// makes the guest continue in its handler.
func (vmxTechnology) land(m *machine.Machine, c *machine.CPU, page []byte) (Landing, error) {
	v, err := recognise(page)
	if err != nil {
		return Landing{}, err
	}
	regs := v.GuestRegisters()
	pc, ok := regs.PC()
	if !ok {
		return Landing{}, fmt.Errorf("the VMCS at %#x has no RIP", c.Control)
	}
	event := v.EventInjection()
	switch {
	case !event.Valid || event.Type == vmx.EventOther:
		return Landing{PC: pc}, nil
	case event.Type == vmx.EventExternal || event.Type == vmx.EventNMI:
		sp, ok := regs.SP()
		if !ok {
			return Landing{}, fmt.Errorf("the VMCS at %#x has no RSP", c.Control)
		}
		return Landing{PC: pc, SP: &sp}, nil
	}
	handler, err := idtHandler(m, &machine.CPU{Regs: regs}, event.Vector)
	if err != nil {
		return Landing{}, fmt.Errorf("handler of exception %d of %s: %w", event.Vector, m.Name, err)
	}
	return Landing{PC: handler}, nil
}

// controlPage is a control block as the CPU that has it active knows it, or else as
// memory has it.
func controlPage(m *machine.Machine, at mem.Phys) ([]byte, error) {
	for _, c := range m.CPUs {
		if active, ok := c.Regs.Get("vmcs"); ok && mem.Phys(active) == at && c.Regs.ControlBlock() != nil {
			return c.Regs.ControlBlock(), nil
		}
	}
	page := make([]byte, pageSize)
	if _, err := m.Phys.ReadPhys(page, at); err != nil {
		return nil, err
	}
	return page, nil
}

func (t vmxTechnology) describe(parent *machine.Machine, page []byte) (*Description, error) {
	a := vmx.Assess(page, nil)
	if a.VMCS == nil {
		return nil, fmt.Errorf("a VMCS has %d bytes, got %d", vmx.PageSize, len(page))
	}
	v := a.VMCS
	d := &Description{Kind: t.name(), Fault: eptStageFault(v)}
	if reason, ok := v.ExitReason(); ok {
		d.Exit, _ = vmx.ExitName(reason)
	}
	for _, x := range v.ExitDetails() {
		d.Why = append(d.Why, x.Name+": "+x.Text)
	}
	for _, f := range v.Fields() {
		size := f.Field.Size()
		d.Fields = append(d.Fields, Field{Area: f.Field.Area().String(), Name: f.Field.String(), At: uint64(f.Field),
			Value: slices.Clone(page[f.Offset : f.Offset+size]), Meaning: f.Field.Meaning(f.Value)})
	}
	for _, c := range v.Checks(vmx.Processor{PhysBits: parent.PhysBits, Memory: parent.Phys}) {
		d.Checks = append(d.Checks, Check(c))
	}
	d.Notes = append(d.Notes, fmt.Sprintf("read by the layout of %s, revision %#x", v.Layout().Name, v.Revision()))
	if !a.Plausible {
		d.Notes = append(d.Notes, "it fits no layout whose fields would make a VM entry succeed; this is the one that it fits best")
	}
	return d, nil
}
