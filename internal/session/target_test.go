package session_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"nestdbg/internal/gdbserver"
	"nestdbg/internal/mem"
	"nestdbg/internal/nested/nestedtest"
	"nestdbg/internal/session"
)

func TestMachineNames(t *testing.T) {
	s := newSim(1)
	one := session.New(s)
	if _, err := one.Machine(""); err == nil {
		t.Error("a machine before the first look")
	}
	if _, err := one.Look(t.Context(), session.Full); err != nil {
		t.Fatal(err)
	}
	if m, err := one.Machine(""); err != nil || m.Name != "vm0" {
		t.Errorf("the only guest: %v, %v", m, err)
	}
	_, err := one.Machine("vm7")
	var unknown *session.UnknownMachineError
	if want := `no machine "vm7"; there are: l1, vm0`; !errors.As(err, &unknown) || err.Error() != want {
		t.Errorf("%v", err)
	}

	s.w.Guest().CPU(text, stack)
	if _, err := one.Look(t.Context(), session.Full); err != nil {
		t.Fatal(err)
	}
	_, err = one.Machine("")
	if want := "several machines, say which with -m: l1, vm0, vm1"; !errors.As(err, &unknown) || err.Error() != want {
		t.Errorf("%v", err)
	}
	if m, err := one.Machine("l1"); err != nil || one.Number(m) != l1 {
		t.Errorf("l1: %v", err)
	}
}

func TestAttachAndDetach(t *testing.T) {
	s := newSim(1)
	s.enterGuest(0)
	s.running = true
	one := session.New(s)
	if _, err := one.Look(t.Context(), session.Full); err != nil {
		t.Fatal(err)
	}
	target := session.NewDebugger(one, s.open, quiet).Target(nil, nil)
	ctx := t.Context()
	if got := target.Core.Processes(ctx); !slices.Equal(got, []int{l1, vm0}) || s.calls != 0 {
		t.Errorf("processes %v, %d calls of the stub", got, s.calls)
	}
	for _, pid := range []int{l1, vm0} {
		if err := target.Core.Attach(ctx, pid); err != nil {
			t.Fatal(err)
		}
	}
	if err := target.Core.Attach(ctx, 9); err == nil {
		t.Error("attached to a machine that is not there")
	}
	if s.calls != 1 {
		t.Errorf("%d calls of the stub for one taking", s.calls)
	}
	set(t, target, vm0, text+0x22)
	if err := target.Core.Detach(ctx, vm0); err != nil || len(s.traps) != 0 || s.closed != "" {
		t.Errorf("after the first: %d traps, %q, %v", len(s.traps), s.closed, err)
	}
	if err := target.Core.Detach(ctx, l1); err != nil || s.closed != "running" {
		t.Errorf("after the last: %q, %v", s.closed, err)
	}
}

func TestClose(t *testing.T) {
	s := newSim(1)
	s.running = true
	target := session.NewDebugger(session.New(s), s.open, quiet).Target(nil, nil)
	target.Core.Close() // nothing is attached
	if s.closed != "" {
		t.Errorf("left %s", s.closed)
	}
	if err := target.Core.Attach(t.Context(), l1); err != nil {
		t.Fatal(err)
	}
	set(t, target, l1, text+0x300)
	target.Core.Close()
	if s.closed != "running" || len(s.traps) != 0 {
		t.Errorf("left %q, %d traps", s.closed, len(s.traps))
	}
}

func TestGuestEnds(t *testing.T) {
	s := newSim(1)
	s.exits[text+0x28] = -1
	d := s.take(t)
	target := d.Target(nil, nil)
	for _, pid := range []int{l1, vm0} {
		if err := target.Core.Attach(t.Context(), pid); err != nil {
			t.Fatal(err)
		}
	}
	all := []gdbserver.Action{{PID: -1, TID: -1}}
	s.hook = func() {
		s.hook = nil
		s.w.RAM.Put(s.cpus[0].guest.Control, make([]byte, 4096))
	}
	set(t, target, l1, text+0x204)
	stop, err := target.Resume.Resume(t.Context(), all)
	if err != nil || stop.PID != l1 || stop.Reason != gdbserver.SwBreak || stop.Text != "[nestdbg: machine vm0 ended]\n" {
		t.Fatalf("%+v, %v", stop, err)
	}
	stop, err = target.Resume.Resume(t.Context(), all)
	if err != nil || stop.PID != vm0 || stop.Reason != gdbserver.Exited {
		t.Fatalf("the next resumption: %+v, %v", stop, err)
	}
	stop, err = target.Resume.Resume(t.Context(), all)
	if err != nil || stop.PID != l1 || stop.Reason != gdbserver.SwBreak {
		t.Fatalf("after that: %+v, %v", stop, err)
	}
}

