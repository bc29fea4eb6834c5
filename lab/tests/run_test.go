package tests

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nestdbg/internal/arch"
	"nestdbg/lab"
)

// The numbers of the machines in a lab with one VM, and gdb's trap signal.
const (
	l1, vm0 = 1, 2
	sigTrap = 5
	sigInt  = 2
)

// foreignHits is how many hits of other machines a debugger has passed.
func (c *client) foreignHits() int {
	c.t.Helper()
	var n int
	if _, err := fmt.Sscanf(c.monitor("foreign"), "%d", &n); err != nil {
		c.t.Fatal(err)
	}
	return n
}

// TestForeignHits: both kernels have the function at the same virtual address.
// The breakpoint is the VM's alone; L1 runs through it hundreds of times, unseen.
func TestForeignHits(t *testing.T) {
	l := sharedLab(t, "samekaslr")
	addr := guestSymbol(t, l, "vm0", "ksys_write")
	if other := guestSymbol(t, l, "l1", "ksys_write"); other != addr {
		t.Fatalf("ksys_write is at %#x in L1 and at %#x in L2: the lab is not what the test needs", other, addr)
	}
	ask(t, l, "l1", "exec (i=0; while [ $i -lt 2000 ]; do echo x >/dev/null; usleep 2000; i=$((i+1)); done) >/dev/null 2>&1 &")
	keepBusy(t, l, "vm0", "echo x >/dev/null; usleep 20000")
	c := connect(t, serve(t, l).addr)
	c.attach(l1, vm0)
	own := 0
	const want = 200
	for deadline := time.Now().Add(4 * time.Minute); c.foreignHits() < want; {
		if time.Now().After(deadline) {
			t.Fatalf("%d foreign hits in 4 minutes, %d own", c.foreignHits(), own)
		}
		c.setBreak(vm0, 0, addr, 1)
		s := c.cont("c")
		if s.kind != 'T' || s.signal != sigTrap || s.pid != vm0 {
			t.Fatalf("stop %q: only the VM has a breakpoint", s.text)
		}
		if pc := c.reg(vm0, s.tid, "rip"); pc != addr {
			t.Fatalf("stopped at %#x, the breakpoint is at %#x", pc, addr)
		}
		own++
		c.clearBreak(vm0, 0, addr, 1)
		c.cont(fmt.Sprintf("s:p%x.%x", vm0, s.tid)) // over it, as gdb does
	}
	t.Logf("%d foreign hits passed, %d own seen", c.foreignHits(), own)
	c.ok("D;1", "D;2")
	for _, m := range []string{"l1", "vm0"} {
		ask(t, l, m, "ping")
	}
}

// leaving are instructions that always leave an L2 under KVM, by their bytes.
var leaving = map[string][]byte{"wrmsr": {0x0f, 0x30}, "cpuid": {0x0f, 0xa2}, "hlt": {0xf4}}

// leavers are functions of a kernel that leave an L2 soon: with WRMSR for a timer
// and for the end of an interrupt, and with HLT.
var leavers = []string{"lapic_next_deadline", "native_apic_msr_eoi_write", "native_safe_halt"}

// TestStepsStayInLayer steps an L2 CPU through exits to L1: 10 000 instructions,
// from 20 places, none of which may be one of L1.
func TestStepsStayInLayer(t *testing.T) {
	const steps, parts = 10000, 20
	l := sharedLab(t, "kaslr")
	var starts []uint64
	for _, name := range leavers {
		starts = append(starts, guestSymbol(t, l, "vm0", name))
	}
	s := &stepping{pid: vm0, seen: make(map[string]int)}
	s.first, s.last = guestSymbol(t, l, "vm0", "_stext"), guestSymbol(t, l, "vm0", "_etext")
	c := connect(t, serve(t, l).addr)
	c.attach(l1, vm0)
	begin := time.Now()
	for i := range parts {
		s.run(t, c, starts[i%len(starts)], steps/parts)
	}
	t.Logf("%d steps in %.1f s, through %v", steps, time.Since(begin).Seconds(), s.seen)
	if s.seen["wrmsr"] < parts/2 || s.seen["hlt"] == 0 {
		t.Errorf("few instructions that leave for L1 were stepped: the test shows less than it should")
	}
	if s.moved < steps/2 {
		t.Errorf("only %d of %d steps moved", s.moved, steps)
	}
	c.ok("D;1", "D;2")
	checkClock(t, l, "vm0")
}

// checkClock checks that a guest's time goes on and that its timers fire: a sleep ends,
// and not too soon.
func checkClock(t *testing.T, l *lab.Lab, guest string) {
	t.Helper()
	now := func() time.Duration {
		var ns int64
		if text := ask(t, l, guest, "clock"); !strings.HasPrefix(text, "monotonic ") {
			t.Fatalf("the clock of %s: %q", guest, text)
		} else if _, err := fmt.Sscanf(text, "monotonic %d", &ns); err != nil {
			t.Fatal(err)
		}
		return time.Duration(ns)
	}
	before := now()
	ask(t, l, guest, "exec sleep 1")
	if d := now() - before; d < time.Second {
		t.Errorf("a second of %s took %v by its clock", guest, d)
	}
}

