// Package gdbservertest has a Target that is a few toy machines: memory, threads
// that execute a handful of x86 instructions, breakpoints. It is enough for a
// real gdb to debug.
package gdbservertest

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"nestdbg/internal/arch"
	"nestdbg/internal/gdbserver"
	"nestdbg/internal/mem"
)

// Segment is virtual memory of a machine.
type Segment struct {
	Base uint64
	Data []byte
}

// Machine is a toy. Each element of CPUs is a thread, numbered from 1; each of
// Inert one that does not run, numbered from FirstInert.
type Machine struct {
	PID       int
	CPUs      []*arch.Registers
	Inert     []*arch.Registers
	Memory    []Segment
	File      string
	Text      uint64
	SlideBy   uint64
	Libraries []gdbserver.Library
}

// FirstInert is the number of a machine's first inert thread.
const FirstInert = 1001

// NewMachine returns a machine whose CPUs start at pc with a stack each.
func NewMachine(pid, cpus int, pc uint64, memory ...Segment) *Machine {
	m := &Machine{PID: pid, Memory: memory}
	for i := range cpus {
		top := 0xffffc90000001000 + uint64(i)*0x2000
		m.Memory = append(m.Memory, Segment{top - 0x1000, make([]byte, 0x1000)})
		r := arch.NewRegisters(arch.X86)
		for _, reg := range arch.X86.GDB {
			if name := arch.X86.Regs[reg].Name; arch.X86.Regs[reg].Bits <= 64 {
				r.Set(name, 0)
			}
		}
		r.Set("rip", pc)
		r.Set("rsp", top-0x100)
		r.Set("rbx", uint64(pid)<<8|uint64(i+1))
		m.CPUs = append(m.CPUs, r)
	}
	return m
}

// Fake is the target. Its fields may be set before it is served, and under Lock
// later.
type Fake struct {
	sync.Mutex
	Machines map[int]*Machine
	Attached map[int]bool
	Breaks   map[string]int // "pid kind addr size" to the times it was set
	Calls    []string       // everything that changes state
	Closed   int

	// OnResume replaces the toy CPUs. interrupted is closed by Interrupt.
	OnResume func(actions []gdbserver.Action, interrupted <-chan struct{}) (gdbserver.Stop, error)
	// RunAll lets threads run that gdb did not resume, as a nested machine needs it.
	RunAll bool
	// Fail, if set, may make any call fail; name is the method's.
	Fail func(name string) error

	interrupt chan struct{}
}

// New returns a target of these machines.
func New(machines ...*Machine) *Fake {
	f := &Fake{Machines: make(map[int]*Machine), Attached: make(map[int]bool), Breaks: make(map[string]int),
		interrupt: make(chan struct{})}
	for _, m := range machines {
		f.Machines[m.PID] = m
	}
	return f
}

// Target is the fake with all its capabilities.
func (f *Fake) Target() gdbserver.Target {
	return gdbserver.Target{Core: f, Memory: f, Registers: writer{f}, Resume: f, Break: f,
		Symbols: f, Monitor: f, OSData: f}
}

// called notes a call and returns the error it shall have.
func (f *Fake) called(name, format string, args ...any) error {
	if format != "" {
		f.Calls = append(f.Calls, strings.TrimSpace(name+" "+fmt.Sprintf(format, args...)))
	}
	if f.Fail != nil {
		return f.Fail(name)
	}
	return nil
}

func (f *Fake) machine(pid int) (*Machine, error) {
	if !f.Attached[pid] || f.Machines[pid] == nil {
		return nil, fmt.Errorf("machine %d is not attached", pid)
	}
	return f.Machines[pid], nil
}

func (f *Fake) cpu(pid, tid int) (*Machine, *arch.Registers, error) {
	m, err := f.machine(pid)
	if err != nil {
		return nil, nil, err
	}
	if i := tid - FirstInert; i >= 0 && i < len(m.Inert) {
		return m, m.Inert[i], nil
	}
	if tid < 1 || tid > len(m.CPUs) {
		return nil, nil, fmt.Errorf("machine %d has no thread %d", pid, tid)
	}
	return m, m.CPUs[tid-1], nil
}

// Processes implements gdbserver.Core.
func (f *Fake) Processes(context.Context) (pids []int) {
	f.Lock()
	defer f.Unlock()
	for pid := range f.Machines {
		pids = append(pids, pid)
	}
	slices.Sort(pids)
	return pids
}

// Attach implements gdbserver.Core.
func (f *Fake) Attach(_ context.Context, pid int) error {
	f.Lock()
	defer f.Unlock()
	if err := f.called("attach", "%d", pid); err != nil {
		return err
	}
	if f.Machines[pid] == nil || f.Attached[pid] {
		return fmt.Errorf("cannot attach machine %d", pid)
	}
	f.Attached[pid] = true
	return nil
}

// Detach implements gdbserver.Core.
func (f *Fake) Detach(_ context.Context, pid int) error {
	f.Lock()
	defer f.Unlock()
	delete(f.Attached, pid)
	for b := range f.Breaks {
		if strings.HasPrefix(b, fmt.Sprintf("%d ", pid)) {
			delete(f.Breaks, b)
		}
	}
	return f.called("detach", "%d", pid)
}

// Close implements gdbserver.Core.
func (f *Fake) Close() {
	f.Lock()
	defer f.Unlock()
	clear(f.Attached)
	clear(f.Breaks)
	f.Closed++
	f.called("close", "%s", "")
}

