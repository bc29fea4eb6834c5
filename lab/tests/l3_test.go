package tests

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"nestdbg/internal/arch"
	"nestdbg/lab"
)

// vm0vm0 is the number of the guest's guest: machines are numbered as they are found.
const vm0vm0 = 3

// TestGuestOfGuestOfGuest: KVM in L1 and in L2, and a Linux L3. What is said of L3
// is what it says itself, a CPU that stops in it is in it, and the machines around
// it stay what they are.
func TestGuestOfGuestOfGuest(t *testing.T) {
	t.Cleanup(func() { endShared(t, "deep") }) // after sharedLab's own
	l := sharedLab(t, "deep")
	symbols := parseSymbols(t, askDeepSymbols(t, l))
	remember(l, "vm0.vm0", symbols)
	for _, part := range []struct {
		name string
		run  func(t *testing.T, l *lab.Lab)
	}{
		{"status", checkThreeLevels},
		{"dmesg", func(t *testing.T, l *lab.Lab) { checkLog(t, l, "vm0.vm0") }},
		{"ps", func(t *testing.T, l *lab.Lab) { checkPS(t, l, "vm0.vm0") }},
		{"sym", func(t *testing.T, l *lab.Lab) { checkDeepSymbols(t, l, symbols) }},
		{"hosts", checkEveryHost},
		{"blind", checkMergedBlind},
		{"steps", checkDeepSteps},
		{"gdb", checkDeepGDB},
		{"alive", func(t *testing.T, l *lab.Lab) {
			for _, m := range l.Machines {
				ask(t, l, m.Name, "ping")
			}
		}},
	} {
		t.Run(part.name, func(t *testing.T) { part.run(t, l) })
	}
}

// checkThreeLevels compares the tower with what each machine says, and looks at many
// moments whether each CPU is in one layer.
func checkThreeLevels(t *testing.T, l *lab.Lab) {
	seen := make(map[string]int)
	for i := range 12 {
		thaw := freeze(t, l)
		st := decode[statusReport](t, must(t, l, "status", "--json"))
		thaw()
		var names []string
		for i := range st.Machines {
			names = append(names, st.Machines[i].Name)
		}
		if !slices.Equal(names, []string{"l1", "vm0", "vm0.vm0"}) || len(st.Problems) > 0 {
			t.Fatalf("machines %q, problems %q", names, st.Problems)
		}
		if i == 0 {
			for j := range st.Machines {
				checkMachine(t, l, st, &st.Machines[j], names[j])
			}
		}
		seen[layers(t, st)]++
	}
	t.Log(seen)
}

// layers says what the only CPU of each guest does, after it has checked that this
// fits together with the CPUs below.
func layers(t *testing.T, st *statusReport) string {
	t.Helper()
	l2, l3 := st.machine(t, "vm0").VCPUs[0], st.machine(t, "vm0.vm0").VCPUs[0]
	text := l2.State + ", " + l3.State
	in := "vm0" // where a CPU that carries L2 is
	switch text {
	case "parked, parked":
		if l2.CPU != nil || l3.CPU != nil {
			t.Errorf("parked on a CPU: %+v, %+v", l2, l3)
		}
	case "running, parked", "halted, parked":
		if l2.CPU == nil || l3.CPU != nil {
			t.Errorf("%s: %+v, %+v", text, l2, l3)
		}
	case "hosting, running", "hosting, halted":
		if in = "vm0.vm0"; l2.CPU == nil || l3.CPU == nil || *l2.CPU != *l3.CPU || l2.In != in {
			t.Errorf("%s: %+v, %+v", text, l2, l3)
		}
	case "hosting, parked":
		if l2.CPU != nil || l3.CPU != nil || l2.In != "vm0.vm0" {
			t.Errorf("%s: %+v, %+v", text, l2, l3)
		}
	default:
		t.Errorf("L2 is %s, which cannot be", text)
	}
	for _, c := range st.machine(t, "l1").VCPUs {
		carries := l2.CPU != nil && *l2.CPU == c.Index
		if (c.State == "hosting") != carries || carries && c.In != in {
			t.Errorf("%s: L1 CPU %d is %s in %q, want %q", text, c.Index, c.State, c.In, in)
		}
	}
	return text
}

// checkMergedBlind looks without KVM's word: the control block that KVM merged for L3 is not
// taken for one of a guest of L1. Before L3 has run on since its last exit to L2, and after
// it, that is told by its second stage.
func checkMergedBlind(t *testing.T, l *lab.Lab) {
	seen := make(map[string]int)
	for range 6 {
		thaw := freeze(t, l)
		found := decode[foundReport](t, must(t, l, "find", "--blind", "--all", "--json"))
		thaw()
		for _, c := range found.Candidates {
			if c.State != "executing" && c.State != "live" {
				continue
			}
			seen[fmt.Sprintf("%s in %s: %s", c.Machine, c.In, c.State)]++
			if want := map[string]string{"l1": "vm0", "vm0": "vm0.vm0"}[c.In]; c.Machine != want && c.Machine != "vm0.vm0" {
				t.Errorf("%s at %#x in %s is %s, of %q: %q", c.Kind, c.At, c.In, c.State, c.Machine, c.Evidence)
			}
		}
	}
	if seen["vm0 in l1: live"]+seen["vm0 in l1: executing"] == 0 {
		t.Errorf("L2 was never found: %v", seen)
	}
	t.Log(seen)
}

