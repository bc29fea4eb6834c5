package qemu

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"nestdbg/internal/arch"
	"nestdbg/internal/mem"
)

// resetVector is where SeaBIOS is entered; its first instruction is a far jump to
// biosEntry (F000:E05B, the POST entry point of the PC's BIOS).
const (
	resetVector = 0xfff0 // EIP; linear 0xffff_fff0
	biosEntry   = 0xfe05b
)

func checkRunning(t *testing.T, m *Machine, want bool) {
	t.Helper()
	running, state, err := m.Status(deadline(t, 5*time.Second))
	if err != nil || running != want {
		t.Errorf("running %v (%s), %v; want %v", running, state, err, want)
	}
}

// awaitRunning waits until QEMU has read that it is to run.
func awaitRunning(t *testing.T, m *Machine) {
	t.Helper()
	for ctx := deadline(t, 5*time.Second); ; {
		if running, state, err := m.Status(ctx); err != nil {
			t.Fatalf("it does not run (%s): %v", state, err)
		} else if running {
			return
		}
	}
}

// stubs are the ways in which a QEMU may have a stub.
func stubs() map[string][]string {
	return map[string][]string{
		"ours":        nil,
		"unix":        {"-gdb", "unix:DIR/gdb,server=on,wait=off"},
		"relative":    {"-gdb", "unix:gdb,server=on,wait=off"},
		"tcp":         {"-gdb", "tcp:127.0.0.1:" + freePort()},
		"chardev":     {"-chardev", "socket,id=gs,path=DIR/gdb,server=on,wait=off", "-gdb", "chardev:gs"},
		"pretty ours": {"-qmp-pretty", "unix:DIR/pretty,server=on,wait=off"},
	}
}

func freePort() string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "0"
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

func TestStubLeavesTheMachineAsFound(t *testing.T) {
	t.Parallel()
	for name, args := range stubs() {
		t.Run(name, func(t *testing.T) {
			m := start(t, append([]string{"-M", "q35", "-m", "32M"}, args...)...).open(t)
			ctx := deadline(t, 30*time.Second)
			devices, err := m.HMP(ctx, "info chardev")
			if err != nil {
				t.Fatal(err)
			}
			for _, running := range []bool{false, true, true, false} {
				if err := map[bool]func() error{
					false: func() error { return m.StopMachine(ctx) },
					true:  func() error { return m.ContMachine(ctx) },
				}[running](); err != nil {
					t.Fatal(err)
				}
				s := openStub(t, m)
				checkRunning(t, m, false)
				if s.WasRunning() != running || s.CPUs() != 1 {
					t.Errorf("was running %v, %d CPUs", s.WasRunning(), s.CPUs())
				}
				if err := s.SetStepMask(ctx, StepEnable); err != nil {
					t.Error(err)
				}
				if err := s.Close(ctx); err != nil {
					t.Error(err)
				}
				checkRunning(t, m, running)
			}
			after, _ := m.HMP(ctx, "info chardev")
			if strings.Count(after, ownStub) > 0 || name != "ours" && strings.Count(devices, "gdb") > strings.Count(after, "gdb") {
				t.Errorf("character devices before:\n%s\nafter:\n%s", devices, after)
			}
		})
	}
}

// checkPC reads where a CPU is.
func checkPC(t *testing.T, s *Stub, cpu int, want uint64) {
	t.Helper()
	r, err := s.Registers(deadline(t, 5*time.Second), cpu)
	if err != nil {
		t.Fatal(err)
	}
	if pc, ok := r.PC(); !ok || pc != want {
		t.Errorf("CPU %d is at %#x, want %#x", cpu, pc, want)
	}
}

func checkStop(t *testing.T, stop Stop, err error, want Stop) {
	t.Helper()
	if err != nil || stop != want {
		t.Fatalf("stop %+v, %v; want %+v", stop, err, want)
	}
}

