package session

import (
	"strings"
	"testing"

	"nestdbg/internal/arch"
	"nestdbg/internal/debugfile"
	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/mem/memtest"
)

// savedWorld is a parked guest of a hypervisor that keeps RBX and RAX at 0x1000.
func savedWorld() (*machine.Tower, *machine.CPU, *machine.CPU, SavedRegisters) {
	ram := memtest.NewMemory(mem.Range{First: 0, Last: 0xffff})
	ram.PutUint64(0x1000, 0x11)
	ram.PutUint64(0x1008, 0x22)
	host := &machine.CPU{State: machine.Running, Regs: arch.NewRegisters(arch.X86), EntryPC: 0x5010, Entered: 0x3000}
	host.Regs.Set("rip", 0x9000)
	guest := &machine.CPU{State: machine.Parked, On: -1, Control: 0x3000, Regs: arch.NewRegisters(arch.X86), Source: "VMCB"}
	guest.Regs.Set("rax", 0x77)
	l1 := &machine.Machine{Name: "l1", Level: 1, Arch: arch.X86, Phys: ram, CPUs: []*machine.CPU{host}}
	vm := &machine.Machine{Name: "vm0", Level: 2, Parent: l1, Arch: arch.X86, CPUs: []*machine.CPU{guest}}
	saved := SavedRegisters{
		Machine: "vm0", Physical: true, Addr: 0x1000, What: "pa:regs",
		Members:  []debugfile.Member{{Name: "rax", Size: 8}, {Name: "rbx", Offset: 8, Size: 8}, {Name: "flags", Offset: 16, Size: 8}},
		Together: func(a, b uint64) bool { return a>>8 == b>>8 },
	}
	return &machine.Tower{Machines: []*machine.Machine{l1, vm}}, host, guest, saved
}

// What the control block has stays, what it lacks is added, and nothing is taken from
// memory while the hypervisor is on its way to write it there.
func TestSavedRegisters(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(host, guest *machine.CPU, s *SavedRegisters)
		known  bool
		want   string // in the problems
	}{
		{"kept", func(_, _ *machine.CPU, _ *SavedRegisters) {}, true, ""},
		{"behind the exit", func(host, _ *machine.CPU, _ *SavedRegisters) { host.Regs.Set("rip", 0x5020) }, false, "between the guest"},
		{"before the entry", func(host, _ *machine.CPU, _ *SavedRegisters) { host.Regs.Set("rip", 0x5008) }, true, ""},
		{"behind the exit of another", func(host, _ *machine.CPU, _ *SavedRegisters) {
			host.Regs.Set("rip", 0x5020)
			host.Entered = 0x4000
		}, true, ""},
		{"it runs", func(_, guest *machine.CPU, _ *SavedRegisters) { guest.On = 0 }, false, ""},
		{"not in memory", func(_, _ *machine.CPU, s *SavedRegisters) { s.Addr = 0x20000 }, false, "cannot read 0x20000"},
		{"virtual, without tables", func(_, _ *machine.CPU, s *SavedRegisters) { s.Physical = false }, false, "--cr3 l1=ROOT"},
		{"no registers in it", func(_, _ *machine.CPU, s *SavedRegisters) { s.Members = s.Members[2:] }, false, "no member"},
	} {
		tower, host, guest, saved := savedWorld()
		test.change(host, guest, &saved)
		s := &Session{assumed: Assumptions{Registers: []SavedRegisters{saved}}}
		s.keep(tower)
		rbx, known := guest.Regs.Get("rbx")
		if known != test.known || known && rbx != 0x22 {
			t.Errorf("%s: rbx %#x, %v", test.name, rbx, known)
		}
		if rax, _ := guest.Regs.Get("rax"); rax != 0x77 {
			t.Errorf("%s: rax %#x is not the control block's", test.name, rax)
		}
		if got := strings.Join(tower.Problems, "\n"); (got == "") != (test.want == "") || !strings.Contains(got, test.want) {
			t.Errorf("%s: problems %q, want %q", test.name, got, test.want)
		}
	}
}
