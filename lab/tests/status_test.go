package tests

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"nestdbg/lab"
)

// linkedText is where x86-64 kernels are linked to run: _text without KASLR.
const linkedText = 0xffffffff81000000

func TestStatusHasWhatScriptsRelyOn(t *testing.T) {
	l := sharedLab(t, "kaslr")
	checkShape(t, must(t, l, "status", "--json"), map[string]string{
		"qemu.version": "string", "qemu.accel": "string", "qemu.pid": "number",
		"ram.source": "string", "ram.file": "string", "ram.size": "number",
		"machines[].name": "string", "machines[].level": "number", "machines[].parent": "string",
		"machines[].arch": "string", "machines[].os": "string",
		"machines[].second_stage.kind": "string?", "machines[].second_stage.root": "address?",
		"machines[].kernel.release": "string", "machines[].kernel.build_id": "string",
		"machines[].kernel.text_va": "address", "machines[].kernel.slide": "address",
		"machines[].vcpus[].index": "number", "machines[].vcpus[].state": "string",
		"machines[].vcpus[].cpu": "number?", "machines[].vcpus[].rip": "address",
	})
}

// TestStatusAgreesWithTheGuests compares with what QEMU and the guests say.
func TestStatusAgreesWithTheGuests(t *testing.T) {
	for name, kaslr := range map[string]bool{"kaslr": true, "samekaslr": false, "two": true} {
		t.Run(name, func(t *testing.T) {
			l := sharedLab(t, name)
			st := decode[statusReport](t, must(t, l, "status", "--json"))
			checkQEMU(t, l, st)
			if got, want := len(st.Machines), len(l.Machines); got != want {
				t.Fatalf("%d machines, want %d", got, want)
			}
			texts := make(map[uint64]string) // _text of the VMs, as they say
			for _, m := range l.Machines {
				text := guestSymbol(t, l, m.Name, "_text")
				if kaslr == (text == linkedText) {
					t.Errorf("%s has _text at %#x: not the lab that was wanted", m.Name, text)
				}
				if m.Name != lab.L1 {
					texts[text] = m.Name
				}
			}
			checkMachine(t, l, st, st.machine(t, "l1"), "l1")
			for i := range st.Machines {
				if m := &st.Machines[i]; m.Level > 1 {
					if m.Kernel == nil || texts[uint64(m.Kernel.TextVA)] == "" {
						t.Fatalf("%s: no VM has its kernel there: %+v; there are %x", m.Name, m.Kernel, texts)
					}
					checkMachine(t, l, st, m, texts[uint64(m.Kernel.TextVA)])
				}
			}
		})
	}
}

func checkQEMU(t *testing.T, l *lab.Lab, st *statusReport) {
	t.Helper()
	version, err := exec.Command(l.Command[0], "--version").Output()
	if err != nil {
		t.Fatal(err)
	}
	v, _, _ := strings.Cut(st.QEMU.Version, " ")
	if v == "" || !strings.Contains(string(version), "version "+v) || st.QEMU.Accel != "tcg" || st.QEMU.PID != l.PID {
		t.Errorf("QEMU: %+v; it is %s, PID %d", st.QEMU, version, l.PID)
	}
	want := l.Machine(lab.L1).MemBytes
	if st.RAM.File != l.MemoryFile || st.RAM.Size != want || !strings.Contains(st.RAM.Source, "file") {
		t.Errorf("RAM: %+v; it is %d bytes in %s", st.RAM, want, l.MemoryFile)
	}
	if !st.Running || len(st.Problems) > 0 {
		t.Errorf("running %v, problems %q", st.Running, st.Problems)
	}
}