// Threads implements gdbserver.Core.
func (f *Fake) Threads(_ context.Context, pid int) (threads []gdbserver.Thread, err error) {
	f.Lock()
	defer f.Unlock()
	if err := f.called("threads", ""); err != nil {
		return nil, err
	}
	m, err := f.machine(pid)
	if err != nil {
		return nil, err
	}
	for i := range m.CPUs {
		threads = append(threads, gdbserver.Thread{ID: i + 1, Name: fmt.Sprintf("m%d-cpu%d", pid, i), Extra: "<toy>", Core: i})
	}
	for i := range m.Inert {
		threads = append(threads, gdbserver.Thread{ID: FirstInert + i, Name: fmt.Sprintf("sleeper (%d)", i), Core: -1, Inert: true})
	}
	return threads, nil
}

// Registers implements gdbserver.Core.
func (f *Fake) Registers(_ context.Context, pid, tid int) (*arch.Registers, error) {
	f.Lock()
	defer f.Unlock()
	if err := f.called("registers", ""); err != nil {
		return nil, err
	}
	_, r, err := f.cpu(pid, tid)
	if err != nil {
		return nil, err
	}
	return r.Clone(), nil
}

// slice returns the memory at addr, at most n bytes, or nil.
func (m *Machine) slice(addr uint64, n int) []byte {
	for _, s := range m.Memory {
		if addr >= s.Base && addr-s.Base < uint64(len(s.Data)) {
			b := s.Data[addr-s.Base:]
			return b[:min(len(b), n)]
		}
	}
	return nil
}

// ReadMemory implements gdbserver.Core.
func (f *Fake) ReadMemory(_ context.Context, pid, tid int, p []byte, addr uint64) (int, error) {
	f.Lock()
	defer f.Unlock()
	if err := f.called("read", ""); err != nil {
		return 0, err
	}
	m, _, err := f.cpu(pid, tid)
	if err != nil {
		return 0, err
	}
	n := copy(p, m.slice(addr, len(p)))
	if n < len(p) {
		return n, &mem.FaultError{Space: "toy", Addr: addr + uint64(n)}
	}
	return n, nil
}

// WriteMemory implements gdbserver.MemoryWriter.
func (f *Fake) WriteMemory(_ context.Context, pid, tid int, addr uint64, p []byte) error {
	f.Lock()
	defer f.Unlock()
	if err := f.called("write", "%d.%d %#x %x", pid, tid, addr, p); err != nil {
		return err
	}
	m, _, err := f.cpu(pid, tid)
	if err != nil {
		return err
	}
	b := m.slice(addr, len(p))
	if len(b) < len(p) {
		return &mem.FaultError{Space: "toy", Addr: addr + uint64(len(b))}
	}
	copy(b, p)
	return nil
}

// writer is the fake as a RegisterWriter.
type writer struct{ *Fake }

// WriteRegister implements gdbserver.RegisterWriter.
func (w writer) WriteRegister(_ context.Context, pid, tid, reg int, value []byte) error {
	w.Lock()
	defer w.Unlock()
	_, r, err := w.cpu(pid, tid)
	if err != nil {
		return err
	}
	if err := w.called("register", "%d.%d %s %x", pid, tid, r.Arch().Regs[reg].Name, value); err != nil {
		return err
	}
	return r.SetBytes(reg, value)
}

// Set implements gdbserver.Breaker.
func (f *Fake) Set(_ context.Context, pid int, kind gdbserver.BreakKind, addr uint64, size int) error {
	f.Lock()
	defer f.Unlock()
	if err := f.called("set", "%d %d %#x %d", pid, kind, addr, size); err != nil {
		return err
	}
	f.Breaks[fmt.Sprintf("%d %d %#x %d", pid, kind, addr, size)]++
	return nil
}

// Clear implements gdbserver.Breaker.
func (f *Fake) Clear(_ context.Context, pid int, kind gdbserver.BreakKind, addr uint64, size int) error {
	f.Lock()
	defer f.Unlock()
	delete(f.Breaks, fmt.Sprintf("%d %d %#x %d", pid, kind, addr, size))
	return f.called("clear", "%d %d %#x %d", pid, kind, addr, size)
}

// ExecFile implements gdbserver.Symbols.
func (f *Fake) ExecFile(pid int) string { return f.Machines[pid].File }

// TextSegment implements gdbserver.Symbols.
func (f *Fake) TextSegment(pid int) (uint64, bool) {
	return f.Machines[pid].Text, f.Machines[pid].Text != 0
}

// Slide implements gdbserver.Symbols.
func (f *Fake) Slide(pid int) (uint64, bool) {
	return f.Machines[pid].SlideBy, f.Machines[pid].Text != 0
}

// Libraries implements gdbserver.Symbols.
func (f *Fake) Libraries(pid int) []gdbserver.Library { return f.Machines[pid].Libraries }

// Monitor implements gdbserver.Monitor: it echoes, and knows two other words.
func (f *Fake) Monitor(_ context.Context, pid, tid int, command string, out io.Writer) error {
	switch command {
	case "fail":
		return fmt.Errorf("told to fail")
	case "panic":
		panic("told to panic")
	case "long":
		_, err := io.WriteString(out, strings.Repeat("0123456789abcdef", 20000))
		return err
	}
	_, err := fmt.Fprintf(out, "%d.%d %s\n", pid, tid, command)
	return err
}

// Tables implements gdbserver.OSData.
func (f *Fake) Tables(context.Context) ([]gdbserver.OSTable, error) {
	return []gdbserver.OSTable{{Name: "machines", Title: "Machines", Description: "all there are",
		Columns: []string{"pid", "level"}, Rows: [][]string{{"1", "L1"}, {"2", "L2 <nested>"}}}}, nil
}
