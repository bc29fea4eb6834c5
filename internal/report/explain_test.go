package report_test

import (
	"fmt"
	"strings"
	"testing"

	"nestdbg/internal/arch"
	"nestdbg/internal/machine"
	"nestdbg/internal/mem"
	"nestdbg/internal/mem/memtest"
	"nestdbg/internal/nested/nestedtest"
	"nestdbg/internal/paging"
	"nestdbg/internal/paging/pagingtest"
	"nestdbg/internal/report"
	"nestdbg/internal/session"
	"nestdbg/internal/svm/svmtest"
	"nestdbg/internal/vmx/vmxtest"
)

// stuck is a guest of one page of text at 0x400000 whose tables a test spoils.
type stuck struct {
	ram         *memtest.Memory
	second, own *pagingtest.Builder
	vm          *machine.Machine
}

func newStuck(format string) *stuck {
	s := &stuck{ram: memtest.NewMemory(mem.Range{First: 0, Last: 0x3f_ffff})}
	s.second = pagingtest.New(format, s.ram, pagingtest.NewFrames(mem.Range{First: 0x20_0000, Last: 0x2f_ffff}, 0))
	all := s.second.Express(paging.Read | paging.Write | paging.Exec)
	for i := range uint64(16) { // the guest's tables
		s.second.Map(0x1_0000+i<<12, mem.Phys(0x10_0000+i<<12), 4096, all)
	}
	s.second.Map(0x4_0000, 0x12_0000, 4096, all)
	s.second.Map(0x5_0000, 0x900_0000, 4096, all) // where there is no RAM
	s.second.Map(0xfee0_0000, 0xfee0_0000, 4096, all)
	s.own = pagingtest.New("x86-4level", s.second.Guest(), pagingtest.NewFrames(mem.Range{First: 0x1_0000, Last: 0x1_ffff}, 0))
	s.own.Map(0x40_0000, 0x4_0000, 4096, s.own.Express(paging.Read|paging.Exec|paging.Write))
	s.own.Map(0x40_1000, 0x5_0000, 4096, s.own.Express(paging.Read|paging.Exec))
	s.own.Map(0x40_2000, 0x6_0000, 4096, s.own.Express(paging.Read))
	s.own.Map(0x40_3000, 0xfee0_0000, 4096, s.own.Express(paging.Read))
	f, err := paging.ByName(format)
	if err != nil {
		panic(err)
	}
	l1 := &machine.Machine{Name: "l1", Level: 1, Arch: arch.X86, Phys: s.ram}
	stage := paging.NewSpace("second stage of vm0", f, s.ram, s.second.Root())
	s.vm = &machine.Machine{Name: "vm0", Level: 2, Parent: l1, Arch: arch.X86, Phys: machine.NewNestedMemory(stage),
		Second: &machine.SecondStage{Kind: format, Space: stage}}
	return s
}

func set(bits uint64) func(uint64) uint64   { return func(e uint64) uint64 { return e | bits } }
func clear(bits uint64) func(uint64) uint64 { return func(e uint64) uint64 { return e &^ bits } }