// checkMachine compares one machine with what it says itself.
func checkMachine(t *testing.T, l *lab.Lab, st *statusReport, m *machineReport, guest string) {
	t.Helper()
	text := guestSymbol(t, l, guest, "_text")
	level, parent := 2+strings.Count(guest, "."), "l1"
	if dot := strings.LastIndexByte(guest, '.'); dot >= 0 {
		parent = guest[:dot]
	} else if guest == lab.L1 {
		level, parent = 1, ""
	}
	if m.Level != level || m.Parent != parent || m.Arch != "x86-64" || m.OS != "linux" {
		t.Errorf("%s: level %d, parent %q, %s, %s", m.Name, m.Level, m.Parent, m.Arch, m.OS)
	}
	if (m.SecondStage != nil) != (level > 1) {
		t.Errorf("%s has second stage %v", m.Name, m.SecondStage)
	}
	if s := m.SecondStage; s != nil && (!strings.HasPrefix(s.Kind, "npt") || s.Root == 0 || s.Root%4096 != 0) {
		t.Errorf("%s: second stage %+v", m.Name, s)
	}
	k := m.Kernel
	if k == nil {
		t.Fatalf("%s: no kernel", m.Name)
	}
	release := strings.TrimSpace(ask(t, l, guest, "ping"))
	if k.Release != release || uint64(k.TextVA) != text || uint64(k.Slide) != text-linkedText ||
		k.BuildID != guestBuildID(t, l, guest) {
		t.Errorf("%s: kernel %+v; it says release %s, _text %#x", m.Name, k, release, text)
	}
	if got, want := len(m.VCPUs), guestCPUs(t, l, guest); got != want {
		t.Errorf("%s has %d CPUs, it says %d", m.Name, got, want)
	}
	for i, c := range m.VCPUs {
		if c.Index != i || c.RIP == nil || *c.RIP == 0 {
			t.Errorf("%s CPU %d: %+v", m.Name, i, c)
		}
		if !slices.Contains(allowedStates(level, c.CPU != nil), c.State) && (c.State != "hosting" || !hasGuests(st, m.Name)) {
			t.Errorf("%s CPU %d is %s, on CPU %v", m.Name, i, c.State, c.CPU)
		}
		if c.CPU != nil && (*c.CPU < 0 || *c.CPU >= len(st.machine(t, "l1").VCPUs)) {
			t.Errorf("%s CPU %d is on CPU %d, which L1 does not have", m.Name, i, *c.CPU)
		}
	}
}

// hasGuests reports whether there are machines directly inside the one of a name.
func hasGuests(st *statusReport, name string) bool {
	return slices.ContainsFunc(st.Machines, func(m machineReport) bool { return m.Parent == name })
}

// allowedStates is what a CPU can be doing.
func allowedStates(level int, carried bool) []string {
	switch {
	case level == 1:
		return []string{"running", "hosting", "halted"}
	case carried:
		return []string{"running", "halted"}
	}
	return []string{"parked"}
}

// TestOneCPUIsInOneLayer checks, at many moments, that what runs where fits
// together: whoever hosts has a guest that is carried, and the other way round.
func TestOneCPUIsInOneLayer(t *testing.T) {
	l := sharedLab(t, "two")
	seen := make(map[string]int)
	for range 20 {
		st := decode[statusReport](t, must(t, l, "status", "--json"))
		carried := make(map[int]string) // VM by L1's CPU
		for _, m := range st.Machines[1:] {
			for _, c := range m.VCPUs {
				seen["vm "+c.State]++
				if c.CPU == nil {
					continue
				}
				if other := carried[*c.CPU]; other != "" {
					t.Errorf("CPU %d carries %s and %s", *c.CPU, other, m.Name)
				}
				carried[*c.CPU] = m.Name
			}
		}
		for _, c := range st.machine(t, "l1").VCPUs {
			seen["l1 "+c.State]++
			if (c.State == "hosting") != (carried[c.Index] != "") || c.State == "hosting" && c.In != carried[c.Index] {
				t.Errorf("L1 CPU %d is %s in %q, and carries %q", c.Index, c.State, c.In, carried[c.Index])
			}
		}
	}
	t.Log(seen)
	if seen["vm parked"] == 0 {
		t.Error("four vCPUs on two CPUs, and none was ever parked")
	}
}

func TestRegisters(t *testing.T) {
	l := sharedLab(t, "kaslr")
	freeze(t, l)
	for _, m := range []string{"l1", "vm0"} {
		text := must(t, l, "regs", "--json", "-m", m)
		checkShape(t, text, map[string]string{
			"machine": "string", "cpus[].index": "number", "cpus[].state": "string",
			"cpus[].registers.rip": "address", "cpus[].registers.rsp": "address", "cpus[].registers.eflags": "address",
			"cpus[].registers.cr3": "address", "cpus[].registers.cs": "address", "cpus[].registers.rax": "address",
			"cpus[].registers.rbx": "address?", "cpus[].registers.nested_cr3": "address?",
		})
		st := decode[statusReport](t, must(t, l, "status", "--json")).machine(t, m)
		r := decode[registersReport](t, text)
		if r.Machine != m || len(r.CPUs) != len(st.VCPUs) {
			t.Fatalf("%s: %d CPUs of %s, want %d", m, len(r.CPUs), r.Machine, len(st.VCPUs))
		}
		for i, c := range r.CPUs {
			rip := fmt.Sprintf("%#x", uint64(*st.VCPUs[i].RIP))
			if got := c.Registers["rip"]; got == nil || *got != rip || c.State != st.VCPUs[i].State {
				t.Errorf("%s CPU %d: regs and status disagree: rip %v and %s, %s and %s", m, i, got, rip, c.State, st.VCPUs[i].State)
			}
		}
	}
}