// deepSymbols are the symbols that L3 is asked for. The whole list would take a minute
// to come out of it.
const deepSymbols = ` (ksys_.*|do_sys_.*|_text|_stext|_etext|native_safe_halt|native_apic_msr_eoi_write)$`

// askDeepSymbols asks L3 for them, once: each time it makes the whole list, for which a
// busy machine may need longer than the agent waits for a command.
func askDeepSymbols(t *testing.T, l *lab.Lab) string {
	t.Helper()
	ask(t, l, "vm0.vm0", "exec (grep -E '"+deepSymbols+"' /proc/kallsyms > /tmp/part; mv /tmp/part /tmp/symbols) > /dev/null 2>&1 &")
	var text string
	eventually(t, "L3 has listed its symbols", 4*time.Minute, func() bool {
		time.Sleep(2 * time.Second) // to be asked is work for L3, too
		text = ask(t, l, "vm0.vm0", "exec cat /tmp/symbols 2>/dev/null || true")
		return text != ""
	})
	return text
}

// checkDeepSymbols compares every symbol of some families with /proc/kallsyms.
func checkDeepSymbols(t *testing.T, l *lab.Lab, want []symbol) {
	family := regexp.MustCompile(deepSymbols)
	v := look(t, l)
	table, err := v.kernel(t, v.machine(t, "vm0.vm0")).Symbols()
	if err != nil {
		t.Fatal(err)
	}
	var got []symbol
	for s := range table.All() {
		if family.MatchString(" " + s.Name) {
			got = append(got, symbol{s.Name, "", s.Addr, s.Type})
		}
	}
	compareSets(t, "symbols of L3", got, want, func(a, b symbol) int {
		return cmp.Or(cmp.Compare(a.addr, b.addr), cmp.Compare(a.name, b.name), cmp.Compare(a.kind, b.kind))
	})
	for _, s := range want[:3] {
		text := must(t, l, "sym", "-m", "vm0.vm0", s.name)
		if !strings.Contains(text, fmt.Sprintf("%#x", s.addr)) {
			t.Errorf("%s is at %#x, sym says %s", s.name, s.addr, text)
		}
	}
	t.Logf("%d symbols", len(want))
}

// checkEveryHost stops L3 and looks at the registers of those that host it.
func checkEveryHost(t *testing.T, l *lab.Lab) {
	addr, addrL2 := guestSymbol(t, l, "vm0.vm0", "ksys_write"), guestSymbol(t, l, "vm0", "ksys_write")
	c := connect(t, serve(t, l).addr)
	c.attach(l1, vm0, vm0vm0)
	c.setBreak(vm0vm0, 0, addr, 1)
	s := c.cont("c")
	c.clearBreak(vm0vm0, 0, addr, 1)
	if s.pid != vm0vm0 || s.signal != sigTrap || c.reg(vm0vm0, s.tid, "rip") != addr {
		t.Fatalf("stop %q, want L3 at %#x", s.text, addr)
	}
	var core int
	if _, err := fmt.Sscanf(s.fields["core"], "%x", &core); err != nil {
		t.Fatalf("stop %q does not say on which CPU: %v", s.text, err)
	}
	roots := map[uint64]string{c.reg(vm0vm0, s.tid, "cr3"): "vm0.vm0"}
	for _, host := range []struct {
		name     string
		pid, tid int
		unknown  []string
	}{
		{"vm0", vm0, 1, []string{"r12", "rbx"}},
		{"l1", l1, core + 1, []string{"r12", "rbx"}},
	} {
		regs := c.registers(host.pid, host.tid)
		pc, ok := regs.PC()
		if !ok {
			t.Fatalf("%s: where it waits is not known", host.name)
		}
		if code, err := c.readMem(host.pid, host.tid, pc-3, 3); err != nil || !bytes.Equal(code, arch.X86.GuestEntry[0]) {
			t.Errorf("%s: in front of %#x stands % x (%v), not VMRUN", host.name, pc, code, err)
		}
		for _, name := range host.unknown {
			if v, known := regs.Get(name); known {
				t.Errorf("%s: nobody has saved %s, and it is %#x", host.name, name, v)
			}
		}
		cr3, ok := regs.Get("cr3")
		if other := roots[cr3]; !ok || other != "" {
			t.Errorf("%s: cr3 is %#x, known %v, that of %q", host.name, cr3, ok, other)
		}
		roots[cr3] = host.name
	}
	if v, known := c.registers(vm0vm0, s.tid).Get("r12"); !known {
		t.Errorf("r12 of L3, which runs, is not known (%#x)", v)
	}
	checkDeepBacktraces(t, l, core)
	// L2's GS base is that of its CPU, which L2 itself saved, and not L3's.
	base, known := c.registers(vm0, 1).Get("gs_base")
	c.setBreak(vm0, 0, addrL2, 1)
	s = c.cont("c")
	c.clearBreak(vm0, 0, addrL2, 1)
	if s.pid != vm0 || !known || c.reg(vm0, 1, "gs_base") != base {
		t.Errorf("stop %q: gs_base of L2 while it hosted was %#x, known %v", s.text, base, known)
	}
	c.ok("D;1", "D;2", "D;3")
}