// TestExplain spoils one entry at a time; the explanation has to name that one.
func TestExplain(t *testing.T) {
	const rwx = paging.Read | paging.Write | paging.Exec
	for name, c := range map[string]struct {
		format string
		va     uint64
		access paging.Perm
		spoil  func(s *stuck) (at mem.Phys) // of the entry at fault
		stage  int
		cause  string
		text   string
	}{
		"nothing is wrong": {"npt4", 0x40_0000, rwx, func(s *stuck) mem.Phys { return 0 }, 0, "", ""},
		"no page":          {"npt4", 0x40_5000, 0, func(s *stuck) mem.Phys { return s.own.EntryAt(0x40_5000, 1) }, 1, "not-present", "not present"},
		"no address":       {"npt4", 1 << 50, 0, func(s *stuck) mem.Phys { return 0 }, 1, "no-address", "non-canonical"},
		"reserved bit":     {"npt4", 0x40_0000, 0, func(s *stuck) mem.Phys { s.own.Edit(0x40_0000, 4, set(1<<7)); return s.own.EntryAt(0x40_0000, 4) }, 1, "reserved", "reserved bit 7"},
		"read-only": {"npt4", 0x40_1000, paging.Write, func(s *stuck) mem.Phys {
			s.second.Edit(0x5_0000, 1, clear(0x800_0000))
			return s.own.EntryAt(0x40_1000, 1)
		}, 1, "permission", "write is not permitted"},
		"hole":              {"npt4", 0x40_2000, 0, func(s *stuck) mem.Phys { return s.second.EntryAt(0x6_0000, 1) }, 2, "not-present", "not present"},
		"hole in EPT":       {"ept4", 0x40_2000, 0, func(s *stuck) mem.Phys { return s.second.EntryAt(0x6_0000, 1) }, 2, "not-present", "not present"},
		"second read-only":  {"npt4", 0x40_0000, rwx, func(s *stuck) mem.Phys { s.second.Edit(0x4_0000, 2, clear(2)); return s.second.EntryAt(0x4_0000, 2) }, 2, "permission", "write is not permitted"},
		"no execute":        {"npt4", 0x40_0000, paging.Exec, func(s *stuck) mem.Phys { s.second.Edit(0x4_0000, 1, set(1<<63)); return s.second.EntryAt(0x4_0000, 1) }, 2, "permission", "instruction fetch"},
		"execute-only":      {"ept4", 0x40_0000, paging.Read, func(s *stuck) mem.Phys { s.second.Edit(0x4_0000, 1, clear(3)); return s.second.EntryAt(0x4_0000, 1) }, 2, "permission", "read is not permitted"},
		"supervisor":        {"npt4", 0x40_0000, 0, func(s *stuck) mem.Phys { s.second.Edit(0x4_0000, 1, clear(4)); return s.second.EntryAt(0x4_0000, 1) }, 2, "reserved", "supervisor entry"},
		"KVM's MMIO":        {"npt4", 0x40_0000, 0, func(s *stuck) mem.Phys { s.second.Edit(0x4_0000, 1, set(1<<51)); return s.second.EntryAt(0x4_0000, 1) }, 2, "mmio", "MMIO"},
		"KVM's MMIO in EPT": {"ept4", 0x40_0000, 0, func(s *stuck) mem.Phys { s.second.Edit(0x4_0000, 1, clear(1)); return s.second.EntryAt(0x4_0000, 1) }, 2, "mmio", "MMIO"},
		"memory type":       {"ept4", 0x40_0000, 0, func(s *stuck) mem.Phys { s.second.Edit(0x4_0000, 1, set(7<<3)); return s.second.EntryAt(0x4_0000, 1) }, 2, "misconfigured", "memory type 7"},
		"table outside RAM": {"npt4", 0x40_0000, 0, func(s *stuck) mem.Phys {
			s.second.Edit(0x4_0000, 2, set(0x1000_0000))
			return s.second.EntryAt(0x4_0000, 2)
		}, 2, "outside-ram", "has no RAM"},
		"table in a hole": {"npt4", 0x40_0000, 0, func(s *stuck) mem.Phys {
			table := uint64(s.own.Table(0x40_0000, 2))
			s.second.Edit(table, 1, clear(1))
			return s.second.EntryAt(table, 1)
		}, 2, "not-present", "at a table of stage 1"},
		"outside RAM": {"npt4", 0x40_1000, 0, func(s *stuck) mem.Phys { return 0 }, 0, "outside-ram", "no RAM at this address"},
		"device":      {"npt4", 0x40_3000, 0, func(s *stuck) mem.Phys { return 0 }, 0, "mmio", "the local APIC"},
		"device in a hole": {"npt4", 0x40_3000, 0, func(s *stuck) mem.Phys {
			s.second.Edit(0xfee0_0000, 1, clear(1))
			return s.second.EntryAt(0xfee0_0000, 1)
		}, 2, "not-present", "a PC has the local APIC there"},
	} {
		s := newStuck(c.format)
		at := c.spoil(s)
		space := paging.NewSpace("virtual memory of vm0", paging.X86FourLevel, s.vm.Phys, s.own.Root())
		v := report.NewVTopAccess(s.vm, space, c.va, c.access, nil)
		if v.Why == nil {
			if c.cause != "" {
				t.Errorf("%s: no explanation", name)
			}
			continue
		}
		var got mem.Phys
		if v.Why.At != nil {
			got = mem.Phys(*v.Why.At)
		}
		if v.Why.Stage != c.stage || v.Why.Cause != c.cause || got != at || !strings.Contains(v.Why.Text, c.text) {
			t.Errorf("%s: %+v, entry at %#x; want %q at %#x", name, v.Why, got, c.text, at)
		}
		var b strings.Builder
		if v.Text(&b); !strings.Contains(b.String(), "why: ") || at != 0 && !strings.Contains(b.String(), fmt.Sprintf("at %#x in ", at)) {
			t.Errorf("%s: %s", name, &b)
		}
	}
}