// stepping counts what steps of a guest met. Its kernel is from first to last.
type stepping struct {
	pid         int
	first, last uint64
	seen        map[string]int // instructions that leave, by name
	moved       int
}

// run lets the guest run to start and takes steps from there.
func (s *stepping) run(t *testing.T, c *client, start uint64, steps int) {
	t.Helper()
	c.setBreak(s.pid, 0, start, 1)
	stop := c.cont("c")
	if stop.pid != s.pid {
		t.Fatalf("stop %q, want machine %d", stop.text, s.pid)
	}
	c.clearBreak(s.pid, 0, start, 1)
	pc := start
	for i := range steps {
		code, err := c.readMem(s.pid, stop.tid, pc, 2)
		if err != nil {
			t.Fatalf("step %d: the instruction at %#x cannot be read: %v", i, pc, err)
		}
		for name, insn := range leaving {
			if bytes.HasPrefix(code, insn) {
				s.seen[name]++
			}
		}
		next := c.cont("s:" + fmt.Sprintf("p%x.%x", s.pid, stop.tid) + ";c")
		if next.pid != s.pid || next.tid != stop.tid || next.signal != sigTrap {
			t.Fatalf("step %d from %#x ended with %q", i, pc, next.text)
		}
		old := pc
		if pc = c.reg(s.pid, stop.tid, "rip"); pc != old {
			s.moved++
		}
		const kernelHalf = 1 << 63
		if pc >= kernelHalf && (pc < s.first || pc > s.last) {
			if name := c.monitor(fmt.Sprintf("x/1i %#x", pc)); !strings.Contains(name, "[") {
				t.Fatalf("step %d from %#x went to %#x, outside its kernel (%#x-%#x): %s",
					i, old, pc, s.first, s.last, name)
			}
		}
	}
}

// hosting finds an L1 CPU whose guest runs, letting the machines run until
// there is one.
func hosting(t *testing.T, c *client, addr uint64) (l1CPU, vcpu int) {
	t.Helper()
	c.setBreak(vm0, 0, addr, 1)
	s := c.cont("c")
	c.clearBreak(vm0, 0, addr, 1)
	if s.pid != vm0 {
		t.Fatalf("stop %q, want the VM", s.text)
	}
	var core int
	if _, err := fmt.Sscanf(s.fields["core"], "%x", &core); err != nil {
		t.Fatalf("stop %q does not say on which CPU: %v", s.text, err)
	}
	return core + 1, s.tid
}

// TestEveryLayerIsConsistent: while a CPU is in L2, L1's registers are those that
// the hypervisor saved, and what nobody saved is unavailable; a step of L1 ends
// behind the VM entry, and the VM's own registers are then those of its VMCB.
func TestEveryLayerIsConsistent(t *testing.T) {
	l := sharedLab(t, "kaslr")
	addr := guestSymbol(t, l, "vm0", "ksys_write")
	c := connect(t, serve(t, l).addr)
	c.attach(l1, vm0)
	cpu, vcpu := hosting(t, c, addr)
	saved := c.registers(l1, cpu)
	pc, ok := saved.PC()
	if !ok {
		t.Fatal("L1's program counter is not known while it hosts")
	}
	if code, err := c.readMem(l1, cpu, pc-3, 3); err != nil || !bytes.Equal(code, arch.X86.GuestEntry[0]) {
		t.Errorf("in front of L1's program counter %#x stands % x (%v), not VMRUN", pc, code, err)
	}
	if _, known := saved.Get("r12"); known {
		t.Error("r12 of L1 is in no save area, but it has a value")
	}
	if v, known := c.registers(vm0, vcpu).Get("r12"); !known {
		t.Errorf("r12 of the running vCPU is not known (%#x)", v)
	}
	s := c.cont(fmt.Sprintf("s:p%x.%x;c", l1, cpu))
	if s.pid != l1 || s.tid != cpu {
		t.Fatalf("step of L1 ended with %q", s.text)
	}
	if at := c.reg(l1, cpu, "rip"); at != pc {
		t.Errorf("L1 is at %#x after the exit, want %#x, behind VMRUN", at, pc)
	}
	if _, known := c.registers(l1, cpu).Get("r12"); !known {
		t.Error("r12 of L1 is not known although it runs")
	}
	if parked := c.registers(vm0, vcpu); parked != nil {
		if _, known := parked.Get("cr3"); !known {
			t.Error("cr3 of the parked vCPU is not known")
		}
	}
	c.ok("D;1", "D;2")
}