// startTwo is a stopped machine with two CPUs, the second of which waits to be
// started by the first.
func startTwo(t *testing.T) (*Machine, *Stub) {
	m := start(t, "-M", "q35", "-m", "32M", "-smp", "2").open(t)
	s := openStub(t, m)
	t.Cleanup(func() { s.Close(deadline(t, 5*time.Second)) })
	return m, s
}

func TestStepAndBreak(t *testing.T) {
	t.Parallel()
	ctx := deadline(t, 30*time.Second)
	m, s := startTwo(t)
	checkPC(t, s, 0, resetVector)
	trap := Stop{Signal: 5, Watch: NoWatch}
	stop, err := s.StepOne(ctx, 0)
	checkStop(t, stop, err, trap)
	checkPC(t, s, 0, biosEntry&0xffff)
	if err := s.SetBreak(ctx, BreakHardware, biosEntry, 1); err != nil {
		t.Fatal(err)
	}
	if _, err := m.HMP(ctx, "system_reset"); err != nil {
		t.Fatal(err)
	}
	if err := s.Resume(ctx, []Action{{CPU: 0}}); err != nil {
		t.Fatal(err)
	}
	stop, err = s.Wait(ctx)
	checkStop(t, stop, err, trap)
	checkPC(t, s, 0, biosEntry&0xffff)
	if err := s.ClearBreak(ctx, BreakHardware, biosEntry, 1); err != nil {
		t.Error(err)
	}
	// The other CPU has no instruction to step.
	if stop, err := s.StepOne(deadline(t, 50*time.Millisecond), 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("step of a halted CPU: %+v, %v", stop, err)
	}
}