// TestFault asks for the fault that a guest is stuck in.
func TestFault(t *testing.T) {
	for name, c := range map[string]struct {
		exit, info1, info2 uint64
		cause, text        string
	}{
		"a hole":                        {0x400, 1<<32 | 6, 0x700_0010, "not-present", "not present"},
		"a write":                       {0x400, 1<<32 | 7, 0x4_3010, "permission", "write is not permitted"},
		"reserved, by a rule not known": {0x400, 1<<32 | 0xe, 0x4_0010, "reserved", "the processor found an entry that breaks the rules"},
		"changed since":                 {0x400, 1<<32 | 6, 0x4_0010, "gone", "allows this access now"},
		"another exit":                  {0x78, 0, 0, "", "was HLT, no fault"},
	} {
		w := nestedtest.New()
		g := w.Guest()
		v := g.CPU(text, text+0x3f00)
		v.Park(text, text+0x3f00, svmtest.Values{"EXITCODE": c.exit, "EXITINFO1": c.info1, "EXITINFO2": c.info2})
		g.NPT.Edit(0x4_3000, 1, clear(2))
		s := session.New(nestedtest.NewStill(w, w.Host(0, text+0x200, text+0x3f00)))
		if _, err := s.Look(t.Context(), session.Full); err != nil {
			t.Fatal(err)
		}
		m, err := s.Machine("vm0")
		if err != nil {
			t.Fatal(err)
		}
		r, err := report.NewFault(m, m.CPUs[0], nil)
		if err != nil {
			if c.cause != "" || !strings.Contains(err.Error(), c.text) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if r.Why == nil || r.Why.Cause != c.cause || !strings.Contains(r.Why.Text, c.text) || !strings.Contains(r.Exit, "NPF") ||
			uint64(*r.PA) != c.info2 || c.cause == "permission" && uint64(*r.Why.At) != uint64(g.NPT.EntryAt(0x4_3000, 1)) {
			t.Errorf("%s: %q %+v", name, r.Exit, r.Why)
		}
	}
}

// Whose instruction fetch was refused decides which permission is asked for.
func TestFaultModeBased(t *testing.T) {
	for name, c := range map[string]struct {
		fetch         paging.Perm // what the page allows
		qualification uint64
		cause, text   string
	}{
		"user mode":  {paging.Exec, 0x1ac, "permission", "instruction fetch of user mode is not permitted"},
		"supervisor": {paging.UserExec, 0x1cc, "permission", "instruction fetch is not permitted"},
		"changed":    {paging.Exec | paging.UserExec, 0x1ac, "gone", "allows this access now"},
		"reserved":   {paging.Exec | paging.UserExec, 0, "misconfigured", "the processor found an entry that breaks the rules"},
	} {
		s := newStuck("ept4-mbec")
		s.second.Map(0x7_0000, 0x12_0000, 4096, s.second.Express(paging.Read|c.fetch))
		values := vmxtest.Values{"exit reason": 48, "exit qualification": c.qualification, "guest-physical address": 0x7_0010, "secondary controls": 0x4010ee}
		if name == "reserved" {
			values["exit reason"] = 49
		}
		s.ram.Put(0x3000, vmxtest.VMCS(vmxtest.KVM, values))
		v, err := report.NewFault(s.vm, &machine.CPU{On: -1, State: machine.Parked, Control: 0x3000, Kind: "VMCS"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if v.Why.Cause != c.cause || !strings.Contains(v.Why.Text, c.text) || c.cause == "permission" && mem.Phys(*v.Why.At) != s.second.EntryAt(0x7_0000, 1) {
			t.Errorf("%s: %+v", name, v.Why)
		}
	}
}