// checkDeepBacktraces: L3 is in the system call, those that host it are in KVM.
func checkDeepBacktraces(t *testing.T, l *lab.Lab, core int) {
	t.Helper()
	inKVM := []string{"__svm_vcpu_run", "svm_vcpu_run", "kvm_vcpu_ioctl", "do_syscall_64"}
	for _, c := range []struct {
		machine string
		cpu     int
		want    []string // in this order, the first one innermost
	}{
		{"vm0.vm0", 0, []string{"ksys_write", "do_syscall_64", "entry_SYSCALL_64_after_hwframe"}},
		{"vm0", 0, inKVM},
		{"l1", core, inKVM},
	} {
		stacks := decode[stackReport](t, must(t, l, "bt", "--json", "-m", c.machine, "--cpu", fmt.Sprint(c.cpu))).Stacks
		if len(stacks) != 1 || stacks[0].Error != "" || len(stacks[0].Frames) == 0 {
			t.Fatalf("%s: %+v", c.machine, stacks)
		}
		var frames []string
		left := c.want
		for _, f := range stacks[0].Frames {
			if len(left) > 0 && f.Symbol == left[0] {
				left = left[1:]
			}
			if f.Guess {
				t.Errorf("%s: %s is a guess", c.machine, f.Symbol)
			}
			frames = append(frames, f.Symbol)
		}
		if len(left) > 0 || frames[0] != c.want[0] {
			t.Errorf("%s, %s: %q, want %q", c.machine, stacks[0].State, frames, c.want)
		}
	}
}

// checkDeepSteps steps L3 through exits that end in L1 and such that L2 handles.
func checkDeepSteps(t *testing.T, l *lab.Lab) {
	const steps, parts = 240, 8
	s := &stepping{pid: vm0vm0, seen: make(map[string]int)}
	s.first, s.last = guestSymbol(t, l, "vm0.vm0", "_stext"), guestSymbol(t, l, "vm0.vm0", "_etext")
	starts := []uint64{guestSymbol(t, l, "vm0.vm0", "native_apic_msr_eoi_write"), guestSymbol(t, l, "vm0.vm0", "native_safe_halt")}
	c := connect(t, serve(t, l).addr)
	c.attach(l1, vm0, vm0vm0)
	for i := range parts {
		s.run(t, c, starts[i%len(starts)], steps/parts)
	}
	t.Logf("%d steps through %v, %d moved", steps, s.seen, s.moved)
	if s.seen["wrmsr"] == 0 || s.seen["hlt"] == 0 || s.moved < steps/2 {
		t.Errorf("%d of %d steps moved, through %v", s.moved, steps, s.seen)
	}
	c.ok("D;1", "D;2", "D;3")
}

// checkDeepGDB lets the real gdb stop in L3 at a function, by its name.
func checkDeepGDB(t *testing.T, l *lab.Lab) {
	const script = `
info inferiors
# expect 3 +process 3 .*vm0\.vm0/vmlinux-
inferior 3
tbreak *ksys_write
continue
# expect Thread 3\.1 "vm0\.vm0 CPU 0" hit Temporary breakpoint .* ksys_write
backtrace
# expect #0 .* ksys_write
# expect do_syscall_64
info threads
# expect 1\.[12] .* \(in vm0\.vm0 CPU 0; registers from the host save area .*__svm_vcpu_run
# expect 2\.1 .*"vm0 CPU 0" \(in vm0\.vm0 CPU 0; registers from the VMCB .*__svm_vcpu_run
# expect 3\.1 .*"vm0\.vm0 CPU 0" \(running on L1 CPU [01]\)
stepi
x/i $pc
# expect <ksys_write\+[0-9]+>
inferior 2
backtrace
# expect __svm_vcpu_run
# expect kvm_arch_vcpu_ioctl_run
`
	path := filepath.Join(t.TempDir(), "deep.gdb")
	if err := os.WriteFile(path, []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	expectAll(t, script, runGDB(t, l, t.TempDir(), path))
}