func TestInterrupt(t *testing.T) {
	t.Parallel()
	ctx := deadline(t, 30*time.Second)
	m, s := startTwo(t)
	if err := s.Interrupt(); err != nil { // of a machine that stands still
		t.Fatal(err)
	}
	checkPC(t, s, 0, resetVector)
	if err := s.Continue(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Registers(ctx, 0); err == nil {
		t.Error("registers of a machine that runs")
	}
	if err := s.Continue(ctx); err == nil {
		t.Error("resumed twice")
	}
	awaitRunning(t, m)
	time.AfterFunc(20*time.Millisecond, func() { s.Interrupt() })
	stop, err := s.Wait(ctx)
	stop.CPU = 0 // whichever QEMU names
	checkStop(t, stop, err, Stop{Signal: 2, Watch: NoWatch})
	checkRunning(t, m, false)
	if _, err := s.Wait(ctx); err == nil {
		t.Error("a second stop")
	}
}

func TestStubWatchpoint(t *testing.T) {
	t.Parallel()
	m := start(t, "-M", "q35", "-m", "32M").open(t)
	ctx := deadline(t, 30*time.Second)
	s := openStub(t, m)
	defer s.Close(ctx)
	const equipment = 0x410 // BIOS data area: equipment word, written early in POST
	if err := s.SetBreak(ctx, WatchWrite, equipment, 2); err != nil {
		t.Fatal(err)
	}
	if err := s.Continue(ctx); err != nil {
		t.Fatal(err)
	}
	stop, err := s.Wait(ctx)
	if want := (Stop{Signal: 5, Watch: WatchWrite, Addr: equipment}); err != nil || stop != want {
		t.Errorf("stop %+v, %v; want %+v", stop, err, want)
	}
	if err := s.ClearBreak(ctx, WatchWrite, equipment, 2); err != nil {
		t.Error(err)
	}
	if err := s.ClearBreak(ctx, WatchWrite, equipment, 2); err == nil {
		t.Error("cleared twice")
	}
}

// TestWaitIsInterruptible gives up waiting, waits again, and closes a machine that
// runs.
func TestWaitIsInterruptible(t *testing.T) {
	t.Parallel()
	m := start(t, "-M", "q35", "-m", "32M").open(t)
	ctx := deadline(t, 30*time.Second)
	s := openStub(t, m)
	if err := s.Continue(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Wait(deadline(t, 30*time.Millisecond)); err == nil || errors.Is(err, ErrGone) {
		t.Errorf("wait: %v", err)
	}
	if err := s.Interrupt(); err != nil {
		t.Fatal(err)
	}
	if stop, err := s.Wait(ctx); err != nil || stop.Signal != 2 {
		t.Errorf("stop %+v, %v", stop, err)
	}
	if err := s.Continue(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.Detach(ctx); err != nil {
		t.Fatal(err)
	}
	checkRunning(t, m, true)
}

func TestWriteRegister(t *testing.T) {
	t.Parallel()
	m := start(t, "-M", "q35", "-m", "32M", "-smp", "2").open(t)
	ctx := deadline(t, 30*time.Second)
	s := openStub(t, m)
	defer s.Close(ctx)
	values := map[string]uint64{
		"rax": 0x11223344, "rsp": 0x55667788, "rip": 0xe05b, "eflags": 0x202, "cr2": 0x1000,
		"fs_base": 0x1234000, "gs_base": 0x5678000, "k_gs_base": 0x8000000, "cr3": 0x1000, "mxcsr": 0x1fa0,
	}
	for name, v := range values {
		r := arch.NewRegisters(arch.X86)
		r.Set(name, v)
		i, _ := arch.X86.Index(name)
		if err := s.WriteRegister(ctx, 1, i, r.Bytes(i)); err != nil {
			t.Error(err)
			continue
		}
		for cpu, same := range []bool{false, true} {
			got, err := s.Registers(ctx, cpu)
			if err != nil {
				t.Fatal(err)
			}
			if n, ok := got.Get(name); !ok || (n == v) != same {
				t.Errorf("%s of CPU %d is %#x", name, cpu, n)
			}
		}
	}
	rax, _ := arch.X86.Index("rax")
	hidden, _ := arch.X86.Index("nested_cr3")
	high := []byte{0, 0, 0, 0, 1, 0, 0, 0} // QEMU drops it in 16-bit code
	for name, err := range map[string]error{
		"lost half":    s.WriteRegister(ctx, 0, rax, high),
		"hidden":       s.WriteRegister(ctx, 0, hidden, high),
		"no register":  s.WriteRegister(ctx, 0, -1, high),
		"wrong length": s.WriteRegister(ctx, 0, rax, high[:4]),
		"no CPU":       s.WriteRegister(ctx, 2, rax, high),
	} {
		if err == nil {
			t.Error(name, "accepted")
		}
	}
}

// TestWritePhysRefused writes where the machine has no RAM, or does not let it be
// written.
func TestWritePhysRefused(t *testing.T) {
	t.Parallel()
	m := start(t, backend("q35", "64M", "memory-backend-memfd,share=on")...).open(t)
	ctx := deadline(t, 30*time.Second)
	s := openStub(t, m)
	defer s.Close(ctx)
	r := m.RAM().PhysRanges()
	for _, at := range []uint64{r[0].Last + 1, r[len(r)-1].Last + 1, 0xfffffff0, 1 << 62} {
		if err := s.WritePhys(ctx, mem.Phys(at), []byte{1}); !errors.Is(err, mem.ErrNoRAM) {
			t.Errorf("write at %#x: %v", at, err)
		}
		if _, err := s.ReadPhys(make([]byte, 1), mem.Phys(at)); !errors.Is(err, mem.ErrNoRAM) {
			t.Errorf("read at %#x: %v", at, err)
		}
	}
	long := make([]byte, 3*stubChunk+5)
	for i := range long {
		long[i] = byte(i * 7)
	}
	if err := s.WritePhys(ctx, 0x12345, long); err != nil {
		t.Fatal(err)
	}
	checkBytes(t, m, s, 0x12345, long)
}

// TestStubOfAnEndedMachine: QEMU accepts to run a machine that has ended, and does not.
func TestStubOfAnEndedMachine(t *testing.T) {
	t.Parallel()
	m := start(t, "-M", "q35", "-m", "32M", "-no-reboot", "-no-shutdown").open(t)
	ctx := deadline(t, 30*time.Second)
	s := openStub(t, m)
	if err := s.Continue(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := m.HMP(ctx, "system_reset"); err != nil { // which -no-reboot makes a shutdown
		t.Fatal(err)
	}
	if stop, err := s.Wait(ctx); err != nil || stop.Signal != 3 {
		t.Fatalf("stop %+v, %v", stop, err)
	}
	for range 2 { // it stays so, and who attaches now is told too
		if err := s.Continue(ctx); err == nil || !strings.Contains(err.Error(), `"shutdown"`) {
			t.Fatalf("continue: %v", err)
		}
		begin := time.Now()
		if err := s.Close(ctx); err != nil || time.Since(begin) > 2*time.Second {
			t.Errorf("close: %v after %v", err, time.Since(begin))
		}
		s = openStub(t, m)
	}
	if err := m.SetEndings(ctx, Endings{Reboot: "reset", Shutdown: "pause"}); err != nil {
		t.Fatal(err)
	}
	if err := m.ResetMachine(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.Continue(ctx); err != nil {
		t.Errorf("after a reset: %v", err)
	}
	if err := s.Detach(ctx); err != nil {
		t.Error(err)
	}
	checkRunning(t, m, true)
}

// TestStubOfASleepingMachine: a machine that goes to sleep stands, and the stub does not
// say so. It is told when somebody interrupts it, and runs when it was woken.
func TestStubOfASleepingMachine(t *testing.T) {
	t.Parallel()
	m := start(t, "-M", "q35", "-m", "32M").open(t)
	ctx := deadline(t, 60*time.Second)
	s := openStub(t, m)
	if err := s.Continue(ctx); err != nil {
		t.Fatal(err)
	}
	for state := ""; state != "suspended"; { // from when the firmware has set up the ACPI registers
		var err error
		if _, err = m.HMP(ctx, "o/h 0x604 0x2400"); err == nil { // PM1a control: sleep, type S3
			_, state, err = m.Status(ctx)
		}
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err := s.Interrupt(); err != nil {
		t.Fatal(err)
	}
	stop, err := s.Wait(ctx)
	checkStop(t, stop, err, Stop{Signal: 2, Watch: NoWatch})
	if err := s.Continue(ctx); err == nil || !strings.Contains(err.Error(), "system_wakeup") {
		t.Errorf("continue: %v", err)
	}
	if _, err := m.HMP(ctx, "system_wakeup"); err != nil {
		t.Fatal(err)
	}
	awaitRunning(t, m) // and nobody has told the stub
	if err := s.Continue(ctx); err != nil {
		t.Fatal(err)
	}
	awaitRunning(t, m)
	if err := s.Interrupt(); err != nil {
		t.Fatal(err)
	}
	if stop, err := s.Wait(ctx); err != nil || stop.Signal != 2 {
		t.Errorf("stop %+v, %v", stop, err)
	}
	if err := s.Close(ctx); err != nil {
		t.Error(err)
	}
}

// TestRegain: a machine that somebody let run behind the stub's back stands again, and
// runs and stops as before.
func TestRegain(t *testing.T) {
	t.Parallel()
	m, s := startTwo(t)
	ctx := deadline(t, 30*time.Second)
	for range 3 {
		if err := s.Continue(ctx); err != nil {
			t.Fatal(err)
		}
		awaitRunning(t, m)
		if err := m.StopMachine(ctx); err != nil {
			t.Fatal(err)
		}
		if stop, err := s.Wait(ctx); err != nil || stop.Signal != 2 {
			t.Fatalf("stop %+v, %v", stop, err)
		}
		for _, paused := range []bool{true, false} {
			if got, err := s.Paused(ctx); err != nil || got != paused {
				t.Errorf("paused %v, %v", got, err)
			}
			if paused {
				if err := m.ContMachine(ctx); err != nil {
					t.Fatal(err)
				}
			}
		}
		for range 2 { // the second time there is nothing to do
			if err := s.Regain(ctx); err != nil {
				t.Fatal(err)
			}
			checkRunning(t, m, false)
		}
		if _, err := s.Registers(ctx, 0); err != nil {
			t.Error(err)
		}
	}
}
