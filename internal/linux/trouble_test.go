package linux

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nestdbg/internal/mem"
)

// TestTroubles: what kernels print, and what only looks like it.
func TestTroubles(t *testing.T) {
	for _, c := range []struct {
		name, log, want string // want: "kind@record CPU PID" of each
	}{
		{"nothing", "Linux version 6.1.0\nsystemd[1]: Started", ""},
		{"sysrq c", "sysrq: Trigger a crash\nKernel panic - not syncing: sysrq triggered crash\n" +
			"CPU: 1 PID: 87 Comm: sh Not tainted 6.1.0 #1\nHardware name: QEMU\nCPU: 3 PID: 3 Comm: x", "panic@1 1 87"},
		{"an oops is one, the panic behind it another", "BUG: kernel NULL pointer dereference, address: 0000000000000000\n" +
			"#PF: supervisor write access in kernel mode\nOops: 0002 [#1] PREEMPT SMP NOPTI\nCPU: 0 PID: 200 Comm: a PID: 7 Not tainted\n" +
			"---[ end trace 0000000000000000 ]---\nKernel panic - not syncing: Fatal exception", "oops@0 0 200;panic@5 -1 -1"},
		{"two oopses", "Oops: 0002 [#1] SMP\n---[ end trace 0 ]---\ninvalid opcode: 0000 [#2] SMP", "oops@0 -1 -1;oops@2 -1 -1"},
		{"since 6.10", "Oops: general protection fault, probably for non-canonical address 0x1: 0000 [#1] PREEMPT\n" +
			"CPU: 2 UID: 0 PID: 9 Comm: b", "oops@0 2 9"},
		{"arm64", "Internal error: Oops: 0000000096000004 [#1] SMP", "oops@0 -1 -1"},
		{"hangs", "watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [sh:12]\nNMI watchdog: Watchdog detected hard LOCKUP on cpu 1\n" +
			"rcu: INFO: rcu_preempt self-detected stall on CPU\nINFO: task sh:12 blocked for more than 120 seconds.",
			"lockup@0 -1 -1;lockup@1 -1 -1;stall@2 -1 -1;hung task@3 -1 -1"},
		{"ends", "reboot: Restarting system\nreboot: Power down", "restart@0 -1 -1;power down@1 -1 -1"},
		{"a program's word", "user:Kernel panic - not syncing: no\nuser:reboot: Restarting system", ""},
		{"in the middle", "x Kernel panic - not syncing: no\nINFO: task of the day\nrcu: INFO: nothing", ""},
		{"a name with a line of its own", "x\x00CPU: 1 PID: 1 Comm: ", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got []string
			for _, x := range Troubles(logOf(c.log)) {
				got = append(got, fmt.Sprintf("%v@%d %d %d", x.Kind, x.Record.Seq, x.CPU, x.PID))
			}
			if d := cmp.Diff(c.want, strings.Join(got, ";")); d != "" {
				t.Error(d)
			}
		})
	}
}

// logOf makes records of the kernel's, or behind "user:" of a program.
func logOf(text string) (out []LogRecord) {
	for i, line := range strings.Split(text, "\n") {
		r := LogRecord{Seq: uint64(i), Text: line}
		if s, ok := strings.CutPrefix(line, "user:"); ok {
			r.Text, r.Facility = s, 1
		}
		out = append(out, r)
	}
	return out
}

// TestTroublesAreBounded: a log of nothing else.
func TestTroublesAreBounded(t *testing.T) {
	log := logOf(strings.Repeat("kernel BUG at x\n---[ end trace\n", 3*troublesMax))
	if got := Troubles(log); len(got) != troublesMax || got[0].Record.Seq != 0 {
		t.Errorf("%d troubles", len(got))
	}
}

func FuzzTroubles(f *testing.F) {
	f.Add("Oops: 0002 [#1] SMP\nCPU: 0 PID: 200 Comm: x\nKernel panic - not syncing: x")
	f.Fuzz(func(t *testing.T, text string) {
		log := logOf(text)
		for _, x := range Troubles(log) {
			if x.Record.Seq >= uint64(len(log)) || x.Kind < Panic || x.Kind > PowerDown || x.CPU < -1 || x.PID < -1 || (x.CPU < 0) != (x.PID < 0) {
				t.Errorf("%+v", x)
			}
		}
	})
}

func TestPanicCPU(t *testing.T) {
	for _, c := range []struct {
		value uint32
		want  int
		ok    bool
	}{{0xffffffff, 0, false}, {0, 0, true}, {3, 3, true}, {1 << 20, 0, false}} {
		f := newFake(t, fakeLogTypes)
		f.variable("panic_cpu", 4).put(0, binary.LittleEndian.AppendUint32(nil, c.value))
		if got, ok := f.find().PanicCPU(); got != c.want || ok != c.ok {
			t.Errorf("%#x: %d, %v", c.value, got, ok)
		}
	}
}

func TestJiffies(t *testing.T) {
	f := newFake(t, fakeLogTypes)
	f.variable("jiffies_64", 8).put64(0, 4294667296)
	if got, err := f.find().Jiffies(); got != 4294667296 || err != nil {
		t.Errorf("%d, %v", got, err)
	}
	if got, err := newFake(t, fakeLogTypes).find().Jiffies(); err == nil {
		t.Errorf("without the variable: %d", got)
	}
}

func TestVCPUShutDown(t *testing.T) {
	const types = fakeLogTypes + "struct kvm_vcpu { int cpu; ptr run; }\nstruct kvm_run { long flags; int exit_reason; }\n"
	for reason, want := range map[uint64]bool{2: false, 8: true} {
		f := newFake(t, types)
		run := f.make("kvm_run").set("exit_reason", reason)
		v := f.make("kvm_vcpu").set("run", run.va)
		lost := f.make("kvm_vcpu").set("run", 0x1000)
		k := f.find()
		if got, err := k.VCPUShutDown(mem.Virt(v.va)); got != want || err != nil {
			t.Errorf("reason %d: %v, %v", reason, got, err)
		}
		if got, err := k.VCPUShutDown(mem.Virt(lost.va)); !errors.Is(err, mem.ErrFault) {
			t.Errorf("a run that is nowhere: %v, %v", got, err)
		}
	}
	if _, err := newFake(t, fakeLogTypes).find().VCPUShutDown(0x1000); err == nil {
		t.Error("no error without types")
	}
}