func TestThreadsAndWhatTheyDo(t *testing.T) {
	s := newSim(3)
	s.enterGuest(0)
	s.enterGuest(1)
	s.cpus[1].halted = true
	d := s.take(t)
	target := d.Target(nil, nil)
	var got []string
	for _, pid := range []int{l1, vm0} {
		threads, err := target.Core.Threads(t.Context(), pid)
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range threads {
			got = append(got, x.Name+": "+strings.SplitN(x.Extra, ";", 2)[0])
		}
	}
	want := []string{
		"l1 CPU 0: in vm0 CPU 0", "l1 CPU 1: in vm0 CPU 1", "l1 CPU 2: running",
		"vm0 CPU 0: running on L1 CPU 0", "vm0 CPU 1: halted on L1 CPU 1", "vm0 CPU 2: parked after INTR",
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q\nwant %q", got, want)
	}
	if _, err := target.Core.Threads(t.Context(), 9); err == nil {
		t.Error("threads of a machine that is not there")
	}
}

func TestWriteRegister(t *testing.T) {
	s := newSim(2)
	s.enterGuest(0)
	d := s.take(t)
	target := d.Target(nil, nil)
	value := []byte{1, 2, 3, 4, 5, 6, 7, 8}
	for _, c := range []struct {
		pid, tid int
		ok       bool
	}{{vm0, 1, true}, {l1, 2, true}, {l1, 1, false}, {vm0, 2, false}, {9, 1, false}} {
		before := s.calls
		err := target.Registers.WriteRegister(t.Context(), c.pid, c.tid, 0, value)
		if (err == nil) != c.ok || s.calls-before != map[bool]int{true: 1}[c.ok] {
			t.Errorf("machine %d CPU %d: %v, %d calls of the stub", c.pid, c.tid-1, err, s.calls-before)
		}
		if !c.ok {
			continue
		}
		r, err := target.Core.Registers(t.Context(), c.pid, c.tid)
		if v, _ := r.Get("rax"); err != nil || v != 0x0807060504030201 {
			t.Errorf("machine %d CPU %d: rax %#x, %v", c.pid, c.tid-1, v, err)
		}
	}
}

// A write over the end of what is mapped writes nothing.
func TestWriteMemory(t *testing.T) {
	s := newSim(1)
	d := s.take(t)
	end := text + nestedtest.TextPages<<12
	for _, pid := range []int{l1, vm0} {
		target := d.Target(nil, nil)
		write := func(a uint64, p string) error {
			return target.Memory.WriteMemory(t.Context(), pid, 1, a, []byte(p))
		}
		read := func(a uint64) string {
			b := make([]byte, 8)
			n, _ := target.Core.ReadMemory(t.Context(), pid, 1, b, a)
			return string(b[:n])
		}
		s.writes = nil
		if err := write(end-4, "overflow"); !errors.Is(err, mem.ErrFault) || len(s.writes) != 0 {
			t.Errorf("machine %d: %v, %d writes", pid, err, len(s.writes))
		}
		if got := read(end - 4); got != "\x00\x00\x00\x00" {
			t.Errorf("machine %d: %q was written", pid, got)
		}
		if err := write(text+0x1ffc, "twopages"); err != nil || read(text+0x1ffc) != "twopages" {
			t.Errorf("machine %d: %v, %q", pid, err, read(text+0x1ffc))
		}
	}
	l1Machine, _ := cpuOf(t, d, "l1", 0)
	s.writes = nil
	if err := d.WritePhys(t.Context(), l1Machine, []byte("1234"), 0x3ffffe); !errors.Is(err, mem.ErrFault) || len(s.writes) != 0 {
		t.Errorf("the last bytes of RAM and more: %v, %d writes", err, len(s.writes))
	}
}

// Without control nothing is written, and nothing falls over.
func TestWriteWithoutControl(t *testing.T) {
	s := newSim(1)
	one := session.New(s)
	if _, err := one.Look(t.Context(), session.Full); err != nil {
		t.Fatal(err)
	}
	d := session.NewDebugger(one, s.open, quiet)
	for _, held := range []bool{false, true, false} {
		if held {
			if err := d.Take(t.Context()); err != nil {
				t.Fatal(err)
			}
		} else if err := d.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.writes = nil
		m, c := cpuOf(t, d, "l1", 0)
		virt := d.WriteVirt(t.Context(), m, c, []byte{1}, mem.Virt(text))
		phys := d.WritePhys(t.Context(), m, []byte{1}, 0x1000)
		want := map[bool]int{true: 2}[held]
		if d.Holds() != held || (virt == nil) != held || (phys == nil) != held || len(s.writes) != want {
			t.Errorf("held %v (%v): %v, %v, %d writes", held, d.Holds(), virt, phys, len(s.writes))
		}
	}
}

func TestRootPhys(t *testing.T) {
	s := newSim(1)
	d := s.take(t)
	m, _ := cpuOf(t, d, "vm0", 0)
	g := s.cpus[0].guest.Guest
	a := g.TextPhys(text + 0x1010)
	want, _, _ := g.NPT.Lookup(uint64(a))
	if pa, n, err := session.RootPhys(m, a); pa != want || n != 4096-0x10 || err != nil {
		t.Errorf("%#x, %#x bytes, %v; want %#x", pa, n, err, want)
	}
	if _, _, err := session.RootPhys(m, 0x90000000); !errors.Is(err, mem.ErrFault) {
		t.Errorf("not mapped: %v", err)
	}
}