// TestWatchpointPerMachine watches a variable that L2's timer changes. L1 has one of its
// own at the same address, and its timer changes that, unseen.
func TestWatchpointPerMachine(t *testing.T) {
	l := sharedLab(t, "samekaslr")
	addr := guestSymbol(t, l, "vm0", "jiffies_64")
	if other := guestSymbol(t, l, "l1", "jiffies_64"); other != addr {
		t.Fatalf("jiffies_64 is at %#x in L1 and at %#x in L2: the lab is not what the test needs", other, addr)
	}
	c := connect(t, serve(t, l).addr)
	c.attach(l1, vm0)
	for range 3 {
		old, err := c.readMem(vm0, 1, addr, 8)
		if err != nil {
			t.Fatal(err)
		}
		c.setBreak(vm0, 2, addr, 8)
		s := c.cont("c")
		c.clearBreak(vm0, 2, addr, 8)
		if s.pid != vm0 || s.fields["watch"] == "" {
			t.Fatalf("stop %q, want a watchpoint of the VM", s.text)
		}
		if now, err := c.readMem(vm0, s.tid, addr, 8); err != nil || bytes.Equal(now, old) {
			t.Errorf("jiffies_64 was % x and is % x (%v)", old, now, err)
		}
	}
	if c.foreignHits() == 0 {
		t.Error("L1 never wrote there: the test shows less than it should")
	}
	c.ok("D;1", "D;2")
}

// TestInterrupt: Ctrl-C stops a running machine, and it runs on afterwards.
func TestInterrupt(t *testing.T) {
	l := sharedLab(t, "kaslr")
	c := connect(t, serve(t, l).addr)
	c.attach(l1, vm0)
	for range 5 {
		c.resume("c")
		c.runs(300 * time.Millisecond)
		c.interrupt()
		s, err := c.wait(stopLimit)
		if err != nil || s.signal != sigInt {
			t.Fatalf("after an interrupt: %q, %v", s.text, err)
		}
	}
	c.ok("D;1", "D;2")
	ask(t, l, "vm0", "ping")
}

// TestOutsidePause: somebody else stops the machine while a client lets it run, over QMP
// or to copy it. It stands until they let it run, the client is not disturbed, and can
// take it.
func TestOutsidePause(t *testing.T) {
	l := sharedLab(t, "kaslr")
	addr := guestSymbol(t, l, "vm0", "ksys_write")
	keepBusy(t, l, "vm0", "echo x >/dev/null; usleep 20000")
	c := connect(t, serve(t, l).addr)
	c.attach(l1, vm0)
	c.resume("c")
	c.runs(200 * time.Millisecond)
	checkState := func(want string) {
		t.Helper()
		if got := runState(t, l); got != want {
			t.Fatalf("the machine is %s, want %s", got, want)
		}
	}
	qmpCommand(t, l, "stop")
	c.runs(500 * time.Millisecond)
	checkState("paused")
	if !strings.Contains(c.console.String(), "somebody else stopped the machine") {
		t.Errorf("the client was told %q", c.console.String())
	}
	qmpCommand(t, l, "cont")
	c.runs(500 * time.Millisecond)
	checkState("running")

	r := nestdbg(t, on(l, "snapshot", "save", filepath.Join(t.TempDir(), "snap"))...)
	if r.status != 0 || strings.Contains(r.stdout, "different moments") {
		t.Errorf("snapshot: %+v", r)
	}
	c.runs(200 * time.Millisecond)
	checkState("running")

	qmpCommand(t, l, "stop")
	c.runs(200 * time.Millisecond)
	c.interrupt()
	s, err := c.wait(stopLimit)
	if err != nil || s.signal != sigInt {
		t.Fatalf("after an interrupt: %q, %v", s.text, err)
	}
	checkState("paused")
	c.setBreak(vm0, 0, addr, 1)
	if s := c.cont("c"); s.pid != vm0 || s.signal != sigTrap {
		t.Errorf("stop %q, want the breakpoint of the VM", s.text)
	}
	c.clearBreak(vm0, 0, addr, 1)
	c.ok("D;1", "D;2")
	checkState("running")
	ask(t, l, "vm0", "ping")
}

// TestWrittenCodeRuns: code written through nestdbg is what the CPU executes
// next, although TCG has translated the old one already.
func TestWrittenCodeRuns(t *testing.T) {
	l := sharedLab(t, "kaslr")
	addr := guestSymbol(t, l, "vm0", "__do_sys_getppid")
	if got := ask(t, l, "vm0", "exec echo $PPID"); strings.TrimSpace(got) == "4242" {
		t.Fatalf("the shell's parent is %s by chance", got)
	}
	patch := func(code []byte) []byte {
		c := connect(t, serve(t, l).addr)
		c.attach(vm0)
		old, err := c.readMem(vm0, 1, addr, len(code))
		if err != nil {
			t.Fatal(err)
		}
		if err := c.writeMem(vm0, 1, addr, code); err != nil {
			t.Fatal(err)
		}
		c.ok("D;2")
		c.close()
		return old
	}
	old := patch([]byte{0xb8, 0x92, 0x10, 0, 0, 0xc3}) // mov $4242, %eax; ret
	got := ask(t, l, "vm0", "exec echo $PPID")
	patch(old)
	if strings.TrimSpace(got) != "4242" {
		t.Errorf("the shell's parent is %q, the patched kernel would say 4242", got)
	}
	if got := ask(t, l, "vm0", "exec echo $PPID"); strings.TrimSpace(got) == "4242" {
		t.Error("the patch was taken back, but it still runs")
	}
}
